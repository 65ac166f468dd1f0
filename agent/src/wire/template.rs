//! The one layout that AWS sends, GENEVE with its three options around VXLAN, recognised as a whole: nearly every frame is this.
//! In: a frame. Out: the headers and the mirrored frame, and what they tell; `None` for whatever differs in the least.
//! Never: an answer that the headers read one by one would not give; a refusal.
//! Spec: AWS "Gateway Load Balancer" and "Traffic Mirroring packet format"; offsets are sums of the header lengths in this folder.

use std::net::{IpAddr, Ipv4Addr};

use super::decap::Rules;
use super::origin::{EndpointId, Origin, Via};
use super::{ethernet, geneve, ip, udp, vxlan};

/// Bytes of the three options.
const OPTIONS_LEN: usize = 32;

const OUTER_IP: usize = ethernet::HEADER_LEN;
const OUTER_UDP: usize = OUTER_IP + ip::v4::HEADER_LEN;
const GENEVE: usize = OUTER_UDP + udp::HEADER_LEN;
const ENDPOINT: usize = GENEVE + geneve::HEADER_LEN;
const ATTACHMENT: usize = ENDPOINT + 12;
const COOKIE: usize = ATTACHMENT + 12;
const TUNNEL_IP: usize = ENDPOINT + OPTIONS_LEN;
const TUNNEL_UDP: usize = TUNNEL_IP + ip::v4::HEADER_LEN;
const VXLAN: usize = TUNNEL_UDP + udp::HEADER_LEN;
/// Bytes in front of the mirrored frame.
const LEN: usize = VXLAN + vxlan::HEADER_LEN;

const LENGTH: usize = ip::v4::TOTAL_LENGTH;
const SOURCE: usize = ip::v4::SOURCE;
const PORT: usize = udp::DESTINATION;
const UDP_LENGTH: usize = udp::LENGTH;
const VNI: usize = vxlan::VNI;

/// A row of [`FIXED`]: where four bytes begin, the bits of them that matter, their value.
type Row = (usize, u32, u32);

/// What must stand where. Ports and lengths are looked at apart. A row has four bytes, because it costs a load, a mask, a comparison
/// and a branch, however many of them matter.
const FIXED: [Row; 9] = [
    // EtherType of IPv4; version 4, no options.
    (12, 0xffff_ff00, 0x0800_4500),
    // Neither more fragments nor an offset; UDP.
    (OUTER_IP + 6, 0x3fff_00ff, ip::UDP as u32),
    // Version 0 and eight words of options; no control packet; IPv4 inside.
    (GENEVE, 0xff80_ffff, 0x0800_0800),
    (ENDPOINT, 0xffff_ff1f, 0x0108_0102),
    (ATTACHMENT, 0xffff_ff1f, 0x0108_0202),
    (COOKIE, 0xffff_ff1f, 0x0108_0301),
    (TUNNEL_IP, 0xff00_0000, 0x4500_0000),
    (TUNNEL_IP + 6, 0x3fff_00ff, ip::UDP as u32),
    // The VNI is valid.
    (VXLAN, 0x0800_0000, 0x0800_0000),
];

/// In a mirrored frame: EtherType and version of IPv4.
const INNER: Row = (12, 0xffff_f000, 0x0800_4000);
const INNER_LENGTH: usize = ethernet::HEADER_LEN + LENGTH;

/// Where a length stands, and where what it tells the length of begins; that ends with the frame.
const LENGTHS: [(usize, usize); 4] = [
    (OUTER_IP + LENGTH, OUTER_IP),
    (OUTER_UDP + UDP_LENGTH, OUTER_UDP),
    (TUNNEL_IP + LENGTH, TUNNEL_IP),
    (TUNNEL_UDP + UDP_LENGTH, TUNNEL_UDP),
];

/// All headers in front of the mirrored frame.
pub(super) type Head = [u8; LEN];

/// Headers and mirrored frame, which is not empty, of a frame in the AWS layout, whole and without padding, over IPv4 without options.
#[inline]
pub(super) fn aws<'a>(frame: &'a [u8], rules: &Rules) -> Option<(&'a Head, &'a [u8])> {
    // Something is inside, and the outer header can tell its length.
    if !(LEN + 1..=OUTER_IP + usize::from(u16::MAX)).contains(&frame.len()) {
        return None;
    }
    let (head, inner) = frame.split_first_chunk()?;
    if !FIXED.iter().all(|row| stands(head, row)) {
        return None;
    }
    if piece(head, OUTER_UDP + PORT) != rules.geneve_port.to_be_bytes() || piece(head, TUNNEL_UDP + PORT) != rules.vxlan_port.to_be_bytes()
    {
        return None;
    }
    // Every length is that of what is there: none of the headers cuts or pads.
    if LENGTHS.iter().any(|&(at, begin)| piece(head, at) != ((frame.len() - begin) as u16).to_be_bytes()) {
        return None;
    }
    Some((head, inner))
}

/// What the headers tell.
#[inline]
pub(super) fn origin(head: &Head) -> Origin {
    let endpoint = EndpointId(u64::from_be_bytes(piece(head, ENDPOINT + 4)));
    let source = Ipv4Addr::from(piece(head, TUNNEL_IP + SOURCE));
    // 24 bits, and 8 that are reserved.
    let vni = u32::from_be_bytes(piece(head, VXLAN + VNI)) >> 8;
    Origin { via: Via::Gwlb(Some(endpoint)), vni: Some(vni), source: IpAddr::V4(source) }
}

/// The length of a mirrored frame by its own header, when that is IPv4 without a tag. A length that is left open (0) comes out as less
/// than there is, which says as little.
#[inline]
pub(super) fn stated_length(inner: &[u8]) -> Option<usize> {
    let head = inner.first_chunk::<{ INNER_LENGTH + 2 }>()?;
    let length = u16::from_be_bytes(piece(head, INNER_LENGTH));
    stands(head, &INNER).then(|| ethernet::HEADER_LEN + usize::from(length))
}

#[inline]
fn stands<const LEN: usize>(head: &[u8; LEN], &(at, bits, value): &Row) -> bool {
    u32::from_be_bytes(piece(head, at)) & bits == value
}

/// The bytes of a head at a place; every place is known to the compiler, so that nothing is left of the check.
#[inline]
fn piece<const N: usize, const LEN: usize>(head: &[u8; LEN], at: usize) -> [u8; N] {
    head.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;

    /// A frame in the AWS layout around `inner`, with `rest` where anything may stand.
    pub fn built(inner: &[u8], rest: &[u8; LEN], rules: &Rules) -> Vec<u8> {
        let mut frame = rest.to_vec();
        for (at, bits, value) in FIXED {
            for (place, (bits, value)) in (at..).zip(bits.to_be_bytes().into_iter().zip(value.to_be_bytes())) {
                frame[place] = (frame[place] & !bits) | value;
            }
        }
        let mut put = |at: usize, number: usize| frame[at..at + 2].copy_from_slice(&(number as u16).to_be_bytes());
        for (at, begin) in LENGTHS {
            put(at, LEN - begin + inner.len());
        }
        put(OUTER_UDP + PORT, rules.geneve_port.into());
        put(TUNNEL_UDP + PORT, rules.vxlan_port.into());
        frame.extend_from_slice(inner);
        frame
    }

    /// Places where a change matters most: each fixed byte, lengths and ports.
    pub fn delicate() -> Vec<usize> {
        let inner = (LEN + INNER.0, INNER.1, INNER.2);
        let bytes = |&(at, bits, _): &Row| (at..).zip(bits.to_be_bytes()).filter(|&(_, bits)| bits != 0).map(|(at, _)| at);
        let fixed = FIXED.iter().chain([&inner]).flat_map(bytes);
        let numbers = LENGTHS.iter().map(|&(at, _)| at).chain([OUTER_UDP + PORT, TUNNEL_UDP + PORT, LEN + INNER_LENGTH]);
        fixed.chain(numbers.flat_map(|at| [at, at + 1])).collect()
    }

    #[test]
    fn the_layout_is_that_of_the_documents() {
        assert_eq!([OUTER_UDP, GENEVE, ENDPOINT, TUNNEL_IP, TUNNEL_UDP, VXLAN, LEN], [34, 42, 50, 82, 102, 110, 118]);
    }
}
