//! The agent under a real systemd, as its unit has it: starts, dies, hangs, is restarted under load.
//! In: a small Debian booted in a container, packets over a veth pair. Out: promise 7, and what the unit claims. S3 cannot be reached.
//! Needs: root, systemd-nspawn, mmdebstrap.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tapfleet_tests::agent::{Settings, sum};
use tapfleet_tests::captures::records;
use tapfleet_tests::machine::{Machine, UNIT};
use tapfleet_tests::netns::TAP;
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp};

/// One after the other: each wants the processors for itself.
static ALONE: Mutex<()> = Mutex::new(());

const SPOOL: &str = "/var/lib/tapfleet/spool";

/// Frames per second on the wire.
const RATE: u64 = 3000;

/// What a restart may take until frames are taken again.
const BACK: Duration = Duration::from_secs(2);

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn settings() -> Settings {
    // Nobody listens on the discard port.
    Settings::new("http://127.0.0.1:9", SPOOL.as_ref()).set("capture.interface", TAP).set("capture.ring_bytes", "64MiB")
}

#[test]
fn the_unit_is_verified_without_a_word_and_its_sandbox_is_tight() {
    let _alone = alone();
    let machine = Machine::boot(&settings(), "");
    assert_eq!(machine.run("systemd-analyze", &["verify", "--man=no", UNIT]), "");
    let report = machine.run("systemd-analyze", &["security", "--no-pager", "--offline=yes", "/usr/lib/systemd/system/tapfleetd.service"]);
    let overall = report.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("no score in:\n{report}"));
    let score: f64 = overall.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    println!("{}", overall.trim());
    assert!(score <= 2.0, "{report}");
}

#[test]
fn the_agent_is_ready_when_it_captures_says_how_it_goes_and_may_do_nothing_but_that() {
    let _alone = alone();
    let machine = Machine::boot(&settings(), "");
    machine.systemctl("start");
    // Ready means capturing: the first packet after that is taken.
    let traffic = Traffic::start(&machine);
    std::thread::sleep(Duration::from_millis(1500));
    machine.wait_for("the status line tells the rate and the spool", Duration::from_secs(5), |machine| {
        let line = machine.property("StatusText");
        let rate = line.split_once("; ").and_then(|(_, rest)| rest.split_once(" frames/s")?.0.parse::<u64>().ok());
        line.starts_with("capturing on tap; ") && rate.is_some_and(|rate| rate > RATE / 2) && line.contains("; spool 1 segments, ")
    });
    let sent = traffic.stop();
    let status = fs::read_to_string(machine.path(&format!("proc/{}/status", machine.property("MainPID")))).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    const CAP_NET_RAW: &str = "0000000000002000";
    assert_eq!([field("CapEff:"), field("CapBnd:"), field("CapPrm:")], [CAP_NET_RAW; 3]);
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    assert_eq!(machine.run("id", &["--user", "tapfleet"]).trim(), field("Uid:").split('\t').next().unwrap());
    // The names that people know.
    assert!(machine.run("systemctl", &["status", "--no-pager", "trafficmirror-tcpdump"]).contains("capturing on tap"));

    assert!(machine.systemctl("stop") < BACK);
    assert_eq!((machine.property("Result").as_str(), machine.property("NFileDescriptorStore").as_str()), ("success", "0"));
    // Whoever is not to come back holds no ring.
    let sockets = machine.pair.tap.run(|| fs::read_to_string("/proc/thread-self/net/packet")).unwrap();
    assert_eq!(sockets.lines().count(), 1, "{sockets}");
    let taken = Spooled::read(&machine);
    assert_eq!((taken.missing(sent), taken.doubled()), (0, 0));
    assert_eq!(taken.kernel_gave, taken.accounted);
}

#[test]
fn an_agent_that_stands_still_is_killed_by_the_watchdog_and_comes_back() {
    let _alone = alone();
    let machine = Machine::boot(&settings(), "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n");
    machine.systemctl("start");
    // Fed, it lives for longer than the watchdog's time.
    let first = machine.property("MainPID");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((machine.property("MainPID"), machine.property("NRestarts")), (first.clone(), "0".into()));
    machine.signal("STOP");
    machine.wait_for("another agent captures", Duration::from_secs(10), |machine| {
        machine.property("NRestarts") == "1" && machine.property("ActiveState") == "active"
    });
    assert_ne!(machine.property("MainPID"), first);
    assert!(machine.journal().contains("Watchdog timeout"), "{}", machine.journal());
}

#[test]
fn no_frame_is_lost_and_none_comes_twice_over_restarts_under_load() {
    let _alone = alone();
    const RESTARTS: u32 = 20;
    for threads in [1, 2] {
        // Windows of two seconds: some end while no agent is there.
        let machine = Machine::boot(&settings().set("capture.threads", threads).set("record.rotate_seconds", 2), "");
        machine.systemctl("start");
        let traffic = Traffic::start(&machine);
        let mut slowest = Duration::ZERO;
        for restart in 0..RESTARTS {
            std::thread::sleep(Duration::from_millis(100 + 37 * u64::from(restart % 7)));
            let took = machine.systemctl("restart");
            assert!(took < BACK, "restart {restart} took {took:?}");
            assert_eq!(machine.property("NFileDescriptorStore"), threads.to_string());
            slowest = slowest.max(took);
        }
        std::thread::sleep(Duration::from_millis(300));
        let sent = traffic.stop();
        machine.systemctl("stop");
        let taken = Spooled::read(&machine);
        println!(
            "{threads} threads: {RESTARTS} restarts, the slowest took {slowest:?}; {sent} frames sent, {} lost, {} doubled",
            taken.missing(sent),
            taken.doubled()
        );
        assert_eq!((taken.missing(sent), taken.doubled()), (0, 0), "lost and doubled of {sent}");
        assert_eq!(taken.kernel_gave, taken.accounted, "what the kernel gave all agents, and what their manifests say became of it");
        let journal = machine.journal();
        assert_eq!(journal.matches("going on with the rings of the agent before").count(), RESTARTS as usize);
    }
}

#[test]
fn a_killed_agent_is_back_in_two_seconds_nothing_comes_twice_and_at_most_the_flush_time_is_lost() {
    let _alone = alone();
    const KILLS: u64 = 5;
    const FLUSH: Duration = Duration::from_millis(500);
    let machine = Machine::boot(
        &settings().set("spool.flush_ms", FLUSH.as_millis() as u64).set("capture.threads", 2),
        "[Unit]\nStartLimitIntervalSec=0\n",
    );
    machine.systemctl("start");
    let traffic = Traffic::start(&machine);
    let mut slowest = Duration::ZERO;
    for kill in 1..=KILLS {
        std::thread::sleep(Duration::from_millis(700 + 130 * kill));
        machine.signal("KILL");
        let back = machine.wait_for("another agent captures", Duration::from_secs(10), |machine| {
            machine.property("NRestarts") == kill.to_string() && machine.property("ActiveState") == "active"
        });
        assert!(back < BACK, "after kill {kill} it took {back:?}");
        slowest = slowest.max(back);
    }
    std::thread::sleep(Duration::from_millis(300));
    let sent = traffic.stop();
    machine.systemctl("stop");
    let taken = Spooled::read(&machine);
    let (lost, doubled) = (taken.missing(sent), taken.doubled());
    println!("{KILLS} kills, back after {slowest:?} at most; {sent} frames sent, {lost} lost, {doubled} doubled");
    assert_eq!(doubled, 0);
    // A block may be 40 ms old when it comes to the recorder, which looks each 20 ms at what is due.
    let bound = KILLS * RATE * (FLUSH.as_millis() as u64 + 100) / 1000;
    assert!(lost <= bound, "{lost} frames of {sent} are lost; {KILLS} kills may cost {bound}");
}

/// Numbered frames on the wire, from several ports, until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn start(machine: &Machine) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            machine.pair.source.spawn(move || send(&stop, &sent))
        };
        Self { stop, sent, thread }
    }

    /// How many it sent.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        // The last ones are on the wire.
        std::thread::sleep(Duration::from_millis(50));
        self.sent.load(Ordering::Acquire)
    }
}

fn send(stop: &AtomicBool, sent: &AtomicU64) {
    let sockets: Vec<_> = (0..8).map(|_| UdpSocket::bind("10.77.0.1:0").unwrap()).collect();
    let aws = Aws::default();
    let begun = Instant::now();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let due = begun.elapsed().as_micros() as u64 * RATE / 1_000_000;
        while number < due {
            let frame =
                (Ethernet::default() / Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, 5001) / number.to_be_bytes().to_vec())
                    .build();
            let (port, datagram) = match number % 2 {
                0 => (6081, aws.gwlb_datagram(frame).build()),
                _ => (4789, aws.direct_datagram(frame).build()),
            };
            sockets[number as usize % sockets.len()].send_to(&datagram, ("10.77.0.2", port)).unwrap();
            number += 1;
        }
        sent.store(number, Ordering::Release);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What all agents of a machine left in its spool.
struct Spooled {
    /// How often each number came.
    numbers: BTreeMap<u64, u32>,
    /// By the manifests: packets less drops.
    kernel_gave: u64,
    /// By the manifests: written, dropped with a reason, ignored.
    accounted: u64,
}

impl Spooled {
    fn read(machine: &Machine) -> Self {
        let folder = machine.path(SPOOL.trim_start_matches('/'));
        let files: BTreeSet<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let with = |extension: &'static str| files.iter().filter(move |path| path.extension().is_some_and(|found| found == extension));
        let mut spooled = Self { numbers: BTreeMap::new(), kernel_gave: 0, accounted: 0 };
        for path in with("pcap") {
            for record in records(&fs::read(path).unwrap()) {
                let number = u64::from_be_bytes(record.bytes[42..50].try_into().unwrap());
                *spooled.numbers.entry(number).or_default() += 1;
            }
        }
        for path in with("manifest") {
            let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            let losses = &manifest["losses"];
            spooled.kernel_gave += losses["kernel_packets"].as_u64().unwrap() - losses["kernel_drops"].as_u64().unwrap();
            spooled.accounted += manifest["frames"].as_u64().unwrap() + sum(&manifest, "drops") + sum(&manifest, "ignored");
        }
        spooled
    }

    /// How many of the numbers below `sent` did not come.
    fn missing(&self, sent: u64) -> u64 {
        (0..sent).filter(|number| !self.numbers.contains_key(number)).count() as u64
    }

    /// How many came more than once.
    fn doubled(&self) -> usize {
        self.numbers.values().filter(|times| **times > 1).count()
    }
}
