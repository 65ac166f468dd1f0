//! In: frames of an interface or a capture file. Out: batches of mirrored frames, each judged once, in time order over all threads.
//! Never: waits for disk or network, allocates or locks per frame, loses sight of a frame (each becomes exactly one [`Item`]).
//! Spec: Linux `packet(7)`, `Documentation/networking/packet_mmap.rst` (TPACKET_V3), pcap-savefile(5), draft-ietf-opsawg-pcapng.
//!
//! [`ring`], [`libpcap`] and [`file`] are engines; [`worker`] is the one loop over any of them; [`merge`] puts the threads' batches
//! in order of time.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::wire::{Drop, Ignored, Link, Notes, Origin, Rules};

pub mod file;
pub mod filter;
pub mod interface;
pub mod keeper;
pub mod libpcap;
mod live;
pub mod merge;
pub mod origins;
pub mod ring;
pub mod tee;
pub mod worker;

/// Where frames come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    /// AF_PACKET TPACKET_V3.
    Ring,
    /// libpcap.
    Libpcap,
    /// A capture file.
    File,
}

/// What decides which thread's ring a frame goes to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Fanout {
    /// Addresses and ports of the outer packet: a flow stays in order in one ring.
    #[default]
    Hash,
    /// The queue of the network card that it came by.
    Queue,
    /// The processor that the kernel took it in on.
    Processor,
}

/// What the capture stage needs to know; checked by `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which engine.
    pub engine: EngineKind,
    /// Exact interface name, or `auto` for the default route's.
    pub interface: String,
    /// Files to read, in this order, when the engine is `file`.
    pub files: Vec<PathBuf>,
    /// Tunnel ports and what to do with inline packets.
    pub rules: Rules,
    /// BPF expression on the mirrored frame.
    pub filter: Option<String>,
    /// Bytes kept of each mirrored frame, 1 to 262,144.
    pub snaplen: u32,
    /// Rings and threads, 1 to 64.
    pub threads: usize,
    /// How the threads share the frames.
    pub fanout: Fanout,
    /// Bytes of ring of each thread.
    pub ring_bytes: usize,
    /// Who may send tunnels to us (outer source address); empty: anyone.
    pub outer_sources: Vec<IpNet>,
    /// Which mirror sources are taken (source address of the VXLAN tunnel); empty: any.
    pub mirror_sources: Vec<IpNet>,
}

/// One frame as an engine gives it.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Stamp of the kernel's (or the file's) clock, nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// The bytes that came, from the Ethernet header on.
    pub bytes: &'a [u8],
    /// Where `bytes` begins in [`Bytes::as_slice`].
    pub at: u32,
    /// Length on the wire, at least `bytes.len()`.
    pub orig_len: u32,
}

/// A frame's place in [`Owned`].
#[derive(Clone, Copy, Debug)]
pub struct OwnedFrame {
    /// As [`Frame::time_ns`].
    pub time_ns: u64,
    /// Offset in [`Owned::data`].
    pub at: u32,
    /// Bytes there.
    pub len: u32,
    /// As [`Frame::orig_len`].
    pub orig_len: u32,
}

impl OwnedFrame {
    /// The frame of `len` bytes at `at`; `orig_len` may be told wrong, and is then the length that came.
    #[inline]
    #[must_use]
    pub fn new(time_ns: u64, at: usize, len: u32, orig_len: u32) -> Self {
        Self { time_ns, at: at as u32, len, orig_len: orig_len.max(len) }
    }
}

/// Frames in memory of ours: an engine read or copied them there, because its source does not lend any.
#[derive(Default, Debug)]
pub struct Owned {
    /// The frames' bytes, and whatever lies between them.
    pub data: Vec<u8>,
    /// Where each frame lies.
    pub frames: Vec<OwnedFrame>,
}

/// The bytes behind a batch: lent by the kernel, or owned. Dropping a block gives it back to the kernel.
#[derive(Default, Debug)]
pub struct Bytes {
    block: Option<ring::Block>,
    owned: Owned,
}

impl Bytes {
    /// Takes a block of a ring in place of what was held.
    pub fn lend(&mut self, block: ring::Block) {
        self.block = Some(block);
    }

    /// The owned frames, emptied for refilling; a lent block is given back.
    pub fn refill(&mut self) -> &mut Owned {
        self.release();
        self.owned.data.clear();
        self.owned.frames.clear();
        &mut self.owned
    }

    /// As [`Self::refill`], but the former bytes stay in their place, to be written over: they need not be cleared for that.
    pub fn rewrite(&mut self) -> &mut Owned {
        self.release();
        self.owned.frames.clear();
        &mut self.owned
    }

    /// Notes that the frames are on their way into a file: should this process die, the next one does not give them again.
    pub fn begin(&self) {
        if let Some(block) = &self.block {
            block.begin();
        }
    }

    /// Gives a lent block back to the kernel.
    pub fn release(&mut self) {
        self.block = None;
    }

    /// All bytes, frames and what lies between them.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match &self.block {
            Some(block) => block.as_slice(),
            None => &self.owned.data,
        }
    }

    /// Calls `each` for every frame, in the order of arrival.
    pub fn for_each_frame(&self, mut each: impl FnMut(Frame<'_>)) {
        if let Some(block) = &self.block {
            return block.for_each_frame(each);
        }
        for frame in &self.owned.frames {
            let at = frame.at as usize;
            if let Some(bytes) = self.owned.data.get(at..at + frame.len as usize) {
                each(Frame { time_ns: frame.time_ns, bytes, at: frame.at, orig_len: frame.orig_len });
            }
        }
    }
}

/// What an engine had to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// `bytes` holds frames.
    Frames,
    /// Nothing came; every frame stamped before this time (nanoseconds since 1970) has been given.
    Quiet {
        /// The time up to which this engine is known to be complete.
        complete_until_ns: u64,
    },
    /// There will be no more.
    End,
}

/// What the kernel says it saw and lost, since the engine was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Losses {
    /// Packets that passed the kernel filter, drops included.
    pub packets: u64,
    /// Of those, dropped because no buffer was free.
    pub drops: u64,
    /// How often the ring stood still with no free block.
    pub freezes: u64,
}

/// A source of frames. One per thread.
pub trait Engine: Send {
    /// Waits at most `wait` for frames and puts them in `bytes`, whose former content is let go.
    ///
    /// # Errors
    /// [`Error::Gone`] when the interface went away or down: the caller reopens. Anything else ends the capture.
    fn take(&mut self, bytes: &mut Bytes, wait: Duration) -> Result<Taken, Error>;

    /// Totals since the engine was opened; monotonic.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    fn losses(&mut self) -> Result<Losses, Error>;

    /// From now on nothing new is accepted; what was accepted still comes out of [`Engine::take`], then [`Taken::End`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn refuse_more(&mut self) -> Result<(), Error>;

    /// The agent stops. What was accepted before still comes out of [`Engine::take`], then [`Taken::End`]; what comes later waits in
    /// the kernel for the next agent, where the engine can arrange that, and else is refused.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn hand_over(&mut self) -> Result<(), Error> {
        self.refuse_more()
    }
}

/// What became of a frame at capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A mirrored frame to be written: where it lies is the inner frame's place.
    Inner {
        /// What its bytes begin with.
        link: Link,
        /// What was odd about it.
        notes: Notes,
        /// Which way it went, seen from the mirrored interface.
        direction: Direction,
        /// Number of its [`Origin`] in [`Batch::origin`].
        origin: u32,
    },
    /// Ours, not written; where it lies is the outer frame's place.
    Dropped(Drop),
    /// Not ours.
    Ignored(Ignored),
}

/// Which way a mirrored frame went, seen from the mirrored interface.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Direction {
    /// Not to be told.
    #[default]
    Unknown,
    /// To the mirrored interface.
    Inbound,
    /// From the mirrored interface.
    Outbound,
}

/// One frame, judged.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// As [`Frame::time_ns`].
    pub time_ns: u64,
    /// Where its bytes begin in the batch's bytes.
    pub at: u32,
    /// How many there are (after `snaplen`).
    pub len: u32,
    /// Length on the source's wire.
    pub orig_len: u32,
    /// What became of it.
    pub what: What,
}

/// Frames of one thread, judged, in order of time. Reused: the recorder sends it back empty.
#[derive(Default, Debug)]
pub struct Batch {
    /// Which thread it came from.
    pub thread: usize,
    /// The bytes the items point into.
    pub bytes: Bytes,
    /// One item per frame, in order of time.
    pub items: Vec<Item>,
    /// Origins seen for the first time by this thread, with their numbers; numbers are dense and never change their meaning.
    pub new_origins: Vec<(u32, Origin)>,
}

impl Batch {
    /// The bytes of an item; empty when it points outside (it never does).
    #[must_use]
    pub fn bytes_of(&self, item: &Item) -> &[u8] {
        let at = item.at as usize;
        self.bytes.as_slice().get(at..at + item.len as usize).unwrap_or_default()
    }

    /// Lets everything go but the memory for the next use.
    pub fn clear(&mut self) {
        self.items.clear();
        self.new_origins.clear();
        self.bytes.rewrite();
    }
}

/// A time without capture, as it will stand in the manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Nanoseconds since 1970 when the last frame could be taken.
    pub from_ns: u64,
    /// Nanoseconds since 1970 when frames could be taken again.
    pub to_ns: u64,
    /// What happened.
    pub cause: String,
}

/// What a capture thread tells the recorder.
#[derive(Debug)]
pub enum Event {
    /// Frames.
    Batch(Batch),
    /// The thread cannot capture any more; it tries until it can.
    Gone {
        /// Which thread.
        thread: usize,
        /// Nanoseconds since 1970 when it noticed.
        from_ns: u64,
        /// What happened.
        cause: String,
    },
    /// The thread could not capture for a while; it can again.
    Gap {
        /// Which thread.
        thread: usize,
        /// When and why not.
        gap: Gap,
    },
    /// The thread is done: no event of it follows.
    End {
        /// Which thread.
        thread: usize,
        /// Why, when it did not end by order or at the end of its file.
        error: Option<Error>,
    },
}

/// What can go wrong while capturing. Each says the act, the thing, the cause and what to do.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The process may not open packet sockets.
    #[error(
        "cannot open a packet socket on '{interface}': permission denied; the agent needs CAP_NET_RAW: run it by its systemd unit, as root, \
         or grant it with `setcap cap_net_raw+ep` on the binary"
    )]
    NoPermission {
        /// Where it was tried.
        interface: String,
    },
    /// No interface of that name.
    #[error("cannot capture on '{name}': no such interface; there are: {}", known.join(", "))]
    UnknownInterface {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// `any` was asked for.
    #[error(
        "cannot capture on 'any': it would record each packet once per interface it crosses, and with a cooked link header; \
         name one interface, or 'auto' for the default route's"
    )]
    AnyRefused,
    /// `auto`, but there is no default route.
    #[error("cannot find the interface to capture on: 'auto' follows the default route and there is none; set capture.interface; there are: {}", known.join(", "))]
    NoDefaultRoute {
        /// What there is.
        known: Vec<String>,
    },
    /// The interface went down or away. Not for people: the worker reopens.
    #[error("interface '{interface}' is gone: {cause}")]
    Gone {
        /// Which.
        interface: String,
        /// Down, removed, re-created.
        cause: String,
    },
    /// The filter does not compile.
    #[error("capture.filter '{expression}' is not a filter that libpcap understands: {cause}; see pcap-filter(7)")]
    Filter {
        /// As written.
        expression: String,
        /// libpcap's words.
        cause: String,
    },
    /// A capture thread panicked.
    #[error("capture thread {thread} died; this is a defect, please report the log lines before this one")]
    Died {
        /// Which.
        thread: usize,
    },
    /// A system call failed.
    #[error("cannot {act} '{thing}': {cause}")]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        thing: String,
        /// Why not.
        cause: String,
    },
    /// A capture file is damaged or foreign.
    #[error("cannot read '{}' at byte {offset}: expected {expected}, found {found}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Bytes from the beginning (of what the compression held, if compressed).
        offset: u64,
        /// What should have stood there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
}
