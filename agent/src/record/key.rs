//! Names of objects: `<key_prefix><instance-id>/YYYY-MM-DD-HH-MM[_NNNN].<extension>`.
//! In: a moment, names given so far. Out: a key not given before. Never: asks S3 (the uploader does, before it creates).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

/// How many minutes are remembered: more than a day of size splits.
const MINUTES_REMEMBERED: usize = 4096;

/// The UTC minute of a moment (nanoseconds since 1970) as keys write it.
#[must_use]
pub fn minute(time_ns: u64) -> String {
    date(time_ns).format("%Y-%m-%d-%H-%M").to_string()
}

/// The UTC day of a moment (nanoseconds since 1970) as keys write it.
#[must_use]
pub fn day(time_ns: u64) -> String {
    date(time_ns).format("%Y-%m-%d").to_string()
}

fn date(time_ns: u64) -> DateTime<Utc> {
    DateTime::from_timestamp((time_ns / 1_000_000_000) as i64, 0).unwrap_or_default()
}

/// The names that one instance has given.
#[derive(Debug)]
pub struct Names {
    folder: String,
    /// Last ordinal by minute and extension; minutes sort by time.
    given: BTreeMap<(String, String), u32>,
}

impl Names {
    /// Names under `<key_prefix><instance>/`.
    #[must_use]
    pub fn new(key_prefix: &str, instance: &str) -> Self {
        Self { folder: format!("{key_prefix}{instance}/"), given: BTreeMap::new() }
    }

    /// A key for a segment that opened at `time_ns`: the minute's first, or the next after those given. Capture and
    /// quarantine (another extension) are counted apart.
    pub fn give(&mut self, time_ns: u64, extension: &str) -> String {
        let minute = minute(time_ns);
        let ordinal = self.given.entry((minute.clone(), extension.into())).or_insert(0);
        // What was noted from a journal may be any number.
        *ordinal = ordinal.saturating_add(1);
        let key = name(&self.folder, &minute, *ordinal, extension);
        while self.given.len() > MINUTES_REMEMBERED {
            self.given.pop_first();
        }
        key
    }
}

impl Names {
    /// Notes a key that was given earlier, by another process of this instance.
    pub fn note(&mut self, key: &str) {
        let Some(file) = key.strip_prefix(&self.folder) else { return };
        let (minute, ordinal, extension) = parts(file);
        let last = self.given.entry((minute.into(), extension.into())).or_insert(0);
        *last = ordinal.max(*last);
    }
}

/// Minute, ordinal and extension of a key's last component.
fn parts(file: &str) -> (&str, u32, &str) {
    let (stem, extension) = file.split_once('.').unwrap_or((file, ""));
    match stem.rsplit_once('_') {
        Some((minute, digits)) => (minute, digits.parse().unwrap_or(1).max(1), extension),
        None => (stem, 1, extension),
    }
}

fn name(folder: &str, minute: &str, ordinal: u32, extension: &str) -> String {
    match ordinal {
        0 | 1 => format!("{folder}{minute}.{extension}"),
        // '_' sorts after '.', so a minute's segments list in the order they were made.
        n => format!("{folder}{minute}_{n:04}.{extension}"),
    }
}

/// The key to try when `key` is taken: the next ordinal of the same minute.
#[must_use]
pub fn successor(key: &str) -> String {
    let at = key.rfind('/').map_or(0, |slash| slash + 1);
    let (folder, file) = key.split_at(at);
    let (minute, ordinal, extension) = parts(file);
    name(folder, minute, ordinal.saturating_add(1), extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    // 2026-11-22T00:15:00Z
    const TIME: u64 = 1_795_306_500_000_000_000;
    const MINUTE_NS: u64 = 60_000_000_000;

    #[test]
    fn keys_are_the_instance_and_the_minute_and_never_given_twice() {
        let mut names = Names::new("packet-captures/", "i-0abc");
        assert_eq!(names.give(TIME, "pcap"), "packet-captures/i-0abc/2026-11-22-00-15.pcap");
        assert_eq!(names.give(TIME + MINUTE_NS - 1, "pcap"), "packet-captures/i-0abc/2026-11-22-00-15_0002.pcap");
        assert_eq!(names.give(TIME, "quarantine.pcapng"), "packet-captures/i-0abc/2026-11-22-00-15.quarantine.pcapng");
        assert_eq!(names.give(TIME + MINUTE_NS, "pcap"), "packet-captures/i-0abc/2026-11-22-00-16.pcap");
        assert_eq!(day(TIME), "2026-11-22");
    }

    #[test]
    fn the_highest_number_that_a_journal_can_name_does_no_harm() {
        let mut names = Names::new("", "i-0abc");
        names.note("i-0abc/2026-11-22-00-15_4294967295.pcap");
        let key = names.give(TIME, "pcap");
        assert_eq!((key.as_str(), successor(&key)), ("i-0abc/2026-11-22-00-15_4294967295.pcap", key.clone()));
    }

    #[test]
    fn a_key_given_before_a_restart_is_not_given_again() {
        let mut names = Names::new("", "i-0abc");
        names.note("i-0abc/2026-11-22-00-15_0002.pcap");
        names.note("i-0abc/2026-11-22-00-15.pcap");
        names.note("i-9/2026-11-22-00-16.pcap");
        assert_eq!(names.give(TIME, "pcap"), "i-0abc/2026-11-22-00-15_0003.pcap");
        assert_eq!(names.give(TIME + MINUTE_NS, "pcap"), "i-0abc/2026-11-22-00-16.pcap");
    }

    #[test]
    fn the_successor_of_a_key_is_the_next_of_its_minute() {
        assert_eq!(successor("i-1/2026-11-22-00-15.pcap.zst"), "i-1/2026-11-22-00-15_0002.pcap.zst");
        assert_eq!(successor("i-1/2026-11-22-00-15_0002.pcap"), "i-1/2026-11-22-00-15_0003.pcap");
        assert_eq!(successor("2026-11-22-00-15.quarantine.pcapng"), "2026-11-22-00-15_0002.quarantine.pcapng");
        assert!("i-1/2026-11-22-00-15_0002.pcap" > "i-1/2026-11-22-00-15.pcap");
    }
}
