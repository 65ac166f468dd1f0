//! In: a file or standard input, plain, gzip or zstd (told by its first bytes). Out: its bytes, as many as asked for.
//! Never: seeks, so pipes are fine; holds more than was asked for at once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::capture::Error;

const READ_BYTES: usize = 256 << 10;

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
    /// What was read and not yet consumed is `buffer[begin..]`.
    buffer: Vec<u8>,
    begin: usize,
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
        Ok(Self { path, source, buffer: Vec::new(), begin: 0, offset: 0, ended: false })
    }

    /// The next `bytes` bytes without consuming them, or fewer at the end.
    pub fn peek(&mut self, bytes: usize) -> Result<&[u8], Error> {
        while self.buffer.len() - self.begin < bytes && !self.ended {
            self.read_more(bytes)?;
        }
        let end = self.buffer.len().min(self.begin.saturating_add(bytes));
        Ok(self.buffer.get(self.begin..end).unwrap_or_default())
    }

    fn read_more(&mut self, wanted: usize) -> Result<(), Error> {
        self.buffer.drain(..self.begin);
        self.begin = 0;
        let held = self.buffer.len();
        let room = (wanted - held).max(READ_BYTES);
        self.buffer.resize(held + room, 0);
        let read = match self.source.read(self.buffer.get_mut(held..).unwrap_or_default()) {
            Ok(read) => read,
            Err(cause) => {
                self.buffer.truncate(held);
                if cause.kind() == io::ErrorKind::Interrupted {
                    return Ok(());
                }
                let offset = self.offset + held as u64;
                // A compressed file that is cut short ends like this, too.
                return Err(Error::File { path: self.path.clone(), offset, expected: "more data", found: cause.to_string() });
            }
        };
        self.ended = read == 0;
        self.buffer.truncate(held + read);
        Ok(())
    }

    /// Lets `bytes` bytes go that were peeked at.
    pub fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.buffer.len() - self.begin);
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
    let whole = BufReader::with_capacity(READ_BYTES, io::Cursor::new(magic).chain(raw));
    Ok(if gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if zstd {
        Box::new(zstd_decoder(whole)?)
    } else {
        Box::new(whole)
    })
}

fn zstd_decoder<R: BufRead>(source: R) -> io::Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}
