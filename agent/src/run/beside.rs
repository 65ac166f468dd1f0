//! The tasks that work beside the recorder: uploader, alerts, lifecycle, health check and what reports.
//! In: tasks. Out: which one died, at once. Never: takes an end that was ordered for a death; waits for one that never ends.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::task::{JoinError, JoinHandle};

/// When a task may end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ends {
    /// Never; it is cut off when all others have ended.
    Never,
    /// When it is told to stop, and not before.
    AtStop,
    /// Whenever it has nothing more to do.
    AnyTime,
    /// As [`Ends::AnyTime`], and if it dies the agent goes on without it: capture is worth more than what it does.
    Dispensable,
}

struct Task {
    what: &'static str,
    ends: Ends,
    handle: JoinHandle<()>,
}

/// The tasks.
#[derive(Default)]
pub(super) struct Beside(Vec<Task>);

impl Beside {
    /// Takes one more, if there is one.
    pub(super) fn add(&mut self, what: &'static str, ends: Ends, task: Option<JoinHandle<()>>) {
        self.0.extend(task.map(|handle| Task { what, ends, handle }));
    }

    /// Done when one has died without which the agent cannot go on; says which. To be asked before the order to stop.
    pub(super) async fn death(&mut self) -> &'static str {
        poll_fn(|context| {
            let mut n = 0;
            while let Some(task) = self.0.get_mut(n) {
                if task.ends == Ends::Dispensable {
                    n += 1;
                    continue;
                }
                let Poll::Ready(ended) = Pin::new(&mut task.handle).poll(context) else {
                    n += 1;
                    continue;
                };
                let task = self.0.remove(n);
                if has_panicked(task.what, &ended) || task.ends != Ends::AnyTime {
                    return Poll::Ready(task.what);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits, after the order to stop, until all have ended. Says which died of those that the agent needs.
    pub(super) async fn finish(self) -> Option<&'static str> {
        let (endless, others): (Vec<_>, Vec<_>) = self.0.into_iter().partition(|task| task.ends == Ends::Never);
        let mut dead = None;
        for task in others {
            if has_panicked(task.what, &task.handle.await) && task.ends != Ends::Dispensable {
                dead.get_or_insert(task.what);
            }
        }
        endless.iter().for_each(|task| task.handle.abort());
        dead
    }
}

fn has_panicked(what: &'static str, ended: &Result<(), JoinError>) -> bool {
    match ended {
        Ok(()) => false,
        Err(error) => {
            tracing::error!(%error, "{what} died");
            error.is_panic()
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn dies() {
        panic!("a defect");
    }

    async fn death(beside: &mut Beside) -> Option<&'static str> {
        timeout(Duration::from_millis(200), beside.death()).await.ok()
    }

    #[tokio::test]
    async fn a_task_that_dies_is_noticed_at_once_and_so_is_one_that_ends_before_it_was_told_to() {
        for ends in [Ends::Never, Ends::AtStop, Ends::AnyTime] {
            let mut beside = Beside::default();
            beside.add("another", Ends::AtStop, Some(tokio::spawn(pending())));
            beside.add("it", ends, Some(tokio::spawn(dies())));
            assert_eq!(death(&mut beside).await, Some("it"), "{ends:?}");
            assert_eq!(death(&mut beside).await, None, "{ends:?}: said once");
        }
        for (ends, dead) in [(Ends::Never, Some("it")), (Ends::AtStop, Some("it")), (Ends::AnyTime, None)] {
            let mut beside = Beside::default();
            beside.add("it", ends, Some(tokio::spawn(async {})));
            assert_eq!(death(&mut beside).await, dead, "{ends:?}");
        }
    }

    #[tokio::test]
    async fn one_that_is_dispensable_ends_nothing() {
        let mut beside = Beside::default();
        beside.add("it", Ends::Dispensable, Some(tokio::spawn(dies())));
        assert_eq!(death(&mut beside).await, None);
        assert_eq!(beside.finish().await, None);
    }

    #[tokio::test]
    async fn a_stop_waits_for_all_that_end_and_says_who_died_and_an_ordered_end_is_no_death() {
        let mut beside = Beside::default();
        beside.add("health", Ends::Never, Some(tokio::spawn(pending())));
        beside.add("alerts", Ends::AtStop, Some(tokio::spawn(async {})));
        beside.add("none", Ends::AtStop, None);
        assert_eq!(beside.finish().await, None);
        let mut beside = Beside::default();
        beside.add("uploader", Ends::AtStop, Some(tokio::spawn(dies())));
        assert_eq!(beside.finish().await, Some("uploader"));
    }
}
