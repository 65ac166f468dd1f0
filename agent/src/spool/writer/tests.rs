//! The spool's threads on a real folder.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::record::Stamp;
use crate::record::facts::{Kind, WindowFacts};
use crate::record::segment::Segment;
use crate::spool::salvage;

fn facts(compression: Compression) -> Facts {
    let window = WindowFacts { start: Stamp(1_700_000_000_000_000_000), seconds: 900 };
    let key = Some("i-1/2026-11-22-00-15.pcap".into());
    Facts { key, compression, ..Facts::begin(Kind::Capture, uuid::Uuid::now_v7().to_string(), "i-1".into(), "captures".into(), window) }
}

fn spool(dir: &std::path::Path) -> (Folder, Writer, Threads) {
    let settings = Settings { dir: dir.into(), max_bytes: 1 << 30, flush_ms: 100, sync_ms: 10, allow_root_device: true };
    let folder = Folder::open(&settings).unwrap();
    let (writer, threads) = start(&folder, &settings, Arc::new(Counters::new(0))).unwrap();
    (folder, writer, threads)
}

fn chunk(writer: &mut Writer, byte: u8, bytes: usize) -> Chunk {
    let mut buffer = writer.buffer();
    assert!(buffer.is_empty(), "a buffer comes back empty");
    buffer.resize(bytes, byte);
    Chunk { bytes: buffer, first_record: Some((0, Stamp(u64::from(byte)))) }
}

#[test]
fn a_segment_grows_in_its_file_and_is_marked_as_whole_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, mut writer, threads) = spool(dir.path());
    let facts = facts(Compression::None);
    let number = SegmentNumber(1);
    writer.open(number, facts.clone());
    for byte in 0..200 {
        let chunk = chunk(&mut writer, byte, Writer::CHUNK_BYTES);
        writer.append(number, chunk);
    }
    writer.draft(number, facts.clone());
    writer.close(number, facts.clone());
    drop(writer);
    threads.finish(Duration::from_secs(60));
    let segments = folder.segments().unwrap();
    let segment = &segments[0];
    assert!(segment.draft.is_none() && segment.manifest.is_some() && segment.journal.is_some());
    let bytes = fs::read(segment.data.as_ref().unwrap()).unwrap();
    assert_eq!(bytes.len(), 200 * Writer::CHUNK_BYTES);
    assert!(bytes.chunks(Writer::CHUNK_BYTES).enumerate().all(|(n, chunk)| chunk.iter().all(|&b| b == n as u8)));
    let written: Facts = serde_json::from_slice(&fs::read(segment.manifest.as_ref().unwrap()).unwrap()).unwrap();
    assert_eq!(written.file_bytes, bytes.len() as u64);
    assert_eq!(written.index.entries.len(), 200);
    assert_eq!(written.index.entries[3].offset, 3 << 20);
}

#[test]
fn compressed_chunks_are_frames_that_can_be_read_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, mut writer, threads) = spool(dir.path());
    let facts = facts(Compression::Zstd);
    writer.open(SegmentNumber(1), facts.clone());
    for byte in 0..3 {
        let chunk = chunk(&mut writer, byte, 300_000);
        writer.append(SegmentNumber(1), chunk);
    }
    writer.close(SegmentNumber(1), facts.clone());
    drop(writer);
    threads.finish(Duration::from_secs(60));
    let path = folder.path(&facts.capture_id, "pcap.zst");
    assert_eq!(zstd::stream::decode_all(File::open(&path).unwrap()).unwrap().len(), 900_000);
    let bytes = fs::read(&path).unwrap();
    let first = zstd::zstd_safe::find_frame_compressed_size(&bytes).unwrap();
    let second = zstd::zstd_safe::find_frame_compressed_size(&bytes[first..]).unwrap();
    let content = zstd::bulk::decompress(&bytes[first..first + second], 1 << 20).unwrap();
    assert!(content.len() == 300_000 && content.iter().all(|&b| b == 1));
    assert_eq!(salvage::salvage(&folder, &folder.segments().unwrap()), 0);
}

#[test]
fn the_folder_has_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().into(), max_bytes: 1, flush_ms: 1, sync_ms: 1, allow_root_device: true };
    let first = Folder::open(&settings).unwrap();
    assert!(matches!(Folder::open(&settings), Err(Error::InUse { .. })));
    drop(first);
    Folder::open(&settings).unwrap();
}

#[test]
fn a_spool_on_the_root_device_is_refused_unless_asked_for() {
    // The repository lies on some device; only when that is the root's can this be seen here, and `/` itself always is.
    let settings = Settings { dir: "/".into(), max_bytes: 1, flush_ms: 1, sync_ms: 1, allow_root_device: false };
    let error = Folder::open(&settings).unwrap_err();
    assert!(matches!(error, Error::RootDevice { .. }) && error.to_string().contains("allow_root_device"), "{error}");
}

#[test]
fn segments_may_be_opened_and_closed_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (_folder, mut writer, threads) = spool(dir.path());
    let (done, ended) = sync_channel(1);
    thread::spawn(move || {
        for n in 0..2 * BUFFERS_MAX as u64 {
            let facts = facts(Compression::None);
            let number = SegmentNumber(n);
            writer.open(number, facts.clone());
            let mut segment = Segment::begin(number, &facts, 262_144, "", &mut writer, 0);
            segment.flush(1, u64::from(n.is_multiple_of(2)), &mut writer);
            segment.finish(std::iter::empty(), &mut writer);
            writer.close(number, facts);
        }
        done.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).expect("the recorder waits for a buffer that never comes");
    threads.finish(Duration::from_secs(60));
}

#[test]
fn what_a_dead_agent_was_about_to_put_in_place_does_not_stay_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().into(), max_bytes: 1, flush_ms: 1, sync_ms: 1, allow_root_device: true };
    for name in ["x.unfinished", "x.journal.unfinished", "x.pcap"] {
        fs::write(dir.path().join(name), b"{").unwrap();
    }
    let _folder = Folder::open(&settings).unwrap();
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "x.pcap"]);
}
