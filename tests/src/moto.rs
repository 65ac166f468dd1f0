//! An SNS that checks what it is told as AWS does, and an EC2: moto, installed by `tests/setup/moto.sh`, started and ended with the test.
//! In: a free port on loopback, of this host or a namespace. Out: an endpoint, what was published. Never: outlives the test program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::localstack::{CREDENTIALS, REGION, Tethered};
use crate::netns::within;
use crate::questions::Questions;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Installs moto if need be; gives the python that runs it, and boto3.
///
/// # Panics
/// When it cannot be installed; the message says what is missing.
#[must_use]
pub fn python() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/moto.sh");
    let output = Command::new(&script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "'{}' failed and says above what is missing: the tests cannot run without moto", script.display());
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A running moto.
#[derive(Debug)]
pub struct Moto {
    _program: Tethered,
    python: PathBuf,
    netns: Option<String>,
    port: u16,
    dir: tempfile::TempDir,
}

impl Moto {
    /// Starts one on this host.
    ///
    /// # Panics
    /// When it cannot be installed or does not come up; the message says what is missing.
    #[must_use]
    pub fn start() -> Self {
        Self::start_in(None, &[])
    }

    /// Starts one in the named network namespace, or on this host, with environment variables.
    ///
    /// # Panics
    /// When it cannot be installed or does not come up; the message says what is missing.
    #[must_use]
    pub fn start_in(netns: Option<&str>, variables: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let python = python();
        let mut command = Tethered::command(netns, dir.path());
        command.arg(&python).args(["-m", "moto.server", "-H", "127.0.0.1", "-p"]);
        command.arg(port.to_string()).env("TMPDIR", dir.path()).env_remove("AWS_ENDPOINT_URL").envs(variables.iter().copied());
        let moto = Self { _program: Tethered::spawn(command, log), python, netns: netns.map(Into::into), port, dir };
        let begun = Instant::now();
        while moto.get("/moto-api/data.json").is_none() {
            let log = fs::read_to_string(moto.dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START_TIMEOUT, "moto did not come up on port {port} within {START_TIMEOUT:?}; its log:\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
        moto
    }

    /// Where it is reached.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Subject and text of what was published to a topic, in this order.
    ///
    /// # Panics
    /// When there is no such topic.
    #[must_use]
    pub fn published(&self, topic_arn: &str) -> Vec<(String, String)> {
        let data: Value = serde_json::from_str(&self.get("/moto-api/data.json").unwrap()).unwrap();
        let topics = data["sns"]["Topic"].as_array().unwrap();
        let topic = topics.iter().find(|topic| topic["arn"] == topic_arn).unwrap_or_else(|| panic!("no {topic_arn} in {data}"));
        // Id, message, subject, attributes, group.
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        topic["sent_notifications"].as_array().unwrap().iter().map(|sent| (text(&sent[2]), text(&sent[1]))).collect()
    }

    /// What a method of boto3's client for `service` answers, as JSON.
    ///
    /// # Panics
    /// When it fails; shows what it said.
    pub fn ask(&self, service: &str, method: &str, arguments: &Value) -> Value {
        let mut questions = Questions::start(self.netns.as_deref(), &self.python, self.port);
        let question = json!({"account": CREDENTIALS, "region": REGION, "service": service, "action": method, "arguments": arguments});
        let mut told = questions.ask(&question);
        assert!(told["error"].is_null(), "{service}.{method}: {told}");
        told["answer"].take()
    }

    fn get(&self, path: &str) -> Option<String> {
        match &self.netns {
            None => self.get_here(path),
            Some(netns) => within(netns, || self.get_here(path)),
        }
    }

    fn get_here(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        // Version 1.0: the body is not sent in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    }
}
