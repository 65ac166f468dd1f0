//! In: how many capture threads there are. Out: a processor for each, and a thread that stays on its own.
//! Never: two of them on one processor, one where this process may not run.
//! Spec: sched_setaffinity(2).

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A processor for each of so many threads, in their order. None for a thread that is alone, which the kernel places better, and none
/// for any where there are fewer processors than threads.
#[must_use]
pub fn of_each(threads: usize) -> Vec<Option<usize>> {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let ours: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).map(Some).take(threads).collect();
    if threads > 1 && ours.len() == threads { ours } else { vec![None; threads] }
}

/// Keeps the calling thread on a processor. Where that is refused it runs anywhere, and it is logged.
pub fn stay_on(processor: usize) {
    let mut one = CpuSet::new();
    one.set(processor);
    if let Err(cause) = sched_setaffinity(None, &one) {
        tracing::warn!(processor, %cause, "a capture thread does not stay on its processor");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::thread;

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect()
    }

    #[test]
    fn each_thread_gets_a_processor_of_its_own_or_none_does() {
        let ours = allowed();
        assert_eq!(of_each(1), [None]);
        if ours.len() > 1 {
            assert_eq!(of_each(ours.len()), ours.iter().copied().map(Some).collect::<Vec<_>>());
        }
        assert_eq!(of_each(ours.len() + 1), vec![None; ours.len() + 1]);
    }

    #[test]
    fn a_thread_stays_where_it_is_told_and_goes_on_where_it_cannot() {
        let last = *allowed().last().unwrap();
        thread::spawn(move || {
            stay_on(last);
            assert_eq!(allowed(), [last]);
            stay_on(CpuSet::MAX_CPU - 1);
            assert_eq!(allowed(), [last]);
        })
        .join()
        .unwrap();
    }
}
