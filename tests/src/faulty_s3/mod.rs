//! An S3 on loopback that fails as a test tells it to: a small bucket in memory, stricter than life, behind the wire of s3s.
//! In: requests, signed for real; a script of faults by call and number; a clock to be set. Out: answers, or what a script makes of
//! them: lost, cut off, wrong, none at all. Never: chance; a fault that no script asked for; keeps a thread or a port after it is dropped.
//! Spec: Amazon S3 API Reference; "Error responses" for status and code.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, DATE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3ErrorCode, S3Result};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

pub mod clock;
pub mod door;
pub mod objects;
pub mod script;

use clock::Clock;
use door::Door;
use objects::Objects;
use script::{Fault, Flip, Op, Script, key, parameter};

/// The secret of every access key, until the server is told of one.
pub const SECRET: &str = "secret-of-the-tests";

/// The longest body that is taken.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A server; it ends when it is dropped.
#[derive(Debug)]
pub struct FaultyS3 {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

/// What the connections share.
#[derive(Debug)]
struct State {
    objects: Arc<Mutex<Objects>>,
    script: Mutex<Script>,
    expired: Mutex<BTreeSet<String>>,
    known: Arc<Mutex<Known>>,
    clock: Mutex<Clock>,
    parts: Mutex<AtOnce>,
}

/// How many of something are here.
#[derive(Clone, Copy, Default, Debug)]
struct AtOnce {
    now: u32,
    most: u32,
}

/// A part that is here, from the head of its request to the answer.
struct PartHere(Arc<State>);

impl PartHere {
    fn new(state: &Arc<State>) -> Self {
        let mut parts = held(&state.parts);
        parts.now += 1;
        parts.most = parts.most.max(parts.now);
        Self(state.clone())
    }
}

impl Drop for PartHere {
    fn drop(&mut self) {
        held(&self.0.parts).now -= 1;
    }
}

/// Secret and session token by access key; empty: every access key has [`SECRET`].
type Known = BTreeMap<String, (String, String)>;

impl FaultyS3 {
    /// A server on a free port of loopback with one empty bucket.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start(bucket: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap_or_else(|error| panic!("no port on loopback: {error}"));
        let port = listener.local_addr().unwrap_or_else(|error| panic!("no address: {error}")).port();
        let objects = Arc::new(Mutex::new(Objects::default()));
        let mut service = S3ServiceBuilder::new(Door { bucket: bucket.into(), objects: objects.clone() });
        let known: Arc<Mutex<Known>> = Arc::default();
        service.set_auth(Secrets(known.clone()));
        // What time it is here only [`Clock`] says.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = u32::MAX;
        service.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let state =
            State { objects, script: Mutex::default(), expired: Mutex::default(), known, clock: Mutex::default(), parts: Mutex::default() };
        let state = Arc::new(state);
        let accepting = tokio::spawn(accept(listener, service.build(), state.clone()));
        Self { port, state, accepting }
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bucket itself, to look at and to tamper with.
    pub fn objects(&self) -> MutexGuard<'_, Objects> {
        held(&self.state.objects)
    }

    /// Lets `calls` of an operation go wrong, counted from 1 and from now on.
    pub fn fail(&self, op: Op, calls: RangeInclusive<u32>, fault: Fault) {
        held(&self.state.script).add(op, calls, fault);
    }

    /// From now on nothing goes wrong.
    pub fn heal(&self) {
        held(&self.state.script).clear();
    }

    /// How often a call was made.
    #[must_use]
    pub fn calls(&self, op: Op) -> u32 {
        held(&self.state.script).calls(op)
    }

    /// How many calls were made.
    #[must_use]
    pub fn all_calls(&self) -> u32 {
        held(&self.state.script).all_calls()
    }

    /// How many calls went wrong.
    #[must_use]
    pub fn hit(&self) -> u32 {
        held(&self.state.script).hit()
    }

    /// Knows this access key from now on, and none that it was not told of: `InvalidAccessKeyId`. Each request must bear its session
    /// token too, or is refused: `InvalidToken`.
    pub fn know(&self, access_key: &str, secret: &str, token: &str) {
        held(&self.state.known).insert(access_key.into(), (secret.into(), token.into()));
    }

    /// From now on this access key is refused: `ExpiredToken`.
    pub fn expire(&self, access_key: &str) {
        held(&self.state.expired).insert(access_key.into());
    }

    /// The clock of this server, to be set.
    pub fn clock(&self) -> MutexGuard<'_, Clock> {
        held(&self.state.clock)
    }

    /// The most parts that were here at the same time since this was last asked.
    #[must_use]
    pub fn most_parts_at_once(&self) -> u32 {
        let mut parts = held(&self.state.parts);
        let now = parts.now;
        std::mem::replace(&mut parts.most, now)
    }
}

impl Drop for FaultyS3 {
    fn drop(&mut self) {
        // Its connections end with it.
        self.accepting.abort();
    }
}

fn held<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The secrets with which s3s verifies each signature.
struct Secrets(Arc<Mutex<Known>>);

#[async_trait::async_trait]
impl S3Auth for Secrets {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let known = held(&self.0);
        let secret = if known.is_empty() { Some(SECRET) } else { known.get(access_key).map(|(secret, _)| secret.as_str()) };
        secret.map(SecretKey::from).ok_or_else(|| S3ErrorCode::InvalidAccessKeyId.into())
    }
}

async fn accept(listener: TcpListener, service: S3Service, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, service.clone(), state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, until it ends or a fault ends it.
async fn serve(stream: TcpStream, service: S3Service, state: Arc<State>) {
    let cut = Arc::new(Notify::new());
    let Ok(twin) = SockRef::from(&stream).try_clone() else { return };
    let answer = service_fn(|request| {
        let call = Call { service: service.clone(), state: state.clone(), cut: cut.clone() };
        async move { Ok::<_, Infallible>(call.dated_answer(request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    let connection = http.auto_date_header(false).serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        // Whether the client went or we broke off: the next one has a connection of its own.
        _ = connection => {}
        () = cut.notified() => {
            // Closed with nothing to linger for: the other side sees a reset.
            let _ = twin.set_linger(Some(Duration::ZERO));
        }
    }
}

/// One request on its way through the script.
struct Call {
    service: S3Service,
    state: Arc<State>,
    cut: Arc<Notify>,
}

impl Call {
    async fn dated_answer(self, request: Request<Incoming>) -> Response<Body> {
        let state = self.state.clone();
        let mut answer = self.answer(request).await;
        if let Some(date) = held(&state.clock).date(SystemTime::now()) {
            answer.headers_mut().insert(DATE, date);
        }
        answer
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let op = Op::of(request.method(), request.uri());
        let _here = (op == Op::Part).then(|| PartHere::new(&self.state));
        let fault = held(&self.state.script).next(op);
        match fault {
            Some(Fault::HangBeforeReading) => return std::future::pending().await,
            Some(Fault::ResetInMidRequest) => return self.reset_in_mid(request).await,
            _ => {}
        }
        let (parts, body) = request.into_parts();
        // A client that breaks off has not asked.
        let Ok(body) = Body::from(body).store_all_limited(BODY_BYTES_MAX).await else { return self.break_off().await };
        let mut request = Request::from_parts(parts, Body::from(body));
        if let Some(code) = self.refused_token(&request) {
            return refusal(400, code);
        }
        if held(&self.state.clock).refuses(request.headers(), SystemTime::now()) {
            return refusal(403, "RequestTimeTooSkewed");
        }
        match fault {
            Some(Fault::HangAfterReading) => return std::future::pending().await,
            Some(Fault::Refuse(status, code)) => return refusal(status, code),
            Some(Fault::AnswerAfter(wait)) => tokio::time::sleep(wait).await,
            Some(Fault::FlipByte) => drop(request.extensions_mut().insert(Flip)),
            Some(fault) => self.tamper(fault, &request),
            None => {}
        }
        let Ok(mut answer) = self.service.call(request).await else { return self.break_off().await };
        match fault {
            Some(Fault::LoseAnswer) => self.break_off().await,
            Some(Fault::DoAndRefuse(status, code)) => refusal(status, code),
            Some(Fault::TruncateAnswer) => truncated(answer).await,
            Some(fault) if answer.status().is_success() => {
                distort(&mut answer, fault);
                answer
            }
            _ => answer,
        }
    }

    /// Closes the connection; the answer never comes.
    async fn break_off(&self) -> Response<Body> {
        self.cut.notify_one();
        std::future::pending().await
    }

    /// Reads one piece of the body, or none if there is none, and resets the connection.
    async fn reset_in_mid(&self, request: Request<Incoming>) -> Response<Body> {
        let mut body = request.into_body();
        let _ = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        self.break_off().await
    }

    /// Why a request's credentials are of no use whoever signed it.
    fn refused_token(&self, request: &Request<Body>) -> Option<&'static str> {
        let header = |name: &str| request.headers().get(name).and_then(|header| header.to_str().ok()).unwrap_or_default();
        let access_key = header(AUTHORIZATION.as_str()).split_once("Credential=").and_then(|(_, rest)| rest.split('/').next())?;
        let wrong = |(_, token): &(String, String)| header("x-amz-security-token") != token;
        match held(&self.state.known).get(access_key) {
            _ if held(&self.state.expired).contains(access_key) => Some("ExpiredToken"),
            Some(known) if wrong(known) => Some("InvalidToken"),
            _ => None,
        }
    }

    /// What happens in the bucket before the call is looked at.
    fn tamper(&self, fault: Fault, request: &Request<Body>) {
        let mut objects = held(&self.state.objects);
        let id = parameter(request.uri(), "uploadId").unwrap_or_default();
        match fault {
            Fault::ForgetUpload => drop(objects.uploads.remove(id)),
            Fault::ForgetPart(number) => drop(objects.uploads.get_mut(id).map(|pending| pending.parts.remove(&number))),
            Fault::ForeignObject => objects.put_foreign(key(request.uri())),
            _ => {}
        }
    }
}

/// An error as S3 gives it (API Reference, "REST error responses"); with status 200 too, as a completion may.
fn refusal(status: u16, code: &str) -> Response<Body> {
    let xml = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>by the script</Message></Error>");
    let mut answer = Response::new(Body::from(xml));
    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}

/// The same answer, of whose body only half comes.
async fn truncated(answer: Response<Body>) -> Response<Body> {
    let (mut parts, mut body) = answer.into_parts();
    let whole = body.store_all_limited(BODY_BYTES_MAX).await.unwrap_or_default();
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len() as u64));
    Response::from_parts(parts, Body::http_body(Half(Some(whole.slice(..whole.len() / 2)))))
}

/// Lets the answer say something else of the object.
fn distort(answer: &mut Response<Body>, fault: Fault) {
    const CHECKSUM: &str = "x-amz-checksum-crc64nvme";
    let headers = answer.headers_mut();
    match fault {
        Fault::WrongSize => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from_static("7"))),
        Fault::WrongChecksum => drop(headers.insert(CHECKSUM, HeaderValue::from_static("AAAAAAAAAAA="))),
        Fault::NoChecksum => drop(headers.remove(CHECKSUM)),
        Fault::NoMetadata => drop(headers.remove("x-amz-meta-capture-id")),
        Fault::EndConnection => drop(headers.insert(CONNECTION, HeaderValue::from_static("close"))),
        _ => {}
    }
}

/// A body that breaks off after its first piece.
struct Half(Option<Bytes>);

impl HttpBody for Half {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(bytes) => Ok(Frame::data(bytes)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }))
    }
}
