//! What can be wrong when the agent starts, and what it does then: refuses in clear words, or captures into the spool all the same.
//! In: two network namespaces, an S3 that is missing, denies, is silent, slow or talks nonsense. Out: exit codes, words, objects.
//! Needs: root, S3.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use serde_json::Value;
use tapfleet::record::Precision;
use tapfleet::record::facts::{Kind, Stamp};
use tapfleet::spool::journal::{self, Journal, Open};
use tapfleet_tests::agent::{Agent, BUCKET, Settings, program};
use tapfleet_tests::captures::records;
use tapfleet_tests::faulty_s3::script::{Fault, Op};
use tapfleet_tests::faulty_s3::{FaultyS3, SECRET};
use tapfleet_tests::localstack::{LocalStack, make_bucket};
use tapfleet_tests::netns::{Pair, SOURCE_V4, TAP, TAP_V4};
use tapfleet_tests::packet::{Aws, numbered, pcap};

/// One after the other: how soon an agent stops is a matter of a machine that is not busy.
static ALONE: Mutex<()> = Mutex::new(());

/// How soon an agent must be gone after SIGTERM, whatever S3 does, on a machine that has something else to do, too.
const STOP: Duration = Duration::from_secs(3);

/// How soon an agent is gone after SIGTERM.
const PROMPT: Duration = Duration::from_secs(2);

/// Stops of which the quickest counts: a machine has its moods, and what waits for S3 waits each time.
const STOPS: usize = 3;

/// How soon a refusal must have come.
const REFUSE: Duration = Duration::from_secs(5);

/// Frames sent at once.
const FRAMES: u64 = 20;

/// What a server does with a connection.
type Answer = fn(TcpStream);

struct Bench {
    pair: Pair,
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { pair: Pair::new(), folder: tempfile::tempdir().unwrap(), _alone: alone }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn netns(&self) -> &str {
        self.pair.tap.name()
    }

    /// Windows of a second, and an S3 at `endpoint`.
    fn settings(&self, endpoint: &str) -> Settings {
        Settings::new(endpoint, &self.path("spool"))
            .set("capture.interface", TAP)
            .set("capture.ring_bytes", "64MiB")
            .set("record.rotate_seconds", 1)
    }

    /// Settings of an agent that never comes as far as S3.
    fn hopeless(&self) -> Settings {
        self.settings("http://127.0.0.1:9")
    }

    fn start(&self, settings: &Settings) -> Agent {
        Agent::ready(Some(self.netns()), settings, self.folder.path())
    }

    /// Runs one that must refuse: exit code and words, which are one line.
    fn refused(&self, settings: &Settings) -> (i32, String) {
        self.refused_by(Command::new("ip").args(["netns", "exec", self.netns()]).arg(program("tapfleetd")), settings)
    }

    fn refused_by(&self, command: &mut Command, settings: &Settings) -> (i32, String) {
        let config = self.path("refused.toml");
        fs::write(&config, settings.toml()).unwrap();
        fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
        command.args(["run", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|cause| panic!("cannot run {command:?}: {cause}"));
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > REFUSE {
                child.kill().unwrap();
                child.wait().unwrap();
                let mut said = String::new();
                child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("it had not refused after {REFUSE:?}: {said}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let last = said.lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("tapfleetd: "), "the last line is not the refusal: {said}");
        (output.status.code().unwrap_or_else(|| panic!("ended by a signal: {said}")), last)
    }

    /// Sends mirrored frames numbered from `first`, so many bytes each.
    fn send(&self, first: u64, frames: u64, bytes: usize) {
        self.pair.source.run(|| {
            let socket = UdpSocket::bind((std::net::Ipv4Addr::from(SOURCE_V4), 0)).unwrap();
            for number in first..first + frames {
                let datagram = Aws::default().direct_datagram(inner(number, bytes)).build();
                socket.send_to(&datagram, (std::net::Ipv4Addr::from(TAP_V4), 4789)).unwrap();
                if number % 64 == 63 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
    }

    /// Waits until the agent has written so many frames, and all of them lie whole in the spool.
    fn wait_written(&self, agent: &mut Agent, frames: u64) {
        agent.wait_counters("the frames are written", Duration::from_secs(10), |counters| counters.get("frames_written") == frames);
        agent.wait_for("the segments are whole", Duration::from_secs(10), |_| {
            let journals = self.spooled("journal");
            !journals.is_empty() && journals.iter().all(|path| path.with_extension("manifest").exists())
        });
    }

    fn spooled(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("spool")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }

    /// The numbers of the frames that lie in the spool.
    fn frames_in_spool(&self) -> Vec<u64> {
        let mut files = self.spooled("pcap");
        files.sort();
        // A file may be as it was the moment before its header.
        let files = files.iter().map(|path| fs::read(path).unwrap()).filter(|file| !file.is_empty());
        files.flat_map(|file| numbers(&file)).collect()
    }

    /// Asks S3, from inside the namespace.
    fn s3<T: Send>(&self, s3: &LocalStack, work: impl AsyncFnOnce(Client) -> T + Send) -> T {
        self.pair.tap.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(s3.client()).await })
        })
    }

    /// The numbers of the frames that lie in the bucket, and how many captures hold them.
    fn frames_in_bucket(&self, s3: &LocalStack) -> (Vec<u64>, usize) {
        self.s3(s3, async |s3| {
            let (mut found, mut captures) = (Vec::new(), 0);
            let listed = s3.list_objects_v2().bucket(BUCKET).send().await.unwrap();
            for key in listed.contents().iter().map(|object| object.key().unwrap()).filter(|key| key.ends_with(".pcap")) {
                let object = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
                found.extend(numbers(&object.body.collect().await.unwrap().to_vec()));
                captures += 1;
            }
            (found, captures)
        })
    }

    /// A TCP server in the agent's namespace, which ends with the process. Gives its address.
    fn serve(&self, answer: Answer) -> String {
        let listener = self.pair.tap.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || answer(stream));
            }
        });
        address
    }
}

fn inner(number: u64, bytes: usize) -> Vec<u8> {
    numbered::frame(number, &vec![7; bytes.saturating_sub(8)])
}

fn numbers(file: &[u8]) -> Vec<u64> {
    records(file).iter().map(|record| numbered::number(&record.bytes).unwrap()).collect()
}

/// Reads requests with their bodies, and answers each with what `answer` gives.
fn speak(mut stream: TcpStream, answer: &[u8]) {
    let mut all = Vec::new();
    let mut buffer = [0; 64 << 10];
    loop {
        while let Some(head) = all.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&all[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
            if all.len() < head + 4 + length {
                break;
            }
            all.drain(..head + 4 + length);
            if stream.write_all(answer).is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => all.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
}

fn black_hole(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    // The other side has gone; it would have waited for ever.
}

fn reset(stream: TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

/// One byte of an answer's head a second, without end.
fn dribble(mut stream: TcpStream) {
    for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain([b'z'].iter().cycle()) {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn nonsense(stream: TcpStream) {
    speak(stream, b"\x16\x03\x01\xff\xff<?xml version=\"1.0\"?><Initiate\xff\r\n\r\n");
}

/// Yes to everything, with nothing in it.
fn empty(stream: TcpStream) {
    speak(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

/// XML that ends in the middle of a name.
fn truncated(stream: TcpStream) {
    speak(stream, b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 38\r\n\r\n<InitiateMultipartUploadResult><Upload");
}

/// Yes to everything, and then bytes without end.
fn flood(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let read = stream.read(&mut request).unwrap_or(0);
    if request.starts_with(b"HEAD") {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n");
        return;
    }
    let _ = (read, stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"));
    while stream.write_all(&[b'<'; 64 << 10]).is_ok() {}
}

fn denied(stream: TcpStream) {
    const BODY: &str = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    let answer = format!("HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
    // Answers to HEAD have no body.
    let mut first = [0; 4];
    let head = stream.peek(&mut first).is_ok_and(|read| &first[..read] == b"HEAD");
    speak(stream, if head { answer.strip_suffix(BODY).unwrap().as_bytes() } else { answer.as_bytes() });
}

/// A file system of the test's own.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tapfleet-test"]).arg(&path).status().unwrap();
        assert!(status.success(), "cannot mount a tmpfs: this test needs root (CAP_SYS_ADMIN)");
        Self(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The agent's mount namespace has a copy for as long as the agent lives.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn without_permission_to_capture_the_missing_capability_is_named_and_how_to_grant_it() {
    let bench = Bench::new();
    // The user must reach the program and the folder, wherever this was built.
    let daemon = bench.path("tapfleetd");
    fs::copy(program("tapfleetd"), &daemon).unwrap();
    fs::set_permissions(bench.folder.path(), Permissions::from_mode(0o777)).unwrap();
    for engine in ["ring", "libpcap"] {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", bench.netns(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(&daemon);
        let (code, said) = bench.refused_by(&mut command, &bench.hopeless().set("capture.engine", engine));
        assert_eq!(code, 1, "{engine}: {said}");
        for words in ["packet socket", TAP, "CAP_NET_RAW", "setcap cap_net_raw+ep"] {
            assert!(said.contains(words), "{engine}: '{words}' in: {said}");
        }
    }
}

#[test]
fn an_unknown_interface_is_refused_with_those_that_exist() {
    let bench = Bench::new();
    for engine in ["ring", "libpcap"] {
        let (code, said) = bench.refused(&bench.hopeless().set("capture.interface", "eth77").set("capture.engine", engine));
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("'eth77'") && said.contains(TAP) && said.contains("lo"), "{said}");
    }
    // There is no default route in this namespace.
    let (code, said) = bench.refused(&bench.hopeless().set("capture.interface", "auto"));
    assert!(code == 1 && said.contains("default route") && said.contains(TAP), "{code}: {said}");
}

#[test]
fn the_interface_any_is_refused_with_the_reason() {
    let bench = Bench::new();
    let (code, said) = bench.refused(&bench.hopeless().set("capture.interface", "any"));
    assert!([1, 2].contains(&code), "{code}: {said}");
    assert!(said.contains("any") && said.contains("once per interface") && said.contains("auto"), "{said}");
}

#[test]
fn a_spool_on_the_root_device_is_refused_unless_asked_for() {
    let bench = Bench::new();
    let root = tempfile::Builder::new().prefix("tapfleet-test-").tempdir_in("/").unwrap();
    let on_root = bench.hopeless().set("spool.dir", root.path().to_str().unwrap());
    let (code, said) = bench.refused(&on_root.clone().set("spool.allow_root_device", false));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(root.path().to_str().unwrap()) && said.contains("spool.allow_root_device = true"), "{said}");
    let mut asked_for = bench.start(&on_root);
    assert!(asked_for.stop(STOP).success());

    let elsewhere = Mount::tmpfs(bench.path("volume"));
    let settings = bench.hopeless().set("spool.dir", elsewhere.0.join("spool").to_str().unwrap());
    let mut agent = bench.start(&settings.set("spool.allow_root_device", false));
    assert!(agent.stop(STOP).success());
}

#[test]
fn a_second_agent_on_the_same_spool_ends_with_75_and_the_first_goes_on() {
    let bench = Bench::new();
    let mut first = bench.start(&bench.hopeless());
    let (code, said) = bench.refused(&bench.hopeless().set("health.listen", "127.0.0.1:8081"));
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("another agent holds it") && said.contains("spool.dir"), "{said}");
    bench.send(0, FRAMES, 100);
    bench.wait_written(&mut first, FRAMES);
    assert!(first.stop(STOP).success());
}

#[test]
fn a_taken_health_port_is_named_and_nothing_is_begun() {
    let bench = Bench::new();
    let _taken = bench.pair.tap.run(|| TcpListener::bind("127.0.0.1:8080").unwrap());
    let (code, said) = bench.refused(&bench.hopeless());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("127.0.0.1:8080") && said.contains("health.listen"), "{said}");
    assert!(bench.spooled("journal").is_empty());
}

#[test]
fn instance_metadata_that_accepts_and_never_answers_is_not_waited_for() {
    let bench = Bench::new();
    let endpoint = bench.serve(black_hole);
    let text = bench.hopeless().toml();
    let unnamed: String = text.lines().filter(|line| !line.starts_with("id = ")).flat_map(|line| [line, "\n"]).collect();
    let config = bench.path("unnamed.toml");
    fs::write(&config, unnamed).unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", bench.netns()]).arg(program("tapfleetd")).env("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint);
    let begun = Instant::now();
    let output = command.args(["run", "--config"]).arg(&config).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(begun.elapsed() < REFUSE, "{:?}", begun.elapsed());
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("instance metadata") && said.contains("instance.id"), "{said}");
}

#[test]
fn without_its_bucket_the_agent_says_so_at_once_and_captures_and_all_arrives_when_the_bucket_is_made() {
    let bench = Bench::new();
    let s3 = LocalStack::start(Some(bench.netns()));
    let mut agent = bench.start(&bench.settings(&s3.endpoint()));
    agent.wait_for("the error is logged", Duration::from_secs(3), |agent| {
        logged(&agent.log(), "ERROR").iter().any(|line| line.contains(BUCKET) && line.contains("s3.bucket") && line.contains("spool"))
    });
    bench.send(0, FRAMES, 100);
    bench.wait_written(&mut agent, FRAMES);
    assert_eq!(bench.frames_in_spool(), (0..FRAMES).collect::<Vec<_>>());
    let counters = agent.wait_counters("a try has failed", Duration::from_secs(5), |counters| counters.get("upload_failures") > 0);
    assert_eq!(counters.get("segments_verified"), 0);

    bench.s3(&s3, async |s3| make_bucket(&s3, BUCKET).await);
    bench.send(FRAMES, FRAMES, 100);
    // The wait after a failure has grown to some seconds by now, and is a minute at most.
    let counters = agent.wait_counters("all segments are confirmed", Duration::from_secs(70), |counters| {
        counters.get("frames_written") == 2 * FRAMES && counters.get("segments_verified") == counters.get("segments_opened")
    });
    let (mut found, captures) = bench.frames_in_bucket(&s3);
    found.sort_unstable();
    assert_eq!(found, (0..2 * FRAMES).collect::<Vec<_>>(), "each frame once");
    assert_eq!(captures as u64, counters.get("segments_opened"));
    assert!(agent.stop(STOP).success());
}

#[test]
fn a_denied_bucket_is_an_error_at_start_that_names_the_permissions_and_capture_goes_on() {
    let bench = Bench::new();
    let endpoint = bench.serve(denied);
    let mut agent = bench.start(&bench.settings(&endpoint));
    agent.wait_for("the error is logged", Duration::from_secs(3), |agent| {
        logged(&agent.log(), "ERROR").iter().any(|line| line.contains(BUCKET) && line.contains("s3:PutObject") && line.contains("403"))
    });
    keeps_what_it_captures_and_stops_in_time(&bench, &mut agent, "denied");
    // Logs go to a file here.
    for line in agent.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|cause| panic!("'{line}' is not JSON: {cause}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[test]
fn whatever_s3_answers_or_does_not_the_agent_captures_and_stops_in_time() {
    let rows: [(&str, Answer); 6] = [
        ("black hole", black_hole),
        ("reset", reset),
        ("dribble", dribble),
        ("nonsense", nonsense),
        ("empty", empty),
        ("truncated", truncated),
    ];
    let bench = Bench::new();
    for (name, answer) in rows {
        let endpoint = bench.serve(answer);
        let mut stops = (0..STOPS).map(|_| {
            let mut agent = bench.start(&bench.settings(&endpoint));
            let took = keeps_what_it_captures_and_stops_in_time(&bench, &mut agent, name);
            for path in bench.spooled("journal") {
                let journal = fs::read_to_string(path).unwrap();
                assert!(!journal.contains("\"record\":\"key\""), "{name}: an answer without an object took the segment's key: {journal}");
            }
            fs::remove_dir_all(bench.path("spool")).unwrap();
            took
        });
        assert!(stops.any(|took| took < PROMPT), "{name}: each of {STOPS} stops took longer than {PROMPT:?}");
    }
}

/// Gives how long it took to stop.
fn keeps_what_it_captures_and_stops_in_time(bench: &Bench, agent: &mut Agent, name: &str) -> Duration {
    bench.send(0, FRAMES, 100);
    bench.wait_written(agent, FRAMES);
    let begun = Instant::now();
    let status = agent.stop(STOP);
    let took = begun.elapsed();
    assert!(status.success(), "{name}: it ended with {status}");
    println!("{name}: stopped after {took:?}");
    assert_eq!(bench.frames_in_spool(), (0..FRAMES).collect::<Vec<_>>(), "{name}");
    assert!(!agent.log().contains("panicked"), "{name}: {}", agent.log());
    took
}

#[test]
fn a_restart_after_a_clean_stop_resumes_the_same_upload() {
    let bench = Bench::new();
    let s3 = LocalStack::start(Some(bench.netns()));
    bench.s3(&s3, async |s3| make_bucket(&s3, BUCKET).await);
    // A window that does not end meanwhile, unless it is midnight.
    let settings = bench.settings(&s3.endpoint()).set("record.rotate_seconds", 86_400);
    let mut agent = bench.start(&settings);
    // Two parts of 8 MiB, and the beginning of a third.
    let frames = 2200;
    bench.send(0, frames, 8000);
    agent.wait_counters("two parts are sent", Duration::from_secs(40), |counters| counters.get("parts_sent") == 2);
    agent.wait_counters("all frames are written", Duration::from_secs(5), |counters| counters.get("frames_written") == frames);
    assert!(agent.stop(STOP).success());
    let journals = bench.spooled("journal");
    let before = fs::read_to_string(&journals[0]).unwrap();
    assert_eq!((journals.len(), before.matches("\"part\"").count()), (1, 2), "{before}");
    let upload = |journal: &str| -> String { journal.split("\"upload_id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned() };
    let uploads = bench.s3(&s3, async |s3| s3.list_multipart_uploads().bucket(BUCKET).send().await.unwrap());
    let uploads: Vec<_> = uploads.uploads().iter().map(|upload| upload.upload_id().unwrap().to_owned()).collect();
    assert_eq!(uploads, [upload(&before)]);

    let mut agent = bench.start(&settings);
    let counters =
        agent.wait_counters("the segment is confirmed", Duration::from_secs(20), |counters| counters.get("segments_verified") == 1);
    assert_eq!((counters.get("uploads_resumed"), counters.get("parts_sent")), (1, 1), "{counters:?}");
    assert!(agent.stop(STOP).success());
    let (found, captures) = bench.frames_in_bucket(&s3);
    assert_eq!((found.len() as u64, captures), (frames, 1));
    assert!(found.iter().copied().eq(0..frames));
    let left = bench.s3(&s3, async |s3| s3.list_multipart_uploads().bucket(BUCKET).send().await.unwrap());
    assert!(left.uploads().is_empty(), "an upload was left behind");
}

#[test]
fn told_to_stop_under_load_the_agent_is_gone_in_two_seconds_though_s3_hangs_in_mid_part_and_the_same_uploads_go_on() {
    prompt_under_load(Fault::HangBeforeReading);
}

#[test]
fn told_to_stop_under_load_the_agent_is_gone_in_two_seconds_though_s3_answers_slowly_and_the_same_uploads_go_on() {
    // Sooner than the agent would take it for silence.
    prompt_under_load(Fault::AnswerAfter(Duration::from_secs(10)));
}

/// Agents, one after the other, are told to stop while a part of theirs is on its way and `fault` befalls it.
fn prompt_under_load(fault: Fault) {
    let bench = Bench::new();
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let s3 = bench.pair.tap.run(|| threads.block_on(FaultyS3::start(BUCKET)));
    let settings = bench.settings(&s3.endpoint()).set("record.rotate_seconds", 60).variable("AWS_SECRET_ACCESS_KEY", SECRET);
    let over = AtomicBool::new(false);
    let quickest = thread::scope(|scope| {
        scope.spawn(|| {
            let mut first = 0;
            while !over.load(Ordering::Acquire) {
                bench.send(first, 64, 8000);
                first += 64;
                thread::sleep(Duration::from_millis(40));
            }
        });
        let _over = Over(&over);
        let stops = (0..STOPS).map(|nth| {
            let (parts, hit) = (s3.calls(Op::Part), s3.hit());
            // One part arrives, and none after it.
            s3.fail(Op::Part, 2..=u32::MAX, fault);
            let mut agent = bench.start(&settings);
            agent.wait_for("a part is on its way", Duration::from_secs(30), |_| s3.hit() > hit && s3.calls(Op::Part) > parts + 1);
            let begun = Instant::now();
            let status = agent.stop(STOP);
            let took = begun.elapsed();
            assert!(status.success(), "stop {nth}: it ended with {status}");
            println!("{fault:?}: stop {nth} took {took:?}");
            s3.heal();
            took
        });
        stops.min().unwrap()
    });
    assert!(quickest < PROMPT, "the quickest of {STOPS} stops took {quickest:?}");

    let begun: Vec<_> = s3.objects().uploads.values().map(|upload| upload.key.clone()).collect();
    assert!(!begun.is_empty() && s3.calls(Op::Part) > 0, "nothing was under way");
    let waiting = bench.frames_in_spool();
    let mut agent = bench.start(&settings);
    agent.wait_for("everything is confirmed", Duration::from_secs(30), |_| bench.spooled("pcap").is_empty());
    assert!(agent.counters().unwrap().get("uploads_resumed") >= begun.len() as u64, "{:?}", agent.counters());
    assert!(agent.stop(STOP).success());
    let objects = s3.objects();
    assert_eq!((objects.uploads.len(), s3.calls(Op::Abort)), (0, 0), "an upload was left behind or given up");
    let captures: Vec<_> = objects.objects.iter().filter(|(key, _)| key.ends_with(".pcap")).collect();
    assert!(begun.iter().all(|key| captures.iter().any(|(there, _)| *there == key)), "not all of {begun:?} are there");
    assert_eq!(s3.calls(Op::Create) as usize, captures.len(), "an upload was begun anew");
    let mut found: Vec<_> = captures.iter().flat_map(|(_, object)| numbers(&object.content.data)).collect();
    found.sort_unstable();
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "a frame is there twice");
    assert!(waiting.iter().all(|number| found.binary_search(number).is_ok()), "a frame of the spool is not there");
}

/// Says that it is over, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn an_answer_without_end_is_not_taken_into_memory() {
    let bench = Bench::new();
    let endpoint = bench.serve(flood);
    // Idle windows have something to send, too: their manifests.
    let mut agent = bench.start(&bench.settings(&endpoint));
    bench.send(0, FRAMES, 100);
    bench.wait_written(&mut agent, FRAMES);
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        most = most.max(agent.memory());
        assert!(most < 512 << 20, "{} MiB after {:?}", most >> 20, begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    println!("{} MiB at most", most >> 20);
    assert!(agent.stop(STOP).success());
}

#[test]
fn a_stop_does_not_wait_for_the_salvage_of_a_long_segment() {
    let bench = Bench::new();
    fs::create_dir(bench.path("spool")).unwrap();
    let id = "01935000-0000-7000-8000-000000000000";
    let open = Open {
        version: journal::VERSION,
        kind: Kind::Capture,
        capture_id: id.into(),
        bucket: BUCKET.into(),
        key: "i-1/2026-11-22-00-15.pcap".into(),
        instance: "i-1".into(),
        window: Stamp(0),
        extension: "pcap".into(),
        agent_version: "0".into(),
    };
    Journal::create(&bench.path(&format!("spool/{id}.journal")), open).unwrap();
    // Records without a byte, a tebibyte of them, on as good as no disk.
    let long = fs::File::create(bench.path(&format!("spool/{id}.pcap"))).unwrap();
    long.write_all_at(&tapfleet::record::pcap::file_header(Precision::Nano, 262_144), 0).unwrap();
    long.set_len(1 << 40).unwrap();
    // The budget goes by the lengths of files.
    let mut agent = bench.start(&bench.hopeless().set("spool.max_bytes", 1i64 << 41));
    bench.send(0, FRAMES, 100);
    agent.wait_counters("the frames are written", Duration::from_secs(10), |counters| counters.get("frames_written") == FRAMES);
    let status = agent.stop(STOP);
    assert!(status.success(), "{status}");
    assert_eq!(long.metadata().unwrap().len(), 1 << 40, "it was cut");
    assert!(!bench.path(&format!("spool/{id}.manifest")).exists());
}

#[test]
fn a_replay_that_waits_for_its_input_can_be_stopped() {
    let bench = Bench::new();
    let pipe = bench.path("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
    // Both ends, so that neither waits for the other.
    let mut input = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    input.write_all(&pcap::file([(1_790_000_100_000_000_000, &[0; 60][..])])).unwrap();
    let settings = bench.hopeless().set("capture.engine", "file").set("capture.files", vec![pipe.to_str().unwrap()]);
    let mut agent = bench.start(&settings);
    let status = agent.stop(STOP);
    assert!(status.success(), "{status}");
    drop(input);
}

/// The messages of that level in a log of JSON lines.
fn logged(log: &str, level: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["level"] == level).filter_map(|line| Some(line["message"].as_str()?.to_owned())).collect()
}
