//! In: the counters' life signs. Out: `/healthz` for the load balancer, `/metrics`, `/status`.
//! Never: unhealthy for what a new instance would not cure: S3, the level of the spool, credentials and the clock do not count,
//! or an outage of S3 would replace the fleet and its unsent spools. Never: held up or used up by who only connects.
//!
//! Several probes come in each interval, from each node of the load balancer; every answer closes its connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Sleep, sleep};

use super::counters::Counters;
use super::metrics;
use crate::host::clock::{Clock, Now, SECOND_NS, Synchrony, SystemClock};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A loop that has not gone round for this long stands still: each waits for at most 100 ms.
const STALLED_NS: u64 = 5 * SECOND_NS;

/// No frames could be taken for this long: an interface that is re-created is back within 2 s.
const UNABLE_NS: u64 = 10 * SECOND_NS;

/// The most connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;

/// A connection ends after this long, whatever it does.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Open answers get this long when the agent stops.
const STOP_TIME: Duration = Duration::from_secs(1);

/// What the server says beside the counters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Which instance this is.
    pub instance: String,
    /// When the agent began.
    pub since: Now,
    /// Whether frames come from an interface; a replayed file ends, and that is no illness.
    pub live: bool,
}

/// Every reason there is to be unhealthy. None is of S3, the spool, credentials or the clock: a new instance would not cure those.
pub const REASONS: [&str; 4] = ["leaving", "capture_stalled", "capture_unable", "recorder_stalled"];

/// A reason to be unhealthy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Reason {
    /// Its stable name, one of [`REASONS`].
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

/// The one that is no illness.
pub const LEAVING: &str = "leaving";

/// What the load balancer is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Health {
    /// No reason against it.
    pub healthy: bool,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// Whether the agent captures, by the life signs of its threads. Those that have given none yet count from `facts.since`.
#[must_use]
pub fn judge(counters: &Counters, facts: &Facts, now: Now) -> Health {
    let since = |sign_ns: u64| now.monotonic_ns.saturating_sub(sign_ns.max(facts.since.monotonic_ns));
    let seconds = |ns: u64| ns / SECOND_NS;
    let mut reasons = Vec::new();
    if counters.leaving.get() + counters.leaving_ended.get() > 0 {
        reasons.push(Reason { reason: LEAVING, detail: "the instance is to leave: send no more packets here".into() });
    }
    if counters.leaving_ended.get() > 0 {
        // Threads that were ended stand still.
        return Health { healthy: false, reasons };
    }
    if facts.live {
        for (thread, pulse) in counters.captures.iter().enumerate() {
            let silent = since(pulse.beat_ns.get());
            if silent > STALLED_NS {
                let detail = format!("capture thread {thread} has stood still for {} s", seconds(silent));
                reasons.push(Reason { reason: "capture_stalled", detail });
            }
        }
        if let Some(unable) = counters.captures.iter().map(|pulse| since(pulse.able_ns.get())).min().filter(|ns| *ns > UNABLE_NS) {
            let detail = format!("no capture thread could take frames for {} s: is the interface there and up?", seconds(unable));
            reasons.push(Reason { reason: "capture_unable", detail });
        }
    }
    let silent = since(counters.recorder.beat_ns.get());
    if silent > STALLED_NS {
        let detail = format!("the recorder has stood still for {} s", seconds(silent));
        reasons.push(Reason { reason: "recorder_stalled", detail });
    }
    Health { healthy: reasons.is_empty(), reasons }
}

/// What `/status` answers.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    /// Version of the agent.
    pub version: &'static str,
    /// Which instance this is.
    pub instance: String,
    /// Seconds since the agent began.
    pub up_seconds: u64,
    /// When the agent began, RFC 3339.
    pub since: String,
    /// What the load balancer is told.
    #[serde(flatten)]
    pub health: Health,
    /// Whether the wall clock is right.
    pub clock: Synchrony,
    /// For how long the spool's disk has not done what it was asked, seconds.
    pub disk_waits_seconds: u64,
    /// Every counter.
    pub counters: Map<String, Value>,
}

struct Shared {
    counters: Arc<Counters>,
    facts: Facts,
}

impl Shared {
    fn health(&self) -> Health {
        judge(&self.counters, &self.facts, SystemClock.now())
    }
}

/// Answers on `listener` until `stop` is done.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    counters: Arc<Counters>,
    facts: Facts,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .layer(axum::middleware::map_response(close_after))
        .with_state(Arc::new(Shared { counters, facts }));
    let listener = Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), time: CONNECTION_TIME };
    let (stopped, stopping) = oneshot::channel();
    let graceful = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.await;
        let _ = stopped.send(());
    });
    tokio::select! {
        served = graceful.into_future() => served,
        // A client that has connected and says nothing does not hold the agent up.
        () = async { let _ = stopping.await; sleep(STOP_TIME).await } => Ok(()),
    }
}

async fn close_after(mut response: axum::response::Response) -> axum::response::Response {
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

async fn healthz(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let health = shared.health();
    let status = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let text = metrics::text(&shared.counters, VERSION, shared.health().healthy);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Status> {
    let now = SystemClock.now();
    let Shared { counters, facts } = shared.as_ref();
    let began = i64::try_from(facts.since.wall_ns).map(chrono::DateTime::from_timestamp_nanos).unwrap_or_default();
    Json(Status {
        version: VERSION,
        instance: facts.instance.clone(),
        up_seconds: now.monotonic_ns.saturating_sub(facts.since.monotonic_ns) / SECOND_NS,
        since: began.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        health: judge(counters, facts, now),
        clock: counters.clock().synchrony(now.monotonic_ns),
        disk_waits_seconds: counters.disk_waits_ns(now.monotonic_ns) / SECOND_NS,
        counters: metrics::json(counters),
    })
}

/// A listener with so many places, each for so long.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    time: Duration,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed; if it were, the bound would be gone and nothing else.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        (Connection { stream, ends: Box::pin(sleep(self.time)), _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with an end: who reads or sends nothing does not keep its place.
struct Connection {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn ended(&mut self, cx: &mut Context<'_>) -> bool {
        self.ends.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::wire::Drop;

    /// The moment at which everybody is judged: a minute after the start.
    const NOW: Now = Now { wall_ns: 0, monotonic_ns: 1_000 * SECOND_NS };

    fn facts(live: bool) -> Facts {
        Facts { instance: "i-test".into(), since: Now { wall_ns: 0, monotonic_ns: NOW.monotonic_ns - 60 * SECOND_NS }, live }
    }

    /// Two capture threads and a recorder in good health.
    fn well() -> Counters {
        let counters = Counters::new(2);
        for pulse in counters.captures.iter().chain([&counters.recorder]) {
            pulse.beat_ns.set(NOW.monotonic_ns - SECOND_NS);
            pulse.able_ns.set(NOW.monotonic_ns - SECOND_NS);
        }
        counters
    }

    fn reasons(counters: &Counters, live: bool) -> Vec<&'static str> {
        let health = judge(counters, &facts(live), NOW);
        assert_eq!(health.healthy, health.reasons.is_empty());
        health.reasons.iter().map(|reason| reason.reason).collect()
    }

    #[test]
    fn an_agent_whose_threads_live_is_healthy() {
        assert!(reasons(&well(), true).is_empty());
    }

    #[test]
    fn a_capture_thread_that_stands_still_for_more_than_five_seconds_makes_unhealthy() {
        let counters = well();
        counters.captures[1].beat_ns.set(NOW.monotonic_ns - STALLED_NS);
        assert!(reasons(&counters, true).is_empty());
        counters.captures[1].beat_ns.set(NOW.monotonic_ns - STALLED_NS - 1);
        assert_eq!(reasons(&counters, true), ["capture_stalled"]);
        assert!(judge(&counters, &facts(true), NOW).reasons[0].detail.contains("thread 1"));
    }

    #[test]
    fn no_thread_able_to_take_frames_for_more_than_ten_seconds_makes_unhealthy() {
        let counters = well();
        counters.captures[0].able_ns.set(NOW.monotonic_ns - UNABLE_NS - 1);
        assert!(reasons(&counters, true).is_empty(), "the other thread still takes frames");
        counters.captures[1].able_ns.set(NOW.monotonic_ns - UNABLE_NS);
        assert!(reasons(&counters, true).is_empty());
        counters.captures[1].able_ns.set(NOW.monotonic_ns - UNABLE_NS - 1);
        assert_eq!(reasons(&counters, true), ["capture_unable"]);
    }

    #[test]
    fn a_recorder_that_stands_still_for_more_than_five_seconds_makes_unhealthy() {
        let counters = well();
        counters.recorder.beat_ns.set(NOW.monotonic_ns - STALLED_NS - 1);
        assert_eq!(reasons(&counters, true), ["recorder_stalled"]);
    }

    #[test]
    fn threads_that_have_not_begun_count_from_the_start_of_the_agent() {
        let fresh = Counters::new(1);
        let mut just = facts(true);
        just.since.monotonic_ns = NOW.monotonic_ns - STALLED_NS;
        assert!(judge(&fresh, &just, NOW).healthy);
        assert_eq!(reasons(&fresh, true), ["capture_stalled", "capture_unable", "recorder_stalled"]);
    }

    #[test]
    fn signs_of_life_from_after_the_look_at_the_clock_are_signs_of_life() {
        let counters = well();
        counters.recorder.beat_ns.set(NOW.monotonic_ns + SECOND_NS);
        assert!(reasons(&counters, true).is_empty());
    }

    #[test]
    fn the_end_of_a_replayed_file_is_no_illness() {
        let counters = well();
        counters.captures[0].beat_ns.set(0);
        counters.captures[1].able_ns.set(0);
        assert!(reasons(&counters, false).is_empty());
    }

    #[test]
    fn s3_the_spool_the_clock_and_drops_never_make_unhealthy() {
        let counters = well();
        for level in [&counters.spool_bytes, &counters.spool_segments, &counters.spool_oldest_seconds, &counters.upload_failures] {
            level.set(u64::MAX);
        }
        for count in [&counters.clock_steps, &counters.kernel_drops, &counters.kernel_freezes, &counters.gaps, &counters.key_collisions] {
            count.add(1 << 40);
        }
        counters.drops[Drop::SpoolFull.index()].add(1 << 40);
        assert!(reasons(&counters, true).is_empty());
    }

    #[test]
    fn nothing_but_what_a_new_instance_cures_and_the_end_of_this_one_makes_unhealthy() {
        type Happens = fn(&Counters);
        let long_ago: Happens = |counters| counters.captures.iter().for_each(|pulse| pulse.able_ns.set(1));
        let cases: [(&str, Happens); 4] = [
            ("leaving", |counters| counters.leaving.set(1)),
            ("capture_stalled", |counters| counters.captures[0].beat_ns.set(1)),
            ("capture_unable", long_ago),
            ("recorder_stalled", |counters| counters.recorder.beat_ns.set(1)),
        ];
        for (reason, happens) in cases {
            let counters = well();
            happens(&counters);
            assert_eq!(reasons(&counters, true), [reason]);
        }
        assert_eq!(cases.map(|(reason, _)| reason), REASONS, "every reason there is, and no other");
        // Threads that were ended for it are no illness beside it.
        let counters = well();
        counters.leaving_ended.set(1);
        counters.recorder.beat_ns.set(1);
        assert_eq!(reasons(&counters, true), ["leaving"]);
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.expect("an answer that ends").unwrap();
        answer
    }

    async fn start(counters: Counters) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let facts = Facts { instance: "i-test".into(), since: SystemClock.now(), live: true };
        let serving = tokio::spawn(serve(listener, Arc::new(counters), facts, async { drop(stopped.await) }));
        (address, stop, serving)
    }

    #[tokio::test]
    async fn two_hundred_probes_at_once_are_answered_while_others_only_connect() {
        let (address, _stop, _serving) = start(Counters::new(1)).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probes = JoinSet::new();
        for _ in 0..200 {
            probes.spawn(ask(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
        let answers = timeout(Duration::from_secs(5), probes.join_all()).await.expect("in time");
        assert_eq!(answers.len(), 200);
        for answer in answers {
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(r#"{"healthy":true,"reasons":[]}"#), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_unhealthy_agent_answers_503_and_says_why() {
        let counters = Counters::new(1);
        let mut facts = facts(true);
        facts.since.monotonic_ns = 0;
        counters.captures[0].beat_ns.set(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(counters), facts, std::future::pending()));
        let answer = ask(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"capture_stalled\""), "{answer}");
        assert!(ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("\ntapfleet_healthy 0\n"));
        let status = ask(address, "GET /status HTTP/1.0\r\n\r\n").await;
        let json: Value = serde_json::from_str(status.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!((&json["healthy"], &json["instance"]), (&Value::Bool(false), &Value::from("i-test")));
        assert_eq!(json["counters"]["frames_written"], 0);
        assert!(ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn a_client_that_says_half_a_word_does_not_hold_the_stop_up() {
        let (address, stop, serving) = start(Counters::new(1)).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /hea").await.unwrap();
        assert!(ask(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("200 OK"));
        stop.send(()).unwrap();
        timeout(STOP_TIME + Duration::from_secs(2), serving).await.expect("stopped in time").unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_ended_and_gives_its_place_to_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded { listener, places: Arc::new(Semaphore::new(1)), time: Duration::from_millis(50) };
        let _silent = TcpStream::connect(address).await.unwrap();
        let (mut held, _) = bounded.accept().await;
        let _next = TcpStream::connect(address).await.unwrap();
        assert!(timeout(Duration::from_millis(10), bounded.accept()).await.is_err(), "there is one place");
        let ended = timeout(Duration::from_secs(5), held.read_u8()).await.expect("an end").unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(held);
        assert!(timeout(Duration::from_secs(5), bounded.accept()).await.is_ok());
    }
}
