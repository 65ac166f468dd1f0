//! The Internet checksum. Spec: RFC 1071; pseudo-headers: RFC 768, RFC 9293 section 3.1, RFC 8200 section 8.1.

use std::net::IpAddr;

/// The checksum over all pieces, each of which begins at an even offset.
pub(super) fn internet(pieces: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += match *pair {
                [high, low] => u64::from(u16::from_be_bytes([high, low])),
                [last] => u64::from(last) << 8,
                _ => 0,
            };
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The pseudo-header of an upper layer of `length` bytes; empty without addresses.
pub(super) fn pseudo_header(addresses: Option<(IpAddr, IpAddr)>, protocol: u8, length: usize) -> Vec<u8> {
    match addresses {
        Some((IpAddr::V4(source), IpAddr::V4(destination))) => {
            [&source.octets()[..], &destination.octets(), &[0, protocol], &(length as u16).to_be_bytes()].concat()
        }
        Some((IpAddr::V6(source), IpAddr::V6(destination))) => {
            [&source.octets()[..], &destination.octets(), &(length as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        // RFC 1071 section 3: these bytes sum up to ddf2.
        assert_eq!(internet(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(internet(&[&[0x12, 0x34, 0x56]]), !(0x1234 + 0x5600));
    }
}
