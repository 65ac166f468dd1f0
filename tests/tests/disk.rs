//! A spool's disk that is full: the agent waits for it, loses nothing that was whole, and can still be stopped.
//! In: a small file system of the test's own. Needs: root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tapfleet_tests::agent::{Agent, Settings};
use tapfleet_tests::captures::records;
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp, pcap};

/// A file system in memory, gone with the value.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn new(at: &Path, bytes: u64) -> Self {
        fs::create_dir_all(at).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tapfleet-test"]).arg(at).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot mount a tmpfs: this test needs root");
        Self { at: at.into() }
    }

    fn grow(&self, bytes: u64) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.at).status();
        assert!(status.unwrap().success());
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.at).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.at).status();
    }
}

/// More than the buffers between recorder and disk hold.
const FRAMES: u64 = 11_000;

fn capture() -> Vec<u8> {
    let aws = Aws::default();
    let inner = Ethernet::default() / Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1, 2) / vec![7; 8000];
    let frame = aws.gwlb(inner).build();
    pcap::file((0..FRAMES).map(|n| (1_795_306_500_000_000_000 + n * 1000, frame.as_slice())))
}

#[test]
fn an_agent_whose_disk_is_full_goes_on_when_there_is_room_and_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&folder.path().join("spool"), 6 << 20);
    let input = folder.path().join("in.pcap");
    fs::write(&input, capture()).unwrap();
    // No S3: nothing leaves the disk.
    let settings = Settings::new("http://127.0.0.1:9", &disk.at)
        .set("capture.engine", "file")
        .set("capture.files", vec![input.to_str().unwrap()])
        .set("health.listen", "127.0.0.1:18083");
    let refused = "trying again until it works";

    let mut agent = Agent::start(None, &settings, folder.path());
    agent.wait_for("the disk refuses", Duration::from_secs(20), |agent| agent.log().contains(refused));
    // Until all buffers are full and the recorder waits for one.
    let mut before = None;
    agent.wait_counters("nothing is written any more", Duration::from_secs(20), |counters| {
        std::thread::sleep(Duration::from_millis(300));
        before.replace(counters.get("frames_written")) == Some(counters.get("frames_written"))
    });
    let told = Instant::now();
    let _ = agent.stop(Duration::from_secs(10));
    assert!(told.elapsed() < Duration::from_secs(5), "the end took {:?}", told.elapsed());
    assert!(agent.log().contains("is lost"), "what is given up is said: {}", agent.log());

    fs::remove_file(folder.path().join("agent.log")).unwrap();
    for path in fs::read_dir(&disk.at).unwrap().map(|entry| entry.unwrap().path()) {
        fs::remove_file(path).unwrap();
    }
    let mut agent = Agent::start(None, &settings, folder.path());
    agent.wait_for("the disk refuses", Duration::from_secs(20), |agent| agent.log().contains(refused));
    disk.grow(128 << 20);
    agent.wait_for("the segment is whole", Duration::from_secs(20), |_| !disk.files("manifest").is_empty());
    let data = fs::read(disk.files("pcap").pop().unwrap()).unwrap();
    assert_eq!(records(&data).len() as u64, FRAMES, "nothing is lost while it waits");
}
