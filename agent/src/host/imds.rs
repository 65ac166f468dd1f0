//! In: instance metadata (IMDSv2; `AWS_EC2_METADATA_SERVICE_ENDPOINT` names another endpoint). Out: which instance this is, and whether it
//! is to leave.
//! Never: IMDSv1, a wait of more than some seconds for one answer, an answer that is not what it should be.
//! Spec: Amazon EC2 User Guide "Instance metadata categories", "Spot Instance interruption notices"; Amazon EC2 Auto Scaling User Guide
//! "Retrieve the target lifecycle state through instance metadata".

use std::error::Error as StdError;
use std::time::Duration;

use aws_config::imds::Client;
use aws_config::imds::client::SensitiveString;
use aws_config::imds::client::error::ImdsError;
use chrono::DateTime;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

/// One attempt; on an instance the service answers within milliseconds, elsewhere nobody does.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 2;

/// At boot the agent may be there before the route to the service is: for so long it asks anew, with this pause.
const BOOT_PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// What of a wrong answer an error repeats, characters.
const SHOWN_MAX: usize = 40;

const TARGET_STATE: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
const INSTANCE_ACTION: &str = "/latest/meta-data/spot/instance-action";
const GROUP_TAG: &str = "/latest/meta-data/tags/instance/aws:autoscaling:groupName";

/// Which instance this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// `i-` and 8 or 17 hexadecimal digits.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its availability zone.
    pub az: String,
}

/// Where Auto Scaling takes this instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Into service, or it is there.
    InService,
    /// To its end.
    Terminated,
    /// Elsewhere: standby, a warm pool, out of the group. No end, and not in service.
    Elsewhere,
}

/// The notice that a spot instance is about to be taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interruption {
    /// When, nanoseconds since 1970.
    pub at_ns: u64,
}

/// The instance metadata did not say it.
#[derive(thiserror::Error, Debug)]
#[error(
    "cannot read {path} of the instance metadata (IMDSv2): {cause}; is this an EC2 instance, is its metadata service enabled, and, in a container, \
     is the hop limit at least 2? Otherwise set instance.id, instance.region and instance.az"
)]
pub struct Error {
    /// What was asked for.
    pub path: &'static str,
    /// Why there was no answer, or none of use.
    pub cause: String,
}

/// Asks the instance metadata which instance this is, once.
///
/// # Errors
/// When there is none, it does not answer in time, or not what it should.
pub async fn instance() -> Result<Instance, Error> {
    Metadata::default().instance().await
}

/// The same for an agent that starts, which asks anew for [`BOOT_PATIENCE`].
///
/// # Errors
/// As [`instance`].
pub async fn instance_at_boot() -> Result<Instance, Error> {
    let mut metadata = Metadata::default();
    let begun = Instant::now();
    loop {
        match metadata.instance().await {
            Err(_) if begun.elapsed() < BOOT_PATIENCE => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

/// Whether the environment forbids to ask, as the AWS tools have it.
#[must_use]
pub fn is_forbidden() -> bool {
    std::env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"))
}

/// The instance metadata. Its token is renewed before it expires, and when it is refused all the same.
#[derive(Default, Debug)]
pub struct Metadata {
    client: Option<Client>,
}

impl Metadata {
    /// Which instance this is.
    ///
    /// # Errors
    /// As [`instance`].
    pub async fn instance(&mut self) -> Result<Instance, Error> {
        Ok(Instance {
            id: self.must("/latest/meta-data/instance-id", "an instance id", is_instance).await?,
            region: self.must("/latest/meta-data/placement/region", "a region", is_place).await?,
            az: self.must("/latest/meta-data/placement/availability-zone", "an availability zone", is_place).await?,
        })
    }

    /// Where Auto Scaling takes it; `None` when it is in no group.
    ///
    /// # Errors
    /// When there was no answer, or not one of a state.
    pub async fn target(&mut self) -> Result<Option<Target>, Error> {
        let state = self.checked(TARGET_STATE, "a lifecycle state", is_state).await?;
        Ok(state.map(|state| match state.as_str() {
            "InService" => Target::InService,
            "Terminated" => Target::Terminated,
            _ => Target::Elsewhere,
        }))
    }

    /// Whether, and when, it is taken away; `None` while no notice was given.
    ///
    /// # Errors
    /// When there was no answer, or not one of a notice.
    pub async fn interruption(&mut self) -> Result<Option<Interruption>, Error> {
        match self.get(INSTANCE_ACTION).await? {
            None => Ok(None),
            Some(text) => read_notice(&text).map(Some).ok_or_else(|| wrong(INSTANCE_ACTION, &text, "the notice of an interruption")),
        }
    }

    /// Its Auto Scaling group; `None` when the metadata has no tags.
    ///
    /// # Errors
    /// When there was no answer, or not one of a name.
    pub async fn group(&mut self) -> Result<Option<String>, Error> {
        self.checked(GROUP_TAG, "the name of an Auto Scaling group", is_group).await
    }

    async fn must(&mut self, path: &'static str, what: &str, fits: fn(&str) -> bool) -> Result<String, Error> {
        self.checked(path, what, fits).await?.ok_or_else(|| Error { path, cause: "there is no such entry (404)".into() })
    }

    async fn checked(&mut self, path: &'static str, what: &str, fits: fn(&str) -> bool) -> Result<Option<String>, Error> {
        match self.get(path).await? {
            Some(text) if !fits(&text) => Err(wrong(path, &text, what)),
            found => Ok(found),
        }
    }

    /// One entry; `None` when there is none.
    async fn get(&mut self, path: &'static str) -> Result<Option<String>, Error> {
        let mut answer = self.ask(path).await;
        if status(&answer) == Some(401) {
            // The SDK keeps a token until it expires, also when it is refused: a new client asks for a new one.
            self.client = None;
            answer = self.ask(path).await;
        }
        match status(&answer) {
            Some(404) => Ok(None),
            _ => answer.map(|text| Some(text.as_ref().trim().to_owned())).map_err(|error| Error { path, cause: chain(&error) }),
        }
    }

    async fn ask(&mut self, path: &'static str) -> Result<SensitiveString, ImdsError> {
        self.client.get_or_insert_with(|| builder().build()).get(path).await
    }
}

/// How the service refused.
fn status(answer: &Result<SensitiveString, ImdsError>) -> Option<u16> {
    match answer {
        Err(ImdsError::ErrorResponse(refusal)) => Some(refusal.response().status().as_u16()),
        _ => None,
    }
}

fn builder() -> aws_config::imds::client::Builder {
    let builder = Client::builder().max_attempts(ATTEMPTS).connect_timeout(ATTEMPT_TIMEOUT).read_timeout(ATTEMPT_TIMEOUT);
    builder.operation_attempt_timeout(ATTEMPT_TIMEOUT)
}

fn wrong(path: &'static str, text: &str, what: &str) -> Error {
    let shown: String = text.chars().take(SHOWN_MAX).collect();
    Error { path, cause: format!("{shown:?} is not {what}") }
}

/// It becomes part of object keys.
fn is_instance(text: &str) -> bool {
    let digits = text.strip_prefix("i-").unwrap_or_default();
    [8, 17].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_place(text: &str) -> bool {
    (1..64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_state(text: &str) -> bool {
    (1..64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':')
}

/// Amazon EC2 Auto Scaling API Reference, CreateAutoScalingGroup, AutoScalingGroupName.
fn is_group(text: &str) -> bool {
    (1..256).contains(&text.len()) && !text.contains(':') && !text.contains(char::is_control)
}

fn read_notice(text: &str) -> Option<Interruption> {
    #[derive(Deserialize)]
    struct Notice {
        time: String,
    }
    let notice: Notice = serde_json::from_str(text).ok()?;
    let at = DateTime::parse_from_rfc3339(&notice.time).ok()?.timestamp_nanos_opt()?;
    Some(Interruption { at_ns: u64::try_from(at).ok()? })
}

/// The error and what it stems from, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, put};
    use tokio::net::TcpListener;

    async fn serve(router: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        endpoint
    }

    fn with_token(text: &'static str) -> axum::routing::MethodRouter {
        get(move |headers: HeaderMap| async move {
            let allowed = headers.get("x-aws-ec2-metadata-token").is_some_and(|token| token == "T");
            if allowed { (StatusCode::OK, text) } else { (StatusCode::UNAUTHORIZED, "") }
        })
    }

    fn metadata(endpoint: &str) -> Metadata {
        Metadata { client: Some(builder().endpoint(endpoint).unwrap().build()) }
    }

    fn answers(id: &'static str, region: &'static str) -> Router {
        Router::new()
            .route("/latest/api/token", put(|| async { ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], "T") }))
            .route("/latest/meta-data/instance-id", with_token(id))
            .route("/latest/meta-data/placement/region", with_token(region))
            .route("/latest/meta-data/placement/availability-zone", with_token("eu-north-1b"))
            .route("/latest/meta-data/autoscaling/target-lifecycle-state", with_token("Terminated"))
            .route("/latest/meta-data/spot/instance-action", with_token(r#"{"action": "terminate", "time": "2026-11-22T00:15:00Z"}"#))
    }

    #[tokio::test]
    async fn the_instance_and_its_end_are_told_to_who_brings_a_token() {
        let mut metadata = metadata(&serve(answers("i-0123456789abcdef0\n", "eu-north-1")).await);
        let instance = metadata.instance().await.unwrap();
        assert_eq!(
            (instance.id.as_str(), instance.region.as_str(), instance.az.as_str()),
            ("i-0123456789abcdef0", "eu-north-1", "eu-north-1b")
        );
        assert_eq!(metadata.target().await.unwrap(), Some(Target::Terminated));
        assert_eq!(metadata.interruption().await.unwrap(), Some(Interruption { at_ns: 1_795_306_500_000_000_000 }));
        assert_eq!(metadata.group().await.unwrap(), None, "no tags, no error");
    }

    #[tokio::test]
    async fn an_answer_that_would_not_fit_into_a_key_is_refused_and_shown() {
        for (id, region, shown) in [
            ("i-../../manifest/x", "eu-north-1", r#""i-../../manifest/x" is not an instance id"#),
            ("i-0123456789ABCDEF0", "eu-north-1", "is not an instance id"),
            ("<html>\u{0}", "eu-north-1", r#""<html>\0" is not an instance id"#),
            ("i-01234567", "eu north", r#""eu north" is not a region"#),
        ] {
            let error = metadata(&serve(answers(id, region)).await).instance().await.unwrap_err().to_string();
            assert!(error.contains(shown), "{error}");
        }
    }

    #[test]
    fn a_notice_that_is_none_is_refused() {
        for text in ["", "{}", "terminate", r#"{"time": "soon"}"#, r#"{"time": "1900-01-01T00:00:00Z"}"#, r#"{"time": 5}"#] {
            assert_eq!(read_notice(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn without_metadata_the_error_comes_soon_and_says_what_to_set() {
        let begun = std::time::Instant::now();
        let error = metadata("http://127.0.0.1:1").instance().await.unwrap_err().to_string();
        assert!(error.contains("instance-id") && error.contains("instance.id"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
