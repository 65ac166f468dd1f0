//! Promises 3 and 4 under any order of faults: the real uploader over a model of S3, through random sequences of lost and late
//! answers, refusals, forgotten uploads, foreign objects, wrong answers, kills and torn journals, on a clock that costs nothing.
//! In: TAPFLEET_SEED the first one, TAPFLEET_SEQUENCES how many (10,000; one from a given seed). Out: what is left in bucket and
//! spool after each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tapfleet::observe::counters::Counters;
use tapfleet::record::facts::{Kind, Stamp};
use tapfleet::spool::Folder;
use tapfleet::spool::journal::{self, Part};
use tapfleet::upload::manifest::Manifest;
use tapfleet::upload::plan::Section;
use tapfleet::upload::store::{Begun, Body, Class, Error, Found, Labels, Listed, Overwrite, Place, Store, Upload, Whole};
use tapfleet::upload::{self, Reserved, checksum};
use tapfleet_tests::faulty_s3::objects::{self, Content, Named, Objects, Refusal, Wanted};
use tapfleet_tests::segments::{INSTANCE, Segment, files, folder, id, manifest_key, settings};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

const MIB: u64 = 1 << 20;

/// Within this much simulated time after the last fault everything has arrived.
const CALM: Duration = Duration::from_secs(3600);

/// How often the uploader looks at the folder by itself; it does so after each try, too.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// Numbers drawn by a seed (SplitMix64).
#[derive(Clone)]
struct Lot(u64);

impl Lot {
    fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn seconds(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound * 1000))
    }
}

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// It is not done; this class says so.
    Refuse(Refused),
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// It is done much later, and the answer is lost.
    Late,
    /// It takes a while.
    Slow,
    /// The uploader is killed before it is done.
    KillBefore,
    /// The uploader is killed after it was done.
    KillAfter,
    /// Its upload is gone before it is looked at.
    ForgetUpload,
    /// A part of its upload is gone before it is looked at.
    ForgetPart,
    /// Before it is looked at, somebody else's object is at its key.
    Foreign,
    /// The answer tells another size.
    WrongSize,
    /// The answer tells another checksum.
    WrongChecksum,
    /// The answer tells no checksum.
    NoChecksum,
    /// The answer tells no capture id.
    NoMetadata,
}

/// The classes of [`Fault::Refuse`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Refused {
    Transient,
    Throttled,
    Credentials,
    Clock,
    Denied,
    NoSuchBucket,
    Conflict,
    BadDigest,
    InvalidPart,
}

impl Refused {
    fn class(self) -> Class {
        match self {
            Self::Transient => Class::Transient,
            Self::Throttled => Class::Throttled,
            Self::Credentials => Class::Credentials,
            Self::Clock => Class::Clock,
            Self::Denied => Class::Denied,
            Self::NoSuchBucket => Class::NoSuchBucket,
            Self::Conflict => Class::Conflict,
            Self::BadDigest => Class::BadDigest,
            Self::InvalidPart => Class::InvalidPart,
        }
    }
}

/// The calls of [`Store`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Op {
    Head,
    Create,
    Part(u32),
    Parts,
    Complete,
    Uploads,
    Abort,
    Put,
    HeadBucket,
}

impl Op {
    /// What can happen to it.
    fn faults(self) -> Vec<Fault> {
        use Fault::{Foreign, ForgetPart, ForgetUpload, KillAfter, KillBefore, Late, LoseAnswer, NoChecksum, NoMetadata, Slow};
        use Refused::{BadDigest, Clock, Conflict, Credentials, Denied, InvalidPart, NoSuchBucket, Throttled, Transient};
        let mut all: Vec<Fault> = [Transient, Transient, Throttled, Credentials, Clock, Denied, NoSuchBucket].map(Fault::Refuse).into();
        all.extend([Slow, KillBefore, KillAfter]);
        match self {
            Self::Head => all.extend([Fault::WrongSize, Fault::WrongChecksum, NoChecksum, NoMetadata]),
            Self::Create => all.extend([LoseAnswer, LoseAnswer, Late, Foreign]),
            Self::Part(_) => all.extend([LoseAnswer, LoseAnswer, Late, ForgetUpload, ForgetPart, Foreign, Fault::Refuse(BadDigest)]),
            Self::Parts => all.extend([ForgetUpload, ForgetPart]),
            Self::Complete => {
                all.extend([Conflict, BadDigest, InvalidPart].map(Fault::Refuse));
                all.extend([LoseAnswer, LoseAnswer, LoseAnswer, Late, Late, ForgetUpload, ForgetPart, Foreign]);
            }
            Self::Abort | Self::Put => all.extend([LoseAnswer, Late]),
            Self::Uploads | Self::HeadBucket => {}
        }
        all
    }
}

/// Why nobody here may know of an upload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Unknown {
    /// The answer to its creation was lost, or came to nobody.
    NeverHeardOf,
    /// The uploader was killed while no journal held it: before the line with its id was written, or after it was given up.
    KilledWith,
    /// Giving it up was answered with an error.
    AbortFailed,
}

/// S3 as a model: the rules of [`Objects`], and faults by lot for as long as there is trouble.
struct Model {
    seed: u64,
    /// How many of a hundred calls go wrong.
    chance: u64,
    trouble: AtomicBool,
    /// No answer to anything.
    unreachable: AtomicBool,
    objects: Arc<Mutex<Objects>>,
    calls: Mutex<HashMap<(Op, String), u64>>,
    faults: Mutex<BTreeMap<Fault, u64>>,
    /// Uploads that nobody here may know of, by id: that they are left open is no leak.
    unknown: Arc<Mutex<BTreeMap<String, Unknown>>>,
    kill: Notify,
    spool: Spool,
    /// Simulated time begins here.
    begun: Instant,
    begun_ns: u64,
}

impl Model {
    fn new(seed: u64, chance: u64, spool: Spool) -> Arc<Self> {
        let mut objects = Objects::default();
        objects.completes_twice = Lot::of((seed, "twice")).percent(50);
        Arc::new(Self {
            seed,
            chance,
            trouble: AtomicBool::new(true),
            unreachable: AtomicBool::new(false),
            objects: Arc::new(Mutex::new(objects)),
            calls: Mutex::default(),
            faults: Mutex::default(),
            unknown: Arc::default(),
            kill: Notify::new(),
            spool,
            begun: Instant::now(),
            begun_ns: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64,
        })
    }

    /// What the uploader says of itself.
    fn status(&self) -> String {
        let objects = self.objects.lock().unwrap();
        let status = objects.objects.iter().find(|(key, _)| key.starts_with("status/"));
        status.map_or_else(|| "no status".into(), |(_, object)| String::from_utf8_lossy(&object.content.data).into_owned())
    }

    /// The uploader was killed: what no journal holds by now nobody knows of any more.
    fn note_kill(&self) {
        let held: BTreeSet<String> = self.spool.uploads_held().collect();
        let objects = self.objects.lock().unwrap();
        let mut unknown = self.unknown.lock().unwrap();
        for id in objects.uploads.keys().filter(|id| !held.contains(*id)) {
            unknown.entry(id.clone()).or_insert(Unknown::KilledWith);
        }
    }

    /// Uploads that are open though somebody knew of them to the end.
    fn leaked(&self) -> Vec<(String, objects::Pending)> {
        let unknown = self.unknown.lock().unwrap();
        let open = self.objects.lock().unwrap().uploads.clone();
        open.into_iter().filter(|(id, _)| !unknown.contains_key(id)).collect()
    }

    fn now_ns(&self) -> u64 {
        self.begun_ns + self.begun.elapsed().as_nanos() as u64
    }

    /// What happens to the next call of an operation on a key: of the seed, the call and its number alone, in whatever order calls come.
    fn fault(&self, op: Op, key: &str) -> (Option<Fault>, Lot) {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            let number = calls.entry((op, key.to_owned())).or_default();
            *number += 1;
            *number
        };
        let mut lot = Lot::of((self.seed, op, key, number));
        if !self.trouble.load(Relaxed) || !lot.percent(self.chance) {
            return (None, lot);
        }
        let faults = op.faults();
        let fault = faults[lot.below(faults.len() as u64) as usize];
        *self.faults.lock().unwrap().entry(fault).or_default() += 1;
        (Some(fault), lot)
    }

    /// One call: what goes wrong before it, the call itself, what goes wrong after it.
    async fn call<T: Send + 'static>(
        &self,
        op: Op,
        place: &Place,
        upload: Option<&Upload>,
        act: impl FnOnce(&mut Objects) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<(T, Option<Fault>), Error> {
        let error = |class, cause: &str| Error { class, act: "call", place: place.clone(), cause: format!("{op:?}: {cause}") };
        if self.unreachable.load(Relaxed) {
            // As long as three attempts of the client at a short call take.
            sleep(Duration::from_secs(90)).await;
            return Err(error(Class::Transient, "unreachable"));
        }
        self.spool.check(&self.objects.lock().unwrap());
        self.spool.mark();
        sleep(Duration::from_millis(20)).await;
        let (fault, mut lot) = self.fault(op, &place.key);
        match fault {
            Some(Fault::Refuse(refused)) => return Err(error(refused.class(), "refused")),
            Some(Fault::Slow) => sleep(lot.seconds(40)).await,
            Some(Fault::KillBefore) => {
                self.kill.notify_one();
                return std::future::pending().await;
            }
            Some(Fault::Late) => {
                let (objects, late) = (self.objects.clone(), lot.seconds(120));
                tokio::spawn(async move {
                    sleep(late).await;
                    // Too late for somebody to hear what came of it.
                    let _ = act(&mut objects.lock().unwrap());
                });
                return Err(error(Class::Transient, "no answer"));
            }
            Some(fault) => self.tamper(fault, place, upload),
            None => {}
        }
        let done = act(&mut self.objects.lock().unwrap());
        match fault {
            Some(Fault::KillAfter) => {
                self.kill.notify_one();
                std::future::pending().await
            }
            Some(Fault::LoseAnswer) => Err(error(Class::Transient, "the answer is lost")),
            _ => done.map(|done| (done, fault)).map_err(|refusal| error(class_of(refusal), &format!("{refusal:?}"))),
        }
    }

    fn tamper(&self, fault: Fault, place: &Place, upload: Option<&Upload>) {
        let mut objects = self.objects.lock().unwrap();
        match (fault, upload) {
            (Fault::ForgetUpload, Some(upload)) => drop(objects.uploads.remove(&upload.id)),
            (Fault::ForgetPart, Some(upload)) => drop(objects.uploads.get_mut(&upload.id).map(|pending| pending.parts.pop_first())),
            (Fault::Foreign, _) => objects.put_foreign(&place.key),
            _ => {}
        }
    }
}

/// As `upload::s3` classes the codes of these refusals.
fn class_of(refusal: Refusal) -> Class {
    match refusal {
        Refusal::NoSuchKey => Class::NotFound,
        Refusal::NoSuchUpload => Class::NoSuchUpload,
        Refusal::NoSuchBucket => Class::NoSuchBucket,
        Refusal::PreconditionFailed => Class::PreconditionFailed,
        Refusal::InvalidPart | Refusal::InvalidPartOrder | Refusal::EntityTooSmall => Class::InvalidPart,
        Refusal::BadDigest => Class::BadDigest,
        Refusal::InvalidRequest => Class::Transient,
    }
}

impl Store for Model {
    async fn head(&self, place: &Place) -> Result<Found, Error> {
        let key = place.key.clone();
        let (object, fault) = self.call(Op::Head, place, None, move |objects| objects.head(&key).cloned()).await?;
        let mut found = Found {
            bytes: object.content.bytes,
            crc64nvme: Some(object.content.crc64nvme),
            etag: Some(object.etag),
            version_id: None,
            capture_id: object.metadata.get("capture-id").cloned(),
        };
        let truth = found.clone();
        match fault {
            Some(Fault::WrongSize) => found.bytes += 1,
            Some(Fault::WrongChecksum) => found.crc64nvme = found.crc64nvme.map(|sum| sum ^ 1),
            Some(Fault::NoChecksum) => found.crc64nvme = None,
            Some(Fault::NoMetadata) => found.capture_id = None,
            _ => {}
        }
        // A manifest has no capture id that could be kept back.
        if found == truth {
            self.spool.confirmed.lock().unwrap().insert(place.key.clone());
        }
        Ok(found)
    }

    async fn create(&self, place: &Place, labels: &Labels) -> Result<String, Error> {
        let (key, now) = (place.key.clone(), self.now_ns());
        let metadata = BTreeMap::from([("capture-id".to_owned(), labels.capture_id.clone())]);
        let unknown = self.unknown.clone();
        let act = move |objects: &mut Objects| {
            let id = objects.create(&key, metadata, now)?;
            unknown.lock().unwrap().insert(id.clone(), Unknown::NeverHeardOf);
            Ok(id)
        };
        let (id, _) = self.call(Op::Create, place, None, act).await?;
        self.unknown.lock().unwrap().remove(&id);
        Ok(id)
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &Body) -> Result<String, Error> {
        let said = body.crc64nvme;
        // What arrives is what the file holds now, whatever its sum was before.
        let crc64nvme = checksum::of_section(&body.path, body.section).unwrap();
        let content = Content { bytes: body.section.bytes, crc64nvme, data: Vec::new() };
        let (key, id) = (upload.place.key.clone(), upload.id.clone());
        let act = move |objects: &mut Objects| objects.part(&key, &id, number, Some(said), content);
        Ok(self.call(Op::Part(number), &upload.place, Some(upload), act).await?.0)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<Listed>, Error> {
        let (key, id) = (upload.place.key.clone(), upload.id.clone());
        let (parts, _) = self.call(Op::Parts, &upload.place, Some(upload), move |objects| objects.parts(&key, &id)).await?;
        let listed = |(number, part): (u32, objects::Part)| Listed {
            number,
            bytes: part.content.bytes,
            crc64nvme: Some(part.content.crc64nvme),
            etag: part.etag,
        };
        Ok(parts.into_iter().map(listed).collect())
    }

    async fn complete(&self, upload: &Upload, parts: &[Part], whole: Whole) -> Result<(), Error> {
        let (key, id) = (upload.place.key.clone(), upload.id.clone());
        let named = |part: &Part| Named { number: part.number, etag: part.etag.clone(), crc64nvme: part.crc64nvme };
        let parts: Vec<Named> = parts.iter().map(named).collect();
        let wanted = Wanted { bytes: whole.bytes, crc64nvme: whole.crc64nvme, if_none: true };
        let act = move |objects: &mut Objects| objects.complete(&key, &id, &parts, wanted);
        self.call(Op::Complete, &upload.place, Some(upload), act).await.map(drop)
    }

    async fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Begun>, Error> {
        let place = Place { bucket: bucket.into(), key: prefix.into() };
        let (uploads, _) = self.call(Op::Uploads, &place, None, |objects| Ok(objects.uploads.clone())).await?;
        let uploads = uploads.into_iter().filter(|(_, pending)| pending.key.starts_with(prefix));
        let begun = |(id, pending): (String, objects::Pending)| Begun {
            upload: Upload { place: Place { bucket: bucket.into(), key: pending.key }, id },
            initiated: Stamp(pending.initiated_ns),
        };
        Ok(uploads.map(begun).collect())
    }

    async fn abort(&self, upload: &Upload) -> Result<(), Error> {
        let (key, id) = (upload.place.key.clone(), upload.id.clone());
        let aborted = self.call(Op::Abort, &upload.place, Some(upload), move |objects| objects.abort(&key, &id)).await;
        if aborted.is_err() {
            self.unknown.lock().unwrap().entry(upload.id.clone()).or_insert(Unknown::AbortFailed);
        }
        aborted.map(drop)
    }

    async fn put(&self, place: &Place, body: Vec<u8>, crc64nvme: u64, overwrite: Overwrite) -> Result<(), Error> {
        let (key, content, if_none) = (place.key.clone(), Content::of(body), overwrite == Overwrite::Never);
        let act = move |objects: &mut Objects| objects.put(&key, Some(crc64nvme), content, BTreeMap::new(), if_none);
        self.call(Op::Put, place, None, act).await.map(drop)
    }

    async fn head_bucket(&self, bucket: &str) -> Result<(), Error> {
        let place = Place { bucket: bucket.into(), key: String::new() };
        self.call(Op::HeadBucket, &place, None, |objects| objects.there()).await.map(drop)
    }
}

/// A segment as it was recorded.
#[derive(Clone, Debug)]
struct Recorded {
    segment: Segment,
    /// Bytes and CRC64NVME, once it is whole.
    whole: Option<(u64, u64)>,
}

/// The folder, what was recorded into it, and where its journals stood when the store was last asked.
#[derive(Clone)]
struct Spool {
    dir: Arc<tempfile::TempDir>,
    recorded: Arc<Mutex<BTreeMap<String, Recorded>>>,
    marks: Arc<Mutex<HashMap<PathBuf, u64>>>,
    /// Keys of objects of which S3 told the truth.
    confirmed: Arc<Mutex<BTreeSet<String>>>,
    /// How promise 3 was broken.
    broken: Arc<Mutex<Vec<String>>>,
}

/// A folder for spools. In memory, where there is: nothing here is about the disk, and a sync to one costs more than all the rest.
fn empty_folder() -> Arc<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    Arc::new(dir.unwrap())
}

impl Spool {
    fn new(dir: Arc<tempfile::TempDir>) -> Self {
        Self { dir, recorded: Arc::default(), marks: Arc::default(), confirmed: Arc::default(), broken: Arc::default() }
    }

    /// The folder, once what held it has been dropped.
    async fn folder(&self) -> Folder {
        for _ in 0..1000 {
            match folder(self.dir.path()) {
                Ok(folder) => return folder,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        folder(self.dir.path()).unwrap()
    }

    fn files(&self) -> Vec<String> {
        files(self.dir.path())
    }

    fn journals(&self) -> Vec<(PathBuf, u64)> {
        let recorded = self.recorded.lock().unwrap();
        let journals = recorded.values().map(|recorded| recorded.segment.path("journal"));
        journals.filter_map(|path| fs::metadata(&path).ok().map(|meta| (path, meta.len()))).collect()
    }

    /// Ids of the uploads that the journals hold.
    fn uploads_held(&self) -> impl Iterator<Item = String> {
        self.journals().into_iter().filter_map(|(path, _)| journal::read(&path).ok()?.0.upload_id)
    }

    /// What the journals hold now is durable: S3 is being asked for something that comes after it.
    fn mark(&self) {
        self.marks.lock().unwrap().extend(self.journals());
    }

    /// A kill in the middle of a line that was being written; zeros stand for blocks that a power loss left out.
    fn tear(&self, lot: &mut Lot) {
        for (path, bytes) in self.journals() {
            let mark = self.marks.lock().unwrap().get(&path).copied().unwrap_or(bytes);
            // What was removed was removed after the line that says so was durable.
            if bytes <= mark || !path.with_extension("pcap").exists() || !lot.percent(60) {
                continue;
            }
            let torn_at = mark + lot.below(bytes - mark + 1);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(torn_at).unwrap();
            if lot.percent(30) && torn_at > mark {
                file.set_len(bytes - 1).unwrap();
            }
        }
    }

    /// Promise 3: what is not in the folder any more is in S3, and so is its manifest, and S3 has said so of both.
    fn check(&self, objects: &Objects) {
        let (mut broken, confirmed) = (self.broken.lock().unwrap(), self.confirmed.lock().unwrap());
        for (id, recorded) in self.recorded.lock().unwrap().iter() {
            let Some((bytes, crc64nvme)) = recorded.whole.filter(|_| !recorded.segment.is_there()) else { continue };
            if !objects.objects.contains_key(&manifest_key(id)) {
                broken.push(format!("{id} has left the spool without its manifest"));
            }
            let ours = objects.objects.iter().filter(|(_, object)| object.metadata.get("capture-id") == Some(id));
            for key in ours.clone().map(|(key, _)| key).chain([&manifest_key(id)]).filter(|key| !confirmed.contains(*key)) {
                broken.push(format!("{id} has left the spool before S3 confirmed '{key}'"));
            }
            let ours: Vec<_> = ours.map(|(_, object)| (object.content.bytes, object.content.crc64nvme)).collect();
            if recorded.segment.kind != Kind::Idle && ours != [(bytes, crc64nvme)] {
                broken.push(format!("{id} has left the spool; in S3 is {ours:?} of it, recorded was {:?}", (bytes, crc64nvme)));
            }
        }
    }
}

/// How a segment comes into being.
struct Recording {
    segment: Segment,
    bytes: u64,
    steps: u64,
    lot: Lot,
}

impl Recording {
    fn new(number: u64, spool: &Spool, mut lot: Lot) -> Self {
        let kind = if lot.percent(10) { Kind::Idle } else { Kind::Capture };
        let bytes = match lot.below(100) {
            0..4 => 0,
            4..96 => 24 + lot.below(100_000),
            96 => 8 * MIB,
            97..99 => 8 * MIB + lot.below(100_000),
            _ => 8 * MIB + lot.below(14 * MIB),
        };
        // Now and then two segments want the same key, as after a step of the clock.
        let minute = if lot.percent(20) { 0 } else { number };
        let key = format!("{INSTANCE}/2026-11-22-00-{:02}.pcap", 15 + minute);
        // In the order of their numbers, and others with each seed: the waits are drawn from them.
        let id = id(number << 40 | lot.below(1 << 40));
        Self { segment: Segment::new(spool.dir.path(), id, key, kind), bytes, steps: 1 + lot.below(4), lot }
    }

    /// As the recorder does it, step by step.
    async fn record(mut self, spool: Spool) {
        let segment = self.segment.clone();
        let record = |whole| spool.recorded.lock().unwrap().insert(segment.id.clone(), Recorded { segment: segment.clone(), whole });
        if segment.kind == Kind::Idle {
            segment.close();
            record(Some((0, 0)));
            return;
        }
        segment.open();
        record(None);
        let file = OpenOptions::new().write(true).open(segment.path("pcap")).unwrap();
        for step in 1..=self.steps {
            let (from, to) = (self.bytes * (step - 1) / self.steps, self.bytes * step / self.steps);
            file.set_len(to).unwrap();
            // A few bytes in each stretch make it unlike every other; the rest are holes.
            for at in (from..to.saturating_sub(8)).step_by(MIB as usize) {
                file.write_all_at(&self.lot.next().to_le_bytes(), at).unwrap();
            }
            sleep(self.lot.seconds(60)).await;
        }
        let crc64nvme = checksum::of_section(&segment.path("pcap"), Section { offset: 0, bytes: self.bytes }).unwrap();
        segment.close();
        record(Some((self.bytes, crc64nvme)));
    }
}

/// What a sequence was.
#[derive(Default)]
struct Tally {
    segments: u64,
    kills: u64,
    calls: u64,
    faults: BTreeMap<Fault, u64>,
}

/// One sequence: trouble, kills, calm; then everything must have arrived.
async fn sequence(seed: u64, dir: Arc<tempfile::TempDir>) -> Tally {
    let mut lot = Lot::of((seed, "sequence"));
    let spool = Spool::new(dir);
    let chance = [2, 10, 25, 50][lot.below(4) as usize];
    let model = Model::new(seed, chance, spool.clone());
    let segments = 1 + lot.below(3);
    let recorders: Vec<_> = (0..segments).map(|number| Recording::new(number, &spool, Lot::of((seed, number, "segment")))).collect();
    let recorders: Vec<_> = recorders.into_iter().map(|recording| tokio::spawn(recording.record(spool.clone()))).collect();
    let end_of_trouble = Instant::now() + lot.seconds(900);
    let mut kills = 0;
    while Instant::now() < end_of_trouble {
        let life = Life::start(&model, LOOK_EVERY).await;
        tokio::select! {
            () = model.kill.notified() => {}
            () = sleep(lot.seconds(300)) => {}
        }
        life.kill().await;
        kills += 1;
        spool.check(&model.objects.lock().unwrap());
        spool.tear(&mut lot);
        model.note_kill();
    }
    for recorder in recorders {
        recorder.await.unwrap();
    }
    model.trouble.store(false, Relaxed);
    let life = Life::start(&model, LOOK_EVERY).await;
    // What is still on its way arrives, and so does what the uploader waits for.
    let emptied = timeout(CALM, async {
        while !spool.files().is_empty() {
            sleep(Duration::from_secs(10)).await;
        }
        sleep(Duration::from_secs(180)).await;
    });
    assert!(emptied.await.is_ok(), "{CALM:?} after the last fault the spool still holds {:?}: {}", spool.files(), model.status());
    life.kill().await;
    assert_all_arrived(&model).await;
    let calls = model.calls.lock().unwrap().values().sum();
    let faults = model.faults.lock().unwrap().clone();
    Tally { segments, kills, calls, faults }
}

/// An uploader, until it is killed.
struct Life {
    task: tokio::task::JoinHandle<()>,
    _stop: watch::Sender<bool>,
}

impl Life {
    async fn start(model: &Arc<Model>, look_every: Duration) -> Self {
        let (stop, stopped) = watch::channel(false);
        let counters = Arc::new(Counters::new(1));
        let run = upload::run(settings(look_every), model.spool.folder().await, counters, model.clone(), Reserved::default(), stopped);
        Self { task: tokio::spawn(run), _stop: stop }
    }

    /// Ends it in the middle of whatever it does.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        // What the disk had been told to write is written: the only thread for that takes one thing after the other.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }
}

/// Every segment and every manifest once and whole, nothing else, nobody else's object touched, no upload left but those that nobody
/// could know of, and those only until the next look for them.
async fn assert_all_arrived(model: &Arc<Model>) {
    assert_eq!(model.leaked(), [], "uploads are left open that the uploader knew of");
    abort_orphans(model).await;
    let objects = model.objects.lock().unwrap();
    model.spool.check(&objects);
    assert_eq!(*model.spool.broken.lock().unwrap(), Vec::<String>::new());
    assert_eq!(objects.uploads.values().map(|pending| &pending.key).collect::<Vec<_>>(), Vec::<&String>::new(), "uploads are left behind");
    assert_eq!(objects.overwritten.iter().filter(|key| !key.starts_with("status/")).collect::<Vec<_>>(), Vec::<&String>::new());
    let mut keys: Vec<&String> = Vec::new();
    for (id, recorded) in model.spool.recorded.lock().unwrap().iter() {
        let (key, object) = objects.objects.get_key_value(&manifest_key(id)).expect("its manifest");
        keys.push(key);
        let manifest: Manifest = serde_json::from_slice(&object.content.data).unwrap();
        if recorded.segment.kind == Kind::Idle {
            assert!(manifest.object.is_none());
            continue;
        }
        let named = manifest.object.expect("the manifest names the object");
        let (key, object) = objects.objects.get_key_value(&named.key).expect("the object that the manifest names");
        keys.push(key);
        assert_eq!(object.metadata.get("capture-id"), Some(id));
        let sum = checksum::to_base64(object.content.crc64nvme);
        assert_eq!((named.bytes, named.crc64nvme, named.etag), (object.content.bytes, sum, Some(object.etag.clone())));
    }
    for (key, object) in objects.objects.iter().filter(|(key, _)| !keys.contains(key) && !key.starts_with("status/")) {
        assert_eq!(object.content.data, b"foreign", "'{key}' is nobody's");
    }
}

/// What an earlier life began and could not know of is aborted when it is a day old: two days go by, and an agent starts.
async fn abort_orphans(model: &Arc<Model>) {
    for pending in model.objects.lock().unwrap().uploads.values_mut() {
        pending.initiated_ns -= Duration::from_secs(48 * 3600).as_nanos() as u64;
    }
    let left = || !model.objects.lock().unwrap().uploads.is_empty();
    if !left() {
        return;
    }
    let life = Life::start(model, Duration::from_secs(60)).await;
    let cleaned = timeout(CALM, async {
        while left() {
            sleep(Duration::from_secs(10)).await;
        }
    });
    let _ = cleaned.await;
    life.kill().await;
}

/// A runtime whose clock stands still while there is work and jumps when there is none.
fn on_a_clock_that_costs_nothing<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).max_blocking_threads(1).build();
    runtime.unwrap().block_on(work)
}

fn allowed_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect()
}

/// Keeps this thread, and those that it begins, on one CPU: a sequence is a conversation of two threads of which one at a time works,
/// and waking the other one on another CPU takes longer than what it then does.
fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).unwrap();
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn ten_thousand_random_fault_sequences_lose_nothing_double_nothing_and_leave_nothing_behind() {
    let first = from_environment("TAPFLEET_SEED");
    let count = from_environment("TAPFLEET_SEQUENCES").unwrap_or(if first.is_some() { 1 } else { 10_000 });
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let first = first.unwrap_or(now / 1_000_000 * 1_000_000);
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let sum = Mutex::new(Tally::default());
    let work = &|cpu| {
        stay_on(cpu);
        // Each sequence leaves it empty.
        let mut dir = empty_folder();
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= count || failed.lock().unwrap().len() >= 3 {
                return;
            }
            let seed = first + number;
            let outcome = std::panic::catch_unwind(|| on_a_clock_that_costs_nothing(sequence(seed, dir.clone())));
            let Ok(tally) = outcome else {
                failed.lock().unwrap().push(seed);
                dir = empty_folder();
                continue;
            };
            let mut sum = sum.lock().unwrap();
            sum.segments += tally.segments;
            sum.kills += tally.kills;
            sum.calls += tally.calls;
            for (fault, times) in tally.faults {
                *sum.faults.entry(fault).or_default() += times;
            }
        }
    };
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for cpu in allowed_cpus().into_iter().take(8) {
            scope.spawn(move || work(cpu));
        }
    });
    let (sum, failed) = (sum.into_inner().unwrap(), failed.into_inner().unwrap());
    let faults: u64 = sum.faults.values().sum();
    println!(
        "{count} sequences from seed {first} in {:.0} s: {} segments, {} calls, {} kills, {faults} faults:",
        begun.elapsed().as_secs_f64(),
        sum.segments,
        sum.calls,
        sum.kills
    );
    for (fault, times) in &sum.faults {
        println!("  {times:>8} {fault:?}");
    }
    assert!(
        failed.is_empty(),
        "sequences failed; each runs again with TAPFLEET_SEED={}",
        failed.iter().map(u64::to_string).collect::<Vec<_>>().join(" or ")
    );
    let kinds = [Op::Head, Op::Create, Op::Part(1), Op::Parts, Op::Complete, Op::Abort, Op::Put].map(Op::faults).concat();
    let missing: Vec<_> = kinds.iter().filter(|fault| !sum.faults.contains_key(fault)).collect();
    assert!(count < 1000 || missing.is_empty(), "never happened: {missing:?}");
}

#[test]
fn three_days_without_s3_cost_nothing_and_everything_arrives_afterwards() {
    // One an hour: with four, the test spends its time listing the folder.
    const WINDOWS: u64 = 3 * 24;
    on_a_clock_that_costs_nothing(async {
        let spool = Spool::new(empty_folder());
        let model = Model::new(1, 0, spool.clone());
        model.unreachable.store(true, Relaxed);
        let life = Life::start(&model, Duration::from_secs(300)).await;
        for number in 0..WINDOWS {
            let key = format!("{INSTANCE}/2026-11-22-00-15_{number:04}.pcap");
            let segment = Segment::new(spool.dir.path(), id(number), key, Kind::Capture);
            let bytes = number.to_le_bytes().repeat(100);
            segment.open();
            segment.append(&bytes);
            segment.close();
            let content = Content::of(bytes);
            let whole = Some((content.bytes, content.crc64nvme));
            spool.recorded.lock().unwrap().insert(segment.id.clone(), Recorded { segment, whole });
            sleep(Duration::from_secs(3600)).await;
        }
        assert_eq!(spool.files().iter().filter(|name| name.ends_with(".pcap")).count() as u64, WINDOWS);
        // An agent that was started in the middle of it does no worse.
        life.kill().await;
        let life = Life::start(&model, Duration::from_secs(300)).await;
        sleep(Duration::from_secs(900)).await;
        model.unreachable.store(false, Relaxed);
        let begun = Instant::now();
        while !spool.files().is_empty() {
            assert!(begun.elapsed() < CALM, "an hour after the outage the spool still holds {} files", spool.files().len());
            sleep(Duration::from_secs(10)).await;
        }
        println!("{WINDOWS} windows of an outage of 3 days had arrived {:?} after its end", begun.elapsed());
        life.kill().await;
        assert_all_arrived(&model).await;
    });
}
