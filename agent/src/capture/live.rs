//! In: what an engine of an interface gives, the kernel's and the other members' word on the interface. Out: frames, quiet, or the end.
//! Never: says that the end is there before everything the kernel took has been given.
//!
//! [`take`] is the one loop of the engines that take from an interface; [`Hold`] is what each of them holds of it.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::interface::Watch;
use super::ring::{Membership, SETTLED};
use super::{Bytes, Error, Taken};
use crate::host::clock::{Clock, SystemClock};
use crate::host::nic::Link;

/// Why nothing more comes.
#[derive(Debug)]
enum Ending {
    /// We were told to take no more, or another process goes on.
    Told,
    /// The interface is gone.
    Gone(String),
}

/// An engine's hold on its interface.
#[derive(Debug)]
pub(super) struct Hold {
    membership: Membership,
    watch: Watch,
    ending: Option<Ending>,
    /// What no frame comes for this long after, once there is an ending, is the end.
    patience: Duration,
    still_since: Instant,
}

impl Hold {
    pub fn new(membership: Membership, link: Link) -> Self {
        Self { membership, watch: Watch::new(link), ending: None, patience: SETTLED, still_since: Instant::now() }
    }

    /// The interface's exact name.
    pub fn name(&self) -> &str {
        self.watch.name()
    }

    /// Notes that something came.
    pub fn came(&mut self) {
        self.still_since = Instant::now();
    }

    pub fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    /// The kernel takes nothing more; what it took is still given, then comes the end.
    pub fn refused(&mut self) {
        self.end(Ending::Told, SETTLED);
    }

    /// Another process goes on; what is still to be given here comes within `patience`.
    pub fn left(&mut self, patience: Duration) {
        self.end(Ending::Told, patience);
    }

    /// Everything has been given.
    pub fn settle(&mut self) {
        self.patience = Duration::ZERO;
    }

    /// No other member opens this one's filter any more.
    pub fn disarm(&self) {
        self.membership.disarm();
    }

    /// Whether another agent may go on with what this one takes from.
    pub fn may_hand_over(&self) -> bool {
        self.membership.may_hand_over()
    }

    pub fn gone(&mut self) {
        // It may be back already: only the look at the link tells what happened.
        self.gone_because(self.watch.why_gone());
    }

    /// Notes when the interface is gone, by the kernel's word, another member's, or our own look.
    pub fn look(&mut self, error: Option<Errno>) -> Result<(), Error> {
        match error {
            Some(Errno::NETDOWN | Errno::NODEV | Errno::NXIO) => self.gone(),
            Some(cause) => {
                let thing = self.name().to_owned();
                return Err(Error::System { act: "take frames of", thing, cause: cause.to_string() });
            }
            None => {
                if let Some(cause) = self.membership.others_left().or_else(|| self.watch.look()) {
                    self.gone_because(cause);
                }
            }
        }
        Ok(())
    }

    fn gone_because(&mut self, cause: String) {
        self.membership.leave(&cause);
        self.end(Ending::Gone(cause), SETTLED);
    }

    fn end(&mut self, ending: Ending, patience: Duration) {
        if self.ending.is_none() {
            self.still_since = Instant::now();
            self.patience = patience;
            self.ending = Some(ending);
        }
    }

    /// What is to be said when everything the kernel took has been given.
    fn ended(&self) -> Option<Result<Taken, Error>> {
        let ending = self.ending.as_ref()?;
        if self.still_since.elapsed() < self.patience {
            return None;
        }
        Some(match ending {
            Ending::Told => Ok(Taken::End),
            Ending::Gone(cause) => Err(Error::Gone { interface: self.name().to_owned(), cause: cause.clone() }),
        })
    }
}

/// An engine that takes from an interface.
pub(super) trait Live {
    fn hold(&mut self) -> &mut Hold;

    /// Puts what is there into `bytes`, without waiting; whether there was something.
    fn give(&mut self, bytes: &mut Bytes) -> Result<bool, Error>;

    /// Up to when everything has been given, nanoseconds since 1970: [`Live::give`] has just found nothing, after `since_ns`. Where nobody says
    /// what is on its way, only a long wait does.
    fn complete_until_ns(&mut self, since_ns: u64) -> u64 {
        since_ns.saturating_sub(SETTLED.as_nanos() as u64)
    }

    /// Waits until there may be something, at most `wait`, and looks at the interface.
    fn wait(&mut self, wait: Duration) -> Result<(), Error>;
}

/// As [`super::Engine::take`].
pub(super) fn take(engine: &mut impl Live, bytes: &mut Bytes, wait: Duration) -> Result<Taken, Error> {
    bytes.release();
    engine.hold().membership.arm_if_late()?;
    let mut waited = false;
    loop {
        let before_ns = SystemClock.now().wall_ns;
        if engine.give(bytes)? {
            return Ok(Taken::Frames);
        }
        if let Some(end) = engine.hold().ended() {
            return end;
        }
        let complete_until_ns = engine.complete_until_ns(before_ns);
        if waited {
            return Ok(Taken::Quiet { complete_until_ns });
        }
        engine.wait(wait)?;
        waited = true;
    }
}
