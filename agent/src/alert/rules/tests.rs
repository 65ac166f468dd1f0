//! From each counter of the agent to the trouble that it is, and to no other, by real counters and seconds that are counted by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;

use super::super::fold::{Fold, Kind, Losses, News, State};
use super::super::mail::{Mail, Place};
use super::*;
use crate::observe::counters::Count;
use crate::wire::{Drop, Ignored};

const START_NS: u64 = 1_795_306_500 * SECOND_NS;
const REPEAT: Duration = Duration::from_secs(3600);

fn settings() -> Settings {
    Settings {
        topic_arn: Some("arn:aws:sns:eu-north-1:123456789012:alerts".into()),
        silence: Some(Duration::from_secs(300)),
        drop_ratio: 0.001,
        repeat: REPEAT,
        on_start: false,
        dir: "/nowhere".into(),
        spool_max_bytes: 1000,
        window: Duration::from_secs(900),
    }
}

/// Who says that something is wrong.
#[derive(Clone, Copy)]
enum Source {
    /// Counters, as it sets them in a second in which all else was well. `begun_ns`: the last second before, monotonic.
    Counters(fn(counters: &Counters, begun_ns: u64)),
    /// The topic: it has no confirmed subscription.
    Topic,
    /// The service manager's hooks: the agent died.
    Hooks,
}

/// One source, the trouble that it is, and words that its mail owes to the source's own value.
type Row = (Trouble, Source, &'static str);

const ROWS: &[Row] = &[
    (Trouble::CaptureFailed, Source::Counters(|c, begun_ns| c.captures[1].beat_ns.set(begun_ns)), "has stood still for 11 s"),
    (Trouble::CaptureFailed, Source::Counters(|c, begun_ns| c.recorder.beat_ns.set(begun_ns)), "has stood still for 11 s"),
    (Trouble::AgentDied, Source::Hooks, "killed by signal 9"),
    (Trouble::Silence, Source::Counters(|c, _| take_back(&c.frames_written, WRITTEN)), "no mirrored packet has come for 5 min"),
    (Trouble::KernelDrops, Source::Counters(|c, _| c.kernel_drops.add(700)), "700 of 60000 packets of the last 1 min"),
    (
        Trouble::InterfaceGone,
        Source::Counters(|c, begun_ns| c.captures.iter().for_each(|pulse| pulse.able_ns.set(begun_ns))),
        "from the interface for 11 s",
    ),
    (Trouble::UploadFailing, Source::Counters(|c, _| c.segments_failing_seconds.set(301)), "in every try for 5 min 1 s"),
    (
        Trouble::UploadFailing,
        Source::Counters(|c, _| {
            c.spool_oldest_seconds.set(4001);
            take_back(&c.upload_progress, 1);
        }),
        "begun 1 h 6 min ago, and none has got further for 35 min",
    ),
    (Trouble::UploadRefused, Source::Counters(|c, _| c.upload_refusals.add(5)), "no such bucket"),
    (
        Trouble::CredentialsRefused,
        Source::Counters(|c, _| {
            c.credential_refusals.add(6);
            nothing_is_taken(c);
        }),
        "refuses the credentials",
    ),
    (
        Trouble::ClockRefused,
        Source::Counters(|c, _| {
            c.clock_refusals.add(7);
            nothing_is_taken(c);
        }),
        "differ by more than 15 minutes",
    ),
    (Trouble::PoisonSegment, Source::Counters(|c, _| c.segments_poison.set(3)), "3 segments"),
    (Trouble::SpoolHigh, Source::Counters(|c, _| c.spool_bytes.set(750)), "750 of 1000 bytes, 75 %"),
    (Trouble::SpoolHigh, Source::Counters(|c, _| c.spool_capacity.set(140)), "100 of 140 bytes, 71 %"),
    (Trouble::SpoolCritical, Source::Counters(|c, _| c.spool_bytes.set(960)), "960 of 1000 bytes, 96 %"),
    (Trouble::SpoolFull, Source::Counters(|c, _| c.drops[Drop::SpoolFull.index()].add(11)), "11 frames found no room"),
    (
        Trouble::GaveWay,
        Source::Counters(|c, _| {
            c.segments_given_way.add(2);
            c.frames_given_way.add(13);
        }),
        "2 captures of 13 frames",
    ),
    (Trouble::RecordingStopped, Source::Counters(|c, _| c.recording_stopped.set(1)), "\"stop\""),
    (Trouble::SpoolRefused, Source::Counters(|c, begun_ns| c.writing_since_ns.set(begun_ns)), "for 31 s"),
    (Trouble::SpoolRefused, Source::Counters(|c, begun_ns| c.syncing_since_ns.set(begun_ns)), "for 31 s"),
    (Trouble::ClockStepped, Source::Counters(|c, _| c.clock_steps.add(17)), "has stepped 17 times"),
    (Trouble::ClockUnsynchronised, Source::Counters(|c, _| c.clock_ahead_us.set(-5_250_000)), "5.250 s behind"),
    (Trouble::ClockUnsynchronised, Source::Counters(|c, begun_ns| c.clock_answered_ns.set(begun_ns)), "has not answered for 5 min"),
    (
        Trouble::LeavingUnsent,
        Source::Counters(|c, _| {
            c.leaving_unsent.set(1);
            c.spool_segments.set(19);
        }),
        "19 segments",
    ),
    (Trouble::NobodySubscribed, Source::Topic, "no confirmed subscription"),
];

/// Frames that are written in a second.
const WRITTEN: u64 = 900;

fn take_back(count: &Count, n: u64) {
    count.set(count.get() - n);
}

/// S3 takes nothing at all.
fn nothing_is_taken(counters: &Counters) {
    for count in [&counters.parts_sent, &counters.segments_finished, &counters.statuses_told] {
        take_back(count, 1);
    }
}

/// What comes with a trouble, as it is the same and less.
fn comes_with(trouble: Trouble) -> &'static [Trouble] {
    if trouble == Trouble::SpoolCritical { &[Trouble::SpoolHigh] } else { &[] }
}

/// Real counters, and what is made of them.
struct Agent {
    counters: Counters,
    now: Now,
    watch: Watch,
    fold: Fold,
    state: State,
    news: Vec<News>,
}

impl Agent {
    fn new() -> Self {
        let (counters, now) = (Counters::new(2), Now { wall_ns: START_NS, monotonic_ns: 1_000_000 * SECOND_NS });
        let limits = Limits::new(&settings(), true);
        let watch = Watch::new(limits.clone(), Sample::of(&counters, now));
        let fold = Fold::new(limits, REPEAT, "i-1", Losses::default());
        Self { counters, now, watch, fold, state: State::default(), news: Vec::new() }
    }

    /// Lets a second pass in which all is well.
    fn well(&mut self) {
        self.now = Now { wall_ns: self.now.wall_ns + SECOND_NS, monotonic_ns: self.now.monotonic_ns + SECOND_NS };
        let (c, now) = (&self.counters, self.now.monotonic_ns);
        c.kernel_packets.add(1000);
        c.frames_written.add(WRITTEN);
        for pulse in &c.captures {
            pulse.able_ns.set(now);
        }
        for pulse in c.captures.iter().chain([&c.recorder]) {
            pulse.beat_ns.set(now);
        }
        for grows in [&c.upload_rounds, &c.upload_progress, &c.parts_sent, &c.segments_finished, &c.statuses_told] {
            grows.add(1);
        }
        for (level, value) in [(&c.spool_bytes, 100), (&c.spool_capacity, 1000), (&c.spool_segments, 2), (&c.spool_oldest_seconds, 30)] {
            level.set(value);
        }
        for none in [&c.segments_failing_seconds, &c.segments_poison, &c.recording_stopped, &c.leaving_unsent] {
            none.set(0);
        }
        c.writing_since_ns.set(0);
        c.syncing_since_ns.set(0);
        c.clock_expected_ns.set(1);
        c.clock_answered_ns.set(now);
        c.clock_ahead_us.set(900);
    }

    fn look(&mut self, source: Option<Source>) {
        let sample = Sample::of(&self.counters, self.now);
        let mut verdicts = self.watch.look(sample, true, Some(!matches!(source, Some(Source::Topic))));
        let looked_at: BTreeSet<_> = verdicts.iter().map(|(trouble, _)| *trouble).collect();
        assert_eq!((looked_at, verdicts.len()), (Trouble::ALL.into(), Trouble::ALL.len()), "each trouble is looked at once");
        if matches!(source, Some(Source::Hooks)) {
            verdicts.retain(|(trouble, _)| *trouble != Trouble::AgentDied);
            verdicts.push((Trouble::AgentDied, Verdict::Holds("it was killed by signal 9".into())));
        }
        let (news, _) = self.fold.fold(&mut self.state, &verdicts, Losses::default(), self.now, true);
        self.news.extend(news);
    }

    /// Lets time pass, in which all is well but for one source.
    fn pass(&mut self, time: Duration, source: Option<Source>) {
        let begun_ns = self.now.monotonic_ns;
        self.pass_until(time, source, begun_ns, |_| false);
    }

    fn pass_until(&mut self, time: Duration, source: Option<Source>, begun_ns: u64, done: impl Fn(&Self) -> bool) {
        for _ in 0..time.as_secs() {
            self.well();
            if let Some(Source::Counters(set)) = source {
                set(&self.counters, begun_ns);
            }
            self.look(source);
            if done(self) {
                return;
            }
        }
    }

    fn of(&self, trouble: Trouble) -> Vec<&News> {
        self.news.iter().filter(|news| news.trouble == trouble).collect()
    }
}

#[test]
fn each_source_of_a_trouble_begins_folds_and_ends_that_one_by_its_own_value_and_no_other() {
    const HOUR: Duration = Duration::from_secs(3600);
    let rows: BTreeSet<_> = ROWS.iter().map(|(trouble, ..)| *trouble).collect();
    let without: Vec<_> = Trouble::ALL.into_iter().filter(|trouble| !rows.contains(trouble)).collect();
    assert_eq!(without, [], "troubles without a row here");
    for (row, &(trouble, source, words)) in ROWS.iter().enumerate() {
        let mut agent = Agent::new();
        agent.pass(Duration::from_secs(120), None);
        assert_eq!(agent.news, [], "row {row}, {trouble:?}: all was well");
        let begun_ns = agent.now.monotonic_ns;
        agent.pass_until(HOUR, Some(source), begun_ns, |agent| !agent.of(trouble).is_empty());
        let repeat = REPEAT.max(trouble.repeat_min());
        agent.pass_until(repeat + Duration::from_secs(60), Some(source), begun_ns, |_| false);
        agent.pass(HOUR, None);
        let news = agent.of(trouble);
        let kinds: Vec<_> = news.iter().map(|news| news.kind).collect();
        assert_eq!(kinds, [Kind::Begin, Kind::Repeat, Kind::Over], "row {row}, {trouble:?}");
        assert!(news.iter().all(|later| later.id == news[0].id), "row {row}: {news:#?}");
        let mails: Vec<_> = news.iter().map(|news| Mail::of(news, &Place::default())).collect();
        assert!(mails[0].body.contains(words) && mails[2].body.contains(words), "row {row}: no '{words}' in {mails:#?}");
        assert!(mails.iter().all(|mail| mail.subject.contains(trouble.title())), "row {row}: {mails:#?}");
        let others = agent.news.iter().map(|news| news.trouble).filter(|other| *other != trouble);
        assert_eq!(others.collect::<BTreeSet<_>>(), comes_with(trouble).iter().copied().collect(), "row {row}, with {trouble:?}");
        assert!(agent.state.open.is_empty(), "row {row}, {trouble:?}: {:?}", agent.state);
    }
}

#[test]
fn what_is_refused_for_the_credentials_or_the_clock_is_no_refusal_of_the_captures_as_well_and_ends_none() {
    let credentials: fn(&Counters, u64) = |c, _| c.credential_refusals.add(1);
    let clock: fn(&Counters, u64) = |c, _| c.clock_refusals.add(1);
    for (refuse, trouble) in [(credentials, Trouble::CredentialsRefused), (clock, Trouble::ClockRefused)] {
        let mut agent = Agent::new();
        let pass = |agent: &mut Agent, seconds: u32, why: Option<fn(&Counters, u64)>| {
            for _ in 0..seconds {
                agent.well();
                nothing_is_taken(&agent.counters);
                agent.counters.upload_refusals.add(1);
                why.into_iter().for_each(|why| why(&agent.counters, 0));
                agent.look(None);
            }
        };
        pass(&mut agent, 300, Some(refuse));
        agent.pass(Duration::from_secs(60), None);
        let news: Vec<_> = agent.news.iter().map(|news| (news.trouble, news.kind)).collect();
        assert_eq!(news, [(trouble, Kind::Begin), (trouble, Kind::Over)]);
        // One that has begun before is over only when captures arrive.
        pass(&mut agent, 5, None);
        pass(&mut agent, 30, Some(refuse));
        pass(&mut agent, 300, None);
        let kinds = |agent: &Agent| agent.of(Trouble::UploadRefused).iter().map(|news| news.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&agent), [Kind::Begin]);
        agent.pass(Duration::from_secs(60), None);
        assert_eq!(kinds(&agent), [Kind::Begin, Kind::Over]);
    }
}

#[test]
fn what_else_is_counted_is_no_trouble() {
    let grows: &[fn(&Counters) -> &Count] = &[
        |c| &c.kernel_freezes,
        |c| &c.frames_late,
        |c| &c.frames_quarantined,
        |c| &c.drops[Drop::Filtered.index()],
        |c| &c.drops[Drop::OutOfSchedule.index()],
        |c| &c.drops[Drop::GeneveCritical.index()],
        |c| &c.ignored[Ignored::ALL[0].index()],
        |c| &c.notes_cut,
        |c| &c.notes_runt,
        |c| &c.tee_drops,
        |c| &c.segments_opened,
        |c| &c.segments_closed,
        |c| &c.gaps,
        |c| &c.clock_answers,
        |c| &c.bytes_given_way,
        |c| &c.upload_failures,
        |c| &c.uploads_resumed,
        |c| &c.key_collisions,
        |c| &c.leaving,
        |c| &c.mails_waiting,
        |c| &c.mail_failures,
    ];
    let mut agent = Agent::new();
    for _ in 0..2 * REPEAT.as_secs() {
        agent.well();
        for (n, count) in grows.iter().enumerate() {
            count(&agent.counters).add(1000 + n as u64);
        }
        agent.look(None);
    }
    assert_eq!(agent.news, []);
}

#[test]
fn each_number_of_a_sample_is_that_of_its_counter() {
    let c = Counters::new(2);
    let now = Now { wall_ns: START_NS, monotonic_ns: 1_000_000 * SECOND_NS };
    for (count, value) in [
        (&c.frames_written, 1),
        (&c.drops[Drop::Filtered.index()], 20),
        (&c.drops[Drop::OutOfSchedule.index()], 300),
        (&c.drops[Drop::SpoolFull.index()], 4000),
        (&c.kernel_packets, 5),
        (&c.kernel_drops, 6),
        (&c.spool_bytes, 7),
        (&c.spool_capacity, 8),
        (&c.segments_given_way, 9),
        (&c.frames_given_way, 10),
        (&c.recording_stopped, 1),
        (&c.writing_since_ns, now.monotonic_ns - 11),
        (&c.syncing_since_ns, now.monotonic_ns - 10),
        (&c.segments_failing_seconds, 12),
        (&c.upload_progress, 13),
        (&c.spool_oldest_seconds, 14),
        (&c.upload_refusals, 15),
        (&c.credential_refusals, 16),
        (&c.clock_refusals, 17),
        (&c.segments_poison, 18),
        (&c.upload_rounds, 19),
        (&c.parts_sent, 30),
        (&c.segments_finished, 400),
        (&c.statuses_told, 21),
        (&c.clock_steps, 22),
        (&c.clock_expected_ns, 23),
        (&c.clock_answered_ns, 24),
        (&c.leaving, 1),
        (&c.leaving_ended, 1),
        (&c.leaving_unsent, 1),
        (&c.spool_segments, 26),
        (&c.captures[0].beat_ns, 28),
        (&c.captures[1].beat_ns, 27),
        (&c.recorder.beat_ns, 29),
        (&c.captures[0].able_ns, 32),
        (&c.captures[1].able_ns, 31),
    ] {
        count.set(value);
    }
    c.clock_ahead_us.set(-25);
    let sample = Sample {
        now,
        mirrored: 4321,
        kernel_packets: 5,
        kernel_drops: 6,
        spool_full: 4000,
        spool_bytes: 7,
        spool_capacity: 8,
        given_way: (9, 10),
        recording_stopped: true,
        disk_waits_ns: 11,
        failing_ns: 12 * SECOND_NS,
        upload_progress: 13,
        oldest_seconds: 14,
        upload_refusals: 15,
        credential_refusals: 16,
        clock_refusals: 17,
        segments_poison: 18,
        upload_rounds: 19,
        arrived: 430,
        statuses_told: 21,
        clock_steps: 22,
        clock: Check { expected_ns: 23, answered_ns: 24, ahead_us: -25 },
        leaving: true,
        ended: true,
        stay_behind: Some(26),
        beat_ns: 27,
        able_ns: 32,
    };
    assert_eq!(Sample::of(&c, now), sample);
    for (flag, without) in [
        (&c.recording_stopped, Sample { recording_stopped: false, ..sample }),
        (&c.leaving, Sample { leaving: false, ..sample }),
        (&c.leaving_ended, Sample { ended: false, ..sample }),
        (&c.leaving_unsent, Sample { stay_behind: None, ..sample }),
    ] {
        flag.set(0);
        assert_eq!(Sample::of(&c, now), without);
        flag.set(1);
    }
}
