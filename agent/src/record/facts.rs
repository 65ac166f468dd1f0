//! What a segment (or an idle window) holds and lost: the part of the manifest that the recorder knows.
//! Out: JSON with a versioned schema. Never: anything S3 said; that is added when the capture is verified.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::window::Window;
use super::{Compression, Format, Precision};
use crate::host::clock::SECOND_NS;

/// Nanoseconds since 1970, UTC. In JSON an RFC 3339 time with nine digits of fraction, `null` never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stamp(pub u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::<Utc>::from_timestamp((self.0 / 1_000_000_000) as i64, (self.0 % 1_000_000_000) as u32).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Nanos, true))
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> Self {
        stamp.to_string()
    }
}

impl TryFrom<String> for Stamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let time = DateTime::parse_from_rfc3339(&text).map_err(|cause| format!("'{text}' is not an RFC 3339 time: {cause}"))?;
        // Not chrono's nanoseconds, which end in 2262.
        let seconds = u64::try_from(time.timestamp()).ok().and_then(|seconds| seconds.checked_mul(SECOND_NS));
        let ns = seconds.and_then(|ns| ns.checked_add(time.timestamp_subsec_nanos().into()));
        ns.map(Self).ok_or_else(|| format!("'{text}' is outside 1970 to 2554"))
    }
}

/// What a segment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Mirrored frames.
    Capture,
    /// Malformed outer frames, each with its reason.
    Quarantine,
    /// Nothing: a window in which no frame was written.
    Idle,
}

/// The window that a segment belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WindowFacts {
    /// Its first moment.
    pub start: Stamp,
    /// Its length.
    pub seconds: u64,
}

impl WindowFacts {
    /// Those of a window.
    #[must_use]
    pub fn of(window: Window) -> Self {
        Self { start: Stamp(window.start_ns), seconds: window.length_ns / SECOND_NS }
    }
}

/// Frames of one origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OriginFacts {
    /// `vpce-…/vni-N`, as the pcapng interface is named.
    pub name: String,
    /// Endpoint id, when it came through a load balancer and was named.
    pub endpoint: Option<String>,
    /// VNI of the mirror session.
    pub vni: Option<u32>,
    /// Address of the mirrored interface.
    pub source: String,
    /// Frames written.
    pub frames: u64,
    /// Their captured bytes.
    pub bytes: u64,
}

/// What was lost outside the agent, since the last manifest.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct LossFacts {
    /// Packets that passed the kernel filter, drops included.
    pub kernel_packets: u64,
    /// Of those, dropped for want of a free ring block.
    pub kernel_drops: u64,
    /// How often a ring stood still.
    pub kernel_freezes: u64,
    /// Loss counters of the network interface by name; those that moved.
    pub nic: BTreeMap<String, u64>,
    /// EC2 allowances exceeded, by the ENA driver's name; those that moved. Queued or dropped: an upper bound.
    pub ec2: BTreeMap<String, u64>,
}

/// A time without capture.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GapFacts {
    /// Last moment before.
    pub from: Stamp,
    /// First moment after.
    pub to: Stamp,
    /// What happened.
    pub cause: String,
}

/// The data of this segment were dropped to make room for newer ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GaveWay {
    /// When.
    pub at: Stamp,
    /// Frames that went.
    pub frames: u64,
    /// Their captured bytes.
    pub bytes: u64,
}

/// The state of the clock while the segment was open.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ClockFacts {
    /// Steps seen since the agent began.
    pub steps: u64,
    /// Whether a step closed this segment.
    pub closed_by_step: bool,
    /// Whether the clock was right when this was written; `None`: nobody had said it lately.
    #[serde(default)]
    pub synchronised: Option<bool>,
    /// By how much it was ahead of the time server then, microseconds; negative: behind.
    #[serde(default)]
    pub ahead_us: Option<i64>,
}

/// Where records begin here and there in the object, so that a reader can fetch a time range.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Index {
    /// At most one entry per this many bytes, and one where a chunk of the writer's begins; 1 MiB, doubled whenever there would be more than [`Index::ENTRIES_MAX`].
    pub stride: u64,
    /// Offset in the object and stamp of a record there.
    pub entries: Vec<IndexEntry>,
}

/// One entry of [`Index`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexEntry {
    /// Where a record begins: byte of the object, or of the zstd frame that begins with it.
    pub offset: u64,
    /// Its stamp.
    pub time: Stamp,
}

impl Index {
    /// The most entries an index has.
    pub const ENTRIES_MAX: usize = 4096;

    /// Adds an entry if the last one is a stride away.
    pub fn note(&mut self, offset: u64, time: Stamp) {
        if self.stride == 0 {
            self.stride = 1 << 20;
        }
        if self.entries.last().is_some_and(|last| offset < last.offset.saturating_add(self.stride)) {
            return;
        }
        if self.entries.len() >= Self::ENTRIES_MAX {
            self.stride *= 2;
            let mut odd = false;
            self.entries.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.entries.push(IndexEntry { offset, time });
    }
}

/// What the recorder knows of a segment or an idle window.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// What it is.
    pub kind: Kind,
    /// Unique and sortable by time.
    pub capture_id: String,
    /// Who recorded it.
    pub instance: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Where it goes; `None` for an idle window.
    pub key: Option<String>,
    /// The bucket it goes to.
    pub bucket: String,
    /// Its window.
    pub window: WindowFacts,
    /// When the segment was opened.
    pub opened: Stamp,
    /// Form of the file.
    pub format: Format,
    /// Resolution of its stamps.
    pub precision: Precision,
    /// Compression of the file.
    pub compression: Compression,
    /// The user's filter.
    pub filter: Option<String>,
    /// Frames written.
    pub frames: u64,
    /// Their captured bytes, without record headers.
    pub bytes: u64,
    /// Stamp of the earliest frame.
    pub first: Option<Stamp>,
    /// Stamp of the latest frame.
    pub last: Option<Stamp>,
    /// Of the frames, those stamped before this window because their own had closed.
    pub late: u64,
    /// Frames not written, by reason; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
    /// Frames not ours, by reason; only reasons that occurred.
    pub ignored: BTreeMap<String, u64>,
    /// What was lost outside.
    pub losses: LossFacts,
    /// Frames per origin.
    pub origins: Vec<OriginFacts>,
    /// Times without capture.
    pub gaps: Vec<GapFacts>,
    /// The clock.
    pub clock: ClockFacts,
    /// Where to find a time in the object.
    pub index: Index,
    /// Bytes of the file; what the spool wrote.
    pub file_bytes: u64,
    /// Their CRC64NVME, as they were written; `None` where nobody knows. It stays in the spool: what S3 has stands beside the facts there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_crc64nvme: Option<u64>,
    /// The agent died while this was open: the file was cut after its last whole record and the counts are the last known.
    pub salvaged: bool,
    /// The spool was full, and this segment the oldest in it (`spool.on_full = "drop-oldest"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_way: Option<GaveWay>,
}

impl Facts {
    /// What is known of a segment before its first frame. Form: uncompressed microsecond pcap, until said otherwise.
    #[must_use]
    pub fn begin(kind: Kind, capture_id: String, instance: String, bucket: String, window: WindowFacts) -> Self {
        Self {
            kind,
            capture_id,
            instance,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            key: None,
            bucket,
            window,
            opened: window.start,
            format: Format::Pcap,
            precision: Precision::Micro,
            compression: Compression::None,
            filter: None,
            frames: 0,
            bytes: 0,
            first: None,
            last: None,
            late: 0,
            drops: BTreeMap::new(),
            ignored: BTreeMap::new(),
            losses: LossFacts::default(),
            origins: Vec::new(),
            gaps: Vec::new(),
            clock: ClockFacts::default(),
            index: Index::default(),
            file_bytes: 0,
            file_crc64nvme: None,
            salvaged: false,
            gave_way: None,
        }
    }

    /// How the frames that gave way are called among the drops.
    pub const GAVE_WAY: &str = "gave_way";

    /// The same where the data are gone for good: frames that gave way count as dropped (those of a quarantine are among another
    /// manifest's drops already). Times and origins stay, and say what is lost.
    #[must_use]
    pub fn without_data(mut self) -> Self {
        if self.kind == Kind::Capture && self.gave_way.is_some() && self.frames > 0 {
            *self.drops.entry(Self::GAVE_WAY.into()).or_default() += self.frames;
        }
        (self.frames, self.bytes, self.file_bytes, self.late, self.index) = (0, 0, 0, 0, Index::default());
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_stamp_that_a_file_can_hold_is_read_back_from_a_manifest(ns in any::<u64>()) {
            for ns in [ns, u64::MAX] {
                prop_assert_eq!(serde_json::from_str::<Stamp>(&serde_json::to_string(&Stamp(ns)).unwrap()).unwrap(), Stamp(ns));
            }
        }
    }
}
