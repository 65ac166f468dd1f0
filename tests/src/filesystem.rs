//! A small ext4 file system in a file, mounted: real blocks that run out, and a disk that can be copied as a power loss leaves it.
//! Beside it one whose device errs, a disk for a machine to mount, and a folder over another one. In: a folder, a size. Out: where it is
//! mounted.
//! Never: outlives the value, also when a test fails. Needs root and loop devices.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};

use crate::program::run;

/// The file system. Unmounted, and its file removed, with the value.
#[derive(Debug)]
pub struct FileSystem {
    file: PathBuf,
    at: PathBuf,
}

impl FileSystem {
    /// Makes one of `bytes` in `folder`.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    #[must_use]
    pub fn new(folder: &Path, bytes: u64) -> Self {
        let file = folder.join("image-0");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        // No blocks for root alone (-m 0): the agent under test is root, and would have them.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", file.to_str().unwrap()]);
        Self::mount(file, folder.join("disk-0"))
    }

    fn mount(file: PathBuf, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        let made = Self { file, at };
        // The kernel does not help by writing its journal of its own accord every five seconds.
        run("mount", &["-o", "loop,commit=300", made.file.to_str().unwrap(), made.at.to_str().unwrap()]);
        made
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// What a power loss at this moment leaves, mounted beside it: what the file system has not yet sent to its disk is not in it. `number` tells
    /// the copies apart.
    ///
    /// # Panics
    /// When it cannot be copied or mounted.
    #[must_use]
    pub fn after_power_loss(&self, number: usize) -> Self {
        let folder = self.file.parent().unwrap();
        let file = folder.join(format!("image-{number}"));
        run("cp", &["--sparse=always", self.file.to_str().unwrap(), file.to_str().unwrap()]);
        Self::mount(file, folder.join(format!("disk-{number}")))
    }

    /// Fills it to its last block, and then gives back `leave` bytes. What fills it goes with [`Hog`].
    ///
    /// # Panics
    /// When something else than want of room ends it.
    #[must_use]
    pub fn fill(&self, leave: u64) -> Hog {
        let path = self.at.join("hog");
        let mut file = File::create(&path).unwrap();
        let mut bytes = 0;
        loop {
            match file.write(&[7; 4096]) {
                Ok(written) => bytes += written as u64,
                Err(cause) if cause.kind() == io::ErrorKind::StorageFull => break,
                Err(cause) => panic!("cannot fill {}: {cause}", path.display()),
            }
        }
        file.set_len(bytes.saturating_sub(leave)).unwrap();
        Hog(path)
    }
}

impl FileSystem {
    /// From here on nothing is written to it and nobody is told so: who writes waits, as on a volume that hangs. It goes on with the
    /// end of the value.
    ///
    /// # Panics
    /// When it cannot be frozen.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        run("fsfreeze", &["--freeze", self.at.to_str().unwrap()]);
        Frozen(self.at.clone())
    }
}

/// A file system that hangs.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).status();
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = fs::remove_file(&self.file);
    }
}

/// Somebody else's file that fills a file system. Removed with the value.
#[derive(Debug)]
pub struct Hog(PathBuf);

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A file system without a journal, so that nothing but the program above it minds, on a device that errs when told to (EIO). The device is
/// a file in an ext4 file system of its own: that one has the means, whatever this host's folders are on.
#[derive(Debug)]
pub struct Ailing {
    disk: Disk,
    mount: Option<Mount>,
    file: PathBuf,
    _below: FileSystem,
}

/// Blocks of [`Ailing`].
const BLOCK_BYTES: u64 = 4096;

impl Ailing {
    /// Makes one of `bytes` in `folder`, in good health.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    #[must_use]
    pub fn new(folder: &Path, bytes: u64) -> Self {
        let folder = folder.join("ailing");
        fs::create_dir_all(&folder).unwrap();
        let below = FileSystem::new(&folder, bytes + bytes / 8 + (16 << 20));
        let file = below.at().join("device");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        // With extents: a block of block numbers that could not be written would be read again as it was, and files lose what they had.
        let made = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-b", &BLOCK_BYTES.to_string(), "-E", "lazy_itable_init=0"];
        run("mkfs.ext4", &[&made[..], &[file.to_str().unwrap()]].concat());
        // Where the page cache is between the two, some kernels give zeros for what cannot be read.
        let device = run("losetup", &["--find", "--show", "--direct-io=on", file.to_str().unwrap()]);
        let disk = Disk { device: device.trim().into() };
        let at = folder.join("disk");
        fs::create_dir_all(&at).unwrap();
        // What a block is marked as that is written for the first time (`dioread_nolock`) could not be written either: files would lose
        // what they had on the device already.
        run("mount", &["-o", "errors=continue,dioread_lock", disk.device(), at.to_str().unwrap()]);
        Self { disk, mount: Some(Mount { at: at.clone(), top: at }), file, _below: below }
    }

    /// Where it is mounted.
    ///
    /// # Panics
    /// Never: it is mounted until it is dropped.
    #[must_use]
    pub fn at(&self) -> &Path {
        self.mount.as_ref().unwrap().at()
    }

    /// From here on every write to the device fails, until the value is dropped.
    ///
    /// # Panics
    /// When it cannot be made to.
    #[must_use]
    pub fn refuse_writes(&self) -> Refusing {
        run("sync", &["-f", self.at().to_str().unwrap()]);
        run("chattr", &["+i", self.file.to_str().unwrap()]);
        Refusing(self.file.clone())
    }

    /// From here on the last block of the file called `name`, in its top folder, cannot be read; no other file may be there.
    ///
    /// # Panics
    /// When it can be read all the same.
    pub fn lose_last_block(&self, name: &str) {
        let path = self.at().join(name);
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        let blocks = run("debugfs", &["-R", &format!("blocks /{name}"), self.disk.device()]);
        let last = blocks.split_whitespace().filter_map(|block| block.parse::<u64>().ok()).max().unwrap();
        // What lies behind the end of its file the device does not have.
        File::options().write(true).open(&self.file).unwrap().set_len(last * BLOCK_BYTES).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let at = (file.metadata().unwrap().len() - 1) / BLOCK_BYTES * BLOCK_BYTES;
        let read = file.read_exact_at(&mut [0], at).map_err(|cause| cause.raw_os_error());
        assert_eq!(read, Err(Some(rustix::io::Errno::IO.raw_os_error())), "the last block of {} can be read", path.display());
    }
}

impl Drop for Ailing {
    fn drop(&mut self) {
        drop(Refusing(self.file.clone()));
        self.mount = None;
    }
}

/// A device that refuses to be written to. In good health again with the end of the value.
#[derive(Debug)]
pub struct Refusing(PathBuf);

impl Drop for Refusing {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

/// A disk with an ext4 file system that bears a label, not mounted. Detached with the value.
#[derive(Debug)]
pub struct Disk {
    device: PathBuf,
}

impl Disk {
    /// Makes one of `bytes` as a file in `folder`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(folder: &Path, bytes: u64, label: &str) -> Self {
        let file = folder.join("disk");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-L", label, file.to_str().unwrap()]);
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Self { device: device.trim().into() }
    }

    /// The device, as this host and a machine that is given it know it.
    #[must_use]
    pub fn device(&self) -> &str {
        self.device.to_str().unwrap()
    }

    /// Mounts it.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn mount(&self, at: &Path) -> Mount {
        fs::create_dir_all(at).unwrap();
        run("mount", &[self.device(), at.to_str().unwrap()]);
        Mount { at: at.into(), top: at.into() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// What is mounted somewhere. Unmounted with the value.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    /// What is unmounted, with all beneath it.
    top: PathBuf,
}

impl Mount {
    /// A folder over `lower`, which is not changed: what is written stays in memory, mounted at `folder`. A file system that may be
    /// itself an overlay, as a container's is, cannot take it.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn over(lower: &Path, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", folder.to_str().unwrap()]);
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| folder.join(name));
        let mount = Self { at: merged.clone(), top: folder.into() };
        for made in [&upper, &work, &merged] {
            fs::create_dir_all(made).unwrap();
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        run("mount", &["-t", "overlay", "overlay", "-o", &options, merged.to_str().unwrap()]);
        mount
    }

    /// A file instead of another one, which is there again with the end of the value. Whoever is already in a mount namespace of their own
    /// may not see it.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn instead_of(file: &Path, by: &Path) -> Self {
        run("mount", &["--bind", by.to_str().unwrap(), file.to_str().unwrap()]);
        Self { at: file.into(), top: file.into() }
    }

    /// Where.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.top).status();
    }
}
