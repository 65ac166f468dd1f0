//! In: frames of one interface through libpcap; BPF expressions. Out: copied batches; compiled filters, also for the ring.
//! Never: immediate mode (it falls back to a slow ring and drops), a frame from before the filter was set, the agent's own frames.
//! Spec: pcap(3PCAP), pcap-filter(7); the kernel's BPF extensions in linux/filter.h (`SKF_AD_PKTTYPE`).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pcap::{Active, BpfInstruction, BpfProgram, Capture, Linktype, Precision};
use rustix::io::Errno;
use socket2::{Domain, SockFilter, Socket, Type};

use super::interface::{self, Watch};
use super::ring::{self, Group, Membership, RETIREMENT, SETTLED, socket};
use super::{Bytes, Engine, Error, Losses, Owned, OwnedFrame, Settings, Taken};
use crate::host::clock::{Clock, SECOND_NS, SystemClock};
use crate::wire::Rules;

/// The longest frame that is taken whole, as in the files we write.
const FRAME_BYTES_MAX: u32 = 262_144;

/// A batch is full at this many bytes or frames, whatever comes first; libpcap hands over a few frames more.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FRAMES: usize = 4096;
/// How many frames libpcap hands over between two looks at these limits.
const DISPATCH_FRAMES: usize = 32;

/// The kernel's BPF extension that reads how a frame came (`SKF_AD_OFF + SKF_AD_PKTTYPE`), and the answer for our own frames.
const PACKET_TYPE_AT: u32 = 0xffff_f004;
const PACKET_OUTGOING: u32 = 4;
const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JEQ_K: u16 = 0x15;
const BPF_RET_K: u16 = 0x06;

/// Compiles a filter on a mirrored frame.
///
/// # Errors
/// [`Error::Filter`] with libpcap's words.
pub fn compile(expression: &str) -> Result<BpfProgram, Error> {
    let failed = |cause: pcap::Error| Error::Filter { expression: expression.to_owned(), cause: words(&cause) };
    Capture::dead(Linktype::ETHERNET).map_err(failed)?.compile(expression, true).map_err(failed)
}

/// Which outer frames the kernel shall take: UDP to a tunnel port, and pieces of fragmented UDP datagrams, of which only the first
/// one tells its port.
#[must_use]
pub fn kernel_expression(rules: &Rules) -> String {
    let Rules { geneve_port, vxlan_port, .. } = rules;
    format!(
        "udp dst port {geneve_port} or udp dst port {vxlan_port} \
         or (ip proto 17 and ip[6:2] & 0x1fff != 0) \
         or (ip6[6] = 44 and ip6[40] = 17 and (ip6[42:2] & 0xfff8 != 0 or ip6[50:2] = {geneve_port} or ip6[50:2] = {vxlan_port}))"
    )
}

/// The kernel filter as the kernel wants it: nothing that this machine sends, and of the rest what [`kernel_expression`] says.
pub(super) fn kernel_filter(rules: &Rules) -> Result<Vec<SockFilter>, Error> {
    let expression = kernel_expression(rules);
    let mut filter = vec![
        SockFilter::new(BPF_LD_W_ABS, 0, 0, PACKET_TYPE_AT),
        SockFilter::new(BPF_JEQ_K, 0, 1, PACKET_OUTGOING),
        SockFilter::new(BPF_RET_K, 0, 0, 0),
    ];
    for instruction in compile(&expression)?.get_instructions() {
        let cause = || format!("its instruction '{instruction}' cannot be read");
        filter.push(kernel_instruction(instruction).ok_or_else(|| Error::Filter { expression: expression.clone(), cause: cause() })?);
    }
    Ok(filter)
}

/// An instruction's fields are to be had as text only: code, jump if true, jump if false, operand.
fn kernel_instruction(instruction: &BpfInstruction) -> Option<SockFilter> {
    let text = instruction.to_string();
    let mut fields = text.split(' ');
    let code = fields.next()?.parse().ok()?;
    let (jump_true, jump_false) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let operand: u32 = fields.next()?.parse().ok()?;
    // What a filter returns is how many bytes are kept: all of them.
    let operand = if code == BPF_RET_K && operand > 0 { FRAME_BYTES_MAX } else { operand };
    Some(SockFilter::new(code, jump_true, jump_false, operand))
}

/// libpcap's message without the crate's prefix.
fn words(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Why nothing more comes.
#[derive(Debug)]
enum Ending {
    Refused,
    Gone(String),
}

/// A capture by libpcap on one interface.
pub struct Libpcap {
    capture: Capture<Active>,
    membership: Membership,
    watch: Watch,
    ending: Option<Ending>,
    /// Since when no frame came, once there is an ending.
    still_since: Instant,
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
        Ok(Self {
            capture,
            membership,
            watch: Watch::new(link),
            ending: None,
            still_since: Instant::now(),
            losses: Losses::default(),
            counted: (counted.received, counted.dropped),
        })
    }

    /// Copies what is there, up to a batch; true when there was something.
    fn copy(&mut self, owned: &mut Owned) -> Result<bool, Error> {
        while owned.data.len() < BATCH_BYTES && owned.frames.len() < BATCH_FRAMES {
            match self.capture.dispatch(Some(DISPATCH_FRAMES), |packet| append(owned, &packet)) {
                Ok(0) => break,
                Ok(_) => self.still_since = Instant::now(),
                Err(cause) => {
                    // libpcap reads the socket's error away when the interface goes.
                    self.gone(self.watch.why_gone());
                    tracing::debug!(cause = words(&cause), interface = self.watch.name(), "libpcap stopped");
                    break;
                }
            }
        }
        Ok(!owned.frames.is_empty())
    }

    fn gone(&mut self, cause: String) {
        self.membership.leave(&cause);
        self.end(Ending::Gone(cause));
    }

    fn end(&mut self, ending: Ending) {
        if self.ending.is_none() {
            self.still_since = Instant::now();
            self.ending = Some(ending);
        }
    }

    /// What is to be said when everything the kernel took has been given.
    fn ended(&self) -> Option<Result<Taken, Error>> {
        let ending = self.ending.as_ref()?;
        if self.still_since.elapsed() < SETTLED {
            return None;
        }
        Some(match ending {
            Ending::Refused => Ok(Taken::End),
            Ending::Gone(cause) => Err(Error::Gone { interface: self.watch.name().to_owned(), cause: cause.clone() }),
        })
    }

    /// Notes when the interface is gone, by the kernel's word, another member's, or our own look.
    fn look_at_interface(&mut self, error: Option<Errno>) -> Result<(), Error> {
        let cause = match error {
            Some(Errno::NETDOWN | Errno::NODEV | Errno::NXIO) => Some(self.watch.why_gone()),
            Some(cause) => return Err(system("wait for frames of", self.watch.name(), &cause)),
            None => self.membership.others_left().or_else(|| self.watch.look()),
        };
        if let Some(cause) = cause {
            self.gone(cause);
        }
        Ok(())
    }

    fn wait(&mut self, wait: Duration) -> Result<(), Error> {
        if self.ending.is_some() {
            thread::sleep(wait.min(RETIREMENT / 4));
            return Ok(());
        }
        let ready = socket::poll_once(self.capture.as_fd(), wait);
        let ready = ready.map_err(|cause| system("wait for frames of", self.watch.name(), &cause))?;
        self.look_at_interface(ready.error)
    }
}

impl Engine for Libpcap {
    fn take(&mut self, bytes: &mut Bytes, wait: Duration) -> Result<Taken, Error> {
        let owned = bytes.refill();
        self.membership.arm_if_late()?;
        // Before libpcap reads the error away and goes on as if nothing had been.
        let error = socket::pending_error(self.capture.as_fd());
        self.look_at_interface(error.map_err(|cause| system("read the state of", self.watch.name(), &cause))?)?;
        let mut waited = false;
        loop {
            let before_ns = SystemClock.now().wall_ns;
            if self.copy(owned)? {
                return Ok(Taken::Frames);
            }
            if let Some(end) = self.ended() {
                return end;
            }
            if waited {
                return Ok(Taken::Quiet { complete_until_ns: before_ns.saturating_sub(SETTLED.as_nanos() as u64) });
            }
            self.wait(wait)?;
            waited = true;
        }
    }

    fn losses(&mut self) -> Result<Losses, Error> {
        let now = self.capture.stats().map_err(|cause| system("read the packet counters of", self.watch.name(), &cause))?;
        let (packets, drops) = self.counted;
        self.losses.packets += u64::from(now.received.wrapping_sub(packets));
        self.losses.drops += u64::from(now.dropped.wrapping_sub(drops));
        self.counted = (now.received, now.dropped);
        Ok(self.losses)
    }

    fn refuse_more(&mut self) -> Result<(), Error> {
        self.membership.disarm();
        ring::refuse_all(&self.capture, self.watch.name())?;
        self.end(Ending::Refused);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::Inline;

    const RULES: Rules = Rules { geneve_port: 6081, vxlan_port: 4789, inline: Inline::Ignore };

    /// Ethernet, IPv4 with these flags and fragment offset, UDP to `port`.
    fn v4(protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 1]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 16]);
        frame
    }

    /// Ethernet, IPv6, a fragment header with this offset when there is one, UDP to `port`.
    fn v6(fragment: Option<u16>, port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, if fragment.is_some() { 44 } else { 17 }, 64]);
        frame.extend([1; 32]);
        if let Some(offset) = fragment {
            frame.extend([17, 0]);
            frame.extend((offset << 3 | 1).to_be_bytes());
            frame.extend([0, 0, 0, 9]);
        }
        frame.extend([0x12, 0x34]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn the_kernel_filter_takes_tunnel_ports_and_fragments_and_nothing_else() {
        let filter = compile(&kernel_expression(&RULES)).unwrap();
        let cases = [
            ("GENEVE", v4(17, 0, 6081), true),
            ("VXLAN", v4(17, 0, 4789), true),
            ("VXLAN, do not fragment", v4(17, 0x4000, 4789), true),
            ("DNS", v4(17, 0, 53), false),
            ("TCP to the port of GENEVE", v4(6, 0, 6081), false),
            ("first fragment of GENEVE", v4(17, 0x2000, 6081), true),
            ("later fragment", v4(17, 0x2064, 0), true),
            ("last fragment", v4(17, 0x0064, 0), true),
            ("later fragment of TCP", v4(6, 0x2064, 0), false),
            ("GENEVE over IPv6", v6(None, 6081), true),
            ("VXLAN over IPv6", v6(None, 4789), true),
            ("DNS over IPv6", v6(None, 53), false),
            ("first fragment of VXLAN over IPv6", v6(Some(0), 4789), true),
            ("first fragment of DNS over IPv6", v6(Some(0), 53), false),
            ("later fragment over IPv6", v6(Some(9), 0), true),
        ];
        for (name, frame, taken) in cases {
            assert_eq!(filter.filter(&frame), taken, "{name}");
        }
    }

    #[test]
    fn other_ports_than_the_usual_ones_reach_the_kernel_filter() {
        let filter = compile(&kernel_expression(&Rules { geneve_port: 7000, vxlan_port: 7001, ..RULES })).unwrap();
        assert!(filter.filter(&v4(17, 0, 7000)) && filter.filter(&v6(Some(0), 7001)));
        assert!(!filter.filter(&v4(17, 0, 6081)));
    }

    #[test]
    fn every_instruction_reaches_the_kernel() {
        let program = compile(&kernel_expression(&RULES)).unwrap();
        assert_eq!(kernel_filter(&RULES).unwrap().len(), program.get_instructions().len() + 3);
    }

    #[test]
    fn a_filter_that_does_not_compile_is_answered_with_libpcaps_words() {
        let text = compile("tcp prot 80").map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("'tcp prot 80'") && text.contains("syntax error"), "{text}");
    }
}
