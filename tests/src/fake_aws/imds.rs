//! Instance metadata, version 2 only.
//! In: entries. Out: what `PUT /latest/api/token` and `GET /latest/meta-data/…` answer. Never: answers without a valid token.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::http::{Answer, Request, serve};

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

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
}

impl Imds {
    /// One in this thread's network namespace, of an instance in service.
    #[must_use]
    pub fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let address = serve({
            let state = state.clone();
            move |request| state.lock().unwrap().answer(request)
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
        let entry = request.path.strip_prefix("/latest/meta-data/").and_then(|name| self.entries.get(name));
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
