//! A spool's disk that is full: what each policy keeps and drops, counted; nothing that was kept is lost, and the agent can be stopped.
//! In: a small file system of the test's own, an S3 that comes late. Out: objects and manifests that add up.
//! Needs: root, S3.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, Counters, Settings, in_netns, sum};
use tapfleet_tests::captures::records;
use tapfleet_tests::localstack::{LocalStack, make_bucket};
use tapfleet_tests::netns::{Pair, SOURCE_V4, TAP, TAP_V4};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp, pcap};

/// One after the other: each wants the processors for itself.
static ALONE: Mutex<()> = Mutex::new(());

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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&folder.path().join("spool"), 6 << 20);
    let input = folder.path().join("in.pcap");
    fs::write(&input, capture()).unwrap();
    // No S3: nothing leaves the disk.
    let settings = Settings::new("http://127.0.0.1:9", &disk.at)
        .set("capture.engine", "file")
        .set("capture.files", vec![input.to_str().unwrap()])
        .set("health.listen", "127.0.0.1:18083");
    let refused = "the spool is full: the replay waits until there is room";

    let mut agent = Agent::start(None, &settings, folder.path());
    agent.wait_for("the disk is full", Duration::from_secs(20), |agent| agent.log().contains(refused));
    // Until all buffers are full and the recorder waits for one.
    let mut before = None;
    agent.wait_counters("nothing is written any more", Duration::from_secs(20), |counters| {
        thread::sleep(Duration::from_millis(300));
        before.replace(counters.get("frames_written")) == Some(counters.get("frames_written"))
    });
    let told = Instant::now();
    let _ = agent.stop(Duration::from_secs(10));
    assert!(told.elapsed() < Duration::from_secs(5), "the end took {:?}", told.elapsed());
    assert!(!agent.log().contains("is lost"), "what was handed over had room: {}", agent.log());

    fs::remove_file(folder.path().join("agent.log")).unwrap();
    for path in fs::read_dir(&disk.at).unwrap().map(|entry| entry.unwrap().path()) {
        fs::remove_file(path).unwrap();
    }
    let mut agent = Agent::start(None, &settings, folder.path());
    agent.wait_for("the disk is full", Duration::from_secs(20), |agent| agent.log().contains(refused));
    disk.grow(128 << 20);
    let whole = |path: &PathBuf| path.with_extension("manifest").exists();
    agent.wait_for("all of it is in whole segments: nothing is lost while it waits", Duration::from_secs(60), |_| {
        let files = disk.files("pcap");
        files.iter().all(whole) && files.iter().map(|path| records(&fs::read(path).unwrap()).len() as u64).sum::<u64>() == FRAMES
    });
}

/// The small disk of the policies, what of it the spool may have, and more than that: frames in a burst, how often, their bytes, in all.
const DISK: u64 = 64 << 20;
const BUDGET: u64 = 32 << 20;
const BURST: u64 = 8;
const EVERY: Duration = Duration::from_millis(5);
const PAYLOAD: usize = 8000;
const SENT: u64 = 6400;

/// How wide the way to S3 is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Closed,
    /// A few megabytes a second.
    Narrow,
    Open,
}

/// The way to S3.
struct Door {
    port: u16,
    way: Arc<Mutex<Way>>,
}

impl Door {
    fn new(pair: &Pair, to: u16, way: Way) -> Self {
        let way = Arc::new(Mutex::new(way));
        let listener = pair.tap.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        let now = way.clone();
        pair.tap.spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { continue };
                if *now.lock().unwrap() == Way::Closed {
                    continue;
                }
                for (from, to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                    let now = now.clone();
                    thread::spawn(move || carry(from, to, &now));
                }
            }
        });
        Self { port, way }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, way: &Mutex<Way>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if *way.lock().unwrap() == Way::Narrow {
            thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Looks again and again at how much the spool holds, everything counted, and keeps the most.
struct Sampler {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Sampler {
    fn start(spool: PathBuf) -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, seen) = (stop.clone(), most.clone());
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Acquire) {
                let entries = fs::read_dir(&spool).into_iter().flatten().flatten();
                seen.fetch_max(entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum(), Ordering::AcqRel);
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { stop, most, thread }
    }

    fn most(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        self.most.load(Ordering::Acquire)
    }
}

struct Bench {
    disk: SmallDisk,
    s3: LocalStack,
    door: Door,
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(way: Way) -> Self {
        let pair = Pair::new();
        let s3 = LocalStack::start(Some(pair.tap.name()));
        let door = Door::new(&pair, s3.port(), way);
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::new(&folder.path().join("disk"), DISK);
        let bench = Self { disk, s3, door, pair, folder };
        bench.ask(async || make_bucket(&bench.s3.client(), BUCKET).await);
        bench
    }

    fn spool(&self) -> PathBuf {
        self.disk.at.join("spool")
    }

    fn start(&self, on_full: &str, max_bytes: u64) -> Agent {
        let settings = Settings::new(&format!("http://127.0.0.1:{}", self.door.port), &self.spool())
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "128MiB")
            .set("record.rotate_seconds", 1)
            .set("spool.max_bytes", max_bytes)
            .set("spool.on_full", on_full)
            .set("spool.allow_root_device", false);
        Agent::ready(Some(self.pair.tap.name()), &settings, self.folder.path())
    }

    /// Sends frames numbered from `first`.
    fn send(&self, first: u64, frames: u64) {
        self.pair.source.run(|| {
            let inner = Ethernet::default() / Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1, 2) / vec![0; PAYLOAD];
            let mut datagram = Aws::default().direct_datagram(inner).build();
            let end = datagram.len() - 8;
            let socket = UdpSocket::bind((Ipv4Addr::from(SOURCE_V4), 0)).unwrap();
            let begun = Instant::now();
            for number in first..first + frames {
                datagram[end..].copy_from_slice(&number.to_be_bytes());
                socket.send_to(&datagram, (Ipv4Addr::from(TAP_V4), 4789)).unwrap();
                if (number + 1).is_multiple_of(BURST) {
                    thread::sleep((EVERY * ((number + 1 - first) / BURST) as u32).saturating_sub(begun.elapsed()));
                }
            }
        });
    }

    fn is_healthy(&self) -> bool {
        let mut curl = in_netns(Some(self.pair.tap.name()), "curl");
        curl.args(["--silent", "--fail", "--noproxy", "*", "--max-time", "5", "http://127.0.0.1:8080/healthz"]);
        curl.output().unwrap().status.success()
    }

    fn manifests_in_spool(&self) -> usize {
        fs::read_dir(self.spool()).unwrap().flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "manifest")).count()
    }

    fn ask<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.pair.tap.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work()))
    }

    /// Waits until the kernel's packets are all accounted for.
    fn settled(&self, agent: &mut Agent, sent: u64) -> Counters {
        let counters = agent.wait_counters("every frame is written or counted", Duration::from_secs(60), |counters| {
            let (given, judged) = counters.identity();
            given == judged && counters.get("frames_written") + counters.reason("drops", "spool_full") == sent
        });
        assert_eq!(counters.get("kernel_drops"), 0, "the machine was too busy for this test to say anything");
        counters
    }

    /// Opens the way to S3, ends the agent when everything has arrived, and gives the frames and manifests that did.
    fn arrived(&self, agent: &mut Agent) -> (BTreeSet<u64>, Vec<Value>) {
        *self.door.way.lock().unwrap() = Way::Open;
        assert!(agent.stop(Duration::from_secs(20)).success());
        agent.upload_rest();
        let left: Vec<_> = fs::read_dir(self.spool()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "lock"), "what S3 has is gone from the spool: {left:?}");
        let (files, manifests) = self.ask(async || {
            let s3 = self.s3.client();
            let (mut files, mut manifests) = (Vec::new(), Vec::new());
            let mut pages = s3.list_objects_v2().bucket(BUCKET).into_paginator().send();
            while let Some(page) = pages.next().await {
                for key in page.unwrap().contents().iter().map(|object| object.key().unwrap()) {
                    let object = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
                    let bytes = object.body.collect().await.unwrap().to_vec();
                    match key {
                        key if key.starts_with("manifest/") => manifests.push(serde_json::from_slice::<Value>(&bytes).unwrap()),
                        key if key.ends_with(".pcap") => files.push((key.to_owned(), bytes)),
                        _ => {}
                    }
                }
            }
            let uploads = s3.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
            assert!(uploads.uploads().is_empty(), "multipart uploads are left behind: {uploads:?}");
            (files, manifests)
        });
        let mut numbers = BTreeSet::new();
        for (key, file) in files {
            let records = records(&file);
            let frames = manifests.iter().find(|manifest| manifest["key"] == key.as_str()).map(|manifest| &manifest["frames"]);
            assert_eq!(frames.and_then(Value::as_u64), Some(records.len() as u64), "{key} and its manifest");
            for record in records {
                let number = u64::from_be_bytes(record.bytes[record.bytes.len() - 8..].try_into().unwrap());
                assert!(numbers.insert(number), "frame {number} is there twice");
            }
        }
        (numbers, manifests)
    }
}

/// What the manifests say was given by the kernel, written, and dropped for these reasons.
fn told(manifests: &[Value], reason: &str) -> u64 {
    manifests.iter().filter_map(|manifest| manifest["drops"][reason].as_u64()).sum()
}

/// Fills the spool by a policy while S3 is away or slow; then everything that was kept arrives, and the manifests say what was not.
fn fill(on_full: &str, way: Way) -> (BTreeSet<u64>, Vec<Value>, Counters) {
    let bench = Bench::new(way);
    let mut agent = bench.start(on_full, BUDGET);
    let sampler = Sampler::start(bench.spool());
    bench.send(0, SENT);
    let counters = bench.settled(&mut agent, SENT);
    // Windows go on to end, and their manifests to be written, on a spool that is full.
    if way == Way::Closed {
        let before = bench.manifests_in_spool();
        let more = |_: &mut Agent| bench.manifests_in_spool() > before + 1;
        agent.wait_for("manifests are written though the spool is full", Duration::from_secs(20), more);
    }
    assert!(bench.is_healthy(), "a full spool is nothing that a new instance would cure");
    let (frames, manifests) = bench.arrived(&mut agent);
    let most = sampler.most();
    assert!(most <= BUDGET, "the spool held {most} bytes of {BUDGET}");
    assert!(most > BUDGET / 10 * 9, "it was never full: {most} bytes");

    let written: u64 = manifests.iter().filter_map(|manifest| manifest["frames"].as_u64()).sum();
    let (full, gone) = (told(&manifests, "spool_full"), told(&manifests, "gave_way"));
    assert_eq!(written, frames.len() as u64, "the manifests' frames and those in S3");
    assert_eq!(written + full + gone, SENT, "what is missing is what the manifests say");
    assert_eq!((full, gone), (counters.reason("drops", "spool_full"), counters.get("frames_given_way")));
    let given: u64 = manifests.iter().filter_map(|manifest| manifest["losses"]["kernel_packets"].as_u64()).sum();
    let judged: u64 =
        manifests.iter().map(|manifest| manifest["frames"].as_u64().unwrap() + sum(manifest, "drops") + sum(manifest, "ignored")).sum();
    assert_eq!(given, judged, "what the kernel gave, and what the manifests say became of it");
    println!(
        "{on_full}: {SENT} frames sent, {written} in S3, {full} found no room, {gone} gave way; the spool held {most} bytes of {BUDGET} at most"
    );
    (frames, manifests, counters)
}

#[test]
fn a_full_spool_drops_the_newest_frames_counts_them_and_loses_none_that_it_had() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (frames, _, counters) = fill("drop-newest", Way::Closed);
    assert!(counters.reason("drops", "spool_full") > 0 && counters.get("segments_given_way") == 0);
    assert!((0..frames.len() as u64 / 2).all(|number| frames.contains(&number)), "the oldest are kept");
    let percent = counters.get("spool_bytes") * 100 / counters.get("spool_capacity");
    assert!(percent >= 95, "the level is {percent} %");
}

#[test]
fn a_full_spool_drops_the_oldest_captures_and_their_manifests_say_what_they_held() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (frames, manifests, counters) = fill("drop-oldest", Way::Closed);
    assert!(counters.get("segments_given_way") > 0 && !frames.contains(&0) && frames.contains(&(SENT - 1)), "the newest are kept");
    for manifest in manifests.iter().filter(|manifest| !manifest["gave_way"].is_null()) {
        assert!(manifest["object"].is_null() && manifest["key"].is_null() && manifest["frames"] == 0, "{manifest:#}");
        assert_eq!(manifest["gave_way"]["frames"], manifest["drops"]["gave_way"]);
        assert!(!manifest["first"].is_null() && !manifest["origins"][0].is_null(), "of when and whose packets it held: {manifest:#}");
    }
}

#[test]
fn a_capture_that_gives_way_while_it_is_being_sent_leaves_no_upload_and_one_that_arrived_is_not_called_lost() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (frames, manifests, counters) = fill("drop-oldest", Way::Narrow);
    assert!(counters.get("segments_given_way") > 0 && frames.contains(&(SENT - 1)));
    let gone = manifests.iter().filter(|manifest| !manifest["gave_way"].is_null()).count() as u64;
    assert_eq!(gone, counters.get("segments_given_way"));
}

#[test]
fn a_full_spool_stops_recording_at_the_end_of_a_whole_segment_and_says_since_when() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (frames, manifests, counters) = fill("stop", Way::Closed);
    assert_eq!(counters.get("recording_stopped"), 1);
    assert_eq!(frames, (0..frames.len() as u64).collect(), "what was recorded has no hole");
    let gaps: Vec<_> = manifests.iter().flat_map(|manifest| manifest["gaps"].as_array().unwrap()).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap["cause"] == "the spool was full"), "{gaps:?}");
}

#[test]
fn recording_goes_on_when_there_is_room_again_after_the_disk_was_filled_by_another() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let bench = Bench::new(Way::Closed);
    let mut agent = bench.start("drop-newest", 16 << 30);
    bench.send(0, 400);
    bench.settled(&mut agent, 400);
    // Somebody else takes all that is left.
    let hog = bench.disk.at.join("hog");
    let mut file = File::create(&hog).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    drop(file);
    bench.send(400, 1200);
    let counters = bench.settled(&mut agent, 1600);
    let lost = counters.reason("drops", "spool_full");
    assert!(lost > 0 && counters.get("spool_bytes") * 100 / counters.get("spool_capacity") >= 95, "{counters:?}");
    let before = bench.manifests_in_spool();
    agent.wait_for("manifests are written though the disk is full", Duration::from_secs(20), |_| bench.manifests_in_spool() > before + 1);
    assert!(bench.is_healthy(), "a full disk is nothing that a new instance would cure");
    fs::remove_file(&hog).unwrap();
    agent.wait_counters("room is seen", Duration::from_secs(10), |counters| counters.get("spool_capacity") > 32 << 20);
    bench.send(1600, 400);
    let counters = bench.settled(&mut agent, 2000);
    assert_eq!(counters.reason("drops", "spool_full"), lost, "none is dropped when there is room");
    let (frames, manifests) = bench.arrived(&mut agent);
    assert_eq!(frames.len() as u64 + told(&manifests, "spool_full"), 2000);
    assert!((1600..2000).all(|number| frames.contains(&number)));
}
