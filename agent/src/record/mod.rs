//! In: judged frames in order of time, and the clock. Out: bytes of capture files, in chunks, and what each file holds.
//! Never: waits for the network; loses a frame (written or counted, once); reopens a window; needs a packet to close one.

pub mod account;
pub mod buffer;
pub mod facts;
pub mod key;
pub mod pcap;
pub mod pcapng;
pub mod quarantine;
pub mod recorder;
pub mod schedule;
pub mod segment;
pub mod window;

pub use buffer::Buffer;
pub use facts::{Facts, Stamp};

/// The form of capture files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Classic pcap: read by everything; origins stand in the manifest only.
    Pcap,
    /// pcapng: one interface per origin, nanoseconds, direction, loss counts.
    Pcapng,
}

/// The resolution of stamps in classic pcap; pcapng always has nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum Precision {
    /// Microseconds.
    #[serde(rename = "us")]
    Micro,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nano,
}

/// Whether capture files are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// Independent zstd frames, each beginning with a whole record.
    Zstd,
}

/// What the recording stage needs to know; checked by `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Length of a window, 1 to 86,400 seconds; divides a day.
    pub rotate_seconds: u64,
    /// A segment that reaches this many bytes (before compression) is closed and a further one opened.
    pub max_bytes: u64,
    /// Form of the files.
    pub format: Format,
    /// Resolution of stamps in classic pcap.
    pub precision: Precision,
    /// Compression of the files.
    pub compression: Compression,
    /// When to record; `None`: always.
    pub schedule: Option<schedule::Schedule>,
    /// Most bytes of malformed frames kept per second; 0: none.
    pub quarantine_bytes_per_s: u64,
    /// Largest captured length, for the file headers: 262,144.
    pub snaplen: u32,
    /// The user's filter, for the manifest.
    pub filter: Option<String>,
    /// Which instance records.
    pub instance: String,
    /// Where captures go, for the journal.
    pub bucket: String,
    /// A chunk is handed to the spool at most this long after its first byte.
    pub flush_ms: u64,
    /// How long after the end of a window the kernel may still hold frames of it (ring retirement).
    pub retirement_ms: u64,
    /// Whether the frames come from a file: then their stamps are the clock, and windows without frames get no manifest.
    pub replay: bool,
}

/// Ending of capture files and keys.
#[must_use]
pub fn extension(format: Format, compression: Compression) -> &'static str {
    match (format, compression) {
        (Format::Pcap, Compression::None) => "pcap",
        (Format::Pcapng, Compression::None) => "pcapng",
        (Format::Pcap, Compression::Zstd) => "pcap.zst",
        (Format::Pcapng, Compression::Zstd) => "pcapng.zst",
    }
}

/// Names a segment among those that are open in a [`Spool`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SegmentNumber(pub u64);

/// Bytes of one segment, following those handed over before.
#[derive(Debug)]
pub struct Chunk {
    /// The bytes; the memory comes back by [`Spool::buffer`] when they are written.
    pub bytes: Buffer,
    /// Where in `bytes` the first record that begins here begins, and its stamp.
    pub first_record: Option<(u32, Stamp)>,
}

/// Whether the spool takes a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It does.
    Yes,
    /// It is full.
    No,
    /// It was full, and takes nothing until there is room worth going on for (`spool.on_full = "stop"`).
    Stopped,
}

/// The most bytes of a file that are best given to the kernel in one call: what lies in the processor's cache is copied from there, and
/// the page cache takes memory that it had lately. A chunk in one call costs several times as much (`make bench`, contest `decap`).
pub const WRITE_BYTES: usize = 256 << 10;

/// Where the recorder puts what it makes. Implemented by the spool; hands over memory, never waits for the network.
pub trait Spool {
    /// Capacity of the buffers: a multiple of [`buffer::PAGE_BYTES`].
    const CHUNK_BYTES: usize = buffer::HUGE_PAGE_BYTES;

    /// An empty buffer with room for [`Spool::CHUNK_BYTES`]. Waits for the disk when all buffers are on their way to it.
    fn buffer(&mut self) -> Buffer;

    /// Begins a segment: journal first, then the empty file.
    fn open(&mut self, number: SegmentNumber, facts: Facts);

    /// Appends to a segment. A chunk without bytes only gives its memory back.
    fn append(&mut self, number: SegmentNumber, chunk: Chunk);

    /// Keeps what is known of a segment so far, for the case that the agent dies.
    fn draft(&mut self, number: SegmentNumber, facts: Facts);

    /// Ends a segment: everything on disk, durable, and marked as whole.
    fn close(&mut self, number: SegmentNumber, facts: Facts);

    /// Files the manifest of a window without frames.
    fn idle(&mut self, facts: Facts);

    /// Whether the spool takes `bytes` beyond all that was handed over. If not, it may begin to make as much room.
    fn room(&mut self, bytes: u64) -> Room;

    /// How many bytes it takes beyond all that was handed over, as far as is known now.
    fn spare(&self) -> u64;
}
