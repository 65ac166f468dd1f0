//! One frame in; out comes the mirrored frame with its origin, or the reason why there is none.
//! Never: validates inner checksums (the mirror cuts packets and the sender offloads sums), rejects reserved bits.
//! Spec: RFC 8926, RFC 7348; every rule is a row of the golden table in `tests/tests/golden.rs`.

use std::net::IpAddr;

use super::cursor::Cursor;
use super::ip::{self, Version};
use super::origin::{Origin, Via};
use super::reason::{Drop, Ignored};
use super::template::{self, Head};
use super::{ethernet, geneve, udp, vxlan};

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

impl Link {
    /// What stands in for the Ethernet header of a packet that came without one: no addresses, and the EtherType of what follows.
    #[must_use]
    pub const fn made_up_header(self) -> &'static [u8] {
        match self {
            Self::Ethernet => &[],
            Self::Ipv4 => &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00],
            Self::Ipv6 => &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd],
        }
    }
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
#[inline]
#[must_use]
pub fn decap<'a>(frame: &'a [u8], rules: &Rules) -> Outcome<'a> {
    let Some((head, inner)) = template::aws(frame, rules) else { return by_headers(frame, rules) };
    match template::stated_length(inner) {
        Some(stated) => behind(head, inner, Some(stated)),
        None => behind_and_not_ipv4(head, inner),
    }
}

/// Not inlined, as [`by_headers`] is not.
#[inline(never)]
fn behind_and_not_ipv4<'a>(head: &Head, inner: &'a [u8]) -> Outcome<'a> {
    behind(head, inner, stated_frame_length(inner))
}

/// The mirrored frame behind the headers of the AWS layout.
#[inline]
fn behind<'a>(head: &Head, inner: &'a [u8], stated: Option<usize>) -> Outcome<'a> {
    Outcome::Inner(frame(Cursor::behind(head, inner), stated, template::origin(head), Notes::default()))
}

/// As [`decap`], header by header. Not inlined: the few frames that come here shall not cost the others registers.
#[inline(never)]
fn by_headers<'a>(frame: &'a [u8], rules: &Rules) -> Outcome<'a> {
    match outer(Cursor::new(frame), rules) {
        Ok(inner) => Outcome::Inner(inner),
        Err(Stop::NotOurs(reason)) => Outcome::NotOurs(reason),
        Err(Stop::Malformed(reason)) => Outcome::Malformed(reason),
    }
}

/// The source address of the outer IP header; `None` when there is none, or its header is malformed.
#[inline]
#[must_use]
pub fn outer_source(frame: &[u8]) -> Option<IpAddr> {
    let mut cursor = Cursor::new(frame);
    let version = Version::of_ether_type(ethernet::header(&mut cursor)?)?;
    ip::header(&mut cursor, version).ok().map(|ip| ip.source)
}

/// The two answers that are not a mirrored frame.
enum Stop {
    NotOurs(Ignored),
    Malformed(Drop),
}

impl From<Ignored> for Stop {
    fn from(reason: Ignored) -> Self {
        Self::NotOurs(reason)
    }
}

impl From<Drop> for Stop {
    fn from(reason: Drop) -> Self {
        Self::Malformed(reason)
    }
}

/// Ethernet, IP and UDP as the interface gave them.
#[inline]
fn outer<'a>(mut cursor: Cursor<'a>, rules: &Rules) -> Result<Inner<'a>, Stop> {
    let ether_type = ethernet::header(&mut cursor).ok_or(Ignored::NotIp)?;
    let version = Version::of_ether_type(ether_type).ok_or(Ignored::NotIp)?;
    let ip = ip::header(&mut cursor, version).map_err(outer_ip_fault)?;
    if ip.protocol != ip::UDP {
        return Err(Ignored::NotUdp.into());
    }
    if ip.fragment {
        return Err(Drop::OuterFragment.into());
    }
    let udp = udp::header(&mut cursor).ok_or(Drop::OuterUdpLength)?;
    if udp.destination == rules.geneve_port {
        udp.bound_or_open(&mut cursor).ok_or(Drop::OuterUdpLength)?;
        balanced(cursor, ip.source, rules)
    } else if udp.destination == rules.vxlan_port {
        udp.bound_or_open(&mut cursor).ok_or(Drop::OuterUdpLength)?;
        mirrored(cursor, Via::Direct, ip.source, Notes::default())
    } else {
        Err(Ignored::OtherPort.into())
    }
}

/// GENEVE, as a Gateway Load Balancer sends it.
#[inline]
fn balanced<'a>(mut cursor: Cursor<'a>, outer_source: IpAddr, rules: &Rules) -> Result<Inner<'a>, Stop> {
    let geneve = geneve::header(&mut cursor)?;
    let via = Via::Gwlb(geneve.options.endpoint);
    let notes =
        Notes { missing_gwlb_options: geneve.options.endpoint.is_none(), repeated_option: geneve.options.repeated, ..Notes::default() };
    let version = Version::of_ether_type(geneve.protocol);
    if version.is_none() && geneve.protocol != ethernet::BRIDGED {
        return Err(Drop::GeneveProto.into());
    }
    if cursor.rest().is_empty() {
        return Err(Drop::GeneveEmpty.into());
    }
    match version {
        Some(version) => tunnel(cursor, version, via, outer_source, notes, rules),
        None => Ok(frame(cursor, stated_frame_length(cursor.rest()), Origin { via, vni: Some(geneve.vni), source: outer_source }, notes)),
    }
}

/// IP and UDP inside GENEVE: the VXLAN tunnel of a mirror session, or a packet that the load balancer carries inline.
#[inline]
fn tunnel<'a>(
    mut cursor: Cursor<'a>,
    version: Version,
    via: Via,
    outer_source: IpAddr,
    notes: Notes,
    rules: &Rules,
) -> Result<Inner<'a>, Stop> {
    let packet = cursor;
    let ip = ip::header(&mut cursor, version).map_err(tunnel_ip_fault)?;
    if ip.protocol != ip::UDP {
        return inline(packet, version, Origin { via, vni: None, source: outer_source }, notes, rules);
    }
    // Also of a packet that may be inline: behind a fragment header nothing tells.
    if ip.fragment {
        return Err(Drop::TunnelFragment.into());
    }
    let udp = udp::header(&mut cursor).ok_or(Drop::TunnelUdpLength)?;
    if udp.destination != rules.vxlan_port {
        return inline(packet, version, Origin { via, vni: None, source: outer_source }, notes, rules);
    }
    udp.bound(&mut cursor).ok_or(Drop::TunnelUdpLength)?;
    mirrored(cursor, via, ip.source, notes)
}

/// VXLAN and the mirrored frame.
#[inline]
fn mirrored(mut cursor: Cursor<'_>, via: Via, source: IpAddr, notes: Notes) -> Result<Inner<'_>, Stop> {
    let vni = vxlan::header(&mut cursor)?;
    Ok(frame(cursor, stated_frame_length(cursor.rest()), Origin { via, vni: Some(vni), source }, notes))
}

/// The mirrored frame at the cursor, which says of itself that it had `stated` bytes.
#[inline]
fn frame(cursor: Cursor<'_>, stated: Option<usize>, origin: Origin, notes: Notes) -> Inner<'_> {
    let notes = Notes { runt: cursor.rest().len() < ethernet::HEADER_LEN, ..notes };
    inner(cursor, stated, Link::Ethernet, origin, notes)
}

/// An IP packet without Ethernet at the cursor.
#[inline]
fn inline<'a>(mut packet: Cursor<'a>, version: Version, origin: Origin, notes: Notes, rules: &Rules) -> Result<Inner<'a>, Stop> {
    if rules.inline == Inline::Ignore {
        return Err(Ignored::Inline.into());
    }
    let stated = ip::stated_length(packet, version);
    if let Some(length) = stated {
        packet.state(length);
    }
    let link = match version {
        Version::V4 => Link::Ipv4,
        Version::V6 => Link::Ipv6,
    };
    Ok(inner(packet, stated, link, origin, notes))
}

/// The mirror cuts frames to the session's packet length: what they measured before stands in their own IP header at best.
#[inline]
fn inner<'a>(cursor: Cursor<'a>, stated: Option<usize>, link: Link, origin: Origin, notes: Notes) -> Inner<'a> {
    let bytes = cursor.rest();
    let orig_len = (bytes.len() + cursor.missing()).max(stated.unwrap_or(0));
    Inner {
        bytes,
        offset: cursor.offset(),
        orig_len: u32::try_from(orig_len).unwrap_or(u32::MAX),
        link,
        origin,
        notes: Notes { cut: orig_len > bytes.len(), ..notes },
    }
}

/// The length of an Ethernet frame that holds IP, by its IP header; padding and trailers are not in it.
#[inline]
fn stated_frame_length(frame: &[u8]) -> Option<usize> {
    let mut cursor = Cursor::new(frame);
    let version = Version::of_ether_type(ethernet::header(&mut cursor)?)?;
    Some(cursor.offset() + ip::stated_length(cursor, version)?)
}

/// A packet of another protocol was never ours, however wrong its length (TCP offload leaves it 0).
fn outer_ip_fault(fault: ip::Fault) -> Stop {
    match fault {
        ip::Fault::Short => Drop::OuterIpShort.into(),
        ip::Fault::Version => Drop::OuterIpVersion.into(),
        ip::Fault::Header => Drop::OuterIpHeader.into(),
        ip::Fault::Length { protocol: ip::UDP } => Drop::OuterIpLength.into(),
        ip::Fault::Length { .. } => Ignored::NotUdp.into(),
    }
}

fn tunnel_ip_fault(fault: ip::Fault) -> Drop {
    match fault {
        ip::Fault::Short => Drop::TunnelIpShort,
        ip::Fault::Version => Drop::TunnelIpVersion,
        ip::Fault::Header => Drop::TunnelIpHeader,
        ip::Fault::Length { .. } => Drop::TunnelIpLength,
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_layout_as_a_whole_and_header_by_header_give_the_same_answer_for_every_input(
            rest in prop::collection::vec(any::<u8>(), 118),
            inner in prop::collection::vec(any::<u8>(), 0..80),
            ip_inside in any::<bool>(),
            ports in prop::sample::select(vec![(6081, 4789), (4789, 6081), (4789, 4789), (0, 0)]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..3),
            cut in prop::option::weighted(0.2, 0usize..200),
            padding in prop::option::weighted(0.2, 1usize..20),
        ) {
            let rules = Rules { geneve_port: ports.0, vxlan_port: ports.1, inline: Inline::Ignore };
            let mut inner = inner;
            if ip_inside && inner.len() > 18 {
                inner[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            }
            let Ok(rest) = <&[u8; 118]>::try_from(&rest[..]) else { unreachable!() };
            let mut frame = template::tests::built(&inner, rest, &rules);
            prop_assert_eq!(template::aws(&frame, &rules).is_some(), !inner.is_empty(), "what is meant to be the layout");
            let delicate = template::tests::delicate();
            for (index, value, at_a_delicate_place) in changes {
                let at = if at_a_delicate_place { delicate[index.index(delicate.len())] } else { index.index(frame.len()) };
                // A short mirrored frame does not have them all.
                frame.get_mut(at).into_iter().for_each(|byte| *byte = value);
            }
            frame.truncate(cut.unwrap_or(usize::MAX));
            frame.extend(std::iter::repeat_n(0, padding.unwrap_or(0)));
            prop_assert_eq!(decap(&frame, &rules), by_headers(&frame, &rules));
        }
    }
}
