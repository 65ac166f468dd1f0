//! In: rtnetlink questions. Out: the links of this thread's network namespace, the default route's link, a link's loss counters, on the
//! way in and out.
//! Never: changes anything, reads /sys (it shows another namespace after setns), fails because of an attribute it does not know.
//! Spec: rtnetlink(7), RFC 3549; `struct rtnl_link_stats64` in linux/if_link.h; ENA counters in the Linux driver's README.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::ethtool;

/// Longest interface name (`IFNAMSIZ` without its NUL).
const NAME_BYTES_MAX: usize = 15;

/// The kernel fills at most 32 KiB of a dump at a time; one link with many virtual functions may need more.
const REPLY_BYTES_MAX: usize = 256 << 10;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_STATS64: u16 = 23;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 1 << 6;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const LINK_HEADER_BYTES: usize = 16;
const ROUTE_HEADER_BYTES: usize = 12;

/// Counters of `rtnl_link_stats64` that mean a frame lost on the way in, and their place there. ENA counts ring overruns as
/// `rx_over_errors` and leaves `rx_missed_errors` and `rx_fifo_errors` at 0.
const LOSSES: [(&str, usize); 7] = [
    ("rx_dropped", 6),
    ("rx_length_errors", 10),
    ("rx_over_errors", 11),
    ("rx_crc_errors", 12),
    ("rx_frame_errors", 13),
    ("rx_fifo_errors", 14),
    ("rx_missed_errors", 15),
];

/// The place of `tx_dropped` in `rtnl_link_stats64`: frames that the kernel took for the interface and that did not leave by it.
const TX_DROPPED: usize = 7;

/// Ends of the names of ENA's per-queue counters (`queue_N_rx_…`) that mean a frame lost.
const QUEUE_LOSSES: [&str; 4] = ["_rx_page_alloc_fail", "_rx_skb_alloc_fail", "_rx_empty_rx_ring", "_rx_bad_desc_num"];

/// How the names of EC2's allowance counters end.
const ALLOWANCE: &str = "_allowance_exceeded";

/// The kernel did not answer.
#[derive(thiserror::Error, Debug)]
#[error("cannot {act} over rtnetlink: {cause}")]
pub struct Error {
    act: &'static str,
    cause: io::Error,
}

/// A network interface as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number; a new one each time it is created.
    pub index: u32,
    /// Whether it was switched on (`IFF_UP`).
    pub up: bool,
    /// Whether it is on and has a carrier (`IFF_RUNNING`).
    pub running: bool,
    /// Whether its frames begin with an Ethernet header.
    pub ethernet: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
}

/// Totals of one interface since it was created, to be compared with later ones.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LossCounters {
    /// Frames that the interface or its driver lost, by the kernel's or the driver's name.
    pub nic: BTreeMap<String, u64>,
    /// Packets that EC2 queued or dropped because an allowance was used up: an upper bound of loss. Empty on other drivers.
    pub ec2: BTreeMap<String, u64>,
}

/// How an interface fares with what it is given to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outlet {
    /// Whether it is on and has a carrier (`IFF_RUNNING`): without one nothing leaves by it.
    pub running: bool,
    /// Frames that it took and dropped since it was created.
    pub dropped: u64,
}

/// All links.
///
/// # Errors
/// When the kernel does not answer.
pub fn links() -> Result<Vec<Link>, Error> {
    let mut links = Vec::new();
    let mut add = |payload: &[u8]| links.extend(link_of(payload));
    ask("list the network interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, &mut add)?;
    Ok(links)
}

/// The link of that exact name, if there is one.
///
/// # Errors
/// When the kernel does not answer.
pub fn link(name: &str) -> Result<Option<Link>, Error> {
    let mut found = None;
    ask_link(name, &mut |payload| found = link_of(payload))?;
    Ok(found)
}

/// The link that the default route with the lowest metric leaves by: IPv4's, else IPv6's.
///
/// # Errors
/// When the kernel does not answer.
pub fn default_route_link() -> Result<Option<Link>, Error> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut best: Option<(u32, u32)> = None;
        let mut weigh = |payload: &[u8]| {
            if let Some(route) = default_route_of(payload)
                && best.is_none_or(|best| route.0 < best.0)
            {
                best = Some(route);
            }
        };
        ask("list the routes", RouteNetlinkMessage::GetRoute(question), NLM_F_DUMP, &mut weigh)?;
        if let Some((_, index)) = best {
            return Ok(links()?.into_iter().find(|link| link.index == index));
        }
    }
    Ok(None)
}

/// What the interface of that name has lost since it was created; empty when there is no such interface.
///
/// # Errors
/// When the kernel does not answer. A driver that counts nothing of its own is no error.
pub fn losses(name: &str) -> Result<LossCounters, Error> {
    let mut counters = LossCounters::default();
    let mut add = |payload: &[u8]| {
        let Some(stats) = attribute(payload.get(LINK_HEADER_BYTES..).unwrap_or_default(), IFLA_STATS64) else { return };
        for (name, place) in LOSSES {
            if let Some(value) = u64_at(stats, place * 8) {
                counters.nic.insert(name.to_owned(), value);
            }
        }
    };
    ask_link(name, &mut add)?;
    for (name, value) in ethtool::statistics(name).unwrap_or_default() {
        if name.ends_with(ALLOWANCE) {
            counters.ec2.insert(name, value);
        } else if QUEUE_LOSSES.iter().any(|end| name.ends_with(end)) {
            counters.nic.insert(name, value);
        }
    }
    Ok(counters)
}

/// The interface of that number as a way out, if there is one.
///
/// # Errors
/// When the kernel does not answer.
pub fn outlet(index: u32) -> Result<Option<Outlet>, Error> {
    let mut found = None;
    let mut question = LinkMessage::default();
    question.header.index = index;
    ask_link_by(question, &mut |payload| found = outlet_of(payload))?;
    Ok(found)
}

fn ask_link(name: &str, each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Ok(());
    }
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    ask_link_by(question, each)
}

/// A link that is not there is no error.
fn ask_link_by(question: LinkMessage, each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
    match ask("ask for a network interface", RouteNetlinkMessage::GetLink(question), 0, each) {
        Err(error) if error.cause.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
        other => other,
    }
}

fn link_of(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(LINK_HEADER_BYTES..)?;
    let name = attribute(attributes, IFLA_IFNAME)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let kind = u16::from_ne_bytes(*payload.get(2..)?.first_chunk()?);
    let flags = u32_at(payload, 8)?;
    Some(Link {
        name: String::from_utf8_lossy(name).into_owned(),
        index: u32_at(payload, 4)?,
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        ethernet: kind == ARPHRD_ETHER || kind == ARPHRD_LOOPBACK,
        mtu: attribute(attributes, IFLA_MTU).and_then(|value| u32_at(value, 0)).unwrap_or(0),
    })
}

fn outlet_of(payload: &[u8]) -> Option<Outlet> {
    let stats = attribute(payload.get(LINK_HEADER_BYTES..)?, IFLA_STATS64)?;
    Some(Outlet { running: u32_at(payload, 8)? & IFF_RUNNING != 0, dropped: u64_at(stats, TX_DROPPED * 8)? })
}

/// Metric and link of a route, if it is a default route of the main table.
fn default_route_of(payload: &[u8]) -> Option<(u32, u32)> {
    let (&prefix_bits, &kind) = (payload.get(1)?, payload.get(7)?);
    let attributes = payload.get(ROUTE_HEADER_BYTES..)?;
    let number = |kind| attribute(attributes, kind).and_then(|value| u32_at(value, 0));
    let table = number(RTA_TABLE).unwrap_or(u32::from(*payload.get(4)?));
    if prefix_bits != 0 || kind != RTN_UNICAST || table != RT_TABLE_MAIN {
        return None;
    }
    // A route over several links names them in `struct rtnexthop`, the link at its byte 4.
    let link = number(RTA_OIF).or_else(|| u32_at(attribute(attributes, RTA_MULTIPATH)?, 4))?;
    Some((number(RTA_PRIORITY).unwrap_or(0), link))
}

fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).map_while(Result::ok).find(|found| found.kind() == kind)?;
    let value = found.into_inner();
    // `NlaBuffer::value` borrows from the buffer it is called on; the value lies behind a header of 4 bytes.
    let length = usize::from(u16::from_ne_bytes(*value.first_chunk()?));
    value.get(4..length)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Asks one question on a socket of its own and hands the payload of each answer to `each`.
fn ask(act: &'static str, question: RouteNetlinkMessage, flags: u16, each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
    let failed = |cause| Error { act, cause };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    socket.send(&bytes, 0).map_err(failed)?;
    let mut answer = Vec::with_capacity(REPLY_BYTES_MAX);
    loop {
        answer.clear();
        socket.recv(&mut answer, 0).map_err(failed)?;
        if is_last(&answer, flags & NLM_F_DUMP == NLM_F_DUMP, each).map_err(failed)? {
            return Ok(());
        }
    }
}

/// Reads one datagram of answers; true when no further one comes.
fn is_last(mut answer: &[u8], dump: bool, each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    let foreign = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
    if answer.is_empty() {
        return Err(foreign());
    }
    while !answer.is_empty() {
        let message = NetlinkBuffer::new_checked(answer).map_err(|_| foreign())?;
        let payload = message.payload();
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(0) => Ok(true),
                    Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    None => Err(foreign()),
                };
            }
            _ => each(payload),
        }
        let step = (message.length() as usize).next_multiple_of(4);
        answer = answer.get(step..).unwrap_or_default();
    }
    Ok(!dump)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn route(table: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, table, 3, 0, RTN_UNICAST, 0, 0, 0, 0];
        for (kind, value) in attributes {
            bytes.extend(attribute_bytes(*kind, value));
        }
        bytes
    }

    #[test]
    fn the_loopback_link_is_found_by_name_and_in_the_list() {
        let lo = link("lo").unwrap().unwrap();
        assert!(lo.ethernet);
        assert!(links().unwrap().iter().any(|link| link.name == "lo" && link.index == lo.index));
    }

    #[test]
    fn a_link_that_is_not_there_is_no_error() {
        assert_eq!(link("tapfleet-none").unwrap(), None);
        assert_eq!(link("a-name-longer-than-any-interface-may-have").unwrap(), None);
        assert_eq!(losses("tapfleet-none").unwrap(), LossCounters::default());
        assert_eq!(outlet(i32::MAX as u32).unwrap(), None);
    }

    #[test]
    fn the_loss_counters_of_a_link_without_a_driver_of_its_own_are_the_kernels() {
        let losses = losses("lo").unwrap();
        assert!(losses.nic.contains_key("rx_over_errors"), "{losses:?}");
        assert!(losses.ec2.is_empty());
    }

    #[test]
    fn a_default_route_is_one_of_the_main_table_by_one_or_several_links() {
        let three = 3u32.to_ne_bytes();
        assert_eq!(default_route_of(&route(254, &[(RTA_OIF, &three)])), Some((0, 3)));
        assert_eq!(default_route_of(&route(254, &[(RTA_OIF, &three), (RTA_PRIORITY, &100u32.to_ne_bytes())])), Some((100, 3)));
        assert_eq!(default_route_of(&route(255, &[(RTA_OIF, &three)])), None);
        assert_eq!(default_route_of(&route(252, &[(RTA_TABLE, &254u32.to_ne_bytes()), (RTA_OIF, &three)])), Some((0, 3)));
        let hops = [8, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(default_route_of(&route(254, &[(RTA_MULTIPATH, &hops)])), Some((0, 7)));
    }

    proptest! {
        #[test]
        fn no_answer_whatever_panics_or_loops(bytes in prop::collection::vec(any::<u8>(), 0..200), dump: bool) {
            let _ = is_last(&bytes, dump, &mut |payload| {
                let _ = (link_of(payload), outlet_of(payload), default_route_of(payload));
            });
            let _ = (link_of(&bytes), outlet_of(&bytes), default_route_of(&bytes));
        }
    }
}
