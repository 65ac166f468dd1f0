//! In: the recorder's chunks. Out: files in the folder, growing, durable within the settings' times, whole when marked so.
//! Never: loses a chunk because the disk refuses (it tries again, the recorder waits, the kernel counts); changes a byte; takes data
//! for durable that a failed sync left in doubt.
//!
//! A chunk of whole pages goes past the page cache and stays in memory for the uploader (`fresh`), any other through the page cache.
//! Three threads: one writes; one syncs and marks segments as whole, so that a slow sync does not hold up the next write; one looks
//! at what is there, and makes room if that is the policy.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm::Crc64Nvme;
use crc_fast::{Digest, checksum, checksum_combine};
use rustix::fs::OFlags;
use zstd::bulk::Compressor;

use super::budget::{self, Budget};
use super::folder::remove_if_there;
use super::fresh::{self, Extent};
use super::journal::{self, Journal, Open, io};
use super::{Error, Folder, OnFull, Settings, give_way};
use crate::host::clock::{Clock, SystemClock};
use crate::observe::counters::{Count, Counters};
use crate::record::buffer::PAGE_BYTES;
use crate::record::facts::Index;
use crate::record::{self, Buffer, Chunk, Compression, Facts, Room, SegmentNumber, Spool, WRITE_BYTES};

/// Buffers between the recorder and the disk: 72 MiB. With all that the uploader can have there are as many left as one that flushes small
/// chunks needs while the disk stands still for a moment.
const BUFFERS_MAX: usize = fresh::CHUNKS_MAX + 16;

/// Those that there are from the beginning, with real memory behind them: what is kept, filled and written while the uploader takes
/// nothing. The kernel's first look for a page costs more than filling it.
const BUFFERS_FIRST: usize = fresh::CHUNKS_UNASKED + 2;

/// How long to wait before a refused write is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// How often a recorder that waits for the disk says that it lives.
const BEAT_EVERY: Duration = Duration::from_millis(100);

/// How often folder and file system are looked at, and how often at most.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much room is made at least when segments give way.
const ROOM_MADE_BYTES: u64 = 1 << 20;

/// How much is read back at once of what a failed sync left in doubt.
const WRITE_AGAIN_BYTES: usize = 1 << 20;

/// Level 1: about the speed of one gigabit on one core.
const ZSTD_LEVEL: i32 = 1;

/// An order to the writing thread.
enum Order {
    Open(SegmentNumber, Box<Facts>),
    Append(SegmentNumber, Chunk),
    Draft(SegmentNumber, Box<Facts>),
    Close(SegmentNumber, Box<Facts>),
    Idle(Box<Facts>),
}

/// An order to the syncing thread.
enum Sync {
    /// So much of the file is written.
    Data(Arc<Data>, Extent),
    /// No more will be.
    Whole(Box<Facts>, Option<(Arc<Data>, Extent)>),
}

/// A segment's file.
struct Data {
    path: Arc<Path>,
    file: File,
    /// The same file past the page cache, where the file system has that.
    direct: Option<File>,
    /// The disk refused a write or a sync of it. What that left is in the page cache alone, and a write past the cache would throw it out:
    /// pages go with those beside them (a folio as a whole, kernel `mm/truncate.c`, `invalidate_inode_pages2_range`).
    refused: AtomicBool,
    /// What a sync has confirmed; of the syncing thread alone.
    durable: Mutex<Extent>,
    /// The disk has lost bytes of it that no one has any more.
    lost: AtomicBool,
}

/// The recorder's end: implements [`Spool`].
pub struct Writer {
    orders: SyncSender<Order>,
    empty: Receiver<Buffer>,
    made: usize,
    budget: Arc<Budget>,
    on_full: OnFull,
    stopped: bool,
    /// Has the folder looked at, at once, for want of so many bytes. Its end is the end of the looking thread.
    look: SyncSender<u64>,
    counters: Arc<Counters>,
}

/// The threads behind a [`Writer`].
pub struct Threads {
    write: JoinHandle<()>,
    sync: JoinHandle<()>,
    abandon: Arc<AtomicBool>,
    died: Arc<AtomicBool>,
}

/// Says when the thread that holds it panics.
struct Alive {
    died: Arc<AtomicBool>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if thread::panicking() {
            self.died.store(true, Ordering::Release);
        }
    }
}

impl Threads {
    /// Whether the spool is of no use to this agent any more: a thread has died, or the disk has lost what it took.
    #[must_use]
    pub fn have_failed(&self) -> bool {
        self.died.load(Ordering::Acquire)
    }

    /// What the disk refuses from now on is given up (and logged): the agent is ending.
    pub fn insist_no_longer(&self) {
        self.abandon.store(true, Ordering::Release);
    }

    /// Waits until everything handed over is on disk and whole. When the disk goes on refusing for longer than `patience`,
    /// what it refuses is given up (and logged).
    pub fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let Self { write, sync, abandon, .. } = self;
        for thread in [write, sync] {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    abandon.store(true, Ordering::Release);
                }
                thread::sleep(Duration::from_millis(2));
            }
            if thread.join().is_err() {
                tracing::error!("a spool thread died; what it held is lost");
            }
        }
    }
}

/// Starts the threads.
///
/// # Errors
/// When a thread or the compressor cannot be made.
pub fn start(folder: &Folder, settings: &Settings, counters: Arc<Counters>) -> Result<(Writer, Threads), Error> {
    let failed = |act| io(act, folder.dir());
    let (orders, to_write) = sync_channel(4 * BUFFERS_MAX);
    let (syncs, to_sync) = sync_channel::<Sync>(16);
    let (back, empty) = sync_channel(BUFFERS_MAX);
    let home = Arc::new(back);
    let abandon = Arc::new(AtomicBool::new(false));
    let died = Arc::new(AtomicBool::new(false));
    let alive = || Alive { died: died.clone() };
    let patient = Patient { abandon: abandon.clone(), counters: counters.clone(), thread: Thread::Write };
    let mut writing = Writing {
        folder: folder.clone(),
        sync_every: Duration::from_millis(settings.sync_ms),
        files: HashMap::new(),
        compressor: Compressor::new(ZSTD_LEVEL).map_err(failed("start compression for"))?,
        compressed: Vec::new(),
        back: home.clone(),
        syncs,
        patient: patient.clone(),
    };
    let mut syncing =
        Syncing { folder: folder.clone(), patient: Patient { thread: Thread::Sync, ..patient }, disk: KernelDisk, died: died.clone() };
    let looking = Looking { folder: folder.clone(), on_full: settings.on_full, counters: counters.clone() };
    let (look, to_look) = sync_channel(1);
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        let alive = alive();
        let body = move || {
            let _alive = alive;
            body();
        };
        thread::Builder::new().name(name.into()).spawn(body).map_err(failed("start a thread for"))
    };
    let write = spawn("spool-write", Box::new(move || writing.run(&to_write)))?;
    let sync = spawn("spool-sync", Box::new(move || syncing.run(&to_sync)))?;
    spawn("spool-look", Box::new(move || looking.run(&to_look)))?;
    let budget = folder.budget().clone();
    for _ in 0..BUFFERS_FIRST {
        // There is room for all that are ever made.
        let _ = home.try_send(Buffer::touched(Writer::CHUNK_BYTES));
    }
    let writer = Writer { orders, empty, made: BUFFERS_FIRST, budget, on_full: settings.on_full, stopped: false, look, counters };
    Ok((writer, Threads { write, sync, abandon, died }))
}

impl Writer {
    /// Hands an order over; waits while the disk is behind by all that can be on its way.
    fn order(&self, mut order: Order) {
        loop {
            order = match self.orders.try_send(order) {
                Ok(()) => return,
                Err(TrySendError::Full(order)) => order,
                // The thread has died, and with that the agent is about to end.
                Err(TrySendError::Disconnected(_)) => return tracing::error!("the spool's writing thread is gone; frames are lost"),
            };
            thread::sleep(BEAT_EVERY);
            self.beat();
        }
    }

    /// Who waits for the disk lives: whether the disk answers is not for the load balancer.
    fn beat(&self) {
        self.counters.recorder.beat_ns.set(SystemClock.now().monotonic_ns);
    }
}

impl Spool for Writer {
    fn buffer(&mut self) -> Buffer {
        if let Ok(buffer) = self.empty.try_recv() {
            return buffer;
        }
        if self.made < BUFFERS_MAX {
            self.made += 1;
            return Buffer::with_capacity(Self::CHUNK_BYTES);
        }
        loop {
            match self.empty.recv_timeout(BEAT_EVERY) {
                Ok(buffer) => return buffer,
                Err(RecvTimeoutError::Timeout) => self.beat(),
                Err(RecvTimeoutError::Disconnected) => return Buffer::with_capacity(Self::CHUNK_BYTES),
            }
        }
    }

    fn open(&mut self, number: SegmentNumber, facts: Facts) {
        self.order(Order::Open(number, facts.into()));
    }

    fn append(&mut self, number: SegmentNumber, chunk: Chunk) {
        self.budget.hand_over(chunk.bytes.len() as u64);
        self.order(Order::Append(number, chunk));
    }

    fn draft(&mut self, number: SegmentNumber, facts: Facts) {
        // While the disk is behind the next one does as well.
        let _ = self.orders.try_send(Order::Draft(number, facts.into()));
    }

    fn close(&mut self, number: SegmentNumber, facts: Facts) {
        self.order(Order::Close(number, facts.into()));
    }

    fn idle(&mut self, facts: Facts) {
        self.order(Order::Idle(facts.into()));
    }

    fn room(&mut self, bytes: u64) -> Room {
        let admitted = self.budget.admits(bytes) && (!self.stopped || self.budget.is_relaxed());
        if !admitted {
            // It may be looking already.
            let _ = self.look.try_send(bytes);
        }
        let stopped = !admitted && self.on_full == OnFull::Stop;
        if stopped != self.stopped {
            self.stopped = stopped;
            self.counters.recording_stopped.set(stopped.into());
        }
        match admitted {
            true => Room::Yes,
            false if stopped => Room::Stopped,
            false => Room::No,
        }
    }

    fn spare(&self) -> u64 {
        if self.stopped { 0 } else { self.budget.spare() }
    }
}

/// Tries again until it works or the agent gives up.
#[derive(Clone)]
struct Patient {
    abandon: Arc<AtomicBool>,
    counters: Arc<Counters>,
    thread: Thread,
}

/// Which thread is patient.
#[derive(Clone, Copy)]
enum Thread {
    Write,
    Sync,
}

impl Patient {
    /// Whether the agent is ending, and what the disk refuses is lost.
    fn gives_up(&self) -> bool {
        self.abandon.load(Ordering::Acquire)
    }

    fn insist<T>(&self, attempt: impl FnMut() -> Result<T, Error>) -> Option<T> {
        let since: &Count = match self.thread {
            Thread::Write => &self.counters.writing_since_ns,
            Thread::Sync => &self.counters.syncing_since_ns,
        };
        since.set(SystemClock.now().monotonic_ns);
        let done = self.try_until_done(attempt);
        since.set(0);
        done
    }

    fn try_until_done<T>(&self, mut attempt: impl FnMut() -> Result<T, Error>) -> Option<T> {
        let mut told = false;
        loop {
            match attempt() {
                Ok(done) => return Some(done),
                Err(error) if self.gives_up() => {
                    tracing::error!(%error, "given up: what could not be written to the spool is lost");
                    return None;
                }
                Err(error) if !told => {
                    tracing::error!(%error, "trying again until it works; meanwhile frames wait in the ring, and the kernel counts what it drops");
                    told = true;
                }
                Err(_) => {}
            }
            thread::sleep(TRY_AGAIN);
        }
    }
}

/// A segment that grows.
struct Growing {
    data: Arc<Data>,
    capture_id: String,
    compression: Compression,
    /// What is written.
    extent: Extent,
    checksum: Digest,
    index: Index,
    dirty: bool,
    /// What the disk had no room for, and what came after that.
    waiting: VecDeque<Waiting>,
    /// A chunk was given up: nothing may follow it, and the next start cuts the file after its last whole record.
    torn: bool,
}

/// What is still to be done for a segment.
enum Waiting {
    Chunk(Chunk),
    End(Box<Facts>),
}

/// The writing thread.
struct Writing {
    folder: Folder,
    sync_every: Duration,
    files: HashMap<SegmentNumber, Growing>,
    compressor: Compressor<'static>,
    compressed: Vec<u8>,
    back: Arc<SyncSender<Buffer>>,
    syncs: SyncSender<Sync>,
    patient: Patient,
}

impl Writing {
    fn run(&mut self, orders: &Receiver<Order>) {
        let mut sync_at = Instant::now() + self.sync_every;
        loop {
            match orders.recv_timeout(sync_at.saturating_duration_since(Instant::now())) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if Instant::now() >= sync_at {
                self.try_again();
                self.ask_for_sync();
                sync_at = Instant::now() + self.sync_every;
            }
        }
        while self.try_again() {
            thread::sleep(BEAT_EVERY);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(number, facts) => self.open(number, &facts),
            Order::Append(number, chunk) => self.append(number, chunk),
            Order::Draft(number, facts) => self.draft(number, *facts),
            Order::Close(number, facts) => {
                let Some(growing) = self.files.get_mut(&number) else {
                    return tracing::error!(capture_id = facts.capture_id, "a segment could not be begun; it is lost");
                };
                growing.waiting.push_back(Waiting::End(facts));
                self.go_on(number);
            }
            Order::Idle(facts) => self.sync(Sync::Whole(facts, None)),
        }
    }

    fn open(&mut self, number: SegmentNumber, facts: &Facts) {
        let extension = record::extension(facts.format, facts.compression);
        let open = Open {
            version: journal::VERSION,
            kind: facts.kind,
            capture_id: facts.capture_id.clone(),
            bucket: facts.bucket.clone(),
            key: facts.key.clone().unwrap_or_default(),
            instance: facts.instance.clone(),
            window: facts.window.start,
            extension: extension.into(),
            agent_version: facts.agent_version.clone(),
        };
        let journal = self.folder.path(&facts.capture_id, "journal");
        let path = self.folder.path(&facts.capture_id, extension);
        let file = self.patient.insist(|| {
            if !journal.exists() {
                Journal::create(&journal, open.clone())?;
            }
            let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = options.map_err(io("create", &path))?;
            self.folder.sync()?;
            Ok(file)
        });
        let Some(file) = file else { return };
        let growing = Growing {
            data: Arc::new(Data {
                direct: direct(&path),
                path: path.into(),
                file,
                refused: AtomicBool::new(false),
                durable: Mutex::default(),
                lost: AtomicBool::new(false),
            }),
            capture_id: facts.capture_id.clone(),
            compression: facts.compression,
            extent: Extent::default(),
            checksum: Digest::new(Crc64Nvme),
            index: Index::default(),
            dirty: false,
            waiting: VecDeque::new(),
            torn: false,
        };
        self.files.insert(number, growing);
    }

    fn append(&mut self, number: SegmentNumber, chunk: Chunk) {
        match self.files.get_mut(&number) {
            Some(growing) => growing.waiting.push_back(Waiting::Chunk(chunk)),
            None => return self.give_back(chunk.bytes),
        }
        self.go_on(number);
    }

    /// Does what waits for a segment, as far as the disk has room: what is behind it, of other segments, is not held up.
    fn go_on(&mut self, number: SegmentNumber) {
        while let Some(mut growing) = self.files.remove(&number) {
            match growing.waiting.pop_front() {
                None => {
                    self.files.insert(number, growing);
                    return;
                }
                Some(Waiting::End(facts)) => self.end(growing, *facts),
                Some(Waiting::Chunk(chunk)) => {
                    growing.torn |= growing.data.lost.load(Ordering::Acquire);
                    let refused = self.write(&mut growing, chunk);
                    let full = refused.is_some();
                    refused.into_iter().for_each(|chunk| growing.waiting.push_front(Waiting::Chunk(chunk)));
                    self.files.insert(number, growing);
                    if full {
                        return;
                    }
                }
            }
        }
    }

    /// Writes a chunk at the end of its file; gives it again when the disk is full.
    fn write(&mut self, growing: &mut Growing, chunk: Chunk) -> Option<Chunk> {
        let compress = growing.compression == Compression::Zstd;
        growing.torn |= compress && !self.compress(&growing.data.path, &chunk.bytes);
        if growing.torn || chunk.bytes.is_empty() {
            self.give_back(chunk.bytes);
            return None;
        }
        let data: &[u8] = if compress { &self.compressed } else { &chunk.bytes };
        let (at, file) = (growing.extent.bytes, &growing.data);
        let may_pass_cache = !compress && chunk.bytes.is_whole_pages() && at.is_multiple_of(PAGE_BYTES as u64);
        let direct = file.direct.as_ref().filter(|_| may_pass_cache && self.folder.fresh().makes_room());
        let mut past_cache = false;
        let written = self.patient.insist(|| {
            // What is not taken that way, for whatever reason, is given the other way.
            past_cache = direct.filter(|_| !file.refused.load(Ordering::Acquire)).is_some_and(|direct| {
                let taken = direct.write_at(data, at).is_ok_and(|bytes| bytes == data.len());
                file.refused.fetch_or(!taken, Ordering::AcqRel);
                taken
            });
            match if past_cache { Ok(()) } else { write_all(&file.file, data, at) } {
                Err(cause) if budget::is_full(&cause) && !self.patient.gives_up() => {
                    self.folder.budget().refuse();
                    Ok(false)
                }
                done => done.map(|()| true).map_err(io("write to", &file.path)),
            }
        });
        match written {
            Some(true) => {}
            Some(false) => return Some(chunk),
            None => {
                growing.torn = true;
                self.give_back(chunk.bytes);
                return None;
            }
        }
        if let Some((record_at, time)) = chunk.first_record {
            growing.index.note(at + if compress { 0 } else { u64::from(record_at) }, time);
        }
        growing.checksum.update(data);
        let before = mem::replace(&mut growing.extent, Extent { bytes: at + data.len() as u64, crc64nvme: growing.checksum.finalize() });
        growing.dirty = true;
        if past_cache {
            self.folder.budget().settle(data.len() as u64);
            self.folder.fresh().keep(&growing.data.path, (before, growing.extent), chunk.bytes, &self.back);
        } else {
            self.give_back(chunk.bytes);
        }
        None
    }

    /// Compresses a chunk of the file at `path`; false when that is given up.
    fn compress(&mut self, path: &Path, bytes: &[u8]) -> bool {
        let Self { compressed, compressor, patient, .. } = self;
        compressed.clear();
        compressed.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
        let done = patient.insist(|| compressor.compress_to_buffer(bytes, compressed).map_err(io("compress a chunk of", path)));
        done.is_some()
    }

    fn give_back(&self, mut buffer: Buffer) {
        self.folder.budget().settle(buffer.len() as u64);
        buffer.clear();
        // The recorder's end is gone at the end of the process only.
        let _ = self.back.try_send(buffer);
    }

    fn end(&self, growing: Growing, facts: Facts) {
        if growing.torn || growing.data.lost.load(Ordering::Acquire) {
            let capture_id = facts.capture_id;
            tracing::error!(capture_id, "not all of a segment is on disk; what is will be sent after the next start");
            return;
        }
        let extent = growing.extent;
        let (file_bytes, file_crc64nvme) = (extent.bytes, Some(extent.crc64nvme));
        let facts = Box::new(Facts { file_bytes, file_crc64nvme, index: growing.index, ..facts });
        self.sync(Sync::Whole(facts, Some((growing.data, extent))));
    }

    /// Tries once more what the disk had no room for; whether anything still waits.
    fn try_again(&mut self) -> bool {
        let waiting: Vec<SegmentNumber> = self.files.iter().filter(|(_, growing)| !growing.waiting.is_empty()).map(|(&n, _)| n).collect();
        waiting.iter().for_each(|&number| self.go_on(number));
        self.files.values().any(|growing| !growing.waiting.is_empty())
    }

    fn draft(&mut self, number: SegmentNumber, mut facts: Facts) {
        let Some(growing) = self.files.get(&number) else { return };
        facts.file_bytes = growing.extent.bytes;
        facts.index = growing.index.clone();
        let path = self.folder.path(&growing.capture_id, "draft");
        // A draft is a convenience of salvage: without it the counts of drops are lost, no frame is.
        if let Err(error) = replace(&path, &facts, false) {
            tracing::warn!(%error, "the draft manifest was not kept");
        }
    }

    fn ask_for_sync(&mut self) {
        for growing in self.files.values_mut().filter(|growing| growing.dirty) {
            // A sync that is still under way covers less; the next round asks again.
            if self.syncs.try_send(Sync::Data(growing.data.clone(), growing.extent)).is_ok() {
                growing.dirty = false;
            }
        }
    }

    fn sync(&self, sync: Sync) {
        if self.syncs.send(sync).is_err() {
            tracing::error!("the spool's syncing thread is gone; segments are not marked as whole until the agent is restarted");
        }
    }
}

/// Opens a file past the page cache; `None` where that cannot be had (not every file system has it). It is neither preallocated nor
/// a recycled one: that costs the processor as much (`dd oflag=direct` to a new, an allocated and a written file), and behind a crash what
/// an old file held would stand where frames are looked for.
fn direct(path: &Path) -> Option<File> {
    let opened = OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path);
    opened.inspect_err(|cause| tracing::debug!("writing to {} goes through the page cache: {cause}", path.display())).ok()
}

/// Writes all of `data` at `offset`.
fn write_all(file: &File, data: &[u8], offset: u64) -> std::io::Result<()> {
    let mut at = offset;
    for piece in data.chunks(WRITE_BYTES) {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// What makes data durable: the kernel, or a test's idea of one that fails.
trait Disk {
    /// As `fdatasync`.
    fn sync(&mut self, file: &File) -> std::io::Result<()>;

    /// As `pwrite`.
    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()>;
}

struct KernelDisk;

impl Disk for KernelDisk {
    fn sync(&mut self, file: &File) -> std::io::Result<()> {
        file.sync_data()
    }

    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        file.write_all_at(bytes, offset)
    }
}

/// The syncing thread.
struct Syncing<D> {
    folder: Folder,
    patient: Patient,
    disk: D,
    /// Set when bytes are lost: nothing may follow them, so the agent ends and the next one begins new segments.
    died: Arc<AtomicBool>,
}

impl<D: Disk> Syncing<D> {
    fn run(&mut self, syncs: &Receiver<Sync>) {
        while let Ok(sync) = syncs.recv() {
            match sync {
                Sync::Data(data, extent) => {
                    self.make_durable(&data, extent);
                }
                Sync::Whole(facts, data) => {
                    if data.is_none_or(|(data, extent)| self.make_durable(&data, extent)) {
                        self.patient.insist(|| mark_whole(&self.folder, &facts));
                    }
                }
            }
        }
    }

    /// Makes the beginning of a file durable; false when that is given up, or cannot be any more.
    ///
    /// A sync that failed may have marked as clean what did not reach the disk, and the next one would say that all is well
    /// (fsync(2), "EIO"). What no sync has confirmed is therefore read back, compared and written once more before it is tried again.
    fn make_durable(&mut self, data: &Data, extent: Extent) -> bool {
        let Self { folder, patient, disk, died } = self;
        let mut durable = data.durable.lock().unwrap_or_else(PoisonError::into_inner);
        // An earlier call may have been given up.
        let mut doubtful = folder.doubts(&data.path);
        let done = patient.insist(|| {
            if doubtful && !write_again(disk, data, *durable, extent)? {
                return Ok(false);
            }
            folder.sync_written((&data.path, &data.file), extent.bytes, || disk.sync(&data.file)).map(|()| true).map_err(|cause| {
                data.refused.store(true, Ordering::Release);
                if !doubtful {
                    let path = data.path.display();
                    tracing::error!(%path, from = durable.bytes, to = extent.bytes, "a sync failed; what it left in doubt is written again");
                }
                doubtful = true;
                io("sync", &data.path)(cause)
            })
        });
        if done == Some(false) {
            data.lost.store(true, Ordering::Release);
            died.store(true, Ordering::Release);
            tracing::error!(
                path = %data.path.display(), from = durable.bytes, to = extent.bytes,
                "the disk has lost bytes of a segment; what it has left will be sent after the next start"
            );
        }
        if done == Some(true) && extent.bytes > durable.bytes {
            *durable = extent;
        }
        done == Some(true)
    }
}

/// Writes what no sync has confirmed of a file's beginning once more, as it reads back; false when that is not what was written.
fn write_again(disk: &mut impl Disk, data: &Data, durable: Extent, extent: Extent) -> Result<bool, Error> {
    let mut read = durable;
    let mut buffer = vec![0; WRITE_AGAIN_BYTES];
    for rewrite in [false, true] {
        let mut at = durable.bytes;
        while at < extent.bytes {
            let Some(piece) = buffer.get_mut(..(extent.bytes - at).min(WRITE_AGAIN_BYTES as u64) as usize) else { return Ok(false) };
            data.file.read_exact_at(piece, at).map_err(io("read back", &data.path))?;
            if rewrite {
                disk.write(&data.file, piece, at).map_err(io("write again to", &data.path))?;
            } else {
                let (crc64nvme, bytes) = (checksum(Crc64Nvme, piece), piece.len() as u64);
                read.crc64nvme = checksum_combine(Crc64Nvme, read.crc64nvme, crc64nvme, bytes);
            }
            at += piece.len() as u64;
        }
        if extent.bytes > durable.bytes && read.crc64nvme != extent.crc64nvme {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The looking thread.
struct Looking {
    folder: Folder,
    on_full: OnFull,
    counters: Arc<Counters>,
}

impl Looking {
    fn run(&self, asked: &Receiver<u64>) {
        loop {
            let began = Instant::now();
            self.look();
            // A folder of very many files is looked at less often.
            thread::sleep(LOOK_AGAIN.max(2 * began.elapsed()).min(LOOK_EVERY));
            match asked.recv_timeout(LOOK_EVERY) {
                Ok(bytes) if self.on_full == OnFull::DropOldest => self.make_room(bytes.max(ROOM_MADE_BYTES)),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&self) {
        match self.folder.budget().look() {
            Ok(level) => budget::tell(level, &self.counters),
            Err(error) => tracing::warn!(%error, "how full the spool is cannot be seen"),
        }
    }

    /// Makes room for so many bytes, if there is none when looked at closely.
    fn make_room(&self, bytes: u64) {
        loop {
            self.look();
            if self.folder.budget().admits(bytes) {
                return;
            }
            match give_way::oldest(&self.folder, &self.counters) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return tracing::error!(%error, "no segment could give way"),
            }
        }
    }
}

/// Marks a segment as whole: its final facts appear under their name, durable.
pub(super) fn mark_whole(folder: &Folder, facts: &Facts) -> Result<(), Error> {
    replace(&folder.path(&facts.capture_id, "manifest"), facts, true)?;
    folder.sync()?;
    remove_if_there(&folder.path(&facts.capture_id, "draft"))
}

/// Puts facts in place of a file in one step.
pub(super) fn replace(path: &Path, facts: &Facts, durable: bool) -> Result<(), Error> {
    let unfinished = path.with_extension("unfinished");
    let json = serde_json::to_vec(facts).map_err(|cause| io("encode", path)(cause.into()))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(&json)?;
        if durable { file.sync_data() } else { Ok(()) }
    };
    budget::with_ballast(dir, write).map_err(io("write", &unfinished))?;
    fs::rename(&unfinished, path).map_err(io("put in place", path))
}

#[cfg(test)]
mod tests;
