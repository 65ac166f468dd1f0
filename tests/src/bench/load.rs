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

/// How long frames are sent at one rate: what the buffer takes in by itself is then a small part.
const SECONDS: f64 = 4.0;

/// Shares of a processor. With the larger ones the sender is the limit of more than one contestant, with the smallest hardly of any.
const SHARES: [f64; 3] = [0.05, 0.1, 0.25];

/// Rates are searched from this part of what the sender can do.
const LEAST: f64 = 1.0 / 64.0;

/// How often the range of a search is halved: the whole one, and the one around what an earlier search found, of this factor on both sides.
const STEPS: u32 = 7;
const STEPS_AROUND: u32 = 4;
const AROUND: f64 = 1.3;

/// By what factor two rates then differ that it cannot tell from each other: 64 to the power of 1 / 2^7, 1.3^2 to that of 1 / 2^4.
const RESOLUTION: f64 = 1.034;

/// Who sends less than this part of what was asked for cannot send more.
const SENT: f64 = 0.97;

/// Peers within this factor of the agent are searched for as often as it, the others once.
const CLOSE: f64 = 1.5;

const COLUMNS: &[Column] = &[Column::new("frames/s without loss", 0), Column::new("the sender's limit (1: yes)", 0)];

/// A rate of which nothing was lost; none that was seen is 0.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Rate {
    frames_per_s: f64,
    /// More could not be sent.
    is_the_senders: bool,
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
                figures.push(Figure::new(group.as_str(), tool.name(), &[rate.frames_per_s, rate.is_the_senders.into()]));
            }
            verdicts.push(verdict(&group, &rates));
        }
    }
    let notes = vec![format!(
        "Rate searched by halving, {SECONDS} s at each, {RING_MIB} MiB of buffer, quota by control group. A figure is what was sent, the middle of {} searches (one for a peer that is far behind), each to {:.0} %. Where agent and best peer take all that the sender can do, or differ by less than that, it is not told who is above.",
        bench.turns(),
        100.0 * (RESOLUTION - 1.0)
    )];
    Contest { name: "load", title: "Highest load without loss at a quota".into(), notes, columns: COLUMNS, figures, verdicts }
}

/// Whether the agent is above the best peer.
fn verdict(group: &str, rates: &[(Tool, Rate)]) -> Verdict {
    let target = format!("above the best peer, {group}");
    let of = |ours: bool| rates.iter().filter(move |(tool, _)| (*tool == Tool::Tapfleet) == ours).map(|(_, rate)| *rate);
    let best = of(false).reduce(|best, rate| if best.frames_per_s >= rate.frames_per_s { best } else { rate });
    let (Some(ours), Some(best), true) = (of(true).next(), best, rates.len() == Tool::ALL.len()) else {
        return Verdict::not_told(target, "not measured");
    };
    if best.frames_per_s == 0.0 {
        return Verdict::not_told(target, "no peer got through at any rate");
    }
    let ratio = ours.frames_per_s / best.frames_per_s;
    if ours.is_the_senders && best.is_the_senders {
        return Verdict::not_told(target, &format!("{ratio:.2}x, both take all that is sent"));
    }
    if ratio < RESOLUTION && ratio > 1.0 / RESOLUTION {
        return Verdict::not_told(target, &format!("{ratio:.2}x, within the steps of the search"));
    }
    Verdict::above(target, ratio, 1.0, "x")
}

/// On what they compete.
struct Ground<'a> {
    bench: &'a Bench,
    frames: Vec<Vec<u8>>,
    share: f64,
    /// Frames a second that are sent to nobody: who listens slows the sender down.
    top: f64,
}

impl<'a> Ground<'a> {
    fn new(bench: &'a Bench, mix: Mix, share: f64) -> Self {
        let frames = mix.frames(ORIGINS);
        let sent = send(&Pair::new(), &frames, 30_000, None);
        Self { bench, frames, share, top: sent.frames as f64 / sent.seconds }
    }

    /// Of each that could be measured, the agent first.
    fn rates(&self, group: &str) -> Vec<(Tool, Rate)> {
        let mut rates: Vec<(Tool, Vec<Rate>)> = Tool::ALL.map(|tool| (tool, Vec::new())).into();
        for turn in 0..self.bench.turns() {
            let ours = rates.first().and_then(|(_, rates)| middle(rates.clone())).map_or(0.0, |rate| rate.frames_per_s);
            for (tool, rates) in &mut rates {
                if rates.first().is_some_and(|first| first.frames_per_s * CLOSE < ours) {
                    continue;
                }
                tell(&format!("highest load, {group}, {}, turn {}", tool.name(), turn + 1));
                let found = rates.first().map(|first| first.frames_per_s);
                rates.extend(self.search(*tool, found));
            }
        }
        rates.into_iter().filter_map(|(tool, rates)| Some((tool, middle(rates)?))).collect()
    }

    /// The highest rate that was seen without loss; nothing when the time was over first. `found`: by a search before this one.
    fn search(&self, tool: Tool, found: Option<f64>) -> Option<Rate> {
        let least = LEAST * self.top;
        let (mut without, mut with) = found.map_or((least, self.top), |rate| ((rate / AROUND).max(least), (rate * AROUND).min(self.top)));
        let mut best = Rate { frames_per_s: 0.0, is_the_senders: false };
        // The first is the top: many are done with that.
        let mut asked = if with < self.top { (without * with).sqrt() } else { self.top };
        let steps = self.bench.pick(3, if found.is_some() { STEPS_AROUND } else { STEPS });
        for _ in 0..steps + u32::from(asked >= self.top) {
            match self.probe(tool, asked)? {
                None => with = asked,
                Some(rate) => (without, best) = (asked, rate),
            }
            if best.is_the_senders || without >= self.top {
                break;
            }
            asked = (without * with).sqrt();
        }
        // It was less than what was found before, by more than was looked at.
        if best.frames_per_s == 0.0 && found.is_some_and(|rate| rate > 0.0) { self.search(tool, None) } else { Some(best) }
    }

    /// Sends at a rate. Gives what was sent if none of it was lost; nothing at all when the time was over.
    fn probe(&self, tool: Tool, asked: f64) -> Option<Option<Rate>> {
        if !self.bench.goes_on() {
            return None;
        }
        let (pair, cage, folder) = (Pair::new(), Cage::new(), self.bench.fresh_folder());
        let mut running = tool.start(&pair, &cage, &folder, RING_MIB);
        cage.limit(self.share);
        let sent = send(&pair, &self.frames, (asked * self.bench.pick(1.0, SECONDS)) as u64, Some(asked));
        running.settle(&cage);
        cage.limit(1.0);
        running.stop();
        let frames_per_s = sent.frames as f64 / sent.seconds;
        let lost = sent.frames.saturating_sub(running.kept());
        tell(&format!("  {frames_per_s:.0} frames/s: {lost} of {} lost", sent.frames));
        Some((lost == 0).then_some(Rate { frames_per_s, is_the_senders: frames_per_s < SENT * asked }))
    }
}

/// The middle one; of two the lower.
fn middle(mut rates: Vec<Rate>) -> Option<Rate> {
    rates.sort_by(|a, b| a.frames_per_s.total_cmp(&b.frames_per_s));
    rates.get(rates.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(frames_per_s: f64, is_the_senders: bool) -> Rate {
        Rate { frames_per_s, is_the_senders }
    }

    #[test]
    fn who_is_above_is_told_where_somebody_was_measured_at_his_own_limit_and_by_more_than_a_step() {
        let told = |rates: [Rate; 4]| verdict("g", &Tool::ALL.into_iter().zip(rates).collect::<Vec<_>>()).reached;
        let slow = rate(10.0, false);
        assert_eq!(told([rate(100.0, true), rate(80.0, true), slow, slow]), None);
        assert_eq!(told([rate(100.0, true), rate(80.0, false), slow, slow]), Some(true));
        assert_eq!(told([rate(80.0, false), rate(100.0, true), slow, slow]), Some(false));
        assert_eq!(told([rate(80.0, false), rate(82.0, false), slow, slow]), None);
        let nobody = rate(0.0, false);
        assert_eq!(told([nobody, slow, slow, slow]), Some(false));
        assert_eq!(told([rate(80.0, false), nobody, nobody, nobody]), None, "nothing to be above of");
        assert_eq!(verdict("g", &[(Tool::Tapfleet, rate(80.0, false)), (Tool::Tcpdump, slow)]).reached, None);
        assert_eq!(verdict("g", &[]).reached, None);
    }

    #[test]
    fn both_searches_tell_rates_apart_that_differ_by_the_resolution() {
        let last_step = |range: f64, halvings: u32| range.powf(0.5_f64.powi(halvings as i32));
        assert!(last_step(1.0 / LEAST, STEPS) < RESOLUTION);
        assert!(last_step(AROUND * AROUND, STEPS_AROUND) < RESOLUTION);
    }

    #[test]
    fn the_middle_of_three_is_no_mean() {
        assert_eq!(middle(vec![rate(3.0, true), rate(1.0, false), rate(2.0, false)]), Some(rate(2.0, false)));
        assert_eq!(middle(vec![rate(3.0, true), rate(1.0, false)]), Some(rate(1.0, false)));
        assert_eq!(middle(Vec::new()), None);
    }
}
