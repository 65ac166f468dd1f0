//! In: frames of one interface that pass the kernel filter. Out: whole blocks of the kernel's ring, lent until dropped.
//! Never: copies a frame, hands out a block twice, takes the agent's own outgoing frames, calls its interface there when it is deaf.
//! Spec: Linux packet(7), `Documentation/networking/packet_mmap.rst` (TPACKET_V3), linux/if_packet.h.
//!
//! [`socket`], [`map`] and [`fetch`] hold the `unsafe` lines; [`block`] reads what the kernel wrote; [`quiet`] says up to when it is all;
//! [`group`] ties the threads' rings together; [`handover`] gets them from one agent to the next.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

pub use self::block::Block;
pub use self::group::Group;
use self::group::Kept;
pub(super) use self::group::{Membership, refuse_all};
use self::handover::Left;
pub use self::handover::Shelf;
use self::map::Map;
use self::quiet::Quiet;
use self::socket::{Ready, Socket};
use super::interface;
use super::live::{self, Hold, Live};
use super::{Bytes, Engine, Error, Losses, Settings, Taken};
use crate::host::nic::Link;

mod block;
mod fetch;
mod group;
mod handover;
mod map;
mod quiet;
pub mod socket;

/// After this time the kernel closes a block that is not full, if it holds a frame.
pub const RETIREMENT: Duration = Duration::from_millis(20);

/// Everything the kernel took is in a closed block after this time: the rest of it is for the kernel's timer, the scheduler, and a host that
/// takes the processor away.
pub(super) const SETTLED: Duration = Duration::from_millis(5 * RETIREMENT.as_millis() as u64);

/// The least memory of a ring, bytes: four blocks of 64 KiB. A smaller `ring_bytes` gets this much.
pub const RING_BYTES_MIN: usize = BLOCKS_MIN * BLOCK_BYTES_MIN;

const BLOCK_BYTES_MAX: usize = 1 << 20;
/// A frame never spans blocks, and a frame that the driver merged may have 64 KiB.
const BLOCK_BYTES_MIN: usize = 64 << 10;
const BLOCKS_MIN: usize = 4;
/// A ring of few blocks stands still as soon as the recorder holds some of them.
const BLOCKS_WANTED: usize = 16;

/// A stopping agent waits this long for a block that holds what the kernel has counted already.
const LEAVE_AFTER: Duration = Duration::from_millis(500);

/// Poll calls a ring readable as long as its newest closed block is in our hands; then we look again after this time.
const HELD_PAUSE: Duration = Duration::from_micros(500);

/// Size and number of blocks for a ring of at most `ring_bytes`.
fn geometry(ring_bytes: usize) -> (usize, usize) {
    let wanted = (ring_bytes / BLOCKS_WANTED).max(1);
    let block = (1 << wanted.ilog2()).clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
    (block, (ring_bytes / block).max(BLOCKS_MIN))
}

/// A ring of the kernel's on one interface.
#[derive(Debug)]
pub struct Ring {
    map: Arc<Map>,
    socket: Arc<Socket>,
    hold: Hold,
    /// The block that the kernel closes next.
    next: usize,
    quiet: Quiet,
    /// Another agent goes on after so many frames in all, since the ring was made.
    left_at: Option<u64>,
    kept: Option<Kept>,
    /// Frames given by this process and those before, since the ring was made.
    given: u64,
    /// Of those, by the ones before.
    given_before: u64,
    /// Frames that the kernel said to have put into the ring, at the last reading, since it was made.
    counted: u64,
    drops: u64,
    freezes: u64,
}

impl Ring {
    /// Opens a ring on the interface of that exact name. The rings of one `group` share the interface's frames; no frame is
    /// taken before all of them are open.
    ///
    /// # Errors
    /// [`Error::NoPermission`], [`Error::UnknownInterface`], [`Error::Gone`] while the interface is down or another member still
    /// holds on to its predecessor, [`Error::System`] for the rest.
    pub fn open(settings: &Settings, interface: &str, group: &Arc<Group>) -> Result<Self, Error> {
        if let Some(left) = group.next_left() {
            return Self::go_on(left, group);
        }
        let link = interface::usable(interface)?;
        let socket = Socket::open(interface)?;
        // Nothing is taken between the binding and the arming of the whole group.
        refuse_all(&socket, interface)?;
        socket.ignore_outgoing(interface)?;
        let (block_bytes, blocks) = geometry(settings.ring_bytes);
        let map = socket.ring(block_bytes, blocks, RETIREMENT, interface)?;
        socket.bind(link.index, interface)?;
        let membership = Group::join(group, &socket, link.index, interface)?;
        let kept = group.put(&socket, &membership, settings.ring_bytes);
        Ok(Self::new(map, socket, membership, link, kept))
    }

    /// Goes on with a ring of the agent before. Its filter was armed all the time.
    fn go_on(left: Left, group: &Arc<Group>) -> Result<Self, Error> {
        let Left { name, socket, map, link } = left;
        let membership = Group::join(group, &socket, link.index, &name.interface)?;
        let mut ring = Self::new(map, socket, membership, link, group.kept(&name));
        ring.given_before = ring.map.frames_begun();
        ring.given = ring.given_before;
        ring.counted = ring.map.count(0);
        ring.next = ring.map.oldest();
        // What a killed agent's recorder had begun is in its file, or was lost with it: to give it again could double it.
        while ring.map.is_closed(ring.next) && ring.map.is_begun(ring.next) {
            drop(Block::take(&ring.map, ring.next));
            ring.next = (ring.next + 1) % ring.map.blocks();
        }
        Ok(ring)
    }

    fn new(map: Map, socket: Socket, membership: Membership, link: Link, kept: Option<Kept>) -> Self {
        Self {
            map: Arc::new(map),
            socket: Arc::new(socket),
            hold: Hold::new(membership, link),
            next: 0,
            quiet: Quiet::default(),
            left_at: None,
            kept,
            given: 0,
            given_before: 0,
            counted: 0,
            drops: 0,
            freezes: 0,
        }
    }

    /// Real memory of the ring, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.map.bytes()
    }

    /// The next block that the kernel has closed, if there is one.
    fn next_block(&mut self) -> Option<Block> {
        loop {
            let block = Block::take(&self.map, self.next)?;
            self.next = (self.next + 1) % self.map.blocks();
            self.hold.came();
            self.given += u64::from(block.frames());
            if !block.is_empty() {
                return Some(block);
            }
        }
    }

    /// Reads the kernel's counters, which sets them back to 0, and adds them up where the next agent finds them.
    fn read_counters(&mut self) -> Result<(), Error> {
        let since = self.socket.statistics(self.hold.name())?;
        let drops = u64::from(since.tp_drops);
        self.counted = self.map.count(u64::from(since.tp_packets).saturating_sub(drops));
        self.drops += drops;
        self.freezes += u64::from(since.tp_freeze_q_cnt);
        Ok(())
    }
}

impl Live for Ring {
    fn hold(&mut self) -> &mut Hold {
        &mut self.hold
    }

    fn give(&mut self, bytes: &mut Bytes) -> Result<bool, Error> {
        if self.left_at.is_some_and(|until| self.given >= until) {
            self.hold.settle();
            return Ok(false);
        }
        let block = self.next_block();
        let given = block.is_some();
        if let Some(block) = block {
            bytes.lend(block);
        }
        Ok(given)
    }

    fn complete_until_ns(&mut self, since_ns: u64) -> u64 {
        self.quiet.look(&self.map, self.next, since_ns);
        self.quiet.complete_until_ns()
    }

    fn wait(&mut self, wait: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + if self.hold.has_ended() { wait.min(RETIREMENT) } else { wait };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ready { flags, error } = self.socket.poll(left, self.hold.name())?;
            self.hold.look(error)?;
            if left.is_zero() || self.map.is_closed(self.next) {
                return Ok(());
            }
            if !flags.is_empty() && (self.hold.has_ended() || flags.contains(PollFlags::IN)) {
                thread::sleep(HELD_PAUSE.min(left));
            }
        }
    }
}

impl Engine for Ring {
    fn take(&mut self, bytes: &mut Bytes, wait: Duration) -> Result<Taken, Error> {
        live::take(self, bytes, wait)
    }

    fn losses(&mut self) -> Result<Losses, Error> {
        if self.left_at.is_none() {
            self.read_counters()?;
        }
        // One who leaves has taken some frames that the kernel has not told of yet, and the next agent, to whom it will tell, does not
        // count them: each frame is counted by who gives it.
        let counted = if self.left_at.is_some() { self.given } else { self.counted };
        Ok(Losses { packets: counted.saturating_sub(self.given_before) + self.drops, drops: self.drops, freezes: self.freezes })
    }

    fn refuse_more(&mut self) -> Result<(), Error> {
        self.hold.disarm();
        refuse_all(&self.socket, self.hold.name())?;
        self.hold.refused();
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Error> {
        if self.kept.is_none() || self.hold.has_ended() || !self.hold.may_hand_over() {
            return self.refuse_more();
        }
        self.read_counters()?;
        self.left_at = Some(self.counted);
        self.hold.left(LEAVE_AFTER);
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.left_at.is_some() {
            return;
        }
        if let Some(kept) = &self.kept {
            kept.remove();
        }
        // The mapping, and with it the kernel's side of the socket, lives until the last block is given back. What would enter it
        // meanwhile nobody could read.
        self.hold.disarm();
        if let Err(error) = refuse_all(&self.socket, self.hold.name()) {
            tracing::warn!(%error, "the kernel goes on filling a packet ring that is closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_never_takes_more_memory_than_it_was_given() {
        for ring_bytes in [RING_BYTES_MIN, 300_000, 1 << 20, 5_000_000, 64 << 20, (1 << 30) + 17] {
            let (block, blocks) = geometry(ring_bytes);
            assert!(block * blocks <= ring_bytes, "{ring_bytes}: {blocks} blocks of {block}");
            assert!(block * (blocks + 1) > ring_bytes, "{ring_bytes}: {blocks} blocks of {block} leave room for one more");
            assert!(blocks >= BLOCKS_MIN && block.is_multiple_of(BLOCK_BYTES_MIN));
        }
        assert_eq!(geometry(64 << 20), (1 << 20, 64));
        assert_eq!(geometry(0), (BLOCK_BYTES_MIN, BLOCKS_MIN));
    }
}
