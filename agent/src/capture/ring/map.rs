//! In: a packet socket's ring. Out: its blocks as bytes, each to one owner at a time.
//! Never: outlives the mapping, lends a block that the kernel or another owner has.
//! Spec: `Documentation/networking/packet_mmap.rst`: a block belongs to whom its status word says; linux/if_packet.h
//! `struct tpacket_hdr_v1` (`seq_num`), `tp_sizeof_priv`: bytes behind a block's header that the kernel leaves to us.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::block::{FRAMES_AT, SEQUENCE_AT, STATUS_AT};

/// Bytes of each block that are ours and outlive the process as the ring does. The kernel sets the ring to zero when it makes it.
pub(super) const PRIVATE_BYTES: u32 = 24;

/// Where they stand: behind `struct tpacket_block_desc`, a multiple of 8.
const PRIVATE_AT: usize = 48;

/// In each block: the sequence number under which it was begun.
const BEGUN_AT: usize = PRIVATE_AT;
/// In the first block: frames of blocks that were begun, since the ring was made.
const FRAMES_BEGUN_AT: usize = PRIVATE_AT + 8;
/// In the first block: frames that the kernel's counters, read and so reset, said to be in blocks, since the ring was made.
const FRAMES_COUNTED_AT: usize = PRIVATE_AT + 16;

/// A mapped ring. It keeps the kernel's ring alive, also when the socket has been closed.
#[derive(Debug)]
pub(super) struct Map {
    base: NonNull<u8>,
    block_bytes: usize,
    /// Whether each block is in our hands. The status word alone does not tell: it says "user" until a block is given back.
    lent: Vec<AtomicBool>,
}

// SAFETY: the mapping is plain memory that any thread may reach; who may touch which block is ruled by `lent` and the status words,
// both atomic.
unsafe impl Send for Map {}
// SAFETY: as above; through a shared `Map` a block's bytes are read only by the one who holds it.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the ring of `socket`, which has `blocks` blocks of `block_bytes` (a multiple of the page size).
    pub fn new(socket: BorrowedFd<'_>, block_bytes: usize, blocks: usize) -> io::Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel checks that the length is the ring's.
        let base = unsafe { libc::mmap(ptr::null_mut(), block_bytes * blocks, access, kind, socket.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, block_bytes, lent: (0..blocks).map(|_| AtomicBool::new(false)).collect() })
    }

    pub fn blocks(&self) -> usize {
        self.lent.len()
    }

    pub fn bytes(&self) -> usize {
        self.block_bytes * self.blocks()
    }

    /// Whether a block is closed by the kernel and in nobody's hands.
    pub fn is_closed(&self, block: usize) -> bool {
        self.lent.get(block).is_some_and(|lent| !lent.load(Ordering::Acquire))
            && self.status(block).is_some_and(|status| status.load(Ordering::Acquire) & libc::TP_STATUS_USER != 0)
    }

    /// Whether the kernel has opened a block, or is about to, and no frame has a place in it. A block that was given back and is not yet opened
    /// anew does not count as empty: it says what it held before.
    pub fn is_open_and_empty(&self, block: usize) -> bool {
        let is = |at, value| self.half_word(block, at).is_some_and(|word| word.load(Ordering::Acquire) == value);
        is(FRAMES_AT, 0) && is(STATUS_AT, libc::TP_STATUS_KERNEL)
    }

    /// The kernel's number of the block's present filling; they only grow.
    pub fn sequence(&self, block: usize) -> u64 {
        self.word(block, SEQUENCE_AT).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Whether the frames of the block's present filling are in a recorder's hands, or were in those of an agent that has died.
    pub fn is_begun(&self, block: usize) -> bool {
        self.word(block, BEGUN_AT).is_some_and(|word| word.load(Ordering::Acquire) == self.sequence(block)) && self.sequence(block) != 0
    }

    /// Notes that the `frames` of a lent block are in a recorder's hands: no later agent gives them again.
    pub fn begin(&self, block: usize, frames: u32) {
        if self.is_begun(block) {
            return;
        }
        if let (Some(begun), Some(word)) = (self.word(0, FRAMES_BEGUN_AT), self.word(block, BEGUN_AT)) {
            begun.fetch_add(frames.into(), Ordering::AcqRel);
            word.store(self.sequence(block), Ordering::Release);
        }
    }

    /// Frames of all blocks that were begun since the ring was made.
    pub fn frames_begun(&self) -> u64 {
        self.word(0, FRAMES_BEGUN_AT).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Adds to the frames that the kernel said to have put into blocks; gives all since the ring was made.
    pub fn count(&self, frames: u64) -> u64 {
        self.word(0, FRAMES_COUNTED_AT).map_or(0, |word| word.fetch_add(frames, Ordering::AcqRel) + frames)
    }

    /// The block that is to be read next: the oldest closed one, else the one that the kernel is filling. For who has just mapped a
    /// ring, before anything is lent.
    pub fn oldest(&self) -> usize {
        let mut last = self.look_for_oldest();
        // While we look the kernel goes on: a block seen as open may be closed by the time a later one is seen. Closed ones stay
        // closed, so a second look that says the same is right.
        for _ in 0..self.blocks() {
            let again = self.look_for_oldest();
            if again == last {
                break;
            }
            last = again;
        }
        last
    }

    fn look_for_oldest(&self) -> usize {
        let blocks = || 0..self.blocks();
        if let Some(oldest) = blocks().filter(|&block| self.is_closed(block)).min_by_key(|&block| self.sequence(block)) {
            return oldest;
        }
        let newest = blocks().max_by_key(|&block| self.sequence(block)).unwrap_or_default();
        // Begun, so closed once, and given back: the kernel fills the next one as soon as a frame comes.
        if self.is_begun(newest) { (newest + 1) % self.blocks() } else { newest }
    }

    /// Takes a closed block into the caller's hands; false when it is not to be had.
    pub fn lend(&self, block: usize) -> bool {
        self.is_closed(block) && self.lent.get(block).is_some_and(|lent| !lent.swap(true, Ordering::AcqRel))
    }

    /// Gives a block to the kernel. To be called once by whom [`Map::lend`] gave it, when all reading is done.
    pub fn give_back(&self, block: usize) {
        if let (Some(status), Some(lent)) = (self.status(block), self.lent.get(block)) {
            // In this order: a block that is not lent is never ours by its status, unless the kernel closed it anew.
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            lent.store(false, Ordering::Release);
        }
    }

    /// The bytes of a lent block; empty when it is not lent. To be called by whom [`Map::lend`] gave it, before giving it back.
    pub fn slice(&self, block: usize) -> &[u8] {
        if !self.lent.get(block).is_some_and(|lent| lent.load(Ordering::Acquire)) {
            return &[];
        }
        // SAFETY: `block` is one of the mapped blocks, so the range is inside the mapping, which lives as long as `self`. The block
        // is lent: the kernel does not write to it before it is given back, and only its holder, who reads here, gives it back.
        unsafe { slice::from_raw_parts(self.base.as_ptr().add(block * self.block_bytes), self.block_bytes) }
    }

    fn status(&self, block: usize) -> Option<&AtomicU32> {
        self.half_word(block, STATUS_AT)
    }

    /// The word of 32 bits at `at`: STATUS_AT or FRAMES_AT.
    fn half_word(&self, block: usize, at: usize) -> Option<&AtomicU32> {
        if block >= self.blocks() {
            return None;
        }
        // SAFETY: inside the mapping, aligned (blocks are page-aligned, both offsets are multiples of 4), and both the kernel and we
        // touch these words as a whole; the second is written by the kernel alone.
        Some(unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(block * self.block_bytes + at).cast()) })
    }

    /// The word of 64 bits at `at`, one of the offsets above.
    fn word(&self, block: usize, at: usize) -> Option<&AtomicU64> {
        if block >= self.blocks() {
            return None;
        }
        // SAFETY: inside the mapping, aligned (blocks are page-aligned, the offsets are multiples of 8); the kernel writes the sequence
        // number as a whole, and the private bytes are written by us alone, as whole words.
        Some(unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(block * self.block_bytes + at).cast()) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the very mapping that `new` made; nobody can hold a reference into it, they borrow from `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes()) };
    }
}
