//! The kill storm: a real agent under live load, killed again and again, at named points and at random.
//! In: packets on a wire, an S3 behind a gate, a seed. Out: a table of kills, and that nothing is lost but what a kill may cost.
//! Never: a hook in the agent: it is watched through its spool and through what it asks S3. The test is its service manager and
//! keeps its ring (sd_notify(3) FDSTORE), so that a kill costs what the agent had taken, and not what came while none ran.

pub mod act;
pub mod gate;
pub mod ledger;
pub mod point;
pub mod server;
pub mod traffic;
pub mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

use self::gate::{Call, Gate, When};
use self::ledger::{Kill, Ledger, Stored, Sum, TAKEN};
use self::point::{Aim, Change, Files, POINTS, Point, Trouble, What, last_record, segments};
use self::server::Server;
use self::traffic::{PACES, Pace, Traffic};
use self::waits::{Waited, Waits};
use crate::agent::{Agent, BUCKET, Kept, Settings};
use crate::garage::Garage;
use crate::localstack::LocalStack;
use crate::netns::{Pair, TAP};

/// How long a window is.
pub const WINDOW: Duration = Duration::from_secs(1);

/// How long an agent may take to come to a point: two windows end meanwhile.
const COME_TO_POINT: Duration = Duration::from_secs(3);

/// How long an agent may take to come to a call when S3 has just been away: it waits between its tries.
const COME_TO_CALL: Duration = Duration::from_secs(90);

/// Agents that write under the same prefix. Each must find a free name for the same minute: more of them would only test that.
const AGENTS_PER_PREFIX: usize = 12;

/// What the ring, the merge and the recorder's clock may add to `spool.flush_ms`, on a machine that lets the agent's threads run.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// The environment variable that has a storm again.
pub const SEED: &str = "TAPFLEET_SEED";

/// Where a random choice comes from: the same seed gives the same storm.
#[derive(Clone, Debug)]
pub struct Lot(u64);

impl Lot {
    /// From [`SEED`], else from the clock; printed.
    ///
    /// # Panics
    /// When [`SEED`] is not a number.
    #[must_use]
    pub fn drawn() -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()) + now.as_secs());
        let seed = std::env::var(SEED).map_or_else(|_| clock(), |seed| seed.parse().unwrap_or_else(|_| panic!("{SEED} is not a number")));
        println!("{SEED}={seed}");
        Self(seed.max(1))
    }

    /// What has the rest of it again, as [`SEED`].
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }

    /// A time below `end`.
    pub fn up_to(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(end.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// A storm under way.
pub struct Storm<S = LocalStack> {
    // The sender goes before the wire.
    traffic: Option<Traffic>,
    pair: Pair,
    s3: S,
    gate: Gate,
    waits: Waits,
    folder: tempfile::TempDir,
    settings: Settings,
    flush: Duration,
    agents: usize,
    kept: Option<Kept>,
    pace: Pace,
    meddled: Arc<Mutex<Meddled>>,
    ledger: Ledger,
}

/// What of S3 was changed behind the agents' backs.
#[derive(Default)]
struct Meddled {
    /// Keys at which there is an object of somebody else.
    taken: BTreeSet<String>,
    /// Uploads that are no more.
    gone: BTreeSet<String>,
}

impl<S: Server> Storm<S> {
    /// Two namespaces, an S3 behind a gate, and packets from now on.
    ///
    /// # Panics
    /// When one of these is not to be had.
    #[must_use]
    pub fn new(flush: Duration, pace: Pace) -> Self {
        let pair = Pair::new();
        let s3 = S::start(&pair.tap);
        let gate = Gate::new(&pair.tap, s3.port());
        let folder = tempfile::tempdir().unwrap_or_else(|cause| panic!("no folder for the spool: {cause}"));
        let settings = Settings::new(gate.endpoint(), &folder.path().join("spool"))
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "64MiB")
            .set("record.rotate_seconds", WINDOW.as_secs())
            .set("spool.flush_ms", u64::try_from(flush.as_millis()).unwrap_or(u64::MAX))
            .variable("AWS_ACCESS_KEY_ID", S::CREDENTIALS.0)
            .variable("AWS_SECRET_ACCESS_KEY", S::CREDENTIALS.1);
        let (waits, ledger) = (Waits::new(), Ledger::new(flush + ON_THE_WAY));
        let meddled = Arc::default();
        let mut storm =
            Self { traffic: None, pair, s3, gate, waits, folder, settings, flush, agents: 0, kept: None, pace, meddled, ledger };
        fs::create_dir(storm.spool()).unwrap_or_else(|cause| panic!("no folder for the spool: {cause}"));
        storm.ask_s3(async |s3| {
            if s3.head_bucket().bucket(BUCKET).send().await.is_err() {
                crate::localstack::make_bucket(&s3, BUCKET).await;
            }
        });
        // The first agent opens the ring; only then is there something to count.
        let mut agent = storm.start();
        agent.wait_for("the first agent is ready", Duration::from_secs(10), |agent| agent.says("READY=1"));
        storm.kept = Some(agent.kill_and_keep());
        storm.traffic = Some(Traffic::start(&storm.pair, pace));
        storm
    }

    /// Sets a setting of the agents to come.
    fn set(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.settings = self.settings.clone().set(name, value);
    }

    /// Sends at another pace from now on.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
        if let Some(traffic) = &self.traffic {
            traffic.set_pace(pace);
        }
    }

    /// The kills so far.
    #[must_use]
    fn kills(&self) -> &[Kill] {
        &self.ledger.kills
    }

    /// How often the point was hit at the pace.
    fn hits_at(&self, point: &Point, pace: Pace) -> usize {
        self.kills().iter().filter(|kill| kill.name == point.name && kill.pace == pace.name && kill.hit).count()
    }

    /// Paces at which the point has to be hit still: `times` in all, and at each pace at which it is come to.
    #[must_use]
    pub fn due(&self, point: &Point, times: usize) -> Vec<Pace> {
        let hits: usize = point.paces.iter().map(|pace| self.hits_at(point, *pace)).sum();
        point.paces.iter().copied().filter(|pace| hits < times || self.hits_at(point, *pace) == 0).collect()
    }

    /// Kills one agent at each point that has still to be hit at the pace; gives whether any is left, at whichever pace.
    pub fn kill_at_points(&mut self, times: usize, pace: Pace) -> bool {
        let due: Vec<&Point> = POINTS.iter().filter(|point| self.due(point, times).contains(&pace)).collect();
        if !due.is_empty() {
            self.set_pace(pace);
        }
        due.iter().for_each(|point| self.kill_at(point));
        POINTS.iter().any(|point| !self.due(point, times).is_empty())
    }

    /// Has an agent come to the point, and kills it there.
    fn kill_at(&mut self, point: &Point) {
        if point.open_segment {
            self.leave_a_segment_open();
        }
        let look = Look { spool: self.spool(), before: segments(&self.spool()), meddled: self.meddled.clone() };
        if let Some(trouble) = point.trouble {
            self.trouble(trouble, look.clone());
        }
        if let Aim::Call(call, when) = point.aim {
            let (look, proof) = (look.clone(), point.proof);
            self.gate.close(call, when, move |key| look.at(key).iter().any(proof));
        }
        let watch = Watch::new(&self.spool());
        let first = (!matches!(point.aim, Aim::Call(..))).then(GoFirst::begin);
        let mut agent = self.start();
        let is_there = |id: &str| look.at_or_gone(id).iter().any(point.proof);
        let target = match point.aim {
            Aim::Call(..) => self.gate.wait_held(COME_TO_POINT),
            Aim::File(change, extension) => watch.wait(|seen, name| {
                let (id, found) = name.split_once('.')?;
                (seen == Some(change) && found == extension && is_there(id)).then(|| id.to_owned())
            }),
            Aim::Record(record) => watch.wait(|_, name| {
                let id = name.strip_suffix(".journal")?;
                (last_record(&self.spool().join(name)) == record && is_there(id)).then(|| id.to_owned())
            }),
        };
        let struck = self.strike(&mut agent);
        // To wait for the end of a process is not to go before that end.
        drop(first);
        self.end(agent, struck, point.name, || target.is_some_and(|target| is_there(&target)));
    }

    /// Has an agent open a segment, and kills it then, unless an earlier one left one open.
    fn leave_a_segment_open(&mut self) {
        let is_open = |spool: &Path| segments(spool).values().any(Files::is_open);
        let spool = self.spool();
        if is_open(&spool) {
            return;
        }
        let mut agent = self.start();
        agent.wait_for("a segment is open and has frames", COME_TO_POINT, |_| is_open(&spool));
        let struck = self.strike(&mut agent);
        self.end(agent, struck, "open: frames in it", || true);
    }

    /// Has it happen to S3 before the call of such a segment.
    fn trouble(&self, trouble: Trouble, look: Look) {
        let Trouble { what, at, of } = trouble;
        let s3 = self.pair.tap.run(|| self.s3.client());
        self.gate.meddle(at, move |key| {
            let Some(files) = look.at(key).into_iter().find(of) else { return false };
            match what {
                What::KeyTaken => {
                    now(async { s3.put_object().bucket(BUCKET).key(key).body(TAKEN.to_vec().into()).send().await.map(|_| ()) });
                    look.meddled().taken.insert(key.to_owned());
                }
                What::UploadGone => {
                    let Some(id) = files.uploads.last() else { return false };
                    now(async { s3.abort_multipart_upload().bucket(BUCKET).key(key).upload_id(id).send().await.map(|_| ()) });
                    look.meddled().gone.insert(id.clone());
                }
            }
            true
        });
    }

    /// Kills an agent some time within `life` after its start.
    pub fn kill_at_random(&mut self, lot: &mut Lot, life: Duration, name: &'static str) {
        self.kill_after(lot.up_to(life), name);
    }

    /// Kills an agent so long after its start.
    pub fn kill_after(&mut self, life: Duration, name: &'static str) {
        let mut agent = self.start();
        std::thread::sleep(life);
        let struck = self.strike(&mut agent);
        self.end(agent, struck, name, || true);
    }

    /// Multipart uploads that S3 has begun so far.
    #[must_use]
    pub fn created(&self) -> usize {
        self.gate.created()
    }

    /// Whether S3 is away from now on.
    pub fn set_away(&self, away: bool) {
        self.gate.set_away(away);
    }

    fn strike(&self, agent: &mut Agent) -> Struck {
        self.waits.look();
        let at = agent.strike();
        Struck { at, sent: self.traffic.as_ref().map_or(0, Traffic::sent), waited: self.waits.end() }
    }

    /// Takes down what an agent that was struck has left.
    fn end(&mut self, agent: Agent, struck: Struck, name: &'static str, hit: impl FnOnce() -> bool) {
        self.kept = Some(agent.kill_and_keep());
        self.gate.open();
        let Struck { at, sent, waited } = struck;
        let (pace, loss, excused) = (self.pace.name, Duration::ZERO, Duration::ZERO);
        let kill = Kill { name, pace, hit: hit(), at, waited, sent, lost: 0, loss, excused };
        self.ledger.note(kill, &self.spool(), &segments(&self.spool()));
    }

    /// Stops the packets, has an agent send what is left, and settles the accounts.
    ///
    /// # Panics
    /// When a promise is broken.
    pub fn settle(&mut self) -> Sum {
        let sent = self.traffic.take().map(Traffic::stop).unwrap_or_default();
        // The last ones are on the wire.
        std::thread::sleep(Duration::from_millis(200));
        let mut agent = self.start();
        agent.wait_for("the last agent is ready", Duration::from_secs(10), |agent| agent.says("READY=1"));
        agent.wait_for("what was taken is in the spool", Duration::from_secs(3), {
            let enough = Instant::now() + 2 * self.flush + Duration::from_millis(500);
            move |_| Instant::now() > enough
        });
        let status = agent.stop(Duration::from_secs(10));
        assert!(status.success(), "the last agent ended with {status}");
        assert!(!agent.log().contains("panicked"), "an agent panicked");
        let begun = Instant::now();
        agent.upload_rest();
        println!("what was left arrived within {:.1} s", begun.elapsed().as_secs_f64());
        let left: Vec<_> = segments(&self.spool()).into_keys().collect();
        assert!(left.is_empty(), "segments were left in the spool: {left:?}");
        let taken = meddled(&self.meddled).taken.clone();
        let stored = self.ask_s3(async |s3| Stored::read(s3, &taken).await);
        let sum = self.ledger.settle(&sent, &stored);
        self.print(&sum);
        assert_eq!(sum.orphans, 0, "multipart uploads were left behind");
        // One that costs nothing excuses none that does.
        let (median, _) = median_and_max(self.kills().iter().filter(|kill| kill.lost > 0));
        let bound = self.flush + ON_THE_WAY;
        assert!(median <= bound.as_millis(), "kills that cost anything cost {median} ms in the median: more than {bound:?}");
        sum
    }

    /// Prints what each point, and each way of choosing a moment, cost.
    fn print(&self, sum: &Sum) {
        let columns = PACES.map(|pace| format!("{:>6}", pace.name)).join(" ");
        let heads = ["kills", "hits"].map(|head| format!("{head:>5}")).join(" ");
        println!("{:<36} {heads} {columns} {:>9} {:>7} {:>9} {:>7}", "killed at", "sent", "lost", "median ms", "max ms");
        let mut names: Vec<&str> = POINTS.iter().map(|point| point.name).collect();
        names.extend(self.kills().iter().map(|kill| kill.name));
        let mut told = BTreeSet::new();
        for name in names.into_iter().filter(|name| told.insert(*name)) {
            let sent: u64 = self.sent_before().filter(|(kill, _)| kill.name == name).map(|(_, sent)| sent).sum();
            let kills: Vec<_> = self.kills().iter().filter(|kill| kill.name == name).collect();
            if kills.is_empty() {
                continue;
            }
            let hits = kills.iter().filter(|kill| kill.hit);
            let columns = PACES.map(|pace| format!("{:>6}", hits.clone().filter(|kill| kill.pace == pace.name).count())).join(" ");
            let lost: u64 = kills.iter().map(|kill| kill.lost).sum();
            let (median, max) = median_and_max(kills.iter().copied());
            println!("{name:<36} {:>5} {:>5} {columns} {sent:>9} {lost:>7} {median:>9} {max:>7}", kills.len(), hits.count());
        }
        let Sum { kills, sent, stored, lost, captures, of_parts, closed, orphans } = sum;
        let (median, max) = median_and_max(self.kills().iter());
        let excused = self.kills().iter().map(|kill| kill.excused).max().unwrap_or_default();
        println!(
            "{kills} kills, spool.flush_ms {}: {sent} packets sent, {stored} in S3 in {captures} captures ({of_parts} of several \
             parts, {closed} closed by the agent that opened them), {lost} lost; \
             what a kill cost was held for {median} ms in the median, {max} ms at most, of which waits excuse {excused:?} at most; \
             {orphans} uploads left whose id nobody heard",
            self.flush.as_millis()
        );
    }

    /// Each kill with the packets that were sent since the one before.
    fn sent_before(&self) -> impl Iterator<Item = (&Kill, u64)> {
        let mut before = 0;
        self.kills().iter().map(move |kill| (kill, kill.sent - std::mem::replace(&mut before, kill.sent)))
    }

    fn start(&mut self) -> Agent {
        let prefix = format!("storm-{}/", self.agents / AGENTS_PER_PREFIX);
        self.agents += 1;
        self.set("s3.key_prefix", prefix);
        let kept = self.kept.take().unwrap_or_default();
        let agent = Agent::start_after(Some(self.pair.tap.name()), &self.settings, self.folder.path(), kept);
        self.waits.begin(agent.pid());
        agent
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn ask_s3<T: Send>(&self, work: impl AsyncFnOnce(Client) -> T + Send) -> T {
        self.pair.tap.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap_or_else(|cause| panic!("no runtime: {cause}"));
            runtime.block_on(async { work(self.s3.client()).await })
        })
    }
}

impl Storm<Garage> {
    /// An agent lives while S3 is killed at each of these calls in turn, and is back `away` later; then the agent is killed, too.
    ///
    /// # Panics
    /// When the agent does not come to a call.
    pub fn kill_s3_at(&mut self, calls: &[(Call, When)], away: Duration, name: &'static str) {
        let mut agent = self.start();
        for &(call, when) in calls {
            self.gate.close(call, when, |_| true);
            let begun = Instant::now();
            let key = self.gate.wait_held(COME_TO_CALL);
            let key = key.unwrap_or_else(|| panic!("no {call:?} came within {COME_TO_CALL:?}; the agent's log:\n{}", agent.log()));
            self.s3.kill();
            self.gate.open();
            println!("S3 killed: {when:?} {call:?} of '{key}', after {:.1} s", begun.elapsed().as_secs_f64());
            std::thread::sleep(away);
            self.s3.restart(&self.pair.tap);
        }
        let struck = self.strike(&mut agent);
        self.end(agent, struck, name, || true);
    }
}

/// The spool, and what happened to S3, as it is at any moment.
#[derive(Clone)]
struct Look {
    spool: PathBuf,
    /// Segments as they were when the agent began.
    before: BTreeMap<String, Files>,
    meddled: Arc<Mutex<Meddled>>,
}

impl Look {
    /// What there is of a segment, by its capture id, its key or that of its manifest.
    fn at(&self, target: &str) -> Vec<Files> {
        let all = segments(&self.spool).into_iter();
        let of_target = all.filter(|(id, files)| id == target || files.key == *target || target.contains(id.as_str()));
        let meddled = self.meddled();
        of_target
            .map(|(id, mut files)| {
                files.earlier = self.before.contains_key(&id);
                files.taken = meddled.taken.contains(&files.key);
                files.gone = files.uploads.last().is_some_and(|id| meddled.gone.contains(id));
                files
            })
            .collect()
    }

    /// As [`Self::at`]; of one that was removed what its journal said when the agent began, and no file.
    fn at_or_gone(&self, target: &str) -> Vec<Files> {
        let found = self.at(target);
        let gone = || Files { extensions: BTreeSet::new(), ..self.before.get(target).cloned().unwrap_or_default() };
        if found.is_empty() { vec![gone()] } else { found }
    }

    fn meddled(&self) -> MutexGuard<'_, Meddled> {
        meddled(&self.meddled)
    }
}

fn meddled(meddled: &Mutex<Meddled>) -> MutexGuard<'_, Meddled> {
    meddled.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a call of S3, on this thread.
fn now<E: std::fmt::Debug>(call: impl Future<Output = Result<(), E>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.unwrap_or_else(|cause| panic!("no runtime: {cause}")).block_on(call);
    done.unwrap_or_else(|cause| panic!("S3 could not be changed: {cause:?}"));
}

fn median_and_max<'a>(kills: impl Iterator<Item = &'a Kill>) -> (u128, u128) {
    let mut losses: Vec<_> = kills.map(|kill| kill.loss.as_millis()).collect();
    losses.sort_unstable();
    (losses.get(losses.len() / 2).copied().unwrap_or(0), losses.last().copied().unwrap_or(0))
}

/// An agent's end.
struct Struck {
    at: Instant,
    sent: u64,
    waited: Waited,
}

/// While it lives, this thread and the agents that it starts share one processor, and this thread goes first: a watcher that wakes
/// up kills before the agent's next step, however short that is.
struct GoFirst(CpuSet);

impl GoFirst {
    fn begin() -> Self {
        let before = sched_getaffinity(None).unwrap_or_else(|cause| panic!("which processors there are is not told: {cause}"));
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        sched_setaffinity(None, &one).unwrap_or_else(|cause| panic!("cannot stay on one processor: {cause}"));
        // What it starts is not to go first, too.
        schedule(&["--fifo", "--reset-on-fork"], "1");
        Self(before)
    }
}

/// Sets this thread's priority.
fn schedule(policy: &[&str], priority: &str) {
    let thread = gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(policy).args(["--pid", priority, &thread]).status();
    assert!(status.is_ok_and(|status| status.success()), "'chrt' (util-linux) cannot set a priority: this test needs root (CAP_SYS_NICE)");
}

impl Drop for GoFirst {
    fn drop(&mut self) {
        schedule(&["--other"], "0");
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// What happens in the spool.
struct Watch(OwnedFd);

impl Watch {
    fn new(spool: &Path) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let watch = watch.unwrap_or_else(|cause| panic!("no inotify: {cause}"));
        let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MODIFY;
        inotify::add_watch(&watch, spool, what).unwrap_or_else(|cause| panic!("cannot watch '{}': {cause}", spool.display()));
        Self(watch)
    }

    /// Waits for a change, with the file's name, of which `is_it` gives something.
    fn wait<T>(&self, is_it: impl Fn(Option<Change>, &str) -> Option<T>) -> Option<T> {
        let end = Instant::now() + COME_TO_POINT;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut space);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let Ok(event) = reader.next() else {
                let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
                let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left));
                continue;
            };
            let change =
                [(ReadFlags::CREATE, Change::Created), (ReadFlags::MOVED_TO, Change::Renamed), (ReadFlags::DELETE, Change::Removed)];
            let change = change.into_iter().find(|(flag, _)| event.events().contains(*flag)).map(|(_, change)| change);
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(found) = is_it(change, &name) {
                return Some(found);
            }
        }
    }
}
