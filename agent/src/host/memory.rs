//! What the lifecycle must still know after a restart of the agent, or of the machine: a small file.
//! In: since when the group waits, whether this agent protected the instance. Out: the same to the next agent of that instance.
//! Never: another instance's memory (a volume may be attached elsewhere); a wait for a disk that does not answer.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// The longest that is believed, bytes.
const BYTES_MAX: u64 = 4096;

/// A disk that takes longer is not waited for: heartbeats may be due.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is remembered.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Of which instance.
    pub instance: String,
    /// Since when the group waits, nanoseconds since 1970.
    pub waiting_since_ns: Option<u64>,
    /// Whether this agent has asked for scale-in protection and not taken it off: nobody else's is touched.
    pub protected: bool,
}

/// How facts get to the disk: [`write`].
type Writing = fn(&Path, &Facts) -> io::Result<()>;

/// The memory of one instance.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    facts: Facts,
    writing: Writing,
    /// Whether the disk has the facts, as far as is known.
    kept: bool,
    /// A write that has not been seen to end.
    late: Option<JoinHandle<io::Result<()>>>,
    /// Whether it was said that they are not kept.
    said: bool,
}

impl Memory {
    /// What the agent before left at `path`; of an instance that it does not speak of, or on a disk that does not answer: nothing.
    pub async fn recall(path: &Path, instance: &str) -> Self {
        let from = path.to_path_buf();
        let facts = match answer(timeout(PATIENCE, spawn_blocking(move || read(&from))).await) {
            Ok(facts) => Some(facts).filter(|facts| facts.instance == instance),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => {
                tracing::warn!(%cause, path = %path.display(), "what the agent before knew of the instance's end cannot be read");
                None
            }
        };
        let facts = facts.unwrap_or_else(|| Facts { instance: instance.into(), ..Facts::default() });
        Self { path: path.into(), facts, writing: write, kept: true, late: None, said: false }
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Remembers that since a time the group waits, or that it does not. What the disk did not take before is tried again.
    pub async fn wait(&mut self, since_ns: Option<u64>) {
        self.keep(Facts { waiting_since_ns: since_ns, ..self.facts.clone() }).await;
    }

    /// Remembers whether the instance is protected.
    pub async fn protect(&mut self, protected: bool) {
        self.keep(Facts { protected, ..self.facts.clone() }).await;
    }

    async fn keep(&mut self, facts: Facts) {
        self.kept &= facts == self.facts;
        self.facts = facts;
        // One write at a time: what a disk that hung does in the end must not be older than what it did meanwhile.
        if self.kept || self.late.as_ref().is_some_and(|late| !late.is_finished()) {
            return;
        }
        let (path, facts, writing) = (self.path.clone(), self.facts.clone(), self.writing);
        // Kept here while it is waited for: who waits may be cut off.
        let write = self.late.insert(spawn_blocking(move || writing(&path, &facts)));
        let done = timeout(PATIENCE, write).await;
        if done.is_ok() {
            self.late = None;
        }
        match answer(done) {
            Ok(()) => (self.kept, self.said) = (true, false),
            Err(cause) if !self.said => {
                self.said = true;
                tracing::warn!(%cause, path = %self.path.display(), "what is known of the instance's end is forgotten if the agent restarts now");
            }
            Err(_) => {}
        }
    }
}

/// What the disk said, in time or not.
fn answer<T>(done: Result<Result<io::Result<T>, JoinError>, tokio::time::error::Elapsed>) -> io::Result<T> {
    match done {
        Ok(Ok(done)) => done,
        Ok(Err(died)) => Err(io::Error::other(died)),
        Err(_) => Err(io::Error::other("the disk does not answer")),
    }
}

fn read(path: &Path) -> io::Result<Facts> {
    let mut json = Vec::new();
    File::open(path)?.take(BYTES_MAX).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// In one step: nobody ever reads the half of it.
fn write(path: &Path, facts: &Facts) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec(facts)?)?;
    file.sync_data()?;
    fs::rename(unfinished, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::OpenOptions;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[tokio::test]
    async fn what_is_remembered_comes_back_for_the_same_instance_and_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lifecycle");
        let mut memory = Memory::recall(&path, "i-1").await;
        assert_eq!(memory.facts(), &Facts { instance: "i-1".into(), ..Facts::default() });
        memory.wait(Some(7)).await;
        memory.protect(true).await;
        let expected = Facts { instance: "i-1".into(), waiting_since_ns: Some(7), protected: true };
        assert_eq!(Memory::recall(&path, "i-1").await.facts(), &expected);
        assert_eq!(Memory::recall(&path, "i-2").await.facts(), &Facts { instance: "i-2".into(), ..Facts::default() });
        memory.wait(None).await;
        assert_eq!(Memory::recall(&path, "i-1").await.facts(), &Facts { waiting_since_ns: None, ..expected });
        for junk in ["", "{", "[1, 2]"] {
            fs::write(&path, junk).unwrap();
            assert_eq!(Memory::recall(&path, "i-1").await.facts().waiting_since_ns, None, "{junk:?}");
        }
    }

    #[tokio::test]
    async fn a_disk_that_refuses_costs_the_next_agents_memory_alone_and_only_until_it_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/lifecycle");
        let mut memory = Memory::recall(&path, "i-1").await;
        memory.protect(true).await;
        assert!(memory.facts().protected);
        fs::create_dir(dir.path().join("missing")).unwrap();
        memory.wait(None).await;
        assert!(Memory::recall(&path, "i-1").await.facts().protected, "it is tried again with each step");
    }

    static HANGS: AtomicBool = AtomicBool::new(true);

    /// A disk that hangs with the first facts, and not with later ones.
    fn write_late(path: &Path, facts: &Facts) -> io::Result<()> {
        while facts.waiting_since_ns == Some(1) && HANGS.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        write(path, facts)
    }

    #[tokio::test]
    async fn what_a_disk_that_hung_writes_in_the_end_does_not_take_the_place_of_newer_facts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lifecycle");
        let mut memory = Memory { writing: write_late, ..Memory::recall(&path, "i-1").await };
        let begun = Instant::now();
        memory.wait(Some(1)).await;
        assert!(begun.elapsed() >= PATIENCE && memory.facts().waiting_since_ns == Some(1));
        memory.wait(Some(2)).await;
        HANGS.store(false, Ordering::Relaxed);
        // The lifecycle says it with each step.
        for _ in 0..50 {
            memory.wait(Some(2)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(Memory::recall(&path, "i-1").await.facts().waiting_since_ns, Some(2));
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_not_waited_for_by_who_recalls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lifecycle");
        // Whoever opens it to read waits for who writes.
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (recalled, end) = mpsc::channel();
        let writer = thread::spawn({
            let path = path.clone();
            move || {
                let in_time = end.recv_timeout(20 * PATIENCE).is_ok();
                OpenOptions::new().write(true).open(path).map(|_| in_time)
            }
        });
        let memory = Memory::recall(&path, "i-1").await;
        // It fails where nobody listens any more.
        let _ = recalled.send(());
        assert!(writer.join().unwrap().unwrap(), "it was waited for");
        assert_eq!(memory.facts(), &Facts { instance: "i-1".into(), ..Facts::default() });
    }
}
