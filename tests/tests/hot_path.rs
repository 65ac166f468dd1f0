//! What is done for each packet on its way from the kernel's ring to the spool: no allocation and no system call. (That no lock is
//! there is shown by suite `layout`.)
//! In: mirrored frames on a wire, the real capture thread and the real recorder, a spool that forgets. Out: allocations by thread, system
//! calls as strace counts them.
//! Needs: root.
//! Threads: 1
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use allocation_counter::{AllocationInfo, measure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::gettid;
use tapfleet::capture::ring::{Group, Ring};
use tapfleet::capture::worker::{Judge, Shared, Worker};
use tapfleet::host::clock::SystemClock;
use tapfleet::record::Format;
use tapfleet_tests::bench::traffic::{Mix, ORIGINS, send};
use tapfleet_tests::bench::work::{capture_settings, recorder, shared};
use tapfleet_tests::netns::{Pair, TAP};

/// Enough for each origin, buffer and batch to have been there once.
const FEW: u64 = 50_000;
const MANY: u64 = 450_000;

/// Of a pace that a busy machine can follow; blocks are then closed by the kernel's timer, with some two thousand frames each.
const FRAMES_PER_S: f64 = 100_000.0;

/// What is done by block, second or chunk is less than once for so many frames, also where a busy machine makes blocks small.
const FRAMES_FOR_ONE: u64 = 20;

/// A capture thread and a recorder.
struct Pipeline {
    pair: Pair,
    frames: Vec<Vec<u8>>,
    shared: Arc<Shared>,
    tids: [Pid; 2],
    threads: Vec<JoinHandle<AllocationInfo>>,
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// strace; it lets go of what it looks at when it ends.
struct Strace(Child);

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pipeline {
    fn start(format: Format) -> Self {
        let pair = Pair::new();
        let settings = capture_settings(TAP);
        let group = Group::new(&settings).unwrap();
        let engine = pair.tap.run(|| Ring::open(&settings, TAP, &group).unwrap());
        let shared = shared();
        let (events, to_record) = sync_channel(16);
        let (back, spent) = sync_channel(16);
        let opener = Box::new(|| panic!("the interface stays"));
        let worker = Worker::new(0, opener, Judge::new(&settings, None), shared.clone(), SystemClock, events, spent);
        let recorder = recorder(shared.clone(), format, SystemClock);
        let (here, tids) = mpsc::channel();
        let there = here.clone();
        let capturing = pair.tap.spawn(move || {
            here.send(gettid()).unwrap();
            measure(|| worker.run(Box::new(engine)))
        });
        let first = tids.recv().unwrap();
        let recording = thread::spawn(move || {
            there.send(gettid()).unwrap();
            measure(|| assert!(recorder.run(&to_record, &[back]).is_empty()))
        });
        let tids = [first, tids.recv().unwrap()];
        Self { pair, frames: Mix::Imix.frames(ORIGINS), shared, tids, threads: vec![capturing, recording] }
    }

    /// Sends frames, and waits until those that were not lost are written. Gives how many they are: nearly all.
    fn send(&self, frames: u64) -> u64 {
        let counters = &self.shared.counters;
        let before = (counters.frames_written.get(), counters.kernel_drops.get());
        let _ = send(&self.pair, &self.frames, frames, Some(FRAMES_PER_S));
        let deadline = Instant::now() + Duration::from_secs(20);
        let written = loop {
            thread::sleep(Duration::from_millis(400));
            let written = counters.frames_written.get() - before.0;
            if written + counters.kernel_drops.get() - before.1 >= frames {
                break written;
            }
            assert!(Instant::now() < deadline, "{written} of {frames} frames are written");
        };
        assert!(written > frames / 2, "the machine is too busy for this test to say anything: {written} of {frames} frames are written");
        written
    }

    /// Allocations of capture thread and recorder.
    fn end(mut self) -> Vec<u64> {
        self.shared.stop.store(true, Ordering::Release);
        self.threads.drain(..).map(|thread| thread.join().unwrap().count_total).collect()
    }
}

#[test]
fn a_packet_costs_no_allocation() {
    for format in [Format::Pcap, Format::Pcapng] {
        let allocations = |frames| {
            let pipeline = Pipeline::start(format);
            let written = pipeline.send(frames);
            (written, pipeline.end())
        };
        let (few, before) = allocations(FEW);
        let (many, after) = allocations(MANY);
        println!("{format:?}: {few} frames: {before:?} allocations, {many} frames: {after:?} (capture thread, recorder)");
        assert!(before.iter().all(|&count| count > 0), "nothing is counted");
        for (before, after) in before.into_iter().zip(after) {
            assert!(after < before + (many - few) / FRAMES_FOR_ONE, "{before} allocations became {after}");
        }
    }
}

#[test]
fn a_packet_costs_no_system_call() {
    let pipeline = Pipeline::start(Format::Pcap);
    pipeline.send(FEW);
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("calls");
    let mut strace = Command::new("strace");
    strace.arg("-c").arg("-o").arg(&table);
    for tid in pipeline.tids {
        strace.arg("-p").arg(tid.as_raw_nonzero().to_string());
    }
    let mut strace = Strace(strace.stderr(Stdio::piped()).spawn().unwrap_or_else(|cause| panic!("cannot run strace: {cause}")));
    let mut said = BufReader::new(strace.0.stderr.take().unwrap()).lines();
    for _ in pipeline.tids {
        let line = said.next().unwrap().unwrap();
        assert!(line.ends_with("attached"), "{line}");
    }
    let written = pipeline.send(MANY);
    kill_process(Pid::from_child(&strace.0), Signal::INT).unwrap();
    strace.0.wait().unwrap();
    let table = std::fs::read_to_string(&table).unwrap();
    pipeline.end();
    // " 93.10    0.012345           5      2345        12 futex": of each call, and of all.
    let rows = table.lines().filter(|line| !line.ends_with(" total")).map(|line| line.split_whitespace().nth(3));
    let calls: u64 = rows.filter_map(|calls| calls?.parse::<u64>().ok()).sum();
    println!("{written} frames, {calls} system calls");
    assert!(calls > 0 && calls < written / FRAMES_FOR_ONE, "{calls} calls for {written} frames:\n{table}");
}
