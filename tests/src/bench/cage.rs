//! A control group around a contestant: what all its processes took, and how much they may.
//! In: commands. Out: processor seconds of the whole tree, also of those that have ended; a quota. Never: outlives the value; touches a
//! process that was not started in it.
//! Spec: cgroups(7); kernel `admin-guide/cgroup-v2.rst` (`cpu.stat`, `cpu.max`), `admin-guide/cgroup-v1/cpuacct.rst`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::CONTESTANT_CPU;

/// Over this time a quota is spent and renewed.
const PERIOD_US: u64 = 100_000;

/// The unit of /proc/stat: USER_HZ, the same on every architecture that the agent runs on.
const TICKS_PER_SECOND: f64 = 100.0;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A control group, or two where the first version of the interface has time and quota apart.
#[derive(Debug)]
pub struct Cage {
    /// Where quotas are set.
    quota: PathBuf,
    /// Where time is told.
    account: PathBuf,
    unified: bool,
}

impl Cage {
    /// An empty one.
    ///
    /// # Panics
    /// Without root, or without control groups.
    #[must_use]
    pub fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("tapfleet-bench-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let unified = root.join("cgroup.controllers").exists();
        let [quota, account] =
            if unified { [root.join(&name), root.join(&name)] } else { ["cpu", "cpuacct"].map(|c| root.join(c).join(&name)) };
        if unified {
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
        }
        for folder in [&quota, &account] {
            fs::create_dir_all(folder)
                .unwrap_or_else(|cause| panic!("cannot make the control group {}: {cause}; the benchmark needs root", folder.display()));
        }
        Self { quota, account, unified }
    }

    /// A command that will run inside, on [`CONTESTANT_CPU`] alone, in the network namespace of that name or this one.
    #[must_use]
    pub fn command(&self, netns: Option<&str>, program: &str) -> Command {
        self.command_on(&CONTESTANT_CPU.to_string(), netns, program)
    }

    /// As [`Self::command`], on the processors of that list.
    #[must_use]
    pub fn command_on(&self, processors: &str, netns: Option<&str>, program: &str) -> Command {
        let mut command = Command::new("sh");
        let enter = r#"echo $$ >"$1/cgroup.procs" && echo $$ >"$2/cgroup.procs" && shift 2 && exec "$@""#;
        command.args(["-c", enter, "sh"]).args([&self.quota, &self.account]).args(["taskset", "-c", processors]);
        if let Some(netns) = netns {
            command.args(["ip", "netns", "exec", netns]);
        }
        command.arg(program);
        command
    }

    /// Lets it have this share of one processor.
    pub fn limit(&self, share: f64) {
        let quota = (share * PERIOD_US as f64) as u64;
        let set = |file: &str, text: String| {
            let path = self.quota.join(file);
            fs::write(&path, text).unwrap_or_else(|cause| panic!("cannot set {}: {cause}", path.display()));
        };
        if self.unified {
            set("cpu.max", format!("{quota} {PERIOD_US}"));
        } else {
            set("cpu.cfs_period_us", PERIOD_US.to_string());
            set("cpu.cfs_quota_us", quota.to_string());
        }
    }

    /// Processor seconds of all that has run in it.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        let read = |file: &str| fs::read_to_string(self.account.join(file)).unwrap_or_default();
        if self.unified {
            let stat = read("cpu.stat");
            let usec = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
            usec.and_then(|usec| usec.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e6
        } else {
            read("cpuacct.usage").trim().parse::<f64>().unwrap_or(f64::NAN) / 1e9
        }
    }

    /// Processes that are in it now.
    fn members(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.account.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }

    /// The greatest resident memory that a process which is in it now ever had, bytes; mapped rings are part of it.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let of = |pid: Pid| {
            let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
        };
        self.members().into_iter().filter_map(of).max().unwrap_or(0)
    }
}

impl Default for Cage {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        for _ in 0..100 {
            let members = self.members();
            if members.is_empty() {
                break;
            }
            for pid in members {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
        for folder in [&self.quota, &self.account] {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Keeps the calling thread on one processor; threads that it starts stay there too.
///
/// # Panics
/// When there is no such processor.
pub fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).unwrap_or_else(|cause| panic!("cannot run on processor {processor}: {cause}; the benchmark needs two"));
}

/// Seconds that all processors were busy since the machine began, with the kernel's threads and interrupts.
#[must_use]
pub fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).map(|t| t.parse().unwrap_or(0.0)).collect();
    // user, nice, system, idle, iowait, irq, softirq; guests are in user already (proc(5)).
    let busy: f64 = ticks.iter().take(7).enumerate().filter(|(n, _)| ![3, 4].contains(n)).map(|(_, ticks)| ticks).sum();
    busy / TICKS_PER_SECOND
}
