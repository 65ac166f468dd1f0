//! The tunnels of AWS Traffic Mirroring around a mirrored frame.
//! Spec: AWS "Traffic Mirroring packet format"; AWS "Gateway Load Balancer" (GENEVE, three options, then the packet that the
//! endpoint took in: here the mirror session's VXLAN).

use std::net::IpAddr;

use super::{Ethernet, Geneve, Ipv4, Ipv6, Packet, Udp, Vxlan};

/// One mirror session and the way to it. Change what a test needs: `Aws { vni: 7, ..Aws::default() }`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Aws {
    /// Id of the GWLB endpoint.
    pub endpoint: u64,
    /// VNI of the mirror session, 24 bits.
    pub vni: u32,
    /// The mirrored interface.
    pub mirrored: IpAddr,
    /// The address of the mirror target: the endpoint. Of the same family as `mirrored`.
    pub target: IpAddr,
    /// The load balancer's interface.
    pub balancer: IpAddr,
    /// The appliance: this agent's instance. Of the same family as `balancer`, and for plain VXLAN as `mirrored`.
    pub appliance: IpAddr,
    /// Source port of GENEVE.
    pub geneve_source_port: u16,
    /// Source port of VXLAN.
    pub vxlan_source_port: u16,
    /// Destination port of GENEVE.
    pub geneve_port: u16,
    /// Destination port of VXLAN.
    pub vxlan_port: u16,
}

impl Default for Aws {
    fn default() -> Self {
        Self {
            endpoint: 0x0123_4567_89ab_cdef,
            vni: 0x0012_3456,
            mirrored: [172, 31, 0, 238].into(),
            target: [172, 31, 9, 9].into(),
            balancer: [10, 0, 1, 10].into(),
            appliance: [10, 0, 1, 20].into(),
            geneve_source_port: 60_001,
            vxlan_source_port: 65_408,
            geneve_port: 6081,
            vxlan_port: 4789,
        }
    }
}

impl Aws {
    /// The frame as it comes to an appliance behind a Gateway Load Balancer: Ethernet, IP, UDP, GENEVE, IP, UDP, VXLAN, `inner`.
    #[must_use]
    pub fn gwlb(&self, inner: impl Into<Packet>) -> Packet {
        let outer = ip(self.balancer, self.appliance) / Udp::unchecked(self.geneve_source_port, self.geneve_port);
        Ethernet::default() / outer / self.gwlb_datagram(inner)
    }

    /// What a UDP socket must send to the appliance's GENEVE port for the same: GENEVE, IP, UDP, VXLAN, `inner`.
    #[must_use]
    pub fn gwlb_datagram(&self, inner: impl Into<Packet>) -> Packet {
        let tunnel = ip(self.mirrored, self.target) / Udp::unchecked(self.vxlan_source_port, self.vxlan_port);
        Geneve::gwlb(self.endpoint) / tunnel / Vxlan::new(self.vni) / inner
    }

    /// The frame as it comes to a mirror target that is a network interface: Ethernet, IP, UDP, VXLAN, `inner`.
    #[must_use]
    pub fn direct(&self, inner: impl Into<Packet>) -> Packet {
        let outer = ip(self.mirrored, self.appliance) / Udp::unchecked(self.vxlan_source_port, self.vxlan_port);
        Ethernet::default() / outer / self.direct_datagram(inner)
    }

    /// What a UDP socket must send to the appliance's VXLAN port for the same: VXLAN, `inner`.
    #[must_use]
    pub fn direct_datagram(&self, inner: impl Into<Packet>) -> Packet {
        Vxlan::new(self.vni) / inner
    }

    /// A packet that the load balancer carries inline: Ethernet, IP, UDP, GENEVE, and then `packet`, which begins with an IP
    /// header (as a layer: of bytes alone GENEVE would not know what to call them).
    #[must_use]
    pub fn inline(&self, packet: impl Into<Packet>) -> Packet {
        let outer = ip(self.balancer, self.appliance) / Udp::unchecked(self.geneve_source_port, self.geneve_port);
        Ethernet::default() / outer / Geneve::gwlb(self.endpoint) / packet
    }
}

/// An IP header of the addresses' family.
///
/// # Panics
/// When they are of two families: the test is wrong.
#[allow(clippy::panic)]
fn ip(source: IpAddr, destination: IpAddr) -> Packet {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4::new(source, destination).into(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6::new(source, destination).into(),
        _ => panic!("{source} and {destination} are of two families"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each header on a line of its own, worked out by hand from the RFCs; the checksums by another program.
    #[test]
    fn the_layout_is_the_documented_one_to_the_byte() {
        let expected = [
            &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00][..],
            &[0x45, 0, 0, 107, 0, 0, 0, 0, 255, 17, 0xa5, 0x64, 10, 0, 1, 10, 10, 0, 1, 20],
            &[0xea, 0x61, 0x17, 0xc1, 0, 87, 0, 0],
            &[0x08, 0x00, 0x08, 0x00, 0, 0, 0, 0],
            &[0x01, 0x08, 1, 2, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef],
            &[0x01, 0x08, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x01, 0x08, 3, 1, 0xde, 0xad, 0xbe, 0xef],
            &[0x45, 0, 0, 39, 0, 0, 0, 0, 255, 17, 0x59, 0x90, 172, 31, 0, 238, 172, 31, 9, 9],
            &[0xff, 0x80, 0x12, 0xb5, 0, 19, 0, 0],
            &[0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0],
            &[1, 2, 3],
        ]
        .concat();
        assert_eq!(Aws::default().gwlb([1, 2, 3]).build(), expected);
        let datagram = Aws::default().gwlb_datagram([1, 2, 3]).build();
        assert!(expected.ends_with(&datagram));
        assert_eq!(datagram.len(), 79);
    }
}
