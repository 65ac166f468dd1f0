//! The notifier that is Amazon SNS: the only file that names its SDK.
//! In: calls of [`Notifier`]. Out: the same as requests that end in bounded time. Never: stops retrying for want of retry tokens.
//! Spec: Amazon SNS API Reference (Publish, ListSubscriptionsByTopic); AWS SDK for Rust Developer Guide "Configuring timeouts".

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sns::Client;
use aws_sdk_sns::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use aws_sdk_sns::config::timeout::TimeoutConfig;
use aws_sdk_sns::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::Mutex;

use super::mail::Mail;
use super::notifier::{Error, Notifier};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// All attempts of one call together: whoever waits for it may be a service manager.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Attempts of the SDK within one call; beyond that the sender's own loop tries again.
const ATTEMPTS: u32 = 3;

/// After this long without an answer the client is made anew: dead connections and old addresses go with it.
const RENEW_AFTER: Duration = Duration::from_secs(300);

/// Pages of subscriptions that are looked through for a confirmed one: 100 on each.
const PAGES_MAX: usize = 20;

/// The notifier that is Amazon SNS, or speaks like it.
#[derive(Debug)]
pub struct Sns {
    topic_arn: String,
    /// Credentials, region and endpoint that were handed over; else they are looked for with each new client.
    shared: Option<SdkConfig>,
    door: Mutex<Door>,
}

#[derive(Debug)]
struct Door {
    client: Option<Client>,
    /// When anything was last heard from the other side.
    heard: Instant,
}

impl Sns {
    /// A notifier for the topic; the region is that of its ARN, credentials and endpoint come from the environment as the AWS
    /// tools take them. Asks nobody yet.
    #[must_use]
    pub fn new(topic_arn: &str) -> Self {
        Self { topic_arn: topic_arn.into(), shared: None, door: Mutex::new(Door { client: None, heard: Instant::now() }) }
    }

    /// One that takes credentials, region and endpoint from `shared` and not from the environment; timeouts and retries stay
    /// its own.
    #[must_use]
    pub fn with_config(topic_arn: &str, shared: SdkConfig) -> Self {
        Self { shared: Some(shared), ..Self::new(topic_arn) }
    }

    async fn client(&self) -> Client {
        let mut door = self.door.lock().await;
        if let Some(client) = &door.client {
            return client.clone();
        }
        let shared = match &self.shared {
            Some(shared) => shared.clone(),
            None => look_around(&self.topic_arn).await,
        };
        let client = client(&shared);
        door.client = Some(client.clone());
        client
    }

    /// Gives a failure its act, topic and cause, and makes room for a new client when the old one seems useless.
    async fn judge<T, E, R>(&self, act: &'static str, sent: Result<T, SdkError<E, R>>) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + StdError + 'static,
        R: std::fmt::Debug,
    {
        let mut door = self.door.lock().await;
        let error = match sent {
            Ok(done) => {
                door.heard = Instant::now();
                return Ok(done);
            }
            Err(error) => error,
        };
        let code = error.code().unwrap_or_default().to_owned();
        if error.raw_response().is_some() {
            door.heard = Instant::now();
        }
        let expired = matches!(code.as_str(), "ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId");
        if expired || door.heard.elapsed() > RENEW_AFTER {
            door.client = None;
            door.heard = Instant::now();
        }
        Err(Error { act, topic: self.topic_arn.clone(), cause: describe(&code, &error), advice: advice(&code) })
    }
}

impl Notifier for Sns {
    async fn publish(&self, mail: &Mail) -> Result<(), Error> {
        let call = self.client().await.publish().topic_arn(&self.topic_arn);
        let sent = call.subject(&mail.subject).message(&mail.body).send().await;
        self.judge("publish to", sent).await.map(drop)
    }

    async fn reaches(&self) -> Result<bool, Error> {
        let client = self.client().await;
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

async fn look_around(topic_arn: &str) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = region_of(topic_arn) {
        loader = loader.region(Region::new(region.to_owned()));
    }
    loader.load().await
}

/// A client with timeouts and retries of our own: the SDK's defaults wait without end for an endpoint that never answers, and
/// after a few failing calls its retry quota is used up.
fn client(shared: &SdkConfig) -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(ATTEMPT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(CALL_TIMEOUT);
    let config = aws_sdk_sns::config::Builder::from(shared)
        .timeout_config(timeouts.build())
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .retry_partition(RetryPartition::custom("tapfleet-alert").token_bucket(TokenBucket::unlimited()).build());
    Client::from_conf(config.build())
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
    let mut text = if code.is_empty() { String::new() } else { code.to_owned() };
    let mut link: Option<&dyn StdError> = if error.raw_response().is_some() { None } else { error.source() };
    while let Some(cause) = link {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
        link = cause.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

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
