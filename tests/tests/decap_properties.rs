//! What holds for every frame: what was put into tunnels comes out; any bytes, every cut and every length have an answer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tapfleet::wire::decap::outer_source;
use tapfleet::wire::{Drop, EndpointId, Ignored, Inline, Inner, Link, Notes, Origin, Outcome, Rules, Via, decap};
use tapfleet_tests::packet::{Aws, Ethernet, Extension, Geneve, GeneveOption, Header, Icmp, Ipv4, Ipv6, Packet, Tcp, Udp, Vlan, Vxlan};

const RULES: Rules = Rules { geneve_port: 6081, vxlan_port: 4789, inline: Inline::Ignore };
const STORE: Rules = Rules { inline: Inline::Store, ..RULES };

/// More than any headers can state: two tags, IPv6, the longest payload.
const ORIG_LEN_MAX: usize = 14 + 8 + 40 + 65_535;

/// The decoder's answer, after the check of what it must be for any frame.
fn judged<'a>(frame: &'a [u8], rules: &Rules) -> Outcome<'a> {
    let outcome = decap(frame, rules);
    assert_eq!(outcome, decap(frame, rules), "two answers to one question");
    if let Outcome::Inner(inner) = outcome {
        let Inner { bytes, offset, orig_len, link, origin, notes } = inner;
        assert!(!bytes.is_empty());
        assert_eq!(frame[offset..].as_ptr(), bytes.as_ptr(), "the bytes are not those of the frame");
        assert!(offset + bytes.len() <= frame.len());
        assert!(orig_len as usize >= bytes.len());
        assert!(orig_len as usize <= ORIG_LEN_MAX.max(bytes.len()));
        assert_eq!(notes.cut, orig_len as usize > bytes.len());
        assert_eq!(notes.runt, link == Link::Ethernet && bytes.len() < 14);
        assert_eq!(notes.missing_gwlb_options, origin.via == Via::Gwlb(None));
        assert_eq!(origin.vni.is_none(), link != Link::Ethernet);
        assert!(origin.vni.is_none_or(|vni| vni < 1 << 24));
        assert!(rules.inline == Inline::Store || link == Link::Ethernet);
        assert!(outer_source(frame).is_some());
    }
    outcome
}

/// How a mirrored frame came to be in tunnels.
#[derive(Clone, Debug)]
struct Journey {
    tags: Vec<u16>,
    outer: Leg,
    geneve: Option<Wrap>,
    vni: u32,
    reserved: u8,
}

/// One IP header and one UDP header.
#[derive(Clone, Debug)]
struct Leg {
    source: IpAddr,
    /// Bytes of IPv4 options, or kinds of IPv6 extension headers.
    extras: Vec<u8>,
    source_port: u16,
    checked: bool,
}

/// GENEVE, and what it carries.
#[derive(Clone, Debug)]
struct Wrap {
    options: Vec<GeneveOption>,
    reserved: u8,
    /// Around VXLAN; `None`: GENEVE carries the frame itself.
    tunnel: Option<Leg>,
}

impl Leg {
    fn packet(&self, port: u16) -> Packet {
        let ip = match self.source {
            IpAddr::V4(source) => Packet::from(Ipv4 { options: self.extras.clone(), ..Ipv4::new(source, [10, 9, 8, 7]) }),
            IpAddr::V6(source) => {
                let kinds = self.extras.iter().take(8);
                kinds.fold(Ipv6::new(source, [1; 16]).into(), |below, kind| match kind % 3 {
                    0 => below / Extension::destination(1 + kind / 64),
                    1 => below / Extension { kind: 43, ..Extension::hop_by_hop(1) },
                    _ => below / Extension::authentication(1 + kind / 64 * 2),
                })
            }
        };
        ip / if self.checked { Udp::new(self.source_port, port) } else { Udp::unchecked(self.source_port, port) }
    }
}

impl Journey {
    fn around(&self, frame: &[u8]) -> Vec<u8> {
        let below = self.tags.iter().fold(Packet::from(Ethernet::default()), |below, &tag| below / Vlan::customer(tag));
        let vxlan = || Vxlan { reserved_2: self.reserved, flags: 0x08 | self.reserved, ..Vxlan::new(self.vni) } / frame;
        let packet = match &self.geneve {
            None => below / self.outer.packet(4789) / vxlan(),
            Some(wrap) => {
                let geneve = Geneve { options: wrap.options.clone(), reserved_2: wrap.reserved, ..Geneve::default() };
                let below = below / self.outer.packet(6081);
                match &wrap.tunnel {
                    Some(tunnel) => below / geneve / tunnel.packet(4789) / vxlan(),
                    None => below / Geneve { protocol: Some(0x6558), vni: self.vni, ..geneve } / frame,
                }
            }
        };
        packet.build()
    }

    fn origin(&self) -> Origin {
        let endpoint = |option: &GeneveOption| (option.class, option.kind) == (0x0108, 1);
        let via = match &self.geneve {
            None => Via::Direct,
            Some(wrap) => Via::Gwlb(
                wrap.options
                    .iter()
                    .find(|option| endpoint(option))
                    .map(|option| EndpointId(u64::from_be_bytes(option.data[..].try_into().unwrap()))),
            ),
        };
        let tunnel = self.geneve.as_ref().and_then(|wrap| wrap.tunnel.as_ref());
        Origin { via, vni: Some(self.vni), source: tunnel.unwrap_or(&self.outer).source }
    }

    fn repeats_an_option(&self) -> bool {
        let options = self.geneve.iter().flat_map(|wrap| &wrap.options).filter(|option| option.class == 0x0108);
        let mut kinds = options.map(|option| option.kind).filter(|kind| *kind <= 3).collect::<Vec<_>>();
        let all = kinds.len();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.len() < all
    }
}

fn legs() -> impl Strategy<Value = Leg> {
    (any::<IpAddr>(), vec(any::<u8>(), 0..40), any::<u16>(), any::<bool>()).prop_map(|(source, extras, source_port, checked)| Leg {
        source,
        extras,
        source_port,
        checked,
    })
}

fn options() -> impl Strategy<Value = GeneveOption> {
    let unknown = (any::<u16>(), 4u8..0x80, vec(any::<u32>(), 0..6))
        .prop_map(|(class, kind, data)| GeneveOption::new(class, kind, data.into_iter().flat_map(u32::to_be_bytes).collect::<Vec<_>>()));
    let known = prop_oneof![
        any::<u64>().prop_map(GeneveOption::endpoint),
        any::<u64>().prop_map(GeneveOption::attachment),
        any::<u32>().prop_map(GeneveOption::cookie),
    ];
    (prop_oneof![known, unknown], 0u8..8).prop_map(|(option, reserved)| GeneveOption { reserved, ..option })
}

fn journeys() -> impl Strategy<Value = Journey> {
    let wraps = (vec(options(), 0..7), any::<u8>(), option::weighted(0.8, legs())).prop_map(|(options, reserved, tunnel)| Wrap {
        options,
        reserved,
        tunnel,
    });
    (vec(any::<u16>(), 0..=2), legs(), option::weighted(0.7, wraps), 0u32..1 << 24, any::<u8>())
        .prop_map(|(tags, outer, geneve, vni, reserved)| Journey { tags, outer, geneve, vni, reserved })
}

/// A frame as it was on the source's wire, and from how many of its bytes on its length can be told.
fn frames() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let packets = (vec(any::<u16>(), 0..=2), any::<IpAddr>(), 0..3, vec(any::<u8>(), 40..600));
    let packets = packets.prop_map(|(tags, source, transport, payload)| {
        let (ip, told) = match source {
            IpAddr::V4(source) => (Packet::from(Ipv4::new(source, [4; 4])), 4),
            IpAddr::V6(source) => (Packet::from(Ipv6::new(source, [4; 16])), 6),
        };
        let told = 14 + 4 * tags.len() + told;
        let below = tags.into_iter().fold(Packet::from(Ethernet::default()), |below, tag| below / Vlan::service(tag)) / ip;
        let frame = match transport {
            0 => below / Tcp::new(1, 2) / payload,
            1 => below / Udp::new(4789, 4789) / payload,
            _ => below / Icmp::echo(1, 2) / payload,
        };
        (frame.build(), told)
    });
    // Not IP: what is there is all that is known.
    let others = vec(any::<u8>(), 1..300).prop_map(|payload| ((Ethernet::default() / payload).build(), usize::MAX));
    prop_oneof![4 => packets, 1 => others]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_was_put_into_tunnels_comes_out(
        journey in journeys(),
        (whole, told) in frames(),
        keep in option::of(1usize..200),
        padding in 0usize..20,
    ) {
        let kept = &whole[..keep.unwrap_or(whole.len()).min(whole.len())];
        let mut frame = journey.around(kept);
        let end = frame.len();
        frame.resize(end + padding, 0xee);
        let orig_len = if kept.len() >= told { whole.len() } else { kept.len() };
        let notes = Notes {
            cut: orig_len > kept.len(),
            runt: kept.len() < 14,
            missing_gwlb_options: journey.origin().via == Via::Gwlb(None),
            repeated_option: journey.repeats_an_option(),
        };
        let expected = Inner {
            bytes: kept,
            offset: end - kept.len(),
            orig_len: orig_len as u32,
            link: Link::Ethernet,
            origin: journey.origin(),
            notes,
        };
        prop_assert_eq!(judged(&frame, &RULES), Outcome::Inner(expected));
        prop_assert_eq!(outer_source(&frame), Some(journey.outer.source));
    }

    #[test]
    fn any_bytes_have_an_answer(bytes in vec(any::<u8>(), 0..300)) {
        judged(&bytes, &STORE);
        let _ = outer_source(&bytes);
    }

    #[test]
    fn a_damaged_frame_has_an_answer(
        journey in journeys(),
        (whole, _) in frames(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in option::of(any::<prop::sample::Index>()),
    ) {
        let mut frame = journey.around(&whole);
        // Most of it in the headers, where it matters.
        let headers = frame.len() - whole.len() + 20;
        for (place, value) in damage {
            let place = place.index(headers.min(frame.len()));
            frame[place] = value;
        }
        if let Some(keep) = keep {
            frame.truncate(keep.index(frame.len()));
        }
        judged(&frame, &RULES);
        judged(&frame, &STORE);
    }
}

proptest! {
    // Each case is some hundred frames.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_frame_cut_anywhere_gives_its_bytes_or_a_reason_and_keeps_its_length(journey in journeys(), (whole, _) in frames()) {
        let frame = journey.around(&whole);
        let inner_at = frame.len() - whole.len();
        for keep in 0..frame.len() {
            match judged(&frame[..keep], &RULES) {
                Outcome::Inner(inner) => {
                    prop_assert_eq!(inner.bytes, &frame[inner_at..keep]);
                    prop_assert_eq!(inner.orig_len as usize, whole.len());
                }
                _ => prop_assert!(keep <= inner_at),
            }
        }
    }
}

/// The answer to each layout cut to `..len` bytes: below the first bound the first answer, and so on.
type Bounds = [(usize, Outcome<'static>)];

fn check_cuts(frame: &[u8], bounds: &Bounds) {
    for keep in 0..frame.len() {
        let outcome = judged(&frame[..keep], &RULES);
        match bounds.iter().find(|bound| keep < bound.0) {
            Some(bound) => assert_eq!(outcome, bound.1, "cut to {keep} bytes"),
            None => assert!(matches!(outcome, Outcome::Inner(inner) if inner.notes.cut), "cut to {keep} bytes: {outcome:?}"),
        }
    }
}

#[test]
fn every_cut_of_every_header_has_its_reason() {
    let drop = Outcome::Malformed;
    let none = Outcome::NotOurs(Ignored::NotIp);
    let outer = [(14, none), (34, drop(Drop::OuterIpShort)), (42, drop(Drop::OuterUdpLength))];
    let outer_v6 = [(14, none), (54, drop(Drop::OuterIpShort)), (62, drop(Drop::OuterUdpLength))];
    let vxlan_at = |at: usize| [(at + 8, drop(Drop::VxlanShort)), (at + 9, drop(Drop::VxlanEmpty))];
    let geneve_at =
        |at: usize| [(at + 8, drop(Drop::GeneveShort)), (at + 40, drop(Drop::GeneveOptLen)), (at + 41, drop(Drop::GeneveEmpty))];
    let tunnel_at = |at: usize, ip: usize| [(at + ip, drop(Drop::TunnelIpShort)), (at + ip + 8, drop(Drop::TunnelUdpLength))];
    let aws = Aws::default();
    let v6 = |last: u8| IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let six = Aws { mirrored: v6(1), target: v6(2), balancer: v6(3), appliance: v6(4), ..aws.clone() };
    let inner = [9; 100];
    check_cuts(&aws.direct(inner).build(), &[&outer[..], &vxlan_at(42)].concat());
    check_cuts(&six.direct(inner).build(), &[&outer_v6[..], &vxlan_at(62)].concat());
    check_cuts(&aws.gwlb(inner).build(), &[&outer[..], &geneve_at(42), &tunnel_at(82, 20), &vxlan_at(110)].concat());
    check_cuts(&six.gwlb(inner).build(), &[&outer_v6[..], &geneve_at(62), &tunnel_at(102, 40), &vxlan_at(150)].concat());
}

/// Every value of one field of a frame through the load balancer, and what must come of it.
fn check_values<H: Header>(nth: usize, values: u32, set: impl Fn(&mut H, u32), expected: impl Fn(usize) -> Expected) {
    let inner = [9; 100];
    for value in 0..values {
        let frame = Aws::default().gwlb(inner).edit_nth(nth, |header| set(header, value)).build();
        let outcome = judged(&frame, &RULES);
        let found = match outcome {
            Outcome::Inner(inner) => Expected::Inner { len: inner.bytes.len(), orig_len: inner.orig_len as usize },
            Outcome::Malformed(reason) => Expected::Dropped(reason),
            Outcome::NotOurs(reason) => Expected::Ignored(reason),
        };
        assert_eq!(found, expected(value as usize), "value {value}");
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Expected {
    Inner { len: usize, orig_len: usize },
    Dropped(Drop),
    Ignored(Ignored),
}

/// What is to be expected when everything ends after `left` of the 100 bytes (or before them, by a negative number).
fn ends_after(left: isize, states: usize) -> Expected {
    match left {
        1.. => {
            let len = (left as usize).min(100);
            Expected::Inner { len, orig_len: states.max(len) }
        }
        0 => Expected::Dropped(Drop::VxlanEmpty),
        _ => Expected::Dropped(Drop::VxlanShort),
    }
}

#[test]
fn every_value_of_a_tunnel_length_has_its_answer() {
    let any16 = 1 << 16;
    check_values(
        1,
        any16,
        |udp: &mut Udp, value| udp.length = Some(value as u16),
        |value| match value {
            0..8 => Expected::Dropped(Drop::TunnelUdpLength),
            _ => ends_after(value as isize - 16, value.saturating_sub(16)),
        },
    );
    check_values(
        1,
        any16,
        |ip: &mut Ipv4, value| ip.total_length = Some(value as u16),
        |value| match value {
            0..20 => Expected::Dropped(Drop::TunnelIpLength),
            20..28 => Expected::Dropped(Drop::TunnelUdpLength),
            // UDP states all the 100 bytes.
            _ => ends_after(value as isize - 36, value.saturating_sub(36).max(100)),
        },
    );
    check_values(
        1,
        16,
        |ip: &mut Ipv4, value| ip.ihl = Some(value as u8),
        |value| match value {
            0..5 => Expected::Dropped(Drop::TunnelIpHeader),
            5 => Expected::Inner { len: 100, orig_len: 100 },
            // The bytes behind the header are not the UDP header: with one more word, its length and checksum are the ports.
            _ => Expected::Ignored(Ignored::Inline),
        },
    );
}

#[test]
fn every_value_of_an_outer_length_has_its_answer() {
    let any16 = 1 << 16;
    // GENEVE 8, options 32, tunnel IP 20, tunnel UDP 8, VXLAN 8, the frame's 100.
    let geneve = |left: usize| match left {
        0..8 => Expected::Dropped(Drop::GeneveShort),
        8..40 => Expected::Dropped(Drop::GeneveOptLen),
        40 => Expected::Dropped(Drop::GeneveEmpty),
        41..60 => Expected::Dropped(Drop::TunnelIpShort),
        60..68 => Expected::Dropped(Drop::TunnelUdpLength),
        // The tunnel states all the 100 bytes.
        _ => ends_after(left as isize - 76, 100),
    };
    check_values(
        0,
        any16,
        |udp: &mut Udp, value| udp.length = Some(value as u16),
        |value| match value {
            0 => geneve(176),
            1..8 => Expected::Dropped(Drop::OuterUdpLength),
            _ => geneve(value - 8),
        },
    );
    check_values(
        0,
        any16,
        |ip: &mut Ipv4, value| ip.total_length = Some(value as u16),
        |value| match value {
            0..20 => Expected::Dropped(Drop::OuterIpLength),
            20..28 => Expected::Dropped(Drop::OuterUdpLength),
            _ => geneve(value - 28),
        },
    );
}

#[test]
fn every_value_of_the_length_of_options_has_its_answer() {
    for words in 0..1 << 6 {
        let frame = Aws::default().gwlb([9; 100]).edit(|geneve: &mut Geneve| geneve.options_length = Some(words)).build();
        match (words, judged(&frame, &RULES)) {
            (8, Outcome::Inner(inner)) => assert_eq!(inner.bytes, [9; 100]),
            // 168 bytes follow the header of 8: 42 words.
            (43.., outcome) => assert_eq!(outcome, Outcome::Malformed(Drop::GeneveOptLen), "{words} words"),
            // The length cuts an option, or takes the tunnel for one, or options for the tunnel.
            (_, Outcome::Malformed(reason)) => {
                assert!(matches!(reason, Drop::GeneveOption | Drop::TunnelIpVersion | Drop::GeneveEmpty), "{words} words: {reason:?}");
            }
            (_, outcome) => panic!("{words} words: {outcome:?}"),
        }
    }
}

#[test]
fn every_value_of_an_option_length_has_its_answer() {
    for option in 0..3 {
        let right = [2, 2, 1][option];
        check_values(
            0,
            1 << 5,
            |geneve: &mut Geneve, value| geneve.options[option].length = Some(value as u8),
            |value| {
                if value == right { Expected::Inner { len: 100, orig_len: 100 } } else { Expected::Dropped(Drop::GeneveOption) }
            },
        );
    }
}

#[test]
fn every_value_of_an_ipv6_length_and_extension_length_has_an_answer() {
    let six = |payload_length: Option<u16>, length: Option<u8>| {
        let ip = Ipv6 { payload_length, ..Ipv6::new([1; 16], [2; 16]) };
        let tunnel = ip / Extension { length, ..Extension::hop_by_hop(2) } / Udp::unchecked(1, 4789) / Vxlan::new(5) / [9; 100];
        (Ethernet::default() / tunnel).build()
    };
    for value in 0..=u16::MAX {
        // Extension header 16, UDP 8, VXLAN 8, then the frame.
        match (value, judged(&six(Some(value), None), &RULES)) {
            (0..16, outcome) => assert_eq!(outcome, Outcome::Malformed(Drop::OuterIpShort), "value {value}"),
            (16..24, outcome) => assert_eq!(outcome, Outcome::Malformed(Drop::OuterUdpLength), "value {value}"),
            (24..32, outcome) => assert_eq!(outcome, Outcome::Malformed(Drop::VxlanShort), "value {value}"),
            (32, outcome) => assert_eq!(outcome, Outcome::Malformed(Drop::VxlanEmpty), "value {value}"),
            (_, Outcome::Inner(inner)) => assert_eq!(inner.bytes.len(), usize::from(value - 32).min(100), "value {value}"),
            (_, outcome) => panic!("value {value}: {outcome:?}"),
        }
    }
    for value in 0..=u8::MAX {
        let frame = six(None, Some(value));
        let outcome = judged(&frame, &RULES);
        // 132 bytes follow IPv6: an extension header of more has no end.
        let short = outcome == Outcome::Malformed(Drop::OuterIpShort);
        assert_eq!(short, 8 * (usize::from(value) + 1) > 132, "value {value}: {outcome:?}");
        assert_eq!(matches!(outcome, Outcome::Inner(_)), value == 1, "value {value}: {outcome:?}");
    }
}
