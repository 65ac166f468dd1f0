//! Which segment gets the next try, and when.
//! In: what lies in the folder, how tries ended, the time. Out: the segments that are due, in the order in which they are to be tried.
//! Never: gives a segment up; lets one that cannot be sent stand in the way of others; waits, reads a clock or a file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::spool::Segment;

/// Bounds of the wait after a failure; in between it is drawn by lot ("full jitter"), so that a fleet does not come back as one.
const WAIT_MIN: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A segment that fails this long while others get through is poison.
const POISON_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A failure longer ago says nothing of now: longer than the try of an ordinary part against a server that never answers, and the
/// longest wait after it. What only waits for its turn after an outage does not count as failing.
const FAILED_LATELY: Duration = Duration::from_secs(240);

/// How often poison is tried.
const POISON_WAIT: Duration = Duration::from_secs(3600);

/// How a try ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Everything of it is in S3.
    Gone,
    /// As far as it could be sent, it is.
    Sent {
        /// Parts of it that are in S3.
        parts: usize,
    },
    /// It was not got further.
    Failed {
        /// Parts of it that are in S3.
        parts: usize,
        /// Whether its own files are not as they should be.
        damaged: bool,
        /// Why, in words.
        cause: String,
    },
}

/// A segment that lies in the folder.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which.
    pub segment: &'a Segment,
    /// Whether it is being recorded.
    pub grows: bool,
    /// For how long others have got through while it failed, by what an earlier process noted.
    pub passed_for: Option<Duration>,
}

/// What is known of one segment beside its files; `K` is what a try leaves to the next one.
#[derive(Debug)]
pub struct Entry<K> {
    due: Instant,
    /// Its first try waits, as it still grows; once it is whole nothing does.
    held_back: bool,
    /// Its manifest is there.
    whole: bool,
    under_way: bool,
    /// The most parts of it that were ever in S3: what is only sent again is no progress.
    pub best: usize,
    /// Since when no try has got it further, and when the last one failed.
    failing: Option<(Instant, Instant)>,
    failures: u32,
    /// When, since it began to fail, the first other one got through.
    passed: Option<Instant>,
    /// Its files are damaged, or it has failed for long while others got through.
    pub poison: bool,
    /// Why the last try failed.
    pub last_error: Option<String>,
    /// What the last try left.
    pub kept: Option<K>,
}

/// The segments that are known.
#[derive(Debug)]
pub struct Queue<K> {
    entries: BTreeMap<String, Entry<K>>,
    /// How often what went well is looked at again.
    look_every: Duration,
    /// How long the first try of a growing segment is held back.
    offset: Duration,
    /// How long this process must have seen a segment get no further before it is poison for its age.
    poison_still: Duration,
    progress: u64,
}

impl<K> Queue<K> {
    /// An empty one. `offset`: see [`offset`]; `poison_still`: see [`super::Settings::poison_still`].
    #[must_use]
    pub fn new(look_every: Duration, offset: Duration, poison_still: Duration) -> Self {
        Self { entries: BTreeMap::new(), look_every, offset, poison_still, progress: 0 }
    }

    /// Takes note of what lies in the folder now.
    pub fn list<'a>(&mut self, segments: impl Iterator<Item = Seen<'a>> + Clone, now: Instant) {
        let there: BTreeSet<_> = segments.clone().map(|seen| seen.segment.capture_id.as_str()).collect();
        self.entries.retain(|id, entry| entry.under_way || there.contains(id.as_str()));
        for Seen { segment, grows, passed_for } in segments {
            let whole = segment.manifest.is_some();
            let due = if grows { now + self.offset } else { now };
            let entry = self.entries.entry(segment.capture_id.clone()).or_insert_with(|| {
                let passed = passed_for.map(|ago| now.checked_sub(ago).unwrap_or(now));
                Entry { held_back: grows, whole, passed, ..Entry::new(due) }
            });
            // What held it back, or made it poison, was that it was not whole.
            if !grows && (entry.held_back || (whole && !entry.whole && entry.poison)) {
                (entry.due, entry.held_back) = (now, false);
            }
            entry.whole = whole;
        }
    }

    /// Takes up to `room` segments that are due for a try: those first that have been due for the longest, so that each gets its turn
    /// however many fail slowly; of those that became due together the oldest segment. Poison comes behind all others, one at a time.
    pub fn take(&mut self, room: usize, now: Instant) -> Vec<(String, Option<K>)> {
        let poison_under_way = self.entries.values().any(|entry| entry.poison && entry.under_way);
        let due = self.entries.iter().filter(|(_, entry)| !entry.under_way && entry.due <= now);
        let mut due: Vec<_> = due.map(|(id, entry)| (entry.poison, entry.due, id.clone())).collect();
        due.sort();
        let last = due.iter().position(|&(poison, ..)| poison).map_or(due.len(), |first| first + usize::from(!poison_under_way));
        let mut taken = Vec::new();
        for (_, _, id) in due.into_iter().take(last.min(room)) {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            (entry.under_way, entry.held_back) = (true, false);
            taken.push((id, entry.kept.take()));
        }
        taken
    }

    /// Growing segments have grown: what went well is looked at again at once.
    pub fn grew(&mut self, now: Instant) {
        let growing = self.entries.values_mut().filter(|entry| !entry.whole && !entry.held_back && entry.failures == 0);
        growing.for_each(|entry| entry.due = entry.due.min(now));
    }

    /// Takes note of how a try ended. Gives after a failure how many there were in a row, and how long the next one waits.
    pub fn ended(&mut self, id: &str, kept: Option<K>, ended: Ended, now: Instant) -> Option<(u32, Duration)> {
        if ended == Ended::Gone {
            for entry in self.entries.values_mut().filter(|entry| entry.failures > 0) {
                entry.passed.get_or_insert(now);
            }
        }
        let (look_every, poison_still) = (self.look_every, self.poison_still);
        let entry = self.entries.get_mut(id)?;
        (entry.under_way, entry.kept) = (false, kept);
        let further = match &ended {
            Ended::Gone => true,
            Ended::Sent { parts } | Ended::Failed { parts, .. } => {
                let before = entry.best;
                entry.best = before.max(*parts);
                *parts > before
            }
        };
        // That a growing segment's parts arrive says nothing of those that are to be completed.
        self.progress += u64::from(further && (entry.whole || ended == Ended::Gone));
        let more = further && matches!(ended, Ended::Sent { .. });
        let Ended::Failed { damaged, cause, .. } = ended else {
            (entry.failures, entry.failing, entry.passed, entry.poison, entry.last_error) = (0, None, None, false, None);
            // Where parts came there may be more by now.
            entry.due = if more { now } else { now + look_every };
            return None;
        };
        let since = entry.failing.filter(|_| !further).map_or(now, |(since, _)| since);
        entry.failing = Some((since, now));
        // Not by the clock alone: it ran on while no agent did, and a part that arrives now and then is no poison.
        let still = now.saturating_duration_since(since) >= poison_still;
        let failing = still && entry.passed.is_some_and(|passed| now.saturating_duration_since(passed) >= POISON_AFTER);
        entry.poison = damaged || failing;
        entry.last_error = Some(cause);
        let wait = if entry.poison { POISON_WAIT } else { jitter(id, entry.failures) };
        entry.failures = entry.failures.saturating_add(1);
        entry.due = now + wait;
        Some((entry.failures, wait))
    }

    /// What is known of a segment.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Entry<K>> {
        self.entries.get(id)
    }

    /// How many segments are known.
    #[must_use]
    pub fn known(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is one that a further try may send.
    #[must_use]
    pub fn is_sendable(&self) -> bool {
        self.entries.values().any(|entry| !entry.poison || entry.under_way)
    }

    /// For how long the segment that fails longest has not got further, whatever the cause; poison is told of apart.
    #[must_use]
    pub fn failing(&self, now: Instant) -> Option<Duration> {
        let failing = self.entries.values().filter(|entry| !entry.poison).filter_map(|entry| entry.failing);
        let lately = failing.filter(|&(_, last)| now.saturating_duration_since(last) < FAILED_LATELY);
        lately.map(|(since, _)| now.saturating_duration_since(since)).max()
    }

    /// How often a segment that grows no more got further: more of its parts than ever are in S3, or all of it is confirmed.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// How many are poison.
    #[must_use]
    pub fn poison(&self) -> usize {
        self.entries.values().filter(|entry| entry.poison).count()
    }
}

impl<K> Entry<K> {
    fn new(due: Instant) -> Self {
        Self {
            due,
            held_back: false,
            whole: false,
            under_way: false,
            best: 0,
            failing: None,
            failures: 0,
            passed: None,
            poison: false,
            last_error: None,
            kept: None,
        }
    }

    /// For how long others have got through while it failed; `None` while that is not so, and while it is tried.
    #[must_use]
    pub fn passed_for(&self, now: Instant) -> Option<Duration> {
        self.passed.filter(|_| !self.under_way).map(|passed| now.saturating_duration_since(passed))
    }

    /// Whether a try is under way.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }
}

/// When within `spread` of a segment's beginning an agent begins its upload: the same for it each time, another for each other.
#[must_use]
pub fn offset(spread: Duration, instance: Option<&str>) -> Duration {
    let lot = instance.map_or(0, |instance| super::checksum::of_bytes(instance.as_bytes()) >> 32);
    spread.mul_f64(lot as f64 / f64::from(u32::MAX))
}

/// A wait between [`WAIT_MIN`] and a bound that doubles with each failure, up to [`WAIT_MAX`]. The lot is the segment's id, which is
/// random: two segments wait differently, and one that is watched again waits as it did.
fn jitter(id: &str, failures: u32) -> Duration {
    let bound = WAIT_MIN.saturating_mul(2u32.saturating_pow(failures.saturating_add(1))).min(WAIT_MAX);
    let lot = super::checksum::of_bytes(format!("{id} {failures}").as_bytes()) >> 32;
    WAIT_MIN + (bound - WAIT_MIN).mul_f64(lot as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Bench {
        queue: Queue<()>,
        segments: Vec<Segment>,
        now: Instant,
    }

    impl Bench {
        fn new(ids: &[&str]) -> Self {
            let mut bench =
                Self { queue: Queue::new(Duration::from_millis(500), Duration::from_secs(7), HOUR), segments: vec![], now: Instant::now() };
            bench.segments = ids.iter().map(|id| segment(id, true)).collect();
            bench.list();
            bench
        }

        fn list(&mut self) {
            self.queue.list(self.segments.iter().map(seen), self.now);
        }

        fn take(&mut self, room: usize) -> Vec<String> {
            self.queue.take(room, self.now).into_iter().map(|(id, _)| id).collect()
        }

        fn fail(&mut self, id: &str, damaged: bool) -> Duration {
            self.fail_with(id, damaged, 0)
        }

        fn fail_with(&mut self, id: &str, damaged: bool, parts: usize) -> Duration {
            self.queue.ended(id, None, Ended::Failed { parts, damaged, cause: "no".into() }, self.now).unwrap().1
        }

        /// For how long a segment has failed that comes back each minute with `parts`, tried for `minutes`.
        fn failing_after(&mut self, minutes: usize, parts: impl Fn(usize) -> usize) -> u64 {
            for minute in 0..=minutes {
                self.fail_with("a", false, parts(minute));
                self.now += Duration::from_secs(60);
            }
            self.now -= Duration::from_secs(60);
            self.queue.failing(self.now).map_or(0, |time| time.as_secs())
        }

        /// Goes on by `step` for `long`, trying all that is due: `bad` fails, the others get through and come again.
        fn go_on(&mut self, long: Duration, step: Duration, bad: &str) {
            let end = self.now + long;
            while self.now < end {
                self.now += step;
                self.list();
                for id in self.take(10) {
                    if id == bad {
                        self.fail(&id, false);
                    } else {
                        self.queue.ended(&id, None, Ended::Gone, self.now);
                    }
                }
            }
        }
    }

    fn seen(segment: &Segment) -> Seen<'_> {
        Seen { segment, grows: segment.manifest.is_none(), passed_for: None }
    }

    fn segment(id: &str, whole: bool) -> Segment {
        Segment { capture_id: id.into(), data: None, journal: None, draft: None, manifest: whole.then(|| "m".into()), failing: None }
    }

    #[test]
    fn the_wait_after_a_failure_is_drawn_between_half_a_second_and_a_minute() {
        for failures in [0, 1, 5, 10, u32::MAX] {
            let bound = 0.5 * 2f64.powi(failures.saturating_add(1).min(20).cast_signed());
            let bound = bound.min(60.0);
            let waits: Vec<_> = (0..1000).map(|id| jitter(&format!("019aa8f0-{id:012x}"), failures).as_secs_f64()).collect();
            assert!(waits.iter().all(|wait| (0.5..=bound).contains(wait)), "{failures}");
            let early = waits.iter().filter(|&&wait| wait < f64::midpoint(0.5, bound)).count();
            assert!((400..600).contains(&early), "{failures}: {early} of 1000 segments come back in the first half");
        }
        assert_ne!(jitter("a", 20), jitter("a", 21));
    }

    #[test]
    fn those_that_are_due_for_the_longest_come_first_and_no_more_than_there_is_room_for() {
        let mut bench = Bench::new(&["a", "b", "c"]);
        assert_eq!(bench.take(2), ["a", "b"]);
        let wait = bench.fail("a", false).max(bench.fail("b", false));
        bench.now += wait;
        assert_eq!(bench.take(1), ["c"], "it has waited for longer");
        assert_eq!(bench.take(9).len(), 2);
        assert_eq!(bench.take(9), [""; 0], "all are under way");
    }

    #[test]
    fn a_growing_segment_waits_for_its_moment_and_a_whole_one_does_not() {
        let mut bench = Bench::new(&[]);
        bench.segments = vec![segment("a", false)];
        bench.list();
        bench.now += Duration::from_millis(6900);
        bench.list();
        assert_eq!(bench.take(9), [""; 0]);
        bench.segments = vec![segment("a", true)];
        bench.list();
        assert_eq!(bench.take(9), ["a"], "it is whole and waited all the same");
        bench.fail("a", false);
        bench.list();
        assert_eq!(bench.take(9), [""; 0], "a failure was forgotten");
        bench.segments.push(segment("b", false));
        bench.list();
        bench.now += Duration::from_secs(7);
        assert_eq!(bench.take(9), ["a", "b"]);
    }

    #[test]
    fn agents_of_a_fleet_begin_at_moments_of_their_own_within_the_spread() {
        let spread = Duration::from_secs(20);
        let moments: BTreeSet<_> = (0..1000).map(|n| offset(spread, Some(&format!("i-{n:017x}")))).collect();
        assert!(moments.len() > 990 && *moments.last().unwrap() <= spread);
        for quarter in 0..4 {
            let within = moments.iter().filter(|moment| moment.as_secs() / 5 == quarter).count();
            assert!((150..350).contains(&within), "{within} of 1000 in quarter {quarter}");
        }
        assert_eq!(offset(spread, Some("i-1")), offset(spread, Some("i-1")));
        assert_eq!(offset(spread, None), Duration::ZERO);
    }

    #[test]
    fn a_damaged_segment_is_poison_at_once_is_tried_each_hour_and_behind_all_others() {
        let mut bench = Bench::new(&["a", "b", "c"]);
        bench.take(3);
        assert_eq!((bench.fail("a", true), bench.fail("b", true)), (POISON_WAIT, POISON_WAIT));
        bench.fail("c", false);
        assert_eq!((bench.queue.poison(), bench.queue.get("a").unwrap().last_error.as_deref()), (2, Some("no")));
        bench.now += HOUR;
        assert_eq!(bench.take(9), ["c", "a"], "of the two that are poison one at a time, and last");
        assert_eq!(bench.take(9), [""; 0]);
        bench.queue.ended("a", None, Ended::Gone, bench.now);
        assert_eq!((bench.queue.poison(), bench.take(9)), (1, vec!["b".to_owned()]), "it got through: it is not poison any more");
    }

    #[test]
    fn a_segment_that_fails_for_a_day_while_others_get_through_is_poison() {
        let mut bench = Bench::new(&["bad", "good"]);
        bench.go_on(24 * HOUR - Duration::from_secs(120), Duration::from_secs(30), "bad");
        assert_eq!(bench.queue.poison(), 0);
        bench.go_on(Duration::from_secs(300), Duration::from_secs(30), "bad");
        assert_eq!(bench.queue.poison(), 1);
        assert!(bench.queue.get("bad").unwrap().poison);
    }

    #[test]
    fn a_restart_does_not_forget_for_how_long_a_segment_failed_while_others_got_through() {
        let mut bench = Bench::new(&["bad", "good"]);
        bench.go_on(23 * HOUR, Duration::from_secs(30), "bad");
        let noted = bench.queue.get("bad").unwrap().passed_for(bench.now);
        assert!(noted.is_some_and(|noted| noted > 22 * HOUR), "{noted:?}");
        assert_eq!(bench.queue.get("good").unwrap().passed_for(bench.now), None);
        // The next process, two hours later.
        let segments = bench.segments.clone();
        let mut bench = Bench::new(&[]);
        bench.segments = segments;
        let noted = |seen: Seen<'_>| noted.filter(|_| seen.segment.capture_id == "bad").map(|noted| noted + 2 * HOUR);
        bench.queue.list(bench.segments.iter().map(seen).map(|seen| Seen { passed_for: noted(seen), ..seen }), bench.now);
        assert_eq!((bench.queue.poison(), bench.take(9).len()), (0, 2), "it gets its try");
        bench.fail("bad", false);
        assert_eq!(bench.queue.poison(), 0, "one failure after a time in which nobody tried says nothing");
        bench.go_on(HOUR + Duration::from_secs(120), Duration::from_secs(30), "bad");
        assert_eq!(bench.queue.poison(), 1);
        bench.queue.ended("bad", None, Ended::Sent { parts: 1 }, bench.now);
        assert_eq!(bench.queue.get("bad").unwrap().passed_for(bench.now), None, "it got through");
    }

    #[test]
    fn a_segment_that_was_poison_as_it_was_not_whole_is_tried_at_once_when_it_is() {
        let mut bench = Bench::new(&[]);
        bench.segments = vec![segment("a", false)];
        bench.list();
        assert_eq!(bench.take(9), [""; 0], "it grows");
        bench.queue.list(bench.segments.iter().map(seen).map(|seen| Seen { grows: false, ..seen }), bench.now);
        assert_eq!(bench.take(9), ["a"], "it does not, and is not whole");
        assert_eq!(bench.fail("a", true), POISON_WAIT);
        bench.list();
        assert_eq!(bench.take(9), [""; 0]);
        bench.segments = vec![segment("a", true)];
        bench.list();
        assert_eq!(bench.take(9), ["a"]);
        assert_eq!(bench.fail("a", true), POISON_WAIT);
        bench.list();
        assert_eq!(bench.take(9), [""; 0], "it was whole before");
    }

    #[test]
    fn a_segment_whose_parts_arrive_again_and_again_and_that_is_never_completed_fails_from_its_first_failure_on() {
        // A completion that is refused; an upload that begins anew each time.
        for parts in [|_| 3, |minute: usize| minute % 4] {
            let mut bench = Bench::new(&["a", "b"]);
            let failing = bench.failing_after(10, parts);
            assert!((420..=600).contains(&failing), "{failing} s");
            let progress = bench.queue.progress();
            bench.queue.ended("b", None, Ended::Sent { parts: 1 }, bench.now);
            assert_eq!(bench.queue.failing(bench.now).unwrap().as_secs(), failing, "another one gets through");
            bench.queue.ended("a", None, Ended::Gone, bench.now);
            assert_eq!((bench.queue.failing(bench.now), bench.queue.progress()), (None, progress + 2));
        }
    }

    #[test]
    fn a_slow_uplink_on_which_tries_fail_and_parts_arrive_is_not_failing() {
        let mut bench = Bench::new(&["a"]);
        assert_eq!(bench.failing_after(59, |minute| minute / 4), 3 * 60, "a part in four minutes");
        assert_eq!(bench.queue.progress(), 14);
    }

    #[test]
    fn a_segment_of_which_parts_arrive_is_never_poison_however_many_tries_fail_while_others_get_through() {
        let mut bench = Bench::new(&["a", "b"]);
        for minute in 0..25 * 60 {
            bench.queue.ended("b", None, Ended::Gone, bench.now);
            bench.fail_with("a", false, minute / 30);
            bench.now += Duration::from_secs(60);
        }
        assert_eq!(bench.queue.poison(), 0);
    }

    #[test]
    fn what_waits_for_its_turn_after_an_outage_and_what_is_poison_are_not_failing() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.failing_after(30, |_| 0);
        bench.now += FAILED_LATELY;
        assert_eq!(bench.queue.failing(bench.now), None);
        bench.fail("a", true);
        assert_eq!(bench.queue.failing(bench.now), None);
    }

    #[test]
    fn the_parts_of_a_growing_segment_are_no_progress_of_those_that_are_whole() {
        let mut bench = Bench::new(&[]);
        bench.segments = vec![segment("a", false)];
        bench.list();
        bench.queue.ended("a", None, Ended::Sent { parts: 7 }, bench.now);
        assert_eq!(bench.queue.progress(), 0);
        bench.segments = vec![segment("a", true)];
        bench.list();
        bench.queue.ended("a", None, Ended::Sent { parts: 8 }, bench.now);
        assert_eq!(bench.queue.progress(), 1);
    }

    #[test]
    fn an_outage_of_days_makes_no_segment_poison() {
        let mut bench = Bench::new(&["a", "b"]);
        for _ in 0..72 {
            bench.now += HOUR;
            for id in bench.take(9) {
                bench.fail(&id, false);
            }
        }
        bench.now += HOUR;
        bench.take(9);
        bench.queue.ended("a", None, Ended::Gone, bench.now);
        bench.fail("b", false);
        assert_eq!(bench.queue.poison(), 0, "nothing got through before");
    }
}
