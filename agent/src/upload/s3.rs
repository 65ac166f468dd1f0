//! The store that is Amazon S3: the only file that names its SDK.
//! In: calls of [`Store`]. Out: the same as requests that end in bounded time and whose errors have a class.
//! Never: waits for ever (each attempt has its timeout), takes more than [`ANSWER_BYTES_MAX`] of an answer, stops retrying for want
//! of retry tokens, weakens a checksum.
//! Spec: Amazon S3 API Reference; AWS SDK for Rust Developer Guide "Configuring timeouts" and "Configuring retries".

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{Config, ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, Length, SdkBody};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Limited;

use super::Settings;
use super::checksum::{from_base64, to_base64};
use super::plan::{self, PARTS_MAX};
use super::store::{Begun, Body, Class, Error, Found, Labels, Listed, Overwrite, Place, Store, Upload, Whole};
use crate::aws::{Door, Heard, Source, causes, timeouts};
use crate::record::Stamp;
use crate::spool::journal::Part;

/// Bytes read at once from the file of a part.
const READ_BYTES: usize = 256 << 10;

/// The longest answer that is believed: a page of a thousand parts takes less than a tenth.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Pages of uploads that are looked through: 1000 on each.
const UPLOAD_PAGES_MAX: usize = 20;

/// Metadata names on capture objects (`x-amz-meta-…`).
const CAPTURE_ID: &str = "capture-id";

/// How long one attempt at a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Calls that move little.
    pub control: Duration,
    /// CompleteMultipartUpload: S3 may take minutes to put many parts together, and keeps the connection open meanwhile.
    pub complete: Duration,
    /// A part, and a second more for each [`Self::slowest_bytes_per_second`] of it.
    pub part: Duration,
    /// The slowest way to S3 on which a part arrives; not 0.
    pub slowest_bytes_per_second: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            control: Duration::from_secs(30),
            complete: Duration::from_secs(300),
            part: Duration::from_secs(20),
            slowest_bytes_per_second: 256 << 10,
        }
    }
}

impl Patience {
    fn part(&self, bytes: u64) -> Duration {
        self.part + Duration::from_secs(plan::size_class(bytes) / self.slowest_bytes_per_second)
    }
}

/// The store that is Amazon S3, or speaks like it.
#[derive(Debug)]
pub struct S3 {
    settings: Settings,
    patience: Patience,
    door: Door<Client>,
}

impl S3 {
    /// A store for `settings`; credentials, and region and endpoint unless set, come from the environment as the AWS tools take
    /// them. Asks nobody yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let source = Source::Environment { region: settings.region.clone(), endpoint_url: settings.endpoint_url.clone() };
        Self::of(settings, source, Patience::default())
    }

    /// A store that takes credentials, region and endpoint from `shared` and not from the environment; timeouts and retries stay
    /// its own.
    #[must_use]
    pub fn with_config(settings: Settings, shared: SdkConfig) -> Self {
        Self::with_patience(settings, shared, Patience::default())
    }

    /// The same, with timeouts that are given too.
    #[must_use]
    pub fn with_patience(settings: Settings, shared: SdkConfig, patience: Patience) -> Self {
        Self::of(settings, Source::Given(Box::new(shared)), patience)
    }

    fn of(settings: Settings, source: Source, patience: Patience) -> Self {
        Self { settings, patience, door: Door::new(source, timeouts(patience.control)) }
    }

    async fn client(&self, act: &'static str, place: &Place) -> Result<Client, Error> {
        self.door.client(client).await.map_err(|cause| unanswered(act, place, cause))
    }

    /// Gives a failure its act, its place and its class.
    async fn judge<T, E>(&self, act: &'static str, place: &Place, sent: Result<T, SdkError<E, HttpResponse>>) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let error = match sent {
            Ok(done) => {
                self.door.note(Heard::Answer, Instant::now()).await;
                return Ok(done);
            }
            Err(error) => error,
        };
        let code = error.code().unwrap_or_default().to_owned();
        let status = error.raw_response().map(|response| response.status().as_u16());
        let cause = describe(&code, status, &error);
        let class = match classify(&code, status, place) {
            // Each error of the SDK's providers of credentials has the word.
            Class::Transient if status.is_none() && cause.contains("credential") => Class::Credentials,
            class => class,
        };
        let heard = match (class, status) {
            (Class::Credentials, _) => Heard::CredentialsRefused,
            (_, Some(_)) => Heard::Answer,
            (_, None) => Heard::Nothing,
        };
        self.door.note(heard, Instant::now()).await;
        Err(Error { class, act, place: place.clone(), cause })
    }

    fn owner(&self) -> Option<String> {
        self.settings.expected_bucket_owner.clone()
    }

    /// How objects are encrypted, when the bucket's default shall not decide.
    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        (self.settings.kms_key.as_ref().map(|_| ServerSideEncryption::AwsKms), self.settings.kms_key.clone())
    }
}

fn client(shared: &SdkConfig) -> Result<Client, &'static str> {
    if shared.region().is_none() {
        return Err("the region is not known: set s3.region or AWS_REGION, or let the instance metadata be reached");
    }
    // Other endpoints than AWS's own have no DNS name per bucket.
    let path_style = shared.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
    let config = aws_sdk_s3::config::Builder::from(shared)
        .retry_partition(RetryPartition::custom("tapfleet-upload").token_bucket(TokenBucket::unlimited()).build())
        .force_path_style(path_style)
        .interceptor(Bounded);
    Ok(Client::from_conf(config.build()))
}

/// Bounds what the SDK takes into memory of an answer: all of it, and no answer here is an object's content.
#[derive(Debug)]
struct Bounded;

impl Intercept for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        *body = SdkBody::from_body_1_x(Limited::new(std::mem::replace(body, SdkBody::taken()), ANSWER_BYTES_MAX));
        Ok(())
    }
}

/// Asks with HEAD, and once more when that is forbidden. The answer has no words, and it may be our clock: the SDK takes the store's time
/// from each answer and signs the next request with it, but asks again only where a code says `RequestTimeTooSkewed`.
async fn ask<T, E, F>(head: impl Fn() -> F) -> Result<T, SdkError<E, HttpResponse>>
where
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
{
    match head().await {
        Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 403) => head().await,
        asked => asked,
    }
}

fn within(attempt: Duration) -> aws_sdk_s3::config::Builder {
    Config::builder().timeout_config(timeouts(attempt))
}

/// The class of an answer, by its code, or by its status where there is none: answers to HEAD have no body.
fn classify(code: &str, status: Option<u16>, place: &Place) -> Class {
    match code {
        "NoSuchUpload" => Class::NoSuchUpload,
        "NoSuchBucket" => Class::NoSuchBucket,
        "NoSuchKey" => Class::NotFound,
        "PreconditionFailed" => Class::PreconditionFailed,
        "ConditionalRequestConflict" | "OperationAborted" => Class::Conflict,
        "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall" => Class::InvalidPart,
        "BadDigest" | "InvalidDigest" | "IncompleteBody" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch" => Class::BadDigest,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Class::Denied,
        "ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => Class::Credentials,
        // A wrong clock is cured by time synchronisation, not by a new policy.
        "RequestTimeTooSkewed" | "RequestExpired" => Class::Clock,
        "SlowDown" | "ServiceUnavailable" | "TooManyRequests" | "RequestLimitExceeded" | "Throttling" | "ThrottlingException" => {
            Class::Throttled
        }
        _ if let Some(of_kms) = code.strip_prefix("KMS.") => classify_kms(of_kms, status),
        _ => match status {
            // An answer to HEAD has no words; this is how it says that the token has expired.
            Some(400) if code.is_empty() => Class::Credentials,
            Some(404) if place.key.is_empty() => Class::NoSuchBucket,
            Some(404) => Class::NotFound,
            Some(401 | 403) => Class::Denied,
            Some(405 | 501) => Class::Unsupported,
            Some(409) => Class::Conflict,
            Some(412) => Class::PreconditionFailed,
            Some(429 | 503) => Class::Throttled,
            _ => Class::Transient,
        },
    }
}

/// The class of an error that S3 hands on from AWS KMS: `KMS.` and the name that it has there (KMS API Reference, "GenerateDataKey",
/// "Decrypt" and "Common Errors"), mostly with status 400.
fn classify_kms(code: &str, status: Option<u16>) -> Class {
    match code {
        "ThrottlingException" | "LimitExceededException" | "RequestLimitExceeded" => Class::Throttled,
        "DependencyTimeoutException" | "KMSInternalException" | "InternalFailure" | "KeyUnavailableException" | "ServiceUnavailable" => {
            Class::Transient
        }
        _ if status.is_some_and(|status| status >= 500) => Class::Transient,
        // Disabled, about to be deleted, not there, not of the right kind, or not allowed: nothing of this cures itself.
        _ => Class::KeyRefused,
    }
}

/// Status, code, the store's words and its request id, or what kept the request from being answered.
fn describe<E: ProvideErrorMetadata + StdError + 'static>(code: &str, status: Option<u16>, error: &SdkError<E, HttpResponse>) -> String {
    let mut text = match status {
        Some(status) => format!("HTTP {status} {code}"),
        None => String::new(),
    };
    let mut say = |words: &str| {
        if !words.is_empty() && !text.contains(words) {
            let gap = if text.is_empty() { "" } else { ": " };
            text.push_str(gap);
            text.push_str(words);
        }
    };
    match error.message() {
        Some(message) => say(message),
        None if status.is_none_or(|status| status < 300) => say(&causes(error)),
        None => {}
    }
    let header = |name| error.raw_response().and_then(|response| response.headers().get(name));
    if let Some(region) = header("x-amz-bucket-region").filter(|_| status == Some(301)) {
        say(&format!("the bucket is in region {region}: set s3.region"));
    }
    if let Some(id) = header("x-amz-request-id") {
        say(&format!("request {id}"));
    }
    text.trim_end().into()
}

fn unsigned(number: Option<i64>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// Numbers of the plan are small; what the SDK wants signed always fits.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Store for S3 {
    async fn head(&self, place: &Place) -> Result<Found, Error> {
        let act = "examine";
        let call = self.client(act, place).await?.head_object().bucket(&place.bucket).key(&place.key);
        let call = call.checksum_mode(ChecksumMode::Enabled).set_expected_bucket_owner(self.owner());
        let sent = ask(|| call.clone().send()).await;
        let head = self.judge(act, place, sent).await?;
        // Each object has one. Who answers without it (a portal, a proxy's error page) does not speak of an object.
        if head.e_tag.is_none() {
            return Err(unanswered(act, place, "the answer names no ETag; is this an S3 endpoint?"));
        }
        Ok(Found {
            bytes: unsigned(head.content_length),
            crc64nvme: head.checksum_crc64_nvme.as_deref().and_then(from_base64),
            etag: head.e_tag,
            version_id: head.version_id,
            capture_id: head.metadata.and_then(|mut metadata| metadata.remove(CAPTURE_ID)),
        })
    }

    async fn create(&self, place: &Place, labels: &Labels) -> Result<String, Error> {
        let act = "begin an upload to";
        let (encryption, kms_key) = self.encryption();
        let call = self.client(act, place).await?.create_multipart_upload().bucket(&place.bucket).key(&place.key);
        let sent = call
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .checksum_type(ChecksumType::FullObject)
            .metadata(CAPTURE_ID, &labels.capture_id)
            .metadata("agent-version", &labels.agent_version)
            .metadata("window", labels.window.to_string())
            .metadata("format", &labels.format)
            .set_storage_class(self.settings.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .set_expected_bucket_owner(self.owner())
            .send()
            .await;
        let created = self.judge(act, place, sent).await?;
        created.upload_id.ok_or_else(|| unanswered(act, place, "the answer names no upload id"))
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &Body) -> Result<String, Error> {
        let act = "send a part of";
        let place = &upload.place;
        let sent = self
            .client(act, place)
            .await?
            .upload_part()
            .bucket(&place.bucket)
            .key(&place.key)
            .upload_id(&upload.id)
            .part_number(number.cast_signed())
            .checksum_crc64_nvme(to_base64(body.crc64nvme))
            .content_length(signed(body.section.bytes))
            .body(stream(body).await.map_err(|cause| unanswered(act, place, &cause))?)
            .set_expected_bucket_owner(self.owner())
            .customize()
            .config_override(within(self.patience.part(body.section.bytes)))
            .send()
            .await;
        let taken = self.judge(act, place, sent).await?;
        taken.e_tag.ok_or_else(|| unanswered(act, place, "the answer names no ETag"))
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<Listed>, Error> {
        let act = "list the parts of";
        let place = &upload.place;
        let mut all = Vec::new();
        let mut marker: Option<String> = None;
        // A page holds up to 1000 parts; the bounds are for a store that counts in circles or tells nothing.
        while all.len() < PARTS_MAX as usize {
            let call = self.client(act, place).await?.list_parts().bucket(&place.bucket).key(&place.key).upload_id(&upload.id);
            let sent = call.set_part_number_marker(marker.clone()).set_expected_bucket_owner(self.owner()).send().await;
            let page = self.judge(act, place, sent).await?;
            let before = all.len();
            all.extend(page.parts.unwrap_or_default().into_iter().filter_map(|part| {
                Some(Listed {
                    number: u32::try_from(part.part_number?).ok()?,
                    bytes: unsigned(part.size),
                    crc64nvme: part.checksum_crc64_nvme.as_deref().and_then(from_base64),
                    etag: part.e_tag?,
                })
            }));
            if all.len() == before || page.is_truncated != Some(true) || page.next_part_number_marker == marker {
                break;
            }
            marker = page.next_part_number_marker;
        }
        Ok(all)
    }

    async fn complete(&self, upload: &Upload, parts: &[Part], whole: Whole) -> Result<(), Error> {
        let act = "complete";
        let place = &upload.place;
        let part = |part: &Part| {
            CompletedPart::builder()
                .part_number(part.number.cast_signed())
                .e_tag(&part.etag)
                .checksum_crc64_nvme(to_base64(part.crc64nvme))
                .build()
        };
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.iter().map(part).collect())).build();
        let sent = self
            .client(act, place)
            .await?
            .complete_multipart_upload()
            .bucket(&place.bucket)
            .key(&place.key)
            .upload_id(&upload.id)
            .multipart_upload(parts)
            .checksum_crc64_nvme(to_base64(whole.crc64nvme))
            .checksum_type(ChecksumType::FullObject)
            .mpu_object_size(signed(whole.bytes))
            .if_none_match("*")
            .set_expected_bucket_owner(self.owner())
            .customize()
            .config_override(within(self.patience.complete))
            .send()
            .await;
        self.judge(act, place, sent).await.map(drop)
    }

    async fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Begun>, Error> {
        let act = "list the uploads under";
        let place = Place { bucket: bucket.into(), key: prefix.into() };
        let mut all = Vec::new();
        let mut marker: (Option<String>, Option<String>) = (None, None);
        // The bounds are for a store that counts in circles or tells nothing.
        for _ in 0..UPLOAD_PAGES_MAX {
            let call = self.client(act, &place).await?.list_multipart_uploads().bucket(bucket).prefix(prefix);
            let call = call.set_key_marker(marker.0.clone()).set_upload_id_marker(marker.1.clone());
            let sent = call.set_expected_bucket_owner(self.owner()).send().await;
            let page = self.judge(act, &place, sent).await?;
            all.extend(page.uploads.unwrap_or_default().into_iter().filter_map(|begun| {
                let place = Place { bucket: bucket.into(), key: begun.key? };
                let initiated = Stamp(u64::try_from(begun.initiated?.as_nanos()).ok()?);
                Some(Begun { upload: Upload { place, id: begun.upload_id? }, initiated })
            }));
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || next == marker {
                break;
            }
            marker = next;
        }
        Ok(all)
    }

    async fn abort(&self, upload: &Upload) -> Result<(), Error> {
        let act = "abort the upload to";
        let place = &upload.place;
        let call = self.client(act, place).await?.abort_multipart_upload().bucket(&place.bucket).key(&place.key).upload_id(&upload.id);
        let sent = call.set_expected_bucket_owner(self.owner()).send().await;
        self.judge(act, place, sent).await.map(drop)
    }

    async fn put(&self, place: &Place, body: Vec<u8>, crc64nvme: u64, overwrite: Overwrite) -> Result<(), Error> {
        let act = "store";
        let (encryption, kms_key) = self.encryption();
        let call = self.client(act, place).await?.put_object().bucket(&place.bucket).key(&place.key);
        let sent = call
            .content_type("application/json")
            .checksum_crc64_nvme(to_base64(crc64nvme))
            .body(ByteStream::from(body))
            .set_if_none_match((overwrite == Overwrite::Never).then(|| "*".into()))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .set_expected_bucket_owner(self.owner())
            .send()
            .await;
        self.judge(act, place, sent).await.map(drop)
    }

    async fn head_bucket(&self, bucket: &str) -> Result<(), Error> {
        let act = "find the bucket";
        let place = Place { bucket: bucket.into(), key: String::new() };
        let call = self.client(act, &place).await?.head_bucket().bucket(bucket).set_expected_bucket_owner(self.owner());
        let sent = ask(|| call.clone().send()).await;
        self.judge(act, &place, sent).await.map(drop)
    }
}

fn unanswered(act: &'static str, place: &Place, cause: &str) -> Error {
    Error { class: Class::Transient, act, place: place.clone(), cause: cause.into() }
}

/// Bytes in memory as the body of a request, without copying them.
struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// The section as a body that can be read again for a second attempt.
async fn stream(body: &Body) -> Result<ByteStream, String> {
    if body.section.bytes == 0 {
        return Ok(ByteStream::from_static(&[]));
    }
    if let Some(pieces) = body.pieces.clone() {
        return Ok(ByteStream::new(SdkBody::retryable(move || SdkBody::from_body_1_x(Pieces(pieces.clone().into())))));
    }
    let read = ByteStream::read_from().path(&body.path).offset(body.section.offset).buffer_size(READ_BYTES);
    read.length(Length::Exact(body.section.bytes)).build().await.map_err(|cause| format!("{}: {cause}", body.path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::upload::plan::Section;
    use aws_config::profile::ProfileFileCredentialsProvider;
    use aws_config::{BehaviorVersion, Region};
    use aws_credential_types::credential_fn::provide_credentials_fn;
    use aws_sdk_s3::config::Credentials;
    use aws_sdk_s3::config::ProvideCredentials;
    use axum::extract::RawQuery;
    use axum::http::{HeaderMap, Method, StatusCode};
    use axum::response::IntoResponse;
    use axum::{Router, routing};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    /// A store on loopback that answers as `router` does.
    async fn store(router: Router) -> S3 {
        store_for(router, Credentials::new("t", "t", None, None, "test")).await
    }

    async fn store_for(router: Router, credentials: impl ProvideCredentials + 'static) -> S3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        let loader = aws_config::defaults(BehaviorVersion::latest()).credentials_provider(credentials);
        let shared = loader.region(Region::new("eu-north-1")).endpoint_url(endpoint).load().await;
        S3::with_config(Settings::plain(), shared)
    }

    fn place() -> Place {
        Place { bucket: "b".into(), key: "k".into() }
    }

    #[tokio::test]
    async fn a_list_of_parts_that_never_ends_is_not_followed_for_ever() {
        // One part a page, of which nothing can be used, and always one page more.
        let page = async |RawQuery(query): RawQuery| {
            let query = query.unwrap_or_default();
            let marker = query.split('&').find_map(|pair| pair.strip_prefix("part-number-marker="));
            let marker = marker.map_or(1, |marker| marker.parse::<u64>().unwrap() + 1);
            format!(
                "<ListPartsResult><NextPartNumberMarker>{marker}</NextPartNumberMarker><IsTruncated>true</IsTruncated>\
                 <Part><PartNumber>{marker}</PartNumber></Part></ListPartsResult>"
            )
        };
        let store = store(Router::new().route("/b/k", routing::get(page))).await;
        let upload = Upload { place: place(), id: "u".into() };
        let listed = timeout(Duration::from_secs(5), store.list_parts(&upload)).await;
        assert_eq!(listed.map(|listed| listed.unwrap()), Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_part_from_memory_is_sent_whole_also_the_second_time() {
        let tries = Arc::new(AtomicU32::new(0));
        let answer = move |headers: HeaderMap, body: Bytes| {
            let first = tries.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                let whole = *body == *b"from three pieces" && headers["content-length"] == "17";
                match (whole, first) {
                    (false, _) => (StatusCode::BAD_REQUEST, [("etag", "torn")]),
                    (true, true) => (StatusCode::INTERNAL_SERVER_ERROR, [("etag", "later")]),
                    (true, false) => (StatusCode::OK, [("etag", "taken")]),
                }
            }
        };
        let store = store(Router::new().fallback(answer)).await;
        let pieces: Vec<_> = [b"from ".as_slice(), b"three ", b"pieces"].map(Bytes::from_static).into();
        let crc64nvme = super::super::checksum::of_bytes(&pieces.concat());
        let body = Body { path: "nowhere".into(), section: Section { offset: 0, bytes: 17 }, crc64nvme, pieces: Some(pieces) };
        let upload = Upload { place: place(), id: "u".into() };
        assert_eq!(store.upload_part(&upload, 1, &body).await.unwrap(), "taken");
    }

    #[tokio::test]
    async fn an_answer_that_is_not_of_an_object_store_is_not_taken_for_an_object() {
        // As a portal or a wrong port says yes to everything.
        let store = store(Router::new().fallback(async || "welcome".into_response())).await;
        let error = store.head(&place()).await.unwrap_err();
        assert_eq!(error.class, Class::Transient, "{error}");
        assert!(error.to_string().contains("ETag"), "{error}");
    }

    /// Gives other credentials each time it is asked.
    fn ever_new() -> impl ProvideCredentials + 'static {
        let next = AtomicU32::new(0);
        provide_credentials_fn(move || {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            async move { Ok(Credentials::new(format!("KEY{nth}"), "t", None, None, "test")) }
        })
    }

    #[tokio::test]
    async fn credentials_that_are_refused_are_named_and_new_ones_are_there_with_the_next_call() {
        // HEAD has no words; the listing says why.
        let answer = async |method: Method, headers: HeaderMap| {
            let old = headers["authorization"].to_str().unwrap().contains("KEY0/");
            let words = if old { "<Error><Code>ExpiredToken</Code><Message>old</Message></Error>" } else { "<ListPartsResult/>" };
            let status = if old { StatusCode::BAD_REQUEST } else { StatusCode::OK };
            (status, if method == Method::HEAD { "" } else { words })
        };
        let upload = Upload { place: place(), id: "u".into() };
        let store = store_for(Router::new().fallback(answer), ever_new()).await;
        assert_eq!(store.list_parts(&upload).await.unwrap_err().class, Class::Credentials);
        assert_eq!(store.list_parts(&upload).await.unwrap(), []);
        let store = store_for(Router::new().fallback(answer), ever_new()).await;
        assert_eq!(store.head(&place()).await.unwrap_err().class, Class::Credentials);
        assert_eq!(store.list_parts(&upload).await.unwrap(), []);
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_had_are_named() {
        let store = store_for(Router::new(), ProfileFileCredentialsProvider::builder().profile_name("nobody").build()).await;
        let error = store.head(&place()).await.unwrap_err();
        assert_eq!(error.class, Class::Credentials, "{error}");
    }

    #[tokio::test]
    async fn a_list_of_uploads_that_never_ends_is_not_followed_for_ever() {
        let page = async |RawQuery(query): RawQuery| {
            let query = query.unwrap_or_default();
            let marker = query.split('&').find_map(|pair| pair.strip_prefix("key-marker="));
            let marker = marker.map_or(1, |marker| marker.parse::<u64>().unwrap() + 1);
            format!(
                "<ListMultipartUploadsResult><NextKeyMarker>{marker}</NextKeyMarker><IsTruncated>true</IsTruncated>\
                 <Upload><Key>k{marker}</Key><UploadId>u</UploadId><Initiated>2026-11-22T00:15:00Z</Initiated></Upload>\
                 <Upload><Key>timeless</Key><UploadId>u</UploadId></Upload></ListMultipartUploadsResult>"
            )
        };
        let store = store(Router::new().fallback(page)).await;
        let listed = timeout(Duration::from_secs(20), store.list_uploads("b", "k")).await.unwrap().unwrap();
        assert_eq!((listed.len(), listed.first().unwrap().initiated), (UPLOAD_PAGES_MAX, Stamp(1_795_306_500_000_000_000)));
    }

    #[test]
    fn an_answer_is_classed_by_its_code_and_without_one_by_its_status() {
        let object = Place { bucket: "b".into(), key: "k".into() };
        let bucket = Place { bucket: "b".into(), key: String::new() };
        let rows = [
            ("NoSuchUpload", Some(404), &object, Class::NoSuchUpload),
            ("NoSuchBucket", Some(404), &object, Class::NoSuchBucket),
            ("NotFound", Some(404), &object, Class::NotFound),
            ("", Some(404), &bucket, Class::NoSuchBucket),
            ("", Some(403), &object, Class::Denied),
            ("ExpiredToken", Some(400), &object, Class::Credentials),
            ("RequestTimeTooSkewed", Some(403), &object, Class::Clock),
            ("PreconditionFailed", Some(412), &object, Class::PreconditionFailed),
            ("ConditionalRequestConflict", Some(409), &object, Class::Conflict),
            ("InternalError", Some(200), &object, Class::Transient),
            ("SlowDown", Some(503), &object, Class::Throttled),
            ("", Some(400), &object, Class::Credentials),
            ("NotImplemented", Some(501), &object, Class::Unsupported),
            ("KMS.DisabledException", Some(400), &object, Class::KeyRefused),
            ("KMS.KMSInvalidStateException", Some(400), &object, Class::KeyRefused),
            ("KMS.NotFoundException", Some(400), &object, Class::KeyRefused),
            ("KMS.InvalidKeyUsageException", Some(400), &object, Class::KeyRefused),
            ("KMS.AccessDeniedException", Some(400), &object, Class::KeyRefused),
            ("KMS.SomethingNewException", Some(400), &object, Class::KeyRefused),
            ("KMS.SomethingNewException", Some(503), &object, Class::Transient),
            ("KMS.ThrottlingException", Some(400), &object, Class::Throttled),
            ("ThrottlingException", Some(400), &object, Class::Throttled),
            ("KMS.KMSInternalException", Some(500), &object, Class::Transient),
            ("KMS.DependencyTimeoutException", Some(400), &object, Class::Transient),
            ("KMS.KeyUnavailableException", Some(400), &object, Class::Transient),
            ("", None, &object, Class::Transient),
        ];
        for (code, status, place, class) in rows {
            assert_eq!(classify(code, status, place), class, "{code} {status:?}");
        }
    }

    #[test]
    fn a_part_gets_time_by_its_size_and_there_are_few_different_timeouts() {
        assert_eq!(Patience::default().part(8 << 20), Duration::from_secs(20 + 32));
        assert_eq!(Patience::default().part(1), Patience::default().part(8 << 20));
        assert_eq!(Patience::default().part(320 << 20), Duration::from_secs(20 + 1280));
    }
}
