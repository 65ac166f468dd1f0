//! Contest 4: the highest load without loss. The sender is the limit on two processors, so each contestant has to do with the same
//! small share of one.
//! In: shares, mixes, contestants. Out: rates that were sent and of which nothing was lost. Never: a rate that was asked for and not sent.

use super::cage::Cage;
use super::contestants::Tool;
use super::report::{Column, Contest, Figure, Verdict};
use super::traffic::{Mix, ORIGINS, send};
use super::{Bench, tell};
use crate::netns::Pair;

/// Small, so that it does not take in all of a turn: what is not read in time is lost.
const RING_MIB: u64 = 32;

/// How long frames are sent at one rate.
const SECONDS: f64 = 2.0;

/// Shares of a processor. With the larger ones the sender is the limit of more than one contestant; with the smallest of none.
const SHARES: [f64; 3] = [0.05, 0.1, 0.25];

/// The first search begins at this part of what the sender can do.
const LEAST: f64 = 1.0 / 64.0;

/// Later ones look so far around what the first one found.
const AROUND: f64 = 1.3;

/// Peers within this factor of the agent are searched for as often as it.
const CLOSE: f64 = 1.5;

/// Beyond this part of what the sender can do more is not to be told from less.
const SENDERS: f64 = 0.97;

const COLUMNS: &[Column] = &[Column::new("frames/s without loss", 0), Column::new("% of what can be sent", 0)];

/// A rate of which nothing was lost; none that was seen is 0.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Rate {
    frames_per_s: f64,
    /// The same as a part of what the sender could do.
    part: f64,
}

impl Rate {
    fn is_the_senders(&self) -> bool {
        self.part >= SENDERS
    }
}

/// What came of sending at one rate.
struct Probe {
    frames_per_s: f64,
    lost: bool,
}

/// Runs it.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for share in SHARES {
        for mix in Mix::ALL {
            let group = format!("{} % of a processor, {}", 100.0 * share, mix.name());
            let rates = Ground::new(bench, mix, share).rates(&group);
            for (tool, rate) in &rates {
                figures.push(Figure::new(group.as_str(), tool.name(), &[rate.frames_per_s, 100.0 * rate.part]));
            }
            verdicts.push(verdict(&group, &rates));
        }
    }
    let notes = vec![format!(
        "Rate searched by halving, {SECONDS} s at each, {RING_MIB} MiB of buffer, quota by control group. A figure is what was sent, the median of {} searches (one for a peer that is far behind). Where agent and best peer both take all that the sender can do, nothing is shown.",
        bench.turns()
    )];
    Contest { name: "load", title: "Highest load without loss at a quota".into(), notes, columns: COLUMNS, figures, verdicts }
}

/// Whether the agent is above the best peer; not without all figures, and a peer that got through at any rate.
fn verdict(group: &str, rates: &[(Tool, Rate)]) -> Verdict {
    let target = format!("above the best peer, {group}");
    let of = |ours: bool| rates.iter().filter(move |(tool, _)| (*tool == Tool::Tapfleet) == ours).map(|(_, rate)| *rate);
    let ours = of(true).next();
    let best = of(false).reduce(|best, rate| if best.frames_per_s >= rate.frames_per_s { best } else { rate });
    match (ours, best) {
        (Some(ours), Some(best)) if ours.is_the_senders() && best.is_the_senders() => {
            Verdict::not_told(target, "both take all that is sent")
        }
        (Some(ours), Some(best)) if rates.len() == Tool::ALL.len() && best.frames_per_s > 0.0 => {
            Verdict::above(target, ours.frames_per_s / best.frames_per_s, 1.0, "x")
        }
        _ => Verdict::above(target, f64::NAN, 1.0, "x"),
    }
}

/// On what they compete.
struct Ground<'a> {
    bench: &'a Bench,
    frames: Vec<Vec<u8>>,
    share: f64,
    /// How many frames are sent as fast as can be.
    burst: u64,
}

impl<'a> Ground<'a> {
    fn new(bench: &'a Bench, mix: Mix, share: f64) -> Self {
        let frames = mix.frames(ORIGINS);
        let sent = send(&Pair::new(), &frames, 30_000, None);
        let burst = (sent.frames as f64 / sent.seconds * seconds(bench)) as u64;
        Self { bench, frames, share, burst }
    }

    /// Of each that could be measured, the agent first.
    fn rates(&self, group: &str) -> Vec<(Tool, Rate)> {
        let mut rates: Vec<(Tool, Vec<Rate>)> = Vec::new();
        for turn in 0..self.bench.turns() {
            for (number, tool) in Tool::ALL.into_iter().enumerate() {
                let before = rates.get(number).and_then(|(_, rates)| rates.first()).map(|rate| rate.frames_per_s);
                let ours = rates.first().and_then(|(_, rates)| rates.first()).map_or(0.0, |rate| rate.frames_per_s);
                if before.is_some_and(|before| before * CLOSE < ours) {
                    continue;
                }
                tell(&format!("highest load, {group}, {}, turn {}", tool.name(), turn + 1));
                let Some(rate) = self.search(tool, before) else { continue };
                match rates.get_mut(number) {
                    Some((_, rates)) => rates.push(rate),
                    None => rates.push((tool, vec![rate])),
                }
            }
        }
        rates.into_iter().filter_map(|(tool, rates)| Some((tool, middle(rates)?))).collect()
    }

    /// The highest rate that was seen without loss, around what was found `before`; nothing when the time was over first.
    fn search(&self, tool: Tool, before: Option<f64>) -> Option<Rate> {
        let Probe { frames_per_s: top, lost } = self.probe(tool, None)?;
        if !lost {
            return Some(Rate { frames_per_s: top, part: 1.0 });
        }
        let rate = |frames_per_s| Rate { frames_per_s, part: frames_per_s / top };
        let mut best = 0.0;
        let (mut without, mut with) = before.map_or((LEAST * top, top), |before| (before / AROUND, top.min(before * AROUND)));
        if before.is_some() {
            let low = self.probe(tool, Some(without))?;
            if low.lost {
                (without, with) = (without / (AROUND * AROUND), without);
            } else {
                best = low.frames_per_s;
            }
        }
        for _ in 0..self.bench.pick(3, if before.is_some() { 3 } else { 5 }) {
            let asked = (without * with).sqrt();
            let seen = self.probe(tool, Some(asked))?;
            if seen.lost {
                with = asked;
            } else {
                (without, best) = (asked, seen.frames_per_s);
            }
        }
        Some(rate(best))
    }

    /// Sends at a rate, or as fast as can be; nothing when the time was over.
    fn probe(&self, tool: Tool, asked: Option<f64>) -> Option<Probe> {
        if !self.bench.goes_on() {
            return None;
        }
        let (pair, cage, folder) = (Pair::new(), Cage::new(), self.bench.fresh_folder());
        let mut running = tool.start(&pair, &cage, &folder, RING_MIB);
        cage.limit(self.share);
        let frames = asked.map_or(self.burst, |asked| (asked * seconds(self.bench)) as u64);
        let sent = send(&pair, &self.frames, frames, asked);
        running.settle(&cage);
        cage.limit(1.0);
        running.stop();
        let frames_per_s = sent.frames as f64 / sent.seconds;
        let lost = sent.frames.saturating_sub(running.kept());
        tell(&format!("  {frames_per_s:.0} frames/s: {lost} of {} lost", sent.frames));
        Some(Probe { frames_per_s, lost: lost > 0 })
    }
}

/// How long one rate is held.
fn seconds(bench: &Bench) -> f64 {
    bench.pick(SECONDS / 2.0, SECONDS)
}

/// The middle one; of two the lower.
fn middle(mut rates: Vec<Rate>) -> Option<Rate> {
    rates.sort_by(|a, b| a.frames_per_s.total_cmp(&b.frames_per_s));
    rates.get(rates.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn rate(frames_per_s: f64, is_the_senders: bool) -> Rate {
        Rate { frames_per_s, part: if is_the_senders { 1.0 } else { 0.5 } }
    }

    #[test]
    fn nothing_is_told_where_the_sender_is_the_limit_of_both_or_somebody_was_not_measured() {
        let told = |rates: [Rate; 4]| verdict("g", &Tool::ALL.into_iter().zip(rates).collect::<Vec<_>>()).reached;
        let slow = rate(10.0, false);
        assert_eq!(told([rate(100.0, true), rate(99.0, true), slow, slow]), None);
        assert_eq!(told([rate(100.0, true), rate(80.0, false), slow, slow]), Some(true));
        assert_eq!(told([rate(80.0, false), rate(100.0, true), slow, slow]), Some(false));
        assert_eq!(told([rate(80.0, false), rate(80.0, false), slow, slow]), Some(false), "above");
        let nobody = rate(0.0, false);
        assert_eq!(told([rate(80.0, false), nobody, nobody, nobody]), Some(false), "nothing to be above of");
        assert_eq!(verdict("g", &[(Tool::Tapfleet, rate(80.0, false)), (Tool::Tcpdump, slow)]).reached, Some(false));
        assert_eq!(verdict("g", &[]).reached, Some(false));
    }

    #[test]
    fn the_middle_of_three_is_no_mean() {
        assert_eq!(middle(vec![rate(3.0, true), rate(1.0, false), rate(2.0, false)]), Some(rate(2.0, false)));
        assert_eq!(middle(vec![rate(3.0, true), rate(1.0, false)]), Some(rate(1.0, false)));
        assert_eq!(middle(Vec::new()), None);
    }
}
