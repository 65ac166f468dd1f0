//! Files built byte by byte, read back; and files that nobody should have built.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write;

use proptest::prelude::*;

use super::*;

/// Frames of the test files: seconds, nanoseconds (whole microseconds), bytes, length on the wire.
const FRAMES: [(u64, u64, &[u8], u32); 3] =
    [(1_700_000_000, 1_000, b"first frame", 11), (1_700_000_000, 999_999_000, b"second", 6), (1_700_000_001, 0, b"cut short....", 1500)];

/// A writer of numbers in one byte order.
struct Bytewise {
    big_endian: bool,
    bytes: Vec<u8>,
}

impl Bytewise {
    fn new(big_endian: bool) -> Self {
        Self { big_endian, bytes: Vec::new() }
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    fn padded(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len() + (bytes.len().next_multiple_of(4) - bytes.len()), 0);
        self
    }

    /// A pcapng block around what `body` writes.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) -> &mut Self {
        let begin = self.bytes.len();
        self.u32(kind).u32(0);
        body(self);
        let length = (self.bytes.len() - begin + 4) as u32;
        self.u32(length);
        let field = if self.big_endian { length.to_be_bytes() } else { length.to_le_bytes() };
        self.bytes[begin + 4..begin + 8].copy_from_slice(&field);
        self
    }

    fn section(&mut self) -> &mut Self {
        self.block(0x0a0d_0d0a, |b| {
            b.u32(0x1a2b_3c4d).u16(1).u16(0).u64(u64::MAX);
        })
    }

    fn interface(&mut self, linktype: u16, options: &[(u16, &[u8])]) -> &mut Self {
        self.block(1, |b| {
            b.u16(linktype).u16(0).u32(262_144);
            for (code, value) in options {
                b.u16(*code).u16(value.len() as u16).padded(value);
            }
            if !options.is_empty() {
                b.u32(0);
            }
        })
    }

    fn enhanced(&mut self, interface: u32, ticks: u64, frame: &[u8], orig_len: u32) -> &mut Self {
        self.block(6, |b| {
            b.u32(interface).u32((ticks >> 32) as u32).u32(ticks as u32).u32(frame.len() as u32).u32(orig_len).padded(frame);
        })
    }
}

fn pcap(big_endian: bool, nanoseconds: bool) -> Vec<u8> {
    let mut file = Bytewise::new(big_endian);
    file.u32(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).u16(2).u16(4).u32(0).u32(0).u32(262_144).u32(1);
    for (seconds, ns, bytes, orig_len) in FRAMES {
        let fraction = if nanoseconds { ns } else { ns / 1000 };
        file.u32(seconds as u32).u32(fraction as u32).u32(bytes.len() as u32).u32(orig_len);
        file.bytes.extend(bytes);
    }
    file.bytes
}

fn pcapng(big_endian: bool) -> Vec<u8> {
    let mut file = Bytewise::new(big_endian);
    file.section().interface(1, &[(2, b"eth0"), (9, &[9])]);
    for (seconds, ns, bytes, orig_len) in FRAMES {
        file.enhanced(0, seconds * 1_000_000_000 + ns, bytes, orig_len);
        // An Interface Statistics Block and a Custom Block between the frames.
        file.block(5, |b| _ = b.u32(0).u64(0)).block(0xbad, |b| _ = b.u32(7));
    }
    file.bytes
}

/// Stamp, bytes and length on the wire.
type Read = (u64, Vec<u8>, u32);

fn expected() -> Vec<Read> {
    FRAMES.iter().map(|(s, ns, bytes, orig_len)| (s * 1_000_000_000 + ns, bytes.to_vec(), *orig_len)).collect()
}

/// What the engine gives for files of these contents, and how it ends.
fn read(contents: &[&[u8]]) -> (Vec<Read>, Result<(), Error>) {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = contents
        .iter()
        .enumerate()
        .map(|(n, bytes)| {
            let path = folder.path().join(format!("{n}.file"));
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect();
    let mut frames = Vec::new();
    let mut engine = match FileEngine::open(paths) {
        Ok(engine) => engine,
        Err(error) => return (frames, Err(error)),
    };
    let mut bytes = Bytes::default();
    loop {
        match engine.take(&mut bytes, Duration::ZERO) {
            Ok(Taken::Frames) => bytes.for_each_frame(|frame| frames.push((frame.time_ns, frame.bytes.to_vec(), frame.orig_len))),
            Ok(Taken::Quiet { .. }) => panic!("a file is never quiet"),
            Ok(Taken::End) => {
                assert_eq!(engine.losses().unwrap(), Losses { packets: frames.len() as u64, ..Losses::default() });
                return (frames, Ok(()));
            }
            Err(error) => return (frames, Err(error)),
        }
    }
}

fn read_well(contents: &[u8]) -> Vec<Read> {
    let (frames, end) = read(&[contents]);
    end.unwrap();
    frames
}

/// Frames before the damage, where it is, and the message.
fn read_badly(contents: &[u8]) -> (usize, u64, String) {
    let (frames, end) = read(&[contents]);
    let error = end.unwrap_err();
    let text = error.to_string();
    let Error::File { path, offset, .. } = error else { panic!("{error}") };
    assert!(text.contains(&path.display().to_string()));
    (frames.len(), offset, text)
}

#[test]
fn every_kind_of_file_gives_the_same_frames() {
    for big_endian in [false, true] {
        assert_eq!(read_well(&pcap(big_endian, false)), expected(), "pcap, microseconds, big endian: {big_endian}");
        assert_eq!(read_well(&pcap(big_endian, true)), expected(), "pcap, nanoseconds, big endian: {big_endian}");
        assert_eq!(read_well(&pcapng(big_endian)), expected(), "pcapng, big endian: {big_endian}");
    }
}

#[test]
fn compressed_files_are_told_by_their_first_bytes() {
    for plain in [pcap(false, true), pcapng(true)] {
        // Two members, as `cat a.gz b.gz` makes them, and two independent frames, as our own compression does.
        let (head, tail) = plain.split_at(30);
        let gzip = [head, tail].map(|half| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(half).unwrap();
            encoder.finish().unwrap()
        });
        assert_eq!(read_well(&gzip.concat()), expected());
        let zstd = [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 1).unwrap()].concat();
        assert_eq!(read_well(&zstd), expected());
    }
}

#[test]
fn several_files_follow_each_other() {
    let (frames, end) = read(&[&pcap(false, true), &pcapng(true)]);
    end.unwrap();
    assert_eq!(frames, [expected(), expected()].concat());
}

#[test]
fn sections_follow_each_other_in_any_byte_order() {
    assert_eq!(read_well(&[pcapng(true), pcapng(false), pcapng(true)].concat()), [expected(), expected(), expected()].concat());
}

#[test]
fn time_resolutions_and_offsets_of_an_interface_are_heeded() {
    let stamps = |options: &[(u16, &[u8])], ticks, big_endian| {
        let mut file = Bytewise::new(big_endian);
        file.section().interface(1, options).enhanced(0, ticks, b"x", 1);
        read_well(&file.bytes)[0].0
    };
    assert_eq!(stamps(&[], 5_000_001, false), 5_000_001_000, "microseconds by default");
    assert_eq!(stamps(&[(9, &[3])], 5_001, false), 5_001_000_000, "milliseconds");
    assert_eq!(stamps(&[(9, &[0x80 | 10])], 5 * 1024 + 512, false), 5_500_000_000, "2^-10 s");
    assert_eq!(stamps(&[(9, &[12])], 1_000_000_001_999, false), 1_000_000_001, "picoseconds");
    assert_eq!(stamps(&[(14, &100i64.to_le_bytes())], 1, false), 100_000_001_000, "offset");
    assert_eq!(stamps(&[(14, &100i64.to_be_bytes())], 1, true), 100_000_001_000, "offset, big endian");
    assert_eq!(stamps(&[(14, &(-100i64).to_le_bytes())], 1, false), 0, "before 1970");
}

#[test]
fn simple_and_obsolete_packet_blocks_are_read() {
    let mut file = Bytewise::new(false);
    file.section().interface(1, &[]);
    file.block(2, |b| _ = b.u16(0).u16(9).u32(0).u32(7_000_000).u32(3).u32(60).padded(b"old"));
    file.block(3, |b| _ = b.u32(6).padded(b"simple"));
    assert_eq!(read_well(&file.bytes), [(7_000_000_000, b"old".to_vec(), 60), (7_000_000_000, b"simple".to_vec(), 6)]);
}

#[test]
fn a_truncated_file_gives_the_frames_before_and_then_says_where_it_ends() {
    for (name, whole) in [("pcap", pcap(false, true)), ("pcapng", pcapng(false))] {
        for length in 1..whole.len() {
            let (frames, end) = read(&[&whole[..length]]);
            assert_eq!(frames, expected()[..frames.len()], "{name} cut to {length}");
            match end {
                // Cut between two records or blocks: nothing shows that there was more.
                Ok(()) => {}
                Err(Error::File { offset, .. }) => assert!(offset <= length as u64, "{name} cut to {length}: error at {offset}"),
                Err(other) => panic!("{name} cut to {length}: {other}"),
            }
        }
        let (frames, end) = read(&[&whole[..whole.len() - 1]]);
        assert!(end.is_err() && frames.len() >= 2, "{name}");
    }
    let last = pcap(false, true).len() - 13 - 16;
    let (frames, offset, text) = read_badly(&pcap(false, true)[..last + 20]);
    assert_eq!((frames, offset), (2, last as u64));
    assert!(text.contains("expected a whole record, found 4 of its 13 bytes"), "{text}");
}

#[test]
fn a_truncated_compressed_file_is_damaged_too() {
    let mut plain = pcap(false, true);
    for _ in 0..1000 {
        plain.extend_from_slice(&pcap(false, true)[24..]);
    }
    let whole = zstd::encode_all(&plain[..], 1).unwrap();
    assert_eq!(read_well(&whole).len(), 3003);
    let (_, _, text) = read_badly(&whole[..whole.len() - 5]);
    assert!(text.contains("expected more data"), "{text}");
}

#[test]
fn foreign_files_are_told_what_they_should_have_been() {
    let (_, offset, text) = read_badly(b"PK\x03\x04 a zip file");
    assert_eq!(offset, 0);
    assert!(text.contains("expected a pcap or pcapng file, found the bytes 50 4b 03 04"), "{text}");
    assert!(read_badly(b"").2.contains("only 0 bytes"));
    assert!(read_badly(&pcap(false, true)[..10]).2.contains("file header of 24 bytes"));
}

#[test]
fn other_links_than_ethernet_are_refused() {
    let mut cooked = pcap(false, false);
    cooked[20] = 113;
    assert!(read_badly(&cooked).2.contains("expected link type 1 (Ethernet) in the file header, found link type 113"));
    // The upper half of the field speaks of frame checksums.
    let mut with_fcs = pcap(false, false);
    with_fcs[23] = 0x24;
    assert_eq!(read_well(&with_fcs), expected());

    let mut file = Bytewise::new(false);
    file.section().interface(1, &[]).interface(101, &[]).enhanced(0, 0, b"good", 4).enhanced(1, 0, b"raw", 3);
    let (frames, _, text) = read_badly(&file.bytes);
    assert!(frames == 1 && text.contains("found link type 101"), "{text}");
}

#[test]
fn lengths_that_lie_are_errors_and_cost_no_memory() {
    let mut record = pcap(false, false);
    record[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(read_badly(&record).2.contains("found a record of 4294967295 bytes"));

    let block = |kind, length: u32| {
        let mut file = Bytewise::new(false);
        file.section().interface(1, &[]).u32(kind).u32(length).u32(0).u32(0);
        read_badly(&file.bytes).2
    };
    assert!(block(6, 0xffff_fff0).contains("at most 16 MiB"));
    assert!(block(0xbad, 0xffff_fff0).contains("too early"));
    assert!(block(6, 8).contains("at least 12"));
    assert!(block(6, 13).contains("multiple of 4"));

    let mut file = Bytewise::new(false);
    file.section().interface(1, &[]).block(6, |b| _ = b.u32(0).u32(0).u32(0).u32(1000).u32(1000).u32(0));
    assert!(read_badly(&file.bytes).2.contains("a packet that ends inside its block"));
    let mut file = Bytewise::new(false);
    file.section().enhanced(0, 0, b"x", 1);
    assert!(read_badly(&file.bytes).2.contains("interface 0 of 0"));
    let mut file = Bytewise::new(false);
    file.section().interface(1, &[(9, &[20])]);
    assert!(read_badly(&file.bytes).2.contains("if_tsresol 20"));
}

#[test]
fn a_missing_file_and_a_folder_are_named() {
    let error = FileEngine::open(vec![PathBuf::from("/nonexistent/x.pcap")]).err().unwrap().to_string();
    assert!(error.contains("cannot open '/nonexistent/x.pcap'"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = FileEngine::open(vec![folder.path().to_owned()]).err().unwrap().to_string();
    assert!(error.contains("directory"), "{error}");
}

#[test]
fn a_large_file_comes_in_batches_of_bounded_size() {
    let mut file = Bytewise::new(false);
    file.section().interface(1, &[]);
    for n in 0..3000 {
        file.enhanced(0, n, &[7; 1500], 1500);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    std::fs::write(&path, &file.bytes).unwrap();
    let mut engine = FileEngine::open(vec![path]).unwrap();
    let mut bytes = Bytes::default();
    let mut batches = 0;
    let mut frames = 0;
    while engine.take(&mut bytes, Duration::ZERO).unwrap() == Taken::Frames {
        assert!(bytes.as_slice().len() < BATCH_BYTES + 1500);
        bytes.for_each_frame(|_| frames += 1);
        batches += 1;
    }
    assert_eq!((frames, batches), (3000, 18));
}

#[test]
fn frames_come_whole_wherever_a_batch_ends() {
    let lengths = [0, 1, 60, 1500, 9018, 65_535, 262_144];
    let frames: Vec<Read> = (0..300usize)
        .map(|n| {
            let bytes: Vec<u8> = (0..lengths[n * n % 11 % lengths.len()]).map(|at| (at * 7 + n) as u8).collect();
            let orig_len = bytes.len() as u32 + n as u32 % 2;
            (n as u64 * 1_000_000_000, bytes, orig_len)
        })
        .collect();
    for big_endian in [false, true] {
        let mut pcap = Bytewise::new(big_endian);
        pcap.u32(0xa1b2_c3d4).u16(2).u16(4).u32(0).u32(0).u32(262_144).u32(1);
        let mut pcapng = Bytewise::new(big_endian);
        pcapng.section().interface(1, &[(9, &[0])]);
        for (n, (ns, bytes, orig_len)) in frames.iter().enumerate() {
            let seconds = ns / 1_000_000_000;
            pcap.u32(seconds as u32).u32(0).u32(bytes.len() as u32).u32(*orig_len).bytes.extend(bytes);
            pcapng.enhanced(0, seconds, bytes, *orig_len);
            if n % 10 == 0 {
                // Longer than a batch.
                pcapng.block(0xbad, |b| b.bytes.resize(b.bytes.len() + 2 * BATCH_BYTES + 4, 6));
            }
        }
        for (name, file) in [("pcap", pcap.bytes), ("pcapng", pcapng.bytes)] {
            assert!(read_well(&file) == frames, "{name}, big endian: {big_endian}");
            let compressed = zstd::encode_all(&file[..], 1).unwrap();
            assert!(read_well(&compressed) == frames, "{name}, compressed, big endian: {big_endian}");
        }
    }
}

#[test]
fn a_pipe_that_gives_a_few_bytes_at_a_time_gives_the_same_frames() {
    for whole in [pcap(false, true), pcap(true, false), pcapng(false), pcapng(true)] {
        for bytes in [1, 7, 50] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("pipe");
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
            let (pieces, pipe): (Vec<Vec<u8>>, _) = (whole.chunks(bytes).map(<[u8]>::to_vec).collect(), path.clone());
            let writer = std::thread::spawn(move || {
                let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
                for piece in pieces {
                    pipe.write_all(&piece).unwrap();
                    std::thread::yield_now();
                }
            });
            let (mut engine, mut batch, mut frames) = (FileEngine::open(vec![path]).unwrap(), Bytes::default(), Vec::new());
            while engine.take(&mut batch, Duration::ZERO).unwrap() == Taken::Frames {
                batch.for_each_frame(|frame| frames.push((frame.time_ns, frame.bytes.to_vec(), frame.orig_len)));
            }
            writer.join().unwrap();
            assert_eq!(frames, expected(), "{bytes} bytes at a time");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_file_whatever_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), format in 0..5usize, at in 0..400usize, value: u8) {
        let begin = [pcap(false, true), pcap(true, false), pcapng(false), pcapng(true), Vec::new()];
        let mut file = begin[format].clone();
        if let Some(byte) = file.get_mut(at) {
            *byte = value;
        }
        file.extend(&bytes);
        let _ = read(&[&file]);
    }
}
