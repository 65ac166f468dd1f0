//! A spool's disk that is full, or errs: what each policy keeps and drops, counted and mailed; nothing that was kept is lost or damaged, and
//! the agent can be stopped.
//! In: a small file system of the test's own, an S3 that comes late. Out: objects and manifests that add up.
//! Needs: root, S3.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, Counters, INSTANCE, Settings, sum};
use tapfleet_tests::captures::records;
use tapfleet_tests::filesystem::{Ailing, FileSystem, Mount};
use tapfleet_tests::localstack::make_bucket;
use tapfleet_tests::mailbox::{Mail, Mailbox};
use tapfleet_tests::netns::{Pair, SOURCE_V4, TAP, TAP_V4};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp, pcap};

/// The files of a folder with this ending, oldest first.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
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
    let disk = FileSystem::new(folder.path(), 160 << 20);
    let hog = disk.fill(6 << 20);
    let spool = disk.at().join("spool");
    let input = folder.path().join("in.pcap");
    fs::write(&input, capture()).unwrap();
    // No S3: nothing leaves the disk.
    let settings = Settings::new("http://127.0.0.1:9", &spool)
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
    for path in fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path()) {
        fs::remove_file(path).unwrap();
    }
    let mut agent = Agent::start(None, &settings, folder.path());
    agent.wait_for("the disk is full", Duration::from_secs(20), |agent| agent.log().contains(refused));
    drop(hog);
    let whole = |path: &PathBuf| path.with_extension("manifest").exists();
    agent.wait_for("all of it is in whole segments: nothing is lost while it waits", Duration::from_secs(60), |_| {
        let files = files(&spool, "pcap");
        files.iter().all(whole) && files.iter().map(|path| records(&fs::read(path).unwrap()).len() as u64).sum::<u64>() == FRAMES
    });
}

/// The small disk of the policies, what of it the spool may have, and more than that: frames in a burst, how often, their bytes, in all.
const DISK: u64 = 64 << 20;
const BLOCK: u64 = 4096;
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
    /// Open until the first completion has been sent: its answer is lost, and the way is closed.
    UntilCompleted,
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
                let answers = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for ((from, to), asks) in [((client, server), true), (answers, false)] {
                    let now = now.clone();
                    thread::spawn(move || carry(from, to, asks, &now));
                }
            }
        });
        Self { port, way }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, asks: bool, way: &Mutex<Way>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..read];
        let now = *way.lock().unwrap();
        match now {
            Way::Closed => break,
            Way::Narrow => thread::sleep(Duration::from_millis(20)),
            Way::UntilCompleted if asks && is_completion(bytes) => *way.lock().unwrap() = Way::Closed,
            Way::UntilCompleted | Way::Open => {}
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Whether a request begins here that is a CompleteMultipartUpload: the one POST that names an upload.
fn is_completion(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    line.starts_with(b"POST ") && line.windows(9).any(|window| window == b"uploadId=")
}

/// Looks again and again at how much the spool holds, everything counted, in whole blocks of the disk, and keeps the most.
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
                seen.fetch_max(
                    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len().next_multiple_of(BLOCK)).sum(),
                    Ordering::AcqRel,
                );
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
    spool: PathBuf,
    disk: FileSystem,
    /// S3 too.
    mailbox: Mailbox,
    door: Door,
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(way: Way) -> Self {
        let pair = Pair::new();
        let mailbox = Mailbox::new(pair.tap.name());
        let door = Door::new(&pair, mailbox.aws.port(), way);
        let folder = tempfile::tempdir().unwrap();
        let disk = FileSystem::new(folder.path(), DISK);
        let bench = Self { spool: disk.at().join("spool"), disk, mailbox, door, pair, folder };
        bench.ask(async || make_bucket(&bench.mailbox.aws.client(), BUCKET).await);
        bench
    }

    fn spool(&self) -> PathBuf {
        self.spool.clone()
    }

    fn start(&self, on_full: &str, max_bytes: u64) -> Agent {
        self.start_with(&self.settings(on_full, max_bytes))
    }

    fn start_with(&self, settings: &Settings) -> Agent {
        Agent::ready(Some(self.pair.tap.name()), settings, self.folder.path())
    }

    fn settings(&self, on_full: &str, max_bytes: u64) -> Settings {
        Settings::new(&format!("http://127.0.0.1:{}", self.door.port), &self.spool())
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "128MiB")
            .set("record.rotate_seconds", 1)
            .set("spool.max_bytes", max_bytes)
            .set("spool.on_full", on_full)
            .set("spool.allow_root_device", false)
    }

    /// The same with alerts, which nobody takes.
    fn with_alerts(&self, on_full: &str) -> Settings {
        self.settings(on_full, BUDGET)
            .set("alert.topic_arn", "arn:aws:sns:us-east-1:000000000000:alerts")
            .set("alert.dir", self.folder.path().join("outbox").to_str().unwrap())
            .variable("AWS_ENDPOINT_URL_SNS", "http://127.0.0.1:9")
    }

    /// Sends frames numbered from `first`.
    fn send(&self, first: u64, frames: u64) {
        self.pair.source.run(|| {
            let mut datagram = Aws::default().direct_datagram(frame()).build();
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

    fn manifests_in_spool(&self) -> usize {
        files(&self.spool(), "manifest").len()
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
        self.stored()
    }

    /// How many bytes of an unfinished capture S3 has.
    fn parts_of(&self, data: &Path) -> u64 {
        let journal = fs::read_to_string(data.with_extension("journal")).unwrap();
        let records: Vec<Value> = journal.lines().map(|line| serde_json::from_str(&line[9..]).unwrap()).collect();
        let key = records[0]["key"].as_str().unwrap();
        let Some(id) = records.iter().find_map(|record| record["upload_id"].as_str()) else { return 0 };
        self.ask(async || {
            let parts = self.mailbox.aws.client().list_parts().bucket(BUCKET).key(key).upload_id(id).send().await.unwrap();
            parts.parts().iter().map(|part| part.size().unwrap().cast_unsigned()).sum()
        })
    }

    /// The frames and manifests in S3, of which nothing is left in the spool.
    fn stored(&self) -> (BTreeSet<u64>, Vec<Value>) {
        let left: Vec<_> = fs::read_dir(self.spool()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "lock"), "what S3 has is gone from the spool: {left:?}");
        let (files, manifests) = self.ask(async || {
            let s3 = self.mailbox.aws.client();
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
        let (mut numbers, sent) = (BTreeSet::new(), frame());
        for (key, file) in files {
            let records = records(&file);
            let frames = manifests.iter().find(|manifest| manifest["key"] == key.as_str()).map(|manifest| &manifest["frames"]);
            assert_eq!(frames.and_then(Value::as_u64), Some(records.len() as u64), "{key} and its manifest");
            for record in records {
                let (bytes, number) = record.bytes.split_last_chunk().unwrap();
                let number = u64::from_be_bytes(*number);
                assert!(sent.starts_with(bytes) && sent.len() == bytes.len() + 8, "frame {number} is not as it was sent");
                assert!(numbers.insert(number), "frame {number} is there twice");
            }
        }
        (numbers, manifests)
    }
}

/// The frame that is sent; its last eight bytes are its number.
fn frame() -> Vec<u8> {
    (Ethernet::default() / Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1, 2) / vec![0; PAYLOAD]).build()
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
    assert!(agent.get("/healthz").is_some(), "a full spool is nothing that a new instance would cure");
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
    let (frames, _, counters) = fill("drop-newest", Way::Closed);
    assert!(counters.reason("drops", "spool_full") > 0 && counters.get("segments_given_way") == 0);
    assert!((0..frames.len() as u64 / 2).all(|number| frames.contains(&number)), "the oldest are kept");
    let percent = counters.get("spool_bytes") * 100 / counters.get("spool_capacity");
    assert!(percent >= 95, "the level is {percent} %");
}

#[test]
fn a_full_spool_drops_the_oldest_captures_and_their_manifests_say_what_they_held() {
    let (frames, manifests, counters) = fill("drop-oldest", Way::Closed);
    assert!(counters.get("segments_given_way") > 0 && !frames.contains(&0) && frames.contains(&(SENT - 1)), "the newest are kept");
    for manifest in manifests.iter().filter(|manifest| !manifest["gave_way"].is_null()) {
        assert!(manifest["object"].is_null() && manifest["key"].is_null() && manifest["frames"] == 0, "{manifest:#}");
        assert_eq!(manifest["gave_way"]["frames"], manifest["drops"]["gave_way"]);
        assert!(!manifest["first"].is_null() && !manifest["origins"][0].is_null(), "of when and whose packets it held: {manifest:#}");
    }
}

#[test]
fn where_the_disk_is_the_limit_no_more_gives_way_than_must_also_while_somebody_has_the_captures_open() {
    const ROOM: u64 = 24 << 20;
    /// What is asked for before it is written (a chunk of each of two windows), and what journals and manifests have of the room.
    const ASKED_AHEAD: u64 = 6 << 20;
    let bench = Bench::new(Way::Closed);
    let _hog = bench.disk.fill(ROOM);
    // So that one too many is more than what is asked ahead.
    let settings = bench.settings("drop-oldest", 1 << 40).set("record.max_bytes", 8 << 20);
    let mut agent = bench.start_with(&settings);
    let (spool, stop) = (bench.spool(), Arc::new(AtomicBool::new(false)));
    let reader = thread::spawn({
        let (spool, stop) = (spool.clone(), stop.clone());
        move || {
            let mut open = std::collections::BTreeMap::new();
            while !stop.load(Ordering::Acquire) {
                for path in files(&spool, "pcap") {
                    if let Ok(file) = fs::File::open(&path) {
                        open.entry(path).or_insert(file);
                    }
                }
                thread::sleep(Duration::from_millis(20));
            }
            open.len()
        }
    });
    bench.send(0, SENT);
    let counters = bench.settled(&mut agent, SENT);
    stop.store(true, Ordering::Release);
    let manifests = files(&spool, "manifest").into_iter().map(|path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap());
    let mut given: Vec<_> =
        manifests.filter_map(|facts| Some((facts["capture_id"].to_string(), facts["gave_way"]["bytes"].as_u64()?))).collect();
    given.sort();
    // Without the last that gave way, what was written would not have had room.
    let before_last: u64 = given.iter().rev().skip(1).map(|(_, bytes)| bytes).sum();
    let beyond = counters.get("bytes_written").saturating_sub(ROOM);
    println!("{} captures were open, {given:?} gave way; {beyond} bytes more than {ROOM} were written", reader.join().unwrap());
    assert!(
        !given.is_empty() && before_last < beyond + ASKED_AHEAD,
        "{before_last} bytes gave way before the last capture, {beyond} had to"
    );
}

#[test]
fn a_capture_that_gives_way_while_it_is_being_sent_leaves_no_upload_and_one_that_arrived_is_not_called_lost() {
    let (frames, manifests, counters) = fill("drop-oldest", Way::Narrow);
    assert!(counters.get("segments_given_way") > 0 && frames.contains(&(SENT - 1)));
    let gone = manifests.iter().filter(|manifest| !manifest["gave_way"].is_null()).count() as u64;
    assert_eq!(gone, counters.get("segments_given_way"));
}

#[test]
fn a_capture_whose_completion_has_no_answer_does_not_give_way_and_its_manifest_names_the_object() {
    const BEFORE: u64 = 800;
    let bench = Bench::new(Way::UntilCompleted);
    let mut agent = bench.start("drop-oldest", BUDGET);
    bench.send(0, BEFORE);
    agent.wait_for("a completion is sent", Duration::from_secs(20), |_| *bench.door.way.lock().unwrap() == Way::Closed);
    // The next one knows of it by the journal alone.
    agent.kill();
    let mut agent = bench.start("drop-oldest", BUDGET);
    bench.send(BEFORE, SENT - BEFORE);
    let counters = bench.settled(&mut agent, SENT - BEFORE);
    let (frames, manifests) = bench.arrived(&mut agent);
    assert!(counters.get("segments_given_way") > 0 && frames.contains(&0), "the oldest was sent, and others gave way");
    let gone = manifests.iter().filter(|manifest| !manifest["gave_way"].is_null()).count() as u64;
    assert_eq!(gone, counters.get("segments_given_way"));
}

#[test]
fn captures_that_gave_way_to_a_dead_agent_are_settled_by_spool_upload() {
    let bench = Bench::new(Way::Narrow);
    let settings = bench.settings("drop-oldest", BUDGET);
    let mut agent = bench.start("drop-oldest", BUDGET);
    bench.send(0, SENT);
    let counters = bench.settled(&mut agent, SENT);
    let whole = || files(&bench.spool(), "manifest");
    let has_data = |path: &&PathBuf| path.with_extension("pcap").exists();
    agent.wait_for("a segment is whole, and is not sent yet", Duration::from_secs(10), |_| whole().iter().any(|path| has_data(&path)));
    agent.kill();
    let facts = |path: &PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let whole = whole();
    let unsettled = whole.iter().filter(|path| !facts(path)["gave_way"].is_null()).count();
    // One more died between its facts and its data: the data are still there, and good.
    let torn = whole.iter().find(has_data).unwrap();
    let mut gave_way = facts(torn);
    gave_way["gave_way"] = serde_json::json!({"at": gave_way["opened"], "frames": gave_way["frames"], "bytes": gave_way["bytes"]});
    fs::write(torn, gave_way.to_string()).unwrap();

    *bench.door.way.lock().unwrap() = Way::Open;
    let (code, said) = settings.command(Some(bench.pair.tap.name()), bench.folder.path(), &["spool", "upload"]);
    assert_eq!(code, Some(0), "{said}");
    let (frames, manifests) = bench.stored();
    let gone: Vec<_> = manifests.iter().filter(|manifest| !manifest["gave_way"].is_null()).collect();
    assert_eq!(gone.len() as u64, counters.get("segments_given_way"), "the one whose data were there did not give way");
    assert!(gone.iter().all(|manifest| manifest["object"].is_null() && manifest["frames"] == 0), "{gone:#?}");
    let sent = manifests.iter().find(|manifest| manifest["capture_id"] == gave_way["capture_id"]).unwrap();
    assert!(!sent["object"].is_null() && sent["frames"] == gave_way["frames"], "{sent:#}");
    println!("{} frames in S3; {} captures gave way, {unsettled} of them unsettled at the kill", frames.len(), gone.len());
}

#[test]
fn a_full_spool_stops_recording_at_the_end_of_a_whole_segment_and_says_since_when() {
    let (frames, manifests, counters) = fill("stop", Way::Closed);
    assert_eq!(counters.get("recording_stopped"), 1);
    assert_eq!(frames, (0..frames.len() as u64).collect(), "what was recorded has no hole");
    let gaps: Vec<_> = manifests.iter().flat_map(|manifest| manifest["gaps"].as_array().unwrap()).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap["cause"] == "the spool was full"), "{gaps:?}");
}

#[test]
fn recording_goes_on_when_there_is_room_again_after_the_disk_was_filled_by_another() {
    let bench = Bench::new(Way::Closed);
    let mut agent = bench.start("drop-newest", 16 << 30);
    bench.send(0, 400);
    bench.settled(&mut agent, 400);
    // Somebody else takes all that is left.
    let hog = bench.disk.fill(0);
    bench.send(400, 1200);
    let counters = bench.settled(&mut agent, 1600);
    let lost = counters.reason("drops", "spool_full");
    assert!(lost > 0 && counters.get("spool_bytes") * 100 / counters.get("spool_capacity") >= 95, "{counters:?}");
    let before = bench.manifests_in_spool();
    agent.wait_for("manifests are written though the disk is full", Duration::from_secs(20), |_| bench.manifests_in_spool() > before + 1);
    assert!(agent.get("/healthz").is_some(), "a full disk is nothing that a new instance would cure");
    drop(hog);
    agent.wait_counters("room is seen", Duration::from_secs(10), |counters| counters.get("spool_capacity") > 32 << 20);
    bench.send(1600, 400);
    let counters = bench.settled(&mut agent, 2000);
    assert_eq!(counters.reason("drops", "spool_full"), lost, "none is dropped when there is room");
    let (frames, manifests) = bench.arrived(&mut agent);
    assert_eq!(frames.len() as u64 + told(&manifests, "spool_full"), 2000);
    assert!((1600..2000).all(|number| frames.contains(&number)));
}

/// What `/metrics` says of the spool, percent.
fn level(agent: &Agent) -> u64 {
    let metrics = agent.get("/metrics").unwrap_or_default();
    let value = |name| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    value("tapfleet_spool_bytes ").unwrap() * 100 / value("tapfleet_spool_capacity ").unwrap()
}

/// How often a trouble has begun, by the log.
fn begun(agent: &Agent, title: &str) -> usize {
    let log = agent.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["what"] == "begin" && line["message"].as_str().is_some_and(|text| text.starts_with(title))).count()
}

#[test]
fn the_levels_of_70_and_95_percent_stand_in_metrics_and_each_is_a_trouble_that_begins_once() {
    const HIGH: &str = "the spool is filling up";
    const CRITICAL: &str = "the spool is almost full";
    let bench = Bench::new(Way::Closed);
    let mut agent = bench.start_with(&bench.with_alerts("drop-newest"));
    let part = |percent| BUDGET * percent / 100 / PAYLOAD as u64;
    bench.send(0, part(50));
    bench.settled(&mut agent, part(50));
    agent.wait_for("it is half full", Duration::from_secs(10), |agent| (45..70).contains(&level(agent)));
    thread::sleep(Duration::from_millis(1500));
    assert_eq!((begun(&agent, HIGH), begun(&agent, CRITICAL)), (0, 0), "{}", agent.log());

    bench.send(part(50), part(80) - part(50));
    bench.settled(&mut agent, part(80));
    agent.wait_for("it is filling up", Duration::from_secs(10), |agent| (70..95).contains(&level(agent)));
    agent.wait_for("that is a trouble", Duration::from_secs(10), |agent| begun(agent, HIGH) == 1);
    assert_eq!(begun(&agent, CRITICAL), 0, "{}", agent.log());

    bench.send(part(80), part(110) - part(80));
    bench.settled(&mut agent, part(110));
    agent.wait_for("it is almost full", Duration::from_secs(10), |agent| level(agent) >= 95);
    agent.wait_for("that is another trouble", Duration::from_secs(10), |agent| begun(agent, CRITICAL) == 1);

    *bench.door.way.lock().unwrap() = Way::Open;
    agent.wait_for("it is empty", Duration::from_secs(60), |agent| level(agent) < 10);
    assert_eq!((begun(&agent, HIGH), begun(&agent, CRITICAL)), (1, 1), "{}", agent.log());
}

/// Has mails about a full spool sent by a policy, and reads them: the trouble of that title begins once and ends once when there is room again.
fn mailed(on_full: &str, title: &str) {
    let bench = Bench::new(Way::Closed);
    bench.mailbox.subscribe();
    let settings = bench
        .with_alerts(on_full)
        .set("alert.topic_arn", bench.mailbox.topic.as_str())
        .set("alert.silence", "0s")
        .variable("AWS_ENDPOINT_URL_SNS", &bench.mailbox.endpoint());
    let mut agent = bench.start_with(&settings);
    bench.send(0, BUDGET * 130 / 100 / PAYLOAD as u64);
    let (failure, over) = (format!("tapfleet FAILURE {INSTANCE}: {title}"), format!("tapfleet OVER {INSTANCE}: {title}"));
    let mut mails = Vec::new();
    let mut read_until = |subject: &str, limit| {
        let end = Instant::now() + limit;
        while Instant::now() < end && mails.iter().all(|mail: &Mail| mail.subject != subject) {
            mails.extend(bench.mailbox.mails(1, Duration::from_secs(1)));
        }
        mails.clone()
    };
    assert!(read_until(&failure, Duration::from_secs(30)).iter().all(|mail| mail.subject != over), "{on_full}: over while it lasts");
    let lost = agent.counters().map(|counters| (counters.reason("drops", "spool_full"), counters.get("frames_given_way"))).unwrap();
    *bench.door.way.lock().unwrap() = Way::Open;
    // A minute without a drop, and another one in which nothing says that it is there again.
    let mails = read_until(&over, Duration::from_secs(200));
    assert!(agent.stop(Duration::from_secs(20)).success());
    let of = |subject: &str| mails.iter().filter(|mail| mail.subject == subject).collect::<Vec<_>>();
    let ([begun], [ended]) = (&*of(&failure), &*of(&over)) else { panic!("{on_full}: {mails:#?}") };
    assert_eq!(begun.trouble(), ended.trouble(), "both bear one id");
    assert!(begun.body.contains("At stake:") && begun.body.contains("To do:"), "{}", begun.body);
    for (_, other) in POLICIES.iter().skip(1).filter(|(policy, _)| *policy != on_full) {
        assert!(mails.iter().all(|mail| !mail.subject.ends_with(other)), "{on_full}: {mails:#?}");
    }
    println!("{on_full}, {lost:?} lost:\n{}\n{}", begun.body, ended.body);
}

/// What the mails of each policy are about; frames that find no room are dropped by all three.
const POLICIES: [(&str, &str); 3] = [
    ("drop-newest", "the spool is full, packets are dropped"),
    ("drop-oldest", "old captures are dropped for new ones"),
    ("stop", "the spool is full, recording stopped"),
];

#[test]
fn a_full_spool_is_mailed_about_in_the_words_of_its_policy_when_it_begins_and_once_when_it_is_over() {
    thread::scope(|scope| {
        for (on_full, title) in POLICIES {
            scope.spawn(move || mailed(on_full, title));
        }
    });
}

#[test]
fn a_disk_whose_writes_fail_for_a_while_is_told_of_and_waited_for_and_what_it_has_lost_is_said() {
    const WINDOW: Duration = Duration::from_secs(4);
    // A file system whose own blocks cannot be written may forget what it had taken. Then an agent can but say so and end: nothing may
    // follow what is lost, and the next one sends what there is.
    const FORGOTTEN: &str = "the disk has lost bytes of a segment; what it has left will be sent after the next start";
    let mut bench = Bench::new(Way::Open);
    let disk = Ailing::new(bench.folder.path(), 512 << 20);
    bench.spool = disk.at().join("spool");
    let settings = bench.settings("drop-newest", 16 << 30).set("capture.ring_bytes", "8MiB");
    let mut agent = bench.start_with(&settings.set("record.rotate_seconds", WINDOW.as_secs()));
    let mut sent = 0;
    let mut send = |frames| {
        bench.send(sent, frames);
        sent += frames;
        sent
    };
    send(400);
    agent.wait_counters("the first capture has arrived", Duration::from_secs(20), |counters| counters.get("segments_finished") > 0);
    // So that what is written to it afterwards is more than what waits when the disk begins to fail.
    agent.wait_for("another one is being sent, and grows for two seconds more", Duration::from_secs(30), |_| {
        send(80);
        let journal = files(&bench.spool(), "journal").pop();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let left = WINDOW - Duration::from_millis(time.as_millis() as u64 % WINDOW.as_millis() as u64);
        journal.is_some_and(|journal| fs::read_to_string(journal).unwrap_or_default().contains(r#""record":"part""#))
            && left > Duration::from_secs(2)
    });
    let refusing = disk.refuse_writes();
    // What is written from now on is in the page cache at best, and may never be on the disk.
    let grown = files(&bench.spool(), "pcap").pop().map(|path| (fs::metadata(&path).unwrap().len(), path)).unwrap();
    let goes_on = |agent: &mut Agent, until: &str, done: &mut dyn FnMut(&Counters) -> bool| {
        let forgot = |agent: &Agent| agent.log().contains(FORGOTTEN);
        agent.wait_for(until, Duration::from_secs(60), |agent| forgot(agent) || agent.counters().is_some_and(|counters| done(&counters)));
        if forgot(agent) {
            assert!(!agent.ended(Duration::from_secs(60)).success(), "it ends, so that nothing follows what is lost");
            println!("{until}: not reached, as {FORGOTTEN}");
        }
        !forgot(agent)
    };
    let drops = &mut |counters: &Counters| {
        send(400);
        counters.get("kernel_drops") > 0
    };
    if !goes_on(&mut agent, "all that can wait does, and the kernel drops", drops) {
        return;
    }
    let status: Value = serde_json::from_str(&agent.get("/status").unwrap()).unwrap();
    assert!(status["disk_waits_seconds"].as_u64() >= Some(3), "each try counts as a wait of its own: {status:#}");
    assert!(agent.get("/healthz").is_some(), "a disk that errs is nothing that a new instance would cure");
    let (durable, path) = grown;
    let there = bench.parts_of(&path);
    assert!(there <= durable, "{there} bytes of the capture are in S3, the disk has had {durable}");
    let log = agent.log();
    assert!(log.contains("trying again until it works") && log.contains("Input/output error"), "{log}");
    for path in files(&bench.spool(), "manifest") {
        let (Ok(facts), Ok(data)) = (fs::read(&path), fs::read(path.with_extension("pcap"))) else { continue };
        let facts: Value = serde_json::from_slice(&facts).unwrap();
        assert_eq!((facts["file_bytes"].as_u64(), facts["frames"].as_u64()), (Some(data.len() as u64), Some(records(&data).len() as u64)));
    }
    drop(refusing);
    let all_is_judged = |counters: &Counters| {
        let (given, judged) = counters.identity();
        given == judged
    };
    if !goes_on(&mut agent, "all that waited is written", &mut |counters| all_is_judged(counters)) {
        return;
    }
    let last = send(400);
    let is_whole = |counters: &Counters| all_is_judged(counters) && counters.get("frames_written") + counters.get("kernel_drops") == last;
    if !goes_on(&mut agent, "every frame is written or counted", &mut |counters| is_whole(counters)) {
        return;
    }
    let changed = |agent: &Agent| agent.log().contains("have another checksum than they had before; the disk has changed them");
    agent.wait_for("it has sent all by itself, or says what it cannot send", Duration::from_secs(60), |agent| {
        files(&bench.spool(), "journal").is_empty() || changed(agent)
    });
    if changed(&agent) {
        println!("a capture is kept and not sent, as the disk has changed it");
        return;
    }
    let counters = agent.counters().unwrap();
    let (frames, manifests) = bench.arrived(&mut agent);
    assert_eq!(frames.len() as u64, counters.get("frames_written"), "what the agent says it wrote, and what is in S3");
    let dropped: u64 = manifests.iter().filter_map(|manifest| manifest["losses"]["kernel_drops"].as_u64()).sum();
    assert_eq!(dropped, counters.get("kernel_drops"), "what the manifests say was lost");
    assert!(frames.contains(&0) && frames.contains(&(last - 1)), "it recorded before and after");
    println!("{last} frames sent, {} in S3, {dropped} dropped by the kernel while the disk took nothing", frames.len());
}

#[test]
fn a_capture_that_cannot_be_read_back_and_one_that_has_changed_stay_and_are_named_and_others_are_sent_meanwhile() {
    let bench = Bench::new(Way::Closed);
    let mut agent = bench.start("drop-newest", BUDGET);
    let mut sent = 0;
    let whole = || files(&bench.spool(), "pcap").into_iter().filter(|path| path.with_extension("manifest").exists());
    agent.wait_for("there are whole ones", Duration::from_secs(30), |_| {
        bench.send(sent, BURST);
        sent += BURST;
        whole().count() >= 3
    });
    bench.settled(&mut agent, sent);
    assert!(agent.stop(Duration::from_secs(20)).success());
    let mut by_size: Vec<_> = whole().map(|path| (fs::metadata(&path).unwrap().len(), path)).collect();
    by_size.sort();
    let [.., (bytes, rotten), (_, bad)] = &*by_size else { panic!("{by_size:?}") };
    let facts = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path.with_extension("manifest")).unwrap()).unwrap();
    let keys = [rotten, bad].map(|path| facts(path)["key"].as_str().unwrap().to_owned());
    // A block of the largest one goes bad; a byte of another one, that was never read, has another value.
    let disk = Ailing::new(bench.folder.path(), 32 << 20);
    fs::copy(bad, disk.at().join("bad")).unwrap();
    disk.lose_last_block("bad");
    let instead = Mount::instead_of(bad, &disk.at().join("bad"));
    let flip = || {
        let file = fs::File::options().read(true).write(true).open(rotten).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, bytes / 2).unwrap();
        file.write_all_at(&[!byte[0]], bytes / 2).unwrap();
    };
    flip();

    *bench.door.way.lock().unwrap() = Way::Open;
    let mut agent = bench.start_with(&bench.with_alerts("drop-newest"));
    let left = |_: &mut Agent| BTreeSet::from_iter(files(&bench.spool(), "pcap")) == BTreeSet::from([bad.clone(), rotten.clone()]);
    agent.wait_for("all others are in S3", Duration::from_secs(30), left);
    agent.wait_for("damage is a trouble at once", Duration::from_secs(20), |agent| begun(agent, "a capture cannot be sent") == 1);
    // In five minutes that is one too, as `alert/rules.rs` has it, whatever else arrives.
    let finished = agent.counters().unwrap().get("segments_finished");
    agent.wait_counters("it counts as failing while others arrive", Duration::from_secs(30), |counters| {
        bench.send(sent, BURST);
        sent += BURST;
        counters.get("segments_failing_seconds") >= 5 && counters.get("segments_finished") > finished
    });
    let object = |key: &str| {
        bench.ask(async || {
            let found = bench.mailbox.aws.client().get_object().bucket(BUCKET).key(key).send().await.ok()?;
            Some(found.body.collect().await.unwrap().to_vec())
        })
    };
    let named = |path: &Path, cause: &str| {
        let status = object(&format!("status/{INSTANCE}.json")).map(|json| serde_json::from_slice::<Value>(&json).unwrap());
        let of_it = |unsent: &&Value| unsent["capture_id"].as_str() == path.file_stem().unwrap().to_str();
        let errors = status.iter().flat_map(|status| status["unsent"].as_array().unwrap()).filter(of_it);
        errors
            .filter_map(|unsent| unsent["last_error"].as_str())
            .any(|error| error.contains(path.to_str().unwrap()) && error.contains(cause))
    };
    agent.wait_for("the status names both and says why", Duration::from_secs(90), |_| {
        named(bad, "Input/output error") && named(rotten, "the disk has changed")
    });
    for key in keys {
        assert_eq!(object(&key), None, "nothing is at {key}");
    }
    assert!(agent.stop(Duration::from_secs(20)).success());
    // Both can be read again.
    drop(instead);
    flip();
    agent.upload_rest();
    assert!(bench.stored().0.into_iter().eq(0..sent), "all is in S3 as it was sent");
}
