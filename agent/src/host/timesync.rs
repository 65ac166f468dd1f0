//! In: a time server (SNTP), both clocks. Out: by how much the wall clock is off, in the counters, twice a minute.
//! Never: sets a clock (chronyd does); holds anything up; takes an answer that nobody asked for.
//! Spec: RFC 5905 sections 8 and 14; Amazon EC2 User Guide "Set the time reference on your EC2 instance" (169.254.169.123).
//!
//! What the kernel knows of its clock's state only adjtimex(2) tells, which the unit's `ProtectClock=` forbids: so the clock itself
//! is compared. Outside EC2 there may be no such server; then its silence says nothing, until it has answered once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sntpc::{NtpContext, NtpResult, NtpTimestampGenerator, NtpUdpSocket};
use tokio::net::UdpSocket;
use tokio::sync::watch as channel;
use tokio::time::{sleep, timeout};

use super::clock::{Clock, SECOND_NS, Synchrony};
use crate::observe::counters::Counters;

/// How often the server is asked: ten times in the time after which its silence is a trouble.
pub const EVERY: Duration = Duration::from_secs(30);

/// An answer that takes longer is none. The error of a measurement is at most half of it.
const ANSWER_WITHIN: Duration = Duration::from_millis(400);

/// Datagrams that are looked at for one answer: others may be forged.
const DATAGRAMS_MAX: usize = 64;

/// Asks `server` every `every` until `stop`. `expected`: whether there is one for certain, so that silence from the beginning is a sign.
pub async fn watch<C: Clock + Sync>(
    server: SocketAddr,
    expected: bool,
    counters: Arc<Counters>,
    clock: C,
    every: Duration,
    mut stop: channel::Receiver<bool>,
) {
    if expected {
        counters.clock_expected_ns.set(clock.now().monotonic_ns);
    }
    let mut told = Synchrony::Unknown;
    loop {
        match ask(server, &clock).await {
            Ok(answer) => note(&counters, &answer, clock.now().monotonic_ns),
            Err(cause) => tracing::debug!(%server, "no answer of the time server: {cause}"),
        }
        let check = counters.clock();
        let state = check.synchrony(clock.now().monotonic_ns);
        if state != told {
            told = state;
            match state {
                Synchrony::Synchronised => tracing::info!(%server, ahead_us = check.ahead_us, "the clock agrees with the time server"),
                Synchrony::Unsynchronised => tracing::warn!(%server, ahead_us = check.ahead_us, "the clock is wrong; is chronyd running?"),
                Synchrony::Unknown => tracing::warn!(%server, "the time server does not answer any more"),
            }
        }
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = sleep(every) => {}
        }
    }
}

fn note(counters: &Counters, answer: &NtpResult, monotonic_ns: u64) {
    // NTP says by how much the server is ahead.
    counters.clock_ahead_us.set(answer.offset.saturating_neg());
    counters.clock_answered_ns.set(monotonic_ns);
    counters.clock_answers.add(1);
    if counters.clock_expected_ns.get() == 0 {
        counters.clock_expected_ns.set(monotonic_ns);
    }
}

async fn ask<C: Clock + Sync>(server: SocketAddr, clock: &C) -> Result<NtpResult, String> {
    let answer = timeout(ANSWER_WITHIN, async {
        let socket = Socket::to(server).await.map_err(|cause| cause.to_string())?;
        let context = NtpContext::new(Stamps { clock, wall_ns: 0 });
        let said = |error: sntpc::Error| format!("{error:?}");
        let sent = sntpc::sntp_send_request(server, &socket, context).await.map_err(said)?;
        let mut last = String::new();
        for _ in 0..DATAGRAMS_MAX {
            match sntpc::sntp_process_response(server, &socket, context, sent).await {
                Ok(answer) => return Ok(answer),
                Err(error @ sntpc::Error::Network) => return Err(said(error)),
                // Not the answer, or a useless one; the true one may still come.
                Err(error) => last = said(error),
            }
        }
        Err(last)
    });
    answer.await.unwrap_or_else(|_| Err(format!("none within {ANSWER_WITHIN:?}")))
}

/// A socket that hears nobody but the server.
struct Socket(UdpSocket);

impl Socket {
    async fn to(server: SocketAddr) -> io::Result<Self> {
        let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        Ok(Self(socket))
    }
}

impl NtpUdpSocket for Socket {
    async fn send_to(&self, bytes: &[u8], _: SocketAddr) -> sntpc::Result<usize> {
        self.0.send(bytes).await.map_err(|_| sntpc::Error::Network)
    }

    async fn recv_from(&self, bytes: &mut [u8]) -> sntpc::Result<(usize, SocketAddr)> {
        self.0.recv_from(bytes).await.map_err(|_| sntpc::Error::Network)
    }
}

/// The wall clock as the crate asks for it.
struct Stamps<'a, C> {
    clock: &'a C,
    wall_ns: u64,
}

impl<C> Clone for Stamps<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Stamps<'_, C> {}

impl<C: Clock> NtpTimestampGenerator for Stamps<'_, C> {
    fn init(&mut self) {
        self.wall_ns = self.clock.now().wall_ns;
    }

    fn timestamp_sec(&self) -> u64 {
        self.wall_ns / SECOND_NS
    }

    fn timestamp_subsec_micros(&self) -> u32 {
        // Below a million.
        (self.wall_ns % SECOND_NS / 1000) as u32
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::host::clock::{Check, Now, SystemClock};

    /// Seconds from 1900 to 1970.
    const NTP_TO_UNIX: u64 = 2_208_988_800;

    /// 2026-11-22T00:15:00Z.
    const START: Now = Now { wall_ns: 1_795_306_500 * SECOND_NS, monotonic_ns: 77 * SECOND_NS };

    /// A clock that stands.
    #[derive(Clone, Default)]
    struct Stopped(Arc<Mutex<Now>>);

    impl Clock for Stopped {
        fn now(&self) -> Now {
            *self.0.lock().unwrap()
        }
    }

    fn at(now: Now) -> Stopped {
        Stopped(Arc::new(Mutex::new(now)))
    }

    fn stamp(wall_ns: u64) -> [u8; 8] {
        let fraction = (u128::from(wall_ns % SECOND_NS) << 32) / u128::from(SECOND_NS);
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&((wall_ns / SECOND_NS + NTP_TO_UNIX) as u32).to_be_bytes());
        bytes[4..].copy_from_slice(&(fraction as u32).to_be_bytes());
        bytes
    }

    /// A sound answer of a server whose clock says `wall_ns`.
    fn answer(request: &[u8], wall_ns: u64) -> Vec<u8> {
        let mut bytes = vec![0; 48];
        // No leap second, version 4, server; stratum 4 as the Amazon Time Sync Service has.
        (bytes[0], bytes[1], bytes[2], bytes[3]) = (0x24, 4, 4, 0xec);
        bytes[16..24].copy_from_slice(&stamp(wall_ns - SECOND_NS));
        bytes[24..32].copy_from_slice(&request[40..48]);
        bytes[32..40].copy_from_slice(&stamp(wall_ns));
        bytes[40..48].copy_from_slice(&stamp(wall_ns));
        bytes
    }

    /// A server that sends these datagrams for each request; until its value goes.
    async fn serve(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, tokio::task::AbortHandle) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut request = [0; 100];
            loop {
                let (length, from) = socket.recv_from(&mut request).await.unwrap();
                for bytes in answers(&request[..length]) {
                    let _ = socket.send_to(&bytes, from).await;
                }
            }
        });
        (address, task.abort_handle())
    }

    #[tokio::test]
    async fn the_offset_of_the_clock_is_measured_in_either_direction() {
        for ahead_ms in [0i64, 7, -3_600_000, 3_600_000, 86_400_000 * 365 * 20] {
            let (server, _) =
                serve(move |request| vec![answer(request, START.wall_ns.checked_add_signed(-ahead_ms * 1_000_000).unwrap())]).await;
            let counters = Counters::new(0);
            note(&counters, &ask(server, &at(START)).await.unwrap(), 5);
            let check = counters.clock();
            assert!((check.ahead_us - ahead_ms * 1000).abs() <= 2, "{ahead_ms} ms ahead were measured as {} us", check.ahead_us);
            assert_eq!((check.expected_ns, check.answered_ns), (5, 5), "one that has answered is expected to");
        }
    }

    #[tokio::test]
    async fn the_system_clock_agrees_with_itself() {
        let (server, _) = serve(|request| vec![answer(request, SystemClock.now().wall_ns)]).await;
        let offset = ask(server, &SystemClock).await.unwrap().offset;
        assert!(offset.unsigned_abs() < 400_000, "{offset} us");
    }

    #[tokio::test]
    async fn hostile_answers_are_passed_over_and_the_true_one_is_found() {
        let (server, _) = serve(|request| {
            let sound = answer(request, START.wall_ns);
            let with = |at: usize, byte: u8| {
                let mut bytes = sound.clone();
                bytes[at] = byte;
                bytes
            };
            let mut all = vec![vec![], vec![0xff; 3], vec![0xff; 1500], vec![0; 48], sound[..47].to_vec()];
            // Another origin, a client's mode, unsynchronised, a kiss of death, stratum 16, no version, distance of hours.
            all.extend([with(31, sound[31] ^ 1), with(0, 0x23), with(0, 0xe4), with(1, 0), with(1, 16), with(0, 0x04), with(4, 0xff)]);
            all.push(sound);
            all
        })
        .await;
        assert_eq!(ask(server, &at(START)).await.unwrap().offset, 0);
    }

    #[tokio::test]
    async fn any_time_that_a_server_may_claim_is_a_number() {
        for (field, wall_ns) in [(0xff, 0), (0x80, u64::MAX), (0x00, START.wall_ns), (0x7f, START.wall_ns)] {
            let (server, _) = serve(move |request| {
                let mut bytes = answer(request, START.wall_ns);
                bytes[16..24].fill(0);
                bytes[32..48].fill(field);
                bytes[47] = 1;
                vec![bytes]
            })
            .await;
            // An answer or a refusal; neither panics nor hangs.
            let _ = ask(server, &at(Now { wall_ns, ..START })).await;
        }
    }

    #[tokio::test]
    async fn who_sends_nothing_but_rubbish_is_given_up_in_time() {
        let (server, _) = serve(|_| vec![vec![0x24; 48]; 500]).await;
        let begun = tokio::time::Instant::now();
        assert!(ask(server, &at(START)).await.is_err());
        assert!(begun.elapsed() < 10 * ANSWER_WITHIN, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn silence_of_a_server_is_a_sign_only_where_there_is_one_or_after_it_has_answered() {
        let (server, task) = serve(|request| vec![answer(request, START.wall_ns)]).await;
        let (counters, clock) = (Arc::new(Counters::new(0)), at(START));
        let (stop, stopping) = channel::channel(false);
        // Nobody is there, and nobody need be.
        let nowhere = tokio::spawn(watch("127.0.0.1:1".parse().unwrap(), false, counters.clone(), clock.clone(), EVERY, stopping.clone()));
        sleep(Duration::from_millis(50)).await;
        assert_eq!(counters.clock(), Check::default());
        nowhere.abort();
        let watching = tokio::spawn(watch(server, false, counters.clone(), clock.clone(), Duration::from_millis(5), stopping.clone()));
        while counters.clock_answers.get() < 3 {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(counters.clock().synchrony(START.monotonic_ns), Synchrony::Synchronised);
        task.abort();
        stop.send(true).unwrap();
        watching.await.unwrap();
        assert_eq!(counters.clock().expected_ns, START.monotonic_ns);
        assert_eq!(counters.clock().synchrony(START.monotonic_ns + Check::STALE_NS), Synchrony::Unknown);
        let counters = Arc::new(Counters::new(0));
        watch("127.0.0.1:1".parse().unwrap(), true, counters.clone(), clock, EVERY, stopping).await;
        assert_eq!((counters.clock().expected_ns, counters.clock().answered_ns), (START.monotonic_ns, 0), "on EC2 there is one");
    }
}
