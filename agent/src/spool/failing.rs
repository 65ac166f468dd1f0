//! Since when a segment has failed while others got through, beside its journal: a restart does not forget it.
//! In: a segment, a time. Out: the time. Never: a reason to delete or to send anything; a record that an older agent could not read,
//! as one in the journal would be.

use std::fs::{self, File};
use std::io::Read;

use super::folder::remove_if_there;
use super::journal::io;
use super::{Error, Folder, Segment};
use crate::record::Stamp;

/// The ending of the file.
pub(super) const EXTENSION: &str = "failing";

/// Longer than a stamp is.
const BYTES_MAX: u64 = 64;

/// Notes it.
///
/// # Errors
/// When it cannot be written.
pub fn note(folder: &Folder, capture_id: &str, since: Stamp) -> Result<(), Error> {
    let path = folder.path(capture_id, EXTENSION);
    let unfinished = folder.path(capture_id, "failing.unfinished");
    fs::write(&unfinished, since.to_string()).map_err(io("write", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(io("put in place", &path))
}

/// Forgets it.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(folder: &Folder, capture_id: &str) -> Result<(), Error> {
    remove_if_there(&folder.path(capture_id, EXTENSION))
}

/// What was noted; `None` when nothing was, or nothing that can be read.
#[must_use]
pub fn since(segment: &Segment) -> Option<Stamp> {
    let mut text = String::new();
    File::open(segment.failing.as_ref()?).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
    text.try_into().ok()
}
