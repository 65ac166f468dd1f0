//! In: nothing. Out: two network namespaces joined by a veth pair, for tests that need a real wire.
//! Never: touches the machine's own links; leaves a namespace behind, also when a test fails.
//! Spec: network_namespaces(7), veth(4), ip-netns(8).

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};
use tapfleet::capture::ring;
use tapfleet::host::nic;

/// The interface of the sending side.
pub const SOURCE: &str = "source";
/// The interface of the side that captures.
pub const TAP: &str = "tap";
/// Hardware address of [`SOURCE`].
pub const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Hardware address of [`TAP`].
pub const TAP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// IPv4 address of [`SOURCE`].
pub const SOURCE_V4: [u8; 4] = [10, 77, 0, 1];
/// IPv4 address of [`TAP`].
pub const TAP_V4: [u8; 4] = [10, 77, 0, 2];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of the test's own, with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(side: &str) -> Self {
        let name = format!("tapfleet-{}-{}-{side}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on it.
    pub fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.name], args].concat());
    }

    /// A command that will run in it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` in it, on a thread of its own, and waits for it. Threads that `work` starts are in it too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.name, work)
    }

    /// Starts `work` in it, on a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let name = self.name.clone();
        thread::spawn(move || {
            enter(&name);
            work()
        })
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) {
        enter(&self.name);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Processes and sockets in it keep it alive, but its name goes.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Runs `work` in the namespace of that name, as [`Namespace::run`] does.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(name);
            work()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn enter(name: &str) {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).unwrap_or_else(|cause| panic!("cannot open {path}: {cause}"));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .unwrap_or_else(|cause| panic!("cannot enter {path}: {cause}; this test needs root (CAP_SYS_ADMIN)"));
}

/// Two namespaces joined by a wire: [`SOURCE`] on one side, [`TAP`] on the other.
#[derive(Debug)]
pub struct Pair {
    /// The side that sends.
    pub source: Namespace,
    /// The side that captures.
    pub tap: Namespace,
    mtu: u32,
    queues: u32,
}

impl Pair {
    /// A pair with an MTU of 9001, as on EC2, and two queues.
    #[must_use]
    pub fn new() -> Self {
        Self::with_queues(2)
    }

    /// As [`Self::new`], with so many queues each way.
    #[must_use]
    pub fn with_queues(queues: u32) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces and packet sockets");
        let pair = Self { source: Namespace::new("source"), tap: Namespace::new("tap"), mtu: 9001, queues };
        pair.plug();
        pair
    }

    /// Makes the wire and waits until it carries.
    pub fn plug(&self) {
        let (mtu, queues) = (self.mtu.to_string(), self.queues.to_string());
        let end = ["mtu", &mtu, "numtxqueues", &queues, "numrxqueues", &queues];
        let source = [&["link", "add", SOURCE, "address", "02:00:00:00:00:01"], &end[..]].concat();
        let tap = [&["type", "veth", "peer", "name", TAP, "address", "02:00:00:00:00:02"], &end[..], &["netns", &self.tap.name]].concat();
        self.source.ip(&[source, tap].concat());
        for (namespace, link, v4, v6) in
            [(&self.source, SOURCE, "10.77.0.1/24", "fd77::1/64"), (&self.tap, TAP, "10.77.0.2/24", "fd77::2/64")]
        {
            namespace.ip(&["address", "add", v4, "dev", link]);
            namespace.ip(&["address", "add", v6, "dev", link, "nodad"]);
            namespace.ip(&["link", "set", link, "up"]);
        }
        self.wait_for_carrier();
    }

    /// Removes the wire, both ends.
    pub fn unplug(&self) {
        self.source.ip(&["link", "del", SOURCE]);
    }

    /// Switches the tap's end on or off.
    pub fn set_tap_up(&self, up: bool) {
        self.tap.ip(&["link", "set", TAP, if up { "up" } else { "down" }]);
        if up {
            self.wait_for_carrier();
        }
    }

    /// A sender of raw frames on [`SOURCE`].
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.source.run(|| Sender::new(SOURCE))
    }

    fn wait_for_carrier(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        for (namespace, link) in [(&self.source, SOURCE), (&self.tap, TAP)] {
            while !namespace.run(|| nic::link(link)).is_ok_and(|link| link.is_some_and(|link| link.running)) {
                assert!(Instant::now() < deadline, "the veth pair carries nothing after 5 s");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts whole frames on a wire.
#[derive(Debug)]
pub struct Sender {
    socket: Socket,
}

impl Sender {
    /// A sender on an interface of the calling thread's namespace.
    #[must_use]
    pub fn new(interface: &str) -> Self {
        let link = nic::link(interface).ok().flatten().unwrap_or_else(|| panic!("there is no interface '{interface}'"));
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, None).unwrap_or_else(|cause| panic!("cannot open a packet socket: {cause}; root?"));
        ring::socket::bind(socket.as_fd(), link.index, 0).unwrap_or_else(|cause| panic!("cannot bind to '{interface}': {cause}"));
        Self { socket }
    }

    /// Sends one frame, from its Ethernet header on.
    pub fn send(&self, frame: &[u8]) {
        let sent = self.socket.send(frame).unwrap_or_else(|cause| panic!("cannot send a frame of {} bytes: {cause}", frame.len()));
        assert_eq!(sent, frame.len(), "a frame was sent in part");
    }
}

/// Runs `ip`.
///
/// # Panics
/// When it fails; says what was tried.
pub fn ip(args: &[&str]) {
    let output =
        Command::new("ip").args(args).output().unwrap_or_else(|cause| panic!("cannot run `ip`: {cause}; this test needs iproute2"));
    assert!(
        output.status.success(),
        "`ip {}` failed: {}; this test needs root and a kernel with network namespaces and veth",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
