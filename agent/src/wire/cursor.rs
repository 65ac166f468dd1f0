//! The one way in which this module reads bytes.
//! In: a frame. Out: fixed-size pieces in order, each checked, and the place of what is left.
//! Never: reads past the frame or past what a header said is its payload; goes back.

/// A place in a frame, with the bytes from there to the end of the innermost payload known so far.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    offset: usize,
    missing: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `frame`.
    #[inline]
    #[must_use]
    pub const fn new(frame: &'a [u8]) -> Self {
        Self { rest: frame, offset: 0, missing: 0 }
    }

    /// Behind the head of a frame, which was read otherwise; `rest` follows it.
    #[inline]
    #[must_use]
    pub const fn behind(head: &[u8], rest: &'a [u8]) -> Self {
        Self { rest, offset: head.len(), missing: 0 }
    }

    /// The next `N` bytes; `None`, and nothing consumed, when there are fewer.
    #[inline]
    pub fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (piece, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        self.offset += N;
        Some(piece)
    }

    /// The next `len` bytes as a cursor of their own; `None`, and nothing consumed, when there are fewer.
    #[inline]
    pub fn split(&mut self, len: usize) -> Option<Self> {
        let (piece, rest) = self.rest.split_at_checked(len)?;
        let piece = Self { rest: piece, offset: self.offset, missing: 0 };
        self.rest = rest;
        self.offset += len;
        Some(piece)
    }

    /// A packet's header says that `len` bytes follow from here. Fewer than there are: the others are padding and no longer seen.
    /// More: the packet was cut, and the difference is remembered as [`Self::missing`]; what a header around it said no longer counts.
    #[inline]
    pub fn state(&mut self, len: usize) {
        match self.rest.get(..len) {
            Some(payload) => (self.rest, self.missing) = (payload, 0),
            None => self.missing = len.saturating_sub(self.rest.len()),
        }
    }

    /// As [`Self::state`], by a header inside the packet that speaks of the same bytes: a packet that was cut stays so.
    #[inline]
    pub fn state_again(&mut self, len: usize) {
        match self.rest.get(..len) {
            Some(payload) => self.rest = payload,
            None => self.missing = self.missing.max(len.saturating_sub(self.rest.len())),
        }
    }

    /// What has not been taken.
    #[inline]
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Where [`Self::rest`] begins in the frame, in bytes.
    #[inline]
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// How many bytes the headers promise beyond [`Self::rest`].
    #[inline]
    #[must_use]
    pub const fn missing(&self) -> usize {
        self.missing
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order_and_never_past_the_end() {
        let mut cursor = Cursor::new(&[1, 2, 3, 4, 5]);
        assert_eq!(cursor.take::<2>(), Some(&[1, 2]));
        assert_eq!(cursor.take::<4>(), None);
        assert_eq!((cursor.offset(), cursor.rest()), (2, &[3, 4, 5][..]));
        let piece = cursor.split(2).unwrap();
        assert_eq!((piece.offset(), piece.rest()), (2, &[3, 4][..]));
        assert!(cursor.split(2).is_none());
        assert_eq!((cursor.offset(), cursor.rest()), (4, &[5][..]));
    }

    #[test]
    fn a_stated_length_hides_padding_and_remembers_what_is_missing() {
        let mut cursor = Cursor::new(&[0; 10]);
        cursor.state(14);
        assert_eq!((cursor.rest().len(), cursor.missing()), (10, 4));
        cursor.take::<3>();
        assert_eq!(cursor.missing(), 4);
        cursor.state(5);
        assert_eq!((cursor.rest().len(), cursor.missing()), (5, 0));
        cursor.state(6);
        assert_eq!((cursor.rest().len(), cursor.missing()), (5, 1));
        cursor.state(usize::MAX);
        assert_eq!(cursor.missing(), usize::MAX - 5);
    }

    #[test]
    fn a_cut_packet_stays_cut_whatever_the_headers_in_it_say() {
        let mut cursor = Cursor::new(&[0; 10]);
        cursor.state(14);
        cursor.state_again(12);
        assert_eq!((cursor.rest().len(), cursor.missing()), (10, 4));
        cursor.state_again(15);
        assert_eq!((cursor.rest().len(), cursor.missing()), (10, 5));
        cursor.state_again(8);
        assert_eq!((cursor.rest().len(), cursor.missing()), (8, 5));
    }
}
