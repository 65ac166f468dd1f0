//! GENEVE and its options. Spec: RFC 8926 sections 3.4 and 3.5; AWS "Gateway Load Balancer" for class 0x0108.

use super::Around;

/// A GENEVE header.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[allow(missing_docs)]
pub struct Geneve {
    /// 2 bits.
    pub version: u8,
    /// In words of 4 bytes, 6 bits.
    pub options_length: Option<u8>,
    pub control: bool,
    pub critical: bool,
    /// 6 bits.
    pub reserved_1: u8,
    pub protocol: Option<u16>,
    /// 24 bits.
    pub vni: u32,
    pub reserved_2: u8,
    pub options: Vec<GeneveOption>,
}

/// A GENEVE option.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct GeneveOption {
    pub class: u16,
    /// The top bit says critical.
    pub kind: u8,
    /// 3 bits.
    pub reserved: u8,
    /// In words of 4 bytes, 5 bits.
    pub length: Option<u8>,
    pub data: Vec<u8>,
}

impl GeneveOption {
    /// An option with the right length.
    #[must_use]
    pub fn new(class: u16, kind: u8, data: impl Into<Vec<u8>>) -> Self {
        Self { class, kind, reserved: 0, length: None, data: data.into() }
    }

    /// The id of a GWLB endpoint.
    #[must_use]
    pub fn endpoint(id: u64) -> Self {
        Self::new(0x0108, 1, id.to_be_bytes())
    }

    /// The attachment id.
    #[must_use]
    pub fn attachment(id: u64) -> Self {
        Self::new(0x0108, 2, id.to_be_bytes())
    }

    /// The flow cookie.
    #[must_use]
    pub fn cookie(cookie: u32) -> Self {
        Self::new(0x0108, 3, cookie.to_be_bytes())
    }

    fn encode(&self) -> Vec<u8> {
        let length = self.length.unwrap_or((self.data.len() / 4) as u8);
        [&self.class.to_be_bytes()[..], &[self.kind, self.reserved << 5 | length], &self.data].concat()
    }
}

impl Geneve {
    /// With the three options of a Gateway Load Balancer, in its order.
    #[must_use]
    pub fn gwlb(endpoint: u64) -> Self {
        let options = vec![GeneveOption::endpoint(endpoint), GeneveOption::attachment(0), GeneveOption::cookie(0xdead_beef)];
        Self { options, ..Self::default() }
    }

    pub(super) fn encode(&self, around: &Around<'_>) -> Vec<u8> {
        let options = self.options.iter().flat_map(GeneveOption::encode).collect::<Vec<_>>();
        let options_length = self.options_length.unwrap_or((options.len() / 4) as u8);
        let protocol = self.protocol.unwrap_or_else(|| around.ether_type());
        [
            &[self.version << 6 | options_length, u8::from(self.control) << 7 | u8::from(self.critical) << 6 | self.reserved_1][..],
            &protocol.to_be_bytes(),
            &(self.vni << 8 | u32::from(self.reserved_2)).to_be_bytes(),
            &options,
        ]
        .concat()
    }
}
