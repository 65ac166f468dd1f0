//! The status object: what of an instance is not in S3 yet, for whoever cannot reach the instance.
//! In: what the uploader knows. Out: a key and JSON, schema `tapfleet.status/1`, at most [`LISTED_MAX`] segments of bounded length.
//! Never: reads a clock, a file or the network.

use serde::{Deserialize, Serialize};

use crate::record::Stamp;

/// Name and version of the form; a later version may add fields, another one renames this.
pub const SCHEMA: &str = "tapfleet.status/1";

/// The most segments that are listed; all are counted.
pub const LISTED_MAX: usize = 100;

/// The longest error that is told, in bytes.
const ERROR_BYTES_MAX: usize = 500;

/// How an instance's spool is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: String,
    /// Whose spool.
    pub instance: String,
    /// Version of the agent that says so.
    pub agent_version: String,
    /// When.
    pub time: Stamp,
    /// Bytes of their files.
    pub bytes: u64,
    /// Segments that are not confirmed; 0: all is in S3.
    pub segments: usize,
    /// Of those, poison.
    pub poison: usize,
    /// The first [`LISTED_MAX`] of them: poison first, then the oldest.
    pub unsent: Vec<Unsent>,
}

/// A segment that is not confirmed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unsent {
    /// Its identity.
    pub capture_id: String,
    /// Where it goes; `None` as long as its journal was not read, and for windows without frames.
    pub key: Option<String>,
    /// Bytes of its file.
    pub bytes: u64,
    /// Parts in S3.
    pub parts_sent: usize,
    /// Since it was opened.
    pub age_seconds: u64,
    /// Why the last try failed, if it did.
    pub last_error: Option<String>,
    /// Whether it is tried rarely, as its files are damaged or it has failed for long while others got through.
    pub poison: bool,
}

impl Status {
    /// Of an instance at a time.
    #[must_use]
    pub fn new(instance: &str, time: Stamp, mut unsent: Vec<Unsent>) -> Self {
        let bytes = unsent.iter().map(|unsent| unsent.bytes).sum();
        let (segments, poison) = (unsent.len(), unsent.iter().filter(|unsent| unsent.poison).count());
        unsent.sort_by(|a, b| b.poison.cmp(&a.poison).then_with(|| a.capture_id.cmp(&b.capture_id)));
        unsent.truncate(LISTED_MAX);
        for error in unsent.iter_mut().filter_map(|unsent| unsent.last_error.as_mut()) {
            error.truncate(error.floor_char_boundary(ERROR_BYTES_MAX));
        }
        Self {
            schema: SCHEMA.into(),
            instance: instance.into(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            time,
            bytes,
            segments,
            poison,
            unsent,
        }
    }

    /// `status/<instance>.json`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("status/{}.json", self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_all_lists_poison_first_and_is_of_bounded_length() {
        let unsent = |n: usize| Unsent {
            capture_id: format!("{n:036}"),
            key: Some("k".repeat(1024)),
            bytes: 1,
            parts_sent: 0,
            age_seconds: 9,
            last_error: Some("ä".repeat(100_000)),
            poison: n == 5000,
        };
        let status = Status::new("i-1", Stamp(1_795_306_500_000_000_000), (0..10_000).map(unsent).collect());
        assert_eq!((status.segments, status.poison, status.unsent.len()), (10_000, 1, LISTED_MAX));
        let first: Vec<_> = status.unsent.iter().take(2).map(|unsent| unsent.capture_id.trim_start_matches('0')).collect();
        assert_eq!(first, ["5000", ""]);
        let json = serde_json::to_vec(&status).unwrap_or_default();
        assert!((1000..200_000).contains(&json.len()), "{} bytes", json.len());
        assert_eq!(serde_json::from_slice::<Status>(&json).ok(), Some(status.clone()));
        assert_eq!(status.key(), "status/i-1.json");
    }
}
