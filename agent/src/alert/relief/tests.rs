//! A death is filed once and in no time, with what the agent left; its mails leave when nobody else sends them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::notifier;
use super::*;
use crate::host::clock::SECOND_NS;

const START_NS: u64 = 1_795_306_500 * SECOND_NS;

fn settings(dir: &Path) -> Settings {
    Settings {
        topic_arn: Some("arn:aws:sns:eu-north-1:123456789012:alerts".into()),
        silence: None,
        drop_ratio: 0.001,
        repeat: Duration::from_secs(3600),
        on_start: false,
        dir: dir.into(),
        spool_max_bytes: 1000,
        window: Duration::from_secs(900),
    }
}

fn ending(result: &str, code: &str, status: &str) -> Ending {
    let told = [("SERVICE_RESULT", result), ("EXIT_CODE", code), ("EXIT_STATUS", status)];
    Ending::told(|name| told.iter().find(|(known, _)| *known == name).map(|(_, word)| (*word).to_owned())).unwrap()
}

fn at(second: u64) -> Now {
    Now { wall_ns: START_NS + second * SECOND_NS, monotonic_ns: second * SECOND_NS }
}

fn waiting(dir: &Path) -> usize {
    Outbox::new(dir).open().unwrap().waiting().unwrap()
}

/// Takes mails, unless it is down or has no subscription.
#[derive(Default)]
struct Topic {
    down: AtomicBool,
    unheard: AtomicBool,
    taken: Mutex<Vec<Mail>>,
}

impl Notifier for Topic {
    async fn publish(&self, mail: &Mail) -> Result<(), notifier::Error> {
        if self.down.load(Ordering::Relaxed) {
            return Err(notifier::Error { act: "publish to", topic: "t".into(), cause: "it is down".into(), advice: "" });
        }
        self.taken.lock().unwrap().push(mail.clone());
        Ok(())
    }

    async fn reaches(&self) -> Result<bool, notifier::Error> {
        Ok(!self.unheard.load(Ordering::Relaxed))
    }
}

#[test]
fn a_crash_loop_is_filed_once_and_repeated_by_the_hour() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, place) = (settings(dir.path()), Place::default());
    for second in 0..20 {
        file_ending(&settings, None, &place, &ending("signal", "killed", "KILL"), at(second)).unwrap();
    }
    assert_eq!(waiting(dir.path()), 1);
    file_ending(&settings, None, &place, &ending("exit-code", "exited", "203"), at(3700)).unwrap();
    assert_eq!(waiting(dir.path()), 2);
}

#[test]
fn an_agent_that_was_killed_and_then_fails_for_good_by_another_cause_is_told_of_once_more_and_once_only() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, place) = (settings(dir.path()), Place::default());
    let for_good = |status: &'static str| {
        let word = move |name: &str| match name {
            "MONITOR_SERVICE_RESULT" => Some("exit-code".to_owned()),
            "MONITOR_EXIT_CODE" => Some("exited".into()),
            "MONITOR_EXIT_STATUS" => Some(status.into()),
            _ => None,
        };
        Ending::told(word).unwrap()
    };
    file_ending(&settings, None, &place, &ending("signal", "killed", "KILL"), at(0)).unwrap();
    file_ending(&settings, None, &place, &for_good("203"), at(5)).unwrap();
    assert_eq!(waiting(dir.path()), 2);
    for (second, status) in [(35, "203"), (65, "226"), (95, "2"), (125, "203")] {
        file_ending(&settings, None, &place, &for_good(status), at(second)).unwrap();
    }
    assert_eq!(waiting(dir.path()), 2);
    let other = tempfile::tempdir().unwrap();
    let settings = self::settings(other.path());
    file_ending(&settings, None, &place, &ending("exit-code", "exited", "2"), at(0)).unwrap();
    file_ending(&settings, None, &place, &for_good("2"), at(5)).unwrap();
    assert_eq!(waiting(other.path()), 1, "the cause was told");
}

#[test]
fn an_end_that_the_agent_has_explained_itself_is_not_filed_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, place) = (settings(dir.path()), Place::default());
    file(&settings, None, &place, Trouble::CaptureFailed, "no such interface", at(0)).unwrap();
    file_ending(&settings, None, &place, &ending("exit-code", "exited", "1"), at(1)).unwrap();
    assert_eq!(waiting(dir.path()), 1);
    // Of this it could say nothing.
    file_ending(&settings, None, &place, &ending("signal", "killed", "KILL"), at(2)).unwrap();
    assert_eq!(waiting(dir.path()), 2);
    let other = tempfile::tempdir().unwrap();
    file_ending(&self::settings(other.path()), None, &place, &ending("exit-code", "exited", "1"), at(3)).unwrap();
    assert_eq!(waiting(other.path()), 1, "it had no chance to explain it");
}

#[test]
fn a_death_that_the_outbox_does_not_take_is_filed_in_the_spare_one_and_folded_there_too() {
    let dir = tempfile::tempdir().unwrap();
    let (ill, spare) = (dir.path().join("ill"), dir.path().join("spare"));
    std::fs::write(&ill, "in the way").unwrap();
    let (settings, place) = (settings(&ill), Place::default());
    let died = ending("signal", "killed", "KILL");
    assert!(file_ending(&settings, None, &place, &died, at(0)).is_err(), "there is no other place");
    for second in 0..20 {
        file_ending(&settings, Some(&spare), &place, &died, at(second)).unwrap();
    }
    assert_eq!(waiting(&spare), 1);
    file(&settings, Some(&spare), &place, Trouble::CaptureFailed, "no spool", at(21)).unwrap();
    assert_eq!(waiting(&spare), 2);
}

#[test]
fn a_death_is_filed_in_bounded_time_though_the_outbox_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (locked, spare) = (dir.path().join("locked"), dir.path().join("spare"));
    let _held = Outbox::new(&locked).open().unwrap();
    let begun = std::time::Instant::now();
    file_ending(&settings(&locked), Some(&spare), &Place::default(), &ending("signal", "killed", "KILL"), at(0)).unwrap();
    assert_eq!(waiting(&spare), 1);
    assert!(begun.elapsed() < clerk::PATIENCE + Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_the_agent_knew_of_itself_is_there_after_its_death_but_not_on_another_host() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, outbox) = (settings(dir.path()), Outbox::new(dir.path()));
    assert_eq!(left(&settings, None), Left::default());
    let place = Place { instance: "i-1".into(), zone: Some("eu-north-1b".into()), ..Place::default() };
    let mut known = Left { host: host_name(), place, topic_arn: settings.topic_arn.clone() };
    leave([Some(outbox.clone()), None], known.clone()).await;
    assert_eq!(left(&settings, None), known);
    known.host = "elsewhere".into();
    leave([Some(outbox.clone()), None], known.clone()).await;
    assert_eq!(left(&settings, None), Left { place: Place::default(), ..known });
    let spare = dir.path().join("spare");
    leave([None, Some(Outbox::new(&spare))], Left { topic_arn: None, host: host_name(), place: Place::default() }).await;
    assert_eq!(left(&settings, Some(&spare)).host, host_name(), "what is in memory is of this host");
    std::fs::write(dir.path().join("left.json"), vec![b'['; 100_000]).unwrap();
    assert_eq!(left(&settings, None), Left::default());
}

#[tokio::test]
async fn mails_of_a_dead_agent_leave_when_they_have_waited_and_nobody_else_sends() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, topic) = (settings(dir.path()), Arc::new(Topic::default()));
    assert_eq!(relieve(&settings, Duration::ZERO, topic.clone()).await.unwrap(), 0, "nothing waits");
    file_ending(&settings, None, &Place::default(), &ending("watchdog", "killed", "ABRT"), at(0)).unwrap();
    let agent = Outbox::new(dir.path()).sending().unwrap();
    assert_eq!(relieve(&settings, Duration::ZERO, topic.clone()).await.unwrap(), 0, "an agent sends");
    drop(agent);
    topic.unheard.store(true, Ordering::Relaxed);
    assert!(matches!(relieve(&settings, Duration::ZERO, topic.clone()).await, Err(Error::Nobody { .. })));
    assert_eq!(waiting(dir.path()), 1);
    topic.unheard.store(false, Ordering::Relaxed);
    let begun = std::time::Instant::now();
    assert_eq!(relieve(&settings, Duration::from_secs(2), topic.clone()).await.unwrap(), 1);
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(topic.taken.lock().unwrap()[0].body.contains("it hung"));
    assert_eq!(waiting(dir.path()), 0);
}

#[tokio::test]
async fn a_mail_that_the_topic_does_not_take_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, topic) = (settings(dir.path()), Arc::new(Topic::default()));
    file_ending(&settings, None, &Place::default(), &ending("signal", "killed", "KILL"), at(0)).unwrap();
    topic.down.store(true, Ordering::Relaxed);
    assert!(matches!(relieve(&settings, Duration::ZERO, topic.clone()).await, Err(Error::Waits { .. })));
    last_try(&settings, topic).await;
    assert_eq!(waiting(dir.path()), 1);
}
