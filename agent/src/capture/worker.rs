//! In: an engine. Out: events to the recorder: batches of judged frames, gaps, the end.
//! Never: waits for anything but the engine, loses a frame (one item each), gives up because an interface went away.
//!
//! One loop over any engine; each capture thread runs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use pcap::BpfProgram;

use super::origins::Origins;
use super::tee::Branch;
use super::{Batch, Bytes, Direction, Engine, Error, Event, Gap, Item, Losses, Settings, Taken, What};
use crate::host::clock::{Clock, SECOND_NS};
use crate::observe::counters::{Counters, Pulse};
use crate::wire::{self, Drop, Inner, Outcome};

/// How long an engine waits for frames before the loop looks at its orders, and says how far it is complete: the recorder holds the other
/// threads' frames back until then.
const TAKE_WAIT: Duration = Duration::from_millis(50);

/// The same where there are no others to tell.
const TAKE_WAIT_ALONE: Duration = Duration::from_millis(100);

/// How many batches a thread that is alone is ahead of the recorder: one that it takes, one that waits. With more, the first has left the
/// processor's cache when its bytes are copied, and a ring keeps frames as well as a queue does. Several threads wait for each other in the
/// recorder, and go on meanwhile.
const AHEAD_MAX: usize = 2;

/// How often a lost interface is asked for.
const REOPEN_EVERY: Duration = Duration::from_millis(100);

/// How often the kernel's loss counters are read.
const LOSSES_EVERY_NS: u64 = SECOND_NS / 5;

/// Opens the engine of one thread, also again after its interface came back.
pub type Opener = Box<dyn FnMut() -> Result<Box<dyn Engine>, Error> + Send>;

/// What a capture thread and the recorder share beside the events.
#[derive(Debug)]
pub struct Shared {
    /// Set when capture shall end: the engines give what they have and stop.
    pub stop: AtomicBool,
    /// Per thread: everything stamped before this has been sent.
    pub complete_until_ns: Vec<AtomicU64>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

/// One capture thread's loop.
pub struct Worker<C> {
    thread: usize,
    open: Opener,
    judge: Judge,
    shared: Arc<Shared>,
    clock: C,
    events: SyncSender<Event>,
    spent: Receiver<Batch>,
    counted: Losses,
    losses_read_ns: u64,
    /// Batches to fill.
    spares: Vec<Batch>,
    /// Batches that were sent and have not come back.
    ahead: usize,
    tee: Option<Branch>,
}

impl<C: Clock> Worker<C> {
    /// A worker for thread number `thread`, which opens its engine with `open`, sends to `events` and gets its batches back
    /// through `spent`.
    pub fn new(
        thread: usize,
        open: Opener,
        judge: Judge,
        shared: Arc<Shared>,
        clock: C,
        events: SyncSender<Event>,
        spent: Receiver<Batch>,
    ) -> Self {
        let (counted, losses_read_ns, spares, ahead, tee) = (Losses::default(), 0, Vec::new(), 0, None);
        Self { thread, open, judge, shared, clock, events, spent, counted, losses_read_ns, spares, ahead, tee }
    }

    /// Has the mirrored frames sent out of another interface, too.
    #[must_use]
    pub fn teed(mut self, tee: Option<Branch>) -> Self {
        self.tee = tee;
        self
    }

    /// Runs until told to stop, the engine's end, or an error that reopening cannot cure. `engine` is the first engine, opened
    /// by the caller so that its errors are seen before the agent calls itself ready.
    pub fn run(mut self, engine: Box<dyn Engine>) {
        let died = Error::Died { thread: self.thread };
        let mut farewell = Farewell { thread: self.thread, events: self.events.clone(), error: Some(died) };
        farewell.error = self.capture(engine).err();
    }

    fn capture(&mut self, mut engine: Box<dyn Engine>) -> Result<(), Error> {
        let mut told = false;
        let alone = self.shared.complete_until_ns.len() == 1;
        let wait = if alone { TAKE_WAIT_ALONE } else { TAKE_WAIT };
        loop {
            if self.stopping() && !told {
                engine.hand_over()?;
                told = true;
            }
            if alone && self.ahead >= AHEAD_MAX {
                match self.spent.recv_timeout(wait) {
                    Ok(batch) => self.take_back(batch),
                    Err(RecvTimeoutError::Timeout) => {
                        // The recorder waits for the disk; the engine is well.
                        self.beat(true);
                        self.count_losses(engine.as_mut(), false)?;
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
            let Some(mut batch) = self.fresh_batch() else { return Ok(()) };
            let taken = engine.take(&mut batch.bytes, wait);
            self.beat(taken.is_ok());
            match taken {
                Ok(Taken::Frames) => {
                    self.judge.judge(&mut batch);
                    if let Some(tee) = &mut self.tee {
                        tee.offer(&batch);
                    }
                    self.count_losses(engine.as_mut(), false)?;
                    if self.events.send(Event::Batch(batch)).is_err() {
                        return Ok(());
                    }
                    self.ahead += 1;
                    continue;
                }
                Ok(Taken::Quiet { complete_until_ns }) => {
                    if let Some(mark) = self.shared.complete_until_ns.get(self.thread) {
                        mark.store(complete_until_ns, Ordering::Release);
                    }
                    self.count_losses(engine.as_mut(), false)?;
                }
                Ok(Taken::End) => {
                    self.count_losses(engine.as_mut(), true)?;
                    return Ok(());
                }
                Err(Error::Gone { cause, interface }) => {
                    // A removed interface's socket still tells its counts.
                    self.count_losses(engine.as_mut(), true)?;
                    match self.reopen(engine, &interface, cause)? {
                        Some(again) => engine = again,
                        None => return Ok(()),
                    }
                }
                Err(other) => return Err(other),
            }
            self.spares.push(batch);
        }
    }

    /// Waits for the interface; `None` when told to stop meanwhile.
    fn reopen(&mut self, old: Box<dyn Engine>, interface: &str, cause: String) -> Result<Option<Box<dyn Engine>>, Error> {
        let from_ns = self.clock.now().wall_ns;
        tracing::warn!(thread = self.thread, interface, cause, "interface gone; capture goes on when it is back");
        let cause = format!("interface '{interface}' {cause}");
        let _ = self.events.send(Event::Gone { thread: self.thread, from_ns, cause: cause.clone() });
        drop(old);
        self.counted = Losses::default();
        loop {
            if self.stopping() {
                return Ok(None);
            }
            self.beat(false);
            match (self.open)() {
                Ok(engine) => {
                    let to_ns = self.clock.now().wall_ns;
                    tracing::info!(thread = self.thread, interface, "interface back; capturing again");
                    let _ = self.events.send(Event::Gap { thread: self.thread, gap: Gap { from_ns, to_ns, cause } });
                    return Ok(Some(engine));
                }
                Err(Error::Gone { .. } | Error::UnknownInterface { .. } | Error::NoDefaultRoute { .. }) => {}
                Err(other) => return Err(other),
            }
            // Nothing can come while the interface is away: do not hold the other threads up.
            if let Some(mark) = self.shared.complete_until_ns.get(self.thread) {
                mark.store(self.clock.now().wall_ns, Ordering::Release);
            }
            thread::sleep(REOPEN_EVERY);
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// A batch to fill: one that came back or was not needed, else a new one. `None` when the recorder is gone.
    fn fresh_batch(&mut self) -> Option<Batch> {
        loop {
            match self.spent.try_recv() {
                Ok(batch) => self.take_back(batch),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        Some(self.spares.pop().unwrap_or_else(|| Batch { thread: self.thread, ..Batch::default() }))
    }

    fn take_back(&mut self, mut batch: Batch) {
        batch.clear();
        self.spares.push(batch);
        self.ahead = self.ahead.saturating_sub(1);
    }

    fn pulse(&self) -> Option<&Pulse> {
        self.shared.counters.captures.get(self.thread)
    }

    fn beat(&self, able: bool) {
        let now = self.clock.now().monotonic_ns;
        if let Some(pulse) = self.pulse() {
            pulse.beat_ns.set(now);
            if able {
                pulse.able_ns.set(now);
            }
        }
    }

    /// Adds what the kernel counted since the last look.
    fn count_losses(&mut self, engine: &mut dyn Engine, now: bool) -> Result<(), Error> {
        let clock = self.clock.now().monotonic_ns;
        if !now && clock < self.losses_read_ns.saturating_add(LOSSES_EVERY_NS) {
            return Ok(());
        }
        self.losses_read_ns = clock;
        let total = engine.losses()?;
        let counters = &self.shared.counters;
        counters.kernel_packets.add(total.packets.saturating_sub(self.counted.packets));
        counters.kernel_drops.add(total.drops.saturating_sub(self.counted.drops));
        counters.kernel_freezes.add(total.freezes.saturating_sub(self.counted.freezes));
        self.counted = total;
        Ok(())
    }
}

/// Tells the recorder of a thread's end, also when the thread panics.
struct Farewell {
    thread: usize,
    events: SyncSender<Event>,
    error: Option<Error>,
}

impl std::ops::Drop for Farewell {
    fn drop(&mut self) {
        // The recorder is gone only when the process is ending.
        let _ = self.events.send(Event::End { thread: self.thread, error: self.error.take() });
    }
}

/// Judges frames: tunnel off, source allowed, filter matched, cut to length.
pub struct Judge {
    rules: wire::Rules,
    outer_sources: Vec<IpNet>,
    mirror_sources: Vec<IpNet>,
    filter: Option<BpfProgram>,
    snaplen: u32,
    origins: Origins,
    /// An inline packet behind its made-up header, as the filter sees it.
    made_up: Vec<u8>,
}

impl Judge {
    /// A judge by the settings, with `filter` compiled from them by [`super::filter::compile`].
    #[must_use]
    pub fn new(settings: &Settings, filter: Option<BpfProgram>) -> Self {
        Self {
            rules: settings.rules,
            outer_sources: settings.outer_sources.clone(),
            mirror_sources: settings.mirror_sources.clone(),
            filter,
            snaplen: settings.snaplen,
            origins: Origins::default(),
            made_up: Vec::new(),
        }
    }

    /// Whether `capture.outer_sources` keeps a frame away. Not inlined, and so the two below: what few settings ask for shall not
    /// cost every frame registers.
    #[inline(never)]
    fn is_sender_denied(&self, frame: &[u8]) -> bool {
        wire::decap::outer_source(frame).is_some_and(|source| !contains(&self.outer_sources, source))
    }

    /// Whether `capture.mirror_sources` does. What the load balancer carries inline comes from none.
    #[inline(never)]
    fn is_source_denied(&self, origin: &wire::Origin) -> bool {
        origin.vni.is_some() && !contains(&self.mirror_sources, origin.source)
    }

    /// Whether the user's filter takes a frame as it will stand in the file.
    #[inline(never)]
    fn is_wanted(&mut self, inner: &Inner<'_>) -> bool {
        let Some(filter) = &self.filter else { return true };
        let header = inner.link.made_up_header();
        if header.is_empty() {
            return filter.filter(inner.bytes);
        }
        self.made_up.clear();
        self.made_up.extend_from_slice(header);
        self.made_up.extend_from_slice(inner.bytes);
        filter.filter(&self.made_up)
    }

    /// Makes one item of each frame in the batch's bytes and puts them in order of time.
    pub fn judge(&mut self, batch: &mut Batch) {
        let Batch { bytes, items, new_origins, .. } = batch;
        let mut last_ns = 0;
        let mut ordered = true;
        self.judge_each(bytes, new_origins, |item, _| {
            ordered &= item.time_ns >= last_ns;
            last_ns = item.time_ns;
            items.push(item);
        });
        if !ordered {
            // Several processors may fill one ring; `at` grows in the order of arrival, so equal stamps keep it.
            items.sort_unstable_by_key(|item| (item.time_ns, item.at));
        }
    }

    /// Makes one item of each frame, in the order of arrival. `each` sees it, and the new origins, among which its own stands the
    /// first time; it may empty that list.
    #[inline]
    pub fn judge_each(
        &mut self,
        bytes: &Bytes,
        new_origins: &mut Vec<(u32, wire::Origin)>,
        mut each: impl FnMut(Item, &mut Vec<(u32, wire::Origin)>),
    ) {
        let mut begun = false;
        bytes.for_each_frame(|frame| {
            if !begun {
                self.origins.renew(frame.time_ns);
                begun = true;
            }
            each(self.item(&frame, new_origins), new_origins);
        });
    }

    #[inline]
    fn item(&mut self, frame: &super::Frame<'_>, new_origins: &mut Vec<(u32, wire::Origin)>) -> Item {
        let outer = |what| Item { time_ns: frame.time_ns, at: frame.at, len: frame.bytes.len() as u32, orig_len: frame.orig_len, what };
        if !self.outer_sources.is_empty() && self.is_sender_denied(frame.bytes) {
            return outer(What::Dropped(Drop::SourceDenied));
        }
        // Borrowed: an answer is large, and moving it costs as much as finding it.
        let outcome = wire::decap(frame.bytes, &self.rules);
        let inner = match &outcome {
            Outcome::Inner(inner) => inner,
            Outcome::NotOurs(reason) => return outer(What::Ignored(*reason)),
            Outcome::Malformed(reason) => return outer(What::Dropped(*reason)),
        };
        if !self.mirror_sources.is_empty() && self.is_source_denied(&inner.origin) {
            return outer(What::Dropped(Drop::SourceDenied));
        }
        if self.filter.is_some() && !self.is_wanted(inner) {
            return outer(What::Dropped(Drop::Filtered));
        }
        let number = self.origins.number(&inner.origin, |number, origin| new_origins.push((number, origin)));
        let direction: Direction = self.origins.direction(number, &inner.origin, inner.link, inner.bytes);
        Item {
            time_ns: frame.time_ns,
            at: frame.at + inner.offset as u32,
            len: (inner.bytes.len() as u32).min(self.snaplen),
            orig_len: inner.orig_len,
            what: What::Inner { link: inner.link, notes: inner.notes, direction, origin: number },
        }
    }
}

fn contains(nets: &[IpNet], address: std::net::IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}
