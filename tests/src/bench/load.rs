//! Contest 4: the highest load without loss. The sender is the limit on two processors, so each contestant has to do with the same
//! small share of one.

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

/// Shares of a processor.
const SHARES: [f64; 2] = [0.1, 0.25];

const COLUMNS: &[Column] = &[Column::new("frames/s without loss", 0)];

/// Runs it.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for share in SHARES {
        for mix in Mix::ALL {
            let group = format!("{:.0} % of a processor, {}", 100.0 * share, mix.name());
            let frames = mix.frames(ORIGINS);
            let most = top_rate(&frames);
            let mut rates = Vec::new();
            for tool in Tool::ALL {
                if !bench.goes_on() {
                    break;
                }
                tell(&format!("highest load, {group}, {}", tool.name()));
                let rate = search(bench, tool, &frames, share, most);
                rates.push((tool, rate));
                figures.push(Figure::new(group.as_str(), tool.name(), &[rate]));
            }
            verdicts.push(Verdict::at_least(format!("against the best peer, {group}"), against_best_peer(&rates), 1.0, "x"));
        }
    }
    let notes = vec![format!(
        "Rate searched by halving, {SECONDS} s at each, {RING_MIB} MiB of buffer, quota by control group; the search ends at what the sender can do."
    )];
    Contest { name: "load", title: "Highest load without loss at a quota".into(), notes, columns: COLUMNS, figures, verdicts }
}

/// No number unless all were measured, and at least one peer got through at any rate: nothing is then shown.
fn against_best_peer(rates: &[(Tool, f64)]) -> f64 {
    let (ours, peers): (Vec<_>, Vec<_>) = rates.iter().partition(|(tool, _)| *tool == Tool::Tapfleet);
    let best = peers
        .iter()
        .map(|(_, rate)| *rate)
        .fold(0.0, |best: f64, rate| if best.is_nan() || rate.is_nan() { f64::NAN } else { best.max(rate) });
    match ours.first() {
        Some((_, ours)) if rates.len() == Tool::ALL.len() && best > 0.0 => ours / best,
        _ => f64::NAN,
    }
}

/// Frames a second that one processor can send.
fn top_rate(frames: &[Vec<u8>]) -> f64 {
    let pair = Pair::new();
    let sent = send(&pair, frames, 30_000, None);
    sent.frames as f64 / sent.seconds
}

/// The highest rate that was seen without loss, between a sixteenth of `most` and `most`; 0 when there was none, no number when the
/// time was over first.
fn search(bench: &Bench, tool: Tool, frames: &[Vec<u8>], share: f64, most: f64) -> f64 {
    let (mut without, mut with) = (most / 16.0, most);
    let mut best = 0.0;
    for step in 0..bench.pick(3, 6) {
        if !bench.goes_on() {
            return f64::NAN;
        }
        // The first probe is the top: many are done with that.
        let rate = if step == 0 { most } else { (without * with).sqrt() };
        if loses(bench, tool, frames, share, rate) {
            with = rate;
        } else {
            (without, best) = (rate, rate);
            if step == 0 {
                break;
            }
        }
    }
    best
}

fn loses(bench: &Bench, tool: Tool, frames: &[Vec<u8>], share: f64, rate: f64) -> bool {
    let (pair, cage, folder) = (Pair::new(), Cage::new(), bench.fresh_folder());
    let mut running = tool.start(&pair, &cage, &folder, RING_MIB);
    cage.limit(share);
    let seconds = bench.pick(SECONDS / 2.0, SECONDS);
    let sent = send(&pair, frames, (rate * seconds) as u64, Some(rate));
    running.settle(&cage);
    cage.limit(1.0);
    running.stop();
    running.kept() < sent.frames
}
