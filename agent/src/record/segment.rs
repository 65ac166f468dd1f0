//! One capture file while it is being made. In: frames. Out: its bytes, in chunks, to the spool.
//! Never: touches a disk; copies a frame's bytes more than once; splits a record of a compressed file over two chunks.

use super::pcapng::{self, Packet, Statistics};
use super::{Buffer, Chunk, Compression, Facts, Format, SegmentNumber, Spool, Stamp, pcap};
use crate::capture::Direction;
use crate::wire::{Link, Origin};

/// A frame to be written.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// What is kept of it.
    pub bytes: &'a [u8],
    /// Length on the source's wire.
    pub orig_len: u32,
    /// What `bytes` begins with.
    pub link: Link,
    /// Which way it went.
    pub direction: Direction,
    /// Number of the interface in this file, from [`Segment::interface`]; 0 in classic pcap.
    pub interface: u32,
    /// Frames lost since the last one.
    pub lost: u64,
    /// A remark (pcapng only).
    pub comment: &'a str,
}

/// A file under construction.
#[derive(Debug)]
pub struct Segment {
    number: SegmentNumber,
    format: Format,
    precision: super::Precision,
    snaplen: u32,
    filter: Option<String>,
    /// Chunks of a compressed file end with a record: each becomes a zstd frame that can be read alone.
    whole_records: bool,
    buffer: Buffer,
    /// Chunks end at multiples of the chunk size, as long as none was handed over early.
    buffer_bytes: usize,
    first_record: Option<(u32, Stamp)>,
    /// Monotonic time of the first byte in the buffer that was not handed over.
    filled_ns: Option<u64>,
    /// Bytes so far, before compression.
    bytes: u64,
    interfaces: u32,
}

impl Segment {
    /// Begins a file: its header is its first bytes.
    pub fn begin(number: SegmentNumber, facts: &Facts, snaplen: u32, comment: &str, spool: &mut impl Spool, now_ns: u64) -> Self {
        let mut segment = Self {
            number,
            format: facts.format,
            precision: facts.precision,
            snaplen,
            filter: facts.filter.clone(),
            whole_records: facts.compression == Compression::Zstd,
            buffer: spool.buffer(),
            buffer_bytes: 0,
            first_record: None,
            filled_ns: Some(now_ns),
            bytes: 0,
            interfaces: 0,
        };
        segment.buffer_bytes = segment.room_to_boundary(spool);
        match facts.format {
            Format::Pcap => segment.put_whole(&pcap::file_header(facts.precision, snaplen), spool),
            Format::Pcapng => {
                let application = concat!("tapfleet ", env!("CARGO_PKG_VERSION"));
                segment.put_whole(&pcapng::section(application, comment), spool);
            }
        }
        segment
    }

    /// Which file of the spool this is.
    #[must_use]
    pub fn number(&self) -> SegmentNumber {
        self.number
    }

    /// Bytes so far, before compression.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are still to be handed over if it ends now.
    #[must_use]
    pub fn owed_bytes(&self) -> u64 {
        let statistics = if self.format == Format::Pcapng { u64::from(self.interfaces) * pcapng::STATISTICS_BYTES_MAX } else { 0 };
        self.buffer.len() as u64 + statistics
    }

    /// Declares an interface (pcapng) and gives its number; 0 in classic pcap, which has none.
    pub fn interface(&mut self, name: &str, description: &str, spool: &mut impl Spool) -> u32 {
        if self.format == Format::Pcap {
            return 0;
        }
        let block = pcapng::interface(name, description, self.filter.as_deref(), self.snaplen);
        self.put_whole(&block, spool);
        self.interfaces += 1;
        self.interfaces - 1
    }

    /// Declares the interface of an origin.
    pub fn origin(&mut self, origin: &Origin, spool: &mut impl Spool) -> u32 {
        self.interface(&origin.to_string(), &format!("source={}", origin.source), spool)
    }

    /// Writes a frame: header, bytes, what follows.
    #[inline]
    pub fn write(&mut self, entry: &Entry<'_>, spool: &mut impl Spool, now_ns: u64) {
        let made_up = entry.link.made_up_header();
        let len = (entry.bytes.len() + made_up.len()) as u32;
        let orig_len = entry.orig_len.saturating_add(made_up.len() as u32);
        match self.format {
            Format::Pcap => {
                let header = pcap::record_header(self.precision, entry.time_ns, len, orig_len);
                self.put_record(entry.time_ns, &header, &[made_up, entry.bytes], spool);
            }
            Format::Pcapng => {
                let packet = Packet {
                    interface: entry.interface,
                    time_ns: entry.time_ns,
                    len,
                    orig_len,
                    direction: entry.direction,
                    lost: entry.lost,
                    comment: entry.comment,
                };
                let (header, tail) = pcapng::packet(&packet);
                self.put_record(entry.time_ns, &header, &[made_up, entry.bytes, tail.as_slice()], spool);
            }
        }
        if self.filled_ns.is_none() {
            self.filled_ns = Some(now_ns);
        }
    }

    /// Ends the file with what its interfaces took and lost (pcapng), and hands over all that is left: also an empty buffer, whose
    /// memory the spool gets back.
    pub fn finish(mut self, of: impl Iterator<Item = (u32, Statistics)>, spool: &mut impl Spool) {
        if self.format == Format::Pcapng {
            for (interface, statistics) in of {
                self.put_whole(&pcapng::statistics(interface, &statistics), spool);
            }
        }
        spool.append(self.number, Chunk { bytes: self.buffer, first_record: self.first_record });
    }

    /// Hands over what is in the buffer when its first byte is older than `age_ns`.
    pub fn flush(&mut self, now_ns: u64, age_ns: u64, spool: &mut impl Spool) {
        if self.filled_ns.is_some_and(|filled| now_ns.saturating_sub(filled) >= age_ns) {
            self.hand_over(spool);
        }
    }

    #[inline]
    fn put_record<const H: usize, const N: usize>(&mut self, time_ns: u64, header: &[u8; H], parts: &[&[u8]; N], spool: &mut impl Spool) {
        let total = H + parts.iter().map(|part| part.len()).sum::<usize>();
        self.make_room(total, spool);
        if self.first_record.is_none() {
            self.first_record = Some((self.buffer.len() as u32, Stamp(time_ns)));
        }
        self.put(header, parts, total, spool);
    }

    fn put_whole(&mut self, bytes: &[u8], spool: &mut impl Spool) {
        self.make_room(bytes.len(), spool);
        self.put(&[], &[bytes], bytes.len(), spool);
    }

    /// What the chunk can still take.
    fn room(&self) -> usize {
        self.buffer_bytes.saturating_sub(self.buffer.len())
    }

    /// Hands over first what stands in the way of keeping so many bytes in one chunk, where that is asked for.
    #[inline]
    fn make_room(&mut self, bytes: usize, spool: &mut impl Spool) {
        if bytes > self.room() && self.whole_records && !self.buffer.is_empty() {
            self.hand_over(spool);
        }
    }

    /// Puts a header and what follows it, `total` bytes; the header's length is known when this is compiled, which makes it a move or two.
    #[inline]
    fn put<const H: usize, const N: usize>(&mut self, header: &[u8; H], parts: &[&[u8]; N], total: usize, spool: &mut impl Spool) {
        let place = if total <= self.room() { self.buffer.extend(total) } else { None };
        let Some((head, mut rest)) = place.and_then(<[u8]>::split_first_chunk_mut) else {
            self.put_over_the_end(header, spool);
            return parts.iter().for_each(|part| self.put_over_the_end(part, spool));
        };
        *head = *header;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let Some((now, later)) = rest.split_at_mut_checked(part.len()) else { break };
            now.copy_from_slice(part);
            rest = later;
        }
        self.bytes += total as u64;
    }

    /// Puts bytes that end in another chunk than they begin in, perhaps.
    #[cold]
    fn put_over_the_end(&mut self, mut part: &[u8], spool: &mut impl Spool) {
        while part.len() > self.room() {
            let (now, later) = part.split_at(self.room());
            self.buffer.extend_from_slice(now);
            self.bytes += now.len() as u64;
            self.hand_over(spool);
            part = later;
        }
        self.buffer.extend_from_slice(part);
        self.bytes += part.len() as u64;
    }

    fn hand_over(&mut self, spool: &mut impl Spool) {
        self.filled_ns = None;
        if self.buffer.is_empty() {
            return;
        }
        let bytes = std::mem::replace(&mut self.buffer, spool.buffer());
        spool.append(self.number, Chunk { bytes, first_record: self.first_record.take() });
        self.buffer_bytes = self.room_to_boundary(spool);
    }

    /// How much the next chunk may hold: up to the next multiple of the chunk size in the file, so that writes stay aligned.
    fn room_to_boundary<S: Spool>(&self, _: &S) -> usize {
        if self.whole_records { S::CHUNK_BYTES } else { S::CHUNK_BYTES - (self.bytes % S::CHUNK_BYTES as u64) as usize }
    }
}
