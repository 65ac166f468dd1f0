//! What an agent that died left behind: segments that are not whole.
//! In: the folder. Out: the same segments, cut after their last whole record and marked as whole.
//! Never: removes a record that is whole, or bytes that are more than the beginning of one; believes a length it has not checked;
//! holds more than a record or a zstd frame in memory.
//!
//! Runs before the uploader begins; recording does not wait for it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::folder::remove_if_there;
use super::journal::{self, io};
use super::writer::{Writer, mark_whole};
use super::{Error, Folder, Segment};
use crate::record::facts::WindowFacts;
use crate::record::{Compression, Facts, Format, Precision, Spool, Stamp};

/// The longest record that is believed: the largest snap length, and room for headers and options.
const RECORD_BYTES_MAX: usize = 512 * 1024;

/// The longest zstd frame that is believed, compressed. The writer makes them of one chunk each, and what does not compress grows.
const ZSTD_FRAME_BYTES_MAX: usize = 2 * Writer::CHUNK_BYTES;

/// The most that a zstd frame may hold.
const ZSTD_CONTENT_BYTES_MAX: usize = 2 * Writer::CHUNK_BYTES;

/// How a zstd frame begins (RFC 8878 3.1.1).
const ZSTD_MAGIC: u32 = 0xfd2f_b528;

/// The largest draft that is believed.
const DRAFT_BYTES_MAX: u64 = 64 << 20;

/// What of a file is whole.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Whole {
    /// Bytes from the beginning that are whole records (and headers).
    pub file_bytes: u64,
    /// Frames in them.
    pub frames: u64,
    /// Captured bytes of those.
    pub bytes: u64,
    /// Earliest stamp.
    pub first: Option<Stamp>,
    /// Latest stamp.
    pub last: Option<Stamp>,
    /// What follows is not the beginning of a record that was cut off: the file is damaged there.
    pub damaged: bool,
}

impl Whole {
    fn frame(&mut self, time_ns: u64, bytes: u64) {
        self.frames += 1;
        self.bytes += bytes;
        self.first = Some(self.first.map_or(Stamp(time_ns), |first| first.min(Stamp(time_ns))));
        self.last = self.last.max(Some(Stamp(time_ns)));
    }
}

/// Makes a segment whole that was left unfinished, has no manifest, and that nobody records.
///
/// # Errors
/// When it cannot be read, cut or marked. It is kept as it is, and may be tried again.
pub fn make_whole(folder: &Folder, segment: &Segment) -> Result<(), Error> {
    let Some(journal_path) = &segment.journal else {
        // Data without a journal: the agent died between making the two, before a byte was written. Never seen otherwise.
        return Ok(());
    };
    let (state, _) = match journal::read(journal_path) {
        Ok(read) => read,
        // The first line was torn: nothing was recorded or sent under it.
        Err(_) if segment.data.is_none() => return folder.remove(segment),
        Err(error) => return Err(error),
    };
    if state.manifest_stored {
        return folder.remove(segment);
    }
    let Some(data) = &segment.data else {
        return folder.remove(segment);
    };
    let mut facts = draft(segment).unwrap_or_else(|| facts_of(&state.open));
    let before = fs::metadata(data).map_err(io("examine", data))?.len();
    let mut whole = walk(data, facts.format, facts.compression)?;
    if whole.damaged {
        // Whole records may follow. Whoever reads the object can look for them; what is cut off here is gone.
        tracing::error!(path = %data.display(), at_byte = whole.file_bytes, "a segment is damaged; it goes to S3 as it is");
        whole.file_bytes = before;
    }
    let empty = !whole.damaged && whole.frames == 0 && state.parts.is_empty();
    if empty && state.upload_id.is_none() && !state.creating {
        tracing::info!(path = %data.display(), "removed a segment that held no frame");
        return folder.remove(segment);
    }
    if empty {
        whole.file_bytes = 0;
    }
    if whole.file_bytes < before {
        let file = OpenOptions::new().write(true).open(data).map_err(io("open", data))?;
        file.set_len(whole.file_bytes).map_err(io("cut the torn record off", data))?;
        file.sync_all().map_err(io("sync", data))?;
    }
    facts.frames = whole.frames;
    facts.bytes = whole.bytes;
    facts.first = whole.first;
    facts.last = whole.last;
    facts.file_bytes = whole.file_bytes;
    facts.index.entries.retain(|entry| entry.offset < whole.file_bytes);
    facts.salvaged = true;
    facts.key = Some(state.open.key);
    mark_whole(folder, &facts)?;
    if empty {
        // A power loss took all that an upload was begun for. Facts without data have the uploader abort it: no object is better than
        // an empty one. Data that went before there are facts would take the journal along, the last that knows of the upload.
        remove_if_there(data)?;
        folder.sync()?;
    }
    tracing::warn!(path = %data.display(), frames = whole.frames, bytes = whole.file_bytes, torn_bytes = before - whole.file_bytes, "salvaged a segment");
    Ok(())
}

/// The facts that were kept while the segment grew.
fn draft(segment: &Segment) -> Option<Facts> {
    let file = File::open(segment.draft.as_ref()?).ok()?;
    let facts: Facts = serde_json::from_reader(BufReader::new(file.take(DRAFT_BYTES_MAX))).ok()?;
    (facts.capture_id == segment.capture_id).then_some(facts)
}

/// What the journal alone tells, when the agent died before it kept a draft.
fn facts_of(open: &journal::Open) -> Facts {
    let (format, compression) = match open.extension.as_str() {
        "pcapng" => (Format::Pcapng, Compression::None),
        "pcap.zst" => (Format::Pcap, Compression::Zstd),
        "pcapng.zst" => (Format::Pcapng, Compression::Zstd),
        _ => (Format::Pcap, Compression::None),
    };
    let window = WindowFacts { start: open.window, seconds: 0 };
    Facts {
        agent_version: open.agent_version.clone(),
        key: Some(open.key.clone()),
        format,
        precision: if format == Format::Pcapng { Precision::Nano } else { Precision::Micro },
        compression,
        ..Facts::begin(open.kind, open.capture_id.clone(), open.instance.clone(), open.bucket.clone(), window)
    }
}

/// How much of a capture file of ours is whole.
///
/// # Errors
/// When it cannot be read.
pub fn walk(path: &Path, format: Format, compression: Compression) -> Result<Whole, Error> {
    let file = File::open(path).map_err(io("open", path))?;
    let mut walker = Walker { format, nano: false, whole: Whole::default() };
    let mut whole = match compression {
        Compression::None => {
            let mut reader = BufReader::with_capacity(1 << 20, &file);
            let mut record = Vec::new();
            while walker.step(&mut reader, &mut record).map_err(io("read", path))? {}
            walker.whole
        }
        Compression::Zstd => walk_zstd(&file, path, walker)?,
    };
    // After a power loss a file system may show blocks that never reached the disk as zeros.
    whole.damaged = whole.damaged && !is_zeros_from(&file, whole.file_bytes).map_err(io("read", path))?;
    Ok(whole)
}

/// Whether nothing but zeros follows.
fn is_zeros_from(file: &File, mut offset: u64) -> std::io::Result<bool> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = read_at(file, &mut buffer, offset)?;
        if read == 0 {
            return Ok(true);
        }
        if buffer.iter().take(read).any(|&byte| byte != 0) {
            return Ok(false);
        }
        offset += read as u64;
    }
}

/// Walks frame by frame: only whole zstd frames count, and each holds whole records.
fn walk_zstd(file: &File, path: &Path, mut walker: Walker) -> Result<Whole, Error> {
    let mut compressed = vec![0; ZSTD_FRAME_BYTES_MAX];
    let mut offset = 0;
    loop {
        let read = read_at(file, &mut compressed, offset).map_err(io("read", path))?;
        let available = compressed.get(..read).unwrap_or_default();
        let Ok(frame_bytes) = zstd::zstd_safe::find_frame_compressed_size(available) else {
            let torn = read < ZSTD_FRAME_BYTES_MAX && available.iter().zip(ZSTD_MAGIC.to_le_bytes()).all(|(&there, magic)| there == magic);
            walker.whole.damaged = !torn;
            break;
        };
        let frame = available.get(..frame_bytes).unwrap_or_default();
        let Ok(content) = zstd::bulk::decompress(frame, ZSTD_CONTENT_BYTES_MAX) else {
            walker.whole.damaged = true;
            break;
        };
        let mut content = content.as_slice();
        let mut record = Vec::new();
        while walker.step(&mut content, &mut record).map_err(io("read", path))? {}
        offset += frame_bytes as u64;
    }
    walker.whole.file_bytes = offset;
    Ok(walker.whole)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(read)
}

/// Goes from record to record of a file that we wrote: little endian, Ethernet, one section.
struct Walker {
    format: Format,
    nano: bool,
    whole: Whole,
}

impl Walker {
    /// Takes one record; false when the next one is not whole or not ours.
    fn step(&mut self, reader: &mut impl Read, record: &mut Vec<u8>) -> std::io::Result<bool> {
        let taken = match self.format {
            Format::Pcap => self.step_pcap(reader, record)?,
            Format::Pcapng => self.step_pcapng(reader, record)?,
        };
        self.whole.file_bytes += taken.unwrap_or(0) as u64;
        Ok(taken.is_some())
    }

    fn step_pcap(&mut self, reader: &mut impl Read, record: &mut Vec<u8>) -> std::io::Result<Option<usize>> {
        use crate::record::pcap::{FILE_HEADER_BYTES, RECORD_HEADER_BYTES, file_header};
        if self.whole.file_bytes == 0 {
            if !fill(reader, record, FILE_HEADER_BYTES)? {
                return Ok(None);
            }
            let magic = |precision| record.get(..4) == file_header(precision, 0).get(..4);
            self.nano = magic(Precision::Nano);
            let ours = self.nano || magic(Precision::Micro);
            return Ok(if ours { Some(FILE_HEADER_BYTES) } else { self.damaged() });
        }
        if !fill(reader, record, RECORD_HEADER_BYTES)? {
            return Ok(None);
        }
        let (seconds, fraction, len, orig_len) = (word(record, 0), word(record, 4), word(record, 8) as usize, word(record, 12) as usize);
        let fractions = if self.nano { 1_000_000_000 } else { 1_000_000 };
        // Zeros would pass for an empty frame of 1970.
        let ours = fraction < fractions && len <= orig_len && len <= RECORD_BYTES_MAX && record.iter().any(|&byte| byte != 0);
        if !ours {
            return Ok(self.damaged());
        }
        if !fill(reader, record, len)? {
            return Ok(None);
        }
        let nanos = if self.nano { u64::from(fraction) } else { u64::from(fraction) * 1000 };
        self.whole.frame(u64::from(seconds) * 1_000_000_000 + nanos, len as u64);
        Ok(Some(RECORD_HEADER_BYTES + len))
    }

    fn step_pcapng(&mut self, reader: &mut impl Read, record: &mut Vec<u8>) -> std::io::Result<Option<usize>> {
        const PACKET: u32 = 6;
        if !fill(reader, record, 8)? {
            return Ok(None);
        }
        let (kind, total) = (word(record, 0), word(record, 4) as usize);
        if !(12..=RECORD_BYTES_MAX).contains(&total) || !total.is_multiple_of(4) {
            return Ok(self.damaged());
        }
        if !fill(reader, record, total - 8)? {
            return Ok(None);
        }
        if word(record, total - 12) as usize != total {
            return Ok(self.damaged());
        }
        if kind == PACKET {
            let time_ns = u64::from(word(record, 4)) << 32 | u64::from(word(record, 8));
            self.whole.frame(time_ns, u64::from(word(record, 12)));
        }
        Ok(Some(total))
    }

    fn damaged(&mut self) -> Option<usize> {
        self.whole.damaged = true;
        None
    }
}

/// Reads exactly `bytes`; false when there are fewer.
fn fill(reader: &mut impl Read, record: &mut Vec<u8>, bytes: usize) -> std::io::Result<bool> {
    record.clear();
    record.resize(bytes, 0);
    match reader.read_exact(record) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(cause) => Err(cause),
    }
}

fn word(record: &[u8], at: usize) -> u32 {
    record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
