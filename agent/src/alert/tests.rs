//! Every trouble begins, is folded, ends and comes and goes, by a clock that is moved; mails keep their rules; nothing is lost
//! while the network or the disk does not work.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use tokio::time::timeout;

use super::fold::{Fold, Kind, Losses, News, State};
use super::mail::{BODY_MAX, SUBJECT_MAX};
use super::rules::{Limits, Sample, TITLE_MAX, Trouble, Verdict, Watch, span};
use super::sender::LAST_TRY;
use super::*;
use crate::host::clock::{Check, Now, SECOND_NS, SystemClock};

const START_NS: u64 = 1_795_306_500 * SECOND_NS;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

fn settings() -> Settings {
    Settings {
        topic_arn: Some("arn:aws:sns:eu-north-1:123456789012:alerts".into()),
        silence: Some(Duration::from_secs(300)),
        drop_ratio: 0.001,
        repeat: Duration::from_secs(HOUR),
        on_start: false,
        dir: "/nowhere".into(),
        spool_max_bytes: 1000,
        window: Duration::from_secs(900),
    }
}

/// An agent whose seconds are counted by hand.
struct Bench {
    sample: Sample,
    watch: Watch,
    fold: Fold,
    state: State,
    expected: bool,
    room: bool,
    news: Vec<News>,
}

impl Bench {
    fn new() -> Self {
        let now = Now { wall_ns: START_NS, monotonic_ns: 1_000_000 * SECOND_NS };
        let sample = Sample { now, ..Sample::default() };
        let limits = Limits::new(&settings(), true);
        Self {
            sample,
            watch: Watch::new(limits.clone(), sample),
            fold: Fold::new(limits, settings().repeat, "i-1", Losses::default()),
            state: State::default(),
            expected: true,
            room: true,
            news: Vec::new(),
        }
    }

    /// Another process: its counters begin at zero, and what it knows is what was kept.
    fn restart(&mut self) {
        let state = serde_json::from_str(&serde_json::to_string(&self.state).unwrap()).unwrap();
        let (now, news) = (self.sample.now, std::mem::take(&mut self.news));
        *self = Self::new();
        self.sample.now = now;
        (self.state, self.news) = (state, news);
        self.watch = Watch::new(Limits::new(&settings(), true), self.sample);
    }

    /// Lets seconds pass, in each of which all is well but for the troubles named.
    fn pass(&mut self, seconds: u64, with: &[Trouble]) {
        for _ in 0..seconds {
            self.sample.now.wall_ns += SECOND_NS;
            self.sample.now.monotonic_ns += SECOND_NS;
            self.look(with);
        }
    }

    fn look(&mut self, with: &[Trouble]) {
        let on = |trouble| with.contains(&trouble);
        let s = &mut self.sample;
        let now = s.now.monotonic_ns;
        s.kernel_packets += 100;
        s.kernel_drops += if on(Trouble::KernelDrops) { 10 } else { 0 };
        s.beat_ns = if on(Trouble::CaptureFailed) { s.beat_ns } else { now };
        s.able_ns = if on(Trouble::InterfaceGone) { s.able_ns } else { now };
        s.mirrored += u64::from(!on(Trouble::Silence) && !on(Trouble::InterfaceGone) && !on(Trouble::CaptureFailed));
        s.upload_refusals += u64::from(on(Trouble::UploadRefused));
        s.credential_refusals += u64::from(on(Trouble::CredentialsRefused));
        s.clock_refusals += u64::from(on(Trouble::ClockRefused));
        s.segments_poison = u64::from(on(Trouble::PoisonSegment));
        s.upload_rounds += 1;
        let fails =
            [Trouble::UploadRefused, Trouble::CredentialsRefused, Trouble::ClockRefused, Trouble::UploadFailing].into_iter().any(on);
        // From the first failure on.
        s.failing_ns = if fails { s.failing_ns.max(1) + if s.failing_ns > 0 { SECOND_NS } else { 0 } } else { 0 };
        // Parts go through all the while, unless no call does.
        s.arrived += u64::from(!on(Trouble::CredentialsRefused) && !on(Trouble::ClockRefused));
        s.upload_progress += u64::from(!fails);
        s.spool_bytes = if on(Trouble::SpoolCritical) { 960 } else { u64::from(on(Trouble::SpoolHigh)) * 750 };
        s.spool_full += u64::from(on(Trouble::SpoolFull));
        s.stay_behind = on(Trouble::LeavingUnsent).then_some(3);
        s.given_way.0 += u64::from(on(Trouble::GaveWay));
        s.recording_stopped = on(Trouble::RecordingStopped);
        s.disk_waits_ns = if on(Trouble::SpoolRefused) { 31 * SECOND_NS } else { 0 };
        s.clock_steps += u64::from(on(Trouble::ClockStepped));
        s.clock.expected_ns = s.clock.expected_ns.max(1);
        s.clock.answered_ns = now;
        s.clock.ahead_us = if on(Trouble::ClockUnsynchronised) { -5_250_000 } else { 900 };
        let mut verdicts = self.watch.look(*s, self.expected, Some(!on(Trouble::NobodySubscribed)));
        // The hooks of the service manager file this one; the agent only sees that it is over.
        if on(Trouble::AgentDied) {
            verdicts.retain(|(trouble, _)| *trouble != Trouble::AgentDied);
            verdicts.push((Trouble::AgentDied, Verdict::Holds("it was killed".into())));
        }
        let losses = Losses { kernel: s.kernel_drops, spool: s.spool_full };
        let (news, _) = self.fold.fold(&mut self.state, &verdicts, losses, s.now, self.room);
        self.news.extend(news);
    }

    fn of(&self, trouble: Trouble) -> Vec<&News> {
        self.news.iter().filter(|news| news.trouble == trouble).collect()
    }

    fn kinds(&self, trouble: Trouble) -> Vec<Kind> {
        self.of(trouble).iter().map(|news| news.kind).collect()
    }
}

/// How long each must last before it is mailed, seconds.
fn onset(trouble: Trouble) -> u64 {
    match trouble {
        Trouble::CaptureFailed | Trouble::InterfaceGone => 11,
        // The first second of a clock that is off is when it is seen, and counts from there.
        Trouble::ClockUnsynchronised => 301,
        Trouble::Silence | Trouble::UploadFailing => 300,
        Trouble::CredentialsRefused | Trouble::ClockRefused => 61,
        _ => 1,
    }
}

/// How long after one mail about it the next may say that it is still there, seconds.
fn repeat(trouble: Trouble) -> u64 {
    settings().repeat.max(trouble.repeat_min()).as_secs()
}

/// What comes with a trouble because it is the same or worse.
fn comes_with(trouble: Trouble) -> &'static [Trouble] {
    match trouble {
        Trouble::UploadRefused | Trouble::CredentialsRefused | Trouble::ClockRefused => &[Trouble::UploadFailing],
        Trouble::SpoolCritical => &[Trouble::SpoolHigh],
        _ => &[],
    }
}

#[test]
fn a_spool_whose_file_system_is_filled_by_another_is_full_at_what_is_left() {
    let mut bench = Bench::new();
    let mut level = |holds, capacity| {
        let sample = Sample { spool_bytes: holds, spool_capacity: capacity, ..bench.sample };
        let verdicts = bench.watch.look(sample, true, None);
        verdicts.into_iter().find(|(trouble, _)| *trouble == Trouble::SpoolCritical).unwrap().1
    };
    assert_eq!(level(190, 980), Verdict::Clear);
    let Verdict::Holds(said) = level(190, 200) else { panic!("190 of 200 bytes are 95 %") };
    assert!(said.contains("190 of 200") && said.contains("spool.max_bytes is 1000"), "{said}");
    let Verdict::Holds(said) = level(979, 980) else { panic!("979 of 980 bytes are over 95 %") };
    assert!(!said.contains("spool.max_bytes"), "what journals need is not another's: {said}");
}

#[test]
fn each_trouble_is_mailed_when_it_begins_hourly_while_it_lasts_and_once_when_it_is_over() {
    for trouble in Trouble::ALL {
        let lasts = 3 * repeat(trouble) + 10 * MINUTE;
        let mut bench = Bench::new();
        bench.pass(10 * MINUTE, &[]);
        assert_eq!(bench.news, [], "all was well");
        bench.pass(onset(trouble) - 1, &[trouble]);
        assert_eq!(bench.kinds(trouble), [], "{trouble:?} came early");
        bench.pass(2, &[trouble]);
        assert_eq!(bench.kinds(trouble), [Kind::Begin], "{trouble:?} came late");
        bench.pass(lasts, &[trouble]);
        bench.pass(HOUR, &[]);
        assert_eq!(bench.kinds(trouble), [Kind::Begin, Kind::Repeat, Kind::Repeat, Kind::Repeat, Kind::Over], "{trouble:?}");
        let others: Vec<_> = bench.news.iter().map(|news| news.trouble).filter(|other| *other != trouble).collect();
        assert!(others.iter().all(|other| comes_with(trouble).contains(other)), "{trouble:?} brought {others:?}");
        let (first, last) = (bench.of(trouble)[0], bench.of(trouble)[4]);
        assert!(bench.of(trouble).iter().all(|news| news.id == first.id && news.since_ns == first.since_ns));
        let lasted = (last.at_ns - last.since_ns) / SECOND_NS;
        assert!((lasts..lasts + 12 * MINUTE).contains(&lasted), "{trouble:?} lasted {lasted} s");
        assert!(bench.state.open.is_empty());
    }
}

#[test]
fn a_capture_that_cannot_be_sent_is_mailed_about_daily_also_over_restarts_and_never_more_often_than_the_settings_say() {
    let mails = |every: u64, days: u64| {
        let mut bench = Bench::new();
        for _ in 0..4 * days {
            bench.restart();
            bench.fold = Fold::new(Limits::new(&settings(), true), Duration::from_secs(every), "i-1", Losses::default());
            for _ in 0..6 * 60 + 1 {
                bench.sample.now.wall_ns += MINUTE * SECOND_NS;
                bench.sample.now.monotonic_ns += MINUTE * SECOND_NS;
                bench.look(&[Trouble::PoisonSegment]);
            }
        }
        bench.kinds(Trouble::PoisonSegment)
    };
    assert_eq!(mails(MINUTE, 1), [Kind::Begin, Kind::Repeat]);
    assert_eq!(mails(HOUR, 2), [Kind::Begin, Kind::Repeat, Kind::Repeat]);
    assert_eq!(mails(36 * HOUR, 2), [Kind::Begin, Kind::Repeat]);
}

#[test]
fn that_more_captures_cannot_be_sent_is_mailed_within_the_hour() {
    for (grows, told) in [(30, 60), (100, 100)] {
        let mut fold = Fold::new(Limits::new(&settings(), true), Duration::from_secs(HOUR), "i-1", Losses::default());
        let (mut state, mut mails) = (State::default(), Vec::new());
        for minute in 0..24 * 60 {
            let now = Now { wall_ns: START_NS + minute * MINUTE * SECOND_NS, monotonic_ns: (1_000 + minute * MINUTE) * SECOND_NS };
            let verdict = Verdict::Holds(if minute < grows { "one" } else { "two" }.into());
            let (news, _) = fold.fold(&mut state, &[(Trouble::PoisonSegment, verdict)], Losses::default(), now, true);
            mails.extend(news.into_iter().map(|news| (minute, news.kind, news.detail)));
        }
        assert_eq!(mails, [(0, Kind::Begin, "one".into()), (told, Kind::Repeat, "two".into())]);
    }
}

#[test]
fn a_trouble_that_comes_and_goes_is_one() {
    let limits = Limits::new(&settings(), true);
    for trouble in Trouble::ALL {
        let calm = limits.steady(trouble).as_secs() / 2;
        let mut bench = Bench::new();
        bench.pass(MINUTE, &[]);
        while bench.sample.now.wall_ns < START_NS + 2 * HOUR * SECOND_NS {
            bench.pass(onset(trouble) + 2, &[trouble]);
            // A step is remembered for five minutes by itself; an answer of the topic is final.
            bench.pass(if trouble == Trouble::ClockStepped { 200 } else { calm }, &[]);
        }
        let kinds = bench.kinds(trouble);
        let begins = kinds.iter().filter(|kind| **kind == Kind::Begin).count();
        if trouble == Trouble::NobodySubscribed {
            // Each end within an hour would double a wait of nothing; its mails wait until somebody is there.
            continue;
        }
        assert_eq!((kinds[0], begins, kinds.contains(&Kind::Over)), (Kind::Begin, 1, false), "{trouble:?}: {kinds:?}");
        assert!(kinds.len() <= 3, "{trouble:?}: {kinds:?}");
    }
}

#[test]
fn a_trouble_that_comes_and_goes_slowly_is_mailed_less_and_less() {
    let mut bench = Bench::new();
    while bench.sample.now.wall_ns < START_NS + 24 * HOUR * SECOND_NS {
        bench.pass(30, &[Trouble::KernelDrops]);
        bench.pass(3 * MINUTE, &[]);
    }
    let mails = bench.news.len();
    assert!((10..24 * 4).contains(&mails), "{mails} mails a day; {} turns", 24 * HOUR / 210);
}

#[test]
fn a_restart_neither_begins_a_trouble_anew_nor_ends_it_without_knowing() {
    for trouble in [Trouble::UploadFailing, Trouble::UploadRefused, Trouble::Silence, Trouble::InterfaceGone, Trouble::SpoolHigh] {
        let mut bench = Bench::new();
        bench.pass(MINUTE, &[]);
        bench.pass(onset(trouble) + 5, &[trouble]);
        assert_eq!(bench.kinds(trouble), [Kind::Begin], "{trouble:?}");
        for _ in 0..5 {
            bench.restart();
            bench.pass(3 * MINUTE, &[trouble]);
        }
        assert_eq!(bench.kinds(trouble), [Kind::Begin], "{trouble:?} is still there");
        bench.pass(15 * MINUTE, &[]);
        assert_eq!(bench.kinds(trouble), [Kind::Begin, Kind::Over], "{trouble:?}");
        assert_eq!(bench.of(trouble)[0].id, bench.of(trouble)[1].id);
    }
}

#[test]
fn the_end_says_what_was_lost_meanwhile_and_nothing_else() {
    let mut bench = Bench::new();
    // Too few for a trouble of their own.
    bench.sample.spool_full = 0;
    bench.pass(MINUTE, &[]);
    bench.pass(20, &[Trouble::KernelDrops]);
    bench.pass(10, &[Trouble::KernelDrops, Trouble::SpoolFull]);
    bench.pass(10, &[Trouble::KernelDrops]);
    bench.restart();
    bench.pass(20, &[Trouble::KernelDrops]);
    bench.pass(HOUR, &[]);
    let over = bench.of(Trouble::KernelDrops)[1];
    assert_eq!(over.kind, Kind::Over);
    // The first ten made it begin, and count; what the last ten seconds of a process lost was not kept yet.
    assert!((500..=600).contains(&over.losses.kernel) && over.losses.spool == 10, "{:?}", over.losses);
    let text = Mail::of(over, &Place::default()).body;
    let lost = format!("{} frames dropped by the kernel, 10 dropped as the spool was full", over.losses.kernel);
    assert!(text.contains(&lost), "{text}");
}

#[test]
fn without_room_nothing_begins_and_nothing_is_repeated_but_what_has_begun_ends() {
    let mut bench = Bench::new();
    bench.pass(5, &[Trouble::SpoolHigh]);
    bench.room = false;
    bench.pass(2 * HOUR, &[Trouble::SpoolHigh, Trouble::KernelDrops]);
    assert_eq!(bench.news.len(), 1);
    bench.pass(10 * MINUTE, &[Trouble::KernelDrops]);
    assert_eq!(bench.kinds(Trouble::SpoolHigh), [Kind::Begin, Kind::Over]);
    bench.room = true;
    bench.pass(1, &[Trouble::KernelDrops]);
    assert_eq!(bench.kinds(Trouble::KernelDrops), [Kind::Begin], "what waited begins");
}

#[test]
fn silence_counts_only_while_packets_are_expected_and_with_an_interface() {
    let mut bench = Bench::new();
    bench.pass(MINUTE, &[]);
    bench.expected = false;
    bench.pass(3 * HOUR, &[Trouble::Silence]);
    bench.expected = true;
    bench.pass(299, &[Trouble::Silence]);
    assert_eq!(bench.news, []);
    bench.pass(2, &[Trouble::Silence]);
    assert_eq!(bench.kinds(Trouble::Silence), [Kind::Begin]);

    let mut bench = Bench::new();
    bench.pass(MINUTE, &[]);
    bench.pass(HOUR, &[Trouble::Silence, Trouble::InterfaceGone]);
    assert_eq!(bench.of(Trouble::Silence), Vec::<&News>::new(), "one cause, one trouble");
}

#[test]
fn a_first_failure_of_s3_and_a_pause_of_tries_are_no_trouble() {
    let mut bench = Bench::new();
    bench.pass(1, &[]);
    bench.pass(1, &[Trouble::UploadFailing]);
    // Nothing is tried any more: neither success nor failure.
    for _ in 0..HOUR {
        bench.sample.arrived -= 1;
        bench.sample.upload_progress -= 1;
        bench.pass(1, &[]);
    }
    assert_eq!(bench.news, []);
}

#[test]
fn parts_that_arrive_while_nothing_is_ever_completed_do_not_hide_that_captures_do_not_arrive() {
    for refused in [false, true] {
        let mut bench = Bench::new();
        bench.pass(MINUTE, &[]);
        let trouble = if refused { Trouble::UploadRefused } else { Trouble::UploadFailing };
        for _ in 0..HOUR {
            // Parts of the open window, and windows without packets, go through.
            bench.sample.arrived += 3;
            bench.pass(1, &[trouble]);
        }
        assert_eq!(bench.kinds(trouble), [Kind::Begin], "{trouble:?}");
        assert_eq!(bench.of(Trouble::UploadFailing).len(), 1);
        bench.pass(10 * MINUTE, &[]);
        assert_eq!(bench.kinds(trouble), [Kind::Begin, Kind::Over], "{trouble:?}");
    }
}

#[test]
fn refused_credentials_and_a_refused_clock_are_over_as_soon_as_s3_takes_a_call_whatever_else_fails() {
    for trouble in [Trouble::CredentialsRefused, Trouble::ClockRefused] {
        let mut bench = Bench::new();
        bench.pass(MINUTE, &[]);
        bench.pass(5 * MINUTE, &[trouble]);
        assert_eq!(bench.kinds(trouble), [Kind::Begin]);
        // One segment has a trouble of its own, so that nothing is sent; the status is.
        for second in 0..HOUR {
            bench.sample.arrived -= 1;
            bench.sample.statuses_told += u64::from(second % 60 == 59);
            bench.pass(1, &[Trouble::UploadFailing]);
        }
        assert_eq!(bench.kinds(trouble), [Kind::Begin, Kind::Over], "{trouble:?}");
        let lasted = (bench.of(trouble)[1].at_ns - bench.of(trouble)[0].since_ns) / SECOND_NS;
        assert!((4 * MINUTE..6 * MINUTE).contains(&lasted), "{trouble:?} lasted {lasted} s");
        assert_eq!(bench.of(Trouble::UploadFailing).iter().filter(|news| news.kind == Kind::Over).count(), 0);
    }
}

#[test]
fn a_refusal_by_s3_is_over_when_captures_arrive_and_none_has_been_refused_for_long_though_another_fails() {
    let mut bench = Bench::new();
    bench.pass(MINUTE, &[]);
    for _ in 0..30 {
        // It is tried again once in a minute, while parts of others arrive.
        bench.pass(1, &[Trouble::UploadRefused]);
        bench.pass(MINUTE - 1, &[Trouble::UploadFailing]);
    }
    assert_eq!(bench.kinds(Trouble::UploadRefused), [Kind::Begin]);
    bench.pass(10 * MINUTE, &[Trouble::UploadFailing]);
    assert_eq!(bench.kinds(Trouble::UploadRefused), [Kind::Begin, Kind::Over]);
    // Another process must not take it for over before it has seen what is refused.
    let mut bench = Bench::new();
    bench.pass(MINUTE, &[Trouble::UploadRefused]);
    bench.restart();
    bench.pass(3 * MINUTE, &[Trouble::UploadFailing]);
    bench.pass(1, &[Trouble::UploadRefused]);
    assert_eq!(bench.kinds(Trouble::UploadRefused), [Kind::Begin]);
}

#[test]
fn refusals_that_are_far_apart_are_none_that_last() {
    for trouble in [Trouble::CredentialsRefused, Trouble::ClockRefused] {
        let mut bench = Bench::new();
        bench.pass(MINUTE, &[]);
        for _ in 0..5 {
            bench.pass(2, &[trouble]);
            // Nothing is tried for an hour: nothing is taken, and nothing refused.
            for _ in 0..HOUR {
                bench.sample.arrived -= 1;
                bench.pass(1, &[]);
            }
        }
        assert_eq!(bench.kinds(trouble), [], "{trouble:?}");
    }
}

#[test]
fn old_segments_that_lie_still_are_a_trouble_though_nothing_fails() {
    let mut bench = Bench::new();
    let lie_still = |bench: &mut Bench, seconds: u64| {
        for _ in 0..seconds {
            bench.sample.oldest_seconds += 1;
            bench.sample.arrived -= 1;
            bench.sample.upload_progress -= 1;
            bench.pass(1, &[]);
        }
    };
    bench.pass(MINUTE, &[]);
    // Its own window, two more and ten minutes.
    lie_still(&mut bench, 3300);
    assert_eq!(bench.news, []);
    lie_still(&mut bench, 2);
    assert_eq!(bench.kinds(Trouble::UploadFailing), [Kind::Begin]);
    assert!(
        bench.news[0].detail.contains("the oldest capture was begun 55 min 1 s ago, and none has got further for 55 min"),
        "{:?}",
        bench.news
    );
    bench.sample.oldest_seconds = 0;
    bench.pass(2 * MINUTE, &[]);
    assert_eq!(bench.kinds(Trouble::UploadFailing), [Kind::Begin, Kind::Over]);
}

#[test]
fn neither_an_uplink_that_is_slow_and_works_nor_a_clock_that_steps_is_a_failing_upload() {
    let mut bench = Bench::new();
    for second in 0..24 * HOUR {
        // Days behind, and every half hour a part more arrives.
        bench.sample.oldest_seconds += 1;
        bench.pass(1, &[]);
        // What the bench counts in each second anew.
        let none = u64::from(second % 1800 != 0);
        (bench.sample.arrived, bench.sample.upload_progress) = (bench.sample.arrived - none, bench.sample.upload_progress - none);
    }
    assert_eq!(bench.news, []);
    // An hour in which the window is not over yet, and then the clock steps by a day.
    let mut bench = Bench::new();
    bench.pass(1, &[]);
    for _ in 0..900 {
        bench.sample.upload_progress -= 1;
        bench.pass(1, &[]);
    }
    bench.sample.oldest_seconds = 86_400;
    bench.pass(10, &[]);
    assert_eq!(bench.news, []);
}

#[test]
fn how_long_a_trouble_lasted_does_not_go_by_a_clock_that_steps_and_says_so_where_it_must() {
    let lasted = |restart: bool| {
        let mut bench = Bench::new();
        bench.pass(10 * MINUTE, &[Trouble::SpoolHigh]);
        bench.sample.now.wall_ns += 5 * HOUR * SECOND_NS;
        if restart {
            bench.restart();
        }
        bench.pass(10 * MINUTE, &[Trouble::SpoolHigh]);
        bench.pass(10 * MINUTE, &[]);
        let over = bench.of(Trouble::SpoolHigh).into_iter().find(|news| news.kind == Kind::Over).unwrap();
        Mail::of(over, &Place::default()).body.lines().find(|line| line.starts_with("Lasted:")).unwrap().to_owned()
    };
    let seen = lasted(false);
    assert!(seen.starts_with("Lasted:    20 min, until ") && seen.ends_with(" UTC"), "{seen}");
    let unseen = lasted(true);
    assert!(
        unseen.starts_with("Lasted:    5 h 20 min, until ") && unseen.ends_with(" UTC, by the wall clock: another process saw it begin"),
        "{unseen}"
    );
}

#[test]
fn a_clock_that_is_set_back_does_not_silence_the_repeats() {
    let mut bench = Bench::new();
    bench.pass(2, &[Trouble::SpoolHigh]);
    bench.sample.now.wall_ns -= 5 * HOUR * SECOND_NS;
    bench.pass(HOUR + 2, &[Trouble::SpoolHigh]);
    assert_eq!(bench.kinds(Trouble::SpoolHigh), [Kind::Begin, Kind::Repeat]);
}

#[test]
fn a_clock_that_is_set_forward_does_not_bring_a_repeat_before_its_hour() {
    let mut bench = Bench::new();
    bench.pass(2, &[Trouble::SpoolHigh]);
    bench.sample.now.wall_ns += 5 * HOUR * SECOND_NS;
    bench.pass(HOUR - 10, &[Trouble::SpoolHigh]);
    assert_eq!(bench.kinds(Trouble::SpoolHigh), [Kind::Begin]);
    bench.pass(20, &[Trouble::SpoolHigh]);
    assert_eq!(bench.kinds(Trouble::SpoolHigh), [Kind::Begin, Kind::Repeat]);
}

#[tokio::test]
async fn every_mail_of_each_trouble_that_began_and_ended_while_the_topic_was_down_leaves_later_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, topic) = (Outbox::new(dir.path()), Arc::new(Topic::default()));
    topic.down.store(true, Ordering::Relaxed);
    let mut expected = Vec::new();
    for trouble in Trouble::ALL {
        let mut bench = Bench::new();
        bench.pass(MINUTE, &[]);
        bench.pass(onset(trouble) + repeat(trouble) + 10, &[trouble]);
        bench.pass(HOUR, &[]);
        let mails: Vec<_> = bench.of(trouble).into_iter().map(|news| Mail::of(news, &Place::default())).collect();
        assert_eq!(bench.kinds(trouble), [Kind::Begin, Kind::Repeat, Kind::Over], "{trouble:?}");
        expected.extend(mails.iter().map(|mail| mail.subject.clone()));
        outbox.open().unwrap().file(State::default(), mails).unwrap();
        let mut sender = Sender::new(outbox.clone(), topic.clone(), desk::Unsaved::default());
        assert!(matches!(sender.step().await, sender::Step::Failed(_)), "{trouble:?}");
    }
    topic.down.store(false, Ordering::Relaxed);
    let mut sender = Sender::new(outbox.clone(), topic.clone(), desk::Unsaved::default());
    while sender.step().await == sender::Step::Sent {}
    assert_eq!(topic.subjects(), expected);
    assert_eq!(outbox.open().unwrap().waiting().unwrap(), 0);
}

#[test]
fn a_time_server_that_falls_silent_is_a_trouble_after_five_minutes_and_one_that_never_spoke_only_where_one_is_expected() {
    let silent = |expected_ns: u64, answered: bool, seconds: u64| {
        let mut bench = Bench::new();
        let from = bench.sample.now.monotonic_ns;
        let verdict = |bench: &mut Bench| {
            let verdicts = bench.watch.look(bench.sample, true, Some(true));
            verdicts.into_iter().find(|(trouble, _)| *trouble == Trouble::ClockUnsynchronised).unwrap().1
        };
        bench.sample.clock = Check { expected_ns: expected_ns * from, answered_ns: u64::from(answered) * from, ahead_us: 0 };
        verdict(&mut bench);
        bench.sample.now.monotonic_ns += seconds * SECOND_NS;
        verdict(&mut bench)
    };
    assert_eq!(silent(0, false, HOUR), Verdict::Unclear, "a lab without one");
    assert_eq!(silent(1, false, 299), Verdict::Unclear);
    assert_eq!(silent(1, true, 299), Verdict::Clear);
    for answered in [false, true] {
        assert!(matches!(silent(1, answered, 300), Verdict::Holds(words) if words.contains("has not answered for 5 min")));
    }
}

#[test]
fn the_mail_about_a_wrong_clock_says_by_how_much() {
    let mut bench = Bench::new();
    bench.pass(10 * MINUTE, &[Trouble::ClockUnsynchronised]);
    let begin = bench.of(Trouble::ClockUnsynchronised)[0];
    assert_eq!(begin.detail, "the clock is 5.250 s behind the time server, and has been off for 5 min");
}

#[test]
fn a_clock_that_is_off_for_less_than_five_minutes_is_no_trouble() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.pass(299, &[Trouble::ClockUnsynchronised]);
        bench.pass(1, &[]);
    }
    assert_eq!(bench.news, []);
}

#[test]
fn a_replayed_file_is_neither_silent_nor_dead_when_it_ends() {
    let mut bench = Bench::new();
    let limits = Limits::new(&settings(), false);
    bench.watch = Watch::new(limits, bench.sample);
    bench.pass(2 * HOUR, &[Trouble::Silence, Trouble::CaptureFailed, Trouble::InterfaceGone]);
    assert_eq!(bench.news, []);
}

#[test]
fn kernel_drops_below_the_ratio_are_no_trouble() {
    let mut bench = Bench::new();
    for second in 0..HOUR {
        bench.sample.kernel_packets += 1_000_000;
        bench.sample.kernel_drops += 900 * (second % 2);
        bench.pass(1, &[]);
    }
    assert_eq!(bench.news, []);
}

#[test]
fn troubles_of_another_version_are_kept_as_they_are() {
    let mut bench = Bench::new();
    let open = fold::Open { id: "x".into(), since_ns: 1, told_ns: 1, detail: String::new(), losses: Losses::default() };
    bench.state.open.insert("trouble_of_tomorrow".into(), open);
    bench.pass(2 * HOUR, &[Trouble::SpoolFull]);
    assert!(bench.state.open.contains_key("trouble_of_tomorrow"));
    assert!(bench.news.iter().all(|news| news.trouble == Trouble::SpoolFull));
}

#[test]
fn names_are_stable_and_titles_short() {
    for trouble in Trouble::ALL {
        assert_eq!(Trouble::named(trouble.name()), Some(trouble));
        assert!(trouble.title().is_ascii() && trouble.title().len() <= TITLE_MAX, "{trouble:?}");
        assert!(trouble.name().chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        assert!(!trouble.stake().is_empty() && trouble.todo().ends_with('.'), "{trouble:?}");
    }
}

#[test]
fn a_time_is_said_in_two_words() {
    let said: Vec<_> = [0, 59, 60, 3661, 90_061].map(|seconds| span(Duration::from_secs(seconds))).into();
    assert_eq!(said, ["0 s", "59 s", "1 min", "1 h 1 min", "1 d 1 h"]);
    assert!(span(Duration::MAX).ends_with('h'));
}

fn is_plain(mail: &Mail) {
    assert!((1..=SUBJECT_MAX).contains(&mail.subject.len()), "{:?}", mail.subject);
    assert!(mail.subject.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{:?}", mail.subject);
    assert!(!mail.subject.starts_with(' '), "{:?}", mail.subject);
    assert!(mail.body.len() <= BODY_MAX && !mail.body.trim().is_empty());
    assert!(mail.body.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    assert!((1..=mail::ID_MAX).contains(&mail.id.len()) && mail.id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
}

proptest! {
    #[test]
    fn a_mail_of_whatever_words_keeps_the_rules_of_sns(id in ".{0,300}", subject in "(?s).{0,300}", message in "(?s).{0,3000}", copies in 1usize..60) {
        let mail = Mail::new(&id, Kind::Note, &subject, &message.repeat(copies));
        is_plain(&mail);
        prop_assert_eq!(&mail.clone().checked(), &mail, "what is checked twice is the same");
        is_plain(&Mail::note(&id, &subject, &message, &Place { instance: subject.clone(), ..Place::default() }));
    }

    #[test]
    fn a_subject_names_instance_and_trouble_and_a_body_says_it_all(
        which in 0..Trouble::ALL.len(), instance in "[A-Za-z0-9._-]{1,64}", kind in 0usize..3, since in 0u64..4_000_000_000, lasted in 0u64..10_000_000,
        detail in "[ -~]{0,200}", monotonic in any::<bool>(),
    ) {
        let trouble = Trouble::ALL[which];
        let kind = [Kind::Begin, Kind::Repeat, Kind::Over][kind];
        let (since_ns, at_ns) = (since * SECOND_NS, (since + lasted) * SECOND_NS);
        let news = News { trouble, kind, id: format!("{}-{instance}-x", trouble.name()), since_ns, at_ns, detail: detail.clone(), losses: Losses::default(), lasted_ns: monotonic.then_some(lasted * SECOND_NS) };
        let place = Place { instance: instance.clone(), region: Some("eu-north-1".into()), zone: Some("eu-north-1a".into()), group: None, account: Some("123456789012".into()) };
        let mail = Mail::of(&news, &place);
        is_plain(&mail);
        prop_assert!(mail.subject.contains(trouble.title()), "{}", mail.subject);
        let shown: String = instance.chars().take(30).collect();
        prop_assert!(mail.subject.contains(&shown), "{}", mail.subject);
        for words in [instance.as_str(), "eu-north-1a", "123456789012", &news.id, &detail, " UTC\n", trouble.title()] {
            prop_assert!(mail.body.contains(words), "no '{}' in {}", words, mail.body);
        }
        if kind == Kind::Over {
            prop_assert!(mail.body.contains(&span(Duration::from_secs(lasted))) && mail.body.contains("Lost:"));
            prop_assert_eq!(mail.body.contains("by the wall clock"), !monotonic);
        } else {
            prop_assert!(mail.body.contains(trouble.stake()) && mail.body.contains(trouble.todo()));
        }
    }
}

/// A topic that can be down, and that remembers what it took.
#[derive(Default)]
struct Topic {
    down: AtomicBool,
    unheard: AtomicBool,
    taken: Mutex<Vec<Mail>>,
}

impl Topic {
    fn subjects(&self) -> Vec<String> {
        self.taken.lock().unwrap().iter().map(|mail| mail.subject.clone()).collect()
    }

    fn answer(&self) -> Result<(), notifier::Error> {
        match self.down.load(Ordering::Relaxed) {
            true => Err(notifier::Error { act: "publish to", topic: "t".into(), cause: "it is down".into(), advice: "" }),
            false => Ok(()),
        }
    }
}

impl Notifier for Topic {
    async fn publish(&self, mail: &Mail) -> Result<(), notifier::Error> {
        self.answer()?;
        self.taken.lock().unwrap().push(mail.clone());
        Ok(())
    }

    async fn reaches(&self) -> Result<bool, notifier::Error> {
        self.answer()?;
        Ok(!self.unheard.load(Ordering::Relaxed))
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    // Long, as the disk of a busy machine takes its time for each sync.
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if done() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain until {what}");
}

/// The system's clock, and ahead of it when that is wanted.
#[derive(Clone, Default)]
struct Ahead(Arc<AtomicU64>);

impl Clock for Ahead {
    fn now(&self) -> Now {
        let (now, ahead_ns) = (SystemClock.now(), self.0.load(Ordering::Relaxed));
        Now { wall_ns: now.wall_ns + ahead_ns, monotonic_ns: now.monotonic_ns + ahead_ns }
    }
}

/// A whole stage on a folder.
struct Stage {
    ahead: Ahead,
    counters: Arc<Counters>,
    topic: Arc<Topic>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn start(dir: &std::path::Path, topic: &Arc<Topic>) -> Self {
        let counters = Arc::new(Counters::new(0));
        let (stop, stopping) = watch::channel(false);
        let scene = Scene {
            place: Place { instance: "i-1".into(), ..Place::default() },
            live: false,
            expected: Box::new(|_| true),
            counters: counters.clone(),
            spare: Some(dir.with_extension("spare")),
        };
        let (settings, ahead) = (Settings { dir: dir.into(), on_start: true, ..settings() }, Ahead::default());
        let task = tokio::spawn(run(settings, scene, topic.clone(), ahead.clone(), stopping));
        Self { ahead, counters, topic: topic.clone(), stop, task }
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        timeout(LAST_TRY + Duration::from_secs(2), self.task).await.expect("it stops in time").unwrap();
    }
}

// Who waits for the outbox's lock must not hold up who has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_filed_while_the_topic_was_down_leaves_later_in_order_and_once_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let topic = Arc::new(Topic::default());
    topic.down.store(true, Ordering::Relaxed);
    let stage = Stage::start(&dir, &topic);
    stage.counters.spool_bytes.set(750);
    let waiting = || Outbox::new(&dir).open().unwrap().waiting().unwrap();
    until("start and trouble are filed", || waiting() == 2).await;
    stage.stop().await;
    topic.down.store(false, Ordering::Relaxed);
    let stage = Stage::start(&dir, &topic);
    stage.counters.spool_bytes.set(990);
    until("all have left", || topic.subjects().len() == 4 && waiting() == 0).await;
    stage.stop().await;
    let subjects = topic.subjects();
    assert!(subjects[0].contains("STARTED") && subjects[1].contains("FAILURE i-1: the spool is filling up"), "{subjects:?}");
    assert!(subjects[2].contains("STARTED") && subjects[3].contains("FAILURE i-1: the spool is almost full"), "{subjects:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_folder_to_write_to_the_mail_leaves_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    std::fs::write(&file, "in the way").unwrap();
    let topic = Arc::new(Topic::default());
    let stage = Stage::start(&file, &topic);
    stage.counters.spool_bytes.set(750);
    until("both mails have left", || topic.subjects().len() == 2).await;
    sleep(2 * sender::LOOK_EVERY).await;
    assert_eq!(topic.subjects().len(), 2, "each once");
    std::fs::remove_file(&file).unwrap();
    until("the state is kept", || file.join("troubles.json").exists()).await;
    assert_eq!(Outbox::new(&file).open().unwrap().state().open.len(), 1);
    stage.stop().await;
}

/// Leaves troubles behind as the agent before did, and gives their ids.
fn begun_before(outbox: &Outbox, troubles: &[Trouble]) -> Vec<String> {
    let id = |trouble: &Trouble| format!("{}-before", trouble.name());
    let open = |trouble: &Trouble| {
        let open = fold::Open { id: id(trouble), since_ns: 1, told_ns: 1, detail: "d".into(), losses: Losses::default() };
        (trouble.name().to_owned(), open)
    };
    let state = State { open: troubles.iter().map(open).collect(), ..State::default() };
    outbox.open().unwrap().file(state, Vec::new()).unwrap();
    troubles.iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn troubles_begun_before_are_ended_by_a_mail_though_the_first_looks_at_the_outbox_fail() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(&dir.path().join("outbox"));
    let ids = begun_before(&outbox, &[Trouble::RecordingStopped, Trouble::SpoolHigh, Trouble::ClockStepped]);
    let away = dir.path().join("away");
    std::fs::rename(outbox.dir(), &away).unwrap();
    std::fs::write(outbox.dir(), "in the way").unwrap();

    let topic = Arc::new(Topic::default());
    let stage = Stage::start(outbox.dir(), &topic);
    // One of the three is seen anew meanwhile, under another id; the other two are over.
    stage.counters.spool_bytes.set(750);
    until("the start and the trouble have left", || topic.subjects().len() == 2).await;
    std::fs::remove_file(outbox.dir()).unwrap();
    std::fs::rename(&away, outbox.dir()).unwrap();
    // A clock that has not stepped is steady at once.
    until("the end of the one has left", || topic.subjects().len() == 3).await;
    let taken = topic.taken.lock().unwrap().clone();
    assert!(taken[2].subject.contains("OVER i-1: the clock has stepped") && taken[2].id == ids[2], "{taken:#?}");
    let opened = outbox.open().unwrap();
    let open: Vec<_> = opened.state().open.values().map(|open| open.id.clone()).collect();
    assert_eq!(open, ids[..2], "what is on keeps the id under which it was told first");
    assert_eq!(opened.state().open["spool_high"].detail, format!("d (also told as {})", taken[1].id));
    drop(opened);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_whose_filing_failed_half_way_leaves_at_once_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, topic, unsaved) = (Outbox::new(dir.path()), Arc::new(Topic::default()), desk::Unsaved::default());
    // Something that cannot be removed stands where the mail is to be drafted: its trouble is kept, with it, and it is no file yet.
    let obstacle = dir.path().join("00000000000000000001-begin-a.mail.draft");
    std::fs::create_dir_all(obstacle.join("inside")).unwrap();
    let mail = Mail::new("a", Kind::Begin, "begin a", "b");
    outbox.open().unwrap().file(State::default(), vec![mail.clone()]).unwrap_err();
    unsaved.add(vec![mail.clone()]);
    let mut sender = Sender::new(outbox.clone(), topic.clone(), unsaved.clone());
    assert_eq!(sender.step().await, sender::Step::Sent);
    std::fs::remove_dir_all(&obstacle).unwrap();
    // The desk did not know whether it was filed, and files it again before or after it left.
    outbox.open().unwrap().file(State::default(), vec![mail, Mail::new("b", Kind::Begin, "begin b", "b")]).unwrap();
    while sender.step().await == sender::Step::Sent {}
    assert_eq!(topic.subjects(), ["begin a", "begin b"]);
    assert_eq!(outbox.open().unwrap().waiting().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_that_is_locked_for_ever_does_not_keep_a_mail() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let outbox = Outbox::new(&dir);
    let held = outbox.open().unwrap();
    let topic = Arc::new(Topic::default());
    let stage = Stage::start(&dir, &topic);
    stage.counters.spool_bytes.set(750);
    until("both mails have left", || topic.subjects().len() == 2).await;
    drop(held);
    until("the state is kept", || outbox.open().is_ok_and(|opened| opened.state().open.len() == 1)).await;
    sleep(3 * sender::LOOK_EVERY).await;
    assert_eq!((topic.subjects().len(), outbox.open().unwrap().waiting().unwrap()), (2, 0), "each once");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_filed_beside_an_outbox_that_was_ill_leaves_and_its_trouble_goes_on_in_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, spare) = (Outbox::new(&dir.path().join("outbox")), Outbox::new(&dir.path().join("outbox.spare")));
    let [id] = <[String; 1]>::try_from(begun_before(&spare, &[Trouble::AgentDied])).unwrap();
    let mut opened = spare.open().unwrap();
    let state = opened.state().clone();
    opened.file(state, vec![Mail::new(&id, Kind::Begin, "it died", "b")]).unwrap();
    drop(opened);
    let topic = Arc::new(Topic::default());
    let stage = Stage::start(outbox.dir(), &topic);
    until("both mails have left", || topic.subjects().len() == 2).await;
    assert!(topic.subjects().contains(&"it died".to_owned()));
    until("the outbox has the trouble", || outbox.open().is_ok_and(|opened| opened.state().open.values().any(|open| open.id == id))).await;
    until("the spare one has not", || spare.open().is_ok_and(|opened| opened.state().open.is_empty())).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_filed_beside_the_outbox_stays_there_until_it_could_be_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, spare) = (Outbox::new(&dir.path().join("outbox")), Outbox::new(&dir.path().join("outbox.spare")));
    let ids = begun_before(&spare, &[Trouble::AgentDied]);
    let held = spare.open().unwrap();
    let stage = Stage::start(outbox.dir(), &Arc::new(Topic::default()));
    // Something to be kept, also without what was filed there.
    stage.counters.spool_bytes.set(750);
    until("the outbox is kept", || outbox.holds("troubles.json")).await;
    drop(held);
    let has = |outbox: &Outbox| outbox.open().map(|opened| opened.state().open.values().any(|open| open.id == ids[0]));
    sleep(3 * sender::LOOK_EVERY).await;
    assert!(has(&spare).unwrap() && !has(&outbox).unwrap(), "it was forgotten, or is asked for all the time");
    stage.ahead.0.store(61 * SECOND_NS, Ordering::Relaxed);
    until("the outbox has the trouble", || has(&outbox).is_ok_and(|has| has)).await;
    until("the spare one has not", || has(&spare).is_ok_and(|has| !has)).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_wait_while_nobody_would_get_them() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let topic = Arc::new(Topic::default());
    topic.unheard.store(true, Ordering::Relaxed);
    let stage = Stage::start(&dir, &topic);
    let outbox = Outbox::new(&dir);
    until("the trouble is filed", || outbox.open().is_ok_and(|opened| opened.state().open.contains_key("nobody_subscribed"))).await;
    sleep(2 * sender::LOOK_EVERY).await;
    assert_eq!(stage.topic.subjects(), Vec::<String>::new());
    topic.unheard.store(false, Ordering::Relaxed);
    until("all have left", || topic.subjects().len() == 3).await;
    let subjects = topic.subjects();
    assert!(subjects[1].contains("FAILURE") && subjects[2].contains("OVER i-1: nobody receives"), "{subjects:?}");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_leaves_or_says_that_it_waits_and_a_test_says_when_nobody_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().into(), ..settings() };
    let (topic, place) = (Arc::new(Topic::default()), Place::default());
    topic.down.store(true, Ordering::Relaxed);
    let error = note(&settings, &place, "one", "m", topic.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Waits { .. }) && error.to_string().contains("it is down"), "{error}");
    topic.down.store(false, Ordering::Relaxed);
    note(&settings, &place, "two", "m", topic.clone()).await.unwrap();
    assert_eq!(topic.subjects(), ["one", "two"]);
    topic.unheard.store(true, Ordering::Relaxed);
    assert!(matches!(test(&settings, &place, topic.clone()).await, Err(Error::Nobody { .. })));
}

#[test]
fn what_is_lost_while_a_trouble_is_on_is_counted_whole_whether_the_state_is_read_anew_at_each_look_or_only_in_memory() {
    for in_memory in [false, true] {
        let mut fold = Fold::new(Limits::new(&settings(), true), settings().repeat, "i-1", Losses::default());
        let (mut kept, mut over) = (State::default(), Vec::new());
        for second in 0..200 {
            let now = Now { wall_ns: START_NS + second * SECOND_NS, monotonic_ns: (1_000 + second) * SECOND_NS };
            let verdict = if (10..35).contains(&second) { Verdict::Holds("it drops".into()) } else { Verdict::Clear };
            let losses = Losses { kernel: 7 * second.min(34), spool: 0 };
            let mut state = kept.clone();
            let (news, keep) = fold.fold(&mut state, &[(Trouble::KernelDrops, verdict)], losses, now, true);
            if keep || in_memory {
                kept = state;
            }
            over.extend(news.into_iter().filter(|news| news.kind == Kind::Over));
        }
        // From the look that saw it begin to the last that lost something; what was lost before belongs to no trouble.
        assert_eq!(over.iter().map(|news| news.losses.kernel).collect::<Vec<_>>(), [7 * (34 - 9)], "in memory: {in_memory}");
    }
}
