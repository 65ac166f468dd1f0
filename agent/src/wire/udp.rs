//! UDP, around the tunnel and inside it.
//! In: a cursor at the header. Out: destination port and length.
//! Never: verifies the checksum (tunnels may send 0, and the NIC has judged the others).
//! Spec: RFC 768; RFC 8926 section 3.3 and RFC 7348 section 5 (checksum 0 is accepted).

use super::cursor::Cursor;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

pub(super) const DESTINATION: usize = 2;
pub(super) const LENGTH: usize = 4;

/// What a header said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Destination port.
    pub destination: u16,
    /// Length of header and payload, as it stands.
    pub length: u16,
}

/// Consumes the header. `None` when it is cut short.
#[inline]
pub fn header(cursor: &mut Cursor<'_>) -> Option<Header> {
    let header = cursor.take::<HEADER_LEN>()?;
    Some(Header {
        destination: u16::from_be_bytes([header[DESTINATION], header[DESTINATION + 1]]),
        length: u16::from_be_bytes([header[LENGTH], header[LENGTH + 1]]),
    })
}

impl Header {
    /// Ends the cursor, which stands behind the header, where the payload ends. `None` when the length is less than the header's.
    #[inline]
    pub fn bound(self, cursor: &mut Cursor<'_>) -> Option<()> {
        cursor.state_again(usize::from(self.length).checked_sub(HEADER_LEN)?);
        Some(())
    }

    /// As [`Self::bound`]; a length of 0 leaves the end to IP (Linux writes it when the datagram is too long to say).
    #[inline]
    pub fn bound_or_open(self, cursor: &mut Cursor<'_>) -> Option<()> {
        if self.length == 0 { Some(()) } else { self.bound(cursor) }
    }
}
