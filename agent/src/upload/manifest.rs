//! The manifest object: what the recorder knew of a segment, and what S3 said of it.
//! In: facts and the confirmed object. Out: a key and JSON, schema `tapfleet.manifest/1`. Never: reads a clock or the network;
//! the same facts and object give the same bytes, so storing them twice is harmless.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Error;
use super::checksum::to_base64;
use crate::record::{Facts, Stamp};
use crate::spool::journal::Verified;

/// Name and version of the form; a later version may add fields, another one renames this.
pub const SCHEMA: &str = "tapfleet.manifest/1";

/// The longest facts that are believed, in bytes: more than 4096 index entries and 1000 origins take.
const FACTS_BYTES_MAX: u64 = 16 << 20;

/// A manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// What the recorder knew.
    #[serde(flatten)]
    pub facts: Facts,
    /// The capture object; `None` for an idle window.
    pub object: Option<ObjectFacts>,
}

/// What S3 confirmed of the capture object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectFacts {
    /// Where it is.
    pub bucket: String,
    /// Under which key.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its CRC64NVME over the full object, base64 as S3 shows it.
    pub crc64nvme: String,
    /// Its ETag.
    pub etag: Option<String>,
    /// Its version, in a versioned bucket.
    pub version_id: Option<String>,
}

impl ObjectFacts {
    /// Of what was confirmed at a place.
    #[must_use]
    pub fn new(bucket: &str, key: &str, verified: &Verified) -> Self {
        Self {
            bucket: bucket.into(),
            key: key.into(),
            bytes: verified.bytes,
            crc64nvme: to_base64(verified.crc64nvme),
            etag: verified.etag.clone(),
            version_id: verified.version_id.clone(),
        }
    }
}

impl Manifest {
    /// Of a segment and its object, or of an idle window and none.
    #[must_use]
    pub fn new(mut facts: Facts, object: Option<ObjectFacts>) -> Self {
        match object {
            // It had been completed before its data could be taken.
            Some(_) => facts.gave_way = None,
            None if facts.gave_way.is_some() => facts = facts.without_data(),
            None => {}
        }
        // The key that was chosen first may have been taken.
        facts.key = object.as_ref().map(|object| object.key.clone());
        facts.file_crc64nvme = None;
        Self { schema: SCHEMA.into(), facts, object }
    }

    /// `manifest/dt=YYYY-MM-DD/<instance>/<YYYY-MM-DD-HH-MM>-<capture id>.json`, by the window's start in UTC.
    #[must_use]
    pub fn key(&self) -> String {
        let Stamp(ns) = self.facts.window.start;
        let start = DateTime::<Utc>::from_timestamp_nanos(i64::try_from(ns).unwrap_or(i64::MAX));
        let (day, minute) = (start.format("%Y-%m-%d"), start.format("%Y-%m-%d-%H-%M"));
        format!("manifest/dt={day}/{}/{minute}-{}.json", self.facts.instance, self.facts.capture_id)
    }
}

/// The facts in the spool's file at `path`.
///
/// # Errors
/// When they cannot be read or are not facts.
pub fn read_facts(path: &Path) -> Result<Facts, Error> {
    let damaged = |cause: String| Error::Manifest { path: path.into(), cause };
    let mut json = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FACTS_BYTES_MAX + 1).read_to_end(&mut json));
    let bytes = read.map_err(|cause| damaged(cause.to_string()))?;
    if bytes as u64 > FACTS_BYTES_MAX {
        return Err(damaged(format!("it has more than {FACTS_BYTES_MAX} bytes")));
    }
    serde_json::from_slice(&json).map_err(|cause| damaged(cause.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::record::facts::{Kind, WindowFacts};

    fn facts() -> Facts {
        let window = WindowFacts { start: Stamp(1_699_999_200_000_000_000), seconds: 900 };
        let begun = Facts::begin(Kind::Capture, "0192".into(), "i-1".into(), "captures".into(), window);
        Facts { key: Some("i-1/2023-11-14-22-00.pcap".into()), file_bytes: 24, ..begun }
    }

    #[test]
    fn a_manifest_names_the_object_as_s3_confirmed_it_and_comes_back_the_same() {
        let verified = Verified { bytes: 24, crc64nvme: 0xae8b_1486_0a79_9888, etag: Some("\"e\"".into()), version_id: None };
        let manifest = Manifest::new(facts(), Some(ObjectFacts::new("captures", "i-1/2023-11-14-22-00_0002.pcap", &verified)));
        assert_eq!(manifest.key(), "manifest/dt=2023-11-14/i-1/2023-11-14-22-00-0192.json");
        let json = serde_json::to_value(&manifest).unwrap();
        assert_eq!(json["schema"], "tapfleet.manifest/1");
        assert_eq!(json["key"], "i-1/2023-11-14-22-00_0002.pcap");
        assert_eq!(json["object"]["crc64nvme"], "rosUhgp5mIg=");
        assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), manifest);
        let idle = Manifest::new(facts(), None);
        assert!(serde_json::to_value(&idle).unwrap()["object"].is_null() && idle.facts.key.is_none());
    }

    #[test]
    fn what_is_not_facts_is_refused_with_the_file_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"{\"kind\":").unwrap();
        let error = read_facts(file.path()).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
