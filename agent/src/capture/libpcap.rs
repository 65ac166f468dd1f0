//! In: frames of one interface through libpcap. Out: copied batches.
//! Never: immediate mode (it falls back to a slow ring and drops), a frame from before the filter was set, the agent's own frames.
//! Spec: pcap(3PCAP).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pcap::{Active, Capture, Precision};
use socket2::{Domain, Socket, Type};

use super::filter::{FRAME_BYTES_MAX, words};
use super::interface;
use super::live::{self, Hold, Live};
use super::ring::{self, Group, RETIREMENT, SETTLED, socket};
use super::{Bytes, Engine, Error, Losses, Owned, OwnedFrame, Settings, Taken};
use crate::host::clock::SECOND_NS;

/// A batch is full at this many bytes or frames, whatever comes first; libpcap hands over a few frames more.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FRAMES: usize = 4096;
/// How many frames libpcap hands over between two looks at these limits.
const DISPATCH_FRAMES: usize = 32;

/// A capture by libpcap on one interface.
pub struct Libpcap {
    capture: Capture<Active>,
    hold: Hold,
    losses: Losses,
    /// libpcap's counts at the last reading; 32 bits each.
    counted: (u32, u32),
}

impl Libpcap {
    /// Opens a capture on the interface of that exact name; `group` as for [`ring::Ring::open`].
    ///
    /// # Errors
    /// As [`ring::Ring::open`].
    pub fn open(settings: &Settings, interface: &str, group: &Arc<Group>) -> Result<Self, Error> {
        let link = interface::usable(interface)?;
        may_capture(interface)?;
        let failed = |cause| system("open libpcap on", interface, &cause);
        let mut capture = Capture::from_device(interface)
            .map_err(failed)?
            .promisc(false)
            .snaplen(FRAME_BYTES_MAX as i32)
            .buffer_size(i32::try_from(settings.ring_bytes.max(ring::RING_BYTES_MIN)).unwrap_or(i32::MAX))
            .timeout(RETIREMENT.as_millis() as i32)
            .precision(Precision::Nano)
            .open()
            .and_then(Capture::setnonblock)
            .map_err(failed)?;
        ring::refuse_all(&capture, interface)?;
        socket::ignore_outgoing(capture.as_fd()).map_err(|cause| Error::System {
            act: "ignore outgoing frames of",
            thing: interface.to_owned(),
            cause: cause.to_string(),
        })?;
        discard(&mut capture, interface)?;
        let counted = capture.stats().map_err(failed)?;
        let membership = Group::join(group, &capture, link.index, interface)?;
        Ok(Self { capture, hold: Hold::new(membership, link), losses: Losses::default(), counted: (counted.received, counted.dropped) })
    }

    /// Copies what is there, up to a batch; true when there was something.
    fn copy(&mut self, owned: &mut Owned) -> Result<bool, Error> {
        while owned.data.len() < BATCH_BYTES && owned.frames.len() < BATCH_FRAMES {
            match self.capture.dispatch(Some(DISPATCH_FRAMES), |packet| append(owned, &packet)) {
                Ok(0) => break,
                Ok(_) => self.hold.came(),
                Err(cause) => {
                    // libpcap reads the socket's error away when the interface goes.
                    self.hold.gone();
                    tracing::debug!(cause = words(&cause), interface = self.hold.name(), "libpcap stopped");
                    break;
                }
            }
        }
        Ok(!owned.frames.is_empty())
    }
}

impl Live for Libpcap {
    fn hold(&mut self) -> &mut Hold {
        &mut self.hold
    }

    fn give(&mut self, bytes: &mut Bytes) -> Result<bool, Error> {
        // Before libpcap reads the error away and goes on as if nothing had been.
        let error = socket::pending_error(self.capture.as_fd());
        self.hold.look(error.map_err(|cause| system("read the state of", self.hold.name(), &cause))?)?;
        self.copy(bytes.refill())
    }

    fn wait(&mut self, wait: Duration) -> Result<(), Error> {
        if self.hold.has_ended() {
            thread::sleep(wait.min(RETIREMENT / 4));
            return Ok(());
        }
        let ready = socket::poll_once(self.capture.as_fd(), wait);
        let ready = ready.map_err(|cause| system("wait for frames of", self.hold.name(), &cause))?;
        self.hold.look(ready.error)
    }
}

impl Engine for Libpcap {
    fn take(&mut self, bytes: &mut Bytes, wait: Duration) -> Result<Taken, Error> {
        live::take(self, bytes, wait)
    }

    fn losses(&mut self) -> Result<Losses, Error> {
        let now = self.capture.stats().map_err(|cause| system("read the packet counters of", self.hold.name(), &cause))?;
        let (packets, drops) = self.counted;
        self.losses.packets += u64::from(now.received.wrapping_sub(packets));
        self.losses.drops += u64::from(now.dropped.wrapping_sub(drops));
        self.counted = (now.received, now.dropped);
        Ok(self.losses)
    }

    fn refuse_more(&mut self) -> Result<(), Error> {
        self.hold.disarm();
        ring::refuse_all(&self.capture, self.hold.name())?;
        self.hold.refused();
        Ok(())
    }
}

fn system(act: &'static str, interface: &str, cause: &impl std::fmt::Display) -> Error {
    Error::System { act, thing: interface.to_owned(), cause: cause.to_string() }
}

/// libpcap tells a missing capability in words only; the kernel tells it by number.
fn may_capture(interface: &str) -> Result<(), Error> {
    match Socket::new(Domain::PACKET, Type::RAW, None) {
        Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => Err(Error::NoPermission { interface: interface.to_owned() }),
        _ => Ok(()),
    }
}

/// Lets go what came between the activation and [`ring::refuse_all`], before there was a filter.
fn discard(capture: &mut Capture<Active>, interface: &str) -> Result<(), Error> {
    let mut still_since = Instant::now();
    while still_since.elapsed() < SETTLED {
        match capture.dispatch(None, |_| {}) {
            Ok(0) => thread::sleep(RETIREMENT / 4),
            Ok(_) => still_since = Instant::now(),
            Err(cause) => return Err(Error::Gone { interface: interface.to_owned(), cause: words(&cause) }),
        }
    }
    Ok(())
}

fn append(owned: &mut Owned, packet: &pcap::Packet<'_>) {
    // With Precision::Nano the field of the microseconds holds nanoseconds.
    let (seconds, nanoseconds) = (packet.header.ts.tv_sec as u64, packet.header.ts.tv_usec as u64);
    let len = packet.data.len() as u32;
    owned.frames.push(OwnedFrame {
        time_ns: seconds.saturating_mul(SECOND_NS).saturating_add(nanoseconds),
        at: owned.data.len() as u32,
        len,
        orig_len: packet.header.len.max(len),
    });
    owned.data.extend_from_slice(packet.data);
}
