//! Makes mails few: one when a trouble begins, repeats folded and rare, one when it is over.
//! In: verdicts, what was lost so far, the time, the state that earlier processes left. Out: the next state and what to mail.
//! Never: takes a trouble that could not be looked at for over; mails each turn of one that comes and goes; reads a clock.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::DateTime;
use serde::{Deserialize, Serialize};

use super::rules::{Limits, Trouble, Verdict, nanoseconds};
use crate::host::clock::{Now, SECOND_NS};

/// What a mail is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A trouble has begun.
    Begin,
    /// It is still there.
    Repeat,
    /// It is over.
    Over,
    /// No trouble: the agent's start, a test, a word of a person.
    Note,
}

impl Kind {
    /// As file names have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Repeat => "repeat",
            Self::Over => "over",
            Self::Note => "note",
        }
    }
}

/// Frames that were lost, by whom.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Losses {
    /// By the kernel, for want of a free ring block.
    pub kernel: u64,
    /// By us, for want of room in the spool.
    pub spool: u64,
}

impl Losses {
    fn since(self, before: Self) -> Self {
        Self { kernel: self.kernel.saturating_sub(before.kernel), spool: self.spool.saturating_sub(before.spool) }
    }

    pub(super) fn add(&mut self, more: Self) {
        self.kernel = self.kernel.saturating_add(more.kernel);
        self.spool = self.spool.saturating_add(more.spool);
    }

    /// For people.
    #[must_use]
    pub fn words(self) -> String {
        match (self.kernel, self.spool) {
            (0, 0) => "no frame that reached this agent was dropped meanwhile".into(),
            (kernel, spool) => format!("{kernel} frames dropped by the kernel, {spool} dropped as the spool was full"),
        }
    }
}

/// A trouble that has begun.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Open {
    /// Stays the same through repeats, the end and restarts.
    pub id: String,
    /// When it began, wall clock.
    pub since_ns: u64,
    /// When a mail about it was last filed, wall clock.
    pub told_ns: u64,
    /// What it was at first.
    pub detail: String,
    /// What was lost since.
    #[serde(default)]
    pub losses: Losses,
}

/// What outlives the process. By trouble name, so that another version's troubles are kept as they are.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct State {
    /// Troubles that have begun.
    #[serde(default)]
    pub open: BTreeMap<String, Open>,
    /// When earlier ones ended, wall clock; at most [`ENDS_MAX`] of each.
    #[serde(default)]
    pub ended: BTreeMap<String, Vec<u64>>,
}

/// Ends that are remembered of each trouble.
const ENDS_MAX: usize = 16;

/// The most characters of a detail that are kept.
const DETAIL_MAX: usize = 1000;

fn clipped(detail: &str) -> String {
    detail.chars().take(DETAIL_MAX).collect()
}

/// How often the state is kept when only the losses have changed.
const KEEP_LOSSES_NS: u64 = 10 * SECOND_NS;

/// What to mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// About which trouble.
    pub trouble: Trouble,
    /// What of it.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// When it began, wall clock.
    pub since_ns: u64,
    /// Now, or since when it has been over, wall clock.
    pub at_ns: u64,
    /// What it is, or, when it is over, was at first.
    pub detail: String,
    /// What was lost since it began.
    pub losses: Losses,
    /// When it is over: how long it lasted by the monotonic clock; `None` where this process did not see it begin.
    pub lasted_ns: Option<u64>,
}

/// What need not outlive the process.
#[derive(Debug)]
pub struct Fold {
    limits: Limits,
    repeat: Duration,
    instance: String,
    /// Since when each open trouble has been clear, monotonic.
    clear_ns: BTreeMap<Trouble, u64>,
    /// The id of each that this process saw begin, and when, monotonic.
    begun: BTreeMap<Trouble, (String, u64)>,
    /// When each may be repeated, monotonic: a wall clock that steps forward does not bring the next repeat.
    due_ns: BTreeMap<Trouble, u64>,
    /// What was lost when the state was last worth keeping.
    losses: Losses,
    kept_ns: u64,
}

impl Fold {
    /// One that has seen nothing; `losses` is what was lost before, which belongs to no trouble.
    #[must_use]
    pub fn new(limits: Limits, repeat: Duration, instance: &str, losses: Losses) -> Self {
        let instance = instance.into();
        let (clear_ns, begun, due_ns) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { limits, repeat, instance, clear_ns, begun, due_ns, losses, kept_ns: 0 }
    }

    /// Brings `state` up to date and gives what to mail, and whether the state is worth keeping now. Without `room` for mails
    /// nothing begins and nothing is repeated; what has begun can end.
    pub fn fold(&mut self, state: &mut State, verdicts: &[(Trouble, Verdict)], losses: Losses, now: Now, room: bool) -> (Vec<News>, bool) {
        let lost = losses.since(self.losses);
        let mut news = Vec::new();
        for (trouble, verdict) in verdicts {
            // What is lost while a trouble is on belongs to it, whatever its cause; so does what made it begin.
            if let Some(open) = state.open.get_mut(trouble.name()) {
                open.losses.add(lost);
                // A clock that was set back must not silence the repeats.
                open.told_ns = open.told_ns.min(now.wall_ns);
            }
            news.extend(match verdict {
                Verdict::Holds(detail) => self.holds(state, *trouble, (detail, lost), now, room),
                Verdict::Clear => self.clear(state, *trouble, now),
                Verdict::Unclear => {
                    self.clear_ns.remove(trouble);
                    None
                }
            });
        }
        let losses_are_due = lost != Losses::default() && !state.open.is_empty();
        let keep = !news.is_empty() || (losses_are_due && now.monotonic_ns >= self.kept_ns.saturating_add(KEEP_LOSSES_NS));
        if keep {
            self.kept_ns = now.monotonic_ns;
        }
        if keep || state.open.is_empty() {
            self.losses = losses;
        } else {
            // This state is not kept, and the next one may be read from the disk again: that gets all that was lost until then.
            for (trouble, _) in verdicts {
                if let Some(open) = state.open.get_mut(trouble.name()) {
                    open.losses = open.losses.since(lost);
                }
            }
        }
        (news, keep)
    }

    fn holds(&mut self, state: &mut State, trouble: Trouble, (detail, lost): (&str, Losses), now: Now, room: bool) -> Option<News> {
        self.clear_ns.remove(&trouble);
        let at_ns = now.wall_ns;
        let repeat_ns = nanoseconds(self.repeat(trouble));
        if let Some(open) = state.open.get_mut(trouble.name()) {
            // What an earlier process told, only the wall clock can say.
            let left_ns = repeat_ns.saturating_sub(at_ns.saturating_sub(open.told_ns));
            let due_ns = *self.due_ns.entry(trouble).or_insert_with(|| now.monotonic_ns.saturating_add(left_ns));
            // What is worse than what was told, or otherwise, is not told more rarely than anything else.
            let early_ns = if open.detail == detail { 0 } else { repeat_ns - nanoseconds(self.repeat) };
            if now.monotonic_ns.saturating_add(early_ns) < due_ns || !room {
                return None;
            }
            if trouble.repeat_min() > Duration::ZERO {
                open.detail = clipped(detail);
            }
            self.due_ns.insert(trouble, now.monotonic_ns.saturating_add(repeat_ns));
            open.told_ns = at_ns;
            return Some(news(trouble, Kind::Repeat, open, at_ns, detail));
        }
        if !room {
            return None;
        }
        let open = Open { id: self.id(trouble, at_ns), since_ns: at_ns, told_ns: at_ns, detail: clipped(detail), losses: lost };
        self.due_ns.insert(trouble, now.monotonic_ns.saturating_add(repeat_ns));
        self.begun.insert(trouble, (open.id.clone(), now.monotonic_ns));
        let news = news(trouble, Kind::Begin, &open, at_ns, &open.detail);
        state.open.insert(trouble.name().into(), open);
        Some(news)
    }

    fn clear(&mut self, state: &mut State, trouble: Trouble, now: Now) -> Option<News> {
        if !state.open.contains_key(trouble.name()) {
            return None;
        }
        let since = *self.clear_ns.entry(trouble).or_insert(now.monotonic_ns);
        let ends = state.ended.entry(trouble.name().into()).or_default();
        ends.retain(|at| now.wall_ns.saturating_sub(*at) < nanoseconds(self.repeat));
        // Each end within the time of a repeat doubles the wait for the next one: what comes and goes for long is one trouble.
        let base = self.limits.steady(trouble);
        let doubled = base.saturating_mul(2u32.saturating_pow(u32::try_from(ends.len()).unwrap_or(u32::MAX)));
        let steady = doubled.min(self.repeat.max(base));
        if Duration::from_nanos(now.monotonic_ns.saturating_sub(since)) < steady {
            return None;
        }
        ends.push(now.wall_ns);
        let surplus = ends.len().saturating_sub(ENDS_MAX);
        ends.drain(..surplus);
        self.clear_ns.remove(&trouble);
        self.due_ns.remove(&trouble);
        let open = state.open.remove(trouble.name())?;
        // It was over when it first was clear; since then it has only been watched.
        let over_ns = now.wall_ns.saturating_sub(now.monotonic_ns.saturating_sub(since)).max(open.since_ns);
        let begun = self.begun.remove(&trouble).filter(|(id, _)| *id == open.id);
        let lasted_ns = begun.map(|(_, begun_ns)| since.saturating_sub(begun_ns));
        Some(News { lasted_ns, ..news(trouble, Kind::Over, &open, over_ns, &open.detail) })
    }

    fn repeat(&self, trouble: Trouble) -> Duration {
        self.repeat.max(trouble.repeat_min())
    }

    /// Readable, and never given twice: a trouble does not begin twice within a second on one instance.
    fn id(&self, trouble: Trouble, at_ns: u64) -> String {
        let stamp = i64::try_from(at_ns).map(DateTime::from_timestamp_nanos).unwrap_or_default();
        format!("{}-{}-{}", trouble.name(), self.instance, stamp.format("%Y%m%dT%H%M%S%.3fZ"))
    }
}

fn news(trouble: Trouble, kind: Kind, open: &Open, at_ns: u64, detail: &str) -> News {
    News { trouble, kind, id: open.id.clone(), since_ns: open.since_ns, at_ns, detail: detail.into(), losses: open.losses, lasted_ns: None }
}
