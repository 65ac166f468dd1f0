//! The named points at which an agent is killed: each transition of the journal, before and after the call that it is about; those of
//! parts again where an upload has several of them and begins while its segment grows.
//! In: what the spool shows after the kill. Out: whether the agent really died there. Never: counts a kill that came elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::gate::{Call, When};
use super::traffic::{FULL, FULL_OF_PARTS, Pace, SLOW};

/// Bytes of a capture without a frame.
pub const CAPTURE_HEADER_BYTES: u64 = 24;

/// A change of a file in the spool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was created.
    Created,
    /// It appeared by rename.
    Renamed,
    /// It was removed.
    Removed,
}

/// How the agent is brought to a point.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// The gate holds the call.
    Call(Call, When),
    /// The file with that extension changes.
    File(Change, &'static str),
    /// The journal has this record as its last one.
    Record(&'static str),
}

/// What happens to S3 before a call of the agent, so that it comes to a point at all.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// What.
    pub what: What,
    /// Before which call.
    pub at: Call,
    /// Of which segment.
    pub of: fn(&Files) -> bool,
}

/// What happens to S3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// There is an object of somebody else at the segment's key.
    KeyTaken,
    /// The segment's upload is no more.
    UploadGone,
}

/// A point.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// What it is called in the table.
    pub name: &'static str,
    /// How the agent is brought there.
    pub aim: Aim,
    /// Whether the segment in question, as the kill left it, shows that the agent was there.
    pub proof: fn(&Files) -> bool,
    /// What happens before.
    pub trouble: Option<Trouble>,
    /// Whether the agent has to find a segment that the one before had open, with frames in it.
    pub open_segment: bool,
    /// At which paces it is come to.
    pub paces: &'static [Pace],
}

impl Point {
    const fn new(name: &'static str, aim: Aim, proof: fn(&Files) -> bool) -> Self {
        Self { name, aim, proof, trouble: None, open_segment: false, paces: &[FULL, SLOW] }
    }

    const fn after(self, what: What, at: Call, of: fn(&Files) -> bool) -> Self {
        Self { trouble: Some(Trouble { what, at, of }), ..self }
    }

    const fn of_an_open_segment(self) -> Self {
        Self { open_segment: true, ..self }
    }

    /// Of an upload of several parts, for which there are enough bytes at one pace only.
    const fn of_parts(self) -> Self {
        Self { paces: &[FULL_OF_PARTS], ..self }
    }
}

/// A segment's files as a kill left them.
#[derive(Clone, Default, Debug)]
pub struct Files {
    /// Everything behind the capture id in their names.
    pub extensions: BTreeSet<String>,
    /// The journal's last whole record; empty without one.
    pub record: String,
    /// The key that holds.
    pub key: String,
    /// The multipart uploads of which the journal knows.
    pub uploads: Vec<String>,
    /// Parts of the last of them that are in S3.
    pub parts: usize,
    /// Whether somebody else has an object at the key.
    pub taken: bool,
    /// Whether the last of its uploads is no more.
    pub gone: bool,
    /// Bytes of data.
    pub data_bytes: u64,
    /// Whether an earlier agent opened it.
    pub earlier: bool,
}

impl Files {
    fn has(&self, extension: &str) -> bool {
        self.extensions.contains(extension)
    }

    fn is_whole(&self) -> bool {
        self.has("manifest")
    }

    /// Whether it has frames and is not whole.
    pub(super) fn is_open(&self) -> bool {
        self.data_bytes > CAPTURE_HEADER_BYTES && !self.is_whole()
    }

    fn is_at(&self, records: &[&str]) -> bool {
        records.contains(&self.record.as_str())
    }

    /// Whether it still grows, and so many of its parts are in S3.
    fn grows_with(&self, parts: usize) -> bool {
        !self.is_whole() && !self.earlier && self.parts == parts
    }
}

/// All points, mostly in the order of a segment's life: an upload that was just begun is what the next agent resumes.
pub const POINTS: &[Point] =
    &[
        Point::new("open: before the rename", Aim::File(Change::Created, "journal.unfinished"), |s| {
            s.has("journal.unfinished") && !s.has("journal")
        }),
        Point::new("open: after the rename", Aim::File(Change::Renamed, "journal"), |s| s.is_at(&["open"]) && s.data_bytes == 0),
        Point::new("draft: before the rename", Aim::File(Change::Created, "unfinished"), |s| {
            s.has("unfinished") && !s.earlier && !s.has("draft") && !s.is_whole()
        }),
        Point::new("draft: after the rename", Aim::File(Change::Renamed, "draft"), |s| s.has("draft") && !s.is_whole()),
        // A segment of an earlier agent gets no draft: what is unfinished is its final facts.
        Point::new("whole: before the rename", Aim::File(Change::Created, "unfinished"), |s| {
            s.has("unfinished") && s.earlier && !s.is_whole()
        })
        .of_an_open_segment(),
        Point::new("whole: after the rename", Aim::File(Change::Renamed, "manifest"), |s| s.is_whole() && s.has("draft")),
        Point::new("open: before HEAD", Aim::Call(Call::HeadFirst, When::Before), |s| s.is_at(&["open"])),
        Point::new("open: after HEAD", Aim::Call(Call::HeadFirst, When::After), |s| s.is_at(&["open"]) && !s.taken),
        Point::new("key: before the record", Aim::Call(Call::HeadFirst, When::After), |s| s.is_at(&["open"]) && s.taken).after(
            What::KeyTaken,
            Call::HeadFirst,
            |s| s.is_at(&["open"]),
        ),
        Point::new("key: recorded", Aim::Record("key"), |s| s.is_at(&["key"]) && s.uploads.is_empty()).after(
            What::KeyTaken,
            Call::HeadFirst,
            |s| s.is_at(&["open"]),
        ),
        Point::new("creating: before the call", Aim::Call(Call::Create, When::Before), |s| s.is_at(&["creating"])),
        Point::new("creating: after the call", Aim::Call(Call::Create, When::After), |s| s.is_at(&["creating"])),
        Point::new("created: before the part", Aim::Call(Call::Part, When::Before), |s| s.is_at(&["created"])),
        Point::new("resume: before ListParts", Aim::Call(Call::ListParts, When::Before), |s| !s.uploads.is_empty()),
        Point::new("part: after the call", Aim::Call(Call::Part, When::After), |s| s.is_at(&["created", "part"])),
        Point::new("resume: after ListParts", Aim::Call(Call::ListParts, When::After), |s| !s.uploads.is_empty()),
        Point::new("part: recorded", Aim::Record("part"), |s| s.is_at(&["part"])),
        Point::new("restart: before the record", Aim::Call(Call::HeadFirst, When::After), |s| s.is_at(&["created", "part"]) && s.gone)
            .after(What::UploadGone, Call::Part, |s| s.is_at(&["created", "part"])),
        Point::new("restart: recorded", Aim::Record("restart"), |s| s.is_at(&["restart"]))
            .after(What::UploadGone, Call::Part, |s| s.is_at(&["created", "part"])),
        Point::new("completing: before the call", Aim::Call(Call::Complete, When::Before), |s| s.is_at(&["completing"])),
        Point::new("completing: after the call", Aim::Call(Call::Complete, When::After), |s| s.is_at(&["completing"])),
        Point::new("completed: after HEAD", Aim::Call(Call::HeadDone, When::After), |s| s.is_at(&["completing"])),
        Point::new("key at completion: unrecorded", Aim::Call(Call::HeadFirst, When::After), |s| s.is_at(&["completing"]) && s.taken)
            .after(What::KeyTaken, Call::Complete, |s| s.is_at(&["completing"])),
        Point::new("key at completion: recorded", Aim::Record("key"), |s| s.is_at(&["key"]) && !s.uploads.is_empty()).after(
            What::KeyTaken,
            Call::Complete,
            |s| s.is_at(&["completing"]),
        ),
        Point::new("verified: before the manifest", Aim::Call(Call::PutManifest, When::Before), |s| s.is_at(&["verified"])),
        Point::new("manifest: after the call", Aim::Call(Call::PutManifest, When::After), |s| s.is_at(&["verified"])),
        Point::new("manifest: after HEAD", Aim::Call(Call::HeadManifest, When::After), |s| s.is_at(&["verified"])),
        Point::new("manifest stored: recorded", Aim::Record("manifest_stored"), |s| {
            s.is_at(&["manifest_stored"]) && s.data_bytes > 0 && s.is_whole()
        }),
        Point::new("removal: data gone", Aim::File(Change::Removed, "pcap"), |s| s.is_at(&["manifest_stored"]) && !s.has("pcap")),
        // One without a frame goes, too, when an agent begins: of that the journal's last record would be the first.
        Point::new("removal: all gone", Aim::File(Change::Removed, "journal"), |s| s.extensions.is_empty() && !s.is_at(&["open"])),
        Point::new("first part: within the call", Aim::Call(Call::WholePart, When::Within), |s| s.grows_with(0)).of_parts(),
        Point::new("first part: after the call", Aim::Call(Call::WholePart, When::After), |s| s.grows_with(0)).of_parts(),
        Point::new("first part: recorded", Aim::Record("part"), |s| s.grows_with(1)).of_parts(),
        Point::new("parts, resume: before ListParts", Aim::Call(Call::ListParts, When::Before), |s| s.parts > 0).of_parts(),
        Point::new("second part: recorded", Aim::Record("part"), |s| s.grows_with(2)).of_parts(),
        Point::new("parts, resume: after ListParts", Aim::Call(Call::ListParts, When::After), |s| s.parts > 0).of_parts(),
        Point::new("parts, restart: recorded", Aim::Record("restart"), |s| s.is_at(&["restart"]))
            .after(What::UploadGone, Call::WholePart, |s| s.parts > 0)
            .of_parts(),
        Point::new("parts, completing: after the call", Aim::Call(Call::Complete, When::After), |s| s.parts > 1).of_parts(),
        Point::new("parts, key at completion: recorded", Aim::Record("key"), |s| s.is_at(&["key"]) && !s.uploads.is_empty())
            .after(What::KeyTaken, Call::Complete, |s| s.parts > 1)
            .of_parts(),
    ];

/// The spool's segments by capture id.
///
/// # Panics
/// When the folder cannot be read.
#[must_use]
pub fn segments(spool: &Path) -> BTreeMap<String, Files> {
    let mut segments: BTreeMap<String, Files> = BTreeMap::new();
    for entry in fs::read_dir(spool).unwrap_or_else(|cause| panic!("cannot list '{}': {cause}", spool.display())).flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((id, extension)) = name.split_once('.') else { continue };
        let files = segments.entry(id.to_owned()).or_default();
        files.extensions.insert(extension.to_owned());
        match extension {
            "pcap" => files.data_bytes = entry.metadata().map_or(0, |meta| meta.len()),
            "journal" => read_journal(&entry.path(), files),
            _ => {}
        }
    }
    segments
}

/// The last record of the journal at `path`.
#[must_use]
pub fn last_record(path: &Path) -> String {
    let mut files = Files::default();
    read_journal(path, &mut files);
    files.record
}

fn read_journal(path: &Path, files: &mut Files) {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Some(record) = line.get(9..).and_then(|json| serde_json::from_str::<Value>(json).ok()) else { continue };
        let field = |name: &str| record.get(name).and_then(Value::as_str).map(str::to_owned);
        files.record = field("record").unwrap_or_default();
        match files.record.as_str() {
            "part" => files.parts += 1,
            "created" | "key" | "restart" => files.parts = 0,
            _ => {}
        }
        files.key = field("key").filter(|_| files.record != "manifest_stored").unwrap_or_else(|| files.key.clone());
        files.uploads.extend(field("upload_id"));
    }
}
