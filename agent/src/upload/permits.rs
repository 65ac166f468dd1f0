//! How many parts may be on their way at the same time, over all segments: fewer when the store asks for less, slowly more again.
//! In: what came of parts and of calls, and when they began. Out: permits. Never: fewer than one, more than [`PARTS_MAX`].
//! Spec: additive increase, multiplicative decrease (Chiu and Jain 1989); Amazon S3 User Guide "Best practices design patterns".

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most parts on their way.
pub const PARTS_MAX: u32 = 8;

/// How many there may be before anything is known of the store.
const PARTS_FIRST: u32 = 4;

/// After this many parts in a row one more is tried.
const SUCCESSES: u32 = 20;

/// The permits that there are.
#[derive(Debug)]
pub struct Permits {
    free: Arc<Semaphore>,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    limit: u32,
    /// Permits that are still out and are to be taken back.
    owed: u32,
    successes: u32,
    /// When it was last lowered: what began before then answers the old level.
    lowered: Option<Instant>,
}

/// Leave to have one part on its way.
#[derive(Debug)]
pub struct Permit<'a> {
    permits: &'a Permits,
    held: Option<OwnedSemaphorePermit>,
}

impl Default for Permits {
    fn default() -> Self {
        let level = Level { limit: PARTS_FIRST, owed: 0, successes: 0, lowered: None };
        Self { free: Arc::new(Semaphore::new(PARTS_FIRST as usize)), level: Mutex::new(level) }
    }
}

impl Permits {
    /// Waits for one, first come, first served. `None` never happens while the permits are there.
    pub async fn take(&self) -> Option<Permit<'_>> {
        let held = self.free.clone().acquire_owned().await.ok()?;
        Some(Permit { permits: self, held: Some(held) })
    }

    /// A part arrived.
    pub fn arrived(&self) {
        let mut level = self.level();
        level.successes += 1;
        if level.successes < SUCCESSES || level.limit == PARTS_MAX {
            return;
        }
        level.successes = 0;
        level.limit += 1;
        if level.owed > 0 {
            level.owed -= 1;
        } else {
            self.free.add_permits(1);
        }
    }

    /// The store asked for less, answering what began at `begun`: once for all that were on their way together.
    pub fn throttled(&self, begun: Instant, now: Instant) {
        let mut level = self.level();
        level.successes = 0;
        if level.lowered.is_some_and(|lowered| begun <= lowered) {
            return;
        }
        level.lowered = Some(now);
        let less = level.limit / 2;
        level.limit -= less;
        level.owed += less - self.free.forget_permits(less as usize) as u32;
    }

    /// How many parts may be on their way now.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.level().limit
    }

    fn level(&self) -> std::sync::MutexGuard<'_, Level> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut level = self.permits.level();
        if level.owed > 0
            && let Some(held) = self.held.take()
        {
            level.owed -= 1;
            held.forget();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[tokio::test]
    async fn parts_on_their_way_are_halved_once_for_all_that_were_throttled_together() {
        let permits = Permits::default();
        let begun = Instant::now();
        let out = [permits.take().await.unwrap(), permits.take().await.unwrap(), permits.take().await.unwrap()];
        permits.throttled(begun, begun + Duration::from_secs(1));
        permits.throttled(begun, begun + Duration::from_secs(2));
        assert_eq!((permits.limit(), permits.free.available_permits()), (2, 0), "three are out where two may be");
        drop(out);
        assert_eq!(permits.free.available_permits(), 2);
        permits.throttled(begun + Duration::from_secs(3), begun + Duration::from_secs(4));
        permits.throttled(begun + Duration::from_secs(5), begun + Duration::from_secs(6));
        assert_eq!((permits.limit(), permits.free.available_permits()), (1, 1), "one is always left");
    }

    #[test]
    fn twenty_parts_in_a_row_allow_one_more_up_to_eight() {
        let permits = Permits::default();
        (0..19).for_each(|_| permits.arrived());
        assert_eq!(permits.limit(), 4);
        permits.arrived();
        assert_eq!((permits.limit(), permits.free.available_permits()), (5, 5));
        (0..200).for_each(|_| permits.arrived());
        assert_eq!((permits.limit(), permits.free.available_permits()), (8, 8));
    }

    proptest! {
        #[test]
        fn whatever_happens_the_permits_out_and_free_come_back_to_the_limit(steps in prop::collection::vec(0u8..4, 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let permits = Permits::default();
            let (mut out, start) = (Vec::new(), Instant::now());
            for (n, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(1 + n as u64);
                match step {
                    0 if permits.free.available_permits() > 0 => out.push(runtime.block_on(permits.take()).unwrap()),
                    1 => drop(out.pop()),
                    2 => permits.arrived(),
                    _ => permits.throttled(now, now),
                }
                prop_assert!((1..=PARTS_MAX).contains(&permits.limit()));
            }
            out.clear();
            prop_assert_eq!(permits.free.available_permits() as u32, permits.limit());
        }
    }
}
