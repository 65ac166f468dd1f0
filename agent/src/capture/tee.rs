//! Mirrored frames once more, for a live sensor (Zeek, Suricata) on this machine: sent out of a local interface, such as one end of a
//! veth pair whose other end the sensor reads, or a TAP.
//! In: judged batches of each capture thread. Out: their mirrored frames on the interface, whole and without tunnels, by thread in order.
//! Never: holds a capture thread up (what finds no free buffer is dropped and counted), keeps a ring block, ends the agent; takes for sent
//! what the interface dropped: a TAP takes every frame and drops those that its reader leaves no room for.
//! Spec: packet(7), veth(4), kernel `networking/tuntap.rst`; `tx_dropped` in kernel `networking/statistics.rst`.

use std::io;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use socket2::{Domain, Socket, Type};

use super::{Batch, What, interface, ring};
use crate::host::nic::{self, Outlet};
use crate::observe::counters::Counters;

/// Buffers of each capture thread, of a batch each: what bridges a sensor's stall.
const BUFFERS: usize = 16;

/// Frames handed to the kernel by one call.
const BURST: usize = 64;

/// How long one frame may wait for the interface to take it.
const SEND_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How often an interface that is missing or down is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// Copies of one batch's mirrored frames.
#[derive(Default, Debug)]
struct Frames {
    bytes: Vec<u8>,
    /// Where each frame ends.
    ends: Vec<usize>,
}

impl Frames {
    fn fill(&mut self, batch: &Batch) {
        self.bytes.clear();
        self.ends.clear();
        for item in &batch.items {
            if let What::Inner { link, .. } = item.what {
                self.bytes.extend_from_slice(link.made_up_header());
                self.bytes.extend_from_slice(batch.bytes_of(item));
                self.ends.push(self.bytes.len());
            }
        }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, number: usize) -> &[u8] {
        let begin = number.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(number).copied().unwrap_or(begin);
        self.bytes.get(begin..end).unwrap_or_default()
    }
}

/// A capture thread's end of the tee.
#[derive(Debug)]
pub struct Branch {
    thread: usize,
    full: SyncSender<(usize, Frames)>,
    spent: Receiver<Frames>,
    made: usize,
    counters: Arc<Counters>,
}

impl Branch {
    /// Copies the mirrored frames of a batch and passes them on, or counts them when no buffer is free.
    pub fn offer(&mut self, batch: &Batch) {
        let inner = || batch.items.iter().filter(|item| matches!(item.what, What::Inner { .. })).count() as u64;
        let Some(mut frames) = self.free() else { return self.counters.tee_drops.add(inner()) };
        frames.fill(batch);
        // Neither full nor gone: there are no more buffers than places, and the other end outlives the capture threads.
        if self.full.try_send((self.thread, frames)).is_err() {
            self.counters.tee_drops.add(inner());
        }
    }

    fn free(&mut self) -> Option<Frames> {
        if let Ok(frames) = self.spent.try_recv() {
            return Some(frames);
        }
        (self.made < BUFFERS).then(|| {
            self.made += 1;
            Frames::default()
        })
    }
}

/// The end that sends; it has a thread of its own.
#[derive(Debug)]
pub struct Tee {
    interface: String,
    full: Receiver<(usize, Frames)>,
    spent: Vec<SyncSender<Frames>>,
    counters: Arc<Counters>,
    /// Where it sends, and the interface's number.
    socket: Option<(Socket, u32)>,
    tried: Option<Instant>,
}

impl Tee {
    /// A tee out of `interface`, and the branches of so many capture threads.
    #[must_use]
    pub fn new(interface: String, threads: usize, counters: &Arc<Counters>) -> (Self, Vec<Branch>) {
        let (full, from_threads) = sync_channel(threads * BUFFERS);
        let (mut give_back, mut branches) = (Vec::new(), Vec::new());
        for thread in 0..threads {
            let (back, spent) = sync_channel(BUFFERS);
            give_back.push(back);
            branches.push(Branch { thread, full: full.clone(), spent, made: 0, counters: counters.clone() });
        }
        let tee = Self { interface, full: from_threads, spent: give_back, counters: counters.clone(), socket: None, tried: None };
        (tee, branches)
    }

    /// Sends until the capture threads have ended.
    pub fn run(mut self) {
        // Not only with the first frame: whoever misspelt the interface hears of it now.
        self.open();
        while let Ok((thread, frames)) = self.full.recv() {
            let sent = self.send(&frames);
            self.counters.tee_frames.add(sent as u64);
            self.counters.tee_drops.add((frames.len() - sent) as u64);
            if let Some(back) = self.spent.get(thread) {
                // A thread that has ended takes nothing back.
                let _ = back.try_send(frames);
            }
        }
    }

    /// Gives how many the interface took and did not drop.
    fn send(&mut self, frames: &Frames) -> usize {
        if self.socket.is_none() && !self.reopen() {
            return 0;
        }
        let Some(index) = self.socket.as_ref().map(|(_, index)| *index) else { return 0 };
        // An interface that does not answer, or that is gone, cannot say what it dropped.
        let look = || nic::outlet(index).ok().flatten();
        let before = look();
        let (taken, refused) = self.hand_over(frames);
        let dropped = before.zip(look()).map_or(0, |(before, after)| dropped_of(taken, refused, before, after));
        taken - dropped
    }

    /// Gives how many the interface took, and how many it refused for want of room.
    fn hand_over(&mut self, frames: &Frames) -> (usize, usize) {
        let (mut next, mut taken, mut refused) = (0, 0, 0);
        while next < frames.len() {
            let Some((socket, _)) = &self.socket else { break };
            match send_burst(socket, frames, next) {
                Ok(more) => {
                    next += more;
                    taken += more;
                }
                Err(Errno::AGAIN | Errno::INTR) => {
                    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
                    if !poll(&mut fds, Some(&SEND_WAIT)).is_ok_and(|ready| ready > 0) {
                        next += 1;
                    }
                }
                // This frame: longer than the interface's MTU, or shorter than a header.
                Err(Errno::MSGSIZE | Errno::INVAL) => next += 1,
                Err(Errno::NOBUFS) => (next, refused) = (next + 1, refused + 1),
                Err(cause) => self.lose(cause),
            }
        }
        (taken, refused)
    }

    fn lose(&mut self, cause: Errno) {
        tracing::warn!(interface = self.interface, %cause, "the tee's interface takes nothing any more; frames for it are dropped and counted");
        self.socket = None;
    }

    /// Tries again what was tried long enough ago.
    fn reopen(&mut self) -> bool {
        self.tried.is_none_or(|tried| tried.elapsed() >= REOPEN_EVERY) && self.open()
    }

    fn open(&mut self) -> bool {
        let first = self.tried.is_none();
        self.tried = Some(Instant::now());
        match open(&self.interface) {
            Ok(opened) => {
                tracing::info!(interface = self.interface, "mirrored frames also go to the tee's interface");
                self.socket = Some(opened);
            }
            Err(cause) if first => {
                tracing::warn!("cannot send mirrored frames out of tee.interface, and tries each second: {cause}");
            }
            Err(_) => {}
        }
        self.socket.is_some()
    }
}

/// Of frames that an interface took between two looks, how many it dropped. One without a queue counts what it `refused` as dropped, too.
/// Some kernels do not count what an interface without a carrier drops: all of it.
fn dropped_of(taken: usize, refused: usize, before: Outlet, after: Outlet) -> usize {
    let counted = after.dropped.saturating_sub(before.dropped) as usize;
    if before.running || after.running { taken.min(counted.saturating_sub(refused)) } else { taken }
}

fn open(name: &str) -> Result<(Socket, u32), super::Error> {
    let failed =
        |cause: io::Error| super::Error::System { act: "send out of the interface", thing: name.to_owned(), cause: cause.to_string() };
    let link = interface::usable(name)?;
    // Protocol 0: it takes nothing in.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(failed)?;
    ring::socket::bind(socket.as_fd(), link.index, 0).map_err(failed)?;
    Ok((socket, link.index))
}

/// Gives how many frames from number `first` on the kernel took, at least one.
fn send_burst(socket: &Socket, frames: &Frames, first: usize) -> Result<usize, Errno> {
    let last = frames.len().min(first + BURST);
    let slices: Vec<_> = (first..last).map(|number| [IoSlice::new(frames.get(number))]).collect();
    let mut control: Vec<_> = slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<_> = slices.iter().zip(&mut control).map(|(slice, control)| MMsgHdr::new(slice, control)).collect();
    sendmmsg(socket, &mut messages, SendFlags::DONTWAIT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::capture::{Direction, Item};
    use crate::wire::{Drop, Link, Notes};

    fn batch(frames: &[(&[u8], What)]) -> Batch {
        let mut batch = Batch::default();
        let owned = batch.bytes.refill();
        for (bytes, what) in frames {
            let at = owned.data.len() as u32;
            owned.data.extend_from_slice(bytes);
            batch.items.push(Item { time_ns: 0, at, len: bytes.len() as u32, orig_len: bytes.len() as u32, what: *what });
        }
        batch
    }

    fn inner(link: Link) -> What {
        What::Inner { link, notes: Notes::default(), direction: Direction::Unknown, origin: 0 }
    }

    #[test]
    fn only_mirrored_frames_go_to_the_tee_and_each_with_an_ethernet_header() {
        let counters = Arc::new(Counters::new(1));
        let (tee, mut branches) = Tee::new("none".into(), 1, &counters);
        let dropped = What::Dropped(Drop::Filtered);
        branches[0].offer(&batch(&[(b"first", inner(Link::Ethernet)), (b"dropped", dropped), (b"second", inner(Link::Ipv4))]));
        let (_, frames) = tee.full.try_recv().unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames.get(0), b"first");
        assert_eq!(frames.get(1), [Link::Ipv4.made_up_header(), b"second"].concat());
    }

    #[test]
    fn what_finds_no_free_buffer_is_dropped_and_counted_and_nothing_waits() {
        let counters = Arc::new(Counters::new(1));
        let (tee, mut branches) = Tee::new("none".into(), 1, &counters);
        let two = batch(&[(b"a", inner(Link::Ethernet)), (b"b", inner(Link::Ethernet))]);
        (0..BUFFERS + 3).for_each(|_| branches[0].offer(&two));
        assert_eq!(counters.tee_drops.get(), 6);
        tee.spent[0].try_send(tee.full.try_recv().unwrap().1).unwrap();
        branches[0].offer(&two);
        assert_eq!(counters.tee_drops.get(), 6);
    }

    #[test]
    fn what_an_interface_dropped_is_of_what_it_took_and_without_a_carrier_it_is_all() {
        let outlet = |running, dropped| Outlet { running, dropped };
        let rows = [
            (0, outlet(true, 7), outlet(true, 9), 2),
            (0, outlet(true, 7), outlet(true, 7), 0),
            // Refused and counted, and refused by a queue before that.
            (2, outlet(true, 7), outlet(true, 10), 1),
            (2, outlet(true, 7), outlet(true, 7), 0),
            // Frames of others were dropped too.
            (0, outlet(true, 7), outlet(true, 70), 5),
            (0, outlet(true, 7), outlet(false, 8), 1),
            (0, outlet(false, 7), outlet(true, 8), 1),
            (0, outlet(false, 7), outlet(false, 7), 5),
        ];
        for (refused, before, after, dropped) in rows {
            assert_eq!(dropped_of(5, refused, before, after), dropped, "{refused} refused, {before:?}, {after:?}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_costs_counted_frames_and_nothing_else() {
        let counters = Arc::new(Counters::new(1));
        let (tee, mut branches) = Tee::new("tapfleet-none".into(), 1, &counters);
        branches[0].offer(&batch(&[(b"a", inner(Link::Ethernet))]));
        drop(branches);
        tee.run();
        assert_eq!((counters.tee_frames.get(), counters.tee_drops.get()), (0, 1));
    }
}
