//! pcapng. In: origins, stamps, lengths, counts. Out: the blocks of a file, all but a frame's own bytes.
//! Never: another link type or snap length within a file (libpcap reads only such files); a custom block.
//! Spec: draft-ietf-opsawg-pcapng, sections 4.1 (section header), 4.2 (interface), 4.3 (enhanced packet), 4.6 (statistics).

use super::pcap::LINKTYPE_ETHERNET;
use crate::capture::Direction;

const BLOCK_SECTION: u32 = 0x0a0d_0d0a;
const BLOCK_INTERFACE: u32 = 1;
const BLOCK_STATISTICS: u32 = 5;
const BLOCK_PACKET: u32 = 6;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
const INTERFACE_FILTER: u16 = 11;
const PACKET_FLAGS: u16 = 2;
const PACKET_DROPCOUNT: u16 = 4;
const STATISTICS_START: u16 = 2;
const STATISTICS_END: u16 = 3;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_KERNEL_DROPS: u16 = 7;

/// Byte-order magic of the section header, written little endian.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// Fixed bytes of an enhanced packet block in front of the frame.
pub const PACKET_HEADER_BYTES: usize = 28;

/// The most bytes a packet's padding, options and second length take: 3 + flags 8 + drop count 12 + comment 4 + 60 + end 4 + length 4.
const PACKET_TAIL_BYTES: usize = 96;

/// A block under construction.
struct Block(Vec<u8>);

impl Block {
    fn new(kind: u32) -> Self {
        let mut block = Self(Vec::with_capacity(128));
        block.u32(kind);
        block.u32(0);
        block
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        // An option's length has 16 bits; nothing of ours comes near.
        let value = value.get(..value.len().min(usize::from(u16::MAX))).unwrap_or_default();
        self.u16(code);
        self.u16(value.len() as u16);
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn time_option(&mut self, code: u16, time_ns: u64) {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&((time_ns >> 32) as u32).to_le_bytes());
        value[4..].copy_from_slice(&(time_ns as u32).to_le_bytes());
        self.option(code, &value);
    }

    fn finish(mut self) -> Vec<u8> {
        self.option(OPTION_END, &[]);
        let total = (self.0.len() + 4) as u32;
        self.u32(total);
        if let Some(length) = self.0.get_mut(4..8) {
            length.copy_from_slice(&total.to_le_bytes());
        }
        self.0
    }
}

/// The section header: who wrote this, and where.
#[must_use]
pub fn section(application: &str, comment: &str) -> Vec<u8> {
    let mut block = Block::new(BLOCK_SECTION);
    block.u32(BYTE_ORDER);
    block.u16(1);
    block.u16(0);
    // Section length unknown.
    block.u32(u32::MAX);
    block.u32(u32::MAX);
    block.option(SECTION_APPLICATION, application.as_bytes());
    block.option(OPTION_COMMENT, comment.as_bytes());
    block.finish()
}

/// An interface of Ethernet frames with nanosecond stamps.
#[must_use]
pub fn interface(name: &str, description: &str, filter: Option<&str>, snaplen: u32) -> Vec<u8> {
    let mut block = Block::new(BLOCK_INTERFACE);
    block.u16(LINKTYPE_ETHERNET);
    block.u16(0);
    block.u32(snaplen);
    block.option(INTERFACE_NAME, name.as_bytes());
    block.option(INTERFACE_DESCRIPTION, description.as_bytes());
    block.option(INTERFACE_RESOLUTION, &[9]);
    if let Some(filter) = filter {
        // A leading 0 says that a libpcap filter string follows.
        let mut value = vec![0];
        value.extend_from_slice(filter.as_bytes());
        block.option(INTERFACE_FILTER, &value);
    }
    block.finish()
}

/// More than [`statistics`] takes.
pub const STATISTICS_BYTES_MAX: u64 = 144;

/// What an interface took and lost, at the end of a file.
#[derive(Clone, Copy, Default, Debug)]
pub struct Statistics {
    /// Nanoseconds since 1970 when capture into this file began.
    pub start_ns: u64,
    /// Nanoseconds since 1970 when it ended.
    pub end_ns: u64,
    /// Frames of this interface.
    pub received: u64,
    /// Frames the kernel dropped, of all origins together; given with the first interface only.
    pub kernel_drops: Option<u64>,
}

/// The statistics of interface number `interface`.
#[must_use]
pub fn statistics(interface: u32, statistics: &Statistics) -> Vec<u8> {
    let mut block = Block::new(BLOCK_STATISTICS);
    block.u32(interface);
    block.u32((statistics.end_ns >> 32) as u32);
    block.u32(statistics.end_ns as u32);
    block.time_option(STATISTICS_START, statistics.start_ns);
    block.time_option(STATISTICS_END, statistics.end_ns);
    block.option(STATISTICS_RECEIVED, &statistics.received.to_le_bytes());
    if let Some(drops) = statistics.kernel_drops {
        block.option(STATISTICS_KERNEL_DROPS, &drops.to_le_bytes());
        block.option(OPTION_COMMENT, b"osdrop: dropped by the kernel, of all origins together");
    }
    block.finish()
}

/// What stands around a frame's bytes in an enhanced packet block.
#[derive(Clone, Copy, Default, Debug)]
pub struct Packet<'a> {
    /// Interface number.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes of the frame in this file.
    pub len: u32,
    /// Its length on the source's wire.
    pub orig_len: u32,
    /// Which way it went.
    pub direction: Direction,
    /// Frames that the kernel dropped since the last one was written, into whichever file: each drop is marked once.
    pub lost: u64,
    /// At most 60 bytes are kept.
    pub comment: &'a str,
}

/// The bytes behind a frame: padding, options, the block's length again.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    bytes: [u8; PACKET_TAIL_BYTES],
    len: usize,
}

impl Tail {
    /// The bytes.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    #[inline]
    fn option(&mut self, code: u16, value: &[u8]) {
        self.put(&code.to_le_bytes());
        self.put(&(value.len() as u16).to_le_bytes());
        self.put(value);
        // Padded to a multiple of 4 by itself: what stands before may not be one.
        self.len += value.len().next_multiple_of(4) - value.len();
    }
}

/// What goes in front of and behind a frame's bytes.
#[inline]
#[must_use]
pub fn packet(packet: &Packet<'_>) -> ([u8; PACKET_HEADER_BYTES], Tail) {
    let mut tail = Tail { bytes: [0; PACKET_TAIL_BYTES], len: packet.len.next_multiple_of(4).wrapping_sub(packet.len) as usize };
    let flags: u32 = match packet.direction {
        Direction::Unknown => 0,
        Direction::Inbound => 1,
        Direction::Outbound => 2,
    };
    let padding = tail.len;
    if flags != 0 {
        tail.option(PACKET_FLAGS, &flags.to_le_bytes());
    }
    if packet.lost != 0 {
        tail.option(PACKET_DROPCOUNT, &packet.lost.to_le_bytes());
    }
    if !packet.comment.is_empty() {
        let comment = packet.comment.as_bytes();
        tail.option(OPTION_COMMENT, comment.get(..comment.len().min(60)).unwrap_or_default());
    }
    if tail.len > padding {
        tail.put(&[0; 4]);
    }
    let total = PACKET_HEADER_BYTES as u32 + packet.len + tail.len as u32 + 4;
    tail.put(&total.to_le_bytes());
    let mut header = [0; PACKET_HEADER_BYTES];
    header[0..4].copy_from_slice(&BLOCK_PACKET.to_le_bytes());
    header[4..8].copy_from_slice(&total.to_le_bytes());
    header[8..12].copy_from_slice(&packet.interface.to_le_bytes());
    header[12..16].copy_from_slice(&((packet.time_ns >> 32) as u32).to_le_bytes());
    header[16..20].copy_from_slice(&(packet.time_ns as u32).to_le_bytes());
    header[20..24].copy_from_slice(&packet.len.to_le_bytes());
    header[24..28].copy_from_slice(&packet.orig_len.to_le_bytes());
    (header, tail)
}
