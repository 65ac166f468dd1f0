//! IPv4 and IPv6, around the tunnel and inside it.
//! In: a cursor at the header. Out: source, protocol, fragment or not; the cursor stands at the payload and ends where it ends.
//! Never: verifies the header checksum (taps see what the NIC offloads), reassembles, walks more than [`EXTENSIONS_MAX`] headers.
//! Spec: RFC 791 section 3.1; RFC 8200 sections 3 and 4; RFC 4302 section 2.2 (length of AH).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cursor::Cursor;
use super::ethernet;

/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// IPv6 extension headers that are walked over. RFC 8200 section 4.1 recommends an order that has seven of them.
pub const EXTENSIONS_MAX: usize = 8;

/// The longest packet whose length the 16-bit fields can tell.
const LENGTH_MAX: usize = u16::MAX as usize;

const WORD: usize = 4;
/// The unit of an extension header's length field, which does not count the first unit (RFC 8200 section 4.2).
const EXTENSION_UNIT: usize = 8;

/// Which IP a header must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl Version {
    /// The version that an EtherType announces.
    #[inline]
    #[must_use]
    pub const fn of_ether_type(ether_type: u16) -> Option<Self> {
        match ether_type {
            ethernet::IPV4 => Some(Self::V4),
            ethernet::IPV6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// What a header said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Who sent the packet.
    pub source: IpAddr,
    /// What the payload is; of a later fragment, what the first one began with.
    pub protocol: u8,
    /// Whether the packet is a piece of a larger one.
    pub fragment: bool,
}

/// What is wrong with a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It, or an extension header, is cut short.
    Short,
    /// It is of another version.
    Version,
    /// Its length is impossible, or it has too many extension headers.
    Header,
    /// The packet's length is less than the header's.
    Length {
        /// What the payload would be.
        protocol: u8,
    },
}

/// Consumes the header with its options or extension headers.
///
/// # Errors
/// With what is wrong with it; the cursor is then of no more use.
#[inline]
pub fn header(cursor: &mut Cursor<'_>, version: Version) -> Result<Header, Fault> {
    match version {
        Version::V4 => v4::header(cursor),
        Version::V6 => v6::header(cursor),
    }
}

/// The length of the packet at the cursor as its header tells it, header included. `None` when the header is not of that
/// version, is cut before the length, or leaves it open (0).
#[inline]
#[must_use]
pub fn stated_length(mut cursor: Cursor<'_>, version: Version) -> Option<usize> {
    let (number, length) = match version {
        Version::V4 => {
            let head = cursor.take::<{ v4::TOTAL_LENGTH + 2 }>()?;
            (head[0] >> 4, u16::from_be_bytes([head[v4::TOTAL_LENGTH], head[v4::TOTAL_LENGTH + 1]]))
        }
        Version::V6 => {
            let head = cursor.take::<{ v6::PAYLOAD_LENGTH + 2 }>()?;
            (head[0] >> 4, u16::from_be_bytes([head[v6::PAYLOAD_LENGTH], head[v6::PAYLOAD_LENGTH + 1]]))
        }
    };
    match version {
        _ if length == 0 => None,
        Version::V4 => (number == v4::VERSION).then_some(usize::from(length)),
        Version::V6 => (number == v6::VERSION).then_some(v6::HEADER_LEN + usize::from(length)),
    }
}

/// Whether a length field of 0 means "too long to say": Linux (BIG TCP) and RFC 2675 write it in packets of more than 65,535
/// bytes. In a shorter packet it is just a 0.
#[inline]
const fn is_open(length: usize, present: usize) -> bool {
    length == 0 && present > LENGTH_MAX
}

pub(super) mod v4 {
    use super::{Cursor, Fault, Header, IpAddr, Ipv4Addr, WORD, is_open};

    pub const VERSION: u8 = 4;
    /// Bytes without options.
    pub const HEADER_LEN: usize = 20;

    const VERSION_IHL: usize = 0;
    pub const TOTAL_LENGTH: usize = 2;
    const FLAGS_OFFSET: usize = 6;
    const PROTOCOL: usize = 9;
    pub const SOURCE: usize = 12;

    const IHL_MASK: u8 = 0x0f;
    /// More fragments, or a fragment offset; neither of the reserved and the do-not-fragment flag.
    const FRAGMENT_MASK: u16 = 0x3fff;

    #[inline]
    pub fn header(cursor: &mut Cursor<'_>) -> Result<Header, Fault> {
        let present = cursor.rest().len();
        let header = cursor.take::<HEADER_LEN>().ok_or(Fault::Short)?;
        if header[VERSION_IHL] >> 4 != VERSION {
            return Err(Fault::Version);
        }
        let header_len = usize::from(header[VERSION_IHL] & IHL_MASK) * WORD;
        let options_len = header_len.checked_sub(HEADER_LEN).ok_or(Fault::Header)?;
        cursor.split(options_len).ok_or(Fault::Short)?;
        let protocol = header[PROTOCOL];
        let total_length = usize::from(u16::from_be_bytes([header[TOTAL_LENGTH], header[TOTAL_LENGTH + 1]]));
        if !is_open(total_length, present) {
            cursor.state(total_length.checked_sub(header_len).ok_or(Fault::Length { protocol })?);
        }
        let source = Ipv4Addr::new(header[SOURCE], header[SOURCE + 1], header[SOURCE + 2], header[SOURCE + 3]);
        let fragment = u16::from_be_bytes([header[FLAGS_OFFSET], header[FLAGS_OFFSET + 1]]) & FRAGMENT_MASK != 0;
        Ok(Header { source: IpAddr::V4(source), protocol, fragment })
    }
}

mod v6 {
    use super::{Cursor, EXTENSION_UNIT, EXTENSIONS_MAX, Fault, Header, IpAddr, Ipv6Addr, WORD, is_open};

    pub const VERSION: u8 = 6;
    /// Bytes without extension headers.
    pub const HEADER_LEN: usize = 40;

    pub const PAYLOAD_LENGTH: usize = 4;
    const NEXT_HEADER: usize = 6;
    /// The source address is the 16 bytes between these; they are the second and third part of the header.
    const FIXED_LEN: usize = 8;
    const ADDRESS_LEN: usize = 16;

    /// Extension headers with the common form: next header, length in units of 8 bytes, data.
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    const HIP: u8 = 139;
    const SHIM6: u8 = 140;
    /// Always 8 bytes.
    const FRAGMENT: u8 = 44;
    /// Length in words, less two.
    const AUTHENTICATION: u8 = 51;

    #[inline]
    pub fn header(cursor: &mut Cursor<'_>) -> Result<Header, Fault> {
        if cursor.rest().len() < HEADER_LEN {
            return Err(Fault::Short);
        }
        let fixed = cursor.take::<FIXED_LEN>().ok_or(Fault::Short)?;
        if fixed[0] >> 4 != VERSION {
            return Err(Fault::Version);
        }
        let source = Ipv6Addr::from(*cursor.take::<ADDRESS_LEN>().ok_or(Fault::Short)?);
        cursor.take::<ADDRESS_LEN>().ok_or(Fault::Short)?;
        let payload_length = usize::from(u16::from_be_bytes([fixed[PAYLOAD_LENGTH], fixed[PAYLOAD_LENGTH + 1]]));
        if !is_open(payload_length, cursor.rest().len()) {
            cursor.state(payload_length);
        }
        let (protocol, fragment) = extensions(cursor, fixed[NEXT_HEADER])?;
        Ok(Header { source: IpAddr::V6(source), protocol, fragment })
    }

    /// Walks to the payload, or to the fragment header, behind which nothing is where it seems to be.
    #[inline]
    fn extensions(cursor: &mut Cursor<'_>, first: u8) -> Result<(u8, bool), Fault> {
        let mut next = first;
        for _ in 0..=EXTENSIONS_MAX {
            let unit = match next {
                HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 | AUTHENTICATION | FRAGMENT => {
                    cursor.take::<EXTENSION_UNIT>().ok_or(Fault::Short)?
                }
                payload => return Ok((payload, false)),
            };
            let length = usize::from(unit[1]);
            let behind_first_unit = match next {
                FRAGMENT => return Ok((unit[0], true)),
                AUTHENTICATION => length * WORD,
                _ => length * EXTENSION_UNIT,
            };
            cursor.split(behind_first_unit).ok_or(Fault::Short)?;
            next = unit[0];
        }
        Err(Fault::Header)
    }
}
