//! `make bench`: every contest in one run, on this machine.
//! In: `--quick`, `--only CONTEST` (again for more), `--json FILE`, `--minutes N`, `--disk DIR`, `--out DIR`. Out: tables on standard
//! output, `RESULTS.md` with a plot for each contest; how it goes on standard error. Never: runs longer than told by more than a turn.
//! `--work KIND MIX ROUNDS` is what it calls itself with under valgrind.
//! Needs: root.
#![allow(clippy::print_stdout, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use tapfleet_tests::bench::{Bench, Contest, bucket, capture, decap, growth, host, load, plot, rotation, tell, work};

/// Beyond this no further turn begins. A full run takes about an hour on two processors, most of it for the contest of load.
const MINUTES: u64 = 90;

/// Holds a contest.
type Hold = fn(&Bench) -> Contest;

/// In the order in which they are held.
const CONTESTS: &[(&str, Hold)] = &[
    ("capture", capture::run),
    ("decap", decap::run),
    ("instructions", work::run),
    ("threads", work::threads),
    ("bucket", bucket::run),
    ("readable", bucket::readable),
    ("rotation", rotation::run),
    ("growth", growth::run),
    ("idle", growth::idle),
    ("load", load::run),
];

/// What was asked for.
struct Wanted {
    quick: bool,
    only: Vec<String>,
    json: Option<PathBuf>,
    minutes: u64,
    disk: PathBuf,
    out: PathBuf,
}

fn main() -> ExitCode {
    if let [flag, kind, mix, rounds] = &std::env::args().skip(1).collect::<Vec<_>>()[..]
        && flag == "--work"
    {
        return if work::perform(kind, mix, rounds.parse().unwrap_or(0)) { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let wanted = match wanted(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(words) => {
            eprintln!("bench: {words}");
            return ExitCode::from(2);
        }
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("bench: it makes network namespaces and control groups and needs root for them: run it as root, or with sudo -E");
        return ExitCode::from(2);
    }
    let begun = Instant::now();
    let bench = Bench::new(wanted.quick, Duration::from_secs(60 * wanted.minutes), &wanted.disk);
    let machine = host::describe(&wanted.disk);
    let mut held = Vec::new();
    for (name, contest) in CONTESTS {
        if (wanted.only.is_empty() || wanted.only.iter().any(|only| only == name)) && bench.goes_on() {
            let contest = contest(&bench);
            println!("{}", contest.screen());
            held.push(contest);
        }
    }
    if let Some(path) = &wanted.json {
        write(path, &format!("{:#}\n", json!(held.iter().map(Contest::json).collect::<Vec<_>>())));
    }
    tell(&format!("done in {} s", begun.elapsed().as_secs()));
    if !bench.goes_on() {
        eprintln!("bench: cut short after {} minutes: {} keeps what it had; allow more by --minutes", wanted.minutes, wanted.out.display());
        return ExitCode::FAILURE;
    }
    // Rough figures, or some of them only, do not take the place of the whole.
    if !wanted.quick && wanted.only.is_empty() {
        results(&wanted.out, &machine, &held);
    }
    ExitCode::SUCCESS
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
    let mut wanted = Wanted { quick: false, only: Vec::new(), json: None, minutes: MINUTES, disk: beside_the_program(), out };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--quick" => wanted.quick = true,
            "--only" => wanted.only.push(value()?),
            "--json" => wanted.json = Some(value()?.into()),
            "--minutes" => wanted.minutes = value()?.parse().map_err(|cause| format!("--minutes: {cause}"))?,
            "--disk" => wanted.disk = value()?.into(),
            "--out" => wanted.out = value()?.into(),
            _ => return Err(format!("unknown argument '{argument}'; there are --quick, --only, --json, --minutes, --disk, --out")),
        }
    }
    let names: Vec<&str> = CONTESTS.iter().map(|(name, _)| *name).collect();
    match wanted.only.iter().find(|only| !names.contains(&only.as_str())) {
        Some(unknown) => Err(format!("there is no contest '{unknown}'; there are {}", names.join(", "))),
        None => Ok(wanted),
    }
}

/// The target folder: on a disk, where the folder for temporary files may be memory.
fn beside_the_program() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_else(|cause| panic!("cannot tell where this program is: {cause}"));
    program.parent().map(Path::to_path_buf).unwrap_or_default()
}

fn results(folder: &Path, machine: &[String], held: &[Contest]) {
    let sections: Vec<String> = held.iter().map(Contest::markdown).collect();
    let text = format!(
        "# Results of `make bench`\n\nWritten by the benchmark, in one run. Figures are medians of three turns where a contest does not say otherwise; `ratio` is against the first line of the group.\n\n{}\n\n{}",
        machine.join("\n"),
        sections.join("\n")
    );
    fs::create_dir_all(folder).unwrap_or_else(|cause| panic!("cannot make {}: {cause}", folder.display()));
    write(&folder.join("RESULTS.md"), &text);
    for contest in held {
        write(&folder.join(format!("{}.svg", contest.name)), &plot::bars(contest));
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|cause| panic!("cannot write {}: {cause}", path.display()));
}
