//! In: what the settings ask of this machine, and what it has. Out: a sentence for each thing that would cost packets or captures here,
//! with what to do about it. Never: changes anything; fails: what the machine does not tell is left out.
//! Spec: VPC Traffic Mirroring, "Considerations" (MTU); EC2 User Guide, "Network performance metrics for the ENA driver"; EBS User
//! Guide, "General Purpose SSD volumes"; ethtool(8).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use rustix::fs::{major, minor, statvfs};
use rustix::system::sysinfo;

use super::ethtool;
use super::nic::{self, Link};

/// The largest packet of a Gateway Load Balancer (8,500 bytes) behind its GENEVE header (68).
pub const MTU_MIN: u32 = 8568;

/// The part of the memory that rings may take: the rest is the page cache's, which writes the captures.
const RING_SHARE: u64 = 2;

/// How Nitro names its disks.
const EBS: &str = "Amazon Elastic Block Store";
const INSTANCE_STORE: &str = "Amazon EC2 NVMe Instance Storage";

/// What the settings ask for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Exact name.
    pub interface: &'a str,
    /// Capture threads.
    pub threads: usize,
    /// Bytes of ring of each.
    pub ring_bytes: usize,
    /// The folder.
    pub spool: &'a Path,
    /// The most it shall hold.
    pub spool_max_bytes: u64,
}

/// What the machine has; `None` and empty where it does not tell.
#[derive(Clone, Default, Debug)]
struct Machine {
    link: Option<Link>,
    merges_packets: Option<bool>,
    /// Entries, and the most there can be.
    receive_ring: Option<(u32, u32)>,
    /// How often an allowance of EC2's was used up since boot, by its name.
    allowances: Vec<(String, u64)>,
    memory_bytes: Option<u64>,
    processors: Option<usize>,
    /// Of the file system that the spool is on.
    disk_bytes: Option<u64>,
    /// The model of that disk.
    disk: Option<String>,
}

/// What this machine is advised to change; empty when nothing is to be said.
#[must_use]
pub fn advice(asked: Asked<'_>) -> Vec<String> {
    advise(asked, &Machine::look(asked))
}

impl Machine {
    fn look(asked: Asked<'_>) -> Self {
        let losses = nic::losses(asked.interface).unwrap_or_default();
        // Where the folder will be, as long as it is not made.
        let existing = asked.spool.ancestors().find(|dir| dir.exists()).map(PathBuf::from);
        Self {
            link: nic::link(asked.interface).ok().flatten(),
            merges_packets: ethtool::merges_packets(asked.interface).ok(),
            receive_ring: ethtool::receive_ring(asked.interface).ok(),
            allowances: losses.ec2.into_iter().filter(|(_, times)| *times > 0).collect(),
            memory_bytes: Some(memory_bytes()),
            processors: available_parallelism().ok().map(usize::from),
            disk_bytes: existing.as_ref().and_then(|dir| statvfs(dir).ok()).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize)),
            disk: existing.and_then(|dir| disk_model(&dir)),
        }
    }
}

fn memory_bytes() -> u64 {
    let info = sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// The model of the disk that a folder lies on.
fn disk_model(dir: &Path) -> Option<String> {
    let device = fs::metadata(dir).ok()?.dev();
    let place = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()?;
    // A partition lies below its disk.
    let model =
        [place.join("device/model"), place.parent()?.join("device/model")].into_iter().find_map(|path| fs::read_to_string(path).ok());
    model.map(|model| model.trim().to_owned())
}

fn advise(asked: Asked<'_>, machine: &Machine) -> Vec<String> {
    [network(asked, machine), memory(asked, machine), disk(asked, machine)].concat()
}

fn network(asked: Asked<'_>, machine: &Machine) -> Vec<String> {
    let name = asked.interface;
    let mut advice = Vec::new();
    match &machine.link {
        None => advice.push(format!("there is no interface '{name}': capture would not start")),
        Some(link) if link.mtu < MTU_MIN => advice.push(format!(
            "interface '{name}' has an MTU of {}: packets of the load balancer have up to {MTU_MIN} bytes, longer ones are lost; ip link set {name} mtu 9001",
            link.mtu
        )),
        Some(_) => {}
    }
    if machine.merges_packets == Some(true) {
        advice
            .push(format!("interface '{name}' merges packets (GRO): merged ones are not what was on the wire; ethtool -K {name} gro off"));
    }
    if let Some((entries, most)) = machine.receive_ring
        && entries < most
    {
        advice.push(format!(
            "interface '{name}' has {entries} of {most} possible receive buffers: bursts are lost; ethtool -G {name} rx {most}"
        ));
    }
    for (allowance, times) in &machine.allowances {
        advice.push(format!(
            "EC2 queued or dropped packets {times} times since boot ({allowance}): a larger instance type, or more instances"
        ));
    }
    advice
}

fn memory(asked: Asked<'_>, machine: &Machine) -> Vec<String> {
    let mut advice = Vec::new();
    let rings = (asked.threads as u64).saturating_mul(asked.ring_bytes as u64);
    if let Some(memory) = machine.memory_bytes
        && rings > memory / RING_SHARE
    {
        advice.push(format!(
            "the rings take {} of {} MiB of memory: lower capture.ring_bytes or capture.threads to half of it",
            rings >> 20,
            memory >> 20
        ));
    }
    if let Some(processors) = machine.processors
        && asked.threads > processors
    {
        advice
            .push(format!("{} capture threads share {processors} processors: set capture.threads to {processors} at most", asked.threads));
    }
    advice
}

fn disk(asked: Asked<'_>, machine: &Machine) -> Vec<String> {
    let dir = asked.spool.display();
    let mut advice = Vec::new();
    if let Some(bytes) = machine.disk_bytes
        && bytes < asked.spool_max_bytes
    {
        advice.push(format!(
            "the file system of the spool '{dir}' has {} MiB, less than spool.max_bytes ({} MiB): an outage is outlived for that much less",
            bytes >> 20,
            asked.spool_max_bytes >> 20
        ));
    }
    match machine.disk.as_deref() {
        Some(EBS) => advice.push(format!(
            "the spool '{dir}' is on EBS: it holds what its throughput allows (gp3 without an order: 125 MiB/s, 1 Gb/s of packets); see VolumeThroughputExceededCheck in CloudWatch"
        )),
        Some(INSTANCE_STORE) => {
            advice.push(format!("the spool '{dir}' is on instance storage: what is not in S3 is gone with the instance; mount an EBS volume there"));
        }
        _ => {}
    }
    advice
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn asked() -> Asked<'static> {
        Asked {
            interface: "ens5",
            threads: 2,
            ring_bytes: 256 << 20,
            spool: Path::new("/var/lib/tapfleet/spool"),
            spool_max_bytes: 64 * GIB,
        }
    }

    fn link(mtu: u32) -> Option<Link> {
        Some(Link { name: "ens5".into(), index: 2, up: true, running: true, ethernet: true, mtu })
    }

    fn machine() -> Machine {
        Machine {
            link: link(9001),
            merges_packets: Some(false),
            receive_ring: Some((16384, 16384)),
            allowances: Vec::new(),
            memory_bytes: Some(8 * GIB),
            processors: Some(2),
            disk_bytes: Some(100 * GIB),
            disk: None,
        }
    }

    #[test]
    fn a_machine_that_fits_is_told_nothing_and_one_that_tells_nothing_only_what_is_certain() {
        assert_eq!(advise(asked(), &machine()), [] as [String; 0]);
        assert_eq!(advise(asked(), &Machine { link: link(9001), ..Machine::default() }), [] as [String; 0]);
    }

    #[test]
    fn each_shortcoming_is_one_sentence_with_what_to_do() {
        let cases: [(Machine, &str); 9] = [
            (Machine { link: None, ..machine() }, "no interface 'ens5'"),
            (Machine { link: link(8567), ..machine() }, "ip link set ens5 mtu 9001"),
            (Machine { merges_packets: Some(true), ..machine() }, "ethtool -K ens5 gro off"),
            (Machine { receive_ring: Some((1024, 16384)), ..machine() }, "ethtool -G ens5 rx 16384"),
            (Machine { allowances: vec![("pps_allowance_exceeded".into(), 7)], ..machine() }, "pps_allowance_exceeded"),
            (Machine { memory_bytes: Some(GIB - 1), ..machine() }, "capture.ring_bytes"),
            (Machine { processors: Some(1), ..machine() }, "capture.threads to 1"),
            (Machine { disk_bytes: Some(64 * GIB - 1), ..machine() }, "spool.max_bytes"),
            (Machine { disk: Some(INSTANCE_STORE.into()), ..machine() }, "gone with the instance"),
        ];
        for (machine, words) in cases {
            let advice = advise(asked(), &machine);
            assert_eq!(advice.len(), 1, "{advice:?}");
            assert!(advice[0].contains(words), "{advice:?}");
        }
        assert_eq!(advise(asked(), &Machine { link: link(MTU_MIN), ..machine() }), [] as [String; 0]);
        assert_eq!(advise(asked(), &Machine { disk: Some(EBS.into()), ..machine() }).len(), 1);
    }

    #[test]
    fn this_machine_is_looked_at_without_harm() {
        let machine = Machine::look(Asked { interface: "lo", spool: Path::new("/tapfleet-none/spool"), ..asked() });
        assert!(machine.link.is_some_and(|link| link.mtu > 0));
        assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 1 << 26) && machine.processors.is_some_and(|count| count > 0));
        assert!(machine.disk_bytes.is_some_and(|bytes| bytes > 0), "the root file system stands in for a folder that is not there");
        assert!(Machine::look(Asked { interface: "tapfleet-none", ..asked() }).link.is_none());
    }
}
