//! What the lifecycle must still know after a restart of the agent, or of the machine: a small file.
//! In: since when the group waits, whether this agent protected the instance. Out: the same to the next agent of that instance.
//! Never: another instance's memory (a volume may be attached elsewhere); a wait for a disk that does not answer.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
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

/// The memory of one instance.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    facts: Facts,
}

impl Memory {
    /// What the agent before left at `path`; of an instance that it does not speak of: nothing.
    pub fn recall(path: &Path, instance: &str) -> Self {
        let facts = match read(path) {
            Ok(facts) => Some(facts).filter(|facts| facts.instance == instance),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => {
                tracing::warn!(%cause, path = %path.display(), "what the agent before knew of the instance's end cannot be read");
                None
            }
        };
        Self { path: path.into(), facts: facts.unwrap_or_else(|| Facts { instance: instance.into(), ..Facts::default() }) }
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Remembers that since a time the group waits, or that it does not.
    pub async fn wait(&mut self, since_ns: Option<u64>) {
        self.keep(Facts { waiting_since_ns: since_ns, ..self.facts.clone() }).await;
    }

    /// Remembers whether the instance is protected.
    pub async fn protect(&mut self, protected: bool) {
        self.keep(Facts { protected, ..self.facts.clone() }).await;
    }

    async fn keep(&mut self, facts: Facts) {
        if facts == self.facts {
            return;
        }
        self.facts = facts;
        let (path, facts) = (self.path.clone(), self.facts.clone());
        let kept = timeout(PATIENCE, spawn_blocking(move || write(&path, &facts))).await;
        let cause = match kept {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(cause))) => cause.to_string(),
            Ok(Err(died)) => died.to_string(),
            Err(_) => "the disk does not answer".into(),
        };
        tracing::warn!(cause, path = %self.path.display(), "what is known of the instance's end is forgotten when the agent restarts");
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
    use super::*;

    #[tokio::test]
    async fn what_is_remembered_comes_back_for_the_same_instance_and_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lifecycle");
        let mut memory = Memory::recall(&path, "i-1");
        assert_eq!(memory.facts(), &Facts { instance: "i-1".into(), ..Facts::default() });
        memory.wait(Some(7)).await;
        memory.protect(true).await;
        let expected = Facts { instance: "i-1".into(), waiting_since_ns: Some(7), protected: true };
        assert_eq!(Memory::recall(&path, "i-1").facts(), &expected);
        assert_eq!(Memory::recall(&path, "i-2").facts(), &Facts { instance: "i-2".into(), ..Facts::default() });
        memory.wait(None).await;
        assert_eq!(Memory::recall(&path, "i-1").facts(), &Facts { waiting_since_ns: None, ..expected });
        for junk in ["", "{", "[1, 2]"] {
            fs::write(&path, junk).unwrap();
            assert_eq!(Memory::recall(&path, "i-1").facts().waiting_since_ns, None, "{junk:?}");
        }
    }

    #[tokio::test]
    async fn a_disk_that_refuses_costs_the_next_agents_memory_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::recall(&dir.path().join("missing/lifecycle"), "i-1");
        memory.protect(true).await;
        assert!(memory.facts().protected);
    }
}
