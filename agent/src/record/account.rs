//! What one segment (or idle window) has taken and refused so far.
//! In: one call per frame. Out: the counts of its manifest. Never: allocates per frame (an origin's first frame makes room for it).

use super::Facts;
use super::facts::{GapFacts, OriginFacts, Stamp};
use crate::wire::{Drop, Ignored, Origin, Via};

/// The counts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Account {
    frames: u64,
    bytes: u64,
    late: u64,
    first_ns: Option<u64>,
    last_ns: u64,
    drops: [u64; Drop::ALL.len()],
    ignored: [u64; Ignored::ALL.len()],
    /// Frames and bytes by number of the origin.
    origins: Vec<(u64, u64)>,
    gaps: Vec<GapFacts>,
}

/// The most gaps a manifest lists; the last one then covers all further ones.
const GAPS_MAX: usize = 256;

impl Account {
    /// A frame was written.
    #[inline]
    pub fn written(&mut self, time_ns: u64, bytes: u64, origin: u32, late: bool) {
        self.frames += 1;
        self.bytes += bytes;
        self.late += u64::from(late);
        self.first_ns = Some(self.first_ns.map_or(time_ns, |first| first.min(time_ns)));
        self.last_ns = self.last_ns.max(time_ns);
        let origin = origin as usize;
        if self.origins.len() <= origin {
            self.origins.resize(origin + 1, (0, 0));
        }
        if let Some((frames, of_bytes)) = self.origins.get_mut(origin) {
            *frames += 1;
            *of_bytes += bytes;
        }
    }

    /// A frame was not written.
    pub fn dropped(&mut self, reason: Drop) {
        if let Some(count) = self.drops.get_mut(reason.index()) {
            *count += 1;
        }
    }

    /// A frame was not ours.
    pub fn ignored(&mut self, reason: Ignored) {
        if let Some(count) = self.ignored.get_mut(reason.index()) {
            *count += 1;
        }
    }

    /// Nothing could be taken for a while. Several threads tell of the same gap: it is listed once.
    pub fn gap(&mut self, gap: GapFacts) {
        let full = self.gaps.len() >= GAPS_MAX;
        match self.gaps.iter_mut().rev().find(|old| old.cause == gap.cause && old.from <= gap.to && gap.from <= old.to) {
            Some(old) => {
                old.from = old.from.min(gap.from);
                old.to = old.to.max(gap.to);
            }
            None if full => {
                if let Some(last) = self.gaps.last_mut() {
                    last.to = last.to.max(gap.to);
                }
            }
            None => self.gaps.push(gap),
        }
    }

    /// Frames of the origin of that number.
    #[must_use]
    pub fn frames_of(&self, origin: usize) -> u64 {
        self.origins.get(origin).map_or(0, |&(frames, _)| frames)
    }

    /// Puts the counts into a manifest; `origins` by number.
    pub fn tell(&self, facts: &mut Facts, origins: &[Origin]) {
        facts.frames = self.frames;
        facts.bytes = self.bytes;
        facts.late = self.late;
        facts.first = self.first_ns.map(Stamp);
        facts.last = self.first_ns.map(|_| Stamp(self.last_ns));
        facts.drops = Drop::ALL.iter().zip(self.drops).filter(|&(_, n)| n > 0).map(|(reason, n)| (reason.name().into(), n)).collect();
        facts.ignored =
            Ignored::ALL.iter().zip(self.ignored).filter(|&(_, n)| n > 0).map(|(reason, n)| (reason.name().into(), n)).collect();
        facts.gaps = self.gaps.clone();
        facts.origins = origins
            .iter()
            .zip(&self.origins)
            .filter(|&(_, &(frames, _))| frames > 0)
            .map(|(origin, &(frames, bytes))| OriginFacts {
                name: origin.to_string(),
                endpoint: match origin.via {
                    Via::Gwlb(Some(endpoint)) => Some(endpoint.to_string()),
                    Via::Direct | Via::Gwlb(None) | Via::Other => None,
                },
                vni: origin.vni,
                source: origin.source.to_string(),
                frames,
                bytes,
            })
            .collect();
    }
}
