//! In: the bytes of a pcapng file. Out: its frames (Enhanced, Simple and the obsolete Packet Blocks).
//! Never: a frame of a link that is not Ethernet, trust in a length that the block does not have.
//! Spec: draft-ietf-opsawg-pcapng sections 3.1 (blocks), 4.1 to 4.4; sections in any byte order, one behind the other.
//!
//! Written here and not taken from pcap-parser: its 0.17 knows no resolution in powers of 2, reads if_tsoffset of a big-endian section
//! as little-endian, and cannot begin on a pipe that gives less than a whole block at first.

use super::stream::Stream;
use super::{FRAME_BYTES_MAX, Halt, LINKTYPE_ETHERNET};
use crate::capture::OwnedFrame;
use crate::host::clock::SECOND_NS;

/// How every section begins, in both byte orders.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

const OPTION_END: u16 = 0;
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;

/// Type and length before the body, length again behind it.
const FRAMING_BYTES: usize = 12;

/// Blocks that hold frames or are read whole for another reason. Longer ones are refused, others are skipped whatever their length.
const BLOCK_BYTES_MAX: u32 = 16 << 20;

/// The most interfaces that are remembered in one section; each is 24 bytes of memory for 20 in the file.
const INTERFACES_MAX: usize = 1 << 20;

/// How stamps of an interface are to be read.
#[derive(Clone, Copy)]
struct Interface {
    linktype: u16,
    snaplen: u32,
    /// Units in a second.
    resolution: u64,
    offset_s: i64,
}

/// What should have stood in a block, and what stands there.
type Problem = (&'static str, String);

/// A pcapng file.
pub(super) struct Pcapng {
    pub stream: Stream,
    big_endian: bool,
    interfaces: Vec<Interface>,
    /// Stamp of the frame before; Simple Packet Blocks have none of their own.
    last_ns: u64,
    /// Bytes of a block that does not matter, to be let go.
    skip: usize,
}

/// A frame's place in its block.
struct Place {
    time_ns: Option<u64>,
    at: usize,
    len: u32,
    orig_len: u32,
}

impl Pcapng {
    /// A file whose first bytes are [`MAGIC`].
    pub fn open(stream: Stream) -> Self {
        Self { stream, big_endian: false, interfaces: Vec::new(), last_ns: 0, skip: 0 }
    }

    /// Puts frames behind each other, until none comes.
    pub fn fill(&mut self, frames: &mut Vec<OwnedFrame>) -> Result<(), Halt> {
        while let Some(frame) = self.next()? {
            frames.push(frame);
        }
        Ok(())
    }

    /// The next frame, or `None` at the end.
    fn next(&mut self) -> Result<Option<OwnedFrame>, Halt> {
        loop {
            self.let_go()?;
            let Some((kind, length)) = self.block_header()? else { return Ok(None) };
            if ![SECTION, INTERFACE, PACKET, SIMPLE_PACKET, ENHANCED_PACKET].contains(&kind) {
                self.skip = length as usize;
                continue;
            }
            let place = self.block(kind, length)?;
            let frame = place.map(|place| {
                self.last_ns = place.time_ns.unwrap_or(self.last_ns);
                self.stream.give(self.last_ns, place.at, place.len, place.orig_len)
            });
            self.stream.consume(length as usize);
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// Lets a block go that does not matter, piece by piece: it may be longer than what is held.
    fn let_go(&mut self) -> Result<(), Halt> {
        while self.skip > 0 {
            let piece = self.stream.ahead(self.skip.min(1 << 16))?.len();
            if piece == 0 {
                let found = format!("the end of the file, {} bytes too early", self.skip);
                return Err(self.stream.wrong("the rest of a block", found).into());
            }
            self.stream.consume(piece);
            self.skip -= piece;
        }
        Ok(())
    }

    /// Type and length of the next block, or `None` at the end. A section header sets the byte order.
    fn block_header(&mut self) -> Result<Option<(u32, u32)>, Halt> {
        let header = self.stream.ahead(FRAMING_BYTES)?;
        if header.is_empty() {
            return Ok(None);
        }
        let present = header.len();
        if header.starts_with(&MAGIC) && present == FRAMING_BYTES {
            self.big_endian = match (u32_at(header, 8, true), u32_at(header, 8, false)) {
                (Some(BYTE_ORDER), _) => true,
                (_, Some(BYTE_ORDER)) => false,
                (other, _) => {
                    let found = format!("{:08x}", other.unwrap_or_default());
                    return Err(self.stream.wrong("the byte-order magic 1a2b3c4d in a section header", found).into());
                }
            };
        }
        match (u32_at(header, 0, self.big_endian), u32_at(header, 4, self.big_endian)) {
            (Some(kind), Some(length)) if present == FRAMING_BYTES => {
                if length < FRAMING_BYTES as u32 || !length.is_multiple_of(4) {
                    return Err(self.stream.wrong("a block length that is a multiple of 4, at least 12", length.to_string()).into());
                }
                Ok(Some((kind, length)))
            }
            _ => Err(self.stream.wrong("a whole block header", format!("{present} bytes and the end of the file")).into()),
        }
    }

    /// Reads one block of a kind that matters; gives the frame's place when it holds one.
    fn block(&mut self, kind: u32, length: u32) -> Result<Option<Place>, Halt> {
        if length > BLOCK_BYTES_MAX {
            return Err(self.stream.wrong("a block of at most 16 MiB", format!("a block of {length} bytes")).into());
        }
        let big_endian = self.big_endian;
        let block = self.stream.ahead(length as usize)?;
        if block.len() < length as usize {
            let found = format!("{} of its {length} bytes and the end of the file", block.len());
            return Err(self.stream.wrong("a whole block", found).into());
        }
        let read = check_trailer(block, length, big_endian).and_then(|()| match kind {
            SECTION => section(block, big_endian).map(|()| self.interfaces.clear()).map(|()| None),
            INTERFACE if self.interfaces.len() >= INTERFACES_MAX => Err(("fewer interfaces", "too many in one section".to_owned())),
            INTERFACE => interface(block, big_endian).map(|interface| self.interfaces.push(interface)).map(|()| None),
            _ => frame(kind, block, &self.interfaces, big_endian).map(Some),
        });
        read.map_err(|(expected, found)| self.stream.wrong(expected, found).into())
    }
}

fn check_trailer(block: &[u8], length: u32, big_endian: bool) -> Result<(), Problem> {
    match u32_at(block, (length as usize).saturating_sub(4), big_endian) {
        Some(again) if again == length => Ok(()),
        again => Err(("the block's length again at its end", format!("{} instead of {length}", again.unwrap_or_default()))),
    }
}

fn section(block: &[u8], big_endian: bool) -> Result<(), Problem> {
    match u16_at(block, 12, big_endian) {
        Some(1) => Ok(()),
        version => Err(("version 1 of pcapng", format!("version {}", version.unwrap_or_default()))),
    }
}

fn interface(block: &[u8], big_endian: bool) -> Result<Interface, Problem> {
    let short = || ("an interface description of at least 20 bytes", format!("{} bytes", block.len()));
    let body = block.get(8..block.len().saturating_sub(4)).ok_or_else(short)?;
    let linktype = u16_at(body, 0, big_endian).ok_or_else(short)?;
    let snaplen = u32_at(body, 4, big_endian).ok_or_else(short)?;
    let mut interface = Interface { linktype, snaplen, resolution: 1_000_000, offset_s: 0 };
    let mut options = body.get(8..).unwrap_or_default();
    while let (Some(code), Some(length)) = (u16_at(options, 0, big_endian), u16_at(options, 2, big_endian)) {
        let cut = || ("an option that ends inside its block", format!("option {code} of {length} bytes"));
        let value = options.get(4..4 + usize::from(length)).ok_or_else(cut)?;
        match (code, value) {
            (OPTION_END, _) => break,
            (IF_TSRESOL, [exponent]) => interface.resolution = resolution(*exponent)?,
            (IF_TSOFFSET, _) => {
                let bytes = value.first_chunk().copied().ok_or_else(cut)?;
                interface.offset_s = if big_endian { i64::from_be_bytes(bytes) } else { i64::from_le_bytes(bytes) };
            }
            _ => {}
        }
        options = options.get(4 + usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(interface)
}

/// Units in a second by if_tsresol: a power of 10, or of 2 when the highest bit is set.
fn resolution(exponent: u8) -> Result<u64, Problem> {
    let base: u64 = if exponent & 0x80 == 0 { 10 } else { 2 };
    base.checked_pow(u32::from(exponent & 0x7f))
        .ok_or_else(|| ("a time resolution of less than 2^64 in a second", format!("if_tsresol {exponent}")))
}

fn frame(kind: u32, block: &[u8], interfaces: &[Interface], big_endian: bool) -> Result<Place, Problem> {
    let short = || ("a longer packet block", format!("{} bytes", block.len()));
    let field = |at| u32_at(block, at, big_endian).ok_or_else(short);
    let number = match kind {
        SIMPLE_PACKET => 0,
        PACKET => u16_at(block, 8, big_endian).ok_or_else(short)?.into(),
        _ => field(8)?,
    };
    let interface = usize::try_from(number)
        .ok()
        .and_then(|number| interfaces.get(number))
        .ok_or_else(|| ("a packet of an interface that was described before", format!("interface {number} of {}", interfaces.len())))?;
    if interface.linktype != LINKTYPE_ETHERNET {
        return Err(("link type 1 (Ethernet) of the packet's interface", format!("link type {}", interface.linktype)));
    }
    let (time_ns, at, captured, orig_len) = if kind == SIMPLE_PACKET {
        let (orig_len, snaplen) = (field(8)?, if interface.snaplen == 0 { u32::MAX } else { interface.snaplen });
        (None, 12, orig_len.min(snaplen), orig_len)
    } else {
        let ticks = u64::from(field(12)?) << 32 | u64::from(field(16)?);
        (Some(time_ns(ticks, interface)), 28, field(20)?, field(24)?)
    };
    if captured > FRAME_BYTES_MAX {
        return Err(("a packet of at most 262,144 bytes", format!("a packet of {captured} bytes")));
    }
    if at + captured as usize > block.len().saturating_sub(4) {
        return Err(("a packet that ends inside its block", format!("{captured} bytes in a block of {}", block.len())));
    }
    Ok(Place { time_ns, at, len: captured, orig_len })
}

/// Nanoseconds since 1970; clamped to what 64 bits hold.
fn time_ns(ticks: u64, interface: &Interface) -> u64 {
    let Interface { resolution, offset_s, .. } = *interface;
    let second = i128::from(SECOND_NS);
    let whole = i128::from(ticks / resolution) + i128::from(offset_s);
    let fraction = i128::from(ticks % resolution) * second / i128::from(resolution);
    u64::try_from((whole * second + fraction).max(0)).unwrap_or(u64::MAX)
}

fn u16_at(bytes: &[u8], at: usize, big_endian: bool) -> Option<u16> {
    let bytes = *bytes.get(at..)?.first_chunk()?;
    Some(if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
}

fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    let bytes = *bytes.get(at..)?.first_chunk()?;
    Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
}
