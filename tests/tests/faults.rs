//! Every fault of S3 that is known, one after the other, against the real uploader and its S3 client over a real socket. After each
//! stand the same promises: nothing leaves the spool before object and manifest are confirmed (looked at while the fault lasts), one
//! object per segment, its bytes equal, nobody else's object touched, no upload left.
//! In: `faulty_s3` on loopback, spool folders made by hand. Out: what is in the bucket, how often it was asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use tapfleet::config::Written;
use tapfleet::observe::counters::Counters;
use tapfleet::record::facts::Kind;
use tapfleet::upload::manifest::Manifest;
use tapfleet::upload::queue::offset;
use tapfleet::upload::s3::Patience;
use tapfleet::upload::{self, Reserved, S3, checksum};
use tapfleet_tests::faulty_s3::clock::Clock;
use tapfleet_tests::faulty_s3::script::{Fault, Op};
use tapfleet_tests::faulty_s3::{FaultyS3, SECRET};
use tapfleet_tests::segments::{BUCKET, Segment, files, first_key, folder, id, manifest_key, pattern, settings};
use tokio::sync::watch;

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Attempts that the client makes at a call before the uploader hears of it.
const ATTEMPTS: u32 = 3;

/// A server, a spool, and one segment of two parts in it.
struct Bench {
    dir: tempfile::TempDir,
    server: FaultyS3,
    counters: Arc<Counters>,
    segment: Segment,
    bytes: Vec<u8>,
}

impl Bench {
    /// With a segment of one whole part and a tail.
    async fn new() -> Self {
        Self::with(8 * MIB + 4321).await
    }

    async fn with(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let segment = Segment::new(dir.path(), id(1), first_key(), Kind::Capture);
        let bytes = pattern(bytes);
        segment.open();
        segment.append(&bytes);
        Self { server: FaultyS3::start(BUCKET).await, counters: Arc::new(Counters::new(1)), dir, segment, bytes }
    }

    async fn whole() -> Self {
        let bench = Self::new().await;
        bench.segment.close();
        bench
    }

    fn store(&self) -> Arc<S3> {
        self.store_with(config(&self.server, "first"))
    }

    fn store_with(&self, shared: SdkConfig) -> Arc<S3> {
        let second = Duration::from_secs(1);
        let patience = Patience { control: second, complete: second, part: 2 * second, slowest_bytes_per_second: 64 << 20 };
        Arc::new(S3::with_patience(settings(LOOK_EVERY), shared, patience))
    }

    fn start(&self) -> Running {
        self.start_to(self.store())
    }

    fn start_to(&self, store: Arc<S3>) -> Running {
        self.start_with(settings(LOOK_EVERY), store)
    }

    fn start_with(&self, settings: upload::Settings, store: Arc<S3>) -> Running {
        let (stop, stopped) = watch::channel(false);
        let run = upload::run(settings, folder(self.dir.path()).unwrap(), self.counters.clone(), store, Reserved::default(), stopped);
        Running { task: tokio::spawn(run), _stop: stop }
    }

    /// Makes the segment's file as long as so many whole parts.
    fn grow(&self, parts: u64) {
        let file = OpenOptions::new().write(true).open(self.segment.path("pcap")).unwrap();
        file.set_len(parts * 8 * MIB as u64).unwrap();
    }

    /// What S3 refused for the bucket's or the key's sake, for the credentials', for the clock's.
    fn refusals(&self) -> [u64; 3] {
        let counters = &self.counters;
        [&counters.upload_refusals, &counters.credential_refusals, &counters.clock_refusals].map(|refusals| refusals.get())
    }

    /// Promise 3, at any moment.
    fn check(&self) {
        if self.segment.is_there() {
            return;
        }
        let objects = self.server.objects();
        let ours: Vec<_> = objects.objects.values().filter(|object| object.metadata.get("capture-id") == Some(&self.segment.id)).collect();
        assert_eq!(ours.len(), 1, "the segment has left the spool and is not in S3, once");
        assert!(ours[0].content.data == self.bytes, "it has left the spool and its object is not what it was");
        assert!(objects.objects.contains_key(&manifest_key(&self.segment.id)), "it has left the spool without its manifest");
    }

    async fn until(&self, what: &str, mut there: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !there() {
            assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}; the spool holds {:?}", files(self.dir.path()));
            tokio::time::sleep(Duration::from_millis(5)).await;
            if self.segment.path("manifest").exists() || self.server.objects().objects.contains_key(&manifest_key(&self.segment.id)) {
                self.check();
            }
        }
    }

    /// Waits until everything has arrived under `key`, and sees that it is all and nothing else.
    async fn arrives_at(&self, key: &str) {
        self.until("an empty spool", || files(self.dir.path()).is_empty()).await;
        self.check();
        let objects = self.server.objects();
        let object = objects.objects.get(key).unwrap_or_else(|| panic!("no object '{key}', but {:?}", objects.objects.keys()));
        assert!(object.content.data == self.bytes && object.metadata["capture-id"] == self.segment.id);
        let manifest: Manifest = serde_json::from_slice(&objects.objects[&manifest_key(&self.segment.id)].content.data).unwrap();
        let named = manifest.object.unwrap();
        assert_eq!((named.key.as_str(), named.bytes), (key, self.bytes.len() as u64));
        assert_eq!(named.crc64nvme, checksum::to_base64(checksum::of_bytes(&self.bytes)));
        let others = |other: &&String| *other != key && !other.starts_with("manifest/") && !other.starts_with("status/");
        for other in objects.objects.keys().filter(others) {
            assert_eq!(objects.objects[other].content.data, b"foreign", "'{other}' is nobody's");
        }
        assert_eq!(objects.overwritten.iter().filter(|key| !key.starts_with("status/")).count(), 0, "{:?}", objects.overwritten);
    }

    fn assert_no_upload_is_left(&self) {
        assert_eq!(self.server.objects().uploads.len(), 0, "uploads are left behind");
    }
}

/// The client of an agent with these credentials.
fn config(server: &FaultyS3, access_key: &str) -> SdkConfig {
    let credentials = Credentials::new(access_key, SECRET, None, None, "tests");
    config_with(server, SharedCredentialsProvider::new(credentials))
}

fn config_with(server: &FaultyS3, credentials: SharedCredentialsProvider) -> SdkConfig {
    let http = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).credentials_provider(credentials);
    http.region(Region::new("eu-north-1")).endpoint_url(server.endpoint()).build()
}

/// An uploader that works while a test goes on, until it is dropped.
struct Running {
    task: tokio::task::JoinHandle<()>,
    _stop: watch::Sender<bool>,
}

impl Running {
    /// Ends it in the middle of whatever it does.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a script is to cost.
struct Row {
    op: Op,
    calls: RangeInclusive<u32>,
    fault: Fault,
    /// How often an upload is to be created for it, the tries that go wrong included.
    creates: u32,
}

fn row(op: Op, calls: RangeInclusive<u32>, fault: Fault, creates: u32) -> Row {
    Row { op, calls, fault, creates }
}

/// A row whose fault costs no upload: one is created, after as many tries as went wrong with that.
fn same_upload(op: Op, calls: RangeInclusive<u32>, fault: Fault) -> Row {
    let creates = 1 + if op == Op::Create { *calls.end() } else { 0 };
    row(op, calls, fault, creates)
}

/// Each row alone: the fault comes, and the segment arrives under its own key.
async fn each(rows: Vec<Row>) {
    side_by_side(rows, |Row { op, calls, fault, creates }| async move {
        let bench = Bench::whole().await;
        bench.server.fail(op, calls.clone(), fault);
        let running = bench.start();
        bench.arrives_at(&first_key()).await;
        running.kill().await;
        assert!(bench.server.hit() > 0, "{op:?} {fault:?} never happened");
        assert_eq!(bench.server.calls(Op::Create), creates, "{op:?} calls {calls:?} {fault:?}: calls that create an upload");
        assert_eq!(bench.counters.key_collisions.get(), 0, "{op:?} {fault:?}");
        // Of a creation whose answer was lost nobody knows the id: that upload waits for the sweep.
        if op != Op::Create {
            bench.assert_no_upload_is_left();
        }
        println!("{op:?} calls {calls:?} {fault:?}: arrived after {} faults", bench.server.hit());
    })
    .await;
}

/// Runs the rows of a table, a few at a time: the bodies of parts are what they are.
async fn side_by_side<R, F: Future<Output = ()> + Send + 'static>(rows: impl IntoIterator<Item = R>, run: impl Fn(R) -> F) {
    let mut runs = tokio::task::JoinSet::new();
    for row in rows {
        runs.spawn(run(row));
        while runs.len() >= 8 {
            runs.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = runs.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fault_the_server_lets_a_segment_arrive() {
    let bench = Bench::whole().await;
    let running = bench.start();
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    bench.assert_no_upload_is_left();
    assert_eq!([Op::Create, Op::Part, Op::Complete].map(|op| bench.server.calls(op)), [1, 2, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_after_the_call_was_done_costs_no_second_object() {
    let lost = Fault::LoseAnswer;
    each(vec![
        same_upload(Op::Create, 1..=1, lost),
        same_upload(Op::Create, 1..=ATTEMPTS, lost),
        same_upload(Op::Part, 1..=1, lost),
        same_upload(Op::Part, 1..=2 * ATTEMPTS, lost),
        same_upload(Op::Complete, 1..=1, lost),
        same_upload(Op::Complete, 1..=ATTEMPTS, lost),
        same_upload(Op::PutManifest, 1..=1, lost),
        same_upload(Op::PutManifest, 1..=ATTEMPTS, lost),
        same_upload(Op::Head, 1..=ATTEMPTS, lost),
        same_upload(Op::HeadManifest, 1..=ATTEMPTS, lost),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_in_the_middle_is_no_answer() {
    each(vec![
        same_upload(Op::Create, 1..=ATTEMPTS, Fault::TruncateAnswer),
        same_upload(Op::Complete, 1..=1, Fault::TruncateAnswer),
        same_upload(Op::Complete, 1..=ATTEMPTS, Fault::TruncateAnswer),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_requests_and_never_answers_is_waited_for_in_bounded_time() {
    let mut rows = Vec::new();
    for op in [Op::Head, Op::Create, Op::Part, Op::Complete, Op::PutManifest, Op::HeadManifest] {
        rows.push(same_upload(op, 1..=ATTEMPTS, Fault::HangBeforeReading));
        rows.push(same_upload(op, 1..=ATTEMPTS, Fault::HangAfterReading));
    }
    each(rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_reset_in_the_middle_of_a_request_costs_another_try() {
    let ops = [Op::Create, Op::Part, Op::Complete, Op::PutManifest];
    each(ops.map(|op| same_upload(op, 1..=ATTEMPTS + 1, Fault::ResetInMidRequest)).into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_server_and_a_throttle_are_waited_out() {
    let mut rows = Vec::new();
    for op in [Op::Head, Op::Create, Op::Part, Op::Complete, Op::PutManifest, Op::HeadManifest] {
        for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")] {
            rows.push(same_upload(op, 1..=ATTEMPTS + 1, Fault::Refuse(status, code)));
        }
    }
    each(rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_comes_with_status_200_or_after_the_call_was_done_is_an_error_and_still_one_object() {
    each(vec![
        same_upload(Op::Complete, 1..=1, Fault::Refuse(200, "InternalError")),
        same_upload(Op::Complete, 1..=ATTEMPTS, Fault::Refuse(200, "InternalError")),
        same_upload(Op::Complete, 1..=1, Fault::DoAndRefuse(200, "InternalError")),
        same_upload(Op::Complete, 1..=ATTEMPTS, Fault::DoAndRefuse(500, "InternalError")),
        row(Op::Complete, 1..=1, Fault::Refuse(200, "InvalidPart"), 2),
        same_upload(Op::PutManifest, 1..=ATTEMPTS, Fault::DoAndRefuse(500, "InternalError")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_refused_is_settled_and_the_segment_arrives_under_its_own_key() {
    let rows = [(409, "ConditionalRequestConflict"), (400, "InvalidPart"), (400, "BadDigest"), (400, "EntityTooSmall")];
    each(rows.map(|(status, code)| row(Op::Complete, 1..=1, Fault::Refuse(status, code), 2)).into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_done_after_the_upload_was_given_up_is_no_object_of_somebody_else() {
    let bench = Bench::whole().await;
    bench.server.fail(Op::Complete, 1..=1, Fault::DoAndRefuse(409, "ConditionalRequestConflict"));
    // Of the key it is asked before the creation, after the refusal, and before the second creation.
    bench.server.fail(Op::Head, 2..=2, Fault::Refuse(404, "NoSuchKey"));
    bench.server.fail(Op::Head, 3..=4, Fault::NoMetadata);
    let running = bench.start();
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    assert_eq!((bench.server.hit(), bench.counters.key_collisions.get(), bench.server.calls(Op::Create)), (4, 0, 1));
    bench.assert_no_upload_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_store_forgets_is_begun_anew_from_the_spool() {
    each(vec![row(Op::Part, 2..=2, Fault::ForgetUpload, 2), row(Op::Complete, 1..=1, Fault::ForgetUpload, 2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_the_store_loses_is_sent_again_and_no_other() {
    let bench = Bench::whole().await;
    bench.server.fail(Op::Complete, 1..=1, Fault::ForgetPart(1));
    let running = bench.start();
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    assert_eq!([Op::Create, Op::Part, Op::Complete].map(|op| bench.server.calls(op)), [1, 3, 2]);
    bench.assert_no_upload_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_sent_twice_gives_one_object_whether_the_store_answers_it_twice_or_not() {
    for twice in [true, false] {
        let bench = Bench::whole().await;
        bench.server.objects().completes_twice = twice;
        // The client asks again by itself, then the uploader does.
        bench.server.fail(Op::Complete, 1..=ATTEMPTS, Fault::LoseAnswer);
        let running = bench.start();
        bench.arrives_at(&first_key()).await;
        running.kill().await;
        assert_eq!((bench.server.calls(Op::Create), bench.counters.key_collisions.get()), (1, 0));
        bench.assert_no_upload_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_that_changes_on_its_way_never_becomes_an_object() {
    each(vec![
        same_upload(Op::Part, 1..=1, Fault::FlipByte),
        same_upload(Op::Part, 1..=2, Fault::FlipByte),
        same_upload(Op::PutManifest, 1..=1, Fault::FlipByte),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_somebody_else_that_comes_at_any_moment_stays_and_the_segment_goes_to_the_next_key() {
    for op in [Op::Create, Op::Part, Op::Complete] {
        let bench = Bench::whole().await;
        bench.server.fail(op, 1..=1, Fault::ForeignObject);
        let running = bench.start();
        bench.arrives_at(&first_key().replace(".pcap", "_0002.pcap")).await;
        running.kill().await;
        assert_eq!(bench.server.objects().objects[&first_key()].content.data, b"foreign", "{op:?}");
        assert_eq!(bench.counters.key_collisions.get(), 1, "{op:?}");
        bench.assert_no_upload_is_left();
    }
}

/// A segment may take a key that the recorder gives to the next one; an agent that is killed then leaves both so. Not every endpoint holds
/// its conditions, so the agent must not count on them among its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_segments_that_a_killed_agent_left_with_one_key_the_one_that_has_begun_keeps_it_and_no_condition_is_needed() {
    let bench = Bench::new().await;
    let running = bench.start();
    bench.until("a part", || bench.segment.state().is_some_and(|state| state.parts.len() == 1)).await;
    running.kill().await;
    bench.segment.close();
    let older = Segment::new(bench.dir.path(), id(0), first_key(), Kind::Capture);
    older.open();
    older.append(b"foreign");
    older.close();
    let running = bench.start();
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    assert!(bench.server.objects().objects.contains_key(&first_key().replace(".pcap", "_0002.pcap")), "the other one has not arrived");
    assert_eq!([Op::Create, Op::Complete].map(|op| bench.server.calls(op)), [2, 2], "no call was made to a key that is another's");
    assert_eq!(bench.counters.key_collisions.get(), 1);
    bench.assert_no_upload_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_allowed_or_not_there_is_tried_again_until_it_is() {
    let rows = [
        (403, "AccessDenied"),
        (404, "NoSuchBucket"),
        (400, "KMS.DisabledException"),
        (403, "KMS.AccessDeniedException"),
        (403, "RequestTimeTooSkewed"),
    ];
    side_by_side(rows, |(status, code)| async move {
        let bench = Bench::whole().await;
        for op in [Op::Create, Op::Part, Op::PutManifest] {
            bench.server.fail(op, 1..=1, Fault::Refuse(status, code));
        }
        let running = bench.start();
        bench.arrives_at(&first_key()).await;
        running.kill().await;
        assert_eq!(bench.server.calls(Op::Create), 2, "{code}");
        bench.assert_no_upload_is_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kms_key_that_cannot_be_used_counts_as_a_refusal_with_each_try_and_one_that_is_asked_too_often_does_not() {
    let rows = [
        (Op::Create, "KMS.DisabledException", true),
        (Op::Part, "KMS.DisabledException", true),
        (Op::Complete, "KMS.DisabledException", true),
        (Op::PutManifest, "KMS.DisabledException", true),
        (Op::Create, "KMS.KMSInvalidStateException", true),
        (Op::Create, "KMS.NotFoundException", true),
        (Op::Create, "KMS.ThrottlingException", false),
        (Op::Complete, "KMS.ThrottlingException", false),
    ];
    side_by_side(rows, |(op, code, refused)| async move {
        let bench = Bench::whole().await;
        bench.server.fail(op, 1..=u32::MAX, Fault::Refuse(400, code));
        let running = bench.start();
        bench.until("two failures", || bench.counters.upload_failures.get() >= 2).await;
        let refusals = if refused { bench.counters.upload_failures.get() } else { 0 };
        assert_eq!(bench.refusals(), [refusals, 0, 0], "{op:?} {code}");
        assert!(bench.segment.is_there());
        bench.server.heal();
        bench.arrives_at(&first_key()).await;
        running.kill().await;
        let creates = 1 + if op == Op::Create { bench.server.hit() } else { 0 };
        assert_eq!(bench.server.calls(Op::Create), creates, "{op:?} {code}");
        bench.assert_no_upload_is_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_parts_are_on_their_way_at_once_while_s3_asks_for_less_and_more_again_afterwards() {
    const WAIT: Fault = Fault::AnswerAfter(Duration::from_millis(100));
    let bench = Bench::with(0).await;
    let (server, counters) = (&bench.server, &bench.counters);
    server.fail(Op::Part, 1..=u32::MAX, WAIT);
    bench.grow(8);
    let running = bench.start();
    bench.until("the first parts", || counters.parts_sent.get() == 8).await;
    assert_eq!(server.most_parts_at_once(), 4);
    server.heal();
    server.fail(Op::Part, 1..=u32::MAX, Fault::Refuse(503, "SlowDown"));
    // Four go together, and the fifth when they have been refused.
    bench.grow(8 + 5);
    bench.until("the try fails", || counters.upload_failures.get() == 1).await;
    server.heal();
    server.fail(Op::Part, 1..=u32::MAX, WAIT);
    let _ = server.most_parts_at_once();
    bench.grow(8 + 26);
    bench.until("parts after the throttle", || counters.parts_sent.get() >= 8 + 15).await;
    assert_eq!(server.most_parts_at_once(), 1, "halved twice");
    bench.until("all parts", || counters.parts_sent.get() == 8 + 26).await;
    assert_eq!(server.most_parts_at_once(), 2, "after twenty parts that arrived");
    assert_eq!((server.calls(Op::Create), bench.refusals()), (1, [0; 3]));
    running.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttle_of_any_call_lets_fewer_parts_be_on_their_way() {
    let bench = Bench::with(0).await;
    bench.server.fail(Op::Create, 1..=1, Fault::Refuse(400, "KMS.ThrottlingException"));
    bench.server.fail(Op::Part, 1..=u32::MAX, Fault::AnswerAfter(Duration::from_millis(100)));
    bench.grow(8);
    let running = bench.start();
    bench.until("the parts", || bench.counters.parts_sent.get() == 8).await;
    assert_eq!(bench.server.most_parts_at_once(), 2);
    running.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_by_more_than_s3_takes_is_learned_from_its_answers_and_no_refusal_of_the_bucket() {
    side_by_side([20 * 60, -20 * 60, 3 * 86_400], |ahead_seconds| async move {
        let bench = Bench::whole().await;
        let running = bench.start();
        bench.arrives_at(&first_key()).await;
        // Off, and right again: then what was learned is wrong. Each time the first to hear of it is a HEAD, whose answer has no words.
        for (number, ahead_seconds) in [(2, ahead_seconds), (3, 0)] {
            bench.server.clock().ahead_seconds = ahead_seconds;
            let key = first_key().replace(".pcap", &format!("_{number:04}.pcap"));
            let segment = Segment::new(bench.dir.path(), id(number), key.clone(), Kind::Capture);
            segment.open();
            segment.append(&bench.bytes);
            segment.close();
            bench.until("an empty spool", || files(bench.dir.path()).is_empty()).await;
            assert!(bench.server.objects().objects[&key].content.data == bench.bytes);
        }
        running.kill().await;
        let refusals = bench.server.clock().refusals;
        assert!((2..=4).contains(&refusals), "{refusals} calls were refused where one tells the time");
        assert_eq!((bench.refusals(), bench.counters.upload_failures.get()), ([0; 3], 0), "ahead by {ahead_seconds} s");
        bench.assert_no_upload_is_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_and_cannot_be_learned_is_told_for_what_it_is_until_it_is_right_again() {
    let bench = Bench::new().await;
    let running = bench.start();
    bench.until("a part", || bench.segment.state().is_some_and(|state| state.parts.len() == 1)).await;
    *bench.server.clock() = Clock { ahead_seconds: 3600, silent: true, ..Clock::default() };
    bench.segment.close();
    bench.until("two refusals of the clock", || bench.counters.clock_refusals.get() >= 2).await;
    assert_eq!(bench.refusals()[..2], [0, 0], "nothing else is told");
    assert!(bench.segment.is_there());
    *bench.server.clock() = Clock::default();
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    assert_eq!(bench.server.calls(Op::Create), 1);
    bench.assert_no_upload_is_left();
}

/// What the program takes for the uploader when nothing but the bucket, and `more`, is set.
fn programs_settings(more: &[(&str, &str)]) -> upload::Settings {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let set = [("TAPFLEET__S3__BUCKET", BUCKET)].iter().chain(more).map(|(name, value)| (name.into(), value.into()));
    Written::read(Some(empty.path()), set, []).meant().unwrap().upload
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_of_a_fleet_begin_their_uploads_apart_within_the_spread_of_the_settings_and_complete_at_once() {
    let instances: Vec<_> = (0..200).map(|n| format!("i-{n:017x}")).collect();
    let spread = programs_settings(&[]).create_spread;
    let moments: BTreeSet<_> = instances.iter().map(|instance| offset(spread, Some(instance))).collect();
    assert_eq!((spread, moments.len()), (Duration::from_secs(20), instances.len()), "each has its own moment");
    assert!(moments.last() <= Some(&spread) && moments.first() < Some(&(spread / 20)) && moments.last() > Some(&(spread * 19 / 20)));

    let settings = programs_settings(&[("TAPFLEET__RECORD__ROTATE_SECONDS", "30")]);
    let spread = settings.create_spread;
    assert_eq!(spread, Duration::from_secs(3), "a tenth of the window");
    let nearest = |moment: Duration| instances.iter().min_by_key(|instance| offset(spread, Some(instance)).abs_diff(moment)).unwrap();
    // Made before, so that none has begun long before it is looked at.
    let mut made = Vec::new();
    for tenths in [5, 12, 19, 26] {
        made.push((nearest(spread / 30 * tenths), Bench::new().await));
    }
    let mut agents = Vec::new();
    for (instance, bench) in made {
        let settings = upload::Settings { instance: Some(instance.clone()), ..settings.clone() };
        let begun = Instant::now();
        let running = bench.start_with(settings, bench.store());
        agents.push((bench, running, offset(spread, Some(instance)), begun));
    }
    for (bench, _, moment, begun) in &agents {
        bench.until("its upload", || bench.server.calls(Op::Create) > 0).await;
        let waited = begun.elapsed();
        println!("an agent whose moment is {moment:?} begins its upload after {waited:?}");
        assert!(waited >= *moment && waited < *moment + spread / 2, "its moment is {moment:?}, it has begun after {waited:?}");
    }
    for (bench, ..) in &agents {
        bench.until("a part", || bench.counters.parts_sent.get() > 0).await;
        assert_eq!(bench.server.calls(Op::Complete), 0);
        bench.segment.close();
    }
    let closed = Instant::now();
    for (bench, ..) in &agents {
        bench.arrives_at(&first_key()).await;
    }
    assert!(closed.elapsed() < spread * 3 / 4, "four windows took {:?} from their end", closed.elapsed());
    // A window that ends before its agent's moment does not wait for it.
    let (bench, _, moment, _) = agents.last().unwrap();
    let short = Segment::new(bench.dir.path(), id(2), first_key().replace(".pcap", "_0002.pcap"), Kind::Capture);
    let opened = Instant::now();
    short.open();
    short.append(b"a short window");
    bench.until("it is seen", || bench.counters.spool_segments.get() == 1).await;
    short.close();
    bench.until("the short window", || !files(bench.dir.path()).iter().any(|name| name.starts_with(&short.id))).await;
    assert!(opened.elapsed() < *moment, "{:?} where the moment is {moment:?}", opened.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_comes_late_gets_what_waited_for_it() {
    let bench = Bench::whole().await;
    bench.server.objects().missing = true;
    let running = bench.start();
    bench.until("two refusals", || bench.counters.upload_refusals.get() >= 2).await;
    assert!(bench.segment.is_there());
    bench.server.objects().missing = false;
    bench.arrives_at(&first_key()).await;
    running.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_about_object_or_manifest_keeps_the_segment_in_the_spool() {
    let rows = [
        (Op::Head, Fault::WrongSize),
        (Op::Head, Fault::WrongChecksum),
        (Op::Head, Fault::NoChecksum),
        (Op::Head, Fault::NoMetadata),
        (Op::HeadManifest, Fault::WrongSize),
        (Op::HeadManifest, Fault::WrongChecksum),
        (Op::HeadManifest, Fault::NoChecksum),
    ];
    side_by_side(rows, |(op, fault)| async move {
        let bench = Bench::whole().await;
        bench.server.fail(op, 1..=u32::MAX, fault);
        let running = bench.start();
        let before = if op == Op::Head { 1 } else { 0 };
        bench.until("three wrong answers", || bench.server.calls(op) >= before + 3).await;
        assert!(bench.segment.is_there(), "{op:?} {fault:?}: it has left the spool");
        assert_eq!(bench.server.calls(Op::Create), 1, "{op:?} {fault:?}: it was sent again");
        let failing = || bench.counters.segments_failing_seconds.get();
        bench.until("it counts as failing though its parts arrived", || failing() >= 2).await;
        assert!(bench.counters.parts_sent.get() >= 2);
        bench.server.heal();
        bench.arrives_at(&first_key()).await;
        bench.until("nothing counts as failing", || failing() == 0).await;
        running.kill().await;
        bench.assert_no_upload_is_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_uploader_goes_on_with_the_same_upload_whatever_its_lists_of_parts_go_through() {
    for fault in [Fault::LoseAnswer, Fault::TruncateAnswer, Fault::Refuse(503, "SlowDown"), Fault::ForgetPart(2), Fault::HangAfterReading] {
        let bench = Bench::with(5 * 8 * MIB + 77).await;
        let running = bench.start();
        bench.until("five parts", || bench.segment.state().is_some_and(|state| state.parts.len() == 5)).await;
        running.kill().await;
        bench.segment.close();
        bench.server.fail(Op::Parts, 1..=1, fault);
        let running = bench.start();
        bench.arrives_at(&first_key()).await;
        running.kill().await;
        let again = u32::from(fault == Fault::ForgetPart(2));
        assert_eq!([Op::Create, Op::Part].map(|op| bench.server.calls(op)), [1, 6 + again], "{fault:?}");
        assert!(bench.server.calls(Op::Parts) >= 3 - again, "the list of five parts has three pages");
        bench.assert_no_upload_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_forgotten_while_the_agent_is_away_is_begun_anew() {
    let bench = Bench::new().await;
    let running = bench.start();
    bench.until("a part", || bench.segment.state().is_some_and(|state| state.parts.len() == 1)).await;
    running.kill().await;
    bench.segment.close();
    bench.server.objects().uploads.clear();
    let running = bench.start();
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    assert_eq!(bench.server.calls(Op::Create), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_expire_are_asked_for_anew_and_the_same_upload_goes_on() {
    let bench = Bench::new().await;
    // As instance metadata gives them: valid for hours by their own word, whatever S3 says.
    let current = Arc::new(Mutex::new("first"));
    let asked = current.clone();
    let provider = provide_credentials_fn(move || {
        let access_key = *asked.lock().unwrap();
        let expiry = SystemTime::now() + Duration::from_secs(6 * 3600);
        async move { Ok(Credentials::new(access_key, SECRET, None, Some(expiry), "tests")) }
    });
    let running = bench.start_to(bench.store_with(config_with(&bench.server, SharedCredentialsProvider::new(provider))));
    bench.until("a part", || bench.segment.state().is_some_and(|state| state.parts.len() == 1)).await;
    bench.server.expire("first");
    bench.segment.close();
    bench.until("two failures", || bench.counters.upload_failures.get() >= 2).await;
    assert!(bench.segment.is_there());
    *current.lock().unwrap() = "second";
    bench.arrives_at(&first_key()).await;
    running.kill().await;
    assert_eq!(bench.server.calls(Op::Create), 1);
    bench.assert_no_upload_is_left();
}
