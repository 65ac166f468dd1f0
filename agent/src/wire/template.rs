//! The one layout that AWS sends, GENEVE with its three options around VXLAN, recognised as a whole: nearly every frame is this.
//! In: a frame. Out: a cursor at the mirrored frame, and its origin; `None` for whatever differs in the least.
//! Never: an answer that the headers read one by one would not give; a refusal.
//! Spec: AWS "Gateway Load Balancer" and "Traffic Mirroring packet format"; offsets are sums of the header lengths in this folder.

use std::net::{IpAddr, Ipv4Addr};

use super::cursor::Cursor;
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

/// What must stand where: the place, the bits that matter, their value. Ports and lengths are looked at apart.
const FIXED: [(usize, u8, u8); 27] = [
    (12, 0xff, 0x08),
    (13, 0xff, 0x00),
    (OUTER_IP, 0xff, 0x45),
    // Neither more fragments nor an offset.
    (OUTER_IP + 6, 0x3f, 0),
    (OUTER_IP + 7, 0xff, 0),
    (OUTER_IP + 9, 0xff, ip::UDP),
    // Version 0; eight words of options; no control packet.
    (GENEVE, 0xff, 8),
    (GENEVE + 1, 0x80, 0),
    (GENEVE + 2, 0xff, 0x08),
    (GENEVE + 3, 0xff, 0x00),
    (ENDPOINT, 0xff, 0x01),
    (ENDPOINT + 1, 0xff, 0x08),
    (ENDPOINT + 2, 0xff, 1),
    (ENDPOINT + 3, 0x1f, 2),
    (ATTACHMENT, 0xff, 0x01),
    (ATTACHMENT + 1, 0xff, 0x08),
    (ATTACHMENT + 2, 0xff, 2),
    (ATTACHMENT + 3, 0x1f, 2),
    (COOKIE, 0xff, 0x01),
    (COOKIE + 1, 0xff, 0x08),
    (COOKIE + 2, 0xff, 3),
    (COOKIE + 3, 0x1f, 1),
    (TUNNEL_IP, 0xff, 0x45),
    (TUNNEL_IP + 6, 0x3f, 0),
    (TUNNEL_IP + 7, 0xff, 0),
    (TUNNEL_IP + 9, 0xff, ip::UDP),
    // The VNI is valid.
    (VXLAN, 0x08, 0x08),
];

/// The bits that matter, and their values, byte for byte: compared all at once, without a branch.
const MASK: [u8; LEN] = spread().0;
const VALUE: [u8; LEN] = spread().1;

#[expect(clippy::indexing_slicing, reason = "done by the compiler, which would refuse; iterators are not const")]
const fn spread() -> ([u8; LEN], [u8; LEN]) {
    let (mut mask, mut value) = ([0; LEN], [0; LEN]);
    let mut row = 0;
    while row < FIXED.len() {
        let (at, bits, wanted) = FIXED[row];
        (mask[at], value[at]) = (bits, wanted);
        row += 1;
    }
    (mask, value)
}

/// The mirrored frame of a frame in the AWS layout, whole and without padding, over IPv4 without options.
#[inline]
pub(super) fn aws<'a>(frame: &'a [u8], rules: &Rules) -> Option<(Cursor<'a>, Origin)> {
    let mut cursor = Cursor::new(frame);
    let head = cursor.take::<LEN>()?;
    let differs = head.iter().zip(&MASK).zip(&VALUE).fold(0, |differs, ((byte, mask), value)| differs | ((byte & mask) ^ value));
    let left = cursor.rest().len();
    // Every length is that of what is there: none of the headers cuts or pads.
    let lengths = [
        (number(head[OUTER_IP + LENGTH], head[OUTER_IP + LENGTH + 1]), LEN - OUTER_IP),
        (number(head[OUTER_UDP + UDP_LENGTH], head[OUTER_UDP + UDP_LENGTH + 1]), LEN - OUTER_UDP),
        (number(head[TUNNEL_IP + LENGTH], head[TUNNEL_IP + LENGTH + 1]), LEN - TUNNEL_IP),
        (number(head[TUNNEL_UDP + UDP_LENGTH], head[TUNNEL_UDP + UDP_LENGTH + 1]), LEN - TUNNEL_UDP),
    ];
    let ports = number(head[OUTER_UDP + PORT], head[OUTER_UDP + PORT + 1]) == usize::from(rules.geneve_port)
        && number(head[TUNNEL_UDP + PORT], head[TUNNEL_UDP + PORT + 1]) == usize::from(rules.vxlan_port);
    if differs != 0 || !ports || left == 0 || lengths.iter().any(|&(said, before)| said != before + left) {
        return None;
    }
    let id = head.get(ENDPOINT + 4..)?.first_chunk()?;
    let source =
        Ipv4Addr::new(head[TUNNEL_IP + SOURCE], head[TUNNEL_IP + SOURCE + 1], head[TUNNEL_IP + SOURCE + 2], head[TUNNEL_IP + SOURCE + 3]);
    let vni = u32::from_be_bytes([0, head[VXLAN + VNI], head[VXLAN + VNI + 1], head[VXLAN + VNI + 2]]);
    let via = Via::Gwlb(Some(EndpointId(u64::from_be_bytes(*id))));
    Some((cursor, Origin { via, vni: Some(vni), source: IpAddr::V4(source) }))
}

#[inline]
fn number(high: u8, low: u8) -> usize {
    usize::from(u16::from_be_bytes([high, low]))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;

    /// A frame in the AWS layout around `inner`, with `rest` where anything may stand.
    pub fn built(inner: &[u8], rest: &[u8; LEN], rules: &Rules) -> Vec<u8> {
        let mut frame = rest.to_vec();
        for (at, (mask, value)) in MASK.iter().zip(&VALUE).enumerate() {
            frame[at] = (frame[at] & !mask) | value;
        }
        let mut put = |at: usize, number: usize| frame[at..at + 2].copy_from_slice(&(number as u16).to_be_bytes());
        for (at, begin) in [
            (OUTER_IP + LENGTH, OUTER_IP),
            (OUTER_UDP + UDP_LENGTH, OUTER_UDP),
            (TUNNEL_IP + LENGTH, TUNNEL_IP),
            (TUNNEL_UDP + UDP_LENGTH, TUNNEL_UDP),
        ] {
            put(at, LEN - begin + inner.len());
        }
        put(OUTER_UDP + PORT, rules.geneve_port.into());
        put(TUNNEL_UDP + PORT, rules.vxlan_port.into());
        frame.extend_from_slice(inner);
        frame
    }

    /// Places where a change matters most: each fixed byte, lengths and ports.
    pub fn delicate() -> Vec<usize> {
        let fixed = FIXED.iter().map(|&(at, _, _)| at);
        let numbers =
            [OUTER_IP + LENGTH, OUTER_UDP + PORT, OUTER_UDP + UDP_LENGTH, TUNNEL_IP + LENGTH, TUNNEL_UDP + PORT, TUNNEL_UDP + UDP_LENGTH];
        fixed.chain(numbers.into_iter().flat_map(|at| [at, at + 1])).collect()
    }

    #[test]
    fn the_layout_is_that_of_the_documents() {
        assert_eq!([OUTER_UDP, GENEVE, ENDPOINT, TUNNEL_IP, TUNNEL_UDP, VXLAN, LEN], [34, 42, 50, 82, 102, 110, 118]);
    }
}
