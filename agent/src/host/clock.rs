//! Time, as an argument: what depends on it is handed a [`Clock`], so that tests can move it.
//! Out: nanoseconds of the wall clock (UTC, since 1970) and of the monotonic clock, read together. Never: a time zone.

use rustix::time::{ClockId, Timespec, clock_gettime};

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

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(SECOND_NS).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
