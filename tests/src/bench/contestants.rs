//! The agent and its peers as capture programs: each told to do the same with the same buffer memory.
//! In: a pair whose tap to listen on, a folder to write to. Out: a running program, and what it kept.
//! Spec: tcpdump(8), dumpcap(1), netsniff-ng(8).
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cage::Cage;
use super::capture::RING_MIB;
use super::store::Store;
use crate::agent::{Settings, program};
use crate::localstack;
use crate::netns::{Pair, TAP};

/// What the peers are to take: the same as the agent's own filter.
const FILTER: &str = "udp dst port 6081 or udp dst port 4789";

/// Where no S3 is: the agent of a contest that ends at the disk finds nobody to upload to.
pub const NO_S3: &str = "http://127.0.0.1:9";

/// How long a program may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who captures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    /// The agent, which decapsulates and spools.
    Tapfleet,
    /// `tcpdump -w`.
    Tcpdump,
    /// `dumpcap`.
    Dumpcap,
    /// `netsniff-ng`.
    Netsniff,
}

impl Tool {
    /// All of them, the agent first.
    pub const ALL: [Self; 4] = [Self::Tapfleet, Self::Tcpdump, Self::Dumpcap, Self::Netsniff];

    /// What tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tapfleet => "tapfleetd",
            Self::Tcpdump => "tcpdump -w",
            Self::Dumpcap => "dumpcap",
            Self::Netsniff => "netsniff-ng",
        }
    }

    /// What it says when it captures.
    fn ready(self) -> &'static str {
        match self {
            Self::Tapfleet => "capturing",
            Self::Tcpdump => "listening on",
            Self::Dumpcap => "File:",
            Self::Netsniff => "Running!",
        }
    }

    /// Starts it on the tap, with `ring_mib` of buffer, and waits until it captures.
    ///
    /// # Panics
    /// When it does not begin.
    #[must_use]
    pub fn start(self, pair: &Pair, cage: &Cage, folder: &Path, ring_mib: u64) -> Running {
        if self == Self::Tapfleet {
            return start_agent(pair, cage, folder, &agent_settings(NO_S3, folder, ring_mib));
        }
        let file = folder.join("peer.pcap");
        let mut command = cage
            .command(Some(pair.tap.name()), if self == Self::Netsniff { "netsniff-ng" } else { self.name().split(' ').next().unwrap() });
        let (kib, mib, size) = ((ring_mib << 10).to_string(), ring_mib.to_string(), format!("{ring_mib}MiB"));
        let (before, behind): (Vec<&str>, &[&str]) = match self {
            Self::Tapfleet | Self::Tcpdump => (vec!["-n", "-i", TAP, "-Z", "root", "-B", &kib, "-w"], &[FILTER]),
            Self::Dumpcap => (vec!["-P", "-q", "-i", TAP, "-B", &mib, "-f", FILTER, "-w"], &[]),
            Self::Netsniff => (vec!["--in", TAP, "--out"], &["--silent", "--jumbo-support", "--notouch-irq", "--ring-size", &size, FILTER]),
        };
        command.args(before).arg(&file).args(behind);
        Running::begin(command, folder, self.ready())
    }
}

/// The agent's settings in a contest: defaults, but for the ring.
#[must_use]
pub fn agent_settings(s3: &str, folder: &Path, ring_mib: u64) -> Settings {
    let spool = folder.join("spool");
    let _ = fs::create_dir_all(&spool);
    Settings::new(s3, &spool).set("capture.interface", TAP).set("capture.ring_bytes", format!("{ring_mib}MiB"))
}

/// As [`agent_settings`], with the S3 of a contest, which speaks TLS.
#[must_use]
pub fn settings_with(store: &Store, folder: &Path) -> Settings {
    let certificate = store.certificate().to_str().unwrap();
    agent_settings(&store.endpoint(), folder, RING_MIB).variable("SSL_CERT_FILE", certificate)
}

/// Starts the agent with these settings and waits until it captures.
///
/// # Panics
/// When it does not begin.
#[must_use]
pub fn start_agent(pair: &Pair, cage: &Cage, folder: &Path, settings: &Settings) -> Running {
    start_agent_by(cage.command(Some(pair.tap.name()), program("tapfleetd").to_str().unwrap()), folder, settings)
}

/// As [`start_agent`], by a command that runs the daemon.
///
/// # Panics
/// When it does not begin.
#[must_use]
pub fn start_agent_by(mut command: Command, folder: &Path, settings: &Settings) -> Running {
    let config = folder.join("tapfleet.toml");
    fs::write(&config, settings.toml()).unwrap();
    command.args(["run", "--config"]).arg(&config).envs(settings.variables()).env("NO_COLOR", "1").env_remove("NOTIFY_SOCKET");
    credentials(&mut command);
    Running::begin(command, folder, Tool::Tapfleet.ready())
}

/// Lets a program sign its requests to the S3 of the contest.
pub fn credentials(command: &mut Command) {
    command
        .env("AWS_ACCESS_KEY_ID", localstack::CREDENTIALS)
        .env("AWS_SECRET_ACCESS_KEY", localstack::CREDENTIALS)
        .env("AWS_REGION", localstack::REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env_remove("AWS_PROFILE")
        // rclone refuses to go on with one.
        .env_remove("AWS_CA_BUNDLE")
        .env_remove("AWS_ENDPOINT_URL");
}

/// A program that captures.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: PathBuf,
}

impl Running {
    /// Starts a program that says `ready` when it captures, and waits for that.
    ///
    /// # Panics
    /// When it does not begin.
    #[must_use]
    pub fn begin(mut command: Command, folder: &Path, ready: &str) -> Self {
        let said = folder.join("said.log");
        let log = File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|cause| panic!("cannot start {command:?}: {cause}"));
        let mut running = Self { child, folder: folder.into() };
        let end = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&said).unwrap_or_default();
            if text.contains(ready) {
                break;
            }
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "{command:?} did not begin: {text}");
            thread::sleep(Duration::from_millis(20));
        }
        // What it does after it said so.
        thread::sleep(Duration::from_millis(300));
        running
    }

    /// Waits until what was sent is in its hands: peers lose at their end what is still in the buffer. `cage`: its own.
    pub fn settle(&self, cage: &Cage) {
        const LOOK: Duration = Duration::from_millis(300);
        // Longer than any of them lets a buffer wait that is not full: tcpdump, a second.
        thread::sleep(Duration::from_millis(1200));
        let mut before = cage.seconds();
        for _ in 0..200 {
            thread::sleep(LOOK);
            let now = cage.seconds();
            if now - before < 0.02 * LOOK.as_secs_f64() {
                return;
            }
            before = now;
        }
    }

    /// Ends it as its user does, and waits; what it wrote is then brought to the disk.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) -> ExitStatus {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it does not end: {}", self.said());
            thread::sleep(Duration::from_millis(5));
        };
        for file in captures(&self.folder) {
            File::open(&file).and_then(|file| file.sync_data()).unwrap_or_else(|cause| panic!("cannot sync {}: {cause}", file.display()));
        }
        status
    }

    /// What it said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("said.log")).unwrap_or_default()
    }

    /// Frames in the capture files that it left.
    #[must_use]
    pub fn kept(&self) -> u64 {
        captures(&self.folder).iter().map(|file| records(file)).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Capture files in a folder and the folders in it.
#[must_use]
pub fn captures(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files = Vec::new();
    for path in entries {
        if path.is_dir() {
            files.extend(captures(&path));
        } else if path.extension().is_some_and(|extension| extension == "pcap") {
            files.push(path);
        }
    }
    files
}

/// Whole records of a pcap file of this machine's byte order.
#[must_use]
pub fn records(path: &Path) -> u64 {
    let count = || -> std::io::Result<u64> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        file.read_exact(&mut [0; 24])?;
        let mut records = 0;
        let mut header = [0; 16];
        while !file.fill_buf()?.is_empty() {
            file.read_exact(&mut header)?;
            let [_, _, _, _, _, _, _, _, length @ .., _, _, _, _] = header;
            let mut left = u64::from(u32::from_ne_bytes(length));
            while left > 0 {
                let here = file.fill_buf()?.len().min(left as usize);
                if here == 0 {
                    return Ok(records);
                }
                file.consume(here);
                left -= here as u64;
            }
            records += 1;
        }
        Ok(records)
    };
    count().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::traffic::{Mix, save};

    #[test]
    fn every_whole_record_of_a_file_is_counted_and_a_torn_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.pcap");
        save(&Mix::Imix.frames(1), 5000, &path).unwrap();
        assert_eq!(records(&path), 5000);
        let bytes = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(bytes - 1).unwrap();
        assert_eq!(records(&path), 4999);
        assert_eq!(captures(folder.path()), [path]);
    }
}
