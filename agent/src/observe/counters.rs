//! What the stages count, as plain atomics that any of them may add to and everyone may read.
//! In: additions, once per batch, never per frame. Out: sums since the process began. Never: a decision.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::host::clock;
use crate::wire::{Drop, Ignored};

/// A number that only grows, or a level that is set.
#[derive(Default, Debug)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to a sum.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Sets a level.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level on either side of zero.
#[derive(Default, Debug)]
pub struct Offset(AtomicI64);

impl Offset {
    /// Sets it.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Life signs of one thread, nanoseconds of the monotonic clock.
#[derive(Default, Debug)]
pub struct Pulse {
    /// When it last went round its loop.
    pub beat_ns: Count,
    /// When the thread could last take frames (a capture thread whose interface is gone still beats).
    pub able_ns: Count,
}

/// Everything that is counted in one agent.
#[derive(Default, Debug)]
pub struct Counters {
    /// Packets that passed the kernel filter, drops included.
    pub kernel_packets: Count,
    /// Of those, dropped for want of a free ring block.
    pub kernel_drops: Count,
    /// How often a ring stood still.
    pub kernel_freezes: Count,
    /// Frames written to segments.
    pub frames_written: Count,
    /// Their captured bytes, without record headers.
    pub bytes_written: Count,
    /// Frames that came after their window had closed and were written to the open one.
    pub frames_late: Count,
    /// Frames kept in quarantine.
    pub frames_quarantined: Count,
    /// Frames not written, by [`Drop::index`].
    pub drops: [Count; Drop::ALL.len()],
    /// Frames not ours, by [`Ignored::index`].
    pub ignored: [Count; Ignored::ALL.len()],
    /// Accepted frames that the mirror had cut.
    pub notes_cut: Count,
    /// Accepted frames whose GENEVE header named no endpoint.
    pub notes_missing_gwlb_options: Count,
    /// Accepted frames with an AWS option twice.
    pub notes_repeated_option: Count,
    /// Accepted frames of fewer than 14 bytes.
    pub notes_runt: Count,
    /// Mirrored frames that also went out of `tee.interface`.
    pub tee_frames: Count,
    /// Those that it did not take in time, or took and dropped.
    pub tee_drops: Count,
    /// Segments opened.
    pub segments_opened: Count,
    /// Segments closed.
    pub segments_closed: Count,
    /// Times the interface went away.
    pub gaps: Count,
    /// Clock steps seen.
    pub clock_steps: Count,
    /// Answers of the time server.
    pub clock_answers: Count,
    /// See [`clock::Check::expected_ns`].
    pub clock_expected_ns: Count,
    /// See [`clock::Check::answered_ns`].
    pub clock_answered_ns: Count,
    /// See [`clock::Check::ahead_us`].
    pub clock_ahead_us: Offset,
    /// Level: bytes that the spool holds, data, journals and manifests together.
    pub spool_bytes: Count,
    /// Level: the most it can hold now, by its budget and by what its file system has left; 0 before the first look.
    pub spool_capacity: Count,
    /// Segments whose data were dropped to make room for newer ones.
    pub segments_given_way: Count,
    /// Their frames.
    pub frames_given_way: Count,
    /// Their bytes, as captured.
    pub bytes_given_way: Count,
    /// Level: 1 while nothing is recorded because the spool was full and `spool.on_full` is `stop`.
    pub recording_stopped: Count,
    /// Since when a write to the spool waits for its disk; 0 while none does. Monotonic.
    pub writing_since_ns: Count,
    /// The same of syncs.
    pub syncing_since_ns: Count,
    /// Level: segments not yet verified.
    pub spool_segments: Count,
    /// Level: seconds since the oldest unverified segment was opened.
    pub spool_oldest_seconds: Count,
    /// Parts that S3 took.
    pub parts_sent: Count,
    /// Their bytes.
    pub bytes_sent: Count,
    /// Captures that S3 confirmed.
    pub segments_verified: Count,
    /// Their bytes.
    pub bytes_verified: Count,
    /// Calls to S3 that failed.
    pub upload_failures: Count,
    /// Of those, refused: no such bucket, or not allowed.
    pub upload_refusals: Count,
    /// Of the failed, those whose credentials were refused.
    pub credential_refusals: Count,
    /// Of the failed, those refused for a clock that differs.
    pub clock_refusals: Count,
    /// Level: seconds since the segment that fails longest last got further, whatever the cause; 0 when none fails.
    pub segments_failing_seconds: Count,
    /// Times that a segment which grows no more got further: more of its parts than ever are in S3, or all of it is confirmed.
    pub upload_progress: Count,
    /// Level: segments that are damaged, or have failed for a day while others got through.
    pub segments_poison: Count,
    /// Segments of which S3 has confirmed everything, windows without frames included.
    pub segments_finished: Count,
    /// Times that S3 took the object which says what is unsent.
    pub statuses_told: Count,
    /// Multipart uploads taken up again after a restart.
    pub uploads_resumed: Count,
    /// Level: mails that the topic has not taken yet.
    pub mails_waiting: Count,
    /// Times that the topic did not take a mail.
    pub mail_failures: Count,
    /// Level: 1 while the instance is to leave.
    pub leaving: Count,
    /// Level: 1 when capture has been ended for that.
    pub leaving_ended: Count,
    /// Level: 1 while it goes, or is given up, with segments that S3 has not confirmed.
    pub leaving_unsent: Count,
    /// How often the uploader went round: its life sign.
    pub upload_rounds: Count,
    /// Keys that were taken when we came to them.
    pub key_collisions: Count,
    /// The recorder.
    pub recorder: Pulse,
    /// The capture threads.
    pub captures: Vec<Pulse>,
}

impl Counters {
    /// All zero, with room for the pulses of `capture_threads`.
    #[must_use]
    pub fn new(capture_threads: usize) -> Self {
        Self { captures: (0..capture_threads).map(|_| Pulse::default()).collect(), ..Self::default() }
    }

    /// For how long the spool's disk has not done what it was asked; at most a moment while all is well.
    #[must_use]
    pub fn disk_waits_ns(&self, monotonic_ns: u64) -> u64 {
        let since = [&self.writing_since_ns, &self.syncing_since_ns].into_iter().map(Count::get).filter(|&ns| ns > 0).min();
        since.map_or(0, |since| monotonic_ns.saturating_sub(since))
    }

    /// Frames that were not written for want of room in the spool.
    #[must_use]
    pub fn spool_full(&self) -> u64 {
        self.dropped(Drop::SpoolFull)
    }

    /// Mirrored frames that came, written or not: what was dropped because it was malformed or from elsewhere is not mirrored.
    #[must_use]
    pub fn mirrored(&self) -> u64 {
        let unwritten = [Drop::Filtered, Drop::OutOfSchedule, Drop::SpoolFull].map(|reason| self.dropped(reason));
        self.frames_written.get() + unwritten.iter().sum::<u64>()
    }

    /// What the time server has said.
    #[must_use]
    pub fn clock(&self) -> clock::Check {
        clock::Check {
            expected_ns: self.clock_expected_ns.get(),
            answered_ns: self.clock_answered_ns.get(),
            ahead_us: self.clock_ahead_us.get(),
        }
    }

    fn dropped(&self, reason: Drop) -> u64 {
        self.drops.get(reason.index()).map_or(0, Count::get)
    }
}
