//! In: the sockets of several capture threads on one interface. Out: each frame goes to exactly one of them.
//! Never: a frame twice or lost at the start (all join before any takes), two generations of sockets at work at once.
//! Spec: packet(7) PACKET_FANOUT; `net/packet/af_packet.c` for PACKET_FANOUT_FLAG_UNIQUEID (Linux 4.12).
//!
//! A socket in a group cannot be bound anew, so an interface that comes back needs new sockets and a new group. All members of
//! the old one must have let go first; else both would take the same frames.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};

use super::handover::{self, Left, Name, Shelf};
use super::{geometry, socket};
use crate::capture::{Error, Fanout, Settings, filter};
use crate::host::clock::{Clock, SystemClock};

/// BPF `ret 0`: takes nothing.
const NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// A member that has not come after this time is not waited for any longer; it may never come.
const ARM_AFTER: Duration = Duration::from_secs(1);

/// The rings of one agent's threads.
pub struct Group {
    size: usize,
    fanout: Fanout,
    filter: Vec<SockFilter>,
    /// Where the sockets wait between two agents.
    shelf: Option<Arc<dyn Shelf>>,
    /// Rings of the agent before that no thread has taken yet.
    left: Mutex<Vec<Left>>,
    state: Mutex<State>,
    /// No agent will come after this one.
    last: AtomicBool,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("size", &self.size).field("state", &self.state).finish_non_exhaustive()
    }
}

/// One generation of sockets; as by default when there is none.
#[derive(Default, Debug)]
struct State {
    link_index: u32,
    /// The kernel's number for it.
    fanout_id: Option<u32>,
    members: usize,
    /// Sockets that have joined and do not take anything yet.
    waiting: Vec<(u64, OwnedFd)>,
    first_joined: Option<Instant>,
    armed: bool,
    /// Why this generation must let go.
    broken: Option<String>,
    next_member: u64,
    /// When its first member joined, nanoseconds since 1970.
    generation: u64,
    /// How many have ever joined it.
    joined: usize,
}

impl Group {
    /// A group for `settings.threads` members.
    ///
    /// # Errors
    /// When libpcap does not compile the kernel filter.
    pub fn new(settings: &Settings) -> Result<Arc<Self>, Error> {
        let filter = filter::kernel_filter(&settings.rules)?;
        Ok(Arc::new(Self {
            size: settings.threads.max(1),
            fanout: settings.fanout,
            filter,
            shelf: None,
            left: Mutex::default(),
            state: Mutex::default(),
            last: AtomicBool::new(false),
        }))
    }

    /// A group whose sockets outlive the process on `shelf`. Of what was `found` there the rings are gone on with, if they are what
    /// the settings ask for; else they are removed and new ones opened.
    ///
    /// # Errors
    /// When libpcap does not compile the kernel filter.
    pub fn on_shelf(
        settings: &Settings,
        interface: &str,
        shelf: Arc<dyn Shelf>,
        found: Vec<(String, OwnedFd)>,
    ) -> Result<Arc<Self>, Error> {
        let filter = filter::kernel_filter(&settings.rules)?;
        let mut left = handover::take_over(settings, interface, &shelf, found);
        left.reverse();
        let (left, size, fanout) = (Mutex::new(left), settings.threads.max(1), settings.fanout);
        Ok(Arc::new(Self { size, fanout, filter, shelf: Some(shelf), left, state: Mutex::default(), last: AtomicBool::new(false) }))
    }

    /// From now on who is told to hand over refuses instead, and gives all that its ring holds: nobody will go on with it.
    pub fn leave_nothing(&self) {
        self.last.store(true, Ordering::Release);
    }

    /// The next ring of the agent before.
    pub(super) fn next_left(&self) -> Option<Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Puts a fresh socket of this generation on the shelf, if there is one.
    pub(super) fn put(&self, socket: &impl AsFd, member: &Membership, ring_bytes: usize) -> Option<Kept> {
        let shelf = self.shelf.clone()?;
        let (block_bytes, blocks) = geometry(ring_bytes);
        let generation = self.state().generation;
        let name = Name { member: member.place, members: self.size, block_bytes, blocks, generation, interface: member.interface.clone() };
        if !name.is_speakable() {
            tracing::warn!(
                interface = member.interface,
                "a restart will lose frames: the interface's name cannot be told to the service manager"
            );
            return None;
        }
        shelf.put(&name.to_string(), socket.as_fd());
        Some(Kept { shelf, name: name.to_string() })
    }

    /// As [`Group::put`] has it, for a socket that is there already.
    pub(super) fn kept(&self, name: &Name) -> Option<Kept> {
        Some(Kept { shelf: self.shelf.clone()?, name: name.to_string() })
    }

    /// Lets a bound socket with the filter of [`refuse_all`] in; when it is the last one, all begin to take frames.
    pub(in crate::capture) fn join(group: &Arc<Self>, socket: &impl AsFd, link_index: u32, interface: &str) -> Result<Membership, Error> {
        let mut state = group.state();
        if state.members > 0 && (state.broken.is_some() || state.link_index != link_index) {
            let cause = "other capture threads still hold on to its predecessor".to_owned();
            return Err(Error::Gone { interface: interface.to_owned(), cause });
        }
        let failed = |act| move |cause: std::io::Error| Error::System { act, thing: interface.to_owned(), cause: cause.to_string() };
        let own = socket.as_fd().try_clone_to_owned().map_err(failed("copy the packet socket of"))?;
        if group.size > 1 {
            state.fanout_id = Some(fan_out(socket, group.fanout, state.fanout_id).map_err(failed("share among threads the frames of"))?);
        }
        if state.members == 0 {
            state.generation = SystemClock.now().wall_ns;
        }
        let place = state.joined;
        state.joined += 1;
        state.link_index = link_index;
        state.members += 1;
        state.next_member += 1;
        let number = state.next_member;
        state.waiting.push((number, own));
        state.first_joined.get_or_insert_with(Instant::now);
        let all = state.members >= group.size || state.armed;
        // From here on the membership's drop undoes what was done.
        let membership = Membership { group: Arc::clone(group), number, place, interface: interface.to_owned() };
        if all {
            group.arm(&mut state, interface)?;
        }
        drop(state);
        Ok(membership)
    }

    fn arm(&self, state: &mut State, interface: &str) -> Result<(), Error> {
        for (_, socket) in state.waiting.drain(..) {
            attach(&socket, &self.filter, interface)?;
        }
        state.armed = true;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the group; dropping it leaves.
#[derive(Debug)]
pub(in crate::capture) struct Membership {
    group: Arc<Group>,
    number: u64,
    /// Which one of its generation, from 0.
    place: usize,
    interface: String,
}

/// A socket's place on the shelf.
pub(super) struct Kept {
    shelf: Arc<dyn Shelf>,
    name: String,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Kept {
    /// Nobody shall go on with it.
    pub fn remove(&self) {
        self.shelf.remove(&self.name);
    }
}

impl Membership {
    /// Begins without those who have not come in time.
    pub fn arm_if_late(&self) -> Result<(), Error> {
        let mut state = self.group.state();
        if state.armed || state.first_joined.is_none_or(|first| first.elapsed() < ARM_AFTER) {
            return Ok(());
        }
        tracing::warn!(interface = self.interface, members = state.members, of = self.group.size, "capturing with fewer threads than set");
        self.group.arm(&mut state, &self.interface)
    }

    /// This member shall take nothing any more, also when the others begin later.
    pub fn disarm(&self) {
        self.group.state().waiting.retain(|(number, _)| *number != self.number);
    }

    /// Tells the other members that the interface is gone.
    pub fn leave(&self, cause: &str) {
        self.group.state().broken.get_or_insert_with(|| cause.to_owned());
    }

    /// Whether another agent may go on with the ring.
    pub fn may_hand_over(&self) -> bool {
        !self.group.last.load(Ordering::Acquire)
    }

    /// Why the interface is gone, if another member knows.
    pub fn others_left(&self) -> Option<String> {
        self.group.state().broken.clone()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.disarm();
        let mut state = self.group.state();
        state.members = state.members.saturating_sub(1);
        if state.members == 0 {
            *state = State { next_member: state.next_member, ..State::default() };
        }
    }
}

/// Makes a packet socket take nothing.
pub(in crate::capture) fn refuse_all(socket: &impl AsFd, interface: &str) -> Result<(), Error> {
    attach(socket, &[NOTHING], interface)
}

fn attach(socket: &impl AsFd, filter: &[SockFilter], interface: &str) -> Result<(), Error> {
    SockRef::from(socket).attach_filter(filter).map_err(|cause| Error::System {
        act: "attach a filter to the packet socket of",
        thing: interface.to_owned(),
        cause: cause.to_string(),
    })
}

/// The kernel's word for how a group shares frames.
fn mode(fanout: Fanout) -> u32 {
    match fanout {
        Fanout::Hash => libc::PACKET_FANOUT_HASH,
        Fanout::Queue => libc::PACKET_FANOUT_QM,
        Fanout::Processor => libc::PACKET_FANOUT_CPU,
    }
}

/// Whether the group that a socket is in shares frames in that way.
pub(super) fn shares_by(member: BorrowedFd<'_>, fanout: Fanout) -> std::io::Result<bool> {
    Ok(socket::fanout(member)? >> 16 & 0xff == mode(fanout))
}

/// Joins the kernel's group of that id, or a new one with an id that nobody else has; gives the id.
fn fan_out(member: &impl AsFd, fanout: Fanout, id: Option<u32>) -> std::io::Result<u32> {
    // When one flow, queue or processor fills its ring another one helps out.
    let mode = mode(fanout) | libc::PACKET_FANOUT_FLAG_ROLLOVER | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    // One that an earlier agent opened is in its group already.
    let there = socket::fanout(member.as_fd())?;
    if there != 0 {
        return Ok(there & 0xffff);
    }
    match id {
        Some(id) => {
            socket::join_fanout(member.as_fd(), id | mode << 16)?;
            Ok(id)
        }
        None => {
            socket::join_fanout(member.as_fd(), (mode | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16)?;
            Ok(socket::fanout(member.as_fd())? & 0xffff)
        }
    }
}
