//! The policy `drop-oldest`: the oldest segment that is whole and not in S3 gives way to newer ones.
//! In: the folder. Out: room; facts that say what it took. Never: takes what grows, what S3 has confirmed, or what may be in S3 by
//! a completion that was sent; takes facts or journal, by which the uploader ends the upload and stores the manifest.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use super::journal::{self, io};
use super::writer::replace;
use super::{Error, Folder, Segment};
use crate::observe::counters::Counters;
use crate::record::facts::GaveWay;
use crate::record::{Facts, Stamp};

/// The largest facts that are believed.
const FACTS_BYTES_MAX: u64 = 64 << 20;

/// Takes the data of the oldest segment that can give way; false when there is none.
///
/// # Errors
/// When the folder, a segment's facts or its data cannot be handled.
pub fn oldest(folder: &Folder, counters: &Counters) -> Result<bool, Error> {
    for segment in folder.segments()? {
        if one(folder, &segment, counters)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn one(folder: &Folder, segment: &Segment, counters: &Counters) -> Result<bool, Error> {
    let Segment { data: Some(data), journal: Some(journal), manifest: Some(manifest), .. } = segment else { return Ok(false) };
    // Held until the data are gone: a completion that begins now would find them, and one under way is waited for elsewhere.
    let Some(_claim) = folder.claim(&segment.capture_id) else { return Ok(false) };
    // A journal that cannot be read is for a person to look at.
    let Ok((state, _)) = journal::read(journal) else { return Ok(false) };
    if state.verified.is_some() || state.completing.is_some() {
        return Ok(false);
    }
    let Some(mut facts) = File::open(manifest).ok().and_then(read) else { return Ok(false) };
    if facts.gave_way.is_none() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        facts.gave_way = Some(GaveWay { at: Stamp(now), frames: facts.frames, bytes: facts.bytes });
        replace(manifest, &facts, true)?;
        folder.sync()?;
    }
    fs::remove_file(data).map_err(io("remove", data))?;
    folder.sync()?;
    counters.segments_given_way.add(1);
    counters.frames_given_way.add(facts.frames);
    counters.bytes_given_way.add(facts.bytes);
    tracing::error!(
        capture_id = facts.capture_id,
        key = facts.key,
        frames = facts.frames,
        bytes = facts.bytes,
        "the spool is full: the oldest segment's data are dropped (spool.on_full = \"drop-oldest\")"
    );
    Ok(true)
}

fn read(file: File) -> Option<Facts> {
    serde_json::from_reader(BufReader::new(file.take(FACTS_BYTES_MAX))).ok()
}
