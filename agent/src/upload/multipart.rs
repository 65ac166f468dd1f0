//! One segment's way into the store, from wherever its journal says it is.
//! In: the segment's files and journal. Out: its object, confirmed; its manifest, confirmed; then its files removed.
//! Never: sends a byte that is not durable here, makes an object of other bytes than were recorded (where that is known), takes an
//! object for ours because it is there (only by capture id, size and checksum), forgets an upload before the journal says so.
//! Spec: Amazon S3 API Reference, CompleteMultipartUpload (errors, `If-None-Match`), User Guide "Conditional writes" (409, 412).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tracing::{info, warn};

use super::keys::Keys;
use super::manifest::{Manifest, ObjectFacts, read_facts};
use super::orphans;
use super::permits::{self, Permits};
use super::plan::{self, Section};
use super::store::{self, Body, Class, Found, Labels, Listed, Overwrite, Place, Store, Upload, Whole};
use super::{Error, checksum};
use crate::observe::counters::Counters;
use crate::record::Facts;
use crate::spool::journal::{Journal, Part, Record, State};
use crate::spool::{Folder, Segment};

/// How often one try may begin anew (keys that are taken, uploads that are gone) before it makes room for other segments.
const TURNS_MAX: u32 = 16;

/// What every segment's way needs.
#[derive(Debug)]
pub struct Way<S> {
    /// Where objects go.
    pub store: Arc<S>,
    /// Where segments come from.
    pub folder: Folder,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// How many parts may be on their way, over all segments.
    pub permits: Permits,
    /// One permit for each change of the spool that is on its way to the disk.
    changes: Arc<Semaphore>,
    /// Whose the keys are.
    keys: Keys,
}

/// More than there ever are at the same time.
const CHANGES_MAX: u32 = 1 << 16;

impl<S> Way<S> {
    /// From a folder to a store.
    #[must_use]
    pub fn new(store: Arc<S>, folder: Folder, counters: Arc<Counters>) -> Self {
        let changes = Arc::new(Semaphore::new(CHANGES_MAX as usize));
        Self { store, folder, counters, permits: Permits::default(), changes, keys: Keys::default() }
    }

    /// Changes the spool where that holds up nobody. Once begun it is done, even if the caller is gone.
    pub(super) async fn change<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let permit = self.changes.clone().acquire_owned().await.map_err(|_| Error::Stopping)?;
        blocking(move || {
            let done = work();
            drop(permit);
            done
        })
        .await
    }

    /// Waits for all changes: only then may another uploader go on with this folder.
    pub async fn settle(&self) {
        drop(self.changes.acquire_many(CHANGES_MAX).await);
    }
}

/// How far a try came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Everything that can be sent of it is; it still grows.
    Growing,
    /// Object and manifest are confirmed, the files are gone.
    Gone,
}

/// One segment on its way.
#[derive(Debug)]
pub struct Sending<S> {
    way: Arc<Way<S>>,
    segment: Segment,
    journal: Arc<Mutex<Journal>>,
    /// Whether the upload's parts in S3 were compared with those of the journal: always, unless it stems from an earlier process.
    agreed: bool,
    /// Parts that the journal has and S3 has not, or not so.
    distrusted: BTreeSet<u32>,
    /// Parts that S3 has and the journal has not.
    listed: BTreeMap<u32, Listed>,
    /// Uploads at this segment's keys that were given up: aborted when the segment is confirmed, and not before.
    useless: Vec<Upload>,
    /// The most parts of it that were ever in S3, by what earlier tries knew.
    best: usize,
}

/// What of a segment is in the store so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its key.
    pub key: String,
    /// Parts that are there.
    pub parts: usize,
}

/// How a turn ended.
enum Turn {
    Growing,
    Verified,
    /// Another key or a new upload: once more.
    Again,
}

impl<S: Store> Sending<S> {
    /// Knows how many parts were in S3 at best: what is only sent again is no progress.
    #[must_use]
    pub fn with_best(mut self, parts: usize) -> Self {
        self.best = self.best.max(parts);
        self
    }

    /// Takes a segment up where its journal says it is.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn resume(way: Arc<Way<S>>, segment: Segment) -> Result<Self, Error> {
        let path = segment.journal.clone().ok_or_else(|| missing(&segment, "journal"))?;
        let journal = blocking(move || Journal::resume(&path)).await??;
        let place = |key: &String| Place { bucket: journal.state().open.bucket.clone(), key: key.clone() };
        let useless = journal.state().given_up.iter().map(|(key, id)| Upload { place: place(key), id: id.clone() }).collect();
        let journal = Arc::new(Mutex::new(journal));
        Ok(Self { way, segment, journal, agreed: false, distrusted: BTreeSet::new(), listed: BTreeMap::new(), useless, best: 0 })
    }

    /// Goes as far as can be gone now. `segment` is what lies in the folder now: with its manifest it is whole.
    ///
    /// # Errors
    /// When something did not succeed; the next call goes on from there.
    pub async fn go_on(&mut self, segment: Segment) -> Result<Progress, Error> {
        self.segment = segment;
        if self.read(|state| state.verified.is_none()) && self.has_no_data().await? {
            self.withdraw().await?;
            self.look_for_late_object().await?;
        } else if self.read(|state| state.verified.is_none()) && self.capture().await? == Progress::Growing {
            return Ok(Progress::Growing);
        }
        // An earlier process may have ended before it came to that.
        self.abort_useless().await;
        if self.read(|state| !state.manifest_stored) {
            self.manifest().await?;
        }
        remove(&self.way, &self.segment).await?;
        Ok(Progress::Gone)
    }

    /// What of the segment is in the store.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.read(|state| Standing { key: state.open.key.clone(), parts: state.parts.len() })
    }

    /// Whether there are no data to be sent, and the facts say why: they gave way, or a power loss left none.
    async fn has_no_data(&self) -> Result<bool, Error> {
        let Segment { data: None, manifest: Some(manifest), .. } = &self.segment else { return Ok(false) };
        let path = manifest.clone();
        let facts = blocking(move || read_facts(&path)).await??;
        Ok(facts.gave_way.is_some() || facts.salvaged && facts.frames == 0)
    }

    /// Aborts what S3 has of a segment without data. Its journal is the last that knows of it, so it is kept until that is done.
    async fn withdraw(&mut self) -> Result<(), Error> {
        // A completion that was sent may be of an upload that the journal has given up since.
        if self.read(|state| state.completing.is_some() || (state.upload_id.is_none() && state.creating)) {
            self.give_up_created(&self.place()).await?;
        }
        let uploads: Vec<_> = self.useless.iter().cloned().chain(self.upload()).collect();
        for upload in uploads {
            match self.way.store.abort(&upload).await {
                // Then it is for the bucket's lifecycle rule.
                Err(error) if matches!(error.class, Class::Denied | Class::Unsupported) => {
                    warn!(segment = self.segment.capture_id, "{error}");
                }
                Err(error) if error.class != Class::NoSuchUpload => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The manifest of a segment without data says what is true: where a completion was sent, and only there, it may have been done
    /// after all. No upload is left by now that could still become an object.
    async fn look_for_late_object(&self) -> Result<(), Error> {
        let Some((bytes, crc64nvme)) = self.read(|state| state.completing) else { return Ok(()) };
        let place = self.place();
        match self.way.store.head(&place).await {
            Ok(found) if self.is_ours(&place, &found)? => {
                let there = self.stored_checksum(&place, &found, bytes)?;
                self.verified(&place, found, there, crc64nvme).await
            }
            Ok(_) => Ok(()),
            Err(error) if error.class == Class::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gets the object into the store, as far as its bytes are there.
    async fn capture(&mut self) -> Result<Progress, Error> {
        for _ in 0..TURNS_MAX {
            match self.turn().await? {
                Turn::Growing => return Ok(Progress::Growing),
                Turn::Verified => return Ok(Progress::Gone),
                Turn::Again => {}
            }
        }
        Err(self.restarted("too many keys were taken in a row"))
    }

    async fn turn(&mut self) -> Result<Turn, Error> {
        // That the segment is whole was seen before its length is: the length is then final.
        let whole = self.segment.manifest.is_some();
        let Some(data) = self.segment.data.clone() else {
            return if whole { Err(missing(&self.segment, "data file")) } else { Ok(Turn::Growing) };
        };
        let path = data.clone();
        let bytes = blocking(move || fs::metadata(path)).await?.map_err(failed("examine", &data))?.len();
        let parts = if whole { plan::parts(bytes) } else { Some(plan::whole_parts(bytes)) };
        let parts = parts.ok_or(Error::TooLong { path: data.clone(), bytes })?;
        // The upload is begun as soon as there is anything, so that at the end of the window parts and completion are all that is left.
        if bytes == 0 && !whole {
            return Ok(Turn::Growing);
        }
        let begun = match self.upload() {
            None => self.begin(whole, bytes).await?,
            Some(upload) if !self.agreed => self.agree(&upload, whole, bytes).await?,
            Some(_) => None,
        };
        if let Some(turn) = begun {
            return Ok(turn);
        }
        if let Some(turn) = self.send(&data, whole, bytes, parts).await? {
            return Ok(turn);
        }
        if !whole {
            return Ok(Turn::Growing);
        }
        self.complete(bytes, parts).await
    }

    /// Creates an upload at the key, unless there is an object: ours ends the matter, another's means the next key.
    async fn begin(&mut self, whole: bool, bytes: u64) -> Result<Option<Turn>, Error> {
        let place = self.place();
        if self.way.keys.is_anothers(&self.way.folder, &place.key, &self.segment.capture_id).await? {
            return self.take_next_key().await.map(Some);
        }
        match self.way.store.head(&place).await {
            Ok(found) if self.is_ours(&place, &found)? => return self.confirm(&place, found, whole, bytes).await.map(Some),
            Ok(_) => return self.take_next_key().await.map(Some),
            Err(error) if error.class == Class::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let labels = self.read(|state| Labels {
            capture_id: state.open.capture_id.clone(),
            agent_version: state.open.agent_version.clone(),
            window: state.open.window,
            format: state.open.extension.clone(),
        });
        if self.read(|state| state.creating) {
            self.give_up_created(&place).await?;
        } else {
            self.append(Record::Creating).await?;
        }
        let upload_id = self.way.store.create(&place, &labels).await?;
        self.append(Record::Created { upload_id }).await?;
        self.forget_parts();
        Ok(None)
    }

    /// After a creation whose answer is not known: what there is at the segment's own key is of no use. It holds no part of this segment,
    /// as nobody knew its id; and whether its object would bear this segment's capture id or another's cannot be asked.
    async fn give_up_created(&mut self, place: &Place) -> Result<(), Error> {
        match self.way.store.list_uploads(&place.bucket, &place.key).await {
            Ok(begun) => {
                let known = |upload: &Upload| upload.place != *place || self.useless.contains(upload);
                let new: Vec<_> = begun.into_iter().map(|begun| begun.upload).filter(|upload| !known(upload)).collect();
                // Now, and not when the segment is confirmed: that they may be there is forgotten with the next creation.
                self.abort(new).await;
                Ok(())
            }
            // Then what may be left is for the bucket's lifecycle rule.
            Err(error) if matches!(error.class, Class::Denied | Class::Unsupported) => {
                warn!(segment = self.segment.capture_id, "whether an upload was begun cannot be asked: {error}");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Compares the journal with what S3 has of an upload: one that an earlier process began, or whose parts it refuses.
    async fn agree(&mut self, upload: &Upload, whole: bool, bytes: u64) -> Result<Option<Turn>, Error> {
        let listed = match self.way.store.list_parts(upload).await {
            Ok(listed) => listed,
            Err(error) if error.class == Class::NoSuchUpload => return self.settle_lost(whole, bytes, &error).await.map(Some),
            Err(error) => return Err(error.into()),
        };
        self.way.counters.uploads_resumed.add(u64::from(!self.agreed));
        self.forget_parts();
        self.listed = listed.into_iter().map(|part| (part.number, part)).collect();
        let same = |part: &Part| match self.listed.get(&part.number) {
            // The completion names the parts by both. A part of which only the ETag is another one is not sent again.
            Some(there) if there.bytes == part.bytes && there.etag == part.etag => {
                there.crc64nvme.is_none_or(|crc64nvme| crc64nvme == part.crc64nvme)
            }
            _ => false,
        };
        let distrusted = self.read(|state| state.parts.values().filter(|part| !same(part)).map(|part| part.number).collect());
        self.distrusted = distrusted;
        Ok(None)
    }

    /// Sends the parts up to number `parts` that S3 does not have, several at a time. What arrived is in the journal also when
    /// another part failed.
    async fn send(&mut self, data: &Path, whole: bool, bytes: u64, parts: u32) -> Result<Option<Turn>, Error> {
        let missing = self.missing_parts(bytes, parts);
        let Some(upload) = self.upload().filter(|_| !missing.is_empty()) else { return Ok(None) };
        // What S3 has must survive a power loss here, or a restart would send other bytes for the same part number.
        let (folder, path) = (self.way.folder.clone(), data.to_path_buf());
        blocking(move || folder.sync_data(&path, !whole)).await??;
        let mut waiting = missing.into_iter();
        let mut under_way = JoinSet::new();
        let mut failure = None;
        loop {
            while failure.is_none() && under_way.len() < permits::PARTS_MAX as usize {
                let Some((number, section)) = waiting.next() else { break };
                let (way, upload, path) = (self.way.clone(), upload.clone(), data.to_path_buf());
                let listed = self.listed.get(&number).filter(|there| there.bytes == section.bytes).cloned();
                let known = self.read(|state| state.sums.get(&number).copied());
                let known = known.filter(|&(bytes, _)| bytes == section.bytes).map(|(_, crc64nvme)| crc64nvme);
                under_way.spawn(async move { send_part(&way, &upload, number, path, section, listed, known).await });
            }
            let Some(done) = under_way.join_next().await else { break };
            match done.unwrap_or(Err(Error::Stopping)) {
                Ok(part) => {
                    self.distrusted.remove(&part.number);
                    self.append(Record::Part(part)).await?;
                    self.tell_progress(whole);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            None => Ok(None),
            Some(Error::Store(error)) if error.class == Class::NoSuchUpload => self.settle_lost(whole, bytes, &error).await.map(Some),
            Some(error) => Err(error),
        }
    }

    /// A try may last for an hour: that it gets on is told part by part. Of a growing segment it says nothing of those to be completed.
    fn tell_progress(&mut self, whole: bool) {
        let parts = self.read(|state| state.parts.len());
        if parts > self.best {
            self.best = parts;
            self.way.counters.upload_progress.add(u64::from(whole));
        }
    }

    /// The parts up to number `parts` of a file of `bytes` that S3 does not have.
    fn missing_parts(&self, bytes: u64, parts: u32) -> Vec<(u32, Section)> {
        self.read(|state| {
            let there = |number: u32, section: Section| {
                state.parts.get(&number).is_some_and(|part| part.bytes == section.bytes) && !self.distrusted.contains(&number)
            };
            let sections = (1..=parts).filter_map(|number| Some((number, plan::section(number, bytes)?)));
            sections.filter(|&(number, section)| !there(number, section)).collect()
        })
    }

    /// Has S3 make the object of the parts, and confirms it.
    async fn complete(&mut self, bytes: u64, parts: u32) -> Result<Turn, Error> {
        let Some(upload) = self.upload() else { return Ok(Turn::Again) };
        // From here on it does not give way; if it just has, the next round sees that its data are gone.
        let claim = self.way.folder.claim(&self.segment.capture_id);
        let Some(_claim) = claim.filter(|_| self.segment.data.as_ref().is_some_and(|data| data.exists())) else {
            return Ok(Turn::Growing);
        };
        let parts: Vec<Part> = self.read(|state| state.parts.range(1..=parts).map(|(_, part)| part.clone()).collect());
        let crc64nvme = checksum::combine(parts.iter().map(|part| (part.crc64nvme, part.bytes)));
        let whole = Whole { bytes, crc64nvme };
        self.hold_against_recorded(bytes, crc64nvme).await?;
        if self.read(|state| state.completing != Some((bytes, crc64nvme))) {
            self.append(Record::Completing { bytes, crc64nvme }).await?;
        }
        let error = match self.way.store.complete(&upload, &parts, whole).await {
            Ok(()) => {
                let found = self.way.store.head(&upload.place).await?;
                if self.is_ours(&upload.place, &found)? {
                    return self.confirm(&upload.place, found, true, bytes).await;
                }
                return self.take_next_key().await;
            }
            Err(error) => error,
        };
        match error.class {
            Class::NoSuchUpload => self.settle_lost(true, bytes, &error).await,
            Class::InvalidPart => match self.agree(&upload, true, bytes).await? {
                Some(turn) => Ok(turn),
                None if !self.distrusted.is_empty() => Ok(Turn::Again),
                None => Err(self.restart(&error.to_string(), false).await?),
            },
            Class::BadDigest => {
                let sent: Vec<_> = parts.iter().filter_map(|part| Some((plan::section(part.number, bytes)?, part.crc64nvme))).collect();
                self.reread(sent).await?;
                Err(self.restart(&error.to_string(), false).await?)
            }
            // A lost answer, or the key is taken: by us or by another.
            Class::PreconditionFailed | Class::Conflict | Class::Transient | Class::Throttled | Class::Credentials | Class::Clock => {
                self.settle_unclear(&upload.place, bytes, error).await
            }
            Class::NotFound | Class::NoSuchBucket | Class::Denied | Class::KeyRefused | Class::Unsupported => Err(error.into()),
        }
    }

    /// Holds what was sent against what was recorded: the disk may have changed it before it was read for the first time.
    async fn hold_against_recorded(&mut self, bytes: u64, sent: u64) -> Result<(), Error> {
        let Segment { data: Some(data), manifest: Some(manifest), .. } = &self.segment else { return Ok(()) };
        let (path, manifest) = (data.clone(), manifest.clone());
        // Facts that cannot be read are told of when they are to be sent.
        let facts = blocking(move || read_facts(&manifest)).await?.ok();
        let Some(recorded) = facts.and_then(|facts| facts.file_crc64nvme).filter(|&recorded| recorded != sent) else { return Ok(()) };
        if self.checksum_of_data(bytes).await? != recorded {
            return Err(Error::Rotten { path, offset: 0, bytes });
        }
        Err(self.restart("it was not sent as it was recorded, and can be read so now", true).await?)
    }

    /// After a completion that may or may not have happened: whose object is at the key?
    async fn settle_unclear(&mut self, place: &Place, bytes: u64, error: store::Error) -> Result<Turn, Error> {
        match self.way.store.head(place).await {
            Ok(found) if self.is_ours(place, &found)? => {
                // It may stem from an upload before this one, which is then left over.
                self.useless.extend(self.upload());
                self.confirm(place, found, true, bytes).await
            }
            Ok(_) => self.take_next_key().await,
            // 409: S3 wants the upload to be begun anew. Otherwise the same completion is sent again later.
            Err(head) if head.class == Class::NotFound && error.class == Class::Conflict => {
                Err(self.restart(&error.to_string(), false).await?)
            }
            // 412 is an answer, not a failure: what failed is the question whose object it is.
            Err(head) if error.class == Class::PreconditionFailed && head.class != Class::NotFound => Err(head.into()),
            Err(_) => Err(error.into()),
        }
    }

    /// After the upload turned out to be gone: it was completed, or it is lost. Only identity tells; that an object is there
    /// does not.
    async fn settle_lost(&mut self, whole: bool, bytes: u64, error: &store::Error) -> Result<Turn, Error> {
        let place = self.place();
        match self.way.store.head(&place).await {
            Ok(found) if self.is_ours(&place, &found)? => return self.confirm(&place, found, whole, bytes).await,
            Ok(_) => {}
            Err(head) if head.class == Class::NotFound => {}
            Err(head) => return Err(head.into()),
        }
        warn!(segment = self.segment.capture_id, "the upload is gone and there is no object: everything is sent again ({error})");
        let useless = self.upload();
        self.append(Record::Restart { cause: error.to_string(), misread: false }).await?;
        self.give_up(useless);
        Ok(Turn::Again)
    }

    /// Holds an object with our capture id against the segment's size and checksum; the journal then says that it is verified.
    async fn confirm(&mut self, place: &Place, found: Found, whole: bool, bytes: u64) -> Result<Turn, Error> {
        if !whole {
            return Err(self.differs(place, "the segment still grows".into()));
        }
        let there = self.stored_checksum(place, &found, bytes)?;
        let here = match self.read(|state| state.completing) {
            Some((completed, crc64nvme)) if completed == bytes => crc64nvme,
            _ => self.checksum_of_data(bytes).await?,
        };
        self.verified(place, found, there, here).await?;
        self.abort_useless().await;
        Ok(Turn::Verified)
    }

    /// The checksum of an object that has to have `bytes`.
    fn stored_checksum(&self, place: &Place, found: &Found, bytes: u64) -> Result<u64, Error> {
        if found.bytes != bytes {
            return Err(self.differs(place, format!("{} bytes where the spool has {bytes}", found.bytes)));
        }
        let none = || self.differs(place, "the endpoint tells no CRC64NVME of it, without which nothing leaves the spool".into());
        found.crc64nvme.ok_or_else(none)
    }

    async fn verified(&self, place: &Place, found: Found, there: u64, here: u64) -> Result<(), Error> {
        if there != here {
            let (there, here) = (checksum::to_base64(there), checksum::to_base64(here));
            return Err(self.differs(place, format!("CRC64NVME {there} where the spool has {here}")));
        }
        let Found { bytes, etag, version_id, .. } = found;
        self.append(Record::Verified { bytes, crc64nvme: here, etag, version_id }).await?;
        self.way.counters.segments_verified.add(1);
        self.way.counters.bytes_verified.add(bytes);
        info!(segment = self.segment.capture_id, "{place} is in S3 and confirmed, {bytes} bytes");
        Ok(())
    }

    fn differs(&self, place: &Place, what: String) -> Error {
        Error::Differs { place: place.clone(), capture_id: self.segment.capture_id.clone(), what }
    }

    /// Whether sections of the file still have their checksums: if so, what went wrong did so on the way.
    async fn reread(&self, sections: Vec<(Section, u64)>) -> Result<(), Error> {
        let path = self.segment.data.clone().ok_or_else(|| missing(&self.segment, "data file"))?;
        blocking(move || {
            for (section, crc64nvme) in sections {
                check(&path, section, crc64nvme)?;
            }
            Ok(())
        })
        .await?
    }

    async fn checksum_of_data(&self, bytes: u64) -> Result<u64, Error> {
        let path = self.segment.data.clone().ok_or_else(|| missing(&self.segment, "data file"))?;
        let read = path.clone();
        blocking(move || checksum::of_section(&read, Section { offset: 0, bytes })).await?.map_err(failed("read", &path))
    }

    /// The key belongs to another object, or to another segment: this one goes to the next that is free, from its beginning.
    async fn take_next_key(&mut self) -> Result<Turn, Error> {
        let (place, useless) = (self.place(), self.upload());
        let key = self.way.keys.take_next(&self.way.folder, &place.key, &self.segment.capture_id).await?;
        warn!(segment = self.segment.capture_id, "{place} is taken by another object: the segment goes to '{key}'");
        self.append(Record::Key { key }).await?;
        self.way.counters.key_collisions.add(1);
        self.give_up(useless);
        Ok(Turn::Again)
    }

    /// What was sent is of no use, also to compare with where it was `misread`. Gives the error that says so: sending it all again waits for the next try.
    async fn restart(&mut self, cause: &str, misread: bool) -> Result<Error, Error> {
        let useless = self.upload();
        self.append(Record::Restart { cause: cause.into(), misread }).await?;
        self.give_up(useless);
        Ok(self.restarted(cause))
    }

    fn restarted(&self, cause: &str) -> Error {
        Error::Restarted { capture_id: self.segment.capture_id.clone(), cause: cause.into() }
    }

    fn give_up(&mut self, upload: Option<Upload>) {
        self.forget_parts();
        self.useless.extend(upload);
    }

    /// Aborts the uploads that were given up, but for those that another segment goes on with. Where that fails, or the process ends
    /// before, the next look for orphans sees to it.
    async fn abort_useless(&mut self) {
        let useless = std::mem::take(&mut self.useless);
        self.abort(useless).await;
    }

    /// Aborts uploads, but for those that another segment goes on with. Where that fails they are orphans.
    async fn abort(&self, useless: Vec<Upload>) {
        if useless.is_empty() {
            return;
        }
        let (folder, own) = (self.way.folder.clone(), self.segment.capture_id.clone());
        let held = match blocking(move || orphans::held(&folder, Some(&own))).await {
            Ok(Ok(held)) => held,
            Ok(Err(error)) | Err(error) => {
                return warn!(segment = self.segment.capture_id, "which uploads other segments hold cannot be told: {error}");
            }
        };
        for upload in useless.into_iter().filter(|upload| !held.ids.contains(&upload.id)) {
            match self.way.store.abort(&upload).await {
                Err(error) if error.class != Class::NoSuchUpload => warn!(segment = self.segment.capture_id, "{error}"),
                _ => {}
            }
        }
    }

    fn forget_parts(&mut self) {
        self.agreed = true;
        self.distrusted.clear();
        self.listed.clear();
    }

    /// Stores the manifest of the confirmed object.
    async fn manifest(&mut self) -> Result<(), Error> {
        let path = self.segment.manifest.clone().ok_or_else(|| missing(&self.segment, "manifest"))?;
        let instance = self.read(|state| state.open.instance.clone());
        let facts = own_facts(path, &self.segment.capture_id, Some(&instance)).await?;
        let place = self.place();
        let object = self.read(|state| state.verified.as_ref().map(|verified| ObjectFacts::new(&place.bucket, &place.key, verified)));
        if let Some(object) = object.as_ref().filter(|object| object.bytes != facts.file_bytes) {
            let id = &self.segment.capture_id;
            warn!(segment = id, "the recorder counted {} bytes, the file and its object have {}", facts.file_bytes, object.bytes);
        }
        let key = store_manifest(&*self.way.store, &place.bucket, &Manifest::new(facts, object)).await?;
        self.append(Record::ManifestStored { key }).await
    }

    fn place(&self) -> Place {
        self.read(|state| Place { bucket: state.open.bucket.clone(), key: state.open.key.clone() })
    }

    fn upload(&self) -> Option<Upload> {
        let place = self.place();
        self.read(|state| state.upload_id.clone()).map(|id| Upload { place, id })
    }

    /// Whether an object is this segment's, by its capture id. One that tells none, where as many bytes were to be completed, is
    /// neither ours nor another's: to go on to the next key would leave a copy at each.
    fn is_ours(&self, place: &Place, found: &Found) -> Result<bool, Error> {
        let nameless = found.capture_id.is_none();
        let completed = |(bytes, crc64nvme): (u64, u64)| found.bytes == bytes && found.crc64nvme.is_none_or(|there| there == crc64nvme);
        if nameless && self.read(|state| state.completing).is_some_and(completed) {
            return Err(Error::Nameless { place: place.clone() });
        }
        Ok(self.read(|state| found.capture_id.as_deref() == Some(&state.open.capture_id)))
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.journal.lock().unwrap_or_else(PoisonError::into_inner).state())
    }

    async fn append(&self, record: Record) -> Result<(), Error> {
        let journal = self.journal.clone();
        Ok(self.way.change(move || journal.lock().unwrap_or_else(PoisonError::into_inner).append(record)).await??)
    }
}

/// Stores the manifest of an idle window and removes its file.
///
/// # Errors
/// When it cannot be read, stored or removed.
pub async fn send_idle<S: Store>(way: &Way<S>, segment: &Segment) -> Result<Progress, Error> {
    let path = segment.manifest.clone().ok_or_else(|| missing(segment, "manifest"))?;
    let facts = own_facts(path, &segment.capture_id, None).await?;
    let bucket = facts.bucket.clone();
    store_manifest(&*way.store, &bucket, &Manifest::new(facts, None)).await?;
    remove(way, segment).await?;
    Ok(Progress::Gone)
}

/// The facts at `path`, if they are those of the segment: a name that was changed must not give a capture another one's manifest.
async fn own_facts(path: PathBuf, capture_id: &str, instance: Option<&str>) -> Result<Facts, Error> {
    let read = path.clone();
    let facts = blocking(move || read_facts(&read)).await??;
    if facts.capture_id != capture_id || instance.is_some_and(|instance| facts.instance != instance) {
        return Err(Error::Foreign { path, what: format!("capture {} of instance {}", facts.capture_id, facts.instance) });
    }
    Ok(facts)
}

/// Stores a manifest, has it confirmed, and gives its key.
async fn store_manifest<S: Store>(store: &S, bucket: &str, manifest: &Manifest) -> Result<String, Error> {
    let place = Place { bucket: bucket.into(), key: manifest.key() };
    let json = serde_json::to_vec_pretty(manifest)
        .map_err(|cause| Error::Manifest { path: PathBuf::from(&place.key), cause: cause.to_string() })?;
    let (bytes, crc64nvme) = (json.len() as u64, checksum::of_bytes(&json));
    match store.put(&place, json, crc64nvme, Overwrite::Never).await {
        // It is there already: from a try whose answer was lost, or it is not ours; what follows tells.
        Err(error) if error.class != Class::PreconditionFailed => return Err(error.into()),
        _ => {}
    }
    let found = store.head(&place).await?;
    if found.bytes != bytes || found.crc64nvme != Some(crc64nvme) {
        let what = format!("{} bytes with checksum {:?} are there, {bytes} with {crc64nvme} were sent", found.bytes, found.crc64nvme);
        return Err(Error::Differs { place, capture_id: manifest.facts.capture_id.clone(), what });
    }
    Ok(place.key)
}

/// Sends one part, unless S3 has it already; gives what to write into the journal. `known`: the checksum that the section had when
/// it was sent before.
async fn send_part<S: Store>(
    way: &Way<S>,
    upload: &Upload,
    number: u32,
    path: PathBuf,
    section: Section,
    listed: Option<Listed>,
    known: Option<u64>,
) -> Result<Part, Error> {
    let _permit = way.permits.take().await;
    // What was sent before with another checksum is for the file to tell.
    let fresh = way.folder.fresh().section(&path, section.offset, section.bytes);
    let fresh = fresh.filter(|fresh| known.is_none_or(|known| known == fresh.crc64nvme));
    let read = path.clone();
    let crc64nvme = match (&fresh, known) {
        (Some(fresh), _) => fresh.crc64nvme,
        (None, Some(known)) => blocking(move || check(&read, section, known)).await?.map(|()| known)?,
        (None, None) => blocking(move || checksum::of_section(&read, section).map_err(failed("read", &read))).await??,
    };
    let part = |etag| Part { number, bytes: section.bytes, crc64nvme, etag };
    if let Some(there) = listed.filter(|there| there.crc64nvme == Some(crc64nvme)) {
        return Ok(part(there.etag));
    }
    let begun = Instant::now();
    let body = Body { path: path.clone(), section, crc64nvme, pieces: fresh.map(|fresh| fresh.pieces) };
    match way.store.upload_part(upload, number, &body).await {
        Ok(etag) => {
            way.permits.arrived();
            way.folder.fresh().forget(&path, section.offset, section.bytes);
            way.counters.parts_sent.add(1);
            way.counters.bytes_sent.add(section.bytes);
            Ok(part(etag))
        }
        Err(error) => {
            match error.class {
                Class::Throttled => way.permits.throttled(begun, Instant::now()),
                Class::BadDigest => blocking(move || check(&path, section, crc64nvme)).await??,
                _ => {}
            }
            Err(error.into())
        }
    }
}

/// Reads a section of a file again and holds it against the checksum that it had.
fn check(path: &Path, section: Section, crc64nvme: u64) -> Result<(), Error> {
    match checksum::of_section(path, section) {
        Ok(found) if found == crc64nvme => Ok(()),
        Ok(_) => Err(Error::Rotten { path: path.into(), offset: section.offset, bytes: section.bytes }),
        Err(cause) => Err(failed("read", path)(cause)),
    }
}

async fn remove<S>(way: &Way<S>, segment: &Segment) -> Result<(), Error> {
    let (folder, segment) = (way.folder.clone(), segment.clone());
    Ok(way.change(move || folder.remove(&segment)).await??)
}

/// Runs what waits for the disk where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Stopping)
}

fn failed<'a>(act: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |cause| Error::Data { act, path: path.into(), cause }
}

fn missing(segment: &Segment, what: &'static str) -> Error {
    Error::Missing { capture_id: segment.capture_id.clone(), what }
}
