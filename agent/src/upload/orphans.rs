//! Uploads that an earlier process of this instance began and nothing knows of any more: their parts cost money and are seen by nobody.
//! In: the uploads under the instance's own prefix, the journals. Out: those of no journal that are older than a day, aborted.
//! Never: touches another instance's, one that a journal holds, or one at the key of a segment that is still here.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};

use super::Error;
use super::multipart::{Way, blocking};
use super::store::{Class, Store};
use crate::record::Stamp;
use crate::spool::{Folder, journal};

/// A younger upload may be one of which the journal is about to be written.
pub const OLD: Duration = Duration::from_secs(24 * 3600);

/// What the spool's journals hold.
#[derive(Debug)]
pub struct Held {
    /// Ids of uploads.
    pub ids: BTreeSet<String>,
    /// Keys.
    pub keys: BTreeSet<String>,
}

/// What the journals hold, but for that of the segment `except`.
///
/// # Errors
/// When the folder or a journal cannot be read: then nobody can say what is held.
pub fn held(folder: &Folder, except: Option<&str>) -> Result<Held, Error> {
    let mut held = Held { ids: BTreeSet::new(), keys: BTreeSet::new() };
    for segment in folder.segments()? {
        let Some(path) = segment.journal.filter(|_| Some(segment.capture_id.as_str()) != except) else { continue };
        match journal::read(&path) {
            Ok((state, _)) => {
                held.ids.extend(state.upload_id);
                held.keys.insert(state.open.key);
            }
            // Confirmed and removed meanwhile.
            Err(_) if !path.exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(held)
}

/// Aborts the orphans under `prefix`, which ends in `/`; gives how many there were.
///
/// # Errors
/// When they cannot be listed, or a journal cannot be read.
pub async fn sweep<S: Store>(way: &Way<S>, bucket: &str, prefix: &str, now: Stamp) -> Result<usize, Error> {
    let begun = way.store.list_uploads(bucket, prefix).await?;
    let old = |initiated: Stamp| now.0.saturating_sub(initiated.0) as u128 > OLD.as_nanos();
    let mut orphans: Vec<_> =
        begun.into_iter().filter(|begun| begun.upload.place.key.starts_with(prefix) && old(begun.initiated)).collect();
    if orphans.is_empty() {
        return Ok(0);
    }
    // Asked after the uploads: whatever began meanwhile is held.
    let folder = way.folder.clone();
    let held = blocking(move || held(&folder, None)).await??;
    orphans.retain(|begun| !held.ids.contains(&begun.upload.id) && !held.keys.contains(&begun.upload.place.key));
    let mut aborted = 0;
    for orphan in orphans {
        match way.store.abort(&orphan.upload).await {
            Ok(()) => {
                info!("aborted an upload to {} that was begun at {} and that no journal knows", orphan.upload.place, orphan.initiated);
                aborted += 1;
            }
            Err(error) if error.class == Class::NoSuchUpload => {}
            Err(error) => warn!("{error}"),
        }
    }
    Ok(aborted)
}
