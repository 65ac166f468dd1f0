//! Promise 2 and 4 from the frame to the object while the wall clock is set back and forward by an hour across a rotation.
//! In: frames with the stamps of a clock that the test moves; recorder, spool, uploader as the agent has them. Out: objects, manifests
//! and the trouble. The machine's own clock is not touched: it is that of the tests beside this one, too.
//! Needs: S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use tapfleet::alert;
use tapfleet::alert::fold::{Fold, Kind, Losses, State};
use tapfleet::alert::rules::{Limits, Sample, Trouble, Watch};
use tapfleet::capture::worker::Shared;
use tapfleet::capture::{Batch, Direction, Event, Item, What};
use tapfleet::host::clock::{Clock, Now, SECOND_NS};
use tapfleet::host::nic::LossCounters;
use tapfleet::observe::counters::Counters;
use tapfleet::record::key::Names;
use tapfleet::record::recorder::Recorder;
use tapfleet::record::{self, Compression, Format, Precision};
use tapfleet::spool::{self, Folder, writer};
use tapfleet::upload::manifest::Manifest;
use tapfleet::upload::{self, Reserved, S3};
use tapfleet::wire::{Link, Notes, Origin, Via};
use tapfleet_tests::captures::records;
use tapfleet_tests::localstack::{CREDENTIALS, LocalStack, REGION};

const INSTANCE: &str = "i-0123456789abcdef0";
const BUCKET: &str = "clock-steps";
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;

/// 2026-11-22T00:29:50Z: ten seconds before the window of 00:15 ends.
const BEGUN: Now = Now { wall_ns: 1_795_307_390 * SECOND_NS, monotonic_ns: 500 * SECOND_NS };

#[derive(Clone)]
struct HandClock(Arc<Mutex<Now>>);

impl Clock for HandClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

/// The recording half, and who watches it.
struct Bench {
    clock: HandClock,
    counters: Arc<Counters>,
    events: SyncSender<Event>,
    sent: u64,
    watch: Watch,
    fold: Fold,
    state: State,
    kinds: Vec<Kind>,
}

impl Bench {
    /// Lets time pass as it should, in looks of a second.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.move_clock(1, 1);
        }
    }

    /// Somebody sets the wall clock.
    fn step(&mut self, seconds: i64) {
        self.move_clock(seconds, 0);
    }

    fn move_clock(&mut self, wall: i64, monotonic: u64) {
        {
            let mut now = self.clock.0.lock().unwrap();
            now.wall_ns = now.wall_ns.checked_add_signed(wall * SECOND_NS as i64).unwrap();
            // A step takes its moment, too: the recorder has looked when it has seen this.
            now.monotonic_ns += monotonic * SECOND_NS + 1000;
            now.wall_ns += 1000;
        }
        let now = self.clock.now();
        until("the recorder has looked at the clock", || self.counters.recorder.beat_ns.get() == now.monotonic_ns);
        let verdicts = self.watch.look(Sample::of(&self.counters, now), true, Some(true));
        let (news, _) = self.fold.fold(&mut self.state, &verdicts, Losses::default(), now, true);
        self.kinds.extend(news.iter().filter(|news| news.trouble == Trouble::ClockStepped).map(|news| news.kind));
    }

    /// Sends a frame stamped so many seconds from now, and waits until it is written.
    fn frame(&mut self, seconds: i64) {
        let time_ns = self.clock.now().wall_ns.checked_add_signed(seconds * SECOND_NS as i64).unwrap();
        let origin = Origin { via: Via::Direct, vni: Some(7), source: [10, 0, 0, 1].into() };
        let mut batch = Batch::default();
        if self.sent == 0 {
            batch.new_origins.push((0, origin));
        }
        let mut bytes = vec![0xa5; 60];
        bytes[52..].copy_from_slice(&self.sent.to_be_bytes());
        batch.bytes.refill().data.extend_from_slice(&bytes);
        let what = What::Inner { link: Link::Ethernet, notes: Notes::default(), direction: Direction::Inbound, origin: 0 };
        batch.items.push(Item { time_ns, at: 0, len: 60, orig_len: 60, what });
        self.events.send(Event::Batch(batch)).unwrap();
        self.sent += 1;
        until("the frame is written", || self.counters.frames_written.get() == self.sent);
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn record_settings() -> record::Settings {
    record::Settings {
        rotate_seconds: 900,
        max_bytes: 1 << 40,
        format: Format::Pcap,
        precision: Precision::Nano,
        compression: Compression::None,
        schedule: None,
        quarantine_bytes_per_s: 0,
        snaplen: 262_144,
        filter: None,
        instance: INSTANCE.into(),
        bucket: BUCKET.into(),
        flush_ms: 500,
        retirement_ms: 40,
        replay: false,
    }
}

fn upload_settings() -> upload::Settings {
    upload::Settings {
        bucket: BUCKET.into(),
        key_prefix: String::new(),
        instance: None,
        region: Some(REGION.into()),
        endpoint_url: Some(LocalStack::shared().endpoint()),
        storage_class: None,
        kms_key: None,
        expected_bucket_owner: None,
        look_every: Duration::from_millis(50),
        create_spread: Duration::ZERO,
        poison_still: Duration::from_secs(3600),
    }
}

fn watch_of(counters: &Counters) -> (Watch, Fold) {
    let settings = alert::Settings {
        topic_arn: None,
        silence: None,
        drop_ratio: 0.001,
        repeat: Duration::from_secs(3600),
        on_start: false,
        dir: "/nowhere".into(),
        spool_max_bytes: 0,
        window: Duration::from_secs(900),
    };
    let limits = Limits::new(&settings, true);
    (Watch::new(limits.clone(), Sample::of(counters, BEGUN)), Fold::new(limits, settings.repeat, INSTANCE, Losses::default()))
}

/// What happens: each frame, each step.
fn back_and_forth(bench: &mut Bench) {
    bench.frame(0);
    bench.pass(8);
    bench.frame(0);
    bench.step(-HOUR);
    bench.frame(0);
    // It was in the ring when the clock was set back: its stamp is of the future now.
    bench.frame(HOUR - 1);
    // The rotation that was due before the step is that of 23:30 now.
    bench.pass(10);
    bench.frame(0);
    bench.step(HOUR);
    bench.frame(0);
    bench.step(HOUR);
    bench.frame(0);
    bench.step(-HOUR);
    bench.frame(0);
    assert_eq!(bench.kinds, [Kind::Begin], "four steps are one trouble");
    bench.pass(299);
    assert_eq!(bench.kinds, [Kind::Begin]);
    bench.pass(2);
    assert_eq!(bench.kinds, [Kind::Begin, Kind::Over]);
    bench.frame(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_back_and_forward_by_an_hour_across_a_rotation_loses_nothing_reopens_nothing_and_gives_no_key_twice() {
    let client = LocalStack::shared().bucket(BUCKET).await;
    let dir = tempfile::tempdir().unwrap();
    let spool_settings = spool::Settings {
        dir: dir.path().into(),
        max_bytes: 1 << 30,
        flush_ms: 500,
        sync_ms: 500,
        on_full: spool::OnFull::DropNewest,
        allow_root_device: true,
    };
    let folder = Folder::open(&spool_settings).unwrap();
    let counters = Arc::new(Counters::new(1));
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(LocalStack::shared().endpoint())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(CREDENTIALS, CREDENTIALS, None, None, "tests")))
        .build();
    let store = Arc::new(S3::with_config(upload_settings(), config));
    let (stop, stopping) = tokio::sync::watch::channel(false);
    // Beside the recorder, as in the agent: what a step has closed is on its way before the next one.
    let sending =
        tokio::spawn(upload::run(upload_settings(), folder.clone(), counters.clone(), store.clone(), Reserved::default(), stopping));

    let clock = HandClock(Arc::new(Mutex::new(BEGUN)));
    let (writer, threads) = writer::start(&folder, &spool_settings, counters.clone()).unwrap();
    let shared = Arc::new(Shared { stop: AtomicBool::new(false), complete_until_ns: vec![AtomicU64::new(0)], counters: counters.clone() });
    let names = Names::new("", INSTANCE);
    let recorder = Recorder::new(record_settings(), writer, clock.clone(), shared, Box::new(LossCounters::default), names);
    let (events, from_thread) = sync_channel(16);
    let (back, _spent) = sync_channel(16);
    let recording = thread::spawn(move || recorder.run(&from_thread, &[back]));

    let (watch, fold) = watch_of(&counters);
    let (state, kinds) = (State::default(), Vec::new());
    let mut bench = Bench { clock, counters: counters.clone(), events, sent: 0, watch, fold, state, kinds };
    let sent = tokio::task::spawn_blocking(move || {
        back_and_forth(&mut bench);
        bench.sent
    });
    let sent = sent.await.unwrap();
    tokio::task::spawn_blocking(move || {
        assert_eq!(recording.join().unwrap().len(), 0);
        threads.finish(PATIENCE);
    })
    .await
    .unwrap();
    stop.send(true).unwrap();
    sending.await.unwrap();
    let (_stop, stopping) = tokio::sync::watch::channel(false);
    assert_eq!(
        upload::drain(upload_settings(), folder, counters.clone(), store, Reserved::default(), stopping).await.unwrap(),
        [],
        "segments are left"
    );

    let listed = client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    let (mut captures, mut manifests, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for key in listed.contents().iter().map(|object| object.key().unwrap().to_owned()) {
        let object = client.get_object().bucket(BUCKET).key(&key).send().await.unwrap().body.collect().await.unwrap().to_vec();
        if key.starts_with("manifest/") {
            manifests.push(serde_json::from_slice::<Manifest>(&object).unwrap());
            continue;
        }
        let frames = records(&object);
        numbers.extend(frames.iter().map(|frame| u64::from_be_bytes(frame.bytes[52..].try_into().unwrap())));
        captures.push((key.trim_start_matches(&format!("{INSTANCE}/")).to_owned(), frames.len()));
    }
    let expected = [
        ("2026-11-21-23-29.pcap", 2),
        ("2026-11-21-23-30.pcap", 1),
        ("2026-11-22-00-29.pcap", 2),
        ("2026-11-22-00-30.pcap", 1),
        ("2026-11-22-00-30_0002.pcap", 2),
        ("2026-11-22-01-30.pcap", 1),
    ];
    captures.sort();
    assert_eq!(captures, expected.map(|(key, frames)| (key.to_owned(), frames)));
    numbers.sort_unstable();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "each frame is in one object, once");
    let ids: BTreeSet<_> = manifests.iter().map(|manifest| manifest.facts.capture_id.clone()).collect();
    assert_eq!(ids.len(), manifests.len(), "no capture was opened twice");
    let by_step = manifests.iter().filter(|manifest| manifest.object.is_some() && manifest.facts.clock.closed_by_step);
    assert_eq!(by_step.count(), 4, "each step closed the capture that was open");
    assert_eq!((counters.clock_steps.get(), counters.key_collisions.get()), (4, 0));
}
