//! A topic with a queue subscribed to it, and a door before it: mails are read back as a subscriber gets them.
//! In: a network namespace. Out: a topic's ARN, an endpoint, the mails. Never: outlives the value.
//! LocalStack is the SNS and the SQS.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::Value;

use crate::localstack::{CREDENTIALS, LocalStack, REGION};
use crate::netns::within;

/// A mail as a subscriber gets it.
#[derive(Clone, Debug)]
pub struct Mail {
    /// Its subject.
    pub subject: String,
    /// Its text.
    pub body: String,
}

impl Mail {
    /// The id of the trouble that it is about.
    ///
    /// # Panics
    /// When it is about none.
    #[must_use]
    pub fn trouble(&self) -> &str {
        let line = self.body.lines().find(|line| line.starts_with("Trouble:"));
        line.unwrap_or_else(|| panic!("no trouble id in {}", self.body)).trim_start_matches("Trouble:").trim()
    }
}

/// A topic that can be reached or not, and a queue.
#[derive(Debug)]
pub struct Mailbox {
    /// Where both are; buckets too.
    pub aws: LocalStack,
    netns: String,
    /// What stands between an agent and the topic.
    pub door: Door,
    /// ARN of the topic.
    pub topic: String,
    queue: String,
}

impl Mailbox {
    /// A topic and a queue in the namespace of that name; nobody is subscribed yet.
    ///
    /// # Panics
    /// When LocalStack cannot be started.
    #[must_use]
    pub fn new(netns: &str) -> Self {
        let aws = LocalStack::start(Some(netns));
        let door = within(netns, || Door::open(aws.port()));
        let mut mailbox = Self { aws, netns: netns.into(), door, topic: String::new(), queue: String::new() };
        (mailbox.topic, mailbox.queue) = mailbox.ask(async |config| {
            let topic = aws_sdk_sns::Client::new(&config).create_topic().name("alerts").send().await.unwrap();
            let queue = aws_sdk_sqs::Client::new(&config).create_queue().queue_name("alerts").send().await.unwrap();
            (topic.topic_arn.unwrap(), queue.queue_url.unwrap())
        });
        mailbox
    }

    /// Has the queue subscribed, which needs no confirmation.
    pub fn subscribe(&self) {
        self.ask(async |config| {
            let sqs = aws_sdk_sqs::Client::new(&config);
            let attributes = sqs.get_queue_attributes().queue_url(&self.queue).attribute_names(QueueAttributeName::QueueArn).send().await;
            let arn = attributes.unwrap().attributes.unwrap()[&QueueAttributeName::QueueArn].clone();
            let sns = aws_sdk_sns::Client::new(&config);
            sns.subscribe().topic_arn(&self.topic).protocol("sqs").endpoint(arn).send().await.unwrap();
        });
    }

    /// Where an agent of the namespace reaches the topic, as long as the door is open.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.door.address)
    }

    /// Asks AWS, from inside the namespace.
    pub fn ask<T: Send>(&self, work: impl AsyncFnOnce(SdkConfig) -> T + Send) -> T {
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.aws.endpoint())
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new(CREDENTIALS, CREDENTIALS, None, None, "tests")));
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        within(&self.netns, || runtime().block_on(work(config.build())))
    }

    /// What has come since the last look, for at most `limit` or until there are `count`. Topic and queue promise no order; in
    /// which one the mails left, the agent's log says.
    #[must_use]
    pub fn mails(&self, count: usize, limit: Duration) -> Vec<Mail> {
        let end = Instant::now() + limit;
        let mut mails = Vec::new();
        while mails.len() < count && Instant::now() < end {
            mails.extend(self.ask(async |config| {
                let sqs = aws_sdk_sqs::Client::new(&config);
                let received = sqs.receive_message().queue_url(&self.queue).max_number_of_messages(10).wait_time_seconds(1).send().await;
                let mut mails: Vec<Mail> = Vec::new();
                for message in received.unwrap().messages.unwrap_or_default() {
                    let json: Value = serde_json::from_str(message.body.as_deref().unwrap()).unwrap();
                    let text = |name: &str| json[name].as_str().unwrap().to_owned();
                    mails.push(Mail { subject: text("Subject"), body: text("Message") });
                    sqs.delete_message().queue_url(&self.queue).receipt_handle(message.receipt_handle.unwrap()).send().await.unwrap();
                }
                mails
            }));
        }
        mails
    }
}

/// Whether what knocks gets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Passage {
    /// It does.
    Open,
    /// It is turned away, as if nobody were there.
    Shut,
    /// It is let in and never answered.
    Hole,
    /// The next mail gets through, and its answer is lost; then all is as with [`Self::Open`].
    Lossy,
    /// It is answered that it is not allowed, as SNS does.
    Denied,
}

impl Passage {
    const ALL: [Self; 5] = [Self::Open, Self::Shut, Self::Hole, Self::Lossy, Self::Denied];
}

/// What SNS answers to one who may not (Amazon SNS API Reference, "Common Errors").
const DENIAL: &str = "<ErrorResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><Error><Type>Sender</Type><Code>AuthorizationError</Code>\
    <Message>User is not authorized to perform this action on resource</Message></Error><RequestId>0</RequestId></ErrorResponse>";

/// What stands between an agent and the topic.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    way: Arc<Way>,
}

/// What its connections share.
#[derive(Debug, Default)]
struct Way {
    passage: AtomicU8,
    passing: Mutex<Vec<TcpStream>>,
    published: Mutex<Vec<String>>,
}

impl Door {
    /// One in this thread's network namespace.
    fn open(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let door = Self { address: listener.local_addr().unwrap(), way: Arc::default() };
        let way = door.way.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                match way.passage() {
                    Passage::Open | Passage::Lossy => pass(stream, port, &way),
                    Passage::Shut => {}
                    Passage::Hole => way.passing.lock().unwrap().push(stream),
                    Passage::Denied => deny(stream, &way),
                }
            }
        });
        door
    }

    /// From now on; whatever is under way is cut off.
    pub fn set(&self, passage: Passage) {
        self.way.passage.store(passage as u8, Ordering::SeqCst);
        for stream in self.way.passing.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The requests with mails that got through, answered or not, in this order, as they stood on the wire.
    #[must_use]
    pub fn published(&self) -> Vec<String> {
        self.way.published.lock().unwrap().clone()
    }
}

impl Way {
    fn passage(&self) -> Passage {
        let now = self.passage.load(Ordering::SeqCst);
        Passage::ALL.into_iter().find(|passage| *passage as u8 == now).unwrap()
    }

    /// Takes note of a request; whether its answer is to be lost.
    fn note(&self, request: String) -> bool {
        if !request.starts_with("Action=Publish&") {
            return false;
        }
        self.published.lock().unwrap().push(request);
        let (lossy, open) = (Passage::Lossy as u8, Passage::Open as u8);
        self.passage.compare_exchange(lossy, open, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

fn pass(stream: TcpStream, port: u16, way: &Arc<Way>) {
    let Ok(behind) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    way.passing.lock().unwrap().extend([stream.try_clone().unwrap(), behind.try_clone().unwrap()]);
    let lost = Arc::new(AtomicBool::new(false));
    let (mut from, mut to) = (stream.try_clone().unwrap(), behind.try_clone().unwrap());
    let (noting, losing) = (way.clone(), lost.clone());
    thread::spawn(move || {
        let mut requests = Vec::new();
        let _ = carry(&mut from, &mut to, |bytes| {
            requests.extend_from_slice(bytes);
            while let Some(request) = take_request(&mut requests) {
                losing.fetch_or(noting.note(request), Ordering::SeqCst);
            }
            true
        });
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (behind, stream);
    thread::spawn(move || {
        let _ = carry(&mut from, &mut to, |_| !lost.load(Ordering::SeqCst));
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Carries what comes, as long as `allowed` says so of it.
fn carry(from: &mut TcpStream, to: &mut TcpStream, mut allowed: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut bytes = [0; 16 << 10];
    loop {
        let read = from.read(&mut bytes)?;
        if read == 0 || !allowed(&bytes[..read]) {
            return Ok(());
        }
        to.write_all(&bytes[..read])?;
    }
}

fn deny(mut stream: TcpStream, way: &Way) {
    way.passing.lock().unwrap().push(stream.try_clone().unwrap());
    thread::spawn(move || -> io::Result<()> {
        let (mut requests, mut bytes) = (Vec::new(), [0; 16 << 10]);
        loop {
            let read = stream.read(&mut bytes)?;
            if read == 0 {
                return Ok(());
            }
            requests.extend_from_slice(&bytes[..read]);
            while take_request(&mut requests).is_some() {
                let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Type: text/xml\r\nContent-Length: {}", DENIAL.len());
                write!(stream, "{head}\r\n\r\n{DENIAL}")?;
            }
        }
    });
}

/// Takes the body of the first request, when all of it is there.
fn take_request(bytes: &mut Vec<u8>) -> Option<String> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let lines = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length:")).map_or(0, |length| length.trim().parse().unwrap());
    let rest = bytes.get(head..head + length).map(|body| String::from_utf8_lossy(body).into_owned())?;
    bytes.drain(..head + length);
    Some(rest)
}
