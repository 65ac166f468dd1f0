//! Ethernet II with up to two VLAN tags.
//! In: a cursor at the header. Out: the EtherType behind the tags, with the cursor behind it.
//! Never: looks at addresses, knows a third tag.
//! Spec: IEEE 802.3 section 3.2.6 (length/type), IEEE 802.1Q section 9 (tags).

use super::cursor::Cursor;

/// Bytes of the header without tags.
pub const HEADER_LEN: usize = 14;
/// Bytes of one VLAN tag.
pub const TAG_LEN: usize = 4;
/// Tags that are walked over: 802.1Q inside 802.1ad.
pub const TAGS_MAX: usize = 2;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// "Transparent Ethernet bridging": a whole Ethernet frame follows (RFC 8926 section 3.4, from RFC 1701).
pub const BRIDGED: u16 = 0x6558;

const CUSTOMER_TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88a8;
/// What switches used for the outer tag before 802.1ad.
const OLD_SERVICE_TAG: u16 = 0x9100;

const ETHER_TYPE: usize = 12;
/// In a tag, behind the priority and the VLAN id.
const TAGGED_ETHER_TYPE: usize = 2;

/// Consumes the header and its tags. `None` when they are cut short.
#[inline]
pub fn header(cursor: &mut Cursor<'_>) -> Option<u16> {
    let header = cursor.take::<HEADER_LEN>()?;
    let mut ether_type = u16::from_be_bytes([header[ETHER_TYPE], header[ETHER_TYPE + 1]]);
    for _ in 0..TAGS_MAX {
        if !matches!(ether_type, CUSTOMER_TAG | SERVICE_TAG | OLD_SERVICE_TAG) {
            break;
        }
        let tag = cursor.take::<TAG_LEN>()?;
        ether_type = u16::from_be_bytes([tag[TAGGED_ETHER_TYPE], tag[TAGGED_ETHER_TYPE + 1]]);
    }
    Some(ether_type)
}
