//! The benchmark: the agent and its peers on the same traffic, in one run, on this machine.
//! In: which contests, how thorough. Out: figures, each the median of several turns. Never: a judgement about correctness, a figure of
//! another run; leaves a process, namespace, control group or file behind.
//!
//! [`traffic`] sends, [`cage`] measures, [`contestants`] are run in turn by the contests; [`report`] tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

pub mod bucket;
pub mod cage;
pub mod capture;
pub mod contestants;
pub mod decap;
pub mod growth;
pub mod host;
pub mod load;
pub mod plot;
pub mod report;
pub mod rotation;
pub mod store;
pub mod traffic;
pub mod work;

pub use report::{Contest, Figure, Verdict};

/// The processor of the sender; contestants have the other one.
pub const SENDER_CPU: usize = 0;
/// The processor of the contestants.
pub const CONTESTANT_CPU: usize = 1;

/// How thorough a run is, and where it may write.
#[derive(Debug)]
pub struct Bench {
    /// Fewer turns and less traffic: shows that everything runs, its figures are rough.
    pub quick: bool,
    /// When no further turn begins.
    pub deadline: Instant,
    /// Somebody does not want to wait for that.
    stopped: Arc<AtomicBool>,
    /// On the disk that all contestants write to. Gone with this value.
    pub folder: tempfile::TempDir,
}

impl Bench {
    /// A run that begins now.
    ///
    /// # Panics
    /// When there is no place to write.
    #[must_use]
    pub fn new(quick: bool, limit: Duration, disk: &PathBuf) -> Self {
        let folder = tempfile::Builder::new().prefix("tapfleet-bench-").tempdir_in(disk);
        let folder = folder.unwrap_or_else(|cause| panic!("cannot write to {}: {cause}", disk.display()));
        let stopped = Arc::new(AtomicBool::new(false));
        thread::spawn({
            let stopped = stopped.clone();
            move || stop_at_signal(&stopped)
        });
        Self { quick, deadline: Instant::now() + limit, stopped, folder }
    }

    /// `full`, or `quick` of a quick run.
    #[must_use]
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// How often each contestant has its turn.
    #[must_use]
    pub fn turns(&self) -> usize {
        self.pick(1, 3)
    }

    /// Whether another turn may begin; says so when not.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        let goes_on = Instant::now() < self.deadline && !self.stopped.load(Ordering::Acquire);
        if !goes_on {
            tell("the time is over, or somebody stopped it: what is missing was not measured");
        }
        goes_on
    }

    /// An empty folder of a turn's own; the one before is emptied.
    ///
    /// # Panics
    /// When the disk refuses.
    #[must_use]
    pub fn fresh_folder(&self) -> PathBuf {
        let folder = self.folder.path().join("turn");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap_or_else(|cause| panic!("cannot make {}: {cause}", folder.display()));
        folder
    }
}

/// Waits for an order to stop: the turn under way ends as any other, so that nothing of it is left behind.
fn stop_at_signal(stopped: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|cause| panic!("no runtime: {cause}"));
    runtime.block_on(async {
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate()]
            .map(|kind| signal(kind).unwrap_or_else(|cause| panic!("signals cannot be heard: {cause}")));
        let [interrupt, terminate] = &mut signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    stopped.store(true, Ordering::Release);
    tell("stopping when this turn is over");
}

/// Says on standard error how it goes.
pub fn tell(words: &str) {
    eprintln!("bench: {words}");
}

/// The middle of several figures; of none, not a number.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => at(n / 2),
        n => f64::midpoint(at(n / 2 - 1), at(n / 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }
}
