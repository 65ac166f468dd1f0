//! Numbered mirrored packets on the wire, and when each was sent.
//! In: a pace. Out: datagrams through both tunnels, a log of numbers and times. Never: sends faster than the pace says, or without end.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::netns::{Pair, SOURCE_V4, TAP_V4};
use crate::packet::Aws;
use crate::packet::numbered::{self, NUMBER_AT};

/// So many packets of a size, as fast as the sender can, each so often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// What it is called in the table.
    pub name: &'static str,
    /// How many at once: far less than the ring holds.
    pub burst: u64,
    /// How often.
    pub every: Duration,
    /// Bytes of a mirrored frame behind its number: one of [`SMALL`] and [`LARGE`].
    pub filling: usize,
}

/// Ten packets a second.
pub const SLOW: Pace = Pace { name: "10/s", burst: 1, every: Duration::from_millis(100), filling: SMALL };

/// What the sender can do, in bursts that the ring holds many of: the kernel drops nothing, so what is missing the kill took.
pub const FULL: Pace = Pace { name: "full", burst: 2000, every: Duration::from_millis(100), filling: SMALL };

/// As many packets, and each is large: in a window of a second come several parts of an upload.
pub const FULL_OF_PARTS: Pace = Pace { name: "large", filling: LARGE, ..FULL };

/// Those of kills that are told apart in the table.
pub const PACES: [Pace; 3] = [FULL, SLOW, FULL_OF_PARTS];

/// What a small frame has behind its number.
pub const SMALL: usize = 150;

/// What a large one has: it is 1,400 bytes long.
pub const LARGE: usize = 1400 - NUMBER_AT - size_of::<u64>();

/// Packets between two looks at the clock.
const LOOK_EVERY: u64 = 50;

/// A sender on a thread of its own, which ends with this value.
#[derive(Debug)]
pub struct Traffic {
    wire: Arc<Wire>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Wire {
    stop: AtomicBool,
    pace: Mutex<Pace>,
    sent: AtomicU64,
    log: Mutex<Log>,
}

/// When packets were sent: the first number of each group, and the moment before it.
#[derive(Clone, Default, Debug)]
pub struct Log(Vec<(u64, Instant)>);

impl Log {
    /// When the packet was sent, or at most a group's time before.
    #[must_use]
    pub fn time_of(&self, number: u64) -> Option<Instant> {
        let after = self.0.partition_point(|&(first, _)| first <= number);
        self.0.get(after.checked_sub(1)?).map(|&(_, at)| at)
    }
}

impl Traffic {
    /// Begins to send.
    #[must_use]
    pub fn start(pair: &Pair, pace: Pace) -> Self {
        let wire = Arc::new(Wire { stop: AtomicBool::new(false), pace: Mutex::new(pace), sent: AtomicU64::new(0), log: Mutex::default() });
        let thread = pair.source.spawn({
            let wire = wire.clone();
            move || wire.send()
        });
        Self { wire, thread: Some(thread) }
    }

    /// Goes on at another pace.
    pub fn set_pace(&self, pace: Pace) {
        *self.wire.pace.lock().unwrap_or_else(PoisonError::into_inner) = pace;
    }

    /// Packets on the wire so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.wire.sent.load(Ordering::Acquire)
    }

    /// Ends; gives how many packets were sent, and when.
    ///
    /// # Panics
    /// When a packet could not be sent.
    #[must_use]
    pub fn stop(mut self) -> (u64, Log) {
        self.end();
        let log = self.wire.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.sent(), log)
    }

    fn end(&mut self) {
        self.wire.stop.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) && !thread::panicking() {
            panic!("a packet could not be sent");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

impl Wire {
    fn send(&self) {
        let socket = UdpSocket::bind((Ipv4Addr::from(SOURCE_V4), 0)).unwrap_or_else(|cause| panic!("no socket to send from: {cause}"));
        let aws = Aws::default();
        let made = |filling| {
            let datagrams = [(4789, aws.direct_datagram(inner(filling)).build()), (6081, aws.gwlb_datagram(inner(filling)).build())];
            (filling, datagrams)
        };
        let mut sizes = [SMALL, LARGE].map(made);
        let mut number = 0;
        while !self.stop.load(Ordering::Acquire) {
            let pace = *self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            let datagrams = sizes.iter_mut().find(|(filling, _)| *filling == pace.filling).map(|(_, datagrams)| datagrams);
            let datagrams = datagrams.unwrap_or_else(|| panic!("there are no frames with {} bytes behind the number", pace.filling));
            for place in 0..pace.burst {
                if place.is_multiple_of(LOOK_EVERY) {
                    self.log.lock().unwrap_or_else(PoisonError::into_inner).0.push((number, Instant::now()));
                }
                let [direct, gwlb] = &mut *datagrams;
                let (port, datagram) = if number.is_multiple_of(2) { direct } else { gwlb };
                let at = datagram.len() - pace.filling - size_of::<u64>();
                if let Some(place) = datagram.get_mut(at..at + size_of::<u64>()) {
                    place.copy_from_slice(&number.to_be_bytes());
                }
                let sent = socket.send_to(datagram, (Ipv4Addr::from(TAP_V4), *port));
                sent.unwrap_or_else(|cause| panic!("cannot send packet {number}: {cause}"));
                number += 1;
                self.sent.store(number, Ordering::Release);
            }
            thread::sleep(pace.every);
        }
    }
}

/// The mirrored frame of number 0 with so many bytes behind it.
fn inner(filling: usize) -> Vec<u8> {
    let filling: Vec<u8> = (0..filling).map(|at| at as u8).collect();
    numbered::frame(0, &filling)
}

/// Mirrored frames as they are sent, but for their numbers.
#[derive(Debug)]
pub struct Models([Vec<u8>; 2]);

impl Models {
    /// Of each size.
    #[must_use]
    pub fn new() -> Self {
        Self([SMALL, LARGE].map(inner))
    }

    /// The number in a mirrored frame, if it is one of these to the byte.
    #[must_use]
    pub fn number(&self, frame: &[u8]) -> Option<u64> {
        let (head, rest) = frame.split_at_checked(NUMBER_AT)?;
        let (number, filling) = rest.split_first_chunk()?;
        let same = |model: &Vec<u8>| model.starts_with(head) && model.ends_with(filling) && frame.len() == model.len();
        self.0.iter().any(same).then(|| u64::from_be_bytes(*number))
    }
}

impl Default for Models {
    fn default() -> Self {
        Self::new()
    }
}
