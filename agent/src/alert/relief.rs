//! For an agent that died: files how, and sends its mails while it stays down.
//! In: the outbox with what the agent left there, its ending. Out: a trouble in the outbox; mails that have left.
//! Never: needs the network or the instance metadata to file; sends beside another process.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::desk::Unsaved;
use super::ending::Ending;
use super::fold::{Fold, Losses, State};
use super::mail::{Mail, Place};
use super::notifier::Notifier;
use super::outbox::{self, Left, MAILS_MAX, Opened, Outbox};
use super::rules::{Limits, Trouble, Verdict};
use super::sender::{LAST_TRY, LOOK_EVERY, Sender, Step};
use super::{Error, Settings};
use crate::host::clock::Now;

/// What the last agent left for who files or sends after it; empty when there is nothing. Where it was holds only on its host: a
/// volume or an image may have come from another.
#[must_use]
pub fn left(settings: &Settings) -> Left {
    let left = Outbox::new(&settings.dir).left().unwrap_or_default();
    if left.host == host_name() { left } else { Left { place: Place::default(), ..left } }
}

/// The name of this host.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Leaves beside the mails what those who file them without the network cannot find out.
pub(super) async fn leave(outbox: &Outbox, left: Left) {
    let outbox = outbox.clone();
    match spawn_blocking(move || outbox.leave(&left)).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => tracing::warn!("mails about a dead agent may not say where it was: {cause}"),
        Err(cause) => tracing::error!(%cause, "mails about a dead agent may not say where it was"),
    }
}

/// Files a trouble: a mail when it begins, or when a repeat of it is due. Sends nothing; a matter of milliseconds.
///
/// # Errors
/// When the outbox cannot be locked or written.
pub fn file(settings: &Settings, place: &Place, trouble: Trouble, detail: String, now: Now) -> Result<(), outbox::Error> {
    let outbox = Outbox::new(&settings.dir);
    let mut opened = outbox.open()?;
    let state = opened.state().clone();
    fold_in(&mut opened, state, settings, place, (trouble, detail), now)
}

/// Files that the agent's service ended, unless the agent has said so itself. When it turns out to fail for good by another cause than
/// the one that was told, a repeat says so at once.
///
/// # Errors
/// As [`file`].
pub fn file_ending(settings: &Settings, place: &Place, ending: &Ending, now: Now) -> Result<(), outbox::Error> {
    let outbox = Outbox::new(&settings.dir);
    let mut opened = outbox.open()?;
    let mut state = opened.state().clone();
    if ending.had_last_words() && state.open.contains_key(Trouble::CaptureFailed.name()) {
        return Ok(());
    }
    if let Some(open) = state.open.get_mut(Trouble::AgentDied.name())
        && ending.is_worse_than(&open.detail)
    {
        (open.detail, open.told_ns) = (ending.detail(), 0);
    }
    fold_in(&mut opened, state, settings, place, (Trouble::AgentDied, ending.detail()), now)
}

fn fold_in(
    opened: &mut Opened<'_>,
    mut state: State,
    settings: &Settings,
    place: &Place,
    (trouble, detail): (Trouble, String),
    now: Now,
) -> Result<(), outbox::Error> {
    let room = opened.waiting()? < MAILS_MAX;
    let limits = Limits::new(settings, true);
    let mut fold = Fold::new(limits, settings.repeat, &place.instance, Losses::default());
    let (news, keep) = fold.fold(&mut state, &[(trouble, Verdict::Holds(detail))], Losses::default(), now, room);
    let mails = news.iter().map(|news| Mail::of(news, place)).collect();
    if keep { opened.file(state, mails).map(drop) } else { Ok(()) }
}

/// Tries to send what waits for at most [`LAST_TRY`].
pub async fn last_try<N: Notifier>(settings: &Settings, notifier: Arc<N>) {
    let mut sender = Sender::new(Outbox::new(&settings.dir), notifier, Unsaved::default());
    let _ = timeout(LAST_TRY, async { while sender.step().await == Step::Sent {} }).await;
}

/// Sends what has waited for `grace` or longer, and all that waits behind it, if no other process has the right to. Gives how many.
///
/// # Errors
/// When the outbox cannot be read, or the topic does not take a mail: what has not left waits for the next try.
pub async fn relieve<N: Notifier>(settings: &Settings, grace: Duration, notifier: Arc<N>) -> Result<usize, Error> {
    let outbox = Outbox::new(&settings.dir);
    let waits = |cause: String| Error::Waits { dir: settings.dir.clone(), cause };
    loop {
        let outbox = outbox.clone();
        match spawn_blocking(move || outbox.oldest()).await.map_err(|cause| waits(cause.to_string()))?? {
            None => return Ok(0),
            Some(age) if age >= grace => break,
            // Who sends in the meantime spares us the rest.
            Some(age) => sleep((grace - age).min(LOOK_EVERY)).await,
        }
    }
    let mut sender = Sender::new(outbox, notifier.clone(), Unsaved::default());
    if !sender.may_send().await.map_err(waits)? {
        return Ok(0);
    }
    if notifier.reaches().await == Ok(false) {
        return Err(Error::Nobody { topic: settings.topic_arn.clone().unwrap_or_default() });
    }
    let mut sent = 0;
    loop {
        match sender.step().await {
            Step::Sent => sent += 1,
            Step::Nothing => return Ok(sent),
            Step::Failed(cause) => return Err(waits(cause)),
        }
    }
}

#[cfg(test)]
mod tests;
