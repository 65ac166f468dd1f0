//! An AWS of several accounts for tests: `tests/emulator` on moto, with LocalStack's S3; asked as AWS's own SDK for Python asks.
//! In: a network namespace or none. Out: an endpoint, answers, the log of calls. Never: reaches AWS; outlives the test program.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::localstack::{self, LocalStack, Tethered};
use crate::moto;
use crate::questions::{Questions, as_package};

/// The region of accounts, unless told otherwise.
pub const REGION: &str = "eu-central-1";
/// The role that Terraform assumes in accounts that are made ready for it.
pub const DEPLOYMENT_ROLE: &str = "terraform";

/// How long the start may take: two seconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running emulator.
#[derive(Debug)]
pub struct Emulator {
    // Before the S3 that it asks.
    _program: Tethered,
    s3: LocalStack,
    netns: Option<String>,
    port: u16,
    dir: tempfile::TempDir,
    questions: Mutex<Questions>,
}

/// A line of the log of calls.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Call {
    /// The caller's program, in a word.
    pub agent: String,
    /// The account whose credentials it had.
    pub account: String,
    /// The region it named.
    pub region: String,
    /// The service, as IAM calls it.
    pub service: String,
    /// The operation, as the API calls it.
    pub action: String,
    /// HTTP's.
    pub status: u16,
    /// The code of the error; empty where it is none.
    pub error: String,
}

impl Emulator {
    /// The one that the tests of a program share; each uses accounts of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Emulator> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(None))
    }

    /// Starts one in the named network namespace (whose loopback must be up), or on this host's loopback.
    ///
    /// # Panics
    /// When it cannot be installed or does not come up; the message says what is missing.
    #[must_use]
    pub fn start(netns: Option<&str>) -> Self {
        let (python, s3) = (moto::python(), LocalStack::start(netns));
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Tethered::command(netns, dir.path());
        command.arg(&python).args(["-m", "emulator", "--port", &port.to_string(), "--s3", &s3.endpoint(), "--calls"]);
        command.arg(dir.path().join("calls")).env("TMPDIR", dir.path());
        as_package(&mut command);
        let program = Tethered::spawn(command, log);
        let questions = Mutex::new(Questions::start(netns, &python, port));
        let emulator = Self { _program: program, s3, netns: netns.map(Into::into), port, dir, questions };
        let begun = Instant::now();
        while emulator.account("000000000000").question("sts", "get_caller_identity", &json!({}))["answer"].is_null() {
            let log = fs::read_to_string(emulator.dir.path().join("log")).unwrap_or_default();
            assert!(
                begun.elapsed() < START_TIMEOUT,
                "the emulator did not come up on port {port} within {START_TIMEOUT:?}; its log:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        emulator
    }

    /// Where it is reached: from this host, or, if it was given a namespace, from there.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The network namespace it is in.
    #[must_use]
    pub fn netns(&self) -> Option<&str> {
        self.netns.as_deref()
    }

    /// The S3 behind it.
    #[must_use]
    pub fn s3(&self) -> &LocalStack {
        &self.s3
    }

    /// An account in [`REGION`].
    #[must_use]
    pub fn account(&self, id: &'static str) -> Account<'_> {
        Account { emulator: self, id, region: REGION }
    }

    /// Every call so far.
    ///
    /// # Panics
    /// When the log is not one.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        let text = fs::read_to_string(self.dir.path().join("calls")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What it has said of itself: tracebacks, if any.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// An account and a region of an emulator.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    emulator: &'a Emulator,
    /// Its number, which is also its access key.
    pub id: &'static str,
    region: &'static str,
}

impl<'a> Account<'a> {
    /// The same account in another region.
    #[must_use]
    pub fn in_region(self, region: &'static str) -> Self {
        Self { region, ..self }
    }

    /// What a service answers; service, action and arguments as boto3 names them.
    ///
    /// # Panics
    /// When it refuses.
    pub fn ask(&self, service: &str, action: &str, arguments: &Value) -> Value {
        let mut told = self.question(service, action, arguments);
        assert!(told["error"].is_null(), "{}: {service} {action} {arguments}: {told}", self.id);
        told["answer"].take()
    }

    /// The code of the error with which a service refuses.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn refusal(&self, service: &str, action: &str, arguments: &Value) -> String {
        let told = self.question(service, action, arguments);
        told["error"].as_str().unwrap_or_else(|| panic!("{}: {service} {action} {arguments} was not refused: {told}", self.id)).into()
    }

    /// All that the account has in this region.
    ///
    /// # Panics
    /// When a service refuses to say.
    #[must_use]
    pub fn inventory(&self) -> Vec<String> {
        serde_json::from_value(self.ask("", "inventory", &json!({}))).unwrap()
    }

    /// Subjects of what was published to a topic, in this order.
    ///
    /// # Panics
    /// When there is no such topic.
    #[must_use]
    pub fn published(&self, topic_arn: &str) -> Vec<String> {
        serde_json::from_value(self.ask("", "published", &json!({"TopicArn": topic_arn}))).unwrap()
    }

    /// The agent's settings, out of what an instance runs at its first boot.
    ///
    /// # Panics
    /// When it runs no such thing.
    #[must_use]
    pub fn settings(&self, instance: &str) -> String {
        self.ask("", "settings", &json!({"InstanceId": instance})).as_str().unwrap().into()
    }

    /// The bytes of an object.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn object(&self, bucket: &str, key: &str) -> Vec<u8> {
        let answer = self.ask("s3", "get_object", &json!({"Bucket": bucket, "Key": key}));
        // A character for each byte.
        answer["Body"].as_str().unwrap().chars().map(|byte| u8::try_from(u32::from(byte)).unwrap()).collect()
    }

    /// A client of its S3.
    #[must_use]
    pub fn s3(&self) -> Client {
        let config = localstack::client(&self.emulator.endpoint()).config().to_builder();
        Client::from_conf(config.credentials_provider(Credentials::new(self.id, "none", None, None, "tests")).build())
    }

    /// An image of an agent.
    #[must_use]
    pub fn image(&self) -> String {
        let disk = json!([{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8, "SnapshotId": "snap-00000000"}}]);
        let image = json!({"Name": "tapfleet", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": disk});
        self.ask("ec2", "register_image", &image)["ImageId"].as_str().unwrap().into()
    }

    /// Lets Terraform in: makes [`DEPLOYMENT_ROLE`].
    pub fn let_terraform_in(self) -> Self {
        self.ask("iam", "create_role", &json!({"RoleName": DEPLOYMENT_ROLE, "AssumeRolePolicyDocument": "{}"}));
        self
    }

    fn question(&self, service: &str, action: &str, arguments: &Value) -> Value {
        let question = json!({"account": self.id, "region": self.region, "service": service, "action": action, "arguments": arguments});
        self.emulator.questions.lock().unwrap_or_else(|poison| poison.into_inner()).ask(&question)
    }
}
