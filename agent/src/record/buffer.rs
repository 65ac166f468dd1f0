//! Memory of a chunk, which begins where a page does, a huge one where there are such: a file opened past the page cache takes it from
//! there, and the kernel looks it up page by page.
//! In: bytes, appended. Out: the bytes. Never: moves what it holds, as long as no more comes than it was made for.
//! Spec: open(2), `O_DIRECT`; madvise(2), `MADV_HUGEPAGE`.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::Deref;

use memmap2::{Advice, MmapMut};

/// What addresses, offsets and lengths of direct writes are multiples of: no disk has larger blocks that the kernel lets us write to.
pub const PAGE_BYTES: usize = 4096;

/// A huge page (x86-64, and arm64 with pages of 4 KiB).
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory for bytes that begin at a multiple of [`PAGE_BYTES`]; of [`HUGE_PAGE_BYTES`] if it was made for as many or more.
#[derive(Debug)]
pub struct Buffer {
    memory: MmapMut,
    /// Where its bytes begin.
    begin: usize,
    /// Where they end.
    end: usize,
}

impl Buffer {
    /// An empty one with room for `bytes`. As with any other memory, there being none ends the process.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let page = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        // What is never touched costs addresses, and no memory.
        let room = bytes.next_multiple_of(page) + if page == HUGE_PAGE_BYTES { page } else { 0 };
        let Ok(memory) = MmapMut::map_anon(room.max(page)) else { handle_alloc_error(Layout::new::<[u8; HUGE_PAGE_BYTES]>()) };
        if page == HUGE_PAGE_BYTES {
            // A kernel that has none gives small ones.
            let _ = memory.advise(Advice::HugePage);
        }
        let begin = memory.as_ptr().align_offset(page).min(page);
        Self { memory, begin, end: begin }
    }

    /// As [`Self::with_capacity`], with real memory behind all of it.
    #[must_use]
    pub fn touched(bytes: usize) -> Self {
        let mut buffer = Self::with_capacity(bytes);
        buffer.memory.iter_mut().skip(buffer.begin).take(bytes).step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        buffer
    }

    /// Appends room for `bytes`, which the caller fills: what stands there is whatever stood there before. `None` when there is not as
    /// much.
    #[inline]
    pub fn extend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let begin = self.end;
        let place = self.memory.get_mut(begin..begin + bytes)?;
        self.end = begin + bytes;
        Some(place)
    }

    /// Appends.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        match self.extend(bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => self.grow(bytes),
        }
    }

    #[cold]
    fn grow(&mut self, bytes: &[u8]) {
        let mut larger = Self::with_capacity(2 * (self.len() + bytes.len()));
        larger.extend_from_slice(self);
        larger.extend_from_slice(bytes);
        *self = larger;
    }

    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.end = self.begin;
    }

    /// Whether its bytes are whole pages, and begin where one does.
    #[must_use]
    pub fn is_whole_pages(&self) -> bool {
        !self.is_empty() && self.len().is_multiple_of(PAGE_BYTES) && self.as_ptr().addr().is_multiple_of(PAGE_BYTES)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.memory.get(self.begin..self.end).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_where_a_page_does_also_when_the_memory_is_used_again() {
        for (capacity, page) in
            [(1, PAGE_BYTES), (10 * PAGE_BYTES + 1, PAGE_BYTES), (HUGE_PAGE_BYTES, HUGE_PAGE_BYTES), (HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES)]
        {
            for mut buffer in [Buffer::with_capacity(capacity), Buffer::touched(capacity)] {
                for round in 0..3 {
                    assert!(buffer.is_empty() && !buffer.is_whole_pages(), "there is nothing to write");
                    buffer.extend_from_slice(&vec![round; capacity]);
                    assert_eq!(*buffer, *vec![round; capacity]);
                    assert_eq!(buffer.as_ptr().addr() % page, 0);
                    assert_eq!(buffer.is_whole_pages(), capacity % PAGE_BYTES == 0);
                    buffer.clear();
                }
            }
        }
    }

    #[test]
    fn what_is_more_than_it_was_made_for_is_taken_too() {
        let mut buffer = Buffer::with_capacity(1);
        let all: Vec<u8> = (0..10 * PAGE_BYTES).map(|n| n as u8).collect();
        all.chunks(1000).for_each(|some| buffer.extend_from_slice(some));
        assert_eq!(*buffer, *all);
    }
}
