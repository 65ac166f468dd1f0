//! `tee.interface`: mirrored frames also reach a live sensor, and the sensor never costs the recorder a frame.
//! In: packets on a wire; as the sensor tcpdump at the other end of a veth pair, or a program that holds a TAP. Out: what it saw, what was
//! recorded, what was counted.
//! Needs: root, tcpdump, python3, /dev/net/tun.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

/// The interface of the tee, and a veth pair's other end.
const TEE: &str = "tee";
const FAR_END: &str = "sensor";

/// A sensor that makes the TAP and holds its descriptor: `name`, `file`. It writes what it reads as tcpdump does, and ends with its input
/// when it has read all that the TAP holds.
const TAP_READER: &str = r#"
import fcntl, os, select, struct, sys
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), IFF_TAP | IFF_NO_PI))
seen = open(sys.argv[2], "wb", buffering=0)
seen.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
while tap in select.select([tap, 0], [], [])[0]:
    frame = os.read(tap, 1 << 16)
    seen.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
"#;

struct Bench {
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    /// A wire with mirrored packets.
    fn new() -> Self {
        let bench = Self { pair: Pair::new(), folder: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.spool()).unwrap();
        bench
    }

    /// As [`Self::new`], with another wire to a sensor.
    fn with_veth() -> Self {
        let bench = Self::new();
        bench.pair.tap.ip(&["link", "add", TEE, "mtu", "9001", "type", "veth", "peer", "name", FAR_END, "mtu", "9001"]);
        bench.set_up(TEE);
        bench.set_up(FAR_END);
        bench
    }

    fn set_up(&self, link: &str) {
        // Nothing of its own on it: only what the agent sends.
        self.pair.tap.ip(&["link", "set", link, "addrgenmode", "none"]);
        self.pair.tap.ip(&["link", "set", link, "up"]);
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn start(&self, threads: u64) -> Agent {
        let settings = Settings::new(NO_S3, &self.spool())
            .set("capture.interface", TAP)
            .set("capture.threads", threads)
            .set("capture.ring_bytes", "32MiB")
            .set("tee.interface", TEE);
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

/// Who listens, and what it saw.
struct Sensor(Child, PathBuf);

impl Sensor {
    /// tcpdump at the other end of the veth pair.
    fn on_veth(bench: &Bench) -> Self {
        let file = bench.folder.path().join("seen.pcap");
        let mut tcpdump = bench.pair.tap.command("tcpdump");
        tcpdump.args(["-i", FAR_END, "-p", "-U", "-B", "65536", "-Z", "root", "-w"]).arg(&file);
        Self::begin(tcpdump.stdin(Stdio::null()), file)
    }

    /// A TAP that keeps so many frames for its reader, and that reader.
    fn on_tap(bench: &Bench, queue: u64) -> Self {
        let file = bench.folder.path().join("seen.pcap");
        let mut reader = bench.pair.tap.command("python3");
        let sensor = Self::begin(reader.args(["-c", TAP_READER, TEE]).arg(&file).stdin(Stdio::piped()), file);
        bench.pair.tap.ip(&["link", "set", TEE, "txqueuelen", &queue.to_string()]);
        bench.set_up(TEE);
        sensor
    }

    fn begin(command: &mut Command, file: PathBuf) -> Self {
        let sensor = Self(command.stderr(Stdio::null()).spawn().unwrap(), file);
        let begun = Instant::now();
        while fs::metadata(&sensor.1).map_or(0, |file| file.len()) == 0 {
            assert!(begun.elapsed() < PATIENCE, "{command:?} does not begin");
            thread::sleep(Duration::from_millis(10));
        }
        sensor
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Ends it when it has seen so many frames, and gives all that it saw, sorted.
    fn seen(mut self, frames: u64) -> Vec<Vec<u8>> {
        let begun = Instant::now();
        while records_so_far(&self.1) < frames && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        // tcpdump has no input.
        if self.0.stdin.take().is_none() {
            self.signal(Signal::INT);
        }
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
fn records_so_far(path: &Path) -> u64 {
    let file = fs::read(path).unwrap();
    let (mut at, mut count) = (24, 0);
    while let Some(len) = file.get(at + 8..at + 12) {
        at += 16 + u32::from_le_bytes(len.try_into().unwrap()) as usize;
        count += u64::from(at <= file.len());
    }
    count
}

fn sees_every_frame(bench: &Bench, sensor: Sensor, threads: u64) {
    let mut agent = bench.start(threads);
    bench.send(0);
    let counters = agent.wait_counters("all are recorded", PATIENCE, |counters| counters.get("frames_written") == FRAMES);
    assert_eq!(sensor.seen(FRAMES), sent(0..FRAMES), "{threads} threads");
    assert_eq!(counters.get("tee_drops"), 0);
    assert_eq!(agent.counters().unwrap().get("tee_frames"), FRAMES);
    assert!(agent.stop(PATIENCE).success());
    assert_eq!(bench.recorded(), sent(0..FRAMES), "{threads} threads");
}

#[test]
fn a_sensor_sees_every_mirrored_frame_without_tunnels_byte_for_byte() {
    for threads in [1, 2] {
        let bench = Bench::with_veth();
        let sensor = Sensor::on_veth(&bench);
        sees_every_frame(&bench, sensor, threads);
    }
}

#[test]
fn the_reader_of_a_tap_gets_every_mirrored_frame_without_tunnels_byte_for_byte() {
    let bench = Bench::new();
    let sensor = Sensor::on_tap(&bench, 2 * FRAMES);
    sees_every_frame(&bench, sensor, 2);
}

#[test]
fn a_reader_that_stands_still_or_is_gone_costs_the_recorder_nothing_and_what_it_does_not_get_is_counted() {
    let bench = Bench::new();
    let sensor = Sensor::on_tap(&bench, FRAMES / 10);
    let mut agent = bench.start(1);
    sensor.signal(Signal::STOP);
    bench.send(0);
    let recorded_and_told = |agent: &mut Agent, frames| {
        agent.wait_counters("all are recorded, and sent or counted", PATIENCE, |counters| {
            counters.get("frames_written") == frames && counters.get("tee_frames") + counters.get("tee_drops") == frames
        })
    };
    let counters = recorded_and_told(&mut agent, FRAMES);
    let taken = counters.get("tee_frames");
    assert!((1..FRAMES).contains(&taken), "{taken} of {FRAMES} reached a reader that stands still");
    sensor.signal(Signal::CONT);
    assert_eq!(sensor.seen(taken), sent(0..taken));

    // The TAP has gone with its reader.
    bench.send(FRAMES);
    let counters = recorded_and_told(&mut agent, 2 * FRAMES);
    assert_eq!(counters.get("tee_frames"), taken);
    assert_eq!(counters.get("kernel_drops") + counters.sum("drops"), 0);
    assert!(agent.stop(PATIENCE).success());
    assert_eq!(bench.recorded(), sent(0..2 * FRAMES));
}

#[test]
fn an_interface_that_comes_back_is_used_again_and_what_it_could_not_send_is_counted() {
    let bench = Bench::with_veth();
    let mut agent = bench.start(1);
    // Without a carrier it takes frames, and drops them.
    for (turn, down) in (0..).zip([FAR_END, TEE]) {
        bench.pair.tap.ip(&["link", "set", down, "down"]);
        bench.send(turn * FRAMES);
        let dropped = (turn + 1) * FRAMES;
        agent.wait_counters("what could not be sent is counted", PATIENCE, |counters| counters.get("tee_drops") == dropped);
        bench.pair.tap.ip(&["link", "set", down, "up"]);
    }
    let sensor = Sensor::on_veth(&bench);
    // It is tried once a second.
    thread::sleep(Duration::from_millis(1500));
    bench.send(2 * FRAMES);
    assert_eq!(sensor.seen(FRAMES), sent(2 * FRAMES..3 * FRAMES));
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
