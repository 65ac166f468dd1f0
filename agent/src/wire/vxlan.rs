//! VXLAN.
//! In: a cursor at the header. Out: the VNI, with the cursor at the mirrored frame.
//! Never: minds reserved bits (RFC 7348 section 5: ignored on receipt).
//! Spec: RFC 7348 section 5; AWS "Traffic Mirroring packet format".
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-----------------------------------------------+
//! |R|R|R|R|I|R|R|R| reserved                                      |
//! +-+-+-+-+-+-+-+-+-------------------------------+---------------+
//! | VNI                                           | reserved      |
//! +-----------------------------------------------+---------------+
//! ```

use super::cursor::Cursor;
use super::reason::Drop;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

const FLAGS: usize = 0;
pub(super) const VNI: usize = 4;

/// The VNI is valid.
const I_FLAG: u8 = 0x08;

/// Consumes the header; the VNI has 24 bits.
///
/// # Errors
/// With the reason why there is no mirrored frame.
#[inline]
pub fn header(cursor: &mut Cursor<'_>) -> Result<u32, Drop> {
    let header = cursor.take::<HEADER_LEN>().ok_or(Drop::VxlanShort)?;
    // RFC 7348 5: the VNI is valid only when the I flag is set.
    if header[FLAGS] & I_FLAG == 0 {
        return Err(Drop::VxlanNoI);
    }
    if cursor.rest().is_empty() {
        return Err(Drop::VxlanEmpty);
    }
    Ok(u32::from_be_bytes([0, header[VNI], header[VNI + 1], header[VNI + 2]]))
}
