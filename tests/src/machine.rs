//! A small Debian whose first process is systemd, with the agent installed as a package would, in a network namespace of the test's.
//! In: settings, drop-ins. Out: its service manager's words, its files. Never: outlives the value, changes the cached root folder.
//! Spec: systemd-nspawn(1), nsenter(1). Needs root; tests/setup/machine.sh makes the root folder.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::indexing_slicing)]

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{Settings, program};
use crate::netns::Pair;

/// The agent's unit.
pub const UNIT: &str = "tapfleetd.service";

/// All units, as a package installs them.
pub const UNITS: [&str; 7] = [
    UNIT,
    "tapfleetd-failed.service",
    "tapfleetd-revive.service",
    "tapfleetd-revive.timer",
    "tapfleet-alert.service",
    "tapfleet-alert.path",
    "tapfleet-alert.timer",
];

/// The names of the program in the machine: the second one serves when the first is gone.
pub const PROGRAMS: [&str; 2] = ["usr/bin/tapfleetd", "usr/lib/tapfleet/tapfleetd"];

/// Machines that share a cgroup remove each other's: each gets one of its own, of its name, in the hierarchies that systemd uses (of
/// version 2 the first, of version 1 the others).
const IN_ITS_OWN_CGROUP: &str = r#"for base in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
  if [ -f $base/cgroup.procs ]; then mkdir $base/$0 && echo $$ >$base/$0/cgroup.procs; fi
done
exec "$@""#;

/// Removes the cgroup of that name.
const REMOVE_CGROUP: &str = "find /sys/fs/cgroup/$0 /sys/fs/cgroup/systemd/$0 /sys/fs/cgroup/unified/$0 -depth -type d -exec rmdir {} +";

/// Where it is mounted.
const PROGRAM: &str = "/opt/tapfleetd";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A booted machine. Its journal is shown when a test fails.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// The wire: the machine lives in the namespace of the tap.
    pub pair: Pair,
    nspawn: Child,
    /// systemd, as this host numbers it.
    leader: u32,
}

impl Machine {
    /// Boots one with the agent of this source installed, set and enabled, not started. `drop_in` is added to its unit.
    ///
    /// # Panics
    /// When it does not boot; says why.
    #[must_use]
    pub fn boot(settings: &Settings, drop_in: &str) -> Self {
        let program = format!("--bind-ro={}:{PROGRAM}", program("tapfleetd").display());
        let machine = Self::start(&root_folder("machine"), &["--volatile=overlay", &program]);
        machine.install(settings, drop_in);
        machine
    }

    /// Boots one without an agent, as EC2's images are when Packer comes.
    ///
    /// # Panics
    /// When it does not boot; says why.
    #[must_use]
    pub fn builder() -> Self {
        Self::start(&root_folder("builder"), &["--volatile=overlay"])
    }

    /// Boots a root folder as it is; what the machine writes stays in it. `options` go to systemd-nspawn.
    ///
    /// # Panics
    /// When it does not boot; says why.
    #[must_use]
    pub fn of(folder: &Path, options: &[&str]) -> Self {
        Self::start(folder, options)
    }

    fn start(folder: &Path, options: &[&str]) -> Self {
        let pair = Pair::new();
        let name = format!("tapfleet-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut words = tempfile::tempfile().unwrap();
        let mut nspawn = Command::new("sh")
            .args(["-c", IN_ITS_OWN_CGROUP, &name, "systemd-nspawn"])
            .args(["--quiet", "--register=no", "--keep-unit", "--boot", "--link-journal=no", "--console=pipe"])
            .args(["--resolv-conf=off", "--timezone=off", "--directory"])
            .arg(folder)
            .arg(format!("--machine={name}"))
            .arg(format!("--network-namespace-path=/run/netns/{}", pair.tap.name()))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(words.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|cause| panic!("cannot run systemd-nspawn: {cause}; see tests/setup/system.sh"));
        let leader = leader_of(&mut nspawn).unwrap_or_else(|end| {
            let mut said = String::new();
            words.rewind().and_then(|()| words.read_to_string(&mut said)).unwrap();
            panic!(
                "{end}, and said:\n{said}This test needs root that may mount and make control groups and network namespaces (docker run \
                 --privileged --cgroupns=host)"
            )
        });
        let machine = Self { name, pair, nspawn, leader };
        machine.wait_for("the machine has booted", Duration::from_secs(60), |machine| {
            let state = machine.output("systemctl", &["is-system-running"]);
            ["running", "degraded"].contains(&String::from_utf8_lossy(&state.stdout).trim())
        });
        machine
    }

    fn install(&self, settings: &Settings, drop_in: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("systemd");
        for unit in UNITS {
            self.write(&format!("usr/lib/systemd/system/{unit}"), &fs::read_to_string(from.join(unit)).unwrap());
        }
        for (file, to) in
            [("tapfleet.sysusers", "usr/lib/sysusers.d/tapfleet.conf"), ("tapfleet.tmpfiles", "usr/lib/tmpfiles.d/tapfleet.conf")]
        {
            self.write(to, &fs::read_to_string(from.join(file)).unwrap());
        }
        for name in PROGRAMS {
            self.link_program(name);
        }
        self.write("etc/tapfleet/tapfleet.toml", &settings.toml());
        if !drop_in.is_empty() {
            self.drop_in(UNIT, "test", drop_in);
        }
        self.run("systemd-sysusers", &[]);
        self.run("systemd-tmpfiles", &["--create", "tapfleet.conf"]);
        self.run("systemctl", &["daemon-reload"]);
        self.run("systemctl", &["enable", "--quiet", UNIT]);
    }

    /// Gives the program a name.
    pub fn link_program(&self, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(PROGRAM, path).unwrap();
    }

    /// Adds lines to a unit; they hold from the next `daemon-reload` on.
    pub fn drop_in(&self, unit: &str, name: &str, text: &str) {
        self.write(&format!("etc/systemd/system/{unit}.d/{name}.conf"), text);
    }

    /// A path of the machine, as this host reaches it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.leader.to_string()).join("root").join(path)
    }

    /// Writes a file of the machine.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs a program in it, whatever it answers.
    ///
    /// # Panics
    /// When the machine cannot be entered.
    #[must_use]
    pub fn output(&self, program: &str, args: &[&str]) -> Output {
        Command::new("nsenter")
            .args(["--target", &self.leader.to_string(), "--mount", "--pid", "--net", "--uts", "--ipc", "--", program])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|cause| panic!("cannot run nsenter: {cause}"))
    }

    /// Runs a program in it and gives what it printed.
    ///
    /// # Panics
    /// When it fails; shows what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.output(program, args);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "`{program} {}` in the machine: {}\n{said}", args.join(" "), output.status);
        said
    }

    /// A property of the agent's unit.
    #[must_use]
    pub fn property(&self, name: &str) -> String {
        self.property_of(UNIT, name)
    }

    /// A property of a unit.
    #[must_use]
    pub fn property_of(&self, unit: &str, name: &str) -> String {
        self.run("systemctl", &["show", "--value", "--property", name, unit]).trim().to_owned()
    }

    /// The agent's process, as this host numbers it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        let (here, main) = (fs::read_link(format!("/proc/{}/ns/pid", self.leader)).unwrap(), self.property("MainPID"));
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
        let mut ours = processes.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|found| found == here));
        let numbered = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().next_back() == Some(&main))
        };
        ours.find(numbered).unwrap_or_else(|| panic!("no process has the number {main} in the machine"))
    }

    /// The agent's threads whose names begin so, as this host numbers them, in the order of their numbers.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn threads(&self, name: &str) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.agent_pid())).unwrap().map(|task| task.unwrap().path());
        let named = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|found| found.starts_with(name)));
        let mut threads: Vec<u32> = named.map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect();
        threads.sort_unstable();
        assert!(!threads.is_empty(), "the agent has no thread called {name}");
        threads
    }

    /// Starts or restarts it, and gives how long that took: until it said that it is ready.
    pub fn systemctl(&self, verb: &str) -> Duration {
        // Starts that a test orders are no crash loop.
        self.run("systemctl", &["reset-failed", UNIT]);
        let begun = Instant::now();
        self.run("systemctl", &[verb, UNIT]);
        begun.elapsed()
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: &str) {
        self.run("systemctl", &["kill", "--kill-whom=main", "--signal", signal, UNIT]);
    }

    /// What the agent's unit has in the journal.
    #[must_use]
    pub fn journal(&self) -> String {
        self.journal_of(&[UNIT])
    }

    /// What units have in the journal.
    #[must_use]
    pub fn journal_of(&self, units: &[&str]) -> String {
        let units = units.iter().flat_map(|unit| ["--unit", unit]);
        let args: Vec<&str> = ["--no-pager", "--quiet", "--output=short-precise"].into_iter().chain(units).collect();
        String::from_utf8_lossy(&self.output("journalctl", &args).stdout).into_owned()
    }

    /// Waits until `done` says so, and gives how long that took.
    ///
    /// # Panics
    /// When it takes longer than `limit`.
    pub fn wait_for(&self, what: &str, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < limit, "waited {limit:?} until {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
        begun.elapsed()
    }
}

impl Machine {
    /// Shuts it down, as an instance that is stopped; its wire stays.
    pub fn power_off(&mut self) {
        let _ = self.output("systemctl", &["poweroff"]);
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.nspawn.try_wait(), Ok(None)) {
            if Instant::now() > end {
                if let Some(leader) = i32::try_from(self.leader).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(leader, Signal::KILL);
                }
                let _ = self.nspawn.kill();
                let _ = self.nspawn.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = Command::new("sh").args(["-c", REMOVE_CGROUP, &self.name]).stderr(Stdio::null()).status();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.nspawn.try_wait(), Ok(Some(_))) {
            return;
        }
        if std::thread::panicking() {
            println!("the machine's journal:\n{}", self.journal_of(&UNITS));
        }
        self.power_off();
    }
}

/// Threads that stand still while the others of their process go on: each waits in its next system call, for longer than a test takes.
/// They go on with the end of the value.
#[derive(Debug)]
pub struct StandStill(Child);

/// In which strace keeps a thread, microseconds.
const STANDS_US: u32 = 600_000_000;

impl StandStill {
    /// Stops them.
    ///
    /// # Panics
    /// When they do not stop.
    #[must_use]
    pub fn of(threads: &[u32]) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-o", "/dev/null", "-e", &format!("inject=all:delay_enter={STANDS_US}")]);
        strace.args(threads.iter().flat_map(|thread| ["-p".to_owned(), thread.to_string()]));
        let strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut stopped = Self(strace.unwrap_or_else(|cause| panic!("cannot run strace: {cause}; see tests/setup/system.sh")));
        let end = Instant::now() + Duration::from_secs(10);
        let stands = |thread: &u32| fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| status.contains("State:\tt"));
        while !threads.iter().all(stands) {
            assert!(matches!(stopped.0.try_wait(), Ok(None)), "strace has ended: may it trace (CAP_SYS_PTRACE)?");
            assert!(Instant::now() < end, "the threads {threads:?} do not stand still after ten seconds");
            std::thread::sleep(Duration::from_millis(1));
        }
        stopped
    }
}

impl Drop for StandStill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The root folder of that name, as `tests/setup/machine.sh` makes it; shared, and never changed.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn root_folder(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/machine.sh");
    let output = Command::new(&script).arg(name).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// The pid of the machine's first process: the only child of systemd-nspawn. Else how that ended.
fn leader_of(nspawn: &mut Child) -> Result<u32, String> {
    let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let found = fs::read_to_string(&children).ok().and_then(|pids| pids.split_whitespace().next()?.parse().ok());
        // It is the first process as soon as it has left nspawn's own program behind.
        if let Some(leader) = found
            && fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(|name| name.trim() == "systemd")
        {
            return Ok(leader);
        }
        if let Some(status) = nspawn.try_wait().unwrap() {
            return Err(format!("systemd-nspawn ended with {status}"));
        }
        if Instant::now() > end {
            let _ = nspawn.kill();
            return Err("systemd-nspawn started no systemd within ten seconds".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
