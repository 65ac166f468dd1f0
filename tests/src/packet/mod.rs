//! Packets for tests, written from the RFCs and not from the decoder, so that one can prove the other.
//! In: headers put on top of each other with `/`, outermost first. Out: bytes, with lengths, types and checksums right,
//! except where a field was set to be wrong: every field that is an `Option` is computed when it is `None`.
//!
//! ```
//! # use tapfleet_tests::packet::{Ethernet, Ipv4, Udp};
//! let dns = Ethernet::default() / Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1024, 53) / b"?";
//! assert_eq!(dns.build().len(), 14 + 20 + 8 + 1);
//! ```

use std::net::IpAddr;
use std::ops::Div;

mod aws;
mod checksum;
mod ethernet;
mod geneve;
mod ip;
pub mod numbered;
pub mod pcap;
mod transport;
mod vxlan;

pub use aws::Aws;
pub use ethernet::{Ethernet, Vlan};
pub use geneve::{Geneve, GeneveOption};
pub use ip::{Extension, Ipv4, Ipv6};
pub use transport::{Icmp, Tcp, Udp};
pub use vxlan::Vxlan;

/// One header, or bytes without a form.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Layer {
    Ethernet(Ethernet),
    Vlan(Vlan),
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    Extension(Extension),
    Udp(Udp),
    Tcp(Tcp),
    Icmp(Icmp),
    Geneve(Geneve),
    Vxlan(Vxlan),
    Bytes(Vec<u8>),
}

/// What a header must know of its neighbours.
struct Around<'a> {
    /// The layer right above, if any.
    above: Option<&'a Layer>,
    /// Source and destination of the nearest IP header below.
    addresses: Option<(IpAddr, IpAddr)>,
    /// All bytes above.
    payload: &'a [u8],
}

impl Around<'_> {
    /// The EtherType of what is above; the local experimental one (IEEE 802) for bytes and for nothing.
    fn ether_type(&self) -> u16 {
        match self.above {
            Some(Layer::Vlan(vlan)) => vlan.tpid,
            Some(Layer::Ipv4(_)) => 0x0800,
            Some(Layer::Ipv6(_)) => 0x86dd,
            // RFC 8926 section 3.4: an Ethernet frame inside GENEVE.
            Some(Layer::Ethernet(_)) => 0x6558,
            _ => 0x88b5,
        }
    }

    /// The IP protocol of what is above; the experimental one (RFC 3692) for bytes and for nothing.
    fn protocol(&self) -> u8 {
        match self.above {
            Some(Layer::Extension(extension)) => extension.kind,
            Some(Layer::Udp(_)) => 17,
            Some(Layer::Tcp(_)) => 6,
            Some(Layer::Icmp(icmp)) => icmp.protocol(),
            _ => 253,
        }
    }
}

/// Headers and bytes, outermost first.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Packet {
    layers: Vec<Layer>,
}

impl Packet {
    /// The bytes on the wire, without Ethernet padding and frame check sequence.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        for (place, layer) in self.layers.iter().enumerate().rev() {
            let (below, above) = (self.layers.get(..place).unwrap_or_default(), self.layers.get(place + 1));
            let around = Around { above, addresses: below.iter().rev().find_map(Layer::addresses), payload: &payload };
            let mut bytes = layer.header(&around);
            bytes.append(&mut payload);
            payload = bytes;
        }
        payload
    }

    /// The packet with the outermost header of this kind changed.
    ///
    /// # Panics
    /// When there is no such header: the test is wrong.
    #[must_use]
    pub fn edit<H: Header>(self, change: impl FnOnce(&mut H)) -> Self {
        self.edit_nth(0, change)
    }

    /// The packet with the `nth` header of this kind changed, counted from 0 at the outermost.
    ///
    /// # Panics
    /// When there is no such header: the test is wrong.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn edit_nth<H: Header>(mut self, nth: usize, change: impl FnOnce(&mut H)) -> Self {
        let header = self.layers.iter_mut().filter_map(H::of).nth(nth);
        change(header.expect("the packet has such a header"));
        self
    }
}

impl Layer {
    fn header(&self, around: &Around<'_>) -> Vec<u8> {
        match self {
            Self::Ethernet(header) => header.encode(around),
            Self::Vlan(header) => header.encode(around),
            Self::Ipv4(header) => header.encode(around),
            Self::Ipv6(header) => header.encode(around),
            Self::Extension(header) => header.encode(around),
            Self::Udp(header) => header.encode(around),
            Self::Tcp(header) => header.encode(around),
            Self::Icmp(header) => header.encode(around),
            Self::Geneve(header) => header.encode(around),
            Self::Vxlan(header) => header.encode(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self {
            Self::Ipv4(header) => Some((header.source.into(), header.destination.into())),
            Self::Ipv6(header) => Some((header.source.into(), header.destination.into())),
            _ => None,
        }
    }
}

/// A header that [`Packet::edit`] can find.
pub trait Header: Sized {
    /// The header in this layer, if it is of this kind.
    fn of(layer: &mut Layer) -> Option<&mut Self>;
}

impl<T: Into<Self>> Div<T> for Packet {
    type Output = Self;

    fn div(mut self, above: T) -> Self {
        self.layers.append(&mut above.into().layers);
        self
    }
}

macro_rules! headers {
    ($($kind:ident)+) => { $(
        impl From<$kind> for Packet {
            fn from(header: $kind) -> Self {
                Self { layers: vec![Layer::$kind(header)] }
            }
        }

        impl<T: Into<Packet>> Div<T> for $kind {
            type Output = Packet;

            fn div(self, above: T) -> Packet {
                Packet::from(self) / above
            }
        }

        impl Header for $kind {
            fn of(layer: &mut Layer) -> Option<&mut Self> {
                match layer {
                    Layer::$kind(header) => Some(header),
                    _ => None,
                }
            }
        }
    )+ };
}

headers! { Ethernet Vlan Ipv4 Ipv6 Extension Udp Tcp Icmp Geneve Vxlan }

impl From<Vec<u8>> for Packet {
    fn from(bytes: Vec<u8>) -> Self {
        Self { layers: vec![Layer::Bytes(bytes)] }
    }
}

impl From<&[u8]> for Packet {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl<const N: usize> From<&[u8; N]> for Packet {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.to_vec().into()
    }
}

impl From<&Vec<u8>> for Packet {
    fn from(bytes: &Vec<u8>) -> Self {
        bytes.clone().into()
    }
}

impl<const N: usize> From<[u8; N]> for Packet {
    fn from(bytes: [u8; N]) -> Self {
        bytes.to_vec().into()
    }
}
