//! Promise 5 through a real topic: a person hears once that a trouble has begun and once that it is over, whatever is down meanwhile.
//! In: two network namespaces, LocalStack's SNS with a queue subscribed to it, the daemon. Out: the mails, read back.
//! Needs: root, S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, INSTANCE, Settings};
use tapfleet_tests::localstack::{CREDENTIALS, LocalStack, REGION};
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp};

/// One after the other: each has thresholds of seconds.
static ALONE: Mutex<()> = Mutex::new(());

/// A mail as a subscriber gets it.
#[derive(Clone, Debug)]
struct Mail {
    subject: String,
    body: String,
}

impl Mail {
    fn trouble(&self) -> &str {
        let line = self.body.lines().find(|line| line.starts_with("Trouble:"));
        line.unwrap_or_else(|| panic!("no trouble id in {}", self.body)).trim_start_matches("Trouble:").trim()
    }
}

/// A topic that can be reached or not, a queue, and the wire.
struct Bench {
    aws: LocalStack,
    pair: Pair,
    folder: tempfile::TempDir,
    door: Door,
    topic: String,
    queue: String,
}

impl Bench {
    fn new() -> Self {
        let pair = Pair::new();
        let aws = LocalStack::start(Some(pair.tap.name()));
        let door = pair.tap.run(|| Door::open(aws.port()));
        let mut bench = Self { aws, pair, folder: tempfile::tempdir().unwrap(), door, topic: String::new(), queue: String::new() };
        (bench.topic, bench.queue) = bench.ask(async |config| {
            let topic = aws_sdk_sns::Client::new(&config).create_topic().name("alerts").send().await.unwrap();
            let queue = aws_sdk_sqs::Client::new(&config).create_queue().queue_name("alerts").send().await.unwrap();
            (topic.topic_arn.unwrap(), queue.queue_url.unwrap())
        });
        bench
    }

    /// Has the queue subscribed, which needs no confirmation.
    fn subscribe(&self) {
        self.ask(async |config| {
            let sqs = aws_sdk_sqs::Client::new(&config);
            let attributes = sqs.get_queue_attributes().queue_url(&self.queue).attribute_names(QueueAttributeName::QueueArn).send().await;
            let arn = attributes.unwrap().attributes.unwrap()[&QueueAttributeName::QueueArn].clone();
            let sns = aws_sdk_sns::Client::new(&config);
            sns.subscribe().topic_arn(&self.topic).protocol("sqs").endpoint(arn).send().await.unwrap();
        });
    }

    fn make_bucket(&self) {
        self.pair.tap.run(|| runtime().block_on(self.aws.bucket(BUCKET)));
    }

    /// Asks AWS, from inside the namespace.
    fn ask<T: Send>(&self, work: impl AsyncFnOnce(SdkConfig) -> T + Send) -> T {
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.aws.endpoint())
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new(CREDENTIALS, CREDENTIALS, None, None, "tests")));
        self.pair.tap.run(|| runtime().block_on(work(config.build())))
    }

    fn settings(&self) -> Settings {
        let folder = self.folder.path();
        Settings::new(&self.aws.endpoint(), &folder.join("spool"))
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "64MiB")
            .set("record.rotate_seconds", 1)
            .set("alert.topic_arn", self.topic.as_str())
            .set("alert.dir", folder.join("outbox").to_str().unwrap())
            .set("alert.silence", "0s")
            .variable("AWS_ENDPOINT_URL_SNS", &format!("http://{}", self.door.address))
    }

    fn start(&self, settings: &Settings) -> Agent {
        Agent::ready(Some(self.pair.tap.name()), settings, self.folder.path())
    }

    fn command(&self, settings: &Settings, arguments: &[&str]) -> (Option<i32>, String) {
        settings.command(Some(self.pair.tap.name()), self.folder.path(), arguments)
    }

    /// Sends mirrored frames for so long.
    fn send(&self, time: Duration) {
        self.pair.source.run(|| {
            let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
            let begun = Instant::now();
            while begun.elapsed() < time {
                let frame =
                    (Ethernet::default() / Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, 5001) / vec![7; 100]).build();
                socket.send_to(&Aws::default().gwlb_datagram(frame).build(), ("10.77.0.2", 6081)).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
    }

    /// What has come since the last look, for at most `limit` or until there are `count`. Topic and queue promise no order; in
    /// which one the mails left, the agent's log says.
    fn mails(&self, count: usize, limit: Duration) -> Vec<Mail> {
        let end = Instant::now() + limit;
        let mut mails = Vec::new();
        while mails.len() < count && Instant::now() < end {
            mails.extend(self.ask(async |config| {
                let sqs = aws_sdk_sqs::Client::new(&config);
                let received = sqs.receive_message().queue_url(&self.queue).max_number_of_messages(10).wait_time_seconds(1).send().await;
                let mut mails: Vec<Mail> = Vec::new();
                for message in received.unwrap().messages.unwrap_or_default() {
                    let json: Value = serde_json::from_str(message.body.as_deref().unwrap()).unwrap();
                    let text = |name: &str| json[name].as_str().unwrap().to_owned();
                    mails.push(Mail { subject: text("Subject"), body: text("Message") });
                    sqs.delete_message().queue_url(&self.queue).receipt_handle(message.receipt_handle.unwrap()).send().await.unwrap();
                }
                mails
            }));
        }
        mails
    }

    /// Exactly a begin and an end of one trouble, and nothing after.
    fn assert_begin_and_end(&self, agent: &Agent, title: &str, limit: Duration) -> [Mail; 2] {
        let mut mails = self.mails(2, limit);
        mails.extend(self.mails(1, Duration::from_secs(3)));
        let order = left(agent);
        mails.sort_by_key(|mail| order.iter().position(|subject| *subject == mail.subject));
        let [begin, over] = <[Mail; 2]>::try_from(mails).unwrap_or_else(|mails| panic!("not two mails: {mails:#?}"));
        assert_eq!(begin.subject, format!("tapfleet FAILURE {INSTANCE}: {title}"));
        assert_eq!(over.subject, format!("tapfleet OVER {INSTANCE}: {title}"));
        assert_eq!(begin.trouble(), over.trouble(), "both bear one id");
        for words in [INSTANCE, REGION, "000000000000", "At stake:", "To do:"] {
            assert!(begin.body.contains(words), "no {words} in {}", begin.body);
        }
        assert!(over.body.contains("Lasted:") && over.body.contains("Lost:"), "{}", over.body);
        [begin, over]
    }
}

/// The subjects of the mails that have left, in this order.
fn left(agent: &Agent) -> Vec<String> {
    let log = agent.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some(line["message"].as_str()?.strip_prefix("a mail has left: ")?.to_owned())).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// What stands between the agent and the topic: open, or as if nobody were there.
struct Door {
    address: SocketAddr,
    shut: Arc<AtomicBool>,
    passing: Arc<Mutex<Vec<TcpStream>>>,
}

impl Door {
    /// One in this thread's network namespace.
    fn open(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let door = Self { address: listener.local_addr().unwrap(), shut: Arc::default(), passing: Arc::default() };
        let (shut, passing) = (door.shut.clone(), door.passing.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(behind) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                passing.lock().unwrap().extend([stream.try_clone().unwrap(), behind.try_clone().unwrap()]);
                for (mut from, mut to) in [(stream.try_clone().unwrap(), behind.try_clone().unwrap()), (behind, stream)] {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.flush();
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        door
    }

    fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
        for stream in self.passing.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn waiting(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder.join("outbox")).into_iter().flatten();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|found| found == "mail")).count()
}

#[test]
fn a_capture_that_goes_silent_is_mailed_once_and_its_end_once() {
    let _alone = alone();
    let bench = Bench::new();
    bench.subscribe();
    bench.make_bucket();
    let mut agent = bench.start(&bench.settings().set("alert.silence", "2s"));
    bench.send(Duration::from_secs(3));
    thread::sleep(Duration::from_secs(5));
    bench.send(Duration::from_secs(8));
    agent.stop(Duration::from_secs(10));
    let [begin, _] = bench.assert_begin_and_end(&agent, "no mirrored packets arrive", Duration::from_secs(10));
    assert!(begin.trouble().starts_with("silence-"), "{}", begin.trouble());
    println!("{}\n\n{}", begin.subject, begin.body);
}

#[test]
fn a_bucket_that_is_not_there_is_mailed_once_and_its_end_once_though_sns_is_down_and_the_agent_is_killed_meanwhile() {
    let _alone = alone();
    let bench = Bench::new();
    bench.subscribe();
    bench.door.shut(true);
    let mut agent = bench.start(&bench.settings());
    agent.wait_for("the trouble is filed", Duration::from_secs(20), |_| waiting(bench.folder.path()) == 1);
    agent.kill();
    let mut agent = bench.start(&bench.settings());
    bench.send(Duration::from_secs(3));
    bench.make_bucket();
    // The uploader's next try, and then the time for which it must go well.
    agent.wait_for("its end is filed", Duration::from_secs(90), |_| waiting(bench.folder.path()) == 2);
    bench.door.shut(false);
    let [begin, _] = bench.assert_begin_and_end(&agent, "S3 refuses the captures", Duration::from_secs(90));
    assert!(begin.trouble().starts_with("upload_refused-"), "{}", begin.trouble());
    agent.wait_for("nothing waits", Duration::from_secs(5), |_| waiting(bench.folder.path()) == 0);
    agent.stop(Duration::from_secs(10));
}

#[test]
fn an_agent_that_cannot_start_mails_once_however_often_it_tries() {
    let _alone = alone();
    let bench = Bench::new();
    bench.subscribe();
    bench.make_bucket();
    let settings = bench.settings().set("capture.interface", "nowhere0").set("alert.on_start", true);
    for _ in 0..3 {
        let mut agent = Agent::start(Some(bench.pair.tap.name()), &settings, bench.folder.path());
        assert_eq!(agent.ended(Duration::from_secs(10)).code(), Some(1));
    }
    let mails = bench.mails(2, Duration::from_secs(5));
    assert_eq!(mails.len(), 1, "{mails:#?}");
    assert!(mails[0].subject.ends_with("no packets can be captured") && mails[0].body.contains("nowhere0"), "{mails:#?}");
}

#[test]
fn a_topic_without_a_confirmed_subscription_is_said_and_mails_wait_until_there_is_one() {
    let _alone = alone();
    let bench = Bench::new();
    bench.make_bucket();
    let settings = bench.settings().set("alert.on_start", true);
    let mut agent = bench.start(&settings);
    agent.wait_for("it is said", Duration::from_secs(10), |agent| agent.log().contains("no confirmed subscription"));
    agent.wait_for("start and trouble wait", Duration::from_secs(10), |_| waiting(bench.folder.path()) == 2);
    bench.subscribe();
    let mails = bench.mails(3, Duration::from_secs(30));
    let subjects = left(&agent);
    assert_eq!(mails.len(), subjects.len(), "{mails:#?}");
    let [start, begin, over] = subjects.as_slice() else { panic!("not three mails: {subjects:?}") };
    assert!(start.contains("STARTED") && begin.contains("FAILURE") && over.contains("OVER"), "{subjects:?}");
    assert!(over.ends_with("nobody receives the alert mails"), "{over}");
    agent.stop(Duration::from_secs(10));
}

#[test]
fn the_command_sends_words_and_tests_beside_an_agent_and_without_one_and_says_when_it_cannot() {
    let _alone = alone();
    let bench = Bench::new();
    bench.make_bucket();
    let settings = bench.settings();
    let (code, said) = bench.command(&settings, &["alert", "--test"]);
    assert!(code == Some(1) && said.contains("no confirmed subscription"), "{code:?}: {said}");
    bench.subscribe();
    let (code, said) = bench.command(&settings, &["alert", "--test"]);
    assert!(code == Some(0) && said.contains(&bench.topic), "{code:?}: {said}");
    let words = ["alert", "--subject", "Grüße\nfrom here", "--message", "by hand"];
    let mut agent = bench.start(&settings);
    let (code, said) = bench.command(&settings, &words);
    assert_eq!(code, Some(0), "{said}");
    agent.stop(Duration::from_secs(10));
    let mails = bench.mails(2, Duration::from_secs(10));
    let by_hand = mails.iter().find(|mail| mail.subject == "Gr??e from here").unwrap_or_else(|| panic!("{mails:#?}"));
    assert!(by_hand.body.starts_with("by hand\n") && by_hand.body.contains(INSTANCE), "{}", by_hand.body);
    assert!(mails.iter().any(|mail| mail.subject == format!("tapfleet TEST {INSTANCE}")), "{mails:#?}");

    bench.door.shut(true);
    let (code, said) = bench.command(&settings, &words);
    assert!(code == Some(75) && said.contains("waits in the outbox") && said.contains(&bench.topic), "{code:?}: {said}");
    assert_eq!(waiting(bench.folder.path()), 1);
    bench.door.shut(false);
    let (code, said) = bench.command(&settings, &["alert", "--test"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(bench.mails(2, Duration::from_secs(10)).len(), 2, "what waited, and the test");
    let (code, said) = bench.command(&settings.set("alert.topic_arn", ""), &["alert", "--test"]);
    assert!(code == Some(1) && said.contains("alert.topic_arn"), "{code:?}: {said}");
}
