//! In: the counters' life signs, the time. Out: one line for people, and whether every loop of both halves still goes round.
//! Never: reads a clock, decides what follows. A loop that waits for a dead disk stands still; S3 that does not answer stops none.

use super::counters::Counters;
use super::health::{self, Facts};
use crate::host::clock::{Now, SECOND_NS};

/// The last that was seen of each loop.
#[derive(Debug)]
pub struct Vitals {
    /// What the capture takes frames from, for the line.
    interface: String,
    patience_ns: u64,
    loops: Vec<Loop>,
    /// What the agent is at, and since when.
    act: (Act, u64),
    frames: u64,
    looked_ns: u64,
}

#[derive(Debug)]
struct Loop {
    name: String,
    sign: u64,
    changed_ns: u64,
}

/// What the agent is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// It records: every loop goes round.
    Record,
    /// Capture and recorder end: that is over soon.
    Close,
    /// It only sends, for as long as that takes: the uploader goes round.
    Send,
    /// Everything ends: that is over soon.
    End,
}

/// What a look shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// For `systemctl status`.
    pub line: String,
    /// Which loop has stood still for longer than the patience, or what has not come to its end within it.
    pub stuck: Option<String>,
}

impl Vitals {
    /// Begins to look at `now`. `patience_ns` is how long a loop may stand still.
    #[must_use]
    pub fn new(interface: String, patience_ns: u64, counters: &Counters, facts: &Facts, now: Now) -> Self {
        let loops = signs(counters, facts.live).map(|(name, sign)| Loop { name, sign, changed_ns: now.monotonic_ns }).collect();
        let act = (Act::Record, now.monotonic_ns);
        Self { interface, patience_ns, loops, act, frames: counters.frames_written.get(), looked_ns: now.monotonic_ns }
    }

    /// Looks, while the agent is at `act`.
    pub fn look(&mut self, counters: &Counters, facts: &Facts, now: Now, act: Act) -> Look {
        if act != self.act.0 {
            self.act = (act, now.monotonic_ns);
        }
        let act_ns = now.monotonic_ns.saturating_sub(self.act.1);
        let ending = match act {
            Act::Close => Some("recording"),
            Act::End => Some("the agent"),
            Act::Record | Act::Send => None,
        };
        let mut stuck =
            ending.filter(|_| act_ns > self.patience_ns).map(|what| format!("{what} has not ended for {} s", act_ns / SECOND_NS));
        for (known, (_, sign)) in self.loops.iter_mut().zip(signs(counters, facts.live)) {
            if sign != known.sign {
                (known.sign, known.changed_ns) = (sign, now.monotonic_ns);
            }
            let still_ns = now.monotonic_ns.saturating_sub(known.changed_ns);
            let goes_round = act == Act::Record || (act == Act::Send && known.name == UPLOADER);
            if goes_round && still_ns > self.patience_ns {
                stuck = Some(format!("{} has stood still for {} s", known.name, still_ns / SECOND_NS));
            }
        }
        Look { line: self.line(counters, facts, now), stuck }
    }

    fn line(&mut self, counters: &Counters, facts: &Facts, now: Now) -> String {
        let frames = counters.frames_written.get();
        let passed_ns = now.monotonic_ns.saturating_sub(self.looked_ns).max(1);
        let rate = u128::from(frames.saturating_sub(self.frames)) * u128::from(SECOND_NS) / u128::from(passed_ns);
        (self.frames, self.looked_ns) = (frames, now.monotonic_ns);
        let state = match health::judge(counters, facts, now).reasons.iter().find(|reason| reason.reason != health::LEAVING) {
            None if counters.leaving_ended.get() > 0 => "capture ended, the instance leaves".to_owned(),
            None if counters.leaving.get() > 0 => format!("capturing on {}, the instance is to leave", self.interface),
            None => format!("capturing on {}", self.interface),
            Some(reason) => format!("not capturing: {}", reason.detail),
        };
        let spool = match counters.spool_segments.get() {
            0 => "nothing unsent".to_owned(),
            segments => format!(
                "spool {segments} segments, {} MiB, oldest unsent {} s",
                counters.spool_bytes.get() >> 20,
                counters.spool_oldest_seconds.get()
            ),
        };
        let waits_ns = counters.disk_waits_ns(now.monotonic_ns);
        let waits =
            if waits_ns < WAITS_SAID_NS { String::new() } else { format!("; its disk has taken nothing for {} s", waits_ns / SECOND_NS) };
        let stopped = if counters.recording_stopped.get() > 0 { "; recording has stopped: the spool is full" } else { "" };
        format!("{state}; {rate} frames/s; {spool}{waits}{stopped}")
    }
}

/// A disk that takes longer than this is worth a word.
const WAITS_SAID_NS: u64 = 2 * SECOND_NS;

const UPLOADER: &str = "the uploader";

/// Each loop's name and a number that changes with every round.
fn signs(counters: &Counters, live: bool) -> impl Iterator<Item = (String, u64)> {
    let captures = counters.captures.iter().filter(move |_| live).enumerate();
    let captures = captures.map(|(thread, pulse)| (format!("capture thread {thread}"), pulse.beat_ns.get()));
    let recorder = live.then(|| ("the recorder".to_owned(), counters.recorder.beat_ns.get()));
    captures.chain(recorder).chain([(UPLOADER.to_owned(), counters.upload_rounds.get())])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE_NS: u64 = 30 * SECOND_NS;

    fn at(seconds: u64) -> Now {
        Now { wall_ns: 0, monotonic_ns: seconds * SECOND_NS }
    }

    fn facts() -> Facts {
        Facts { instance: "i-test".into(), since: at(100), live: true }
    }

    /// Lets all loops but one go round until `seconds`.
    fn round(counters: &Counters, seconds: u64, but: &str) {
        for (thread, pulse) in counters.captures.iter().enumerate() {
            if but != format!("capture thread {thread}") {
                pulse.beat_ns.set(seconds * SECOND_NS);
                pulse.able_ns.set(seconds * SECOND_NS);
            }
        }
        if but != "the recorder" {
            counters.recorder.beat_ns.set(seconds * SECOND_NS);
        }
        if but != UPLOADER {
            counters.upload_rounds.add(1);
        }
    }

    #[test]
    fn a_loop_of_either_half_that_stands_still_for_longer_than_the_patience_is_named() {
        for still in ["capture thread 0", "capture thread 1", "the recorder", UPLOADER] {
            let counters = Counters::new(2);
            round(&counters, 100, "");
            let mut vitals = Vitals::new("eth0".into(), PATIENCE_NS, &counters, &facts(), at(100));
            for seconds in 101..=130 {
                round(&counters, seconds, still);
                assert_eq!(vitals.look(&counters, &facts(), at(seconds), Act::Record).stuck, None, "{still} after {seconds} s");
            }
            round(&counters, 131, still);
            assert_eq!(vitals.look(&counters, &facts(), at(131), Act::Record).stuck, Some(format!("{still} has stood still for 31 s")));
            round(&counters, 132, "");
            assert_eq!(vitals.look(&counters, &facts(), at(132), Act::Record).stuck, None, "{still} goes round again");
        }
    }

    #[test]
    fn a_loop_that_never_begins_is_named_too() {
        for never in ["capture thread 0", "the recorder", UPLOADER] {
            let counters = Counters::new(1);
            let mut vitals = Vitals::new("eth0".into(), PATIENCE_NS, &counters, &facts(), at(100));
            round(&counters, 131, never);
            assert_eq!(vitals.look(&counters, &facts(), at(131), Act::Record).stuck, Some(format!("{never} has stood still for 31 s")));
        }
    }

    #[test]
    fn an_agent_that_only_sends_is_fed_while_its_uploader_goes_round_and_one_that_ends_for_no_longer_than_the_patience() {
        for (act, but, named) in [
            (Act::Close, "the recorder", Some("recording has not ended for 31 s")),
            (Act::Send, "the recorder", None),
            (Act::Send, UPLOADER, Some("the uploader has stood still for 31 s")),
            (Act::End, UPLOADER, Some("the agent has not ended for 31 s")),
        ] {
            let counters = Counters::new(1);
            round(&counters, 100, "");
            let mut vitals = Vitals::new("eth0".into(), PATIENCE_NS, &counters, &facts(), at(100));
            let mut look = |seconds, act| {
                round(&counters, seconds, but);
                vitals.look(&counters, &facts(), at(seconds), act).stuck
            };
            for seconds in 100..=130 {
                assert_eq!(look(seconds, act), None, "{act:?} without {but} after {seconds} s");
            }
            assert_eq!(look(131, act).as_deref(), named, "{act:?} without {but}");
        }
        let counters = Counters::new(1);
        let mut vitals = Vitals::new("eth0".into(), PATIENCE_NS, &counters, &facts(), at(100));
        round(&counters, 100, "");
        // Hours of sending, and then a moment to end.
        for (seconds, act) in (100..10_000).map(|seconds| (seconds, Act::Send)).chain([(10_001, Act::End), (10_030, Act::End)]) {
            round(&counters, seconds, "capture thread 0");
            assert_eq!(vitals.look(&counters, &facts(), at(seconds), act).stuck, None, "{act:?} at {seconds}");
        }
    }

    #[test]
    fn the_line_says_rate_spool_and_what_is_wrong() {
        let counters = Counters::new(1);
        round(&counters, 100, "");
        let mut vitals = Vitals::new("eth0".into(), PATIENCE_NS, &counters, &facts(), at(100));
        counters.frames_written.add(3000);
        round(&counters, 102, "");
        assert_eq!(vitals.look(&counters, &facts(), at(102), Act::Record).line, "capturing on eth0; 1500 frames/s; nothing unsent");
        counters.spool_segments.set(3);
        counters.spool_bytes.set(45 << 20);
        counters.spool_oldest_seconds.set(950);
        let line = vitals.look(&counters, &facts(), at(110), Act::Record).line;
        let detail = "capture thread 0 has stood still for 8 s";
        assert_eq!(line, format!("not capturing: {detail}; 0 frames/s; spool 3 segments, 45 MiB, oldest unsent 950 s"));
    }
}
