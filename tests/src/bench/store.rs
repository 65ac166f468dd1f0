//! An S3 on loopback that costs next to nothing: it forgets the bytes and believes what a client says of them. As S3 it speaks TLS: over
//! plain HTTP some clients hash each body for their signature.
//! In: requests of any client that trusts its certificate. Out: answers, and when each object became readable. Never: verifies a signature, keeps a body.
//! Spec: Amazon S3 API Reference: PutObject, CreateMultipartUpload, UploadPart, CompleteMultipartUpload, HeadObject, ListParts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::{SENDER_CPU, cage};
use crate::{netns, tls};

/// Headers of an object that a client gave and gets back.
const KEPT: [&str; 4] = ["x-amz-checksum-crc64nvme", "x-amz-checksum-crc32", "x-amz-meta-capture-id", "x-amz-meta-mtime"];

/// What it knows of an object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its length.
    pub bytes: u64,
    /// When it could be read.
    pub readable: SystemTime,
    headers: Headers,
}

/// An upload under way.
#[derive(Default, Debug)]
struct Upload {
    /// Headers of the creation.
    headers: Headers,
    /// Bytes by number.
    parts: BTreeMap<u32, u64>,
}

type Headers = Vec<(HeaderName, HeaderValue)>;

#[derive(Default, Debug)]
struct State {
    objects: BTreeMap<String, Object>,
    /// By id.
    uploads: BTreeMap<String, Upload>,
    made: u64,
}

/// A server; it ends when it is dropped.
#[derive(Debug)]
pub struct Store {
    port: u16,
    certificate: PathBuf,
    /// Where the certificate is.
    _folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// A server on loopback of the namespace of that name, on the sender's processor.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn start(netns: &str) -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|cause| panic!("no place for a certificate: {cause}"));
        let (acceptor, certificate) = tls::acceptor(folder.path());
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let netns = netns.to_owned();
        let thread = thread::spawn({
            let state = state.clone();
            move || {
                netns::within(&netns, || {
                    cage::pin(SENDER_CPU);
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let runtime = runtime.unwrap_or_else(|cause| panic!("no runtime: {cause}"));
                    runtime.block_on(async {
                        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap_or_else(|cause| panic!("no port: {cause}"));
                        let _ = tell.send(listener.local_addr().map_or(0, |address| address.port()));
                        tokio::select! {
                            () = accept(listener, acceptor, state) => {}
                            _ = stopped => {}
                        }
                    });
                });
            }
        });
        let port = told.recv().unwrap_or_else(|_| panic!("the S3 of the benchmark did not begin"));
        Self { port, certificate, _folder: folder, state, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The certificate that a client has to trust (PEM).
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Captures that can be read now, by key: the earlier window first.
    #[must_use]
    pub fn captures(&self) -> Vec<(String, Object)> {
        let state = held(&self.state);
        state.objects.iter().filter(|(key, _)| key.ends_with(".pcap")).map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    /// Waits until captures of so many bytes together can be read, at most `limit`; gives when the last one could.
    #[must_use]
    pub fn wait(&self, bytes: u64, limit: Duration) -> Option<SystemTime> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let captures = self.captures();
            if captures.iter().map(|(_, object)| object.bytes).sum::<u64>() >= bytes {
                return captures.iter().map(|(_, object)| object.readable).max();
            }
            thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn held(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let (acceptor, state) = (acceptor.clone(), state.clone());
        tokio::spawn(async move {
            // Who does not trust the certificate goes; the contest sees that nothing arrives.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, state.clone()));
            // A client may go at any time.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Whole>, Infallible> {
    let (head, mut body) = request.into_parts();
    let mut bytes = 0;
    let mut whole = true;
    while let Some(frame) = std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await {
        match frame {
            Ok(frame) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(_) => whole = false,
        }
        if !whole {
            break;
        }
    }
    // Framing of aws-chunked bodies is not content.
    let decoded = head.headers.get("x-amz-decoded-content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let path = head.uri.path().trim_start_matches('/').to_owned();
    let (_, key) = path.split_once('/').unwrap_or((&path, ""));
    let query = head.uri.query().unwrap_or_default();
    Ok(if whole {
        respond(&head.method, key, query, &head.headers, decoded.unwrap_or(bytes), &mut held(&state))
    } else {
        plain(StatusCode::BAD_REQUEST)
    })
}

fn respond(method: &Method, key: &str, query: &str, headers: &HeaderMap, bytes: u64, state: &mut State) -> Response<Whole> {
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|pair| Some(pair.split_once('=').unwrap_or((pair, ""))).filter(|(n, _)| *n == name))
            .map(|(_, value)| value.to_owned())
    };
    let upload = parameter("uploadId");
    let number = parameter("partNumber").and_then(|number| number.parse().ok());
    let kept =
        || -> Headers { KEPT.iter().filter_map(|name| Some((HeaderName::from_static(name), headers.get(*name)?.clone()))).collect() };
    state.made += 1;
    // Not an MD5, so that no client takes it for the sum of the bytes.
    let etag = format!("\"{:032x}-1\"", state.made);
    match (method.as_str(), upload, number) {
        ("POST", None, _) if parameter("uploads").is_some() => {
            let id = format!("upload{}", state.made);
            state.uploads.insert(id.clone(), Upload { headers: kept(), parts: BTreeMap::new() });
            xml(&format!("<InitiateMultipartUploadResult><Key>{key}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"))
        }
        ("PUT", Some(id), Some(number)) => match state.uploads.get_mut(&id) {
            Some(upload) => {
                upload.parts.insert(number, bytes);
                with(plain(StatusCode::OK), &etag, kept())
            }
            None => plain(StatusCode::NOT_FOUND),
        },
        ("POST", Some(id), _) => match state.uploads.remove(&id) {
            Some(Upload { mut headers, parts }) => {
                headers.extend(kept());
                let object = Object { bytes: parts.values().sum(), readable: SystemTime::now(), headers };
                state.objects.insert(key.into(), object);
                xml(&format!("<CompleteMultipartUploadResult><Key>{key}</Key><ETag>{etag}</ETag></CompleteMultipartUploadResult>"))
            }
            None => plain(StatusCode::NOT_FOUND),
        },
        ("GET", Some(id), _) => {
            let mut parts = String::new();
            for (number, bytes) in state.uploads.get(&id).into_iter().flat_map(|upload| &upload.parts) {
                let _ = write!(parts, "<Part><PartNumber>{number}</PartNumber><Size>{bytes}</Size><ETag>{etag}</ETag></Part>");
            }
            xml(&format!("<ListPartsResult>{parts}<IsTruncated>false</IsTruncated></ListPartsResult>"))
        }
        ("PUT", None, _) => {
            state.objects.insert(key.into(), Object { bytes, readable: SystemTime::now(), headers: kept() });
            with(plain(StatusCode::OK), &etag, kept())
        }
        ("HEAD", _, _) if key.is_empty() => plain(StatusCode::OK),
        ("HEAD", _, _) => match state.objects.get(key) {
            Some(object) => {
                let mut response = with(plain(StatusCode::OK), &etag, object.headers.clone());
                response.headers_mut().insert(CONTENT_LENGTH, object.bytes.into());
                response
            }
            None => plain(StatusCode::NOT_FOUND),
        },
        ("DELETE", _, _) => plain(StatusCode::NO_CONTENT),
        // Lists: of nothing.
        _ => xml("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
    }
}

fn with(mut response: Response<Whole>, etag: &str, headers: Headers) -> Response<Whole> {
    response.headers_mut().extend(headers.into_iter().map(|(name, value)| (Some(name), value)));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert("etag", etag);
    }
    response.headers_mut().insert("last-modified", HeaderValue::from_static("Sun, 22 Nov 2026 00:00:00 GMT"));
    response
}

fn plain(status: StatusCode) -> Response<Whole> {
    let mut response = Response::new(Whole(None));
    *response.status_mut() = status;
    response
}

fn xml(text: &str) -> Response<Whole> {
    Response::new(Whole(Some(Bytes::from(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}")))))
}

/// A body in one piece.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
