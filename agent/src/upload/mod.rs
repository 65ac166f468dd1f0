//! In: the spool folder. Out: capture objects in S3, each confirmed by size, checksum and capture id, each with its manifest.
//! Never: deletes a segment before both are confirmed; completes what it did not send; overwrites an object; gives up.
//! Spec: Amazon S3 API Reference (CreateMultipartUpload, UploadPart, CompleteMultipartUpload, HeadObject), User Guide
//! "Checking object integrity" (CRC64NVME, full object) and "Conditional writes".

use std::time::Duration;

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
    /// How often the folder is looked at.
    pub look_every: Duration,
}
