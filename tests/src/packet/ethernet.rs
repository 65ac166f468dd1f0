//! Ethernet II and VLAN tags. Spec: IEEE 802.3 section 3, IEEE 802.1Q section 9.

use super::Around;

/// An Ethernet header.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ether_type: Option<u16>,
}

impl Default for Ethernet {
    /// Between two locally administered addresses.
    fn default() -> Self {
        Self { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], ether_type: None }
    }
}

impl Ethernet {
    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let ether_type = self.ether_type.unwrap_or_else(|| around.ether_type());
        [&self.destination[..], &self.source, &ether_type.to_be_bytes()].concat()
    }
}

/// A VLAN tag; its TPID is the EtherType of the header below.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Vlan {
    pub tpid: u16,
    /// Priority (3 bits), drop eligibility (1), VLAN id (12).
    pub control: u16,
    pub ether_type: Option<u16>,
}

impl Vlan {
    /// A customer tag (802.1Q).
    #[must_use]
    pub fn customer(id: u16) -> Self {
        Self { tpid: 0x8100, control: id, ether_type: None }
    }

    /// A service tag (802.1ad).
    #[must_use]
    pub fn service(id: u16) -> Self {
        Self { tpid: 0x88a8, control: id, ether_type: None }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let ether_type = self.ether_type.unwrap_or_else(|| around.ether_type());
        [self.control.to_be_bytes(), ether_type.to_be_bytes()].concat()
    }
}
