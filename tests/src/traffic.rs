//! Numbered frames through both tunnels into a machine, and which of them lie in its spool.
//! In: a machine. Out: how many were sent, which came how often, what its manifests add up to. Never: outlives the value.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::sum;
use crate::captures::records;
use crate::machine::Machine;
use crate::packet::{Aws, numbered};

/// The spool of a machine's agent.
pub const SPOOL: &str = "/var/lib/tapfleet/spool";

/// Frames per second on the wire.
pub const RATE: u64 = 3000;

/// Numbered frames on the wire, from several ports, until it is stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Traffic {
    /// Sends from now on.
    #[must_use]
    pub fn start(machine: &Machine) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            machine.pair.source.spawn(move || send(&stop, &sent))
        };
        Self { stop, sent, thread }
    }

    /// How many it has sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Stops, and gives how many it sent.
    ///
    /// # Panics
    /// When it could not send.
    #[must_use]
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        // The last ones are on the wire.
        std::thread::sleep(Duration::from_millis(50));
        self.sent.load(Ordering::Acquire)
    }
}

fn send(stop: &AtomicBool, sent: &AtomicU64) {
    let sockets: Vec<_> = (0..8).map(|_| UdpSocket::bind("10.77.0.1:0").unwrap()).collect();
    let aws = Aws::default();
    let begun = Instant::now();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let due = begun.elapsed().as_micros() as u64 * RATE / 1_000_000;
        while number < due {
            let frame = numbered::frame(number, &[]);
            let (port, datagram) = match number % 2 {
                0 => (6081, aws.gwlb_datagram(frame).build()),
                _ => (4789, aws.direct_datagram(frame).build()),
            };
            sockets[number as usize % sockets.len()].send_to(&datagram, ("10.77.0.2", port)).unwrap();
            number += 1;
        }
        sent.store(number, Ordering::Release);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What all agents left in a spool.
#[derive(Debug)]
pub struct Spooled {
    /// How often each number came.
    numbers: BTreeMap<u64, u32>,
    /// By the manifests: packets less drops.
    pub kernel_gave: u64,
    /// By the manifests: written, dropped with a reason, ignored.
    pub accounted: u64,
}

impl Spooled {
    /// That of a machine.
    ///
    /// # Panics
    /// When a file of it is not whole.
    #[must_use]
    pub fn read(machine: &Machine) -> Self {
        Self::in_folder(&machine.path(SPOOL.trim_start_matches('/')))
    }

    /// One that lies in a folder.
    ///
    /// # Panics
    /// When a file of it is not whole.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        let files: BTreeSet<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let with = |extension: &'static str| files.iter().filter(move |path| path.extension().is_some_and(|found| found == extension));
        let mut spooled = Self { numbers: BTreeMap::new(), kernel_gave: 0, accounted: 0 };
        for path in with("pcap") {
            for record in records(&fs::read(path).unwrap()) {
                *spooled.numbers.entry(numbered::number(&record.bytes).unwrap()).or_default() += 1;
            }
        }
        for path in with("manifest") {
            let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            let losses = &manifest["losses"];
            spooled.kernel_gave += losses["kernel_packets"].as_u64().unwrap() - losses["kernel_drops"].as_u64().unwrap();
            spooled.accounted += manifest["frames"].as_u64().unwrap() + sum(&manifest, "drops") + sum(&manifest, "ignored");
        }
        spooled
    }

    /// How many of the numbers below `sent` did not come.
    #[must_use]
    pub fn missing(&self, sent: u64) -> u64 {
        (0..sent).filter(|number| !self.numbers.contains_key(number)).count() as u64
    }

    /// How many came more than once.
    #[must_use]
    pub fn doubled(&self) -> usize {
        self.numbers.values().filter(|times| **times > 1).count()
    }
}
