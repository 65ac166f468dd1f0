//! The table of troubles, and the conditions under which each holds.
//! In: samples of the counters, with the time they were taken at; limits. Out: of each trouble whether it holds.
//! Never: reads a clock or a file; takes "cannot be told" for "over".
//!
//! To add a trouble: a row in the table, a line in [`Watch::look`]. Its mails are made from the row.

use std::collections::VecDeque;
use std::time::Duration;

use super::Settings;
use crate::host::clock::{Check, Now, SECOND_NS, Synchrony};
use crate::observe::counters::Counters;

/// Declares the troubles: a stable name, a title for subjects, what is at stake, what to do; how rarely it is repeated, where
/// `alert.repeat` is too often.
macro_rules! troubles {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $title:literal, $stake:literal, $todo:literal $(, $rarely:expr)?;)+) => {
        /// What a person must hear of.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Trouble { $($(#[$doc])* $variant,)+ }

        impl Trouble {
            /// Every trouble.
            pub const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];

            /// Its stable name, part of each trouble id.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// A few words, at most [`TITLE_MAX`] ASCII characters.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// What is at stake.
            #[must_use]
            pub const fn stake(self) -> &'static str {
                match self { $(Self::$variant => $stake,)+ }
            }

            /// What to do next.
            #[must_use]
            pub const fn todo(self) -> &'static str {
                match self { $(Self::$variant => $todo,)+ }
            }

            /// At most one mail in this time says that it is still there, however short `alert.repeat` is.
            #[must_use]
            pub const fn repeat_min(self) -> Duration {
                match self { $(Self::$variant => Duration::ZERO$(.saturating_add($rarely))?,)+ }
            }
        }
    };
}

/// The most characters of a title: with an instance id it must fit into a subject.
pub const TITLE_MAX: usize = 40;

/// For what loses nothing and stays until somebody has the time for it.
const DAILY: Duration = Duration::from_secs(24 * 3600);

troubles! {
    /// Capture cannot start, or died, or stands still.
    CaptureFailed = "capture_failed", "no packets can be captured",
        "What is mirrored to this instance is not recorded, and is lost.",
        "Read `journalctl -u tapfleetd`; `tapfleetd check` names wrong settings, `tapfleetd status` says how it is now.";
    /// The process ended, or could not begin, without a word of its own: the service manager's hooks file it.
    AgentDied = "agent_died", "the capture agent died",
        "Nothing is recorded until it captures again. systemd restarts it within a second, and within a minute when it ends again and \
         again; a mail says when it has captured for a minute.",
        "Read `journalctl -u tapfleetd` and `systemctl status tapfleetd`; `tapfleetd check` names wrong settings.";
    /// Mirrored packets no longer come.
    Silence = "silence", "no mirrored packets arrive",
        "If anything is being mirrored, it gets lost on its way here.",
        "Look at the mirror sessions, at the load balancer's targets and at the security group (UDP 6081). If it is meant to be this \
         quiet, raise alert.silence.";
    /// More than `alert.drop_ratio` of the packets find no room in the ring.
    KernelDrops = "kernel_drops", "the kernel drops packets",
        "The captures have holes; the manifests count them.",
        "Raise capture.ring_bytes or capture.threads, take a larger instance, or mirror less.";
    /// The interface to capture on is not there.
    InterfaceGone = "interface_gone", "the capture interface is gone",
        "No packet reaches this agent until the interface is back; it is reopened by itself.",
        "Look at `ip link` on the instance and at its network interfaces in EC2.";
    /// Captures have not got further for a while.
    UploadFailing = "upload_failing", "captures do not reach S3",
        "Captures wait in the spool and nothing is lost until it is full.",
        "Look at the log for the cause: network, endpoint, VPC endpoint policy, expired credentials, the spool's disk; \
         status/<instance>.json in the bucket names the captures. Sending goes on by itself.";
    /// S3 refuses: credentials, policy, bucket.
    UploadRefused = "upload_refused", "S3 refuses the captures",
        "Captures wait in the spool and nothing is lost until it is full; this does not go away by itself.",
        "Look at the log for the refusal, then at s3.bucket, the instance's role, the bucket's policy and the KMS key.";
    /// S3 refuses the credentials, or there are none.
    CredentialsRefused = "credentials_refused", "the credentials are refused",
        "Captures wait in the spool and nothing is lost until it is full.",
        "Look at the instance's role, at whether 169.254.169.254 answers, and at AWS_ variables in the agent's environment. New \
         credentials are asked for by themselves, as soon as there are any.";
    /// S3 refuses requests for the time that they bear.
    ClockRefused = "clock_refused", "S3 refuses this instance's clock",
        "Captures wait in the spool until the clock is right, and bear its times.",
        "See whether chronyd runs and reaches the Amazon Time Sync Service (169.254.169.123): `chronyc tracking`.";
    /// A segment that cannot be sent, for a reason of its own.
    PoisonSegment = "poison_segment", "a capture cannot be sent",
        "These captures exist only on this instance. All others are sent.",
        "The log and status/<instance>.json in the bucket name them and say why. Keep the spool's volume; what is damaged can be \
         copied from there by hand. They are tried again each hour and at each start.",
        DAILY;
    /// The spool is filling up.
    SpoolHigh = "spool_high", "the spool is filling up",
        "When it is full, packets are dropped.",
        "See why captures do not leave (`tapfleetd spool list`), or raise spool.max_bytes.";
    /// The spool is nearly full.
    SpoolCritical = "spool_critical", "the spool is almost full",
        "When it is full, packets are dropped.",
        "See at once why captures do not leave (`tapfleetd spool list`), or raise spool.max_bytes.";
    /// Packets are dropped, as the spool is full.
    SpoolFull = "spool_full", "the spool is full, packets are dropped",
        "Packets are being lost; the manifests count them.",
        "Let captures leave: see `tapfleetd spool list` and the log, or raise spool.max_bytes.";
    /// Whole captures are dropped to make room for newer ones.
    GaveWay = "gave_way", "old captures are dropped for new ones",
        "The oldest captures that were not yet in S3 are lost; their manifests say which packets they held.",
        "Let captures leave: see `tapfleetd spool list` and the log, or raise spool.max_bytes.";
    /// Nothing is recorded until there is room.
    RecordingStopped = "recording_stopped", "the spool is full, recording stopped",
        "Packets are being lost; the manifests count them. Recording goes on by itself when a tenth of the spool is free.",
        "Let captures leave: see `tapfleetd spool list` and the log, or raise spool.max_bytes.";
    /// The spool's disk refuses what is written, or does not answer.
    SpoolRefused = "spool_refused", "the spool's disk takes nothing",
        "Packets wait in memory, and are lost when that is full.",
        "Look at the log for the cause, and at the volume in EC2: it must be attached, writable and without errors.";
    /// The wall clock stepped.
    ClockStepped = "clock_stepped", "the clock has stepped",
        "Times of packets before and after cannot be compared; the open capture was closed and a new one begun.",
        "See whether chronyd runs and reaches the Amazon Time Sync Service (169.254.169.123).";
    /// The wall clock is off, or nobody says that it is right.
    ClockUnsynchronised = "clock_unsynchronised", "the clock is not synchronised",
        "Times of packets are wrong or unproven, and AWS refuses calls of a clock that is off by minutes.",
        "See whether chronyd runs and follows the Amazon Time Sync Service (`chronyc tracking`, 169.254.169.123), and whether \
         host.time_server answers (UDP 123).";
    /// The instance goes, or is given up, before everything is in S3.
    LeavingUnsent = "leaving_unsent", "instance going away, spool not empty",
        "What is not in S3 yet stays on the spool's volume, and is lost where that volume goes with the instance.",
        "Keep the instance or its spool volume; let S3 be reached again, or attach the volume elsewhere and run `tapfleetd spool upload`.";
    /// The topic has no confirmed subscription.
    NobodySubscribed = "nobody_subscribed", "nobody receives the alert mails",
        "Troubles were heard of by nobody; the mails about them waited in the outbox and follow now.",
        "Subscribe at least one address to the topic and confirm it; the link in the confirmation mail expires.";
}

impl Trouble {
    /// The trouble of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trouble| trouble.name() == name)
    }
}

/// Whether a trouble is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is, in one line.
    Holds(String),
    /// Nothing says so, and nothing says that it is over.
    Unclear,
    /// It is not.
    Clear,
}

/// The counters at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sample {
    /// When.
    pub now: Now,
    /// Mirrored frames that came.
    pub mirrored: u64,
    /// Packets that the kernel saw.
    pub kernel_packets: u64,
    /// Of those, dropped.
    pub kernel_drops: u64,
    /// Frames dropped for want of room in the spool.
    pub spool_full: u64,
    /// Level of the spool, bytes.
    pub spool_bytes: u64,
    /// The most it can hold now, bytes; 0: not known.
    pub spool_capacity: u64,
    /// Segments whose data were dropped for newer ones, and their frames.
    pub given_way: (u64, u64),
    /// Whether recording has stopped for want of room.
    pub recording_stopped: bool,
    /// For how long the spool's disk has not done what it was asked.
    pub disk_waits_ns: u64,
    /// For how long the segment that fails longest has not got further; 0 when none fails.
    pub failing_ns: u64,
    /// Times that a segment which grows no more got further.
    pub upload_progress: u64,
    /// For how long the oldest segment has been unsent; 0 when there is none.
    pub oldest_seconds: u64,
    /// Calls that S3 refused.
    pub upload_refusals: u64,
    /// Calls whose credentials were refused.
    pub credential_refusals: u64,
    /// Calls that were refused for the clock.
    pub clock_refusals: u64,
    /// Segments that are poison.
    pub segments_poison: u64,
    /// How often the uploader went round.
    pub upload_rounds: u64,
    /// What S3 took: parts and finished segments.
    pub arrived: u64,
    /// Times that S3 took the status.
    pub statuses_told: u64,
    /// Steps of the wall clock.
    pub clock_steps: u64,
    /// What the time server has said of the wall clock.
    pub clock: Check,
    /// Whether the instance is to leave.
    pub leaving: bool,
    /// Whether capture was ended for that.
    pub ended: bool,
    /// Segments that stay behind when the instance goes; `None`: none will.
    pub stay_behind: Option<u64>,
    /// Last life sign of the thread that has given none for the longest; 0 when one has given none yet. Monotonic.
    pub beat_ns: u64,
    /// When any capture thread could last take frames; 0 for never. Monotonic.
    pub able_ns: u64,
}

impl Sample {
    /// The counters now.
    #[must_use]
    pub fn of(counters: &Counters, now: Now) -> Self {
        let captures = &counters.captures;
        let beats = captures.iter().map(|pulse| pulse.beat_ns.get()).chain([counters.recorder.beat_ns.get()]);
        Self {
            now,
            mirrored: counters.mirrored(),
            kernel_packets: counters.kernel_packets.get(),
            kernel_drops: counters.kernel_drops.get(),
            spool_full: counters.spool_full(),
            spool_bytes: counters.spool_bytes.get(),
            spool_capacity: counters.spool_capacity.get(),
            given_way: (counters.segments_given_way.get(), counters.frames_given_way.get()),
            recording_stopped: counters.recording_stopped.get() > 0,
            disk_waits_ns: counters.disk_waits_ns(now.monotonic_ns),
            failing_ns: counters.segments_failing_seconds.get().saturating_mul(SECOND_NS),
            upload_progress: counters.upload_progress.get(),
            oldest_seconds: counters.spool_oldest_seconds.get(),
            upload_refusals: counters.upload_refusals.get(),
            credential_refusals: counters.credential_refusals.get(),
            clock_refusals: counters.clock_refusals.get(),
            segments_poison: counters.segments_poison.get(),
            upload_rounds: counters.upload_rounds.get(),
            arrived: counters.parts_sent.get() + counters.segments_finished.get(),
            statuses_told: counters.statuses_told.get(),
            clock_steps: counters.clock_steps.get(),
            clock: counters.clock(),
            leaving: counters.leaving.get() > 0,
            ended: counters.leaving_ended.get() > 0,
            stay_behind: (counters.leaving_unsent.get() > 0).then(|| counters.spool_segments.get()),
            beat_ns: beats.min().unwrap_or(0),
            able_ns: captures.iter().map(|pulse| pulse.able_ns.get()).max().unwrap_or(0),
        }
    }
}

/// When what is a trouble.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Whether frames come from an interface: a replayed file is silent when it ends.
    pub live: bool,
    /// No mirrored packet for this long; `None`: silence is no trouble.
    pub silence: Option<Duration>,
    /// Part of the packets that the kernel may drop, 0 to 1, within [`Limits::ratio_window`].
    pub drop_ratio: f64,
    /// See [`Limits::drop_ratio`].
    pub ratio_window: Duration,
    /// A thread that gives no life sign for this long is dead.
    pub stalled: Duration,
    /// The interface may be gone for this long.
    pub interface_gone: Duration,
    /// A segment may fail for this long without getting further.
    pub upload_failing: Duration,
    /// The oldest segment may be unsent for this long: its own window, two more and ten minutes.
    pub unsent: Duration,
    /// And when it is: so long no segment may get further. A window, in which one ends, and longer than the largest part may take.
    pub upload_still: Duration,
    /// Credentials and clock may be refused for this long: new credentials take a moment.
    pub refused_for: Duration,
    /// A failure older than this says nothing of now: longer than the longest wait between two tries.
    pub failure_stale: Duration,
    /// What the spool may hold, bytes; 0: not known.
    pub spool_max_bytes: u64,
    /// The spool's disk may take this long: a volume stands still for a while now and then.
    pub disk_waits: Duration,
    /// Dropping is over when none was dropped for this long.
    pub full_hold: Duration,
    /// A clock that has not stepped for this long is steady.
    pub step_hold: Duration,
    /// A clock may be off, or not be compared, for this long.
    pub clock_off: Duration,
}

impl Limits {
    /// Those of the settings.
    #[must_use]
    pub fn new(settings: &Settings, live: bool) -> Self {
        Self {
            live,
            silence: settings.silence,
            drop_ratio: settings.drop_ratio,
            ratio_window: Duration::from_secs(60),
            stalled: Duration::from_secs(10),
            interface_gone: Duration::from_secs(10),
            upload_failing: Duration::from_secs(300),
            unsent: 3 * settings.window + Duration::from_secs(600),
            upload_still: settings.window + Duration::from_secs(1200),
            refused_for: Duration::from_secs(60),
            failure_stale: Duration::from_secs(240),
            spool_max_bytes: settings.spool_max_bytes,
            disk_waits: Duration::from_secs(30),
            full_hold: Duration::from_secs(60),
            step_hold: Duration::from_secs(300),
            clock_off: Duration::from_secs(300),
        }
    }

    /// How long a trouble must be clear before it is over: what comes and goes within it is one trouble.
    #[must_use]
    pub fn steady(&self, trouble: Trouble) -> Duration {
        const STEADY: Duration = Duration::from_secs(60);
        match trouble {
            // Longer than a pause that would be a new silence.
            Trouble::Silence => self.silence.map_or(Duration::ZERO, |silence| silence + silence.min(STEADY)),
            // One success is proof enough; a few seconds more show that it was not a lucky one.
            Trouble::UploadRefused | Trouble::CredentialsRefused | Trouble::ClockRefused => Duration::from_secs(10),
            // These hold on by themselves, or are a plain answer.
            Trouble::ClockStepped | Trouble::NobodySubscribed => Duration::ZERO,
            _ => STEADY,
        }
    }
}

/// Warning and critical level of the spool, and how far below it is over, percent.
const HIGH: (u64, u64) = (70, 65);
const CRITICAL: (u64, u64) = (95, 90);

/// When one kind of refusal came, since the last sign that it is over.
#[derive(Clone, Copy, Default, Debug)]
struct Refusals {
    first_ns: Option<u64>,
    last_ns: Option<u64>,
    /// Whether there ever was such a sign.
    over: bool,
}

impl Refusals {
    fn note(&mut self, grew: bool, over: bool, now: u64, stale_ns: u64) {
        if over {
            *self = Self { over, ..Self::default() };
        }
        if grew {
            // A refusal of long ago says nothing of how long they have come now.
            if self.last_ns.is_none_or(|last| now.saturating_sub(last) >= stale_ns) {
                self.first_ns = Some(now);
            }
            self.last_ns = Some(now);
        }
    }
}

/// What earlier samples said.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    /// Silence counts from here when no frame came since: the start, or when recording was last switched on.
    expecting_ns: u64,
    expected: bool,
    /// What has given no sign yet counts from here.
    begun_ns: u64,
    last: Sample,
    arrived_ns: Option<u64>,
    /// Kernel counts of the last [`Limits::ratio_window`]: time, packets, drops.
    window: VecDeque<(u64, u64, u64)>,
    /// When a segment was last seen to fail, and when one that grows no more last got further.
    failed_ns: Option<u64>,
    progress_ns: Option<u64>,
    refused: Refusals,
    credentials: Refusals,
    clock: Refusals,
    /// When S3 last took something while no segment failed.
    worked_ns: Option<u64>,
    full_ns: Option<u64>,
    gave_way_ns: Option<u64>,
    stepped_ns: Option<u64>,
    /// Since when the clock has been off in every answer.
    off_ns: Option<u64>,
}

impl Watch {
    /// Begins with `first`: what was counted before is not looked at.
    #[must_use]
    pub fn new(limits: Limits, first: Sample) -> Self {
        Self {
            limits,
            expecting_ns: first.now.monotonic_ns,
            expected: true,
            begun_ns: first.now.monotonic_ns,
            last: first,
            arrived_ns: None,
            window: VecDeque::new(),
            failed_ns: None,
            progress_ns: None,
            refused: Refusals::default(),
            credentials: Refusals::default(),
            clock: Refusals::default(),
            worked_ns: None,
            full_ns: None,
            gave_way_ns: None,
            stepped_ns: None,
            off_ns: None,
        }
    }

    /// Takes a sample and says of each trouble whether it holds. `expected`: whether packets are to be recorded now;
    /// `subscribed`: whether the topic has a confirmed subscription, if that is known.
    pub fn look(&mut self, sample: Sample, expected: bool, subscribed: Option<bool>) -> Vec<(Trouble, Verdict)> {
        self.note(&sample, expected);
        let capture = self.capture(&sample);
        let interface = self.interface(&sample);
        // Without capture or interface it is silent too: that is one trouble, not two.
        let silence = match (&capture, &interface) {
            (Verdict::Holds(_), _) | (_, Verdict::Holds(_)) => Verdict::Unclear,
            _ => self.silence(&sample),
        };
        // Its end is all that is seen from here: packets can be taken again.
        let died = match (&capture, &interface) {
            (Verdict::Clear, Verdict::Clear) => Verdict::Clear,
            _ => Verdict::Unclear,
        };
        let subscription = match subscribed {
            Some(false) => Verdict::Holds("the topic has no confirmed subscription".into()),
            Some(true) => Verdict::Clear,
            None => Verdict::Unclear,
        };
        let verdicts = vec![
            (Trouble::CaptureFailed, capture),
            (Trouble::AgentDied, died),
            (Trouble::Silence, silence),
            (Trouble::KernelDrops, self.kernel_drops(&sample)),
            (Trouble::InterfaceGone, interface),
            (Trouble::UploadFailing, self.upload_failing(&sample)),
            (
                Trouble::UploadRefused,
                self.refusal(self.refused, Duration::ZERO, "S3 has no such bucket, or does not allow the agent to write to it", &sample),
            ),
            (
                Trouble::CredentialsRefused,
                self.refusal(self.credentials, self.limits.refused_for, "S3 refuses the credentials, or none can be had", &sample),
            ),
            (
                Trouble::ClockRefused,
                self.refusal(
                    self.clock,
                    self.limits.refused_for,
                    "the times of the instance and of S3 differ by more than 15 minutes",
                    &sample,
                ),
            ),
            (Trouble::PoisonSegment, poison(&sample)),
            (Trouble::SpoolHigh, self.spool_level(&sample, HIGH)),
            (Trouble::SpoolCritical, self.spool_level(&sample, CRITICAL)),
            (Trouble::SpoolFull, self.spool_full(&sample)),
            (Trouble::GaveWay, self.gave_way(&sample)),
            (Trouble::RecordingStopped, recording(&sample)),
            (Trouble::SpoolRefused, self.spool_refused(&sample)),
            (Trouble::ClockStepped, self.clock_stepped(&sample)),
            (Trouble::ClockUnsynchronised, self.clock_unsynchronised(&sample)),
            (Trouble::LeavingUnsent, leaving_unsent(&sample)),
            (Trouble::NobodySubscribed, subscription),
        ];
        self.last = sample;
        verdicts
    }

    /// Notes when what grew.
    fn note(&mut self, sample: &Sample, expected: bool) {
        let now = sample.now.monotonic_ns;
        let last = self.last;
        if expected && !self.expected {
            self.expecting_ns = now;
        }
        self.expected = expected;
        let mark = |grew: bool, place: &mut Option<u64>| {
            if grew {
                *place = Some(now);
            }
        };
        mark(sample.mirrored > last.mirrored, &mut self.arrived_ns);
        // That parts arrive is no success while what they are parts of is never confirmed.
        let worked = sample.arrived > last.arrived && sample.failing_ns == 0;
        mark(worked, &mut self.worked_ns);
        mark(sample.failing_ns > 0, &mut self.failed_ns);
        mark(sample.upload_progress > last.upload_progress, &mut self.progress_ns);
        mark(sample.spool_full > last.spool_full, &mut self.full_ns);
        mark(sample.given_way > last.given_way, &mut self.gave_way_ns);
        mark(sample.clock_steps > last.clock_steps, &mut self.stepped_ns);
        match sample.clock.synchrony(now) {
            Synchrony::Unsynchronised => _ = self.off_ns.get_or_insert(now),
            Synchrony::Synchronised => self.off_ns = None,
            Synchrony::Unknown => {}
        }
        let stale_ns = nanoseconds(self.limits.failure_stale);
        let arrived = sample.arrived > last.arrived;
        // One object may be refused while parts of another arrive; but what is still refused would have been again by now.
        let unrefused_ns = now.saturating_sub(self.refused.last_ns.unwrap_or(self.begun_ns));
        let allowed = worked || (arrived && unrefused_ns >= stale_ns);
        // Credentials and clock are the same in every call: one that S3 took shows that they are good, whatever else fails.
        let taken = arrived || sample.statuses_told > last.statuses_told;
        self.credentials.note(sample.credential_refusals > last.credential_refusals, taken, now, stale_ns);
        self.clock.note(sample.clock_refusals > last.clock_refusals, taken, now, stale_ns);
        // Meanwhile all is refused, and an answer to HEAD has no word of why: it would be taken for the bucket or its policy.
        let lately = |refusals: &Refusals| refusals.last_ns.is_some_and(|last| now.saturating_sub(last) < stale_ns);
        if lately(&self.credentials) || lately(&self.clock) {
            self.refused = Refusals::default();
        } else {
            self.refused.note(sample.upload_refusals > last.upload_refusals, allowed, now, stale_ns);
        }
        if self.window.is_empty() {
            self.window.push_back((last.now.monotonic_ns, last.kernel_packets, last.kernel_drops));
        }
        self.window.push_back((now, sample.kernel_packets, sample.kernel_drops));
        // The oldest that is kept is the last one at or before the window's beginning.
        let begin = now.saturating_sub(nanoseconds(self.limits.ratio_window));
        while self.window.get(1).is_some_and(|(at, ..)| *at <= begin) {
            self.window.pop_front();
        }
    }

    fn capture(&self, sample: &Sample) -> Verdict {
        if !self.limits.live || sample.ended {
            return Verdict::Unclear;
        }
        let still = age(sample.beat_ns.max(self.begun_ns), sample);
        match still > self.limits.stalled {
            true => Verdict::Holds(format!("a thread that captures or records has stood still for {}", span(still))),
            false if sample.beat_ns == 0 => Verdict::Unclear,
            false => Verdict::Clear,
        }
    }

    fn interface(&self, sample: &Sample) -> Verdict {
        if !self.limits.live || sample.ended {
            return Verdict::Unclear;
        }
        let away = age(sample.able_ns.max(self.begun_ns), sample);
        match away > self.limits.interface_gone {
            true => Verdict::Holds(format!("no frames could be taken from the interface for {}", span(away))),
            false if sample.able_ns == 0 => Verdict::Unclear,
            false => Verdict::Clear,
        }
    }

    fn silence(&self, sample: &Sample) -> Verdict {
        let Some(limit) = self.limits.silence.filter(|_| self.limits.live && self.expected && !sample.leaving) else {
            return Verdict::Unclear;
        };
        let silent = age(self.arrived_ns.unwrap_or(0).max(self.expecting_ns), sample);
        match silent >= limit {
            true => Verdict::Holds(format!("no mirrored packet has come for {}", span(silent))),
            // A packet now and then does not say that they flow again.
            false if self.arrived_ns.is_some() && silent < limit / 2 => Verdict::Clear,
            false => Verdict::Unclear,
        }
    }

    fn kernel_drops(&self, sample: &Sample) -> Verdict {
        let Some(&(_, packets, drops)) = self.window.front() else { return Verdict::Unclear };
        let packets = sample.kernel_packets.saturating_sub(packets);
        let drops = sample.kernel_drops.saturating_sub(drops);
        // A ratio of two counts: their last bits do not matter.
        let ratio = if packets == 0 { 0.0 } else { drops as f64 / packets as f64 };
        if drops > 0 && ratio > self.limits.drop_ratio {
            let window = span(self.limits.ratio_window);
            return Verdict::Holds(format!("{drops} of {packets} packets of the last {window} found no room in the ring"));
        }
        if drops == 0 || ratio < self.limits.drop_ratio / 2.0 { Verdict::Clear } else { Verdict::Unclear }
    }

    /// Holds when a segment fails, whatever the cause, or when old ones lie still though nothing fails. A slow uplink does neither: each
    /// part more that arrives counts anew, also while a try lasts.
    fn upload_failing(&self, sample: &Sample) -> Verdict {
        let failing = Duration::from_nanos(sample.failing_ns);
        if failing >= self.limits.upload_failing {
            return Verdict::Holds(format!("a capture has failed in every try for {} and got no further", span(failing)));
        }
        let (oldest, still) = (Duration::from_secs(sample.oldest_seconds), age(self.progress_ns.unwrap_or(0).max(self.begun_ns), sample));
        if oldest > self.limits.unsent && still >= self.limits.upload_still {
            return Verdict::Holds(format!(
                "the oldest capture was begun {} ago, and none has got further for {}",
                span(oldest),
                span(still)
            ));
        }
        match self.worked_ns {
            Some(worked) if failing.is_zero() && self.failed_ns.is_none_or(|failed| failed < worked) => Verdict::Clear,
            _ => Verdict::Unclear,
        }
    }

    /// Holds when refusals have come over a time of `patience` without a sign that they are over.
    fn refusal(&self, refusals: Refusals, patience: Duration, what: &str, sample: &Sample) -> Verdict {
        match (refusals.first_ns, refusals.last_ns) {
            (Some(first), Some(last)) => {
                let recent = age(last, sample) < self.limits.failure_stale;
                // A refusal after which nothing was tried does not last.
                let lasts = last.saturating_sub(first) >= nanoseconds(patience);
                if recent && lasts { Verdict::Holds(what.into()) } else { Verdict::Unclear }
            }
            _ if refusals.over => Verdict::Clear,
            _ => Verdict::Unclear,
        }
    }

    fn spool_level(&self, sample: &Sample, (begins, over): (u64, u64)) -> Verdict {
        let allowed = self.limits.spool_max_bytes;
        let max = if sample.spool_capacity == 0 { allowed } else { sample.spool_capacity };
        if max == 0 {
            return Verdict::Unclear;
        }
        let percent = u128::from(sample.spool_bytes) * 100 / u128::from(max);
        let bytes = sample.spool_bytes;
        // What journals need is a smaller part of the budget than this.
        let taken = if max < allowed / 10 * 9 {
            format!("; its file system has no more, though spool.max_bytes is {allowed}")
        } else {
            String::new()
        };
        match percent {
            percent if percent >= u128::from(begins) => Verdict::Holds(format!("it holds {bytes} of {max} bytes, {percent} %{taken}")),
            percent if percent < u128::from(over) => Verdict::Clear,
            _ => Verdict::Unclear,
        }
    }

    fn spool_full(&self, sample: &Sample) -> Verdict {
        match self.full_ns {
            Some(at) if age(at, sample) < self.limits.full_hold => {
                Verdict::Holds(format!("{} frames found no room in the spool since the agent began", sample.spool_full))
            }
            _ => Verdict::Clear,
        }
    }

    fn gave_way(&self, sample: &Sample) -> Verdict {
        let (segments, frames) = sample.given_way;
        match self.gave_way_ns {
            Some(at) if age(at, sample) < self.limits.full_hold => {
                Verdict::Holds(format!("{segments} captures of {frames} frames were dropped since the agent began"))
            }
            _ => Verdict::Clear,
        }
    }

    fn spool_refused(&self, sample: &Sample) -> Verdict {
        let waits = Duration::from_nanos(sample.disk_waits_ns);
        match waits > self.limits.disk_waits {
            true => Verdict::Holds(format!("the disk has not taken what is written for {}", span(waits))),
            false => Verdict::Clear,
        }
    }

    fn clock_stepped(&self, sample: &Sample) -> Verdict {
        match self.stepped_ns {
            Some(at) if age(at, sample) < self.limits.step_hold => {
                Verdict::Holds(format!("the wall clock has stepped {} times since the agent began", sample.clock_steps))
            }
            _ => Verdict::Clear,
        }
    }

    fn clock_unsynchronised(&self, sample: &Sample) -> Verdict {
        let Check { expected_ns, answered_ns, ahead_us } = sample.clock;
        // Nobody need answer here, so that silence says nothing.
        if expected_ns == 0 {
            return Verdict::Unclear;
        }
        let unanswered = age(answered_ns.max(expected_ns), sample);
        if unanswered >= self.limits.clock_off {
            return Verdict::Holds(format!(
                "the time server has not answered for {}, so nothing says that the clock is right",
                span(unanswered)
            ));
        }
        match self.off_ns {
            Some(from) if age(from, sample) >= self.limits.clock_off => {
                let side = if ahead_us < 0 { "behind" } else { "ahead of" };
                let (seconds, ms) = (ahead_us.unsigned_abs() / 1_000_000, ahead_us.unsigned_abs() / 1000 % 1000);
                let off = span(age(from, sample));
                Verdict::Holds(format!("the clock is {seconds}.{ms:03} s {side} the time server, and has been off for {off}"))
            }
            None if answered_ns > 0 => Verdict::Clear,
            _ => Verdict::Unclear,
        }
    }
}

fn poison(sample: &Sample) -> Verdict {
    match sample.segments_poison {
        // Before its first round the uploader has not looked yet.
        0 if sample.upload_rounds == 0 => Verdict::Unclear,
        0 => Verdict::Clear,
        count => Verdict::Holds(format!("{count} segments are damaged, or have failed for a day while others got through")),
    }
}

fn leaving_unsent(sample: &Sample) -> Verdict {
    match sample.stay_behind {
        Some(segments) => {
            Verdict::Holds(format!("{segments} segments, {} MiB, are not in S3 and the instance is about to go", sample.spool_bytes >> 20))
        }
        None => Verdict::Clear,
    }
}

fn recording(sample: &Sample) -> Verdict {
    if sample.recording_stopped { Verdict::Holds("the spool is full and spool.on_full is \"stop\"".into()) } else { Verdict::Clear }
}

/// A time in nanoseconds.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn age(at_ns: u64, sample: &Sample) -> Duration {
    Duration::from_nanos(sample.now.monotonic_ns.saturating_sub(at_ns))
}

/// A time in words: its two largest units.
#[must_use]
pub fn span(time: Duration) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut rest = time.as_nanos() as u64 / SECOND_NS;
    if time.as_nanos() > u128::from(u64::MAX) {
        rest = u64::MAX / SECOND_NS;
    }
    let mut words = Vec::new();
    for (seconds, unit) in units {
        if rest >= seconds && words.len() < 2 {
            words.push(format!("{} {unit}", rest / seconds));
        }
        rest %= seconds;
    }
    if words.is_empty() { "0 s".into() } else { words.join(" ") }
}

#[cfg(test)]
mod tests;
