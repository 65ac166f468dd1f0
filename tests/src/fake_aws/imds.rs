//! Instance metadata, version 2 only.
//! In: entries. Out: what `PUT /latest/api/token` and `GET /latest/meta-data/…` answer. Never: answers without a valid token.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};

use super::http::{Answer, Request, serve};

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

/// Where the role's credentials are, below `/latest/meta-data/`: alone the name of the role, with it they themselves.
const ROLE: &str = "iam/security-credentials/";

/// Longer than any client waits.
const SILENCE: Duration = Duration::from_secs(30);

/// Credentials of a role, as a client gets them.
#[derive(Clone, Debug)]
pub struct Keys {
    /// `AccessKeyId`.
    pub access_key: &'static str,
    /// `SecretAccessKey`.
    pub secret: &'static str,
    /// `Token`.
    pub token: &'static str,
    /// `Expiration`; told in whole seconds.
    pub expires: SystemTime,
}

/// As in the documents of the role (User Guide, "Retrieve security credentials from instance metadata").
const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";

/// In place of a status: there is no answer.
const NEVER: u16 = 0;

/// What comes of asking for the role's credentials.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Source {
    /// They do.
    #[default]
    Works,
    /// An error of the server.
    Fails,
    /// Nothing, and the connection stays.
    Hangs,
}

/// A running one.
#[derive(Debug)]
pub struct Imds {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default, Debug)]
struct State {
    entries: BTreeMap<String, String>,
    tokens: HashMap<String, Instant>,
    issued: u64,
    dead: bool,
    source: Source,
}

impl Imds {
    /// One in this thread's network namespace, of an instance in service.
    #[must_use]
    pub fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let address = serve({
            let state = state.clone();
            move |request| {
                let answer = state.lock().unwrap().answer(request);
                if answer.as_ref().is_some_and(|answer| answer.status == NEVER) {
                    thread::sleep(SILENCE);
                    return None;
                }
                answer
            }
        });
        let imds = Self { address, state };
        imds.target("InService");
        imds
    }

    /// For `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets an entry below `/latest/meta-data/`.
    pub fn set(&self, name: &str, text: &str) {
        self.state.lock().unwrap().entries.insert(name.into(), text.into());
    }

    /// Where Auto Scaling takes the instance.
    pub fn target(&self, state: &str) {
        self.set("autoscaling/target-lifecycle-state", state);
    }

    /// Gives the instance a role of that name with these credentials.
    pub fn role(&self, name: &str, keys: &Keys) {
        let expires: DateTime<Utc> = keys.expires.into();
        let json = serde_json::json!({
            "Code": "Success",
            "LastUpdated": Utc::now().format(TIME).to_string(),
            "Type": "AWS-HMAC",
            "AccessKeyId": keys.access_key,
            "SecretAccessKey": keys.secret,
            "Token": keys.token,
            "Expiration": expires.format(TIME).to_string(),
        });
        self.set(ROLE, name);
        self.set(&format!("{ROLE}{name}"), &json.to_string());
    }

    /// What comes of asking for the role's credentials from now on; all other entries stay as they are.
    pub fn source(&self, source: Source) {
        self.state.lock().unwrap().source = source;
    }

    /// Refuses every token that was given out.
    pub fn revoke(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    /// How many tokens were given out.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.state.lock().unwrap().issued
    }

    /// Whether it says nothing any more.
    pub fn dead(&self, dead: bool) {
        self.state.lock().unwrap().dead = dead;
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Option<Answer> {
        if self.dead {
            return None;
        }
        if request.path == "/latest/api/token" {
            return Some(self.token(request));
        }
        let valid = request.headers.get(TOKEN).and_then(|token| self.tokens.get(token)).is_some_and(|end| Instant::now() < *end);
        let name = request.path.strip_prefix("/latest/meta-data/");
        let entry = name.and_then(|name| self.entries.get(name));
        if valid && name.is_some_and(|name| name.starts_with(ROLE)) {
            match self.source {
                Source::Works => {}
                Source::Fails => return Some(Answer::new(500, "Internal Server Error")),
                Source::Hangs => return Some(Answer::new(NEVER, "")),
            }
        }
        Some(match (request.method.as_str(), valid, entry) {
            (_, false, _) => Answer::new(401, "Unauthorized"),
            ("GET", true, Some(text)) => Answer::new(200, text),
            ("GET", true, None) => Answer::new(404, "Not Found"),
            _ => Answer::new(405, "Method Not Allowed"),
        })
    }

    fn token(&mut self, request: &Request) -> Answer {
        let seconds = request.headers.get(TTL).and_then(|ttl| ttl.parse::<u64>().ok()).filter(|ttl| (1..=21_600).contains(ttl));
        let Some(seconds) = seconds.filter(|_| !request.headers.contains_key("x-forwarded-for")) else {
            return Answer::new(400, "Bad Request");
        };
        if request.method != "PUT" {
            return Answer::new(405, "Method Not Allowed");
        }
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        self.tokens.insert(token.clone(), Instant::now() + Duration::from_secs(seconds));
        Answer { headers: vec![(TTL, seconds.to_string())], ..Answer::new(200, token) }
    }
}
