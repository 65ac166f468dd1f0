//! One frame in; out comes the mirrored frame with its origin, or the reason why there is none.
//! Never: validates inner checksums (the mirror cuts packets and the sender offloads sums), rejects reserved bits.
//! Spec: rules table in the README; RFC 8926, RFC 7348.
use super::{Drop, Ignored, Origin};

/// What to do with packets that the load balancer carries inline (no mirrored Ethernet frame inside).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inline {
    /// Count them as ignored.
    Ignore,
    /// Store them behind a made-up Ethernet header.
    Store,
}

/// What decap needs to know of the settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// UDP destination port of GENEVE; 6081 by IANA.
    pub geneve_port: u16,
    /// UDP destination port of VXLAN; 4789 by IANA.
    pub vxlan_port: u16,
    /// What to do with inline packets.
    pub inline: Inline,
}

/// What the stored bytes begin with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// A whole Ethernet frame.
    Ethernet,
    /// A bare IPv4 packet (inline traffic).
    Ipv4,
    /// A bare IPv6 packet (inline traffic).
    Ipv6,
}

/// What was odd about a frame that was accepted all the same.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Notes {
    /// The frame is shorter than it was on the source's wire.
    pub cut: bool,
    /// GENEVE came without an endpoint id.
    pub missing_gwlb_options: bool,
    /// An AWS option came twice; the first one counts.
    pub repeated_option: bool,
    /// Fewer than 14 bytes of mirrored frame.
    pub runt: bool,
}

/// A mirrored frame inside the frame that carried it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inner<'a> {
    /// Its bytes, as many as came; never empty.
    pub bytes: &'a [u8],
    /// Where `bytes` begins in the outer frame.
    pub offset: usize,
    /// Its length on the source's wire, as far as the headers tell; never less than `bytes.len()`.
    pub orig_len: u32,
    /// What the bytes begin with.
    pub link: Link,
    /// Where it came from.
    pub origin: Origin,
    /// What was odd about it.
    pub notes: Notes,
}

/// The three answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// A mirrored frame.
    Inner(Inner<'a>),
    /// Not ours.
    NotOurs(Ignored),
    /// Ours and wrong.
    Malformed(Drop),
}

/// Takes the tunnels off one Ethernet frame.
#[must_use]
pub fn outer_source(_frame: &[u8]) -> Option<std::net::IpAddr> {
    None
}

/// X
pub fn decap<'a>(_frame: &'a [u8], _rules: &Rules) -> Outcome<'a> {
    Outcome::NotOurs(Ignored::NotIp)
}
