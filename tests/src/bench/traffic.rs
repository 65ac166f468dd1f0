//! Mirrored traffic of thousands of flows, as fast as one processor can put it on a wire, or at a pace.
//! In: a mix, how many frames. Out: GENEVE(VXLAN(frame)) on the source's end of a pair, a capture file of the same.
//! Never: builds a frame while sending, sends without a bound.
//! Spec: sendmmsg(2), packet(7).
#![allow(clippy::indexing_slicing)]

use std::io::{self, BufWriter, IoSlice, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use socket2::{Domain, Socket, Type};
use tapfleet::capture::ring;
use tapfleet::host::nic;

use super::{SENDER_CPU, cage};
use crate::netns::{Pair, SOURCE};
use crate::packet::{Aws, Ethernet, Ipv4, Udp};

/// Flows of a mix; a multiple of the pattern of IMIX.
const FLOWS: usize = 4092;

/// Mirror sessions that the flows are spread over, unless told otherwise.
pub const ORIGINS: usize = 16;

/// Frames handed to the kernel in one call.
const BATCH: usize = 66;

/// Bytes of the tunnels around a mirrored frame.
pub const TUNNEL_BYTES: usize = 118;

/// Sizes of mirrored frames, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    /// 64 each.
    Small,
    /// Of twelve: seven of 64, four of 594, one of 1518.
    Imix,
    /// 8400 each.
    Jumbo,
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Small, Self::Imix, Self::Jumbo];

    /// What tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small (64 B)",
            Self::Imix => "IMIX",
            Self::Jumbo => "jumbo (8,400 B)",
        }
    }

    fn sizes(self) -> &'static [usize] {
        match self {
            Self::Small => &[64],
            Self::Imix => &[64, 594, 64, 64, 1518, 64, 594, 64, 594, 64, 594, 64],
            Self::Jumbo => &[8400],
        }
    }

    /// Bytes of a mirrored frame, on average.
    #[must_use]
    pub fn mean_bytes(self) -> f64 {
        self.sizes().iter().sum::<usize>() as f64 / self.sizes().len() as f64
    }

    /// A frame for each flow, over so many mirror sessions.
    #[must_use]
    pub fn frames(self, origins: usize) -> Vec<Vec<u8>> {
        (0..FLOWS).map(|flow| frame(flow, self.sizes()[flow % self.sizes().len()], origins)).collect()
    }
}

fn frame(flow: usize, bytes: usize, origins: usize) -> Vec<u8> {
    let host = |net: u8| [10, net, (flow >> 8) as u8, flow as u8];
    let headers = Ethernet::default() / Ipv4::new(host(1), host(2)) / Udp::unchecked(1024 + flow as u16, 443);
    let payload = (0..bytes - headers.build().len()).map(|at| (at * 31 + flow) as u8).collect::<Vec<_>>();
    let origin = flow % origins;
    let aws = Aws {
        endpoint: 0x0123_4567_89ab_0000 + (origin / 64) as u64,
        vni: 0x1000 + origin as u32,
        mirrored: [172, 31, (origin >> 8) as u8, origin as u8].into(),
        geneve_source_port: 32_768 + flow as u16,
        vxlan_source_port: 65_408 + (flow % 128) as u16,
        ..Aws::default()
    };
    aws.gwlb(headers / payload).build()
}

/// What was put on the wire.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// Bytes of the mirrored frames.
    pub inner_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Sends `count` of the frames, over and over, from [`SENDER_CPU`]; `rate`: so many a second, or as many as can be.
///
/// # Panics
/// When they cannot be sent.
#[must_use]
pub fn send(pair: &Pair, frames: &[Vec<u8>], count: u64, rate: Option<f64>) -> Sent {
    pair.source.run(|| {
        cage::pin(SENDER_CPU);
        let sender = Sender::new();
        let begun = Instant::now();
        let (mut sent, mut inner_bytes) = (0, 0);
        for batch in frames.chunks(BATCH).cycle() {
            let batch = &batch[..batch.len().min((count - sent) as usize)];
            if batch.is_empty() {
                break;
            }
            if let Some(rate) = rate {
                wait_until(begun + Duration::from_secs_f64(sent as f64 / rate));
            }
            sender.send(batch);
            sent += batch.len() as u64;
            inner_bytes += batch.iter().map(|frame| frame.len() - TUNNEL_BYTES).sum::<usize>() as u64;
        }
        Sent { frames: sent, inner_bytes, seconds: begun.elapsed().as_secs_f64() }
    })
}

/// Sleeps as long as that is exact enough: who is behind catches up.
fn wait_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if left > Duration::from_micros(200) {
        thread::sleep(left);
    }
}

struct Sender(Socket);

impl Sender {
    fn new() -> Self {
        let link = nic::link(SOURCE).ok().flatten().unwrap_or_else(|| panic!("there is no interface '{SOURCE}'"));
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap_or_else(|cause| panic!("no packet socket: {cause}; root?"));
        ring::socket::bind(socket.as_fd(), link.index, 0).unwrap_or_else(|cause| panic!("cannot bind to '{SOURCE}': {cause}"));
        Self(socket)
    }

    fn send(&self, frames: &[Vec<u8>]) {
        let pieces: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = frames.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<MMsgHdr<'_>> =
            pieces.iter().zip(&mut controls).map(|(piece, control)| MMsgHdr::new(piece, control)).collect();
        let mut left = &mut messages[..];
        while !left.is_empty() {
            match sendmmsg(&self.0, left, SendFlags::empty()) {
                Ok(sent) => left = &mut left[sent..],
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => thread::yield_now(),
                Err(cause) => panic!("cannot send frames: {cause}"),
            }
        }
    }
}

/// Writes `count` of the frames into a capture file (nanosecond pcap), one every microsecond.
///
/// # Errors
/// When the disk refuses.
pub fn save(frames: &[Vec<u8>], count: u64, path: &Path) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    file.write_all(&[0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0])?;
    for (number, frame) in frames.iter().cycle().take(count as usize).enumerate() {
        let (micros, length) = (number as u64, frame.len() as u32);
        file.write_all(&(1_800_000_000 + (micros / 1_000_000) as u32).to_le_bytes())?;
        file.write_all(&((micros % 1_000_000) as u32 * 1000).to_le_bytes())?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(frame)?;
    }
    file.into_inner()?.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_mix_has_thousands_of_flows_of_its_sizes_and_as_many_sessions_as_asked_for() {
        for mix in Mix::ALL {
            let frames = mix.frames(16);
            assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), FLOWS);
            let vnis: BTreeSet<_> = frames.iter().map(|frame| frame[114..117].to_vec()).collect();
            assert_eq!(vnis.len(), 16);
            let inner: usize = frames.iter().map(|frame| frame.len() - TUNNEL_BYTES).sum();
            assert!((inner as f64 / FLOWS as f64 - mix.mean_bytes()).abs() < 1e-6);
        }
    }
}
