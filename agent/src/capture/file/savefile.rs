//! In: the bytes of a pcap file. Out: its frames.
//! Never: a frame that is not whole.
//! Spec: pcap-savefile(5): both byte orders, microseconds and nanoseconds, and the "modified" format of old Linux tools.

use super::stream::Stream;
use super::{Error, FRAME_BYTES_MAX, LINKTYPE_ETHERNET, Record};
use crate::host::clock::SECOND_NS;

const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 16;
/// Kuznetzov's format: index, protocol and packet type follow the usual fields.
const MODIFIED_RECORD_BYTES: usize = 24;
const LINKTYPE_AT: usize = 20;

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const MODIFIED: u32 = 0xa1b2_cd34;

/// A pcap file behind its header.
pub(super) struct Savefile {
    stream: Stream,
    big_endian: bool,
    fraction_ns: u64,
    record_bytes: usize,
    /// Of the record that was given last, to be let go.
    spent: usize,
}

/// Whether a file that begins so is a pcap file.
pub(super) fn is_magic(bytes: [u8; 4]) -> bool {
    [u32::from_be_bytes(bytes), u32::from_le_bytes(bytes)].iter().any(|magic| [MICROSECONDS, NANOSECONDS, MODIFIED].contains(magic))
}

impl Savefile {
    /// Reads the header of a file whose first bytes passed [`is_magic`].
    pub fn open(mut stream: Stream) -> Result<Self, Error> {
        let header = stream.peek(HEADER_BYTES)?;
        let Some(header) = header.first_chunk::<HEADER_BYTES>().copied() else {
            let found = format!("{} bytes and the end of the file", header.len());
            return Err(stream.wrong("a pcap file header of 24 bytes", found));
        };
        let big_endian = [MICROSECONDS, NANOSECONDS, MODIFIED].contains(&number(&header, 0, true));
        let magic = number(&header, 0, big_endian);
        // The upper bits tell whether frames end with a checksum; the type is in the lower 16.
        let linktype = number(&header, LINKTYPE_AT, big_endian) & 0xffff;
        if linktype != u32::from(LINKTYPE_ETHERNET) {
            return Err(stream.wrong("link type 1 (Ethernet) in the file header", format!("link type {linktype}")));
        }
        stream.consume(HEADER_BYTES);
        Ok(Self {
            stream,
            big_endian,
            fraction_ns: if magic == NANOSECONDS { 1 } else { 1000 },
            record_bytes: if magic == MODIFIED { MODIFIED_RECORD_BYTES } else { RECORD_BYTES },
            spent: 0,
        })
    }

    /// The next frame, or `None` at the end.
    pub fn next(&mut self) -> Result<Option<Record<'_>>, Error> {
        self.stream.consume(std::mem::take(&mut self.spent));
        let (big_endian, record_bytes) = (self.big_endian, self.record_bytes);
        let header = self.stream.peek(record_bytes)?;
        if header.is_empty() {
            return Ok(None);
        }
        if header.len() < record_bytes {
            let found = format!("{} bytes and the end of the file", header.len());
            return Err(self.stream.wrong("a whole record header", found));
        }
        let field = |place: usize| number(header, place * 4, big_endian);
        let (seconds, fraction, length, orig_len) = (field(0), field(1), field(2), field(3));
        if length > FRAME_BYTES_MAX {
            return Err(self.stream.wrong("a record of at most 262,144 bytes", format!("a record of {length} bytes")));
        }
        let whole = record_bytes + length as usize;
        let present = self.stream.peek(whole)?.len();
        if present < whole {
            let found = format!("{} of its {length} bytes and the end of the file", present - record_bytes);
            return Err(self.stream.wrong("a whole record", found));
        }
        self.spent = whole;
        let time_ns = u64::from(seconds) * SECOND_NS + u64::from(fraction) * self.fraction_ns;
        let bytes = self.stream.peek(whole)?.get(record_bytes..).unwrap_or_default();
        Ok(Some(Record { time_ns, bytes, orig_len }))
    }
}

fn number(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}
