//! In: an AF_PACKET socket and what it shall be. Out: the socket, its ring in our memory, its counters.
//! Never: anything that is not one system call on that socket.
//! Spec: packet(7), linux/if_packet.h.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockRef, Type};

use super::map::{Map, PRIVATE_BYTES};
use crate::capture::Error;
use crate::host::systemd;

/// Only for the arithmetic that the kernel checks; TPACKET_V3 packs frames of any length.
const FRAME_BYTES: usize = 2048;

/// What poll said.
#[derive(Clone, Copy, Debug)]
pub(in crate::capture) struct Ready {
    pub flags: PollFlags,
    /// The socket's pending error, cleared by this reading.
    pub error: Option<Errno>,
}

/// A packet socket that takes nothing before it is bound.
#[derive(Debug)]
pub(super) struct Socket(socket2::Socket);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    pub fn open(interface: &str) -> Result<Self, Error> {
        // Protocol 0: bound to nothing yet.
        socket2::Socket::new(Domain::PACKET, Type::RAW, None).map(Self).map_err(|cause| match cause.kind() {
            io::ErrorKind::PermissionDenied => Error::NoPermission { interface: interface.to_owned() },
            _ => system("open a packet socket on", interface)(cause),
        })
    }

    /// A socket that another agent opened, and the ring that it has.
    ///
    /// # Errors
    /// When it is none, or has no ring of that size.
    pub fn take_over(socket: OwnedFd, block_bytes: usize, blocks: usize) -> io::Result<(Self, Map)> {
        let map = Map::new(socket.as_fd(), block_bytes, blocks)?;
        Ok((Self(socket.into()), map))
    }

    pub fn ignore_outgoing(&self, interface: &str) -> Result<(), Error> {
        ignore_outgoing(self.as_fd()).map_err(system("ignore outgoing frames of", interface))
    }

    /// Makes the kernel's ring and maps it.
    pub fn ring(&self, block_bytes: usize, blocks: usize, retirement: Duration, interface: &str) -> Result<Map, Error> {
        set(self.as_fd(), libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V3 as libc::c_int))
            .map_err(system("use TPACKET_V3 on", interface))?;
        let request = libc::tpacket_req3 {
            tp_block_size: block_bytes as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: FRAME_BYTES as u32,
            tp_frame_nr: (block_bytes / FRAME_BYTES * blocks) as u32,
            tp_retire_blk_tov: retirement.as_millis() as u32,
            tp_sizeof_priv: PRIVATE_BYTES,
            tp_feature_req_word: 0,
        };
        let act = "make a packet ring of capture.ring_bytes (a smaller value may help) on";
        set(self.as_fd(), libc::PACKET_RX_RING, &request).map_err(system(act, interface))?;
        Map::new(self.as_fd(), block_bytes, blocks).map_err(system(act, interface))
    }

    /// Binds to the link of that index, all protocols.
    pub fn bind(&self, index: u32, interface: &str) -> Result<(), Error> {
        bind(self.as_fd(), index, libc::ETH_P_ALL as u16).map_err(system("bind a packet socket to", interface))
    }

    /// Waits for frames or an error, at most `wait`.
    pub fn poll(&self, wait: Duration, interface: &str) -> Result<Ready, Error> {
        poll_once(self.as_fd(), wait).map_err(system("wait for frames of", interface))
    }

    /// Counts since the last reading.
    pub fn statistics(&self, interface: &str) -> Result<libc::tpacket_stats_v3, Error> {
        let zero = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        get(self.as_fd(), libc::PACKET_STATISTICS, zero).map_err(system("read the packet counters of", interface))
    }
}

fn system(act: &'static str, interface: &str) -> impl FnOnce(io::Error) -> Error {
    let thing = interface.to_owned();
    move |cause| Error::System { act, thing, cause: cause.to_string() }
}

/// Tells a packet socket not to take what this machine sends (Linux 4.20).
pub(in crate::capture) fn ignore_outgoing(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::PACKET_IGNORE_OUTGOING, &1)
}

/// Waits once for a packet socket; an interrupted wait is a short one.
pub(in crate::capture) fn poll_once(socket: BorrowedFd<'_>, wait: Duration) -> io::Result<Ready> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    let wait = Timespec { tv_sec: wait.as_secs().min(3600) as i64, tv_nsec: wait.subsec_nanos().into() };
    match poll(&mut fds, Some(&wait)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(cause) => return Err(cause.into()),
    }
    let flags = fds.first().map_or(PollFlags::empty(), PollFd::revents);
    let error = if flags.contains(PollFlags::ERR) { pending_error(socket)? } else { None };
    Ok(Ready { flags, error })
}

/// Reads and clears a socket's pending error.
pub(in crate::capture) fn pending_error(socket: BorrowedFd<'_>) -> io::Result<Option<Errno>> {
    Ok(SockRef::from(&socket).take_error()?.as_ref().and_then(Errno::from_io_error))
}

/// Joins a group of sockets that share an interface's frames. `arg` is the kernel's: id in the low 16 bits, mode and flags above.
pub(super) fn join_fanout(socket: BorrowedFd<'_>, arg: u32) -> io::Result<()> {
    set(socket, libc::PACKET_FANOUT, &arg)
}

/// The group that a socket is in, as in [`join_fanout`]; 0 when it is in none.
pub(super) fn fanout(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get(socket, libc::PACKET_FANOUT, 0u32)
}

/// Binds a packet socket to a link. `protocol` is an EtherType, [`libc::ETH_P_ALL`] for all, 0 to send only.
///
/// # Errors
/// As bind(2) says.
pub fn bind(socket: BorrowedFd<'_>, link_index: u32, protocol: u16) -> io::Result<()> {
    let index = i32::try_from(link_index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the descriptor is open for the call; `address` is a whole `sockaddr_ll` and its true size is given.
    let answer = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The index of the link that a packet socket is bound to; `None` when that link was removed, or it is no packet socket.
pub(super) fn bound_to(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut address =
        libc::sockaddr_ll { sll_family: 0, sll_protocol: 0, sll_ifindex: 0, sll_hatype: 0, sll_pkttype: 0, sll_halen: 0, sll_addr: [0; 8] };
    let mut bytes = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the descriptor is open for the call; the kernel writes at most `bytes`, the size of `address`, and any bytes are a valid
    // `sockaddr_ll`.
    let answer = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut bytes) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let packet = i32::from(address.sll_family) == libc::AF_PACKET;
    Ok(u32::try_from(address.sll_ifindex).ok().filter(|&index| packet && index > 0))
}

/// The descriptors that the service manager passed to this process, with their names; at the second call nothing.
#[must_use]
pub fn passed() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    // SAFETY: numbers of descriptors that were open when this process began, by the manager's protocol for us alone; the library has
    // just set a flag on each, so each is open, and by `TAKEN` each gets one owner.
    systemd::passed().into_iter().map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect()
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; the kernel reads at most the size that is given, which is the value's.
    let answer = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option into `value`. Private, and only called with plain integers and structures of them: any bytes are a valid `T`.
fn get<T: Copy>(socket: BorrowedFd<'_>, option: libc::c_int, mut value: T) -> io::Result<T> {
    let mut bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call; the kernel writes at most `bytes`, the size of `value`; for `T` see above.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw mut value).cast(), &raw mut bytes) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
