//! Contest 3: taking the tunnels off a file, against `editcap`, which cuts a fixed number of bytes off, and against plain copying.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use super::cage::Cage;
use super::contestants::records;
use super::report::{Column, Contest, Figure, Verdict};
use super::traffic::{Mix, ORIGINS, TUNNEL_BYTES, save};
use super::{Bench, median, tell};
use crate::agent::program;

const COLUMNS: &[Column] =
    &[Column::new("processor, ns/frame", 0), Column::new("processor, s/GiB of input", 2), Column::new("frames missing", 0)];

/// Bytes of an input file, about.
const BYTES: u64 = 400 << 20;

/// What turns the file `in.pcap` into `out.pcap`.
const CONTESTANTS: [&str; 3] = ["tapfleet decap", "editcap -C -L", "cp"];

/// Runs it.
///
/// # Panics
/// When a program cannot be run.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for mix in Mix::ALL {
        let frames = mix.frames(ORIGINS);
        let count = bench.pick(BYTES / 8, BYTES) / (mix.mean_bytes() as u64 + TUNNEL_BYTES as u64 + 16);
        let folder = bench.fresh_folder();
        let (input, output) = (folder.join("in.pcap"), folder.join("out.pcap"));
        save(&frames, count, &input).unwrap_or_else(|cause| panic!("cannot write {}: {cause}", input.display()));
        let bytes = fs::metadata(&input).map_or(0, |meta| meta.len());
        let mut turns: Vec<Vec<(f64, u64)>> = vec![Vec::new(); CONTESTANTS.len()];
        for turn in 1..=bench.turns() {
            if !bench.goes_on() {
                break;
            }
            tell(&format!("decap of a file, {}, turn {turn} of {}", mix.name(), bench.turns()));
            for (contestant, turns) in CONTESTANTS.iter().zip(&mut turns) {
                turns.push(take_turn(contestant, &input, &output, count));
            }
        }
        for (contestant, turns) in CONTESTANTS.iter().zip(&turns) {
            let seconds = median(turns.iter().map(|turn| turn.0).collect());
            let missing = turns.iter().map(|turn| turn.1).max().unwrap_or(0);
            let values = [seconds / count as f64 * 1e9, seconds / bytes as f64 * 2f64.powi(30), missing as f64];
            figures.push(Figure::new(mix.name(), *contestant, &values));
        }
        let [ours, editcap, copy] = CONTESTANTS;
        verdicts.push(Verdict::ratio("processor time against editcap", mix.name(), &figures, (ours, editcap), 0.5));
        verdicts.push(Verdict::ratio("processor time against copying", mix.name(), &figures, (ours, copy), 2.0));
    }
    Contest {
        name: "decap",
        title: "Decapsulating a file".into(),
        notes: vec![
            "From page cache to page cache; output removed between turns. `editcap` cuts 118 bytes off each frame, whatever they are."
                .into(),
        ],
        columns: COLUMNS,
        figures,
        verdicts,
    }
}

/// Processor seconds, and how many frames the output lacks.
fn take_turn(contestant: &str, input: &Path, output: &Path, count: u64) -> (f64, u64) {
    let cage = Cage::new();
    let _ = fs::remove_file(output);
    let cut = TUNNEL_BYTES.to_string();
    let ours = program("tapfleet").display().to_string();
    let (program, arguments): (&str, &[&str]) = match contestant {
        "cp" => ("cp", &[]),
        "editcap -C -L" => ("editcap", &["-F", "nsecpcap", "-C", &cut, "-L"]),
        _ => (&ours, &["decap"]),
    };
    let said = File::create(output.with_extension("log")).unwrap_or_else(|cause| panic!("cannot write a log: {cause}"));
    let status = cage.command(None, program).args(arguments).args([input, output]).stdout(Stdio::null()).stderr(said).status();
    let status = status.unwrap_or_else(|cause| panic!("cannot run {contestant}: {cause}"));
    assert!(status.success(), "{contestant}: {status}: {}", fs::read_to_string(output.with_extension("log")).unwrap_or_default());
    (cage.seconds(), count.saturating_sub(records(output)))
}
