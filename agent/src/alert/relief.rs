//! For an agent that died: files how, and sends its mails while it stays down.
//! In: the outbox with what the agent left there, its ending. Out: a trouble in the outbox; mails that have left.
//! Never: needs the network or the instance metadata to file; sends beside another process.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::clerk::{self, Clerk};
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

/// What the last agent left for who files or sends after it; empty when there is nothing. The `spare` outbox is asked first: its disk
/// cannot be ill. Where it was holds only on its host: a volume or an image may have come from another.
#[must_use]
pub fn left(settings: &Settings, spare: Option<&Path>) -> Left {
    let places = spare.into_iter().chain([settings.dir.as_path()]);
    let left = places.filter_map(|dir| Outbox::new(dir).left()).next().unwrap_or_default();
    if left.host == host_name() { left } else { Left { place: Place::default(), ..left } }
}

/// The name of this host.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Leaves beside the mails what those who file them without the network cannot find out.
pub(super) async fn leave(outboxes: [Option<Outbox>; 2], left: Left) {
    for outbox in outboxes.into_iter().flatten() {
        let left = left.clone();
        if let Err(cause) = Clerk::default().ask(&outbox, move |outbox| outbox.leave(&left)).await {
            tracing::warn!("mails about a dead agent may not say where it was: {cause}");
        }
    }
}

/// Files a trouble: a mail when it begins, or when a repeat of it is due. Sends nothing; a matter of milliseconds.
///
/// # Errors
/// When neither the outbox nor the `spare` one can be locked or written.
pub fn file(
    settings: &Settings,
    spare: Option<&Path>,
    place: &Place,
    trouble: Trouble,
    detail: &str,
    now: Now,
) -> Result<(), outbox::Error> {
    let (known, place, detail) = (settings.clone(), place.clone(), detail.to_owned());
    somewhere(settings, spare, move |outbox| {
        let mut opened = outbox.open()?;
        let state = opened.state().clone();
        fold_in(&mut opened, state, &known, &place, (trouble, detail.clone()), now)
    })
}

/// Files that the agent's service ended, unless the agent has said so itself. When it turns out to fail for good by another cause than
/// the one that was told, a repeat says so at once.
///
/// # Errors
/// As [`file`].
pub fn file_ending(settings: &Settings, spare: Option<&Path>, place: &Place, ending: &Ending, now: Now) -> Result<(), outbox::Error> {
    let (known, place, ending) = (settings.clone(), place.clone(), ending.clone());
    somewhere(settings, spare, move |outbox| {
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
        fold_in(&mut opened, state, &known, &place, (Trouble::AgentDied, ending.detail()), now)
    })
}

/// Has it filed in the outbox of the settings, or, where that does not work or not soon, in the spare one.
fn somewhere(
    settings: &Settings,
    spare: Option<&Path>,
    filing: impl Fn(&Outbox) -> Result<(), outbox::Error> + Send + Sync + 'static,
) -> Result<(), outbox::Error> {
    let (filing, (tell, told)) = (Arc::new(filing), mpsc::channel());
    let (outbox, first) = (Outbox::new(&settings.dir), filing.clone());
    // A thread, as a disk that hangs gives nothing back; a process that ends leaves it behind.
    thread::spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = tell.send(first(&outbox));
    });
    let filed = told.recv_timeout(clerk::PATIENCE).unwrap_or_else(|_| Err(outbox::Error::Hangs { dir: settings.dir.clone() }));
    match (filed, spare) {
        (Err(cause), Some(spare)) => {
            tracing::error!("a trouble is filed in '{}' instead: {cause}", spare.display());
            filing(&Outbox::new(spare))
        }
        (filed, _) => filed,
    }
}

fn fold_in(
    opened: &mut Opened,
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
    let mut clerk = Clerk::default();
    loop {
        match clerk.ask(&outbox, Outbox::oldest).await? {
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
            Step::Failed(cause) | Step::Blind(cause) => return Err(waits(cause)),
        }
    }
}

#[cfg(test)]
mod tests;
