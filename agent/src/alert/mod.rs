//! In: counters. Out: mails through a topic: one when a trouble begins, few while it lasts, one when it is over.
//! Never: loses a mail while the outbox can be written; mails what it cannot know; holds anything else up.
//!
//! [`rules`] says which troubles there are and when; [`fold`] makes few mails of that; [`mail`] words them; [`outbox`] keeps
//! them until the [`notifier`] has taken them; [`sns`] is the one real notifier; [`desk`] and [`sender`] do it all, side by side, and
//! wait for a disk through a [`clerk`]. [`relief`] does for an agent that died what it cannot do any more, with what the manager says
//! of its [`ending`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::host::clock::Clock;
use crate::observe::counters::Counters;

pub mod clerk;
pub mod desk;
pub mod ending;
pub mod fold;
pub mod mail;
pub mod notifier;
pub mod outbox;
pub mod relief;
pub mod rules;
pub mod sender;
pub mod sns;

use clerk::Clerk;
use desk::Desk;
pub use mail::{Mail, Place};
pub use notifier::Notifier;
use outbox::{Left, Outbox};
use sender::Sender;
pub use sns::Sns;

/// What the alerting stage needs to know; checked by `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The topic; `None`: alerts are off.
    pub topic_arn: Option<String>,
    /// No mirrored packet for this long is a trouble; `None`: it is none.
    pub silence: Option<Duration>,
    /// The part of the packets that the kernel may drop, 0 to 1.
    pub drop_ratio: f64,
    /// At most one mail in this time says that a trouble is still there.
    pub repeat: Duration,
    /// Whether a mail says that the agent has started.
    pub on_start: bool,
    /// The outbox.
    pub dir: PathBuf,
    /// What the spool may hold, bytes; 0: not known.
    pub spool_max_bytes: u64,
    /// Length of a window.
    pub window: Duration,
}

impl Settings {
    /// The account in the topic's ARN.
    #[must_use]
    pub fn account(&self) -> Option<String> {
        self.topic_arn.as_ref()?.split(':').nth(4).map(str::to_owned)
    }
}

/// Whether packets are to be recorded at this time of the wall clock.
pub type Expected = Box<dyn FnMut(u64) -> bool + Send>;

/// What alerts need to know of the agent.
pub struct Scene {
    /// Where it is.
    pub place: Place,
    /// Whether frames come from an interface.
    pub live: bool,
    /// When silence is a trouble.
    pub expected: Expected,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Where others file what the outbox does not take, if there is such a folder.
    pub spare: Option<PathBuf>,
}

/// Why a mail was not sent.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// Alerts are off.
    #[error("alerts are off: set alert.topic_arn to the ARN of an SNS topic")]
    Off,
    /// The outbox did not take it.
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    /// Neither the outbox nor the topic took it.
    #[error("the mail is lost: {unsent}; and it could not be kept: {unfiled}")]
    Lost {
        /// Why the outbox did not.
        unfiled: outbox::Error,
        /// Why the topic did not.
        unsent: notifier::Error,
    },
    /// The mail waits in the outbox.
    #[error("{cause}; the mail waits in the outbox '{}', and the agent or the next `tapfleetd alert` sends it", dir.display())]
    Waits {
        /// Where.
        dir: PathBuf,
        /// Why.
        cause: String,
    },
    /// The topic took it, and nobody gets it.
    #[error("nobody gets the mails of {topic}: it has no confirmed subscription; subscribe an address to it and confirm")]
    Nobody {
        /// Which topic.
        topic: String,
    },
}

/// How long a command waits for its mail to leave.
const COMMAND_PATIENCE: Duration = Duration::from_secs(40);

/// Watches and sends until `stop` says true or its sender is gone; then what waits gets a last try of [`sender::LAST_TRY`].
pub async fn run<N: Notifier, C: Clock + 'static>(
    settings: Settings,
    scene: Scene,
    notifier: Arc<N>,
    clock: C,
    stop: watch::Receiver<bool>,
) {
    let outbox = Outbox::new(&settings.dir);
    let left = Left { host: relief::host_name(), place: scene.place.clone(), topic_arn: settings.topic_arn.clone() };
    let spare = scene.spare.as_deref().map(Outbox::new);
    let leaving = relief::leave([Some(outbox.clone()), spare.clone()], left);
    let (unsaved, counters) = (desk::Unsaved::default(), scene.counters.clone());
    let (tell, subscribed) = watch::channel(None);
    let desk = Desk::new(&settings, scene, outbox.clone(), unsaved.clone(), clock.now());
    let spare = spare.map(|spare| Sender::new(spare, notifier.clone(), desk::Unsaved::default()).counting(counters.clone()));
    let sender = Sender::new(outbox, notifier.clone(), unsaved).counting(counters);
    let watching = desk::watch(desk, clock, subscribed.clone(), settings.on_start, stop.clone());
    let asking = sender::ask(notifier, tell, stop.clone());
    let relieving = async {
        if let Some(spare) = spare {
            spare.run(subscribed.clone(), stop.clone()).await;
        }
    };
    let all = async { tokio::join!(leaving, watching, asking, relieving, sender.run(subscribed.clone(), stop.clone())) };
    let mut told = stop.clone();
    tokio::select! {
        _ = all => {}
        // A disk that hangs does not hold the end up.
        () = async { let _ = told.wait_for(|&stop| stop).await; sleep(2 * sender::LAST_TRY).await } => {}
    }
}

/// Files a mail of a person or a program and waits until it has left. Gives its id. Where it cannot be filed it is sent without.
///
/// # Errors
/// When it could neither be filed nor sent, or has not left in time: it then waits in the outbox.
pub async fn note<N: Notifier>(
    settings: &Settings,
    place: &Place,
    subject: &str,
    message: &str,
    notifier: Arc<N>,
) -> Result<String, Error> {
    let outbox = Outbox::new(&settings.dir);
    let id = format!("note-{}", Uuid::now_v7());
    let mail = Mail::note(&id, subject, message, place);
    let to_file = mail.clone();
    let filing = move |outbox: &Outbox| {
        let mut opened = outbox.open()?;
        let state = opened.state().clone();
        opened.file(state, vec![to_file])
    };
    let waits = |cause: String| Error::Waits { dir: settings.dir.clone(), cause };
    let names = match Clerk::default().ask(&outbox, filing).await {
        Ok(names) => names,
        Err(full @ outbox::Error::Full { .. }) => return Err(full.into()),
        Err(unfiled) => {
            tracing::warn!("the mail is sent without being filed: {unfiled}");
            notifier.publish(&mail).await.map_err(|unsent| Error::Lost { unfiled, unsent })?;
            return Ok(id);
        }
    };
    let mut sender = Sender::new(outbox.clone(), notifier, desk::Unsaved::default());
    let end = Instant::now() + COMMAND_PATIENCE;
    while names.iter().any(|name| outbox.holds(name)) {
        match sender.step().await {
            sender::Step::Failed(cause) | sender::Step::Blind(cause) => return Err(waits(cause)),
            _ if Instant::now() > end => return Err(waits("another process has the right to send and has not sent it yet".into())),
            sender::Step::Sent => {}
            sender::Step::Nothing => sleep(sender::LOOK_EVERY).await,
        }
    }
    Ok(id)
}

/// Sends a mail that only says that mails arrive, and finds out whether anybody gets it. Gives its id.
///
/// # Errors
/// As [`note`]; also when nobody has confirmed a subscription. That it could not be found out is no error.
pub async fn test<N: Notifier>(settings: &Settings, place: &Place, notifier: Arc<N>) -> Result<String, Error> {
    let subject = format!("tapfleet TEST {}", place.instance);
    let id = note(settings, place, &subject, "This is a test: alerts of tapfleet reach you.", notifier.clone()).await?;
    match notifier.reaches().await {
        Ok(false) => Err(Error::Nobody { topic: settings.topic_arn.clone().unwrap_or_default() }),
        Ok(true) => Ok(id),
        Err(cause) => {
            tracing::warn!("whether anybody gets it is not known: {cause}");
            Ok(id)
        }
    }
}

#[cfg(test)]
mod tests;
