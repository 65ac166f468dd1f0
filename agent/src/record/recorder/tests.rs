//! The recorder against a clock and a spool in memory. Promise 2 in detail; that nothing is lost on the wire is shown by `tests/tests/live.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::sync_channel;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::record::buffer::PAGE_BYTES;
use crate::record::{Buffer, Chunk, Compression};
use crate::wire::{Ignored, Notes, Via};

/// 2026-11-22T00:15:00Z, the start of a window.
const START: u64 = 1_795_306_500 * SECOND_NS;
const WINDOW: u64 = 900 * SECOND_NS;

#[derive(Clone, Default)]
struct HandClock(Arc<Mutex<Now>>);

impl HandClock {
    fn set(&self, wall_ns: u64, monotonic_ns: u64) {
        *self.0.lock().unwrap() = Now { wall_ns, monotonic_ns };
    }

    fn forward(&self, ns: u64) {
        let mut now = self.0.lock().unwrap();
        now.wall_ns += ns;
        now.monotonic_ns += ns;
    }

    fn step(&self, ns: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall_ns = now.wall_ns.checked_add_signed(ns).unwrap();
    }
}

impl Clock for HandClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

#[derive(Default)]
struct Kept {
    open: HashMap<SegmentNumber, Vec<u8>>,
    chunks: Vec<usize>,
    drafts: usize,
    closed: Vec<(Facts, Vec<u8>)>,
    idle: Vec<Facts>,
    full: bool,
    /// What it does when it is full.
    stops: bool,
    /// For how many bytes it was last asked, and how often it was.
    asked: u64,
    times_asked: usize,
    /// What it has to spare.
    spare: u64,
    /// Buffers that were taken and have not come back.
    buffers_out: usize,
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Kept>>);

impl Spool for Memory {
    fn buffer(&mut self) -> Buffer {
        self.0.lock().unwrap().buffers_out += 1;
        Buffer::with_capacity(Self::CHUNK_BYTES)
    }
    fn open(&mut self, number: SegmentNumber, facts: Facts) {
        assert!(facts.key.is_some(), "the key is chosen before the first byte");
        self.0.lock().unwrap().open.insert(number, Vec::new());
    }
    fn append(&mut self, number: SegmentNumber, chunk: Chunk) {
        let mut kept = self.0.lock().unwrap();
        assert!(chunk.bytes.len() <= Self::CHUNK_BYTES);
        kept.buffers_out -= 1;
        if chunk.bytes.is_empty() {
            return;
        }
        kept.chunks.push(chunk.bytes.len());
        kept.open.get_mut(&number).unwrap().extend_from_slice(&chunk.bytes);
    }
    fn draft(&mut self, _: SegmentNumber, _: Facts) {
        self.0.lock().unwrap().drafts += 1;
    }
    fn close(&mut self, number: SegmentNumber, facts: Facts) {
        let mut kept = self.0.lock().unwrap();
        let bytes = kept.open.remove(&number).unwrap();
        kept.closed.push((facts, bytes));
    }
    fn idle(&mut self, facts: Facts) {
        self.0.lock().unwrap().idle.push(facts);
    }
    fn room(&mut self, bytes: u64) -> Room {
        let mut kept = self.0.lock().unwrap();
        kept.asked = bytes;
        kept.times_asked += 1;
        if !kept.full {
            return Room::Yes;
        }
        if kept.stops { Room::Stopped } else { Room::No }
    }
    fn spare(&self) -> u64 {
        self.0.lock().unwrap().spare
    }
}

struct Rig {
    recorder: Recorder<Memory, HandClock>,
    clock: HandClock,
    spool: Memory,
}

fn settings() -> Settings {
    Settings {
        rotate_seconds: 900,
        max_bytes: 1 << 40,
        format: Format::Pcap,
        precision: Precision::Nano,
        compression: Compression::None,
        schedule: None,
        quarantine_bytes_per_s: 1 << 20,
        snaplen: 262_144,
        filter: None,
        instance: "i-1".into(),
        bucket: "captures".into(),
        flush_ms: 500,
        retirement_ms: 40,
        replay: false,
    }
}

fn rig(settings: Settings, threads: usize) -> Rig {
    let clock = HandClock::default();
    clock.set(START + SECOND_NS, 77 * SECOND_NS);
    let spool = Memory::default();
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        complete_until_ns: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        counters: Arc::new(Counters::new(threads)),
    });
    let names = Names::new("", "i-1");
    let recorder = Recorder::new(settings, spool.clone(), clock.clone(), shared, Box::new(LossCounters::default), names);
    Rig { recorder, clock, spool }
}

fn origin(vni: u32) -> Origin {
    Origin { via: Via::Direct, vni: Some(vni), source: [10, 0, 0, 1].into() }
}

fn frame(time_ns: u64, bytes: &[u8]) -> Batch {
    let what = What::Inner { link: Link::Ethernet, notes: Notes::default(), direction: Direction::Inbound, origin: 0 };
    batch(time_ns, bytes, what)
}

fn batch(time_ns: u64, bytes: &[u8], what: What) -> Batch {
    let mut batch = Batch { new_origins: vec![(0, origin(7))], ..Batch::default() };
    batch.bytes.refill().data.extend_from_slice(bytes);
    batch.items.push(Item { time_ns, at: 0, len: bytes.len() as u32, orig_len: bytes.len() as u32, what });
    batch
}

impl Rig {
    /// One round of the recorder's loop with one batch.
    fn round(&mut self, batch: Option<Batch>) {
        let stepped = self.recorder.look_at_clock();
        if let Some(batch) = batch {
            self.recorder.learn(&batch);
            self.recorder.record(&batch, &batch.items[0]);
        }
        self.recorder.written.tell(&self.recorder.shared.counters);
        if stepped {
            self.recorder.close_all(true);
        }
        self.recorder.tick();
    }

    fn closed(&self) -> Vec<(String, u64)> {
        let kept = self.spool.0.lock().unwrap();
        kept.closed.iter().map(|(facts, _)| (facts.key.clone().unwrap(), facts.frames)).collect()
    }
}

#[test]
fn a_window_closes_without_a_packet_and_after_its_stragglers() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(frame(START + SECOND_NS, b"first")));
    rig.clock.set(START + WINDOW + SECOND_NS / 2, 77 * SECOND_NS + WINDOW - SECOND_NS / 2);
    rig.round(None);
    assert!(rig.closed().is_empty(), "it lingers");
    rig.round(Some(frame(START + WINDOW - 1, b"straggler")));
    rig.round(Some(frame(START + WINDOW, b"next window")));
    rig.clock.forward(SECOND_NS);
    rig.round(None);
    assert_eq!(rig.closed(), [("i-1/2026-11-22-00-15.pcap".to_owned(), 2)]);
    assert_eq!(rig.recorder.shared.counters.frames_late.get(), 0);
}

fn frame_of(number: u32, vni: Option<u32>, time_ns: u64) -> Batch {
    let what = What::Inner { link: Link::Ethernet, notes: Notes::default(), direction: Direction::Inbound, origin: number };
    let new_origins = vni.map(|vni| (number, origin(vni))).into_iter().collect();
    Batch { new_origins, ..batch(time_ns, b"x", what) }
}

#[test]
fn a_number_that_a_thread_gives_to_another_origin_means_that_from_this_batch_on() {
    let mut rig = rig(settings(), 1);
    for (number, vni) in [(0, Some(7)), (1, Some(8)), (0, None), (0, Some(9)), (0, None), (1, Some(7))] {
        rig.round(Some(frame_of(number, vni, START + SECOND_NS)));
    }
    // Batches that wait for other threads are not renamed by one that has come after them.
    let (mut merge, mut events) = (Merge::new(1, 16), Vec::new());
    for (number, vni) in [(0, None), (0, Some(8))] {
        rig.recorder.take(Event::Batch(frame_of(number, vni, START + SECOND_NS)), &mut merge, &[], &mut events);
    }
    merge.end(0);
    merge.drain(0, true, |batch, item| rig.recorder.record(batch, item), drop);
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let counted: Vec<_> = kept.closed[0].0.origins.iter().map(|of| (of.vni.unwrap(), of.frames)).collect();
    assert_eq!(counted, [(7, 3), (8, 2), (9, 3)]);
}

#[test]
fn made_up_origins_fill_one_window_and_the_next_tells_the_true_ones_apart_again() {
    let mut rig = rig(settings(), 2);
    let mut all = frame_of(0, Some(0), START + SECOND_NS);
    // Two threads, each with as many as it may have.
    for thread in 0..2 {
        all.thread = thread;
        all.new_origins = (0..=ORIGINS_MAX as u32).map(|n| (n, origin(n + 100_000 * thread as u32))).collect();
        rig.round(Some(std::mem::take(&mut all)));
        for number in 0..=ORIGINS_MAX as u32 {
            let mut next = frame_of(number, None, START + SECOND_NS);
            next.thread = thread;
            rig.recorder.record(&next, &next.items[0]);
        }
        all = frame_of(0, None, START + SECOND_NS);
    }
    rig.clock.forward(WINDOW);
    let mut ours = frame_of(7, Some(4_000_000), START + WINDOW + SECOND_NS);
    ours.thread = 1;
    rig.round(Some(ours));
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let [first, second] = [&kept.closed[0].0, &kept.closed[1].0];
    assert_eq!(first.origins.len(), ORIGINS_MAX + 1, "and the one that stands for the rest");
    assert_eq!(first.origins.iter().map(|of| of.frames).sum::<u64>(), first.frames);
    assert_eq!(second.origins.iter().map(|of| of.vni).collect::<Vec<_>>(), [Some(4_000_000)]);
}

#[test]
fn a_frame_whose_window_has_closed_goes_to_the_open_segment_and_is_counted_late() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(frame(START + SECOND_NS, b"x")));
    rig.clock.forward(WINDOW + 2 * SECOND_NS);
    rig.round(None);
    rig.clock.forward(2 * SECOND_NS);
    rig.round(None);
    assert_eq!(rig.closed().len(), 1);
    rig.round(Some(frame(START + 5 * SECOND_NS, b"late")));
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let facts = &kept.closed[1].0;
    assert_eq!((facts.frames, facts.late), (1, 1));
    assert_eq!(facts.key.as_deref(), Some("i-1/2026-11-22-00-30.pcap"), "named after its window, in the steady state");
}

#[test]
fn a_clock_step_closes_the_segment_and_nothing_is_reopened() {
    for step in [-3600, 3600] {
        let mut rig = rig(settings(), 1);
        rig.round(Some(frame(START + SECOND_NS, b"before")));
        rig.clock.step(step * SECOND_NS as i64);
        rig.round(None);
        assert_eq!(rig.closed().len(), 1, "closed at once");
        let stamp = rig.clock.now().wall_ns;
        rig.round(Some(frame(stamp, b"after")));
        rig.clock.step(-step * SECOND_NS as i64);
        rig.round(None);
        rig.round(Some(frame(START + SECOND_NS, b"again")));
        rig.recorder.close_all(false);
        let closed = rig.closed();
        assert_eq!(closed.len(), 3);
        assert_eq!(closed[2].0, "i-1/2026-11-22-00-15_0002.pcap", "the minute's second segment has a name of its own");
        assert!(rig.spool.0.lock().unwrap().closed[0].0.clock.closed_by_step);
        assert_eq!(rig.recorder.shared.counters.clock_steps.get(), 2);
    }
}

#[test]
fn what_the_kernel_dropped_is_marked_once_on_the_next_frame_also_behind_a_clock_step_and_the_end_of_a_window() {
    let mut rig = rig(Settings { format: Format::Pcapng, ..settings() }, 1);
    let drop_then_write = |rig: &mut Rig, drops: u64| {
        rig.recorder.shared.counters.kernel_drops.add(drops);
        let stamp = rig.clock.now().wall_ns;
        rig.round(Some(frame(stamp, b"x")));
    };
    drop_then_write(&mut rig, 3);
    drop_then_write(&mut rig, 0);
    for step in [-3600, 3600] {
        rig.recorder.shared.counters.kernel_drops.add(5);
        rig.clock.step(step * SECOND_NS as i64);
        rig.round(None);
        drop_then_write(&mut rig, 2);
        drop_then_write(&mut rig, 1);
    }
    rig.clock.forward(WINDOW);
    drop_then_write(&mut rig, 4);
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let marked: Vec<_> = kept.closed.iter().map(|(_, file)| dropcounts(file)).collect();
    assert_eq!(marked, [vec![3, 0], vec![7, 1], vec![7, 1], vec![4]]);
    assert_eq!(kept.closed.iter().map(|(facts, _)| facts.losses.kernel_drops).sum::<u64>(), marked.concat().iter().sum::<u64>());
}

/// What each packet of a pcapng says was dropped before it.
fn dropcounts(file: &[u8]) -> Vec<u64> {
    let packet = |block: &[u8]| {
        let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
        let mut at = 28 + (word(20) as usize).next_multiple_of(4);
        loop {
            let (code, len) = (word(at) & 0xffff, word(at) >> 16);
            match code {
                0 => return 0,
                4 => return u64::from_le_bytes(block[at + 4..at + 12].try_into().unwrap()),
                _ => at += 4 + (len as usize).next_multiple_of(4),
            }
        }
    };
    split(file).into_iter().filter(|block| block[0] == 6).map(packet).collect()
}

// What a thread has said it is complete up to is by the clock that it had.
#[test]
fn after_the_clock_was_set_back_frames_of_two_threads_stay_in_order() {
    let Rig { recorder, spool, .. } = rig(settings(), 2);
    recorder.shared.complete_until_ns[1].store(START + 3600 * SECOND_NS, Ordering::Release);
    let (events, from_threads) = sync_channel(8);
    let (back, spent) = sync_channel(8);
    let loop_ = thread::spawn(move || recorder.run(&from_threads, &[back.clone(), back]));
    events.send(Event::Batch(frame(START + 2, b"second"))).unwrap();
    assert!(spent.recv_timeout(10 * LOOK_EVERY).is_err(), "it went before what the other thread may have");
    events.send(Event::Batch(Batch { thread: 1, ..frame(START + 1, b"first") })).unwrap();
    for thread in 0..2 {
        events.send(Event::End { thread, error: None }).unwrap();
    }
    assert!(loop_.join().unwrap().is_empty());
    let kept = spool.0.lock().unwrap();
    let at = |word: &[u8]| kept.closed[0].1.windows(word.len()).position(|part| part == word).unwrap();
    assert!(at(b"first") < at(b"second"));
}

#[test]
fn windows_that_are_shortened_and_lengthened_again_leave_no_gap_do_not_overlap_and_take_every_frame() {
    let mut rig = rig(settings(), 1);
    let rotation = Rotation::new(900);
    rig.recorder = rig.recorder.rotating(rotation.clone());
    let mut sent = 0;
    // From 00:15:01 on, a frame each second: from 00:17:07 on windows of 15 s, from 00:18:20 on of 900 s again, until 00:31.
    for second in 1..=960 {
        match second {
            127 => rotation.set(15),
            200 => rotation.set(900),
            _ => {}
        }
        rig.clock.set(START + second * SECOND_NS, (76 + second) * SECOND_NS);
        let straggler = second % 15 == 0;
        rig.round(Some(frame(START + second * SECOND_NS - u64::from(straggler), b"x")));
        sent += 1;
    }
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let windows: Vec<_> = kept.closed.iter().map(|(facts, _)| ((facts.window.start.0 - START) / SECOND_NS, facts.window.seconds)).collect();
    assert_eq!(windows, [(0, 135), (135, 15), (150, 15), (165, 15), (180, 15), (195, 15), (210, 690), (900, 900)]);
    for (facts, _) in &kept.closed {
        let window = facts.window.start.0..facts.window.start.0 + facts.window.seconds * SECOND_NS;
        assert!(window.contains(&facts.first.unwrap().0) && window.contains(&facts.last.unwrap().0), "{facts:?}");
        assert_eq!(facts.late, 0);
    }
    assert_eq!(kept.closed.iter().map(|(facts, _)| facts.frames).sum::<u64>(), sent);
}

#[test]
fn a_slewing_clock_is_no_step() {
    let mut rig = rig(settings(), 1);
    for _ in 0..100 {
        rig.clock.forward(SECOND_NS);
        rig.clock.step(400_000);
        rig.round(None);
    }
    assert_eq!(rig.recorder.shared.counters.clock_steps.get(), 0);
}

#[test]
fn a_stamp_of_the_future_does_not_close_the_window() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(frame(START + SECOND_NS, b"now")));
    rig.round(Some(frame(START + 5 * WINDOW, b"then")));
    rig.round(Some(frame(START + SECOND_NS + 1, b"now")));
    rig.recorder.close_all(false);
    assert_eq!(rig.closed(), [("i-1/2026-11-22-00-15.pcap".to_owned(), 3)]);
}

#[test]
fn an_idle_window_gets_a_manifest_that_adds_up() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(batch(START + SECOND_NS, b"junk", What::Dropped(Drop::VxlanNoI))));
    rig.round(Some(batch(START + SECOND_NS, b"junk", What::Ignored(Ignored::OtherPort))));
    rig.clock.forward(WINDOW + 3 * SECOND_NS);
    rig.round(None);
    rig.clock.forward(2 * SECOND_NS);
    rig.round(None);
    let kept = rig.spool.0.lock().unwrap();
    assert_eq!(kept.idle.len(), 1);
    assert_eq!((kept.idle[0].drops["vxlan_no_i"], kept.idle[0].ignored["other_port"], kept.idle[0].frames), (1, 1, 0));
    let (facts, bytes) = &kept.closed[0];
    assert_eq!((facts.kind, facts.frames), (Kind::Quarantine, 1));
    assert!(facts.key.as_deref().unwrap().ends_with("2026-11-22-00-15.quarantine.pcapng"));
    assert!(bytes.windows(10).any(|part| part == b"vxlan_no_i"), "the reason stands beside the frame");
}

#[test]
fn a_segment_that_reaches_its_size_is_followed_by_one_of_the_real_minute() {
    let mut rig = rig(Settings { max_bytes: 3 << 20, ..settings() }, 1);
    let body = vec![7; 100_000];
    for n in 0..60 {
        rig.round(Some(frame(START + (60 + n) * SECOND_NS, &body)));
        rig.clock.forward(SECOND_NS);
    }
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    assert_eq!(kept.closed.iter().map(|(facts, _)| facts.frames).sum::<u64>(), 60);
    let names: Vec<&str> = kept.closed.iter().map(|(facts, _)| facts.key.as_deref().unwrap()).collect();
    assert_eq!(names, ["i-1/2026-11-22-00-16.pcap", "i-1/2026-11-22-00-16_0002.pcap"]);
    assert!(kept.closed.iter().all(|(_, bytes)| bytes.len() <= 3 << 20));
    assert!(kept.idle.is_empty());
}

#[test]
fn chunks_end_at_their_boundaries_whatever_was_flushed_in_between() {
    let mut rig = rig(settings(), 1);
    let body = vec![7; 70_000];
    for n in 0..40 {
        rig.round(Some(frame(START + n, &body)));
        rig.clock.forward(if n % 5 == 0 { SECOND_NS } else { 0 });
    }
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let mut at = 0;
    let ends: Vec<usize> = kept.chunks.iter().map(|len| (at += len, at).1).collect();
    for boundary in 1..=ends.last().unwrap() / Memory::CHUNK_BYTES {
        assert!(ends.contains(&(boundary * Memory::CHUNK_BYTES)), "{ends:?}");
    }
    assert_eq!(kept.closed[0].1.len(), 24 + 40 * (16 + 70_000));
}

#[test]
fn one_frame_a_second_is_in_the_spool_within_the_flush_time() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(frame(START + SECOND_NS, b"x")));
    rig.clock.forward(499_000_000);
    rig.round(None);
    assert!(rig.spool.0.lock().unwrap().chunks.is_empty());
    rig.clock.forward(1_000_000);
    rig.round(None);
    assert_eq!(rig.spool.0.lock().unwrap().chunks.len(), 1);
}

#[test]
fn frames_that_find_the_spool_full_or_the_schedule_off_are_counted() {
    let schedule = crate::record::schedule::Schedule::parse(&["daily 01:00-02:00 UTC".into()]).unwrap();
    let mut rig = rig(Settings { schedule, ..settings() }, 1);
    rig.round(Some(frame(START + SECOND_NS, b"off")));
    rig.recorder.settings.schedule = None;
    rig.spool.0.lock().unwrap().full = true;
    rig.round(Some(frame(START + SECOND_NS, b"full")));
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    assert_eq!((kept.idle[0].drops["out_of_schedule"], kept.idle[0].drops["spool_full"]), (1, 1));
    assert!(kept.closed.is_empty());
}

#[test]
fn a_spool_that_stops_ends_the_segment_whole_counts_what_comes_and_goes_on_when_there_is_room() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(frame(START + SECOND_NS, b"before")));
    rig.spool.0.lock().unwrap().full = true;
    rig.spool.0.lock().unwrap().stops = true;
    rig.round(Some(frame(START + 2 * SECOND_NS, b"lost")));
    assert_eq!(rig.closed(), [("i-1/2026-11-22-00-15.pcap".to_owned(), 1)], "whole at once");
    rig.round(Some(frame(START + 3 * SECOND_NS, b"lost, too")));
    // Nothing comes in the next window, of which all is lost as well.
    for _ in 0..2 {
        rig.clock.forward(WINDOW + 2 * SECOND_NS);
        rig.round(None);
    }
    rig.spool.0.lock().unwrap().full = false;
    let now = rig.clock.now().wall_ns;
    rig.round(Some(frame(now, b"after")));
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    let gap = |facts: &Facts| (facts.gaps.len(), facts.gaps[0].from, facts.gaps[0].cause.clone());
    let was_full = (1, Stamp(START + 2 * SECOND_NS), "the spool was full".to_owned());
    assert!(kept.closed[0].0.gaps.is_empty() && kept.closed[0].0.drops.is_empty());
    assert_eq!((kept.idle.len(), kept.idle[0].drops["spool_full"], gap(&kept.idle[0])), (2, 2, was_full.clone()));
    assert_eq!((kept.closed.len(), kept.closed[1].0.frames, gap(&kept.closed[1].0)), (2, 1, was_full));
}

#[test]
fn the_spool_is_asked_for_a_frame_and_all_that_is_still_on_its_way() {
    for (format, least) in [(Format::Pcap, 0), (Format::Pcapng, 100)] {
        let mut rig = rig(Settings { format, ..settings() }, 1);
        let asked = |rig: &Rig| rig.spool.0.lock().unwrap().asked;
        rig.round(Some(frame(START + SECOND_NS, &[7; 1000])));
        let first = asked(&rig);
        rig.round(Some(frame(START + SECOND_NS, &[7; 1000])));
        let second = asked(&rig);
        assert!(second > first + 1000 + least, "{format:?}: {first} and then {second}");
        let before: usize = rig.spool.0.lock().unwrap().chunks.iter().sum();
        rig.recorder.close_all(false);
        let written: usize = rig.spool.0.lock().unwrap().chunks.iter().sum();
        assert!((written - before) as u64 <= second, "{format:?}: {written} bytes came, {second} were asked for");
    }
}

#[test]
fn what_the_spool_has_to_spare_is_for_the_frames_of_a_round_and_no_more_than_that() {
    let mut rig = rig(settings(), 1);
    rig.spool.0.lock().unwrap().spare = 10_000;
    // Each counts with what may stand around it: 2,024 bytes.
    let mut asked_after = |frames: usize| {
        (0..frames).for_each(|_| {
            let batch = frame(START + SECOND_NS, &[7; 1000]);
            rig.recorder.record(&batch, &batch.items[0]);
        });
        rig.spool.0.lock().unwrap().times_asked
    };
    assert_eq!((asked_after(1), asked_after(3), asked_after(1)), (1, 1, 2));
    rig.spool.0.lock().unwrap().full = true;
    rig.round(None);
    rig.round(Some(frame(START + SECOND_NS, b"full")));
    assert_eq!((rig.recorder.written.frames, rig.recorder.granted), (0, 0));
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    assert_eq!((kept.closed[0].0.frames, kept.closed[0].0.drops["spool_full"]), (5, 1));
}

fn malformed_one() -> Drop {
    Drop::ALL.into_iter().find(|reason| reason.is_malformed()).unwrap()
}

/// A spool that holds so many bytes at most, and lets nothing go.
#[derive(Clone, Copy)]
struct Narrow {
    held: u64,
    most: u64,
}

#[derive(Clone)]
struct Bounded(Arc<Mutex<Narrow>>);

impl Spool for Bounded {
    const CHUNK_BYTES: usize = PAGE_BYTES;

    fn buffer(&mut self) -> Buffer {
        Buffer::with_capacity(Self::CHUNK_BYTES)
    }
    fn append(&mut self, _: SegmentNumber, chunk: Chunk) {
        self.0.lock().unwrap().held += chunk.bytes.len() as u64;
    }
    fn room(&mut self, bytes: u64) -> Room {
        let Narrow { held, most } = *self.0.lock().unwrap();
        if held + bytes <= most { Room::Yes } else { Room::No }
    }
    fn spare(&self) -> u64 {
        let Narrow { held, most } = *self.0.lock().unwrap();
        most - held
    }
    fn open(&mut self, _: SegmentNumber, _: Facts) {}
    fn draft(&mut self, _: SegmentNumber, _: Facts) {}
    fn close(&mut self, _: SegmentNumber, _: Facts) {}
    fn idle(&mut self, _: Facts) {}
}

proptest! {
    #[test]
    fn frames_never_take_more_than_the_spool_has(
        frames in proptest::collection::vec((1..9000_usize, 0..40_u32, 0..40 * SECOND_NS, any::<bool>(), any::<bool>()), 1..200),
        (most, max_bytes, pcapng) in (20_000..600_000_u64, 2_000..100_000_u64, any::<bool>()),
    ) {
        let clock = HandClock::default();
        clock.set(START + SECOND_NS, 77 * SECOND_NS);
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), complete_until_ns: vec![AtomicU64::new(0)], counters: Arc::new(Counters::new(1)) });
        let spool = Bounded(Arc::new(Mutex::new(Narrow { held: 0, most })));
        let format = if pcapng { Format::Pcapng } else { Format::Pcap };
        let settings = Settings { format, max_bytes, rotate_seconds: 60, ..settings() };
        let names = Names::new("", "i-1");
        let mut recorder = Recorder::new(settings, spool.clone(), clock.clone(), shared.clone(), Box::new(LossCounters::default), names);
        let sent = frames.len() as u64;
        for (bytes, number, later_ns, malformed, round_ends) in frames {
            let what = match malformed && number % 4 == 0 {
                true => What::Dropped(malformed_one()),
                false => What::Inner { link: Link::Ethernet, notes: Notes::default(), direction: Direction::Inbound, origin: number },
            };
            let frame = Batch { new_origins: vec![(number, origin(number))], ..batch(clock.now().wall_ns, &vec![7; bytes], what) };
            recorder.record(&frame, &frame.items[0]);
            if round_ends {
                clock.forward(later_ns);
                recorder.look_at_clock();
                recorder.tick();
            }
        }
        recorder.written.tell(&shared.counters);
        recorder.close_all(false);
        let Narrow { held, .. } = *spool.0.lock().unwrap();
        prop_assert!(held <= most, "{held} bytes of {most}");
        let dropped: u64 = shared.counters.drops.iter().map(|count| count.get()).sum();
        prop_assert_eq!(shared.counters.frames_written.get() + dropped, sent);
    }
}

#[test]
fn a_gap_stands_in_every_window_it_touches() {
    let mut rig = rig(settings(), 1);
    let mut merge = Merge::new(1, 8);
    rig.round(Some(frame(START + SECOND_NS, b"x")));
    let gone = Event::Gone { thread: 0, from_ns: START + 2 * SECOND_NS, cause: "gone".into() };
    rig.recorder.take(gone, &mut merge, &[], &mut Vec::new());
    rig.clock.forward(WINDOW + 2 * SECOND_NS);
    rig.round(None);
    rig.clock.forward(2 * SECOND_NS);
    rig.round(None);
    let gap = Gap { from_ns: START + 2 * SECOND_NS, to_ns: START + WINDOW + 4 * SECOND_NS, cause: "gone".into() };
    rig.recorder.take(Event::Gap { thread: 0, gap }, &mut merge, &[], &mut Vec::new());
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    assert_eq!(kept.closed[0].0.gaps[0].to, Stamp(START + WINDOW));
    assert_eq!(kept.idle[0].gaps[0].to, Stamp(START + WINDOW + 4 * SECOND_NS));
}

#[test]
fn a_gap_that_begins_after_a_window_does_not_stand_in_it() {
    let mut rig = rig(settings(), 1);
    rig.round(Some(frame(START + SECOND_NS, b"x")));
    rig.clock.forward(WINDOW - SECOND_NS + SECOND_NS / 2);
    rig.round(None);
    let gone = Event::Gone { thread: 0, from_ns: START + WINDOW + SECOND_NS / 4, cause: "gone".into() };
    rig.recorder.take(gone, &mut Merge::new(1, 8), &[], &mut Vec::new());
    rig.clock.forward(SECOND_NS);
    rig.round(None);
    assert_eq!(rig.closed().len(), 1);
    assert_eq!(rig.spool.0.lock().unwrap().closed[0].0.gaps, []);
}

#[test]
fn the_loop_ends_when_every_thread_has_ended_and_gives_the_batches_back() {
    let Rig { recorder, spool, .. } = rig(settings(), 2);
    let (events, from_threads) = sync_channel(8);
    let (back, spent) = sync_channel(8);
    let loop_ = thread::spawn(move || recorder.run(&from_threads, &[back.clone(), back]));
    events.send(Event::Batch(frame(START + SECOND_NS, b"one"))).unwrap();
    events.send(Event::Batch(Batch { thread: 1, ..frame(START + SECOND_NS, b"two") })).unwrap();
    for thread in 0..2 {
        events.send(Event::End { thread, error: None }).unwrap();
    }
    assert!(loop_.join().unwrap().is_empty());
    assert_eq!(spent.try_iter().count(), 2);
    let kept = spool.0.lock().unwrap();
    assert_eq!(kept.closed[0].0.frames, 2);
    assert_eq!(kept.closed[0].0.origins[0].frames, 2, "two threads' numbers of one origin are one origin");
}

#[test]
fn every_buffer_of_a_closed_segment_comes_back_to_the_spool() {
    let mut rig = rig(settings(), 1);
    for n in 0..10 {
        rig.round(Some(frame(START + n * WINDOW + SECOND_NS, b"x")));
        rig.round(Some(batch(START + n * WINDOW + SECOND_NS, b"junk", What::Dropped(Drop::VxlanNoI))));
        rig.clock.forward(if n % 2 == 0 { SECOND_NS } else { 0 });
        rig.round(None);
        rig.clock.set(START + (n + 1) * WINDOW + SECOND_NS, 77 * SECOND_NS + (n + 1) * WINDOW);
    }
    rig.recorder.close_all(false);
    let kept = rig.spool.0.lock().unwrap();
    assert!(kept.closed.len() > 10);
    assert_eq!(kept.buffers_out, 0, "the spool has few of them; without them the recorder waits for ever");
}

#[test]
fn statistics_end_a_pcapng_also_when_its_last_frame_was_flushed_long_before() {
    for (origins, wait_ns) in [(1, SECOND_NS), (ORIGINS_MAX as u32, SECOND_NS), (ORIGINS_MAX as u32, 0)] {
        let spool = pcapng_of_many_origins(Compression::None, origins, wait_ns);
        let kept = spool.0.lock().unwrap();
        let statistics = blocks(&kept.closed[0].1).iter().filter(|&&kind| kind == 5).count();
        assert_eq!(statistics, origins as usize);
    }
}

#[test]
fn each_chunk_of_a_compressed_file_holds_whole_blocks_also_when_origins_are_declared_in_between() {
    let spool = pcapng_of_many_origins(Compression::Zstd, ORIGINS_MAX as u32, 0);
    let kept = spool.0.lock().unwrap();
    let mut file = kept.closed[0].1.as_slice();
    assert!(kept.chunks.len() > 2);
    for &len in &kept.chunks {
        let (chunk, rest) = file.split_at(len);
        blocks(chunk);
        file = rest;
    }
}

/// A segment of one frame of each of so many origins, closed `wait_ns` after the last.
fn pcapng_of_many_origins(compression: Compression, origins: u32, wait_ns: u64) -> Memory {
    let mut rig = rig(Settings { format: Format::Pcapng, compression, ..settings() }, 1);
    for n in 0..origins {
        let mut next = frame(START + SECOND_NS + u64::from(n), &[7; 200]);
        next.new_origins = vec![(n, origin(n))];
        if let What::Inner { origin, .. } = &mut next.items[0].what {
            *origin = n;
        }
        rig.round(Some(next));
    }
    rig.clock.forward(wait_ns);
    rig.round(None);
    rig.recorder.close_all(false);
    rig.spool
}

/// The kinds of a pcapng file's blocks.
fn blocks(file: &[u8]) -> Vec<u32> {
    split(file).into_iter().map(|block| u32::from_le_bytes(block[..4].try_into().unwrap())).collect()
}

/// A pcapng file's blocks, which must be whole.
fn split(mut file: &[u8]) -> Vec<&[u8]> {
    let mut blocks = Vec::new();
    while !file.is_empty() {
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let total = word(4) as usize;
        assert!(total >= 12 && total <= file.len(), "a block of {total} bytes where {} are left", file.len());
        assert_eq!(word(total - 4) as usize, total);
        let (block, rest) = file.split_at(total);
        blocks.push(block);
        file = rest;
    }
    blocks
}
