//! In: what the agent is about. Out: a word to the service manager, and what it kept for us.
//! Never: fails, waits for a manager that does not listen, or does anything outside systemd.
//! Spec: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemctl(1); systemd.exec(5) $SYSTEMD_EXEC_PID, $RUNTIME_DIRECTORY.

use std::env;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use sd_notify::NotifyState;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Answers `stopping` from the moment on in which the shutdown is queued (systemctl(1), "is-system-running").
const ASK: &str = "systemctl";

const SOCKET: &str = "NOTIFY_SOCKET";

/// How often what must arrive is sent again while the manager's queue is full, and after which pause.
const TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The agent takes frames.
pub fn ready() {
    say(&NotifyState::Ready.to_string(), None, TRIES);
}

/// The agent has begun to stop.
pub fn stopping() {
    say(&NotifyState::Stopping.to_string(), None, 1);
}

/// The stop takes longer: the manager waits for so long from now on, at least. To be said again within that time.
pub fn more_time(time: Duration) {
    say(&NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)).to_string(), None, TRIES);
}

/// One line for `systemctl status`; what follows a line break is left out, as it would be a message of its own.
pub fn status(text: &str) {
    say(&NotifyState::Status(text.lines().next().unwrap_or_default()).to_string(), None, 1);
}

/// The agent is well: feeds the watchdog.
pub fn alive() {
    say(&NotifyState::Watchdog.to_string(), None, 1);
}

/// Within which time [`alive`] must be said again, if the manager asks for it.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Whether there is a manager that listens.
#[must_use]
pub fn listens() -> bool {
    env::var_os(SOCKET).is_some_and(|name| !name.is_empty())
}

/// Whether a service manager started this very process, not a shell or a test that it started.
#[must_use]
pub fn started_us() -> bool {
    env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// A folder in memory that the manager made for this service (`RuntimeDirectory=`), if it did; it goes with the boot.
#[must_use]
pub fn runtime_folder() -> Option<PathBuf> {
    let folders = env::var_os("RUNTIME_DIRECTORY")?;
    // Several are separated by colons.
    env::split_paths(&folders).next().filter(|folder| folder.is_absolute())
}

/// Has the manager keep a copy of the descriptor and pass it to the next process, whatever becomes of this one. A packet socket of
/// a removed interface is readable for ever, so the manager shall not look at it (FDPOLL=0).
pub fn keep(name: &str, descriptor: BorrowedFd<'_>) {
    say(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), Some(descriptor), TRIES);
}

/// Has the manager close its copies of that name.
pub fn forget(name: &str) {
    say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None, TRIES);
}

/// Whether the machine shuts down or reboots, by the manager's own word; `false` where it cannot be told. Takes at most `patience`.
pub async fn shuts_down(patience: Duration) -> bool {
    if !listens() {
        return false;
    }
    let ask = || Command::new(ASK).arg("is-system-running").stdin(Stdio::null()).stderr(Stdio::null()).output();
    match timeout(patience, spawn_blocking(ask)).await {
        Ok(Ok(Ok(answer))) if !answer.stdout.is_empty() => answer.stdout.trim_ascii() == b"stopping",
        asked => {
            tracing::warn!(
                ?asked,
                ?patience,
                "whether the machine shuts down cannot be told by `{ASK} is-system-running`: taken for a restart"
            );
            false
        }
    }
}

/// Numbers and names of the descriptors that the manager passed to this process.
#[must_use]
pub fn passed() -> Vec<(RawFd, String)> {
    match sd_notify::listen_fds_with_names() {
        Ok(descriptors) => descriptors.collect(),
        Err(cause) => {
            tracing::warn!(%cause, "what the service manager kept is left alone: its LISTEN_FDS and LISTEN_FDNAMES are not understood");
            Vec::new()
        }
    }
}

/// Nothing depends on the message: without `NOTIFY_SOCKET` it goes nowhere, and a manager that does not listen is no reason to stop.
fn say(text: &str, descriptor: Option<BorrowedFd<'_>>, tries: u32) {
    let mut left = tries;
    loop {
        left = left.saturating_sub(1);
        match send(text, descriptor) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock && left > 0 => thread::sleep(TRY_AGAIN),
            Err(cause) if tries > 1 => return tracing::warn!(%cause, text, "the service manager could not be told"),
            Err(cause) => return tracing::debug!(%cause, text, "the service manager could not be told"),
            Ok(()) => return,
        }
    }
}

fn send(text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(name) = env::var_os(SOCKET).filter(|name| !name.is_empty()) else { return Ok(()) };
    let to = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(name.as_os_str()),
    }?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg_addr(&socket, &to, &[IoSlice::new(text.as_bytes())], &mut ancillary, flags)?;
    Ok(())
}
