//! In: the recorder's chunks. Out: files in the folder, growing, durable within the settings' times, whole when marked so.
//! Never: loses a chunk because the disk refuses (it tries again, the recorder waits, the kernel counts); rewrites a byte.
//!
//! Two threads: one writes, one syncs and marks segments as whole, so that a slow sync does not hold up the next write.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zstd::bulk::Compressor;

use super::journal::{self, Journal, Open, io};
use super::{Error, Folder, Settings};
use crate::observe::counters::Counters;
use crate::record::facts::Index;
use crate::record::{self, Chunk, Compression, Facts, SegmentNumber, Spool};

/// Buffers between the recorder and the disk: 64 MiB, half a second at 1 Gb/s.
const BUFFERS_MAX: usize = 64;

/// How long to wait before a refused write is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

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
    Data(Arc<File>, PathBuf),
    Whole(Box<Facts>, Option<(Arc<File>, PathBuf)>),
}

/// The recorder's end: implements [`Spool`].
pub struct Writer {
    orders: SyncSender<Order>,
    empty: Receiver<Vec<u8>>,
    made: usize,
    max_bytes: u64,
    counters: Arc<Counters>,
}

/// The threads behind a [`Writer`].
pub struct Threads {
    write: JoinHandle<()>,
    sync: JoinHandle<()>,
    abandon: Arc<AtomicBool>,
}

impl Threads {
    /// What the disk refuses from now on is given up (and logged): the agent is ending.
    pub fn insist_no_longer(&self) {
        self.abandon.store(true, Ordering::Release);
    }

    /// Waits until everything handed over is on disk and whole. When the disk goes on refusing for longer than `patience`,
    /// what it refuses is given up (and logged).
    pub fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let Self { write, sync, abandon } = self;
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
    let abandon = Arc::new(AtomicBool::new(false));
    let patient = Patient { abandon: abandon.clone() };
    let mut writing = Writing {
        folder: folder.clone(),
        sync_every: Duration::from_millis(settings.sync_ms),
        files: HashMap::new(),
        compressor: Compressor::new(ZSTD_LEVEL).map_err(failed("start compression for"))?,
        compressed: Vec::new(),
        back,
        syncs,
        patient: patient.clone(),
        counters: counters.clone(),
    };
    let write =
        thread::Builder::new().name("spool-write".into()).spawn(move || writing.run(&to_write)).map_err(failed("start a thread for"))?;
    let mut syncing = Syncing { folder: folder.clone(), patient };
    let sync =
        thread::Builder::new().name("spool-sync".into()).spawn(move || syncing.run(&to_sync)).map_err(failed("start a thread for"))?;
    let writer = Writer { orders, empty, made: 0, max_bytes: settings.max_bytes, counters };
    Ok((writer, Threads { write, sync, abandon }))
}

impl Writer {
    fn order(&self, order: Order) {
        // The thread ends only when this end is dropped.
        if self.orders.send(order).is_err() {
            tracing::error!("the spool's writing thread is gone; frames are lost until the agent is restarted");
        }
    }
}

impl Spool for Writer {
    fn buffer(&mut self) -> Vec<u8> {
        if let Ok(buffer) = self.empty.try_recv() {
            return buffer;
        }
        if self.made < BUFFERS_MAX {
            self.made += 1;
            return Vec::with_capacity(Self::CHUNK_BYTES);
        }
        self.empty.recv().unwrap_or_else(|_| Vec::with_capacity(Self::CHUNK_BYTES))
    }

    fn open(&mut self, number: SegmentNumber, facts: Facts) {
        self.order(Order::Open(number, facts.into()));
    }

    fn append(&mut self, number: SegmentNumber, chunk: Chunk) {
        self.order(Order::Append(number, chunk));
    }

    fn draft(&mut self, number: SegmentNumber, facts: Facts) {
        self.order(Order::Draft(number, facts.into()));
    }

    fn close(&mut self, number: SegmentNumber, facts: Facts) {
        self.order(Order::Close(number, facts.into()));
    }

    fn idle(&mut self, facts: Facts) {
        self.order(Order::Idle(facts.into()));
    }

    fn has_room(&self) -> bool {
        self.counters.spool_bytes.get() < self.max_bytes
    }
}

/// Tries again until it works or the agent gives up.
#[derive(Clone)]
struct Patient {
    abandon: Arc<AtomicBool>,
}

impl Patient {
    fn insist<T>(&self, mut attempt: impl FnMut() -> Result<T, Error>) -> Option<T> {
        let mut told = false;
        loop {
            match attempt() {
                Ok(done) => return Some(done),
                Err(error) if self.abandon.load(Ordering::Acquire) => {
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

/// A segment's file.
struct Growing {
    path: PathBuf,
    file: Arc<File>,
    capture_id: String,
    compression: Compression,
    bytes: u64,
    index: Index,
    dirty: bool,
    /// A chunk was given up: nothing may follow it, and the next start cuts the file after its last whole record.
    torn: bool,
}

/// The writing thread.
struct Writing {
    folder: Folder,
    sync_every: Duration,
    files: HashMap<SegmentNumber, Growing>,
    compressor: Compressor<'static>,
    compressed: Vec<u8>,
    back: SyncSender<Vec<u8>>,
    syncs: SyncSender<Sync>,
    patient: Patient,
    counters: Arc<Counters>,
}

impl Writing {
    fn run(&mut self, orders: &Receiver<Order>) {
        let mut sync_at = Instant::now() + self.sync_every;
        loop {
            match orders.recv_timeout(sync_at.saturating_duration_since(Instant::now())) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= sync_at {
                self.ask_for_sync();
                sync_at = Instant::now() + self.sync_every;
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(number, facts) => self.open(number, &facts),
            Order::Append(number, chunk) => self.append(number, chunk),
            Order::Draft(number, facts) => self.draft(number, *facts),
            Order::Close(number, facts) => {
                let Some(growing) = self.files.remove(&number).filter(|growing| !growing.torn) else {
                    tracing::error!(
                        capture_id = facts.capture_id,
                        "not all of a segment is on disk; what is will be sent after the next start"
                    );
                    return;
                };
                let facts = Box::new(Facts { file_bytes: growing.bytes, index: growing.index, ..*facts });
                self.sync(Sync::Whole(facts, Some((growing.file, growing.path))));
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
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io("create", &path))?;
            self.folder.sync()?;
            Ok(file)
        });
        let Some(file) = file else { return };
        let growing = Growing {
            path,
            file: Arc::new(file),
            capture_id: facts.capture_id.clone(),
            compression: facts.compression,
            bytes: 0,
            index: Index::default(),
            dirty: false,
            torn: false,
        };
        self.files.insert(number, growing);
    }

    fn append(&mut self, number: SegmentNumber, chunk: Chunk) {
        let Chunk { mut bytes, first_record } = chunk;
        if let Some(growing) = self.files.get_mut(&number).filter(|growing| !growing.torn && !bytes.is_empty()) {
            if let Some((at, time)) = first_record {
                let at = if growing.compression == Compression::Zstd { 0 } else { u64::from(at) };
                growing.index.note(growing.bytes + at, time);
            }
            let data = match growing.compression {
                Compression::None => &bytes,
                Compression::Zstd => {
                    self.compressed.clear();
                    self.compressed.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
                    let compressed = self.patient.insist(|| {
                        self.compressor.compress_to_buffer(&bytes, &mut self.compressed).map_err(io("compress a chunk of", &growing.path))
                    });
                    growing.torn = compressed.is_none();
                    &self.compressed
                }
            };
            let mut write = || growing.file.write_all_at(data, growing.bytes).map_err(io("write to", &growing.path));
            if !growing.torn && self.patient.insist(&mut write).is_some() {
                growing.bytes += data.len() as u64;
                growing.dirty = true;
                self.counters.spool_bytes.add(data.len() as u64);
            } else {
                growing.torn = true;
            }
        }
        bytes.clear();
        // The recorder's end is gone at the end of the process only.
        let _ = self.back.try_send(bytes);
    }

    fn draft(&mut self, number: SegmentNumber, mut facts: Facts) {
        let Some(growing) = self.files.get(&number) else { return };
        facts.file_bytes = growing.bytes;
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
            if self.syncs.try_send(Sync::Data(growing.file.clone(), growing.path.clone())).is_ok() {
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

/// The syncing thread.
struct Syncing {
    folder: Folder,
    patient: Patient,
}

impl Syncing {
    fn run(&mut self, syncs: &Receiver<Sync>) {
        while let Ok(sync) = syncs.recv() {
            match sync {
                Sync::Data(file, path) => {
                    self.patient.insist(|| file.sync_data().map_err(io("sync", &path)));
                }
                Sync::Whole(facts, data) => {
                    self.patient.insist(|| {
                        if let Some((file, path)) = &data {
                            file.sync_data().map_err(io("sync", path))?;
                        }
                        mark_whole(&self.folder, &facts)
                    });
                }
            }
        }
    }
}

/// Marks a segment as whole: its final facts appear under their name, durable.
pub(super) fn mark_whole(folder: &Folder, facts: &Facts) -> Result<(), Error> {
    replace(&folder.path(&facts.capture_id, "manifest"), facts, true)?;
    folder.sync()?;
    let draft = folder.path(&facts.capture_id, "draft");
    match fs::remove_file(&draft) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &draft)(cause)),
        _ => Ok(()),
    }
}

/// Puts facts in place of a file in one step.
fn replace(path: &std::path::Path, facts: &Facts, durable: bool) -> Result<(), Error> {
    let unfinished = path.with_extension("unfinished");
    let json = serde_json::to_vec(facts).map_err(|cause| io("encode", path)(cause.into()))?;
    let mut file = File::create(&unfinished).map_err(io("create", &unfinished))?;
    file.write_all(&json).map_err(io("write to", &unfinished))?;
    if durable {
        file.sync_data().map_err(io("sync", &unfinished))?;
    }
    fs::rename(&unfinished, path).map_err(io("put in place", path))
}

#[cfg(test)]
mod tests;
