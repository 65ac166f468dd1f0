//! Promises about the commands: what they print, where, and with which exit code. Runs the built `tapfleetd` and `tapfleet`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use serde_json::Value;
use tapfleet::capture::origins::ORIGINS_MAX;
use tapfleet::record::Stamp;
use tapfleet::record::facts::Kind;
use tapfleet::spool::journal::{Journal, Open, Part, Record, VERSION};
use tapfleet::spool::{self, Folder};
use tapfleet_tests::agent::program;
use tapfleet_tests::captures::records;
use tapfleet_tests::packet::{Ethernet, Ipv4, Udp, Vxlan, pcap};

/// The daemon beside this test, wherever it was built.
fn daemon() -> PathBuf {
    let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("tapfleetd");
    assert!(path.exists(), "{} is missing: run `cargo build -p tapfleet` first (same profile and target folder)", path.display());
    path
}

/// Runs it with nothing of this process's settings.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(daemon());
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code, stdout, stderr.
fn said(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let output = run(arguments, variables);
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

const BUCKET: (&str, &str) = ("TAPFLEET__S3__BUCKET", "my-captures");

#[test]
fn check_prints_what_is_effective_and_ends_with_0() {
    let (code, out, err) = said(&["check"], &[BUCKET, ("TAPFLEET__CAPTURE__SNAPLEN", "96")]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("\nsnaplen = 96 ") && out.contains("# environment variable TAPFLEET__CAPTURE__SNAPLEN"), "{out}");
    assert!(out.contains("# id is not set: from instance metadata"), "{out}");
}

#[test]
fn check_advises_what_to_change_on_this_machine_in_lines_that_do_not_disturb_the_settings() {
    let lo = ("TAPFLEET__CAPTURE__INTERFACE", "lo");
    let (threads, rings) = (("TAPFLEET__CAPTURE__THREADS", "64"), ("TAPFLEET__CAPTURE__RING_BYTES", "16GiB"));
    let (code, out, err) = said(&["check"], &[BUCKET, lo, threads, rings]);
    assert_eq!((code, err.as_str()), (0, ""));
    let advice: Vec<_> = out.lines().filter_map(|line| line.strip_prefix("# advice for this machine: ")).collect();
    assert!(advice.iter().any(|line| line.contains("the rings take 1048576 of ")), "{out}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &out).unwrap();
    assert_eq!(said(&["check", "--config", file.path().to_str().unwrap()], &[]).0, 0);

    let (code, out, _) = said(&["check"], &[BUCKET, ("TAPFLEET__CAPTURE__INTERFACE", "tapfleet-none")]);
    assert_eq!(code, 0);
    assert!(out.contains("# advice for this machine: cannot capture on 'tapfleet-none': no such interface; there are: "), "{out}");
}

#[test]
fn check_prints_every_error_as_one_line_on_stderr_and_ends_with_2() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "[capture]\nsnaplen = 0\nthreds = 2\n").unwrap();
    let (code, out, err) = said(&["check", "--config", file.path().to_str().unwrap()], &[("TAPFLEET__SPOOL__FLUSH_MS", "9999")]);
    assert_eq!((code, out.as_str()), (2, ""));
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 4, "{err}");
    for words in [
        ["capture.snaplen", "1 to 262144"],
        ["capture.threds", "capture.threads"],
        ["TAPFLEET__SPOOL__FLUSH_MS", "1 to 800"],
        ["s3.bucket", "missing"],
    ] {
        assert!(
            lines.iter().any(|line| line.starts_with("tapfleetd: ") && words.iter().all(|word| line.contains(word))),
            "{words:?} in\n{err}"
        );
    }
    // The agent itself refuses the same settings in the same words.
    assert_eq!(said(&["run", "--config", file.path().to_str().unwrap()], &[("TAPFLEET__SPOOL__FLUSH_MS", "9999")]), (2, out, err));
}

#[test]
fn the_example_is_printed_and_accepted() {
    let (code, example, _) = said(&["check", "--example"], &[]);
    assert_eq!(code, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &example).unwrap();
    assert_eq!(said(&["check", "--config", file.path().to_str().unwrap()], &[]).0, 0);
}

#[test]
fn wrong_usage_ends_with_2_and_version_and_help_with_0() {
    for wrong in
        [&["frobnicate"][..], &[], &["check", "--confg", "x"], &["status", "--listen", "nowhere"], &["check", "--example", "--config", "x"]]
    {
        assert_eq!(said(wrong, &[]).0, 2, "{wrong:?}");
    }
    assert_eq!(said(&["--version"], &[]), (0, concat!("tapfleetd ", env!("CARGO_PKG_VERSION"), "\n").into(), String::new()));
    assert_eq!(said(&["--help"], &[]).0, 0);
}

fn open(id: &str, key: &str) -> Open {
    Open {
        version: VERSION,
        kind: Kind::Capture,
        capture_id: id.into(),
        bucket: "my-captures".into(),
        key: key.into(),
        instance: "i-1".into(),
        window: Stamp(0),
        extension: "pcap".into(),
        agent_version: "0".into(),
    }
}

fn settings(dir: &Path) -> spool::Settings {
    spool::Settings {
        dir: dir.into(),
        max_bytes: 1 << 30,
        on_full: spool::OnFull::DropNewest,
        flush_ms: 500,
        sync_ms: 500,
        allow_root_device: true,
    }
}

/// One segment that is being sent, one that grows, one idle window.
fn filled(dir: &Path) -> Folder {
    let folder = Folder::open(&settings(dir)).unwrap();
    let mut journal = Journal::create(&folder.path("a", "journal"), open("a", "i-1/2026-11-22-00-15.pcap")).unwrap();
    journal.append(Record::Created { upload_id: "u".into() }).unwrap();
    journal.append(Record::Part(Part { number: 1, bytes: 8, crc64nvme: 0, etag: "e".into() })).unwrap();
    fs::write(folder.path("a", "pcap"), [0; 10]).unwrap();
    fs::write(folder.path("a", "manifest"), "{}").unwrap();
    Journal::create(&folder.path("b", "journal"), open("b", "i-1/\u{1b}[2J.pcap")).unwrap();
    fs::write(folder.path("b", "pcap"), [0; 3]).unwrap();
    fs::write(folder.path("c", "manifest"), "{}").unwrap();
    folder
}

#[test]
fn spool_list_shows_what_is_unsent_while_an_agent_holds_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let _held = filled(dir.path());
    let (code, out, err) = said(&["spool", "list", "--json", "--spool", dir.path().to_str().unwrap()], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    let rows: Value = serde_json::from_str(&out).unwrap();
    let row = |n: usize| (rows[n]["capture_id"].as_str().unwrap(), rows[n]["state"].as_str().unwrap(), rows[n]["bytes"].as_u64().unwrap());
    assert_eq!([row(0), row(1), row(2)], [("a", "sending", 10), ("b", "recording", 3), ("c", "waiting", 0)]);
    assert_eq!((&rows[0]["parts_sent"], &rows[0]["bytes_sent"]), (&Value::from(1), &Value::from(8)));
    assert_eq!((&rows[0]["key"], &rows[2]["kind"]), (&Value::from("i-1/2026-11-22-00-15.pcap"), &Value::from("idle")));

    let (code, table, _) = said(&["spool", "list"], &[("TAPFLEET__SPOOL__DIR", dir.path().to_str().unwrap())]);
    assert_eq!(code, 0);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("i-1/2026-11-22-00-15.pcap") && !table.contains('\u{1b}'), "{table:?}");
}

#[test]
fn spool_list_shows_a_journal_whose_numbers_cannot_be_true() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    let mut journal = Journal::resume(&dir.path().join("a.journal")).unwrap();
    journal.append(Record::Part(Part { number: u32::MAX, bytes: u64::MAX, crc64nvme: 0, etag: "e".into() })).unwrap();
    let (code, out, err) = said(&["spool", "list", "--json", "--spool", dir.path().to_str().unwrap()], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("\"bytes_sent\": 18446744073709551615"), "{out}");
}

#[test]
fn spool_list_names_a_damaged_journal_shows_the_rest_and_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    fs::write(dir.path().join("a.journal"), "garbage\nmore\n").unwrap();
    let (code, out, err) = said(&["spool", "list", "--spool", dir.path().to_str().unwrap()], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("a.journal") && out.contains("damaged") && out.contains("recording"), "{out}{err}");
}

#[test]
fn a_spool_that_an_agent_holds_is_a_matter_of_trying_again() {
    let dir = tempfile::tempdir().unwrap();
    let _held = Folder::open(&settings(dir.path())).unwrap();
    let (code, _, err) = said(&["spool", "upload", "--spool", dir.path().to_str().unwrap()], &[BUCKET]);
    assert_eq!(code, 75, "{err}");
    assert!(err.lines().count() == 1 && err.contains("another agent holds it"), "{err}");
}

#[test]
fn an_empty_spool_is_sent_at_once_and_a_missing_one_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = said(&["spool", "upload", "--spool", dir.path().to_str().unwrap()], &[BUCKET]);
    assert_eq!((code, out.as_str()), (0, "0 captures sent and confirmed, 0 left\n"), "{err}");
    let missing = dir.path().join("missing");
    let (code, _, err) = said(&["spool", "upload", "--spool", missing.to_str().unwrap()], &[BUCKET]);
    assert!(code == 1 && err.contains("no such folder") && !missing.exists(), "{err}");
}

/// Answers one connection with `answer`.
fn peer(answer: &'static str) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let read = stream.read(&mut request).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        text(&request[..read])
    });
    (address, serving)
}

#[test]
fn status_shows_what_the_agent_answers() {
    let answer = "HTTP/1.0 200 OK\r\n\r\n{\"version\":\"9\",\"instance\":\"i-1\",\"since\":\"s\",\"up_seconds\":5,\"healthy\":false,\
                  \"reasons\":[{\"reason\":\"r\",\"detail\":\"the recorder has stood still\"}],\"counters\":{\"frames_written\":7,\"drops\":{\"vxlan_short\":3}}}";
    let (address, serving) = peer(answer);
    let (code, out, _) = said(&["status", "--listen", &address], &[]);
    assert_eq!(code, 0);
    assert!(serving.join().unwrap().starts_with("GET /status HTTP/1."));
    for words in ["tapfleetd 9 on i-1", "NOT HEALTHY", "the recorder has stood still", "frames_written", "drops: vxlan_short"] {
        assert!(out.contains(words), "{words} in\n{out}");
    }
    let (address, _serving) = peer(answer);
    let (code, out, _) = said(&["status", "--json"], &[("TAPFLEET__HEALTH__LISTEN", &address)]);
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()["counters"]["frames_written"]), (0, &Value::from(7)));
}

#[test]
fn status_without_an_agent_or_with_a_foreign_one_ends_with_1_and_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (foreign, _serving) = peer("SSH-2.0-OpenSSH\r\n");
    for address in [free, foreign] {
        let (code, out, err) = said(&["status", "--listen", &address], &[]);
        assert_eq!((code, out.as_str(), err.lines().count()), (1, "", 1), "{err}");
        assert!(err.contains(&address), "{err}");
    }
}

/// More origins than the judge tells apart at once: it forgets them and begins to number anew.
#[test]
fn decap_tells_the_origin_of_each_frame_however_many_there_are() {
    let vnis = (0..ORIGINS_MAX as u32).chain(std::iter::repeat_n(7, 3000)).chain([20_000, 7, 20_001, 7]);
    let inner = Ethernet::default() / [1; 60];
    let frames: Vec<(u32, Vec<u8>)> = vnis
        .map(|vni| {
            (vni, Ethernet::default() / Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]) / Udp::new(1, 4789) / Vxlan::new(vni) / inner.clone())
        })
        .map(|(vni, frame)| (vni, frame.build()))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.pcap"), folder.path().join("out.pcapng"));
    fs::write(&input, pcap::file(frames.iter().map(|(_, frame)| (1_700_000_000_000_000_000, &frame[..])))).unwrap();
    let run = Command::new(program("tapfleet")).arg("decap").args([&input, &output]).arg("--json").output().unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let counted: Value = serde_json::from_slice(&run.stdout).unwrap();
    let origins = counted["origins"].as_object().unwrap();
    assert_eq!((origins.len(), &origins["direct/vni-7"], &origins["direct/vni-0"]), (ORIGINS_MAX + 2, &3003.into(), &1.into()));
    let written = records(&fs::read(&output).unwrap());
    assert_eq!(written.len(), frames.len());
    for (record, (vni, _)) in written.iter().zip(&frames) {
        assert_eq!(record.interface.as_deref(), Some(&*format!("direct/vni-{vni}")));
    }
}
