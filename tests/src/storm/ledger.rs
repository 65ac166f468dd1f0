//! The accounts of a storm: what was sent, what lay in the spool at each kill, what is in S3 at the end.
//! In: kills and their spools, the sender's log, the bucket. Out: losses by kill, in packets and milliseconds, or what is wrong.
//! Never: takes the agent's word for anything but its manifests, which are held against the objects.

#![allow(clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use serde_json::Value;
use tapfleet::upload::checksum;

use super::gate::WHOLE_PART_BYTES;
use super::point::{CAPTURE_HEADER_BYTES, Files};
use super::traffic::{Log, Models};
use super::waits::Waited;
use crate::agent::BUCKET;
use crate::captures::{Record, records};

/// What somebody else has put at a key.
pub const TAKEN: &[u8] = b"not a capture";

/// A kill.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The point it was aimed at, or what chose its moment.
    pub name: &'static str,
    /// At which pace packets came.
    pub pace: &'static str,
    /// Whether the spool shows that it came there.
    pub hit: bool,
    /// When it was struck, that is, did its last.
    pub at: Instant,
    /// What it waited for while it lived.
    pub waited: Waited,
    /// Packets sent before it.
    pub sent: u64,
    /// Packets lost by it.
    pub lost: u64,
    /// For how long the agent had held the oldest of these: since it was sent, or since there was an agent that could take it.
    pub loss: Duration,
    /// How much of that only its waits excuse.
    pub excused: Duration,
}

/// What has happened so far.
#[derive(Debug)]
pub struct Ledger {
    /// For how long an agent may hold a packet that it can hand on.
    held_max: Duration,
    /// Kills in their order.
    pub kills: Vec<Kill>,
    /// Numbers that lay in the spool at a kill.
    spooled: BTreeSet<u64>,
    /// How much of each file was read.
    read: BTreeMap<String, usize>,
    /// Multipart uploads of which a journal knew at a kill.
    uploads: BTreeSet<String>,
    models: Models,
}

/// What the bucket holds.
#[derive(Debug)]
pub struct Stored {
    captures: BTreeMap<String, Capture>,
    /// Manifests by their keys.
    manifests: BTreeMap<String, Value>,
    uploads: Vec<String>,
}

/// A capture, of which every record is whole and one that was sent.
#[derive(Debug)]
struct Capture {
    bytes: usize,
    crc64nvme: u64,
    numbers: Vec<u64>,
}

/// What came of it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum {
    /// Agents killed.
    pub kills: usize,
    /// Packets on the wire.
    pub sent: u64,
    /// Packets in S3.
    pub stored: u64,
    /// Packets that are nowhere.
    pub lost: u64,
    /// Capture objects.
    pub captures: usize,
    /// Those of several parts.
    pub of_parts: usize,
    /// Those that the agent closed which had opened them.
    pub closed: usize,
    /// Multipart uploads that nobody will complete.
    pub orphans: usize,
}

impl Sum {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            kills: self.kills + other.kills,
            sent: self.sent + other.sent,
            stored: self.stored + other.stored,
            lost: self.lost + other.lost,
            captures: self.captures + other.captures,
            of_parts: self.of_parts + other.of_parts,
            closed: self.closed + other.closed,
            orphans: self.orphans + other.orphans,
        }
    }
}

impl Ledger {
    /// Nothing has happened yet. An agent may hold a packet for so long, and for as long as it has to wait.
    #[must_use]
    pub fn new(held_max: Duration) -> Self {
        let (spooled, read, uploads) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        Self { held_max, kills: Vec::new(), spooled, read, uploads, models: Models::new() }
    }

    /// Takes down a kill and what it left in the spool.
    ///
    /// # Panics
    /// When the spool holds a record that was not sent.
    pub fn note(&mut self, kill: Kill, spool: &Path, segments: &BTreeMap<String, Files>) {
        self.kills.push(kill);
        for (id, files) in segments {
            self.uploads.extend(files.uploads.iter().cloned());
            let Ok(data) = fs::read(spool.join(format!("{id}.pcap"))) else { continue };
            let from = self.read.entry(id.clone()).or_insert(CAPTURE_HEADER_BYTES as usize);
            while let Some((frame, end)) = record_at(&data, *from) {
                let number = self.models.number(frame);
                let number = number.unwrap_or_else(|| panic!("segment {id} has a record at byte {from} that was not sent"));
                self.spooled.insert(number);
                *from = end;
            }
        }
    }

    /// Holds the bucket against what was sent and spooled, and gives each kill its losses.
    ///
    /// # Panics
    /// When something in S3 is damaged, doubled, out of order or missing, or more was lost than a kill may cost.
    pub fn settle(&mut self, (sent, log): &(u64, Log), stored: &Stored) -> Sum {
        let numbers = stored.check();
        let missing: Vec<_> = self.spooled.difference(&numbers).take(10).collect();
        assert!(missing.is_empty(), "packets that were in the spool at a kill are not in S3: {missing:?}, and perhaps more");
        let mut lost = 0;
        for number in (0..*sent).filter(|number| !numbers.contains(number)) {
            lost += 1;
            self.lose(number, log);
        }
        let seen = self.kills.iter().any(|kill| kill.loss > Duration::ZERO);
        assert!(
            seen || lost == 0,
            "{lost} packets are lost, and no agent was seen that could have held them: are its threads called otherwise?"
        );
        let known: Vec<_> = stored.uploads.iter().filter(|id| self.uploads.contains(*id)).collect();
        assert!(known.is_empty(), "multipart uploads that a journal knew were left behind: {known:?}");
        Sum {
            kills: self.kills.len(),
            sent: *sent,
            stored: numbers.len() as u64,
            lost,
            captures: stored.captures.len(),
            of_parts: stored.captures.values().filter(|capture| capture.bytes as u64 > WHOLE_PART_BYTES).count(),
            closed: stored.manifests().values().filter(|manifest| manifest["salvaged"] == false).count(),
            orphans: stored.uploads.len(),
        }
    }

    /// Puts a lost packet down to the first kill after it was sent of an agent that had captured.
    fn lose(&mut self, number: u64, log: &Log) {
        let time = log.time_of(number).unwrap_or_else(|| panic!("packet {number} was never sent"));
        let after = self.kills.partition_point(|kill| kill.at < time);
        let mut kills = self.kills.iter_mut().skip(after).filter_map(|kill| Some((kill.waited.capturing_since()?, kill)));
        let (since, kill) =
            kills.next().unwrap_or_else(|| panic!("packet {number} is lost, and no agent that captured was killed after it"));
        // While there was none it lay in the ring, which is kept.
        let taken = time.max(since);
        let (held, waited) = (kill.at.saturating_duration_since(taken), kill.waited.between(taken, kill.at));
        let (name, excused) = (kill.name, held.saturating_sub(self.held_max));
        assert!(excused <= waited, "packet {number}, lost by the kill at '{name}', was held for {held:?}, waiting {waited:?}");
        kill.lost += 1;
        kill.loss = kill.loss.max(held);
        kill.excused = kill.excused.max(excused);
    }
}

impl Stored {
    /// Reads the bucket, in which somebody else has put [`TAKEN`] at some keys.
    ///
    /// # Panics
    /// When S3 does not answer, a capture is not whole, or an object of somebody else is not as it was.
    pub async fn read(s3: Client, taken: &BTreeSet<String>) -> Self {
        let models = Models::new();
        let (mut captures, mut manifests, mut untouched) = (BTreeMap::new(), BTreeMap::new(), 0);
        let mut pages = s3.list_objects_v2().bucket(BUCKET).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.unwrap_or_else(|cause| panic!("the bucket cannot be listed: {cause:?}"));
            for key in page.contents().iter().filter_map(|object| object.key()) {
                let object = s3.get_object().bucket(BUCKET).key(key).send().await;
                let object = object.unwrap_or_else(|cause| panic!("'{key}' cannot be read: {cause:?}"));
                let body = object.body.collect().await.unwrap_or_else(|cause| panic!("'{key}' cannot be read: {cause:?}"));
                let bytes = body.into_bytes();
                if taken.contains(key) {
                    assert_eq!(bytes, TAKEN, "'{key}' was somebody else's");
                    untouched += 1;
                } else if key.ends_with(".pcap") {
                    captures.insert(key.to_owned(), Capture::read(key, &bytes, &models));
                } else if key.starts_with("manifest/") {
                    let manifest = serde_json::from_slice(&bytes).unwrap_or_else(|cause| panic!("'{key}': {cause}"));
                    manifests.insert(key.to_owned(), manifest);
                }
            }
        }
        assert_eq!(untouched, taken.len(), "objects of somebody else are gone, of {taken:?}");
        let listed = s3.list_multipart_uploads().bucket(BUCKET).send().await;
        let listed = listed.unwrap_or_else(|cause| panic!("uploads cannot be listed: {cause:?}"));
        let uploads = listed.uploads().iter().filter_map(|upload| upload.upload_id().map(str::to_owned)).collect();
        Self { captures, manifests, uploads }
    }

    /// Every object whole, in order and true to its manifest, no packet twice, none late that is not counted as such; gives the numbers of all.
    fn check(&self) -> BTreeSet<u64> {
        let manifests = self.manifests();
        let mut in_order = BTreeMap::new();
        for (key, Capture { bytes, crc64nvme, numbers }) in &self.captures {
            let manifest = manifests.get(key.as_str()).unwrap_or_else(|| panic!("'{key}' has no manifest"));
            assert_eq!(manifest["frames"], numbers.len(), "frames of '{key}'");
            assert_eq!(manifest["object"]["bytes"], *bytes, "bytes of '{key}'");
            assert_eq!(manifest["object"]["crc64nvme"], checksum::to_base64(*crc64nvme), "checksum of '{key}'");
            // Of one that was salvaged only its last draft could tell.
            let late = if manifest["salvaged"] == true { usize::MAX } else { manifest["late"].as_u64().unwrap_or(0) as usize };
            let place = (manifest["window"]["start"].to_string(), manifest["capture_id"].to_string());
            in_order.insert(place, (key, numbers, late));
        }
        assert_eq!(in_order.len(), manifests.len(), "manifests without a capture: {:?}", manifests.keys());
        let mut all = BTreeSet::new();
        // Windows one after the other; in each capture ids sort by the time at which their segments were opened.
        for (key, numbers, late) in in_order.values() {
            let late_here = numbers.iter().filter(|number| all.last().is_some_and(|last| last > *number)).count();
            assert!(late_here <= *late, "{late_here} packets in '{key}' are behind those of a window before, {late} are counted as late");
            for number in *numbers {
                assert!(all.insert(*number), "packet {number} in '{key}' comes twice");
            }
        }
        all
    }

    /// The manifests of captures, by the key of these.
    fn manifests(&self) -> BTreeMap<&str, &Value> {
        let mut manifests = BTreeMap::new();
        for manifest in self.manifests.values() {
            if let Some(key) = manifest["key"].as_str() {
                assert!(manifests.insert(key, manifest).is_none(), "two manifests name '{key}'");
            }
        }
        manifests
    }
}

impl Capture {
    fn read(key: &str, bytes: &[u8], models: &Models) -> Self {
        // Panics when a record is not whole.
        let records = records(bytes);
        let number = |record: &Record| models.number(&record.bytes).unwrap_or_else(|| panic!("'{key}' holds a frame that was not sent"));
        let numbers: Vec<u64> = records.iter().map(number).collect();
        check_order(key, &records, &numbers);
        Self { bytes: bytes.len(), crc64nvme: checksum::of_bytes(bytes), numbers }
    }
}

fn check_order(key: &str, records: &[Record], numbers: &[u64]) {
    assert!(numbers.is_sorted(), "'{key}' is not in the order of sending");
    assert!(records.is_sorted_by_key(|record| record.time_ns), "'{key}' is not in the order of time");
}

const RECORD_HEADER_BYTES: usize = 16;

/// The frame of the record that begins there and where it ends, if it is whole.
fn record_at(file: &[u8], from: usize) -> Option<(&[u8], usize)> {
    let length = file.get(from + 8..from + 12)?.try_into().ok().map(u32::from_le_bytes)?;
    let begin = from + RECORD_HEADER_BYTES;
    let end = begin + length as usize;
    Some((file.get(begin..end)?, end))
}
