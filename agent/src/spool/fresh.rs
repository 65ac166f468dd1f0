//! What was written last, kept in memory for the uploader: as long as it keeps up, nothing is read back from the disk.
//! In: chunks of files, each once it is written. Out: sections of files whose chunks are all here, with their checksum.
//! Never: holds more than [`CHUNKS_MAX`] chunks, also while requests still hold them; makes anybody wait; answers with a part of a section.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use crc_fast::checksum_combine;
use tokio::sync::Notify;

use crate::record::Buffer;

/// The most chunks that are kept while the uploader takes them: 40 MiB, a part on its way and the next one, with what comes until it is
/// asked for. The recorder's other buffers are on their way to the disk.
pub const CHUNKS_MAX: usize = 20;

/// The most that are kept while it does not: a part, and what comes until it is asked for. Memory in use again soon is still in the
/// processor's cache (`make bench`, contest `capture`).
pub const CHUNKS_UNASKED: usize = 8;

/// After so many chunks without a question the uploader takes none: it is far behind, or S3 is away.
const ASKED_LATELY: usize = 32;

/// After so many bytes the uploader is told: less than that is hardly ever worth a look.
const TELL_BYTES: u64 = 8 << 20;

/// The beginning of a file: how many bytes, and their CRC64NVME.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Extent {
    /// How many.
    pub bytes: u64,
    /// Of them all.
    pub crc64nvme: u64,
}

/// The chunks that are kept.
#[derive(Debug)]
pub struct Fresh {
    /// Oldest first.
    chunks: Mutex<VecDeque<Kept>>,
    /// Chunks whose memory is not back, kept or not.
    lent: Arc<AtomicUsize>,
    /// Chunks since the last answer.
    unasked: AtomicUsize,
    untold_bytes: AtomicU64,
    grown: Notify,
}

/// A chunk of a file.
#[derive(Debug)]
struct Kept {
    path: Arc<Path>,
    /// The file up to it, and with it.
    before: Extent,
    after: Extent,
    memory: Arc<Lent>,
}

/// A chunk's memory; it goes back to the recorder when nobody reads it any more.
#[derive(Debug)]
struct Lent {
    buffer: Option<Buffer>,
    home: Weak<SyncSender<Buffer>>,
    lent: Arc<AtomicUsize>,
}

/// A section of a file, from memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// Its bytes, one after the other.
    pub pieces: Vec<Bytes>,
    /// The CRC64NVME of them all.
    pub crc64nvme: u64,
}

impl Default for Fresh {
    fn default() -> Self {
        Self {
            chunks: Mutex::default(),
            lent: Arc::default(),
            unasked: AtomicUsize::new(ASKED_LATELY),
            untold_bytes: AtomicU64::default(),
            grown: Notify::default(),
        }
    }
}

impl Fresh {
    /// Whether the next chunk can be kept. For an uploader that takes what is kept none goes that it will ask for soon; for one that
    /// does not, the oldest.
    #[must_use]
    pub fn makes_room(&self) -> bool {
        if self.unasked.fetch_add(1, Ordering::AcqRel) >= ASKED_LATELY {
            let mut chunks = self.chunks();
            while self.lent.load(Ordering::Acquire) >= CHUNKS_UNASKED
                && let Some(oldest) = chunks.iter().position(|kept| Arc::strong_count(&kept.memory) == 1)
            {
                chunks.remove(oldest);
            }
        }
        self.lent.load(Ordering::Acquire) < CHUNKS_MAX
    }

    /// Keeps the chunk of the file at `path` that is between two of its extents. Its memory goes back by `home`.
    pub fn keep(&self, path: &Arc<Path>, (before, after): (Extent, Extent), buffer: Buffer, home: &Arc<SyncSender<Buffer>>) {
        let bytes = buffer.len() as u64;
        self.lent.fetch_add(1, Ordering::AcqRel);
        let memory = Arc::new(Lent { buffer: Some(buffer), home: Arc::downgrade(home), lent: self.lent.clone() });
        self.chunks().push_back(Kept { path: path.clone(), before, after, memory });
        if self.untold_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= TELL_BYTES {
            self.untold_bytes.store(0, Ordering::Relaxed);
            self.grown.notify_one();
        }
    }

    /// A section of the file at `path`, if all of it is here. The memory is not used again before the answer is dropped.
    #[must_use]
    pub fn section(&self, path: &Path, offset: u64, bytes: u64) -> Option<Section> {
        let end = offset.checked_add(bytes)?;
        let (mut first, mut last, mut pieces) = (None, Extent { bytes: offset, crc64nvme: 0 }, Vec::new());
        for kept in self.chunks().iter().filter(|kept| *kept.path == *path && kept.is_within(offset, end)) {
            if kept.before.bytes != last.bytes {
                return None;
            }
            first = first.or(Some(kept.before));
            last = kept.after;
            pieces.push(Bytes::from_owner(Reader(kept.memory.clone())));
        }
        let first = first.filter(|_| last.bytes == end)?;
        self.unasked.store(0, Ordering::Release);
        // What comes before a section goes into the sum of both as if zeros followed it: this takes it out again.
        Some(Section { pieces, crc64nvme: last.crc64nvme ^ checksum_combine(Crc64Nvme, first.crc64nvme, 0, bytes) })
    }

    /// A section has been sent: what is kept of it is of no more use.
    pub fn forget(&self, path: &Path, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes);
        self.chunks().retain(|kept| *kept.path != *path || !kept.is_within(offset, end));
    }

    /// Waits until there is enough to look for.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    fn chunks(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn is_within(&self, offset: u64, end: u64) -> bool {
        self.before.bytes >= offset && self.after.bytes <= end
    }
}

impl Lent {
    fn bytes(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.lent.fetch_sub(1, Ordering::AcqRel);
        // The spool's end is gone at the end of the process only.
        if let (Some(mut buffer), Some(home)) = (self.buffer.take(), self.home.upgrade()) {
            buffer.clear();
            let _ = home.try_send(buffer);
        }
    }
}

/// Who reads a chunk.
struct Reader(Arc<Lent>);

impl AsRef<[u8]> for Reader {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crc_fast::checksum;
    use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

    const BYTES: u64 = 1000;

    fn home() -> (Arc<SyncSender<Buffer>>, Receiver<Buffer>) {
        let (home, back) = sync_channel(2 * CHUNKS_MAX);
        (Arc::new(home), back)
    }

    fn path(name: &str) -> Arc<Path> {
        Arc::from(Path::new(name))
    }

    fn chunk(number: u64) -> Buffer {
        let mut buffer = Buffer::with_capacity(BYTES as usize);
        buffer.extend_from_slice(&vec![number as u8; BYTES as usize]);
        buffer
    }

    fn keep(fresh: &Fresh, path: &Arc<Path>, numbers: impl Iterator<Item = u64>, home: &Arc<SyncSender<Buffer>>) {
        let extent = |chunks: u64| {
            let bytes: Vec<u8> = (0..chunks).flat_map(|number| chunk(number).to_vec()).collect();
            Extent { bytes: bytes.len() as u64, crc64nvme: checksum(Crc64Nvme, &bytes) }
        };
        for number in numbers {
            fresh.keep(path, (extent(number), extent(number + 1)), chunk(number), home);
        }
    }

    #[test]
    fn a_section_is_answered_when_all_of_it_is_here_and_with_its_checksum() {
        let (fresh, (home, back)) = (Fresh::default(), home());
        let (one, other) = (path("one"), path("other"));
        keep(&fresh, &one, [0, 1, 2, 4].into_iter(), &home);
        keep(&fresh, &other, [3].into_iter(), &home);
        let section = fresh.section(&one, BYTES, 2 * BYTES).unwrap();
        let bytes = section.pieces.concat();
        assert_eq!(bytes, [vec![1; BYTES as usize], vec![2; BYTES as usize]].concat());
        assert_eq!(section.crc64nvme, checksum(Crc64Nvme, &bytes));
        for (what, offset, bytes) in [
            ("a chunk of another file in between", 2 * BYTES, 3 * BYTES),
            ("only a part of a chunk", BYTES, BYTES + 1),
            ("from within a chunk", 1, BYTES),
            ("more than there is", 4 * BYTES, 2 * BYTES),
            ("nothing", BYTES, 0),
            ("beyond all numbers", u64::MAX, BYTES),
        ] {
            assert_eq!(fresh.section(&one, offset, bytes), None, "{what}");
        }
        fresh.forget(&one, 0, 3 * BYTES);
        assert_eq!(back.try_iter().count(), 1, "what is still read is not used again");
        drop(section);
        assert_eq!(back.try_iter().count(), 2);
        assert!(fresh.section(&one, 0, BYTES).is_none() && fresh.section(&one, 4 * BYTES, BYTES).is_some());
    }

    #[test]
    fn an_uploader_that_takes_what_is_kept_gets_all_there_is_memory_for() {
        let (fresh, (home, back)) = (Fresh::default(), home());
        let one = path("one");
        let mut number = 0;
        let mut keep_while_there_is_room = |fresh: &Fresh| {
            while fresh.makes_room() && number < 3 * CHUNKS_MAX as u64 {
                keep(fresh, &one, std::iter::once(number), &home);
                number += 1;
            }
            number
        };
        keep(&fresh, &path("one"), std::iter::once(1000), &home);
        let asked = fresh.section(&path("one"), 1000 * BYTES, BYTES).unwrap();
        assert_eq!(keep_while_there_is_room(&fresh), CHUNKS_MAX as u64 - 1, "and none of them went for another");
        let all: Vec<_> = (0..CHUNKS_MAX as u64 - 1).map(|number| fresh.section(&path("one"), number * BYTES, BYTES).unwrap()).collect();
        // What is read counts, also when its file is gone.
        fresh.forget(&path("one"), 0, u64::MAX);
        assert!(!fresh.makes_room());
        drop(asked);
        assert!(fresh.makes_room());
        drop(all);
        assert_eq!(back.try_iter().count(), CHUNKS_MAX, "each comes home once");
    }

    #[test]
    fn for_an_uploader_that_asks_for_nothing_little_is_kept_and_the_newest() {
        let (fresh, (home, _back)) = (Fresh::default(), home());
        let one = path("one");
        let chunks = 2 * ASKED_LATELY as u64;
        let kept = |fresh: &Fresh| (0..chunks).filter(|number| fresh.section(&one, number * BYTES, BYTES).is_some()).collect::<Vec<_>>();
        for number in 0..chunks {
            assert!(fresh.makes_room());
            keep(&fresh, &one, std::iter::once(number), &home);
        }
        let newest: Vec<_> = (chunks - CHUNKS_UNASKED as u64..chunks).collect();
        assert_eq!(kept(&fresh), newest);
        // That was a question: until it is long ago nothing goes, and what finds no room is not kept.
        let most = CHUNKS_MAX - CHUNKS_UNASKED;
        assert_eq!(
            (0..most).filter(|_| fresh.makes_room()).map(|n| keep(&fresh, &path("other"), std::iter::once(n as u64), &home)).count(),
            most
        );
        assert!(!fresh.makes_room() && kept(&fresh) == newest);
    }

    #[test]
    fn memory_whose_home_is_gone_holds_nothing_up() {
        let (fresh, (home, back)) = (Fresh::default(), home());
        keep(&fresh, &path("one"), 0..3, &home);
        drop(home);
        assert_eq!(back.try_recv().unwrap_err(), TryRecvError::Disconnected, "what is kept holds no end of the channel");
        fresh.forget(&path("one"), 0, u64::MAX);
        assert!(fresh.makes_room());
    }
}
