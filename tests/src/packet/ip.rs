//! IPv4, IPv6 and IPv6 extension headers. Spec: RFC 791 section 3.1; RFC 8200 sections 3 and 4; RFC 4302 section 2.2.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Around, checksum};

/// An IPv4 header.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Ipv4 {
    pub version: u8,
    /// Header length in words of 4 bytes.
    pub ihl: Option<u8>,
    pub tos: u8,
    pub total_length: Option<u16>,
    pub id: u16,
    /// Flags (3 bits: reserved, do not fragment, more fragments) and fragment offset (13 bits, in units of 8 bytes).
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: Option<u8>,
    pub checksum: Option<u16>,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// Padded with zeros to a multiple of 4.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// The flag "more fragments" in [`Self::fragment`].
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The flag "do not fragment" in [`Self::fragment`].
    pub const DO_NOT_FRAGMENT: u16 = 0x4000;

    /// A header without options and flags.
    #[must_use]
    pub fn new(source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        Self {
            version: 4,
            ihl: None,
            tos: 0,
            total_length: None,
            id: 0,
            fragment: 0,
            ttl: 255,
            protocol: None,
            checksum: None,
            source: source.into(),
            destination: destination.into(),
            options: Vec::new(),
        }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let length = 20 + options.len();
        let ihl = self.ihl.unwrap_or((length / 4) as u8);
        let total_length = self.total_length.unwrap_or((length + around.payload.len()) as u16);
        let protocol = self.protocol.unwrap_or_else(|| around.protocol());
        let with = |sum: u16| {
            [
                &[self.version << 4 | ihl, self.tos][..],
                &total_length.to_be_bytes(),
                &self.id.to_be_bytes(),
                &self.fragment.to_be_bytes(),
                &[self.ttl, protocol],
                &sum.to_be_bytes(),
                &self.source.octets(),
                &self.destination.octets(),
                &options,
            ]
            .concat()
        };
        with(self.checksum.unwrap_or_else(|| checksum::internet(&[&with(0)])))
    }
}

/// An IPv6 header.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Ipv6 {
    pub version: u8,
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    pub payload_length: Option<u16>,
    pub next_header: Option<u8>,
    pub hop_limit: u8,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

impl Ipv6 {
    /// A header; extension headers are layers of their own.
    #[must_use]
    pub fn new(source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        Self {
            version: 6,
            traffic_class: 0,
            flow_label: 0,
            payload_length: None,
            next_header: None,
            hop_limit: 64,
            source: source.into(),
            destination: destination.into(),
        }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let first = u32::from(self.version) << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        let payload_length = self.payload_length.unwrap_or(around.payload.len() as u16);
        let next_header = self.next_header.unwrap_or_else(|| around.protocol());
        [
            &first.to_be_bytes()[..],
            &payload_length.to_be_bytes(),
            &[next_header, self.hop_limit],
            &self.source.octets(),
            &self.destination.octets(),
        ]
        .concat()
    }
}

/// An IPv6 extension header.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Extension {
    /// What the header below calls it.
    pub kind: u8,
    pub next_header: Option<u8>,
    /// The second byte, in the unit of its kind.
    pub length: Option<u8>,
    /// All after the first two bytes.
    pub data: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop options (0), all padding, of `units` times 8 bytes.
    #[must_use]
    pub fn hop_by_hop(units: u8) -> Self {
        Self::padding(0, units)
    }

    /// Destination options (60), all padding, of `units` times 8 bytes.
    #[must_use]
    pub fn destination(units: u8) -> Self {
        Self::padding(60, units)
    }

    /// An authentication header (51) with `words` words of check value: (3 + `words`) * 4 bytes in all.
    #[must_use]
    pub fn authentication(words: u8) -> Self {
        Self { kind: 51, next_header: None, length: Some(words + 1), data: vec![0; 10 + 4 * usize::from(words)] }
    }

    /// A fragment header (44); `offset` in units of 8 bytes.
    #[must_use]
    pub fn fragment(offset: u16, more: bool) -> Self {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        Self { kind: 44, next_header: None, length: Some(0), data: vec![high, low, 0, 0, 0, 1] }
    }

    /// Options 1 (PadN) of up to 255 bytes each.
    fn padding(kind: u8, units: u8) -> Self {
        let mut data = vec![0; 8 * usize::from(units) - 2];
        for pad in data.chunks_mut(257) {
            // A lone byte stays 0: that is Pad1.
            let length = pad.len();
            if let [option, option_length, ..] = pad {
                (*option, *option_length) = (1, (length - 2) as u8);
            }
        }
        Self { kind, next_header: None, length: None, data }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let next_header = self.next_header.unwrap_or_else(|| around.protocol());
        let length = self.length.unwrap_or(((self.data.len() + 2) / 8 - 1) as u8);
        [&[next_header, length][..], &self.data].concat()
    }
}
