//! What the uploader asks of an object store, and what it may answer: the seam at which tests put a faulty one.
//! In: places, sections of files, checksums. Out: what the store holds, or an error whose class says what to do next.
//! Never: names the SDK. Spec: Amazon S3 API Reference, the call named at each function, and "Error responses".

use std::fmt;
use std::future::Future;
use std::path::PathBuf;

use bytes::Bytes;

use super::plan::Section;
use crate::record::Stamp;
use crate::spool::journal::Part;

/// A place in the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The bucket.
    pub bucket: String,
    /// The key; empty: the bucket itself.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// A multipart upload under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upload {
    /// Where its object will be.
    pub place: Place,
    /// The store's id of it.
    pub id: String,
}

/// What the object will say of itself (its metadata).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labels {
    /// Whose object it is.
    pub capture_id: String,
    /// Which agent recorded it.
    pub agent_version: String,
    /// Start of its window.
    pub window: Stamp,
    /// `pcap`, `pcapng`, `pcap.zst`, `pcapng.zst`.
    pub format: String,
}

/// The bytes of a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Body {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub section: Section,
    /// CRC64NVME of that section; the store refuses bytes that have another.
    pub crc64nvme: u64,
    /// The section's bytes, one piece after the other, where they are still in memory: nobody needs to read the file then.
    pub pieces: Option<Vec<Bytes>>,
}

/// A whole object, as it shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Its bytes.
    pub bytes: u64,
    /// Its CRC64NVME.
    pub crc64nvme: u64,
}

/// An object that is there.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Found {
    /// Its bytes.
    pub bytes: u64,
    /// Its CRC64NVME, if it was stored with one.
    pub crc64nvme: Option<u64>,
    /// Its ETag.
    pub etag: Option<String>,
    /// Its version, in a versioned bucket.
    pub version_id: Option<String>,
    /// Whose it is, if it says so.
    pub capture_id: Option<String>,
}

/// A part that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its number.
    pub number: u32,
    /// Its bytes.
    pub bytes: u64,
    /// Its CRC64NVME, if the store tells.
    pub crc64nvme: Option<u64>,
    /// Its ETag.
    pub etag: String,
}

/// An upload that somebody began and nobody has completed or aborted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    /// Which.
    pub upload: Upload,
    /// When, by the store's clock.
    pub initiated: Stamp,
}

/// What an object may take the place of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overwrite {
    /// Nothing: with an object at the key it is refused, [`Class::PreconditionFailed`].
    Never,
    /// Whatever is at the key.
    Always,
}

/// What an error means for the one who asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// There is no such object.
    NotFound,
    /// There is no such multipart upload: completed, aborted or expired.
    NoSuchUpload,
    /// There is no such bucket.
    NoSuchBucket,
    /// 412: an object is at the key.
    PreconditionFailed,
    /// 409: another request on the key came between.
    Conflict,
    /// A part is not as the completion says.
    InvalidPart,
    /// The bytes that arrived have another checksum or length than was said.
    BadDigest,
    /// The credentials do not allow it.
    Denied,
    /// The objects cannot be encrypted: the KMS key is disabled, gone, or not for us.
    KeyRefused,
    /// The credentials themselves are refused: expired, or not valid. New ones are looked for with the next call.
    Credentials,
    /// Our clock and the store's differ by too much.
    Clock,
    /// This store knows no such call.
    Unsupported,
    /// Slower, please.
    Throttled,
    /// Anything that may go better next time: no answer, a lost one, a 5xx, an unknown refusal.
    Transient,
}

/// Why the store did not do it.
#[derive(Clone, Debug)]
pub struct Error {
    /// What it means.
    pub class: Class,
    /// What was tried.
    pub act: &'static str,
    /// On what.
    pub place: Place,
    /// Why not, in the store's words.
    pub cause: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.act, self.place, self.cause)?;
        f.write_str(match self.class {
            Class::NoSuchBucket => "; make the bucket, or name another (s3.bucket)",
            Class::Credentials => "; new credentials are asked for; see the instance's role and whether its metadata can be reached",
            Class::Clock => "; see whether chronyd runs and reaches the Amazon Time Sync Service (169.254.169.123)",
            Class::KeyRefused => {
                "; see whether the KMS key (s3.kms_key, or the bucket's default) is there, enabled and not about to be deleted, and whether \
                 its policy and the agent's role allow kms:GenerateDataKey and kms:Decrypt"
            }
            Class::Denied => {
                "; allow the agent's role s3:PutObject, s3:GetObject, s3:AbortMultipartUpload, s3:ListMultipartUploadParts on its keys, \
                 s3:ListBucketMultipartUploads and s3:ListBucket on the bucket (without it a missing object looks forbidden) and, with a KMS key, kms:GenerateDataKey and \
                 kms:Decrypt"
            }
            _ => "",
        })
    }
}

impl std::error::Error for Error {}

/// An object store.
pub trait Store: Send + Sync + 'static {
    /// What is at `place` (HeadObject with checksum mode).
    fn head(&self, place: &Place) -> impl Future<Output = Result<Found, Error>> + Send;

    /// Begins an upload whose object will carry a CRC64NVME over all of it; gives its id (CreateMultipartUpload).
    fn create(&self, place: &Place, labels: &Labels) -> impl Future<Output = Result<String, Error>> + Send;

    /// Sends a part; gives its ETag (UploadPart).
    fn upload_part(&self, upload: &Upload, number: u32, body: &Body) -> impl Future<Output = Result<String, Error>> + Send;

    /// The parts that are there (ListParts, all pages).
    fn list_parts(&self, upload: &Upload) -> impl Future<Output = Result<Vec<Listed>, Error>> + Send;

    /// Makes the object of its parts, unless there is one at the key (CompleteMultipartUpload with `If-None-Match: *`).
    fn complete(&self, upload: &Upload, parts: &[Part], whole: Whole) -> impl Future<Output = Result<(), Error>> + Send;

    /// The uploads under way whose keys begin with `prefix` (ListMultipartUploads, all pages up to a bound). One of which the store
    /// tells no time is left out.
    fn list_uploads(&self, bucket: &str, prefix: &str) -> impl Future<Output = Result<Vec<Begun>, Error>> + Send;

    /// Gives an upload up (AbortMultipartUpload).
    fn abort(&self, upload: &Upload) -> impl Future<Output = Result<(), Error>> + Send;

    /// Stores a small object (PutObject with CRC64NVME; [`Overwrite::Never`] is `If-None-Match: *`).
    fn put(&self, place: &Place, body: Vec<u8>, crc64nvme: u64, overwrite: Overwrite) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether the bucket is there and may be asked (HeadBucket).
    fn head_bucket(&self, bucket: &str) -> impl Future<Output = Result<(), Error>> + Send;
}
