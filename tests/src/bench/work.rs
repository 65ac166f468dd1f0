//! The agent's own work on frames in memory, without kernel and disk: counted in instructions, and on several threads at once.
//! In: a mix, how many rounds over its frames. Out: nothing but the work; instructions per frame, as valgrind counts them.
//! Never: a clock in the loop.
//! Spec: valgrind manual, "Callgrind".
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tapfleet::capture::worker::{Judge, Shared};
use tapfleet::capture::{Batch, EngineKind, Event, Fanout, OwnedFrame, Settings, What};
use tapfleet::host::clock::{Clock, Now};
use tapfleet::host::nic::LossCounters;
use tapfleet::observe::counters::Counters;
use tapfleet::record::buffer::HUGE_PAGE_BYTES;
use tapfleet::record::facts::{Kind, WindowFacts};
use tapfleet::record::key::Names;
use tapfleet::record::recorder::Recorder;
use tapfleet::record::segment::{Entry, Segment};
use tapfleet::record::{self, Buffer, Chunk, Compression, Facts, Format, Precision, Room, SegmentNumber, Spool, Stamp, WRITE_BYTES};
use tapfleet::wire::{self, Inline, Rules};

use super::report::{Column, Contest, Figure, Verdict};
use super::traffic::{Mix, ORIGINS};
use super::{Bench, median, tell};

const RULES: Rules = Rules { geneve_port: 6081, vxlan_port: 4789, inline: Inline::Ignore };

/// Frames of a batch, as a block of the ring has them.
const BATCH: usize = 2046;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// The decoder alone.
    Decode,
    /// Judge, recorder and encoder: all that is done for a packet between ring and spool.
    Loop,
    /// What it takes to feed that loop from memory: not the agent's work.
    Feed,
}

impl Work {
    const ALL: [Self; 3] = [Self::Decode, Self::Loop, Self::Feed];

    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decoder",
            Self::Loop => "ring to spool",
            Self::Feed => "feed",
        }
    }
}

/// Does the work of that name on a mix, `rounds` times over its frames: what valgrind looks at. False when there is no such work.
#[must_use]
pub fn perform(name: &str, mix: &str, rounds: usize) -> bool {
    let mix = Mix::ALL.into_iter().find(|known| known.name() == mix);
    let kind = Work::ALL.into_iter().find(|known| known.name() == name);
    let (Some(mix), Some(kind)) = (mix, kind) else { return false };
    let frames = mix.frames(ORIGINS);
    match kind {
        Work::Decode => {
            for frame in (0..rounds).flat_map(|_| &frames) {
                black_box(&wire::decap(black_box(frame), &RULES));
            }
        }
        Work::Loop => record(&frames, rounds),
        Work::Feed => feed(&frames, rounds),
    }
    true
}

/// Settings of a capture thread on the interface of that name, if it has one.
#[must_use]
pub fn capture_settings(interface: &str) -> Settings {
    Settings {
        engine: EngineKind::Ring,
        interface: interface.into(),
        files: Vec::new(),
        rules: RULES,
        filter: None,
        snaplen: 262_144,
        threads: 1,
        fanout: Fanout::Hash,
        ring_bytes: 64 << 20,
        outer_sources: Vec::new(),
        mirror_sources: Vec::new(),
    }
}

/// Fills a batch with frames stamped from `time_ns` on.
fn fill(batch: &mut Batch, frames: &[Vec<u8>], time_ns: u64) {
    let owned = batch.bytes.refill();
    for (number, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        owned.frames.push(OwnedFrame { time_ns: time_ns + number as u64, at: owned.data.len() as u32, len, orig_len: len });
        owned.data.extend_from_slice(frame);
    }
}

/// Only copies the frames, `rounds` times.
fn feed(frames: &[Vec<u8>], rounds: usize) {
    let mut batch = Batch::default();
    for frames in (0..rounds).flat_map(|_| frames.chunks(BATCH)) {
        fill(&mut batch, frames, 1);
        black_box(&mut batch);
    }
}

/// What a capture thread that is alone and its recorder share.
#[must_use]
pub fn shared() -> Arc<Shared> {
    let counters = Arc::new(Counters::new(1));
    Arc::new(Shared { stop: AtomicBool::new(false), complete_until_ns: vec![AtomicU64::new(0)], counters })
}

/// A recorder into a spool that forgets.
#[must_use]
pub fn recorder<C: Clock>(shared: Arc<Shared>, format: Format, clock: C) -> Recorder<Nowhere<HUGE_PAGE_BYTES>, C> {
    let settings = record::Settings {
        rotate_seconds: 86_400,
        max_bytes: u64::MAX,
        format,
        precision: Precision::Micro,
        compression: Compression::None,
        schedule: None,
        quarantine_bytes_per_s: 0,
        snaplen: 262_144,
        filter: None,
        instance: "i-0123456789abcdef0".into(),
        bucket: "captures".into(),
        flush_ms: 500,
        retirement_ms: 20,
        replay: false,
    };
    let names = Names::new("", "i-0123456789abcdef0");
    Recorder::new(settings, Nowhere::default(), clock, shared, Box::new(LossCounters::default), names)
}

/// Lets the recorder take the frames, `rounds` times.
fn record(frames: &[Vec<u8>], rounds: usize) {
    let recorder = recorder(shared(), Format::Pcap, StdClock(Instant::now()));
    let (events, to_record) = sync_channel(4);
    let (back, spent) = sync_channel(4);
    let recording = thread::spawn(move || recorder.run(&to_record, &[back]));
    let mut judge = Judge::new(&capture_settings(""), None);
    let now = StdClock(Instant::now()).now().wall_ns;
    // The same bytes again and again: what is counted is the work on them, not their making.
    let mut ready: Vec<Batch> = Vec::new();
    for frames in frames.chunks(BATCH) {
        let mut batch = Batch::default();
        fill(&mut batch, frames, now);
        ready.push(batch);
    }
    for _ in 0..rounds {
        for mut batch in std::mem::take(&mut ready) {
            judge.judge(&mut batch);
            events.send(Event::Batch(batch)).unwrap();
            let mut batch: Batch = spent.recv().unwrap();
            // It comes back empty.
            let frames = frames.get(ready.len() * BATCH..).unwrap().chunks(BATCH).next().unwrap();
            fill(&mut batch, frames, now);
            ready.push(batch);
        }
    }
    events.send(Event::End { thread: 0, error: None }).unwrap();
    drop(events);
    assert!(recording.join().unwrap().is_empty());
}

/// The agent's own clock asks the kernel's vDSO by itself, which valgrind hides.
struct StdClock(Instant);

impl Clock for StdClock {
    fn now(&self) -> Now {
        let wall_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Now { wall_ns, monotonic_ns: self.0.elapsed().as_nanos() as u64 }
    }
}

/// A spool that forgets, with buffers of so many bytes.
#[derive(Default, Debug)]
pub struct Nowhere<const BYTES: usize>(Vec<Buffer>);

impl<const BYTES: usize> Spool for Nowhere<BYTES> {
    const CHUNK_BYTES: usize = BYTES;

    fn buffer(&mut self) -> Buffer {
        self.0.pop().unwrap_or_else(|| Buffer::with_capacity(Self::CHUNK_BYTES))
    }

    fn append(&mut self, _: SegmentNumber, chunk: Chunk) {
        let mut bytes = chunk.bytes;
        black_box(&mut bytes).clear();
        self.0.push(bytes);
    }

    fn room(&mut self, _: u64) -> Room {
        Room::Yes
    }

    fn spare(&self) -> u64 {
        u64::MAX
    }

    fn open(&mut self, _: SegmentNumber, _: Facts) {}
    fn draft(&mut self, _: SegmentNumber, _: Facts) {}
    fn close(&mut self, _: SegmentNumber, _: Facts) {}
    fn idle(&mut self, _: Facts) {}
}

/// Instructions per frame, by what two runs of different length differ in.
fn instructions(kind: Work, mix: Mix) -> f64 {
    let frames = mix.frames(ORIGINS).len() as f64;
    let count = |rounds: usize| {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program).args([
            "--work",
            kind.name(),
            mix.name(),
            &rounds.to_string(),
        ]);
        let output = command.output().unwrap_or_else(|cause| panic!("cannot run valgrind: {cause}; see tests/setup/bench.sh"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line =
            said.lines().find_map(|line| line.split_once("Collected : ")).unwrap_or_else(|| panic!("valgrind did not count: {said}"));
        line.1.trim().parse::<f64>().unwrap()
    };
    let (few, many) = (2, 12);
    (count(many) - count(few)) / (frames * (many - few) as f64)
}

const INSTRUCTIONS: &[Column] = &[Column::new("instructions per frame", 0)];

/// Counts instructions.
#[must_use]
pub fn run(_: &Bench) -> Contest {
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for mix in Mix::ALL {
        for kind in [Work::Decode, Work::Loop] {
            tell(&format!("instructions, {}, {}", kind.name(), mix.name()));
            let fed = if kind == Work::Loop { instructions(Work::Feed, mix) } else { 0.0 };
            let seen = instructions(kind, mix) - fed;
            figures.push(Figure::new(mix.name(), kind.name(), &[seen]));
            if kind == Work::Decode {
                verdicts.push(Verdict::at_most(format!("decoder, {}", mix.name()), seen, 120.0, " instructions"));
            }
        }
    }
    let notes = vec!["Counted by valgrind, the same on any machine of this architecture. `ring to spool`: judge, recorder, encoder and the copy of the bytes.".into()];
    Contest { name: "instructions", title: "Instructions per frame".into(), notes, columns: INSTRUCTIONS, figures, verdicts }
}

const THREADS: &[Column] = &[Column::new("million frames/s", 2)];

/// Takes the tunnels off frames in memory, on one thread and on two.
#[must_use]
pub fn threads(bench: &Bench) -> Contest {
    let (mut figures, mut verdicts) = (Vec::new(), Vec::new());
    for mix in Mix::ALL {
        let frames = mix.frames(ORIGINS);
        let rounds = (bench.pick(1.0, 4.0) * 2e9 / (mix.mean_bytes() + 300.0) / frames.len() as f64) as usize;
        let mut speeds: [Vec<f64>; 4] = Default::default();
        for _ in 0..bench.turns() {
            for (n, speeds) in speeds.iter_mut().enumerate() {
                let threads = 1 + n % 2;
                let task = if n < 2 { strip } else { copy };
                tell(&format!("decap in memory, {}, {threads} threads{}", mix.name(), if n < 2 { "" } else { ", copying alone" }));
                speeds.push((threads * rounds * frames.len()) as f64 / on_threads(threads, task, &frames, rounds) / 1e6);
            }
        }
        let [one, two, copy_one, copy_two] = speeds.map(median);
        figures.push(Figure::new(mix.name(), "1 thread", &[one]));
        figures.push(Figure::new(mix.name(), "2 threads", &[two]));
        figures.push(Figure::new(mix.name(), "1 thread, copying alone", &[copy_one]));
        figures.push(Figure::new(mix.name(), "2 threads, copying alone", &[copy_two]));
        verdicts.push(Verdict::at_least(format!("from one to two threads, {}", mix.name()), two / one, 1.8, "x"));
    }
    let notes = vec!["Judge and encoder on frames in memory, each thread with frames and buffers of its own. `copying alone`: the same bytes into the same buffers, nothing else: what the machine's memory has to give.".into()];
    Contest { name: "threads", title: "Decap in memory on one and two threads".into(), notes, columns: THREADS, figures, verdicts }
}

/// Seconds that so many threads take, each for so many rounds of a task over the frames.
fn on_threads(threads: usize, task: fn(&[Vec<u8>], usize), frames: &[Vec<u8>], rounds: usize) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| task(frames, rounds)))));
    begun.elapsed().as_secs_f64()
}

/// The frames in memory, in batches.
fn batches(frames: &[Vec<u8>]) -> Vec<Batch> {
    let batches = frames.chunks(BATCH).map(|frames| {
        let mut batch = Batch::default();
        fill(&mut batch, frames, 1);
        batch
    });
    batches.collect()
}

/// Moves the frames' bytes as [`strip`] does, the tunnels with them.
fn copy(frames: &[Vec<u8>], rounds: usize) {
    let batches = batches(frames);
    let mut buffer = Buffer::with_capacity(WRITE_BYTES);
    for bytes in (0..rounds).flat_map(|_| &batches).map(|batch| batch.bytes.as_slice()) {
        for piece in bytes.chunks(WRITE_BYTES) {
            buffer.clear();
            buffer.extend_from_slice(piece);
            black_box(&mut buffer);
        }
    }
}

/// What `tapfleet decap` does between reading and writing.
fn strip(frames: &[Vec<u8>], rounds: usize) {
    let mut judge = Judge::new(&capture_settings(""), None);
    let facts = Facts::begin(Kind::Capture, String::new(), String::new(), String::new(), WindowFacts { start: Stamp(0), seconds: 0 });
    let mut output = Nowhere::<WRITE_BYTES>::default();
    let mut segment = Segment::begin(SegmentNumber(0), &facts, 262_144, "", &mut output, 0);
    let mut batches = batches(frames);
    for _ in 0..rounds {
        for batch in &mut batches {
            batch.items.clear();
            batch.new_origins.clear();
            judge.judge(batch);
            for item in &batch.items {
                let What::Inner { link, direction, .. } = item.what else { continue };
                let bytes = batch.bytes_of(item);
                let entry =
                    Entry { time_ns: item.time_ns, bytes, orig_len: item.orig_len, link, direction, interface: 0, lost: 0, comment: "" };
                segment.write(&entry, &mut output, 0);
            }
        }
    }
}
