//! UDP, TCP and ICMP echo. Spec: RFC 768; RFC 9293 section 3.1; RFC 792 and RFC 4443 section 4.1.

use super::{Around, checksum};

/// A UDP header.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Udp {
    pub source: u16,
    pub destination: u16,
    pub length: Option<u16>,
    /// `Some(0)`: none.
    pub checksum: Option<u16>,
}

impl Udp {
    /// A header with the right checksum.
    #[must_use]
    pub fn new(source: u16, destination: u16) -> Self {
        Self { source, destination, length: None, checksum: None }
    }

    /// The header of a tunnel, which says that there is no checksum.
    #[must_use]
    pub fn unchecked(source: u16, destination: u16) -> Self {
        Self { checksum: Some(0), ..Self::new(source, destination) }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let length = 8 + around.payload.len();
        let with = |sum: u16| {
            let fields = [self.source, self.destination, self.length.unwrap_or(length as u16), sum];
            fields.map(u16::to_be_bytes).concat()
        };
        let pseudo = checksum::pseudo_header(around.addresses, 17, length);
        with(self.checksum.unwrap_or_else(|| match checksum::internet(&[&pseudo, &with(0), around.payload]) {
            // 0 would mean none (RFC 768).
            0 => 0xffff,
            sum => sum,
        }))
    }
}

/// A TCP header without options.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    pub checksum: Option<u16>,
}

impl Tcp {
    /// The flag SYN.
    pub const SYN: u8 = 0x02;
    /// The flag ACK.
    pub const ACK: u8 = 0x10;

    /// A header with the flag ACK.
    #[must_use]
    pub fn new(source: u16, destination: u16) -> Self {
        Self { source, destination, sequence: 1, acknowledgment: 1, flags: Self::ACK, checksum: None }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let with = |sum: u16| {
            [
                &self.source.to_be_bytes()[..],
                &self.destination.to_be_bytes(),
                &self.sequence.to_be_bytes(),
                &self.acknowledgment.to_be_bytes(),
                &[5 << 4, self.flags, 0xff, 0xff],
                &sum.to_be_bytes(),
                &[0, 0],
            ]
            .concat()
        };
        let pseudo = checksum::pseudo_header(around.addresses, 6, 20 + around.payload.len());
        with(self.checksum.unwrap_or_else(|| checksum::internet(&[&pseudo, &with(0), around.payload])))
    }
}

/// An ICMP echo request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Icmp {
    pub v6: bool,
    pub identifier: u16,
    pub sequence: u16,
}

impl Icmp {
    /// For IPv4.
    #[must_use]
    pub fn echo(identifier: u16, sequence: u16) -> Self {
        Self { v6: false, identifier, sequence }
    }

    /// For IPv6.
    #[must_use]
    pub fn echo_v6(identifier: u16, sequence: u16) -> Self {
        Self { v6: true, identifier, sequence }
    }

    pub(super) fn protocol(&self) -> u8 {
        if self.v6 { 58 } else { 1 }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let kind = if self.v6 { 128 } else { 8 };
        let with = |sum: u16| [&[kind, 0][..], &sum.to_be_bytes(), &self.identifier.to_be_bytes(), &self.sequence.to_be_bytes()].concat();
        let pseudo = if self.v6 { checksum::pseudo_header(around.addresses, 58, 8 + around.payload.len()) } else { Vec::new() };
        with(checksum::internet(&[&pseudo, &with(0), around.payload]))
    }
}
