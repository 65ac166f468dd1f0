//! Up to when everything that the kernel took has been given.
//! In: the header of the block that the kernel is filling, the clock. Out: a time that no frame to come contradicts.
//! Never: takes a wait for a proof that a block was closed. What remains is a wait for frames that have no place in a block yet.
//! Spec: linux `net/packet/af_packet.c`: `prb_open_block` sets `num_pkts` to 0 and `ts_first_pkt` to the time of the opening (so that says
//! nothing of frames), `prb_fill_curr_block` counts a frame up before its bytes and stamp are there; `tpacket_rcv`.

use std::time::Duration;

use super::map::Map;

/// A frame is stamped when the kernel receives it (net/core/dev.c, `net_timestamp_check`), and gets its place in the ring in the same turn of
/// the processor, or, where another one handles it (RPS, veth), in that one's next turn: microseconds. The rest of this time is for a
/// host that takes the processor away in between. A frame that takes longer stands behind later ones of other threads; none is lost.
const IN_FLIGHT: Duration = Duration::from_millis(20);

/// What was seen of a ring.
#[derive(Default, Debug)]
pub(super) struct Quiet {
    /// When last all frames that had a place in the ring had been given, nanoseconds since 1970.
    empty_ns: u64,
}

impl Quiet {
    /// Looks at `next`, the block that the kernel closes next: all before it have been given. `since_ns`: a time before this call.
    pub fn look(&mut self, map: &Map, next: usize, since_ns: u64) {
        // A clock that was set back takes its claims along.
        if map.is_open_and_empty(next) || since_ns < self.empty_ns {
            self.empty_ns = since_ns;
        }
    }

    /// No frame stamped before this comes any more.
    pub fn complete_until_ns(&self) -> u64 {
        self.empty_ns.saturating_sub(IN_FLIGHT.as_nanos() as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::block::{Block, FIRST_AT, FRAMES_AT, MAC_AT, NANOSECONDS_AT, SECONDS_AT, SNAPLEN_AT, STATUS_AT};
    use super::*;
    use crate::capture::merge::{HOLD_NS, Merge};
    use crate::capture::{Batch, Item, What};
    use crate::wire::Ignored;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;
    const BLOCK: u64 = 4096;
    /// Where the first frame's header stands.
    const FIRST: usize = 48;

    /// The kernel's side of a ring: a file in its place.
    struct Kernel(File);

    impl Kernel {
        fn ring(blocks: usize) -> (Self, Arc<Map>) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(BLOCK * blocks as u64).unwrap();
            let map = Map::new(file.as_fd(), BLOCK as usize, blocks).unwrap();
            (Self(file), Arc::new(map))
        }

        fn put(&self, block: usize, at: usize, value: u32) {
            self.0.write_all_at(&value.to_ne_bytes(), block as u64 * BLOCK + at as u64).unwrap();
        }

        /// A frame gets its place; its stamp follows.
        fn fill(&self, block: usize, stamp_ns: u64) {
            self.put(block, FRAMES_AT, 1);
            self.put(block, FIRST_AT, FIRST as u32);
            let fields =
                [(SECONDS_AT, (stamp_ns / SECOND) as u32), (NANOSECONDS_AT, (stamp_ns % SECOND) as u32), (SNAPLEN_AT, 1), (MAC_AT, 82)];
            fields.iter().for_each(|&(at, value)| self.put(block, FIRST + at, value));
        }

        fn close(&self, block: usize) {
            self.put(block, STATUS_AT, libc::TP_STATUS_USER);
        }

        fn open(&self, block: usize) {
            self.put(block, FRAMES_AT, 0);
        }
    }

    fn batch(thread: usize, stamps: &[u64]) -> Batch {
        let item = |&time_ns| Item { time_ns, at: 0, len: 0, orig_len: 0, what: What::Ignored(Ignored::NotIp) };
        Batch { thread, items: stamps.iter().map(item).collect(), ..Batch::default() }
    }

    fn stamps(block: &Block) -> Vec<u64> {
        let mut stamps = Vec::new();
        block.for_each_frame(|frame| stamps.push(frame.time_ns));
        stamps
    }

    #[test]
    fn frames_of_two_threads_stay_in_order_though_the_kernel_closes_a_block_late() {
        let (kernel, map) = Kernel::ring(4);
        let mut quiet = Quiet::default();
        let mut merge = Merge::new(2, 100);
        let mut given = Vec::new();
        let begin = 1_700_000_000 * SECOND;
        // The other thread has a frame each 10 ms. In this one's block lies one from 45 ms on, and no timer closes it until the merge is about
        // to wait no longer for it.
        let late = HOLD_NS / MS + 30;
        quiet.look(&map, 0, begin + 40 * MS);
        kernel.fill(0, begin + 45 * MS);
        for ms in (10..late).step_by(10) {
            merge.push(batch(0, &[begin + ms * MS]), ms * MS).unwrap();
            if ms > 40 {
                quiet.look(&map, 0, begin + ms * MS);
            }
            merge.complete(1, quiet.complete_until_ns());
            merge.drain(ms * MS, false, |_, item| given.push(item.time_ns - begin), drop);
        }
        assert_eq!(given, [10 * MS, 20 * MS], "what lies in an open block may be older than the rest");
        kernel.close(0);
        let block = Block::take(&map, 0).unwrap();
        merge.push(batch(1, &stamps(&block)), late * MS).unwrap();
        merge.end(1);
        merge.drain(late * MS, false, |_, item| given.push(item.time_ns - begin), drop);
        assert_eq!(given.len() as u64, late.div_ceil(10));
        assert!(given.is_sorted() && given.contains(&(45 * MS)), "{given:?}");
    }

    #[test]
    fn a_block_that_is_not_opened_anew_proves_nothing_and_an_empty_one_does() {
        let (kernel, map) = Kernel::ring(2);
        let mut quiet = Quiet::default();
        let mut until = |now| {
            quiet.look(&map, 0, now);
            quiet.complete_until_ns()
        };
        assert_eq!(until(SECOND), SECOND - 20 * MS, "opened and empty");
        kernel.fill(0, SECOND);
        assert_eq!(until(2 * SECOND), SECOND - 20 * MS);
        kernel.close(0);
        assert_eq!(until(3 * SECOND), SECOND - 20 * MS, "closed and not taken");
        let block = Block::take(&map, 0).unwrap();
        assert_eq!(until(4 * SECOND), SECOND - 20 * MS, "in our hands");
        drop(block);
        assert_eq!(until(5 * SECOND), SECOND - 20 * MS, "given back, and the kernel has not opened it");
        assert_eq!(until(SECOND / 2), SECOND / 2 - 20 * MS, "a clock that was set back");
        kernel.open(0);
        assert_eq!(until(6 * SECOND), 6 * SECOND - 20 * MS);
    }
}
