//! Two network namespaces joined by a veth pair, gone with the value.
//! In: nothing. Out: a place to send from and one to capture in. Never: touches the host's own interfaces.
//! Needs: root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program to be started in it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` on a thread that lives in it, and threads that this one starts do, too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let place = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// The two of them. `tx0` 10.77.0.1 in the sender's, `rx0` 10.77.0.2 in the receiver's.
#[derive(Debug)]
pub struct Pair {
    /// Where traffic comes from.
    pub sender: Namespace,
    /// Where the agent runs.
    pub receiver: Namespace,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Makes both.
    #[must_use]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = |role: &str| format!("tapfleet-{process}-{number}-{role}");
        let pair = Self { sender: Namespace::new(name("tx")), receiver: Namespace::new(name("rx")) };
        pair.join();
        pair
    }

    /// Lays the cable: also again, after an end of it was removed.
    pub fn join(&self) {
        let (tx, rx) = (self.sender.name(), self.receiver.name());
        ip(&["-n", tx, "link", "add", "tx0", "type", "veth", "peer", "name", "rx0", "netns", rx]);
        for (namespace, device, address) in [(tx, "tx0", "10.77.0.1/24"), (rx, "rx0", "10.77.0.2/24")] {
            ip(&["-n", namespace, "address", "add", address, "dev", device]);
            ip(&["-n", namespace, "link", "set", device, "up"]);
        }
    }

    /// Takes the cable away, and with it both interfaces.
    pub fn part(&self) {
        ip(&["-n", self.receiver.name(), "link", "del", "rx0"]);
    }
}

/// Runs `ip`.
///
/// # Panics
/// When it fails; says what was tried.
pub fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap_or_else(|cause| panic!("cannot run ip: {cause}"));
    assert!(output.status.success(), "'ip {}' failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}
