//! Looks at the counters again and again and files the mails that this gives.
//! In: counters, the clock, the outbox. Out: mails in the outbox, or, while it cannot be used, in memory.
//! Never: waits for the network, or for a disk that does not answer; forgets a mail or a trouble because the disk is ill.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch as channel;
use tokio::time::sleep;
use uuid::Uuid;

use super::clerk::Clerk;
use super::fold::{Fold, Kind, Losses, State};
use super::mail::{Mail, Place};
use super::outbox::{Error, MAILS_MAX, Opened, Outbox};
use super::rules::{Limits, Sample, Trouble, Verdict, Watch};
use super::sender::LOOK_EVERY;
use super::{Scene, Settings};
use crate::host::clock::{Clock, Now, SECOND_NS};

/// How often it is said that the outbox does not work.
const SAY_EVERY_NS: u64 = 60 * SECOND_NS;

/// Of so many mails that left from memory it is remembered that they did: the outbox may yet turn out to have them too.
const LEFT_MAX: usize = 4 * MAILS_MAX;

/// Mails that the outbox does not have, as far as is known, the oldest first. Desk and sender share them.
#[derive(Clone, Default, Debug)]
pub struct Unsaved(Arc<Mutex<Memory>>);

#[derive(Default, Debug)]
struct Memory {
    mails: VecDeque<Mail>,
    /// So many of the first are just being filed: they are not sent from here meanwhile.
    filing: usize,
    /// Keys of mails that left from here.
    left: VecDeque<String>,
}

impl Unsaved {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory().mails.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes more.
    pub fn add(&self, mails: Vec<Mail>) {
        self.memory().mails.extend(mails);
    }

    /// The oldest that is to be sent from here. It stays until it [`has left`](Self::left): a process that files them meanwhile files
    /// it too.
    #[must_use]
    pub fn first(&self) -> Option<Mail> {
        let memory = self.memory();
        memory.mails.get(memory.filing).cloned()
    }

    /// One has left.
    pub fn left(&self, mail: &Mail) {
        let mut memory = self.memory();
        if let Some(place) = memory.mails.iter().position(|kept| kept.key == mail.key) {
            memory.mails.remove(place);
            memory.filing -= usize::from(place < memory.filing);
        }
        memory.left.push_back(mail.key.clone());
        if memory.left.len() > LEFT_MAX {
            memory.left.pop_front();
        }
    }

    /// Whether one that lies in the outbox has left from here.
    #[must_use]
    pub fn has_left(&self, mail: &Mail) -> bool {
        !mail.key.is_empty() && self.memory().left.contains(&mail.key)
    }

    /// All of them, to be filed.
    fn begin_filing(&self) -> Vec<Mail> {
        let mut memory = self.memory();
        memory.filing = memory.mails.len();
        memory.mails.iter().cloned().collect()
    }

    /// Whether the outbox has them now. If that is not known they go on to be here, and the outbox does not take a mail twice.
    fn end_filing(&self, filed: bool) {
        let mut memory = self.memory();
        let filing = std::mem::take(&mut memory.filing);
        if filed {
            memory.mails.drain(..filing);
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // It is whole after each of these lines.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is needed to make mails of verdicts.
pub struct Desk {
    scene: Scene,
    watch: Watch,
    book: Book,
}

/// The part of it that knows the troubles and files.
struct Book {
    outbox: Outbox,
    spare: Option<Spare>,
    unsaved: Unsaved,
    clerk: Clerk,
    fold: Fold,
    place: Place,
    /// The troubles as they were last seen.
    state: State,
    /// While the outbox does not have them: the ids of those that ended since.
    apart: Option<BTreeSet<String>>,
    said_ns: Option<u64>,
}

/// Where the service manager's hooks have filed what the outbox did not take. It is emptied when the outbox has its troubles, not before.
struct Spare {
    outbox: Outbox,
    /// Whether its troubles are known here.
    adopted: bool,
    /// When it may be asked again, monotonic.
    due_ns: u64,
}

impl Spare {
    /// Whether it is asked now; not more often than it is said that this failed.
    fn is_due(&mut self, now: Now) -> bool {
        let due = now.monotonic_ns >= self.due_ns;
        if due {
            self.due_ns = now.monotonic_ns.saturating_add(SAY_EVERY_NS);
        }
        due
    }
}

impl Desk {
    /// One that begins now.
    #[must_use]
    pub fn new(settings: &Settings, scene: Scene, outbox: Outbox, unsaved: Unsaved, now: Now) -> Self {
        let limits = Limits::new(settings, scene.live);
        let first = Sample::of(&scene.counters, now);
        // What this process has counted up to here was lost before it, or as it began: it belongs to the trouble that is on.
        let fold = Fold::new(limits.clone(), settings.repeat, &scene.place.instance, Losses::default());
        let spare = scene.spare.as_deref().filter(|dir| dir.exists()).map(Outbox::new);
        let spare = spare.map(|outbox| Spare { outbox, adopted: false, due_ns: 0 });
        let place = scene.place.clone();
        let (clerk, state) = (Clerk::default(), State::default());
        let book = Book { outbox, spare, unsaved, clerk, fold, place, state, apart: None, said_ns: None };
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
    if on_start {
        book.unsaved.add(vec![Mail::start(&format!("start-{}", Uuid::now_v7()), clock.now().wall_ns, &scene.place)]);
    }
    loop {
        let sample = Sample::of(&scene.counters, clock.now());
        let answer = subscribed.borrow().as_ref().and_then(|answer| answer.ok());
        let verdicts = watch.look(sample, (scene.expected)(sample.now.wall_ns), answer);
        let waiting = book.enter(&verdicts, losses(&sample), sample.now).await;
        scene.counters.mails_waiting.set(waiting as u64);
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

impl Book {
    /// Takes over the troubles of the spare outbox; its mails are sent from there.
    async fn adopt(&mut self, now: Now) {
        let Some(spare) = &mut self.spare else { return };
        if spare.adopted || !spare.is_due(now) {
            return;
        }
        match self.clerk.ask(&spare.outbox, |spare| Ok(spare.open()?.state().clone())).await {
            Ok(theirs) => {
                (spare.adopted, spare.due_ns) = (true, 0);
                if !theirs.open.is_empty() {
                    let ended = self.apart.get_or_insert_default();
                    join(&mut self.state, &theirs, ended);
                }
            }
            Err(cause) => tracing::warn!("what was filed beside the outbox is not known yet, nor told to be over: {cause}"),
        }
    }

    /// The outbox has them: the spare one need not.
    async fn release_spare(&mut self, now: Now) {
        let Some(spare) = &mut self.spare else { return };
        if !spare.adopted || !spare.is_due(now) {
            return;
        }
        match self.clerk.ask(&spare.outbox, |spare| spare.open()?.file(State::default(), Vec::new())).await {
            Ok(_) => self.spare = None,
            Err(cause) => tracing::warn!("what was filed beside the outbox is still there, and would be told of again: {cause}"),
        }
    }

    /// Takes verdicts into the outbox; what it does not take stays in memory and is tried again. Gives how many mails waited, as far as
    /// is known.
    async fn enter(&mut self, verdicts: &[(Trouble, Verdict)], losses: Losses, now: Now) -> usize {
        self.adopt(now).await;
        let opened = self.clerk.ask(&self.outbox, |outbox| outbox.open().and_then(|opened| Ok((opened.waiting()?, opened)))).await;
        let waiting = match &opened {
            Ok((waiting, opened)) => {
                self.rejoin(opened.state());
                *waiting
            }
            Err(_) => 0,
        };
        let waiting = waiting + self.unsaved.len();
        let room = waiting < MAILS_MAX;
        let (news, keep) = self.fold.fold(&mut self.state, verdicts, losses, now, room);
        for news in &news {
            tracing::warn!(trouble = news.id, what = news.kind.name(), "{}: {}", news.trouble.title(), news.detail);
        }
        self.unsaved.add(news.iter().map(|news| Mail::of(news, &self.place)).collect());
        let kept = match opened {
            Ok((_, opened)) if keep || self.apart.is_some() || !self.unsaved.is_empty() => self.keep(opened).await,
            Ok(_) => Ok(()),
            Err(cause) => Err(cause),
        };
        match kept {
            Ok(()) => {
                self.apart = None;
                self.release_spare(now).await;
            }
            Err(cause) => {
                let ended = news.into_iter().filter(|news| news.kind == Kind::Over).map(|news| news.id);
                self.apart.get_or_insert_default().extend(ended);
                self.say(&cause, now);
            }
        }
        waiting
    }

    /// Brings together what is known here and what the folder has: other processes file there too. What is only in memory is newer.
    fn rejoin(&mut self, folder: &State) {
        match &self.apart {
            None => self.state.clone_from(folder),
            Some(ended) => join(&mut self.state, folder, ended),
        }
    }

    async fn keep(&mut self, mut opened: Opened) -> Result<(), Error> {
        let (state, mails) = (self.state.clone(), self.unsaved.begin_filing());
        let kept = self.clerk.ask(&self.outbox, move |_| opened.file(state, mails).map(drop)).await;
        self.unsaved.end_filing(kept.is_ok());
        kept
    }

    fn say(&mut self, cause: &Error, now: Now) {
        if self.said_ns.is_none_or(|said| now.monotonic_ns.saturating_sub(said) >= SAY_EVERY_NS) {
            self.said_ns = Some(now.monotonic_ns);
            tracing::error!("alerts are kept in memory only: {cause}");
        }
    }
}

/// Adds what another state has, but for what has `ended` since.
fn join(state: &mut State, theirs: &State, ended: &BTreeSet<String>) {
    for (name, theirs) in &theirs.open {
        if ended.contains(&theirs.id) {
            continue;
        }
        match state.open.get_mut(name) {
            None => _ = state.open.insert(name.clone(), theirs.clone()),
            Some(ours) if ours.id == theirs.id => {}
            // It was on before the other could be read, and was told under that id first.
            Some(ours) => {
                let told_as = format!("{} (also told as {})", theirs.detail, ours.id);
                let (told_ns, losses) = (ours.told_ns, ours.losses);
                ours.clone_from(theirs);
                (ours.detail, ours.told_ns) = (told_as, told_ns);
                ours.losses.add(losses);
            }
        }
    }
    for (name, theirs) in &theirs.ended {
        let ours = state.ended.entry(name.clone()).or_default();
        ours.extend(theirs.iter().filter(|at| !ours.contains(at)).copied().collect::<Vec<_>>());
        ours.sort_unstable();
    }
}
