//! Promise 4's half that lies on this disk: what reached the spool is whole again after the agent died at any byte.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::record::facts::Kind;
use crate::record::pcapng::{self, Packet};
use crate::record::{pcap, pcapng as ng};
use crate::spool::journal::{Journal, Open, Record, VERSION};
use crate::spool::{OnFull, Settings};
use proptest::prelude::*;

const ID: &str = "01935000-0000-7000-8000-000000000000";

/// A file of `frames` frames, and where each of its records ends.
fn file(format: Format, frames: u32) -> (Vec<u8>, Vec<u64>) {
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    match format {
        Format::Pcap => bytes.extend(pcap::file_header(Precision::Nano, 262_144)),
        Format::Pcapng => {
            bytes.extend(ng::section("test", "x"));
            ends.push(bytes.len() as u64);
            bytes.extend(ng::interface("a", "b", None, 262_144));
        }
    }
    ends.push(bytes.len() as u64);
    for n in 0..frames {
        let body = vec![n as u8; (n as usize * 7) % 90];
        let (time_ns, len) = (1_700_000_000_000_000_000 + u64::from(n), body.len() as u32);
        match format {
            Format::Pcap => {
                bytes.extend(pcap::record_header(Precision::Nano, time_ns, len, len));
                bytes.extend(body);
            }
            Format::Pcapng => {
                let (header, tail) = pcapng::packet(&Packet { time_ns, len, orig_len: len, lost: 3, ..Packet::default() });
                bytes.extend(header);
                bytes.extend(body);
                bytes.extend(tail.as_slice());
            }
        }
        ends.push(bytes.len() as u64);
    }
    (bytes, ends)
}

fn left_behind(bytes: &[u8], extension: &str) -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        dir: dir.path().into(),
        max_bytes: 1 << 30,
        on_full: OnFull::DropNewest,
        flush_ms: 1,
        sync_ms: 1,
        allow_root_device: true,
    };
    let folder = Folder::open(&settings).unwrap();
    let open = Open {
        version: VERSION,
        kind: Kind::Capture,
        capture_id: ID.into(),
        bucket: "captures".into(),
        key: "i-1/2026-11-22-00-15.pcap".into(),
        instance: "i-1".into(),
        window: Stamp(1_700_000_000_000_000_000),
        extension: extension.into(),
        agent_version: "0".into(),
    };
    Journal::create(&folder.path(ID, "journal"), open).unwrap();
    fs::write(folder.path(ID, extension), bytes).unwrap();
    (dir, folder)
}

/// Makes whole what is not and can be; gives how many there were.
fn salvage(folder: &Folder) -> usize {
    let unfinished = folder.segments().unwrap().into_iter().filter(|segment| segment.manifest.is_none());
    unfinished.filter(|segment| make_whole(folder, segment).is_ok()).count()
}

fn facts(folder: &Folder) -> Facts {
    serde_json::from_slice(&fs::read(folder.path(ID, "manifest")).unwrap()).unwrap()
}

proptest! {
    // Each case syncs real files.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_file_cut_at_any_byte_keeps_every_whole_record(ng in any::<bool>(), frames in 1u32..30, at in 0.0..1.0f64) {
        let (format, extension) = if ng { (Format::Pcapng, "pcapng") } else { (Format::Pcap, "pcap") };
        let (bytes, ends) = file(format, frames);
        let cut = (bytes.len() as f64 * at) as usize;
        let whole = ends.iter().copied().filter(|&end| end <= cut as u64).max().unwrap_or(0);
        let headers = if ng { 2 } else { 1 };
        let frames_whole = ends.iter().skip(headers).filter(|&&end| end <= cut as u64).count() as u64;
        let (_dir, folder) = left_behind(&bytes[..cut], extension);
        prop_assert_eq!(salvage(&folder), 1);
        if frames_whole == 0 {
            prop_assert!(folder.segments().unwrap().is_empty(), "a file without a frame is no loss");
        } else {
            prop_assert_eq!(fs::read(folder.path(ID, extension)).unwrap(), &bytes[..whole as usize]);
            let facts = facts(&folder);
            prop_assert!(facts.salvaged);
            prop_assert_eq!((facts.frames, facts.file_bytes), (frames_whole, whole));
            prop_assert_eq!(facts.last, Some(Stamp(1_700_000_000_000_000_000 + frames_whole - 1)));
            prop_assert_eq!(salvage(&folder), 0, "whole segments are left alone");
        }
    }

    #[test]
    fn any_bytes_are_walked_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), ng in any::<bool>(), zstd in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, &bytes).unwrap();
        let whole = walk(&path, if ng { Format::Pcapng } else { Format::Pcap }, if zstd { Compression::Zstd } else { Compression::None }).unwrap();
        prop_assert!(whole.file_bytes <= bytes.len() as u64);
    }
}

#[test]
fn a_compressed_file_keeps_every_whole_zstd_frame() {
    let (bytes, ends) = file(Format::Pcap, 40);
    let (first, second) = bytes.split_at(ends[20] as usize);
    let mut compressed = zstd::bulk::compress(first, 1).unwrap();
    let whole = compressed.len() as u64;
    compressed.extend(zstd::bulk::compress(second, 1).unwrap());
    for cut in [whole, whole + 1, compressed.len() as u64 - 1] {
        let (_dir, folder) = left_behind(&compressed[..cut as usize], "pcap.zst");
        salvage(&folder);
        let facts = facts(&folder);
        assert_eq!((facts.frames, facts.file_bytes, facts.compression), (20, whole, Compression::Zstd));
    }
}

#[test]
fn the_draft_keeps_what_the_file_cannot_tell() {
    let (bytes, _) = file(Format::Pcap, 3);
    let (_dir, folder) = left_behind(&bytes, "pcap");
    let window = WindowFacts { start: Stamp(1_700_000_000_000_000_000), seconds: 900 };
    let mut draft = Facts::begin(Kind::Capture, ID.into(), "i-1".into(), "captures".into(), window);
    draft.drops.insert("vxlan_no_i".into(), 9);
    fs::write(folder.path(ID, "draft"), serde_json::to_vec(&draft).unwrap()).unwrap();
    salvage(&folder);
    let facts = facts(&folder);
    assert_eq!((facts.frames, facts.drops["vxlan_no_i"], facts.window.seconds), (3, 9, 900));
    assert!(!folder.path(ID, "draft").exists());
}

#[test]
fn of_a_segment_without_a_frame_whose_upload_was_begun_only_facts_stay_by_which_it_is_ended() {
    let (bytes, _) = file(Format::Pcap, 0);
    for left in [&bytes[..0], &bytes[..10], &bytes, &[0; 4096]] {
        let (_dir, folder) = left_behind(left, "pcap");
        Journal::resume(&folder.path(ID, "journal")).unwrap().append(Record::Creating).unwrap();
        assert_eq!(salvage(&folder), 1);
        assert!(!folder.path(ID, "pcap").exists() && folder.path(ID, "journal").exists());
        assert_eq!((facts(&folder).frames, facts(&folder).file_bytes, facts(&folder).salvaged), (0, 0, true));
    }
}

#[test]
fn a_segment_without_a_frame_keeps_its_journal_when_its_facts_cannot_be_written_and_is_finished_with_the_next_try() {
    let (bytes, _) = file(Format::Pcap, 0);
    let (_dir, folder) = left_behind(&bytes, "pcap");
    Journal::resume(&folder.path(ID, "journal")).unwrap().append(Record::Creating).unwrap();
    let obstacle = folder.path(ID, "unfinished");
    fs::create_dir(&obstacle).unwrap();
    assert_eq!(salvage(&folder), 0);
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(salvage(&folder), 1);
    assert!(!folder.path(ID, "pcap").exists() && folder.path(ID, "journal").exists());
    assert_eq!((facts(&folder).frames, facts(&folder).file_bytes, facts(&folder).salvaged), (0, 0, true));
}

#[test]
fn a_damaged_journal_keeps_its_segment_and_does_not_stop_the_others() {
    let (bytes, _) = file(Format::Pcap, 3);
    let (_dir, folder) = left_behind(&bytes, "pcap");
    let other = "00000000-0000-7000-8000-000000000000";
    fs::write(folder.path(other, "journal"), b"junk\njunk\n").unwrap();
    fs::write(folder.path(other, "pcap"), b"precious").unwrap();
    assert_eq!(salvage(&folder), 1);
    assert_eq!(facts(&folder).frames, 3);
    assert_eq!(fs::read(folder.path(other, "pcap")).unwrap(), b"precious");
}

#[test]
fn a_damaged_record_costs_none_of_those_behind_it() {
    for (format, extension) in [(Format::Pcap, "pcap"), (Format::Pcapng, "pcapng")] {
        let (mut bytes, ends) = file(format, 40);
        // The length of the 21st record, or of its block.
        let at = ends[20 + usize::from(format == Format::Pcapng)] as usize;
        let length = at + if format == Format::Pcap { 8 } else { 4 };
        bytes[length..length + 4].fill(0xff);
        let (_dir, folder) = left_behind(&bytes, extension);
        salvage(&folder);
        assert_eq!(fs::read(folder.path(ID, extension)).unwrap(), bytes, "{extension}");
        let facts = facts(&folder);
        assert_eq!((facts.frames, facts.file_bytes, facts.salvaged), (20, bytes.len() as u64, true), "{extension}");
    }
}

#[test]
fn what_power_loss_left_as_zeros_is_no_record() {
    for (format, extension) in [(Format::Pcap, "pcap"), (Format::Pcapng, "pcapng")] {
        let (bytes, ends) = file(format, 5);
        for hole in [16, 4096, 1 << 20] {
            let torn = [bytes.as_slice(), &vec![0; hole]].concat();
            let (_dir, folder) = left_behind(&torn, extension);
            assert_eq!(salvage(&folder), 1);
            assert_eq!(fs::read(folder.path(ID, extension)).unwrap().len() as u64, *ends.last().unwrap(), "{hole} zeros");
            assert_eq!((facts(&folder).frames, facts(&folder).first), (5, Some(Stamp(1_700_000_000_000_000_000))));
        }
    }
}

#[test]
fn a_record_header_that_no_agent_writes_is_damage_and_nothing_is_cut_off() {
    let (bytes, _) = file(Format::Pcap, 3);
    let header = |seconds: u32, fraction: u32, len: u32, orig_len: u32| [seconds, fraction, len, orig_len].map(u32::to_le_bytes).concat();
    for bad in [header(1, 1_000_000_000, 0, 0), header(1, 0, 4, 3), header(0, 0, 0, 0)] {
        let bytes = [bytes.clone(), bad, vec![7; 4]].concat();
        let (_dir, folder) = left_behind(&bytes, "pcap");
        assert_eq!(salvage(&folder), 1);
        assert_eq!(fs::read(folder.path(ID, "pcap")).unwrap(), bytes);
        assert_eq!((facts(&folder).frames, facts(&folder).file_bytes), (3, bytes.len() as u64));
    }
}

#[test]
fn a_file_whose_beginning_is_damaged_is_kept() {
    for (extension, length) in [("pcap", 4), ("pcapng", 8), ("pcap.zst", 4)] {
        let (bytes, _) = file(if extension == "pcapng" { Format::Pcapng } else { Format::Pcap }, 40);
        let mut bytes = if extension == "pcap.zst" { zstd::bulk::compress(&bytes, 1).unwrap() } else { bytes };
        bytes[..length].fill(0xff);
        let (_dir, folder) = left_behind(&bytes, extension);
        salvage(&folder);
        assert_eq!(fs::read(folder.path(ID, extension)).unwrap(), bytes, "{extension}");
        assert!(facts(&folder).salvaged);
    }
}

/// Bytes that no compressor makes less of.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn a_zstd_frame_of_a_whole_chunk_that_does_not_compress_is_whole() {
    const JUMBO: usize = 8900;
    let mut chunk = pcap::file_header(Precision::Nano, 262_144).to_vec();
    let noise = noise(Writer::CHUNK_BYTES);
    let mut frames = 0;
    while chunk.len() < Writer::CHUNK_BYTES {
        let left = Writer::CHUNK_BYTES - chunk.len() - pcap::RECORD_HEADER_BYTES;
        let len = if left < 2 * JUMBO { left } else { JUMBO };
        chunk.extend(pcap::record_header(Precision::Nano, 1_700_000_000_000_000_000 + frames, len as u32, len as u32));
        chunk.extend(&noise[chunk.len()..][..len]);
        frames += 1;
    }
    let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
    let mut compressed = compressor.compress(&chunk).unwrap();
    assert!(compressed.len() > Writer::CHUNK_BYTES, "it grows");
    let whole = compressed.len() as u64;
    compressed.extend(compressor.compress(&chunk[pcap::FILE_HEADER_BYTES..]).unwrap());
    for (cut, frames, file_bytes) in
        [(compressed.len() as u64, 2 * frames, compressed.len() as u64), (compressed.len() as u64 - 1, frames, whole)]
    {
        let (_dir, folder) = left_behind(&compressed[..cut as usize], "pcap.zst");
        salvage(&folder);
        let facts = facts(&folder);
        assert_eq!((facts.frames, facts.file_bytes), (frames, file_bytes));
    }
}

#[test]
fn a_compressed_file_that_is_damaged_in_the_middle_is_not_cut() {
    let (bytes, ends) = file(Format::Pcap, 40);
    let (first, second) = bytes.split_at(ends[20] as usize);
    let mut compressed = zstd::bulk::compress(first, 1).unwrap();
    let whole = compressed.len();
    compressed.extend(zstd::bulk::compress(second, 1).unwrap());
    compressed[whole] ^= 1;
    let (_dir, folder) = left_behind(&compressed, "pcap.zst");
    salvage(&folder);
    assert_eq!(fs::read(folder.path(ID, "pcap.zst")).unwrap(), compressed);
    assert_eq!(facts(&folder).frames, 20);
}
