//! Contest 2: the whole way from the wire to the bucket, and how long after its window's end an object can be read.
//! Peers: `tcpdump -G -z` with a script that uploads each file, by the AWS CLI or by rclone: the usual recipes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cage::Cage;
use super::capture::RING_MIB;
use super::contestants::{Running, credentials, settings_with, start_agent};
use super::host::said;
use super::report::{Column, Contest, Figure, Verdict};
use super::store::Store;
use super::traffic::{Mix, ORIGINS, Sent, TUNNEL_BYTES, send};
use super::{Bench, median, tell};
use crate::agent::BUCKET;
use crate::netns::Pair;

const GIB: f64 = (1u64 << 30) as f64;

/// Bytes of a record's header in a pcap file, and of the file's.
const RECORD_BYTES: u64 = 16;
const FILE_BYTES: u64 = 24;

/// How long an object may take to arrive.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long frames come after the end of the window whose object is waited for: its backlog is then seen, if there is one.
const BEYOND_S: f64 = 1.0;

/// How the agent's commands are found by the benchmark.
const AWS_CLI: &str = "TAPFLEET_BENCH_AWS";

/// Who brings packets to the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Tapfleet,
    AwsCli,
    Rclone,
}

impl Way {
    const ALL: [Self; 3] = [Self::Tapfleet, Self::AwsCli, Self::Rclone];

    fn name(self) -> &'static str {
        match self {
            Self::Tapfleet => "tapfleetd",
            Self::AwsCli => "tcpdump -G + aws s3 cp",
            Self::Rclone => "tcpdump -G + rclone",
        }
    }

    /// What uploads the file `$1`; it first says when it was called.
    fn script(self, store: &Store, folder: &Path) -> String {
        let (s3, trusted, folder) = (store.endpoint(), store.certificate().display(), folder.display());
        let upload = match self {
            Self::Tapfleet => String::new(),
            Self::AwsCli => format!(
                "{} --endpoint-url {s3} --ca-bundle {trusted} s3 cp --only-show-errors \"$1\" s3://{BUCKET}/$(basename \"$1\")",
                aws_cli()
            ),
            Self::Rclone => format!(
                "RCLONE_CONFIG_S_TYPE=s3 RCLONE_CONFIG_S_PROVIDER=Other RCLONE_CONFIG_S_ENV_AUTH=true RCLONE_CONFIG_S_ENDPOINT={s3} \
                 RCLONE_CONFIG_S_REGION=us-east-1 rclone --config /dev/null --ca-cert {trusted} copyto \"$1\" s:{BUCKET}/$(basename \"$1\") \
                 --s3-no-check-bucket"
            ),
        };
        format!("#!/bin/sh\n[ -e {folder}/closed ] || date +%s.%N >{folder}/closed\n{upload} >>{folder}/upload.log 2>&1\n")
    }
}

/// The AWS CLI that `tests/setup/bench.sh` installed.
fn aws_cli() -> String {
    std::env::var(AWS_CLI).unwrap_or_else(|_| panic!("{AWS_CLI} does not say where the AWS CLI is; run the benchmark by `make bench`"))
}

const COLUMNS: &[Column] =
    &[Column::new("processor, s/GiB", 2), Column::new("readable after window end, s", 2), Column::new("lost, % of sent", 3)];

/// What a turn showed.
#[derive(Clone, Copy, Debug)]
struct Turn {
    processor: f64,
    readable: f64,
    lost: f64,
    memory: u64,
}

/// Runs it.
///
/// # Panics
/// When something is missing.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let (bytes, window) = bench.pick((128 << 20, 10), (1 << 30, 15));
    let mut turns: [Vec<Turn>; 3] = Default::default();
    for turn in 1..=bench.pick(1, 2) {
        for (way, turns) in Way::ALL.into_iter().zip(&mut turns) {
            if bench.goes_on() {
                tell(&format!("wire to bucket, {}, turn {turn}", way.name()));
                turns.push(take_turn(bench, way, bytes, window));
            }
        }
    }
    let of = |turns: &[Turn], value: fn(&Turn) -> f64| median(turns.iter().map(value).collect());
    let group = format!("IMIX, {} MiB in one window of {window} s", bytes >> 20);
    let row = |(way, turns): (Way, &Vec<Turn>)| {
        let values = [of(turns, |turn| turn.processor), of(turns, |turn| turn.readable), of(turns, |turn| turn.lost)];
        Figure::new(group.as_str(), way.name(), &values)
    };
    let figures: Vec<Figure> = Way::ALL.into_iter().zip(&turns).map(row).collect();
    let [ours, cli, rclone] = Way::ALL.map(Way::name);
    let verdicts = vec![
        Verdict::ratio("processor time against tcpdump + AWS CLI", &group, &figures, (ours, cli), 1.0 / 3.0),
        Verdict::ratio("processor time against tcpdump + rclone", &group, &figures, (ours, rclone), 0.5),
    ];
    let notes = vec![
        "Processor: all processes of a contestant together, per GiB of mirrored frames without their tunnels, which the peers keep; without the server, which forgets the bytes.".into(),
        "Two turns. All speak TLS to that server. The peers' window ends for this figure when tcpdump closes the file.".into(),
        format!("AWS CLI: {}", said(&aws_cli(), &["--version"]).trim()),
    ];
    Contest { name: "bucket", title: "From the wire to the bucket".into(), notes, columns: COLUMNS, figures, verdicts }
}

const READABLE: &[Column] = &[
    Column::new("readable after window end, s", 2),
    Column::new("processor, s/GiB", 2),
    Column::new("resident memory beyond the ring, MiB", 0),
    Column::new("lost, % of sent", 3),
    Column::new("object, MiB", 0),
];

/// How long after the end of their windows segments of very different sizes can be read.
#[must_use]
pub fn readable(bench: &Bench) -> Contest {
    let sizes: &[(u64, u64)] = bench.pick(&[(10 << 20, 10), (128 << 20, 10)], &[(10 << 20, 10), (1 << 30, 15), (4 << 30, 60)]);
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for &(bytes, window) in sizes {
        if !bench.goes_on() {
            break;
        }
        let group = format!("{} MiB", bytes >> 20);
        tell(&format!("object readable after window end, {group}"));
        let (turn, object) = take_turn_through_the_end(bench, bytes, window);
        let object = object as f64 / f64::from(1 << 20);
        let memory = turn.memory.saturating_sub(RING_MIB << 20) as f64 / f64::from(1 << 20);
        figures.push(Figure::new(group.as_str(), Way::Tapfleet.name(), &[turn.readable, turn.processor, memory, turn.lost, object]));
        verdicts.push(Verdict::at_most(format!("readable after window end, {group}"), turn.readable, 3.0, " s"));
        verdicts.push(Verdict::at_most(format!("resident memory beyond the ring, {group}"), memory, 128.0, " MiB"));
    }
    let notes = vec![
        "One turn each, over TLS. Frames come at the same rate through the window's end and for a second after it.".into(),
        "A window is kept open for stragglers for one second after its end; that is part of the figure.".into(),
        "Processor, per GiB of mirrored frames, and lost frames: of both windows, until the second is in the bucket too.".into(),
    ];
    Contest { name: "readable", title: "Object readable after the window's end".into(), notes, columns: READABLE, figures, verdicts }
}

/// What a turn has for itself.
struct Ground {
    pair: Pair,
    cage: Cage,
    folder: PathBuf,
    store: Store,
    frames: Vec<Vec<u8>>,
}

impl Ground {
    fn new(bench: &Bench) -> Self {
        let pair = Pair::new();
        let store = Store::start(pair.tap.name());
        Self { pair, cage: Cage::new(), folder: bench.fresh_folder(), store, frames: Mix::Imix.frames(ORIGINS) }
    }

    /// Starts the agent, and gives it and when the window ends that has just begun.
    fn start_agent(&self, window_s: u64) -> (Running, SystemTime) {
        wait_for_window(window_s, window_s as f64 - 1.5);
        let settings = settings_with(&self.store, &self.folder).set("record.rotate_seconds", window_s);
        let running = start_agent(&self.pair, &self.cage, &self.folder, &settings);
        wait_for_window(window_s, 0.05);
        (running, window_end(window_s))
    }

    /// Sends so many frames, so many a second.
    fn send(&self, count: u64, rate: f64) -> Sent {
        send(&self.pair, &self.frames, count, Some(rate))
    }
}

/// Frames of a file of so many bytes.
fn frames_of(bytes: u64) -> u64 {
    bytes / (Mix::Imix.mean_bytes() as u64 + RECORD_BYTES)
}

/// Gives the length of the object of the window too.
fn take_turn_through_the_end(bench: &Bench, bytes: u64, window_s: u64) -> (Turn, u64) {
    let ground = Ground::new(bench);
    let (cage, store) = (&ground.cage, &ground.store);
    let (mut running, end) = ground.start_agent(window_s);
    let before = cage.seconds();
    let left = seconds_between(SystemTime::now(), Some(end));
    let rate = frames_of(bytes) as f64 / left;
    let sent = ground.send((rate * (left + BEYOND_S)) as u64, rate);
    // The rest is there when its own window has ended.
    let _ = store.wait(file_bytes(Way::Tapfleet, &sent, 2), PATIENCE);
    running.settle(cage);
    let (spent, memory) = ((before, cage.seconds()), cage.memory());
    running.stop();
    let first = store.captures().into_iter().next().map(|(_, object)| object);
    let readable = seconds_between(end, first.as_ref().map(|object| object.readable));
    (judge(Way::Tapfleet, &sent, store, spent, readable, memory), first.map_or(0, |object| object.bytes))
}

fn take_turn(bench: &Bench, way: Way, bytes: u64, window_s: u64) -> Turn {
    let ground = Ground::new(bench);
    let (cage, folder, store) = (&ground.cage, &ground.folder, &ground.store);
    let count = frames_of(bytes);
    // Four fifths of the window are for sending; it begins with a new window.
    let rate = count as f64 / (0.8 * window_s as f64);
    if way == Way::Tapfleet {
        let (mut running, end) = ground.start_agent(window_s);
        let before = cage.seconds();
        let sent = ground.send(count, rate);
        let readable = store.wait(file_bytes(way, &sent, 1), PATIENCE);
        running.settle(cage);
        let turn = judge(way, &sent, store, (before, cage.seconds()), seconds_between(end, readable), cage.memory());
        running.stop();
        return turn;
    }
    let mut running = start_tcpdump(way, &ground, window_s);
    let before = cage.seconds();
    let sent = ground.send(count, rate);
    // tcpdump closes a file when a packet comes that is too late for it.
    for _ in 0..10 * window_s {
        if folder.join("closed").exists() {
            break;
        }
        let _ = send(&ground.pair, &ground.frames, 1, None);
        thread::sleep(Duration::from_millis(100));
    }
    let readable = store.wait(file_bytes(way, &sent, 1) * 99 / 100, PATIENCE);
    running.settle(cage);
    let closed = fs::read_to_string(folder.join("closed")).unwrap_or_default();
    let closed = UNIX_EPOCH
        + Duration::from_secs_f64(closed.trim().parse().unwrap_or_else(|_| panic!("tcpdump closed no file: {}", running.said())));
    let upload = fs::read_to_string(folder.join("upload.log")).unwrap_or_default();
    assert!(readable.is_some() || upload.is_empty(), "{}: {upload}", way.name());
    let turn = judge(way, &sent, store, (before, cage.seconds()), seconds_between(closed, readable), cage.memory());
    running.stop();
    turn
}

fn start_tcpdump(way: Way, Ground { pair, cage, folder, store, .. }: &Ground, window_s: u64) -> Running {
    let script: PathBuf = folder.join("upload.sh");
    fs::write(&script, way.script(store, folder)).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command: Command = cage.command(Some(pair.tap.name()), "tcpdump");
    let (ring, window) = ((RING_MIB << 10).to_string(), window_s.to_string());
    command.args(["-n", "-i", crate::netns::TAP, "-Z", "root", "-B", &ring, "-G", &window, "-w"]).arg(folder.join("capture-%s.pcap"));
    command.arg("-z").arg(&script).arg("udp dst port 6081");
    credentials(&mut command);
    Running::begin(command, folder, "listening on")
}

/// What so many files of these frames have together. Peers keep the tunnels.
fn file_bytes(way: Way, sent: &Sent, files: u64) -> u64 {
    let around = RECORD_BYTES + if way == Way::Tapfleet { 0 } else { TUNNEL_BYTES as u64 };
    files * FILE_BYTES + sent.inner_bytes + around * sent.frames
}

fn judge(way: Way, sent: &Sent, store: &Store, (before, after): (f64, f64), readable: f64, memory: u64) -> Turn {
    let captures = store.captures();
    let arrived: u64 = captures.iter().map(|(_, object)| object.bytes).sum();
    let whole = file_bytes(way, sent, captures.len().max(1) as u64);
    let lost = 100.0 * whole.saturating_sub(arrived) as f64 / whole as f64;
    // Per GiB of mirrored frames: what the peers carry beyond that is their own affair.
    Turn { processor: (after - before) / (sent.inner_bytes as f64 / GIB), readable, lost, memory }
}

fn seconds_between(from: SystemTime, to: Option<SystemTime>) -> f64 {
    to.map_or(f64::NAN, |to| to.duration_since(from).map_or_else(|early| -early.duration().as_secs_f64(), |late| late.as_secs_f64()))
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Sleeps until so many seconds of a window have passed.
fn wait_for_window(window_s: u64, seconds: f64) {
    let into = now_s() % window_s as f64;
    thread::sleep(Duration::from_secs_f64((seconds - into).rem_euclid(window_s as f64)));
}

fn window_end(window_s: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs((now_s() as u64 / window_s + 1) * window_s)
}
