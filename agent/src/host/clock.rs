//! Time, as an argument: what depends on it is handed a [`Clock`], so that tests can move it.
//! Out: nanoseconds of the wall clock (UTC, since 1970) and of the monotonic clock, read together. Never: a time zone.

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::Serialize;

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Both clocks at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Now {
    /// Nanoseconds since 1970, UTC; may step.
    pub wall_ns: u64,
    /// Nanoseconds since some fixed moment; never steps. Stands still while the machine sleeps.
    pub monotonic_ns: u64,
}

/// A source of time.
pub trait Clock: Send {
    /// Both clocks now.
    fn now(&self) -> Now;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Default, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { wall_ns: nanoseconds(clock_gettime(ClockId::Realtime)), monotonic_ns: nanoseconds(clock_gettime(ClockId::Monotonic)) }
    }
}

/// What a time server has said of the wall clock. Times are monotonic nanoseconds; 0: never.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Check {
    /// Since when it is expected to answer.
    pub expected_ns: u64,
    /// When it last did.
    pub answered_ns: u64,
    /// By how much the wall clock was ahead of it then, microseconds; negative: behind.
    pub ahead_us: i64,
}

/// Whether the wall clock is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Synchrony {
    /// Nobody has said it lately.
    Unknown,
    /// It is.
    Synchronised,
    /// It is off by more than [`Check::AHEAD_MAX_US`].
    Unsynchronised,
}

impl Check {
    /// How far off a clock may be. Half a second more or less is what the recorder takes for a step: beyond that no slewing mends
    /// the clock. The other half second leaves room for the error of the measurement and for a leap second.
    pub const AHEAD_MAX_US: u64 = 1_000_000;

    /// An answer says nothing of now when it is older than this.
    pub const STALE_NS: u64 = 300 * SECOND_NS;

    /// What it means at `monotonic_ns`.
    #[must_use]
    pub fn synchrony(&self, monotonic_ns: u64) -> Synchrony {
        if self.answered_ns == 0 || monotonic_ns.saturating_sub(self.answered_ns) >= Self::STALE_NS {
            return Synchrony::Unknown;
        }
        if self.ahead_us.unsigned_abs() > Self::AHEAD_MAX_US { Synchrony::Unsynchronised } else { Synchrony::Synchronised }
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(SECOND_NS).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
