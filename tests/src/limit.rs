//! A command that may take so long, and no longer.
//! In: the command, a limit. Out: the same under `timeout` of coreutils. Never: outlives the limit, nor does what it starts.

use std::process::Command;
use std::time::Duration;

use crate::agent::through;

/// How a command ends that took too long.
pub const OVERRUN: i32 = 124;

/// How long it may take to end when it is asked to, before it is killed.
const KILL_AFTER: &str = "--kill-after=10";

/// The command with a limit: after it, it ends with [`OVERRUN`].
#[must_use]
pub fn limited(limit: Duration, command: &Command) -> Command {
    let seconds = limit.as_secs().to_string();
    let mut limited = through(&["timeout", KILL_AFTER, &seconds], command);
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::thread;
    use std::time::Instant;

    #[test]
    fn what_hangs_is_ended_with_all_that_it_started_and_what_ends_in_time_says_how() {
        let folder = tempfile::tempdir().unwrap();
        let run = |script: &str, limit| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).current_dir(folder.path());
            limited(Duration::from_secs(limit), &command).status().unwrap().code()
        };
        assert_eq!(run("exit 3", 60), Some(3));
        let begun = Instant::now();
        assert_eq!(run("sh -c 'sleep 1000 & echo $! > pid; wait'; true", 2), Some(OVERRUN));
        let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
        // Told to end; a busy host takes its time, and whoever has taken it over may not have looked at it yet.
        let stat = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let goes_on = |state: &str| !state.is_empty() && !state.contains(") Z ");
        while goes_on(&stat()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "its child goes on: {}", stat());
            thread::sleep(Duration::from_millis(50));
        }
    }
}
