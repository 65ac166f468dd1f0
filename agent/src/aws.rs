//! How a client of an AWS service is kept: made when it is first needed, made anew when it seems of no use any more.
//! In: what came of each call. Out: a client with timeouts and retries of our own, and what an error stems from.
//! Never: names a service; keeps credentials that were refused.
//! Spec: AWS SDK for Rust Developer Guide "Configuring timeouts", "Configuring retries", "Identity caching".

use std::error::Error;
use std::time::{Duration, Instant};

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use tokio::sync::Mutex;

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Attempts of the SDK within one call; beyond that the loop of whoever calls tries again.
const ATTEMPTS: u32 = 3;

/// After this long without an answer the client is made anew: dead connections and old addresses go with it.
pub const RENEW_AFTER: Duration = Duration::from_secs(300);

/// Where credentials, region and endpoint come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From where the AWS tools take them, looked for with each new client; region and endpoint unless given here.
    Environment {
        /// Region.
        region: Option<String>,
        /// Endpoint.
        endpoint_url: Option<String>,
    },
    /// They were handed over.
    Given(SdkConfig),
}

/// What came of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// An answer, good or bad.
    Answer,
    /// The answer that the credentials are of no use.
    CredentialsRefused,
    /// Nothing.
    Nothing,
}

/// A service's client of type `C`, and the way to the next one.
#[derive(Debug)]
pub struct Door<C> {
    source: Source,
    timeouts: TimeoutConfig,
    held: Mutex<Held<C>>,
}

#[derive(Debug)]
struct Held<C> {
    client: Option<C>,
    /// When anything was last heard from the other side.
    heard: Instant,
}

impl<C: Clone> Door<C> {
    /// Asks nobody yet. `timeouts` hold for each call that does not say otherwise: with the SDK's own an endpoint that takes a
    /// request and never answers is waited for without end.
    #[must_use]
    pub fn new(source: Source, timeouts: TimeoutConfig) -> Self {
        Self { source, timeouts, held: Mutex::new(Held { client: None, heard: Instant::now() }) }
    }

    /// The client; `make` makes one when there is none. It must set a retry partition of its own with an unlimited token bucket:
    /// after a few failing calls the SDK's quota is used up, and every later call would be tried once.
    ///
    /// # Errors
    /// Those of `make`.
    pub async fn client<E>(&self, make: impl FnOnce(&SdkConfig) -> Result<C, E>) -> Result<C, E> {
        let mut held = self.held.lock().await;
        if let Some(client) = &held.client {
            return Ok(client.clone());
        }
        let config = match &self.source {
            Source::Given(config) => config.clone(),
            Source::Environment { region, endpoint_url } => look_around(region.clone(), endpoint_url.as_deref()).await,
        };
        let own = config.into_builder().timeout_config(self.timeouts.clone());
        // The cache is the client's own: with the client it forgets what was refused.
        let own = own.retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS)).identity_cache(IdentityCache::lazy().build());
        let client = make(&own.build())?;
        held.client = Some(client.clone());
        Ok(client)
    }

    /// Takes note of what came of a call, and makes room for a new client when this one seems of no use.
    pub async fn note(&self, heard: Heard, now: Instant) {
        let mut held = self.held.lock().await;
        if heard == Heard::Answer {
            held.heard = now;
        } else if heard == Heard::CredentialsRefused || now.saturating_duration_since(held.heard) > RENEW_AFTER {
            held.client = None;
            held.heard = now;
        }
    }
}

async fn look_around(region: Option<String>, endpoint_url: Option<&str>) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    if let Some(url) = endpoint_url {
        loader = loader.endpoint_url(url);
    }
    loader.load().await
}

/// Timeouts of one attempt. The read timeout counts from the beginning of the request, so it must allow for sending it.
#[must_use]
pub fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(attempt).operation_attempt_timeout(attempt).build()
}

/// An error and what it stems from, in its own words, none of them twice: the first says little, the last says most.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut link = Some(error);
    while let Some(cause) = link {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
        link = cause.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A door whose clients are numbers, and how many there were.
    struct Bench(Door<u32>, AtomicU32);

    impl Bench {
        fn new() -> Self {
            let given = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
            Self(Door::new(Source::Given(given), timeouts(Duration::from_secs(1))), AtomicU32::new(0))
        }

        async fn client(&self) -> u32 {
            self.0.client(|_| Ok::<_, ()>(self.1.fetch_add(1, Ordering::Relaxed) + 1)).await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_client_is_made_anew_after_five_minutes_of_silence_and_not_while_anything_answers() {
        let bench = Bench::new();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(bench.client().await, 1);
        bench.0.note(Heard::Nothing, after(299)).await;
        assert_eq!(bench.client().await, 1);
        bench.0.note(Heard::Answer, after(299)).await;
        bench.0.note(Heard::Nothing, after(598)).await;
        assert_eq!(bench.client().await, 1, "an answer in between counts");
        bench.0.note(Heard::Nothing, after(601)).await;
        assert_eq!(bench.client().await, 2);
        bench.0.note(Heard::Nothing, after(602)).await;
        assert_eq!(bench.client().await, 2, "the new one has its five minutes");
    }

    #[tokio::test]
    async fn refused_credentials_are_looked_for_anew_at_once() {
        let bench = Bench::new();
        assert_eq!(bench.client().await, 1);
        bench.0.note(Heard::CredentialsRefused, Instant::now()).await;
        assert_eq!(bench.client().await, 2);
    }
}
