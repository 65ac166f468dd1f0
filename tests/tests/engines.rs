//! The three engines on a real kernel: what is sent is taken, once, and what is lost is counted.
//! Needs: root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used)]

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tapfleet::capture::keeper::Keeper;
use tapfleet::capture::libpcap::Libpcap;
use tapfleet::capture::ring::{Group, RING_BYTES_MIN, Ring};
use tapfleet::capture::worker::{Judge, Shared, Worker};
use tapfleet::capture::{Batch, Bytes, Engine, EngineKind, Error, Event, Fanout, Losses, OwnedFrame, Settings, Taken, What, filter, ring};
use tapfleet::host::clock::SystemClock;
use tapfleet::host::nic;
use tapfleet::host::processors::stay_on;
use tapfleet::observe::counters::Counters;
use tapfleet::wire::{Inline, Rules};
use tapfleet_tests::netns::{Pair, SOURCE, SOURCE_MAC, SOURCE_V4, Sender, TAP, TAP_MAC, TAP_V4};
use tapfleet_tests::packet::{Aws, Ipv4, Udp};

const GENEVE: u16 = 6081;
const VXLAN: u16 = 4789;
const WAIT: Duration = Duration::from_millis(50);
const MARK: [u8; 4] = *b"seq:";

fn settings(threads: usize, ring_bytes: usize) -> Settings {
    Settings {
        engine: EngineKind::Ring,
        interface: TAP.to_owned(),
        files: Vec::new(),
        rules: Rules { geneve_port: GENEVE, vxlan_port: VXLAN, inline: Inline::Ignore },
        filter: None,
        snaplen: 262_144,
        threads,
        fanout: Fanout::Hash,
        ring_bytes,
        outer_sources: Vec::new(),
        mirror_sources: Vec::new(),
    }
}

/// A frame to the tap: UDP over IPv4 with a sequence number. `fragment` is the field of flags and offset.
fn udp(from_port: u16, to_port: u16, fragment: u16, sequence: u32, payload: usize) -> Vec<u8> {
    let mut frame = [&TAP_MAC[..], &SOURCE_MAC, &[0x08, 0x00]].concat();
    let mut ip = vec![0x45, 0];
    ip.extend(((28 + payload) as u16).to_be_bytes());
    ip.extend([0, 1]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, 17, 0, 0]);
    ip.extend([SOURCE_V4, TAP_V4].concat());
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    for word in [from_port, to_port, (8 + payload) as u16, 0] {
        frame.extend(word.to_be_bytes());
    }
    let begin = frame.len();
    frame.resize(begin + payload, 0xa5);
    frame[begin..begin + 4].copy_from_slice(&MARK);
    frame[begin + 4..begin + 8].copy_from_slice(&sequence.to_be_bytes());
    frame
}

fn sequence_of(frame: &[u8]) -> u32 {
    let at = frame.windows(4).position(|four| four == MARK).expect("a frame that the test did not send");
    u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap())
}

fn open(kind: EngineKind, settings: &Settings, group: &Arc<Group>) -> Result<Box<dyn Engine>, Error> {
    Ok(match kind {
        EngineKind::Ring => Box::new(Ring::open(settings, TAP, group)?),
        EngineKind::Libpcap => Box::new(Libpcap::open(settings, TAP, group)?),
        EngineKind::File => unreachable!("no test opens a file here"),
    })
}

fn open_all(kind: EngineKind, settings: &Settings) -> Vec<Box<dyn Engine>> {
    let group = Group::new(settings).unwrap();
    (0..settings.threads).map(|_| open(kind, settings, &group).unwrap()).collect()
}

/// What a test and its taking threads tell each other.
#[derive(Default)]
struct Signals {
    stop: AtomicBool,
    taken: AtomicU64,
}

/// Takes until the engine ends: how often each sequence number came, and the engine's counts.
fn take_all(mut engine: Box<dyn Engine>, signals: &Signals) -> (HashMap<u32, u32>, Losses) {
    let mut seen = HashMap::new();
    let mut bytes = Bytes::default();
    let mut refused = false;
    let (mut last_ns, mut complete_ns) = (0, 0);
    loop {
        if signals.stop.load(Ordering::Acquire) && !refused {
            engine.refuse_more().unwrap();
            refused = true;
        }
        match engine.take(&mut bytes, WAIT).unwrap() {
            Taken::Frames => bytes.for_each_frame(|frame| {
                assert!(frame.time_ns >= last_ns, "one sender's frames are out of order");
                assert_eq!(frame.bytes.len() as u32, frame.orig_len);
                assert!(frame.time_ns >= complete_ns, "a frame came after its time was called complete");
                last_ns = frame.time_ns;
                signals.taken.fetch_add(1, Ordering::AcqRel);
                *seen.entry(sequence_of(frame.bytes)).or_insert(0) += 1;
            }),
            Taken::Quiet { complete_until_ns } => complete_ns = complete_until_ns,
            Taken::End => return (seen, engine.losses().unwrap()),
        }
    }
}

/// Sends frames of 50 flows while all engines take; gives what each of them saw.
fn send_and_take(kind: EngineKind, threads: usize, frames: u32, payload: usize) -> Vec<(HashMap<u32, u32>, Losses)> {
    let pair = Pair::new();
    let settings = settings(threads, 32 << 20);
    let signals = Arc::new(Signals::default());
    let engines = pair.tap.run(|| open_all(kind, &settings));
    let takers: Vec<_> = engines
        .into_iter()
        .map(|engine| {
            let signals = Arc::clone(&signals);
            pair.tap.spawn(move || take_all(engine, &signals))
        })
        .collect();
    let sender = pair.sender();
    for sequence in 0..frames {
        let port = if sequence % 2 == 0 { GENEVE } else { VXLAN };
        sender.send(&udp(40_000 + (sequence % 50) as u16, port, 0x4000, sequence, payload));
    }
    wait_until(Duration::from_secs(5), || signals.taken.load(Ordering::Acquire) >= u64::from(frames));
    // Doubles would come after.
    thread::sleep(Duration::from_millis(50));
    signals.stop.store(true, Ordering::Release);
    takers.into_iter().map(|taker| taker.join().unwrap()).collect()
}

/// Waits for what a busy machine may take a while for; the assertions behind it tell when it did not come.
fn wait_until(at_most: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + at_most;
    while !done() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

fn assert_each_once(taken: &[(HashMap<u32, u32>, Losses)], frames: u32) {
    let mut all: HashMap<u32, u32> = HashMap::new();
    for (seen, losses) in taken {
        assert_eq!(losses.drops, 0, "{losses:?}");
        assert_eq!(losses.packets, seen.values().map(|n| u64::from(*n)).sum::<u64>(), "counted and taken differ");
        for (sequence, times) in seen {
            *all.entry(*sequence).or_insert(0) += times;
        }
    }
    let missing = (0..frames).filter(|sequence| !all.contains_key(sequence)).count();
    let doubled = all.values().filter(|times| **times > 1).count();
    assert_eq!((missing, doubled, all.len()), (0, 0, frames as usize), "missing, doubled, distinct");
}

#[test]
fn a_ring_takes_each_frame_once() {
    assert_each_once(&send_and_take(EngineKind::Ring, 1, 20_000, 200), 20_000);
}

#[test]
fn a_ring_takes_jumbo_frames_whole() {
    assert_each_once(&send_and_take(EngineKind::Ring, 1, 2_000, 8_900), 2_000);
}

#[test]
fn two_rings_share_the_frames_and_none_comes_twice() {
    let taken = send_and_take(EngineKind::Ring, 2, 20_000, 200);
    assert_each_once(&taken, 20_000);
    assert!(taken.iter().all(|(seen, _)| seen.len() > 2_000), "one ring took nearly everything");
}

/// Sends what `send` does while two rings take that share in a way; gives what each of them saw.
fn shared(pair: &Pair, fanout: Fanout, ring_bytes: usize, frames: u32, send: impl FnOnce(&Pair)) -> Vec<(HashMap<u32, u32>, Losses)> {
    let signals = Arc::new(Signals::default());
    let engines = pair.tap.run(|| open_all(EngineKind::Ring, &Settings { fanout, ..settings(2, ring_bytes) }));
    send(pair);
    let take = |engine| {
        let signals = Arc::clone(&signals);
        pair.tap.spawn(move || take_all(engine, &signals))
    };
    let takers: Vec<_> = engines.into_iter().map(take).collect();
    wait_until(Duration::from_secs(5), || signals.taken.load(Ordering::Acquire) >= u64::from(frames));
    signals.stop.store(true, Ordering::Release);
    takers.into_iter().map(|taker| taker.join().unwrap()).collect()
}

#[test]
fn by_processor_each_ring_takes_what_came_in_on_its_own() {
    const FRAMES: u32 = 2000;
    let taken = shared(&Pair::new(), Fanout::Processor, 8 << 20, FRAMES, |pair| {
        for processor in 0..2 {
            pair.source.run(|| {
                stay_on(processor);
                let sender = Sender::new(SOURCE);
                // Of the same flows: it is not they who decide.
                let numbers = (0..FRAMES).filter(|number| number % 2 == processor as u32);
                numbers.for_each(|number| sender.send(&udp(40_000 + (number / 2 % 50) as u16, GENEVE, 0x4000, number, 200)));
            });
        }
    });
    assert_each_once(&taken, FRAMES);
    for (processor, (seen, _)) in (0..).zip(&taken) {
        assert!(seen.keys().all(|number| number % 2 == processor), "ring {processor} took what came in on the other processor");
    }
}

#[test]
fn by_queue_each_ring_takes_what_came_by_its_queue_and_a_flow_stays_in_one() {
    const FLOWS: u32 = 50;
    const FRAMES: u32 = 40 * FLOWS;
    let flows_of_rings = |queues| {
        let taken = shared(&Pair::with_queues(queues), Fanout::Queue, 8 << 20, FRAMES, |pair| {
            let sender = pair.sender();
            (0..FRAMES).for_each(|number| sender.send(&udp(40_000 + (number % FLOWS) as u16, GENEVE, 0x4000, number, 200)));
        });
        assert_each_once(&taken, FRAMES);
        let flows = |seen: &HashMap<u32, u32>| seen.keys().map(|number| number % FLOWS).collect::<BTreeSet<u32>>();
        [flows(&taken[0].0), flows(&taken[1].0)]
    };
    let [first, second] = flows_of_rings(2);
    assert!(!first.is_empty() && !second.is_empty() && first.is_disjoint(&second), "{first:?}, {second:?}");
    let [first, second] = flows_of_rings(1);
    assert!(first.len() == FLOWS as usize && second.is_empty(), "one queue is one ring's: {first:?}, {second:?}");
}

#[test]
fn one_flow_that_fills_its_ring_goes_on_in_another() {
    // More than one ring holds, in frames of one flow.
    let frames = (RING_BYTES_MIN / 1000 + 50) as u32;
    for fanout in [Fanout::Hash, Fanout::Queue, Fanout::Processor] {
        let taken = shared(&Pair::new(), fanout, RING_BYTES_MIN, frames, |pair| {
            pair.source.run(|| {
                stay_on(0);
                let sender = Sender::new(SOURCE);
                (0..frames).for_each(|number| sender.send(&udp(40_000, GENEVE, 0x4000, number, 1000)));
            });
        });
        assert_each_once(&taken, frames);
        assert!(taken.iter().all(|(seen, _)| !seen.is_empty()), "{fanout:?}: one ring took all");
    }
}

#[test]
fn libpcap_takes_each_frame_once() {
    assert_each_once(&send_and_take(EngineKind::Libpcap, 1, 20_000, 200), 20_000);
}

#[test]
fn two_libpcap_threads_share_the_frames_and_none_comes_twice() {
    let taken = send_and_take(EngineKind::Libpcap, 2, 20_000, 200);
    assert_each_once(&taken, 20_000);
    assert!(taken.iter().all(|(seen, _)| seen.len() > 2_000), "one thread took nearly everything");
}

/// Frames with at least this sequence number go to a port that is nobody's.
const FOREIGN: u32 = 1 << 31;

#[test]
fn nothing_foreign_nothing_twice_and_nothing_missing_while_the_threads_begin() {
    for kind in [EngineKind::Ring, EngineKind::Libpcap].into_iter().cycle().take(6) {
        let pair = Pair::new();
        let settings = settings(2, 64 << 20);
        let signals = Arc::new(Signals::default());
        let sent = Arc::new(AtomicU32::new(0));
        let sender = pair.sender();
        let sending = {
            let (signals, sent) = (Arc::clone(&signals), Arc::clone(&sent));
            // As fast as it goes: the moments in question are microseconds.
            thread::spawn(move || {
                for sequence in 0.. {
                    if signals.stop.load(Ordering::Acquire) {
                        break;
                    }
                    sent.store(sequence, Ordering::Release);
                    sender.send(&udp(40_000 + (sequence % 50) as u16, GENEVE, 0, sequence, 100));
                    sender.send(&udp(40_000, 53, 0, sequence | FOREIGN, 100));
                }
            })
        };
        let engines = pair.tap.run(|| open_all(kind, &settings));
        let takers: Vec<_> = engines
            .into_iter()
            .map(|engine| {
                let signals = Arc::clone(&signals);
                pair.tap.spawn(move || take_all(engine, &signals).0)
            })
            .collect();
        let open = sent.load(Ordering::Acquire);
        wait_until(Duration::from_secs(10), || sent.load(Ordering::Acquire) > open + 5_000);
        signals.stop.store(true, Ordering::Release);
        sending.join().unwrap();
        let taken: Vec<HashMap<u32, u32>> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        // One member begins a moment before the other and stops a moment before it.
        let begun = taken.iter().map(|seen| *seen.keys().min().expect("a thread took nothing")).max().unwrap();
        let until = taken.iter().map(|seen| *seen.keys().filter(|n| **n < FOREIGN).max().unwrap()).min().unwrap();
        let mut all = HashMap::new();
        for (sequence, times) in taken.into_iter().flatten() {
            *all.entry(sequence).or_insert(0) += times;
        }
        let missing = (begun..until).filter(|sequence| !all.contains_key(sequence)).count();
        let doubled = all.values().filter(|times| **times != 1).count();
        let foreign = all.keys().filter(|sequence| **sequence >= FOREIGN).count();
        assert_eq!((missing, doubled, foreign), (0, 0, 0), "missing, doubled, foreign of {} with {kind:?}", all.len());
        assert!(until > begun + 1000, "only {} frames were sent", until - begun);
    }
}

/// Sends what `send` sends, stops the engines as soon as the kernel accepted `expected` frames, and gives what they took.
fn taken_of(kind: EngineKind, threads: usize, expected: u64, send: impl FnOnce(&Pair)) -> Vec<Vec<u8>> {
    let pair = Pair::new();
    let mut engines = pair.tap.run(|| open_all(kind, &settings(threads, 4 << 20)));
    send(&pair);
    let deadline = Instant::now() + Duration::from_secs(2);
    while engines.iter_mut().map(|engine| engine.losses().unwrap().packets).sum::<u64>() < expected && Instant::now() < deadline {}
    let mut frames = Vec::new();
    for mut engine in engines {
        // The frames are in a block that the kernel has not closed yet.
        engine.refuse_more().unwrap();
        let mut bytes = Bytes::default();
        loop {
            match engine.take(&mut bytes, WAIT).unwrap() {
                Taken::Frames => bytes.for_each_frame(|frame| frames.push(frame.bytes.to_vec())),
                Taken::Quiet { .. } => {}
                Taken::End => break,
            }
        }
    }
    frames
}

#[test]
fn other_ports_and_protocols_and_our_own_frames_are_not_taken_and_fragments_are() {
    for (kind, threads) in [(EngineKind::Ring, 1), (EngineKind::Ring, 2), (EngineKind::Libpcap, 1), (EngineKind::Libpcap, 2)] {
        let mut tcp = udp(1, GENEVE, 0, 1, 100);
        tcp[23] = 6;
        let taken = taken_of(kind, threads, 3, |pair| {
            // Out through the tap: the same ports, the other way.
            pair.tap.run(|| Sender::new(TAP)).send(&udp(1, GENEVE, 0, 6, 100));
            let sender = pair.sender();
            sender.send(&udp(1, 53, 0, 0, 100));
            sender.send(&tcp);
            sender.send(&udp(1, GENEVE, 0x2000, 2, 100));
            sender.send(&udp(1, 53, 0x2000, 3, 100));
            sender.send(&udp(1, 53, 0x2064, 4, 100));
            sender.send(&udp(1, VXLAN, 0, 5, 100));
        });
        let mut sequences: Vec<u32> = taken.iter().map(|frame| sequence_of(frame)).collect();
        sequences.sort_unstable();
        assert_eq!(sequences, [2, 4, 5], "{kind:?}, {threads} threads");
    }
}

#[test]
fn a_frame_comes_byte_for_byte_also_from_a_block_that_was_open_when_capture_ended() {
    for kind in [EngineKind::Ring, EngineKind::Libpcap] {
        let sent = udp(1, GENEVE, 0, 7, 333);
        let taken = taken_of(kind, 1, 1, |pair| pair.sender().send(&sent));
        assert_eq!(taken, std::slice::from_ref(&sent), "{kind:?}");
    }
}

#[test]
fn what_a_full_ring_dropped_is_counted() {
    for kind in [EngineKind::Ring, EngineKind::Libpcap] {
        let pair = Pair::new();
        let mut engine = pair.tap.run(|| open_all(kind, &settings(1, RING_BYTES_MIN))).remove(0);
        let sender = pair.sender();
        for sequence in 0..20_000 {
            sender.send(&udp(1, GENEVE, 0, sequence, 500));
        }
        wait_until(Duration::from_secs(5), || engine.losses().unwrap().packets >= 20_000);
        let (seen, losses) = take_all(engine, &Signals { stop: AtomicBool::new(true), ..Signals::default() });
        assert_eq!(losses.packets, 20_000, "{kind:?}");
        assert!(losses.drops > 10_000, "{kind:?}: {losses:?}");
        assert_eq!(losses.packets - losses.drops, seen.len() as u64, "{kind:?}: {losses:?}");
        assert!(kind != EngineKind::Ring || losses.freezes > 0, "{losses:?}");
    }
}

/// A shelf as the service manager has one: it keeps copies of the sockets under their names, in the order in which they came.
#[derive(Default)]
struct Shelf(Mutex<Vec<(String, OwnedFd)>>);

impl ring::Shelf for Shelf {
    fn put(&self, name: &str, socket: BorrowedFd<'_>) {
        self.0.lock().unwrap().push((name.to_owned(), socket.try_clone_to_owned().unwrap()));
    }

    fn remove(&self, name: &str) {
        self.0.lock().unwrap().retain(|(kept, _)| kept != name);
    }
}

impl Shelf {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    /// What the next process gets.
    fn passed(&self) -> Vec<(String, OwnedFd)> {
        self.0.lock().unwrap().iter().map(|(name, socket)| (name.clone(), socket.try_clone().unwrap())).collect()
    }

    /// The rings of an agent that begins now.
    fn open_all(self: &Arc<Self>, pair: &Pair, settings: &Settings) -> Vec<Ring> {
        pair.tap.run(|| {
            let group = Group::on_shelf(settings, TAP, Arc::clone(self) as Arc<dyn ring::Shelf>, self.passed()).unwrap();
            (0..settings.threads).map(|_| Ring::open(settings, TAP, &group).unwrap()).collect()
        })
    }
}

/// Takes for `time`, then hands over: the sequence numbers in the order they came, and the ring's counts.
fn take_and_hand_over(pair: &Pair, ring: Ring, time: Duration) -> (Vec<u32>, Losses) {
    // A ring looks for its interface where its thread is.
    pair.tap.run(|| take_here_and_hand_over(ring, time))
}

fn take_here_and_hand_over(mut ring: Ring, time: Duration) -> (Vec<u32>, Losses) {
    let (mut seen, mut bytes) = (Vec::new(), Bytes::default());
    let begun = Instant::now();
    let mut told = false;
    loop {
        if begun.elapsed() >= time && !told {
            ring.hand_over().unwrap();
            told = true;
        }
        match ring.take(&mut bytes, WAIT).unwrap() {
            Taken::Frames => bytes.for_each_frame(|frame| seen.push(sequence_of(frame.bytes))),
            Taken::Quiet { .. } => {
                ring.losses().unwrap();
            }
            Taken::End => break,
        }
    }
    drop(bytes);
    (seen, ring.losses().unwrap())
}

#[test]
fn agents_that_follow_each_other_on_the_same_rings_take_each_frame_once_and_count_what_they_take() {
    for threads in [1, 2] {
        let pair = Pair::new();
        let settings = settings(threads, 16 << 20);
        let shelf = Arc::new(Shelf::default());
        let sender = pair.sender();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut rings = shelf.open_all(&pair, &settings);
        let sending = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || {
                for sequence in 0.. {
                    sent.store(sequence, Ordering::Release);
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    sender.send(&udp(40_000 + (sequence % 50) as u16, GENEVE, 0x4000, sequence, 200));
                    if sequence % 8 == 0 {
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            })
        };
        let names = shelf.names();
        let mut seen: HashMap<u32, u32> = HashMap::new();
        const AGENTS: usize = 20;
        let mut in_gaps = 0;
        for agent in 0..AGENTS {
            // Odd times, so that blocks are caught in every state.
            let time = Duration::from_millis(7 + 13 * (agent as u64 % 5));
            if agent == AGENTS - 1 {
                stop.store(true, Ordering::Release);
                thread::sleep(Duration::from_millis(100));
            }
            let takers: Vec<_> = rings.into_iter().map(|ring| pair.tap.spawn(move || take_here_and_hand_over(ring, time))).collect();
            for taker in takers {
                let (taken, losses) = taker.join().unwrap();
                assert_eq!(losses.drops, 0);
                assert_eq!(losses.packets, taken.len() as u64, "agent {agent} of {threads} threads counts what it took");
                taken.iter().for_each(|sequence| *seen.entry(*sequence).or_insert(0) += 1);
            }
            // Nobody is there for a while.
            let before = sent.load(Ordering::Acquire);
            thread::sleep(Duration::from_millis(20));
            in_gaps += sent.load(Ordering::Acquire) - before;
            assert_eq!(shelf.names(), names, "the sockets stay where they are");
            rings = shelf.open_all(&pair, &settings);
        }
        sending.join().unwrap();
        let sent = sent.load(Ordering::Acquire);
        let missing = (0..sent).filter(|sequence| !seen.contains_key(sequence)).count();
        let doubled = seen.values().filter(|times| **times != 1).count();
        assert_eq!((missing, doubled, seen.len()), (0, 0, sent as usize), "missing, doubled, distinct; {threads} threads");
        assert!(in_gaps > 1_000, "{in_gaps} of {sent} frames came while no agent was there");
    }
}

#[test]
fn of_a_killed_agents_blocks_those_that_a_recorder_had_begun_are_not_given_again_and_the_others_are() {
    let pair = Pair::new();
    let settings = settings(1, 4 << 20);
    let shelf = Arc::new(Shelf::default());
    let sender = pair.sender();
    let mut ring = shelf.open_all(&pair, &settings).remove(0);
    let mut held = Vec::new();
    for sequence in 0..6 {
        sender.send(&udp(1, GENEVE, 0, sequence, 100));
        let mut bytes = Bytes::default();
        while ring.take(&mut bytes, WAIT).unwrap() != Taken::Frames {}
        held.push(bytes);
    }
    // The recorder is done with one, has begun two more, and the kernel holds one that nobody took.
    held.remove(0);
    held[0].begin();
    held[1].begin();
    sender.send(&udp(1, GENEVE, 0, 6, 100));
    thread::sleep(Duration::from_millis(100));
    // As a kill does: nothing is dropped in order.
    std::mem::forget((ring, held));

    let ring = shelf.open_all(&pair, &settings).remove(0);
    let (seen, losses) = take_and_hand_over(&pair, ring, Duration::from_millis(100));
    assert_eq!(seen, [3, 4, 5, 6]);
    assert_eq!(losses.packets, 4);
    // And the ring is in order again for the agent after that.
    sender.send(&udp(1, GENEVE, 0, 7, 100));
    let (seen, losses) = take_and_hand_over(&pair, shelf.open_all(&pair, &settings).remove(0), Duration::from_millis(100));
    assert_eq!((seen, losses.packets), (vec![7], 1));
}

#[test]
fn a_ring_that_was_full_when_its_agent_went_is_read_on_from_its_oldest_block_and_every_drop_is_counted_once() {
    let pair = Pair::new();
    let settings = settings(1, RING_BYTES_MIN);
    let shelf = Arc::new(Shelf::default());
    let sender = pair.sender();
    // An agent that takes some, so that the oldest block is not the first.
    let ring = shelf.open_all(&pair, &settings).remove(0);
    sender.send(&udp(1, GENEVE, 0, 0, 500));
    let (seen, first) = take_and_hand_over(&pair, ring, Duration::from_millis(100));
    assert_eq!(seen, [0]);
    for sequence in 1..5_001 {
        sender.send(&udp(1, GENEVE, 0, sequence, 500));
    }
    thread::sleep(Duration::from_millis(100));
    let (seen, second) = take_and_hand_over(&pair, shelf.open_all(&pair, &settings).remove(0), Duration::from_millis(200));
    assert!(seen.len() > 100 && seen.len() < 2_000, "{} frames fit", seen.len());
    assert_eq!(seen, (1..=seen.len() as u32).collect::<Vec<_>>(), "from the oldest on, in order");
    assert!(second.drops > 0);
    assert_eq!(second.packets - second.drops, seen.len() as u64);
    assert_eq!(first.packets + second.packets, 5_001);
}

#[test]
fn rings_that_are_not_what_the_settings_ask_for_are_removed_and_made_anew() {
    let fits = settings(2, 4 << 20);
    let wrong = |change: fn(&mut Settings)| {
        let mut settings = fits.clone();
        change(&mut settings);
        settings
    };
    type Spoil = fn(&Pair, &Shelf);
    let cases: [(&str, Settings, Spoil); 6] = [
        ("fanout", wrong(|settings| settings.fanout = Fanout::Queue), |_, _| {}),
        ("threads", wrong(|settings| settings.threads = 1), |_, _| {}),
        ("ring size", wrong(|settings| settings.ring_bytes = 8 << 20), |_, _| {}),
        ("an interface that was created again", fits.clone(), |pair, _| {
            pair.unplug();
            pair.plug();
        }),
        ("one of two", fits.clone(), |_, shelf| drop(shelf.0.lock().unwrap().pop())),
        ("of another version", fits.clone(), |_, shelf| {
            let mut kept = shelf.0.lock().unwrap();
            kept[0].0 = kept[0].0.replacen("tapfleet-ring-1", "tapfleet-ring-0", 1);
        }),
    ];
    for (what, asked, spoil) in cases {
        let pair = Pair::new();
        let shelf = Arc::new(Shelf::default());
        for ring in shelf.open_all(&pair, &fits) {
            take_and_hand_over(&pair, ring, Duration::ZERO);
        }
        let before = shelf.names();
        assert_eq!(before.len(), 2);
        spoil(&pair, &shelf);
        let rings = shelf.open_all(&pair, &asked);
        let after = shelf.names();
        assert_eq!(after.len(), asked.threads, "{what}: {after:?}");
        assert!(before.iter().all(|name| !after.contains(name)), "{what}: {before:?}, {after:?}");
        pair.sender().send(&udp(1, GENEVE, 0, 1, 100));
        let taken: Vec<u32> = rings.into_iter().flat_map(|ring| take_and_hand_over(&pair, ring, Duration::from_millis(100)).0).collect();
        assert_eq!(taken, [1], "{what}");
    }
}

#[test]
fn a_ring_that_is_given_up_is_not_left_for_the_next_agent() {
    let pair = Pair::new();
    let shelf = Arc::new(Shelf::default());
    let rings = shelf.open_all(&pair, &settings(2, 4 << 20));
    assert_eq!(shelf.names().len(), 2);
    drop(rings);
    assert_eq!(shelf.names(), Vec::<String>::new());
}

#[test]
fn a_quiet_ring_says_up_to_when_it_is_complete_and_does_not_spin_while_its_blocks_are_out() {
    let pair = Pair::new();
    let mut engine = pair.tap.run(|| open_all(EngineKind::Ring, &settings(1, 4 << 20))).remove(0);
    pair.sender().send(&udp(1, GENEVE, 0, 1, 100));
    let mut held = Bytes::default();
    while engine.take(&mut held, WAIT).unwrap() != Taken::Frames {}
    let mut stamp = 0;
    held.for_each_frame(|frame| stamp = frame.time_ns);

    // The kernel calls the socket readable as long as we hold its newest block.
    let (complete, spent) = pair.tap.run(move || {
        let (wall, cpu) = (Instant::now(), cpu_time());
        let mut bytes = Bytes::default();
        let mut complete = 0;
        while wall.elapsed() < Duration::from_millis(500) {
            let Taken::Quiet { complete_until_ns } = engine.take(&mut bytes, WAIT).unwrap() else { panic!("nothing was sent") };
            assert!(complete_until_ns >= complete);
            complete = complete_until_ns;
        }
        (complete, cpu_time() - cpu)
    });
    assert!(complete > stamp);
    assert!(spent < Duration::from_millis(100), "{spent:?} of processor time in 500 ms of silence");
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn a_block_in_our_hands_is_neither_filled_nor_given_again() {
    let pair = Pair::new();
    let mut engine = pair.tap.run(|| open_all(EngineKind::Ring, &settings(1, RING_BYTES_MIN))).remove(0);
    let sender = pair.sender();
    let first = udp(1, GENEVE, 0, u32::MAX, 500);
    sender.send(&first);
    let mut held = Bytes::default();
    while engine.take(&mut held, WAIT).unwrap() != Taken::Frames {}

    // Ten times what the ring holds.
    let (seen, losses) = pair.tap.run(move || {
        let signals = Arc::new(Signals::default());
        let until = Arc::clone(&signals);
        let taker = thread::spawn(move || take_all(engine, &until));
        for sequence in 0..5_000 {
            sender.send(&udp(1, GENEVE, 0, sequence, 500));
        }
        signals.stop.store(true, Ordering::Release);
        taker.join().unwrap()
    });
    let mut frames = Vec::new();
    held.for_each_frame(|frame| frames.push(frame.bytes.to_vec()));
    assert_eq!(frames, [first]);
    assert!(seen.values().all(|times| *times == 1) && !seen.contains_key(&u32::MAX));
    assert_eq!(losses.packets - losses.drops, seen.len() as u64 + 1, "{losses:?}");
}

#[test]
fn a_block_outlives_its_ring() {
    let pair = Pair::new();
    let mut engine = pair.tap.run(|| open_all(EngineKind::Ring, &settings(1, 4 << 20))).remove(0);
    let sent = udp(1, GENEVE, 0, 9, 100);
    pair.sender().send(&sent);
    let mut held = Bytes::default();
    while engine.take(&mut held, WAIT).unwrap() != Taken::Frames {}
    drop(engine);
    held.for_each_frame(|frame| assert_eq!(frame.bytes, sent));
}

/// Workers on the tap, as the agent runs them.
struct Running {
    events: Receiver<Event>,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Batches go back to their threads.
    back: Vec<mpsc::Sender<Batch>>,
    frames: usize,
    gaps: Vec<String>,
}

impl Running {
    fn start(pair: &Pair, kind: EngineKind, threads: usize) -> Self {
        let settings = settings(threads, 4 << 20);
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            complete_until_ns: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            counters: Arc::new(Counters::new(threads)),
        });
        let (sender, events) = mpsc::sync_channel(64);
        let group = Group::new(&settings).unwrap();
        let engines = pair.tap.run(|| (0..threads).map(|_| open(kind, &settings, &group).unwrap()).collect::<Vec<_>>());
        let (back, spent): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::channel()).unzip();
        let workers = engines
            .into_iter()
            .zip(spent)
            .enumerate()
            .map(|(thread, (engine, spent))| {
                let (settings, group, shared, sender) = (settings.clone(), Arc::clone(&group), Arc::clone(&shared), sender.clone());
                pair.tap.spawn(move || {
                    let judge = Judge::new(&settings, None);
                    let opener = Box::new(move || open(kind, &settings, &group));
                    Worker::new(thread, opener, judge, shared, SystemClock, sender, spent).run(engine);
                })
            })
            .collect();
        Self { events, shared, workers, back, frames: 0, gaps: Vec::new() }
    }

    /// Takes events until `enough` or for `wait` at most.
    fn drain(&mut self, wait: Duration, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + wait;
        while !enough(self) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Batch(batch)) => {
                    self.frames += batch.items.len();
                    let _ = self.back[batch.thread].send(batch);
                }
                Ok(Event::Gone { .. }) => {}
                Ok(Event::Gap { gap, .. }) => {
                    assert!(gap.from_ns <= gap.to_ns);
                    self.gaps.push(gap.cause);
                }
                Ok(Event::End { error, .. }) => panic!("a capture thread ended: {error:?}"),
                Err(_) => return,
            }
        }
    }

    /// How long after its return the interface gives frames again.
    fn time_to_frames(&mut self, pair: &Pair) -> Duration {
        let back = Instant::now();
        let sender = pair.sender();
        let before = self.frames;
        while self.frames == before {
            assert!(back.elapsed() < Duration::from_secs(5), "no frames 5 s after the interface came back; gaps: {:?}", self.gaps);
            sender.send(&udp(1, GENEVE, 0, 0, 100));
            self.drain(Duration::from_millis(5), |now| now.frames > before);
        }
        back.elapsed()
    }

    fn stop(self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers {
            worker.join().unwrap();
        }
    }
}

fn send(pair: &Pair, frames: u32) {
    let sender = pair.sender();
    for sequence in 0..frames {
        sender.send(&udp(40_000 + (sequence % 50) as u16, GENEVE, 0, sequence, 100));
    }
}

/// Frames flow, the interface goes and comes as `away` does it, frames flow again: within two seconds, none twice, one gap a thread.
fn survives(kind: EngineKind, threads: usize, cause: &str, away: impl Fn(&Pair)) {
    let pair = Pair::new();
    let mut running = Running::start(&pair, kind, threads);
    send(&pair, 500);
    running.drain(Duration::from_secs(5), |now| now.frames >= 500);
    assert_eq!(running.frames, 500);

    away(&pair);
    let time = running.time_to_frames(&pair);
    assert!(time < Duration::from_secs(2), "frames came {time:?} after the interface was back");
    running.drain(Duration::from_secs(2), |now| now.gaps.len() >= threads);
    // All members are armed when the last one has joined; then nothing is lost and nothing doubled.
    running.drain(Duration::from_millis(300), |_| false);
    let before = running.frames;
    send(&pair, 500);
    running.drain(Duration::from_millis(500), |_| false);
    assert_eq!(running.frames - before, 500, "frames after the interface came back");
    assert_eq!(running.gaps.len(), threads, "{:?}", running.gaps);
    assert!(running.gaps.iter().all(|gap| gap.contains(cause)), "{:?}", running.gaps);
    running.stop();
}

#[test]
fn a_ring_goes_on_after_its_interface_was_down() {
    survives(EngineKind::Ring, 1, "went down", |pair| {
        pair.set_tap_up(false);
        thread::sleep(Duration::from_millis(600));
        pair.set_tap_up(true);
    });
}

#[test]
fn a_ring_goes_on_after_its_interface_was_down_for_a_moment() {
    survives(EngineKind::Ring, 1, "went down", |pair| {
        pair.set_tap_up(false);
        pair.set_tap_up(true);
    });
}

#[test]
fn a_ring_goes_on_after_its_interface_was_removed_and_created_again() {
    survives(EngineKind::Ring, 1, "was removed", |pair| {
        pair.unplug();
        thread::sleep(Duration::from_millis(600));
        pair.plug();
    });
}

#[test]
fn two_rings_go_on_together_after_their_interface_was_away() {
    survives(EngineKind::Ring, 2, "was removed", |pair| {
        pair.unplug();
        thread::sleep(Duration::from_millis(300));
        pair.plug();
    });
    survives(EngineKind::Ring, 2, "went down", |pair| {
        pair.set_tap_up(false);
        pair.set_tap_up(true);
    });
}

#[test]
fn libpcap_goes_on_after_its_interface_was_down_or_removed() {
    survives(EngineKind::Libpcap, 1, "went down", |pair| {
        pair.set_tap_up(false);
        thread::sleep(Duration::from_millis(600));
        pair.set_tap_up(true);
    });
    survives(EngineKind::Libpcap, 1, "was removed", |pair| {
        pair.unplug();
        thread::sleep(Duration::from_millis(600));
        pair.plug();
    });
}

#[test]
fn no_thread_begins_anew_before_the_others_have_let_go() {
    for kind in [EngineKind::Ring, EngineKind::Libpcap] {
        let pair = Pair::new();
        let settings = settings(2, 4 << 20);
        let group = Group::new(&settings).unwrap();
        pair.tap.run(|| {
            let gone = |engine: &mut Box<dyn Engine>| {
                let deadline = Instant::now() + Duration::from_secs(2);
                while Instant::now() < deadline {
                    if let Err(error) = engine.take(&mut Bytes::default(), WAIT) {
                        return matches!(error, Error::Gone { .. });
                    }
                }
                false
            };
            let mut first = open(kind, &settings, &group).unwrap();
            let mut second = open(kind, &settings, &group).unwrap();
            pair.set_tap_up(false);
            pair.set_tap_up(true);
            assert!(gone(&mut first), "{kind:?}");
            drop(first);
            let error = open(kind, &settings, &group).map(drop).unwrap_err();
            assert!(matches!(error, Error::Gone { .. }), "{kind:?}: the second thread still takes frames: {error}");
            assert!(gone(&mut second), "{kind:?}");
            drop(second);
            open(kind, &settings, &group).unwrap();
        });
    }
}

#[test]
fn a_ring_does_not_open_while_its_interface_is_down_or_missing() {
    let pair = Pair::new();
    let settings = settings(1, 4 << 20);
    let group = Group::new(&settings).unwrap();
    pair.set_tap_up(false);
    for kind in [EngineKind::Ring, EngineKind::Libpcap] {
        let error = pair.tap.run(|| open(kind, &settings, &group).map(drop)).unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
    }
    pair.unplug();
    let error = pair.tap.run(|| open(EngineKind::Ring, &settings, &group).map(drop)).unwrap_err();
    assert!(error.to_string().contains("no such interface; there are: lo"), "{error}");
}

#[test]
fn auto_is_the_interface_of_the_default_route() {
    let pair = Pair::new();
    let auto = || tapfleet::capture::interface::resolve("auto");
    let error = pair.tap.run(auto).unwrap_err().to_string();
    assert!(error.contains("default route") && error.contains(TAP), "{error}");
    pair.tap.ip(&["-6", "route", "add", "default", "via", "fd77::1"]);
    assert_eq!(pair.tap.run(auto).unwrap(), TAP);
    pair.tap.ip(&["link", "add", "other", "type", "veth"]);
    pair.tap.ip(&["link", "set", "other", "up"]);
    pair.tap.ip(&["route", "add", "default", "dev", "other", "metric", "50"]);
    pair.tap.ip(&["route", "add", "default", "via", "10.77.0.1", "metric", "100"]);
    assert_eq!(pair.tap.run(auto).unwrap(), "other");
}

/// Whether the source's side hears ICMP port unreachable after a tunnel packet.
fn is_answered(pair: &Pair) -> bool {
    const ETH_P_IP: u16 = 0x0800;
    let ear = pair.source.run(|| {
        let ear = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
        ring::socket::bind(ear.as_fd(), nic::link(SOURCE).unwrap().unwrap().index, ETH_P_IP).unwrap();
        ear
    });
    ear.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    for port in [GENEVE, VXLAN] {
        pair.sender().send(&udp(1, port, 0, 0, 100));
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let Ok(read) = (&ear).read(&mut buffer) else { return false };
        let ip = &buffer[14..read];
        let transport = &ip[usize::from(ip[0] & 15) * 4..];
        if ip[9] == 1 && transport[..2] == [3, 3] {
            return true;
        }
    }
    false
}

#[test]
fn the_kernel_answers_no_tunnel_packet_while_the_keeper_lives() {
    let pair = Pair::new();
    let rules = settings(1, 0).rules;
    let keeper = pair.tap.run(|| Keeper::open(&rules));
    assert_eq!(keeper.len(), 4);
    assert!(!is_answered(&pair), "answered although the keeper lives");
    // A port that is held already is left alone.
    assert!(pair.tap.run(|| Keeper::open(&rules)).is_empty());
    drop(keeper);
    assert!(is_answered(&pair), "without the keeper the kernel should have answered: this test sees nothing");
}

#[test]
fn the_counters_of_the_interface_are_those_of_the_threads_namespace() {
    let pair = Pair::new();
    assert!(nic::link(TAP).unwrap().is_none(), "the machine itself has an interface '{TAP}'");
    let (link, losses) = pair.tap.run(|| (nic::link(TAP).unwrap().unwrap(), nic::losses(TAP).unwrap()));
    assert_eq!((link.mtu, link.up, link.running, link.ethernet), (9001, true, true, true));
    assert_eq!(losses.nic.get("rx_over_errors"), Some(&0));
    let counters = pair.tap.run(|| tapfleet::host::ethtool::statistics(TAP)).unwrap();
    assert!(counters.iter().any(|(name, _)| name == "peer_ifindex"), "{counters:?}");
}

#[test]
fn the_filter_sees_inline_packets_as_they_will_stand_in_the_file() {
    let rules = Rules { inline: Inline::Store, ..settings(1, 0).rules };
    let packet = Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, 53) / b"question".to_vec();
    for (expression, taken) in [("udp port 53", true), ("tcp", false)] {
        let mut judge = Judge::new(&Settings { rules, ..settings(1, 0) }, Some(filter::compile(expression).unwrap()));
        let frame = Aws::default().inline(packet.clone()).build();
        let mut batch = Batch::default();
        let owned = batch.bytes.refill();
        let len = frame.len() as u32;
        owned.frames.push(OwnedFrame { time_ns: 1, at: 0, len, orig_len: len });
        owned.data.extend(frame);
        judge.judge(&mut batch);
        assert_eq!(matches!(batch.items[0].what, What::Inner { .. }), taken, "{expression}: {:?}", batch.items[0].what);
    }
}
