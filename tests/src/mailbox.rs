//! A topic with a queue subscribed to it, and a door before it: mails are read back as a subscriber gets them.
//! In: a network namespace. Out: a topic's ARN, an endpoint, the mails. Never: outlives the value.
//! LocalStack is the SNS and the SQS.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
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
}

/// What stands between an agent and the topic.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    passage: Arc<AtomicU8>,
    passing: Arc<Mutex<Vec<TcpStream>>>,
}

impl Door {
    /// One in this thread's network namespace.
    fn open(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let door = Self { address: listener.local_addr().unwrap(), passage: Arc::default(), passing: Arc::default() };
        let (passage, passing) = (door.passage.clone(), door.passing.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                match passage.load(Ordering::SeqCst) {
                    open if open == Passage::Open as u8 => pass(stream, port, &passing),
                    hole if hole == Passage::Hole as u8 => passing.lock().unwrap().push(stream),
                    _ => {}
                }
            }
        });
        door
    }

    /// From now on; whatever is under way is cut off.
    pub fn set(&self, passage: Passage) {
        self.passage.store(passage as u8, Ordering::SeqCst);
        for stream in self.passing.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(stream: TcpStream, port: u16, passing: &Mutex<Vec<TcpStream>>) {
    let Ok(behind) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    passing.lock().unwrap().extend([stream.try_clone().unwrap(), behind.try_clone().unwrap()]);
    for (mut from, mut to) in [(stream.try_clone().unwrap(), behind.try_clone().unwrap()), (behind, stream)] {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.flush();
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
