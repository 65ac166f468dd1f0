//! The named points at which an agent is killed: each transition of the journal, before and after the call that it is about.
//! In: what the spool shows after the kill. Out: whether the agent really died there. Never: counts a kill that came elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::gate::{Call, When};

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
    /// The same of a segment that an earlier agent left.
    EarlierFile(Change, &'static str),
    /// The journal has this record as its last one.
    Record(&'static str),
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
}

/// All points, mostly in the order of a segment's life: an upload that was just begun is what the next agent resumes.
pub const POINTS: &[Point] = &[
    Point {
        name: "open: before the rename",
        aim: Aim::File(Change::Created, "journal.unfinished"),
        proof: |s| s.has("journal.unfinished") && !s.has("journal"),
    },
    Point {
        name: "open: after the rename",
        aim: Aim::File(Change::Renamed, "journal"),
        proof: |s| s.record == "open" && s.data_bytes == 0,
    },
    Point {
        name: "draft: before the rename",
        aim: Aim::File(Change::Created, "unfinished"),
        proof: |s| s.has("unfinished") && !s.earlier && !s.has("draft") && !s.is_whole(),
    },
    Point { name: "draft: after the rename", aim: Aim::File(Change::Renamed, "draft"), proof: |s| s.has("draft") && !s.is_whole() },
    Point { name: "whole: after the rename", aim: Aim::File(Change::Renamed, "manifest"), proof: |s| s.is_whole() && s.has("draft") },
    Point { name: "key: before HEAD", aim: Aim::Call(Call::HeadFirst, When::Before), proof: |s| s.record == "open" || s.record == "key" },
    Point { name: "key: after HEAD", aim: Aim::Call(Call::HeadFirst, When::After), proof: |s| s.record == "open" || s.record == "key" },
    Point { name: "creating: before the call", aim: Aim::Call(Call::Create, When::Before), proof: |s| s.record == "creating" },
    Point { name: "creating: after the call", aim: Aim::Call(Call::Create, When::After), proof: |s| s.record == "creating" },
    Point { name: "created: before the part", aim: Aim::Call(Call::Part, When::Before), proof: |s| s.record == "created" },
    Point { name: "resume: before ListParts", aim: Aim::Call(Call::ListParts, When::Before), proof: |s| !s.uploads.is_empty() },
    Point { name: "part: after the call", aim: Aim::Call(Call::Part, When::After), proof: |s| s.record == "created" || s.record == "part" },
    Point { name: "resume: after ListParts", aim: Aim::Call(Call::ListParts, When::After), proof: |s| !s.uploads.is_empty() },
    Point { name: "part: recorded", aim: Aim::Record("part"), proof: |s| s.record == "part" },
    Point { name: "completing: before the call", aim: Aim::Call(Call::Complete, When::Before), proof: |s| s.record == "completing" },
    Point { name: "completing: after the call", aim: Aim::Call(Call::Complete, When::After), proof: |s| s.record == "completing" },
    Point { name: "completed: after HEAD", aim: Aim::Call(Call::HeadDone, When::After), proof: |s| s.record == "completing" },
    Point { name: "verified: before the manifest", aim: Aim::Call(Call::PutManifest, When::Before), proof: |s| s.record == "verified" },
    Point { name: "manifest: after the call", aim: Aim::Call(Call::PutManifest, When::After), proof: |s| s.record == "verified" },
    Point { name: "manifest: after HEAD", aim: Aim::Call(Call::HeadManifest, When::After), proof: |s| s.record == "verified" },
    Point {
        name: "manifest stored: recorded",
        aim: Aim::Record("manifest_stored"),
        proof: |s| s.record == "manifest_stored" && s.data_bytes > 0 && s.is_whole(),
    },
    Point {
        name: "removal: data gone",
        aim: Aim::File(Change::Removed, "pcap"),
        proof: |s| s.record == "manifest_stored" && !s.has("pcap"),
    },
    Point { name: "removal: all gone", aim: Aim::File(Change::Removed, "journal"), proof: |s| s.extensions.is_empty() },
    // Last, for it needs packets of the agent before. A segment of an earlier agent gets no draft: what is unfinished is its final facts.
    Point {
        name: "whole: before the rename",
        aim: Aim::EarlierFile(Change::Created, "unfinished"),
        proof: |s| s.has("unfinished") && s.earlier && !s.is_whole(),
    },
];

/// The spool's segments by capture id. `earlier` are those that were there when the agent began.
///
/// # Panics
/// When the folder cannot be read.
#[must_use]
pub fn segments(spool: &Path, earlier: &BTreeSet<String>) -> BTreeMap<String, Files> {
    let mut segments: BTreeMap<String, Files> = BTreeMap::new();
    for entry in fs::read_dir(spool).unwrap_or_else(|cause| panic!("cannot list '{}': {cause}", spool.display())).flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((id, extension)) = name.split_once('.') else { continue };
        let files = segments.entry(id.to_owned()).or_default();
        files.extensions.insert(extension.to_owned());
        files.earlier = earlier.contains(id);
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
        files.key = field("key").filter(|_| files.record != "manifest_stored").unwrap_or_else(|| files.key.clone());
        files.uploads.extend(field("upload_id"));
    }
}
