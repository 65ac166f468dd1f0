//! The agent as a fleet runs it: packets on a wire, objects in S3, and every packet accounted for.
//! In: two network namespaces, LocalStack in the receiving one, the daemon. Out: promises 1, 2 and 4 on real traffic.
//! Needs: root, S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, Settings, sum};
use tapfleet_tests::captures::{Record, plain, records, seen_by_others};
use tapfleet_tests::localstack::LocalStack;
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, numbered, pcap};

/// One after the other: each wants the processors for itself, as packets that the machine loses are not the agent's.
static ALONE: Mutex<()> = Mutex::new(());

/// Frames per second on the wire, and for how long: more than ten windows of a second.
const RATE: u64 = 4000;
const TRAFFIC: Duration = Duration::from_secs(12);

/// One malformed frame of each kind per so many.
const JUNK_EVERY: u64 = 500;

#[test]
fn every_frame_of_the_ring_is_stored_in_order_across_rotations() {
    rotations("ring", 1, "pcap");
}

#[test]
fn every_frame_of_two_rings_is_stored_in_order_across_rotations() {
    rotations("ring", 2, "pcapng");
}

#[test]
fn every_frame_of_libpcap_is_stored_in_order_across_rotations() {
    rotations("libpcap", 1, "pcapng");
}

#[test]
fn every_frame_of_two_libpcap_threads_is_stored_in_order_across_rotations() {
    rotations("libpcap", 2, "pcap");
}

#[test]
fn every_frame_is_stored_in_order_in_compressed_files_too() {
    compressed_rotations("ring", 2, "pcapng", "zstd");
}

fn rotations(engine: &str, threads: u64, format: &str) {
    compressed_rotations(engine, threads, format, "none");
}

fn compressed_rotations(engine: &str, threads: u64, format: &str, compression: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let bench = Bench::new();
    let settings = bench.settings().set("capture.engine", engine).set("capture.threads", threads).set("record.format", format);
    let settings = settings.set("record.rotate_seconds", 1).set("record.compression", compression);
    let mut agent = bench.start(&settings);
    let begun = Instant::now();
    let sent = bench.pair.source.run(|| Sender::new(&bench).steady(RATE, TRAFFIC));
    let sending = begun.elapsed();
    // No packet comes any more, and yet the last window closes. The kernel's counts are read now and then: they must catch up.
    std::thread::sleep(Duration::from_secs(1));
    let counters = agent.wait_counters("every frame is accounted for, and every segment in S3", Duration::from_secs(20), |counters| {
        let (given, judged) = counters.identity();
        let segments = counters.get("segments_opened");
        given == judged && segments > 0 && segments == counters.get("segments_verified")
    });
    assert_eq!(counters.get("frames_written"), sent.frames, "written and sent; counters: {counters:?}");
    assert_eq!(counters.get("kernel_drops"), 0, "the machine was too busy for this test to say anything");
    assert_eq!(counters.reason("drops", "geneve_version"), sent.junk);
    assert_eq!(counters.reason("drops", "vxlan_no_i"), sent.junk);
    assert_eq!(counters.sum("drops"), 2 * sent.junk);
    bench.finish(&mut agent);

    let store = bench.store();
    let captures = store.captures();
    assert!(captures.len() > 10, "{} segments are fewer than eleven: {:?}", captures.len(), captures.keys());
    check_frames(&captures, &sent, format);
    check_manifests(&store, &captures, &sent);
    for (key, file) in store.files().iter().step_by(4) {
        let path = bench.folder().join(key.replace('/', "_"));
        let file = plain(file);
        fs::write(&path, &file).unwrap();
        assert_eq!(seen_by_others(&path), records(&file).len(), "{key}");
    }
    println!(
        "{engine}, {threads} threads, {format}, compression {compression}: {} frames in {:.1} s, {} segments, all stored in order",
        sent.frames,
        sending.as_secs_f64(),
        captures.len()
    );
}

/// N sent are N stored, byte for byte and in order, each origin under its own name.
fn check_frames(captures: &BTreeMap<String, Vec<Record>>, sent: &Sent, format: &str) {
    let mut number = 0;
    let mut names = BTreeSet::new();
    for (key, records) in captures {
        let mut last_ns = 0;
        for record in records {
            assert_eq!(numbered::number(&record.bytes), Some(number), "frame {number} is not where it belongs, in {key}");
            assert_eq!(record.bytes, inner(number, 0), "frame {number} is not what was sent, in {key}");
            assert_eq!(record.orig_len as usize, record.bytes.len());
            assert!(record.time_ns >= last_ns, "frame {number} of {key} is not in order of time");
            last_ns = record.time_ns;
            names.extend(record.interface.clone());
            number += 1;
        }
    }
    assert_eq!(number, sent.frames, "sent and stored");
    if format == "pcapng" {
        let aws = Aws::default();
        let vni = aws.vni;
        assert_eq!(names, BTreeSet::from([format!("vpce-{:017x}/vni-{vni}", aws.endpoint), format!("direct/vni-{vni}")]));
    }
}

/// One manifest for each capture, true of it; all of them add up to what the kernel gave.
fn check_manifests(store: &Store, captures: &BTreeMap<String, Vec<Record>>, sent: &Sent) {
    let manifests = store.manifests();
    let mut of_capture = BTreeMap::new();
    let (mut given, mut judged, mut frames) = (0, 0, 0);
    for manifest in &manifests {
        let losses = &manifest["losses"];
        given += losses["kernel_packets"].as_u64().unwrap() - losses["kernel_drops"].as_u64().unwrap();
        if manifest["kind"] == "quarantine" {
            continue;
        }
        frames += manifest["frames"].as_u64().unwrap();
        judged += manifest["frames"].as_u64().unwrap() + sum(manifest, "drops") + sum(manifest, "ignored");
        if let Some(key) = manifest["key"].as_str() {
            assert!(of_capture.insert(key, manifest).is_none(), "two manifests name {key}");
        }
    }
    assert_eq!(frames, sent.frames, "the manifests' frames");
    assert_eq!(given, judged, "what the kernel gave, and what the manifests say became of it");
    assert_eq!(of_capture.keys().copied().collect::<Vec<_>>(), captures.keys().collect::<Vec<_>>(), "captures and manifests");
    for (key, records) in captures {
        let manifest = of_capture[key.as_str()];
        assert_eq!(manifest["frames"], records.len(), "{key}");
        assert_eq!(manifest["object"]["bytes"], store.0[key].len(), "{key}: {manifest:#}");
        let window = &manifest["window"];
        let start = nanoseconds(&window["start"]);
        let end = start + window["seconds"].as_u64().unwrap() * 1_000_000_000;
        let strangers = records.iter().filter(|record| !(start..end).contains(&record.time_ns)).count();
        assert_eq!(manifest["late"], strangers, "{key} holds frames of another window than {window}");
    }
    let quarantined: u64 = manifests.iter().filter(|manifest| manifest["kind"] == "quarantine").filter_map(|m| m["frames"].as_u64()).sum();
    assert_eq!(quarantined, 2 * sent.junk, "malformed frames are kept, too");
}

#[test]
fn frames_flow_again_after_the_interface_was_removed_and_the_gap_stands_in_a_manifest() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    for (engine, threads) in [("ring", 2), ("libpcap", 1)] {
        let bench = Bench::new();
        let settings = bench.settings().set("capture.engine", engine).set("capture.threads", threads);
        let mut agent = bench.start(&settings.set("record.rotate_seconds", 2));
        let before = bench.pair.source.run(|| Sender::new(&bench).steady(1000, Duration::from_secs(1)));
        agent.wait_counters("all before is written", Duration::from_secs(5), |c| c.get("frames_written") == before.frames);

        bench.pair.unplug();
        std::thread::sleep(Duration::from_millis(1500));
        bench.pair.plug();
        // One frame each 5 ms: the number of the first that is stored tells how long it took.
        let after = bench.pair.source.run(|| Sender::new(&bench).after(before.frames).steady(200, Duration::from_secs(4)));
        let counters = agent.wait_counters("the gap is over", Duration::from_secs(5), |c| c.get("gaps") > 0);
        bench.finish(&mut agent);

        let store = bench.store();
        let numbers: Vec<u64> = store.captures().into_values().flatten().filter_map(|record| numbered::number(&record.bytes)).collect();
        let all_before: Vec<u64> = (0..before.frames).collect();
        assert!(numbers.starts_with(&all_before), "{engine}: frames from before the interface went are missing");
        let first = numbers[all_before.len()];
        let took = Duration::from_millis(5 * (first - before.frames));
        assert!(took <= Duration::from_secs(2), "{engine}: frames flowed again after {took:?}");
        assert_eq!(
            numbers[all_before.len()..],
            (first..before.frames + after.frames).collect::<Vec<_>>(),
            "{engine}: none is lost after that"
        );
        // Each window tells its share of it.
        let manifests = store.manifests();
        let gaps: Vec<_> = manifests.iter().flat_map(|manifest| manifest["gaps"].as_array().unwrap()).collect();
        for gap in &gaps {
            assert!(gap["cause"].as_str().unwrap().contains(TAP), "{engine}: {gap}");
            assert!(nanoseconds(&gap["from"]) < nanoseconds(&gap["to"]), "{engine}: {gap}");
        }
        let from = gaps.iter().map(|gap| nanoseconds(&gap["from"])).min();
        let to = gaps.iter().map(|gap| nanoseconds(&gap["to"])).max();
        let (Some(from), Some(to)) = (from, to) else { panic!("{engine}: no manifest has the gap; counters: {counters:?}") };
        let length = Duration::from_nanos(to - from);
        assert!((Duration::from_millis(1400)..Duration::from_secs(4)).contains(&length), "{engine}: a gap of {length:?}: {gaps:?}");
    }
}

#[test]
fn an_upload_that_kill_9_interrupts_is_resumed_and_the_object_is_what_the_spool_had() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    const LARGE: u64 = 105 << 20;
    let bench = Bench::new();
    // A pipe that does not end: the segment still grows when the agent is killed, however fast the machine is.
    let pipe = bench.folder().join("large.pcap");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let replay = bench.settings().set("capture.engine", "file").set("capture.files", vec![pipe.to_str().unwrap()]);
    let mut agent = Agent::start(Some(bench.pair.tap.name()), &replay, bench.folder());
    let mut input = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    input.write_all(&large_capture(130 << 20)).unwrap();
    let mut parts = 0;
    agent.wait_for("over 100 MiB are in the spool and some of it in S3", Duration::from_secs(60), |_| {
        let bytes = bench.spooled("pcap").map_or(0, |path| fs::metadata(path).map_or(0, |meta| meta.len()));
        parts = bench.journal().iter().filter(|line| line["record"] == "part").count();
        bytes >= LARGE && parts >= 2
    });
    agent.kill();
    drop(input);

    let journal = bench.journal();
    assert!(journal.iter().all(|line| line["record"] != "completing"), "the upload was over before the kill: {journal:?}");
    let parts = journal.iter().filter(|line| line["record"] == "part").count() as u64;
    let key = journal[0]["key"].as_str().unwrap().to_owned();
    let mut spooled = fs::read(bench.spooled("pcap").unwrap()).unwrap();
    spooled.truncate(whole_records(&spooled));
    assert!(spooled.len() as u64 > 100 << 20);

    let mut agent = bench.start(&bench.settings());
    let counters = agent.wait_counters("the large segment is verified", Duration::from_secs(60), |c| c.get("segments_verified") >= 1);
    let resumed = counters.get("uploads_resumed");
    let sent_again = counters.get("parts_sent");
    bench.finish(&mut agent);
    let store = bench.store();
    assert!(store.0[&key] == spooled, "the object differs from what the spool had: {} and {} bytes", store.0[&key].len(), spooled.len());
    assert_eq!(resumed, 1, "the multipart upload was begun again");
    let etag = bench.s3(async |s3| s3.head_object().bucket(BUCKET).key(&key).send().await.unwrap().e_tag.unwrap());
    let all: u64 = etag.trim_matches('"').rsplit('-').next().unwrap().parse().unwrap();
    assert!(sent_again <= all - parts, "{sent_again} parts were sent after the restart, though {parts} of {all} were there");
    let manifests = store.manifests();
    let manifest = manifests.iter().find(|manifest| manifest["key"] == key.as_str()).unwrap();
    assert_eq!(manifest["salvaged"], true);
    println!("{} MiB in {all} parts, {parts} before the kill, {sent_again} after", spooled.len() >> 20);
}

/// Two namespaces with S3 in the receiving one.
struct Bench {
    s3: LocalStack,
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let pair = Pair::new();
        let s3 = LocalStack::start(Some(pair.tap.name()));
        let bench = Self { s3, pair, folder: tempfile::tempdir().unwrap() };
        pair_bucket(&bench);
        bench
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn settings(&self) -> Settings {
        Settings::new(&self.s3.endpoint(), &self.folder().join("spool")).set("capture.interface", TAP).set("capture.ring_bytes", "64MiB")
    }

    fn start(&self, settings: &Settings) -> Agent {
        Agent::ready(Some(self.pair.tap.name()), settings, self.folder())
    }

    /// Stops the agent and sends what it leaves: manifests of the windows without frames.
    fn finish(&self, agent: &mut Agent) {
        let status = agent.stop(Duration::from_secs(10));
        assert!(status.success(), "the agent ended with {status}");
        agent.upload_rest();
        assert_eq!(self.spool_files(), Vec::<PathBuf>::new(), "what S3 has confirmed is gone from the spool");
    }

    /// Asks S3, from inside the namespace.
    fn s3<T: Send>(&self, work: impl AsyncFnOnce(Client) -> T + Send) -> T {
        self.pair.tap.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(self.s3.client()).await })
        })
    }

    /// Everything in the bucket.
    fn store(&self) -> Store {
        self.s3(async |s3| {
            let mut objects = BTreeMap::new();
            let mut pages = s3.list_objects_v2().bucket(BUCKET).into_paginator().send();
            while let Some(page) = pages.next().await {
                for key in page.unwrap().contents().iter().map(|object| object.key().unwrap()) {
                    let object = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
                    objects.insert(key.to_owned(), object.body.collect().await.unwrap().to_vec());
                }
            }
            Store(objects)
        })
    }

    /// What lies in the spool, but for its lock.
    fn spool_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder().join("spool")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect()
    }

    fn spooled(&self, extension: &str) -> Option<PathBuf> {
        self.spool_files().into_iter().find(|path| path.extension().is_some_and(|found| found == extension))
    }

    /// The lines of the only journal, without their checksums; a line that is being written is left out.
    fn journal(&self) -> Vec<Value> {
        let text = self.spooled("journal").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line.get(9..)?).ok()).collect()
    }
}

fn pair_bucket(bench: &Bench) {
    bench.pair.tap.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(bench.s3.bucket(BUCKET));
    });
}

/// The bucket's objects by key, in the order S3 lists them.
struct Store(BTreeMap<String, Vec<u8>>);

impl Store {
    fn files(&self) -> BTreeMap<&String, &Vec<u8>> {
        let extensions = [".pcap", ".pcapng", ".pcap.zst", ".pcapng.zst"];
        self.0.iter().filter(|(key, _)| extensions.iter().any(|extension| key.ends_with(extension))).collect()
    }

    fn captures(&self) -> BTreeMap<String, Vec<Record>> {
        let files = self.files().into_iter().filter(|(key, _)| !key.contains(".quarantine."));
        files.map(|(key, file)| (key.clone(), records(&plain(file)))).collect()
    }

    fn manifests(&self) -> Vec<Value> {
        self.0.iter().filter(|(key, _)| key.starts_with("manifest/")).map(|(_, json)| serde_json::from_slice(json).unwrap()).collect()
    }
}

/// What was put on the wire.
struct Sent {
    /// Good frames, numbered from 0 or where the sender began.
    frames: u64,
    /// Malformed frames of each of two kinds.
    junk: u64,
}

/// Sends through the tunnels, from several ports, as several mirror sessions would. Lives in the sender's namespace.
struct Sender {
    sockets: Vec<UdpSocket>,
    first: u64,
}

impl Sender {
    fn new(_bench: &Bench) -> Self {
        let sockets = (0..8).map(|_| UdpSocket::bind("10.77.0.1:0").unwrap()).collect();
        Self { sockets, first: 0 }
    }

    /// Numbers begin at `first`.
    fn after(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Sends `rate` frames per second for `time`: GENEVE and VXLAN in turn, junk of three kinds among them.
    fn steady(self, rate: u64, time: Duration) -> Sent {
        let aws = Aws::default();
        let begun = Instant::now();
        let mut sent = Sent { frames: 0, junk: 0 };
        while begun.elapsed() < time {
            let due = (begun.elapsed().as_micros() as u64 * rate / 1_000_000).max(1);
            while sent.frames < due {
                let number = self.first + sent.frames;
                let frame = inner(number, 0);
                if number.is_multiple_of(2) {
                    self.send(number, 6081, &aws.gwlb_datagram(frame).build());
                } else {
                    self.send(number, 4789, &aws.direct_datagram(frame).build());
                }
                sent.frames += 1;
                if sent.frames.is_multiple_of(JUNK_EVERY) {
                    self.junk(&aws, number);
                    sent.junk += 1;
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        sent
    }

    /// GENEVE of a version that is not known, VXLAN without a valid VNI, and a packet that is none of ours.
    fn junk(&self, aws: &Aws, number: u64) {
        let mut geneve = aws.gwlb_datagram(inner(number, 0)).build();
        geneve[0] |= 0x40;
        self.send(number, 6081, &geneve);
        let mut vxlan = aws.direct_datagram(inner(number, 0)).build();
        vxlan[0] = 0;
        self.send(number, 4789, &vxlan);
        self.send(number, 9999, b"nothing for us");
    }

    fn send(&self, number: u64, port: u16, datagram: &[u8]) {
        let socket = &self.sockets[number as usize % self.sockets.len()];
        socket.send_to(datagram, ("10.77.0.2", port)).unwrap();
    }
}

/// The mirrored frame of that number, with so many bytes after it.
fn inner(number: u64, padding: usize) -> Vec<u8> {
    let filling: Vec<u8> = (0..100 + padding).map(|at| at as u8).collect();
    numbered::frame(number, &filling)
}

/// A capture file of about that size, all within one window.
fn large_capture(bytes: usize) -> Vec<u8> {
    let aws = Aws::default();
    let frames: Vec<_> = (0..(bytes / 8192) as u64).map(|number| aws.gwlb(inner(number, 8000)).build()).collect();
    pcap::file(frames.iter().enumerate().map(|(at, frame)| (1_790_000_100_000_000_000 + at as u64 * 1000, frame.as_slice())))
}

/// Where the last whole record of a pcap file ends.
fn whole_records(file: &[u8]) -> usize {
    let mut at = 24;
    while let Some(header) = file.get(at..at + 16) {
        let end = at + 16 + u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        if end > file.len() {
            break;
        }
        at = end;
    }
    at
}

fn nanoseconds(stamp: &Value) -> u64 {
    let time = chrono::DateTime::parse_from_rfc3339(stamp.as_str().unwrap()).unwrap();
    time.timestamp_nanos_opt().unwrap().try_into().unwrap()
}
