//! What a pcapng segment says beside its frames, as tshark and capinfos read it: origins, direction, statistics, reasons.
//! In: a capture file replayed by the daemon with no S3 to be had, so that its segments stay in the spool.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tapfleet_tests::agent::{Agent, Settings};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Packet, Tcp, Vxlan, pcap};

/// 2026-11-22T00:15:00Z.
const START_NS: u64 = 1_795_306_500_000_000_000;

const OWN: [u8; 4] = [172, 31, 0, 238];
const PEER: [u8; 4] = [93, 184, 216, 34];
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x20];

/// From the mirrored interface.
fn outbound() -> Packet {
    Ethernet { source: OWN_MAC, destination: ROUTER_MAC, ..Ethernet::default() }
        / Ipv4::new(OWN, PEER)
        / Tcp::new(40_000, 443)
        / vec![1; 30]
}

/// To it.
fn inbound() -> Packet {
    Ethernet { source: ROUTER_MAC, destination: OWN_MAC, ..Ethernet::default() }
        / Ipv4::new(PEER, OWN)
        / Tcp::new(443, 40_000)
        / vec![1; 30]
}

/// From a further address of it: only the hardware address tells.
fn outbound_from_a_second_address() -> Packet {
    outbound().edit(|ip: &mut Ipv4| ip.source = [172, 31, 0, 239].into())
}

/// Frames of two origins, in and out, and two that cannot be decoded; the window after the first has one frame.
fn capture() -> Vec<u8> {
    let gwlb = Aws { endpoint: 0xabc, vni: 7, ..Aws::default() };
    let direct = Aws { vni: 9, ..Aws::default() };
    let frames = [
        gwlb.gwlb(outbound()).build(),
        gwlb.gwlb(inbound()).build(),
        gwlb.gwlb(outbound_from_a_second_address()).build(),
        direct.direct(outbound()).build(),
        direct.direct(outbound()).edit(|vxlan: &mut Vxlan| vxlan.flags = 0).build(),
        gwlb.gwlb(outbound()).build()[..60].to_vec(),
    ];
    let late = gwlb.gwlb(outbound()).build();
    let mut stamped: Vec<(u64, &[u8])> = frames.iter().enumerate().map(|(n, frame)| (START_NS + n as u64, frame.as_slice())).collect();
    stamped.push((START_NS + 900_000_000_000, &late));
    pcap::file(stamped)
}

/// Replays the capture and gives the folder and the paths of its data files once all are whole.
fn replayed(listen: &str) -> (tempfile::TempDir, Agent, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.pcap");
    fs::write(&input, capture()).unwrap();
    // Nothing listens there.
    let settings = Settings::new("http://127.0.0.1:9", &folder.path().join("spool"))
        .set("capture.engine", "file")
        .set("capture.files", vec![input.to_str().unwrap()])
        .set("record.format", "pcapng")
        .set("health.listen", listen);
    let mut agent = Agent::start(None, &settings, folder.path());
    let files = |extension: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder.path().join("spool")).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        files.sort();
        files
    };
    agent.wait_for("three segments are whole", Duration::from_secs(20), |_| files("manifest").len() == 3);
    let data = files("pcapng");
    (folder, agent, data)
}

fn printed(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output();
    let output = output.unwrap_or_else(|cause| panic!("cannot run {program}: {cause}; `make test` installs it"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fields(file: &Path, names: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-T", "fields", "-E", "separator=,"];
    names.iter().for_each(|name| arguments.extend(["-e", name]));
    arguments.push("-r");
    printed("tshark", &arguments, file).lines().map(str::to_owned).collect()
}

#[test]
fn a_pcapng_segment_names_origins_and_directions_and_ends_with_statistics() {
    let (_folder, _agent, files) = replayed("127.0.0.1:18081");
    let lines: Vec<Vec<String>> =
        files.iter().map(|file| fields(file, &["frame.interface_name", "frame.packet_flags_direction"])).collect();
    let gwlb = "vpce-00000000000000abc/vni-7";
    let (outbound, inbound) = (format!("{gwlb},0x00000002"), format!("{gwlb},0x00000001"));
    let first = [outbound.clone(), inbound, outbound.clone(), "direct/vni-9,0x00000002".into()];
    assert!(lines.contains(&first.to_vec()), "{lines:?}");
    assert!(lines.contains(&vec![outbound]), "the next window's interfaces begin anew: {lines:?}");
    let with_two_origins = &files[lines.iter().position(|lines| lines.len() == 4).unwrap()];
    let about = printed("capinfos", &[], with_two_origins);
    assert!(about.contains("Number of interfaces in file: 2"), "{about}");
    assert_eq!(about.matches("Number of stat entries = 1").count(), 2, "{about}");
    assert!(about.contains("source=172.31.0.238") && about.contains("tapfleet"), "{about}");
}

#[test]
fn quarantine_keeps_each_malformed_frame_with_its_reason() {
    let (_folder, _agent, files) = replayed("127.0.0.1:18082");
    let comments: Vec<Vec<String>> =
        files.iter().map(|file| fields(file, &["frame.interface_name", "frame.comment", "frame.len"])).collect();
    let quarantined = comments.iter().find(|lines| lines.iter().any(|line| line.starts_with("quarantine,"))).unwrap();
    assert_eq!(quarantined.len(), 2, "{comments:?}");
    assert!(quarantined[0].starts_with("quarantine,vxlan_no_i,"), "{quarantined:?}");
    assert!(quarantined[1].starts_with("quarantine,geneve_"), "{quarantined:?}");
}
