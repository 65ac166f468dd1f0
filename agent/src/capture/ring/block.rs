//! In: a block that the kernel closed. Out: its frames, in the order in which they were put there.
//! Never: reads outside the block whatever the kernel's offsets say, goes back, loops for ever.
//! Spec: linux/if_packet.h: `struct tpacket_block_desc`, `struct tpacket3_hdr`.

use std::sync::Arc;

use super::fetch;
use super::map::Map;
use crate::capture::Frame;
use crate::host::clock::SECOND_NS;

/// Where the status word stands in a block: behind `version` and `offset_to_priv`.
pub(super) const STATUS_AT: usize = 8;
/// `num_pkts`: set to 0 when the kernel opens the block, and counted up when a frame gets its place in it.
pub(super) const FRAMES_AT: usize = 12;
pub(super) const FIRST_AT: usize = 16;
/// `seq_num`: the how manieth block of the ring this is, behind `blk_len`.
pub(super) const SEQUENCE_AT: usize = 24;

/// `struct tpacket3_hdr` up to `tp_mac`.
const NEXT_AT: usize = 0;
pub(super) const SECONDS_AT: usize = 4;
pub(super) const NANOSECONDS_AT: usize = 8;
pub(super) const SNAPLEN_AT: usize = 12;
const LENGTH_AT: usize = 16;
pub(super) const MAC_AT: usize = 24;
const HEADER_BYTES: usize = 48;

/// A block of the ring in our hands; dropping it gives it back to the kernel.
#[derive(Debug)]
pub struct Block {
    map: Arc<Map>,
    number: usize,
}

impl Block {
    /// The block of that number, if the kernel has closed it and nobody holds it.
    pub(super) fn take(map: &Arc<Map>, number: usize) -> Option<Self> {
        map.lend(number).then(|| Self { map: Arc::clone(map), number })
    }

    /// The whole block.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.map.slice(self.number)
    }

    /// Whether it holds no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames() == 0
    }

    /// How many frames the kernel says that it holds.
    #[must_use]
    pub fn frames(&self) -> u32 {
        number(self.as_slice(), FRAMES_AT).unwrap_or_default()
    }

    /// Notes that its frames are on their way into a file: should this process die, the next one does not give them again.
    pub fn begin(&self) {
        self.map.begin(self.number, self.frames());
    }

    /// Calls `each` for every frame, in the order of arrival.
    pub fn for_each_frame(&self, each: impl FnMut(Frame<'_>)) {
        walk(self.as_slice(), each);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.begin();
        self.map.give_back(self.number);
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// How much of a block is asked for at once.
const FETCH_BYTES: usize = 1024;

/// How far before the walk comes there. Who only follows the frames waits for the first lines of each, because frames of different length
/// are no stride that the processor could foresee.
const AHEAD_BYTES: usize = 4096;

/// Walks a block's frames; ends early where an offset leads out of the block or not forward.
fn walk(block: &[u8], mut each: impl FnMut(Frame<'_>)) {
    let (Some(frames), Some(first)) = (number(block, FRAMES_AT), number(block, FIRST_AT)) else { return };
    let mut at = first as usize;
    let mut fetched = 0;
    for left in (0..frames).rev() {
        if at + AHEAD_BYTES > fetched {
            let from = fetched.max(at);
            fetched = at + AHEAD_BYTES + FETCH_BYTES;
            fetch::ahead(block.get(from..fetched.min(block.len())).unwrap_or_default());
        }
        let Some(next) = frame_at(block, at, &mut each) else { break };
        if left == 0 {
            return;
        }
        // Every step goes forward by a header at least, so the walk ends with the block.
        if next < HEADER_BYTES {
            break;
        }
        at += next;
    }
    if frames > 0 {
        tracing::error!(frames, "the kernel's packet ring holds a block that leads nowhere; the rest of its frames is lost");
    }
}

/// Hands on the frame whose header stands at `at`; gives the distance to the next one.
fn frame_at(block: &[u8], at: usize, each: &mut impl FnMut(Frame<'_>)) -> Option<usize> {
    let header = block.get(at..)?.get(..HEADER_BYTES)?;
    let mac = u16::from_ne_bytes(*header.get(MAC_AT..)?.first_chunk()?);
    let begin = at.checked_add(usize::from(mac))?;
    let length = number(header, SNAPLEN_AT)?;
    let bytes = block.get(begin..begin.checked_add(length as usize)?)?;
    let time_ns = u64::from(number(header, SECONDS_AT)?) * SECOND_NS + u64::from(number(header, NANOSECONDS_AT)?);
    each(Frame { time_ns, bytes, at: u32::try_from(begin).ok()?, orig_len: number(header, LENGTH_AT)?.max(length) });
    Some(number(header, NEXT_AT)? as usize)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(block: &mut [u8], at: usize, value: u32) {
        block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// A block as the kernel lays it out, with a frame for each payload.
    fn block(payloads: &[&[u8]]) -> Vec<u8> {
        let mut block = vec![0; 4096];
        put(&mut block, FRAMES_AT, payloads.len() as u32);
        put(&mut block, FIRST_AT, HEADER_BYTES as u32);
        let mut at = HEADER_BYTES;
        for (n, payload) in payloads.iter().enumerate() {
            let mac = 82;
            let next = (mac + payload.len()).next_multiple_of(16);
            put(&mut block, at + NEXT_AT, if n + 1 == payloads.len() { 0 } else { next as u32 });
            put(&mut block, at + SECONDS_AT, 7 + n as u32);
            put(&mut block, at + NANOSECONDS_AT, 9);
            put(&mut block, at + SNAPLEN_AT, payload.len() as u32);
            put(&mut block, at + LENGTH_AT, 1000);
            block[at + MAC_AT..at + MAC_AT + 2].copy_from_slice(&(mac as u16).to_ne_bytes());
            block[at + mac..at + mac + payload.len()].copy_from_slice(payload);
            at += next;
        }
        block
    }

    fn frames(block: &[u8]) -> Vec<(u64, Vec<u8>, u32)> {
        let mut frames = Vec::new();
        walk(block, |frame| {
            assert_eq!(frame.bytes, &block[frame.at as usize..][..frame.bytes.len()]);
            frames.push((frame.time_ns, frame.bytes.to_vec(), frame.orig_len));
        });
        frames
    }

    #[test]
    fn every_frame_of_a_block_comes_with_its_stamp_bytes_and_length_on_the_wire() {
        let expected = [(7_000_000_009, b"first".to_vec(), 1000), (8_000_000_009, b"second one".to_vec(), 1000)];
        assert_eq!(frames(&block(&[b"first", b"second one"])), expected);
        assert!(frames(&block(&[])).is_empty());
    }

    #[test]
    fn a_next_offset_that_does_not_lead_forward_ends_the_walk() {
        for next in [0, 1, 47, 4096, u32::MAX] {
            let mut bad = block(&[b"first", b"second"]);
            put(&mut bad, HEADER_BYTES + NEXT_AT, next);
            put(&mut bad, FRAMES_AT, u32::MAX);
            assert_eq!(frames(&bad).len(), 1, "next offset {next}");
        }
    }

    #[test]
    fn a_frame_that_ends_outside_the_block_is_not_given() {
        let mut bad = block(&[b"first", b"second"]);
        put(&mut bad, HEADER_BYTES + SNAPLEN_AT, 4096);
        assert!(frames(&bad).is_empty());
    }

    proptest! {
        #[test]
        fn no_block_whatever_panics_or_loops(block in prop::collection::vec(any::<u8>(), 0..600), small in any::<bool>()) {
            let mut block = block;
            if small && block.len() > 20 {
                put(&mut block, FIRST_AT, 20);
            }
            let _ = frames(&block);
        }
    }
}
