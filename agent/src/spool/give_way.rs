//! The policy `drop-oldest`: the oldest segment that is whole and not in S3 gives way to newer ones.
//! In: the folder. Out: room; facts that say what it took. Never: takes what grows, what S3 has confirmed, or what may be in S3 by
//! a completion that was sent; takes facts or journal, by which the uploader ends the upload and stores the manifest.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
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
    let stump = take_away(data)?;
    folder.fresh().forget(data, 0, u64::MAX);
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
    // It has given way whatever the disk says now.
    if let Err(error) = empty(folder, &stump) {
        tracing::warn!("the room of a segment that gave way is not free yet: {error}");
    }
    Ok(true)
}

/// Renames the data, so that nobody ever takes what becomes of them for the segment: it has none any more.
fn take_away(data: &Path) -> Result<PathBuf, Error> {
    let mut name = data.as_os_str().to_owned();
    name.push(".unfinished");
    let stump = PathBuf::from(name);
    fs::rename(data, &stump).map_err(io("take away", data))?;
    Ok(stump)
}

/// Has the disk free the data at once: a file that is only removed keeps its blocks for as long as anybody has it open (the uploader, a
/// person), some file systems for longer, and the next segment would be taken for want of the same room. Who reads it finds its end.
fn empty(folder: &Folder, stump: &Path) -> Result<(), Error> {
    folder.sync()?;
    OpenOptions::new().write(true).truncate(true).open(stump).map_err(io("empty", stump))?;
    fs::remove_file(stump).map_err(io("remove", stump))?;
    folder.sync()
}

fn read(file: File) -> Option<Facts> {
    serde_json::from_reader(BufReader::new(file.take(FACTS_BYTES_MAX))).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::facts::{Kind, WindowFacts};
    use crate::spool::journal::{Journal, Open, VERSION};
    use crate::spool::{OnFull, Settings};
    use std::os::unix::fs::MetadataExt;

    const BYTES: usize = 1 << 20;

    /// A folder with one whole segment, and its data's path.
    fn one_segment(dir: &Path) -> (Folder, PathBuf) {
        let settings =
            Settings { dir: dir.into(), max_bytes: 1 << 30, on_full: OnFull::DropOldest, flush_ms: 1, sync_ms: 1, allow_root_device: true };
        let folder = Folder::open(&settings).unwrap();
        let id = "01935000-0000-7000-8000-000000000000";
        let open = Open {
            version: VERSION,
            kind: Kind::Capture,
            capture_id: id.into(),
            bucket: "captures".into(),
            key: "i-1/2026-11-22-00-15.pcap".into(),
            instance: "i-1".into(),
            window: Stamp(0),
            extension: "pcap".into(),
            agent_version: "0".into(),
        };
        Journal::create(&folder.path(id, "journal"), open).unwrap();
        let data = folder.path(id, "pcap");
        fs::write(&data, vec![7; BYTES]).unwrap();
        let window = WindowFacts { start: Stamp(0), seconds: 900 };
        let facts = Facts::begin(Kind::Capture, id.into(), "i-1".into(), "captures".into(), window);
        replace(&folder.path(id, "manifest"), &Facts { frames: 3, bytes: 100, ..facts }, true).unwrap();
        (folder, data)
    }

    #[test]
    fn what_gives_way_leaves_room_at_once_also_while_somebody_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, data) = one_segment(dir.path());
        let reader = File::open(&data).unwrap();
        assert_ne!(reader.metadata().unwrap().blocks(), 0);
        let counters = Counters::new(0);
        assert!(oldest(&folder, &counters).unwrap());
        assert_eq!((reader.metadata().unwrap().len(), reader.metadata().unwrap().blocks()), (0, 0));
        assert!(!data.exists() && counters.frames_given_way.get() == 3);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "lock, journal and facts: {names:?}");
        assert!(!oldest(&folder, &counters).unwrap(), "there is no other");
    }
}
