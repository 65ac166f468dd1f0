//! Promises 3 and 4 against a real S3: a segment leaves the spool when S3 has confirmed it, under its own key, once, and an
//! interrupted upload is resumed. In: spool folders made by hand. Out: objects read back from LocalStack, byte for byte.
//! Needs: S3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, CompletedMultipartUpload, CompletedPart};
use tapfleet::observe::counters::Counters;
use tapfleet::record::facts::{Facts, GaveWay, Kind, Stamp, WindowFacts};
use tapfleet::record::{Chunk, SegmentNumber, Spool};
use tapfleet::spool::journal::{self, Journal, Open, Part, Record};
use tapfleet::spool::writer::{self, Writer};
use tapfleet::spool::{self, Folder};
use tapfleet::upload::manifest::Manifest;
use tapfleet::upload::status::Status;
use tapfleet::upload::store::{Begun, Body, Class, Error, Found, Labels, Listed, Overwrite, Place, Store, Upload, Whole};
use tapfleet::upload::{self, Reserved, S3, Settings, checksum};
use tapfleet_tests::agent;
use tapfleet_tests::localstack::{CREDENTIALS, LocalStack, REGION, make_bucket};
use tokio::sync::watch;

const MIB: usize = 1 << 20;
const INSTANCE: &str = "i-0123456789abcdef0";
/// Who wrote the fixtures.
const V1_INSTANCE: &str = "i-v1";
/// 2026-11-22T00:15:00Z.
const WINDOW: Stamp = Stamp(1_795_306_500_000_000_000);
const DEADLINE: Duration = Duration::from_secs(60);

/// A spool of its own, a bucket of its own, and what the uploader counted.
struct Bench {
    dir: tempfile::TempDir,
    bucket: String,
    client: Client,
    counters: Arc<Counters>,
}

impl Bench {
    fn new(bucket: &str) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            bucket: bucket.into(),
            client: LocalStack::shared().client(),
            counters: Arc::new(Counters::new(1)),
        }
    }

    async fn with_bucket(bucket: &str) -> Self {
        let bench = Self::new(bucket);
        make_bucket(&bench.client, bucket).await;
        bench
    }

    fn spool_settings(&self) -> spool::Settings {
        spool::Settings {
            dir: self.dir.path().into(),
            max_bytes: 1 << 40,
            on_full: spool::OnFull::DropNewest,
            flush_ms: 100,
            sync_ms: 100,
            allow_root_device: true,
        }
    }

    /// The folder, once what an uploader that was cut off still had under way has let go of it.
    fn folder(&self) -> Folder {
        let begun = Instant::now();
        loop {
            match Folder::open(&self.spool_settings()) {
                Err(spool::Error::InUse { .. }) if begun.elapsed() < DEADLINE => std::thread::sleep(Duration::from_millis(10)),
                opened => return opened.unwrap(),
            }
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            bucket: self.bucket.clone(),
            key_prefix: String::new(),
            region: Some(REGION.into()),
            endpoint_url: Some(LocalStack::shared().endpoint()),
            storage_class: Some("STANDARD_IA".into()),
            kms_key: None,
            expected_bucket_owner: None,
            instance: None,
            look_every: Duration::from_millis(50),
            create_spread: Duration::ZERO,
            poison_still: Duration::from_secs(1),
        }
    }

    /// As the agent has them that recorded the segments; the others are those of a rescued spool.
    fn own_settings(&self) -> Settings {
        Settings { instance: Some(INSTANCE.into()), ..self.settings() }
    }

    async fn store(&self) -> Arc<Watched> {
        let inner = S3::with_config(self.settings(), shared_config().await);
        Arc::new(Watched {
            inner,
            creates: AtomicU32::new(0),
            fault: Mutex::new(None),
            nameless: AtomicBool::new(false),
            other_etag: AtomicBool::new(false),
            create_lost: AtomicBool::new(false),
            part_refusals: Mutex::new(Vec::new()),
            put_lost: AtomicBool::new(false),
            aborts_early: AtomicU32::new(0),
            from_memory: AtomicU32::new(0),
            from_file: AtomicU32::new(0),
            dies: AtomicBool::new(false),
        })
    }

    /// Sends everything; gives how many uploads were created.
    async fn drain(&self) -> u32 {
        let store = self.store().await;
        assert_eq!(self.drain_to(&store).await, 0, "left: {:?}", self.files());
        store.creates.load(Ordering::Relaxed)
    }

    /// Sends what can be sent; panics with what lies in the spool when that takes too long.
    async fn drain_to(&self, store: &Arc<Watched>) -> usize {
        let store = store.clone();
        let (_stop, stopped) = watch::channel(false);
        let draining = upload::drain(self.settings(), self.folder(), self.counters.clone(), store, Reserved::default(), stopped);
        let drained = tokio::time::timeout(DEADLINE, draining).await;
        drained.unwrap_or_else(|_| panic!("not drained within {DEADLINE:?}: {:?}", self.files())).unwrap().len()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What lies in the spool beside its lock.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
        names.sort();
        names
    }

    async fn get(&self, key: &str) -> Vec<u8> {
        let object = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let object = object.unwrap_or_else(|error| panic!("no object '{key}': {error:?}"));
        object.body.collect().await.unwrap().to_vec()
    }

    async fn keys(&self) -> Vec<String> {
        let listed = self.client.list_objects_v2().bucket(&self.bucket).send().await.unwrap();
        listed.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
    }

    async fn uploads(&self) -> usize {
        self.client.list_multipart_uploads().bucket(&self.bucket).send().await.unwrap().uploads().len()
    }

    /// Checks object, metadata, manifest and spool of a segment that was sent whole.
    async fn assert_arrived(&self, id: &str, key: &str, bytes: &[u8]) {
        assert!(self.get(key).await == bytes, "'{key}' is not what was written ({} bytes)", bytes.len());
        let head = self.client.head_object().bucket(&self.bucket).key(key).checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
        let crc64nvme = checksum::to_base64(checksum::of_bytes(bytes));
        assert_eq!(head.checksum_crc64_nvme(), Some(crc64nvme.as_str()));
        let metadata = head.metadata().unwrap();
        assert_eq!(metadata["capture-id"], id);
        assert_eq!(metadata["format"], "pcap");
        assert_eq!(metadata["window"], WINDOW.to_string());
        let manifest: Manifest = serde_json::from_slice(&self.get(&manifest_key(id)).await).unwrap();
        let object = manifest.object.unwrap();
        assert_eq!(manifest.schema, "tapfleet.manifest/1");
        assert_eq!((object.bucket.as_str(), object.key.as_str(), object.bytes), (self.bucket.as_str(), key, bytes.len() as u64));
        assert_eq!(object.crc64nvme, crc64nvme);
        assert_eq!(object.etag.as_deref(), head.e_tag());
        assert!(!self.files().iter().any(|name| name.starts_with(id)), "{id} is still in the spool: {:?}", self.files());
    }
}

fn manifest_key(id: &str) -> String {
    let instance = if id.starts_with("v1-") { V1_INSTANCE } else { INSTANCE };
    format!("manifest/dt=2026-11-22/{instance}/2026-11-22-00-15-{id}.json")
}

fn key() -> String {
    format!("{INSTANCE}/2026-11-22-00-15.pcap")
}

/// Ids that sort by the order in which they are made, as capture ids do.
fn new_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("019aa8f0-0000-7000-8000-{:012x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Bytes that differ everywhere, so that no part can stand for another.
fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut all = Vec::with_capacity(bytes + 8);
    while all.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(bytes);
    all
}

fn open(id: &str, bucket: &str, key: &str) -> Open {
    Open {
        version: journal::VERSION,
        kind: Kind::Capture,
        capture_id: id.into(),
        bucket: bucket.into(),
        key: key.into(),
        instance: INSTANCE.into(),
        window: WINDOW,
        extension: "pcap".into(),
        agent_version: "0.1.0".into(),
    }
}

fn facts(id: &str, bucket: &str, kind: Kind, file_bytes: u64) -> Facts {
    let begun = Facts::begin(kind, id.into(), INSTANCE.into(), bucket.into(), WindowFacts { start: WINDOW, seconds: 900 });
    let key = (kind != Kind::Idle).then(key);
    Facts { key, frames: 1, bytes: 60, first: Some(WINDOW), last: Some(WINDOW), file_bytes, ..begun }
}

/// A segment as the spool's writer makes it.
struct Segment<'a> {
    bench: &'a Bench,
    id: String,
}

impl<'a> Segment<'a> {
    /// Journal first, then the data.
    fn open(bench: &'a Bench, bytes: &[u8]) -> Self {
        Self::open_at(bench, &key(), bytes)
    }

    fn open_at(bench: &'a Bench, key: &str, bytes: &[u8]) -> Self {
        let segment = Self { bench, id: new_id() };
        Journal::create(&segment.path("journal"), open(&segment.id, &bench.bucket, key)).unwrap();
        fs::write(segment.path("pcap"), bytes).unwrap();
        segment
    }

    fn whole(bench: &'a Bench, bytes: &[u8]) -> Self {
        let segment = Self::open(bench, bytes);
        segment.close();
        segment
    }

    fn append(&self, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.path("pcap")).unwrap().write_all(bytes).unwrap();
    }

    /// The manifest appears by rename.
    fn close(&self) {
        let bytes = fs::metadata(self.path("pcap")).unwrap().len();
        file_manifest(self.bench, &facts(&self.id, &self.bench.bucket, Kind::Capture, bytes));
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.bench.path(&format!("{}.{extension}", self.id))
    }

    fn state(&self) -> journal::State {
        journal::read(&self.path("journal")).unwrap().0
    }
}

fn file_manifest(bench: &Bench, facts: &Facts) {
    let draft = bench.path(&format!("{}.draft", facts.capture_id));
    fs::write(&draft, serde_json::to_vec(facts).unwrap()).unwrap();
    fs::rename(draft, bench.path(&format!("{}.manifest", facts.capture_id))).unwrap();
}

/// Waits until `there` gives something.
async fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn shared_config() -> SdkConfig {
    let credentials = Credentials::new(CREDENTIALS, CREDENTIALS, None, None, "tests");
    let loader = aws_config::defaults(BehaviorVersion::latest()).credentials_provider(credentials);
    loader.region(Region::new(REGION)).endpoint_url(LocalStack::shared().endpoint()).load().await
}

/// What may go wrong with one completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// S3 does it, and the answer is lost.
    AnswerLost,
    /// S3 does it, a retry of the SDK then finds no upload, and that is the answer.
    AnsweredTwice,
    /// S3 does not do it, and says so with this class.
    Refused(Class),
}

/// The real store, with one fault at the first completion.
struct Watched {
    inner: S3,
    creates: AtomicU32,
    fault: Mutex<Option<Fault>>,
    /// Metadata is lost on the way, as behind some gateways.
    nameless: AtomicBool,
    /// The next part gets [`OTHER_ETAG`], as if an earlier attempt at it had arrived last.
    other_etag: AtomicBool,
    /// The next creation is done, and its answer is lost.
    create_lost: AtomicBool,
    /// With what the next parts are refused.
    part_refusals: Mutex<Vec<Class>>,
    /// The next small object is stored, and the answer is lost.
    put_lost: AtomicBool,
    /// Aborts at keys without an object.
    aborts_early: AtomicU32,
    /// Parts that came from memory, and those from the file.
    from_memory: AtomicU32,
    from_file: AtomicU32,
    /// Who asks about [`DEADLY`] dies.
    dies: AtomicBool,
}

/// Keys of which the uploads were begun yesterday, as far as one can see.
const AGED: &str = "aged";

const OTHER_ETAG: &str = "\"00000000000000000000000000000000\"";

/// A key about which nothing is told, and that only after a while.
const SLOW: &str = "slow";
const SLOW_ANSWER: Duration = Duration::from_secs(3);

/// A key about which a question is the end of who asks.
const DEADLY: &str = "deadly";

fn made_up(class: Class, place: &Place) -> Error {
    Error { class, act: "do what it should with", place: place.clone(), cause: format!("made up: {class:?}") }
}

impl Store for Watched {
    async fn head(&self, place: &Place) -> Result<Found, Error> {
        if place.key.starts_with(SLOW) {
            tokio::time::sleep(SLOW_ANSWER).await;
            return Err(Error { class: Class::Transient, act: "examine", place: place.clone(), cause: "made up".into() });
        }
        assert!(place.key != DEADLY || !self.dies.load(Ordering::Relaxed), "a defect");
        let mut found = self.inner.head(place).await?;
        found.capture_id = found.capture_id.filter(|_| !self.nameless.load(Ordering::Relaxed));
        Ok(found)
    }

    async fn create(&self, place: &Place, labels: &Labels) -> Result<String, Error> {
        let id = self.inner.create(place, labels).await?;
        self.creates.fetch_add(1, Ordering::Relaxed);
        match self.create_lost.swap(false, Ordering::Relaxed) {
            true => Err(made_up(Class::Transient, place)),
            false => Ok(id),
        }
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &Body) -> Result<String, Error> {
        if let Some(class) = self.part_refusals.lock().unwrap().pop() {
            return Err(made_up(class, &upload.place));
        }
        let source = if body.pieces.is_some() { &self.from_memory } else { &self.from_file };
        source.fetch_add(1, Ordering::Relaxed);
        let etag = self.inner.upload_part(upload, number, body).await?;
        Ok(if self.other_etag.swap(false, Ordering::Relaxed) { OTHER_ETAG.into() } else { etag })
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<Listed>, Error> {
        self.inner.list_parts(upload).await
    }

    async fn complete(&self, upload: &Upload, parts: &[Part], whole: Whole) -> Result<(), Error> {
        let fault = self.fault.lock().unwrap().take();
        if let Some(Fault::Refused(class)) = fault {
            return Err(made_up(class, &upload.place));
        }
        self.inner.complete(upload, parts, whole).await?;
        match fault {
            Some(Fault::AnswerLost) => Err(made_up(Class::Transient, &upload.place)),
            Some(Fault::AnsweredTwice) => Err(made_up(Class::NoSuchUpload, &upload.place)),
            _ => Ok(()),
        }
    }

    async fn abort(&self, upload: &Upload) -> Result<(), Error> {
        if self.inner.head(&upload.place).await.is_err() {
            self.aborts_early.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.abort(upload).await
    }

    async fn put(&self, place: &Place, body: Vec<u8>, crc64nvme: u64, overwrite: Overwrite) -> Result<(), Error> {
        self.inner.put(place, body, crc64nvme, overwrite).await?;
        match self.put_lost.swap(false, Ordering::Relaxed) {
            true => Err(made_up(Class::Transient, place)),
            false => Ok(()),
        }
    }

    async fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Begun>, Error> {
        let mut begun = self.inner.list_uploads(bucket, prefix).await?;
        for begun in begun.iter_mut().filter(|begun| begun.upload.place.key.contains(AGED)) {
            begun.initiated.0 -= 25 * 3600 * 1_000_000_000;
        }
        Ok(begun)
    }

    async fn head_bucket(&self, bucket: &str) -> Result<(), Error> {
        self.inner.head_bucket(bucket).await
    }
}

/// An uploader that works while a test goes on, until it is dropped: then it ends in the middle of whatever it does.
struct Running(tokio::task::JoinHandle<()>, watch::Sender<bool>);

impl Running {
    async fn start(bench: &Bench) -> Self {
        Self::start_to(bench, bench.store().await)
    }

    fn start_to(bench: &Bench, store: Arc<Watched>) -> Self {
        Self::start_with(bench, bench.settings(), store, Reserved::default())
    }

    fn start_with(bench: &Bench, settings: Settings, store: Arc<Watched>, reserved: Reserved) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self(tokio::spawn(upload::run(settings, bench.folder(), bench.counters.clone(), store, reserved, stopped)), stop)
    }

    /// Asks it to stop, and sees it do so soon.
    async fn stop(self) {
        self.1.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(5), self.0).await.expect("it goes on in spite of the order to stop").unwrap();
    }

    /// Cuts it off without letting it finish anything.
    async fn cut_off(self) {
        self.0.abort();
        assert!(self.0.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_leaves_the_spool_when_s3_has_confirmed_object_and_manifest() {
    let bench = Bench::with_bucket("small").await;
    let (bytes, empty) = (pattern(12_345), Vec::new());
    let one = Segment::whole(&bench, &bytes);
    assert_eq!(bench.drain().await, 1);
    bench.assert_arrived(&one.id, &key(), &bytes).await;
    let head = bench.client.head_object().bucket("small").key(key()).send().await.unwrap();
    assert_eq!(head.storage_class().unwrap().as_str(), "STANDARD_IA");
    assert_eq!(bench.counters.segments_verified.get(), 1);
    assert_eq!(bench.counters.bytes_verified.get(), 12_345);
    assert_eq!((bench.counters.spool_segments.get(), bench.counters.spool_bytes.get()), (0, 0));

    // A file without a byte is a segment like any other.
    let two = Segment::whole(&bench, &empty);
    bench.drain().await;
    bench.assert_arrived(&two.id, &key().replace(".pcap", "_0002.pcap"), &empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_just_written_is_sent_at_once_and_from_memory() {
    const PARTS: usize = 12;
    let bench = Bench::with_bucket("fresh").await;
    let folder = bench.folder();
    let (mut writer, threads) = writer::start(&folder, &bench.spool_settings(), bench.counters.clone()).unwrap();
    let id = new_id();
    let window = WindowFacts { start: WINDOW, seconds: 900 };
    let facts = Facts { key: Some(key()), ..Facts::begin(Kind::Capture, id.clone(), INSTANCE.into(), bench.bucket.clone(), window) };
    let number = SegmentNumber(1);
    writer.open(number, facts.clone());
    let store = bench.store().await;
    // Longer than the test lasts: whoever only looks now and then sends nothing before its end.
    let settings = Settings { look_every: DEADLINE, ..bench.settings() };
    let (stop, stopped) = watch::channel(false);
    let uploading = tokio::spawn(upload::run(settings, folder, bench.counters.clone(), store.clone(), Reserved::default(), stopped));
    let bytes = pattern(PARTS * 8 * MIB);
    let began = Instant::now();
    let chunks_of_part = 8 * MIB / Writer::CHUNK_BYTES;
    for (n, piece) in bytes.chunks(Writer::CHUNK_BYTES).enumerate() {
        let mut buffer = writer.buffer();
        buffer.extend_from_slice(piece);
        writer.append(number, Chunk { bytes: buffer, first_record: None });
        if (n + 1) % chunks_of_part == 0 {
            let parts = ((n + 1) / chunks_of_part) as u64;
            until("the part is in S3", || (bench.counters.parts_sent.get() >= parts).then_some(())).await;
        }
    }
    assert!(began.elapsed() < DEADLINE / 2, "{:?}", began.elapsed());
    let sources = (store.from_memory.load(Ordering::Relaxed) as usize, store.from_file.load(Ordering::Relaxed));
    assert_eq!(sources, (PARTS, 0), "from memory and from the file (does this file system take direct writes?)");
    writer.close(number, facts);
    drop(writer);
    threads.finish(DEADLINE);
    stop.send(true).unwrap();
    uploading.await.unwrap();
    bench.drain().await;
    bench.assert_arrived(&id, &key(), &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_is_sent_part_by_part_while_it_grows_and_only_its_tail_is_left_at_the_end() {
    let bench = Bench::with_bucket("growing").await;
    let bytes = pattern(110 * MIB + 4321);
    let segment = Segment::open(&bench, b"");
    let running = Running::start(&bench).await;
    for chunk in bytes.chunks(MIB) {
        segment.append(chunk);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("all whole parts sent before the end", || (segment.state().parts.len() == 13).then_some(())).await;
    assert_eq!(bench.counters.upload_progress.get(), 0, "parts of a growing segment say nothing of those that are to be completed");
    assert!(segment.path("pcap").exists() && segment.state().completing.is_none());
    let closed = Instant::now();
    segment.close();
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    println!("a segment of {} MiB was confirmed {:?} after its end", bytes.len() / MIB, closed.elapsed());
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!(bench.counters.parts_sent.get(), 14);
    assert_eq!(bench.counters.bytes_sent.get(), bytes.len() as u64);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_taken_stays_untouched_and_the_segment_goes_to_the_next_one() {
    let bench = Bench::with_bucket("taken").await;
    for (key, text) in [(key(), "foreign"), (key().replace(".pcap", "_0002.pcap"), "foreign, too")] {
        bench.client.put_object().bucket("taken").key(key).body(ByteStream::from_static(text.as_bytes())).send().await.unwrap();
    }
    let bytes = pattern(1000);
    let segment = Segment::whole(&bench, &bytes);
    bench.drain().await;
    bench.assert_arrived(&segment.id, &key().replace(".pcap", "_0003.pcap"), &bytes).await;
    assert_eq!(bench.get(&key()).await, b"foreign");
    assert_eq!(bench.counters.key_collisions.get(), 2);
    assert_eq!(bench.uploads().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_comes_between_is_not_overwritten() {
    let bench = Bench::with_bucket("between").await;
    let bytes = pattern(9 * MIB);
    let segment = Segment::open(&bench, &bytes);
    let running = Running::start(&bench).await;
    until("the first part", || (segment.state().parts.len() == 1).then_some(())).await;
    bench.client.put_object().bucket("between").key(key()).body(ByteStream::from_static(b"foreign")).send().await.unwrap();
    segment.close();
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&segment.id, &key().replace(".pcap", "_0002.pcap"), &bytes).await;
    assert_eq!(bench.get(&key()).await, b"foreign");
    assert_eq!(bench.counters.key_collisions.get(), 1);
    assert_eq!(bench.uploads().await, 0, "the upload to the taken key was left behind");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_taken_for_ours_only_if_id_size_and_checksum_say_so() {
    let bench = Bench::with_bucket("identity").await;
    let bytes = pattern(3000);
    let put = async |id: &str, bytes: &[u8]| {
        let put = bench.client.put_object().bucket("identity").key(key()).body(bytes.to_vec().into());
        let put = put.checksum_crc64_nvme(checksum::to_base64(checksum::of_bytes(bytes))).metadata("capture-id", id);
        put.metadata("format", "pcap").metadata("window", WINDOW.to_string()).send().await.unwrap();
    };
    // Our id and size, other bytes: neither ours nor to be overwritten, and nothing that the agent can settle.
    let segment = Segment::open(&bench, &bytes);
    put(&segment.id, &bytes.iter().rev().copied().collect::<Vec<u8>>()).await;
    segment.close();
    let running = Running::start(&bench).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(segment.path("pcap").exists() && segment.path("manifest").exists());
    assert_eq!((bench.keys().await, bench.counters.segments_verified.get()), (vec![key()], 0));
    running.stop().await;

    // All three are ours: it arrived in an earlier life, of which the journal does not know.
    put(&segment.id, &bytes).await;
    assert_eq!(bench.drain().await, 0, "it was uploaded although it was there");
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_upload_is_resumed_and_not_begun_again() {
    let bench = Bench::with_bucket("resumed").await;
    let bytes = pattern(45 * MIB);
    let segment = Segment::open(&bench, &bytes[..20 * MIB]);
    let running = Running::start(&bench).await;
    until("two parts", || (segment.state().parts.len() == 2).then_some(())).await;
    running.cut_off().await;
    let before = segment.state();
    assert!(before.upload_id.is_some());

    segment.append(&bytes[20 * MIB..]);
    segment.close();
    assert_eq!(bench.drain().await, 0, "a second upload was created");
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!(bench.counters.uploads_resumed.get(), 1);
    assert_eq!(bench.counters.parts_sent.get(), 6, "parts that S3 had were sent again");
    // The four that were left, one by one while the try lasted, and its end.
    assert!(bench.counters.upload_progress.get() > 4, "{}", bench.counters.upload_progress.get());
    assert_eq!(bench.uploads().await, 0);
    assert_eq!(bench.keys().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_cut_off_anywhere_arrives_once_and_whole() {
    let bench = Bench::with_bucket("cut").await;
    let bytes = pattern(60 * MIB);
    let segment = Segment::whole(&bench, &bytes);
    for parts in [0, 1, 3, 6] {
        let running = Running::start(&bench).await;
        until("a few parts", || (!segment.path("journal").exists() || segment.state().parts.len() >= parts).then_some(())).await;
        running.cut_off().await;
        // What the last one had begun to write is written; a new process would find it so.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let creates = bench.drain().await;
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert!(creates <= 1 && bench.counters.key_collisions.get() == 0);
    assert_eq!(bench.keys().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_believes_s3_and_not_the_journal() {
    let bench = Bench::with_bucket("believes").await;
    let bytes = pattern(24 * MIB + 7);
    let segment = Segment::open(&bench, &bytes);
    let running = Running::start(&bench).await;
    until("three parts", || (segment.state().parts.len() == 3).then_some(())).await;
    running.cut_off().await;

    // The journal's last line is torn; a part of which it still knows was overwritten behind our back.
    let journal = fs::read(segment.path("journal")).unwrap();
    fs::write(segment.path("journal"), &journal[..journal.len() - 5]).unwrap();
    let state = segment.state();
    assert_eq!(state.parts.len(), 2);
    let (id, number) = (state.upload_id.unwrap(), *state.parts.keys().next().unwrap());
    let other: Vec<u8> = pattern(8 * MIB).into_iter().rev().collect();
    let part = bench.client.upload_part().bucket("believes").key(key()).upload_id(id).part_number(number.cast_signed());
    part.checksum_crc64_nvme(checksum::to_base64(checksum::of_bytes(&other))).body(other.into()).send().await.unwrap();

    segment.close();
    let sent = bench.counters.parts_sent.get();
    assert_eq!(bench.drain().await, 0);
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!(bench.counters.parts_sent.get() - sent, 2, "the overwritten part and the tail were to be sent, nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_s3_has_under_another_etag_is_not_sent_again() {
    let bench = Bench::with_bucket("etag").await;
    let bytes = pattern(20 * MIB);
    let segment = Segment::open(&bench, &bytes);
    let running = Running::start(&bench).await;
    until("two parts", || (segment.state().parts.len() == 2).then_some(())).await;
    running.cut_off().await;
    // As when two attempts at a part arrived: encrypted, each has an ETag of its own.
    let etag = segment.state().parts[&1].etag.trim_matches('"').to_owned();
    let journal = fs::read_to_string(segment.path("journal")).unwrap().replace(&etag, OTHER_ETAG.trim_matches('"'));
    fs::write(segment.path("journal"), with_checksums(&journal)).unwrap();
    segment.close();
    assert_eq!(bench.drain().await, 0, "the upload was begun again");
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!(bench.counters.parts_sent.get(), 3);

    // The same within one process: only the completion tells.
    let segment = Segment::open_at(&bench, "later", &bytes);
    let store = bench.store().await;
    store.other_etag.store(true, Ordering::Relaxed);
    let running = Running::start_to(&bench, store.clone());
    until("two parts", || (segment.state().parts.len() == 2).then_some(())).await;
    segment.close();
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&segment.id, "later", &bytes).await;
    assert_eq!((store.creates.load(Ordering::Relaxed), bench.counters.parts_sent.get()), (1, 6), "it was begun again");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_keeps_the_metadata_to_itself_gets_one_object_and_not_one_after_the_other() {
    let bench = Bench::with_bucket("nameless").await;
    let bytes = pattern(3000);
    let segment = Segment::whole(&bench, &bytes);
    let store = bench.store().await;
    store.nameless.store(true, Ordering::Relaxed);
    let running = Running::start_to(&bench, store.clone());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    running.stop().await;
    assert_eq!((store.creates.load(Ordering::Relaxed), bench.keys().await), (1, vec![key()]));
    assert!(segment.path("pcap").exists() && bench.counters.segments_verified.get() == 0);
    assert_eq!(bench.drain().await, 0);
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_segments_that_fail_slowly_do_not_stand_in_the_way_of_a_good_one() {
    let bench = Bench::with_bucket("queue").await;
    let slow: Vec<_> = (0..2 * upload::rounds::SEGMENTS_AT_ONCE).map(|n| Segment::open_at(&bench, &format!("{SLOW}/{n}"), b"x")).collect();
    slow.iter().for_each(Segment::close);
    let good = Segment::whole(&bench, &pattern(1000));
    let running = Running::start(&bench).await;
    let begun = Instant::now();
    until("the good one has gone", || (!good.path("journal").exists()).then_some(())).await;
    // Its turn is after the two rounds that the others take.
    assert!(begun.elapsed() < 3 * SLOW_ANSWER, "it waited for {:?}", begun.elapsed());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_dies_counts_as_a_failed_one_is_followed_by_others_and_does_not_stop_those_of_other_segments() {
    let bench = Bench::with_bucket("deadly").await;
    let deadly = Segment::open_at(&bench, DEADLY, b"deadly");
    deadly.close();
    let good = Segment::whole(&bench, b"good");
    let store = bench.store().await;
    store.dies.store(true, Ordering::Relaxed);
    let running = Running::start_with(&bench, bench.settings(), store.clone(), Reserved::default());
    until("the good one has gone", || (!good.path("journal").exists()).then_some(())).await;
    until("word that one fails", || (bench.counters.segments_failing_seconds.get() > 0).then_some(())).await;
    store.dies.store(false, Ordering::Relaxed);
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&deadly.id, DEADLY, b"deadly").await;
    until("word that none fails", || (bench.counters.segments_failing_seconds.get() == 0).then_some(())).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_aborted_behind_our_back_is_begun_anew_from_the_spool() {
    let bench = Bench::with_bucket("aborted").await;
    let bytes = pattern(17 * MIB);
    let segment = Segment::open(&bench, &bytes);
    let running = Running::start(&bench).await;
    until("two parts", || (segment.state().parts.len() == 2).then_some(())).await;
    let id = segment.state().upload_id.unwrap();
    bench.client.abort_multipart_upload().bucket("aborted").key(key()).upload_id(id).send().await.unwrap();
    segment.close();
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!(bench.counters.parts_sent.get(), 2 + 3);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_whose_answer_is_lost_or_bad_still_gives_one_whole_object() {
    let rows = [
        ("lost", Fault::AnswerLost, 1),
        ("twice", Fault::AnsweredTwice, 1),
        ("slow", Fault::Refused(Class::Throttled), 1),
        ("part", Fault::Refused(Class::InvalidPart), 2),
        ("digest", Fault::Refused(Class::BadDigest), 2),
        ("conflict", Fault::Refused(Class::Conflict), 2),
        ("gone", Fault::Refused(Class::NoSuchUpload), 2),
    ];
    for (name, fault, creates) in rows {
        let bench = Bench::with_bucket(&format!("complete-{name}")).await;
        let bytes = pattern(8 * MIB + 99);
        let segment = Segment::whole(&bench, &bytes);
        let store = bench.store().await;
        *store.fault.lock().unwrap() = Some(fault);
        assert_eq!(bench.drain_to(&store).await, 0);
        bench.assert_arrived(&segment.id, &key(), &bytes).await;
        assert_eq!(store.creates.load(Ordering::Relaxed), creates, "{fault:?}");
        assert_eq!((bench.keys().await.len(), bench.counters.key_collisions.get()), (2, 0), "{fault:?}");
        assert_eq!(store.aborts_early.load(Ordering::Relaxed), 0, "{fault:?}: aborted for an error, before the segment was in S3");
        assert_eq!(bench.uploads().await, 0, "{fault:?}: an upload was left behind");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_window_has_a_manifest_without_an_object() {
    let bench = Bench::with_bucket("idle").await;
    let id = new_id();
    file_manifest(&bench, &facts(&id, "idle", Kind::Idle, 0));
    assert_eq!(bench.drain().await, 0);
    let manifest: Manifest = serde_json::from_slice(&bench.get(&manifest_key(&id)).await).unwrap();
    assert!(manifest.object.is_none() && manifest.facts.key.is_none() && manifest.facts.kind == Kind::Idle);
    assert_eq!(bench.keys().await, [manifest_key(&id)]);
    assert!(bench.files().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_before_the_bucket_was_made_arrives_afterwards() {
    let bench = Bench::new("late");
    let bytes = pattern(5000);
    let segment = Segment::whole(&bench, &bytes);
    let running = Running::start(&bench).await;
    // That the bucket is missing is seen before any try: the second failure is the segment's own.
    until("a failed try", || (bench.counters.upload_failures.get() > 1).then_some(())).await;
    assert!(segment.path("pcap").exists());
    make_bucket(&bench.client, "late").await;
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_segments_stay_where_they_are_and_do_not_stop_the_others() {
    let bench = Bench::with_bucket("damaged").await;
    let damaged = ["one", "two", "three"].map(|name| {
        let segment = Segment::open_at(&bench, name, name.as_bytes());
        segment.close();
        segment
    });
    fs::write(damaged[0].path("journal"), b"00000000 {}\n").unwrap();
    fs::write(damaged[1].path("manifest"), b"{").unwrap();
    fs::remove_file(damaged[2].path("pcap")).unwrap();
    let (bytes, idle) = (pattern(777), new_id());
    let good = Segment::whole(&bench, &bytes);
    file_manifest(&bench, &facts(&idle, "damaged", Kind::Idle, 0));
    let store = bench.store().await;
    assert_eq!(bench.drain_to(&store).await, 3);
    bench.assert_arrived(&good.id, &key(), &bytes).await;
    // The second's capture could be sent; its manifest is what cannot.
    assert_eq!(bench.keys().await, [key(), manifest_key(&idle), manifest_key(&good.id), "two".into()]);
    assert!(damaged[0].path("pcap").exists() && damaged[1].path("pcap").exists() && damaged[2].path("journal").exists());
}

/// Begins an upload as a process did that is no more; gives its id.
async fn begin(bench: &Bench, key: &str, id: &str) -> String {
    let created = bench.client.create_multipart_upload().bucket(&bench.bucket).key(key).metadata("capture-id", id);
    let created = created.metadata("window", WINDOW.to_string()).metadata("format", "pcap");
    created.checksum_algorithm("CRC64NVME".into()).checksum_type("FULL_OBJECT".into()).send().await.unwrap().upload_id.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_whose_answer_is_not_known_is_made_again_and_leaves_nothing_behind() {
    let bench = Bench::with_bucket("created").await;
    // The answer is lost.
    let bytes = pattern(9 * MIB);
    let segment = Segment::whole(&bench, &bytes);
    let store = bench.store().await;
    store.create_lost.store(true, Ordering::Relaxed);
    assert_eq!(bench.drain_to(&store).await, 0);
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!((store.creates.load(Ordering::Relaxed), bench.uploads().await), (2, 0));

    // The process died before it could write it down, twice.
    let segment = Segment::open_at(&bench, "twice", &bytes);
    Journal::resume(&segment.path("journal")).unwrap().append(Record::Creating).unwrap();
    begin(&bench, "twice", &segment.id).await;
    begin(&bench, "twice", &segment.id).await;
    // One that begins like it is another's.
    begin(&bench, "twice-as-much", "other").await;
    segment.close();
    assert_eq!(bench.drain().await, 1, "nobody knows whose those are that were found");
    bench.assert_arrived(&segment.id, "twice", &bytes).await;
    assert_eq!(bench.uploads().await, 1, "only the other's is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_nobody_knows_of_are_aborted_when_they_are_a_day_old_and_no_others() {
    let bench = Bench::with_bucket("orphans").await;
    let own = |name: &str| format!("{INSTANCE}/{name}");
    let held = Segment::open_at(&bench, &own("aged-held"), &pattern(100));
    let upload_id = begin(&bench, &own("aged-held"), &held.id).await;
    let mut journal = Journal::resume(&held.path("journal")).unwrap();
    journal.append(Record::Creating).unwrap();
    journal.append(Record::Created { upload_id }).unwrap();
    drop(journal);
    // Another one at a key whose segment is still here is for that segment to settle.
    let keys = [own("aged-held"), own("aged"), own("young"), format!("{INSTANCE}1/aged"), "aged".into()];
    for key in &keys {
        begin(&bench, key, "nobody").await;
    }
    let running = Running::start_with(&bench, bench.own_settings(), bench.store().await, Reserved::default());
    let left = async || {
        let listed = bench.client.list_multipart_uploads().bucket("orphans").send().await.unwrap();
        let mut left: Vec<_> = listed.uploads().iter().map(|upload| upload.key().unwrap().to_owned()).collect();
        left.sort();
        left
    };
    let begun = Instant::now();
    while left().await.contains(&own("aged")) {
        assert!(begun.elapsed() < DEADLINE, "the orphan is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut expected = vec![own("aged-held"), own("aged-held"), own("young"), format!("{INSTANCE}1/aged"), "aged".into()];
    expected.sort();
    assert_eq!(left().await, expected);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_is_refused_is_sent_again_as_long_as_the_spool_is_good() {
    let bench = Bench::with_bucket("refused").await;
    let bytes = pattern(17 * MIB);
    let segment = Segment::whole(&bench, &bytes);
    let store = bench.store().await;
    // Taken from the end, three in each try: a bad digest comes alone, or another refusal would hide it.
    *store.part_refusals.lock().unwrap() =
        vec![Class::BadDigest, Class::Transient, Class::Clock, Class::Credentials, Class::Throttled, Class::Transient, Class::Clock];
    assert_eq!(bench.drain_to(&store).await, 0);
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert_eq!((store.creates.load(Ordering::Relaxed), bench.counters.parts_sent.get()), (1, 3));
    assert!(store.part_refusals.lock().unwrap().is_empty());
    assert_eq!(bench.counters.segments_poison.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_the_disk_has_changed_are_not_sent() {
    // The completion is refused, or the upload is gone and all is to be sent again: what the parts were, the journal knows.
    for (name, fault) in [("rotten-digest", Class::BadDigest), ("rotten-gone", Class::NoSuchUpload)] {
        let bench = Bench::with_bucket(name).await;
        let mut bytes = pattern(17 * MIB);
        let segment = Segment::open(&bench, &bytes);
        let store = bench.store().await;
        *store.fault.lock().unwrap() = Some(Fault::Refused(fault));
        let running = Running::start_to(&bench, store.clone());
        until("two parts", || (segment.state().parts.len() == 2).then_some(())).await;
        bytes[9 * MIB] ^= 1;
        fs::write(segment.path("pcap"), &bytes).unwrap();
        segment.close();
        until("poison", || (bench.counters.segments_poison.get() == 1).then_some(())).await;
        running.stop().await;
        assert_eq!(bench.keys().await, [""; 0], "{fault:?}");
        assert!(segment.path("pcap").exists() && segment.path("manifest").exists());
        assert_eq!(store.aborts_early.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upload_begins_while_a_segment_has_not_one_whole_part() {
    let bench = Bench::with_bucket("early").await;
    let segment = Segment::open(&bench, b"");
    let running = Running::start(&bench).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(segment.state().upload_id, None, "there was nothing to send");
    let bytes = pattern(100);
    segment.append(&bytes);
    let id = until("an upload", || segment.state().upload_id).await;
    assert_eq!(segment.state().parts.len(), 0);
    segment.close();
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&segment.id, &key(), &bytes).await;
    assert!(bench.uploads().await == 0 && !id.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_object_says_what_is_unsent_and_then_that_nothing_is() {
    let bench = Bench::with_bucket("status").await;
    let growing = Segment::open(&bench, &pattern(9 * MIB));
    let damaged = Segment::whole(&bench, &pattern(77));
    let manifest = fs::read(damaged.path("manifest")).unwrap();
    fs::write(damaged.path("manifest"), b"{").unwrap();
    let running = Running::start_with(&bench, bench.own_settings(), bench.store().await, Reserved::default());
    let key = format!("status/{INSTANCE}.json");
    // Told each minute; a slow machine may need a second one.
    let told = async |wanted: fn(&Status) -> bool| {
        let begun = Instant::now();
        loop {
            if bench.keys().await.contains(&key) {
                let status: Status = serde_json::from_slice(&bench.get(&key).await).unwrap();
                if wanted(&status) {
                    return status;
                }
                assert!(begun.elapsed() < 3 * DEADLINE, "{status:?}");
            }
            assert!(begun.elapsed() < 3 * DEADLINE, "no status");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let status =
        told(|status| status.segments == 2 && status.poison == 1 && status.unsent.iter().any(|unsent| unsent.parts_sent > 0)).await;
    assert_eq!((status.schema.as_str(), status.instance.as_str(), status.poison), ("tapfleet.status/1", INSTANCE, 1));
    let [poison, other] = &status.unsent[..] else { panic!("{status:?}") };
    assert_eq!((poison.capture_id.as_str(), poison.bytes, poison.poison), (damaged.id.as_str(), 77, true));
    assert!(poison.last_error.as_ref().unwrap().contains("manifest"), "{poison:?}");
    assert_eq!((other.capture_id.as_str(), other.parts_sent, other.poison), (growing.id.as_str(), 1, false));
    assert_eq!((other.key.as_ref(), other.last_error.as_ref()), (Some(&self::key()), None));
    assert_eq!(status.bytes, 9 * MIB as u64 + 77);

    // A person mends the one; a restart tries it at once.
    running.stop().await;
    fs::write(damaged.path("manifest"), manifest).unwrap();
    growing.close();
    let running = Running::start_with(&bench, bench.own_settings(), bench.store().await, Reserved::default());
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    let status = told(|status| status.segments == 0).await;
    assert_eq!((status.poison, status.bytes, status.unsent.len()), (0, 0, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_another_capture_or_instance_is_refused() {
    let bench = Bench::with_bucket("foreign").await;
    let wrong: Vec<_> = (0..3).map(|n| Segment::open_at(&bench, &format!("wrong-{n}"), b"x")).collect();
    let right = |segment: &Segment| facts(&segment.id, "foreign", Kind::Capture, 1);
    let write = |segment: &Segment, facts: &Facts| fs::write(segment.path("manifest"), serde_json::to_vec(facts).unwrap()).unwrap();
    write(&wrong[0], &Facts { capture_id: new_id(), ..right(&wrong[0]) });
    write(&wrong[1], &Facts { instance: "i-other".into(), ..right(&wrong[1]) });
    // An idle window's, too.
    fs::remove_file(wrong[2].path("journal")).unwrap();
    fs::remove_file(wrong[2].path("pcap")).unwrap();
    write(&wrong[2], &facts(&new_id(), "foreign", Kind::Idle, 0));
    assert_eq!(bench.drain_to(&bench.store().await).await, 3);
    assert_eq!(bench.keys().await, ["wrong-0", "wrong-1"], "a manifest was stored");
    assert!(wrong.iter().all(|segment| segment.path("manifest").exists()) && bench.counters.segments_poison.get() == 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_is_there_is_not_replaced_and_one_whose_answer_was_lost_is_known_again() {
    let bench = Bench::with_bucket("manifests").await;
    let segment = Segment::whole(&bench, b"lost");
    let store = bench.store().await;
    store.put_lost.store(true, Ordering::Relaxed);
    assert_eq!(bench.drain_to(&store).await, 0);
    bench.assert_arrived(&segment.id, &key(), b"lost").await;

    let segment = Segment::open_at(&bench, "later", b"later");
    let place = manifest_key(&segment.id);
    bench.client.put_object().bucket("manifests").key(&place).body(ByteStream::from_static(b"another")).send().await.unwrap();
    segment.close();
    let running = Running::start(&bench).await;
    until("the capture", || segment.state().verified).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(bench.get(&place).await == b"another" && segment.path("pcap").exists());
    bench.client.delete_object().bucket("manifests").key(&place).send().await.unwrap();
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    bench.assert_arrived(&segment.id, "later", b"later").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_salvage_is_at_work_on_is_left_alone_and_the_others_go() {
    let bench = Bench::with_bucket("reserved").await;
    let torn = Segment::open_at(&bench, "torn", &pattern(9 * MIB));
    let good = Segment::whole(&bench, b"good");
    let listed = bench.folder().segments().unwrap();
    let reserved = Reserved::new(&listed[..1]);
    let running = Running::start_with(&bench, bench.settings(), bench.store().await, reserved.clone());
    until("the good one has gone", || (!good.path("journal").exists()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(torn.state().upload_id, None, "its bytes may yet be cut off");
    torn.close();
    reserved.release(&torn.id);
    until("an empty spool", || bench.files().is_empty().then_some(())).await;
    running.stop().await;
}

/// `tapfleetd spool upload` with this bench's spool.
fn spool_upload(bench: &Bench) -> (Option<i32>, String) {
    let settings = agent::Settings::new(&LocalStack::shared().endpoint(), bench.dir.path()).set("s3.bucket", bench.bucket.as_str());
    settings.command(None, tempfile::tempdir().unwrap().path(), &["spool", "upload"])
}

async fn status(bench: &Bench) -> Status {
    serde_json::from_slice(&bench.get(&format!("status/{INSTANCE}.json")).await).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_made_whole_is_poison_that_spool_upload_names_when_it_ends() {
    let bench = Bench::with_bucket("unfinished").await;
    let good = Segment::whole(&bench, b"good");
    let file = tapfleet_tests::packet::pcap::file([(WINDOW.0, [7; 60].as_slice())]);
    let torn = Segment::open_at(&bench, "torn", &[&file, &file[24..30]].concat());
    // Facts cannot be put in place of a folder, whoever tries.
    fs::create_dir(torn.path("manifest")).unwrap();
    let (code, said) = spool_upload(&bench);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1 captures sent and confirmed, 1 left"), "{said}");
    let named = said.lines().any(|line| line.starts_with(&format!("tapfleetd: {}: ", torn.id)) && line.contains("put in place"));
    assert!(named, "what is left, and why: {said}");
    bench.assert_arrived(&good.id, &key(), b"good").await;
    let told = status(&bench).await;
    assert_eq!((told.segments, told.poison), (1, 1), "{told:?}");
    assert!(told.unsent[0].capture_id == torn.id && told.unsent[0].last_error.as_ref().unwrap().contains("put in place"), "{told:?}");
    assert!(torn.path("pcap").exists() && torn.path("journal").exists());

    fs::remove_dir(torn.path("manifest")).unwrap();
    let (code, said) = spool_upload(&bench);
    assert_eq!(code, Some(0), "{said}");
    bench.assert_arrived(&torn.id, "torn", &file).await;
    let told = status(&bench).await;
    assert_eq!((told.segments, told.unsent.len()), (0, 0), "that nothing is unsent any more is told, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_not_whole_when_recording_has_ended_is_poison_and_one_that_is_being_made_whole_is_waited_for() {
    let bench = Bench::with_bucket("closed").await;
    let torn = Segment::open_at(&bench, "torn", &pattern(9 * MIB));
    let at_work = Segment::open_at(&bench, "at-work", &pattern(100));
    let listed = bench.folder().segments().unwrap();
    let reserved = Reserved::new(&listed[1..]);
    let running = Running::start_with(&bench, bench.settings(), bench.store().await, reserved.clone());
    until("a part", || (torn.state().parts.len() == 1).then_some(())).await;
    assert_eq!(bench.counters.segments_poison.get(), 0, "it grows");
    reserved.close();
    until("poison", || (bench.counters.segments_poison.get() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.counters.segments_poison.get(), 1);
    reserved.refuse(&at_work.id, "the disk does not answer".into());
    until("poison", || (bench.counters.segments_poison.get() == 2).then_some(())).await;
    // As soon as somebody has made it whole it goes, however long the next try of poison may wait.
    at_work.close();
    reserved.release(&at_work.id);
    until("one of them has gone", || (!at_work.path("journal").exists()).then_some(())).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_when_a_segment_fails_while_others_get_through_is_noted_beside_its_journal_and_outlives_a_restart() {
    let bench = Bench::with_bucket("failing").await;
    let bad = Segment::open_at(&bench, "bad", b"bad");
    bad.close();
    // Its capture gets there, its manifest does not.
    let place = manifest_key(&bad.id);
    bench.client.put_object().bucket("failing").key(&place).body(ByteStream::from_static(b"another")).send().await.unwrap();
    let running = Running::start(&bench).await;
    until("a failure", || bad.state().verified).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!bad.path("failing").exists(), "no other got through");
    let good = Segment::whole(&bench, b"good");
    until("a note", || bad.path("failing").exists().then_some(())).await;
    assert!(!good.path("journal").exists());
    running.stop().await;
    let noted: Stamp = fs::read_to_string(bad.path("failing")).unwrap().try_into().unwrap();
    assert_eq!(bench.counters.segments_poison.get(), 0);

    // A day later.
    fs::write(bad.path("failing"), Stamp(noted.0 - 25 * 3_600_000_000_000).to_string()).unwrap();
    let running = Running::start(&bench).await;
    until("poison", || (bench.counters.segments_poison.get() == 1).then_some(())).await;
    running.stop().await;
    bench.client.delete_object().bucket("failing").key(&place).send().await.unwrap();
    assert_eq!(bench.drain().await, 0);
    bench.assert_arrived(&bad.id, "bad", b"bad").await;
    assert!(bench.files().is_empty(), "{:?}", bench.files());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_done_after_its_segment_gave_way_stands_in_the_manifest_and_no_upload_is_left() {
    let bench = Bench::with_bucket("gave-way").await;
    let bytes = pattern(9 * MIB);
    for late in [true, false] {
        let name = if late { "late" } else { "never" };
        let segment = Segment::open_at(&bench, name, &bytes);
        let crc64nvme = checksum::of_bytes(&bytes);
        let upload_id = begin(&bench, name, &segment.id).await;
        let mut journal = Journal::resume(&segment.path("journal")).unwrap();
        // 409, and the next upload was begun: the first one's completion is on its way all the same.
        for record in [
            Record::Creating,
            Record::Created { upload_id: upload_id.clone() },
            Record::Completing { bytes: bytes.len() as u64, crc64nvme },
            Record::Restart { cause: "409".into(), misread: false },
            Record::Creating,
            Record::Created { upload_id: begin(&bench, name, &segment.id).await },
        ] {
            journal.append(record).unwrap();
        }
        drop(journal);
        let facts = facts(&segment.id, &bench.bucket, Kind::Capture, bytes.len() as u64);
        let gave_way = GaveWay { at: WINDOW, frames: facts.frames, bytes: facts.bytes };
        file_manifest(&bench, &Facts { gave_way: Some(gave_way), ..facts });
        fs::remove_file(segment.path("pcap")).unwrap();
        if late {
            complete(&bench, name, &upload_id, &bytes).await;
        }
        assert_eq!(bench.drain().await, 0);
        let manifest: Manifest = serde_json::from_slice(&bench.get(&manifest_key(&segment.id)).await).unwrap();
        assert_eq!((manifest.object.is_some(), manifest.facts.gave_way.is_some()), (late, !late), "{manifest:?}");
        assert_eq!(manifest.facts.key.as_deref(), late.then_some(name));
        assert_eq!(bench.uploads().await, 0, "one is left that could still be completed");
        assert!(bench.files().is_empty());
    }
}

/// Completes an upload as a process did that is no more.
async fn complete(bench: &Bench, key: &str, upload_id: &str, bytes: &[u8]) {
    let of = |bytes: &[u8]| checksum::to_base64(checksum::of_bytes(bytes));
    let part = bench.client.upload_part().bucket(&bench.bucket).key(key).upload_id(upload_id).part_number(1);
    let sent = part.checksum_crc64_nvme(of(bytes)).body(bytes.to_vec().into()).send().await.unwrap();
    let part = CompletedPart::builder().part_number(1).checksum_crc64_nvme(of(bytes)).set_e_tag(sent.e_tag);
    let parts = CompletedMultipartUpload::builder().parts(part.build()).build();
    let call = bench.client.complete_multipart_upload().bucket(&bench.bucket).key(key).upload_id(upload_id).multipart_upload(parts);
    call.checksum_type("FULL_OBJECT".into()).checksum_crc64_nvme(of(bytes)).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journals_of_version_1_are_taken_up_in_every_state() {
    let bench = Bench::with_bucket("journal-v1").await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journal-v1");
    let bytes = pattern(17 * MIB);
    // An upload as the fixture's process had it: its id differs each time, so it is written into the fixture's line.
    let created = bench.client.create_multipart_upload().bucket("journal-v1").key("i-v1/2026-11-22-00-17.pcap");
    let created = created
        .metadata("window", WINDOW.to_string())
        .metadata("format", "pcap")
        .checksum_algorithm("CRC64NVME".into())
        .checksum_type("FULL_OBJECT".into())
        .metadata("capture-id", "v1-parts");
    let upload_id = created.send().await.unwrap().upload_id.unwrap();
    let part = bench.client.upload_part().bucket("journal-v1").key("i-v1/2026-11-22-00-17.pcap").upload_id(&upload_id).part_number(1);
    let first = bytes[..8 * MIB].to_vec();
    let part = part.checksum_crc64_nvme(checksum::to_base64(checksum::of_bytes(&first))).body(first.into()).send().await.unwrap();

    let mut ids = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let id = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let lines = fs::read_to_string(&path)
            .unwrap()
            .replace("UPLOAD-ID", &upload_id)
            .replace("ETAG", &part.e_tag().unwrap().replace('"', "\\\""));
        let lines = if id == "v1-parts" { with_checksums(&lines) } else { lines };
        fs::write(bench.path(&format!("{id}.journal")), lines).unwrap();
        fs::write(bench.path(&format!("{id}.pcap")), &bytes).unwrap();
        let facts = facts(&id, "journal-v1", Kind::Capture, bytes.len() as u64);
        file_manifest(&bench, &Facts { instance: V1_INSTANCE.into(), ..facts });
        ids.push(id);
    }
    ids.sort();
    assert_eq!(ids, ["v1-lost", "v1-open", "v1-parts", "v1-rekeyed", "v1-stored", "v1-verified"]);
    let created_now = bench.drain().await;
    assert_eq!(created_now, 3, "lost, open and rekeyed need an upload, the others have had theirs");
    let arrived = [
        ("v1-lost", "2026-11-22-00-15"),
        ("v1-open", "2026-11-22-00-16"),
        ("v1-parts", "2026-11-22-00-17"),
        ("v1-rekeyed", "2026-11-22-00-18_0002"),
    ];
    for (id, minute) in arrived {
        bench.assert_arrived(id, &format!("i-v1/{minute}.pcap"), &bytes).await;
    }
    assert_eq!((bench.counters.uploads_resumed.get(), bench.counters.parts_sent.get()), (1, 3 + 3 + 2 + 3));
    let manifest: Manifest = serde_json::from_slice(&bench.get(&manifest_key("v1-verified")).await).unwrap();
    assert_eq!(manifest.object.unwrap().etag.as_deref(), Some("\"0123\""));
    assert!(!bench.keys().await.contains(&manifest_key("v1-stored")), "its manifest had been stored: only its files were to go");
    assert!(bench.files().is_empty());
}

/// Gives each line of a journal the checksum that is its own.
fn with_checksums(lines: &str) -> String {
    let sum = |json: &str| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, json.as_bytes());
    lines.lines().map(|line| format!("{:08x} {}\n", sum(&line[9..]), &line[9..])).collect()
}

#[test]
fn localstack_can_be_had_in_a_network_namespace_of_its_own_and_goes_with_its_value() {
    struct Netns(String);
    impl Drop for Netns {
        fn drop(&mut self) {
            ip(&["netns", "del", &self.0]);
        }
    }
    fn ip(args: &[&str]) {
        let status = std::process::Command::new("ip").args(args).status().expect("'ip' (iproute2) is missing");
        assert!(status.success(), "ip {args:?} failed: this test needs root and network namespaces");
    }
    let netns = Netns(format!("tfs3-{}", std::process::id()));
    ip(&["netns", "add", &netns.0]);
    ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
    let localstack = LocalStack::start(Some(&netns.0));
    let port = localstack.port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "it is reachable from outside its namespace");
    drop(localstack);
    let pids = std::process::Command::new("ip").args(["netns", "pids", &netns.0]).output().unwrap();
    assert_eq!(String::from_utf8(pids.stdout).unwrap(), "", "processes were left behind");
}
