//! In: the threads' batches, each in order of time. Out: items of all of them in order of time.
//! Never: waits for another thread longer than [`HOLD_NS`], holds more batches of one thread than it is told to, loses an item.

use std::collections::VecDeque;

use super::{Batch, Item};
use crate::host::clock::SECOND_NS;

/// How long a batch may wait for the other threads, by the monotonic clock. A thread that is well tells what it is complete up to, or
/// hands its block in, within half of it; one that hangs, whose block the kernel closes later, or a stamp of a clock that has since been set back, must not hold the others up.
pub const HOLD_NS: u64 = SECOND_NS / 4;

/// One thread's side of the merge.
#[derive(Default, Debug)]
struct Lane {
    /// Each with the monotonic time at which it was handed in.
    batches: VecDeque<(u64, Batch)>,
    /// Items of the first batch that have been given.
    taken: usize,
    /// Every item stamped before this has been handed in.
    complete_until_ns: u64,
    ended: bool,
}

impl Lane {
    fn head_ns(&self) -> Option<u64> {
        self.batches.front().and_then(|(_, batch)| batch.items.get(self.taken)).map(|item| item.time_ns)
    }

    fn is_overdue(&self, now_ns: u64) -> bool {
        self.batches.front().is_some_and(|&(since_ns, _)| now_ns.saturating_sub(since_ns) >= HOLD_NS)
    }

    /// Nothing of this lane can come before this time any more.
    fn bound_ns(&self) -> u64 {
        match self.head_ns() {
            Some(head) => head,
            None if self.ended => u64::MAX,
            None => self.complete_until_ns,
        }
    }
}

/// The merge of several threads' batches.
#[derive(Debug)]
pub struct Merge {
    lanes: Vec<Lane>,
    lane_batches_max: usize,
}

impl Merge {
    /// A merge over `threads` lanes. A lane that holds more than `lane_batches_max` batches is no longer held up by the others.
    #[must_use]
    pub fn new(threads: usize, lane_batches_max: usize) -> Self {
        Self { lanes: (0..threads).map(|_| Lane::default()).collect(), lane_batches_max }
    }

    /// Takes a batch in, at `now_ns` of the monotonic clock.
    ///
    /// # Errors
    /// Gives the batch back when it holds nothing, or its thread is not one of ours.
    pub fn push(&mut self, batch: Batch, now_ns: u64) -> Result<(), Batch> {
        match self.lanes.get_mut(batch.thread) {
            Some(lane) if !batch.items.is_empty() => {
                lane.batches.push_back((now_ns, batch));
                Ok(())
            }
            _ => Err(batch),
        }
    }

    /// Notes that everything of a thread stamped before `ns` has been handed in.
    pub fn complete(&mut self, thread: usize, ns: u64) {
        if let Some(lane) = self.lanes.get_mut(thread) {
            lane.complete_until_ns = ns;
        }
    }

    /// Notes that nothing more comes from a thread.
    pub fn end(&mut self, thread: usize) {
        if let Some(lane) = self.lanes.get_mut(thread) {
            lane.ended = true;
        }
    }

    /// Whether every thread has ended and everything has been given.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.lanes.iter().all(|lane| lane.ended && lane.batches.is_empty())
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.batches.is_empty())
    }

    /// The time before which nothing can come any more.
    #[must_use]
    pub fn bound_ns(&self) -> u64 {
        self.lanes.iter().map(Lane::bound_ns).min().unwrap_or(u64::MAX)
    }

    /// Gives items in order of time as far as that is certain, or has been waited for long enough at `now_ns` of the monotonic
    /// clock, or all of them when `wait_no_longer`. `spent` gets each batch back when its last item has been given.
    pub fn drain(&mut self, now_ns: u64, wait_no_longer: bool, mut item: impl FnMut(&Batch, &Item), mut spent: impl FnMut(Batch)) {
        loop {
            let Some((first, _)) =
                self.lanes.iter().enumerate().filter_map(|(n, lane)| Some((n, lane.head_ns()?))).min_by_key(|&(_, head)| head)
            else {
                return;
            };
            let held_enough = |lane: &Lane| lane.batches.len() > self.lane_batches_max || lane.is_overdue(now_ns);
            let held_enough = self.lanes.get(first).is_some_and(held_enough);
            let limit = self
                .lanes
                .iter()
                .enumerate()
                .filter(|&(n, _)| n != first)
                .map(|(_, lane)| match lane.head_ns() {
                    Some(head) => head,
                    None if wait_no_longer || held_enough => u64::MAX,
                    None => lane.bound_ns(),
                })
                .min()
                .unwrap_or(u64::MAX);
            let Some(lane) = self.lanes.get_mut(first) else { return };
            let Some((_, batch)) = lane.batches.front() else { return };
            let before = lane.taken;
            for next in batch.items.get(before..).unwrap_or_default() {
                if next.time_ns > limit {
                    break;
                }
                item(batch, next);
                lane.taken += 1;
            }
            if lane.taken == before {
                return;
            }
            if lane.taken >= batch.items.len() {
                // What follows in this lane is stamped no earlier than its last item.
                let last = batch.items.last().map_or(0, |item| item.time_ns);
                lane.complete_until_ns = lane.complete_until_ns.max(last);
                lane.taken = 0;
                if let Some((_, batch)) = lane.batches.pop_front() {
                    spent(batch);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::capture::What;
    use crate::wire::Ignored;
    use proptest::prelude::*;

    fn batch(thread: usize, times: &[u64]) -> Batch {
        let item = |&time_ns| Item { time_ns, at: 0, len: 0, orig_len: 0, what: What::Ignored(Ignored::NotIp) };
        Batch { thread, items: times.iter().map(item).collect(), ..Batch::default() }
    }

    fn drained(merge: &mut Merge, wait_no_longer: bool) -> Vec<u64> {
        let mut times = Vec::new();
        merge.drain(0, wait_no_longer, |_, item| times.push(item.time_ns), drop);
        times
    }

    #[test]
    fn a_silent_thread_holds_the_others_up_only_until_it_is_known_to_be_complete() {
        let mut merge = Merge::new(2, 8);
        merge.push(batch(0, &[10, 20, 30]), 0).unwrap();
        assert_eq!(drained(&mut merge, false), [] as [u64; 0]);
        merge.complete(1, 20);
        assert_eq!(drained(&mut merge, false), [10, 20]);
        merge.push(batch(1, &[25]), 0).unwrap();
        assert_eq!(drained(&mut merge, false), [25]);
        assert_eq!(drained(&mut merge, true), [30]);
        assert!(!merge.is_finished());
        merge.end(0);
        merge.end(1);
        assert!(merge.is_finished());
    }

    #[test]
    fn one_thread_alone_waits_for_nobody() {
        let mut merge = Merge::new(1, 8);
        merge.push(batch(0, &[1, 2]), 0).unwrap();
        assert_eq!(drained(&mut merge, false), [1, 2]);
    }

    #[test]
    fn a_lane_that_fills_up_goes_on_without_the_others() {
        let mut merge = Merge::new(2, 1);
        merge.push(batch(0, &[1]), 0).unwrap();
        assert!(drained(&mut merge, false).is_empty());
        merge.push(batch(0, &[2]), 0).unwrap();
        assert_eq!(drained(&mut merge, false), [1]);
    }

    #[test]
    fn no_batch_waits_longer_than_it_may_for_a_thread_that_hangs_or_for_a_stamp_to_come_true() {
        let mut merge = Merge::new(2, 8);
        merge.push(batch(0, &[10, 3_600_000]), 0).unwrap();
        merge.push(batch(0, &[20]), HOLD_NS / 2).unwrap();
        merge.push(batch(1, &[15]), HOLD_NS / 2).unwrap();
        let drained = |merge: &mut Merge, now_ns| {
            let mut times = Vec::new();
            merge.drain(now_ns, false, |_, item| times.push(item.time_ns), drop);
            times
        };
        assert_eq!(drained(&mut merge, HOLD_NS - 1), [10, 15]);
        assert_eq!(drained(&mut merge, HOLD_NS), [3_600_000]);
        assert_eq!(drained(&mut merge, HOLD_NS + HOLD_NS / 2), [20]);
    }

    proptest! {
        #[test]
        fn every_item_comes_out_once_and_in_order(mut lanes in prop::collection::vec(prop::collection::vec(0u64..1000, 0..40), 1..5), cut in 1usize..7) {
            let mut merge = Merge::new(lanes.len(), 1000);
            let mut out = Vec::new();
            let mut returned = 0;
            let mut pushed = 0;
            for (n, times) in lanes.iter_mut().enumerate() {
                times.sort_unstable();
                for part in times.chunks(cut) {
                    merge.push(batch(n, part), 0).unwrap();
                    pushed += 1;
                    merge.drain(0, false, |_, item| out.push(item.time_ns), |_| returned += 1);
                }
                merge.end(n);
            }
            merge.drain(0, false, |_, item| out.push(item.time_ns), |_| returned += 1);
            let mut all: Vec<u64> = lanes.concat();
            all.sort_unstable();
            prop_assert!(merge.is_finished());
            prop_assert_eq!(returned, pushed);
            prop_assert_eq!(out, all);
        }
    }
}
