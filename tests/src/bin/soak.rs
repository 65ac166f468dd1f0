//! `make soak`: kills, faults, outages and power losses again and again, each round larger than the one before, for as long as told.
//! In: `TAPFLEET_SOAK_SECONDS` (3600), `TAPFLEET_SEED` for the first round of kills, `TAPFLEET_SOAK_ACT` (part of the names of the acts
//! to be played, else all). Out: a table of each act, the sums; exit code 1 when a promise was broken, with the seed that broke it.
//! Never: begins an act when the time is over; goes on after a broken promise; waits for a suite that hangs.
//! Needs: root, S3, Garage.
#![allow(clippy::print_stdout, clippy::panic)]

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tapfleet_tests::limit::{OVERRUN, limited};
use tapfleet_tests::storm::ledger::Sum;
use tapfleet_tests::storm::{Lot, SEED, act};

/// How long it takes unless told.
const SECONDS: u64 = 3600;

/// Agents that live so long at most when a lot chooses their end: two windows end meanwhile.
const LIFE: Duration = Duration::from_secs(3);

/// How long a suite may take in the first round.
const SUITE: Duration = Duration::from_secs(1200);

/// How often an act says that it goes on.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// From this round on they do not grow any more.
const ROUND_MAX: usize = 10;

/// What a round consists of.
enum Act {
    /// An act of the storm, so many times as large as in the first round.
    Storm(fn(&mut Lot, usize) -> Sum),
    /// A suite of `tests/tests`, and the variable that says how large it is in the first round.
    Suite(&'static str, Option<(&'static str, usize)>),
}

const ACTS: &[(&str, Act)] = &[
    ("kills at each point", Act::Storm(|_, size| act::at_each_point(3 * size))),
    ("kills at any moment", Act::Storm(|lot, size| act::at_any_moment(lot, 10 * size, 10 * size))),
    ("kills while S3 comes and goes", Act::Storm(|lot, size| act::while_s3_comes_and_goes(lot, 10 * size, LIFE))),
    ("kills of S3 in mid-upload", Act::Storm(act::while_s3_is_killed)),
    ("kills at default settings", Act::Storm(|lot, size| act::at_default_settings(lot, 10 * size))),
    ("random faults of S3", Act::Suite("sequences", Some(("TAPFLEET_SEQUENCES", 10_000)))),
    ("power losses", Act::Suite("power", Some(("TAPFLEET_POWER_LOSSES", 20)))),
    ("every fault of S3 by name", Act::Suite("faults", None)),
];

fn main() -> ExitCode {
    let seconds = std::env::var("TAPFLEET_SOAK_SECONDS").map_or(SECONDS, |seconds| {
        seconds.parse().unwrap_or_else(|_| panic!("TAPFLEET_SOAK_SECONDS={seconds} is not a number of seconds"))
    });
    let (begun, time) = (Instant::now(), Duration::from_secs(seconds));
    let mut lot = Lot::drawn();
    let mut all = Sum::default();
    let wanted = std::env::var("TAPFLEET_SOAK_ACT").unwrap_or_default();
    let played: Vec<_> = ACTS.iter().filter(|(name, _)| name.contains(&wanted)).collect();
    assert!(!played.is_empty(), "TAPFLEET_SOAK_ACT={wanted} is in no name of an act");
    let rounds = (1..).flat_map(|round: usize| played.iter().map(move |act| (round, *act)));
    for (acts, (round, (name, act))) in rounds.enumerate() {
        if begun.elapsed() >= time {
            println!("soak: every promise held for {} s, in {acts} acts", begun.elapsed().as_secs());
            break;
        }
        println!("==== {} of {seconds} s, round {round}: {name}, {SEED}={} ====", begun.elapsed().as_secs(), lot.seed());
        let Ok(sum) = panic::catch_unwind(AssertUnwindSafe(|| play(name, act, &mut lot, round.min(ROUND_MAX)))) else {
            println!("soak: a promise was broken by {name}, after {} s; the words are above", begun.elapsed().as_secs());
            return ExitCode::FAILURE;
        };
        all = all.and(sum);
        println!(
            "soak: {} kills in storms, {} packets sent, {} in S3 once, {} lost by kills, {} captures",
            all.kills, all.sent, all.stored, all.lost, all.captures
        );
    }
    ExitCode::SUCCESS
}

/// Panics when a promise is broken.
fn play(name: &'static str, act: &Act, lot: &mut Lot, size: usize) -> Sum {
    let _progress = Progress::begin(name);
    match act {
        Act::Storm(storm) => storm(lot, size),
        Act::Suite(suite, scale) => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            let mut cargo = Command::new("cargo");
            cargo.args(["test", "--workspace", "--locked", "--test", suite, "--", "--nocapture"]).current_dir(root);
            // A suite that is given a seed runs that alone.
            cargo.env_remove(SEED).envs(scale.map(|(variable, first)| (variable, (first * size).to_string())));
            let limit = SUITE * size as u32;
            let status = limited(limit, &cargo).status().unwrap_or_else(|cause| panic!("cannot run cargo: {cause}"));
            assert!(status.code() != Some(OVERRUN), "the suite '{suite}' did not end within {limit:?}");
            assert!(status.success(), "the suite '{suite}' ended with {status}");
            Sum::default()
        }
    }
}

/// Says now and then that an act goes on, until it is dropped.
struct Progress(#[expect(dead_code, reason = "its end is the thread's")] mpsc::Sender<()>);

impl Progress {
    fn begin(name: &'static str) -> Self {
        let (ends, ended) = mpsc::channel();
        thread::spawn(move || {
            let begun = Instant::now();
            while ended.recv_timeout(SAY_EVERY) == Err(RecvTimeoutError::Timeout) {
                println!("soak: {name} has gone on for {} s", begun.elapsed().as_secs());
            }
        });
        Self(ends)
    }
}
