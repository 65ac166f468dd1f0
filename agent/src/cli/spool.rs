//! In: a spool folder. Out: what of it is not in S3 yet, as a table or JSON; or the sending of it.
//! Never: a lock, a change or a stop of the agent for a mere look.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tapfleet::config::Settings;
use tapfleet::observe::counters::Counters;
use tapfleet::record::facts::Kind;
use tapfleet::run;
use tapfleet::spool::{self, Folder, Segment, folder, journal};
use tapfleet::upload::manifest::read_facts;
use tapfleet::upload::status::LISTED_MAX;
use tapfleet::upload::{S3, Unsent};

use super::{Failure, harmless, print};

/// One segment, as `spool list --json` shows it.
#[derive(Serialize)]
struct Row {
    capture_id: String,
    /// `None` for an idle window, or when the journal cannot be read.
    bucket: Option<String>,
    key: Option<String>,
    kind: Option<Kind>,
    /// `recording`, `waiting`, `sending`, `completing`, `verified`, `stored` or `damaged`.
    state: &'static str,
    /// Of the file, now.
    bytes: u64,
    parts_sent: usize,
    bytes_sent: u64,
}

/// Lists the segments in `dir`.
pub fn list(dir: &Path, json: bool) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut damaged = Vec::new();
    for segment in folder::list(dir)? {
        match row(&segment) {
            Ok(row) => rows.extend(row),
            Err(cause) => {
                damaged.push(cause.to_string());
                rows.push(Row::of(&segment, "damaged"));
            }
        }
    }
    let text = if json { serde_json::to_string_pretty(&rows).map_err(Failure::of)? + "\n" } else { table(&rows, dir) };
    print(&text)?;
    if damaged.is_empty() { Ok(()) } else { Err(Failure::Failed(damaged.join("\n"))) }
}

/// `None` when the running agent removed it while we looked.
fn row(segment: &Segment) -> Result<Option<Row>, spool::Error> {
    let Some(path) = &segment.journal else {
        // An idle window is a manifest alone; bytes without a journal are nobody's.
        let state = if segment.data.is_some() { "damaged" } else { "waiting" };
        return Ok(Some(Row { kind: segment.data.is_none().then_some(Kind::Idle), ..Row::of(segment, state) }));
    };
    let (state, _) = match journal::read(path) {
        Ok(read) => read,
        Err(_) if !path.exists() => return Ok(None),
        Err(cause) => return Err(cause),
    };
    let stage = if state.manifest_stored {
        "stored"
    } else if state.verified.is_some() {
        "verified"
    } else if segment.manifest.is_none() {
        "recording"
    } else if state.upload_id.is_none() {
        "waiting"
    } else if state.completing.is_some() {
        "completing"
    } else {
        "sending"
    };
    Ok(Some(Row {
        bucket: Some(state.open.bucket),
        key: Some(state.open.key),
        kind: Some(state.open.kind),
        parts_sent: state.parts.len(),
        bytes_sent: state.parts.values().fold(0, |sum, part| sum.saturating_add(part.bytes)),
        ..Row::of(segment, stage)
    }))
}

impl Row {
    fn of(segment: &Segment, state: &'static str) -> Self {
        let bytes = segment.data.as_ref().and_then(|path| fs::metadata(path).ok()).map_or(0, |meta| meta.len());
        let capture_id = segment.capture_id.clone();
        Self { capture_id, bucket: None, key: None, kind: None, state, bytes, parts_sent: 0, bytes_sent: 0 }
    }
}

fn table(rows: &[Row], dir: &Path) -> String {
    if rows.is_empty() {
        return format!("nothing in the spool {}: all is in S3\n", dir.display());
    }
    let mut out = format!("{:36}  {:10}  {:>15}  {:>6}  KEY\n", "CAPTURE", "STATE", "BYTES", "PARTS");
    for row in rows {
        let key = match (&row.key, row.kind) {
            (Some(key), _) => harmless(key),
            (None, Some(Kind::Idle)) => "(a window without frames: its manifest)".into(),
            (None, _) => "(no readable journal)".into(),
        };
        let _ = writeln!(out, "{:36}  {:10}  {:>15}  {:>6}  {key}", harmless(&row.capture_id), row.state, row.bytes, row.parts_sent);
    }
    out
}

/// Whose segments lie there: the newest one's instance, as the spool may be that of an instance that is gone.
fn instance(segments: &[Segment]) -> Option<String> {
    let of = |segment: &Segment| match &segment.journal {
        Some(journal) => journal::read(journal).ok().map(|(state, _)| state.open.instance),
        None => read_facts(segment.manifest.as_ref()?).ok().map(|facts| facts.instance),
    };
    segments.iter().rev().find_map(of)
}

/// One line for each segment that is left.
fn left_behind(left: &[Unsent]) -> String {
    let mut out = String::new();
    for unsent in left.iter().take(LISTED_MAX) {
        let why = unsent.last_error.as_deref().unwrap_or("not tried to the end");
        let _ = write!(out, "\n{}: {}", harmless(&unsent.capture_id), harmless(why));
    }
    if left.len() > LISTED_MAX {
        let _ = write!(out, "\nand {} more", left.len() - LISTED_MAX);
    }
    out
}

/// Sends what lies in the settings' spool, until nothing is left that can be sent, or a signal.
pub fn upload(mut settings: Settings) -> Result<(), Failure> {
    let dir = settings.spool.dir.clone();
    // `Folder::open` would make it; here that would hide a wrong path.
    if !dir.is_dir() {
        return Err(Failure::Failed(format!("cannot send the spool '{}': there is no such folder", dir.display())));
    }
    let folder = Folder::open(&settings.spool)?;
    settings.upload.instance = instance(&folder.segments()?).or(settings.instance.id);
    let counters = Arc::new(Counters::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    let store = Arc::new(S3::new(settings.upload.clone()));
    let left = runtime.block_on(run::send_spool(settings.upload, folder, Arc::clone(&counters), store));
    let sent = counters.segments_verified.get();
    let left = left.map_err(|cause| {
        Failure::Failed(format!("{sent} captures sent and confirmed; what is left in '{}' is not known: {cause}", dir.display()))
    })?;
    print(&format!("{sent} captures sent and confirmed, {} left\n", left.len()))?;
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!("{} segments are left in '{}':{}", left.len(), dir.display(), left_behind(&left))))
}
