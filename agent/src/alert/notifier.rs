//! What the sender asks of a topic, and what it may answer: the seam at which tests put a failing one.
//! In: mails. Out: done, or an error that says what to do. Never: names the SDK.

use std::fmt;
use std::future::Future;

use super::mail::Mail;

/// Why the topic did not do it. All may go better next time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// What was tried.
    pub act: &'static str,
    /// With which topic.
    pub topic: String,
    /// Why not, in the other side's words.
    pub cause: String,
    /// What to do about it; may be empty.
    pub advice: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}{}", self.act, self.topic, self.cause, self.advice)
    }
}

impl std::error::Error for Error {}

/// Who takes mails to people.
pub trait Notifier: Send + Sync + 'static {
    /// Sends a mail; done means that it was taken (Publish).
    fn publish(&self, mail: &Mail) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether anybody would get it: a confirmed subscription (ListSubscriptionsByTopic, until one is found).
    fn reaches(&self) -> impl Future<Output = Result<bool, Error>> + Send;
}
