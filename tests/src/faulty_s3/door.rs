//! The bucket as s3s wants it: inputs of the wire to calls of [`Objects`], and back.
//! In: requests whose signature s3s has verified. Out: what the bucket says, in S3's words. Never: a rule or a fault of its own, but
//! the byte that a script flips behind the signature.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use s3s::dto::*;
use s3s::stream::DynByteStream;
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use tapfleet::upload::checksum::{from_base64, to_base64};

use super::BODY_BYTES_MAX;
use super::objects::{Content, Named, Objects, Refusal, Wanted};
use super::script::Flip;

/// Parts and uploads on a page of a list: few, so that there are pages.
pub const PAGE: usize = 2;

/// The door to a bucket.
#[derive(Clone, Debug)]
pub struct Door {
    /// The name of the bucket; any other is not there.
    pub bucket: String,
    /// What is behind it.
    pub objects: Arc<Mutex<Objects>>,
}

impl Door {
    fn with<T>(&self, bucket: &str, act: impl FnOnce(&mut Objects) -> Result<T, Refusal>) -> S3Result<T> {
        if bucket != self.bucket {
            return Err(refused(Refusal::NoSuchBucket));
        }
        act(&mut self.objects.lock().unwrap_or_else(PoisonError::into_inner)).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> S3Error {
    S3Error::new(match refusal {
        Refusal::NoSuchKey => S3ErrorCode::NoSuchKey,
        Refusal::NoSuchUpload => S3ErrorCode::NoSuchUpload,
        Refusal::NoSuchBucket => S3ErrorCode::NoSuchBucket,
        Refusal::PreconditionFailed => S3ErrorCode::PreconditionFailed,
        Refusal::InvalidPart => S3ErrorCode::InvalidPart,
        Refusal::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        Refusal::EntityTooSmall => S3ErrorCode::EntityTooSmall,
        Refusal::BadDigest => S3ErrorCode::BadDigest,
        Refusal::InvalidRequest => S3ErrorCode::InvalidRequest,
    })
}

fn invalid(what: &'static str) -> S3Error {
    S3Error::with_message(S3ErrorCode::InvalidRequest, what)
}

/// The body of a request, with one bit of it changed when the script says so.
async fn content(body: Option<StreamingBlob>, flip: bool) -> S3Result<Content> {
    let mut body = body.map_or_else(Body::empty, |body| Body::from(DynByteStream::from(body)));
    let read = body.store_all_limited(BODY_BYTES_MAX).await;
    let mut data = read.map_err(|cause| S3Error::with_source(S3ErrorCode::IncompleteBody, cause))?.to_vec();
    let middle = data.len() / 2;
    if let Some(byte) = data.get_mut(middle).filter(|_| flip) {
        *byte ^= 1;
    }
    Ok(Content::of(data))
}

fn etag(name: String) -> ETag {
    ETag::Strong(name)
}

fn sum(text: Option<&String>) -> Option<u64> {
    from_base64(text?)
}

/// What comes after `marker`, a page of it, and whether there is more.
fn page<T>(all: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let mut some: Vec<T> = all.take(PAGE + 1).collect();
    let more = some.len() > PAGE;
    some.truncate(PAGE);
    (some, more)
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

#[async_trait::async_trait]
impl S3 for Door {
    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.with(&req.input.bucket, |objects| objects.there())?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.with(&req.input.bucket, |objects| objects.head(&req.input.key).cloned())?;
        // Without the mode S3 keeps the sum to itself.
        let told = req.input.checksum_mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
        Ok(S3Response::new(HeadObjectOutput {
            checksum_crc64nvme: told.then(|| to_base64(object.content.crc64nvme)),
            checksum_type: told.then(|| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            content_length: Some(object.content.bytes.cast_signed()),
            e_tag: Some(etag(object.etag)),
            metadata: Some(object.metadata.into_iter().collect()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        let full = input.checksum_type.as_ref().is_some_and(|kind| kind.as_str() == ChecksumType::FULL_OBJECT);
        let nvme = input.checksum_algorithm.as_ref().is_some_and(|name| name.as_str() == ChecksumAlgorithm::CRC64NVME);
        if !full || !nvme {
            return Err(invalid("an upload without CRC64NVME over the full object"));
        }
        let metadata: BTreeMap<_, _> = input.metadata.unwrap_or_default().into_iter().collect();
        let id = self.with(&input.bucket, |objects| objects.create(&input.key, metadata, now_ns()))?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let flip = req.extensions.get::<Flip>().is_some();
        let input = req.input;
        let content = content(input.body, flip).await?;
        let said = sum(input.checksum_crc64nvme.as_ref());
        let number = input.part_number.cast_unsigned();
        let name = self.with(&input.bucket, |objects| objects.part(&input.key, &input.upload_id, number, said, content))?;
        Ok(S3Response::new(UploadPartOutput {
            checksum_crc64nvme: input.checksum_crc64nvme,
            e_tag: Some(etag(name)),
            ..UploadPartOutput::default()
        }))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let parts = self.with(&input.bucket, |objects| objects.parts(&input.key, &input.upload_id))?;
        let after = input.part_number_marker.unwrap_or(0).cast_unsigned();
        let (parts, more) = page(parts.into_iter().filter(|(number, _)| *number > after));
        let parts: Vec<Part> = parts
            .into_iter()
            .map(|(number, part)| Part {
                checksum_crc64nvme: Some(to_base64(part.content.crc64nvme)),
                e_tag: Some(etag(part.etag)),
                part_number: Some(number.cast_signed()),
                size: Some(part.content.bytes.cast_signed()),
                ..Part::default()
            })
            .collect();
        Ok(S3Response::new(ListPartsOutput {
            is_truncated: Some(more),
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            parts: Some(parts),
            upload_id: Some(input.upload_id),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(&self, req: S3Request<ListMultipartUploadsInput>) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        let uploads = self.with(&input.bucket, |objects| {
            objects.there()?;
            Ok(objects.uploads.clone())
        })?;
        let mut uploads: Vec<_> = uploads.into_iter().filter(|(_, pending)| pending.key.starts_with(&prefix)).collect();
        uploads.sort_by_key(|(id, pending)| (pending.key.clone(), id.clone()));
        let (uploads, more) = page(uploads.into_iter().filter(|(id, pending)| (pending.key.clone(), id.clone()) > after));
        let uploads: Vec<MultipartUpload> = uploads
            .into_iter()
            .map(|(id, pending)| MultipartUpload {
                initiated: Some(Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_nanos(pending.initiated_ns))),
                key: Some(pending.key),
                upload_id: Some(id),
                ..MultipartUpload::default()
            })
            .collect();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            is_truncated: Some(more),
            next_key_marker: uploads.last().and_then(|upload| upload.key.clone()),
            next_upload_id_marker: uploads.last().and_then(|upload| upload.upload_id.clone()),
            uploads: Some(uploads),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let bytes = input.mpu_object_size.ok_or_else(|| invalid("no size of the object"))?;
        let crc64nvme = sum(input.checksum_crc64nvme.as_ref()).ok_or_else(|| invalid("no checksum of the object"))?;
        let wanted = Wanted { bytes: bytes.cast_unsigned(), crc64nvme, if_none: input.if_none_match == Some(ETagCondition::Any) };
        let named = |part: CompletedPart| {
            Some(Named {
                number: part.part_number?.cast_unsigned(),
                etag: part.e_tag?.into_value(),
                crc64nvme: sum(part.checksum_crc64nvme.as_ref())?,
            })
        };
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts: Option<Vec<Named>> = parts.into_iter().map(named).collect();
        let parts = parts.ok_or_else(|| invalid("a part without number, ETag or checksum"))?;
        let name = self.with(&input.bucket, |objects| objects.complete(&input.key, &input.upload_id, &parts, wanted))?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            checksum_crc64nvme: input.checksum_crc64nvme,
            e_tag: Some(etag(name)),
            key: Some(input.key),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(&self, req: S3Request<AbortMultipartUploadInput>) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.with(&req.input.bucket, |objects| objects.abort(&req.input.key, &req.input.upload_id))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let flip = req.extensions.get::<Flip>().is_some();
        let input = req.input;
        let content = content(input.body, flip).await?;
        let said = sum(input.checksum_crc64nvme.as_ref());
        let if_none = input.if_none_match == Some(ETagCondition::Any);
        let metadata: BTreeMap<_, _> = input.metadata.unwrap_or_default().into_iter().collect();
        let name = self.with(&input.bucket, |objects| objects.put(&input.key, said, content, metadata, if_none))?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(etag(name)), ..PutObjectOutput::default() }))
    }
}
