//! In: words, the wish for a test, or what the service manager says of the agent's end. Out: a mail through the topic of the
//! settings, or one that waits in the outbox. Never: needs other settings than those of alerts, or an agent that runs; asks the
//! network when it only files.

use std::sync::Arc;
use std::time::Duration;

use tapfleet::alert::ending::Ending;
use tapfleet::alert::{self, Error, Settings, Sns, relief};
use tapfleet::config::{Instance, Written};
use tapfleet::host::clock::{Clock, SystemClock};
use tapfleet::run;

use super::{Failure, print};

/// Sends `words` (subject, message), or, without them, a test.
pub fn send(settings: &Settings, instance: Instance, words: Option<(String, String)>) -> Result<(), Failure> {
    let topic = settings.topic_arn.clone().ok_or(Error::Off).map_err(Failure::of)?;
    let sent = on_runtime(async {
        let place = run::place(instance, settings).await;
        let notifier = Arc::new(Sns::new(&topic));
        match words {
            Some((subject, message)) => alert::note(settings, &place, &subject, &message, notifier).await,
            None => alert::test(settings, &place, notifier).await,
        }
    })?;
    print(&format!("sent to {topic}: {}\n", sent.map_err(refused)?))
}

/// Files how the agent's service ended, from the variables of the environment; sends nothing. A clean end is not filed.
pub fn file_ending(written: &Written) -> Result<(), Failure> {
    let ending = Ending::told(|name| std::env::var(name).ok());
    let Some(ending) = ending else {
        return Err(Failure::Failed("cannot file how the service ended: neither SERVICE_RESULT nor MONITOR_SERVICE_RESULT is set; systemd sets them for ExecStopPost= and OnFailure=".into()));
    };
    if ending.is_clean() {
        return Ok(());
    }
    let (settings, instance) = known(written)?;
    if settings.topic_arn.is_none() {
        return Ok(());
    }
    let place = run::place_at_hand(instance, &settings);
    relief::file_ending(&settings, run::spare_outbox().as_deref(), &place, &ending, SystemClock.now()).map_err(Failure::of)
}

/// Sends what has waited for `grace`, in the outbox and in the spare one, if nobody else does.
pub fn relieve(written: &Written, grace: Duration) -> Result<(), Failure> {
    let (settings, _) = known(written)?;
    let Some(topic) = &settings.topic_arn else { return Ok(()) };
    let notifier = Arc::new(Sns::new(topic));
    let spare = run::spare_outbox().map(|dir| Settings { dir, ..settings.clone() });
    let sent = on_runtime(async {
        let both = async |settings: Option<&Settings>| match settings {
            Some(settings) => relief::relieve(settings, grace, notifier.clone()).await,
            None => Ok(0),
        };
        // One that is ill does not keep the other's mails.
        let (first, second) = tokio::join!(both(Some(&settings)), both(spare.as_ref()));
        Ok(first? + second?)
    })?;
    let sent = sent.map_err(refused)?;
    if sent > 0 { print(&format!("sent to {topic}: {sent} mails that the agent had not sent\n")) } else { Ok(()) }
}

/// The settings of alerts. Those that are wrong give way to their defaults, and the topic to that of the last agent: that settings are
/// wrong is itself a trouble.
fn known(written: &Written) -> Result<(Settings, Instance), Failure> {
    if let Ok(known) = written.alert() {
        return Ok(known);
    }
    let (mut settings, instance) = written.alert_as_far_as_it_holds()?;
    if settings.topic_arn.is_none() {
        settings.topic_arn = relief::left(&settings, run::spare_outbox().as_deref()).topic_arn;
    }
    Ok((settings, instance))
}

/// Runs it to its end, and waits for no disk that hangs.
fn on_runtime<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::of)?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

fn refused(error: Error) -> Failure {
    match error {
        waits @ Error::Waits { .. } => Failure::Busy(waits.to_string()),
        other => Failure::of(other),
    }
}
