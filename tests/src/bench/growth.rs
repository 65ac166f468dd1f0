//! Contest 5: what it costs to have more of everything: threads, origins, segments. (Segments of several GiB: the contest of readable
//! objects.)

use std::thread;
use std::time::Duration;

use super::cage::Cage;
use super::capture::RING_MIB;
use super::contestants::{NO_S3, agent_settings, start_agent, start_agent_by};
use super::report::{Column, Contest, Figure, Verdict};
use super::traffic::{Mix, ORIGINS, send};
use super::{Bench, median, tell};
use crate::agent::program;
use crate::netns::Pair;

const COLUMNS: &[Column] =
    &[Column::new("processor, ns/frame", 0), Column::new("resident memory beyond the rings, MiB", 0), Column::new("lost, % of sent", 3)];

/// Larger than all that is sent.
const WHOLE: &str = "1TiB";

/// One size of everything.
struct Step {
    group: &'static str,
    name: &'static str,
    threads: usize,
    origins: usize,
    /// The most bytes of a segment.
    segment: &'static str,
}

impl Step {
    const fn new(group: &'static str, name: &'static str, threads: usize, origins: usize, segment: &'static str) -> Self {
        Self { group, name, threads, origins, segment }
    }
}

const STEPS: [Step; 8] = [
    Step::new("origins", "1 origin", 1, 1, WHOLE),
    Step::new("origins", "16 origins", 1, ORIGINS, WHOLE),
    Step::new("origins", "1,000 origins", 1, 1000, WHOLE),
    Step::new("threads", "1 thread", 1, ORIGINS, WHOLE),
    Step::new("threads", "2 threads", 2, ORIGINS, WHOLE),
    Step::new("segments", "1 MiB a segment", 1, ORIGINS, "1MiB"),
    Step::new("segments", "32 MiB a segment", 1, ORIGINS, "32MiB"),
    Step::new("segments", "all in one segment", 1, ORIGINS, WHOLE),
];

/// Runs it.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for step in STEPS {
        let Step { group, name, .. } = step;
        let frames = Mix::Imix.frames(step.origins);
        let mut turns: [Vec<f64>; 3] = Default::default();
        for _ in 0..bench.pick(1, 2) {
            if bench.goes_on() {
                tell(&format!("growth, {name}"));
                let turn = take_turn(bench, &frames, &step);
                turns.iter_mut().zip(turn).for_each(|(turns, value)| turns.push(value));
            }
        }
        let values = turns.map(median);
        figures.push(Figure::new(group, name, &values));
        verdicts.push(Verdict::at_most(
            format!("resident memory beyond the rings, {name}"),
            values.get(1).copied().unwrap_or(f64::NAN),
            128.0,
            " MiB",
        ));
    }
    let notes = vec!["Two turns. IMIX, capture to the spool. With two threads the agent has both processors, one of which is the sender's. With 1 MiB a segment no chunk fills: its bytes go through the page cache, and segments are closed by the hundred.".into()];
    Contest { name: "growth", title: "Cost of growth".into(), notes, columns: COLUMNS, figures, verdicts }
}

fn take_turn(bench: &Bench, frames: &[Vec<u8>], step: &Step) -> [f64; 3] {
    let threads = step.threads;
    let (pair, cage, folder) = (Pair::new(), Cage::new(), bench.fresh_folder());
    let settings = agent_settings(NO_S3, &folder, RING_MIB / 2).set("capture.threads", threads).set("record.max_bytes", step.segment);
    let processors = if threads == 1 { "1" } else { "0,1" };
    let command = cage.command_on(processors, Some(pair.tap.name()), &program("tapfleetd").display().to_string());
    let mut running = start_agent_by(command, &folder, &settings);
    let before = cage.seconds();
    let sent = send(&pair, frames, bench.pick(300_000, 1_200_000), None);
    running.settle(&cage);
    let memory = cage.memory().saturating_sub((threads as u64 * (RING_MIB / 2)) << 20) as f64 / f64::from(1 << 20);
    running.stop();
    let kept = running.kept();
    let lost = 100.0 * sent.frames.saturating_sub(kept) as f64 / sent.frames as f64;
    [(cage.seconds() - before) / kept as f64 * 1e9, memory, lost]
}

const IDLE: &[Column] = &[Column::new("processor, % of one core", 2)];

/// What the agent takes when nothing comes.
#[must_use]
pub fn idle(bench: &Bench) -> Contest {
    let time = Duration::from_secs(bench.pick(5, 30));
    let mut shares = Vec::new();
    while shares.len() < bench.turns() && bench.goes_on() {
        tell(&format!("idle, {} s, turn {} of {}", time.as_secs(), shares.len() + 1, bench.turns()));
        let (pair, cage, folder) = (Pair::new(), Cage::new(), bench.fresh_folder());
        let mut running = start_agent(&pair, &cage, &folder, &agent_settings(NO_S3, &folder, RING_MIB));
        let before = cage.seconds();
        thread::sleep(time);
        shares.push(100.0 * (cage.seconds() - before) / time.as_secs_f64());
        running.stop();
    }
    let share = median(shares);
    let figures = vec![Figure::new("no traffic", "tapfleetd", &[share])];
    let verdicts = vec![Verdict::at_most("processor time without traffic", share, 0.5, " %")];
    Contest { name: "idle", title: "Idle".into(), notes: vec!["Default settings.".into()], columns: IDLE, figures, verdicts }
}
