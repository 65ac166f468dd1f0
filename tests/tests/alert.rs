//! Promise 5 through a real topic: a person hears once that a trouble has begun and once that it is over, whatever is down meanwhile.
//! In: two network namespaces, LocalStack's SNS with a queue subscribed to it, the daemon. Out: the mails, read back.
//! Needs: root, S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, INSTANCE, Settings};
use tapfleet_tests::filesystem::FileSystem;
use tapfleet_tests::localstack::REGION;
use tapfleet_tests::mailbox::{Mail, Mailbox, Passage};
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp};

/// One after the other: each has thresholds of seconds.
static ALONE: Mutex<()> = Mutex::new(());

/// A topic that can be reached or not, and the wire.
struct Bench {
    mailbox: Mailbox,
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let pair = Pair::new();
        Self { mailbox: Mailbox::new(pair.tap.name()), pair, folder: tempfile::tempdir().unwrap() }
    }

    fn make_bucket(&self) {
        self.pair.tap.run(|| runtime().block_on(self.mailbox.aws.bucket(BUCKET)));
    }

    fn settings(&self) -> Settings {
        let folder = self.folder.path();
        Settings::new(&self.mailbox.aws.endpoint(), &folder.join("spool"))
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "64MiB")
            .set("record.rotate_seconds", 1)
            .set("alert.topic_arn", self.mailbox.topic.as_str())
            .set("alert.dir", folder.join("outbox").to_str().unwrap())
            .set("alert.silence", "0s")
            .variable("AWS_ENDPOINT_URL_SNS", &self.mailbox.endpoint())
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

    /// Exactly a begin and an end of one trouble, and nothing after.
    fn assert_begin_and_end(&self, agent: &Agent, title: &str, limit: Duration) -> [Mail; 2] {
        let mut mails = self.mailbox.mails(2, limit);
        mails.extend(self.mailbox.mails(1, Duration::from_secs(3)));
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

fn waiting(folder: &Path) -> usize {
    mails_in(&folder.join("outbox"))
}

fn mails_in(outbox: &Path) -> usize {
    let entries = std::fs::read_dir(outbox).into_iter().flatten();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|found| found == "mail")).count()
}

#[test]
fn a_capture_that_goes_silent_is_mailed_once_and_its_end_once() {
    let _alone = alone();
    let bench = Bench::new();
    bench.mailbox.subscribe();
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
    bench.mailbox.subscribe();
    bench.mailbox.door.set(Passage::Shut);
    let mut agent = bench.start(&bench.settings());
    agent.wait_for("the trouble is filed", Duration::from_secs(20), |_| waiting(bench.folder.path()) == 1);
    agent.kill();
    let mut agent = bench.start(&bench.settings());
    bench.send(Duration::from_secs(3));
    bench.make_bucket();
    // The uploader's next try, and then the time for which it must go well.
    agent.wait_for("its end is filed", Duration::from_secs(90), |_| waiting(bench.folder.path()) == 2);
    bench.mailbox.door.set(Passage::Open);
    let [begin, _] = bench.assert_begin_and_end(&agent, "S3 refuses the captures", Duration::from_secs(90));
    assert!(begin.trouble().starts_with("upload_refused-"), "{}", begin.trouble());
    agent.wait_for("nothing waits", Duration::from_secs(5), |_| waiting(bench.folder.path()) == 0);
    agent.stop(Duration::from_secs(10));
}

#[test]
fn a_volume_that_hangs_with_spool_and_outbox_on_it_is_mailed_about_while_it_hangs_and_each_mail_comes_once() {
    let _alone = alone();
    let bench = Bench::new();
    let disk = FileSystem::new(bench.folder.path(), 64 << 20);
    bench.mailbox.subscribe();
    bench.make_bucket();
    let on_disk = |name: &str| disk.at().join(name).to_str().unwrap().to_owned();
    let settings = bench.settings().set("spool.dir", on_disk("spool").as_str()).set("alert.dir", on_disk("outbox").as_str());
    let mut agent = bench.start(&settings);
    bench.send(Duration::from_secs(2));
    let frozen = disk.freeze();
    bench.send(Duration::from_secs(1));
    // Half a minute is what a volume may take; then a mail must come although nothing can be filed.
    let mut mails = bench.mailbox.mails(1, Duration::from_secs(90));
    assert_eq!(mails.len(), 1, "no mail while the volume hung");
    drop(frozen);
    mails.extend(bench.mailbox.mails(1, Duration::from_secs(120)));
    // What was filed when the disk came back has left already.
    agent.wait_for("nothing waits", Duration::from_secs(20), |_| mails_in(&disk.at().join("outbox")) == 0);
    mails.extend(bench.mailbox.mails(1, Duration::from_secs(3)));
    agent.stop(Duration::from_secs(20));
    let [begin, over] = <[Mail; 2]>::try_from(mails).unwrap_or_else(|mails| panic!("not two mails: {mails:#?}"));
    assert_eq!(begin.subject, format!("tapfleet FAILURE {INSTANCE}: the spool's disk takes nothing"));
    assert_eq!(over.subject, format!("tapfleet OVER {INSTANCE}: the spool's disk takes nothing"));
    assert_eq!(begin.trouble(), over.trouble());
    println!("{}\n{}", begin.body, over.body);
}

#[test]
fn an_agent_that_cannot_start_mails_once_however_often_it_tries() {
    let _alone = alone();
    let bench = Bench::new();
    bench.mailbox.subscribe();
    bench.make_bucket();
    let settings = bench.settings().set("capture.interface", "nowhere0").set("alert.on_start", true);
    for _ in 0..3 {
        let mut agent = Agent::start(Some(bench.pair.tap.name()), &settings, bench.folder.path());
        assert_eq!(agent.ended(Duration::from_secs(10)).code(), Some(1));
    }
    let mails = bench.mailbox.mails(2, Duration::from_secs(5));
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
    bench.mailbox.subscribe();
    let mails = bench.mailbox.mails(3, Duration::from_secs(30));
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
    bench.mailbox.subscribe();
    let (code, said) = bench.command(&settings, &["alert", "--test"]);
    assert!(code == Some(0) && said.contains(&bench.mailbox.topic), "{code:?}: {said}");
    let words = ["alert", "--subject", "Grüße\nfrom here", "--message", "by hand"];
    let mut agent = bench.start(&settings);
    let (code, said) = bench.command(&settings, &words);
    assert_eq!(code, Some(0), "{said}");
    agent.stop(Duration::from_secs(10));
    let mails = bench.mailbox.mails(2, Duration::from_secs(10));
    let by_hand = mails.iter().find(|mail| mail.subject == "Gr??e from here").unwrap_or_else(|| panic!("{mails:#?}"));
    assert!(by_hand.body.starts_with("by hand\n") && by_hand.body.contains(INSTANCE), "{}", by_hand.body);
    assert!(mails.iter().any(|mail| mail.subject == format!("tapfleet TEST {INSTANCE}")), "{mails:#?}");

    bench.mailbox.door.set(Passage::Shut);
    let (code, said) = bench.command(&settings, &words);
    assert!(code == Some(75) && said.contains("waits in the outbox") && said.contains(&bench.mailbox.topic), "{code:?}: {said}");
    assert_eq!(waiting(bench.folder.path()), 1);
    bench.mailbox.door.set(Passage::Open);
    let (code, said) = bench.command(&settings, &["alert", "--test"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(bench.mailbox.mails(2, Duration::from_secs(10)).len(), 2, "what waited, and the test");
    let (code, said) = bench.command(&settings.set("alert.topic_arn", ""), &["alert", "--test"]);
    assert!(code == Some(1) && said.contains("alert.topic_arn"), "{code:?}: {said}");
}

#[test]
fn a_mail_whose_answer_is_lost_comes_again_under_the_same_id_before_the_next_and_nothing_else_is_doubled() {
    let _alone = alone();
    let bench = Bench::new();
    bench.mailbox.subscribe();
    bench.mailbox.door.set(Passage::Shut);
    // Without a bucket: a trouble, a word of a person, and the start of another agent wait one behind the other.
    let mut agent = bench.start(&bench.settings());
    agent.wait_for("the trouble is filed", Duration::from_secs(20), |_| waiting(bench.folder.path()) == 1);
    agent.kill();
    let (code, said) = bench.command(&bench.settings(), &["alert", "--subject", "word", "--message", "by hand"]);
    assert!(code == Some(75) && waiting(bench.folder.path()) == 2, "{code:?}: {said}");
    bench.mailbox.door.set(Passage::Lossy);
    let mut agent = bench.start(&bench.settings().set("alert.on_start", true));
    let mut mails = bench.mailbox.mails(4, Duration::from_secs(60));
    agent.wait_for("nothing waits", Duration::from_secs(10), |_| waiting(bench.folder.path()) == 0);
    mails.extend(bench.mailbox.mails(1, Duration::from_secs(2)));
    let kinds = ["FAILURE", "word", "STARTED"];
    let kind = |text: &str| kinds.into_iter().find(|kind| text.contains(kind)).unwrap_or_else(|| panic!("not one of ours: {text}"));
    let wire = bench.mailbox.door.published();
    assert_eq!(wire.iter().map(|request| kind(request)).collect::<Vec<_>>(), ["FAILURE", "FAILURE", "word", "STARTED"]);
    let mut come: Vec<_> = mails.iter().map(|mail| kind(&mail.subject)).collect();
    come.sort_unstable();
    assert_eq!(come, ["FAILURE", "FAILURE", "STARTED", "word"]);
    let twins: Vec<_> = mails.iter().filter(|mail| mail.subject.contains("FAILURE")).collect();
    assert_eq!((twins[0].trouble(), &twins[0].body), (twins[1].trouble(), &twins[1].body), "one mail, twice");
    assert_eq!(left(&agent).len(), kinds.len(), "each has left once as far as the agent knows: {:?}", left(&agent));
    agent.stop(Duration::from_secs(10));
}

#[test]
fn a_topic_that_denies_is_said_and_counted_and_gets_each_mail_once_when_it_allows_them() {
    let _alone = alone();
    let bench = Bench::new();
    bench.mailbox.subscribe();
    bench.mailbox.door.set(Passage::Denied);
    let mut agent = bench.start(&bench.settings().set("alert.on_start", true));
    agent.wait_counters("the mails wait and are tried again", Duration::from_secs(30), |counters| {
        counters.get("mails_waiting") == 2 && counters.get("mail_failures") >= 2
    });
    let metrics = agent.get("/metrics").unwrap();
    for line in ["tapfleet_mails_waiting 2", "tapfleet_healthy 1"] {
        assert!(metrics.lines().any(|found| found == line), "no '{line}' in {metrics}");
    }
    assert!(metrics.contains("tapfleet_mail_failures_total "), "{metrics}");
    let log = agent.log();
    for words in ["a mail waits in the outbox", "AuthorizationError: User is not authorized", "allow the agent's role sns:Publish"] {
        assert!(log.contains(words), "it is not said: {words}");
    }
    assert_eq!((waiting(bench.folder.path()), left(&agent).len()), (2, 0));
    bench.mailbox.door.set(Passage::Open);
    let mut mails = bench.mailbox.mails(2, Duration::from_secs(60));
    agent.wait_counters("none waits", Duration::from_secs(10), |counters| counters.get("mails_waiting") == 0);
    mails.extend(bench.mailbox.mails(1, Duration::from_secs(2)));
    let [start, begin] = <[String; 2]>::try_from(left(&agent)).unwrap_or_else(|subjects| panic!("not two mails: {subjects:?}"));
    assert!(start.contains("STARTED") && begin.ends_with("S3 refuses the captures"), "{start}, {begin}");
    assert_eq!((mails.len(), bench.mailbox.door.published().len()), (2, 2), "each once: {mails:#?}");
    agent.stop(Duration::from_secs(10));
}
