//! Whether the instance is to leave, and what follows: the agent goes on recording until nothing comes any more, everything gets into S3,
//! and only then the group may have the instance.
//! In: instance metadata, the group, counters, the clock. Out: orders to the agent, calls to the group, levels for health and alerts.
//! Never: gives the instance up while something can still be sent and there is time; fails anything because a call is denied.
//! Spec: Amazon EC2 Auto Scaling User Guide, "Amazon EC2 Auto Scaling lifecycle hooks" and "Retrieve the target lifecycle state through
//! instance metadata"; Amazon EC2 User Guide, "Spot Instance interruption notices".

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

use super::autoscaling::{Class, Error, Group, Hook, Outcome};
use super::clock::{Clock, Now, SECOND_NS};
use super::imds::{self, Interruption, Metadata, Target};
use super::memory::Memory;
use crate::observe::counters::Counters;

/// How often the metadata is asked, as both user guides advise, and how often where nobody has ever answered.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_SELDOM: Duration = Duration::from_secs(60);

/// How often a leaving instance looks at its spool.
const STEP_EVERY: Duration = Duration::from_secs(1);

/// Beyond the end of a window its stragglers come and its segment is closed.
const LINGER_NS: u64 = 3 * SECOND_NS;

/// Heartbeats in each timeout of the hook: two may get lost.
const HEARTBEATS: u32 = 3;

/// So long before its last moment a hook is told that it cannot be done; of short hooks a quarter of their time.
const MARGIN: Duration = Duration::from_secs(600);

/// All that is left must have been poison for so long before the instance is given up for it: what is left and what of it is poison are
/// counts of different moments.
pub const STUCK: Duration = Duration::from_secs(10);

/// The longest that a hook can hold an instance: who says to have waited for longer speaks of another time.
const WAITED_MAX: Duration = Duration::from_secs(48 * 3600);

/// So long before a spot instance goes a person is told what stays behind.
const SPOT_MARGIN_NS: u64 = 20 * SECOND_NS;

/// What failed or was refused is tried again after this long, and a metadata service that fails is not asked for longer at a time.
const AGAIN_NS: u64 = 5 * SECOND_NS;
const DENIED_AGAIN_NS: u64 = 300 * SECOND_NS;

/// What this stage needs to know; checked by `config`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Name of the hook that holds leaving instances; `None`: the group is asked.
    pub hook: Option<String>,
    /// Length of windows while the instance leaves, seconds.
    pub rotate_seconds: u64,
    /// The group holds the instance, and packets still come: for so long at most they are waited out.
    pub linger: Duration,
    /// How long a machine that shuts down is held up until the spool is empty, at most.
    pub shutdown: Duration,
    /// Length of windows else, seconds.
    pub window_seconds: u64,
    /// The file for what the next agent must know.
    pub memory: PathBuf,
}

/// What the lifecycle orders of the agent.
pub trait Agent: Send + Sync + 'static {
    /// Windows of [`Settings::rotate_seconds`] from now on, or those of the settings again.
    fn shorten(&self, short: bool);
    /// Take no more frames, and close every segment.
    fn end(&self);
    /// How many segments S3 has not confirmed together with their manifests; `None` while capture goes on or the spool cannot be read.
    fn unsent(&self) -> Option<usize>;
    /// The instance stays after all, and capture had been ended: begin anew.
    fn begin_anew(&self);
}

/// What is known of the instance at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// When.
    pub now: Now,
    /// Where the group takes it, as last heard.
    pub target: Option<Target>,
    /// The notice of an interruption, as last heard.
    pub interruption: Option<Interruption>,
    /// Whether the group waits for us; `None`: it cannot be told.
    pub waits: Option<bool>,
    /// Times of the hook that holds it, if there is one that is known.
    pub hook: Option<(Duration, Duration)>,
    /// Mirrored frames that came.
    pub mirrored: u64,
    /// Seconds since the oldest unsent segment was opened; 0 when there is none.
    pub oldest_seconds: u64,
    /// As [`Agent::unsent`].
    pub unsent: Option<usize>,
    /// How many segments cannot be sent, however long one waits.
    pub poison: usize,
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Orders {
    /// The instance is to leave: health says so, windows are short.
    pub leaving: bool,
    /// Capture ends, or has ended.
    pub end: bool,
    /// The agent begins anew: it stays, and had ended.
    pub anew: bool,
    /// Say that more time is needed.
    pub heartbeat: bool,
    /// Tell the group how it ended.
    pub complete: Option<Outcome>,
    /// Whether the instance shall be protected from scale-in.
    pub protect: bool,
    /// A person must hear that it goes before the spool is empty.
    pub unsent_trouble: bool,
}

/// What earlier moments said.
#[derive(Debug)]
pub struct Lifecycle {
    settings: Settings,
    leaving_ns: Option<u64>,
    waiting_ns: Option<u64>,
    /// Since when the group waits by what an agent before has seen, wall clock.
    recalled_ns: Option<u64>,
    /// How much of the wait was over when this agent saw it first.
    before_ns: u64,
    /// Since when there is nothing left that could be sent.
    stuck_ns: Option<u64>,
    heartbeat_ns: u64,
    mirrored: u64,
    /// When the last mirrored frame was seen.
    arrived_ns: u64,
    ended: bool,
    abandoned: bool,
    protect: bool,
}

impl Lifecycle {
    /// Of an instance that stays, until something else is seen. `recalled_ns`: since when the group waits by what an agent before has seen,
    /// nanoseconds since 1970.
    #[must_use]
    pub fn new(settings: Settings, now: Now, recalled_ns: Option<u64>) -> Self {
        Self {
            settings,
            leaving_ns: None,
            waiting_ns: None,
            recalled_ns,
            before_ns: 0,
            stuck_ns: None,
            heartbeat_ns: 0,
            mirrored: 0,
            arrived_ns: now.monotonic_ns,
            ended: false,
            abandoned: false,
            protect: false,
        }
    }

    /// Judges what is seen.
    pub fn look(&mut self, seen: &Seen) -> Orders {
        let now = seen.now.monotonic_ns;
        if seen.mirrored != self.mirrored {
            (self.mirrored, self.arrived_ns) = (seen.mirrored, now);
        }
        let scaled_in = seen.target == Some(Target::Terminated);
        if !scaled_in && seen.interruption.is_none() {
            let anew = self.ended;
            *self = Self { mirrored: self.mirrored, arrived_ns: self.arrived_ns, ..self.staying(seen) };
            return Orders { anew, protect: self.protect, ..Orders::default() };
        }
        let leaving_ns = *self.leaving_ns.get_or_insert(now);
        if scaled_in {
            match seen.waits {
                Some(true) => self.begin_to_wait(now, seen.now.wall_ns),
                Some(false) => {}
                // Nobody says whether the load balancer still sends: what comes does.
                None => self.begin_to_wait(leaving_ns, seen.now.wall_ns.saturating_sub(now.saturating_sub(leaving_ns))),
            }
            // Where no hook is known nobody can be told, and recording goes on until the machine shuts down.
            self.ended |= seen.hook.is_some() && self.is_over(now);
            let stuck = self.ended && seen.unsent.is_some_and(|unsent| unsent > 0 && unsent <= seen.poison);
            self.stuck_ns = stuck.then(|| self.stuck_ns.unwrap_or(now));
        }
        let complete = self.outcome(seen);
        self.abandoned |= complete == Some(Outcome::Abandon);
        let spot_late = self.is_late_for_spot(seen);
        Orders {
            leaving: true,
            end: self.ended,
            anew: false,
            heartbeat: complete.is_none() && self.heartbeat_is_due(seen),
            complete,
            protect: false,
            unsent_trouble: spot_late || (self.abandoned && seen.unsent != Some(0)),
        }
    }

    /// One that stays: protected while what it recorded more than a whole window ago is not in S3.
    fn staying(&self, seen: &Seen) -> Self {
        let window = self.settings.window_seconds;
        let protect = match self.protect {
            // Under traffic the open segment is always unsent.
            true => seen.oldest_seconds > window,
            false => seen.oldest_seconds > window.saturating_mul(2),
        };
        // Before anybody has said where the instance goes, nothing is over.
        let recalled_ns = self.recalled_ns.filter(|_| seen.target.is_none());
        Self { protect: protect && seen.target == Some(Target::InService), ..Self::new(self.settings.clone(), seen.now, recalled_ns) }
    }

    /// Since when the group waits, nanoseconds since 1970, for the next agent: the hook's time does not begin anew with it.
    #[must_use]
    pub fn waiting_since_ns(&self) -> Option<u64> {
        self.recalled_ns
    }

    /// The group waits, as is seen now, or was before.
    fn begin_to_wait(&mut self, now: u64, wall_ns: u64) {
        if self.waiting_ns.is_some() {
            return;
        }
        let recalled_ns = self.recalled_ns.filter(|since| wall_ns.saturating_sub(*since) <= nanoseconds(WAITED_MAX));
        let since_ns = recalled_ns.map_or(wall_ns, |since| since.min(wall_ns));
        (self.waiting_ns, self.recalled_ns, self.before_ns) = (Some(now), Some(since_ns), wall_ns - since_ns);
    }

    /// For how long the group has waited, before this agent too; `None` while it does not.
    fn waited_ns(&self, now: u64) -> Option<u64> {
        self.waiting_ns.map(|waiting_ns| now.saturating_sub(waiting_ns).saturating_add(self.before_ns))
    }

    /// Whether nothing comes any more, or has come for too long, since the group waits.
    fn is_over(&self, now: u64) -> bool {
        let (Some(waiting_ns), Some(waited_ns)) = (self.waiting_ns, self.waited_ns(now)) else { return false };
        let quiet_ns = now.saturating_sub(self.arrived_ns.max(waiting_ns));
        quiet_ns >= self.settings.rotate_seconds.saturating_mul(SECOND_NS) || waited_ns >= nanoseconds(self.settings.linger)
    }

    /// What the group is told: as soon as everything is in S3, as soon as nothing more can get there, or when its time is over.
    fn outcome(&self, seen: &Seen) -> Option<Outcome> {
        let (_, global) = seen.hook?;
        let now = seen.now.monotonic_ns;
        let last_ns = nanoseconds(global.saturating_sub(MARGIN.min(global / 4)));
        let stuck = self.stuck_ns.is_some_and(|since| now.saturating_sub(since) >= nanoseconds(STUCK));
        let waited_ns = self.waited_ns(now)?;
        match seen.unsent {
            Some(0) if self.ended => Some(Outcome::Continue),
            _ if stuck || waited_ns >= last_ns => Some(Outcome::Abandon),
            _ => None,
        }
    }

    fn heartbeat_is_due(&mut self, seen: &Seen) -> bool {
        let (Some((every, _)), Some(_)) = (seen.hook, self.waiting_ns) else { return false };
        let due_ns = self.heartbeat_ns.saturating_add(nanoseconds(every / HEARTBEATS));
        let due = seen.now.monotonic_ns >= due_ns || self.heartbeat_ns == 0;
        if due {
            self.heartbeat_ns = seen.now.monotonic_ns;
        }
        due
    }

    /// Shortly before the end something older than what a window needs to be sent is still here.
    fn is_late_for_spot(&self, seen: &Seen) -> bool {
        let Some(Interruption { at_ns }) = seen.interruption else { return false };
        let close = seen.now.wall_ns.saturating_add(SPOT_MARGIN_NS) >= at_ns;
        close && seen.oldest_seconds.saturating_mul(SECOND_NS) > self.settings.rotate_seconds.saturating_mul(SECOND_NS) + LINGER_NS
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Who the instance is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its id.
    pub instance: String,
    /// Its region, if known.
    pub region: Option<String>,
    /// Its group, if the settings name it.
    pub group: Option<String>,
}

/// Watches over the instance until `stop` says true or its sender is gone. Ends at once where the environment forbids to ask.
pub async fn run<A: Agent, C: Clock>(
    settings: Settings,
    identity: Identity,
    agent: Arc<A>,
    counters: Arc<Counters>,
    clock: C,
    mut stop: watch::Receiver<bool>,
) {
    if imds::is_forbidden() {
        return;
    }
    let mut driver = Driver::new(settings, identity, agent, counters, clock).await;
    loop {
        let wait = tokio::select! {
            wait = driver.step() => wait,
            _ = stop.wait_for(|&stop| stop) => break,
        };
        if timeout(wait, stop.wait_for(|&stop| stop)).await.is_ok() {
            break;
        }
    }
    driver.farewell().await;
}

/// The part that asks and tells.
struct Driver<A, C> {
    identity: Identity,
    agent: Arc<A>,
    counters: Arc<Counters>,
    clock: C,
    lifecycle: Lifecycle,
    hook_name: Option<String>,
    metadata: Metadata,
    /// Made when it is first needed: most instances never leave.
    group: OnceCell<Group>,
    heard: bool,
    asked_ns: Option<u64>,
    target: Option<Target>,
    interruption: Option<Interruption>,
    waits: Option<bool>,
    hook: Option<Hook>,
    hooks_asked: bool,
    /// The group was told how it ended, or waits no more.
    completed: bool,
    /// What holds in the group; `None`: to be asked, as the agent before protected the instance.
    protected: Option<bool>,
    memory: Memory,
    orders: Orders,
    said: HashSet<&'static str>,
    tried_ns: [u64; 2],
}

/// Places in [`Driver::tried_ns`].
const COMPLETE: usize = 0;
const PROTECT: usize = 1;

impl<A: Agent, C: Clock> Driver<A, C> {
    async fn new(settings: Settings, identity: Identity, agent: Arc<A>, counters: Arc<Counters>, clock: C) -> Self {
        let memory = Memory::recall(&settings.memory, &identity.instance).await;
        Self {
            hook_name: settings.hook.clone(),
            lifecycle: Lifecycle::new(settings, clock.now(), memory.facts().waiting_since_ns),
            identity,
            agent,
            counters,
            clock,
            metadata: Metadata::default(),
            group: OnceCell::new(),
            heard: false,
            asked_ns: None,
            target: None,
            interruption: None,
            waits: Some(false),
            hook: None,
            hooks_asked: false,
            completed: false,
            protected: (!memory.facts().protected).then_some(false),
            memory,
            orders: Orders::default(),
            said: HashSet::new(),
            tried_ns: [0; 2],
        }
    }

    /// Asks, judges, does; gives how long to wait.
    async fn step(&mut self) -> Duration {
        let now = self.clock.now().monotonic_ns;
        if self.asked_ns.is_none_or(|asked| now.saturating_sub(asked) >= nanoseconds(LOOK_EVERY)) {
            self.asked_ns = Some(now);
            self.ask_metadata().await;
            if self.target == Some(Target::Terminated) && !self.completed {
                self.ask_group().await;
            }
        }
        let seen = Seen {
            now: self.clock.now(),
            target: self.target,
            interruption: self.interruption,
            waits: self.waits,
            hook: self.hook.as_ref().map(|hook| (hook.heartbeat, hook.global)),
            mirrored: self.counters.mirrored(),
            oldest_seconds: self.counters.spool_oldest_seconds.get(),
            unsent: self.agent.unsent(),
            poison: usize::try_from(self.counters.segments_poison.get()).unwrap_or(usize::MAX),
        };
        let orders = self.lifecycle.look(&seen);
        self.memory.wait(self.lifecycle.waiting_since_ns()).await;
        self.order(orders);
        self.tell_group(orders, seen.now).await;
        match (orders.leaving, self.heard) {
            (true, _) => STEP_EVERY,
            (false, true) => LOOK_EVERY,
            (false, false) => LOOK_SELDOM,
        }
    }

    async fn ask_metadata(&mut self) {
        let asked = match self.metadata.target().await {
            Ok(target) => {
                self.target = target;
                self.metadata.interruption().await.map(|notice| self.interruption = notice)
            }
            Err(cause) => Err(cause),
        };
        match asked {
            Ok(()) => {
                self.heard = true;
                self.said.remove("metadata");
            }
            // Outside EC2 there is none, and nobody wants to hear it.
            Err(_) if !self.heard => {}
            // What was last heard goes on to hold.
            Err(cause) => self.say("metadata", &format!("whether the instance is to leave is not known: {cause}")),
        }
    }

    async fn ask_group(&mut self) {
        let group = self.group().await;
        let member = group.member().await;
        match member {
            Ok(Some(member)) => {
                self.waits = Some(member.waits);
                self.identity.group.get_or_insert(member.group);
            }
            Ok(None) => self.waits = None,
            Err(cause) => {
                // What was last heard goes on to hold; what is never told is judged by the traffic.
                if cause.class == Class::Denied {
                    self.waits = None;
                }
                self.say("member", &cause.to_string());
            }
        }
        if self.identity.group.is_none() {
            self.identity.group = self.metadata.group().await.ok().flatten();
        }
        if !self.hooks_asked {
            self.ask_hooks().await;
        }
    }

    async fn ask_hooks(&mut self) {
        let Some(name) = self.identity.group.clone() else { return };
        let asked = self.group().await.hooks(&name).await;
        let hooks = match asked {
            Ok(hooks) => hooks,
            Err(cause) => {
                self.hooks_asked = cause.class == Class::Denied;
                self.hook = self.hook_name.as_deref().map(Hook::named);
                return self.say("hooks", &cause.to_string());
            }
        };
        self.hooks_asked = true;
        self.hook = match (&self.hook_name, hooks.as_slice()) {
            (Some(wanted), found) => Some(found.iter().find(|hook| hook.name == *wanted).cloned().unwrap_or_else(|| Hook::named(wanted))),
            (None, [hook]) => Some(hook.clone()),
            (None, []) => {
                tracing::warn!(
                    group = name,
                    "no lifecycle hook holds leaving instances: what is unsent at the shutdown stays on the volume"
                );
                None
            }
            (None, several) => {
                let names: Vec<_> = several.iter().map(|hook| hook.name.as_str()).collect();
                tracing::error!(
                    group = name,
                    ?names,
                    "several hooks hold leaving instances and none is completed: name ours in lifecycle.hook"
                );
                None
            }
        };
    }

    /// Hands the orders on where they have changed.
    fn order(&mut self, orders: Orders) {
        let before = std::mem::replace(&mut self.orders, orders);
        self.counters.leaving.set(orders.leaving.into());
        self.counters.leaving_unsent.set(orders.unsent_trouble.into());
        if orders.leaving != before.leaving {
            match orders.leaving {
                true => tracing::warn!("the instance is to leave: short windows until everything is in S3"),
                false => {
                    (self.hooks_asked, self.completed, self.hook, self.waits) = (false, false, None, Some(false));
                    tracing::info!("the instance stays after all");
                }
            }
            self.agent.shorten(orders.leaving);
        }
        if orders.end && !before.end {
            tracing::info!("no more packets are expected: the last window is closed");
            self.agent.end();
        }
        if orders.anew {
            self.agent.begin_anew();
        }
    }

    async fn tell_group(&mut self, orders: Orders, now: Now) {
        // Elsewhere the call is refused, and there is nothing to protect from.
        if self.target == Some(Target::InService) && self.protected != Some(orders.protect) && self.may_try(PROTECT, now) {
            self.protect(orders.protect).await;
        }
        let Some((hook, group)) = self.hook.clone().zip(self.identity.group.clone()).filter(|_| !self.completed) else { return };
        if orders.heartbeat {
            let told = self.group().await.heartbeat(&group, &hook.name).await;
            match told {
                Ok(()) => tracing::info!(hook = hook.name, "the group was asked for more time"),
                Err(cause) => self.say("heartbeat", &cause.to_string()),
            }
        }
        let Some(outcome) = orders.complete.filter(|_| self.may_try(COMPLETE, now)) else { return };
        let told = self.group().await.complete(&group, &hook.name, outcome).await;
        match told {
            Ok(()) => {
                self.completed = true;
                tracing::info!(hook = hook.name, ?outcome, "the group was told that the instance may go");
            }
            Err(cause) => {
                self.completed = cause.class == Class::NoAction;
                self.tried(COMPLETE, now, cause);
            }
        }
    }

    async fn protect(&mut self, protect: bool) {
        let now = self.clock.now();
        if self.identity.group.is_none() || self.protected.is_none() {
            let member = self.group().await.member().await;
            match member {
                Ok(member) => {
                    self.protected.get_or_insert(member.as_ref().is_some_and(|member| member.protected));
                    self.identity.group = self.identity.group.take().or(member.map(|member| member.group));
                }
                Err(cause) => return self.tried(PROTECT, now, cause),
            }
        }
        let Some(name) = self.identity.group.clone() else { return };
        if self.protected != Some(protect) {
            if protect {
                // Before the call: an agent that is killed now leaves it to the next one to take the protection off.
                self.memory.protect(true).await;
            }
            let told = self.group().await.protect(&name, protect).await;
            if let Err(cause) = told {
                return self.tried(PROTECT, now, cause);
            }
            self.protected = Some(protect);
            tracing::info!(protect, "scale-in protection is switched, by what is unsent");
        }
        self.memory.protect(protect).await;
    }

    /// An agent that stops leaves no protection behind: the next one sets it again.
    async fn farewell(&mut self) {
        if self.protected == Some(true) {
            let _ = timeout(STEP_EVERY, self.protect(false)).await;
        }
    }

    fn may_try(&self, what: usize, now: Now) -> bool {
        self.tried_ns.get(what).is_none_or(|again| now.monotonic_ns >= *again)
    }

    fn tried(&mut self, what: usize, now: Now, cause: Error) {
        let wait = if cause.class == Class::Denied { DENIED_AGAIN_NS } else { AGAIN_NS };
        if let Some(again) = self.tried_ns.get_mut(what) {
            *again = now.monotonic_ns.saturating_add(wait);
        }
        self.say(cause.act, &cause.to_string());
    }

    async fn group(&self) -> &Group {
        self.group.get_or_init(|| Group::new(&self.identity.instance, self.identity.region.as_deref())).await
    }

    /// Says a failure once.
    fn say(&mut self, what: &'static str, text: &str) {
        match self.said.insert(what) {
            true => tracing::warn!("{text}; this is not said again"),
            false => tracing::debug!("{text}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A fresh one, and what an instance in service sees at second 100.
    fn staying() -> (Lifecycle, Seen) {
        let settings = Settings {
            hook: None,
            rotate_seconds: 15,
            linger: Duration::from_secs(300),
            shutdown: Duration::from_secs(300),
            window_seconds: 900,
            memory: PathBuf::new(),
        };
        let seen = Seen {
            now: at(100),
            target: Some(Target::InService),
            interruption: None,
            waits: Some(false),
            hook: Some((HOUR, 48 * HOUR)),
            mirrored: 0,
            oldest_seconds: 0,
            unsent: None,
            poison: 0,
        };
        (Lifecycle::new(settings, at(100), None), seen)
    }

    fn at(seconds: u64) -> Now {
        Now { wall_ns: (1_000_000 + seconds) * SECOND_NS, monotonic_ns: seconds * SECOND_NS }
    }

    #[test]
    fn while_packets_come_capture_goes_on_and_ends_a_window_after_the_last_one() {
        let (mut lifecycle, mut seen) = staying();
        assert_eq!(lifecycle.look(&seen), Orders::default());
        seen.target = Some(Target::Terminated);
        for second in 101..200 {
            // The load balancer still sends, and the group does not wait yet.
            seen = Seen { now: at(second), mirrored: second.min(150), waits: Some(second >= 140), ..seen };
            let orders = lifecycle.look(&seen);
            assert!(orders.leaving && !orders.protect && orders.complete.is_none());
            assert_eq!(orders.end, second >= 165, "at {second}");
        }
        seen = Seen { now: at(200), unsent: Some(2), ..seen };
        assert_eq!(lifecycle.look(&seen).complete, None, "two segments are not in S3");
        seen = Seen { now: at(201), unsent: Some(0), ..seen };
        assert_eq!(lifecycle.look(&seen).complete, Some(Outcome::Continue));
    }

    #[test]
    fn packets_that_never_end_are_waited_out_for_the_time_of_the_settings() {
        let (mut lifecycle, mut seen) = staying();
        (seen.target, seen.waits) = (Some(Target::Terminated), Some(true));
        for second in 101..=401 {
            seen = Seen { now: at(second), mirrored: second, ..seen };
            assert_eq!(lifecycle.look(&seen).end, second == 401, "at {second}");
        }
    }

    #[test]
    fn where_nobody_can_be_told_capture_is_not_ended() {
        let (mut lifecycle, mut seen) = staying();
        (seen.target, seen.waits, seen.hook) = (Some(Target::Terminated), None, None);
        for second in 101..2000 {
            seen.now = at(second);
            let orders = lifecycle.look(&seen);
            assert!(orders.leaving && !orders.end && !orders.heartbeat && orders.complete.is_none());
        }
    }

    #[test]
    fn heartbeats_come_three_in_each_timeout_and_what_is_unsent_near_the_hooks_last_moment_is_given_up_with_a_trouble() {
        let (mut lifecycle, mut seen) = staying();
        (seen.target, seen.waits, seen.hook, seen.unsent) = (Some(Target::Terminated), Some(true), Some((HOUR, 48 * HOUR)), Some(1));
        let mut heartbeats = Vec::new();
        let mut second = 101;
        let orders = loop {
            seen.now = at(second);
            let orders = lifecycle.look(&seen);
            if orders.complete.is_some() {
                break orders;
            }
            assert!(!orders.unsent_trouble);
            if orders.heartbeat {
                heartbeats.push(second);
            }
            second += 1;
        };
        assert_eq!((orders.complete, orders.unsent_trouble), (Some(Outcome::Abandon), true));
        assert_eq!(second - 101, 48 * 3600 - 600, "ten minutes before the group gives up by itself");
        assert!(heartbeats.windows(2).all(|pair| pair[1] - pair[0] == 1200), "{heartbeats:?}");
        assert_eq!(heartbeats.first(), Some(&101));
        // The instance is kept, S3 comes back: that is over too.
        seen.unsent = Some(0);
        assert!(!lifecycle.look(&seen).unsent_trouble);
    }

    #[test]
    fn when_all_that_is_left_is_poison_the_group_is_told_at_once_that_it_cannot_be_done() {
        let (mut lifecycle, mut seen) = staying();
        (seen.target, seen.waits) = (Some(Target::Terminated), Some(true));
        let mut at_second = |second, unsent, poison| {
            seen = Seen { now: at(second), unsent, poison, ..seen };
            let orders = lifecycle.look(&seen);
            (orders.complete, orders.unsent_trouble)
        };
        assert_eq!(at_second(101, Some(1), 1), (None, false), "capture goes on");
        assert_eq!(at_second(116, None, 1), (None, false), "not all of it is closed");
        assert_eq!(at_second(200, Some(2), 1), (None, false), "one of the two can be sent");
        assert_eq!(at_second(201, Some(1), 1), (None, false));
        // A segment that was closed late, and counts of different moments.
        assert_eq!(at_second(210, Some(2), 1), (None, false));
        assert_eq!(at_second(220, Some(1), 1), (None, false));
        assert_eq!(at_second(229, Some(1), 1), (None, false));
        assert_eq!(at_second(230, Some(1), 1), (Some(Outcome::Abandon), true));
        assert_eq!(at_second(231, Some(0), 0), (Some(Outcome::Continue), false), "a person helped, and nobody was told yet");
    }

    #[test]
    fn the_hooks_time_goes_on_when_another_agent_takes_over_and_is_not_that_of_an_earlier_hook() {
        let last = 48 * 3600 - 600;
        let (mut first, mut seen) = staying();
        (seen.target, seen.waits, seen.unsent) = (Some(Target::Terminated), Some(true), Some(1));
        first.look(&seen);
        let since = first.waiting_since_ns();
        assert_eq!(since, Some(at(100).wall_ns));
        for (later, recalled, abandoned) in
            [(last - 1, since, false), (last, since, true), (last, None, false), (48 * 3600 + 1, since, false)]
        {
            let settings = first.settings.clone();
            let now = Now { monotonic_ns: 5 * SECOND_NS, ..at(100 + later) };
            let mut next = Lifecycle::new(settings, now, recalled);
            // Until the metadata has answered nothing is known, and nothing forgotten.
            let orders = next.look(&Seen { now, target: None, ..seen });
            assert_eq!((orders.leaving, next.waiting_since_ns()), (false, recalled));
            let orders = next.look(&Seen { now, ..seen });
            assert_eq!(orders.complete.is_some(), abandoned, "{later} s later, with {recalled:?}");
            next.look(&Seen { now, target: Some(Target::InService), ..seen });
            assert_eq!(next.waiting_since_ns(), None, "it stays");
        }
    }

    #[test]
    fn a_cancelled_end_is_forgotten_and_an_agent_that_had_ended_begins_anew() {
        let (mut lifecycle, seen) = staying();
        let leaving = Seen { target: Some(Target::Terminated), waits: Some(true), ..seen };
        assert!(lifecycle.look(&leaving).leaving);
        assert_eq!(lifecycle.look(&seen), Orders::default());
        assert!(!lifecycle.look(&Seen { now: at(110), ..leaving }).end);
        assert!(lifecycle.look(&Seen { now: at(125), ..leaving }).end);
        assert_eq!(lifecycle.look(&seen), Orders { anew: true, ..Orders::default() });
        assert_eq!(lifecycle.look(&seen), Orders::default());
    }

    #[test]
    fn protection_holds_from_two_windows_without_confirmation_until_one_and_only_in_service() {
        let (mut lifecycle, mut seen) = staying();
        let mut protect = |target, oldest_seconds| {
            (seen.target, seen.oldest_seconds) = (target, oldest_seconds);
            lifecycle.look(&seen).protect
        };
        let service = Some(Target::InService);
        assert_eq!([1800, 1801, 901, 900, 1800].map(|seconds| protect(service, seconds)), [false, true, true, false, false]);
        assert!(protect(service, 5000));
        assert!(!protect(Some(Target::Elsewhere), 5000) && !protect(None, 5000) && !protect(Some(Target::Terminated), 5000));
    }

    #[test]
    fn a_spot_notice_shortens_windows_at_once_and_what_is_left_shortly_before_is_told() {
        let (mut lifecycle, mut seen) = staying();
        seen.interruption = Some(Interruption { at_ns: at(220).wall_ns });
        // A segment of the open window is always there; one that is older should have left.
        for (second, oldest, trouble) in [(100, 900, false), (199, 200, false), (200, 18, false), (200, 19, true), (219, 40, true)] {
            seen = Seen { now: at(second), oldest_seconds: oldest, ..seen };
            let orders = lifecycle.look(&seen);
            assert!(orders.leaving && !orders.end && orders.complete.is_none());
            assert_eq!(orders.unsent_trouble, trouble, "at {second} with {oldest}");
        }
    }
}
