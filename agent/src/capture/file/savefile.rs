//! In: the bytes of a pcap file. Out: its frames.
//! Never: a frame that is not whole.
//! Spec: pcap-savefile(5): both byte orders, microseconds and nanoseconds, and the "modified" format of old Linux tools.

use super::stream::Stream;
use super::{Error, FRAME_BYTES_MAX, Halt, LINKTYPE_ETHERNET};
use crate::capture::OwnedFrame;
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
    pub stream: Stream,
    big_endian: bool,
    fraction_ns: u64,
    record_bytes: usize,
}

/// What stands in front of a frame.
struct Header {
    time_ns: u64,
    length: u32,
    orig_len: u32,
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
        })
    }

    /// Puts frames behind each other, until none comes.
    pub fn fill(&mut self, frames: &mut Vec<OwnedFrame>) -> Result<(), Halt> {
        while let Some(frame) = self.next()? {
            frames.push(frame);
            self.fill_from_held(frames);
        }
        Ok(())
    }

    /// As [`Self::next`], as long as records are whole in what is held: nothing is asked of the stream for each.
    fn fill_from_held(&mut self, frames: &mut Vec<OwnedFrame>) {
        let (held, begin) = self.stream.held();
        let mut rest = held;
        while let Some((header, behind)) = rest.split_at_checked(self.record_bytes)
            && let Some(record) = header.first_chunk().map(|fields| self.record(fields))
            && record.length <= FRAME_BYTES_MAX
            && let Some((_, following)) = behind.split_at_checked(record.length as usize)
        {
            let at = begin + (held.len() - behind.len());
            frames.push(OwnedFrame::new(record.time_ns, at, record.length, record.orig_len));
            rest = following;
        }
        let consumed = held.len() - rest.len();
        self.stream.consume(consumed);
    }

    /// The next frame, or `None` at the end.
    fn next(&mut self) -> Result<Option<OwnedFrame>, Halt> {
        let record_bytes = self.record_bytes;
        let header = self.stream.ahead(record_bytes)?;
        let Some(fields) = header.first_chunk().filter(|_| header.len() == record_bytes).copied() else {
            return self.end();
        };
        let Header { time_ns, length, orig_len } = self.record(&fields);
        if length > FRAME_BYTES_MAX {
            return Err(self.stream.wrong("a record of at most 262,144 bytes", format!("a record of {length} bytes")).into());
        }
        let whole = record_bytes + length as usize;
        let present = self.stream.ahead(whole)?.len();
        if present < whole {
            let found = format!("{} of its {length} bytes and the end of the file", present - record_bytes);
            return Err(self.stream.wrong("a whole record", found).into());
        }
        let frame = self.stream.give(time_ns, record_bytes, length, orig_len);
        self.stream.consume(whole);
        Ok(Some(frame))
    }

    #[inline]
    fn record(&self, fields: &[u8; RECORD_BYTES]) -> Header {
        let [seconds, fraction, length, orig_len] = [0, 4, 8, 12].map(|at| number(fields, at, self.big_endian));
        Header { time_ns: u64::from(seconds) * SECOND_NS + u64::from(fraction) * self.fraction_ns, length, orig_len }
    }

    /// Where there is no whole record header.
    fn end(&mut self) -> Result<Option<OwnedFrame>, Halt> {
        match self.stream.peek(self.record_bytes)?.len() {
            0 => Ok(None),
            present => Err(self.stream.wrong("a whole record header", format!("{present} bytes and the end of the file")).into()),
        }
    }
}

#[inline]
fn number(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}
