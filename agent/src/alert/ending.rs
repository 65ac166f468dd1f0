//! How the agent's service ended, as its manager tells those whom it starts then.
//! In: variables of the environment. Out: a line for people, or that there is nothing to say. Never: fails on what it does not know.
//! Spec: systemd.exec(5) "Environment variables set or propagated by the service manager" ($SERVICE_RESULT and what follows,
//! $MONITOR_SERVICE_RESULT and what follows) and "Process exit codes".

/// The longest word of the manager that is taken over, characters.
const WORD_MAX: usize = 40;

/// Said before the cause when the manager has given up for now.
const FOR_GOOD: &str = "it fails again and again, and is tried twice a minute; ";

/// Said when the manager did not even begin to start it: OnFailure= is set off by the job, and of the process there is nothing to tell.
const NEVER_BEGUN: &str = "systemd could not begin to start it, as something failed that it needs: most likely the mount of its spool \
     (`systemctl list-units --failed`); it is tried twice a minute";

/// What a dead agent may have taken with it.
const IN_MEMORY: &str = "what it held in memory, at most spool.flush_ms of packets, is lost";

/// How a service ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    /// `success`, `exit-code`, `signal`, `core-dump`, `watchdog`, `timeout`, `oom-kill`, `start-limit-hit` and others.
    result: String,
    /// How the process ended: `exited`, `killed`, `dumped`; empty when there was none.
    code: String,
    /// Exit status, or the signal's name without `SIG`.
    status: String,
    /// Whether the manager has given up for now.
    for_good: bool,
}

impl Ending {
    /// From what the manager tells a hook of the service (`ExecStopPost=`), or a unit that it starts in its stead (`OnFailure=`).
    /// `None`: it tells nothing.
    #[must_use]
    pub fn told(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        [("", false), ("MONITOR_", true)].into_iter().find_map(|(prefix, for_good)| {
            let word = |name: &str| variable(&format!("{prefix}{name}")).map(|word| plain(&word));
            let result = word("SERVICE_RESULT").filter(|word| !word.is_empty())?;
            Some(Self { result, code: word("EXIT_CODE").unwrap_or_default(), status: word("EXIT_STATUS").unwrap_or_default(), for_good })
        })
    }

    /// Whether it ended as it was told to: nobody needs to hear of it. Who is started in its stead is so by a failure only.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.result == "success" && !self.for_good
    }

    /// Whether the agent itself will have said why it ended: it came as far as that, and has this status for it.
    #[must_use]
    pub fn had_last_words(&self) -> bool {
        self.code == "exited" && self.status == "1"
    }

    /// What happened, in one line for people.
    #[must_use]
    pub fn detail(&self) -> String {
        match self.for_good {
            // What the manager tells of the process is how an earlier one ended.
            true if self.result == "success" => NEVER_BEGUN.into(),
            true => format!("{FOR_GOOD}{}", self.cause()),
            false => self.cause(),
        }
    }

    /// Whether a person who was told `detail` must be told of this too: it fails for good, which is new, and by another cause.
    #[must_use]
    pub fn is_worse_than(&self, detail: &str) -> bool {
        self.for_good && ![FOR_GOOD, NEVER_BEGUN].iter().any(|told| detail.starts_with(told)) && detail != self.cause()
    }

    fn cause(&self) -> String {
        match (self.result.as_str(), self.code.as_str(), self.status.as_str()) {
            ("watchdog", ..) => format!("it hung: no sign of life came within WatchdogSec=, and systemd ended it; {IN_MEMORY}"),
            ("oom-kill", ..) => format!("the kernel ended it for want of memory; {IN_MEMORY}"),
            ("timeout", ..) => {
                "it was not ready within TimeoutStartSec=, or had not stopped within TimeoutStopSec=, and systemd ended it".into()
            }
            (_, "killed", "KILL") => {
                format!(
                    "it was killed by SIGKILL: by the kernel for want of memory (`journalctl -k` shows it), or by a person or program; {IN_MEMORY}"
                )
            }
            (_, "killed" | "dumped", signal) => format!("it was ended by SIG{signal}; {IN_MEMORY}"),
            (_, "exited", "2") => "its settings are wrong (exit status 2); `tapfleetd check` names each error".into(),
            (_, "exited", "75") => "another process has the spool (exit status 75)".into(),
            (_, "exited", "101") => format!("it panicked (exit status 101): a defect, please report it with its log; {IN_MEMORY}"),
            (_, "exited", "203") => "its program is missing or cannot be run (203/EXEC): /usr/bin/tapfleetd".into(),
            (_, "exited", "217") => "its user is missing (217/USER): `systemd-sysusers` makes it".into(),
            (_, "exited", "226") => "systemd cannot build its sandbox (226/NAMESPACE)".into(),
            // From 200 on they are systemd's own, for what it prepares before it runs a program.
            (_, "exited", status) if status.parse().is_ok_and(|status: u8| status >= 200) => {
                format!("systemd could not prepare its start (exit status {status}, see systemd.exec(5) \"Process exit codes\")")
            }
            (_, "exited", status) => format!("it ended with exit status {status}"),
            ("start-limit-hit", ..) => "it ended again and again as soon as it was started".into(),
            (result, ..) => format!("systemd gives as the result '{result}'"),
        }
    }
}

/// Words of the manager: short, and nothing in them that a mail could not carry.
fn plain(word: &str) -> String {
    word.chars().filter(|c| c.is_ascii_alphanumeric() || "-_+".contains(*c)).take(WORD_MAX).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hook(result: &str, code: &str, status: &str) -> Ending {
        let told = [("SERVICE_RESULT", result), ("EXIT_CODE", code), ("EXIT_STATUS", status)];
        Ending::told(|name| told.iter().find(|(known, _)| *known == name).map(|(_, word)| (*word).to_owned())).unwrap()
    }

    #[test]
    fn each_way_to_end_is_worded_for_people() {
        for (result, code, status, words) in [
            ("watchdog", "killed", "ABRT", "it hung"),
            ("oom-kill", "killed", "KILL", "for want of memory"),
            ("signal", "killed", "KILL", "SIGKILL"),
            ("core-dump", "dumped", "SEGV", "SIGSEGV"),
            ("timeout", "killed", "TERM", "not ready within"),
            ("exit-code", "exited", "2", "`tapfleetd check`"),
            ("exit-code", "exited", "75", "another process has the spool"),
            ("exit-code", "exited", "203", "/usr/bin/tapfleetd"),
            ("exit-code", "exited", "226", "cannot build its sandbox"),
            ("exit-code", "exited", "218", "could not prepare its start (exit status 218"),
            ("exit-code", "exited", "7", "exit status 7"),
            ("start-limit-hit", "", "", "again and again"),
            ("resources", "", "", "'resources'"),
        ] {
            let ending = hook(result, code, status);
            assert!(!ending.is_clean());
            assert!(ending.detail().contains(words), "{result} {code} {status}: {}", ending.detail());
        }
    }

    #[test]
    fn a_clean_stop_is_nothing_to_hear_of_and_so_is_a_manager_that_says_nothing() {
        assert!(hook("success", "exited", "0").is_clean());
        assert_eq!(Ending::told(|_| None), None);
        assert_eq!(Ending::told(|name| (name == "SERVICE_RESULT").then(String::new)), None);
    }

    #[test]
    fn a_unit_that_is_started_in_its_stead_is_told_by_other_names() {
        let ending = Ending::told(|name| match name {
            "MONITOR_SERVICE_RESULT" => Some("exit-code".into()),
            "MONITOR_EXIT_CODE" => Some("exited".into()),
            "MONITOR_EXIT_STATUS" => Some("226".into()),
            _ => None,
        });
        assert_eq!(ending, Some(Ending { for_good: true, ..hook("exit-code", "exited", "226") }));
    }

    #[test]
    fn a_start_that_never_began_is_told_though_all_that_the_manager_says_is_success() {
        for last in [None, Some(("exited", "0"))] {
            let ending = Ending::told(|name| match (name, last) {
                ("MONITOR_SERVICE_RESULT", _) => Some("success".into()),
                ("MONITOR_EXIT_CODE", Some((code, _))) => Some(code.into()),
                ("MONITOR_EXIT_STATUS", Some((_, status))) => Some(status.into()),
                _ => None,
            });
            let ending = ending.unwrap();
            assert!(!ending.is_clean() && !ending.had_last_words() && ending.detail() == NEVER_BEGUN, "{}", ending.detail());
            assert!(ending.is_worse_than("it was killed by SIGKILL") && !ending.is_worse_than(NEVER_BEGUN));
        }
    }

    #[test]
    fn only_an_exit_by_the_agent_itself_has_last_words() {
        assert!(hook("exit-code", "exited", "1").had_last_words());
        assert!(!hook("exit-code", "exited", "2").had_last_words());
        assert!(!hook("signal", "killed", "1").had_last_words());
    }

    #[test]
    fn words_that_no_manager_says_do_no_harm() {
        let ending = hook("signal\n\0", "killed", &"A\u{1f980}".repeat(1000));
        assert!(ending.detail().len() < 300 && ending.detail().is_ascii(), "{}", ending.detail());
    }
}
