//! Goes round the spool folder, again and again: each segment that is due gets a try, a few at a time.
//! In: the folder, the clock of tokio, an order to stop. Out: tries, levels of the spool, the status object, log lines.
//! Never: gives a segment up, lets anything but a segment's own files and the store hold it up, floods the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::multipart::{Progress, Sending, Standing, Way, blocking, send_idle};
use super::queue::{Ended, Queue, Seen, offset};
use super::status::{Status, Unsent};
use super::store::{Class, Overwrite, Place, Store};
use super::{Error, Settings, checksum, orphans};
use crate::observe::counters::Counters;
use crate::record::Stamp;
use crate::spool::{Folder, Segment, failing};

/// Segments that are tried at the same time.
pub const SEGMENTS_AT_ONCE: usize = 4;

/// Failures of one kind are logged at most this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// How often the status is told while anything is unsent, and how long telling it may take.
const STATUS_EVERY: Duration = Duration::from_secs(60);
/// The first one waits until something was tried.
const STATUS_FIRST: Duration = Duration::from_secs(5);
const STATUS_PATIENCE: Duration = Duration::from_secs(50);

/// How often uploads that nobody knows of are looked for, and how soon again when that failed.
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3600);
const SWEEP_AGAIN: Duration = Duration::from_secs(600);

/// Which segments are not whole for another reason than that they grow: the uploader leaves those alone that somebody is at work on, and
/// tells of those that cannot be made whole.
#[derive(Clone, Default, Debug)]
pub struct Reserved(Arc<Mutex<Unfinished>>);

#[derive(Clone, Default, Debug)]
struct Unfinished {
    /// By capture id; with the reason why one cannot be made whole, as long as it cannot.
    segments: BTreeMap<String, Option<String>>,
    /// Nothing grows any more.
    closed: bool,
}

impl Reserved {
    /// Reserves segments: somebody is at work on them.
    #[must_use]
    pub fn new(segments: &[Segment]) -> Self {
        let segments = segments.iter().map(|segment| (segment.capture_id.clone(), None)).collect();
        Self(Arc::new(Mutex::new(Unfinished { segments, closed: false })))
    }

    /// Gives one free: it is whole.
    pub fn release(&self, capture_id: &str) {
        self.change(|unfinished| _ = unfinished.segments.remove(capture_id));
    }

    /// One cannot be made whole, for now.
    pub fn refuse(&self, capture_id: &str, cause: String) {
        self.change(|unfinished| _ = unfinished.segments.insert(capture_id.into(), Some(cause)));
    }

    /// Recording has ended: what is not whole by now, and nobody is at work on, is not going to be.
    pub fn close(&self) {
        self.change(|unfinished| unfinished.closed = true);
    }

    /// Why a segment is not whole and, for now, not going to be; `None` when it is, grows, or somebody is at work on it.
    #[must_use]
    pub fn why_unfinished(&self, segment: &Segment) -> Option<String> {
        self.now().why(segment)
    }

    /// Whether somebody is at work on it.
    #[must_use]
    pub fn is_reserved(&self, segment: &Segment) -> bool {
        self.now().is_reserved(segment)
    }

    fn change(&self, change: impl FnOnce(&mut Unfinished)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn now(&self) -> Unfinished {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Unfinished {
    fn is_reserved(&self, segment: &Segment) -> bool {
        self.segments.get(&segment.capture_id).is_some_and(Option::is_none)
    }

    /// Why a segment is not whole and not going to be, for now.
    fn why(&self, segment: &Segment) -> Option<String> {
        let cut_short = || "this agent could not write all of it".to_owned();
        match self.segments.get(&segment.capture_id) {
            _ if segment.manifest.is_some() => None,
            Some(cause) => cause.clone(),
            None => self.closed.then(cut_short),
        }
    }
}

/// Sends what the folder holds and what comes into it, but for what is `reserved`, until `stop` says true or its sender is gone.
pub async fn run<S: Store>(
    settings: Settings,
    folder: Folder,
    counters: Arc<Counters>,
    store: Arc<S>,
    reserved: Reserved,
    stop: watch::Receiver<bool>,
) {
    // Ends with this function, however it ends.
    let mut check = JoinSet::new();
    check.spawn(check_bucket(settings.bucket.clone(), store.clone(), counters.clone()));
    // What is left the next process sees.
    let _ = Rounds::new(settings, folder, counters, store, reserved).go(stop, false).await;
}

/// Sends what the folder holds; ends when nothing is left that can be sent, or at `stop`. Gives what is left, and the status object then
/// says so, too. A segment that still grows can be sent once it has been closed, so it is waited for, unless `reserved` is closed.
///
/// # Errors
/// When `stop` came while the folder could not be listed: what is left is then not known.
pub async fn drain<S: Store>(
    settings: Settings,
    folder: Folder,
    counters: Arc<Counters>,
    store: Arc<S>,
    reserved: Reserved,
    stop: watch::Receiver<bool>,
) -> Result<Vec<Unsent>, Error> {
    Rounds::new(settings, folder, counters, store, reserved).go(stop, true).await
}

/// Says at once what would otherwise be seen only when the first segment is to be sent.
async fn check_bucket<S: Store>(bucket: String, store: Arc<S>, counters: Arc<Counters>) {
    match store.head_bucket(&bucket).await {
        Ok(()) => info!("captures go to s3://{bucket}"),
        Err(cause) => {
            error!("captures stay in the spool for now: {cause}");
            // Being forbidden to ask for the bucket does not mean being forbidden to write to it.
            if cause.class == Class::NoSuchBucket {
                counters.upload_failures.add(1);
                counters.upload_refusals.add(1);
            }
        }
    }
}

struct Rounds<S> {
    way: Arc<Way<S>>,
    settings: Settings,
    reserved: Reserved,
    /// What the folder held when it could last be listed.
    listed: Vec<Listing>,
    /// Why it could not at the last look.
    unlisted: Option<Error>,
    queue: Queue<Sending<S>>,
    /// What of the segments is in S3, by capture id, as of their last try.
    standings: BTreeMap<String, Standing>,
    tries: JoinSet<Try<S>>,
    /// The segments that they are about.
    under_way: BTreeMap<task::Id, String>,
    /// The status on its way; gives whether it says that nothing is unsent, once it arrived.
    telling: JoinSet<Option<bool>>,
    /// When it is told again.
    status_due: Instant,
    /// Whether the last one that was sent says that something is unsent.
    unsent_told: bool,
    /// Whether the last one that arrived says that nothing is.
    told_empty: bool,
    said: HashMap<Option<Class>, Said>,
}

/// A try that ended.
struct Try<S> {
    capture_id: String,
    begun: Instant,
    sending: Option<Sending<S>>,
    outcome: Result<Progress, Error>,
}

/// What of one kind was logged last.
struct Said {
    at: Instant,
    kept_back: u64,
}

impl<S: Store> Rounds<S> {
    fn new(settings: Settings, folder: Folder, counters: Arc<Counters>, store: Arc<S>, reserved: Reserved) -> Self {
        Self {
            way: Arc::new(Way::new(store, folder, counters)),
            queue: Queue::new(settings.look_every, offset(settings.create_spread, settings.instance.as_deref()), settings.poison_still),
            settings,
            reserved,
            listed: Vec::new(),
            unlisted: None,
            standings: BTreeMap::new(),
            tries: JoinSet::new(),
            under_way: BTreeMap::new(),
            telling: JoinSet::new(),
            status_due: Instant::now() + STATUS_FIRST,
            unsent_told: false,
            told_empty: false,
            said: HashMap::new(),
        }
    }

    async fn go(mut self, stop: watch::Receiver<bool>, until_empty: bool) -> Result<Vec<Unsent>, Error> {
        // It holds the folder, so it must not outlive this uploader, however that ends.
        let mut sweeps = JoinSet::new();
        // A rescued spool may be a copy, and its instance at work.
        if let Some(instance) = self.settings.instance.as_ref().filter(|_| !until_empty) {
            let prefix = format!("{}{instance}/", self.settings.key_prefix);
            sweeps.spawn(look_for_orphans(self.way.clone(), self.settings.bucket.clone(), prefix));
        }
        self.go_round(stop, until_empty).await;
        sweeps.shutdown().await;
        self.telling.shutdown().await;
        self.tries.shutdown().await;
        self.way.settle().await;
        match self.unlisted.take() {
            Some(cause) => Err(cause),
            None => Ok(self.listed.iter().map(|listing| self.unsent(listing)).collect()),
        }
    }

    async fn go_round(&mut self, mut stop: watch::Receiver<bool>, until_empty: bool) {
        let fresh = self.way.folder.fresh().clone();
        loop {
            self.way.counters.upload_rounds.add(1);
            match self.look().await {
                Ok(()) => {
                    let now = Instant::now();
                    self.tell_status(now);
                    self.start(now);
                    self.tell_progress(now);
                    self.keep_failing(now).await;
                    if until_empty && !self.queue.is_sendable() {
                        return self.tell_last().await;
                    }
                }
                Err(cause) => {
                    self.say(None, &format!("{cause}; trying again"));
                    self.unlisted = Some(cause);
                }
            }
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                () = sleep(self.settings.look_every) => {}
                () = fresh.grown() => self.queue.grew(Instant::now()),
                Some(done) = self.tries.join_next_with_id(), if !self.tries.is_empty() => match done {
                    Ok((id, done)) => {
                        self.under_way.remove(&id);
                        let before = self.queue.progress();
                        self.note(done);
                        self.way.counters.upload_progress.add(self.queue.progress() - before);
                    }
                    Err(cause) => self.note_death(&cause),
                },
            }
        }
    }

    /// Lists the folder and sets the levels.
    async fn look(&mut self) -> Result<(), Error> {
        // Asked before the folder: what is released meanwhile is listed as it is by then with the next look.
        let unfinished = self.reserved.now();
        let folder = self.way.folder.clone();
        let list =
            move || Ok::<_, Error>(folder.segments()?.into_iter().map(|segment| Listing::of(segment, &unfinished)).collect::<Vec<_>>());
        self.listed = blocking(list).await??;
        self.unlisted = None;
        let counters = &self.way.counters;
        counters.spool_segments.set(self.listed.len() as u64);
        counters.spool_oldest_seconds.set(self.listed.first().map_or(0, |listing| listing.age_seconds));
        Ok(())
    }

    /// Starts the tries that are due.
    fn start(&mut self, now: Instant) {
        let listed: Vec<_> = self.listed.iter().filter(|listing| !listing.reserved).collect();
        self.queue.list(listed.iter().map(|listing| listing.seen()), now);
        for (capture_id, sending) in self.queue.take(SEGMENTS_AT_ONCE.saturating_sub(self.tries.len()), now) {
            let at = listed.binary_search_by(|listing| listing.segment.capture_id.cmp(&capture_id));
            if let Some(listing) = at.ok().and_then(|at| listed.get(at)) {
                let best = self.queue.get(&capture_id).map_or(0, |entry| entry.best);
                let found = Found { segment: listing.segment.clone(), unfinished: listing.unfinished.clone(), best };
                let begun = self.tries.spawn(try_once(self.way.clone(), found, sending, now));
                self.under_way.insert(begun.id(), capture_id);
            }
        }
    }

    /// Sets what tells whether segments get on.
    fn tell_progress(&self, now: Instant) {
        let counters = &self.way.counters;
        counters.segments_poison.set(self.queue.poison() as u64);
        counters.segments_failing_seconds.set(self.queue.failing(now).map_or(0, |time| time.as_secs().max(1)));
    }

    /// Notes for the next process since when segments fail while others get through, where that has changed.
    async fn keep_failing(&mut self, now: Instant) {
        for listing in self.listed.iter().filter(|listing| !listing.reserved) {
            let capture_id = listing.segment.capture_id.clone();
            let Some(entry) = self.queue.get(&capture_id).filter(|entry| !entry.is_under_way()) else { continue };
            let folder = self.way.folder.clone();
            let kept = match (entry.passed_for(now), listing.failing_for) {
                (Some(passed_for), None) => {
                    let since = Stamp(wall_clock().0.saturating_sub(u64::try_from(passed_for.as_nanos()).unwrap_or(u64::MAX)));
                    self.way.change(move || failing::note(&folder, &capture_id, since)).await
                }
                (None, Some(_)) => self.way.change(move || failing::forget(&folder, &capture_id)).await,
                _ => continue,
            };
            if let Err(cause) = kept.and_then(|kept| Ok(kept?)) {
                debug!("since when a segment fails is not noted: {cause}");
            }
        }
    }

    /// A try that panics, by a defect of ours or of what it calls, is one that failed: the segment gets further ones.
    fn note_death(&mut self, death: &JoinError) {
        error!("a try to send a segment died; this is a defect, please report the log lines before this one: {death}");
        if let Some(capture_id) = self.under_way.remove(&death.id()) {
            let ended = Ended::Failed { parts: 0, damaged: false, cause: format!("the try died: {death}") };
            self.queue.ended(&capture_id, None, ended, Instant::now());
        }
    }

    /// Takes note of how a try ended and when the next one is due.
    fn note(&mut self, done: Try<S>) {
        let now = Instant::now();
        let Try { capture_id, begun, sending, outcome } = done;
        let mut parts = 0;
        if let Some(sending) = &sending {
            let standing = sending.standing();
            parts = standing.parts;
            self.standings.insert(capture_id.clone(), standing);
        }
        let error = match outcome {
            Ok(progress) => {
                if progress == Progress::Gone {
                    self.way.counters.segments_finished.add(1);
                }
                let ended = if progress == Progress::Gone { Ended::Gone } else { Ended::Sent { parts } };
                self.queue.ended(&capture_id, sending, ended, now);
                return;
            }
            Err(error) => error,
        };
        let damaged = error.is_damage();
        let ended = Ended::Failed { parts, damaged, cause: error.to_string() };
        let Some((failures, wait)) = self.queue.ended(&capture_id, sending, ended, now) else { return };
        let seconds = wait.as_secs_f32();
        let text = format!("segment {capture_id}: {error}; try {failures} failed, the next one is in {seconds:.1} s");
        match error {
            // Few lines by its wait, which is long.
            _ if damaged => error!("{text}"),
            Error::Store(error) => {
                self.count(error.class, begun, now);
                self.say(Some(error.class), &text);
            }
            _ => self.say(None, &text),
        }
    }

    /// Counts a failed call.
    fn count(&self, class: Class, begun: Instant, now: Instant) {
        let counters = &self.way.counters;
        counters.upload_failures.add(1);
        match class {
            Class::Denied | Class::NoSuchBucket | Class::KeyRefused => counters.upload_refusals.add(1),
            Class::Credentials => counters.credential_refusals.add(1),
            Class::Clock => counters.clock_refusals.add(1),
            Class::Throttled => self.way.permits.throttled(begun, now),
            _ => {}
        }
    }

    /// Tells each minute what is unsent, and once that nothing is. Nothing waits for it, and nobody minds when it fails.
    fn tell_status(&mut self, now: Instant) {
        let listed = &self.listed;
        self.standings.retain(|id, _| listed.binary_search_by(|listing| listing.segment.capture_id.cmp(id)).is_ok());
        while let Some(told) = self.telling.try_join_next() {
            match told.ok().flatten() {
                Some(empty) => self.told_empty = empty,
                None => self.status_due = now + STATUS_EVERY,
            }
        }
        // That nothing is unsent any more is told at once.
        let news = listed.is_empty() && self.unsent_told;
        let wanted = if listed.is_empty() { !self.told_empty && (news || now >= self.status_due) } else { now >= self.status_due };
        if !wanted || !self.telling.is_empty() {
            return;
        }
        (self.status_due, self.unsent_told) = (now + STATUS_EVERY, !listed.is_empty());
        self.spawn_telling();
    }

    fn spawn_telling(&mut self) {
        let Some(instance) = &self.settings.instance else { return };
        let unsent = self.listed.iter().map(|listing| self.unsent(listing)).collect();
        let status = Status::new(instance, wall_clock(), unsent);
        self.telling.spawn(tell(self.way.clone(), self.settings.bucket.clone(), status));
    }

    /// Tells what is left, after what may be on its way, and waits until it has arrived.
    async fn tell_last(&mut self) {
        let told = async {
            while self.telling.join_next().await.is_some() {}
            self.spawn_telling();
            while self.telling.join_next().await.is_some() {}
        };
        if timeout(STATUS_PATIENCE, told).await.is_err() {
            debug!("what is left was not told: S3 has not answered for {STATUS_PATIENCE:?}");
        }
    }

    fn unsent(&self, listing: &Listing) -> Unsent {
        let id = &listing.segment.capture_id;
        let (entry, standing) = (self.queue.get(id), self.standings.get(id));
        Unsent {
            capture_id: id.clone(),
            key: standing.map(|standing| standing.key.clone()),
            bytes: listing.bytes,
            parts_sent: standing.map_or(0, |standing| standing.parts),
            age_seconds: listing.age_seconds,
            last_error: entry.and_then(|entry| entry.last_error.clone()),
            poison: entry.is_some_and(|entry| entry.poison),
        }
    }

    /// Logs a failure, unless one of its kind was just logged.
    fn say(&mut self, kind: Option<Class>, text: &str) {
        let now = Instant::now();
        match self.said.get_mut(&kind) {
            Some(said) if now.duration_since(said.at) < SAY_EVERY => said.kept_back += 1,
            last => {
                let kept_back = last.map_or(0, |said| said.kept_back);
                warn!(kept_back, "{text}");
                self.said.insert(kind, Said { at: now, kept_back: 0 });
            }
        }
    }
}

/// A segment, and what the folder tells of it.
struct Listing {
    segment: Segment,
    bytes: u64,
    age_seconds: u64,
    reserved: bool,
    /// Why it is not whole, unless it grows.
    unfinished: Option<String>,
    /// For how long others have got through while it failed, by what was noted.
    failing_for: Option<Duration>,
}

impl Listing {
    fn of(segment: Segment, unfinished: &Unfinished) -> Self {
        let noted = failing::since(&segment);
        Self {
            bytes: bytes_of(&segment),
            age_seconds: age_of(&segment).as_secs(),
            reserved: unfinished.is_reserved(&segment),
            unfinished: unfinished.why(&segment),
            failing_for: noted.map(|Stamp(since)| Duration::from_nanos(wall_clock().0.saturating_sub(since))),
            segment,
        }
    }

    fn seen(&self) -> Seen<'_> {
        let grows = self.segment.manifest.is_none() && self.unfinished.is_none();
        Seen { segment: &self.segment, grows, passed_for: self.failing_for }
    }
}

/// Looks for orphans now and then, for as long as it is let.
async fn look_for_orphans<S: Store>(way: Arc<Way<S>>, bucket: String, prefix: String) {
    loop {
        let next = match orphans::sweep(&way, &bucket, &prefix, wall_clock()).await {
            Ok(_) => SWEEP_EVERY,
            Err(cause) => {
                debug!("uploads that nobody knows of were not looked for: {cause}");
                SWEEP_AGAIN
            }
        };
        sleep(next).await;
    }
}

/// Stores a status. Gives whether it says that nothing is unsent; `None` when it did not arrive.
async fn tell<S: Store>(way: Arc<Way<S>>, bucket: String, status: Status) -> Option<bool> {
    let place = Place { bucket, key: status.key() };
    let json = serde_json::to_vec_pretty(&status).ok()?;
    let crc64nvme = checksum::of_bytes(&json);
    match timeout(STATUS_PATIENCE, way.store.put(&place, json, crc64nvme, Overwrite::Always)).await {
        Ok(Ok(())) => {
            way.counters.statuses_told.add(1);
            Some(status.segments == 0)
        }
        Ok(Err(error)) => {
            debug!("the status was not told: {error}");
            None
        }
        Err(_) => {
            debug!("the status was not told: {place} has not answered for {STATUS_PATIENCE:?}");
            None
        }
    }
}

fn wall_clock() -> Stamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Stamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A segment that is due for a try.
struct Found {
    segment: Segment,
    /// Why it is not whole and not going to be.
    unfinished: Option<String>,
    /// The most parts of it that were ever in S3.
    best: usize,
}

async fn try_once<S: Store>(way: Arc<Way<S>>, found: Found, sending: Option<Sending<S>>, begun: Instant) -> Try<S> {
    let Found { segment, unfinished, best } = found;
    let capture_id = segment.capture_id.clone();
    if let Some(cause) = unfinished {
        let outcome = Err(Error::Unfinished { capture_id: capture_id.clone(), cause });
        return Try { capture_id, begun, sending, outcome };
    }
    if segment.journal.is_none() {
        // Data without a journal is a segment of which the salvage at start could not decide.
        let outcome = match segment.data {
            None => send_idle(&way, &segment).await,
            Some(_) => Err(Error::Missing { capture_id: capture_id.clone(), what: "journal" }),
        };
        return Try { capture_id, begun, sending: None, outcome };
    }
    let resumed = match sending {
        Some(sending) => Ok(sending),
        None => Sending::resume(way, segment.clone()).await,
    };
    match resumed {
        Ok(sending) => {
            let mut sending = sending.with_best(best);
            let outcome = sending.go_on(segment).await;
            Try { capture_id, begun, sending: Some(sending), outcome }
        }
        Err(error) => Try { capture_id, begun, sending: None, outcome: Err(error) },
    }
}

fn bytes_of(segment: &Segment) -> u64 {
    segment.data.as_ref().and_then(|path| std::fs::metadata(path).ok()).map_or(0, |meta| meta.len())
}

/// Time since a segment was opened: its id is a UUID of version 7, which holds it (RFC 9562 5.7); else its oldest file's age.
fn age_of(segment: &Segment) -> Duration {
    let by_id = Uuid::parse_str(&segment.capture_id).ok().and_then(|id| id.get_timestamp()).map(|stamp| {
        let (seconds, nanoseconds) = stamp.to_unix();
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    });
    let by_file = || {
        let files = [&segment.journal, &segment.data, &segment.manifest];
        files.into_iter().flatten().filter_map(|path| std::fs::metadata(path).ok()?.modified().ok()).min()
    };
    by_id.or_else(by_file).and_then(|opened| SystemTime::now().duration_since(opened).ok()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spool;
    use crate::upload::S3;

    #[tokio::test]
    async fn a_folder_that_could_not_be_listed_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool::Settings {
            dir: dir.path().into(),
            max_bytes: 1 << 20,
            on_full: spool::OnFull::DropNewest,
            flush_ms: 1,
            sync_ms: 1,
            allow_root_device: true,
        };
        let settings = Settings::plain();
        for there in [true, false] {
            let folder = Folder::open(&spool).unwrap();
            if !there {
                std::fs::remove_dir_all(dir.path()).unwrap();
            }
            let (_sender, stopped) = watch::channel(true);
            let store = Arc::new(S3::new(settings.clone()));
            let left = drain(settings.clone(), folder, Arc::new(Counters::new(0)), store, Reserved::default(), stopped).await;
            assert_eq!(left.is_ok_and(|left| left.is_empty()), there);
        }
    }

    #[test]
    fn the_age_of_a_segment_is_read_from_its_id() {
        let id = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 0));
        let segment = Segment { capture_id: id.to_string(), data: None, journal: None, draft: None, manifest: None, failing: None };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|now| now.as_secs()).unwrap_or(0);
        assert!(age_of(&segment).as_secs().abs_diff(since - 1_700_000_000) < 5);
    }
}
