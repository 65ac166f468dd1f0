//! What of a segment is in S3: a file of lines beside the segment, each with its own checksum.
//! In: records, intent before and result after each call; of a part the result alone, as its number says which bytes it has and ListParts
//! what came of it. Out: the state that a restart goes on from.
//! Never: rewrites a line; trusts one whose checksum is wrong (a torn last line is dropped, an earlier one is an error).
//!
//! A line is eight hexadecimal digits of CRC-32C (RFC 3720 12.1) over the rest, a space, one JSON object. Versions are added,
//! never changed: `tests/fixtures/journal-v1` must resume in every later version.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, rename};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};
use serde::{Deserialize, Serialize};

use super::Error;
use super::budget::with_ballast;
use crate::record::Stamp;
use crate::record::facts::Kind;

/// The version written by this agent.
pub const VERSION: u32 = 1;

/// The longest line that is believed, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// First line, before the segment's first byte.
    Open(Open),
    /// The key was taken; from here on this one.
    Key {
        /// The new key.
        key: String,
    },
    /// A multipart upload is about to be created.
    Creating,
    /// It was.
    Created {
        /// S3's id of it.
        upload_id: String,
    },
    /// A part is in S3.
    Part(Part),
    /// The upload is lost or useless; nothing of it counts any more.
    Restart {
        /// Why.
        cause: String,
        /// Whether what was sent is not what the file has: then nothing is held against the sums of its parts either.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        misread: bool,
    },
    /// The upload is about to be completed.
    Completing {
        /// Bytes of the whole object.
        bytes: u64,
        /// Its CRC64NVME.
        crc64nvme: u64,
    },
    /// S3 has confirmed size, checksum and capture id.
    Verified {
        /// Bytes of the object.
        bytes: u64,
        /// Its CRC64NVME.
        crc64nvme: u64,
        /// Its ETag.
        etag: Option<String>,
        /// Its version, in a versioned bucket.
        version_id: Option<String>,
    },
    /// The manifest is in S3, too: the segment may go.
    ManifestStored {
        /// Its key.
        key: String,
    },
}

/// What a segment is and where it goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Open {
    /// Format version of the journal.
    pub version: u32,
    /// Capture or quarantine.
    pub kind: Kind,
    /// Its identity; also in the object's metadata.
    pub capture_id: String,
    /// Where it goes.
    pub bucket: String,
    /// Under which key.
    pub key: String,
    /// Who records it.
    pub instance: String,
    /// Start of its window.
    pub window: Stamp,
    /// Ending of its file name: `pcap`, `pcapng`, `pcap.zst`, `pcapng.zst`.
    pub extension: String,
    /// Version of the agent that opened it.
    pub agent_version: String,
}

/// A part that S3 has taken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Its number, 1 to 10,000.
    pub number: u32,
    /// Its bytes.
    pub bytes: u64,
    /// Their CRC64NVME.
    pub crc64nvme: u64,
    /// S3's ETag of it.
    pub etag: String,
}

/// What the lines of a journal add up to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The first line, with the key that holds now.
    pub open: Open,
    /// The multipart upload under way.
    pub upload_id: Option<String>,
    /// Multipart uploads that were given up, each with its key: S3 may have them still.
    pub given_up: Vec<(String, String)>,
    /// Whether a creation was begun whose answer is not known.
    pub creating: bool,
    /// Parts in S3 by number.
    pub parts: BTreeMap<u32, Part>,
    /// Bytes and CRC64NVME of each part that ever was in S3, whatever became of its upload: what the file had there.
    pub sums: BTreeMap<u32, (u64, u64)>,
    /// Bytes and CRC64NVME of a completion that was sent for this key, whatever became of its upload: it may still be done.
    pub completing: Option<(u64, u64)>,
    /// Bytes, CRC64NVME and ETag, once confirmed.
    pub verified: Option<Verified>,
    /// Whether the manifest is in S3.
    pub manifest_stored: bool,
}

/// What S3 confirmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Bytes of the object.
    pub bytes: u64,
    /// Its CRC64NVME.
    pub crc64nvme: u64,
    /// Its ETag.
    pub etag: Option<String>,
    /// Its version.
    pub version_id: Option<String>,
}

impl State {
    fn new(open: Open) -> Self {
        Self {
            open,
            upload_id: None,
            given_up: Vec::new(),
            creating: false,
            parts: BTreeMap::new(),
            sums: BTreeMap::new(),
            completing: None,
            verified: None,
            manifest_stored: false,
        }
    }

    fn apply(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Open(_) => return Err("a second 'open' record".into()),
            Record::Key { key } => {
                self.forget_upload();
                self.open.key = key;
                self.completing = None;
            }
            Record::Creating => self.creating = true,
            Record::Created { upload_id } => {
                self.forget_upload();
                self.upload_id = Some(upload_id);
            }
            Record::Part(part) => {
                self.sums.insert(part.number, (part.bytes, part.crc64nvme));
                self.parts.insert(part.number, part);
            }
            Record::Restart { misread, .. } => {
                self.forget_upload();
                if misread {
                    self.sums.clear();
                }
            }
            Record::Completing { bytes, crc64nvme } => self.completing = Some((bytes, crc64nvme)),
            Record::Verified { bytes, crc64nvme, etag, version_id } => {
                self.verified = Some(Verified { bytes, crc64nvme, etag, version_id });
            }
            Record::ManifestStored { .. } => self.manifest_stored = true,
        }
        Ok(())
    }

    fn forget_upload(&mut self) {
        self.given_up.extend(self.upload_id.take().map(|id| (self.open.key.clone(), id)));
        self.creating = false;
        self.parts.clear();
    }
}

/// An open journal: the state so far, and where the next line goes.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of the lines that are durable. The next line begins there: what a full disk took of a line before is overwritten,
    /// not continued, or it would stand damaged in the middle.
    whole_bytes: u64,
    state: State,
}

impl Journal {
    /// Begins a journal and makes it durable. It appears under its name with its first line whole: the uploader, which may look
    /// at any moment, never sees less.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, open: Open) -> Result<Self, Error> {
        let unfinished = path.with_extension("journal.unfinished");
        let options = OpenOptions::new().write(true).create(true).truncate(true).open(&unfinished);
        let file = options.map_err(io("create the journal", &unfinished))?;
        let mut journal = Self { path: path.into(), file, whole_bytes: 0, state: State::new(open.clone()) };
        journal.write(&Record::Open(open))?;
        rename(&unfinished, path).map_err(io("put the journal in place", path))?;
        Ok(journal)
    }

    /// Opens an existing journal to go on with it; a torn last line is cut off.
    ///
    /// # Errors
    /// When it cannot be read, an earlier line is damaged, or its version is not known.
    pub fn resume(path: &Path) -> Result<Self, Error> {
        let (state, whole_bytes) = read(path)?;
        let file = OpenOptions::new().write(true).open(path).map_err(io("open the journal", path))?;
        if file.metadata().map_err(io("examine the journal", path))?.len() > whole_bytes {
            file.set_len(whole_bytes).map_err(io("cut the torn line off the journal", path))?;
        }
        Ok(Self { path: path.into(), file, whole_bytes, state })
    }

    /// What the lines add up to.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Adds a line and makes it durable.
    ///
    /// # Errors
    /// When it cannot be written, or the record does not fit the state.
    pub fn append(&mut self, record: Record) -> Result<(), Error> {
        self.write(&record)?;
        self.state.apply(record).map_err(|cause| Error::Journal { path: self.path.clone(), line: 0, cause })
    }

    fn write(&mut self, record: &Record) -> Result<(), Error> {
        let json = serde_json::to_string(record).map_err(|cause| io("encode a line of the journal", &self.path)(cause.into()))?;
        let line = format!("{:08x} {json}\n", line_checksum(json.as_bytes()));
        // After a sync that failed the line is written again, at the same place.
        let write = || self.file.write_all_at(line.as_bytes(), self.whole_bytes).and_then(|()| self.file.sync_data());
        let dir = self.path.parent().unwrap_or(Path::new("."));
        with_ballast(dir, write).map_err(io("append to the journal", &self.path))?;
        self.whole_bytes += line.len() as u64;
        Ok(())
    }
}

/// What the lines of the journal at `path` add up to, and how many of its bytes are whole lines.
///
/// # Errors
/// When it cannot be read, has no whole first line, a line before the last is damaged, or its version is not known.
pub fn read(path: &Path) -> Result<(State, u64), Error> {
    let damaged = |line: usize, cause: String| Error::Journal { path: path.into(), line, cause };
    let file = File::open(path).map_err(io("open the journal", path))?;
    let mut reader = BufReader::new(file);
    let mut state: Option<State> = None;
    let mut whole_bytes = 0;
    let mut torn: Option<(usize, String)> = None;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(io("read the journal", path))?;
        if read == 0 {
            break;
        }
        // Only the last line may be torn.
        if let Some((number, cause)) = torn {
            return Err(damaged(number, cause));
        }
        match parse(&line) {
            Ok(record) => {
                match (&mut state, record) {
                    (Some(state), record) => state.apply(record).map_err(|cause| damaged(number, cause))?,
                    (None, Record::Open(open)) if open.version == VERSION => state = Some(State::new(open)),
                    (None, Record::Open(open)) => {
                        return Err(damaged(
                            number,
                            format!("version {}, this agent knows {VERSION}; run the agent that wrote it", open.version),
                        ));
                    }
                    (None, _) => return Err(damaged(number, "expected an 'open' record first".into())),
                }
                whole_bytes += read as u64;
            }
            Err(cause) => torn = Some((number, cause)),
        }
    }
    match state {
        Some(state) => Ok((state, whole_bytes)),
        None => Err(damaged(1, torn.map_or_else(|| "it is empty".into(), |(_, cause)| cause))),
    }
}

fn parse(line: &[u8]) -> Result<Record, String> {
    let text = line.strip_suffix(b"\n").ok_or("the line has no end")?;
    let (sum, json) = text.split_at_checked(9).ok_or("the line is too short")?;
    let sum = std::str::from_utf8(sum).ok().and_then(|sum| sum.strip_suffix(' ')).and_then(|sum| u32::from_str_radix(sum, 16).ok());
    let sum = sum.ok_or("expected eight hexadecimal digits and a space")?;
    let found = line_checksum(json);
    if sum != found {
        return Err(format!("checksum {sum:08x} does not match the line's {found:08x}"));
    }
    serde_json::from_slice(json).map_err(|cause| cause.to_string())
}

fn line_checksum(json: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, json) as u32
}

/// Gives an I/O error its act and its thing.
pub(super) fn io<'a>(act: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + use<'a> {
    move |cause| Error::Io { act, path: path.into(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn open() -> Open {
        Open {
            version: VERSION,
            kind: Kind::Capture,
            capture_id: "0192".into(),
            bucket: "captures".into(),
            key: "i-1/2026-11-22-00-15.pcap".into(),
            instance: "i-1".into(),
            window: Stamp(1_700_000_000_000_000_000),
            extension: "pcap".into(),
            agent_version: "0.1.0".into(),
        }
    }

    fn part(number: u32) -> Record {
        Record::Part(Part { number, bytes: 8 << 20, crc64nvme: 7, etag: "\"e\"".into() })
    }

    #[test]
    fn a_journal_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        let mut journal = Journal::create(&path, open()).unwrap();
        journal.append(Record::Creating).unwrap();
        journal.append(Record::Created { upload_id: "u".into() }).unwrap();
        journal.append(part(1)).unwrap();
        let before = journal.state().clone();
        drop(journal);
        let mut journal = Journal::resume(&path).unwrap();
        assert_eq!(*journal.state(), before);
        assert_eq!(before.upload_id.as_deref(), Some("u"));
        journal.append(Record::Key { key: "i-1/2026-11-22-00-15_0002.pcap".into() }).unwrap();
        assert!(journal.state().upload_id.is_none() && journal.state().parts.is_empty());
        assert_eq!(read(&path).unwrap().0, *journal.state());
    }

    fn restart(misread: bool) -> Record {
        Record::Restart { cause: "409".into(), misread }
    }

    #[test]
    fn the_sums_of_parts_outlive_an_upload_but_for_one_that_was_misread() {
        let part = Part { number: 1, bytes: 5, crc64nvme: 7, etag: "e".into() };
        for misread in [false, true] {
            let mut state = State::new(open());
            let again = serde_json::from_str(&serde_json::to_string(&restart(misread)).unwrap()).unwrap();
            [Record::Part(part.clone()), again].into_iter().for_each(|record| state.apply(record).unwrap());
            assert_eq!((state.parts.len(), state.sums.is_empty()), (0, misread));
        }
        assert_eq!(serde_json::to_string(&restart(false)).unwrap(), r#"{"record":"restart","cause":"409"}"#, "as ever");
    }

    #[test]
    fn an_upload_that_was_given_up_is_remembered_with_its_key() {
        let mut state = State::new(open());
        let key = |number: u32| format!("i-1/2026-11-22-00-15_{number:04}.pcap");
        let created = |id: &str| Record::Created { upload_id: id.into() };
        let records = [created("u"), Record::Key { key: key(2) }, created("v"), restart(false), created("w")];
        records.into_iter().for_each(|record| state.apply(record).unwrap());
        assert_eq!(state.given_up, [(open().key, "u".to_owned()), (key(2), "v".to_owned())]);
        assert_eq!(state.upload_id.as_deref(), Some("w"));
    }

    proptest! {
        #[test]
        fn a_torn_last_line_is_dropped_and_the_rest_is_kept(cut in 1usize..60) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.journal");
            let mut journal = Journal::create(&path, open()).unwrap();
            journal.append(part(1)).unwrap();
            let whole = std::fs::metadata(&path).unwrap().len();
            journal.append(part(2)).unwrap();
            let all = std::fs::read(&path).unwrap();
            let keep = (whole as usize + cut).min(all.len() - 1);
            std::fs::write(&path, &all[..keep]).unwrap();
            let mut journal = Journal::resume(&path).unwrap();
            prop_assert_eq!(journal.state().parts.len(), 1);
            journal.append(part(2)).unwrap();
            prop_assert_eq!(std::fs::read(&path).unwrap(), all);
        }

        #[test]
        fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.journal");
            std::fs::write(&path, &bytes).unwrap();
            prop_assert!(read(&path).is_err());
        }
    }

    #[test]
    fn a_completion_that_was_sent_is_remembered_for_as_long_as_the_key_holds() {
        let mut state = State::new(open());
        let completing = Record::Completing { bytes: 8 << 20, crc64nvme: 7 };
        let again = [completing, restart(false), Record::Creating, Record::Created { upload_id: "v".into() }];
        again.into_iter().for_each(|record| state.apply(record).unwrap());
        assert_eq!((state.completing, state.upload_id.as_deref()), (Some((8 << 20, 7)), Some("v")));
        state.apply(Record::Key { key: "i-1/2026-11-22-00-15_0002.pcap".into() }).unwrap();
        assert_eq!(state.completing, None);
    }

    #[test]
    fn a_line_that_the_disk_took_in_part_is_overwritten_and_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        drop(Journal::create(&path, open()).unwrap());
        let mut journal = Journal::resume(&path).unwrap();
        journal.append(part(1)).unwrap();
        // As a full disk leaves it: a beginning, and the rest refused.
        let mut raw = OpenOptions::new().append(true).open(&path).unwrap();
        raw.write_all(b"deadbeef {\"record\":\"part\",\"number\":2,").unwrap();
        journal.append(part(2)).unwrap();
        journal.append(part(3)).unwrap();
        drop(journal);
        let journal = Journal::resume(&path).unwrap();
        assert_eq!(journal.state().parts.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn damage_before_the_last_line_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        let mut journal = Journal::create(&path, open()).unwrap();
        journal.append(part(1)).unwrap();
        journal.append(part(2)).unwrap();
        let mut all = std::fs::read(&path).unwrap();
        let second = all.iter().position(|&b| b == b'\n').unwrap() + 12;
        all[second] ^= 1;
        std::fs::write(&path, &all).unwrap();
        let error = Journal::resume(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
