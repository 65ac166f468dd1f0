//! A running `tapfleetd`: settings of its own, asked over HTTP, ended by signal.
//! In: settings and a place. Out: what it counts, what it says. Never: outlives the value.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::limit::limited;
use crate::localstack;

/// The bucket of the agents under test.
pub const BUCKET: &str = "captures";
/// The instance they say they are.
pub const INSTANCE: &str = "i-0123456789abcdef0";
/// Where they answer, unless told otherwise: in a network namespace the port is free.
const LISTEN: &str = "127.0.0.1:8080";

/// How long a command that is not the agent may take.
const COMMAND: Duration = Duration::from_secs(180);

/// How long the rest of a spool may take to arrive.
const UPLOAD_REST_SECONDS: &str = "120";

/// Settings by section and key, as the configuration file has them, further environment variables, and what the file begins with.
#[derive(Clone, Debug)]
pub struct Settings(BTreeMap<String, BTreeMap<String, Value>>, BTreeMap<String, String>, String);

impl Settings {
    /// What every agent under test needs: where S3 is, where its spool is, who it is.
    #[must_use]
    pub fn new(s3_endpoint: &str, spool: &Path) -> Self {
        Self(BTreeMap::new(), BTreeMap::new(), String::new())
            .set("s3.bucket", BUCKET)
            .set("s3.endpoint_url", s3_endpoint)
            .set("s3.region", localstack::REGION)
            .set("spool.dir", spool.to_str().unwrap())
            .set("spool.allow_root_device", true)
            .set("health.listen", LISTEN)
            .set("instance.id", INSTANCE)
            .set("instance.region", localstack::REGION)
            .set("instance.az", format!("{}a", localstack::REGION))
    }

    /// A configuration file as somebody else wrote it; what this host needs otherwise is said by variables.
    #[must_use]
    pub fn written(file: &str) -> Self {
        Self(BTreeMap::new(), BTreeMap::new(), file.into())
    }

    /// Sets `section.key`.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        let (section, key) = name.split_once('.').unwrap();
        self.0.entry(section.into()).or_default().insert(key.into(), value.into());
        self
    }

    /// Sets an environment variable of the agent; an empty value takes it away.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.1.insert(name.into(), value.into());
        self
    }

    /// Its further environment variables.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.1
    }

    /// Runs another command of the daemon with these settings, and gives how it ended and what it said; one that goes on for longer than
    /// [`COMMAND`] ends with [`limit::OVERRUN`](crate::limit::OVERRUN).
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn command(&self, netns: Option<&str>, folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
        let config = folder.join("command.toml");
        fs::write(&config, self.toml()).unwrap();
        let output =
            limited(COMMAND, in_environment(daemon(netns).args(arguments), &self.1)).arg("--config").arg(&config).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let (section, key) = name.split_once('.')?;
        self.0.get(section)?.get(key)
    }

    /// The configuration file. Strings, numbers, flags and lists are written alike in JSON and TOML.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text = self.2.clone();
        for (section, keys) in &self.0 {
            let _ = writeln!(text, "[{section}]");
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text
    }
}

/// What the service manager of an agent keeps for the next one: its ring's socket under its name. Of one capture thread.
#[derive(Debug, Default)]
pub struct Kept(Option<(String, OwnedFd)>);

/// Takes the socket that comes as standard input to where systemd puts it (sd_listen_fds(3)), and becomes its arguments.
const TAKE_OVER: &str = r#"export LISTEN_PID=$$; exec "$@" 3<&0 </dev/null"#;

/// A running agent. Its log is shown when a test fails.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    netns: Option<String>,
    listen: String,
    config: PathBuf,
    variables: BTreeMap<String, String>,
    log: PathBuf,
    /// Where it tells what a service manager would hear.
    notices: UnixDatagram,
    kept: Option<Kept>,
}

impl Agent {
    /// Starts one in the network namespace of that name, or on this host. Configuration and log are written into `folder`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(netns: Option<&str>, settings: &Settings, folder: &Path) -> Self {
        Self::launch(netns, settings, folder, None)
    }

    /// As [`Self::start`], after another one whose ring was kept; its own is kept for [`Self::kill_and_keep`].
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_after(netns: Option<&str>, settings: &Settings, folder: &Path, kept: Kept) -> Self {
        Self::launch(netns, settings, folder, Some(kept))
    }

    fn launch(netns: Option<&str>, settings: &Settings, folder: &Path, kept: Option<Kept>) -> Self {
        let config = folder.join("tapfleet.toml");
        fs::write(&config, settings.toml()).unwrap();
        let log = folder.join("agent.log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let notify = folder.join("notify");
        let _ = fs::remove_file(&notify);
        let notices = UnixDatagram::bind(&notify).unwrap();
        notices.set_nonblocking(true).unwrap();
        let mut command = match kept.as_ref().and_then(|kept| kept.0.as_ref()) {
            None => daemon(netns),
            Some((name, socket)) => {
                let mut command = through(&["sh", "-c", TAKE_OVER, "sh"], &daemon(netns));
                command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name).stdin(socket.try_clone().unwrap());
                command
            }
        };
        in_environment(&mut command, &settings.1).args(["run", "--config"]).arg(&config).env("NOTIFY_SOCKET", &notify);
        if command.get_envs().all(|(name, _)| name != "LISTEN_FDS") {
            command.stdin(Stdio::null());
        }
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|cause| panic!("cannot start tapfleetd: {cause}"));
        let listen = settings.get("health.listen").and_then(Value::as_str).unwrap_or(LISTEN).to_owned();
        Self { child, netns: netns.map(Into::into), listen, config, variables: settings.1.clone(), log, notices, kept }
    }

    /// Starts one and waits until it captures.
    ///
    /// # Panics
    /// When it does not within ten seconds.
    #[must_use]
    pub fn ready(netns: Option<&str>, settings: &Settings, folder: &Path) -> Self {
        let mut agent = Self::start(netns, settings, folder);
        agent.wait_for("it says that it is ready", Duration::from_secs(10), |agent| agent.says("READY=1"));
        agent.wait_for("it is healthy", Duration::from_secs(1), |agent| agent.get("/healthz").is_some());
        agent
    }

    /// What it counts; `None` while it does not answer.
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        let status: Value = serde_json::from_str(&self.get("/status")?).ok()?;
        Some(Counters(status.get("counters")?.clone()))
    }

    /// Waits until `done` says so of the counters, and gives them.
    ///
    /// # Panics
    /// When it takes longer than `limit`, or the agent ends.
    pub fn wait_counters(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&Counters) -> bool) -> Counters {
        let mut last = None;
        let seen = self.wait_until(limit, |agent| {
            last = agent.counters().or_else(|| last.take());
            last.as_ref().is_some_and(&mut done)
        });
        match last {
            Some(last) if seen => last,
            last => panic!("waited {limit:?} until {what}; counters: {last:?}"),
        }
    }

    /// Waits until `done` says so.
    ///
    /// # Panics
    /// When it takes longer than `limit`, or the agent ends.
    pub fn wait_for(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        assert!(self.wait_until(limit, |agent| done(agent)), "waited {limit:?} until {what}");
    }

    fn wait_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if done(self) {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                // It may have said its last words since.
                return done(self);
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a service manager does, waits at most `limit`, and gives how it ended.
    ///
    /// # Panics
    /// When it is still there after `limit`.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(limit)
    }

    /// Waits at most `limit` until it ends by itself, and gives how it did.
    ///
    /// # Panics
    /// When it is still there after `limit`.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it had not ended after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets it stand still for so long, as a machine does that gives it no time.
    pub fn pause(&self, time: Duration) {
        self.signal(Signal::STOP);
        std::thread::sleep(time);
        self.signal(Signal::CONT);
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and gives the moment from which on it does nothing; its process is there until [`Self::kill`].
    ///
    /// # Panics
    /// When it has ended by itself.
    #[must_use]
    pub fn strike(&mut self) -> Instant {
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended by itself before it was killed");
        self.signal(Signal::KILL);
        Instant::now()
    }

    /// Ends it as a crash does: it cannot finish anything.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// As [`Self::kill`], and gives what a service manager would keep.
    ///
    /// # Panics
    /// When it was not started by [`Self::start_after`].
    #[must_use]
    pub fn kill_and_keep(mut self) -> Kept {
        self.kill();
        // What it said before.
        let _ = self.says("");
        self.kept.take().unwrap_or_else(|| panic!("nobody keeps the rings of this agent"))
    }

    /// Sends what it left in its spool, by the command that is there for this.
    ///
    /// # Panics
    /// When that fails, or takes longer than two minutes.
    pub fn upload_rest(&self) {
        // What S3 refuses again and again is tried again and again: it has to be told to stop, and then says what is left.
        let mut command = through(&["timeout", UPLOAD_REST_SECONDS], &daemon(self.netns.as_deref()));
        let output =
            in_environment(&mut command, &self.variables).args(["spool", "upload", "--config"]).arg(&self.config).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "tapfleetd spool upload: {}\n{}", output.status, String::from_utf8_lossy(&said));
    }

    /// Bytes of memory that it occupies now.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_else(|| panic!("it has ended"));
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether the next notice has this line; later calls look at later notices.
    pub fn says(&mut self, line: &str) -> bool {
        while let Some((text, socket)) = self.notice() {
            if let Some(kept) = &mut self.kept {
                kept.note(&text, socket);
            }
            if text.lines().any(|found| found == line) {
                return true;
            }
        }
        false
    }

    /// The next notice and the descriptor that came with it.
    fn notice(&self) -> Option<(String, Option<OwnedFd>)> {
        let mut text = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.notices, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptor = descriptors.flatten().next();
        Some((String::from_utf8_lossy(&text[..received.bytes]).into_owned(), descriptor))
    }

    fn signal(&self, signal: Signal) {
        // `ip netns exec` becomes the program it starts: the pid is the agent's.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// What it answers over HTTP; `None` when it does not, or not with success.
    ///
    /// # Panics
    /// When curl cannot be run.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<String> {
        let output = in_netns(self.netns.as_deref(), "curl")
            .args(["--silent", "--fail", "--noproxy", "*", "--max-time", "2", &format!("http://{}{path}", self.listen)])
            .output()
            .unwrap_or_else(|cause| panic!("cannot run curl: {cause}; see tests/setup/system.sh"));
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}

impl Kept {
    /// Does what a service manager does at `FDSTORE=1` and `FDSTOREREMOVE=1` (sd_notify(3)).
    fn note(&mut self, notice: &str, socket: Option<OwnedFd>) {
        let name = notice.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default();
        if notice.lines().any(|line| line == "FDSTOREREMOVE=1") && self.0.as_ref().is_some_and(|(kept, _)| kept == name) {
            self.0 = None;
        }
        if let Some(socket) = socket {
            self.0 = Some((name.to_owned(), socket));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            println!("the agent's log:\n{}", self.log());
        }
    }
}

/// What an agent counts, by the names of `/status`.
#[derive(Clone, Debug)]
pub struct Counters(pub Value);

impl Counters {
    /// One counter; 0 where it is not told.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// One reason of `drops` or `ignored`.
    #[must_use]
    pub fn reason(&self, group: &str, reason: &str) -> u64 {
        self.0.get(group).and_then(|group| group.get(reason)).and_then(Value::as_u64).unwrap_or(0)
    }

    /// All reasons of `drops` or `ignored` together.
    #[must_use]
    pub fn sum(&self, group: &str) -> u64 {
        sum(&self.0, group)
    }

    /// Both sides of the accounting identity: what the kernel gave, and what became of it.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        let given = self.get("kernel_packets") - self.get("kernel_drops");
        (given, self.get("frames_written") + self.sum("drops") + self.sum("ignored"))
    }
}

/// The numbers of an object within `value`, together; 0 where there is none.
#[must_use]
pub fn sum(value: &Value, group: &str) -> u64 {
    value.get(group).and_then(Value::as_object).map_or(0, |group| group.values().filter_map(Value::as_u64).sum())
}

/// A program of this workspace: it stands in the folder above the test programs' (`target/debug`).
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let found = this.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("'{name}' is not built: run 'cargo build --workspace' first"))
}

/// The daemon, with the credentials that LocalStack takes and nothing else of the environment's AWS settings.
fn daemon(netns: Option<&str>) -> Command {
    let mut command = in_netns(netns, program("tapfleetd").to_str().unwrap());
    command
        .env("AWS_ACCESS_KEY_ID", localstack::CREDENTIALS)
        .env("AWS_SECRET_ACCESS_KEY", localstack::CREDENTIALS)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("RUST_BACKTRACE", "1")
        .env("NO_COLOR", "1")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_ENDPOINT_URL");
    command
}

/// The command with these variables, and without those that are empty.
fn in_environment<'a>(command: &'a mut Command, variables: &BTreeMap<String, String>) -> &'a mut Command {
    for (name, value) in variables {
        match value.is_empty() {
            true => command.env_remove(name),
            false => command.env(name, value),
        };
    }
    command
}

/// The command as the arguments of another one.
#[must_use]
pub fn through(outer: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(outer[0]);
    command.args(&outer[1..]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// A program to be started in the namespace of that name, or on this host.
#[must_use]
pub fn in_netns(netns: Option<&str>, program: &str) -> Command {
    let Some(netns) = netns else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, program]);
    command
}
