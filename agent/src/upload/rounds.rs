//! Goes round the spool folder, again and again: each segment that is due gets a try, a few at a time.
//! In: the folder, the clock of tokio, an order to stop. Out: tries, levels of the spool, log lines.
//! Never: gives a segment up, lets one that cannot be sent stand in the way of others, floods the log.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::multipart::{Progress, Sending, Way, blocking, send_idle};
use super::store::{Class, Store};
use super::{Error, Settings};
use crate::observe::counters::Counters;
use crate::spool::{Folder, Segment};

/// Segments that are tried at the same time.
pub const SEGMENTS_AT_ONCE: usize = 4;

/// Bounds of the wait after a failure; in between it is drawn by lot ("full jitter"), so that a fleet does not come back as one.
const WAIT_MIN: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a segment is left alone whose own files are damaged.
const DAMAGE_WAIT: Duration = Duration::from_secs(60);

/// Failures of one kind are logged at most this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Sends what the folder holds and what comes into it, until `stop` says true or its sender is gone.
pub async fn run<S: Store>(settings: Settings, folder: Folder, counters: Arc<Counters>, store: Arc<S>, stop: watch::Receiver<bool>) {
    let check = tokio::spawn(check_bucket(settings.bucket.clone(), store.clone(), counters.clone()));
    Rounds::new(settings, folder, counters, store).go(stop, false).await;
    check.abort();
}

/// Sends what the folder holds; ends when nothing is left that can be sent, or at `stop`. Gives how many segments are left.
/// A segment that still grows can be sent once it has been closed, so it is waited for.
pub async fn drain<S: Store>(
    settings: Settings,
    folder: Folder,
    counters: Arc<Counters>,
    store: Arc<S>,
    stop: watch::Receiver<bool>,
) -> usize {
    Rounds::new(settings, folder, counters, store).go(stop, true).await
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
    look_every: Duration,
    entries: BTreeMap<String, Entry<S>>,
    tries: JoinSet<Try<S>>,
    said: HashMap<Option<Class>, Said>,
}

/// What is known of one segment beside its files.
struct Entry<S> {
    due: Instant,
    failures: u32,
    damaged: bool,
    under_way: bool,
    sending: Option<Sending<S>>,
}

/// A try that ended.
struct Try<S> {
    capture_id: String,
    sending: Option<Sending<S>>,
    outcome: Result<Progress, Error>,
}

/// What of one kind was logged last.
struct Said {
    at: Instant,
    kept_back: u64,
}

impl<S: Store> Rounds<S> {
    fn new(settings: Settings, folder: Folder, counters: Arc<Counters>, store: Arc<S>) -> Self {
        let way = Arc::new(Way::new(store, folder, counters));
        Self { way, look_every: settings.look_every, entries: BTreeMap::new(), tries: JoinSet::new(), said: HashMap::new() }
    }

    async fn go(mut self, stop: watch::Receiver<bool>, until_empty: bool) -> usize {
        let left = self.go_round(stop, until_empty).await;
        self.tries.shutdown().await;
        self.way.settle().await;
        left
    }

    async fn go_round(&mut self, mut stop: watch::Receiver<bool>, until_empty: bool) -> usize {
        loop {
            self.way.counters.upload_rounds.add(1);
            match self.look().await {
                Ok(segments) => {
                    self.start(&segments);
                    let sendable = self.entries.values().any(|entry| !entry.damaged || entry.under_way);
                    if until_empty && !sendable {
                        return segments.len();
                    }
                }
                Err(cause) => self.say(None, &format!("{cause}; trying again")),
            }
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return self.entries.len(),
                () = sleep(self.look_every) => {}
                Some(done) = self.tries.join_next_with_id(), if !self.tries.is_empty() => match done {
                    Ok((_, done)) => self.note(done),
                    // A try cannot panic, and is not aborted while this loop runs.
                    Err(cause) => error!("a try ended early: {cause}"),
                },
            }
        }
    }

    /// Lists the folder and sets the levels.
    async fn look(&mut self) -> Result<Vec<Segment>, Error> {
        let folder = self.way.folder.clone();
        let (segments, oldest) = blocking(move || {
            let segments = folder.segments()?;
            let oldest = segments.first().map_or(0, |segment| age_of(segment).as_secs());
            Ok::<_, Error>((segments, oldest))
        })
        .await??;
        let counters = &self.way.counters;
        counters.spool_segments.set(segments.len() as u64);
        counters.spool_oldest_seconds.set(oldest);
        Ok(segments)
    }

    /// Starts the tries that are due: those first that have been due for the longest, so that each gets its turn however many fail
    /// slowly; of those that became due together the oldest segment.
    fn start(&mut self, segments: &[Segment]) {
        let now = Instant::now();
        let is_there = |id: &String| segments.binary_search_by(|segment| segment.capture_id.as_str().cmp(id)).is_ok();
        self.entries.retain(|id, entry| entry.under_way || is_there(id));
        let mut due = Vec::new();
        for segment in segments {
            let entry = self.entries.entry(segment.capture_id.clone()).or_insert_with(|| Entry::new(now));
            if !entry.under_way && entry.due <= now {
                due.push((entry.due, segment));
            }
        }
        due.sort_by_key(|(due, _)| *due);
        for (_, segment) in due.into_iter().take(SEGMENTS_AT_ONCE.saturating_sub(self.tries.len())) {
            let Some(entry) = self.entries.get_mut(&segment.capture_id) else { continue };
            entry.under_way = true;
            let (way, segment, sending) = (self.way.clone(), segment.clone(), entry.sending.take());
            self.tries.spawn(try_once(way, segment, sending));
        }
    }

    /// Takes note of how a try ended and when the next one is due.
    fn note(&mut self, done: Try<S>) {
        let Some(entry) = self.entries.get_mut(&done.capture_id) else { return };
        entry.under_way = false;
        entry.sending = done.sending;
        let error = match done.outcome {
            Ok(progress) => {
                if progress == Progress::Gone {
                    self.way.counters.segments_finished.add(1);
                }
                (entry.failures, entry.damaged) = (0, false);
                entry.due = Instant::now() + self.look_every;
                return;
            }
            Err(error) => error,
        };
        entry.damaged = error.is_damage();
        let wait = if entry.damaged { DAMAGE_WAIT } else { jitter(entry.failures) };
        entry.failures = entry.failures.saturating_add(1);
        entry.due = Instant::now() + wait;
        let (failures, seconds) = (entry.failures, wait.as_secs_f32());
        let text = format!("segment {}: {error}; try {failures} failed, the next one is in {seconds:.1} s", done.capture_id);
        match error {
            // One line a minute for each damaged segment, by its wait.
            _ if error.is_damage() => error!("{text}"),
            Error::Store(error) => {
                self.way.counters.upload_failures.add(1);
                if matches!(error.class, Class::Denied | Class::NoSuchBucket) {
                    self.way.counters.upload_refusals.add(1);
                }
                self.say(Some(error.class), &text);
            }
            _ => self.say(None, &text),
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

impl<S> Entry<S> {
    fn new(due: Instant) -> Self {
        Self { due, failures: 0, damaged: false, under_way: false, sending: None }
    }
}

async fn try_once<S: Store>(way: Arc<Way<S>>, segment: Segment, sending: Option<Sending<S>>) -> Try<S> {
    let capture_id = segment.capture_id.clone();
    if segment.journal.is_none() {
        // Data without a journal is a segment of which the salvage at start has not decided yet.
        let outcome = match segment.data {
            None => send_idle(&way, &segment).await,
            Some(_) => Err(Error::Missing { capture_id: capture_id.clone(), what: "journal" }),
        };
        return Try { capture_id, sending: None, outcome };
    }
    let resumed = match sending {
        Some(sending) => Ok(sending),
        None => Sending::resume(way, segment.clone()).await,
    };
    match resumed {
        Ok(mut sending) => {
            let outcome = sending.go_on(segment).await;
            Try { capture_id, sending: Some(sending), outcome }
        }
        Err(error) => Try { capture_id, sending: None, outcome: Err(error) },
    }
}

/// A wait drawn by lot between [`WAIT_MIN`] and a bound that doubles with each failure, up to [`WAIT_MAX`].
fn jitter(failures: u32) -> Duration {
    let bound = WAIT_MIN.saturating_mul(2u32.saturating_pow(failures.saturating_add(1))).min(WAIT_MAX);
    // The standard library's hash keys are random, and different each time.
    let lot = RandomState::new().build_hasher().finish() >> 32;
    WAIT_MIN + (bound - WAIT_MIN).mul_f64(lot as f64 / f64::from(u32::MAX))
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
mod tests {
    use super::*;

    #[test]
    fn the_wait_after_a_failure_is_drawn_between_half_a_second_and_a_minute() {
        for failures in [0, 1, 5, 10, u32::MAX] {
            let bound = 0.5 * 2f64.powi(failures.saturating_add(1).min(20).cast_signed());
            for _ in 0..100 {
                let wait = jitter(failures).as_secs_f64();
                assert!((0.5..=bound.min(60.0)).contains(&wait), "{failures}: {wait}");
            }
        }
        assert_ne!(jitter(20), jitter(20));
    }

    #[test]
    fn the_age_of_a_segment_is_read_from_its_id() {
        let id = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 0));
        let segment = Segment { capture_id: id.to_string(), data: None, journal: None, draft: None, manifest: None };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|now| now.as_secs()).unwrap_or(0);
        assert!(age_of(&segment).as_secs().abs_diff(since - 1_700_000_000) < 5);
    }
}
