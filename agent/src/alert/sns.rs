//! The notifier that is Amazon SNS: the only file that names its SDK.
//! In: calls of [`Notifier`]. Out: the same as requests that end in bounded time. Never: stops retrying for want of retry tokens.
//! Spec: Amazon SNS API Reference (Publish, ListSubscriptionsByTopic); AWS SDK for Rust Developer Guide "Configuring timeouts".

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_sdk_sns::Client;
use aws_sdk_sns::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_sns::error::{ProvideErrorMetadata, SdkError};

use super::mail::Mail;
use super::notifier::{Error, Notifier};
use crate::aws::{Door, Heard, Source, causes, timeouts};

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// All attempts of one call together: whoever waits for it may be a service manager.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Pages of subscriptions that are looked through for a confirmed one: 100 on each.
const PAGES_MAX: usize = 20;

/// The notifier that is Amazon SNS, or speaks like it.
#[derive(Debug)]
pub struct Sns {
    topic_arn: String,
    door: Door<Client>,
}

impl Sns {
    /// A notifier for the topic; the region is that of its ARN, credentials and endpoint come from the environment as the AWS
    /// tools take them. Asks nobody yet.
    #[must_use]
    pub fn new(topic_arn: &str) -> Self {
        Self::at(topic_arn, Source::Environment { region: region_of(topic_arn).map(str::to_owned), endpoint_url: None })
    }

    /// One that takes credentials, region and endpoint from `shared` and not from the environment; timeouts and retries stay
    /// its own.
    #[must_use]
    pub fn with_config(topic_arn: &str, shared: SdkConfig) -> Self {
        Self::at(topic_arn, Source::Given(shared))
    }

    fn at(topic_arn: &str, source: Source) -> Self {
        let timeouts = timeouts(ATTEMPT_TIMEOUT).into_builder().operation_timeout(CALL_TIMEOUT).build();
        Self { topic_arn: topic_arn.into(), door: Door::new(source, timeouts) }
    }

    async fn client(&self) -> Result<Client, Error> {
        let unknown = |cause: &str| Error { act: "reach", topic: self.topic_arn.clone(), cause: cause.into(), advice: "" };
        self.door.client(client).await.map_err(unknown)
    }

    /// Gives a failure its act, topic and cause.
    async fn judge<T, E, R>(&self, act: &'static str, sent: Result<T, SdkError<E, R>>) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + StdError + 'static,
        R: std::fmt::Debug,
    {
        let error = match sent {
            Ok(done) => {
                self.door.note(Heard::Answer, Instant::now()).await;
                return Ok(done);
            }
            Err(error) => error,
        };
        let code = error.code().unwrap_or_default().to_owned();
        let heard = match code.as_str() {
            "ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId" => Heard::CredentialsRefused,
            _ if error.raw_response().is_some() => Heard::Answer,
            _ => Heard::Nothing,
        };
        self.door.note(heard, Instant::now()).await;
        Err(Error { act, topic: self.topic_arn.clone(), cause: describe(&code, &error), advice: advice(&code) })
    }
}

impl Notifier for Sns {
    async fn publish(&self, mail: &Mail) -> Result<(), Error> {
        let call = self.client().await?.publish().topic_arn(&self.topic_arn);
        let sent = call.subject(&mail.subject).message(&mail.body).send().await;
        self.judge("publish to", sent).await.map(drop)
    }

    async fn reaches(&self) -> Result<bool, Error> {
        let client = self.client().await?;
        let mut token = None;
        for _ in 0..PAGES_MAX {
            let call = client.list_subscriptions_by_topic().topic_arn(&self.topic_arn).set_next_token(token);
            let page = self.judge("list the subscriptions of", call.send().await).await?;
            if page.subscriptions().iter().filter_map(|subscription| subscription.subscription_arn()).any(is_confirmed) {
                return Ok(true);
            }
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// One that waits for its confirmation has the word "PendingConfirmation" for an ARN, one that was removed "Deleted".
fn is_confirmed(subscription_arn: &str) -> bool {
    subscription_arn.starts_with("arn:")
}

/// `arn:partition:sns:region:account:name`.
fn region_of(topic_arn: &str) -> Option<&str> {
    topic_arn.split(':').nth(3).filter(|region| !region.is_empty())
}

fn client(shared: &SdkConfig) -> Result<Client, &'static str> {
    if shared.region().is_none() {
        return Err("the region is not known: alert.topic_arn does not name one, and AWS_REGION is not set");
    }
    let config = aws_sdk_sns::config::Builder::from(shared)
        .retry_partition(RetryPartition::custom("tapfleet-alert").token_bucket(TokenBucket::unlimited()).build());
    Ok(Client::from_conf(config.build()))
}

fn advice(code: &str) -> &'static str {
    match code {
        "AuthorizationError" | "AuthorizationErrorException" | "AccessDenied" | "AccessDeniedException" => {
            "; allow the agent's role sns:Publish and sns:ListSubscriptionsByTopic on the topic and, with a KMS key, \
             kms:GenerateDataKey and kms:Decrypt"
        }
        "NotFound" | "NotFoundException" => "; make the topic, or name another (alert.topic_arn)",
        _ => "",
    }
}

/// The code and the service's words, or what kept the request from being answered.
fn describe<E: ProvideErrorMetadata + StdError + 'static, R: std::fmt::Debug>(code: &str, error: &SdkError<E, R>) -> String {
    if let Some(message) = error.message() {
        return format!("{code}: {message}");
    }
    // The request's own error comes first and says little; what it stems from says more.
    let cause = error.source().filter(|_| error.raw_response().is_none()).map(causes);
    let words = [code.to_owned(), cause.unwrap_or_default()].into_iter().filter(|words| !words.is_empty());
    let text = words.collect::<Vec<_>>().join(": ");
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_config::{BehaviorVersion, Region};

    #[test]
    fn the_region_is_that_of_the_topic() {
        assert_eq!(region_of("arn:aws:sns:eu-north-1:123456789012:alerts"), Some("eu-north-1"));
        assert_eq!(region_of("alerts"), None);
    }

    #[test]
    fn a_subscription_that_waits_for_its_confirmation_or_is_gone_reaches_nobody() {
        let confirmed = ["PendingConfirmation", "Deleted", "", "arn:aws:sns:eu-north-1:123456789012:alerts:0-1"].map(is_confirmed);
        assert_eq!(confirmed, [false, false, false, true]);
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_act_topic_and_cause_and_soon() {
        let shared = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-north-1"))
            .endpoint_url("http://127.0.0.1:1")
            .build();
        let topic = "arn:aws:sns:eu-north-1:123456789012:alerts";
        let begun = Instant::now();
        let error = Sns::with_config(topic, shared).reaches().await.expect_err("nobody answers").to_string();
        assert!(error.starts_with(&format!("cannot list the subscriptions of {topic}: ")), "{error}");
        assert!(begun.elapsed() < CALL_TIMEOUT, "{:?}", begun.elapsed());
    }
}
