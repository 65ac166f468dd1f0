//! A real S3 that keeps what it has through its own death: Garage, built by `tests/setup/garage.sh`, started and ended with the test.
//! In: a network namespace. Out: an endpoint, a client. Never: outlives the test program; is reached from outside (loopback only).
//! It checks signatures, parts and object checksums, and knows no `If-None-Match` (LocalStack is the truth for conditions).
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;

use crate::agent::BUCKET;
use crate::localstack::{self, REGION, Tethered};
use crate::netns::Namespace;

/// The key pair it knows, in the form that it asks for.
pub const CREDENTIALS: (&str, &str) = ("GK0123456789abcdef01234567", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");

/// What its nodes would know each other by.
const RPC_SECRET: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A Garage of one node with the bucket of the agents under test.
#[derive(Debug)]
pub struct Garage {
    server: Mutex<Option<Tethered>>,
    program: PathBuf,
    netns: String,
    port: u16,
    /// Its objects, its settings and its log.
    dir: tempfile::TempDir,
}

impl Garage {
    /// Starts one in the namespace.
    ///
    /// # Panics
    /// When it cannot be built or does not come up; the message says what is missing.
    #[must_use]
    pub fn start(netns: &Namespace) -> Self {
        let program = build();
        let version = Command::new(&program).arg("--version").output().unwrap();
        println!("S3 engine: Garage {}", String::from_utf8_lossy(&version.stdout).trim());
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (port, rpc_port) = netns.run(|| (free(), free()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let settings = format!(
            r#"metadata_dir = "{path}/meta"
data_dir = "{path}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_public_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "{RPC_SECRET}"
[s3_api]
s3_region = "{REGION}"
api_bind_addr = "127.0.0.1:{port}"
"#
        );
        fs::write(dir.path().join("garage.toml"), settings).unwrap();
        let garage = Self { server: Mutex::default(), program, netns: netns.name().into(), port, dir };
        garage.restart(netns);
        garage
    }

    /// Kills it as a crash does, if it runs.
    pub fn kill(&self) {
        drop(self.server.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Starts it on what it had, and waits until it takes requests.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&self, netns: &Namespace) {
        self.kill();
        // The tether's own folder: what Garage keeps has to outlive it.
        let tether = self.dir.path().join("tether");
        fs::create_dir_all(&tether).unwrap();
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Tethered::command(Some(&self.netns), &tether);
        command.arg(&self.program).arg("-c").arg(self.dir.path().join("garage.toml"));
        command
            .args(["server", "--single-node", "--default-bucket"])
            .env("GARAGE_DEFAULT_ACCESS_KEY", CREDENTIALS.0)
            .env("GARAGE_DEFAULT_SECRET_KEY", CREDENTIALS.1)
            .env("GARAGE_DEFAULT_BUCKET", BUCKET);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tethered::spawn(command, log));
        let begun = Instant::now();
        while !netns.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()) {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(
                begun.elapsed() < START_TIMEOUT,
                "Garage did not come up on port {} within {START_TIMEOUT:?}; its log:\n{log}",
                self.port
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The port it listens on, on its namespace's loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of it, for use in its namespace.
    #[must_use]
    pub fn client(&self) -> Client {
        localstack::client_as(&format!("http://127.0.0.1:{}", self.port), CREDENTIALS)
    }
}

/// Builds Garage if need be; gives the program.
fn build() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/garage.sh");
    let output = Command::new(&script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "'{}' failed and says above what is missing", script.display());
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
