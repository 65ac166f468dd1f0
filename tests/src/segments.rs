//! Segments made by hand, as the spool's writer makes them: journal first, then the bytes, then the manifest by rename.
//! In: a folder, an id, a key, bytes. Out: the files of a segment. Never: an uploader's business.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use tapfleet::record::facts::{Facts, Kind, Stamp, WindowFacts};
use tapfleet::spool::journal::{self, Journal, Open};
use tapfleet::spool::{self, Folder};
use tapfleet::upload::Settings;

/// Who recorded them.
pub const INSTANCE: &str = "i-0123456789abcdef0";

/// When their window began: 2026-11-22T00:15:00Z.
pub const WINDOW: Stamp = Stamp(1_795_306_500_000_000_000);

/// Where they go.
pub const BUCKET: &str = "captures";

/// The key that the first segment of the window has.
#[must_use]
pub fn first_key() -> String {
    format!("{INSTANCE}/2026-11-22-00-15.pcap")
}

/// The key of a segment's manifest.
#[must_use]
pub fn manifest_key(id: &str) -> String {
    format!("manifest/dt=2026-11-22/{INSTANCE}/2026-11-22-00-15-{id}.json")
}

/// A capture id; they sort by their numbers.
#[must_use]
pub fn id(number: u64) -> String {
    format!("019aa8f0-0000-7000-8000-{number:012x}")
}

/// Settings of an uploader of theirs.
#[must_use]
pub fn settings(look_every: std::time::Duration) -> Settings {
    Settings {
        bucket: BUCKET.into(),
        key_prefix: String::new(),
        region: None,
        endpoint_url: None,
        storage_class: None,
        kms_key: None,
        expected_bucket_owner: None,
        look_every,
        instance: Some(INSTANCE.into()),
        create_spread: std::time::Duration::ZERO,
        poison_still: std::time::Duration::from_secs(3600),
    }
}

/// The spool in `dir`, wherever that is.
///
/// # Errors
/// When it cannot be had.
pub fn folder(dir: &Path) -> Result<Folder, spool::Error> {
    Folder::open(&spool::Settings {
        dir: dir.into(),
        max_bytes: 1 << 40,
        flush_ms: 100,
        sync_ms: 100,
        on_full: spool::OnFull::DropNewest,
        allow_root_device: true,
    })
}

/// What lies in the spool beside its lock.
#[must_use]
pub fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
    names.sort();
    names
}

/// Bytes that differ everywhere, so that no part can stand for another.
#[must_use]
pub fn pattern(bytes: usize) -> Vec<u8> {
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

/// One segment.
#[derive(Clone, Debug)]
pub struct Segment {
    dir: PathBuf,
    /// Its capture id.
    pub id: String,
    /// Its key, as it was chosen first.
    pub key: String,
    /// What it is.
    pub kind: Kind,
}

impl Segment {
    /// One of which nothing is there yet.
    #[must_use]
    pub fn new(dir: &Path, id: String, key: String, kind: Kind) -> Self {
        Self { dir: dir.into(), id, key, kind }
    }

    /// One of its files.
    #[must_use]
    pub fn path(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.id))
    }

    /// The journal with its first line, and no bytes yet.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn open(&self) {
        let open = Open {
            version: journal::VERSION,
            kind: self.kind,
            capture_id: self.id.clone(),
            bucket: BUCKET.into(),
            key: self.key.clone(),
            instance: INSTANCE.into(),
            window: WINDOW,
            extension: "pcap".into(),
            agent_version: "0.1.0".into(),
        };
        Journal::create(&self.path("journal"), open).unwrap_or_else(|error| panic!("{error}"));
        fs::write(self.path("pcap"), b"").unwrap_or_else(|error| panic!("{error}"));
    }

    /// More bytes.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn append(&self, bytes: &[u8]) {
        let appended = OpenOptions::new().append(true).open(self.path("pcap")).and_then(|mut file| file.write_all(bytes));
        appended.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The manifest appears; an idle window is nothing else.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn close(&self) {
        let file_bytes = fs::metadata(self.path("pcap")).map_or(0, |meta| meta.len());
        let window = WindowFacts { start: WINDOW, seconds: 900 };
        let begun = Facts::begin(self.kind, self.id.clone(), INSTANCE.into(), BUCKET.into(), window);
        let key = (self.kind != Kind::Idle).then(|| self.key.clone());
        let facts = Facts { key, frames: 1, bytes: 60, first: Some(WINDOW), last: Some(WINDOW), file_bytes, ..begun };
        let json = serde_json::to_vec(&facts).unwrap_or_else(|error| panic!("{error}"));
        let filed = fs::write(self.path("draft"), json).and_then(|()| fs::rename(self.path("draft"), self.path("manifest")));
        filed.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Whether all its bytes and its manifest are in the folder.
    #[must_use]
    pub fn is_there(&self) -> bool {
        (self.kind == Kind::Idle || self.path("pcap").exists()) && self.path("manifest").exists()
    }

    /// What its journal says.
    #[must_use]
    pub fn state(&self) -> Option<journal::State> {
        journal::read(&self.path("journal")).ok().map(|(state, _)| state)
    }
}
