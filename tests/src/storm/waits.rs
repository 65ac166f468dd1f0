//! How long an agent had to wait for a processor (the kernel counts it) or the disk (state D, looked at each 5 ms): what may stand
//! between a packet and the spool beside `spool.flush_ms`. In: the pid of an agent. Out: from when on it captured, and what its
//! threads waited between two moments.
//! Never: takes the agent's word; counts a thread that waits for work.
//! Spec: proc(5) `/proc/pid/task/tid/stat` (state); Documentation/scheduler/sched-stats.rst, `/proc/<pid>/schedstat`.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often it looks.
const STEP: Duration = Duration::from_millis(5);

/// The threads that hand a packet on from the ring to the spool.
const ON_THE_WAY: [&str; 3] = ["capture", "record", "spool-write"];

/// Looks at one agent after the other, on a thread that ends with this value.
#[derive(Debug)]
pub struct Waits {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default, Debug)]
struct Shared {
    stop: AtomicBool,
    agent: Mutex<Option<(u32, Waited)>>,
}

/// What one agent waited.
#[derive(Clone, Default, Debug)]
pub struct Waited {
    threads: Vec<Thread>,
    /// At the last look, what each of them had waited by then, together.
    sum: Duration,
    /// At each look, for how long a packet had been held up by then.
    held_up: Vec<(Instant, Duration)>,
}

#[derive(Clone, Debug)]
struct Thread {
    folder: String,
    looked: Instant,
    /// Time on a processor, and when that was first seen.
    ran: (u64, Instant),
    disk: Duration,
}

impl Waits {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = shared.clone();
            move || shared.go_on_looking()
        });
        Self { shared, thread: Some(thread) }
    }

    /// Looks at this agent from now on.
    pub fn begin(&self, pid: u32) {
        *self.shared.agent() = Some((pid, Waited::default()));
    }

    /// Looks at it now; to be called before it is struck, so that who was never seen capturing has not captured.
    pub fn look(&self) {
        self.shared.look();
    }

    /// Looks at it no more.
    #[must_use]
    pub fn end(&self) -> Waited {
        self.shared.agent().take().map(|(_, waited)| waited).unwrap_or_default()
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || thread::panicking(), "what agents wait for was not looked at to the end");
    }
}

impl Waited {
    /// When the threads were there that take packets out of the ring, at most a step later; `None` when they never were.
    #[must_use]
    pub fn capturing_since(&self) -> Option<Instant> {
        self.held_up.first().map(|&(at, _)| at)
    }

    /// What a packet can have been held up between the two moments: one thread hands it on to the next, so that their waits add up,
    /// but to no more than the time there was. What was not looked at for longer than a step before the end counts as waited.
    #[must_use]
    pub fn between(&self, from: Instant, to: Instant) -> Duration {
        let by = |at| self.held_up.get(self.held_up.partition_point(|&(looked, _)| looked <= at).saturating_sub(1)).copied();
        let (Some((_, before)), Some((looked, by_then))) = (by(from), by(to)) else { return Duration::ZERO };
        by_then.saturating_sub(before) + to.saturating_duration_since(looked + STEP)
    }

    fn look(&mut self, pid: u32) {
        if self.threads.is_empty() {
            self.threads = Thread::find(pid);
        }
        // A thread that is no more waits for nothing.
        let sum = self.threads.iter_mut().map(Thread::look).sum::<Option<Duration>>().unwrap_or(self.sum);
        let waited = sum.saturating_sub(std::mem::replace(&mut self.sum, sum));
        let now = Instant::now();
        match self.held_up.last() {
            Some(&(before, held_up)) => self.held_up.push((now, held_up + waited.min(now - before))),
            None if self.threads.is_empty() => {}
            None => self.held_up.push((now, Duration::ZERO)),
        }
    }
}

impl Shared {
    fn agent(&self) -> MutexGuard<'_, Option<(u32, Waited)>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        if let Some((pid, waited)) = self.agent().as_mut() {
            waited.look(*pid);
        }
    }

    fn go_on_looking(&self) {
        while !self.stop.load(Ordering::Acquire) {
            self.look();
            thread::sleep(STEP);
        }
    }
}

impl Thread {
    /// Those of the process, when all are there.
    fn find(pid: u32) -> Vec<Self> {
        let folders = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let named = folders.filter_map(|folder| {
            let folder = folder.path().to_str()?.to_owned();
            let name = fs::read_to_string(format!("{folder}/comm")).ok()?;
            let now = Instant::now();
            ON_THE_WAY.contains(&name.trim()).then_some(Self { folder, looked: now, ran: (0, now), disk: Duration::ZERO })
        });
        let found: Vec<_> = named.collect();
        if found.len() == ON_THE_WAY.len() { found } else { Vec::new() }
    }

    /// What it has waited so far; `None` when it is no more.
    fn look(&mut self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("{}/stat", self.folder)).ok()?;
        let schedule = fs::read_to_string(format!("{}/schedstat", self.folder)).ok()?;
        let mut numbers = schedule.split_whitespace().map_while(|number| number.parse().ok());
        let (ran, for_processor) = (numbers.next()?, Duration::from_nanos(numbers.next()?));
        let (_, after_name) = stat.rsplit_once(") ")?;
        let now = Instant::now();
        let since_last = now - std::mem::replace(&mut self.looked, now);
        let mut ready = Duration::ZERO;
        match after_name.as_bytes().first()? {
            b'D' => self.disk += since_last,
            // The kernel counts a wait for a processor when it is over.
            b'R' if ran == self.ran.0 => ready = now - self.ran.1,
            _ => {}
        }
        if ran != self.ran.0 || ready.is_zero() {
            self.ran = (ran, now);
        }
        Some(for_processor + self.disk + ready)
    }
}
