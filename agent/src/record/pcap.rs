//! Classic pcap. In: a stamp and lengths. Out: the headers around a frame's bytes.
//! Never: origins, direction, loss counts; the format has no room for them.
//! Spec: draft-ietf-opsawg-pcap, sections 4 (file header) and 5 (packet record). Little endian.

use super::Precision;

/// Link type of whole Ethernet frames (LINKTYPE_ETHERNET).
pub const LINKTYPE_ETHERNET: u16 = 1;

/// Bytes of the file header.
pub const FILE_HEADER_BYTES: usize = 24;

/// Bytes in front of each frame.
pub const RECORD_HEADER_BYTES: usize = 16;

/// Magic number of microsecond files.
const MAGIC_MICRO: u32 = 0xa1b2_c3d4;

/// Magic number of nanosecond files.
const MAGIC_NANO: u32 = 0xa1b2_3c4d;

/// The header of a file of Ethernet frames of at most `snaplen` bytes.
#[must_use]
pub fn file_header(precision: Precision, snaplen: u32) -> [u8; FILE_HEADER_BYTES] {
    let magic = match precision {
        Precision::Micro => MAGIC_MICRO,
        Precision::Nano => MAGIC_NANO,
    };
    let mut header = [0; FILE_HEADER_BYTES];
    header[0..4].copy_from_slice(&magic.to_le_bytes());
    header[4..6].copy_from_slice(&2u16.to_le_bytes());
    header[6..8].copy_from_slice(&4u16.to_le_bytes());
    header[16..20].copy_from_slice(&snaplen.to_le_bytes());
    header[20..24].copy_from_slice(&u32::from(LINKTYPE_ETHERNET).to_le_bytes());
    header
}

/// The header of a record of `len` bytes of a frame that had `orig_len`. Seconds wrap in 2106, as the format does.
#[inline]
#[must_use]
pub fn record_header(precision: Precision, time_ns: u64, len: u32, orig_len: u32) -> [u8; RECORD_HEADER_BYTES] {
    let nanos = (time_ns % 1_000_000_000) as u32;
    let fraction = match precision {
        Precision::Micro => nanos / 1000,
        Precision::Nano => nanos,
    };
    let mut header = [0; RECORD_HEADER_BYTES];
    header[0..4].copy_from_slice(&((time_ns / 1_000_000_000) as u32).to_le_bytes());
    header[4..8].copy_from_slice(&fraction.to_le_bytes());
    header[8..12].copy_from_slice(&len.to_le_bytes());
    header[12..16].copy_from_slice(&orig_len.to_le_bytes());
    header
}
