//! Ties the stages together: the one file that knows all of them.
//! In: the settings. Out: a running agent, until a signal, the end of a replayed file, or an error that no retry cures.
//! Never: a rule of any stage; whoever looks for one looks there.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::{self, JoinHandle};
use tokio::time::{sleep, timeout};

use crate::alert::rules::Trouble;
use crate::alert::{self, Place, Sns, relief};
use crate::capture::keeper::Keeper;
use crate::capture::ring::{self, Group, Ring, Shelf};
use crate::capture::tee::Tee;
use crate::capture::worker::{Judge, Opener, Shared, Worker};
use crate::capture::{self, Batch, EngineKind, Event, file, filter, interface, libpcap};
use crate::config::{Instance, Settings};
use crate::host::clock::{Clock, SystemClock};
use crate::host::{imds, lifecycle, nic, processors, systemd, timesync};
use crate::observe::counters::Counters;
use crate::observe::vitals::{Act, Vitals};
use crate::observe::{cloudwatch, health};
use crate::record::key::Names;
use crate::record::recorder::{Meter, Recorder};
use crate::record::window::Rotation;
use crate::spool::{self, Folder, journal, salvage, writer};
use crate::upload::{self, Reserved, Unsent};

mod beside;
mod earlier;
mod leaving;

use beside::{Beside, Ends};
use leaving::{Leaver, drain};

/// Batches that may be under way between one capture thread and the recorder: as many as a ring of 256 MiB has blocks.
const BATCHES_PER_THREAD: usize = 256;

/// How long a stopping agent insists on a disk that refuses.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How long the service manager may take to say whether the machine goes down: an ordinary restart is over in two seconds.
const ASK_PATIENCE: Duration = Duration::from_millis(500);

/// How often the service manager is told how it goes.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Threads of the uploading half: checksums in one, the network in the other.
const UPLOAD_THREADS: usize = 2;

/// As it is named when it has died.
const UPLOADER: &str = "the uploader";

/// Why an agent ended.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// Capture cannot begin, or died.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// Nobody says which instance this is.
    #[error(transparent)]
    Instance(#[from] imds::Error),
    /// The address of the health check cannot be had.
    #[error("cannot listen on {listen} for health checks: {cause}; set health.listen to a free address")]
    Listen {
        /// Which.
        listen: SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
    /// A thread or the runtime cannot be started.
    #[error("cannot start {what}: {cause}")]
    Start {
        /// What.
        what: &'static str,
        /// Why not.
        cause: std::io::Error,
    },
    /// The recorder panicked: a defect.
    #[error("the recorder died; this is a defect, please report the log lines before this one")]
    Recorder,
    /// What works beside the recorder panicked: a defect.
    #[error("{0} died; this is a defect, please report the log lines before this one")]
    Died(&'static str),
    /// A thread of the spool panicked, or its disk lost what it had taken.
    #[error(
        "the spool cannot be written any more: its disk lost bytes that it had taken, or a thread of it died; the log lines before this one say which"
    )]
    SpoolLost,
    /// A replayed file's segments did not all reach S3.
    #[error("{0} segments are still in the spool; `tapfleetd spool upload` sends them")]
    Unsent(usize),
    /// Whether they did is not known.
    #[error("what is left in the spool is not known: {0}; `tapfleetd spool upload` sends it")]
    Unlisted(upload::Error),
}

/// Runs the agent.
///
/// # Errors
/// When it cannot begin, or capture died.
pub fn run(settings: Settings) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(UPLOAD_THREADS)
        .enable_all()
        .build()
        .map_err(|cause| Error::Start { what: "the runtime", cause })?;
    let result = runtime.block_on(async {
        let (alerts, instance) = (settings.alert.clone(), settings.instance.clone());
        let result = agent(settings).await;
        if let Err(error) = &result {
            last_words(&alerts, instance, error).await;
        }
        result
    });
    // A call that hangs (a sync on a dead disk) does not hold the end of the process up.
    runtime.shutdown_timeout(STOP_PATIENCE);
    result
}

async fn agent(mut settings: Settings) -> Result<(), Error> {
    let mut told_to_stop = std::pin::pin!(told_to_stop());
    let folder = Folder::open(&settings.spool)?;
    let on_ec2 = settings.instance.id.is_none();
    know_instance(&mut settings).await?;
    let replay = settings.capture.engine == EngineKind::File;
    let threads = if replay { 1 } else { settings.capture.threads };
    let counters = Arc::new(Counters::new(threads));
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        complete_until_ns: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        counters: counters.clone(),
    });

    let names = names(&folder, &settings)?;
    let unfinished: Vec<_> = folder.segments()?.into_iter().filter(|segment| segment.manifest.is_none()).collect();
    let listener = listen(settings.health.listen).await?;
    let (writer, spool_threads) = writer::start(&folder, &settings.spool, counters.clone())?;
    let interface = if replay { String::new() } else { interface::resolve(&settings.capture.interface).map_err(Error::Capture)? };
    refuse_loop(settings.tee.as_deref(), &interface)?;
    let group = group(&settings.capture, &interface)?;
    let rotation = Rotation::new(settings.record.rotate_seconds);
    let (mut ended, _keeper) = start_capture(&settings, &interface, shared.clone(), &group, rotation.clone(), writer, names)?;
    // Not before frames are taken: whoever asks is told the truth from the first answer on.
    let facts = health::Facts { instance: settings.record.instance.clone(), since: SystemClock.now(), live: !replay };
    let mut beside = Beside::default();
    beside.add("the health check", Ends::Never, Some(serve_health(listener, counters.clone(), facts.clone())));
    systemd::ready();
    let source = if replay { "a file".to_owned() } else { interface };
    let (act, acts) = watch::channel(Act::Record);
    tell_manager(source.clone(), counters.clone(), facts.clone(), acts)?;
    tracing::info!(instance = settings.record.instance, interface = settings.capture.interface, threads, "capturing");

    let (stop, stopping) = watch::channel(false);
    beside.add("the alerts", Ends::AtStop, start_alerts(&settings, &counters, replay, stopping.clone()));
    let time = settings
        .host
        .time_server
        .filter(|_| !replay)
        .map(|server| tokio::spawn(timesync::watch(server, on_ec2, counters.clone(), SystemClock, timesync::EVERY, stopping.clone())));
    beside.add("the comparison of the clock", Ends::Dispensable, time);
    let metrics = start_metrics(&settings, &counters, facts, (!replay).then_some(source), stopping.clone());
    beside.add("the reports to CloudWatch", Ends::Dispensable, metrics);
    let leaver = Arc::new(Leaver::new(rotation, settings.lifecycle.clone(), folder.clone()));
    // Where there is no metadata to ask it ends at once.
    beside.add("the lifecycle", Ends::AnyTime, start_lifecycle(&settings, &counters, &leaver, stopping.clone()));
    let store = Arc::new(upload::S3::new(settings.upload.clone()));
    let reserved = Reserved::new(&unfinished);
    let uploads = tokio::spawn({
        let (settings, folder, counters, store) = (settings.upload.clone(), folder.clone(), counters.clone(), store.clone());
        let (reserved, mut told) = (reserved.clone(), stopping.clone());
        async move {
            // Each segment of an earlier agent goes as soon as it is whole. Long ones take minutes, for which a stop does not wait: the
            // next start goes on. The end of a replay does, and tries once.
            let salvage = async {
                if replay {
                    return drop(earlier::finish(&folder, unfinished, &reserved, salvage::make_whole).await);
                }
                tokio::select! {
                    () = earlier::finish_all(&folder, unfinished, &reserved, salvage::make_whole) => {}
                    _ = told.wait_for(|&stop| stop) => {}
                }
            };
            tokio::join!(salvage, upload::run(settings, folder.clone(), counters, store, reserved.clone(), stopping));
        }
    });
    beside.add(UPLOADER, Ends::AtStop, Some(uploads));

    let end = tokio::select! {
        errors = &mut ended => End::Captured(errors),
        () = &mut told_to_stop => End::Told { machine_too: stopping_with_machine().await },
        () = leaver.ends(), if !replay => End::Leaving,
        what = beside.death() => End::Died(what),
        () = spool_lost(&spool_threads) => return Err(Error::SpoolLost),
    };
    let mut leaves = matches!(end, End::Leaving | End::Told { machine_too: true });
    if leaves {
        group.leave_nothing();
        counters.leaving_ended.set(1);
    }
    act.send_replace(Act::Close);
    let leaving = matches!(end, End::Leaving);
    let mut dead = if let End::Died(what) = end { Some(what) } else { None };
    let errors = match end {
        End::Captured(errors) => errors,
        End::Told { .. } | End::Leaving | End::Died(_) => {
            shared.stop.store(true, Ordering::Release);
            match stopped(ended, &spool_threads, replay).await {
                Some(errors) => errors,
                None => return dead.map_or(Ok(()), |what| Err(Error::Died(what))),
            }
        }
    };
    let errors = errors.map_err(|_| Error::Recorder)?;
    finish_spool(spool_threads).await;
    if leaves {
        earlier::finish_ours(&folder, &reserved).await;
    }
    reserved.close();
    act.send_replace(Act::Send);
    if leaving {
        leaver.closed();
        tokio::select! {
            () = told_to_stop => leaves = stopping_with_machine().await,
            () = leaver.begins_anew() => leaves = false,
            // The next agent sends what is left.
            what = beside.death() => (leaves, dead) = (false, Some(what)),
        }
    }
    if leaves {
        let mut drained = std::pin::pin!(drain(&folder, settings.lifecycle.shutdown, &counters));
        // Without the uploader nothing is sent any more that could be waited for; what else has died nobody starts again now.
        while dead != Some(UPLOADER) {
            tokio::select! {
                () = &mut drained => break,
                what = beside.death() => dead = Some(what),
            }
        }
    }
    act.send_replace(Act::End);
    // The receivers are gone when all have died, and then there is nothing to stop.
    let _ = stop.send(true);
    if let Some(what) = beside.finish().await.or(dead) {
        // What was recorded is in the spool; the next agent sends it.
        return Err(Error::Died(what));
    }
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }
    if replay && !shared.stop.load(Ordering::Acquire) {
        // A replayed file has an end, and so has its upload.
        act.send_replace(Act::Send);
        let left = send_spool(settings.upload, folder, counters, store).await.map_err(Error::Unlisted)?;
        return if left.is_empty() { Ok(()) } else { Err(Error::Unsent(left.len())) };
    }
    Ok(())
}

/// Why recording ends.
enum End {
    /// By itself.
    Captured(Result<Vec<capture::Error>, oneshot::error::RecvError>),
    /// By order of the service manager or a person.
    Told {
        /// Whether no agent will come after this one, as the machine goes down.
        machine_too: bool,
    },
    /// By order of the lifecycle.
    Leaving,
    /// For want of what works beside it and has died: the next agent has it.
    Died(&'static str),
}

async fn stopping_with_machine() -> bool {
    systemd::stopping();
    systemd::shuts_down(ASK_PATIENCE).await
}

/// Watches over the instance's end; a replay has nothing to do with it.
fn start_lifecycle(
    settings: &Settings,
    counters: &Arc<Counters>,
    leaver: &Arc<Leaver>,
    stopping: watch::Receiver<bool>,
) -> Option<JoinHandle<()>> {
    if settings.capture.engine == EngineKind::File {
        return None;
    }
    let identity = lifecycle::Identity {
        instance: settings.record.instance.clone(),
        region: settings.instance.region.clone(),
        group: settings.instance.group.clone(),
    };
    let running = lifecycle::run(settings.lifecycle.clone(), identity, leaver.clone(), counters.clone(), SystemClock, stopping);
    Some(tokio::spawn(running))
}

/// Done when the spool is of no use to this agent any more; the next one makes whole what is there.
async fn spool_lost(spool_threads: &writer::Threads) {
    while !spool_threads.have_failed() {
        sleep(TELL_EVERY / 4).await;
    }
}

/// What capture and recorder ended with after the order to stop; `None` when the input of a replay holds them up.
async fn stopped(
    mut ended: oneshot::Receiver<Vec<capture::Error>>,
    spool_threads: &writer::Threads,
    replay: bool,
) -> Option<Result<Vec<capture::Error>, oneshot::error::RecvError>> {
    if let Ok(ended) = timeout(STOP_PATIENCE, &mut ended).await {
        return Some(ended);
    }
    // The recorder may be waiting for a disk that refuses; it does not hold the end up either.
    spool_threads.insist_no_longer();
    if !replay {
        return Some(ended.await);
    }
    // A pipe may be silent for ever.
    let ended = timeout(STOP_PATIENCE, ended).await.ok();
    if ended.is_none() {
        tracing::warn!("the replayed input neither goes on nor ends; the next start makes whole what was recorded of it");
    }
    ended
}

/// Fills in what the settings left to the instance metadata.
async fn know_instance(settings: &mut Settings) -> Result<(), Error> {
    if settings.instance.id.is_none() {
        let instance = imds::instance_at_boot().await?;
        settings.record.instance.clone_from(&instance.id);
        settings.instance.region.get_or_insert(instance.region);
        settings.instance.az.get_or_insert(instance.az);
        settings.instance.id = Some(instance.id);
    }
    settings.upload.instance.clone_from(&settings.instance.id);
    if settings.upload.region.is_none() {
        settings.upload.region.clone_from(&settings.instance.region);
    }
    Ok(())
}

/// Starts the alerts, if the settings name a topic.
fn start_alerts(settings: &Settings, counters: &Arc<Counters>, replay: bool, stopping: watch::Receiver<bool>) -> Option<JoinHandle<()>> {
    let notifier = Arc::new(Sns::new(settings.alert.topic_arn.as_ref()?));
    let mut schedule = settings.record.schedule.clone();
    let scene = alert::Scene {
        place: place_of(&settings.instance, &settings.record.instance, &settings.alert),
        live: !replay,
        expected: Box::new(move |wall_ns| schedule.as_mut().is_none_or(|schedule| schedule.is_on(wall_ns))),
        counters: counters.clone(),
        spare: spare_outbox(),
    };
    Some(tokio::spawn(alert::run(settings.alert.clone(), scene, notifier, SystemClock, stopping)))
}

/// Starts the reports to CloudWatch, if the settings name a namespace. `interface`: whose losses are told.
fn start_metrics(
    settings: &Settings,
    counters: &Arc<Counters>,
    facts: health::Facts,
    interface: Option<String>,
    stopping: watch::Receiver<bool>,
) -> Option<JoinHandle<()>> {
    let sink = cloudwatch::CloudWatch::new(cloudwatch::Settings {
        namespace: settings.metrics.cloudwatch_namespace.clone()?,
        group: settings.instance.group.clone(),
        region: settings.instance.region.clone(),
    });
    let mut meter = meter(interface);
    let losses = move || {
        let lost = meter();
        [lost.nic, lost.ec2].map(|counts| counts.values().sum())
    };
    Some(tokio::spawn(cloudwatch::run(counters.clone(), facts, Box::new(losses), sink, SystemClock, stopping)))
}

fn place_of(instance: &Instance, id: &str, settings: &alert::Settings) -> Place {
    Place {
        instance: id.to_owned(),
        region: instance.region.clone(),
        zone: instance.az.clone(),
        group: instance.group.clone(),
        account: settings.account(),
    }
}

/// Where this is, as far as it can be found out: a mail must leave also when the instance metadata does not answer.
pub async fn place(mut instance: Instance, settings: &alert::Settings) -> Place {
    if instance.id.is_none()
        && let Ok(found) = imds::instance().await
    {
        instance.region.get_or_insert(found.region);
        instance.az.get_or_insert(found.az);
        instance.id = Some(found.id);
    }
    place_at_hand(instance, settings)
}

/// Where this is, without asking anybody: by the settings, by what the last agent left, by the host's name.
#[must_use]
pub fn place_at_hand(instance: Instance, settings: &alert::Settings) -> Place {
    let left = relief::left(settings, spare_outbox().as_deref()).place;
    Place {
        instance: instance.id.or(Some(left.instance).filter(|id| !id.is_empty())).unwrap_or_else(relief::host_name),
        region: instance.region.or(left.region),
        zone: instance.az.or(left.zone),
        group: instance.group.or(left.group),
        account: settings.account().or(left.account),
    }
}

/// Files the trouble that ends the process. Under systemd that is all: the next agent or the alert unit sends it, and capture is back
/// the sooner.
async fn last_words(settings: &alert::Settings, instance: Instance, error: &Error) {
    let Some(topic) = &settings.topic_arn else { return };
    // Of these another agent or the caller knows: capture is not what failed.
    if matches!(error, Error::Spool(spool::Error::InUse { .. }) | Error::Unsent(_) | Error::Unlisted(_)) {
        return;
    }
    let restarted = systemd::started_us();
    let place = if restarted { place_at_hand(instance, settings) } else { place(instance, settings).await };
    let (filing, detail) = (settings.clone(), error.to_string());
    let filed = task::spawn_blocking(move || {
        relief::file(&filing, spare_outbox().as_deref(), &place, Trouble::CaptureFailed, &detail, SystemClock.now())
            .map_err(|e| e.to_string())
    });
    if let Err(cause) = filed.await.unwrap_or_else(|died| Err(died.to_string())) {
        tracing::error!("the trouble that ends the agent is not filed: {cause}");
    }
    if !restarted {
        relief::last_try(settings, Arc::new(Sns::new(topic))).await;
    }
}

/// Where mails are filed that the outbox does not take: in memory, so that no volume keeps them. Only under a service manager that
/// made the folder: the agent, its hooks and who sends for it share it.
#[must_use]
pub fn spare_outbox() -> Option<PathBuf> {
    Some(systemd::runtime_folder()?.join("outbox"))
}

/// The names that the spool's segments bear, so that no new one gets the same.
fn names(folder: &Folder, settings: &Settings) -> Result<Names, Error> {
    let mut names = Names::new(&settings.upload.key_prefix, &settings.record.instance);
    for path in folder.segments()?.iter().filter_map(|segment| segment.journal.as_ref()) {
        // A damaged journal is told of by salvage and by the uploader.
        if let Ok((state, _)) = journal::read(path) {
            names.note(&state.open.key);
        }
    }
    Ok(names)
}

async fn finish_spool(threads: writer::Threads) {
    let finished = task::spawn_blocking(move || threads.finish(STOP_PATIENCE)).await;
    if let Err(error) = finished {
        tracing::error!(%error, "the spool was not finished");
    }
}

async fn listen(listen: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(listen).await.map_err(|cause| Error::Listen { listen, cause })
}

fn serve_health(listener: TcpListener, counters: Arc<Counters>, facts: health::Facts) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = health::serve(listener, counters, facts, std::future::pending()).await {
            tracing::error!(%error, "health checks are no longer answered");
        }
    })
}

/// Tells the service manager how it goes, on a thread of its own, and feeds its watchdog as long as all goes round that has to.
fn tell_manager(interface: String, counters: Arc<Counters>, facts: health::Facts, acts: watch::Receiver<Act>) -> Result<(), Error> {
    if !systemd::listens() {
        return Ok(());
    }
    let watchdog = systemd::watchdog();
    let every = watchdog.map_or(TELL_EVERY, |watchdog| TELL_EVERY.min(watchdog / 4));
    let patience_ns = watchdog.map_or(u64::MAX, |watchdog| watchdog.as_nanos() as u64 / 2);
    let mut vitals = Vitals::new(interface, patience_ns, &counters, &facts, SystemClock.now());
    spawn("service-manager", move || {
        let mut told = String::new();
        let mut stuck_before = false;
        loop {
            thread::sleep(every);
            let act = *acts.borrow();
            let look = vitals.look(&counters, &facts, SystemClock.now(), act);
            match look.stuck {
                None => {
                    stuck_before = false;
                    systemd::alive();
                }
                Some(stuck) if !stuck_before => {
                    stuck_before = true;
                    tracing::error!(stuck, "the watchdog is not fed any more");
                }
                Some(_) => {}
            }
            // Later the drain says how it goes.
            if look.line != told && act == Act::Record {
                systemd::status(&look.line);
                told = look.line;
            }
        }
    })
}

/// The service manager's store of descriptors.
struct Store;

impl Shelf for Store {
    fn put(&self, name: &str, socket: BorrowedFd<'_>) {
        systemd::keep(name, socket);
    }

    fn remove(&self, name: &str) {
        systemd::forget(name);
    }
}

/// Frames sent out of the captured interface could come back by it.
fn refuse_loop(tee: Option<&str>, interface: &str) -> Result<(), capture::Error> {
    match tee {
        Some(tee) if tee == interface => Err(capture::Error::System {
            act: "send mirrored frames out of",
            thing: tee.to_owned(),
            cause: "it is the interface that is captured; set tee.interface to another one, such as one end of a veth pair".into(),
        }),
        _ => Ok(()),
    }
}

/// What ties the threads' sockets together, and to those of the agent before.
fn group(settings: &capture::Settings, interface: &str) -> Result<Arc<Group>, capture::Error> {
    let found = ring::socket::passed();
    if settings.engine == EngineKind::Ring && systemd::listens() {
        return Group::on_shelf(settings, interface, Arc::new(Store), found);
    }
    // Nobody would read them.
    found.iter().for_each(|(name, _)| systemd::forget(name));
    Group::new(settings)
}

/// Starts the capture threads and the recorder. Gives what they ended with, once they have, and what keeps the ports.
fn start_capture(
    settings: &Settings,
    interface: &str,
    shared: Arc<Shared>,
    group: &Arc<Group>,
    rotation: Rotation,
    writer: writer::Writer,
    names: Names,
) -> Result<(oneshot::Receiver<Vec<capture::Error>>, Option<Keeper>), Error> {
    let threads = shared.complete_until_ns.len();
    let live = settings.capture.engine != EngineKind::File;
    let keeper = live.then(|| Keeper::open(&settings.capture.rules));
    let (events, from_threads) = sync_channel(threads * BATCHES_PER_THREAD);
    let mut give_back = Vec::new();
    let (tee, branches) = settings.tee.clone().map(|interface| Tee::new(interface, threads, &shared.counters)).unzip();
    let mut branches = branches.into_iter().flatten();
    // All are open before any runs: an error is then seen before the agent says that it is ready.
    let mut workers = Vec::new();
    for thread in 0..threads {
        let mut open = opener(settings.capture.clone(), group.clone());
        let engine = open()?;
        let filter = settings.capture.filter.as_deref().map(filter::compile).transpose()?;
        let (back, spent): (SyncSender<Batch>, Receiver<Batch>) = sync_channel(BATCHES_PER_THREAD);
        give_back.push(back);
        let judge = Judge::new(&settings.capture, filter);
        let worker = Worker::new(thread, open, judge, shared.clone(), SystemClock, events.clone(), spent);
        workers.push((engine, worker.teed(branches.next())));
    }
    drop(events);
    let meter = meter(live.then(|| interface.to_owned()));
    let recorder = Recorder::new(settings.record.clone(), writer, SystemClock, shared, meter, names).rotating(rotation);
    if let Some(tee) = tee {
        spawn("tee", move || tee.run())?;
    }
    for ((engine, worker), processor) in workers.into_iter().zip(processors::of_each(threads)) {
        spawn("capture", move || {
            processor.into_iter().for_each(processors::stay_on);
            worker.run(engine);
        })?;
    }
    let (tell, ended) = oneshot::channel();
    spawn("record", move || record(recorder, &from_threads, &give_back, tell))?;
    Ok((ended, keeper))
}

fn record(
    recorder: Recorder<writer::Writer, SystemClock>,
    events: &Receiver<Event>,
    give_back: &[SyncSender<Batch>],
    tell: oneshot::Sender<Vec<capture::Error>>,
) {
    let errors = recorder.run(events, give_back);
    // Nobody waits any more when the process is ending.
    let _ = tell.send(errors);
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new().name(name.into()).spawn(body).map(|_| ()).map_err(|cause| Error::Start { what: "a thread", cause })
}

/// How one thread opens its engine, the first time and after its interface came back.
fn opener(settings: capture::Settings, group: Arc<Group>) -> Opener {
    Box::new(move || {
        // The default route may lead elsewhere by now.
        let interface = || interface::resolve(&settings.interface);
        Ok(match settings.engine {
            EngineKind::Ring => Box::new(Ring::open(&settings, &interface()?, &group)?),
            EngineKind::Libpcap => Box::new(libpcap::Libpcap::open(&settings, &interface()?, &group)?),
            EngineKind::File => Box::new(file::FileEngine::open(settings.files.clone())?),
        })
    })
}

/// Reads the interface's loss counters; a file has none.
fn meter(interface: Option<String>) -> Meter {
    let mut told = false;
    Box::new(move || match &interface {
        None => nic::LossCounters::default(),
        Some(name) => nic::losses(name).unwrap_or_else(|error| {
            // While the interface is away there is nothing to read; its gap stands in the manifest.
            if !told {
                tracing::warn!(%error, "the interface's loss counters cannot be read");
                told = true;
            }
            nic::LossCounters::default()
        }),
    })
}

/// Listens for SIGTERM and SIGINT from now on; the future is done when one has come. One that comes before anybody waits is kept, so
/// that an agent which is told to stop as soon as it is ready hands its rings over and does not just die.
fn told_to_stop() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        match signals {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("told to stop by SIGTERM"),
                    _ = interrupt.recv() => tracing::info!("told to stop by SIGINT"),
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals cannot be heard; the agent stops only when it is killed");
                std::future::pending().await
            }
        }
    }
}

/// Sends what the folder holds, also what an earlier agent left unfinished, until nothing is left that can be sent, or a
/// signal. Gives what is left.
///
/// # Errors
/// As [`upload::drain`].
pub async fn send_spool(
    settings: upload::Settings,
    folder: Folder,
    counters: Arc<Counters>,
    store: Arc<upload::S3>,
) -> Result<Vec<Unsent>, upload::Error> {
    let mut unfinished = folder.segments().unwrap_or_else(|error| {
        tracing::error!(%error, "what an earlier agent left is not looked at");
        Vec::new()
    });
    unfinished.retain(|segment| segment.manifest.is_none());
    let reserved = Reserved::new(&unfinished);
    earlier::finish(&folder, unfinished, &reserved, salvage::make_whole).await;
    // Nobody records into this folder while it is locked.
    reserved.close();
    let (stop, stopping) = watch::channel(false);
    let stopper = tokio::spawn(async move {
        told_to_stop().await;
        // The sender lives until the work is done: its end would be an order to stop.
        let _ = stop.send(true);
        std::future::pending::<()>().await;
    });
    let left = upload::drain(settings, folder, counters, store, reserved, stopping).await;
    stopper.abort();
    left
}
