//! In: origins as frames bring them. Out: small numbers for them, the same number each time.
//! Never: more than [`ORIGINS_MAX`] (VNIs and addresses are the sender's to choose, memory is ours); blind for good when there were.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::Direction;
use crate::host::clock::SECOND_NS;
use crate::wire::cursor::Cursor;
use crate::wire::ip::Version;
use crate::wire::{Link, Origin, Via, ethernet};

/// The most origins one thread tells apart; frames of further ones are written under [`OTHER`].
pub const ORIGINS_MAX: usize = 16_384;

/// Whoever makes up origins takes the places of the true ones for at most this long.
const KEPT_NS: u64 = 10 * SECOND_NS;

/// Places for origins that were seen lately. Two that meet at one place cost a look into the table each time.
const RECENT: usize = 1024;

/// What stands for all origins beyond [`ORIGINS_MAX`].
pub const OTHER: Origin = Origin { via: Via::Other, vni: None, source: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };

/// The numbers that one thread has given, and the hardware address of each origin's interface once it is known.
#[derive(Default, Debug)]
pub struct Origins {
    numbers: HashMap<Origin, u32>,
    macs: Vec<Option<[u8; 6]>>,
    /// Those seen lately, each at the place that its numbers lead to: a frame costs a comparison, no hashing.
    recent: Vec<Option<(Origin, u32)>>,
    /// Stamp of the frame that began the numbering anew.
    since_ns: u64,
}

impl Origins {
    /// Begins anew, at zero, when all places are taken and have been for a while. To be called between batches: within one a number
    /// stands for one origin. `time_ns`: the next frame's stamp.
    pub fn renew(&mut self, time_ns: u64) {
        // Either way: the clock may have been set back.
        if self.numbers.len() < ORIGINS_MAX || time_ns.abs_diff(self.since_ns) < KEPT_NS {
            return;
        }
        // Both keep their memory.
        self.numbers.clear();
        self.macs.clear();
        self.recent.clear();
        self.since_ns = time_ns;
    }

    /// The number of an origin; `new` hears of it the first time.
    #[inline]
    pub fn number(&mut self, origin: &Origin, new: impl FnOnce(u32, Origin)) -> u32 {
        match self.recent.get(place(origin)) {
            Some(Some((recent, number))) if recent == origin => *number,
            _ => self.look_up(origin, new),
        }
    }

    /// The number of an origin that was not seen lately.
    #[inline(never)]
    fn look_up(&mut self, origin: &Origin, new: impl FnOnce(u32, Origin)) -> u32 {
        let full = self.numbers.len() >= ORIGINS_MAX;
        let origin = if full && !self.numbers.contains_key(origin) { OTHER } else { *origin };
        let next = self.macs.len() as u32;
        let number = *self.numbers.entry(origin).or_insert_with(|| {
            new(next, origin);
            next
        });
        if number == next {
            self.macs.push(None);
        }
        self.recent.resize(RECENT, None);
        if let Some(recent) = self.recent.get_mut(place(&origin)) {
            *recent = Some((origin, number));
        }
        number
    }

    /// Which way a frame went. AWS sends both directions with the mirrored interface as tunnel source, so a frame whose own
    /// source is that address went out. Its hardware address, once learnt, tells for the interface's further addresses.
    #[inline]
    pub fn direction(&mut self, number: u32, origin: &Origin, link: Link, inner: &[u8]) -> Direction {
        if link != Link::Ethernet || origin.vni.is_none() {
            return Direction::Unknown;
        }
        let Some((sender, from_interface)) = sender(inner, origin.source) else { return Direction::Unknown };
        let Some(mac) = self.macs.get_mut(number as usize) else { return Direction::Unknown };
        if from_interface {
            *mac = Some(sender);
            return Direction::Outbound;
        }
        match *mac {
            Some(known) if known == sender => Direction::Outbound,
            _ => Direction::Inbound,
        }
    }
}

/// Where an origin stands among the recent ones. VNIs and addresses are mostly dealt out one after the other, so their low bits differ.
#[inline]
fn place(origin: &Origin) -> usize {
    let source = match origin.source {
        IpAddr::V4(source) => source.to_bits(),
        IpAddr::V6(source) => source.to_bits() as u32,
    };
    (origin.vni.unwrap_or_default() ^ source.rotate_left(6)) as usize % RECENT
}

/// The Ethernet source of a frame, and whether its IP source is `address`.
#[inline]
fn sender(inner: &[u8], address: IpAddr) -> Option<([u8; 6], bool)> {
    let [_, _, _, _, _, _, sender @ .., _, _] = inner.first_chunk::<{ ethernet::HEADER_LEN }>()?;
    let mut cursor = Cursor::new(inner);
    let version = Version::of_ether_type(ethernet::header(&mut cursor)?);
    let ip = cursor.rest();
    let from_address = match (version, address) {
        (Some(Version::V4), IpAddr::V4(address)) => ip.get(12..16) == Some(&address.octets()),
        (Some(Version::V6), IpAddr::V6(address)) => ip.get(8..24) == Some(&address.octets()),
        _ => false,
    };
    Some((*sender, from_address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_795_306_500 * SECOND_NS;

    fn origin(vni: u32) -> Origin {
        Origin { via: Via::Direct, vni: Some(vni), source: [10, 0, 0, 1].into() }
    }

    #[test]
    fn made_up_origins_hide_a_true_one_for_ten_seconds_and_not_for_good() {
        let mut origins = Origins::default();
        origins.renew(START);
        let made_up = ORIGINS_MAX as u32;
        for vni in 0..made_up + 100 {
            origins.number(&origin(vni), |_, _| {});
        }
        let other = origins.number(&OTHER, |_, _| {});
        let ours = origin(1 << 23);
        assert_eq!(origins.number(&ours, |_, _| {}), other, "all places are taken");
        // The first renewal begins the count of the ten seconds.
        let mut first = 0;
        origins.renew(START + KEPT_NS);
        let number = origins.number(&ours, |_, _| first += 1);
        assert_eq!((number, first), (0, 1), "it is told of anew");
        for vni in 0..2 * made_up {
            origins.number(&origin(vni), |number, _| assert!(number <= made_up, "memory has a bound"));
        }
        origins.renew(START + KEPT_NS + KEPT_NS - 1);
        assert_eq!(origins.number(&ours, |_, _| first += 1), 0, "within ten seconds a number stays");
        assert_eq!(first, 1);
        // A clock that was set back does not put it off.
        origins.renew(START - KEPT_NS);
        assert_eq!(origins.number(&origin(5), |_, _| {}), 0);
    }
}
