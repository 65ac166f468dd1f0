//! How many bytes the spool may hold, and does: `spool.max_bytes`, or what its file system has left, whichever is less.
//! In: the sizes of the folder's files, free space, every chunk on its way to the disk. Out: whether there is room for more.
//! Never: admits a byte of data that journals and manifests could then lack; counts less than there is.
//!
//! A part of the budget, the reserve, is kept from data for journals and manifests. Half of it lies on the disk as the
//! ballast: whoever else fills the file system leaves that much, and who writes a journal takes of it ([`lighten`]).

use std::fs::{self, File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::Error;
use super::folder::{LOCK, is_data};
use super::journal::io;
use crate::observe::counters::Counters;

/// The file that is the ballast: that of the folder's lock, which is there in any case and whose content nobody reads.
const BALLAST: &str = LOCK;

/// A file takes whole blocks of the disk.
const BLOCK_BYTES: u64 = 4096;

/// The reserve: this part of the budget or of the whole file system, within bounds.
const RESERVE_PART: u64 = 64;
const RESERVE_MIN: u64 = 128 << 10;
const RESERVE_MAX: u64 = 64 << 20;

/// How much of the ballast is let go at once.
const LIGHTEN_BYTES: u64 = 64 << 10;

/// The budget of one folder.
#[derive(Debug)]
pub struct Budget {
    dir: PathBuf,
    max_bytes: u64,
    reserve_bytes: u64,
    /// Data on disk as last seen, less what had been settled then: with `handed` it is what the data are, or will be.
    base: AtomicU64,
    /// Bytes of chunks handed over, ever.
    handed: AtomicU64,
    /// Of those, written or given up.
    settled: AtomicU64,
    /// How much data there may be.
    room: AtomicU64,
    /// The disk said that it is full; until the next look.
    refused: AtomicBool,
}

/// What lies in a spool's folder.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Holdings {
    /// Bytes of data.
    pub data: u64,
    /// Bytes of everything else but the ballast, in whole blocks, and of the data's last blocks.
    pub small: u64,
    /// Bytes of the ballast.
    pub ballast: u64,
}

/// What a look showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    /// Bytes that it holds.
    pub holds: u64,
    /// The most it can hold now; at that level nothing more is admitted.
    pub capacity: u64,
}

impl Budget {
    /// Of a folder. The first look says what it holds.
    #[must_use]
    pub fn new(dir: &Path, max_bytes: u64) -> Self {
        let disk_bytes = statvfs(dir).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        Self {
            dir: dir.into(),
            max_bytes,
            reserve_bytes: (max_bytes.min(disk_bytes) / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX),
            base: AtomicU64::new(0),
            handed: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            room: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        }
    }

    /// Whether `bytes` of data find room beyond all that was handed over.
    #[must_use]
    pub fn admits(&self, bytes: u64) -> bool {
        !self.refused.load(Ordering::Acquire) && bytes <= self.free()
    }

    /// For how many bytes of data there is room beyond all that was handed over: as many as are admitted.
    #[must_use]
    pub fn spare(&self) -> u64 {
        if self.refused.load(Ordering::Acquire) { 0 } else { self.free() }
    }

    /// Whether a tenth of the room is free.
    #[must_use]
    pub fn is_relaxed(&self) -> bool {
        !self.refused.load(Ordering::Acquire) && self.free() >= self.room.load(Ordering::Acquire) / 10
    }

    fn free(&self) -> u64 {
        self.room.load(Ordering::Acquire).saturating_sub(self.data())
    }

    /// What the data are, or will be when all that was handed over is written.
    fn data(&self) -> u64 {
        // The base may be below zero, by as much as was handed over before.
        self.base.load(Ordering::Acquire).wrapping_add(self.handed.load(Ordering::Acquire))
    }

    /// A chunk was handed over.
    pub fn hand_over(&self, bytes: u64) {
        self.handed.fetch_add(bytes, Ordering::AcqRel);
    }

    /// What was handed over is in its file, perhaps as fewer bytes, or given up.
    pub fn settle(&self, bytes: u64) {
        self.settled.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The disk refused a write for want of room, whatever the last look said.
    pub fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
    }

    /// Looks at folder and file system, and sets the room by what is there. The ballast follows.
    ///
    /// # Errors
    /// When the folder or its file system cannot be examined.
    pub fn look(&self) -> Result<Level, Error> {
        // What is written during the look counts twice until the next one, and never not at all.
        let settled = self.settled.load(Ordering::Acquire);
        let holdings = holdings(&self.dir)?;
        let disk = statvfs(&self.dir).map_err(|cause| io("examine the file system of", &self.dir)(cause.into()))?;
        let available = disk.f_bavail.saturating_mul(disk.f_frsize);
        self.base.store(holdings.data.wrapping_sub(settled), Ordering::Release);
        let by_budget = self.max_bytes.saturating_sub(holdings.small).saturating_sub(self.reserve_bytes);
        // Half of the reserve is the ballast, which is not available; the other half stays free.
        let by_disk = holdings.data.saturating_add((available + holdings.ballast).saturating_sub(self.reserve_bytes));
        self.room.store(by_budget.min(by_disk), Ordering::Release);
        self.refused.store(false, Ordering::Release);
        self.weigh(holdings, available);
        let holds = holdings.data + holdings.small;
        Ok(Level { holds, capacity: holds + self.free() })
    }

    /// Keeps the ballast at half of the reserve, less what journals and manifests have taken of the whole.
    fn weigh(&self, holdings: Holdings, available: u64) {
        let left = self.max_bytes.saturating_sub(self.data().saturating_add(holdings.small));
        let wanted = left.saturating_sub(self.reserve_bytes / 4).min(self.reserve_bytes / 2);
        let path = self.dir.join(BALLAST);
        let done = if wanted < holdings.ballast {
            OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(wanted))
        } else if wanted > holdings.ballast && available > 2 * self.reserve_bytes {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            file.and_then(|file| fallocate(&file, FallocateFlags::empty(), 0, wanted).map_err(Into::into))
        } else {
            Ok(())
        };
        if let Err(cause) = done {
            // Another half of the reserve is only not used; the next look tries again.
            tracing::debug!(%cause, path = %path.display(), "the ballast is not as heavy as it should be");
        }
    }
}

/// Tells of a level.
pub fn tell(level: Level, counters: &Counters) {
    counters.spool_bytes.set(level.holds);
    counters.spool_capacity.set(level.capacity);
}

/// Lets go of some ballast in `dir` when a write of a journal or manifest failed for want of room; whether it is worth trying again.
pub(super) fn lighten(dir: &Path, cause: &IoError) -> bool {
    if !is_full(cause) {
        return false;
    }
    let file = OpenOptions::new().write(true).open(dir.join(BALLAST));
    let Ok((file, bytes)) = file.and_then(|file: File| file.metadata().map(|meta| (file, meta.len()))) else { return false };
    bytes > 0 && file.set_len(bytes.saturating_sub(LIGHTEN_BYTES)).is_ok()
}

/// Does something that needs room for a journal or manifest in `dir`, if need be at the ballast's expense.
pub(super) fn with_ballast<T>(dir: &Path, mut act: impl FnMut() -> Result<T, IoError>) -> Result<T, IoError> {
    loop {
        match act() {
            Err(cause) if lighten(dir, &cause) => {}
            done => return done,
        }
    }
}

/// Whether a write failed because the disk, or somebody's share of it, is full.
pub(super) fn is_full(cause: &IoError) -> bool {
    matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// What the files in `dir` hold.
///
/// # Errors
/// When the folder cannot be listed.
pub fn holdings(dir: &Path) -> Result<Holdings, Error> {
    let mut holdings = Holdings::default();
    for entry in fs::read_dir(dir).map_err(io("list the spool", dir))? {
        let entry = entry.map_err(io("list the spool", dir))?;
        // What was removed meanwhile is gone.
        let Some(bytes) = entry.metadata().ok().filter(fs::Metadata::is_file).map(|meta| meta.len()) else { continue };
        let name = entry.file_name();
        let extension = name.to_str().and_then(|name| name.split_once('.')).map_or("", |(_, extension)| extension);
        if name == BALLAST {
            holdings.ballast = bytes;
        } else if is_data(extension) {
            holdings.data += bytes;
            holdings.small += BLOCK_BYTES;
        } else {
            holdings.small += bytes.next_multiple_of(BLOCK_BYTES);
        }
    }
    Ok(holdings)
}

#[cfg(test)]
mod tests;
