//! The recording half alone: packets on a wire, files in the spool, no S3 to be reached.
//! In: two network namespaces, the daemon in the receiving one. Out: promises 1 and 4 at the edges: few packets, too many, no room.
//! Needs: root.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tapfleet_tests::agent::{Agent, Settings, sum};
use tapfleet_tests::captures::{plain, records};
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, numbered};
use tapfleet_tests::program::run;

/// One after the other: each wants the processors for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// Nobody listens there.
const NO_S3: &str = "http://127.0.0.1:9";

/// How long an agent may take to end.
const STOP: Duration = Duration::from_secs(10);

#[test]
fn one_packet_a_second_is_in_its_file_within_a_second() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    thread::scope(|scope| {
        for (engine, threads) in [("ring", 1), ("ring", 2), ("libpcap", 1)] {
            scope.spawn(move || {
                let bench = Bench::new();
                let settings = bench.settings().set("capture.engine", engine).set("capture.threads", threads);
                let mut agent = bench.start(&settings);
                let slowest = (0..6).map(|number| bench.time_to_file(number)).max().unwrap();
                assert!(slowest <= Duration::from_secs(1), "{engine}, {threads} threads: {slowest:?}");
                println!("{engine}, {threads} threads: at most {slowest:?} from the wire to the file");
                assert!(agent.stop(STOP).success());
            });
        }
    });
}

#[test]
fn at_any_rate_a_packet_is_in_its_file_when_its_flush_time_and_the_rings_are_over() {
    /// What ring and merge may take, as `spool.flush_ms` has it.
    const RING: Duration = Duration::from_millis(200);
    const FLUSH: Duration = Duration::from_millis(300);
    const TRIES: usize = 3;
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    // As fast as the sender can, chunks are full long before their time; at a packet in half a millisecond they never are.
    let pauses = [Duration::ZERO, Duration::from_micros(500)];
    for ((engine, threads), pause) in [("ring", 1), ("ring", 2), ("libpcap", 1)].into_iter().flat_map(|of| pauses.map(|pause| (of, pause)))
    {
        let bench = Bench::new();
        let settings = bench.settings().set("capture.engine", engine).set("capture.threads", threads).set("capture.ring_bytes", "64MiB");
        let mut agent = bench.start(&settings.set("spool.flush_ms", FLUSH.as_millis() as u64));
        let mut first = 0;
        // A machine that is busy with something else for a moment says nothing of the agent.
        let in_time = (0..TRIES).any(|_| {
            let (sent, mut looks) = bench.look_while_sending(first, pause);
            first += sent;
            looks.sort();
            let (count, median, slowest) = (looks.len(), looks[looks.len() / 2], looks[looks.len() - 1]);
            println!("{engine}, {threads} threads, {sent} frames: {median:?} behind at the median of {count} looks, {slowest:?} at most");
            median <= FLUSH + RING && slowest <= Duration::from_secs(1)
        });
        assert!(in_time, "{engine}, {threads} threads, a pause of {pause:?}: see above");
        assert!(agent.stop(STOP).success());
    }
}

#[test]
fn an_overload_is_counted_to_the_packet_and_the_manifests_add_up_to_it() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    for (engine, threads) in [("ring", 1), ("ring", 2), ("libpcap", 1)] {
        let bench = Bench::new();
        let settings = bench.settings().set("capture.engine", engine).set("capture.threads", threads).set("capture.ring_bytes", "4MiB");
        let mut agent = bench.start(&settings.set("record.rotate_seconds", 1));
        let sent = thread::scope(|scope| {
            let flood = scope.spawn(|| bench.pair.source.run(|| Flood::new().send_for(Duration::from_secs(2))));
            // Fast machine or slow: a ring that nobody reads for this long is full.
            thread::sleep(Duration::from_millis(700));
            agent.pause(Duration::from_millis(400));
            flood.join().unwrap()
        });
        let what = "what the kernel took is accounted for";
        let counters = agent.wait_counters(what, Duration::from_secs(20), |counters| {
            let (given, judged) = counters.identity();
            counters.get("kernel_packets") == sent && given == judged
        });
        assert!(agent.stop(STOP).success());
        assert!(counters.get("kernel_drops") > 0, "{engine}: nothing was dropped, so this shows nothing: {counters:?}");

        let manifests = bench.manifests();
        let total = |group: &str, name: &str| manifests.iter().map(|m| m[group][name].as_u64().unwrap()).sum::<u64>();
        let judged: u64 = manifests.iter().map(|m| m["frames"].as_u64().unwrap() + sum(m, "drops") + sum(m, "ignored")).sum();
        assert_eq!(total("losses", "kernel_packets"), sent, "{engine}");
        assert_eq!(total("losses", "kernel_drops"), counters.get("kernel_drops"), "{engine}");
        assert_eq!(sent - total("losses", "kernel_drops"), judged, "{engine}");
        let numbers: Vec<u64> =
            bench.captures().iter().flat_map(|file| records(file)).map(|record| numbered::number(&record.bytes).unwrap()).collect();
        assert_eq!(numbers.len() as u64, counters.get("frames_written"), "{engine}: in the files, and counted");
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len(), "{engine}: a packet was written twice");
        println!(
            "{engine}, {threads} threads: {sent} sent in 2 s, {} dropped by the kernel, {} late",
            counters.get("kernel_drops"),
            counters.get("frames_late")
        );
    }
}

#[test]
fn an_agent_whose_disk_is_full_stops_when_told_and_damages_no_file() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let bench = Bench::new();
    let disk = SmallDisk::new(&bench.spool(), "8m");
    let settings = bench.settings().set("spool.max_bytes", "1GiB");
    let mut agent = bench.start(&settings);
    bench.pair.source.run(|| Flood { padding: 8000, ..Flood::new() }.send(15_000));
    agent.wait_counters("frames are dropped", Duration::from_secs(10), |counters| counters.reason("drops", "spool_full") > 0);
    thread::sleep(Duration::from_secs(1));
    assert!(agent.stop(STOP).success());

    disk.resize("64m");
    let mut agent = bench.start(&settings);
    agent.wait_for("what was left is whole", Duration::from_secs(10), |_| !bench.manifests().is_empty());
    assert!(agent.stop(STOP).success());
    let manifests = bench.manifests();
    let capture = manifests.iter().find(|manifest| manifest["kind"] == "capture").unwrap();
    let numbers: Vec<u64> =
        bench.captures().iter().flat_map(|file| records(file)).map(|record| numbered::number(&record.bytes).unwrap()).collect();
    assert!(!numbers.is_empty());
    assert!(numbers.is_sorted_by(|a, b| a < b), "a frame stands twice or out of order");
    assert_eq!(capture["frames"], numbers.len(), "the manifest says what the file holds");
}

#[test]
fn kill_9_at_any_moment_takes_nothing_that_was_in_the_spool_and_no_key_is_given_twice() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    for (format, compression) in [("pcap", "none"), ("pcapng", "zstd")] {
        let bench = Bench::new();
        let settings = bench.settings().set("record.format", format).set("record.compression", compression);
        let settings = settings.set("record.rotate_seconds", 1).set("spool.flush_ms", 20);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let stop = &stop;
            let _ends = OnDrop(|| stop.store(true, Ordering::Relaxed));
            scope.spawn(|| {
                bench.pair.source.run(|| {
                    let flood = Flood::new();
                    for burst in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        flood.send_from(burst * 32, 32);
                        thread::sleep(Duration::from_millis(4));
                    }
                });
            });
            for kill in 0..6 {
                let mut agent = bench.start(&settings);
                thread::sleep(Duration::from_millis(700 + 171 * kill));
                agent.kill();
                let before = bench.sizes();
                let mut agent = bench.start(&settings);
                let earlier: Vec<&PathBuf> = before.keys().collect();
                agent.wait_for("what was left is whole", Duration::from_secs(10), |_| {
                    earlier.iter().all(|path| bench.manifest_of(path).is_some() || !path.exists())
                });
                agent.kill();
                for (path, size) in &before {
                    let now = fs::read(path).map_or(0, |file| file.len() as u64);
                    // What is cut off is less than a record, or than a zstd frame of 20 ms.
                    assert!(size - now < 64 << 10, "{}: {size} bytes before, {now} after salvage", path.display());
                }
            }
        });
        assert!(bench.start(&settings).stop(STOP).success());
        let mut keys = BTreeSet::new();
        let mut last = None;
        for path in bench.sizes().into_keys() {
            let manifest = bench.manifest_of(&path).unwrap_or_else(|| panic!("{} is not whole", path.display()));
            assert!(keys.insert(manifest["key"].as_str().unwrap().to_owned()), "{} twice", manifest["key"]);
            let numbers: Vec<u64> =
                records(&plain(&fs::read(&path).unwrap())).iter().map(|record| numbered::number(&record.bytes).unwrap()).collect();
            assert_eq!(manifest["frames"], numbers.len(), "{}", path.display());
            for number in numbers {
                assert!(last < Some(number), "packet {number} after {last:?} in {}", path.display());
                last = Some(number);
            }
        }
        println!("{format}, {compression}: {} segments, up to packet {last:?}", keys.len());
    }
}

/// Does something at the end of a scope, also when a test fails.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Two namespaces and a spool.
struct Bench {
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { pair: Pair::new(), folder: tempfile::tempdir().unwrap() }
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn settings(&self) -> Settings {
        Settings::new(NO_S3, &self.spool()).set("capture.interface", TAP).set("capture.ring_bytes", "16MiB")
    }

    fn start(&self, settings: &Settings) -> Agent {
        Agent::ready(Some(self.pair.tap.name()), settings, self.folder.path())
    }

    /// Sends one packet and waits for it in the spool; waits on until a second is over.
    fn time_to_file(&self, number: u64) -> Duration {
        let frame = inner(number, 0);
        let begun = Instant::now();
        self.pair.source.run(|| Flood { first: number, ..Flood::new() }.send(1));
        let arrived = |file: &Vec<u8>| file.windows(frame.len()).any(|part| part == frame);
        while !self.captures().iter().any(arrived) {
            assert!(begun.elapsed() < Duration::from_secs(5), "packet {number} is in no file");
            thread::sleep(Duration::from_millis(5));
        }
        let took = begun.elapsed();
        thread::sleep(Duration::from_secs(1).saturating_sub(took));
        took
    }

    /// Sends frames from number `first` on for two seconds, with a pause after each; gives how many, and by how much the files were behind at
    /// each look: for how long the oldest frame that was in none had been sent.
    fn look_while_sending(&self, first: u64, pause: Duration) -> (u64, Vec<Duration>) {
        const TIME: Duration = Duration::from_secs(2);
        let sent = Mutex::new(Vec::new());
        let (over, mut looks) = (AtomicBool::new(false), Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                let _over = OnDrop(|| over.store(true, Ordering::Release));
                self.pair.source.run(|| {
                    let (flood, begun, mut next) = (Flood::new(), Instant::now(), first);
                    let some = if pause.is_zero() { 64 } else { 1 };
                    while begun.elapsed() < TIME {
                        next += flood.send_from(next, some);
                        sent.lock().unwrap().push((next, Instant::now()));
                        thread::sleep(pause);
                    }
                });
            });
            while !over.load(Ordering::Acquire) {
                let now = Instant::now();
                let arrived = self.newest();
                let behind =
                    sent.lock().unwrap().iter().find(|(next, _)| arrived.is_none_or(|number| number + 1 < *next)).map(|(_, at)| *at);
                looks.push(behind.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)));
                thread::sleep(Duration::from_millis(10));
            }
        });
        let sent = sent.into_inner().unwrap();
        (sent.last().unwrap().0 - first, looks)
    }

    /// The number of the last frame that is whole in the newest file; all are equally long.
    fn newest(&self) -> Option<u64> {
        let record = 16 + inner(0, 0).len() as u64;
        let (path, bytes) = self.sizes().pop_last()?;
        let at = 24 + (bytes.checked_sub(24)? / record).checked_sub(1)? * record + 16;
        let mut frame = vec![0; inner(0, 0).len()];
        fs::File::open(path).ok()?.read_exact_at(&mut frame, at).ok()?;
        numbered::number(&frame)
    }

    fn files(&self, extension: &str) -> Vec<Vec<u8>> {
        let paths = fs::read_dir(self.spool()).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// The capture files and how large they are.
    fn sizes(&self) -> BTreeMap<PathBuf, u64> {
        let files = fs::read_dir(self.spool()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| [".pcap", ".pcapng.zst"].iter().any(|end| path.to_str().unwrap().ends_with(end)));
        files.map(|path| (path.clone(), fs::metadata(&path).unwrap().len())).collect()
    }

    fn manifest_of(&self, capture: &Path) -> Option<Value> {
        let id = capture.file_name().unwrap().to_str().unwrap().split('.').next().unwrap();
        serde_json::from_slice(&fs::read(self.spool().join(id).with_extension("manifest")).ok()?).ok()
    }

    /// The capture files, oldest first.
    fn captures(&self) -> Vec<Vec<u8>> {
        self.files("pcap")
    }

    fn manifests(&self) -> Vec<Value> {
        self.files("manifest").iter().map(|json| serde_json::from_slice(json).unwrap()).collect()
    }
}

/// A file system of its own for the spool.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", at.to_str().unwrap()]);
        Self(at.into())
    }

    fn resize(&self, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

/// Numbered frames in VXLAN, as fast as one sender can. Lives in the sender's namespace.
struct Flood {
    socket: UdpSocket,
    first: u64,
    padding: usize,
}

impl Flood {
    fn new() -> Self {
        Self { socket: UdpSocket::bind("10.77.0.1:0").unwrap(), first: 0, padding: 0 }
    }

    fn send_for(&self, time: Duration) -> u64 {
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < time {
            sent += self.send_from(self.first + sent, 64);
        }
        sent
    }

    fn send(&self, frames: u64) -> u64 {
        self.send_from(self.first, frames)
    }

    fn send_from(&self, first: u64, frames: u64) -> u64 {
        let mut datagram = Aws::default().direct_datagram(inner(0, self.padding)).build();
        let at = datagram.len() - inner(0, self.padding).len() + numbered::NUMBER_AT;
        for number in first..first + frames {
            datagram[at..at + 8].copy_from_slice(&number.to_be_bytes());
            self.socket.send_to(&datagram, "10.77.0.2:4789").unwrap();
        }
        frames
    }
}

fn inner(number: u64, padding: usize) -> Vec<u8> {
    numbered::frame(number, &vec![7; 100 + padding])
}
