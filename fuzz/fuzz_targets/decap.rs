//! Any bytes through decap: no panic, and what comes out lies inside what went in.
//! The bytes are differences from a sound frame: 0 keeps it, so that the fuzzer begins behind the headers instead of guessing
//! them, and every frame can be reached. `wire` and the packet builder need nothing but std and are compiled here from their
//! sources: seconds, instead of the whole agent under a sanitizer.
#![no_main]

use std::net::Ipv6Addr;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/src/packet/mod.rs"]
#[allow(dead_code, unused_imports)]
mod packet;
#[path = "../../agent/src/wire/mod.rs"]
#[allow(dead_code, unused_imports)]
mod wire;

use packet::{Aws, Ethernet, Extension, Geneve, Ipv4, Ipv6, Packet, Tcp, Udp, Vlan, Vxlan};
use wire::decap::outer_source;
use wire::{Inline, Inner, Link, Outcome, Rules, Via, decap};

/// One frame of each way through the decoder.
static SOUND: LazyLock<[Vec<u8>; 8]> = LazyLock::new(|| {
    let six = |last| Ipv6Addr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let aws = Aws::default();
    let aws_v6 =
        Aws { mirrored: six(1).into(), target: six(2).into(), balancer: six(3).into(), appliance: six(4).into(), ..Aws::default() };
    let tcp = || Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Tcp::new(1, 2) / [0; 30];
    let tagged = || Ethernet::default() / Vlan::service(1) / Vlan::customer(2);
    let extended = || Ipv6::new(six(1), six(2)) / Extension::hop_by_hop(1) / Extension::authentication(1) / Extension::destination(2);
    let bridged = || Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1, 6081) / Geneve::gwlb(1) / Ethernet::default() / tcp();
    [
        Packet::default(),
        aws.gwlb(Ethernet::default() / tcp()),
        aws.direct(tagged() / tcp()),
        aws.inline(tcp()),
        aws_v6.gwlb(Ethernet::default() / extended() / Tcp::new(1, 2)),
        aws_v6.inline(extended() / Udp::new(1, 2)),
        tagged() / extended() / Udp::new(1, 4789) / Vxlan::new(1) / [0; 40],
        tagged() / bridged(),
    ]
    .map(|packet| packet.build())
});

/// The frame that differs by `difference` from one of the sound ones; the first byte says which.
fn frame(difference: &[u8]) -> Vec<u8> {
    let Some((which, difference)) = difference.split_first() else { return Vec::new() };
    let sound = SOUND[usize::from(*which) % SOUND.len()].iter().copied().chain(std::iter::repeat(0));
    difference.iter().zip(sound).map(|(difference, sound)| difference ^ sound).collect()
}

fuzz_target!(|difference: &[u8]| {
    let frame = &frame(difference)[..];
    let source = outer_source(frame);
    for inline in [Inline::Ignore, Inline::Store] {
        let Outcome::Inner(inner) = decap(frame, &Rules { geneve_port: 6081, vxlan_port: 4789, inline }) else { continue };
        let Inner { bytes, offset, orig_len, link, origin, notes } = inner;
        assert!(!bytes.is_empty());
        assert_eq!(frame.get(offset..offset + bytes.len()), Some(bytes));
        assert!(orig_len as usize >= bytes.len());
        assert_eq!(notes.cut, orig_len as usize > bytes.len());
        assert_eq!(notes.runt, link == Link::Ethernet && bytes.len() < 14);
        assert_eq!(notes.missing_gwlb_options, origin.via == Via::Gwlb(None));
        assert_eq!(origin.vni.is_none(), link != Link::Ethernet);
        assert!(origin.vni.is_none_or(|vni| vni < 1 << 24));
        assert!(inline == Inline::Store || link == Link::Ethernet);
        assert!(source.is_some());
    }
});
