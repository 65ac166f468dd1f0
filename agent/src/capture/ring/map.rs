//! In: a packet socket's ring. Out: its blocks as bytes, each to one owner at a time.
//! Never: outlives the mapping, lends a block that the kernel or another owner has.
//! Spec: `Documentation/networking/packet_mmap.rst`: a block belongs to whom its status word says.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::block::STATUS_AT;

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
        if block >= self.blocks() {
            return None;
        }
        // SAFETY: inside the mapping, aligned (blocks are page-aligned, STATUS_AT is a multiple of 4), and both the kernel and we
        // touch this word as a whole.
        Some(unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(block * self.block_bytes + STATUS_AT).cast()) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the very mapping that `new` made; nobody can hold a reference into it, they borrow from `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes()) };
    }
}
