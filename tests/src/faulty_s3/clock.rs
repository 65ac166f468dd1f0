//! The clock of the server, which may be off: S3 refuses requests whose time is too far from its own, and tells its own with each answer.
//! In: by how much it is off, headers of requests. Out: whether a request is refused, the date of an answer. Never: a wait.
//! Spec: Amazon S3 API Reference, "Error responses" (`RequestTimeTooSkewed`) and "Common Response Headers"; RFC 9110 6.6.1.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, Utc};
use hyper::header::{HeaderMap, HeaderValue};

/// A request may be off by this much.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);

/// A clock, and whether its time is told.
#[derive(Clone, Copy, Default, Debug)]
pub struct Clock {
    /// By how many seconds it is ahead of the machine's.
    pub ahead_seconds: i64,
    /// Whether answers do not tell its time.
    pub silent: bool,
    /// How many requests were refused for their time.
    pub refusals: u32,
}

impl Clock {
    /// Whether a request with these headers comes at another time than it says. One that says none is for the signature to refuse.
    pub fn refuses(&mut self, headers: &HeaderMap, now: SystemTime) -> bool {
        let text = headers.get("x-amz-date").and_then(|text| text.to_str().ok());
        let asked = text.and_then(|text| NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%SZ").ok());
        let refused = asked.is_some_and(|asked| (self.time(now) - asked.and_utc()).abs().to_std().is_ok_and(|apart| apart > SKEW_MAX));
        self.refusals += u32::from(refused);
        refused
    }

    /// What an answer says of the time.
    #[must_use]
    pub fn date(&self, now: SystemTime) -> Option<HeaderValue> {
        let date = self.time(now).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        HeaderValue::from_str(&date).ok().filter(|_| !self.silent)
    }

    fn time(&self, now: SystemTime) -> DateTime<Utc> {
        DateTime::<Utc>::from(now) + chrono::Duration::seconds(self.ahead_seconds)
    }
}
