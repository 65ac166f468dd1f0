//! `make soak`: the acts of the kill storm, larger and again and again, each with another seed, for as long as told.
//! In: `TAPFLEET_SOAK_SECONDS` (3600), `TAPFLEET_SEED` for the first round. Out: a table of each act, the sums; exit code 1 when a
//! promise was broken, with the seed that broke it. Never: begins an act when the time is over; hides a broken promise by going on.
//! Needs: root, S3.
#![allow(clippy::print_stdout, clippy::panic)]

use std::panic;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tapfleet_tests::storm::ledger::Sum;
use tapfleet_tests::storm::{Lot, act};

/// How long it takes unless told.
const SECONDS: u64 = 3600;

/// How often an agent dies at each point in one act.
const HITS: usize = 10;

/// Agents that die in one act at moments drawn by lot.
const KILLS: usize = 200;

/// How long these live at most: two windows end meanwhile.
const LIFE: Duration = Duration::from_secs(3);

/// An act of the storm.
type Act = fn(&mut Lot) -> Sum;

const ACTS: &[(&str, Act)] = &[
    ("at each point", |_| act::at_each_point(HITS)),
    ("at any moment", |lot| act::at_any_moment(lot, KILLS, LIFE)),
    ("while S3 comes and goes", |lot| act::while_s3_comes_and_goes(lot, KILLS / 2, LIFE)),
    ("at default settings", |lot| act::at_default_settings(lot, KILLS / 4)),
];

fn main() -> ExitCode {
    let seconds = std::env::var("TAPFLEET_SOAK_SECONDS").map_or(SECONDS, |seconds| {
        seconds.parse().unwrap_or_else(|_| panic!("TAPFLEET_SOAK_SECONDS={seconds} is not a number of seconds"))
    });
    let (begun, time) = (Instant::now(), Duration::from_secs(seconds));
    let mut lot = Lot::drawn();
    let (mut acts, mut all) = (0, Sum::default());
    for (name, act) in ACTS.iter().cycle() {
        if begun.elapsed() >= time {
            break;
        }
        println!("==== {} of {seconds} s: {name}, TAPFLEET_SEED={} ====", begun.elapsed().as_secs(), lot.seed());
        let Ok(sum) = panic::catch_unwind(panic::AssertUnwindSafe(|| act(&mut lot))) else {
            println!("soak: a promise was broken {name}, after {} s; the words are above", begun.elapsed().as_secs());
            return ExitCode::FAILURE;
        };
        acts += 1;
        all = all.and(sum);
        println!(
            "soak: {acts} acts, {} kills, {} packets sent, {} in S3 once, {} lost by kills, {} captures",
            all.kills, all.sent, all.stored, all.lost, all.captures
        );
    }
    println!("soak: every promise held for {} s", begun.elapsed().as_secs());
    ExitCode::SUCCESS
}
