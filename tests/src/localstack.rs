//! A real S3 that nobody here wrote: LocalStack, installed by `tests/setup/localstack.sh`, started and ended with the test.
//! In: a network namespace or none. Out: an endpoint, clients, buckets. Never: outlives the test program, even a killed one.
//!
//! LocalStack listens on every address, whatever it is told. Without a namespace that is a free port of this host, reached on
//! loopback; tests that must not be reachable from outside give it a namespace of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use rustix::process::{Pid, test_kill_process_group};

/// The region that clients name; LocalStack takes any.
pub const REGION: &str = "eu-north-1";

/// What LocalStack takes for both halves of the credentials.
pub const CREDENTIALS: &str = "test";

/// How long the start may take: under a second on an idle machine. Now and then it says "Ready." and never answers: tried again.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is tried.
const START_TRIES: usize = 3;

/// Runs its arguments until its standard input ends, or they do; then ends everything in its process group. Removes the folder
/// that it is named after: a value that many tests share is never dropped, but its process's end of the pipe closes.
const UNTIL_INPUT_ENDS: &str = r#"("$@" </dev/null; kill -KILL 0) & cat >/dev/null; rm -rf "$0"; kill -KILL 0"#;

/// Starts LocalStack with its objects in a folder of its own: the one that it names itself is shared by all that run on a host.
const MAIN: &str = "\
import runpy, sys
import localstack.services.s3.provider as s3
s3.DEFAULT_S3_TMP_DIR = sys.argv[1]
runpy.run_module('localstack.runtime.main', run_name='__main__')
";

/// A running LocalStack. Ends with this value, or with the process that holds it.
#[derive(Debug)]
pub struct LocalStack {
    program: Tethered,
    netns: Option<String>,
    python: PathBuf,
    port: u16,
    /// Its temporary files and its log.
    dir: tempfile::TempDir,
}

impl LocalStack {
    /// The one that the tests of a program share; each test makes itself a bucket of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<LocalStack> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(None))
    }

    /// Starts one in the named network namespace (whose loopback must be up), or on this host.
    ///
    /// # Panics
    /// When it cannot be installed or does not come up; the message says what is missing.
    pub fn start(netns: Option<&str>) -> Self {
        let python = install();
        let mut causes = String::new();
        for _ in 0..START_TRIES {
            let mut localstack = Self::launch(netns, python.clone());
            match localstack.wait() {
                Ok(()) => {
                    println!("S3 engine: LocalStack {}", version());
                    return localstack;
                }
                Err(cause) => causes = cause,
            }
        }
        panic!("{causes}");
    }

    fn launch(netns: Option<&str>, python: PathBuf) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Tethered::command(netns, dir.path());
        command.arg(&python).args(["-c", MAIN]).arg(dir.path().join("objects"));
        command
            .env("GATEWAY_LISTEN", format!("127.0.0.1:{port}"))
            .env("SERVICES", "s3,sns,sqs,sts,cloudwatch")
            .env("EAGER_SERVICE_LOADING", "1")
            .env("DISABLE_EVENTS", "1")
            .env("DNS_ADDRESS", "0")
            .env("SKIP_SSL_CERT_DOWNLOAD", "1")
            .env("FILESYSTEM_ROOT", dir.path())
            .env("TMPDIR", dir.path())
            // Which plugins it found, for the next start; in the home folder if nothing is said.
            .env("XDG_CACHE_HOME", python.ancestors().nth(2).unwrap().join("cache"))
            .env_remove("AWS_ENDPOINT_URL");
        Self { program: Tethered::spawn(command, log), netns: netns.map(Into::into), python, port, dir }
    }

    /// Where it is reached: from this host, or, if it was given a namespace, from there.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port it listens on, at every address of its host or namespace.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of [`Self::endpoint`].
    #[must_use]
    pub fn client(&self) -> Client {
        client(&self.endpoint())
    }

    /// Makes a bucket, and gives a client for it.
    pub async fn bucket(&self, name: &str) -> Client {
        let client = self.client();
        make_bucket(&client, name).await;
        client
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while !self.is_healthy() {
            let ended = self.program.0.try_wait().unwrap();
            if ended.is_some() || begun.elapsed() > START_TIMEOUT {
                let (port, time, log) = (self.port, begun.elapsed(), self.log());
                return Err(format!("LocalStack did not come up on port {port} within {time:?} ({ended:?}); its log:\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        let Some(netns) = &self.netns else { return get_health(self.port).is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) };
        let ask = format!("import urllib.request; urllib.request.urlopen('http://127.0.0.1:{}/_localstack/health', timeout=2)", self.port);
        let asked = in_netns(Some(netns), self.python.to_str().unwrap()).args(["-c", &ask]).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    }
}

/// A program that ends with this value, or with the process that holds it.
#[derive(Debug)]
pub(crate) struct Tethered(pub(crate) Child);

impl Tethered {
    /// A command that still lacks program and arguments. `dir` goes when it ends.
    pub(crate) fn command(netns: Option<&str>, dir: &Path) -> Command {
        let mut command = in_netns(netns, "sh");
        command.args(["-c", UNTIL_INPUT_ENDS]).arg(dir);
        command
    }

    pub(crate) fn spawn(mut command: Command, log: fs::File) -> Self {
        let child = command.process_group(0).stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Self(child.unwrap_or_else(|cause| panic!("cannot start '{command:?}': {cause}")))
    }
}

impl Drop for Tethered {
    fn drop(&mut self) {
        // The shell ends the whole group, itself included.
        let group = Pid::from_child(&self.0);
        drop(self.0.stdin.take());
        let _ = self.0.wait();
        // Memory of that size takes the kernel a moment to give back.
        let begun = Instant::now();
        while test_kill_process_group(group).is_ok() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A client of an S3 at `endpoint` that takes [`CREDENTIALS`].
#[must_use]
pub fn client(endpoint: &str) -> Client {
    client_as(endpoint, (CREDENTIALS, CREDENTIALS))
}

/// A client of an S3 at `endpoint` that takes this key pair.
#[must_use]
pub fn client_as(endpoint: &str, (id, secret): (&str, &str)) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .credentials_provider(Credentials::new(id, secret, None, None, "tests"));
    Client::from_conf(config.build())
}

/// Makes a bucket.
pub async fn make_bucket(client: &Client, name: &str) {
    use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
    let place = CreateBucketConfiguration::builder().location_constraint(BucketLocationConstraint::from(REGION)).build();
    client.create_bucket().bucket(name).create_bucket_configuration(place).send().await.unwrap();
}

/// Installs LocalStack if need be; gives the python that runs it.
fn install() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/localstack.sh");
    let output = Command::new(&script)
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|cause| panic!("cannot run '{}': {cause}", script.display()));
    assert!(
        output.status.success(),
        "'{}' failed and says above what is missing: the tests against S3 cannot run without LocalStack",
        script.display()
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// The version that is installed; `tests/run.sh` shows it.
fn version() -> &'static str {
    let pins = include_str!("../setup/localstack-requirements.txt").lines();
    pins.filter_map(|pin| pin.strip_prefix("localstack-core==")).next().unwrap_or("of an unknown version")
}

pub(crate) fn in_netns(netns: Option<&str>, program: &str) -> Command {
    let Some(netns) = netns else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, program]);
    command
}

fn get_health(port: u16) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /_localstack/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
