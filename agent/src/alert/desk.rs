//! Looks at the counters again and again and files the mails that this gives.
//! In: counters, the clock, the outbox. Out: mails in the outbox, or, when it cannot be written, in memory.
//! Never: waits for the network; forgets a mail because the disk is full.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch as channel;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use uuid::Uuid;

use super::fold::{Fold, Losses, State};
use super::mail::{Mail, Place};
use super::outbox::{Error, MAILS_MAX, Outbox};
use super::rules::{Limits, Sample, Trouble, Verdict, Watch};
use super::sender::LOOK_EVERY;
use super::{Scene, Settings};
use crate::host::clock::{Clock, Now, SECOND_NS};

/// How often it is said that the outbox does not work.
const SAY_EVERY_NS: u64 = 60 * SECOND_NS;

/// Mails that the outbox did not take, the oldest first.
#[derive(Clone, Default, Debug)]
pub struct Unsaved(Arc<Mutex<VecDeque<Mail>>>);

impl Unsaved {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mails().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the oldest away, to send it.
    #[must_use]
    pub fn take_first(&self) -> Option<Mail> {
        self.mails().pop_front()
    }

    /// Gives it back.
    pub fn put_first(&self, mail: Mail) {
        self.mails().push_front(mail);
    }

    fn mails(&self) -> std::sync::MutexGuard<'_, VecDeque<Mail>> {
        // A queue is whole after each of these lines.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is needed to make mails of verdicts.
pub struct Desk {
    scene: Scene,
    watch: Watch,
    book: Book,
}

/// The part of it that reads and writes files.
struct Book {
    outbox: Outbox,
    unsaved: Unsaved,
    fold: Fold,
    place: Place,
    /// The troubles as they were last seen.
    state: State,
    /// Whether the folder does not have them yet.
    state_unsaved: bool,
    said_ns: Option<u64>,
}

impl Desk {
    /// One that begins now.
    #[must_use]
    pub fn new(settings: &Settings, scene: Scene, outbox: Outbox, unsaved: Unsaved, now: Now) -> Self {
        let limits = Limits::new(settings, scene.live);
        let first = Sample::of(&scene.counters, now);
        // What this process has counted up to here was lost before it, or as it began: it belongs to the trouble that is on.
        let fold = Fold::new(limits.clone(), settings.repeat, &scene.place.instance, Losses::default());
        let place = scene.place.clone();
        let book = Book { outbox, unsaved, fold, place, state: State::default(), state_unsaved: false, said_ns: None };
        Self { scene, watch: Watch::new(limits, first), book }
    }
}

fn losses(sample: &Sample) -> Losses {
    Losses { kernel: sample.kernel_drops, spool: sample.spool_full + sample.given_way.1 }
}

/// Looks and files until `stop`. `on_start`: a mail says at once that the agent has begun.
pub async fn watch<C: Clock>(
    desk: Desk,
    clock: C,
    subscribed: channel::Receiver<Option<Result<bool, ()>>>,
    on_start: bool,
    mut stop: channel::Receiver<bool>,
) {
    let Desk { mut scene, mut watch, mut book } = desk;
    let mut notes = Vec::new();
    if on_start {
        notes.push(Mail::start(&format!("start-{}", Uuid::now_v7()), clock.now().wall_ns, &scene.place));
    }
    loop {
        let sample = Sample::of(&scene.counters, clock.now());
        let answer = subscribed.borrow().as_ref().and_then(|answer| answer.ok());
        let verdicts = watch.look(sample, (scene.expected)(sample.now.wall_ns), answer);
        let mails = std::mem::take(&mut notes);
        let entered = spawn_blocking(move || {
            book.enter(&verdicts, losses(&sample), sample.now, mails);
            book
        });
        book = match entered.await {
            Ok(book) => book,
            Err(cause) => {
                tracing::error!(%cause, "alerts have died; this is a defect, please report it");
                return;
            }
        };
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

impl Book {
    /// Takes verdicts and other mails into the outbox; what it does not take stays in memory and is tried again.
    fn enter(&mut self, verdicts: &[(Trouble, Verdict)], losses: Losses, now: Now, notes: Vec<Mail>) {
        let mut mails = notes;
        let outbox = self.outbox.clone();
        let opened = outbox.open().and_then(|opened| Ok((opened.waiting()?, opened)));
        let waiting = match &opened {
            Ok((waiting, opened)) => {
                if !self.state_unsaved {
                    self.state.clone_from(opened.state());
                }
                *waiting
            }
            Err(_) => 0,
        };
        let room = waiting + self.unsaved.len() < MAILS_MAX;
        let (news, keep) = self.fold.fold(&mut self.state, verdicts, losses, now, room);
        for news in &news {
            tracing::warn!(trouble = news.id, what = news.kind.name(), "{}: {}", news.trouble.title(), news.detail);
        }
        mails.extend(news.iter().map(|news| Mail::of(news, &self.place)));
        let kept = match opened {
            Ok((_, mut opened)) if keep || self.state_unsaved || !mails.is_empty() => {
                // While this thread has them, the sender does not send them from memory.
                let mut all: Vec<Mail> = self.unsaved.mails().drain(..).collect();
                all.append(&mut mails);
                let filed = opened.file(self.state.clone(), all.clone()).map(drop);
                if filed.is_err() {
                    mails = all;
                }
                filed
            }
            Ok(_) => Ok(()),
            Err(cause) => Err(cause),
        };
        self.state_unsaved = match kept {
            Ok(()) => false,
            Err(cause) => {
                self.unsaved.mails().extend(mails);
                self.say(&cause, now);
                true
            }
        };
    }

    fn say(&mut self, cause: &Error, now: Now) {
        if self.said_ns.is_none_or(|said| now.monotonic_ns.saturating_sub(said) >= SAY_EVERY_NS) {
            self.said_ns = Some(now.monotonic_ns);
            tracing::error!("alerts are kept in memory only: {cause}");
        }
    }
}
