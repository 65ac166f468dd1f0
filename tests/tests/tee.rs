//! `tee.interface`: mirrored frames also reach a live sensor, and the sensor never costs the recorder a frame.
//! In: packets on a wire, a veth pair with tcpdump as the sensor at its other end. Out: what it saw, what was recorded, what was counted.
//! Needs: root.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tapfleet_tests::agent::{Agent, Settings};
use tapfleet_tests::captures::records;
use tapfleet_tests::netns::{Pair, SOURCE_V4, TAP, TAP_V4};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp};

const FRAMES: u64 = 5000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Nobody listens there.
const NO_S3: &str = "http://127.0.0.1:9";

struct Bench {
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    /// A wire with mirrored packets, and one to a sensor.
    fn new() -> Self {
        let bench = Self { pair: Pair::new(), folder: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.spool()).unwrap();
        bench.pair.tap.ip(&["link", "add", "tee", "mtu", "9001", "type", "veth", "peer", "name", "sensor", "mtu", "9001"]);
        for link in ["tee", "sensor"] {
            // Nothing of its own on it: only what the agent sends.
            bench.pair.tap.ip(&["link", "set", link, "addrgenmode", "none"]);
            bench.pair.tap.ip(&["link", "set", link, "up"]);
        }
        bench
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn start(&self, threads: u64) -> Agent {
        let settings = Settings::new(NO_S3, &self.spool())
            .set("capture.interface", TAP)
            .set("capture.threads", threads)
            .set("capture.ring_bytes", "32MiB")
            .set("tee.interface", "tee");
        Agent::ready(Some(self.pair.tap.name()), &settings, self.folder.path())
    }

    /// Sends frames `first..`, by turns with one tunnel and with two.
    fn send(&self, first: u64) {
        self.pair.source.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::from(SOURCE_V4), 0)).unwrap();
            let aws = Aws::default();
            for number in first..first + FRAMES {
                let gwlb = number % 2 == 0;
                let datagram = if gwlb { aws.gwlb_datagram(inner(number)).build() } else { aws.direct_datagram(inner(number)).build() };
                socket.send_to(&datagram, (Ipv4Addr::from(TAP_V4), if gwlb { 6081 } else { 4789 })).unwrap();
                if number % 100 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
    }

    /// What is recorded, sorted.
    fn recorded(&self) -> Vec<Vec<u8>> {
        let files = fs::read_dir(self.spool()).unwrap().map(|entry| entry.unwrap().path());
        let pcaps = files.filter(|path| path.extension().is_some_and(|extension| extension == "pcap"));
        sorted(pcaps.flat_map(|path| records(&fs::read(path).unwrap())).map(|record| record.bytes))
    }
}

fn inner(number: u64) -> Vec<u8> {
    let payload = [&number.to_be_bytes()[..], &vec![7; (number % 1400) as usize]].concat();
    (Ethernet::default() / Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1, 2) / payload).build()
}

fn sorted(frames: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = frames.collect();
    frames.sort();
    frames
}

fn sent(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    sorted(numbers.map(inner))
}

/// tcpdump at the far end.
struct Sensor(Child, PathBuf);

impl Sensor {
    fn new(bench: &Bench) -> Self {
        let file = bench.folder.path().join("seen.pcap");
        let mut tcpdump = bench.pair.tap.command("tcpdump");
        tcpdump.args(["-i", "sensor", "-p", "-U", "-B", "65536", "-Z", "root", "-w"]).arg(&file);
        let sensor = Self(tcpdump.stderr(Stdio::null()).spawn().unwrap(), file);
        let begun = Instant::now();
        while fs::metadata(&sensor.1).map_or(0, |file| file.len()) == 0 {
            assert!(begun.elapsed() < PATIENCE, "tcpdump does not begin");
            thread::sleep(Duration::from_millis(10));
        }
        sensor
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Ends it when it has seen so many bytes of frames, and gives them, sorted.
    fn seen(mut self, frames: usize) -> Vec<Vec<u8>> {
        let begun = Instant::now();
        let count = || records_so_far(&self.1);
        while count() < frames && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        self.signal(Signal::INT);
        self.0.wait().unwrap();
        sorted(records(&fs::read(&self.1).unwrap()).into_iter().map(|record| record.bytes))
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Whole records of a pcap file that is being written.
fn records_so_far(path: &PathBuf) -> usize {
    let file = fs::read(path).unwrap();
    let (mut at, mut count) = (24, 0);
    while let Some(len) = file.get(at + 8..at + 12) {
        at += 16 + u32::from_le_bytes(len.try_into().unwrap()) as usize;
        count += usize::from(at <= file.len());
    }
    count
}

#[test]
fn a_sensor_sees_every_mirrored_frame_without_tunnels_byte_for_byte() {
    for threads in [1, 2] {
        let bench = Bench::new();
        let sensor = Sensor::new(&bench);
        let mut agent = bench.start(threads);
        bench.send(0);
        let counters = agent.wait_counters("all are recorded", PATIENCE, |counters| counters.get("frames_written") == FRAMES);
        assert_eq!(sensor.seen(FRAMES as usize), sent(0..FRAMES), "{threads} threads");
        assert_eq!(counters.get("tee_drops"), 0);
        assert_eq!(agent.counters().unwrap().get("tee_frames"), FRAMES);
        assert!(agent.stop(PATIENCE).success());
        assert_eq!(bench.recorded(), sent(0..FRAMES), "{threads} threads");
    }
}

#[test]
fn a_sensor_that_stands_still_or_is_gone_costs_the_recorder_nothing_and_what_was_not_sent_is_counted() {
    let bench = Bench::new();
    let sensor = Sensor::new(&bench);
    let mut agent = bench.start(1);
    sensor.signal(Signal::STOP);
    bench.send(0);
    agent.wait_counters("all are recorded", PATIENCE, |counters| counters.get("frames_written") == FRAMES);
    sensor.signal(Signal::CONT);
    drop(sensor);
    // The pair goes with either end.
    bench.pair.tap.ip(&["link", "del", "sensor"]);
    bench.send(FRAMES);
    let counters = agent.wait_counters("all are recorded, and sent or counted", PATIENCE, |counters| {
        counters.get("frames_written") == 2 * FRAMES && counters.get("tee_frames") + counters.get("tee_drops") == 2 * FRAMES
    });
    assert_eq!(counters.get("tee_drops"), FRAMES);
    assert_eq!(counters.get("kernel_drops") + counters.sum("drops"), 0);
    assert!(agent.stop(PATIENCE).success());
    assert_eq!(bench.recorded(), sent(0..2 * FRAMES));
}

#[test]
fn an_interface_that_comes_back_is_used_again() {
    let bench = Bench::new();
    bench.pair.tap.ip(&["link", "set", "tee", "down"]);
    let mut agent = bench.start(1);
    bench.send(0);
    agent.wait_counters("what could not be sent is counted", PATIENCE, |counters| counters.get("tee_drops") == FRAMES);
    bench.pair.tap.ip(&["link", "set", "tee", "up"]);
    let sensor = Sensor::new(&bench);
    // It is tried once a second.
    thread::sleep(Duration::from_millis(1500));
    bench.send(FRAMES);
    assert_eq!(sensor.seen(FRAMES as usize), sent(FRAMES..2 * FRAMES));
    assert!(agent.stop(PATIENCE).success());
}

#[test]
fn the_captured_interface_cannot_be_the_tee() {
    let bench = Bench::new();
    let settings = Settings::new(NO_S3, &bench.spool()).set("capture.interface", TAP).set("tee.interface", TAP);
    let (code, said) = settings.command(Some(bench.pair.tap.name()), bench.folder.path(), &["run"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("tee.interface") && said.contains("another interface"), "{said}");
}
