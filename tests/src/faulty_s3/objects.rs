//! What a bucket holds and how S3 answers for it: the rules alone, without a network, stricter than life.
//! In: calls. Out: objects, uploads under way, or the refusal that S3 would give. Never: a fault of its own.
//! Spec: Amazon S3 API Reference, the call named at each function; User Guide "Checking object integrity", "Conditional writes".

use std::collections::BTreeMap;

use crc_fast::{CrcAlgorithm::Crc64Nvme, checksum, checksum_combine};

/// The smallest part that is not the last (User Guide, "Amazon S3 multipart upload limits").
const PART_BYTES_MIN: u64 = 5 << 20;

/// Bytes, or what is left of them when nobody will read them back.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Content {
    /// How many there are.
    pub bytes: u64,
    /// Their CRC64NVME.
    pub crc64nvme: u64,
    /// They themselves, or nothing.
    pub data: Vec<u8>,
}

impl Content {
    /// Of bytes that are kept.
    #[must_use]
    pub fn of(data: Vec<u8>) -> Self {
        Self { bytes: data.len() as u64, crc64nvme: checksum(Crc64Nvme, &data), data }
    }
}

/// An object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// What it holds.
    pub content: Content,
    /// Its ETag, without quotes.
    pub etag: String,
    /// What it says of itself.
    pub metadata: BTreeMap<String, String>,
}

/// A part that arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// What it holds.
    pub content: Content,
    /// Its ETag, without quotes: another one with each attempt, as encrypted parts have.
    pub etag: String,
}

/// An upload under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Where its object will be.
    pub key: String,
    /// What the object will say of itself.
    pub metadata: BTreeMap<String, String>,
    /// When it was begun, nanoseconds of the caller's clock.
    pub initiated_ns: u64,
    /// The parts that are there.
    pub parts: BTreeMap<u32, Part>,
}

/// A part as the completion names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// Its number.
    pub number: u32,
    /// Its ETag, without quotes.
    pub etag: String,
    /// Its CRC64NVME.
    pub crc64nvme: u64,
}

/// What a completion asks for beside the parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Bytes of the object (`x-amz-mp-object-size`).
    pub bytes: u64,
    /// CRC64NVME over all of it.
    pub crc64nvme: u64,
    /// Whether an object at the key forbids it (`If-None-Match: *`).
    pub if_none: bool,
}

/// Why S3 does not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No object at the key.
    NoSuchKey,
    /// No such upload: completed, aborted, expired or another's.
    NoSuchUpload,
    /// The bucket is not there.
    NoSuchBucket,
    /// An object is at the key.
    PreconditionFailed,
    /// A part is not there, or not as named.
    InvalidPart,
    /// The numbers do not grow.
    InvalidPartOrder,
    /// A part before the last is too small.
    EntityTooSmall,
    /// The bytes have another checksum.
    BadDigest,
    /// Something is missing that a careful client sends, or the size is wrong.
    InvalidRequest,
}

/// A bucket.
#[derive(Clone, Default, Debug)]
pub struct Objects {
    /// Whether the bucket is not there.
    pub missing: bool,
    /// Whether a second completion of an upload is answered as the first one was: S3 does so, other stores do not.
    pub completes_twice: bool,
    /// What it holds, by key.
    pub objects: BTreeMap<String, Object>,
    /// What is under way, by id.
    pub uploads: BTreeMap<String, Pending>,
    /// Keys at which an object took the place of another.
    pub overwritten: Vec<String>,
    completed: BTreeMap<String, String>,
    made: u64,
}

impl Objects {
    /// CreateMultipartUpload with CRC64NVME over the full object.
    ///
    /// # Errors
    /// Without a bucket.
    pub fn create(&mut self, key: &str, metadata: BTreeMap<String, String>, now_ns: u64) -> Result<String, Refusal> {
        self.there()?;
        let id = self.name();
        self.uploads.insert(id.clone(), Pending { key: key.into(), metadata, initiated_ns: now_ns, parts: BTreeMap::new() });
        Ok(id)
    }

    /// UploadPart; `crc64nvme` is what the client says of the bytes.
    ///
    /// # Errors
    /// Without the upload, without a checksum, or with one that is not that of the bytes.
    pub fn part(&mut self, key: &str, id: &str, number: u32, crc64nvme: Option<u64>, content: Content) -> Result<String, Refusal> {
        self.pending(key, id)?;
        let said = crc64nvme.filter(|_| (1..=10_000).contains(&number)).ok_or(Refusal::InvalidRequest)?;
        if said != content.crc64nvme {
            return Err(Refusal::BadDigest);
        }
        let etag = self.name();
        self.pending(key, id)?.parts.insert(number, Part { content, etag: etag.clone() });
        Ok(etag)
    }

    /// ListParts.
    ///
    /// # Errors
    /// Without the upload.
    pub fn parts(&mut self, key: &str, id: &str) -> Result<BTreeMap<u32, Part>, Refusal> {
        Ok(self.pending(key, id)?.parts.clone())
    }

    /// CompleteMultipartUpload. A refused one leaves the upload as it was.
    ///
    /// # Errors
    /// When S3 would refuse it.
    pub fn complete(&mut self, key: &str, id: &str, parts: &[Named], wanted: Wanted) -> Result<String, Refusal> {
        self.there()?;
        if self.completes_twice && self.completed.get(id).is_some_and(|there| there == key) {
            return self.head(key).map(|object| object.etag.clone());
        }
        let pending = self.pending(key, id)?.clone();
        let content = put_together(&pending, parts)?;
        if content.bytes != wanted.bytes {
            return Err(Refusal::InvalidRequest);
        }
        if content.crc64nvme != wanted.crc64nvme {
            return Err(Refusal::BadDigest);
        }
        let etag = self.store(key, content, pending.metadata, wanted.if_none)?;
        self.uploads.remove(id);
        self.completed.insert(id.into(), key.into());
        Ok(etag)
    }

    /// AbortMultipartUpload.
    ///
    /// # Errors
    /// Without the upload.
    pub fn abort(&mut self, key: &str, id: &str) -> Result<(), Refusal> {
        self.pending(key, id)?;
        self.uploads.remove(id);
        Ok(())
    }

    /// PutObject; `crc64nvme` is what the client says of the bytes.
    ///
    /// # Errors
    /// Without a bucket, with a wrong checksum, or when an object forbids it.
    pub fn put(
        &mut self,
        key: &str,
        crc64nvme: Option<u64>,
        content: Content,
        metadata: BTreeMap<String, String>,
        if_none: bool,
    ) -> Result<String, Refusal> {
        self.there()?;
        match crc64nvme {
            None => Err(Refusal::InvalidRequest),
            Some(said) if said != content.crc64nvme => Err(Refusal::BadDigest),
            Some(_) => self.store(key, content, metadata, if_none),
        }
    }

    /// HeadObject.
    ///
    /// # Errors
    /// When there is none.
    pub fn head(&self, key: &str) -> Result<&Object, Refusal> {
        self.there()?;
        self.objects.get(key).ok_or(Refusal::NoSuchKey)
    }

    /// HeadBucket.
    ///
    /// # Errors
    /// When it is not there.
    pub fn there(&self) -> Result<(), Refusal> {
        if self.missing { Err(Refusal::NoSuchBucket) } else { Ok(()) }
    }

    /// Somebody else's object comes to a key, unless there is one.
    pub fn put_foreign(&mut self, key: &str) {
        let metadata = BTreeMap::from([("capture-id".into(), "another".into())]);
        // An object that is there stays, whosever it is.
        let _ = self.store(key, Content::of(b"foreign".to_vec()), metadata, true);
    }

    fn pending(&mut self, key: &str, id: &str) -> Result<&mut Pending, Refusal> {
        self.there()?;
        self.uploads.get_mut(id).filter(|pending| pending.key == key).ok_or(Refusal::NoSuchUpload)
    }

    fn store(&mut self, key: &str, content: Content, metadata: BTreeMap<String, String>, if_none: bool) -> Result<String, Refusal> {
        if if_none && self.objects.contains_key(key) {
            return Err(Refusal::PreconditionFailed);
        }
        let etag = self.name();
        if self.objects.insert(key.into(), Object { content, etag: etag.clone(), metadata }).is_some() {
            self.overwritten.push(key.into());
        }
        Ok(etag)
    }

    /// Upload ids and ETags: never the same twice.
    fn name(&mut self) -> String {
        self.made += 1;
        format!("{:032x}", self.made)
    }
}

/// The object that the named parts make.
fn put_together(pending: &Pending, parts: &[Named]) -> Result<Content, Refusal> {
    if parts.is_empty() {
        return Err(Refusal::InvalidRequest);
    }
    if parts.windows(2).any(|pair| matches!(pair, [one, two] if one.number >= two.number)) {
        return Err(Refusal::InvalidPartOrder);
    }
    let mut whole = Content { crc64nvme: checksum(Crc64Nvme, &[]), ..Content::default() };
    for (index, named) in parts.iter().enumerate() {
        let part = pending.parts.get(&named.number).ok_or(Refusal::InvalidPart)?;
        if part.etag != named.etag || part.content.crc64nvme != named.crc64nvme {
            return Err(Refusal::InvalidPart);
        }
        if part.content.bytes < PART_BYTES_MIN && index + 1 < parts.len() {
            return Err(Refusal::EntityTooSmall);
        }
        whole.bytes += part.content.bytes;
        whole.crc64nvme = checksum_combine(Crc64Nvme, whole.crc64nvme, part.content.crc64nvme, part.content.bytes);
        whole.data.extend_from_slice(&part.content.data);
    }
    Ok(whole)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// A bucket with an upload of two parts, and how they are named.
    fn begun() -> (Objects, String, Vec<Named>) {
        let mut objects = Objects::default();
        let id = objects.create("k", BTreeMap::new(), 0).unwrap();
        let parts = [vec![1; PART_BYTES_MIN as usize], vec![2; 10]];
        let mut named = Vec::new();
        for (number, data) in (1..).zip(parts) {
            let content = Content::of(data);
            let crc64nvme = content.crc64nvme;
            let etag = objects.part("k", &id, number, Some(crc64nvme), content).unwrap();
            named.push(Named { number, etag, crc64nvme });
        }
        (objects, id, named)
    }

    fn wanted() -> Wanted {
        let whole = Content::of([vec![1; PART_BYTES_MIN as usize], vec![2; 10]].concat());
        Wanted { bytes: whole.bytes, crc64nvme: whole.crc64nvme, if_none: true }
    }

    #[test]
    fn the_parts_as_they_were_sent_become_the_object_and_the_upload_is_gone() {
        let (mut objects, id, named) = begun();
        objects.complete("k", &id, &named, wanted()).unwrap();
        assert_eq!(objects.objects["k"].content.data.len() as u64, wanted().bytes);
        assert_eq!(objects.complete("k", &id, &named, wanted()), Err(Refusal::NoSuchUpload));
        objects.completes_twice = true;
        assert!(objects.complete("k", &id, &named, wanted()).is_ok());
    }

    #[test]
    fn a_completion_is_refused_for_each_thing_that_is_not_as_it_should_be_and_takes_nothing_away() {
        let (mut objects, id, named) = begun();
        let other_etag = Named { etag: "0".into(), ..named[1].clone() };
        let other_sum = Named { crc64nvme: 1, ..named[0].clone() };
        let not_there = Named { number: 3, ..named[1].clone() };
        let rows = [
            (vec![], wanted(), Refusal::InvalidRequest),
            (vec![named[1].clone(), named[0].clone()], wanted(), Refusal::InvalidPartOrder),
            (vec![named[0].clone(), other_etag], wanted(), Refusal::InvalidPart),
            (vec![other_sum, named[1].clone()], wanted(), Refusal::InvalidPart),
            (vec![named[0].clone(), not_there], wanted(), Refusal::InvalidPart),
            (named.clone(), Wanted { bytes: 1, ..wanted() }, Refusal::InvalidRequest),
            (named.clone(), Wanted { crc64nvme: 1, ..wanted() }, Refusal::BadDigest),
        ];
        for (parts, wanted, refusal) in rows {
            assert_eq!(objects.complete("k", &id, &parts, wanted), Err(refusal));
        }
        objects.part("k", &id, 3, Some(Content::default().crc64nvme), Content::default()).unwrap();
        objects.put_foreign("k");
        assert_eq!(objects.complete("k", &id, &named, wanted()), Err(Refusal::PreconditionFailed));
        objects.objects.clear();
        objects.complete("k", &id, &named, wanted()).unwrap();
    }

    #[test]
    fn a_small_part_before_the_last_and_bytes_with_another_sum_are_refused() {
        let mut objects = Objects::default();
        let id = objects.create("k", BTreeMap::new(), 0).unwrap();
        let small = Content::of(vec![7; 10]);
        let sum = small.crc64nvme;
        assert_eq!(objects.part("k", &id, 1, Some(sum ^ 1), small.clone()), Err(Refusal::BadDigest));
        assert_eq!(objects.part("k", &id, 1, None, small.clone()), Err(Refusal::InvalidRequest));
        let name = |objects: &mut Objects, number| {
            let etag = objects.part("k", &id, number, Some(sum), small.clone()).unwrap();
            Named { number, etag, crc64nvme: sum }
        };
        let parts = [name(&mut objects, 1), name(&mut objects, 2)];
        assert_eq!(objects.complete("k", &id, &parts, wanted()), Err(Refusal::EntityTooSmall));
    }
}
