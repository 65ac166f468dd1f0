//! Does for the alerts what waits for a disk, and waits for it only so long: a volume that hangs must not silence the mail about it.
//! In: work on an outbox. Out: what came of it, or that the disk has not answered. Never: more than one thread that hangs.

use std::panic::resume_unwind;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::timeout;

use super::outbox::{Error, LOCK_PATIENCE, Outbox};

/// How long one piece of work is waited for: longer than for a lock that another process holds.
pub const PATIENCE: Duration = LOCK_PATIENCE.saturating_add(Duration::from_secs(2));

/// Who does it. What has not ended in time goes on unattended, and until it has ended nothing else is begun.
#[derive(Default, Debug)]
pub struct Clerk(Option<AbortHandle>);

impl Clerk {
    /// Has `work` done, and waits for it for at most [`PATIENCE`].
    ///
    /// # Errors
    /// What `work` says; [`Error::Hangs`] when it, or the work before it, has not ended: it may yet be done, also unseen.
    pub async fn ask<T: Send + 'static>(
        &mut self,
        outbox: &Outbox,
        work: impl FnOnce(&Outbox) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let hangs = || Error::Hangs { dir: outbox.dir().into() };
        if self.0.as_ref().is_some_and(|busy| !busy.is_finished()) {
            return Err(hangs());
        }
        self.0 = None;
        let with = outbox.clone();
        let mut task = spawn_blocking(move || work(&with));
        match timeout(PATIENCE, &mut task).await {
            Ok(Ok(done)) => done,
            Ok(Err(died)) if died.is_panic() => resume_unwind(died.into_panic()),
            // The runtime is going down.
            Ok(Err(_)) => Err(hangs()),
            Err(_) => {
                self.0 = Some(task.abort_handle());
                Err(hangs())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    // Not with a paused clock: that stands still while a thread works.
    #[tokio::test]
    async fn work_that_hangs_is_left_behind_and_nothing_else_is_begun_until_it_has_ended() {
        let (outbox, mut clerk) = (Outbox::new("/nowhere".as_ref()), Clerk::default());
        let (release, hold) = mpsc::channel::<()>();
        let asked = clerk.ask(&outbox, move |_| Ok(hold.recv().is_ok())).await;
        assert!(matches!(asked, Err(Error::Hangs { .. })), "{asked:?}");
        for _ in 0..1000 {
            let asked = clerk.ask(&outbox, |_| -> Result<(), Error> { panic!("it was begun") }).await;
            assert!(matches!(asked, Err(Error::Hangs { .. })), "{asked:?}");
        }
        release.send(()).unwrap();
        while clerk.0.as_ref().is_some_and(|busy| !busy.is_finished()) {
            std::thread::yield_now();
        }
        assert_eq!(clerk.ask(&outbox, |_| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    #[should_panic(expected = "a defect")]
    async fn work_that_panics_is_the_end_of_who_asked_for_it() {
        let asked = Clerk::default().ask(&Outbox::new("/nowhere".as_ref()), |_| -> Result<(), Error> { panic!("a defect") }).await;
        let _ = asked;
    }
}
