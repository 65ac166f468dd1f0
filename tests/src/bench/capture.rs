//! Contest 1: capture to file. Everybody takes the same frames as fast as one processor can send them.

use super::cage::{Cage, busy_seconds};
use super::contestants::Tool;
use super::report::{Column, Contest, Figure, Verdict};
use super::traffic::{Mix, ORIGINS, Sent, send};
use super::{Bench, median, tell};
use crate::netns::Pair;

/// Buffer memory of each.
pub const RING_MIB: u64 = 256;

const COLUMNS: &[Column] =
    &[Column::new("processor, ns/frame", 0), Column::new("machine busy beyond the sender, ns/frame", 0), Column::new("lost, % of sent", 3)];

/// What one turn showed.
struct Turn {
    processor: f64,
    busy: f64,
    kept: u64,
    sent: Sent,
}

/// Runs it.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let mut figures = Vec::new();
    let mut verdicts = Vec::new();
    for mix in Mix::ALL {
        let frames = mix.frames(ORIGINS);
        let count = bench.pick(count(mix) / 4, count(mix));
        let mut turns: Vec<(Tool, Vec<Turn>)> = Tool::ALL.map(|tool| (tool, Vec::new())).into();
        let mut alone = Vec::new();
        for turn in 1..=bench.turns() {
            if !bench.goes_on() {
                break;
            }
            tell(&format!("capture to file, {}, turn {turn} of {}", mix.name(), bench.turns()));
            alone.push(sender_alone(&frames, count));
            for (tool, turns) in &mut turns {
                turns.push(take_turn(bench, *tool, &frames, count));
            }
        }
        let alone = median(alone);
        let per_frame =
            |turns: &[Turn], of: &dyn Fn(&Turn) -> f64| median(turns.iter().map(|turn| of(turn) / turn.kept as f64 * 1e9).collect());
        for (tool, turns) in &turns {
            let lost =
                turns.iter().map(|turn| 100.0 * (turn.sent.frames - turn.kept.min(turn.sent.frames)) as f64 / turn.sent.frames as f64);
            let values = [per_frame(turns, &|turn| turn.processor), per_frame(turns, &|turn| turn.busy - alone), median(lost.collect())];
            figures.push(Figure::new(mix.name(), tool.name(), &values));
        }
        verdicts.push(Verdict::ratio(
            "processor time against tcpdump -w",
            mix.name(),
            &figures,
            (Tool::Tapfleet.name(), Tool::Tcpdump.name()),
            0.5,
        ));
    }
    Contest {
        name: "capture",
        title: "Capture to file".into(),
        notes: vec![
            format!("As many frames as one processor sends; {RING_MIB} MiB of buffer each; tapfleetd also takes the tunnels off, checksums, and syncs every 500 ms."),
            "Processor: all processes of the contestant, from ready to ended. Machine busy: until the data are synced, less a run of the sender alone.".into(),
        ],
        columns: COLUMNS,
        figures,
        verdicts,
    }
}

/// Frames of a turn: some seconds of sending, half a gigabyte at most.
fn count(mix: Mix) -> u64 {
    match mix {
        Mix::Small => 2_000_000,
        Mix::Imix => 1_200_000,
        Mix::Jumbo => 60_000,
    }
}

/// Seconds that the machine is busy when nobody listens.
fn sender_alone(frames: &[Vec<u8>], count: u64) -> f64 {
    let pair = Pair::new();
    let before = busy_seconds();
    let _ = send(&pair, frames, count, None);
    busy_seconds() - before
}

fn take_turn(bench: &Bench, tool: Tool, frames: &[Vec<u8>], count: u64) -> Turn {
    let (pair, cage, folder) = (Pair::new(), Cage::new(), bench.fresh_folder());
    rustix::fs::sync();
    let mut running = tool.start(&pair, &cage, &folder, RING_MIB);
    let (processor, busy) = (cage.seconds(), busy_seconds());
    let sent = send(&pair, frames, count, None);
    running.settle(&cage);
    running.stop();
    let turn = Turn { processor: cage.seconds() - processor, busy: busy_seconds() - busy, kept: running.kept(), sent };
    assert!(turn.kept > 0, "{} kept nothing: {}", tool.name(), running.said());
    turn
}
