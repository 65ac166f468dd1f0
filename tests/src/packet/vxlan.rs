//! VXLAN. Spec: RFC 7348 section 5.

/// A VXLAN header.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Vxlan {
    /// 0x08 is the I flag.
    pub flags: u8,
    /// 24 bits.
    pub reserved_1: u32,
    /// 24 bits.
    pub vni: u32,
    pub reserved_2: u8,
}

impl Vxlan {
    /// A valid header.
    #[must_use]
    pub fn new(vni: u32) -> Self {
        Self { flags: 0x08, reserved_1: 0, vni, reserved_2: 0 }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let words = [u32::from(self.flags) << 24 | self.reserved_1, self.vni << 8 | u32::from(self.reserved_2)];
        words.map(u32::to_be_bytes).concat()
    }
}
