//! In: a file or standard input, plain, gzip or zstd (told by its first bytes). Out: its bytes, as many as asked for, in memory that is
//! lent for it.
//! Never: seeks, so pipes are fine; holds more than was asked for at once; moves what frames were given of.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::{BATCH_BYTES, Halt};
use crate::capture::{Error, OwnedFrame};

/// A window of 128 MiB, the most that `zstd` itself takes without being told to; a frame that wants more is refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Zstandard's skippable frames have 16 magic numbers: 184d2a50 to 184d2a5f, little endian.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The bytes of one file.
pub(super) struct Stream {
    path: PathBuf,
    source: Box<dyn Read + Send>,
    /// What was read and not yet consumed is `buffer[begin..end]`; what lies behind it is to be written over.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// Our own memory while another is lent.
    own: Vec<u8>,
    /// Whether a frame of the lent memory was given: then nothing in it may move.
    given: bool,
    /// Where `begin` is in the (decompressed) file.
    offset: u64,
    ended: bool,
}

impl Stream {
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let raw: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            match File::open(&path) {
                Ok(file) => Box::new(file),
                Err(cause) => return Err(Error::System { act: "open", thing: path.display().to_string(), cause: cause.to_string() }),
            }
        };
        let source = decompressed(raw).map_err(|cause| Error::System {
            act: "read",
            thing: path.display().to_string(),
            cause: cause.to_string(),
        })?;
        Ok(Self { path, source, buffer: Vec::new(), begin: 0, end: 0, own: Vec::new(), given: false, offset: 0, ended: false })
    }

    /// Reads into `memory` from now on.
    pub fn lend(&mut self, memory: Vec<u8>) {
        self.own = std::mem::replace(&mut self.buffer, memory);
        let held = self.own.get(self.begin..self.end).unwrap_or_default();
        (self.begin, self.end, self.given) = (0, held.len(), false);
        if self.buffer.len() < held.len() {
            self.buffer.resize(held.len(), 0);
        }
        if let Some(place) = self.buffer.get_mut(..held.len()) {
            place.copy_from_slice(held);
        }
    }

    /// Gives the lent memory back, with the frames where they were given.
    pub fn give_back(&mut self) -> Vec<u8> {
        self.own.clear();
        self.own.extend_from_slice(self.buffer.get(self.begin..self.end).unwrap_or_default());
        (self.begin, self.end, self.given) = (0, self.own.len(), false);
        std::mem::replace(&mut self.buffer, std::mem::take(&mut self.own))
    }

    /// What was read and not yet consumed, and where it begins in the lent memory.
    #[inline]
    pub fn held(&self) -> (&[u8], usize) {
        (self.buffer.get(self.begin..self.end).unwrap_or_default(), self.begin)
    }

    /// The frame of `len` bytes that begins `at` bytes from here.
    #[inline]
    pub fn give(&mut self, time_ns: u64, at: usize, len: u32, orig_len: u32) -> OwnedFrame {
        self.given = true;
        OwnedFrame::new(time_ns, self.begin + at, len, orig_len)
    }

    /// As [`Self::peek`], but what frames were given of does not move for it.
    #[inline]
    pub fn ahead(&mut self, bytes: usize) -> Result<&[u8], Halt> {
        if self.given && self.end - self.begin < bytes && !self.ended {
            return Err(Halt::Full);
        }
        Ok(self.peek(bytes)?)
    }

    /// The next `bytes` bytes without consuming them, or fewer at the end.
    #[inline]
    pub fn peek(&mut self, bytes: usize) -> Result<&[u8], Error> {
        while self.end - self.begin < bytes && !self.ended {
            self.read_more(bytes)?;
        }
        let end = self.end.min(self.begin.saturating_add(bytes));
        Ok(self.buffer.get(self.begin..end).unwrap_or_default())
    }

    fn read_more(&mut self, wanted: usize) -> Result<(), Error> {
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let full = wanted.max(BATCH_BYTES);
        if self.buffer.len() < full {
            self.buffer.resize(full, 0);
        }
        match self.source.read(self.buffer.get_mut(self.end..full).unwrap_or_default()) {
            Ok(read) => {
                self.end += read;
                self.ended = read == 0;
                Ok(())
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(cause) => {
                let offset = self.offset + self.end as u64;
                // A compressed file that is cut short ends like this, too.
                Err(Error::File { path: self.path.clone(), offset, expected: "more data", found: cause.to_string() })
            }
        }
    }

    /// Lets `bytes` bytes go that were peeked at.
    #[inline]
    pub fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.end - self.begin);
        self.begin += bytes;
        self.offset += bytes as u64;
    }

    /// An error about the place that was reached.
    pub fn wrong(&self, expected: &'static str, found: String) -> Error {
        Error::File { path: self.path.clone(), offset: self.offset, expected, found }
    }
}

fn decompressed(raw: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut raw = raw;
    // A pipe may give its first bytes one by one.
    let mut magic = Vec::with_capacity(ZSTD.len());
    raw.by_ref().take(ZSTD.len() as u64).read_to_end(&mut magic)?;
    let (gzip, zstd) =
        (magic.starts_with(&GZIP), magic == ZSTD || (magic.ends_with(&ZSTD_SKIPPABLE) && magic.first().is_some_and(|b| b >> 4 == 5)));
    let whole = io::Cursor::new(magic).chain(raw);
    Ok(if gzip {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(BATCH_BYTES, whole)))
    } else if zstd {
        Box::new(zstd_decoder(BufReader::with_capacity(BATCH_BYTES, whole))?)
    } else {
        Box::new(whole)
    })
}

fn zstd_decoder<R: BufRead>(source: R) -> io::Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}
