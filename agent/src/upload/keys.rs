//! Which segment of the spool goes to which key.
//! In: the journals as an earlier process left them, the keys that segments take since. Out: whether a key is another segment's; the next
//! that is nobody's. Never: lets two segments be under way to one key: both would find nobody there, and where S3 does not hold its
//! conditions (not every endpoint does) the second would overwrite the first.
//!
//! The recorder gives each segment a key of its own, but does not know of those that segments took because theirs was another object's.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::Mutex;
use tracing::warn;

use super::multipart::blocking;
use super::{Error, orphans};
use crate::record::key::successor;
use crate::spool::{Folder, journal};

/// Capture ids by key.
type Owners = BTreeMap<String, String>;

/// The keys, as far as they may be in dispute: those of the journals at the first question, and those that were taken since.
#[derive(Debug, Default)]
pub struct Keys(Mutex<Option<Owners>>);

impl Keys {
    /// Whether `key` is another segment's than `capture_id`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn is_anothers(&self, folder: &Folder, key: &str, capture_id: &str) -> Result<bool, Error> {
        let mut owners = self.0.lock().await;
        let owners = known(&mut owners, folder).await?;
        Ok(owners.get(key).is_some_and(|owner| owner != capture_id))
    }

    /// Gives the segment `capture_id` the first key after `key` that no other has.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn take_next(&self, folder: &Folder, key: &str, capture_id: &str) -> Result<String, Error> {
        let mut owners = self.0.lock().await;
        let owners = known(&mut owners, folder).await?;
        let (journals, own) = (folder.clone(), capture_id.to_owned());
        let held = blocking(move || orphans::held(&journals, Some(&own))).await?;
        let held = held.map(|held| held.keys).unwrap_or_else(|error| {
            warn!(segment = capture_id, "which keys other segments hold cannot be told: {error}");
            BTreeSet::new()
        });
        let is_free = |key: &str| !held.contains(key) && owners.get(key).is_none_or(|owner| owner == capture_id);
        let mut next = successor(key);
        while !is_free(&next) && successor(&next) != next {
            next = successor(&next);
        }
        owners.insert(next.clone(), capture_id.into());
        Ok(next)
    }
}

async fn known<'a>(owners: &'a mut Option<Owners>, folder: &Folder) -> Result<&'a mut Owners, Error> {
    let folder = folder.clone();
    let found = match owners.take() {
        Some(owners) => owners,
        None => blocking(move || of_journals(&folder)).await??,
    };
    Ok(owners.insert(found))
}

/// Where two journals name one key it is the segment's that has begun there, as the other one would go elsewhere; else the older one's.
fn of_journals(folder: &Folder) -> Result<Owners, Error> {
    let mut begun = BTreeSet::new();
    let mut owners = Owners::new();
    for segment in folder.segments()? {
        // One that cannot be read is not sent either.
        let Some(Ok((state, _))) = segment.journal.as_deref().map(journal::read) else { continue };
        let key = state.open.key;
        let has_begun = state.upload_id.is_some() || state.creating || state.completing.is_some() || state.verified.is_some();
        if has_begun && begun.insert(key.clone()) || !owners.contains_key(&key) {
            owners.insert(key, segment.capture_id);
        }
    }
    Ok(owners)
}
