//! Promise 5 from a real cause to the mail: an interface that is gone, a ring that ran over, an S3 that fails or refuses, a capture that
//! cannot be sent. Each begins one trouble and ends it, and no other.
//! In: the daemon, or its uploader and alerts on a clock that is moved; an S3 that fails as told; an SNS. Out: the mails, read back.
//! Needs: root, S3, moto.
//! Threads: 3, as all tests wait.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider, StalledStreamProtectionConfig};
use serde_json::json;
use tapfleet::alert::{self, Notifier, Place, Scene, Sns};
use tapfleet::host::clock::{Clock, Now, SECOND_NS};
use tapfleet::observe::counters::Counters;
use tapfleet::record::facts::Kind;
use tapfleet::upload::s3::Patience;
use tapfleet::upload::{self, Reserved, S3};
use tapfleet_tests::agent::{Agent, INSTANCE, Settings};
use tapfleet_tests::faulty_s3::script::{Fault, Op};
use tapfleet_tests::faulty_s3::{FaultyS3, SECRET};
use tapfleet_tests::localstack::REGION;
use tapfleet_tests::mailbox::{Mail, Mailbox};
use tapfleet_tests::moto::Moto;
use tapfleet_tests::netns::{Pair, SOURCE_V4, TAP, TAP_V4};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp};
use tapfleet_tests::segments::{self, BUCKET, Segment, id, pattern};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, pause, resume, sleep};

/// Every call that the uploader makes.
const OPS: [Op; 12] = [
    Op::HeadBucket,
    Op::Head,
    Op::HeadManifest,
    Op::Create,
    Op::Part,
    Op::Parts,
    Op::Uploads,
    Op::Complete,
    Op::Abort,
    Op::PutManifest,
    Op::Put,
    Op::Other,
];

const HOUR: Duration = Duration::from_secs(3600);

const INTERFACE: &str = "the capture interface is gone";
const DROPS: &str = "the kernel drops packets";
const CREDENTIALS: &str = "the credentials are refused";

fn refuse_all(server: &FaultyS3, status: u16, code: &'static str) {
    for op in OPS {
        server.fail(op, 1..=u32::MAX, Fault::Refuse(status, code));
    }
}

/// Frames on the wire, as fast as it takes them.
fn send(pair: &Pair, frames: u32) {
    pair.source.run(|| {
        let inner = Ethernet::default() / Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, 5001) / vec![7; 8000];
        let datagram = Aws::default().gwlb_datagram(inner.build()).build();
        let socket = UdpSocket::bind((Ipv4Addr::from(SOURCE_V4), 0)).unwrap();
        for _ in 0..frames {
            socket.send_to(&datagram, (Ipv4Addr::from(TAP_V4), 6081)).unwrap();
        }
    });
}

/// The mails of a mailbox as they come, in any order.
struct Heard<'a> {
    mailbox: &'a Mailbox,
    mails: Vec<Mail>,
}

impl Heard<'_> {
    /// Waits for the one mail of this beginning and trouble.
    fn wait(&mut self, word: &str, title: &str, limit: Duration) -> Mail {
        let subject = format!("tapfleet {word} {INSTANCE}: {title}");
        let end = std::time::Instant::now() + limit;
        loop {
            if let Some(mail) = self.mails.iter().find(|mail| mail.subject == subject) {
                return mail.clone();
            }
            assert!(std::time::Instant::now() < end, "no mail '{subject}' within {limit:?}, but {:#?}", self.mails);
            self.mails.extend(self.mailbox.mails(1, Duration::from_secs(1)));
        }
    }
}

#[test]
fn an_interface_that_goes_a_ring_that_runs_over_and_refused_credentials_are_mailed_by_the_agent_each_as_what_it_is() {
    let pair = Pair::new();
    let mailbox = Mailbox::new(pair.tap.name());
    mailbox.subscribe();
    // The server's threads live in the namespace that they were made in.
    let (runtime, server) = pair.tap.run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(FaultyS3::start(BUCKET));
        (runtime, server)
    });
    refuse_all(&server, 403, "InvalidAccessKeyId");
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(&server.endpoint(), &folder.path().join("spool"))
        .set("capture.interface", TAP)
        .set("capture.ring_bytes", "4MiB")
        .set("record.rotate_seconds", 1)
        .set("alert.topic_arn", mailbox.topic.as_str())
        .set("alert.dir", folder.path().join("outbox").to_str().unwrap())
        .set("alert.silence", "0s")
        .variable("AWS_SECRET_ACCESS_KEY", SECRET)
        .variable("AWS_ENDPOINT_URL_SNS", &mailbox.endpoint());
    let mut agent = Agent::ready(Some(pair.tap.name()), &settings, folder.path());
    let mut heard = Heard { mailbox: &mailbox, mails: Vec::new() };

    // The manifest of a window without frames is refused in words; of a capture HEAD is asked first, which has none.
    agent.wait_counters("a call is refused", Duration::from_secs(20), |counters| counters.get("credential_refusals") > 0);
    let paused = std::thread::scope(|scope| {
        let paused = scope.spawn(|| agent.pause(Duration::from_secs(2)));
        std::thread::sleep(Duration::from_millis(300));
        // Four times what the ring holds.
        send(&pair, 2000);
        paused.join()
    });
    paused.unwrap();
    let drops = heard.wait("FAILURE", DROPS, Duration::from_secs(20));
    let counters = agent.counters().unwrap();
    let (given, dropped) = (counters.get("kernel_packets"), counters.get("kernel_drops"));
    assert!((1000..2000).contains(&dropped), "{dropped} of {given} were dropped");
    let said = drops.body.split_once("drops packets; ").and_then(|(_, said)| said.split(' ').next()?.parse().ok());
    assert!(said.is_some_and(|said| (1..=dropped).contains(&said)), "not of {dropped}: {}", drops.body);

    pair.unplug();
    let gone = heard.wait("FAILURE", INTERFACE, Duration::from_secs(40));
    assert!(gone.body.contains("from the interface for 1"), "after ten seconds and not much more: {}", gone.body);
    pair.plug();
    let refused = heard.wait("FAILURE", CREDENTIALS, Duration::from_secs(120));
    server.heal();
    let accepted = heard.wait("OVER", CREDENTIALS, Duration::from_secs(120));
    let back = heard.wait("OVER", INTERFACE, Duration::from_secs(120));
    assert_eq!((accepted.trouble(), back.trouble()), (refused.trouble(), gone.trouble()), "begin and end bear one id");
    for (mail, name) in [(&drops, "kernel_drops-"), (&gone, "interface_gone-"), (&refused, "credentials_refused-")] {
        assert!(mail.trouble().starts_with(name), "{}", mail.trouble());
    }
    // The drops may be over by now, too.
    heard.mails.retain(|mail| mail.subject != format!("tapfleet OVER {INSTANCE}: {DROPS}"));
    assert_eq!(heard.mails.len(), 5, "no other and none twice: {:#?}", heard.mails);
    agent.stop(Duration::from_secs(20));
    drop(server);
    runtime.shutdown_background();
}

/// The clock of the runtime, which a test moves; the wall clock goes with it.
#[derive(Clone, Copy)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Now {
        let passed_ns = u64::try_from(self.0.elapsed().as_nanos()).unwrap();
        Now { wall_ns: 1_795_306_500 * SECOND_NS + passed_ns, monotonic_ns: 1_000_000 * SECOND_NS + passed_ns }
    }
}

/// SNS, and how many mails it has taken.
struct Counted(Sns, AtomicUsize);

impl Notifier for Counted {
    async fn publish(&self, mail: &alert::Mail) -> Result<(), alert::notifier::Error> {
        self.0.publish(mail).await?;
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn reaches(&self) -> Result<bool, alert::notifier::Error> {
        self.0.reaches().await
    }
}

/// The uploader and the alerts of an agent, with their clients, on one clock.
struct Stage {
    moto: Moto,
    topic: String,
    sns: Arc<Counted>,
    server: FaultyS3,
    spool: tempfile::TempDir,
    outbox: tempfile::TempDir,
    counters: Arc<Counters>,
    /// Mails that were seen.
    seen: usize,
    segments: u64,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Stage {
    async fn start() -> Self {
        let moto = Moto::start();
        let topic = moto.ask("sns", "create_topic", &json!({"Name": "alerts"}))["TopicArn"].as_str().unwrap().to_owned();
        moto.ask("sns", "subscribe", &json!({"TopicArn": topic, "Protocol": "email", "Endpoint": "people@example.net"}));
        let server = FaultyS3::start(BUCKET).await;
        // In memory: no disk takes part in a clock that is moved.
        let folder = || tempfile::tempdir_in("/dev/shm").unwrap();
        let (spool, outbox) = (folder(), folder());
        let counters = Arc::new(Counters::new(0));
        let (stop, stopping) = watch::channel(false);
        let settings = segments::settings(Duration::from_millis(500));
        let patience = Patience { control: HOUR, complete: HOUR, part: HOUR, ..Patience::default() };
        let store = Arc::new(S3::with_patience(settings.clone(), shared(&server.endpoint(), SECRET), patience));
        let spooled = segments::folder(spool.path()).unwrap();
        let uploading = upload::run(settings, spooled, counters.clone(), store, Reserved::default(), stopping.clone());
        let scene = Scene {
            place: Place { instance: INSTANCE.into(), ..Place::default() },
            live: false,
            expected: Box::new(|_| true),
            counters: counters.clone(),
            spare: None,
        };
        let sns = Arc::new(Counted(Sns::with_config(&topic, shared(&moto.endpoint(), "test")), AtomicUsize::new(0)));
        let alerting = alert::run(alerts(&topic, outbox.path()), scene, sns.clone(), RuntimeClock(Instant::now()), stopping);
        let tasks = vec![tokio::spawn(uploading), tokio::spawn(alerting)];
        Self { moto, topic, sns, server, spool, outbox, counters, seen: 0, segments: 0, stop, tasks }
    }

    /// Another capture, whole, or the manifest of a window without frames.
    fn segment(&mut self, kind: Kind) -> Segment {
        self.segments += 1;
        let key = format!("{INSTANCE}/2026-11-22-00-15_{:04}.pcap", self.segments);
        let segment = Segment::new(self.spool.path(), id(self.segments), key, kind);
        if kind == Kind::Capture {
            segment.open();
            segment.append(&pattern(4321));
        }
        segment.close();
        segment
    }

    /// Lets a moment pass, and two seconds of the clock, unless a call or a mail is on its way: its patience is of that clock.
    async fn tick(&self) {
        let calls = self.server.all_calls();
        sleep(Duration::from_millis(15)).await;
        let waits = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().extension().is_some_and(|found| found == "mail");
        if self.server.all_calls() == calls && !std::fs::read_dir(self.outbox.path()).unwrap().any(waits) {
            pause();
            advance(Duration::from_secs(2)).await;
            resume();
        }
    }

    /// Waits for the next mail, which must be this one, and gives its text and after how many seconds of the clock it came.
    async fn next(&mut self, word: &str, title: &str) -> (String, u64) {
        let (begun, subject) = (Instant::now(), format!("tapfleet {word} {INSTANCE}: {title}"));
        loop {
            self.tick().await;
            if self.sns.1.load(Ordering::SeqCst) > self.seen {
                let after = begun.elapsed().as_secs();
                let (found, body) = self.moto.published(&self.topic).swap_remove(self.seen);
                assert_eq!(found, subject);
                self.seen += 1;
                return (body, after);
            }
            assert!(begun.elapsed() < Duration::from_secs(1500), "no mail '{subject}' in 25 minutes of the clock");
        }
    }
}

fn shared(endpoint: &str, secret: &str) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", secret, None, None, "tests")))
        .build()
}

fn alerts(topic: &str, dir: &Path) -> alert::Settings {
    alert::Settings {
        topic_arn: Some(topic.into()),
        silence: None,
        drop_ratio: 0.001,
        repeat: HOUR,
        on_start: false,
        dir: dir.into(),
        spool_max_bytes: 0,
        window: Duration::from_secs(900),
    }
}

fn trouble(body: &str) -> &str {
    body.lines().find_map(|line| line.strip_prefix("Trouble:")).unwrap().trim()
}

/// What S3 answers to every call, to what, as which trouble, and within which time of the clock that is mailed.
type Refusal = (u16, &'static str, Kind, &'static str, &'static str, Range<u64>);

const REFUSALS: [Refusal; 4] = [
    (500, "InternalError", Kind::Capture, "upload_failing", "captures do not reach S3", 300..500),
    (403, "AccessDenied", Kind::Capture, "upload_refused", "S3 refuses the captures", 0..30),
    (403, "RequestTimeTooSkewed", Kind::Idle, "clock_refused", "S3 refuses this instance's clock", 60..250),
    (403, "InvalidAccessKeyId", Kind::Idle, "credentials_refused", CREDENTIALS, 60..250),
];

#[tokio::test]
async fn what_s3_does_not_take_is_mailed_by_its_own_cause_when_that_is_due_and_again_when_it_is_over() {
    let mut stage = Stage::start().await;
    for (status, code, kind, name, title, due) in REFUSALS {
        refuse_all(&stage.server, status, code);
        let segment = stage.segment(kind);
        let (begin, after) = stage.next("FAILURE", title).await;
        assert!(due.contains(&after), "{name} was mailed after {after} s");
        assert!(trouble(&begin).starts_with(name) && segment.is_there(), "{begin}");
        stage.server.heal();
        let (over, _) = stage.next("OVER", title).await;
        assert_eq!(trouble(&over), trouble(&begin));
        // Any call that S3 takes shows that credentials and clock are good; the try of the segment comes when it is due.
        let healed = Instant::now();
        while segment.is_there() {
            assert!(healed.elapsed() < Duration::from_secs(300) && name != "upload_failing", "it is not in S3");
            stage.tick().await;
        }
    }
    // A capture whose journal the disk has lost.
    let segment = stage.segment(Kind::Capture);
    std::fs::write(segment.path("journal"), "00000000 {}\n").unwrap();
    let (begin, _) = stage.next("FAILURE", "a capture cannot be sent").await;
    assert!(trouble(&begin).starts_with("poison_segment") && begin.contains("1 segments"), "{begin}");
    for extension in ["pcap", "journal", "manifest"] {
        std::fs::remove_file(segment.path(extension)).unwrap();
    }
    let (over, _) = stage.next("OVER", "a capture cannot be sent").await;
    assert_eq!(trouble(&over), trouble(&begin));
    // What came and is over comes no more.
    for _ in 0..60 {
        stage.tick().await;
    }
    assert_eq!((stage.moto.published(&stage.topic).len(), stage.counters.mail_failures.get()), (stage.seen, 0));
    stage.stop.send(true).unwrap();
    for task in stage.tasks.drain(..) {
        task.await.unwrap();
    }
}
