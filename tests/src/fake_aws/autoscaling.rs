//! The group of one instance, as its query API answers.
//! In: the instance's lifecycle state. Out: XML, and which calls came. Never: takes a call that is not signed, is denied, or does not fit
//! the state; a hook whose heartbeats stop lets the instance go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::http::{Answer, Request, serve};

const VERSION: &str = "2011-01-01";
const NAMESPACE: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";

/// Name of the group.
pub const GROUP: &str = "capture fleet/1";

/// A hook for terminating instances.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its name.
    pub name: &'static str,
    /// Without a heartbeat for this long the instance is let go, seconds.
    pub heartbeat: u64,
    /// As DescribeLifecycleHooks tells it, seconds.
    pub global: u64,
}

/// A call that was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// RecordLifecycleActionHeartbeat.
    Heartbeat,
    /// CompleteLifecycleAction: the result, and the files that the spool held then.
    Complete(String, Vec<String>),
    /// SetInstanceProtection.
    Protect(bool),
}

/// A running one.
#[derive(Debug)]
pub struct AutoScaling {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    instance: String,
    spool: PathBuf,
    lifecycle: String,
    hooks: Vec<Hook>,
    denied: bool,
    protected: bool,
    /// Until when the hook holds the instance.
    held_until: Option<Instant>,
    calls: Vec<Call>,
    /// How often each action was asked for.
    asked: BTreeMap<String, u64>,
}

/// Code and message of a refusal.
type Refusal = (u16, &'static str, String);

impl AutoScaling {
    /// One in this thread's network namespace: `instance` is in service, `hooks` hold it when it leaves. `spool` is looked at when it says
    /// that it may go.
    #[must_use]
    pub fn start(instance: &str, spool: &Path, hooks: &[Hook]) -> Self {
        let state = Arc::new(Mutex::new(State {
            instance: instance.into(),
            spool: spool.into(),
            lifecycle: "InService".into(),
            hooks: hooks.to_vec(),
            denied: false,
            protected: false,
            held_until: None,
            calls: Vec::new(),
            asked: BTreeMap::new(),
        }));
        let address = serve({
            let state = state.clone();
            move |request| Some(state.lock().unwrap().answer(request))
        });
        Self { address, state }
    }

    /// For `AWS_ENDPOINT_URL_AUTO_SCALING`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts the instance into a state; `Terminating:Wait` begins the hook's time.
    pub fn lifecycle(&self, lifecycle: &str) {
        let mut state = self.state();
        state.lifecycle = lifecycle.into();
        let heartbeat = state.hooks.first().map(|hook| Duration::from_secs(hook.heartbeat));
        state.held_until = heartbeat.filter(|_| lifecycle == "Terminating:Wait").map(|heartbeat| Instant::now() + heartbeat);
    }

    /// Whether every call is denied.
    pub fn denied(&self, denied: bool) {
        self.state().denied = denied;
    }

    /// Whether the instance is protected from scale-in, as somebody else has it.
    pub fn protected(&self, protected: bool) {
        self.state().protected = protected;
    }

    /// What was taken so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// How often an action was asked for, taken or not.
    #[must_use]
    pub fn asked(&self, action: &str) -> u64 {
        self.state().asked.get(action).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        match self.act(request) {
            Ok((action, body)) => {
                let result =
                    if body.is_empty() { format!("<{action}Result/>") } else { format!("<{action}Result>{body}</{action}Result>") };
                let meta = "<ResponseMetadata><RequestId>r-1</RequestId></ResponseMetadata>";
                xml(200, format!("<{action}Response xmlns=\"{NAMESPACE}\">{result}{meta}</{action}Response>"))
            }
            Err((status, code, message)) => xml(
                status,
                format!(
                    "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                     <RequestId>r-1</RequestId></ErrorResponse>"
                ),
            ),
        }
    }

    fn act(&mut self, request: &Request) -> Result<(String, String), Refusal> {
        let signature = request.headers.get("authorization").cloned().unwrap_or_default();
        let signed = signature.starts_with("AWS4-HMAC-SHA256 Credential=") && signature.contains("/autoscaling/aws4_request");
        if !signed || !request.headers.contains_key("x-amz-date") {
            return Err((403, "MissingAuthenticationToken", "Request is missing Authentication Token".into()));
        }
        let form = decoded(&request.body);
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if request.method != "POST" || field("Version") != VERSION {
            return Err((400, "InvalidAction", format!("{} {}", request.method, field("Version"))));
        }
        let action = field("Action").to_owned();
        *self.asked.entry(action.clone()).or_default() += 1;
        if self.denied {
            return Err((403, "AccessDenied", format!("User is not authorized to perform: autoscaling:{action}")));
        }
        let body = match action.as_str() {
            "DescribeAutoScalingInstances" => self.instances(field("InstanceIds.member.1")),
            "DescribeLifecycleHooks" => self.describe_hooks(field("AutoScalingGroupName"))?,
            "RecordLifecycleActionHeartbeat" => {
                let hook = self.active_hook(&form)?;
                self.held_until = Some(Instant::now() + Duration::from_secs(hook.heartbeat));
                self.calls.push(Call::Heartbeat);
                String::new()
            }
            "CompleteLifecycleAction" => {
                self.active_hook(&form)?;
                let result = field("LifecycleActionResult");
                if !["CONTINUE", "ABANDON"].contains(&result) {
                    return Err((400, "ValidationError", format!("{result} is no result")));
                }
                self.calls.push(Call::Complete(result.into(), files(&self.spool)));
                (self.lifecycle, self.held_until) = ("Terminating:Proceed".into(), None);
                String::new()
            }
            "SetInstanceProtection" => self.protect(&form)?,
            _ => return Err((400, "InvalidAction", format!("no action {action}"))),
        };
        Ok((action, body))
    }

    fn instances(&self, instance: &str) -> String {
        if instance != self.instance {
            return "<AutoScalingInstances/>".into();
        }
        format!(
            "<AutoScalingInstances><member><InstanceId>{instance}</InstanceId><AutoScalingGroupName>{GROUP}</AutoScalingGroupName>\
             <AvailabilityZone>eu-north-1a</AvailabilityZone><LifecycleState>{}</LifecycleState><HealthStatus>HEALTHY</HealthStatus>\
             <ProtectedFromScaleIn>{}</ProtectedFromScaleIn></member></AutoScalingInstances>",
            self.lifecycle, self.protected
        )
    }

    fn describe_hooks(&self, group: &str) -> Result<String, Refusal> {
        self.is_ours(group)?;
        let hook = |hook: &Hook, transition: &str| {
            format!(
                "<member><LifecycleHookName>{}</LifecycleHookName><AutoScalingGroupName>{GROUP}</AutoScalingGroupName>\
                 <LifecycleTransition>autoscaling:EC2_INSTANCE_{transition}</LifecycleTransition><HeartbeatTimeout>{}</HeartbeatTimeout>\
                 <GlobalTimeout>{}</GlobalTimeout><DefaultResult>ABANDON</DefaultResult></member>",
                hook.name, hook.heartbeat, hook.global
            )
        };
        // One of another kind, which must be left alone.
        let launching = hook(&Hook { name: "launching", heartbeat: 60, global: 6000 }, "LAUNCHING");
        let terminating: String = self.hooks.iter().map(|found| hook(found, "TERMINATING")).collect();
        Ok(format!("<LifecycleHooks>{launching}{terminating}</LifecycleHooks>"))
    }

    /// The hook that the call names, while it holds the instance.
    fn active_hook(&mut self, form: &BTreeMap<String, String>) -> Result<Hook, Refusal> {
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        self.is_ours(field("AutoScalingGroupName"))?;
        let name = field("LifecycleHookName");
        let hook = self.hooks.iter().find(|hook| hook.name == name).cloned();
        let hook = hook.ok_or_else(|| (400, "ValidationError", format!("Lifecycle hook '{name}' not found")))?;
        if self.held_until.is_some_and(|end| Instant::now() > end) {
            (self.lifecycle, self.held_until) = ("Terminating:Proceed".into(), None);
        }
        if field("InstanceId") != self.instance || self.lifecycle != "Terminating:Wait" {
            return Err((400, "ValidationError", format!("No active Lifecycle Action found with instance ID {}", field("InstanceId"))));
        }
        Ok(hook)
    }

    fn protect(&mut self, form: &BTreeMap<String, String>) -> Result<String, Refusal> {
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        self.is_ours(field("AutoScalingGroupName"))?;
        if field("InstanceIds.member.1") != self.instance || self.lifecycle != "InService" {
            return Err((400, "ValidationError", "The instance is not in InService or EnteringStandby or Standby".into()));
        }
        let protect = field("ProtectedFromScaleIn").parse().map_err(|_| (400, "ValidationError", "true or false".to_owned()))?;
        self.calls.push(Call::Protect(protect));
        self.protected = protect;
        Ok(String::new())
    }

    fn is_ours(&self, group: &str) -> Result<(), Refusal> {
        if group == GROUP { Ok(()) } else { Err((400, "ValidationError", format!("AutoScalingGroup name not found: {group}"))) }
    }
}

fn xml(status: u16, body: String) -> Answer {
    Answer { headers: vec![("Content-Type", "text/xml".into())], ..Answer::new(status, body) }
}

/// The fields of a form, decoded (application/x-www-form-urlencoded).
fn decoded(body: &str) -> BTreeMap<String, String> {
    body.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (plain(name), plain(value))).collect()
}

fn plain(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(out).unwrap()
}

/// Names of the files of segments there.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
    let names: BTreeSet<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.into_iter().collect()
}
