//! An instance goes: scale-in, the interruption of spot, a shutdown of the machine. What it recorded is in S3 before, or a person hears of it.
//! In: the daemon, packets over a veth pair, a fake of IMDSv2 and of Auto Scaling, LocalStack. Out: promises 6 and 7.
//! Needs: root, S3, systemd-nspawn, mmdebstrap.
//! Threads: 6, as all tests wait.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, INSTANCE, Settings};
use tapfleet_tests::captures::records;
use tapfleet_tests::fake_aws::{AutoScaling, Call, Hook, Imds};
use tapfleet_tests::localstack::LocalStack;
use tapfleet_tests::machine::{Machine, UNIT};
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, numbered};

/// Nobody listens on the discard port.
const NOWHERE: &str = "http://127.0.0.1:9";

const HOOK: Hook = Hook { name: "tapfleet-drain", heartbeat: 30, global: 3000 };

/// Windows of a leaving instance in these tests, seconds; 15 by default.
const SHORT: u64 = 2;

struct Bench {
    pair: Pair,
    folder: tempfile::TempDir,
    imds: Imds,
    group: AutoScaling,
    s3: Option<LocalStack>,
}

impl Bench {
    fn new(hook: Hook) -> Self {
        let pair = Pair::new();
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool");
        let (imds, group) = pair.tap.run(|| (Imds::start(), AutoScaling::start(INSTANCE, &spool, &[hook])));
        Self { pair, folder, imds, group, s3: None }
    }

    fn with_s3(mut self) -> Self {
        let s3 = LocalStack::start(Some(self.pair.tap.name()));
        self.s3 = Some(s3);
        self
    }

    fn make_bucket(&self) {
        self.pair.tap.run(|| runtime().block_on(self.s3.as_ref().unwrap().bucket(BUCKET)));
    }

    fn settings(&self) -> Settings {
        let endpoint = self.s3.as_ref().map_or_else(|| NOWHERE.to_owned(), LocalStack::endpoint);
        Settings::new(&endpoint, &self.spool())
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "64MiB")
            .set("lifecycle.rotate_seconds", SHORT)
            .set("alert.topic_arn", "arn:aws:sns:eu-north-1:000000000000:alerts")
            .set("alert.dir", self.folder.path().join("outbox").to_str().unwrap())
            .set("alert.silence", "0s")
            .variable("AWS_ENDPOINT_URL_SNS", NOWHERE)
            .variable("AWS_EC2_METADATA_DISABLED", "false")
            .variable("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.imds.endpoint())
            .variable("AWS_ENDPOINT_URL_AUTO_SCALING", &self.group.endpoint())
    }

    fn start(&self, settings: &Settings) -> Agent {
        Agent::ready(Some(self.pair.tap.name()), settings, self.folder.path())
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    /// Status and body of the load balancer's question.
    fn health(&self) -> (u16, Value) {
        self.pair.tap.run(probe)
    }

    /// What the mails that wait in the outbox are about.
    fn mails(&self) -> String {
        let entries = fs::read_dir(self.folder.path().join("outbox")).into_iter().flatten().map_while(Result::ok);
        let mails = entries.filter(|entry| entry.path().extension().is_some_and(|found| found == "mail"));
        mails.map(|mail| fs::read_to_string(mail.path()).unwrap_or_default()).collect()
    }

    /// The numbers of the frames in the bucket, each as often as it is there; and the manifests' windows: start and seconds.
    fn stored(&self) -> (Vec<u64>, BTreeSet<(String, u64)>) {
        self.pair.tap.run(|| runtime().block_on(stored(self.s3.as_ref().unwrap())))
    }
}

fn probe() -> (u16, Value) {
    let mut stream = TcpStream::connect("127.0.0.1:8080").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap())
}

async fn stored(s3: &LocalStack) -> (Vec<u64>, BTreeSet<(String, u64)>) {
    let client = s3.client();
    let mut numbers = Vec::new();
    let mut windows = BTreeSet::new();
    let mut pages = client.list_objects_v2().bucket(BUCKET).into_paginator().send();
    while let Some(page) = pages.next().await {
        for key in page.unwrap().contents().iter().filter_map(|object| object.key()) {
            let object = client.get_object().bucket(BUCKET).key(key).send().await.unwrap();
            let bytes = object.body.collect().await.unwrap().into_bytes();
            if key.ends_with(".pcap") {
                numbers.extend(records(&bytes).iter().map(|record| numbered::number(&record.bytes).unwrap()));
            } else if key.starts_with("manifest/") {
                let manifest: Value = serde_json::from_slice(&bytes).unwrap();
                let window = &manifest["window"];
                windows.insert((window["start"].as_str().unwrap().to_owned(), window["seconds"].as_u64().unwrap()));
            }
        }
    }
    numbers.sort_unstable();
    (numbers, windows)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Numbered frames, a hundred a second, until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Traffic {
    fn start(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = pair.source.spawn({
            let stop = stop.clone();
            move || {
                let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
                let mut number: u64 = 0;
                while !stop.load(Ordering::Acquire) {
                    send(&socket, number, 0);
                    number += 1;
                    thread::sleep(Duration::from_millis(10));
                }
                number
            }
        });
        Self { stop, thread }
    }

    /// How many were sent.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

fn send(socket: &UdpSocket, number: u64, padding: usize) {
    let frame = numbered::frame(number, &vec![7; padding]);
    socket.send_to(&Aws::default().gwlb_datagram(frame).build(), ("10.77.0.2", 6081)).unwrap();
}

fn leaving(bench: &Bench) -> bool {
    let (status, health) = bench.health();
    status == 503 && health["reasons"][0]["reason"] == "leaving" && health["reasons"].as_array().unwrap().len() == 1
}

#[test]
fn before_scale_in_everything_that_came_until_the_group_waits_is_in_s3_and_only_then_it_may_go() {
    let bench = Bench::new(HOOK).with_s3();
    bench.make_bucket();
    let mut agent = bench.start(&bench.settings());
    let traffic = Traffic::start(&bench.pair);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(bench.health().0, 200);
    bench.imds.target("Terminated");
    bench.group.lifecycle("Terminating");
    agent.wait_for("the load balancer is told to send elsewhere", Duration::from_secs(15), |_| leaving(&bench));
    // The load balancer goes on sending what it has begun.
    thread::sleep(Duration::from_secs(6));
    assert!(bench.group.calls().is_empty(), "nobody waits yet: {:?}", bench.group.calls());
    bench.group.lifecycle("Terminating:Wait");
    thread::sleep(Duration::from_secs(8));
    assert_eq!(bench.group.calls(), [Call::Heartbeat], "while packets come it is not over");
    let sent = traffic.stop();
    agent.wait_for("the group is told", Duration::from_secs(60), |_| bench.group.calls().len() > 1);
    let calls = bench.group.calls();
    let Some(Call::Complete(result, spool)) = calls.last() else { panic!("{calls:?}") };
    assert_eq!(result, "CONTINUE");
    let segments: Vec<_> = spool.iter().filter(|name| name.contains('.')).collect();
    assert!(segments.is_empty(), "at that moment the spool held {segments:?}");
    let (numbers, windows) = bench.stored();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "each frame once");
    let short = windows.iter().filter(|(_, seconds)| *seconds == SHORT).count();
    assert!(short >= 5, "windows of {SHORT} s: {windows:?}");
    assert!(windows.iter().all(|(_, seconds)| *seconds <= 900));
    // It waits for its end, and does not come back to capture.
    thread::sleep(Duration::from_secs(2));
    assert!(leaving(&bench));
    assert_eq!(bench.group.calls().len(), calls.len(), "said once");
    assert!(agent.stop(Duration::from_secs(10)).success());
    println!("{sent} frames, all in S3 before CONTINUE; {} windows, {short} of {SHORT} s; calls: {}", windows.len(), calls.len());
}

#[test]
fn a_scale_in_without_s3_is_prolonged_by_heartbeats_then_abandoned_and_a_person_hears_of_it() {
    let bench = Bench::new(Hook { global: 60, ..HOOK });
    let mut agent = bench.start(&bench.settings());
    let traffic = Traffic::start(&bench.pair);
    thread::sleep(Duration::from_secs(1));
    bench.imds.target("Terminated");
    bench.group.lifecycle("Terminating:Wait");
    traffic.stop();
    agent.wait_for("the group is told", Duration::from_secs(90), |_| bench.group.calls().iter().any(|call| *call != Call::Heartbeat));
    let calls = bench.group.calls();
    let heartbeats = calls.iter().filter(|call| **call == Call::Heartbeat).count();
    assert!(heartbeats >= 3, "in 45 s with a timeout of 30 s: {calls:?}");
    assert!(matches!(calls.last(), Some(Call::Complete(result, spool)) if result == "ABANDON" && !spool.is_empty()), "{calls:?}");
    agent.wait_for("the mail is filed", Duration::from_secs(10), |_| bench.mails().contains("instance going away, spool not empty"));
    let (_, held) = bench.health();
    assert_eq!(held["reasons"][0]["reason"], "leaving");
    assert!(agent.stop(Duration::from_secs(10)).success());
}

#[test]
fn a_cancelled_scale_in_brings_health_and_the_usual_windows_back() {
    let bench = Bench::new(HOOK).with_s3();
    bench.make_bucket();
    let mut agent = bench.start(&bench.settings());
    let traffic = Traffic::start(&bench.pair);
    bench.imds.target("Terminated");
    bench.group.lifecycle("Terminating");
    agent.wait_for("it leaves", Duration::from_secs(15), |_| leaving(&bench));
    thread::sleep(Duration::from_secs(3 * SHORT));
    bench.imds.target("InService");
    bench.group.lifecycle("InService");
    agent.wait_for("it stays", Duration::from_secs(15), |_| bench.health().0 == 200);
    // The short window that is open ends; then nothing is closed any more.
    thread::sleep(Duration::from_secs(2 * SHORT + 2));
    let closed = agent.counters().unwrap().get("segments_closed");
    thread::sleep(Duration::from_secs(2 * SHORT + 1));
    // Unless the clock passes a quarter of an hour just now.
    assert!(agent.counters().unwrap().get("segments_closed") <= closed + 1);
    traffic.stop();
    assert!(bench.group.calls().is_empty(), "{:?}", bench.group.calls());
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn a_termination_that_is_cancelled_after_capture_had_ended_begins_the_agent_anew() {
    let bench = Bench::new(HOOK);
    let mut agent = bench.start(&bench.settings());
    bench.imds.target("Terminated");
    bench.group.lifecycle("Terminating:Wait");
    agent.wait_for("capture has ended", Duration::from_secs(30), |agent| {
        agent.counters().is_some_and(|counters| counters.get("leaving_ended") == 1)
    });
    bench.imds.target("InService");
    bench.group.lifecycle("InService");
    // The service manager starts the next one.
    assert!(agent.ended(Duration::from_secs(20)).success());
}

#[test]
fn a_spot_notice_shortens_the_windows_and_what_cannot_be_sent_in_time_is_mailed() {
    let bench = Bench::new(HOOK);
    let mut agent = bench.start(&bench.settings());
    let traffic = Traffic::start(&bench.pair);
    thread::sleep(Duration::from_secs(1));
    let at: DateTime<Utc> = (SystemTime::now() + Duration::from_secs(35)).into();
    let notice = format!(r#"{{"action": "terminate", "time": "{}"}}"#, at.format("%Y-%m-%dT%H:%M:%SZ"));
    bench.imds.set("spot/instance-action", &notice);
    agent.wait_for("it leaves", Duration::from_secs(15), |_| leaving(&bench));
    let opened = agent.counters().unwrap().get("segments_opened");
    agent.wait_counters("windows are short", Duration::from_secs(20), |counters| counters.get("segments_opened") >= opened + 3);
    agent.wait_for("the mail is filed", Duration::from_secs(40), |_| bench.mails().contains("instance going away, spool not empty"));
    assert!(Utc::now() < at, "in time");
    // Capture goes on to the last moment.
    let before = agent.counters().unwrap().get("frames_written");
    agent.wait_counters("frames are taken", Duration::from_secs(10), |counters| counters.get("frames_written") > before);
    traffic.stop();
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn denied_calls_are_said_once_and_nothing_fails() {
    let bench = Bench::new(HOOK);
    bench.group.denied(true);
    let mut agent = bench.start(&bench.settings().set("record.rotate_seconds", 2));
    let traffic = Traffic::start(&bench.pair);
    // Unsent for two windows: protection is asked for, and denied.
    agent.wait_for("protection was asked for", Duration::from_secs(40), |_| bench.group.asked("DescribeAutoScalingInstances") > 0);
    assert_eq!(bench.health().0, 200);
    bench.imds.target("Terminated");
    agent.wait_for("it leaves", Duration::from_secs(15), |_| leaving(&bench));
    agent.wait_for("the group is asked again", Duration::from_secs(30), |_| bench.group.asked("DescribeAutoScalingInstances") > 3);
    let before = agent.counters().unwrap().get("frames_written");
    agent.wait_counters("capture goes on", Duration::from_secs(10), |counters| counters.get("frames_written") > before);
    traffic.stop();
    let log = agent.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("AccessDenied")).collect();
    assert!((1..=3).contains(&said.len()), "each kind of call once: {said:#?}");
    assert!(said.iter().all(|line| line.contains("CompleteLifecycleAction")), "what to allow is said: {said:#?}");
    assert!(bench.group.calls().is_empty());
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn metadata_that_refuses_its_tokens_or_dies_does_not_disturb_and_is_listened_to_again() {
    let bench = Bench::new(HOOK);
    let mut agent = bench.start(&bench.settings());
    agent.wait_for("it asks", Duration::from_secs(10), |_| bench.imds.issued() > 0);
    let issued = bench.imds.issued();
    bench.imds.revoke();
    agent.wait_for("it fetches another token", Duration::from_secs(30), |_| bench.imds.issued() > issued);
    bench.imds.dead(true);
    agent.wait_for("it is said", Duration::from_secs(30), |agent| agent.log().contains("whether the instance is to leave is not known"));
    thread::sleep(Duration::from_secs(12));
    assert_eq!(bench.health().0, 200, "what cannot be known is no reason");
    assert_eq!(agent.log().matches("whether the instance is to leave is not known").count(), 1);
    bench.imds.target("Terminated");
    bench.imds.dead(false);
    agent.wait_for("it leaves", Duration::from_secs(30), |_| leaving(&bench));
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn an_instance_with_old_unsent_segments_is_protected_from_scale_in_until_they_are_in_s3() {
    let bench = Bench::new(HOOK).with_s3();
    let mut agent = bench.start(&bench.settings().set("record.rotate_seconds", 3));
    let traffic = Traffic::start(&bench.pair);
    agent.wait_for("it is protected", Duration::from_secs(40), |_| bench.group.calls() == [Call::Protect(true)]);
    bench.make_bucket();
    agent.wait_for("it is not protected any more", Duration::from_secs(120), |_| bench.group.calls().last() == Some(&Call::Protect(false)));
    assert_eq!(bench.group.calls().len(), 2);
    traffic.stop();
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn the_protection_that_a_killed_agent_leaves_is_taken_off_by_the_next_one_and_nobody_elses_is() {
    let bench = Bench::new(HOOK).with_s3();
    let settings = bench.settings().set("record.rotate_seconds", 3);
    bench.group.protected(true);
    let mut agent = bench.start(&settings);
    agent.wait_for("it has looked where it goes", Duration::from_secs(20), |_| bench.imds.issued() > 0);
    thread::sleep(Duration::from_secs(6));
    assert!(bench.group.calls().is_empty(), "a person protected it: {:?}", bench.group.calls());
    bench.group.protected(false);
    let traffic = Traffic::start(&bench.pair);
    agent.wait_for("it is protected", Duration::from_secs(40), |_| bench.group.calls() == [Call::Protect(true)]);
    traffic.stop();
    agent.kill();
    bench.make_bucket();
    let (code, said) = settings.command(Some(bench.pair.tap.name()), bench.folder.path(), &["spool", "upload"]);
    assert_eq!(code, Some(0), "{said}");
    // Nothing is unsent any more, so this one never asks for protection.
    let mut agent = bench.start(&settings);
    agent.wait_for("it is not protected any more", Duration::from_secs(30), |_| bench.group.calls().last() == Some(&Call::Protect(false)));
    assert_eq!(bench.group.calls().len(), 2);
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn an_instance_with_nothing_left_but_poison_is_given_up_at_once_and_a_person_hears_of_it() {
    let bench = Bench::new(HOOK).with_s3();
    bench.make_bucket();
    let damaged = bench.spool().join("019aa8f0-0000-7000-8000-000000000001");
    fs::create_dir_all(bench.spool()).unwrap();
    fs::write(damaged.with_extension("journal"), "00000000 {}\n").unwrap();
    fs::write(damaged.with_extension("pcap"), "precious").unwrap();
    let mut agent = bench.start(&bench.settings());
    let traffic = Traffic::start(&bench.pair);
    thread::sleep(Duration::from_secs(1));
    bench.imds.target("Terminated");
    bench.group.lifecycle("Terminating:Wait");
    let sent = traffic.stop();
    agent.wait_for("the group is told", Duration::from_secs(90), |_| matches!(bench.group.calls().last(), Some(Call::Complete(..))));
    let calls = bench.group.calls();
    let Some(Call::Complete(result, spool)) = calls.last() else { panic!("{calls:?}") };
    let others: Vec<_> = spool.iter().filter(|name| name.contains('.') && !name.starts_with("019aa8f0-")).collect();
    assert!(result == "ABANDON" && others.is_empty(), "{result}; only the damaged one is left: {spool:?}");
    assert_eq!(bench.stored().0, (0..sent).collect::<Vec<_>>(), "everything else is in S3");
    agent.wait_for("the mail is filed", Duration::from_secs(10), |_| bench.mails().contains("instance going away, spool not empty"));
    assert!(agent.stop(Duration::from_secs(10)).success());
}

#[test]
fn the_hooks_time_does_not_begin_anew_with_an_agent_that_takes_over() {
    let bench = Bench::new(Hook { global: 120, ..HOOK });
    let settings = bench.settings();
    let mut agent = bench.start(&settings);
    let traffic = Traffic::start(&bench.pair);
    thread::sleep(Duration::from_secs(1));
    bench.imds.target("Terminated");
    bench.group.lifecycle("Terminating:Wait");
    let begun = Instant::now();
    traffic.stop();
    agent.wait_for("it waits", Duration::from_secs(20), |_| bench.group.calls() == [Call::Heartbeat]);
    thread::sleep(Duration::from_secs(60).saturating_sub(begun.elapsed()));
    agent.kill();
    // Not asked whether it is healthy: it is to leave, and may know so already.
    let mut agent = Agent::start(Some(bench.pair.tap.name()), &settings, bench.folder.path());
    agent.wait_for("the group is told", Duration::from_secs(120), |_| bench.group.calls().iter().any(|call| *call != Call::Heartbeat));
    let (took, calls) = (begun.elapsed(), bench.group.calls());
    assert!(matches!(calls.last(), Some(Call::Complete(result, _)) if result == "ABANDON"), "{calls:?}");
    // A quarter of it before its end; anew it would be two and a half minutes.
    assert!((Duration::from_secs(90)..Duration::from_secs(120)).contains(&took), "{took:?}");
    assert!(agent.stop(Duration::from_secs(10)).success());
}

#[test]
fn two_hundred_probes_at_once_are_answered_200_with_s3_down_and_the_spool_full() {
    let bench = Bench::new(HOOK);
    let mut agent = bench.start(&bench.settings().set("spool.max_bytes", "4MiB").set("record.rotate_seconds", 2));
    bench.pair.source.run(|| {
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        for number in 0..8000 {
            send(&socket, number, 1000);
            if number % 10 == 0 {
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    agent.wait_counters("the spool is full and S3 has failed", Duration::from_secs(20), |counters| {
        counters.reason("drops", "spool_full") > 0 && counters.get("upload_failures") > 0
    });
    let answers: Vec<(u16, Value)> = bench.pair.tap.run(|| {
        let probes: Vec<_> = (0..200).map(|_| thread::spawn(probe)).collect();
        probes.into_iter().map(|probe| probe.join().unwrap()).collect()
    });
    assert_eq!(answers.len(), 200);
    for (status, health) in answers {
        assert_eq!((status, &health["reasons"]), (200, &Value::Array(Vec::new())), "{health}");
    }
    assert!(agent.stop(Duration::from_secs(5)).success());
}

/// A machine with the agent under its unit; S3 is LocalStack in the machine's network namespace, which outlives its shutdown.
fn machine(settings: &Settings, drop_in: &str) -> (Machine, LocalStack) {
    let machine = Machine::boot(settings, drop_in);
    let s3 = LocalStack::start(Some(machine.pair.tap.name()));
    let endpoint = format!("[Service]\nEnvironment=TAPFLEET__S3__ENDPOINT_URL={}\n", s3.endpoint());
    let keys = "Environment=AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_EC2_METADATA_DISABLED=true\n";
    machine.write("etc/systemd/system/tapfleetd.service.d/s3.conf", &[endpoint.as_str(), keys].concat());
    machine.run("systemctl", &["daemon-reload"]);
    (machine, s3)
}

const SPOOL: &str = "/var/lib/tapfleet/spool";

#[test]
fn a_machine_that_shuts_down_waits_for_s3_longer_than_the_units_timeout_and_an_ordinary_restart_does_not() {
    let settings = Settings::new(NOWHERE, SPOOL.as_ref()).set("capture.interface", TAP).set("capture.ring_bytes", "64MiB");
    let (machine, s3) = machine(&settings, "[Service]\nTimeoutStopSec=4\n");
    machine.systemctl("start");
    let traffic = Traffic::start(&machine.pair);
    thread::sleep(Duration::from_secs(1));
    // There is no bucket: nothing can leave, and a restart does not wait for it.
    let took = machine.systemctl("restart");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(machine.journal().contains("going on with the rings of the agent before"));
    thread::sleep(Duration::from_secs(1));
    let sent = traffic.stop();
    let begun = Instant::now();
    machine.run("systemctl", &["poweroff", "--no-block"]);
    machine.wait_for("the agent waits for S3", Duration::from_secs(10), |machine| {
        String::from_utf8_lossy(&machine.output("systemctl", &["show", "--value", "--property", "StatusText", UNIT]).stdout)
            .contains("the machine goes down")
    });
    // Twice the unit's own time.
    thread::sleep(Duration::from_secs(8).saturating_sub(begun.elapsed()));
    machine.pair.tap.run(|| runtime().block_on(s3.bucket(BUCKET)));
    let end = Instant::now() + Duration::from_secs(90);
    let mut numbers = Vec::new();
    while numbers.len() < sent as usize && Instant::now() < end {
        thread::sleep(Duration::from_secs(1));
        numbers = machine.pair.tap.run(|| runtime().block_on(stored(&s3)).0);
    }
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "each frame once");
    println!("{sent} frames, all in S3 {:?} after the shutdown began; a restart took {took:?}", begun.elapsed());
}
