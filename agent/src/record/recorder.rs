//! Puts each judged frame where it belongs: into the segment of its window, into quarantine, or into a count.
//! In: events of the capture threads, the clock. Out: segments and facts to the spool.
//! Never: reopens a window; waits for a packet to close one; counts a frame twice or not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use uuid::Uuid;

use super::account::Account;
use super::facts::{ClockFacts, GapFacts, Kind, LossFacts, Stamp, WindowFacts};
use super::key::Names;
use super::quarantine::{self, Allowance};
use super::segment::{Entry, Segment};
use super::window::{Rotation, Window};
use super::{Compression, Facts, Format, Precision, Room, SegmentNumber, Settings, Spool, pcapng};
use crate::capture::merge::Merge;
use crate::capture::origins::{ORIGINS_MAX, OTHER};
use crate::capture::worker::Shared;
use crate::capture::{Batch, Direction, Event, Gap, Item, What};
use crate::host::clock::{Clock, Now, SECOND_NS, Synchrony};
use crate::host::nic::LossCounters;
use crate::observe::counters::Counters;
use crate::wire::{Drop, Link, Origin};

/// How long the loop waits for events before it looks at the clock.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The same while nothing is open that could be due.
const LOOK_IDLE_EVERY: Duration = Duration::from_millis(100);

/// How long after a window's end (and the ring's retirement) its frames still go to it.
const LINGER_NS: u64 = SECOND_NS;

/// A change of the wall clock against the monotonic one that is a step, not a slew.
const STEP_NS: u64 = SECOND_NS / 2;

/// How often the facts of a growing segment are kept.
const DRAFT_EVERY_NS: u64 = SECOND_NS;

/// More than a frame brings with it: its record's header and, if it is the first one, the file's and its origin's.
const AROUND_FRAME_BYTES: u64 = 1024;

/// Of what the spool has to spare beyond a frame it was asked about, so much is for frames after it about which it is then not asked.
const GRANT_BYTES: u64 = 1 << 20;

/// In the list of open gaps, the one without room in the spool: no thread has this number.
const SPOOL: usize = usize::MAX;

/// How many batches of one thread may wait for the others.
const LANE_BATCHES_MAX: usize = 16;

/// Reads the interface's loss counters, totals since boot.
pub type Meter = Box<dyn FnMut() -> LossCounters + Send>;

/// One of at most two windows that are open, with its account and its open segment.
struct Slot {
    window: Window,
    /// Whether recording went on when the window began: its first segment is then named after that moment.
    steady: bool,
    /// Whether a segment of this window has been closed (by size).
    split: bool,
    account: Account,
    origins: Origins,
    segment: Option<Open>,
}

impl Slot {
    fn new(window: Window, steady: bool) -> Self {
        Self { window, steady, split: false, account: Account::default(), origins: Origins::default(), segment: None }
    }
}

/// The origins of one window, by number. They go with it: whoever makes up origins does not fill the memory.
#[derive(Default)]
struct Origins {
    numbers: HashMap<Origin, u32>,
    list: Vec<Origin>,
    /// By thread: the thread's number of an origin to the window's; [`UNKNOWN`]: not asked yet.
    translation: Vec<Vec<u32>>,
}

const UNKNOWN: u32 = u32::MAX;

impl Origins {
    /// The window's number of what `thread` calls `number`; `origin` finds it the first time. Never more than [`ORIGINS_MAX`] and
    /// the one that stands for the rest.
    fn number(&mut self, thread: usize, number: u32, origin: impl FnOnce() -> Origin) -> u32 {
        let place = number as usize;
        if let Some(&known) = self.translation.get(thread).and_then(|t| t.get(place)).filter(|known| **known != UNKNOWN) {
            return known;
        }
        let origin = origin();
        let full = self.numbers.len() >= ORIGINS_MAX && !self.numbers.contains_key(&origin);
        let origin = if full { OTHER } else { origin };
        let list = &mut self.list;
        let ours = *self.numbers.entry(origin).or_insert_with(|| {
            list.push(origin);
            list.len() as u32 - 1
        });
        if self.translation.len() <= thread {
            self.translation.resize(thread + 1, Vec::new());
        }
        if let Some(translation) = self.translation.get_mut(thread) {
            if translation.len() <= place {
                translation.resize(place + 1, UNKNOWN);
            }
            translation.get_mut(place).into_iter().for_each(|known| *known = ours);
        }
        ours
    }

    /// A thread gives a number to another origin from now on.
    fn forget(&mut self, thread: usize, number: u32) {
        if let Some(known) = self.translation.get_mut(thread).and_then(|t| t.get_mut(number as usize)) {
            *known = UNKNOWN;
        }
    }
}

/// A segment and what its manifest says from the beginning.
struct Open {
    segment: Segment,
    facts: Facts,
    /// Interface number in this file by number of the origin; `u32::MAX`: not yet declared.
    interfaces: Vec<u32>,
    drafted_ns: u64,
}

/// What was written since the counters were last told: they are atomics, and not touched for each frame.
#[derive(Default)]
struct Written {
    frames: u64,
    bytes: u64,
    late: u64,
    cut: u64,
    missing_gwlb_options: u64,
    repeated_option: u64,
    runt: u64,
}

impl Written {
    fn tell(&mut self, counters: &Counters) {
        counters.frames_written.add(self.frames);
        counters.bytes_written.add(self.bytes);
        counters.frames_late.add(self.late);
        counters.notes_cut.add(self.cut);
        counters.notes_missing_gwlb_options.add(self.missing_gwlb_options);
        counters.notes_repeated_option.add(self.repeated_option);
        counters.notes_runt.add(self.runt);
        *self = Self::default();
    }
}

/// The recorder. `run` is its thread.
pub struct Recorder<S, C> {
    settings: Settings,
    rotation: Rotation,
    /// Length of the windows that begin now, nanoseconds.
    length_ns: u64,
    /// What may have to be written with a frame: [`AROUND_FRAME_BYTES`] and the filter, which a file's header names.
    around_frame: u64,
    spool: S,
    clock: C,
    shared: Arc<Shared>,
    meter: Meter,
    names: Names,
    next_number: u64,
    current: Option<Slot>,
    previous: Option<Slot>,
    quarantine: Option<Open>,
    allowance: Allowance,
    /// By thread: origins by the thread's numbers.
    origins: Vec<Vec<Origin>>,
    now: Now,
    steps: u64,
    newest_ns: u64,
    /// For so many bytes more the spool was seen to have room, in this round.
    granted: u64,
    metered: (LossCounters, [u64; 3]),
    drops_told: u64,
    written: Written,
    gaps_open: HashMap<usize, Gap>,
}

impl<S: Spool, C: Clock> Recorder<S, C> {
    /// A recorder that begins now. `names` knows the keys that earlier processes gave and the spool still holds.
    pub fn new(settings: Settings, spool: S, clock: C, shared: Arc<Shared>, mut meter: Meter, names: Names) -> Self {
        let now = clock.now();
        let threads = shared.complete_until_ns.len();
        Self {
            names,
            allowance: Allowance::new(settings.quarantine_bytes_per_s),
            metered: (meter(), [0; 3]),
            rotation: Rotation::new(settings.rotate_seconds),
            length_ns: settings.rotate_seconds.saturating_mul(SECOND_NS),
            around_frame: AROUND_FRAME_BYTES + settings.filter.as_ref().map_or(0, |filter| filter.len() as u64),
            settings,
            spool,
            clock,
            shared,
            meter,
            next_number: 0,
            current: None,
            previous: None,
            quarantine: None,
            origins: vec![Vec::new(); threads],
            now,
            steps: 0,
            newest_ns: 0,
            granted: 0,
            drops_told: 0,
            written: Written::default(),
            gaps_open: HashMap::new(),
        }
    }

    /// Windows are as long as `rotation` says, now and later.
    #[must_use]
    pub fn rotating(mut self, rotation: Rotation) -> Self {
        self.rotation = rotation;
        self
    }

    /// Takes events until every capture thread has ended, then closes what is open. `spent` gives the batches back, by thread.
    /// Gives the errors with which threads ended.
    pub fn run(mut self, events: &Receiver<Event>, spent: &[SyncSender<Batch>]) -> Vec<crate::capture::Error> {
        let mut merge = Merge::new(spent.len(), LANE_BATCHES_MAX);
        let mut errors = Vec::new();
        while !merge.is_finished() {
            // Read before the events: what a thread sent before it said so is then in hand.
            let complete: Vec<u64> = self.shared.complete_until_ns.iter().map(|ns| ns.load(Ordering::Acquire)).collect();
            match events.recv_timeout(if self.is_idle() && merge.is_empty() { LOOK_IDLE_EVERY } else { LOOK_EVERY }) {
                Ok(event) => {
                    self.take(event, &mut merge, spent, &mut errors);
                    for event in events.try_iter().take(LANE_BATCHES_MAX * spent.len()) {
                        self.take(event, &mut merge, spent, &mut errors);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => (0..spent.len()).for_each(|thread| merge.end(thread)),
            }
            let stepped = self.look_at_clock();
            for (thread, &ns) in complete.iter().enumerate() {
                // What is said of the future was said by a clock that has since been set back.
                merge.complete(thread, if ns > self.now.wall_ns { 0 } else { ns });
            }
            merge.drain(
                self.clock.now().monotonic_ns,
                stepped,
                |batch, item| self.record(batch, item),
                |batch| {
                    if let Some(back) = spent.get(batch.thread) {
                        // A thread that has ended takes nothing back.
                        let _ = back.try_send(released(batch));
                    }
                },
            );
            self.written.tell(&self.shared.counters);
            if stepped {
                self.close_all(true);
            }
            self.tick();
        }
        self.look_at_clock();
        self.close_all(false);
        errors
    }

    /// Whether nothing is open: nothing to flush, no gap that room would end.
    fn is_idle(&self) -> bool {
        let mut slots = [&self.previous, &self.current].into_iter().flatten();
        slots.all(|slot| slot.segment.is_none()) && self.quarantine.is_none() && self.gaps_open.is_empty()
    }

    fn take(&mut self, event: Event, merge: &mut Merge, spent: &[SyncSender<Batch>], errors: &mut Vec<crate::capture::Error>) {
        match event {
            Event::Batch(batch) => {
                batch.bytes.begin();
                if let Err(batch) = merge.push(batch, self.clock.now().monotonic_ns)
                    && let Some(back) = spent.get(batch.thread)
                {
                    let _ = back.try_send(released(batch));
                }
            }
            Event::Gone { thread, from_ns, cause } => {
                self.shared.counters.gaps.add(1);
                self.gaps_open.insert(thread, Gap { from_ns, to_ns: from_ns, cause });
            }
            Event::Gap { thread, gap } => {
                self.gaps_open.remove(&thread);
                self.current_slot().account.gap(GapFacts { from: Stamp(gap.from_ns), to: Stamp(gap.to_ns), cause: gap.cause });
            }
            Event::End { thread, error } => {
                merge.end(thread);
                if error.is_some() {
                    // Its share of the flows would be missing from now on: end, and begin anew.
                    self.shared.stop.store(true, Ordering::Release);
                }
                errors.extend(error);
            }
        }
    }

    /// Learns the numbers that a thread gives to origins from this batch on.
    fn learn(&mut self, batch: &Batch) {
        let Some(origins) = self.origins.get_mut(batch.thread) else { return };
        for &(number, origin) in &batch.new_origins {
            for slot in [&mut self.previous, &mut self.current].into_iter().flatten() {
                slot.origins.forget(batch.thread, number);
            }
            let number = number as usize;
            if origins.len() <= number {
                origins.resize(number + 1, origin);
            }
            if let Some(place) = origins.get_mut(number) {
                *place = origin;
            }
        }
    }

    /// Reads the clock; true when the wall clock has stepped since the last look.
    fn look_at_clock(&mut self) -> bool {
        if self.settings.replay {
            self.now = Now { wall_ns: self.newest_ns, monotonic_ns: self.newest_ns };
            return false;
        }
        let now = self.clock.now();
        self.shared.counters.recorder.beat_ns.set(now.monotonic_ns);
        let expected = self.now.wall_ns.saturating_add(now.monotonic_ns.saturating_sub(self.now.monotonic_ns));
        self.now = now;
        let stepped = expected.abs_diff(now.wall_ns) > STEP_NS;
        if stepped {
            self.steps += 1;
            self.shared.counters.clock_steps.add(1);
            let by_ms = (now.wall_ns as i128 - expected as i128) / 1_000_000;
            tracing::warn!(by_ms, "the clock stepped; the segment is closed and a new one opened");
        }
        stepped
    }

    /// Writes, keeps or counts one frame.
    fn record(&mut self, batch: &Batch, item: &Item) {
        // Not when it came: batches before it, which still wait, bear the numbers of before.
        if batch.items.first().is_some_and(|first| std::ptr::eq(first, item)) {
            self.learn(batch);
        }
        self.newest_ns = self.newest_ns.max(item.time_ns);
        let (late, in_previous) = self.place(item.time_ns);
        match item.what {
            What::Ignored(reason) => {
                self.shared.counters.ignored.get(reason.index()).inspect(|count| count.add(1));
                self.slot(in_previous).account.ignored(reason);
            }
            What::Dropped(reason) => {
                if reason.is_malformed() {
                    self.keep_in_quarantine(batch, item, reason);
                }
                self.drop(in_previous, reason);
            }
            What::Inner { link, notes, direction, origin } => {
                if self.settings.schedule.as_mut().is_some_and(|schedule| !schedule.is_on(item.time_ns)) {
                    return self.drop(in_previous, Drop::OutOfSchedule);
                }
                match self.room_or_wait(u64::from(item.len)) {
                    Room::Yes => self.resume(item.time_ns),
                    Room::No => return self.drop(in_previous, Drop::SpoolFull),
                    Room::Stopped => {
                        self.suspend(item.time_ns);
                        return self.drop(in_previous, Drop::SpoolFull);
                    }
                }
                let entry = Entry {
                    time_ns: item.time_ns,
                    bytes: batch.bytes_of(item),
                    orig_len: item.orig_len,
                    link,
                    direction,
                    interface: 0,
                    lost: 0,
                    comment: "",
                };
                self.written.cut += u64::from(notes.cut);
                self.written.missing_gwlb_options += u64::from(notes.missing_gwlb_options);
                self.written.repeated_option += u64::from(notes.repeated_option);
                self.written.runt += u64::from(notes.runt);
                self.write(in_previous, late, entry, (batch.thread, origin));
            }
        }
    }

    fn drop(&mut self, in_previous: bool, reason: Drop) {
        self.shared.counters.drops.get(reason.index()).inspect(|count| count.add(1));
        self.slot(in_previous).account.dropped(reason);
    }

    /// Whether the spool takes a frame beyond all that is on its way there.
    #[inline]
    fn room(&mut self, bytes: u64) -> Room {
        let bytes = bytes + self.around_frame;
        match self.granted.checked_sub(bytes) {
            Some(left) => {
                self.granted = left;
                Room::Yes
            }
            None => self.ask_for_room(bytes),
        }
    }

    /// Asks the spool, and what it has to spare beyond these bytes is for the frames that follow.
    #[inline(never)]
    fn ask_for_room(&mut self, bytes: u64) -> Room {
        let slots = [&self.previous, &self.current].into_iter().flatten().filter_map(|slot| slot.segment.as_ref());
        let owed: u64 = slots.chain(&self.quarantine).map(|open| open.segment.owed_bytes()).sum();
        let room = self.spool.room(owed + bytes);
        self.granted = if room == Room::Yes { self.spool.spare().saturating_sub(owed + bytes).min(GRANT_BYTES) } else { 0 };
        room
    }

    /// As [`Self::room`], but a replayed file waits for room: nothing is lost meanwhile.
    fn room_or_wait(&mut self, bytes: u64) -> Room {
        let mut room = self.room(bytes);
        if !self.settings.replay || room == Room::Yes {
            return room;
        }
        tracing::warn!("the spool is full: the replay waits until there is room");
        // What is whole can be sent, and leaves.
        self.end_segments();
        while room != Room::Yes && !self.shared.stop.load(Ordering::Acquire) {
            std::thread::sleep(LOOK_EVERY);
            self.shared.counters.recorder.beat_ns.set(self.clock.now().monotonic_ns);
            room = self.room(bytes);
        }
        room
    }

    /// The spool takes nothing for a while: what is open ends whole. The frames that follow are counted into their windows.
    fn suspend(&mut self, time_ns: u64) {
        if self.gaps_open.contains_key(&SPOOL) {
            return;
        }
        tracing::error!("the spool is full: recording stops until there is room (spool.on_full = \"stop\")");
        self.gaps_open.insert(SPOOL, Gap { from_ns: time_ns, to_ns: time_ns, cause: "the spool was full".into() });
        self.end_segments();
    }

    /// Ends what is open; the windows go on.
    fn end_segments(&mut self) {
        for previous in [true, false] {
            let Some(mut slot) = (if previous { self.previous.take() } else { self.current.take() }) else { continue };
            if slot.segment.is_some() {
                self.close_segment(&mut slot, false);
                slot.split = true;
            }
            *(if previous { &mut self.previous } else { &mut self.current }) = Some(slot);
        }
        self.close_quarantine();
    }

    /// It takes frames again.
    #[inline]
    fn resume(&mut self, time_ns: u64) {
        if !self.gaps_open.is_empty() {
            self.end_gap(time_ns);
        }
    }

    #[cold]
    fn end_gap(&mut self, time_ns: u64) {
        if let Some(gap) = self.gaps_open.remove(&SPOOL) {
            tracing::warn!("the spool has room: recording goes on");
            let gap = GapFacts { from: Stamp(gap.from_ns), to: Stamp(time_ns.max(gap.from_ns)), cause: gap.cause };
            self.current_slot().account.gap(gap);
        }
    }

    /// Makes the window of a stamp current if it is a later one. Says whether the frame is late, and whether the window that
    /// is still lingering takes it.
    fn place(&mut self, time_ns: u64) -> (bool, bool) {
        if let Some(current) = &self.current {
            if current.window.contains(time_ns) {
                return (false, false);
            }
            if time_ns < current.window.start_ns {
                let lingering = self.previous.as_ref().is_some_and(|slot| slot.window.contains(time_ns));
                return (!lingering, lingering);
            }
        }
        // A stamp of the future is of a clock that has since been set back: it belongs to now.
        let bound_ns = if self.settings.replay { u64::MAX } else { self.now.wall_ns };
        self.advance(self.window_at(time_ns.min(bound_ns)));
        let late = self.current.as_ref().is_some_and(|slot| time_ns < slot.window.start_ns);
        (late, false)
    }

    /// The window of a moment that is not before the current one's start. When the length was changed meanwhile it begins where the
    /// current one ends.
    fn window_at(&self, time_ns: u64) -> Window {
        let window = Window::of(time_ns, self.length_ns);
        match &self.current {
            Some(slot) if slot.window.contains(time_ns) => slot.window,
            Some(slot) => window.after(slot.window.end_ns()),
            None => window,
        }
    }

    /// Takes a change of the windows' length up: one that is too long now ends where a shorter one would.
    fn look_at_rotation(&mut self) {
        let length_ns = self.rotation.seconds().saturating_mul(SECOND_NS);
        if self.settings.replay || length_ns == self.length_ns {
            return;
        }
        self.length_ns = length_ns;
        if let Some(slot) = &mut self.current {
            slot.window = slot.window.until(Window::of(self.now.wall_ns, length_ns).end_ns());
        }
    }

    /// Makes a later window the current one; what was current lingers, what was lingering is closed.
    fn advance(&mut self, window: Window) {
        if self.current.as_ref().is_some_and(|slot| slot.window >= window) {
            return;
        }
        self.close_previous();
        let steady = self.current.is_some();
        self.previous = self.current.take();
        self.current = Some(Slot::new(window, steady));
    }

    fn current_slot(&mut self) -> &mut Slot {
        self.slot(false)
    }

    fn slot(&mut self, previous: bool) -> &mut Slot {
        let window = Window::of(self.now.wall_ns, self.length_ns);
        let slot = if previous { &mut self.previous } else { &mut self.current };
        slot.get_or_insert_with(|| Slot::new(window, false))
    }

    fn write(&mut self, in_previous: bool, late: bool, mut entry: Entry<'_>, (thread, number): (usize, u32)) {
        let bytes = entry.bytes.len() as u64;
        self.make_segment_ready(in_previous, entry.time_ns, bytes);
        let slot = if in_previous { &mut self.previous } else { &mut self.current };
        let Some(Slot { account, origins, segment: Some(open), .. }) = slot else { return };
        let known = || self.origins.get(thread).and_then(|of| of.get(number as usize)).copied().unwrap_or(OTHER);
        let origin = origins.number(thread, number, known);
        let place = origin as usize;
        if open.interfaces.len() <= place {
            open.interfaces.resize(place + 1, u32::MAX);
        }
        if let (Some(interface), Some(origin)) = (open.interfaces.get_mut(place), origins.list.get(place)) {
            if *interface == u32::MAX {
                *interface = open.segment.origin(origin, &mut self.spool);
            }
            entry.interface = *interface;
        }
        let counters = &self.shared.counters;
        let kernel_drops = counters.kernel_drops.get();
        entry.lost = kernel_drops - self.drops_told;
        self.drops_told = kernel_drops;
        account.written(entry.time_ns, bytes, origin, late);
        self.written.frames += 1;
        self.written.bytes += bytes;
        self.written.late += u64::from(late);
        open.segment.write(&entry, &mut self.spool, self.now.monotonic_ns);
    }

    /// Opens the segment that the next frame of the window goes to: the first, or the next when the last is full.
    fn make_segment_ready(&mut self, in_previous: bool, time_ns: u64, bytes: u64) {
        let max_bytes = self.settings.max_bytes;
        let slot = if in_previous { &self.previous } else { &self.current };
        if slot.as_ref().and_then(|slot| slot.segment.as_ref()).is_some_and(|open| open.segment.bytes() + bytes <= max_bytes) {
            return;
        }
        let Some(mut slot) = (if in_previous { self.previous.take() } else { self.current.take() }) else { return };
        if slot.segment.is_some() {
            self.close_segment(&mut slot, false);
            slot.split = true;
        }
        slot.segment = Some(self.open_segment(&slot, time_ns));
        *(if in_previous { &mut self.previous } else { &mut self.current }) = Some(slot);
    }

    fn keep_in_quarantine(&mut self, batch: &Batch, item: &Item, reason: Drop) {
        let bytes = batch.bytes_of(item);
        if !self.allowance.take(bytes.len() as u64, self.now.monotonic_ns) || self.room(bytes.len() as u64) != Room::Yes {
            return;
        }
        let now_ns = self.now.monotonic_ns;
        let mut open = match self.quarantine.take() {
            Some(open) => open,
            None => self.open_quarantine(item.time_ns),
        };
        let entry = Entry {
            time_ns: item.time_ns,
            bytes,
            orig_len: item.orig_len,
            link: Link::Ethernet,
            direction: Direction::Unknown,
            interface: 0,
            lost: 0,
            comment: reason.name(),
        };
        open.segment.write(&entry, &mut self.spool, now_ns);
        open.facts.frames += 1;
        open.facts.bytes += bytes.len() as u64;
        open.facts.first = Some(open.facts.first.map_or(Stamp(item.time_ns), |first| first.min(Stamp(item.time_ns))));
        open.facts.last = open.facts.last.max(Some(Stamp(item.time_ns)));
        *open.facts.drops.entry(reason.name().into()).or_default() += 1;
        self.shared.counters.frames_quarantined.add(1);
        self.quarantine = Some(open);
    }

    fn open_quarantine(&mut self, time_ns: u64) -> Open {
        let window = self.current_slot().window;
        let mut facts = self.facts(Kind::Quarantine, window, time_ns);
        facts.key = Some(self.names.give(time_ns, quarantine::EXTENSION));
        facts.format = Format::Pcapng;
        facts.precision = Precision::Nano;
        facts.compression = Compression::None;
        let mut open = self.open(facts);
        open.segment.interface(quarantine::INTERFACE, "outer frames that could not be decoded", &mut self.spool);
        open
    }

    fn open_segment(&mut self, slot: &Slot, time_ns: u64) -> Open {
        let opened_ns = if slot.steady && !slot.split { slot.window.start_ns } else { time_ns.max(slot.window.start_ns) };
        let mut facts = self.facts(Kind::Capture, slot.window, opened_ns);
        facts.key = Some(self.names.give(opened_ns, super::extension(facts.format, facts.compression)));
        self.open(facts)
    }

    fn open(&mut self, facts: Facts) -> Open {
        let number = SegmentNumber(self.next_number);
        self.next_number += 1;
        self.spool.open(number, facts.clone());
        self.shared.counters.segments_opened.add(1);
        let comment = format!("instance={} capture_id={} window={}", facts.instance, facts.capture_id, facts.window.start);
        let now_ns = self.now.monotonic_ns;
        let segment = Segment::begin(number, &facts, self.settings.snaplen, &comment, &mut self.spool, now_ns);
        Open { segment, facts, interfaces: Vec::new(), drafted_ns: 0 }
    }

    fn facts(&self, kind: Kind, window: Window, opened_ns: u64) -> Facts {
        let settings = &self.settings;
        let window = WindowFacts::of(window);
        Facts {
            opened: Stamp(opened_ns),
            format: settings.format,
            precision: if settings.format == Format::Pcapng { Precision::Nano } else { settings.precision },
            compression: settings.compression,
            filter: settings.filter.clone(),
            clock: self.clock_facts(false),
            ..Facts::begin(kind, Uuid::now_v7().to_string(), settings.instance.clone(), settings.bucket.clone(), window)
        }
    }

    fn clock_facts(&self, closed_by_step: bool) -> ClockFacts {
        let check = self.shared.counters.clock();
        let synchronised = match check.synchrony(self.now.monotonic_ns) {
            Synchrony::Unknown => None,
            known => Some(known == Synchrony::Synchronised),
        };
        ClockFacts { steps: self.steps, closed_by_step, synchronised, ahead_us: synchronised.map(|_| check.ahead_us) }
    }

    /// What the clock asks for: windows that end, chunks and drafts that are due.
    fn tick(&mut self) {
        self.look_at_rotation();
        if !self.settings.replay {
            self.advance(self.window_at(self.now.wall_ns));
        }
        let linger_ns = LINGER_NS + self.settings.retirement_ms * 1_000_000;
        // Between steps the wall clock goes as the monotonic one does; a step has closed both windows.
        if self.previous.as_ref().is_some_and(|slot| self.now.wall_ns >= slot.window.end_ns().saturating_add(linger_ns)) {
            self.close_previous();
        }
        // Also without a frame that would ask.
        if self.gaps_open.contains_key(&SPOOL) && self.room(0) == Room::Yes {
            self.resume(self.now.wall_ns);
        }
        let now_ns = self.now.monotonic_ns;
        let age_ns = self.settings.flush_ms * 1_000_000;
        for slot in [&mut self.previous, &mut self.current].into_iter().flatten() {
            let Some(open) = &mut slot.segment else { continue };
            open.segment.flush(now_ns, age_ns, &mut self.spool);
            if now_ns.saturating_sub(open.drafted_ns) >= DRAFT_EVERY_NS {
                open.drafted_ns = now_ns;
                let mut facts = open.facts.clone();
                slot.account.tell(&mut facts, &slot.origins.list);
                self.spool.draft(open.segment.number(), facts);
            }
        }
        if let Some(open) = &mut self.quarantine {
            open.segment.flush(now_ns, age_ns, &mut self.spool);
            if now_ns.saturating_sub(open.drafted_ns) >= DRAFT_EVERY_NS {
                open.drafted_ns = now_ns;
                self.spool.draft(open.segment.number(), open.facts.clone());
            }
        }
        self.granted = 0;
    }

    fn close_previous(&mut self) {
        if let Some(slot) = self.previous.take() {
            self.close_slot(slot, false);
            self.close_quarantine();
        }
    }

    fn close_all(&mut self, stepped: bool) {
        for slot in [self.previous.take(), self.current.take()].into_iter().flatten() {
            self.close_slot(slot, stepped);
        }
        self.close_quarantine();
    }

    fn close_quarantine(&mut self) {
        if let Some(Open { segment, facts, .. }) = self.quarantine.take() {
            let number = segment.number();
            segment.finish(std::iter::empty(), &mut self.spool);
            self.spool.close(number, facts);
            self.shared.counters.segments_closed.add(1);
        }
    }

    fn close_slot(&mut self, mut slot: Slot, stepped: bool) {
        let end_ns = slot.window.end_ns().min(self.now.wall_ns);
        for gap in self.gaps_open.values().filter(|gap| gap.from_ns < end_ns) {
            slot.account.gap(GapFacts { from: Stamp(gap.from_ns), to: Stamp(end_ns), cause: gap.cause.clone() });
        }
        if slot.segment.is_some() {
            return self.close_segment(&mut slot, stepped);
        }
        let losses = self.losses();
        let quiet = slot.account == Account::default() && losses.kernel_packets == 0;
        if quiet && (slot.split || self.settings.replay) {
            return;
        }
        let mut facts = self.facts(Kind::Idle, slot.window, slot.window.start_ns);
        slot.account.tell(&mut facts, &slot.origins.list);
        facts.losses = losses;
        facts.clock = self.clock_facts(stepped);
        self.spool.idle(facts);
    }

    fn close_segment(&mut self, slot: &mut Slot, stepped: bool) {
        let Some(Open { segment, mut facts, interfaces, .. }) = slot.segment.take() else { return };
        let account = std::mem::take(&mut slot.account);
        account.tell(&mut facts, &slot.origins.list);
        facts.window = WindowFacts::of(slot.window);
        facts.losses = self.losses();
        facts.clock = self.clock_facts(stepped);
        let statistics =
            pcapng::Statistics { start_ns: facts.opened.0, end_ns: facts.last.map_or(facts.opened.0, |last| last.0), ..Default::default() };
        let of = interfaces.iter().enumerate().filter(|&(_, &interface)| interface != u32::MAX).map(|(origin, &interface)| {
            let kernel_drops = (interface == 0).then_some(facts.losses.kernel_drops);
            (interface, pcapng::Statistics { received: account.frames_of(origin), kernel_drops, ..statistics })
        });
        let number = segment.number();
        segment.finish(of, &mut self.spool);
        self.spool.close(number, facts);
        self.shared.counters.segments_closed.add(1);
    }

    /// What was lost outside since the last manifest.
    fn losses(&mut self) -> LossFacts {
        let counters = &self.shared.counters;
        let kernel = [counters.kernel_packets.get(), counters.kernel_drops.get(), counters.kernel_freezes.get()];
        let total = (self.meter)();
        let (before, kernel_before) = std::mem::replace(&mut self.metered, (total.clone(), kernel));
        let moved = |now: &std::collections::BTreeMap<String, u64>, before: &std::collections::BTreeMap<String, u64>| {
            now.iter()
                .map(|(name, &n)| (name.clone(), n.saturating_sub(before.get(name).copied().unwrap_or(0))))
                .filter(|&(_, n)| n > 0)
                .collect()
        };
        let [packets, drops, freezes] = kernel;
        let [packets_before, drops_before, freezes_before] = kernel_before;
        LossFacts {
            kernel_packets: packets - packets_before,
            kernel_drops: drops - drops_before,
            kernel_freezes: freezes - freezes_before,
            nic: moved(&total.nic, &before.nic),
            ec2: moved(&total.ec2, &before.ec2),
        }
    }
}

/// A batch on its way back: a block goes to the kernel at once, not when the thread next needs a batch.
fn released(mut batch: Batch) -> Batch {
    batch.clear();
    batch
}

#[cfg(test)]
mod tests;
