//! Windows, aligned to the clock in UTC: arithmetic on nanoseconds since 1970.
//! In: a stamp. Out: the window it belongs to; the length of windows now, which an order may change. Never: a time zone, a leap second (POSIX time has none).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How long windows are: told by whoever knows that the instance is to leave, read by the recorder.
#[derive(Clone, Debug)]
pub struct Rotation(Arc<AtomicU64>);

impl Rotation {
    /// Windows of so many seconds.
    #[must_use]
    pub fn new(seconds: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seconds)))
    }

    /// Changes their length: the open window ends where one of the new length would, if that is earlier, and the next follow from there.
    pub fn set(&self, seconds: u64) {
        self.0.store(seconds, Relaxed);
    }

    /// Their length, seconds.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A window: `[start_ns, end_ns)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Window {
    /// Its first nanosecond since 1970.
    pub start_ns: u64,
    /// Its length in nanoseconds, never 0.
    pub length_ns: u64,
}

impl Window {
    /// The window of `length_ns` (taken as at least 1) that `time_ns` belongs to.
    #[must_use]
    pub const fn of(time_ns: u64, length_ns: u64) -> Self {
        let length_ns = if length_ns == 0 { 1 } else { length_ns };
        Self { start_ns: time_ns - time_ns % length_ns, length_ns }
    }

    /// Whether a stamp belongs to it.
    #[must_use]
    pub const fn contains(&self, time_ns: u64) -> bool {
        self.start_ns <= time_ns && time_ns < self.end_ns()
    }

    /// The part of it that does not begin before `start_ns`, if `start_ns` lies in it; else all of it.
    #[must_use]
    pub const fn after(self, start_ns: u64) -> Self {
        if !self.contains(start_ns) {
            return self;
        }
        Self { start_ns, length_ns: self.end_ns().saturating_sub(start_ns) }
    }

    /// The part of it that ends at `end_ns` at the latest, if that lies in it; else all of it.
    #[must_use]
    pub const fn until(self, end_ns: u64) -> Self {
        if end_ns <= self.start_ns || end_ns >= self.end_ns() {
            return self;
        }
        Self { length_ns: end_ns - self.start_ns, ..self }
    }

    /// The first nanosecond after it.
    #[must_use]
    pub const fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.length_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn windows_of_900_s_begin_at_the_quarters_of_the_hour() {
        // 2026-11-22T00:29:59.999999999Z
        let window = Window::of(1_795_307_399 * SECOND + 999_999_999, 900 * SECOND);
        assert_eq!(window.start_ns, 1_795_306_500 * SECOND);
        assert_eq!(Window::of(window.end_ns(), 900 * SECOND).start_ns, 1_795_307_400 * SECOND);
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_its_window(time in any::<u64>(), length in 0..=86_400 * SECOND) {
            let window = Window::of(time, length);
            prop_assert!(window.start_ns <= time && (time < window.end_ns() || window.end_ns() == u64::MAX));
        }
    }
}
