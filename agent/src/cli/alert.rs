//! In: words, or the wish for a test. Out: a mail through the topic of the settings, or one that waits in the outbox.
//! Never: needs other settings than those of alerts, or an agent that runs.

use std::sync::Arc;

use tapfleet::alert::{self, Error, Settings, Sns};
use tapfleet::config::Instance;
use tapfleet::run;

use super::{Failure, print};

/// Sends `words` (subject, message), or, without them, a test.
pub fn send(settings: &Settings, instance: Instance, words: Option<(String, String)>) -> Result<(), Failure> {
    let topic = settings.topic_arn.clone().ok_or(Error::Off).map_err(Failure::of)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::of)?;
    let sent = runtime.block_on(async {
        let place = run::place(instance, settings).await;
        let notifier = Arc::new(Sns::new(&topic));
        match words {
            Some((subject, message)) => alert::note(settings, &place, &subject, &message, notifier).await,
            None => alert::test(settings, &place, notifier).await,
        }
    });
    match sent {
        Ok(id) => print(&format!("sent to {topic}: {id}\n")),
        Err(waits @ Error::Waits { .. }) => Err(Failure::Busy(waits.to_string())),
        Err(other) => Err(Failure::of(other)),
    }
}
