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

/// As far as anything is fixed, in words that are compared at once.
const WORDS: usize = (VXLAN + 1).div_ceil(WORD);
const WORD: usize = size_of::<u64>();

/// The bits that matter, and their values.
const MASK: [u64; WORDS] = spread().0;
const VALUE: [u64; WORDS] = spread().1;

#[expect(clippy::indexing_slicing, reason = "done by the compiler, which would refuse; iterators are not const")]
const fn spread() -> ([u64; WORDS], [u64; WORDS]) {
    let (mut mask, mut value) = ([[0; WORD]; WORDS], [[0; WORD]; WORDS]);
    let mut row = 0;
    while row < FIXED.len() {
        let (at, bits, wanted) = FIXED[row];
        (mask[at / WORD][at % WORD], value[at / WORD][at % WORD]) = (bits, wanted);
        row += 1;
    }
    let mut words = ([0; WORDS], [0; WORDS]);
    let mut word = 0;
    while word < WORDS {
        (words.0[word], words.1[word]) = (u64::from_ne_bytes(mask[word]), u64::from_ne_bytes(value[word]));
        word += 1;
    }
    words
}

/// The mirrored frame of a frame in the AWS layout, whole and without padding, over IPv4 without options.
#[inline]
pub(super) fn aws<'a>(frame: &'a [u8], rules: &Rules) -> Option<(Cursor<'a>, Origin)> {
    let mut cursor = Cursor::new(frame);
    let head = cursor.take::<LEN>()?;
    let (words, _) = head.as_chunks();
    // All of them, without a branch.
    let differ =
        words.iter().zip(&MASK).zip(&VALUE).fold(0, |differ, ((word, mask), value)| differ | ((u64::from_ne_bytes(*word) & mask) ^ value));
    let left = cursor.rest().len();
    // Every length is that of what is there: none of the headers cuts or pads.
    let lengths = [
        (number(head[OUTER_IP + LENGTH], head[OUTER_IP + LENGTH + 1]), LEN - OUTER_IP),
        (number(head[OUTER_UDP + UDP_LENGTH], head[OUTER_UDP + UDP_LENGTH + 1]), LEN - OUTER_UDP),
        (number(head[TUNNEL_IP + LENGTH], head[TUNNEL_IP + LENGTH + 1]), LEN - TUNNEL_IP),
        (number(head[TUNNEL_UDP + UDP_LENGTH], head[TUNNEL_UDP + UDP_LENGTH + 1]), LEN - TUNNEL_UDP),
    ];
    let ports = number(head[OUTER_UDP + PORT], head[OUTER_UDP + PORT + 1]) == rules.geneve_port
        && number(head[TUNNEL_UDP + PORT], head[TUNNEL_UDP + PORT + 1]) == rules.vxlan_port;
    let wrong = |(said, before): (u16, usize)| usize::from(said) != before + left;
    if differ != 0 || !ports || left == 0 || lengths.into_iter().any(wrong) {
        return None;
    }
    let id = head.get(ENDPOINT + 4..)?.first_chunk()?;
    let source =
        Ipv4Addr::new(head[TUNNEL_IP + SOURCE], head[TUNNEL_IP + SOURCE + 1], head[TUNNEL_IP + SOURCE + 2], head[TUNNEL_IP + SOURCE + 3]);
    // 24 bits, and 8 that are reserved.
    let vni = u32::from_be_bytes([head[VXLAN + VNI], head[VXLAN + VNI + 1], head[VXLAN + VNI + 2], head[VXLAN + VNI + 3]]) >> 8;
    let via = Via::Gwlb(Some(EndpointId(u64::from_be_bytes(*id))));
    Some((cursor, Origin { via, vni: Some(vni), source: IpAddr::V4(source) }))
}

#[inline]
const fn number(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;

    /// A frame in the AWS layout around `inner`, with `rest` where anything may stand.
    pub fn built(inner: &[u8], rest: &[u8; LEN], rules: &Rules) -> Vec<u8> {
        let mut frame = rest.to_vec();
        for (at, mask, value) in FIXED {
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
