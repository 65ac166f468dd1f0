//! In: origins as frames bring them. Out: small numbers for them, the same number each time.
//! Never: more than [`ORIGINS_MAX`] (VNIs and addresses are the sender's to choose, memory is ours).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::Direction;
use crate::wire::{Link, Origin, Via};

/// The most origins one thread tells apart; frames of further ones are written under [`OTHER`].
pub const ORIGINS_MAX: usize = 16_384;

/// What stands for all origins beyond [`ORIGINS_MAX`].
pub const OTHER: Origin = Origin { via: Via::Other, vni: None, source: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };

/// The numbers that one thread has given, and the hardware address of each origin's interface once it is known.
#[derive(Default, Debug)]
pub struct Origins {
    numbers: HashMap<Origin, u32>,
    macs: Vec<Option<[u8; 6]>>,
    /// Neighbouring frames mostly share their origin.
    last: Option<(Origin, u32)>,
}

impl Origins {
    /// The number of an origin; `new` hears of it the first time.
    pub fn number(&mut self, origin: Origin, mut new: impl FnMut(u32, Origin)) -> u32 {
        if let Some((last, number)) = self.last
            && last == origin
        {
            return number;
        }
        let full = self.numbers.len() >= ORIGINS_MAX;
        let origin = if full && !self.numbers.contains_key(&origin) { OTHER } else { origin };
        let next = self.macs.len() as u32;
        let number = *self.numbers.entry(origin).or_insert_with(|| {
            new(next, origin);
            next
        });
        if number == next {
            self.macs.push(None);
        }
        self.last = Some((origin, number));
        number
    }

    /// Which way a frame went. AWS sends both directions with the mirrored interface as tunnel source, so a frame whose own
    /// source is that address went out. Its hardware address, once learnt, tells for the interface's further addresses.
    pub fn direction(&mut self, number: u32, origin: &Origin, link: Link, inner: &[u8]) -> Direction {
        if link != Link::Ethernet || origin.vni.is_none() {
            return Direction::Unknown;
        }
        let Some((sender, source)) = sender_and_source(inner) else { return Direction::Unknown };
        let Some(mac) = self.macs.get_mut(number as usize) else { return Direction::Unknown };
        if source == Some(origin.source) {
            *mac = Some(sender);
            return Direction::Outbound;
        }
        match *mac {
            Some(known) if known == sender => Direction::Outbound,
            _ => Direction::Inbound,
        }
    }
}

/// The Ethernet source of a frame and its IP source, if it has one behind at most two VLAN tags.
fn sender_and_source(inner: &[u8]) -> Option<([u8; 6], Option<IpAddr>)> {
    let sender = inner.get(6..12)?.try_into().ok()?;
    let mut at = 12;
    for _ in 0..2 {
        match inner.get(at..at + 2)? {
            [0x81, 0x00] | [0x88, 0xa8] => at += 4,
            _ => break,
        }
    }
    let ip = inner.get(at + 2..).unwrap_or_default();
    let source = match inner.get(at..at + 2)? {
        [0x08, 0x00] => ip.get(12..16).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from),
        [0x86, 0xdd] => ip.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from),
        _ => None,
    };
    Some((sender, source))
}
