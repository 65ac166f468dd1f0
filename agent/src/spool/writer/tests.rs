//! The spool's threads on a real folder.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::record::Stamp;
use crate::record::facts::{Kind, WindowFacts};
use crate::record::segment::Segment;

fn facts(compression: Compression) -> Facts {
    let window = WindowFacts { start: Stamp(1_700_000_000_000_000_000), seconds: 900 };
    let key = Some("i-1/2026-11-22-00-15.pcap".into());
    Facts { key, compression, ..Facts::begin(Kind::Capture, uuid::Uuid::now_v7().to_string(), "i-1".into(), "captures".into(), window) }
}

fn settings(dir: &Path, max_bytes: u64, on_full: OnFull) -> Settings {
    Settings { dir: dir.into(), max_bytes, on_full, flush_ms: 100, sync_ms: 10, allow_root_device: true }
}

fn spool(dir: &Path) -> (Folder, Writer, Threads) {
    let settings = settings(dir, 1 << 30, OnFull::DropNewest);
    let folder = Folder::open(&settings).unwrap();
    let (writer, threads) = start(&folder, &settings, Arc::new(Counters::new(0))).unwrap();
    (folder, writer, threads)
}

/// A disk as Linux has it: a sync that fails marks as clean what it did not write, and the next one says that all is well.
#[derive(Default)]
struct Forgetful {
    failures: u32,
    dirty: std::collections::BTreeSet<u64>,
    durable: std::collections::BTreeSet<u64>,
}

impl Disk for &mut Forgetful {
    fn sync(&mut self, _: &File) -> std::io::Result<()> {
        let dirty = mem::take(&mut self.dirty);
        if self.failures > 0 {
            self.failures -= 1;
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.durable.extend(dirty);
        Ok(())
    }

    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.dirty.extend(offset..offset + bytes.len() as u64);
        file.write_all_at(bytes, offset)
    }
}

#[test]
fn what_a_failed_sync_left_in_doubt_is_written_again_before_it_counts_as_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, writer, threads) = spool(dir.path());
    let path = dir.path().join("x.pcap");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    let content: Vec<u8> = (0..3000).map(|n| (n % 251) as u8).collect();
    let patient = Patient { abandon: Arc::default(), counters: Arc::default(), thread: Thread::Sync };
    let extent = |bytes: usize| Extent { bytes: bytes as u64, crc64nvme: checksum(Crc64Nvme, &content[..bytes]) };
    let data = || Data {
        path: path.clone().into(),
        file: file.try_clone().unwrap(),
        direct: None,
        refused: AtomicBool::new(false),
        durable: Mutex::default(),
        lost: AtomicBool::new(false),
    };
    let died = Arc::new(AtomicBool::new(false));
    for failures in [0, 1, 3] {
        let (data, mut disk) = (data(), Forgetful::default());
        (&mut disk).write(&file, &content[..1000], 0).unwrap();
        let mut syncing = Syncing { folder: folder.clone(), patient: patient.clone(), disk: &mut disk, died: died.clone() };
        assert!(syncing.make_durable(&data, extent(1000)));
        syncing.disk.write(&file, &content[1000..], 1000).unwrap();
        syncing.disk.failures = failures;
        // Behind what is to be synced there is more already: a failure lets go of that, too.
        for bytes in [2000, 2500, 3000] {
            assert!(syncing.make_durable(&data, extent(bytes)));
        }
        assert!(!folder.doubts(&path));
        assert_eq!(disk.durable, (0..3000).collect(), "after {failures} failures");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    assert!(!died.load(Ordering::Acquire));
    // What does not read back as it was written is lost, nothing may follow it, and the agent is not to go on with this spool.
    let (data, mut disk) = (data(), Forgetful { failures: 1, ..Forgetful::default() });
    file.write_all_at(b"something else", 2000).unwrap();
    let mut syncing = Syncing { folder: folder.clone(), patient, disk: &mut disk, died: died.clone() };
    assert!(!syncing.make_durable(&data, extent(3000)) && data.lost.load(Ordering::Acquire) && died.load(Ordering::Acquire));
    drop(writer);
    threads.finish(Duration::from_secs(60));
}

#[test]
fn a_recorder_that_waits_for_the_disk_lives_and_says_for_how_long_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let counters = Arc::new(Counters::new(0));
    let settings = settings(dir.path(), 1 << 30, OnFull::DropNewest);
    let folder = Folder::open(&settings).unwrap();
    let (mut writer, threads) = start(&folder, &settings, counters.clone()).unwrap();
    let facts = facts(Compression::None);
    // Where the data are to be stands a folder: the file cannot be made.
    let path = folder.path(&facts.capture_id, "pcap");
    fs::create_dir(&path).unwrap();
    let waiting = thread::spawn(move || {
        writer.open(SegmentNumber(1), facts);
        for byte in 0..=BUFFERS_MAX {
            let chunk = chunk(&mut writer, byte as u8, 1000);
            writer.append(SegmentNumber(1), chunk);
        }
    });
    let until = Instant::now() + Duration::from_secs(60);
    let beats_after = |at: u64| {
        while counters.recorder.beat_ns.get() <= at {
            assert!(Instant::now() < until, "the recorder gives no sign of life");
            thread::sleep(Duration::from_millis(5));
        }
        counters.recorder.beat_ns.get()
    };
    let last = beats_after(beats_after(0));
    assert!(!waiting.is_finished() && counters.disk_waits_ns(last + 1) > 0);
    fs::remove_dir(&path).unwrap();
    waiting.join().unwrap();
    threads.finish(Duration::from_secs(60));
    assert_eq!(counters.disk_waits_ns(u64::MAX), 0);
    assert_eq!(fs::metadata(&path).unwrap().len(), (BUFFERS_MAX as u64 + 1) * 1000, "and nothing is lost");
}

#[test]
fn a_thread_of_the_spool_that_panics_is_known_to_have_failed_and_one_that_ends_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_folder, writer, threads) = spool(dir.path());
    let died = threads.died.clone();
    drop(writer);
    threads.finish(Duration::from_secs(60));
    assert!(!died.load(Ordering::Acquire));
    let alive = Alive { died: died.clone() };
    let ended = thread::spawn(move || {
        let _alive = alive;
        panic!("as a defect does");
    });
    assert!(ended.join().is_err() && died.load(Ordering::Acquire));
}

#[test]
fn a_full_spool_takes_nothing_by_drop_newest_and_by_stop_until_a_tenth_is_free() {
    let full = (16 << 20) - (1 << 20);
    for (on_full, answer) in [(OnFull::DropNewest, Room::No), (OnFull::Stop, Room::Stopped)] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.pcap"), vec![0; full]).unwrap();
        let settings = settings(dir.path(), 16 << 20, on_full);
        let folder = Folder::open(&settings).unwrap();
        let counters = Arc::new(Counters::new(0));
        let (mut writer, threads) = start(&folder, &settings, counters.clone()).unwrap();
        assert_eq!((writer.room(1), writer.room(1 << 20)), (Room::Yes, answer));
        assert_eq!(counters.recording_stopped.get(), u64::from(on_full == OnFull::Stop));
        // A little room is enough for one, not for the other.
        fs::write(dir.path().join("a.pcap"), vec![0; full - (1 << 19)]).unwrap();
        folder.budget().look().unwrap();
        assert_eq!(writer.room(1), if on_full == OnFull::Stop { Room::Stopped } else { Room::Yes });
        fs::write(dir.path().join("a.pcap"), vec![0; full - (2 << 20)]).unwrap();
        folder.budget().look().unwrap();
        assert_eq!((writer.room(1), counters.recording_stopped.get()), (Room::Yes, 0));
        drop(writer);
        threads.finish(Duration::from_secs(60));
    }
}

/// A whole segment of 1 MiB, so many of them; gives their ids, oldest first.
fn segments(folder: &Folder, count: u64) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|n| format!("0193500{n}-0000-7000-8000-000000000000")).collect();
    for id in &ids {
        let open = Open {
            version: journal::VERSION,
            kind: Kind::Capture,
            capture_id: id.clone(),
            bucket: "captures".into(),
            key: format!("i-1/{id}.pcap"),
            instance: "i-1".into(),
            window: Stamp(1_700_000_000_000_000_000),
            extension: "pcap".into(),
            agent_version: "0.1.0".into(),
        };
        drop(Journal::create(&folder.path(id, "journal"), open).unwrap());
        fs::write(folder.path(id, "pcap"), vec![7; 1 << 20]).unwrap();
        let facts = Facts { capture_id: id.clone(), frames: 10, bytes: 1000, file_bytes: 1 << 20, ..facts(Compression::None) };
        mark_whole(folder, &facts).unwrap();
    }
    ids
}

#[test]
fn the_oldest_whole_segment_that_is_not_in_s3_nor_about_to_be_gives_way_and_its_facts_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, writer, threads) = spool(dir.path());
    let ids = segments(&folder, 5);
    let journal = |n: usize| Journal::resume(&folder.path(&ids[n], "journal")).unwrap();
    journal(0).append(journal::Record::Verified { bytes: 1, crc64nvme: 1, etag: None, version_id: None }).unwrap();
    journal(1).append(journal::Record::Completing { bytes: 1, crc64nvme: 1 }).unwrap();
    fs::remove_file(folder.path(&ids[2], "manifest")).unwrap();
    let claim = folder.claim(&ids[3]);
    let counters = Counters::new(0);
    assert!(give_way::oldest(&folder, &counters).unwrap());
    let there: Vec<bool> = ids.iter().map(|id| folder.path(id, "pcap").exists()).collect();
    assert_eq!(there, [true, true, true, true, false], "in S3, about to be, growing, claimed; and the one that may go");
    assert_eq!((counters.segments_given_way.get(), counters.frames_given_way.get(), counters.bytes_given_way.get()), (1, 10, 1000));
    let facts: Facts = serde_json::from_slice(&fs::read(folder.path(&ids[4], "manifest")).unwrap()).unwrap();
    assert_eq!(facts.gave_way.map(|gave_way| (gave_way.frames, gave_way.bytes)), Some((10, 1000)));
    assert_eq!((facts.frames, facts.without_data().drops[Facts::GAVE_WAY]), (10, 10));
    assert!(folder.path(&ids[4], "journal").exists());
    assert!(!give_way::oldest(&folder, &counters).unwrap(), "no other may");
    drop(claim);
    assert!(give_way::oldest(&folder, &counters).unwrap() && !folder.path(&ids[3], "pcap").exists());
    drop(writer);
    threads.finish(Duration::from_secs(60));
}

#[test]
fn a_full_spool_makes_room_by_drop_oldest_for_as_much_as_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), 8 << 20, OnFull::DropOldest);
    let folder = Folder::open(&settings).unwrap();
    let ids = segments(&folder, 7);
    folder.budget().look().unwrap();
    let (mut writer, threads) = start(&folder, &settings, Arc::new(Counters::new(0))).unwrap();
    assert_eq!(writer.room(1 << 20), Room::No);
    let until = Instant::now() + Duration::from_secs(60);
    while writer.room(1 << 20) != Room::Yes {
        assert!(Instant::now() < until, "no room is made");
        thread::sleep(Duration::from_millis(5));
    }
    let there = || ids.iter().map(|id| folder.path(id, "pcap").exists()).collect::<Vec<bool>>();
    assert_eq!(there(), [false, true, true, true, true, true, true], "one makes room enough");
    // What lies in buffers is asked for with each frame, and may be more than a segment frees.
    while writer.room(5 << 19) != Room::Yes {
        assert!(Instant::now() < until, "there is room for a little, and no more is made");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(there().ends_with(&[true; 4]), "no more goes than must: {:?}", there());
    drop(writer);
    threads.finish(Duration::from_secs(60));
}

fn chunk(writer: &mut Writer, byte: u8, bytes: usize) -> Chunk {
    let mut buffer = writer.buffer();
    assert!(buffer.is_empty(), "a buffer comes back empty");
    buffer.extend_from_slice(&vec![byte; bytes]);
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
    assert_eq!(written.index.entries[3].offset, 3 * Writer::CHUNK_BYTES as u64);
}

#[test]
fn chunks_of_whole_pages_stay_in_memory_and_all_of_them_reach_the_file_in_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, mut writer, threads) = spool(dir.path());
    let facts = facts(Compression::None);
    let number = SegmentNumber(1);
    writer.open(number, facts.clone());
    // The second begins where no page does, the third where one does again, the last ends anywhere.
    let lengths = [Writer::CHUNK_BYTES, 5000, Writer::CHUNK_BYTES - 5000, Writer::CHUNK_BYTES, 2 * PAGE_BYTES, 7];
    for (byte, bytes) in (0..).zip(lengths) {
        let chunk = chunk(&mut writer, byte, bytes);
        writer.append(number, chunk);
    }
    writer.close(number, facts);
    drop(writer);
    threads.finish(Duration::from_secs(60));
    let segment = &folder.segments().unwrap()[0];
    let path = segment.data.as_ref().unwrap();
    let bytes = fs::read(path).unwrap();
    let wanted: Vec<u8> = (0u8..).zip(lengths).flat_map(|(byte, bytes)| vec![byte; bytes]).collect();
    assert!(bytes == wanted, "{} bytes of {}", bytes.len(), wanted.len());
    let whole = direct(path).is_some();
    let mut at = 0;
    for (bytes, aligned) in lengths.into_iter().zip([true, false, false, true, true, false]) {
        let section = folder.fresh().section(path, at as u64, bytes as u64);
        assert_eq!(section.is_some(), whole && aligned, "{bytes} bytes at {at}; direct writes: {whole}");
        if let Some(section) = section {
            assert!(section.pieces.concat() == wanted[at..at + bytes]);
            assert_eq!(section.crc64nvme, checksum(Crc64Nvme, &wanted[at..at + bytes]));
        }
        at += bytes;
    }
    folder.remove(segment).unwrap();
    assert!(folder.fresh().section(path, 0, lengths[0] as u64).is_none(), "nothing is kept of what is gone");
}

#[test]
fn memory_that_is_kept_for_the_uploader_does_not_hold_up_the_recorder() {
    const BYTES: u64 = Writer::CHUNK_BYTES as u64;
    let dir = tempfile::tempdir().unwrap();
    let (folder, mut writer, threads) = spool(dir.path());
    let facts = facts(Compression::None);
    let number = SegmentNumber(1);
    let path = folder.path(&facts.capture_id, "pcap");
    writer.open(number, facts.clone());
    let mut read = Vec::new();
    for n in 0..4 * BUFFERS_MAX {
        let chunk = chunk(&mut writer, n as u8, Writer::CHUNK_BYTES);
        writer.append(number, chunk);
        // As requests do that S3 does not answer.
        read.extend((0..=n as u64).rev().find_map(|n| folder.fresh().section(&path, n * BYTES, BYTES)));
    }
    writer.close(number, facts);
    drop(writer);
    threads.finish(Duration::from_secs(60));
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 * BUFFERS_MAX as u64 * BYTES);
    assert_eq!(direct(&path).is_some(), !read.is_empty());
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
    assert!(folder.segments().unwrap().iter().all(|segment| segment.manifest.is_some()));
}

#[test]
fn the_folder_has_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        Settings { dir: dir.path().into(), max_bytes: 1, on_full: OnFull::DropNewest, flush_ms: 1, sync_ms: 1, allow_root_device: true };
    let first = Folder::open(&settings).unwrap();
    assert!(matches!(Folder::open(&settings), Err(Error::InUse { .. })));
    drop(first);
    Folder::open(&settings).unwrap();
}

#[test]
fn a_spool_on_the_root_device_is_refused_unless_asked_for() {
    // The repository lies on some device; only when that is the root's can this be seen here, and `/` itself always is.
    let settings =
        Settings { dir: "/".into(), max_bytes: 1, on_full: OnFull::DropNewest, flush_ms: 1, sync_ms: 1, allow_root_device: false };
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
    let settings =
        Settings { dir: dir.path().into(), max_bytes: 1, on_full: OnFull::DropNewest, flush_ms: 1, sync_ms: 1, allow_root_device: true };
    for name in ["x.unfinished", "x.journal.unfinished", "x.pcap"] {
        fs::write(dir.path().join(name), b"{").unwrap();
    }
    let _folder = Folder::open(&settings).unwrap();
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "x.pcap"]);
}
