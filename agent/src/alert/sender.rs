//! Sends what lies in the outbox, in order, until the notifier has taken it.
//! In: the outbox, a notifier. Out: mails that have left. Never: sends beside another process; removes what was not taken;
//! sends while it is known that nobody would get it. A mail leaves twice where it cannot be known, or not be kept, that it has left:
//! after a reply that got lost, and when the process ended before the mail was out of the outbox.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::clerk::Clerk;
use super::desk::Unsaved;
use super::mail::Mail;
use super::notifier::Notifier;
use super::outbox::{Outbox, Sending};
use crate::observe::counters::Counters;

/// How often the outbox and the counters are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a stopping process gives mails that still wait; the next one sends what is left.
pub const LAST_TRY: Duration = Duration::from_secs(1);

/// Bounds of the wait after a failure; in between it is drawn by lot, so that a fleet does not come back as one.
const WAIT_MIN: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long mails wait at most for the first answer to whether anybody would get them.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How often it is asked whether anybody gets the mails: while somebody does, while nobody does, and after no answer.
const ASK_SATISFIED: Duration = Duration::from_secs(300);
const ASK_NOBODY: Duration = Duration::from_secs(10);
const ASK_UNANSWERED: Duration = Duration::from_secs(60);

/// Failures are logged at most this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Whether anybody gets the mails: not asked yet, no answer, or the answer.
pub type Answer = Option<Result<bool, ()>>;

/// Asks the topic again and again until `stop`.
pub async fn ask<N: Notifier>(notifier: Arc<N>, tell: watch::Sender<Answer>, mut stop: watch::Receiver<bool>) {
    let mut said = None;
    loop {
        let answer = tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            answer = notifier.reaches() => answer,
        };
        let wait = match &answer {
            Ok(true) => ASK_SATISFIED,
            Ok(false) => ASK_NOBODY,
            Err(_) => ASK_UNANSWERED,
        };
        // Each kind of answer is said once, not each time.
        let kind = answer.as_ref().copied().map_err(|cause| cause.cause.clone());
        if said.as_ref() != Some(&kind) {
            match &answer {
                Ok(true) => tracing::info!("alerts reach a confirmed subscription"),
                Ok(false) => tracing::error!("alerts wait in the outbox: the topic has no confirmed subscription"),
                Err(cause) => tracing::warn!("whether anybody gets the alerts is not known: {cause}"),
            }
            said = Some(kind);
        }
        tell.send_replace(Some(answer.map_err(drop)));
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = sleep(wait) => {}
        }
    }
}

/// How far one step got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A mail has left.
    Sent,
    /// There is none, or another process has the right to send.
    Nothing,
    /// It was not taken, and why.
    Failed(String),
    /// The outbox cannot be looked at, and why; in memory there is none.
    Blind(String),
}

/// Sends, one mail after the other.
pub struct Sender<N> {
    outbox: Outbox,
    notifier: Arc<N>,
    unsaved: Unsaved,
    clerk: Clerk,
    right: Option<Sending>,
    /// Mails that have left and could not be removed: they are not sent again.
    stuck: BTreeSet<String>,
    said: Option<Instant>,
    /// Where failures are counted.
    counters: Option<Arc<Counters>>,
}

impl<N: Notifier> Sender<N> {
    /// One that takes the right to send when it first can, and keeps it.
    #[must_use]
    pub fn new(outbox: Outbox, notifier: Arc<N>, unsaved: Unsaved) -> Self {
        let (clerk, stuck) = (Clerk::default(), BTreeSet::new());
        Self { outbox, notifier, unsaved, clerk, right: None, stuck, said: None, counters: None }
    }

    /// The same, which counts its failures.
    #[must_use]
    pub fn counting(self, counters: Arc<Counters>) -> Self {
        Self { counters: Some(counters), ..self }
    }

    /// Sends until `stop`, then for at most [`LAST_TRY`].
    pub async fn run(mut self, answer: watch::Receiver<Answer>, mut stop: watch::Receiver<bool>) {
        let begun = Instant::now();
        let held = || match *answer.borrow() {
            None => begun.elapsed() < ANSWER_WAIT,
            Some(answer) => answer == Ok(false),
        };
        let mut failures = 0;
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => break,
                () = sleep(wait) => {}
            }
            if held() {
                wait = LOOK_EVERY.min(ANSWER_WAIT / 100);
                continue;
            }
            // What is on its way when the order to stop comes is not cut off at once: it would be sent twice.
            let done = {
                let mut step = std::pin::pin!(self.step());
                tokio::select! {
                    done = &mut step => Some(done),
                    () = told(&mut stop) => timeout(LAST_TRY, step).await.ok(),
                }
            };
            match done {
                None => return,
                Some(Step::Sent) => (failures, wait) = (0, Duration::ZERO),
                // What comes into memory next is not to wait for a disk that does not get well.
                Some(Step::Nothing | Step::Blind(_)) => wait = LOOK_EVERY,
                Some(Step::Failed(cause)) => {
                    wait = jitter(failures);
                    failures = failures.saturating_add(1);
                    self.say(&cause);
                }
            }
        }
        let end = Instant::now() + LAST_TRY;
        // What is not done then is done by the next process.
        let _ = timeout_at(end, async { while !held() && self.step().await == Step::Sent {} }).await;
    }

    /// Sends the first mail that waits.
    pub async fn step(&mut self) -> Step {
        match self.first().await {
            Ok(Some((name, mail))) => self.send_filed(name, &mail).await,
            Ok(None) => self.publish_unsaved().await,
            // The disk is of no use, the network may be.
            Err(cause) => match self.publish_unsaved().await {
                Step::Nothing => Step::Blind(cause),
                step => step,
            },
        }
    }

    /// Whether this process has the right to send; takes it if nobody else has it.
    ///
    /// # Errors
    /// When the outbox cannot be used.
    pub async fn may_send(&mut self) -> Result<bool, String> {
        if self.right.is_none() {
            self.right = self.clerk.ask(&self.outbox, Outbox::sending).await.map_err(|cause| cause.to_string())?;
        }
        Ok(self.right.is_some())
    }

    async fn first(&mut self) -> Result<Option<(String, Mail)>, String> {
        if !self.may_send().await? {
            return Ok(None);
        }
        let stuck = self.stuck.clone();
        self.clerk.ask(&self.outbox, move |outbox| outbox.open()?.first(&stuck)).await.map_err(|cause| cause.to_string())
    }

    async fn send_filed(&mut self, name: String, mail: &Mail) -> Step {
        // The outbox had not said that it took it, so it left from memory.
        if !self.unsaved.has_left(mail)
            && let Err(cause) = self.publish(mail).await
        {
            return Step::Failed(cause);
        }
        let file = name.clone();
        if let Err(cause) = self.clerk.ask(&self.outbox, move |outbox| outbox.remove(&file)).await {
            tracing::error!("a mail that was sent stays in the outbox, and the next process will send it again: {cause}");
            self.stuck.insert(name);
        }
        Step::Sent
    }

    async fn publish_unsaved(&mut self) -> Step {
        let Some(mail) = self.unsaved.first() else { return Step::Nothing };
        match self.publish(&mail).await {
            Ok(()) => {
                self.unsaved.left(&mail);
                Step::Sent
            }
            Err(cause) => Step::Failed(cause),
        }
    }

    async fn publish(&self, mail: &Mail) -> Result<(), String> {
        if let Err(cause) = self.notifier.publish(mail).await {
            if let Some(counters) = &self.counters {
                counters.mail_failures.add(1);
            }
            return Err(cause.to_string());
        }
        tracing::info!(id = mail.id, what = mail.kind.name(), "a mail has left: {}", mail.subject);
        Ok(())
    }

    fn say(&mut self, cause: &str) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!("a mail waits in the outbox: {cause}; trying again");
        }
    }
}

/// Waits for the order to stop, or for the end of who gives it.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

/// A wait drawn by lot between [`WAIT_MIN`] and a bound that doubles with each failure, up to [`WAIT_MAX`].
fn jitter(failures: u32) -> Duration {
    let bound = WAIT_MIN.saturating_mul(2u32.saturating_pow(failures.saturating_add(1))).min(WAIT_MAX);
    // The standard library's hash keys are random, and different each time.
    let lot = RandomState::new().build_hasher().finish() >> 32;
    WAIT_MIN + (bound - WAIT_MIN).mul_f64(lot as f64 / f64::from(u32::MAX))
}
