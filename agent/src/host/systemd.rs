//! In: what the agent is about. Out: a word to the service manager. Never: fails, or does anything outside systemd.
//! Spec: sd_notify(3).

use sd_notify::NotifyState;

/// The agent takes frames.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// The agent has begun to stop.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// One line for `systemctl status`; what follows a line break is left out, as it would be a message of its own.
pub fn status(text: &str) {
    notify(NotifyState::Status(text.lines().next().unwrap_or_default()));
}

/// Nothing depends on the message: without `NOTIFY_SOCKET` it goes nowhere, and a manager that does not listen is no reason to stop.
fn notify(state: NotifyState<'_>) {
    if let Err(cause) = sd_notify::notify(&[state]) {
        tracing::debug!(%cause, "the service manager could not be told");
    }
}
