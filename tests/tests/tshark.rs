//! An independent decoder: the inner frames that tshark sees and those that `tapfleet decap` writes are the same, byte for byte.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tapfleet_tests::packet::{Aws, Ethernet, Geneve, GeneveOption, Icmp, Ipv4, Ipv6, Packet, Tcp, Udp, Vlan, Vxlan, pcap};

/// A frame's layers in tshark's order; its JSON has the same key several times, so that a map would lose all but one.
struct Layers(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Layers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Layers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Layers, A::Error> {
                let mut layers = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    layers.push(entry);
                }
                Ok(Layers(layers))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[derive(serde::Deserialize)]
struct Dissected {
    _source: Source,
}

#[derive(serde::Deserialize)]
struct Source {
    layers: Layers,
}

/// Runs a program and gives what it printed; it must succeed.
fn output(program: &Path, arguments: &[&str]) -> Vec<u8> {
    let run = Command::new(program).args(arguments).output();
    let output = run.unwrap_or_else(|cause| panic!("cannot run {}: {cause}; `make test` installs it", program.display()));
    assert!(output.status.success(), "{} {arguments:?}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The innermost tunnel's Ethernet frame of each frame in which tshark sees one, with the frame's number from 1.
fn seen_by_tshark(capture: &Path) -> Vec<(usize, Vec<u8>)> {
    let json = output(Path::new("tshark"), &["-r", capture.to_str().unwrap(), "-T", "json", "-x"]);
    let frames: Vec<Dissected> = serde_json::from_slice(&json).unwrap();
    frames.iter().enumerate().filter_map(|(n, frame)| Some((n + 1, inner(&frame._source.layers.0)?))).collect()
}

/// From the second Ethernet header to the end of the datagram that carries it.
fn inner(layers: &[(String, Value)]) -> Option<Vec<u8>> {
    let bytes = hex(layers.iter().find(|(name, _)| name == "frame_raw")?.1[0].as_str()?);
    let second = layers.iter().enumerate().filter(|(_, (name, _))| name == "eth_raw").nth(1)?.0;
    let place = |entry: &Value| entry[1].as_u64().map(|at| at as usize);
    let start = place(&layers[second].1)?;
    let datagram = place(&layers[..second].iter().rfind(|(name, _)| name == "udp_raw")?.1)?;
    let length: usize = layers[..second].iter().rfind(|(name, _)| name == "udp")?.1["udp.length"].as_str()?.parse().ok()?;
    Some(bytes[start..bytes.len().min(datagram + length)].to_vec())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// The frames that our command writes, read by tshark as raw bytes.
fn written_by_us(capture: &Path, dir: &Path) -> Vec<Vec<u8>> {
    let out = dir.join("decap.pcapng");
    let tapfleet = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("tapfleet");
    output(&tapfleet, &["decap", capture.to_str().unwrap(), out.to_str().unwrap()]);
    let json = output(Path::new("tshark"), &["-r", out.to_str().unwrap(), "-T", "json", "-x", "--disable-protocol", "ip"]);
    let frames: Vec<Dissected> = serde_json::from_slice(&json).unwrap();
    let raw = |frame: &Dissected| hex(frame._source.layers.0.iter().find(|(name, _)| name == "frame_raw").unwrap().1[0].as_str().unwrap());
    frames.iter().map(raw).collect()
}

/// Compares the two decoders on one capture; `refused` are the frames that tshark shows and the rules forbid.
fn compare(capture: &Path, refused: &[usize]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let seen: Vec<Vec<u8>> = seen_by_tshark(capture).into_iter().filter(|(n, _)| !refused.contains(n)).map(|(_, bytes)| bytes).collect();
    let mut written = written_by_us(capture, dir.path());
    // tshark shows no Ethernet header where there is less than one; the rules keep such a runt.
    written.retain(|frame| frame.len() >= 14);
    assert_eq!(seen.len(), written.len(), "{}: frames", capture.display());
    for (n, (theirs, ours)) in seen.iter().zip(&written).enumerate() {
        assert!(theirs == ours, "{}: inner frame {}\ntshark   {theirs:02x?}\ntapfleet {ours:02x?}", capture.display(), n + 1);
    }
    seen.len()
}

fn address(n: u32) -> [u8; 4] {
    (0x0a00_0000 + n).to_be_bytes()
}

/// Mirrored frames of many forms; `n` decides.
fn mirrored(n: u32) -> Packet {
    let ethernet = Ethernet::default();
    let body = vec![n as u8; (n as usize * 37) % 1300];
    match n % 5 {
        0 => ethernet / Ipv4::new(address(n), address(n + 1)) / Tcp::new(40_000, 443) / body,
        1 => ethernet / Ipv4::new(address(n), address(n + 1)) / Icmp::echo(7, n as u16) / body,
        2 => ethernet / Ipv6::new([0xfd00, 0, 0, 0, 0, 0, 0, n as u16], [0xfd00, 0, 0, 0, 0, 0, 1, 1]) / Udp::new(53, 5353) / body,
        3 => ethernet / Vlan::customer(n as u16 % 4096) / Ipv4::new(address(n), address(n + 1)) / Udp::new(1000, 2000) / body,
        _ => ethernet / body,
    }
}

/// The same through every tunnel that reaches an agent.
fn tunnelled(n: u32) -> Packet {
    let v6 = Aws { mirrored: [0xfd00, 0, 0, 0, 0, 0, 0, 5].into(), target: [0xfd00, 0, 0, 0, 0, 0, 0, 6].into(), vni: n, ..Aws::default() };
    let v4 = Aws { vni: n, endpoint: u64::from(n), ..Aws::default() };
    let outer = || Ethernet::default() / Ipv4::new([10, 0, 1, 10], [10, 0, 1, 20]) / Udp::unchecked(60_001, 6081);
    match n % 6 {
        0 => v4.gwlb(mirrored(n)),
        1 => v4.direct(mirrored(n)),
        2 => v6.gwlb(mirrored(n)),
        3 => outer() / Geneve::default() / mirrored(n),
        4 => Aws { balancer: v6.target, appliance: v6.mirrored, ..v6.clone() }.gwlb(mirrored(n)),
        _ => {
            let option = GeneveOption::new(0xff01, 3, vec![9; 4 * (n as usize % 20)]);
            let geneve = Geneve { options: vec![option, GeneveOption::endpoint(9)], ..Geneve::default() };
            let tunnel = Ipv4::new([172, 31, 0, 238], [172, 31, 9, 9]) / Udp::unchecked(65_408, 4789) / Vxlan::new(n);
            outer() / geneve / tunnel / mirrored(n)
        }
    }
}

#[test]
fn tshark_and_tapfleet_see_the_same_inner_frames_in_every_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("built.pcap");
    let frames: Vec<Vec<u8>> = (0..600).map(|n| tunnelled(n).build()).collect();
    fs::write(&path, pcap::file(frames.iter().enumerate().map(|(n, frame)| (1_700_000_000_000_000_000 + n as u64, frame.as_slice()))))
        .unwrap();
    assert_eq!(compare(&path, &[]), 600);
}

#[test]
fn tshark_and_tapfleet_see_the_same_inner_frames_in_the_extra_captures() {
    let Some(folder) = std::env::var_os("TAPFLEET_EXTRA_PCAPS") else {
        println!("not run: comparison with tshark on extra captures: TAPFLEET_EXTRA_PCAPS names no folder");
        return;
    };
    let mut captures: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    captures.retain(|path| path.extension().is_some_and(|extension| extension == "pcap" || extension == "pcapng"));
    captures.sort();
    assert!(!captures.is_empty(), "no capture in {}", Path::new(&folder).display());
    for capture in captures {
        let expected = capture.with_extension("expected.csv");
        let refused = if expected.exists() { refused_by(&fs::read_to_string(expected).unwrap()) } else { Vec::new() };
        println!("{}: {} inner frames alike", capture.display(), compare(&capture, &refused));
    }
}

/// Frames that must not come out, by the table beside a capture (`frame,name,bytes,action,note`).
fn refused_by(table: &str) -> Vec<usize> {
    let rows = table.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
    rows.filter(|row| !matches!(row[3], "accept" | "accept-short")).map(|row| row[0].parse().unwrap()).collect()
}
