//! An instance goes: scale-in, the interruption of spot, a shutdown of the machine. What it recorded is in S3 before, or a person hears of it.
//! In: the daemon, packets over a veth pair, a fake of IMDSv2 and of Auto Scaling, LocalStack, an S3 that knows its access keys.
//! Out: promises 4 to 7.
//! Needs: root, S3, systemd-nspawn, mmdebstrap.
//! Threads: 6, as all tests wait.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tapfleet::upload::rounds::SEGMENTS_AT_ONCE;
use tapfleet_tests::agent::{Agent, BUCKET, INSTANCE, Settings};
use tapfleet_tests::captures::records;
use tapfleet_tests::fake_aws::{AutoScaling, Call, Hook, Imds, Keys, Source};
use tapfleet_tests::faulty_s3::FaultyS3;
use tapfleet_tests::localstack::LocalStack;
use tapfleet_tests::machine::{Machine, UNIT};
use tapfleet_tests::mailbox::{Mail, Mailbox};
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, numbered};

/// Nobody listens on the discard port.
const NOWHERE: &str = "http://127.0.0.1:9";

const HOOK: Hook = Hook { name: "tapfleet-drain", heartbeat: 30, global: 3000 };

/// The topic of the alerts: LocalStack names its own so, too.
const TOPIC: &str = "arn:aws:sns:eu-north-1:000000000000:alerts";

/// What the mails about what stays behind are called.
const STAYS_BEHIND: &str = "instance going away, spool not empty";

/// How soon an agent that is restarted captures again.
const RESTART: Duration = Duration::from_secs(2);

/// Windows of a leaving instance in these tests, seconds; 15 by default.
const SHORT: u64 = 2;

struct Bench {
    pair: Pair,
    folder: tempfile::TempDir,
    imds: Imds,
    group: AutoScaling,
    s3: Option<LocalStack>,
    mailbox: Option<Mailbox>,
}

impl Bench {
    fn new(hook: Hook) -> Self {
        let pair = Pair::new();
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool");
        let (imds, group) = pair.tap.run(|| (Imds::start(), AutoScaling::start(INSTANCE, &spool, &[hook])));
        Self { pair, folder, imds, group, s3: None, mailbox: None }
    }

    fn with_s3(mut self) -> Self {
        let s3 = LocalStack::start(Some(self.pair.tap.name()));
        self.s3 = Some(s3);
        self
    }

    /// With a topic of which the mails are read back.
    fn with_mailbox(mut self) -> Self {
        let mailbox = Mailbox::new(self.pair.tap.name());
        mailbox.subscribe();
        assert_eq!(mailbox.topic, TOPIC);
        self.mailbox = Some(mailbox);
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
            .set("alert.topic_arn", TOPIC)
            .set("alert.dir", self.folder.path().join("outbox").to_str().unwrap())
            .set("alert.silence", "0s")
            .variable("AWS_ENDPOINT_URL_SNS", &self.mailbox.as_ref().map_or_else(|| NOWHERE.to_owned(), Mailbox::endpoint))
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

    /// The captures that S3 has not confirmed together with their manifests.
    fn unsent(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.spool()).into_iter().flatten().map_while(Result::ok);
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|found| found == "pcap")).collect()
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

/// Numbered frames until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Traffic {
    /// Small ones, a hundred a second.
    fn start(pair: &Pair) -> Self {
        Self::of(pair, 0, Duration::from_millis(10))
    }

    fn of(pair: &Pair, padding: usize, pause: Duration) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = pair.source.spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || {
                let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
                while !stop.load(Ordering::Acquire) {
                    send(&socket, sent.load(Ordering::Relaxed), padding);
                    sent.fetch_add(1, Ordering::Release);
                    thread::sleep(pause);
                }
            }
        });
        Self { stop, sent, thread }
    }

    /// How many were sent by now.
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// How many were sent.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Acquire)
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

/// The mail about what stays behind, as a subscriber has got it within `limit`.
fn heard_of_what_stays_behind(mailbox: &Mailbox, limit: Duration) -> Mail {
    let end = Instant::now() + limit;
    let mut others = Vec::new();
    while Instant::now() < end {
        for mail in mailbox.mails(1, Duration::from_secs(1)) {
            if mail.subject == format!("tapfleet FAILURE {INSTANCE}: {STAYS_BEHIND}") {
                assert!(mail.body.contains("tapfleetd spool upload") && mail.trouble().contains("leaving_unsent"), "{}", mail.body);
                println!("{}", mail.body);
                return mail;
            }
            others.push(mail.subject);
        }
    }
    panic!("nobody heard within {limit:?} that the spool is not empty, but of {others:?}");
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
    agent.wait_for("the group is told", Duration::from_secs(60), |_| matches!(bench.group.calls().last(), Some(Call::Complete(..))));
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
    let bench = Bench::new(Hook { global: 60, ..HOOK }).with_mailbox();
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
    heard_of_what_stays_behind(bench.mailbox.as_ref().unwrap(), Duration::from_secs(10));
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
    agent.wait_for("the mail is filed", Duration::from_secs(40), |_| bench.mails().contains(STAYS_BEHIND));
    assert!(Utc::now() < at, "in time");
    // Capture goes on to the last moment.
    let before = agent.counters().unwrap().get("frames_written");
    agent.wait_counters("frames are taken", Duration::from_secs(10), |counters| counters.get("frames_written") > before);
    traffic.stop();
    assert!(agent.stop(Duration::from_secs(5)).success());
}

#[test]
fn after_a_spot_notice_what_came_is_in_s3_and_confirmed_within_seconds_and_so_is_what_comes_until_the_end() {
    let bench = Bench::new(HOOK).with_s3();
    bench.make_bucket();
    let mut agent = bench.start(&bench.settings());
    let traffic = Traffic::of(&bench.pair, 2000, Duration::from_millis(2));
    agent.wait_counters("frames are taken", Duration::from_secs(20), |counters| counters.get("frames_written") >= 1000);
    let at: DateTime<Utc> = (SystemTime::now() + Duration::from_secs(120)).into();
    bench.imds.set("spot/instance-action", &format!(r#"{{"action": "terminate", "time": "{}"}}"#, at.format("%Y-%m-%dT%H:%M:%SZ")));
    let (noticed, before, open) = (Instant::now(), traffic.sent(), bench.unsent());
    // It is asked for each five seconds; a short window and its stragglers follow.
    agent.wait_for("what came before the notice is confirmed", Duration::from_secs(20), |_| open.iter().all(|path| !path.exists()));
    let first = noticed.elapsed();
    let numbers: BTreeSet<_> = bench.stored().0.into_iter().collect();
    assert!((0..before).all(|number| numbers.contains(&number)), "it is in S3 while packets come");
    let (sent, quiet) = (traffic.stop(), Instant::now());
    agent.wait_for("what came until now is confirmed", Duration::from_secs(15), |_| bench.unsent().is_empty());
    let rest = quiet.elapsed();
    // As the end of the instance ends it.
    agent.kill();
    assert_eq!(bench.stored().0, (0..sent).collect::<Vec<_>>(), "each frame once");
    assert!(sent > before && at - Utc::now() > chrono::TimeDelta::seconds(75), "long before the instance goes");
    assert!(!bench.mails().contains(STAYS_BEHIND), "nothing stays behind");
    println!("{before} frames were in S3 {first:?} after the notice, all {sent} {rest:?} after the last one");
}

#[test]
fn credentials_of_a_role_that_expire_while_the_metadata_fails_or_hangs_cost_no_frame_and_the_next_ones_are_used_at_once() {
    let bench = Bench::new(HOOK);
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let s3 = bench.pair.tap.run(|| threads.block_on(FaultyS3::start(BUCKET)));
    let give = |access_key, lasting| {
        let keys = Keys { access_key, secret: access_key, token: access_key, expires: SystemTime::now() + Duration::from_secs(lasting) };
        s3.know(access_key, keys.secret, keys.token);
        bench.imds.role("captures", &keys);
        keys.expires
    };
    let expires = give("ASIAFIRST", 8);
    let settings = bench.settings().set("s3.endpoint_url", s3.endpoint()).set("record.rotate_seconds", 1);
    let home = bench.folder.path().to_str().unwrap();
    let settings = settings.variable("AWS_ACCESS_KEY_ID", "").variable("AWS_SECRET_ACCESS_KEY", "").variable("HOME", home);
    let mut agent = bench.start(&settings);
    let traffic = Traffic::start(&bench.pair);
    agent.wait_counters("captures arrive", Duration::from_secs(15), |counters| counters.get("segments_verified") >= 2);

    bench.imds.source(Source::Fails);
    thread::sleep(expires.duration_since(SystemTime::now()).unwrap_or_default());
    s3.expire("ASIAFIRST");
    let refused = agent.wait_counters("there are none", Duration::from_secs(30), |counters| counters.get("credential_refusals") >= 2);
    bench.imds.source(Source::Hangs);
    // More than may have been under way.
    let more = refused.get("credential_refusals") + SEGMENTS_AT_ONCE as u64;
    let hung = agent.wait_counters("still none", Duration::from_secs(60), |counters| counters.get("credential_refusals") > more);
    assert_eq!(hung.get("segments_verified"), refused.get("segments_verified"), "nothing can be sent");
    assert!(hung.get("spool_segments") > refused.get("spool_segments"), "what comes stays in the spool: {hung:?}");
    assert_eq!((hung.get("segments_poison"), hung.sum("drops"), bench.health().0), (0, 0, 200));

    bench.imds.revoke();
    give("ASIASECOND", 3600);
    bench.imds.source(Source::Works);
    let (sent, back) = (traffic.stop(), Instant::now());
    agent.wait_for("everything is confirmed", Duration::from_secs(60), |_| bench.unsent().is_empty());
    let took = back.elapsed();
    assert!(agent.stop(Duration::from_secs(5)).success());
    let objects = s3.objects();
    let captures = objects.objects.iter().filter(|(key, _)| key.ends_with(".pcap"));
    let frames = captures.flat_map(|(_, object)| records(&object.content.data));
    let mut numbers: Vec<_> = frames.map(|record| numbered::number(&record.bytes).unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "each frame once");
    println!("{} segments waited, and were in S3 {took:?} after there were credentials again", hung.get("spool_segments"));
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
    agent.wait_for("the mail is filed", Duration::from_secs(10), |_| bench.mails().contains(STAYS_BEHIND));
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
    reach(&machine, &[&format!("TAPFLEET__S3__ENDPOINT_URL={}", s3.endpoint())]);
    (machine, s3)
}

/// Tells the agent of a machine by variables where AWS is.
fn reach(machine: &Machine, variables: &[&str]) {
    let keys = "AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_EC2_METADATA_DISABLED=true";
    machine.write("etc/systemd/system/tapfleetd.service.d/aws.conf", &format!("[Service]\nEnvironment={keys} {}\n", variables.join(" ")));
    machine.run("systemctl", &["daemon-reload"]);
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
    let mut restarts = (0..3).map(|_| machine.systemctl("restart"));
    let took = restarts.find(|took| *took < RESTART).unwrap_or_else(|| panic!("each of three restarts took longer than {RESTART:?}"));
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

#[test]
fn a_machine_that_goes_down_before_its_spool_is_empty_has_mailed_about_it() {
    let settings = Settings::new(NOWHERE, SPOOL.as_ref())
        .set("capture.interface", TAP)
        .set("capture.ring_bytes", "64MiB")
        .set("lifecycle.shutdown", "12s")
        .set("alert.topic_arn", TOPIC)
        .set("alert.silence", "0s");
    let machine = Machine::boot(&settings, "[Service]\nTimeoutStopSec=4\n");
    let mailbox = Mailbox::new(machine.pair.tap.name());
    mailbox.subscribe();
    assert_eq!(mailbox.topic, TOPIC);
    // There is no bucket.
    let s3 = format!("TAPFLEET__S3__ENDPOINT_URL={}", mailbox.aws.endpoint());
    reach(&machine, &[&s3, &format!("AWS_ENDPOINT_URL_SNS={}", mailbox.endpoint())]);
    machine.systemctl("start");
    let traffic = Traffic::start(&machine.pair);
    thread::sleep(Duration::from_secs(1));
    traffic.stop();
    let begun = Instant::now();
    machine.run("systemctl", &["poweroff", "--no-block"]);
    let mail = heard_of_what_stays_behind(&mailbox, Duration::from_secs(30));
    assert!(mail.body.contains(INSTANCE), "{}", mail.body);
    println!("heard of it {:?} after the shutdown began", begun.elapsed());
}
