//! The rules table: case, frame, answer. The frames come from the project's own packet builder; captures made by others are
//! judged when `TAPFLEET_EXTRA_PCAPS` names their folder.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use pcap_parser::{PcapBlockOwned, PcapError, create_reader};
use tapfleet::wire::decap::outer_source;
use tapfleet::wire::{Drop, EndpointId, Ignored, Inline, Link, Notes, Origin, Outcome, Rules, Via, decap};
use tapfleet_tests::packet::{Aws, Ethernet, Extension, Geneve, GeneveOption, Icmp, Ipv4, Ipv6, Packet, Tcp, Udp, Vlan, Vxlan};

const RULES: Rules = Rules { geneve_port: 6081, vxlan_port: 4789, inline: Inline::Ignore };
const STORE: Rules = Rules { inline: Inline::Store, ..RULES };
const MOVED: Rules = Rules { geneve_port: 16_081, vxlan_port: 14_789, inline: Inline::Store };

/// One row.
struct Case {
    name: &'static str,
    rules: Rules,
    frame: Vec<u8>,
    answer: Answer,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    Stored(Stored),
    Ignored(Ignored),
    Dropped(Drop),
}

/// What must be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stored {
    bytes: Vec<u8>,
    orig_len: usize,
    link: Link,
    origin: Origin,
    notes: Notes,
}

impl From<Stored> for Answer {
    fn from(stored: Stored) -> Self {
        Self::Stored(stored)
    }
}

impl From<Ignored> for Answer {
    fn from(reason: Ignored) -> Self {
        Self::Ignored(reason)
    }
}

impl From<Drop> for Answer {
    fn from(reason: Drop) -> Self {
        Self::Dropped(reason)
    }
}

fn case(name: &'static str, frame: impl Into<Packet>, answer: impl Into<Answer>) -> Case {
    Case { name, rules: RULES, frame: frame.into().build(), answer: answer.into() }
}

impl Case {
    fn by(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The frame, cut to its first `len` bytes.
    fn cut(mut self, len: usize) -> Self {
        assert!(len < self.frame.len(), "{}: nothing to cut", self.name);
        self.frame.truncate(len);
        self
    }

    /// Bytes behind the packet, as a minimum frame size or a trailer brings them.
    fn padded(mut self, len: usize) -> Self {
        self.frame.resize(self.frame.len() + len, 0xee);
        self
    }
}

impl Stored {
    /// A whole frame that came from [`Aws::default`] through the load balancer.
    fn gwlb(bytes: &[u8]) -> Self {
        let aws = Aws::default();
        let via = Via::Gwlb(Some(EndpointId(aws.endpoint)));
        Self {
            bytes: bytes.to_vec(),
            orig_len: bytes.len(),
            link: Link::Ethernet,
            origin: Origin { via, vni: Some(aws.vni), source: aws.mirrored },
            notes: Notes::default(),
        }
    }

    /// The same, straight from the mirrored interface.
    fn direct(bytes: &[u8]) -> Self {
        Self::gwlb(bytes).via(Via::Direct)
    }

    /// A packet that [`Aws::default`]'s load balancer carried inline.
    fn inline(bytes: &[u8], link: Link) -> Self {
        let stored = Self::gwlb(bytes);
        let origin = Origin { vni: None, source: Aws::default().balancer, ..stored.origin };
        Self { link, origin, ..stored }
    }

    fn via(mut self, via: Via) -> Self {
        self.origin.via = via;
        self
    }

    fn vni(mut self, vni: u32) -> Self {
        self.origin.vni = Some(vni);
        self
    }

    fn source(mut self, source: IpAddr) -> Self {
        self.origin.source = source;
        self
    }

    fn cut_from(mut self, orig_len: usize) -> Self {
        self.orig_len = orig_len;
        self.notes.cut = true;
        self
    }

    fn noted(mut self, note: impl FnOnce(&mut Notes)) -> Self {
        note(&mut self.notes);
        self
    }

    /// Through the load balancer, but without an endpoint id.
    fn nameless(self) -> Self {
        self.via(Via::Gwlb(None)).noted(|notes| notes.missing_gwlb_options = true)
    }
}

const fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

fn aws() -> Aws {
    Aws::default()
}

/// An address plan where all is IPv6.
fn aws_v6() -> Aws {
    Aws { mirrored: v6(1).into(), target: v6(2).into(), balancer: v6(3).into(), appliance: v6(4).into(), ..aws() }
}

/// A mirrored frame of 80 bytes.
fn inner() -> Vec<u8> {
    (Ethernet::default() / Ipv4::new([172, 31, 0, 238], [93, 184, 216, 34]) / Tcp::new(40_000, 443) / [7; 26]).build()
}

/// Ethernet and IPv4 to the appliance, before UDP.
fn below_udp() -> Packet {
    Ethernet::default() / Ipv4::new([10, 0, 1, 10], [10, 0, 1, 20])
}

/// Ethernet, IPv4 and UDP to the GENEVE port.
fn below_geneve() -> Packet {
    below_udp() / Udp::unchecked(60_001, 6081)
}

/// The tunnel of a mirror session and `frame`, as GENEVE carries them.
fn session(frame: &[u8]) -> Packet {
    Ipv4::new([172, 31, 0, 238], [172, 31, 9, 9]) / Udp::unchecked(65_408, 4789) / Vxlan::new(aws().vni) / frame
}

fn others() -> Vec<Case> {
    let elsewhere = || Ipv4::new([10, 0, 1, 10], [10, 0, 1, 20]);
    vec![
        case("an empty frame", Vec::new(), Ignored::NotIp),
        case("a frame that ends in the Ethernet header", aws().direct(inner()), Ignored::NotIp).cut(13),
        case("a frame that ends in a VLAN tag", Ethernet::default() / Vlan::customer(5) / elsewhere(), Ignored::NotIp).cut(17),
        case("ARP", Ethernet { ether_type: Some(0x0806), ..Ethernet::default() } / [0; 28], Ignored::NotIp),
        case(
            "three VLAN tags",
            Ethernet::default() / Vlan::service(1) / Vlan::customer(2) / Vlan::customer(3) / elsewhere() / Udp::new(1, 4789) / [0; 30],
            Ignored::NotIp,
        ),
        case(
            "the TCP health check",
            Ethernet::default() / elsewhere() / Tcp { flags: Tcp::SYN, ..Tcp::new(33_000, 8080) },
            Ignored::NotUdp,
        ),
        case("an IPv6 ping", Ethernet::default() / Ipv6::new(v6(1), v6(2)) / Icmp::echo_v6(1, 1) / b"ping", Ignored::NotUdp),
        case("a TCP fragment", Ethernet::default() / Ipv4 { fragment: 8, protocol: Some(6), ..elsewhere() } / [0; 64], Ignored::NotUdp),
        case(
            "an IPv6 TCP fragment",
            Ethernet::default() / Ipv6::new(v6(1), v6(2)) / Extension::fragment(0, true) / Tcp::new(1, 2),
            Ignored::NotUdp,
        ),
        case(
            "TCP with offloaded length",
            Ethernet::default() / Ipv4 { total_length: Some(0), ..elsewhere() } / Tcp::new(1, 2),
            Ignored::NotUdp,
        ),
        case("a DNS question", Ethernet::default() / elsewhere() / Udp::new(1024, 53) / b"?", Ignored::OtherPort),
        case("the tunnel port as source", Ethernet::default() / elsewhere() / Udp::new(4789, 6082) / inner(), Ignored::OtherPort),
        case("another port with a wrong length", below_udp() / Udp { length: Some(3), ..Udp::new(1024, 53) } / b"?", Ignored::OtherPort),
        case("the default ports, when others are set", aws().gwlb(inner()), Ignored::OtherPort).by(MOVED),
    ]
}

fn outer_layouts() -> Vec<Case> {
    let tagged =
        |tags: Packet| tags / Ipv4::new([172, 31, 0, 238], [10, 0, 1, 20]) / Udp::unchecked(1, 4789) / Vxlan::new(aws().vni) / inner();
    let six = |extensions: Packet| extensions / Udp::unchecked(1, 4789) / Vxlan::new(aws().vni) / inner();
    let six_stored = || Stored::direct(&inner()).source(v6(1).into());
    vec![
        case("AWS, through the load balancer", aws().gwlb(inner()), Stored::gwlb(&inner())),
        case("AWS, straight to the interface", aws().direct(inner()), Stored::direct(&inner())),
        case("all in IPv6, through the load balancer", aws_v6().gwlb(inner()), Stored::gwlb(&inner()).source(v6(1).into())),
        case("all in IPv6, straight to the interface", aws_v6().direct(inner()), six_stored()),
        case(
            "an IPv6 tunnel behind an IPv4 load balancer",
            Aws { mirrored: v6(1).into(), target: v6(2).into(), ..aws() }.gwlb(inner()),
            Stored::gwlb(&inner()).source(v6(1).into()),
        ),
        case(
            "an IPv4 tunnel behind an IPv6 load balancer",
            Aws { balancer: v6(3).into(), appliance: v6(4).into(), ..aws() }.gwlb(inner()),
            Stored::gwlb(&inner()),
        ),
        case("ports set otherwise", Aws { geneve_port: 16_081, vxlan_port: 14_789, ..aws() }.gwlb(inner()), Stored::gwlb(&inner()))
            .by(MOVED),
        case("VXLAN on a port set otherwise", Aws { vxlan_port: 14_789, ..aws() }.direct(inner()), Stored::direct(&inner())).by(MOVED),
        case("one VLAN tag", tagged(Ethernet::default() / Vlan::customer(7)), Stored::direct(&inner())),
        case("two VLAN tags", tagged(Ethernet::default() / Vlan::service(7) / Vlan::customer(8)), Stored::direct(&inner())),
        case("two customer tags", tagged(Ethernet::default() / Vlan::customer(7) / Vlan::customer(8)), Stored::direct(&inner())),
        case("IPv4 options", aws().direct(inner()).edit(|ip: &mut Ipv4| ip.options = vec![1; 40]), Stored::direct(&inner())),
        case("do not fragment is no fragment", aws().direct(inner()).edit(|ip: &mut Ipv4| ip.fragment = 0x4000), Stored::direct(&inner())),
        case(
            "the reserved flag is no fragment",
            aws().direct(inner()).edit(|ip: &mut Ipv4| ip.fragment = 0x8000),
            Stored::direct(&inner()),
        ),
        case(
            "a wrong header checksum is the network card's business",
            aws().direct(inner()).edit(|ip: &mut Ipv4| ip.checksum = Some(1)),
            Stored::direct(&inner()),
        ),
        case("a UDP checksum is accepted", aws().direct(inner()).edit(|udp: &mut Udp| udp.checksum = None), Stored::direct(&inner())),
        case(
            "extension headers of each form",
            six(Ethernet::default()
                / Ipv6::new(v6(1), v6(2))
                / Extension::hop_by_hop(1)
                / Extension::destination(3)
                / Extension { kind: 43, ..Extension::destination(1) }
                / Extension::authentication(3)),
            six_stored(),
        ),
        case(
            "eight extension headers",
            six((0..8).fold(Ethernet::default() / Ipv6::new(v6(1), v6(2)), |below, _| below / Extension::destination(1))),
            six_stored(),
        ),
        case("Ethernet padding", aws().direct([1; 3]), Stored::direct(&[1; 3]).noted(|notes| notes.runt = true)).padded(7),
        case("Ethernet padding behind IPv6", aws_v6().direct(inner()), six_stored()).padded(4),
        case(
            "a UDP length of 0 leaves it to IP",
            aws().direct(inner()).edit(|udp: &mut Udp| udp.length = Some(0)),
            Stored::direct(&inner()),
        )
        .padded(4),
        case("more than IP can say, in IPv4", too_long(aws()), Stored::direct(&vec![0; 66_000])),
        case("more than IP can say, in IPv6", too_long(aws_v6()), Stored::direct(&vec![0; 66_000]).source(v6(1).into())),
    ]
}

/// An inline packet of more than 65,535 bytes: its length is 0.
fn too_long_inline_packet() -> Packet {
    Ipv4 { total_length: Some(0), ..Ipv4::new([1, 1, 1, 1], [2, 2, 2, 2]) } / Tcp::new(1, 2) / vec![0; 66_000]
}

/// The same in GENEVE, whose lengths are 0 too.
fn too_long_inline() -> Packet {
    let packet = aws().inline(too_long_inline_packet()).edit(|ip: &mut Ipv4| ip.total_length = Some(0));
    packet.edit(|udp: &mut Udp| udp.length = Some(0))
}

/// A frame of more than 65,535 bytes, as segmentation offload on one machine leaves it: all lengths are 0.
fn too_long(aws: Aws) -> Packet {
    let six = aws.mirrored.is_ipv6();
    let packet = aws.direct(vec![0; 66_000]).edit(|udp: &mut Udp| udp.length = Some(0));
    if six { packet.edit(|ip: &mut Ipv6| ip.payload_length = Some(0)) } else { packet.edit(|ip: &mut Ipv4| ip.total_length = Some(0)) }
}

fn outer_faults() -> Vec<Case> {
    let direct = || aws().direct(inner());
    let six = || aws_v6().direct(inner());
    let six_with = |extension: Extension| {
        Ethernet::default() / Ipv6::new(v6(1), v6(2)) / extension / Udp::unchecked(1, 4789) / Vxlan::new(1) / inner()
    };
    vec![
        case("an IPv4 header cut short", direct(), Drop::OuterIpShort).cut(14 + 19),
        case("IPv4 options cut short", direct().edit(|ip: &mut Ipv4| ip.options = vec![1; 8]), Drop::OuterIpShort).cut(14 + 27),
        case("an IPv6 header cut short", six(), Drop::OuterIpShort).cut(14 + 39),
        case("an extension header cut short", six_with(Extension::hop_by_hop(2)), Drop::OuterIpShort).cut(14 + 40 + 15),
        case("IPv6 in an IPv4 frame", direct().edit(|ip: &mut Ipv4| ip.version = 6), Drop::OuterIpVersion),
        case("IPv4 in an IPv6 frame", six().edit(|ip: &mut Ipv6| ip.version = 4), Drop::OuterIpVersion),
        case("IHL 4", direct().edit(|ip: &mut Ipv4| ip.ihl = Some(4)), Drop::OuterIpHeader),
        case(
            "nine extension headers",
            (0..9).fold(Ethernet::default() / Ipv6::new(v6(1), v6(2)), |below, _| below / Extension::destination(1))
                / Udp::unchecked(1, 4789)
                / Vxlan::new(1)
                / inner(),
            Drop::OuterIpHeader,
        ),
        case("a total length of 19", direct().edit(|ip: &mut Ipv4| ip.total_length = Some(19)), Drop::OuterIpLength),
        case("a total length of 0 in a short packet", direct().edit(|ip: &mut Ipv4| ip.total_length = Some(0)), Drop::OuterIpLength),
        case("a total length that ends before UDP", direct().edit(|ip: &mut Ipv4| ip.total_length = Some(27)), Drop::OuterUdpLength),
        case("a payload length of 0 in a short packet", six().edit(|ip: &mut Ipv6| ip.payload_length = Some(0)), Drop::OuterUdpLength),
        case("the first fragment", direct().edit(|ip: &mut Ipv4| ip.fragment = Ipv4::MORE_FRAGMENTS), Drop::OuterFragment),
        case("a later fragment", direct().edit(|ip: &mut Ipv4| ip.fragment = Ipv4::MORE_FRAGMENTS | 100), Drop::OuterFragment),
        case("the last fragment", direct().edit(|ip: &mut Ipv4| ip.fragment = 8), Drop::OuterFragment),
        case(
            "a fragment too short for UDP",
            below_udp().edit(|ip: &mut Ipv4| (ip.fragment, ip.protocol) = (8, Some(17))) / [0; 4],
            Drop::OuterFragment,
        ),
        case("the first IPv6 fragment", six_with(Extension::fragment(0, true)), Drop::OuterFragment),
        case("the last IPv6 fragment", six_with(Extension::fragment(100, false)), Drop::OuterFragment),
        case("an IPv6 fragment that is the whole", six_with(Extension::fragment(0, false)), Drop::OuterFragment),
        case("a UDP header cut short", direct(), Drop::OuterUdpLength).cut(14 + 20 + 7),
        case("a UDP length of 7, VXLAN", direct().edit(|udp: &mut Udp| udp.length = Some(7)), Drop::OuterUdpLength),
        case("a UDP length of 7, GENEVE", aws().gwlb(inner()).edit(|udp: &mut Udp| udp.length = Some(7)), Drop::OuterUdpLength),
    ]
}

fn geneve_header() -> Vec<Case> {
    let gwlb = || aws().gwlb(inner());
    let bridged = |geneve: Geneve| below_geneve() / Geneve { vni: 123, ..geneve } / inner_packet();
    let bridged_stored = || Stored::gwlb(&inner()).vni(123).source(aws().balancer);
    vec![
        case("7 bytes of GENEVE", gwlb(), Drop::GeneveShort).cut(42 + 7),
        case("a UDP length that ends in GENEVE", gwlb().edit(|udp: &mut Udp| udp.length = Some(15)), Drop::GeneveShort),
        case("GENEVE version 1", gwlb().edit(|geneve: &mut Geneve| geneve.version = 1), Drop::GeneveVersion),
        case("GENEVE version 3", gwlb().edit(|geneve: &mut Geneve| geneve.version = 3), Drop::GeneveVersion),
        case(
            "options past the datagram",
            below_geneve() / Geneve { options_length: Some(1), protocol: Some(0x0800), ..Geneve::default() },
            Drop::GeneveOptLen,
        ),
        case("options past the UDP length", gwlb().edit(|udp: &mut Udp| udp.length = Some(8 + 8 + 31)), Drop::GeneveOptLen).padded(60),
        case("a control packet", gwlb().edit(|geneve: &mut Geneve| geneve.control = true), Drop::GeneveControl),
        case("protocol type 0", gwlb().edit(|geneve: &mut Geneve| geneve.protocol = Some(0)), Drop::GeneveProto),
        case("protocol type ARP", gwlb().edit(|geneve: &mut Geneve| geneve.protocol = Some(0x0806)), Drop::GeneveProto),
        case("nothing behind the options, IPv4", below_geneve() / Geneve { protocol: Some(0x0800), ..Geneve::gwlb(1) }, Drop::GeneveEmpty),
        case("nothing behind the options, IPv6", below_geneve() / Geneve { protocol: Some(0x86dd), ..Geneve::gwlb(1) }, Drop::GeneveEmpty),
        case(
            "nothing behind the options, Ethernet",
            below_geneve() / Geneve { protocol: Some(0x6558), ..Geneve::gwlb(1) },
            Drop::GeneveEmpty,
        ),
        case(
            "nothing but padding behind the options",
            below_geneve() / Geneve { protocol: Some(0x0800), ..Geneve::gwlb(1) },
            Drop::GeneveEmpty,
        )
        .padded(46),
        case(
            "all reserved bits set",
            gwlb().edit(|geneve: &mut Geneve| (geneve.reserved_1, geneve.reserved_2) = (0x3f, 0xff)),
            Stored::gwlb(&inner()),
        ),
        case("the C bit without a critical option", gwlb().edit(|geneve: &mut Geneve| geneve.critical = true), Stored::gwlb(&inner())),
        case("a VNI in GENEVE that carries IP means nothing", gwlb().edit(|geneve: &mut Geneve| geneve.vni = 99), Stored::gwlb(&inner())),
        case("an Ethernet frame in GENEVE", bridged(Geneve::default()), bridged_stored().nameless()),
        case("an Ethernet frame in GENEVE with an endpoint", bridged(Geneve::gwlb(aws().endpoint)), bridged_stored()),
        case(
            "an Ethernet frame in GENEVE, cut",
            bridged(Geneve::gwlb(aws().endpoint)),
            Stored { bytes: inner()[..60].to_vec(), ..bridged_stored().cut_from(80) },
        )
        .cut(82 + 60),
    ]
}

/// [`inner`] with its layers, so that GENEVE announces Ethernet.
fn inner_packet() -> Packet {
    Ethernet::default() / Ipv4::new([172, 31, 0, 238], [93, 184, 216, 34]) / Tcp::new(40_000, 443) / [7; 26]
}

fn geneve_options() -> Vec<Case> {
    let with = |options: Vec<GeneveOption>| aws().gwlb(inner()).edit(|geneve: &mut Geneve| geneve.options = options);
    let first = |change: fn(&mut GeneveOption)| aws().gwlb(inner()).edit(|geneve: &mut Geneve| change(&mut geneve.options[0]));
    let id = || GeneveOption::endpoint(aws().endpoint);
    let other = |kind: u8| GeneveOption::new(0x0132, kind, [9; 4]);
    let stored = || Stored::gwlb(&inner());
    let repeated = || stored().noted(|notes| notes.repeated_option = true);
    vec![
        case("options in another order", with(vec![GeneveOption::cookie(1), GeneveOption::attachment(2), id()]), stored()),
        case("only the endpoint id", with(vec![id()]), stored()),
        case("no options", with(vec![]), stored().nameless()),
        case("no endpoint id", with(vec![GeneveOption::cookie(1)]), stored().nameless()),
        case("an unknown option", with(vec![other(0x01), id()]), stored()),
        case("an unknown option without data", with(vec![GeneveOption::new(0x0132, 0x7f, []), id()]), stored()),
        case("an unknown type of the AWS class", with(vec![GeneveOption::new(0x0108, 4, [1; 4]), id()]), stored()),
        case("a look-alike of another class", with(vec![GeneveOption::new(0x0167, 1, [1; 8])]), stored().nameless()),
        case("reserved bits of an option", first(|option| option.reserved = 7), stored()),
        case(
            "63 words of options",
            with(vec![id(), GeneveOption::new(0x0132, 1, [0xff; 124]), GeneveOption::new(0x0132, 2, [0xff; 108])]),
            stored(),
        ),
        case("the endpoint id twice: the first counts", with(vec![id(), GeneveOption::endpoint(5)]), repeated()),
        case("the attachment id twice", with(vec![id(), GeneveOption::attachment(0), GeneveOption::attachment(0)]), repeated()),
        case("the cookie twice", with(vec![GeneveOption::cookie(0), GeneveOption::cookie(0), id()]), repeated()),
        case("an unknown option twice", with(vec![other(1), other(1), id()]), stored()),
        case("an unknown critical option", with(vec![id(), other(0x80)]), Drop::GeneveCritical),
        case("an unknown critical option of class 0", with(vec![id(), GeneveOption::new(0, 0x80, [])]), Drop::GeneveCritical),
        case("a critical look-alike of the endpoint id", with(vec![GeneveOption::new(0x0108, 0x81, [1; 8])]), Drop::GeneveCritical),
        case("an endpoint id of 4 bytes", with(vec![GeneveOption::new(0x0108, 1, [1; 4])]), Drop::GeneveOption),
        case("an endpoint id of 12 bytes", with(vec![GeneveOption::new(0x0108, 1, [1; 12])]), Drop::GeneveOption),
        case("an endpoint id of no bytes", with(vec![GeneveOption::new(0x0108, 1, [])]), Drop::GeneveOption),
        case("an attachment id of 4 bytes", with(vec![id(), GeneveOption::new(0x0108, 2, [1; 4])]), Drop::GeneveOption),
        case("a cookie of 8 bytes", with(vec![id(), GeneveOption::new(0x0108, 3, [1; 8])]), Drop::GeneveOption),
        case("a second endpoint id of 4 bytes", with(vec![id(), GeneveOption::new(0x0108, 1, [1; 4])]), Drop::GeneveOption),
        case("an option past the options", with(vec![id(), GeneveOption { length: Some(2), ..other(1) }]), Drop::GeneveOption),
        case("a critical option past the options", with(vec![id(), GeneveOption { length: Some(2), ..other(0x81) }]), Drop::GeneveOption),
        case("options one word too long", with(vec![id()]).edit(|geneve: &mut Geneve| geneve.options_length = Some(2)), Drop::GeneveOption),
    ]
}

fn tunnel() -> Vec<Case> {
    let gwlb = || aws().gwlb(inner());
    let ip = |change: fn(&mut Ipv4)| gwlb().edit_nth(1, change);
    let udp = |length: u16| gwlb().edit_nth(1, |udp: &mut Udp| udp.length = Some(length));
    let six = || aws_v6().gwlb(inner());
    let six_stored = || Stored::gwlb(&inner()).source(v6(1).into());
    // Ethernet 14, IPv4 20, UDP 8, GENEVE 8 + 32.
    let at = 82;
    let padded_tunnel = [session(&inner()).build(), vec![0xee; 9]].concat();
    vec![
        case("3 bytes of tunnel IP", gwlb(), Drop::TunnelIpShort).cut(at + 3),
        case("an IPv4 tunnel header cut short", gwlb(), Drop::TunnelIpShort).cut(at + 19),
        case("IPv4 tunnel options cut short", ip(|ip| ip.options = vec![1; 4]), Drop::TunnelIpShort).cut(at + 23),
        case("an IPv6 tunnel header cut short", six(), Drop::TunnelIpShort).cut(at + 20 + 39),
        case("IPv4 announced, version 6", ip(|ip| ip.version = 6), Drop::TunnelIpVersion),
        case("IPv6 announced, version 4", gwlb().edit(|geneve: &mut Geneve| geneve.protocol = Some(0x86dd)), Drop::TunnelIpVersion),
        case("tunnel IHL 4", ip(|ip| ip.ihl = Some(4)), Drop::TunnelIpHeader),
        case("tunnel IHL 0", ip(|ip| ip.ihl = Some(0)), Drop::TunnelIpHeader),
        case("a tunnel total length of 19", ip(|ip| ip.total_length = Some(19)), Drop::TunnelIpLength),
        case("a tunnel total length of 0", ip(|ip| ip.total_length = Some(0)), Drop::TunnelIpLength),
        case("the first tunnel fragment", ip(|ip| ip.fragment = Ipv4::MORE_FRAGMENTS), Drop::TunnelFragment),
        case("the last tunnel fragment", ip(|ip| ip.fragment = 8), Drop::TunnelFragment),
        case("a tunnel fragment, with inline packets stored", ip(|ip| ip.fragment = 8), Drop::TunnelFragment).by(STORE),
        case(
            "an IPv6 tunnel fragment",
            below_geneve()
                / Geneve::gwlb(1)
                / Ipv6::new(v6(1), v6(2))
                / Extension::fragment(0, true)
                / Udp::unchecked(1, 4789)
                / Vxlan::new(1)
                / inner(),
            Drop::TunnelFragment,
        ),
        case("a tunnel UDP header cut short", gwlb(), Drop::TunnelUdpLength).cut(at + 27),
        case("a tunnel UDP length of 7", udp(7), Drop::TunnelUdpLength),
        case("a tunnel UDP length of 0", udp(0), Drop::TunnelUdpLength),
        case("tunnel IPv4 options", ip(|ip| ip.options = vec![1; 40]), Stored::gwlb(&inner())),
        case("a tunnel UDP checksum", gwlb().edit_nth(1, |udp: &mut Udp| udp.checksum = Some(0xbad)), Stored::gwlb(&inner())),
        case(
            "tunnel extension headers",
            below_geneve()
                / Geneve::gwlb(aws().endpoint)
                / Ipv6::new(v6(1), v6(2))
                / Extension::destination(1)
                / Udp::unchecked(1, 4789)
                / Vxlan::new(aws().vni)
                / inner(),
            six_stored(),
        ),
        case(
            "padding behind the tunnel packet",
            below_geneve() / Geneve { protocol: Some(0x0800), ..Geneve::gwlb(aws().endpoint) } / padded_tunnel,
            Stored::gwlb(&inner()),
        ),
        case(
            "padding behind the tunnel datagram",
            udp(16 + 70),
            Stored { bytes: inner()[..70].to_vec(), ..Stored::gwlb(&inner()).cut_from(80) },
        ),
        case("a tunnel UDP length past the bytes", udp(16 + 200), Stored::gwlb(&inner()).cut_from(200)),
        case("a tunnel total length past the bytes", ip(|ip| ip.total_length = Some(9000)), Stored::gwlb(&inner()).cut_from(9000 - 36)),
        case(
            "an outer total length past the bytes, around a whole tunnel packet",
            gwlb().edit(|ip: &mut Ipv4| ip.total_length = Some(9000)),
            Stored::gwlb(&inner()),
        ),
        case(
            "a tunnel total length and a UDP length past the bytes",
            ip(|ip| ip.total_length = Some(36 + 500)).edit_nth(1, |udp: &mut Udp| udp.length = Some(16 + 500)),
            Stored::gwlb(&inner()).cut_from(500),
        ),
    ]
}

fn vxlan() -> Vec<Case> {
    let with = |change: fn(&mut Vxlan)| aws().gwlb(inner()).edit(change);
    vec![
        case("7 bytes of VXLAN", aws().gwlb(inner()), Drop::VxlanShort).cut(110 + 7),
        case("7 bytes of VXLAN, straight to the interface", aws().direct(inner()), Drop::VxlanShort).cut(42 + 7),
        case("the I flag clear", with(|vxlan| vxlan.flags = 0), Drop::VxlanNoI),
        case("all flags but I", with(|vxlan| vxlan.flags = 0xf7), Drop::VxlanNoI),
        case("nothing behind VXLAN", aws().gwlb(Vec::new()), Drop::VxlanEmpty),
        case("nothing but padding behind VXLAN", aws().direct(Vec::new()), Drop::VxlanEmpty).padded(10),
        case(
            "all reserved bits of VXLAN set",
            with(|vxlan| (vxlan.flags, vxlan.reserved_1, vxlan.reserved_2) = (0xff, 0xff_ffff, 0xff)),
            Stored::gwlb(&inner()),
        ),
        case("VNI 0", with(|vxlan| vxlan.vni = 0), Stored::gwlb(&inner()).vni(0)),
        case("the highest VNI", with(|vxlan| vxlan.vni = 0xff_ffff), Stored::gwlb(&inner()).vni(0xff_ffff)),
    ]
}

/// A mirrored frame, and how the mirror cut it.
fn mirrored_frames() -> Vec<Case> {
    let v4 = || Ipv4::new([1, 1, 1, 1], [2, 2, 2, 2]);
    let whole = |name, frame: Packet| case(name, aws().gwlb(frame.clone()), Stored::gwlb(&frame.build()));
    let cut = |name, frame: Packet, len: usize, orig_len: usize| {
        let bytes = frame.build()[..len].to_vec();
        let stored = Stored::gwlb(&bytes);
        case(name, aws().gwlb(bytes), if orig_len > len { stored.cut_from(orig_len) } else { stored })
    };
    let six = || Ethernet::default() / Ipv6::new(v6(8), v6(9)) / Udp::new(1, 2) / [3; 100];
    let tagged = || Ethernet::default() / Vlan::service(1) / Vlan::customer(2) / v4() / Udp::new(1, 2) / [3; 100];
    let runt = |len: usize| Stored::gwlb(&inner()[..len]).noted(|notes| notes.runt = true);
    vec![
        whole("a VLAN frame", Ethernet::default() / Vlan::customer(3) / v4() / Udp::new(1, 2)),
        whole("an ARP frame", Ethernet { ether_type: Some(0x0806), ..Ethernet::default() } / [0; 28]),
        whole("MPLS", Ethernet { ether_type: Some(0x8847), ..Ethernet::default() } / [0x45; 60]),
        whole("a frame with an EtherType that is a length", Ethernet { ether_type: Some(38), ..Ethernet::default() } / [0xaa; 38]),
        whole("VXLAN of the customer's", aws().direct(inner())),
        whole("GENEVE of the customer's", aws().gwlb(inner())),
        whole("a fragment of the customer's", Ethernet::default() / Ipv4 { fragment: 8, protocol: Some(17), ..v4() } / [3; 40]),
        whole(
            "a wrong inner checksum",
            Ethernet::default() / Ipv4 { checksum: Some(1), ..v4() } / Tcp { checksum: Some(1), ..Tcp::new(1, 2) },
        ),
        whole("an inner total length of 0", Ethernet::default() / Ipv4 { total_length: Some(0), ..v4() } / Tcp::new(1, 2) / [0; 900]),
        whole("an inner payload length of 0", Ethernet::default() / Ipv6 { payload_length: Some(0), ..Ipv6::new(v6(1), v6(2)) } / [0; 900]),
        whole("an inner total length less than the frame", Ethernet::default() / Ipv4 { total_length: Some(21), ..v4() } / [0; 26]),
        whole("inner IP of another version", Ethernet::default() / Ipv4 { version: 6, total_length: Some(9000), ..v4() } / [0; 26]),
        whole("a frame that ends in a VLAN tag of its own", Ethernet::default() / Vlan::customer(3) / [0; 0]),
        cut("cut in the payload", Ethernet::default() / v4() / Udp::new(1, 2) / [3; 1000], 128, 1042),
        cut("cut to the length field of IPv4", Ethernet::default() / v4() / Udp::new(1, 2) / [3; 1000], 18, 1042),
        cut("cut before the length field of IPv4", Ethernet::default() / v4() / Udp::new(1, 2) / [3; 1000], 17, 17),
        cut("an IPv6 frame cut in the payload", six(), 100, 162),
        cut("cut to the length field of IPv6", six(), 20, 162),
        cut("cut before the length field of IPv6", six(), 19, 19),
        cut(
            "a payload length of 0 in a frame cut behind it",
            Ethernet::default() / Ipv6 { payload_length: Some(0), ..Ipv6::new(v6(8), v6(9)) } / [0; 90],
            30,
            30,
        ),
        cut("a frame of two tags cut in the payload", tagged(), 60, 150),
        cut(
            "the longest packet, cut",
            Ethernet::default() / Ipv6 { payload_length: Some(0xffff), ..Ipv6::new(v6(8), v6(9)) } / [0; 90],
            64,
            14 + 40 + 65_535,
        ),
        case("13 bytes of frame", aws().gwlb(&inner()[..13]), runt(13)),
        case("1 byte of frame", aws().gwlb(&inner()[..1]), runt(1)),
        case("13 bytes of frame, straight to the interface", aws().direct(&inner()[..13]), runt(13).via(Via::Direct)),
        case("14 bytes of frame", aws().gwlb(&inner()[..14]), Stored::gwlb(&inner()[..14])),
        case(
            "cut by whoever captured the tunnel",
            aws().gwlb(inner()),
            Stored { bytes: inner()[..60].to_vec(), ..Stored::gwlb(&inner()).cut_from(80) },
        )
        .cut(118 + 60),
        case(
            "ARP cut by whoever captured the tunnel",
            aws().direct([6; 100]),
            Stored { bytes: vec![6; 40], ..Stored::direct(&[6; 100]).cut_from(100) },
        )
        .cut(50 + 40),
    ]
}

fn inline() -> Vec<Case> {
    let v4 = || Ipv4::new([1, 1, 1, 1], [2, 2, 2, 2]);
    let six = || Ipv6::new(v6(8), v6(9)) / Udp::new(1, 53) / b"?";
    let stored4 = |packet: Packet| Stored::inline(&packet.build(), Link::Ipv4);
    let store = |name, packet: Packet| case(name, aws().inline(packet.clone()), stored4(packet)).by(STORE);
    let tcp = || v4() / Tcp::new(40_000, 443) / [7; 60];
    let short = aws().inline(v4() / Tcp::new(1, 2));
    vec![
        case("inline TCP, ignored", aws().inline(tcp()), Ignored::Inline),
        case("inline UDP, ignored", aws().inline(v4() / Udp::new(1, 53) / b"?"), Ignored::Inline),
        case("inline IPv6, ignored", aws().inline(six()), Ignored::Inline),
        case(
            "an inline fragment of TCP, ignored",
            aws().inline(v4() / [0; 9]).edit_nth(1, |ip: &mut Ipv4| (ip.fragment, ip.protocol) = (9, Some(6))),
            Ignored::Inline,
        ),
        store("inline TCP", tcp()),
        store("inline UDP", v4() / Udp::new(4789, 53) / b"?"),
        store("inline UDP with a wrong length", v4() / Udp { length: Some(3), ..Udp::new(1, 53) } / b"?"),
        store("inline ICMP", v4() / Icmp::echo(1, 1) / b"ping"),
        store("an inline fragment of TCP", Ipv4 { fragment: 9, protocol: Some(6), ..v4() } / [0; 9]),
        store("an inline header without payload", Packet::from(v4())),
        store("inline VXLAN on another port", v4() / Udp::new(1, 4790) / Vxlan::new(1) / inner()),
        case("inline IPv6", aws().inline(six()), Stored::inline(&six().build(), Link::Ipv6)).by(STORE),
        case(
            "inline IPv6 with extension headers",
            aws().inline(Ipv6::new(v6(8), v6(9)) / Extension::hop_by_hop(1) / Tcp::new(1, 2)),
            Stored::inline(&(Ipv6::new(v6(8), v6(9)) / Extension::hop_by_hop(1) / Tcp::new(1, 2)).build(), Link::Ipv6),
        )
        .by(STORE),
        case("an inline packet without options", below_geneve() / Geneve::default() / tcp(), stored4(tcp()).nameless()).by(STORE),
        case("an inline packet cut", aws().inline(tcp()), Stored { bytes: tcp().build()[..50].to_vec(), ..stored4(tcp()).cut_from(100) })
            .by(STORE)
            .cut(82 + 50),
        case(
            "padding behind an inline packet",
            below_geneve() / Geneve { protocol: Some(0x0800), ..Geneve::gwlb(aws().endpoint) } / [tcp().build(), vec![0; 8]].concat(),
            stored4(tcp()),
        )
        .by(STORE),
        case(
            "VXLAN's default port is inline when another is set",
            Aws { geneve_port: 16_081, ..aws() }.gwlb(inner()),
            stored4(session(&inner())),
        )
        .by(MOVED),
        case("an inline packet of more than IP can say", too_long_inline(), stored4(too_long_inline_packet())).by(STORE),
        case("an inline header cut short", short.clone(), Drop::TunnelIpShort).by(STORE).cut(82 + 19),
        case("an inline header of another version", short.clone().edit_nth(1, |ip: &mut Ipv4| ip.version = 5), Drop::TunnelIpVersion)
            .by(STORE),
        case("an inline IHL of 3", short.clone().edit_nth(1, |ip: &mut Ipv4| ip.ihl = Some(3)), Drop::TunnelIpHeader),
        case("an inline total length of 7", short.edit_nth(1, |ip: &mut Ipv4| ip.total_length = Some(7)), Drop::TunnelIpLength),
    ]
}

fn table() -> Vec<Case> {
    let groups = [others, outer_layouts, outer_faults, geneve_header, geneve_options, tunnel, vxlan, mirrored_frames, inline];
    groups.iter().flat_map(|group| group()).collect()
}

/// The decoder's answer in the table's words; what it says about places is checked here.
fn judged(frame: &[u8], rules: &Rules) -> Answer {
    match decap(frame, rules) {
        Outcome::NotOurs(reason) => reason.into(),
        Outcome::Malformed(reason) => reason.into(),
        Outcome::Inner(inner) => {
            assert_eq!(frame.get(inner.offset..inner.offset + inner.bytes.len()), Some(inner.bytes), "the offset is wrong");
            Stored {
                bytes: inner.bytes.to_vec(),
                orig_len: inner.orig_len as usize,
                link: inner.link,
                origin: inner.origin,
                notes: inner.notes,
            }
            .into()
        }
    }
}

#[test]
fn every_row_of_the_rules_table_has_its_answer() {
    let table = table();
    let wrong = table
        .iter()
        .map(|case| (case, judged(&case.frame, &case.rules)))
        .filter(|(case, answer)| *answer != case.answer)
        .map(|(case, answer)| format!("{}\n  expected {:?}\n  found    {answer:?}", case.name, case.answer))
        .collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{} of {} rows\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

#[test]
fn every_reason_of_the_decoder_stands_in_the_table_and_every_row_has_a_name_of_its_own() {
    let table = table();
    let names = table.iter().map(|case| case.name).collect::<BTreeSet<_>>();
    assert_eq!(names.len(), table.len(), "two rows have one name");
    for reason in Drop::ALL.into_iter().filter(|reason| reason.is_malformed()) {
        assert!(table.iter().any(|case| case.answer == reason.into()), "no row for {}", reason.name());
    }
    for reason in Ignored::ALL {
        assert!(table.iter().any(|case| case.answer == reason.into()), "no row for {}", reason.name());
    }
}

#[test]
fn the_outer_source_is_told_of_every_frame_with_a_sound_ip_header() {
    assert_eq!(outer_source(&aws().gwlb(inner()).build()), Some(aws().balancer));
    assert_eq!(outer_source(&aws_v6().gwlb(inner()).build()), Some(v6(3).into()));
    assert_eq!(outer_source(&aws().direct(inner()).edit(|ip: &mut Ipv4| ip.fragment = 9).build()), Some(aws().mirrored));
    assert_eq!(
        outer_source(&(Ethernet::default() / Vlan::customer(1) / Ipv4::new([9; 4], [8; 4]) / Tcp::new(1, 2)).build()),
        Some([9; 4].into())
    );
    assert_eq!(outer_source(&aws().gwlb(inner()).edit(|ip: &mut Ipv4| ip.version = 6).build()), None);
    assert_eq!(outer_source(&(Ethernet { ether_type: Some(0x0806), ..Ethernet::default() } / [0; 28]).build()), None);
    assert_eq!(outer_source(&[]), None);
}

/// Captures whose README says that all frames are mirrored frames of one VNI: name, frames, VNI.
const WHOLE_CAPTURES: [(&str, usize, u32); 3] =
    [("aws_traffic_mirroring_eni", 100, 5_569_041), ("vxlan_reserved_bits", 10, 11), ("geneve_ethernet", 10, 123)];

#[test]
fn captures_of_others_are_judged_as_their_tables_say() {
    let Ok(folder) = std::env::var("TAPFLEET_EXTRA_PCAPS") else {
        // Past the test harness, which keeps the output of tests that pass to itself.
        let _ = writeln!(std::io::stderr(), "not run: captures of others: set TAPFLEET_EXTRA_PCAPS to the folder that holds them");
        return;
    };
    let entries = fs::read_dir(&folder).unwrap_or_else(|cause| panic!("cannot list TAPFLEET_EXTRA_PCAPS '{folder}': {cause}"));
    let mut captures = entries.map(|entry| entry.unwrap().path()).filter(|path| is_capture(path)).collect::<Vec<_>>();
    captures.sort();
    assert!(!captures.is_empty(), "no .pcap or .pcapng in TAPFLEET_EXTRA_PCAPS '{folder}'");
    let wrong = captures.iter().flat_map(|path| judge_capture(path)).collect::<Vec<_>>();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn is_capture(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pcap" || extension == "pcapng")
}

/// What is not as it should be.
fn judge_capture(path: &Path) -> Vec<String> {
    let frames = read_capture(path);
    let table = path.with_extension("expected.csv");
    let name = path.file_stem().unwrap().to_str().unwrap();
    if table.exists() {
        return judge_by_table(name, &frames, &fs::read_to_string(table).unwrap());
    }
    let known = WHOLE_CAPTURES.iter().find(|known| known.0 == name);
    let mut wrong = Vec::new();
    if known.is_some_and(|known| known.1 != frames.len()) {
        wrong.push(format!("{name}: {} frames", frames.len()));
    }
    for (number, frame) in frames.iter().enumerate() {
        match judged(frame, &STORE) {
            Answer::Stored(stored) if known.is_none_or(|known| stored.origin.vni == Some(known.2)) => {}
            other => wrong.push(format!("{name}, frame {}: {other:?}", number + 1)),
        }
    }
    wrong
}

/// A table has a heading and one row per frame: frame, name, bytes, action, note. Only the note may hold commas.
fn judge_by_table(name: &str, frames: &[Vec<u8>], table: &str) -> Vec<String> {
    let rows = table.lines().skip(1).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    let mut wrong = Vec::new();
    if rows.len() != frames.len() {
        wrong.push(format!("{name}: {} frames, {} rows", frames.len(), rows.len()));
    }
    for (frame, row) in frames.iter().zip(rows) {
        let columns = row.splitn(5, ',').collect::<Vec<_>>();
        let answer = judged(frame, &STORE);
        if columns[2] != frame.len().to_string() || !allows(columns[3], &answer) {
            wrong.push(format!("{name}, row {row}: {} bytes, {answer:?}", frame.len()));
        }
    }
    wrong
}

/// Whether a table's action allows an answer.
fn allows(action: &str, answer: &Answer) -> bool {
    match (action, answer) {
        ("accept", Answer::Stored(stored)) => stored.link == Link::Ethernet && !stored.notes.cut,
        ("accept-short", Answer::Stored(stored)) => stored.link == Link::Ethernet && (stored.notes.cut || stored.notes.runt),
        ("accept-l3", Answer::Stored(stored)) => stored.link != Link::Ethernet,
        ("ignore", Answer::Ignored(_)) => true,
        ("reassemble-or-count", Answer::Dropped(reason)) => *reason == Drop::OuterFragment,
        (_, Answer::Dropped(reason)) => action.strip_prefix("drop:") == Some(reason.name()),
        _ => false,
    }
}

/// All frames of a pcap or pcapng file.
fn read_capture(path: &Path) -> Vec<Vec<u8>> {
    let name = path.display();
    let file = fs::File::open(path).unwrap_or_else(|cause| panic!("cannot open '{name}': {cause}"));
    let mut reader = create_reader(1 << 20, file).unwrap_or_else(|cause| panic!("'{name}' is no capture: {cause}"));
    let mut frames = Vec::new();
    loop {
        match reader.next() {
            Ok((used, block)) => {
                match block {
                    PcapBlockOwned::Legacy(packet) => frames.push(packet.data[..packet.caplen as usize].to_vec()),
                    PcapBlockOwned::NG(pcap_parser::Block::EnhancedPacket(packet)) => {
                        frames.push(packet.data[..packet.caplen as usize].to_vec());
                    }
                    _ => {}
                }
                reader.consume(used);
            }
            Err(PcapError::Eof) => return frames,
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(cause) => panic!("cannot read '{name}': {cause}"),
        }
    }
}
