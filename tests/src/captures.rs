//! Capture files as others read them: pcap-parser for the records, tshark, tcpdump and capinfos for an opinion.
//! In: bytes of a pcap or pcapng file, perhaps compressed. Out: its records. Never: uses the agent's own readers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, LegacyPcapSlice, PcapBlockOwned, PcapNGSlice};

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Name of its interface; pcap has none.
    pub interface: Option<String>,
    /// What was kept of the frame.
    pub bytes: Vec<u8>,
    /// Its length on the wire.
    pub orig_len: u32,
}

/// The records of a file, in its order.
///
/// # Panics
/// When it is not whole: a capture in S3 always is.
#[must_use]
pub fn records(file: &[u8]) -> Vec<Record> {
    if file.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) { pcapng(file) } else { pcap(file) }
}

/// A file as it was before `zstd` compressed it; one that is not compressed as it is.
///
/// # Panics
/// When `zstd` complains or is missing.
#[must_use]
pub fn plain(file: &[u8]) -> Vec<u8> {
    if !file.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return file.to_vec();
    }
    let mut compressed = tempfile::NamedTempFile::new().unwrap();
    compressed.write_all(file).unwrap();
    let output = Command::new("zstd").arg("-dc").arg(compressed.path()).output();
    let output = output.unwrap_or_else(|cause| panic!("cannot run zstd: {cause}; see tests/setup/system.sh"));
    assert!(output.status.success(), "zstd: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn pcap(file: &[u8]) -> Vec<Record> {
    let capture = LegacyPcapSlice::from_slice(file).unwrap_or_else(|cause| panic!("not a pcap file: {cause:?}"));
    let unit_ns = if capture.header.is_nanosecond_precision() { 1 } else { 1000 };
    capture
        .filter_map(|block| match block.unwrap_or_else(|cause| panic!("not a whole pcap file: {cause}")) {
            PcapBlockOwned::Legacy(record) => Some(Record {
                time_ns: u64::from(record.ts_sec) * 1_000_000_000 + u64::from(record.ts_usec) * unit_ns,
                interface: None,
                bytes: record.data[..record.caplen as usize].to_vec(),
                orig_len: record.origlen,
            }),
            _ => None,
        })
        .collect()
}

fn pcapng(file: &[u8]) -> Vec<Record> {
    let mut interfaces = Vec::new();
    let mut records = Vec::new();
    let capture = PcapNGSlice::from_slice(file).unwrap_or_else(|cause| panic!("not a pcapng file: {cause:?}"));
    for block in capture {
        match block.unwrap_or_else(|cause| panic!("not a whole pcapng file: {cause}")) {
            PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                let name = interface.if_name().and_then(Result::ok).map(str::to_owned);
                interfaces.push((name, interface.ts_resolution().unwrap()));
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let (interface, resolution) = &interfaces[packet.if_id as usize];
                let (seconds, fraction) = packet.decode_ts(0, *resolution);
                records.push(Record {
                    time_ns: u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * (1_000_000_000 / resolution),
                    interface: interface.clone(),
                    bytes: packet.packet_data().to_vec(),
                    orig_len: packet.origlen,
                });
            }
            _ => {}
        }
    }
    records
}

/// How many packets tshark, tcpdump and capinfos see in the file, once they agree and none complains.
///
/// # Panics
/// When one complains, they differ, or one is missing.
#[must_use]
pub fn seen_by_others(path: &Path) -> usize {
    let file = path.to_str().unwrap();
    let tshark = quiet("tshark", &["-n", "-r", file, "-T", "fields", "-e", "frame.number"]).lines().count();
    let tcpdump = quiet("tcpdump", &["-n", "-q", "-r", file]).lines().filter(|line| !line.starts_with(['\t', ' '])).count();
    let capinfos = quiet("capinfos", &["-c", "-M", "-T", "-r", file]);
    let capinfos: usize = capinfos.trim().rsplit('\t').next().unwrap().parse().unwrap_or_else(|_| panic!("capinfos said '{capinfos}'"));
    assert_eq!((tshark, tcpdump), (capinfos, capinfos), "tshark and tcpdump against capinfos, {file}");
    capinfos
}

/// What a program prints, if it has no complaint.
fn quiet(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|cause| panic!("cannot run {program}: {cause}; see tests/setup/system.sh"));
    let said = String::from_utf8_lossy(&output.stderr);
    // What they say without being asked: tcpdump about the file it reads, tshark about being root.
    let complaint =
        said.lines().find(|line| !line.is_empty() && !line.starts_with("reading from file") && !line.starts_with("Running as user"));
    assert!(output.status.success() && complaint.is_none(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
