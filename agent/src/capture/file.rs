//! In: capture files, one after the other; `-` is standard input. Out: their frames, copied in batches.
//! Never: more memory than a batch and the longest block allowed, whatever lengths a file claims; silence about a damaged file.
//! Spec: pcap-savefile(5), draft-ietf-opsawg-pcapng; RFC 1952 (gzip), RFC 8878 (Zstandard).
//!
//! [`stream`] reads and decompresses, [`savefile`] and [`pcapng`] read one format each.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use self::pcapng::Pcapng;
use self::savefile::Savefile;
use self::stream::Stream;
use super::{Bytes, Engine, Error, Losses, Owned, OwnedFrame, Taken};

mod pcapng;
mod savefile;
mod stream;
#[cfg(test)]
mod tests;

/// A batch is full at this many bytes or frames, whatever comes first.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FRAMES: usize = 4096;

/// The longest frame that is believed; libpcap's own limit for Ethernet (`MAXIMUM_SNAPLEN`).
const FRAME_BYTES_MAX: u32 = 262_144;

/// The number of Ethernet in the list of link types, in both formats.
const LINKTYPE_ETHERNET: u16 = 1;

/// One frame of a file.
struct Record<'a> {
    time_ns: u64,
    bytes: &'a [u8],
    orig_len: u32,
}

enum Reader {
    Savefile(Savefile),
    Pcapng(Pcapng),
}

impl Reader {
    /// Looks at the first bytes and reads the header.
    fn open(path: PathBuf) -> Result<Self, Error> {
        let mut stream = Stream::open(path)?;
        let magic: Option<[u8; 4]> = stream.peek(4)?.first_chunk().copied();
        match magic {
            Some(magic) if magic == pcapng::MAGIC => Ok(Self::Pcapng(Pcapng::open(stream))),
            Some(magic) if savefile::is_magic(magic) => Ok(Self::Savefile(Savefile::open(stream)?)),
            Some(magic) => Err(stream.wrong("a pcap or pcapng file", format!("the bytes {}", hex(&magic)))),
            None => {
                let found = stream.peek(4)?.len();
                Err(stream.wrong("a pcap or pcapng file", format!("only {found} bytes")))
            }
        }
    }

    /// The next frame, or `None` at the end.
    fn next(&mut self) -> Result<Option<Record<'_>>, Error> {
        match self {
            Self::Savefile(file) => file.next(),
            Self::Pcapng(file) => file.next(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Frames from files.
pub struct FileEngine {
    paths: VecDeque<PathBuf>,
    reader: Option<Reader>,
    /// What went wrong behind the frames that were given last.
    error: Option<Error>,
    packets: u64,
    refused: bool,
}

impl FileEngine {
    /// Opens the first of the files; the others when their turn comes.
    ///
    /// # Errors
    /// [`Error::File`] when the first file cannot be read, is neither pcap nor pcapng, or does not hold Ethernet frames.
    pub fn open(paths: Vec<PathBuf>) -> Result<Self, Error> {
        let mut paths = VecDeque::from(paths);
        let reader = paths.pop_front().map(Reader::open).transpose()?;
        Ok(Self { paths, reader, error: None, packets: 0, refused: false })
    }

    /// Fills a batch; stops at its limits, at the end, or where a file is damaged.
    fn fill(&mut self, owned: &mut Owned) -> Result<(), Error> {
        while owned.data.len() < BATCH_BYTES && owned.frames.len() < BATCH_FRAMES {
            let Some(reader) = &mut self.reader else { return Ok(()) };
            let Some(record) = reader.next()? else {
                self.reader = self.paths.pop_front().map(Reader::open).transpose()?;
                continue;
            };
            owned.frames.push(OwnedFrame {
                time_ns: record.time_ns,
                at: owned.data.len() as u32,
                len: record.bytes.len() as u32,
                orig_len: record.orig_len.max(record.bytes.len() as u32),
            });
            owned.data.extend_from_slice(record.bytes);
        }
        Ok(())
    }
}

impl Engine for FileEngine {
    fn take(&mut self, bytes: &mut Bytes, _wait: Duration) -> Result<Taken, Error> {
        let owned = bytes.refill();
        if let Some(error) = self.error.take() {
            self.reader = None;
            return Err(error);
        }
        if self.refused {
            return Ok(Taken::End);
        }
        if let Err(error) = self.fill(owned) {
            if owned.frames.is_empty() {
                self.reader = None;
                return Err(error);
            }
            self.error = Some(error);
        }
        self.packets += owned.frames.len() as u64;
        Ok(if owned.frames.is_empty() { Taken::End } else { Taken::Frames })
    }

    /// `packets` are the frames given; a file loses nothing.
    fn losses(&mut self) -> Result<Losses, Error> {
        Ok(Losses { packets: self.packets, ..Losses::default() })
    }

    fn refuse_more(&mut self) -> Result<(), Error> {
        self.refused = true;
        Ok(())
    }
}
