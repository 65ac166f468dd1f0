//! Where a mirrored frame came from, as far as its tunnel headers tell.
//! In: header fields. Out: a value that can be compared, hashed and named. Never: more than the headers said.

use std::fmt;
use std::net::IpAddr;

/// The 64-bit id of a GWLB endpoint, as option type 1 of class 0x0108 carries it (big endian).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EndpointId(pub u64);

impl fmt::Display for EndpointId {
    /// The form the AWS API uses: `vpce-` and 17 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vpce-{:017x}", self.0)
    }
}

/// The way a frame reached this instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Via {
    /// VXLAN straight from the mirror source (network interface or NLB target).
    Direct,
    /// Through a Gateway Load Balancer; `None` when the GENEVE options named no endpoint.
    Gwlb(Option<EndpointId>),
    /// Not told apart: more origins than there is room for.
    Other,
}

/// The origin of a mirrored frame: GWLB endpoint, VNI and the address of the interface that was mirrored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Origin {
    /// The way it came.
    pub via: Via,
    /// VNI of the mirror session (VXLAN), or of GENEVE where that carried the frame itself; 24 bits.
    /// `None`: a packet that the load balancer carried inline, not a mirrored one.
    pub vni: Option<u32>,
    /// Source address of the innermost tunnel header: for mirrored frames the primary address of the source interface.
    pub source: IpAddr,
}

impl fmt::Display for Origin {
    /// The name of the pcapng interface: `vpce-…/vni-N`, `vpce-unknown/vni-N`, `direct/vni-N`, `vpce-…/inline`, or `other`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            Via::Direct => f.write_str("direct")?,
            Via::Gwlb(Some(endpoint)) => endpoint.fmt(f)?,
            Via::Gwlb(None) => f.write_str("vpce-unknown")?,
            Via::Other => return f.write_str("other"),
        }
        match self.vni {
            Some(vni) => write!(f, "/vni-{vni}"),
            None => f.write_str("/inline"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn an_origin_is_named_as_the_aws_api_names_its_endpoint() {
        let origin = |via, vni| Origin { via, vni, source: IpAddr::V4(Ipv4Addr::LOCALHOST) };
        let endpoint = Via::Gwlb(Some(EndpointId(0x2b8e_e1d4_db0c_51c4)));
        assert_eq!(origin(endpoint, Some(7)).to_string(), "vpce-02b8ee1d4db0c51c4/vni-7");
        assert_eq!(origin(Via::Gwlb(None), Some(0)).to_string(), "vpce-unknown/vni-0");
        assert_eq!(origin(Via::Direct, Some(0xff_ffff)).to_string(), "direct/vni-16777215");
        assert_eq!(origin(endpoint, None).to_string(), "vpce-02b8ee1d4db0c51c4/inline");
    }
}
