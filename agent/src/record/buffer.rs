//! Memory of a chunk, which begins where a page does: a file opened past the page cache takes it from there.
//! In: bytes, appended. Out: the bytes. Never: moves what it holds, as long as no more comes than it was made for.
//! Spec: open(2), `O_DIRECT`.

use std::ops::Deref;

/// What addresses, offsets and lengths of direct writes are multiples of: no disk has larger blocks that the kernel lets us write to.
pub const PAGE_BYTES: usize = 4096;

/// Memory for bytes that begin at a multiple of [`PAGE_BYTES`].
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    /// Bytes before the first page begins.
    skipped: usize,
}

impl Buffer {
    /// An empty one with room for `bytes`.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let mut memory: Vec<u8> = Vec::with_capacity(bytes + PAGE_BYTES);
        let skipped = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        memory.resize(skipped, 0);
        Self { memory, skipped }
    }

    /// As [`Self::with_capacity`], with real memory behind all of it.
    #[must_use]
    pub fn touched(bytes: usize) -> Self {
        let mut buffer = Self::with_capacity(bytes);
        buffer.memory.resize(buffer.skipped + bytes, 1);
        buffer.clear();
        buffer
    }

    /// Appends.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.memory.extend_from_slice(bytes);
    }

    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.memory.truncate(self.skipped);
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
        self.memory.get(self.skipped..).unwrap_or_default()
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
        for capacity in [1, PAGE_BYTES, 10 * PAGE_BYTES + 1] {
            for mut buffer in [Buffer::with_capacity(capacity), Buffer::touched(capacity)] {
                for round in 0..3 {
                    assert!(buffer.is_empty() && !buffer.is_whole_pages(), "there is nothing to write");
                    buffer.extend_from_slice(&vec![round; capacity]);
                    assert_eq!(*buffer, *vec![round; capacity]);
                    assert_eq!(buffer.as_ptr().addr() % PAGE_BYTES, 0);
                    assert_eq!(buffer.is_whole_pages(), capacity % PAGE_BYTES == 0);
                    buffer.clear();
                }
            }
        }
    }
}
