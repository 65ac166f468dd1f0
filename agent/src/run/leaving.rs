//! What the lifecycle's orders mean for the stages, and the last wait for S3 of a machine that goes down.
//! In: orders, the spool folder. Out: shorter windows, the end of capture, more time from the service manager.
//! Never: waits for longer than the settings allow; takes the spool for empty when it cannot be read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::host::lifecycle::{self, Agent};
use crate::host::systemd;
use crate::observe::counters::Counters;
use crate::record::window::Rotation;
use crate::spool::Folder;

/// How often a machine that goes down looks whether its spool is empty.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is asked of the service manager at each look.
const MORE_TIME: Duration = Duration::from_secs(30);

/// So long before it gives up a person is told what stays behind: the mail must still leave.
const TELL_BEFORE: Duration = Duration::from_secs(10);

/// The agent as the lifecycle sees it.
pub(super) struct Leaver {
    rotation: Rotation,
    settings: lifecycle::Settings,
    folder: Folder,
    end: Notify,
    anew: Notify,
    closed: AtomicBool,
}

impl Leaver {
    pub(super) fn new(rotation: Rotation, settings: lifecycle::Settings, folder: Folder) -> Self {
        Self { rotation, settings, folder, end: Notify::new(), anew: Notify::new(), closed: AtomicBool::new(false) }
    }

    /// Done when capture is to end.
    pub(super) async fn ends(&self) {
        self.end.notified().await;
    }

    /// Every segment is closed: from now on the spool only gets emptier.
    pub(super) fn closed(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Done when the instance stays after all.
    pub(super) async fn begins_anew(&self) {
        self.anew.notified().await;
    }
}

impl Agent for Leaver {
    fn shorten(&self, short: bool) {
        let window = self.settings.window_seconds;
        self.rotation.set(if short { self.settings.rotate_seconds.min(window) } else { window });
    }

    fn end(&self) {
        self.end.notify_one();
    }

    fn unsent(&self) -> Option<usize> {
        self.closed.load(Ordering::Acquire).then(|| unsent(&self.folder)).flatten()
    }

    fn begin_anew(&self) {
        self.anew.notify_one();
    }
}

fn unsent(folder: &Folder) -> Option<usize> {
    folder.segments().ok().map(|segments| segments.len())
}

/// Waits until S3 has confirmed all that the spool holds, at most `limit`; the service manager waits too.
pub(super) async fn drain(folder: &Folder, limit: Duration, counters: &Counters) {
    let mut end = Instant::now() + limit;
    let mut stuck_since = None;
    loop {
        let left = unsent(folder);
        let now = Instant::now();
        if left == Some(0) {
            counters.leaving_unsent.set(0);
            return tracing::info!("everything is in S3; the machine may go");
        }
        let stuck = left.is_some_and(|left| left as u64 <= counters.segments_poison.get());
        stuck_since = stuck.then(|| stuck_since.unwrap_or(now));
        if let Some(since) = stuck_since.filter(|since| now.duration_since(*since) >= lifecycle::STUCK) {
            // Nothing more can be sent; only the mail must still leave.
            end = end.min(since + lifecycle::STUCK + TELL_BEFORE);
        }
        if now >= end {
            return tracing::error!(segments = left, "the machine goes down and what the spool holds stays on its volume");
        }
        counters.leaving_unsent.set(u64::from(now + TELL_BEFORE >= end));
        systemd::more_time(MORE_TIME);
        systemd::status(&format!("the machine goes down; {} segments are not in S3 yet", left.unwrap_or_default()));
        sleep(LOOK_EVERY.min(end - now)).await;
    }
}
