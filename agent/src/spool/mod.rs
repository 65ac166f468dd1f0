//! The folder of segments not yet proven to be in S3: the only place where the recording and the uploading half meet.
//! In: chunks from the recorder. Out: files that the uploader follows. Never: deletes what S3 has not confirmed, but by the policy
//! for a full spool, which keeps the facts; holds more bytes than `spool.max_bytes`.
//!
//! One segment is up to four files with the capture id as stem:
//! `<id>.journal` what of it is in S3; `<id>.<pcap|pcapng|pcap.zst|pcapng.zst>` its bytes, growing;
//! `<id>.draft` its facts so far, while it grows; `<id>.manifest` its final facts: that this file exists says that it is whole;
//! and `<id>.failing` while it cannot be sent. An idle window is a `.manifest` alone.

use std::path::PathBuf;

pub mod budget;
pub mod failing;
pub mod folder;
pub mod fresh;
mod give_way;
pub mod journal;
pub mod salvage;
pub mod writer;

pub use folder::{Folder, Segment};

/// What the spool needs to know; checked by `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder.
    pub dir: PathBuf,
    /// Most bytes it holds, data, journals and manifests together.
    pub max_bytes: u64,
    /// What happens when it is full.
    pub on_full: OnFull,
    /// A frame is in its file at most this long after the recorder has it, 1 to 800: the ring and the merge take the rest of
    /// promise 4's second.
    pub flush_ms: u64,
    /// What is written is durable at most this long after, 1 to 1000.
    pub sync_ms: u64,
    /// Whether a spool on the root file system is accepted.
    pub allow_root_device: bool,
}

/// What happens when the spool is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFull {
    /// Frames that come are dropped and counted, until there is room.
    DropNewest,
    /// The oldest segment that is whole and not in S3 gives way: its data go, its facts stay and say so.
    DropOldest,
    /// The open segments end, and nothing is recorded until a tenth of the spool is free.
    Stop,
}

/// What can go wrong with the spool.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {act} '{}': {cause}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// Another agent has the folder.
    #[error("cannot use the spool '{}': another agent holds it; stop that one, or give this one a folder of its own (spool.dir)", dir.display())]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// The folder is on the root device.
    #[error(
        "cannot use the spool '{}': it is on the root file system, which a full spool would fill; mount a volume there, or set spool.allow_root_device = true",
        dir.display()
    )]
    RootDevice {
        /// Which.
        dir: PathBuf,
    },
    /// A journal cannot be understood.
    #[error("cannot read the journal '{}', line {line}: {cause}", path.display())]
    Journal {
        /// Which.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
}
