//! In: capture files, one after the other; `-` is standard input. Out: their frames, in batches, in the memory they were read to.
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
use super::{Bytes, Engine, Error, Losses, Owned, Taken};

mod pcapng;
mod savefile;
mod stream;
#[cfg(test)]
mod tests;

/// Read at once, and a batch: it is still in the processor's own cache when it is judged and written.
const BATCH_BYTES: usize = 256 << 10;

/// The longest frame that is believed; libpcap's own limit for Ethernet (`MAXIMUM_SNAPLEN`).
const FRAME_BYTES_MAX: u32 = 262_144;

/// The number of Ethernet in the list of link types, in both formats.
const LINKTYPE_ETHERNET: u16 = 1;

/// Why no frame comes.
enum Halt {
    /// The batch is full: what follows has to wait for the next one.
    Full,
    /// The file cannot be read.
    Damaged(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Damaged(error)
    }
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

    /// Fills a batch. Without a frame in it, the file has ended.
    fn fill(&mut self, owned: &mut Owned) -> Result<(), Error> {
        self.stream().lend(std::mem::take(&mut owned.data));
        let frames = &mut owned.frames;
        let filled = match self {
            Self::Savefile(file) => file.fill(frames),
            Self::Pcapng(file) => file.fill(frames),
        };
        owned.data = self.stream().give_back();
        match filled {
            Err(Halt::Damaged(error)) => Err(error),
            Ok(()) | Err(Halt::Full) => Ok(()),
        }
    }

    fn stream(&mut self) -> &mut Stream {
        match self {
            Self::Savefile(file) => &mut file.stream,
            Self::Pcapng(file) => &mut file.stream,
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

    /// Fills a batch; it ends with a file, and where a file is damaged.
    fn fill(&mut self, owned: &mut Owned) -> Result<(), Error> {
        while let Some(reader) = &mut self.reader {
            reader.fill(owned)?;
            if !owned.frames.is_empty() {
                break;
            }
            self.reader = self.paths.pop_front().map(Reader::open).transpose()?;
        }
        Ok(())
    }
}

impl Engine for FileEngine {
    fn take(&mut self, bytes: &mut Bytes, _wait: Duration) -> Result<Taken, Error> {
        let owned = bytes.rewrite();
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
