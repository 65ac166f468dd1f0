//! The folder itself: its lock, its files and their names.
//! In: a path. Out: the segments that lie there. Never: a decision about them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::budget::Budget;
use super::failing;
use super::fresh::Fresh;
use super::journal::io;
use super::{Error, Settings};

/// The name of the lock; without a dot, so that it is no segment's.
pub(super) const LOCK: &str = "lock";

/// The folder, locked for this process for as long as a clone of it lives.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
    budget: Arc<Budget>,
    fresh: Arc<Fresh>,
    claimed: Arc<Mutex<BTreeSet<String>>>,
    /// Files of which a sync failed: how much of them is on the disk nobody knows, up to the byte that was their last then.
    in_doubt: Arc<Mutex<BTreeMap<PathBuf, u64>>>,
    /// Held, never read: closing it unlocks.
    _lock: Arc<File>,
}

/// The right to decide what becomes of a segment: whether it is completed, or gives way. Ends with the value.
#[derive(Debug)]
pub struct Claim {
    capture_id: String,
    claimed: Arc<Mutex<BTreeSet<String>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.capture_id);
    }
}

/// The files of one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its capture id, the stem of its files.
    pub capture_id: String,
    /// Its bytes, if any were ever to be written.
    pub data: Option<PathBuf>,
    /// Its journal, unless it is an idle window.
    pub journal: Option<PathBuf>,
    /// Its facts so far, while it grows.
    pub draft: Option<PathBuf>,
    /// Its final facts, once it is whole.
    pub manifest: Option<PathBuf>,
    /// Since when it has failed while others got through, if it has.
    pub failing: Option<PathBuf>,
}

impl Folder {
    /// Makes the folder if need be, and locks it.
    ///
    /// # Errors
    /// When it cannot be made or locked, another process holds it, or it is on the root device and that was not asked for.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let dir = &settings.dir;
        fs::create_dir_all(dir).map_err(io("create the spool", dir))?;
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).map_err(io("examine", path));
        if !settings.allow_root_device && device(dir)? == device(Path::new("/"))? {
            return Err(Error::RootDevice { dir: dir.clone() });
        }
        let path = dir.join(LOCK);
        let options = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = options.map_err(io("create the lock", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::InUse { dir: dir.clone() })?;
        remove_unfinished(dir)?;
        let budget = Arc::new(Budget::new(dir, settings.max_bytes));
        budget.look()?;
        Ok(Self {
            dir: dir.clone(),
            budget,
            fresh: Arc::default(),
            claimed: Arc::default(),
            in_doubt: Arc::default(),
            _lock: Arc::new(lock),
        })
    }

    /// How many bytes it may hold, and does.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What was written last.
    #[must_use]
    pub fn fresh(&self) -> &Arc<Fresh> {
        &self.fresh
    }

    /// Claims a segment; `None` while another has it.
    #[must_use]
    pub fn claim(&self, capture_id: &str) -> Option<Claim> {
        let free = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(capture_id.to_owned());
        free.then(|| Claim { capture_id: capture_id.to_owned(), claimed: self.claimed.clone() })
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one of a segment's files.
    #[must_use]
    pub fn path(&self, capture_id: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{capture_id}.{extension}"))
    }

    /// As [`list`], of this folder.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn segments(&self) -> Result<Vec<Segment>, Error> {
        list(&self.dir)
    }

    /// Makes additions to and removals from the folder durable.
    ///
    /// # Errors
    /// When the folder cannot be synced.
    pub fn sync(&self) -> Result<(), Error> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("sync the spool", &self.dir))
    }

    /// Syncs a file by `sync`, for whoever writes to it, and notes whether that failed. A failure is told once to each who has the file
    /// open, and to those who open it later not at all (fsync(2), "EIO"). It is over when so many `bytes` are durable as there were then:
    /// also what came behind those that were to be synced was tried, and will not be again.
    pub(super) fn sync_written(
        &self,
        (path, file): (&Path, &File),
        bytes: u64,
        sync: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        // Held meanwhile, so that no other sync succeeds before this failure is noted.
        let mut in_doubt = self.in_doubt();
        let done = sync();
        if done.is_err() {
            in_doubt.insert(path.to_owned(), bytes_of(file));
        } else if in_doubt.get(path).is_some_and(|&end| end <= bytes) {
            in_doubt.remove(path);
        }
        done
    }

    /// Makes durable what was written to a file so far. Of one that `grows` a failure holds until who writes to it has succeeded. A whole
    /// one is what its writer has synced, or salvage has left: nobody would clear a doubt about it.
    ///
    /// # Errors
    /// When it cannot be synced, or an earlier sync left it in doubt.
    pub fn sync_data(&self, path: &Path, grows: bool) -> Result<(), Error> {
        let file = File::open(path).map_err(io("open", path))?;
        let sync = || file.sync_data().map_err(io("sync", path));
        if !grows {
            return sync();
        }
        let mut in_doubt = self.in_doubt();
        if in_doubt.contains_key(path) {
            return Err(io("sync", path)(std::io::Error::other("an earlier sync failed; what that left in doubt is written again")));
        }
        sync().inspect_err(|_| {
            in_doubt.insert(path.to_owned(), bytes_of(&file));
        })
    }

    /// Whether a sync of a file failed, and what that left in doubt is not durable yet.
    pub(super) fn doubts(&self, path: &Path) -> bool {
        self.in_doubt().contains_key(path)
    }

    fn in_doubt(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a segment's files, the journal last, so that a crash in between leaves what says that it is verified.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self, segment: &Segment) -> Result<(), Error> {
        // That may have been noted since the segment was listed.
        failing::forget(self, &segment.capture_id)?;
        for path in [&segment.data, &segment.draft, &segment.manifest, &segment.journal].into_iter().flatten() {
            remove_if_there(path)?;
            self.fresh.forget(path, 0, u64::MAX);
            self.in_doubt().remove(path);
        }
        self.sync()
    }
}

/// How long a file is; where that cannot be told, longer than any.
fn bytes_of(file: &File) -> u64 {
    file.metadata().map_or(u64::MAX, |metadata| metadata.len())
}

/// Removes a file; that it is gone already is as good.
pub(super) fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(cause)),
        _ => Ok(()),
    }
}

/// Removes what an agent that died was about to put in place: never whole, and not counted by anybody.
fn remove_unfinished(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(io("list the spool", dir))? {
        let path = entry.map_err(io("list the spool", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "unfinished") {
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether files with this ending are segments' data.
pub(super) fn is_data(extension: &str) -> bool {
    ["pcap", "pcapng", "pcap.zst", "pcapng.zst"].contains(&extension)
}

/// The segments that lie in `dir`, oldest first (capture ids sort by time). Only regular files are theirs: a pipe of such a name would
/// be waited for without end, a link would lead out of the folder. Takes no lock: an agent may be at work there, and what it removes
/// meanwhile is gone.
///
/// # Errors
/// When the folder cannot be listed.
pub fn list(dir: &Path) -> Result<Vec<Segment>, Error> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(io("list the spool", dir))? {
        let entry = entry.map_err(io("list the spool", dir))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        let Some((stem, extension)) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.')) else {
            continue;
        };
        let empty = || Segment { capture_id: stem.into(), data: None, journal: None, draft: None, manifest: None, failing: None };
        let field = |segment: &mut Segment| match extension {
            "journal" => segment.journal = Some(path.clone()),
            "draft" => segment.draft = Some(path.clone()),
            "manifest" => segment.manifest = Some(path.clone()),
            failing::EXTENSION => segment.failing = Some(path.clone()),
            extension if is_data(extension) => segment.data = Some(path.clone()),
            _ => {}
        };
        field(segments.entry(stem.to_owned()).or_insert_with(empty));
    }
    segments.retain(|_, s: &mut Segment| s.data.is_some() || s.journal.is_some() || s.manifest.is_some());
    Ok(segments.into_values().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spool::OnFull;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_whose_sync_failed_is_in_doubt_until_its_writer_has_synced_it() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            dir: dir.path().into(),
            max_bytes: 1 << 30,
            on_full: OnFull::Stop,
            flush_ms: 1,
            sync_ms: 1,
            allow_root_device: true,
        };
        let folder = Folder::open(&settings).unwrap();
        let [grows, other] = ["a.pcap", "b.pcap"].map(|name| dir.path().join(name));
        for path in [&grows, &other] {
            fs::write(path, "frames").unwrap();
        }
        let failure = || Err(std::io::Error::from_raw_os_error(5));
        let file = File::options().append(true).open(&grows).unwrap();
        folder.sync_written((&grows, &file), 4, failure).unwrap_err();
        // The kernel has nothing to say against it any more.
        File::open(&grows).unwrap().sync_data().unwrap();
        assert!(folder.sync_data(&grows, true).is_err() && folder.sync_data(&other, true).is_ok());
        folder.sync_data(&grows, false).unwrap();
        for (bytes, in_doubt) in [(4, true), (6, false)] {
            folder.sync_written((&grows, &file), bytes, || Ok(())).unwrap();
            assert_eq!(folder.doubts(&grows), in_doubt, "{bytes} of 6 bytes are durable");
        }
        folder.sync_data(&grows, true).unwrap();
        // A failure that another than the writer was told of; of what cannot be opened nothing was lost.
        let (never, gone) = (Path::new("/dev/null"), dir.path().join("gone"));
        for (path, grows, in_doubt) in [(never, false, false), (gone.as_path(), true, false), (never, true, true)] {
            folder.sync_data(path, grows).unwrap_err();
            assert_eq!(folder.doubts(path), in_doubt, "{}", path.display());
        }
    }

    #[test]
    fn pipes_folders_and_links_with_a_segments_name_are_not_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        mknodat(CWD, path("a.journal"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(path("b.journal")).unwrap();
        fs::write(path("outside"), "secret").unwrap();
        symlink(path("outside"), path("c.pcap")).unwrap();
        symlink(path("nowhere"), path("d.manifest")).unwrap();
        fs::write(path("e.pcap"), "").unwrap();
        let found: Vec<_> = list(dir.path()).unwrap().into_iter().map(|segment| segment.capture_id).collect();
        assert_eq!(found, ["e"]);
    }
}
