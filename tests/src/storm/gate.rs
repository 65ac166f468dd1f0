//! A door between an agent and S3, on loopback in the agent's namespace: it holds a given call, so that the agent stands still
//! between an intent and its result, or lets the test change S3 just before one. In: HTTP/1.1 as the AWS SDK speaks it. Out: the same
//! to S3, and its answers, to the byte.
//! Never: changes a byte; takes TLS; knows a body other than by `Content-Length`.
//! Spec: Amazon S3 API Reference (method and query of each call).

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::agent::BUCKET;
use crate::netns::Namespace;

/// The least bytes of a part that is sent while its file grows: the agent's parts are so large at first.
pub const WHOLE_PART_BYTES: u64 = 8 << 20;

/// A call of the uploader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// HEAD of a capture that nobody has completed.
    HeadFirst,
    /// CreateMultipartUpload.
    Create,
    /// UploadPart, of any size.
    Part,
    /// UploadPart of [`WHOLE_PART_BYTES`] at least.
    WholePart,
    /// ListParts.
    ListParts,
    /// CompleteMultipartUpload.
    Complete,
    /// HEAD of a capture after its completion.
    HeadDone,
    /// PUT of a manifest.
    PutManifest,
    /// HEAD of a manifest.
    HeadManifest,
    /// Any other.
    Other,
}

impl Call {
    /// Whether it is one that was asked for as `asked`.
    fn is(self, asked: Self) -> bool {
        self == asked || (self, asked) == (Self::WholePart, Self::Part)
    }
}

/// Where a call is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// S3 has not heard of it.
    Before,
    /// S3 has half of its body.
    Within,
    /// S3 has done it, and the agent has not heard of it.
    After,
}

/// The door.
#[derive(Clone, Debug)]
pub struct Gate {
    endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default, Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Whether a call of that key is meant.
type Fits = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Changes S3 before a call of that key, if it is the one that is meant; says whether it was.
type Work = Box<dyn FnMut(&str) -> bool + Send>;

#[derive(Default)]
struct State {
    closed: Option<(Call, When, Fits)>,
    meddling: Option<(Call, Work)>,
    /// The key of the first call that was held.
    held: Option<String>,
    /// Captures whose completion S3 has confirmed.
    completed: BTreeSet<String>,
    /// Multipart uploads that S3 has begun.
    created: usize,
    /// Nothing gets through.
    away: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.closed.as_ref().map(|&(call, when, _)| (call, when));
        f.debug_struct("State").field("closed", &closed).field("held", &self.held).field("away", &self.away).finish_non_exhaustive()
    }
}

impl Gate {
    /// Opens one in the namespace, to an S3 on that port of its loopback. It is there until the process ends.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn new(netns: &Namespace, upstream: u16) -> Self {
        let listener = netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.unwrap_or_else(|cause| panic!("no port for the gate: {cause}"));
        let endpoint = listener.local_addr().map(|address| format!("http://{address}")).unwrap_or_default();
        let shared = Arc::new(Shared::default());
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
        // Sockets belong to the namespace of the thread that makes them.
        netns.spawn({
            let shared = shared.clone();
            move || {
                for agent in listener.incoming().map_while(Result::ok) {
                    let shared = shared.clone();
                    thread::spawn(move || shared.connect(&agent, upstream));
                }
            }
        });
        Self { endpoint, shared }
    }

    /// Where the agent finds S3.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// From now on the call is held, of a key for which `fits` says so.
    pub fn close(&self, call: Call, when: When, fits: impl Fn(&str) -> bool + Send + Sync + 'static) {
        let mut state = self.shared.state();
        state.closed = Some((call, when, Arc::new(fits)));
        state.held = None;
    }

    /// Does `work` before the call reaches S3, with its key: at each such call, until it says that it is done.
    pub fn meddle(&self, call: Call, work: impl FnMut(&str) -> bool + Send + 'static) {
        self.shared.state().meddling = Some((call, Box::new(work)));
    }

    /// Waits until a call is held and gives its key; `None` when none comes in time.
    #[must_use]
    pub fn wait_held(&self, limit: Duration) -> Option<String> {
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, limit, |state| state.held.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.held.take()
    }

    /// Lets everything through. What was held is cut off: its agent is dead.
    pub fn open(&self) {
        let mut state = self.shared.state();
        (state.closed, state.meddling) = (None, None);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Multipart uploads that S3 has begun so far.
    #[must_use]
    pub fn created(&self) -> usize {
        self.shared.state().created
    }

    /// Whether S3 is away: connections are closed at once.
    pub fn set_away(&self, away: bool) {
        self.shared.state().away = away;
    }
}

/// What the two directions of a connection know of each other.
#[derive(Default)]
struct UnderWay(Mutex<Option<(Call, String)>>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, agent: &TcpStream, upstream: SocketAddr) {
        let Ok(s3) = TcpStream::connect(upstream) else { return };
        let _ = (agent.set_nodelay(true), s3.set_nodelay(true));
        let under_way = UnderWay::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = self.answers(&s3, agent, &under_way);
                close(agent, &s3);
            });
            let _ = self.requests(agent, &s3, &under_way);
            close(agent, &s3);
        });
    }

    /// From the agent to S3, request by request.
    fn requests(&self, agent: &TcpStream, mut s3: &TcpStream, under_way: &UnderWay) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(256 << 10, agent);
        loop {
            let (head, body_bytes) = read_head(&mut reader)?;
            let (call, key) = self.classify(&head, body_bytes);
            if self.state().away || self.holds(call, When::Before, &key) {
                return Ok(());
            }
            self.meddle(call, &key);
            *under_way.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((call, key.clone()));
            s3.write_all(head.as_bytes())?;
            let half = body_bytes / 2;
            io::copy(&mut reader.by_ref().take(half), &mut s3)?;
            if self.holds(call, When::Within, &key) {
                return Ok(());
            }
            io::copy(&mut reader.by_ref().take(body_bytes - half), &mut s3)?;
        }
    }

    /// From S3 to the agent.
    fn answers(&self, mut s3: &TcpStream, mut agent: &TcpStream, under_way: &UnderWay) -> io::Result<()> {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 ";
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = s3.read(&mut buffer)?;
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() || self.state().away {
                return Ok(());
            }
            // An answer has begun; what follows of it belongs to no call.
            let answered = match bytes.starts_with(CONTINUE) {
                true => None,
                false => under_way.0.lock().unwrap_or_else(PoisonError::into_inner).take(),
            };
            if let Some((call, key)) = answered {
                match call {
                    _ if !bytes.starts_with(b"HTTP/1.1 200") => {}
                    Call::Complete => _ = self.state().completed.insert(key.clone()),
                    Call::Create => self.state().created += 1,
                    _ => {}
                }
                if self.holds(call, When::After, &key) {
                    return Ok(());
                }
            }
            agent.write_all(bytes)?;
        }
    }

    /// Holds the call if it is to be held, until the gate opens.
    fn holds(&self, call: Call, when: When, key: &str) -> bool {
        let closed = self.state().closed.clone();
        // It looks at the spool, and nobody else waits for that.
        if closed.is_none_or(|(asked, at, fits)| !call.is(asked) || at != when || !fits(key)) {
            return false;
        }
        let mut state = self.state();
        if state.closed.is_none() {
            return false;
        }
        state.held.get_or_insert_with(|| key.to_owned());
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.closed.is_some()));
        true
    }

    fn meddle(&self, call: Call, key: &str) {
        let taken = self.state().meddling.take_if(|(asked, _)| call.is(*asked));
        if let Some((asked, mut work)) = taken
            && !work(key)
        {
            self.state().meddling = Some((asked, work));
        }
    }

    /// Which call the head of a request is, and of which key.
    fn classify(&self, head: &str, body_bytes: u64) -> (Call, String) {
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = path.trim_start_matches('/').trim_start_matches(BUCKET).trim_start_matches('/').to_owned();
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        let call = match method {
            _ if key.is_empty() || key.starts_with("status/") => Call::Other,
            "PUT" if key.starts_with("manifest/") => Call::PutManifest,
            "HEAD" if key.starts_with("manifest/") => Call::HeadManifest,
            "HEAD" if self.state().completed.contains(&key) => Call::HeadDone,
            "HEAD" => Call::HeadFirst,
            "POST" if has("uploads") => Call::Create,
            "POST" if has("uploadId") => Call::Complete,
            "PUT" if has("partNumber") && body_bytes >= WHOLE_PART_BYTES => Call::WholePart,
            "PUT" if has("partNumber") => Call::Part,
            "GET" if has("uploadId") => Call::ListParts,
            _ => Call::Other,
        };
        (call, key)
    }
}

fn close(agent: &TcpStream, s3: &TcpStream) {
    // Whoever closed first has gone.
    let _ = (agent.shutdown(Shutdown::Both), s3.shutdown(Shutdown::Both));
}

/// The head of a request and the bytes of its body.
fn read_head(reader: &mut impl BufRead) -> io::Result<(String, u64)> {
    const HEAD_BYTES_MAX: u64 = 64 << 10;
    let mut reader = reader.take(HEAD_BYTES_MAX);
    let mut head = String::new();
    let mut body_bytes = 0;
    loop {
        let begun = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = head.get(begun..).unwrap_or_default().trim_end();
        if line.is_empty() {
            return Ok((head, body_bytes));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            body_bytes = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        }
    }
}
