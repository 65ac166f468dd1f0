//! In: the spool folder. Out: capture objects in S3, each confirmed by size, checksum and capture id, each with its manifest.
//! Never: deletes a segment before both are confirmed; completes what it did not send; overwrites an object; gives up.
//! Spec: Amazon S3 API Reference (CreateMultipartUpload, UploadPart, CompleteMultipartUpload, HeadObject), User Guide
//! "Checking object integrity" (CRC64NVME, full object) and "Conditional writes".
//!
//! [`rounds`] goes round the folder and takes up what [`queue`] says is due; [`multipart`] gets one segment into a [`store`] by its journal,
//! in the parts of [`plan`], to a key that `keys` lets it have; [`manifest`] is what stands beside it; [`s3`] is the one real store.

use std::path::PathBuf;
use std::time::Duration;

use crate::spool;

pub mod checksum;
mod keys;
pub mod manifest;
pub mod multipart;
pub mod orphans;
pub mod permits;
pub mod plan;
pub mod queue;
pub mod rounds;
pub mod s3;
pub mod status;
pub mod store;

pub use rounds::{Reserved, drain, run};
pub use s3::S3;
pub use status::Unsent;
pub use store::Store;

/// What the uploading stage needs to know; checked by `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The bucket.
    pub bucket: String,
    /// In front of every capture key, empty or ending in `/`.
    pub key_prefix: String,
    /// Region, unless the environment or the instance says it.
    pub region: Option<String>,
    /// Another endpoint than AWS's own.
    pub endpoint_url: Option<String>,
    /// Storage class of captures, as the S3 API names it.
    pub storage_class: Option<String>,
    /// KMS key of captures and manifests; `None`: the bucket's default encryption.
    pub kms_key: Option<String>,
    /// Refuse a bucket that belongs to another account.
    pub expected_bucket_owner: Option<String>,
    /// Whose spool it is, when that is known: its status is told under this name, and what it left in S3 is looked for.
    pub instance: Option<String>,
    /// How often the folder is looked at.
    pub look_every: Duration,
    /// The agents of a fleet open their windows at the same moment; each begins its uploads at its own moment within this time.
    pub create_spread: Duration,
    /// A segment that fails for a day while others get through is poison when this process, too, has seen it get no further for so long: the
    /// clock runs on while no agent does.
    pub poison_still: Duration,
}

#[cfg(test)]
impl Settings {
    /// Of a bucket of which nothing is said, for tests.
    fn plain() -> Self {
        Self {
            bucket: "captures".into(),
            key_prefix: String::new(),
            region: None,
            endpoint_url: None,
            storage_class: None,
            kms_key: None,
            expected_bucket_owner: None,
            instance: None,
            look_every: Duration::from_secs(1),
            create_spread: Duration::ZERO,
            poison_still: Duration::from_secs(3600),
        }
    }
}

/// Why a segment could not be got further. The segment stays as it is and is tried again.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The store did not do what was asked.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Journal or folder.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The segment's bytes cannot be read.
    #[error("cannot {act} '{}': {cause}", path.display())]
    Data {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The segment's facts cannot be understood.
    #[error("cannot read the manifest '{}': {cause}; its capture stays in the spool", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Its recording was cut short, and it is not whole.
    #[error("cannot send segment {capture_id}, as its recording was cut short: {cause}; it is kept, and tried each hour and at each start")]
    Unfinished {
        /// Which segment.
        capture_id: String,
        /// Why it is not whole by now.
        cause: String,
    },
    /// A file that should be there is not.
    #[error("cannot send segment {capture_id}: its {what} is missing from the spool")]
    Missing {
        /// Which segment.
        capture_id: String,
        /// Which file.
        what: &'static str,
    },
    /// The segment's bytes are not any more what they were when they were written, or sent.
    #[error(
        "cannot send '{}': its {bytes} bytes from byte {offset} have another checksum than they had before; the disk has changed \
         them, see `dmesg` and the volume's health",
        path.display()
    )]
    Rotten {
        /// Which.
        path: PathBuf,
        /// From where.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// A manifest is another segment's.
    #[error("cannot use the manifest '{}': it is of {what}; its capture stays in the spool", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it says to be.
        what: String,
    },
    /// More bytes than ten thousand parts hold.
    #[error("cannot send '{}': it has {bytes} bytes, and an upload holds {}; lower record.max_bytes", path.display(), plan::BYTES_MAX)]
    TooLong {
        /// Which.
        path: PathBuf,
        /// How many.
        bytes: u64,
    },
    /// The object with our capture id is not what the spool holds.
    #[error(
        "cannot confirm {place}: it has capture id {capture_id}, but {what}; the segment stays in the spool: look at the object, and \
         move it away to have the segment sent again"
    )]
    Differs {
        /// Where the object is.
        place: store::Place,
        /// Whose it is.
        capture_id: String,
        /// How it differs.
        what: String,
    },
    /// The object may be ours, and nobody says so.
    #[error(
        "cannot confirm {place}: it is as long as the segment that was sent there, but the endpoint does not tell its metadata \
         (x-amz-meta-capture-id), without which nothing leaves the spool; does something between here and S3 take it away?"
    )]
    Nameless {
        /// Where the object is.
        place: store::Place,
    },
    /// What was sent is of no use; the segment begins anew with the next try.
    #[error("the upload of segment {capture_id} begins anew: {cause}")]
    Restarted {
        /// Which segment.
        capture_id: String,
        /// Why.
        cause: String,
    },
    /// The runtime is going down.
    #[error("cannot go on: the agent is stopping")]
    Stopping,
}

impl Error {
    /// Whether only a person can help: the segment's own files are not as they should be.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Spool(error) => matches!(error, spool::Error::Journal { .. }),
            Self::Manifest { .. }
            | Self::Foreign { .. }
            | Self::Unfinished { .. }
            | Self::Missing { .. }
            | Self::Rotten { .. }
            | Self::TooLong { .. } => true,
            Self::Store(_) | Self::Data { .. } | Self::Differs { .. } | Self::Nameless { .. } | Self::Restarted { .. } | Self::Stopping => {
                false
            }
        }
    }
}
