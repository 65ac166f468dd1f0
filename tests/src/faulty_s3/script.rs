//! Which call goes wrong, and how: what a test tells the server before it begins.
//! In: operation, numbers of its calls from 1, fault. Out: the fault of a call, if it has one. Never: chance.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::{Method, Uri};

/// A call of the S3 API, as the wire tells it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Op {
    /// HeadBucket.
    HeadBucket,
    /// HeadObject of a capture.
    Head,
    /// HeadObject of a manifest.
    HeadManifest,
    /// CreateMultipartUpload.
    Create,
    /// UploadPart.
    Part,
    /// ListParts.
    Parts,
    /// ListMultipartUploads.
    Uploads,
    /// CompleteMultipartUpload.
    Complete,
    /// AbortMultipartUpload.
    Abort,
    /// PutObject of a manifest.
    PutManifest,
    /// PutObject of anything else.
    Put,
    /// What this server does not know.
    Other,
}

impl Op {
    /// Which call a request is (Amazon S3 API Reference, "Request Syntax" of each; path-style addresses).
    #[must_use]
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let key = key(uri);
        let has = |name: &str| parameter(uri, name).is_some();
        let manifest = key.starts_with("manifest/");
        match *method {
            Method::HEAD if key.is_empty() => Self::HeadBucket,
            Method::HEAD if manifest => Self::HeadManifest,
            Method::HEAD => Self::Head,
            Method::POST if has("uploads") => Self::Create,
            Method::POST if has("uploadId") => Self::Complete,
            Method::PUT if has("partNumber") => Self::Part,
            Method::PUT if manifest => Self::PutManifest,
            Method::PUT => Self::Put,
            Method::GET if has("uploadId") => Self::Parts,
            Method::GET if has("uploads") => Self::Uploads,
            Method::DELETE if has("uploadId") => Self::Abort,
            _ => Self::Other,
        }
    }
}

/// The key that a request is about; empty for the bucket itself.
pub fn key(uri: &Uri) -> &str {
    uri.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key)
}

/// A parameter of a request's query.
pub fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
}

/// What goes wrong with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing of the request is read, and nothing answered.
    HangBeforeReading,
    /// All of the request is read, nothing is done, and nothing answered.
    HangAfterReading,
    /// The connection is reset when a part of the request has been read.
    ResetInMidRequest,
    /// It is not done, and this is the answer: status and code.
    Refuse(u16, &'static str),
    /// It is done and answered well, after this long.
    AnswerAfter(Duration),
    /// It is done, and the connection is closed without an answer.
    LoseAnswer,
    /// It is done, and the answer breaks off in the middle.
    TruncateAnswer,
    /// It is done, and this is the answer: status and code.
    DoAndRefuse(u16, &'static str),
    /// A byte of the body is another one when it arrives.
    FlipByte,
    /// The upload is forgotten before the call is looked at, as a lifecycle rule does.
    ForgetUpload,
    /// A part of the upload is lost before the call is looked at.
    ForgetPart(u32),
    /// Before the call is looked at, somebody else stores an object at its key.
    ForeignObject,
    /// The answer tells another size.
    WrongSize,
    /// The answer tells another CRC64NVME.
    WrongChecksum,
    /// The answer tells no CRC64NVME.
    NoChecksum,
    /// The answer tells no metadata.
    NoMetadata,
    /// It is done and answered well, and the connection ends with the answer.
    EndConnection,
}

/// On a request: its body shall arrive changed.
#[derive(Clone, Debug)]
pub struct Flip;

/// The faults to come, and how often each call was made.
#[derive(Default, Debug)]
pub struct Script {
    faults: Vec<(Op, RangeInclusive<u32>, Fault)>,
    calls: BTreeMap<Op, u32>,
    hit: u32,
}

impl Script {
    /// Lets `calls` of an operation, counted from now on, go wrong.
    pub fn add(&mut self, op: Op, calls: RangeInclusive<u32>, fault: Fault) {
        let now = self.calls(op);
        self.faults.push((op, now + calls.start()..=now.saturating_add(*calls.end()), fault));
    }

    /// Counts a call, and gives what goes wrong with it.
    pub fn next(&mut self, op: Op) -> Option<Fault> {
        let calls = self.calls.entry(op).or_default();
        *calls += 1;
        let fault = self.faults.iter().find(|(on, when, _)| *on == op && when.contains(calls)).map(|(_, _, fault)| *fault);
        self.hit += u32::from(fault.is_some());
        fault
    }

    /// How many calls were made.
    #[must_use]
    pub fn all_calls(&self) -> u32 {
        self.calls.values().sum()
    }

    /// How often a call was made.
    #[must_use]
    pub fn calls(&self, op: Op) -> u32 {
        self.calls.get(&op).copied().unwrap_or(0)
    }

    /// How many calls went wrong.
    #[must_use]
    pub fn hit(&self) -> u32 {
        self.hit
    }

    /// From now on nothing goes wrong.
    pub fn clear(&mut self) {
        self.faults.clear();
    }
}
