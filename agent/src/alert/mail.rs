//! In: news of a trouble, where it is. Out: a mail: subject and plain text.
//! Never: a subject of 100 characters or more, or of anything but printable ASCII; a body without the trouble's id.
//! Spec: Amazon SNS API Reference, Publish (Subject, Message).

use std::fmt::Write as _;
use std::time::Duration;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fold::{Kind, News};
use super::rules::{Trouble, span};

/// The most characters of a subject.
pub const SUBJECT_MAX: usize = 99;

/// The most bytes of a body; SNS takes 256 KiB with everything around it.
pub const BODY_MAX: usize = 64 << 10;

/// Where a trouble is.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Which instance.
    pub instance: String,
    /// Its region, if known.
    pub region: Option<String>,
    /// Its availability zone, if known.
    pub zone: Option<String>,
    /// Its Auto Scaling group, if known.
    pub group: Option<String>,
    /// The account of the topic, if there is one.
    pub account: Option<String>,
}

/// A mail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mail {
    /// Of which trouble; for others an id of its own.
    pub id: String,
    /// Tells this mail from every other, also of the same trouble; empty in files of versions that had none.
    #[serde(default)]
    pub key: String,
    /// What it is about.
    pub kind: Kind,
    /// At most [`SUBJECT_MAX`] printable ASCII characters, not blank.
    pub subject: String,
    /// At most [`BODY_MAX`] bytes, not blank.
    pub body: String,
}

impl Mail {
    /// One that keeps the rules, whatever is handed in.
    #[must_use]
    pub fn new(id: &str, kind: Kind, subject: &str, body: &str) -> Self {
        let key = Uuid::now_v7().to_string();
        Self { id: plain_id(id), key, kind, subject: plain_subject(subject), body: plain_body(body) }
    }

    /// The same, made to keep the rules: a file may say anything.
    #[must_use]
    pub fn checked(self) -> Self {
        let key = if self.key.is_empty() { String::new() } else { plain_id(&self.key) };
        Self { key, ..Self::new(&self.id, self.kind, &self.subject, &self.body) }
    }

    /// About a trouble.
    #[must_use]
    pub fn of(news: &News, place: &Place) -> Self {
        Self::new(&news.id, news.kind, &subject(news, place), &body(news, place))
    }

    /// From a person, or from a program.
    #[must_use]
    pub fn note(id: &str, subject: &str, message: &str, place: &Place) -> Self {
        Self::new(id, Kind::Note, subject, &format!("{}\n\n{}Id:        {id}\n", plain_body(message), place.lines()))
    }

    /// The agent has begun.
    #[must_use]
    pub fn start(id: &str, at_ns: u64, place: &Place) -> Self {
        let subject = format!("tapfleet STARTED {}: packets are being captured", shortened(&place.instance, 40));
        let body = format!(
            "What:      the agent {} has started and takes packets\nSince:     {}\n{}Id:        {id}\n",
            env!("CARGO_PKG_VERSION"),
            time(at_ns),
            place.lines()
        );
        Self::new(id, Kind::Note, &subject, &body)
    }
}

impl Place {
    fn lines(&self) -> String {
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        let mut out = format!("Where:     instance {}, region {}, zone {}", self.instance, said(&self.region), said(&self.zone));
        if let Some(group) = &self.group {
            let _ = write!(out, ", group {group}");
        }
        if let Some(account) = &self.account {
            let _ = write!(out, ", account of the topic {account}");
        }
        out.push('\n');
        out
    }
}

/// The instance gives way, never the title.
fn subject(news: &News, place: &Place) -> String {
    let word = match news.kind {
        Kind::Begin => "FAILURE",
        Kind::Repeat => "STILL",
        Kind::Over => "OVER",
        Kind::Note => "NOTE",
    };
    let title = news.trouble.title();
    let taken = format!("tapfleet {word} : {title}").len();
    format!("tapfleet {word} {}: {title}", shortened(&place.instance, SUBJECT_MAX.saturating_sub(taken)))
}

fn body(news: &News, place: &Place) -> String {
    let trouble = news.trouble;
    let mut out = String::new();
    // Writing to memory does not fail.
    let _ = match news.kind {
        Kind::Over => writeln!(out, "What:      over: {}\nLasted:    {}", trouble.title(), lasted(news)),
        Kind::Repeat => writeln!(out, "What:      still: {}; {}", trouble.title(), news.detail),
        Kind::Begin | Kind::Note => writeln!(out, "What:      {}; {}", trouble.title(), news.detail),
    };
    let _ = writeln!(out, "Since:     {}", time(news.since_ns));
    out.push_str(&place.lines());
    let mut lost = news.losses.words();
    if trouble == Trouble::AgentDied {
        lost.push_str(
            "; not counted: what the dead agent held in memory, and what came while no agent was there for longer than its rings hold",
        );
    }
    let _ = match news.kind {
        Kind::Over => writeln!(out, "Lost:      {lost}\nFirst said: {}", news.detail),
        Kind::Repeat => writeln!(out, "Lost:      {lost} so far\nAt stake:  {}\nTo do:     {}", trouble.stake(), trouble.todo()),
        Kind::Begin | Kind::Note => writeln!(out, "At stake:  {}\nTo do:     {}", trouble.stake(), trouble.todo()),
    };
    let _ = writeln!(out, "Trouble:   {}", news.id);
    out
}

/// How long it lasted and until when, and by which clock: only the monotonic one does not step, and it must have seen both ends.
fn lasted(news: &News) -> String {
    let until = time(news.at_ns);
    match news.lasted_ns {
        Some(ns) => format!("{}, until {until}", span(Duration::from_nanos(ns))),
        None => {
            let ns = news.at_ns.saturating_sub(news.since_ns);
            format!("{}, until {until}, by the wall clock: another process saw it begin", span(Duration::from_nanos(ns)))
        }
    }
}

/// As in `2026-11-22 04:05:06 UTC`.
fn time(ns: u64) -> String {
    let stamp = i64::try_from(ns).ok().map(DateTime::from_timestamp_nanos);
    stamp.map_or_else(|| "unknown".into(), |stamp| stamp.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.into();
    }
    let kept: String = text.chars().take(max.saturating_sub(2)).collect();
    format!("{kept}..")
}

/// SNS wants printable ASCII that does not begin with a space, fewer than 100 characters, no line break.
fn plain_subject(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else if c.is_whitespace() {
                ' '
            } else {
                '?'
            }
        })
        .collect();
    let subject: String = plain.trim().chars().take(SUBJECT_MAX).collect();
    let subject = subject.trim_end();
    if subject.is_empty() { "tapfleet".into() } else { subject.into() }
}

/// Plain text: line breaks and tabs stay, other control characters go.
fn plain_body(text: &str) -> String {
    let mut end = text.len().min(BODY_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let kept = text.get(..end).unwrap_or_default();
    // A replacement character could make it longer than it was.
    let body: String = kept.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect();
    if body.trim().is_empty() { "(no text)\n".into() } else { body }
}

/// Letters, digits, dots, hyphens, underscores: it is part of a file's name.
fn plain_id(text: &str) -> String {
    let id: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(ID_MAX).collect();
    if id.is_empty() { "none".into() } else { id }
}

/// The most characters of an id.
pub const ID_MAX: usize = 120;
