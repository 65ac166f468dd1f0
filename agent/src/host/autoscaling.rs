//! The Auto Scaling group this instance is in: the only file that names its SDK.
//! In: calls of [`Group`]. Out: the same as requests that end in bounded time; failures by what follows from them.
//! Never: tries again by itself for longer than one call may take.
//! Spec: Amazon EC2 Auto Scaling API Reference (DescribeAutoScalingInstances, DescribeLifecycleHooks, RecordLifecycleActionHeartbeat,
//! CompleteLifecycleAction, SetInstanceProtection).

use std::error::Error as StdError;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::RetryConfig;
use aws_sdk_autoscaling::config::timeout::TimeoutConfig;
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// All attempts of one call together: a heartbeat may be due meanwhile.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const ATTEMPTS: u32 = 2;

const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";

/// Bounds of PutLifecycleHook: the heartbeat's default and least seconds, and how long a hook may hold an instance at most.
const HEARTBEAT_MIN: Duration = Duration::from_secs(30);
const GLOBAL_MAX: Duration = Duration::from_secs(48 * 3600);
const HEARTBEATS_MAX: u32 = 100;

/// What follows from a failed call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Not allowed; it will not be until a person allows it.
    Denied,
    /// There is no such action (any more): nobody waits for this call.
    NoAction,
    /// May go better next time.
    Other,
}

/// Why a call was of no use.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("cannot {act} of {instance} in its Auto Scaling group: {cause}{}", advice(*.class))]
pub struct Error {
    /// What was tried.
    pub act: &'static str,
    /// For which instance.
    pub instance: String,
    /// What follows.
    pub class: Class,
    /// The other side's words.
    pub cause: String,
}

fn advice(class: Class) -> &'static str {
    match class {
        Class::Denied => {
            "; allow the instance's role autoscaling:DescribeAutoScalingInstances, DescribeLifecycleHooks, \
             RecordLifecycleActionHeartbeat, CompleteLifecycleAction and SetInstanceProtection"
        }
        Class::NoAction | Class::Other => "",
    }
}

/// The instance as its group sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its group.
    pub group: String,
    /// Whether the group waits for [`Group::complete`].
    pub waits: bool,
    /// Whether it is protected from scale-in.
    pub protected: bool,
}

/// The hook that holds a leaving instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The group gives the instance up when no heartbeat comes for this long.
    pub heartbeat: Duration,
    /// And after this long in any case.
    pub global: Duration,
}

impl Hook {
    /// One of which only the name is known: with the least times that a hook can have.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::new(name, None, None)
    }

    fn new(name: &str, heartbeat_seconds: Option<i32>, global_seconds: Option<i32>) -> Self {
        let time = |seconds: Option<i32>| seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0).map(Duration::from_secs);
        let heartbeat = time(heartbeat_seconds).unwrap_or(HEARTBEAT_MIN);
        let bound = GLOBAL_MAX.min(heartbeat.saturating_mul(HEARTBEATS_MAX));
        Self { name: name.into(), heartbeat, global: time(global_seconds).map_or(bound, |global| global.min(bound)) }
    }
}

/// How a leaving instance ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Everything is in S3.
    Continue,
    /// It is not: a group that retains abandoned instances keeps this one.
    Abandon,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Continue => "CONTINUE",
            Self::Abandon => "ABANDON",
        }
    }
}

/// The group, seen from one instance.
#[derive(Debug)]
pub struct Group {
    instance: String,
    client: Client,
}

impl Group {
    /// Credentials, region and endpoint (`AWS_ENDPOINT_URL`) come from the environment as the AWS tools take them; `region` is used
    /// where the instance's is known. Asks nobody yet.
    pub async fn new(instance: &str, region: Option<&str>) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_timeout(CALL_TIMEOUT);
        let config = aws_sdk_autoscaling::config::Builder::from(&loader.load().await)
            .timeout_config(timeouts.build())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
        Self { instance: instance.into(), client: Client::from_conf(config.build()) }
    }

    /// The instance as the group sees it; `None` when it is in none.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn member(&self) -> Result<Option<Member>, Error> {
        let asked = self.client.describe_auto_scaling_instances().instance_ids(&self.instance).send().await;
        let answer = self.judge("ask for the lifecycle state", asked)?;
        let found = answer.auto_scaling_instances().iter().find(|found| found.instance_id() == Some(&self.instance));
        Ok(found.map(|found| Member {
            group: found.auto_scaling_group_name().unwrap_or_default().to_owned(),
            waits: found.lifecycle_state() == Some("Terminating:Wait"),
            protected: found.protected_from_scale_in().unwrap_or_default(),
        }))
    }

    /// The hooks that hold leaving instances of the group.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn hooks(&self, group: &str) -> Result<Vec<Hook>, Error> {
        let asked = self.client.describe_lifecycle_hooks().auto_scaling_group_name(group).send().await;
        let answer = self.judge("ask for the lifecycle hooks", asked)?;
        let hooks = answer.lifecycle_hooks().iter().filter(|hook| hook.lifecycle_transition() == Some(TERMINATING));
        Ok(hooks.filter_map(|hook| Some(Hook::new(hook.lifecycle_hook_name()?, hook.heartbeat_timeout(), hook.global_timeout()))).collect())
    }

    /// Says that more time is needed.
    ///
    /// # Errors
    /// When nobody took it.
    pub async fn heartbeat(&self, group: &str, hook: &str) -> Result<(), Error> {
        let call = self.client.record_lifecycle_action_heartbeat().auto_scaling_group_name(group).lifecycle_hook_name(hook);
        self.judge("prolong the end", call.instance_id(&self.instance).send().await).map(drop)
    }

    /// Says that the instance may go.
    ///
    /// # Errors
    /// When nobody took it.
    pub async fn complete(&self, group: &str, hook: &str, outcome: Outcome) -> Result<(), Error> {
        let call = self.client.complete_lifecycle_action().auto_scaling_group_name(group).lifecycle_hook_name(hook);
        let call = call.lifecycle_action_result(outcome.word());
        self.judge("complete the end", call.instance_id(&self.instance).send().await).map(drop)
    }

    /// Switches the protection from scale-in.
    ///
    /// # Errors
    /// When nobody took it.
    pub async fn protect(&self, group: &str, protect: bool) -> Result<(), Error> {
        let call = self.client.set_instance_protection().auto_scaling_group_name(group).instance_ids(&self.instance);
        self.judge("switch the scale-in protection", call.protected_from_scale_in(protect).send().await).map(drop)
    }

    fn judge<T, E, R>(&self, act: &'static str, sent: Result<T, SdkError<E, R>>) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + StdError + 'static,
        R: std::fmt::Debug,
    {
        sent.map_err(|error| {
            let (code, message) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
            let cause = if message.is_empty() { root(&error) } else { format!("{code}: {message}") };
            Error { act, instance: self.instance.clone(), class: class(code, message), cause }
        })
    }
}

/// A hook's action that has ended is a ValidationError like any other; its words are the only sign.
fn class(code: &str, message: &str) -> Class {
    match code {
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => Class::Denied,
        "ValidationError" if message.contains("No active Lifecycle Action") => Class::NoAction,
        _ => Class::Other,
    }
}

/// The last link of an error's chain: the first ones only say that the request failed.
fn root(error: &dyn StdError) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hooks_times_are_bounded_as_the_service_bounds_them() {
        let seconds = |heartbeat, global| {
            let hook = Hook::new("h", heartbeat, global);
            (hook.heartbeat.as_secs(), hook.global.as_secs())
        };
        assert_eq!(seconds(Some(3600), Some(172_800)), (3600, 172_800));
        assert_eq!(seconds(Some(3600), None), (3600, 172_800));
        assert_eq!(seconds(Some(60), Some(172_800)), (60, 6000));
        assert_eq!(seconds(None, Some(-1)), (30, 3000));
        assert_eq!(seconds(Some(0), Some(40)), (30, 40));
    }

    #[test]
    fn what_follows_from_a_failure_is_told_by_its_code() {
        assert_eq!(class("AccessDenied", "no"), Class::Denied);
        assert_eq!(class("ValidationError", "No active Lifecycle Action found with instance ID i-1"), Class::NoAction);
        assert_eq!(class("ValidationError", "1 validation error detected"), Class::Other);
        assert_eq!(class("", ""), Class::Other);
    }
}
