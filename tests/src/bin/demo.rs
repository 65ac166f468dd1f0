//! `make demo`: the main job before your eyes, without AWS: mirrored packets in, complete and verified capture objects out.
//! In: nothing. Out: text for a person who sees this for the first time. Never: leaves anything behind, runs over a minute.
//! With root: two network namespaces and real packets. Without: the same from a capture file.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::indexing_slicing)]

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_s3::Client;
use serde_json::Value;
use tapfleet_tests::agent::{Agent, BUCKET, INSTANCE, Settings, in_netns};
use tapfleet_tests::localstack::LocalStack;
use tapfleet_tests::netns::{Namespace, Pair, SOURCE, TAP};
use tapfleet_tests::packet::{Aws, Ethernet, Icmp, Ipv4, Tcp, pcap};

/// Length of a window.
const ROTATE_SECONDS: u64 = 5;

/// How long packets flow: more than three windows.
const TRAFFIC: Duration = Duration::from_secs(18);

/// The VNI of the kernel's vxlan device.
const VNI: u32 = 123;

/// Set by Ctrl-C: every wait ends, and what was made is removed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    println!("tapfleet: mirrored packets in, complete and verified capture objects in S3 out.");
    println!("This shows it without AWS, in less than a minute, and removes everything it made.");
    let shown = if may_make_namespaces() { on_a_wire() } else { from_a_file() };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            println!("\nThe demo failed: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// Real packets between two network namespaces.
fn on_a_wire() -> Outcome {
    step("Two network namespaces, joined by a cable");
    let pair = Pair::new();
    let (sender, receiver) = (pair.source.name(), pair.tap.name());
    println!("  '{SOURCE}' 10.77.0.1 in {sender}: the mirrored machines and the load balancer");
    println!("  '{TAP}' 10.77.0.2 in {receiver}: the instance that records");
    tunnel(&pair);
    println!("  vx0 10.99.0.1 and 10.99.0.2: a VXLAN tunnel through the cable, of kernel devices, VNI {VNI}");
    let s3 = start_s3(Some(&pair.tap));

    step("tapfleetd, with a capture file every five seconds (900 by default)");
    let folder = tempfile::tempdir()?;
    let settings = settings(&s3, folder.path()).set("capture.interface", TAP);
    show_settings(&settings);
    let mut agent = Agent::ready(Some(receiver), &settings, folder.path());

    step("Traffic, for eighteen seconds");
    println!("  plain VXLAN: real pings and HTTP requests through the tunnel, to the instance itself");
    println!("  GENEVE(VXLAN): as a Gateway Load Balancer sends mirrored packets, from the project's own packet builder");
    let traffic = Traffic::start(&pair, folder.path())?;
    watch(&agent)?;
    drop(traffic);

    step("SIGTERM: the agent closes the last window and ends; what S3 has not confirmed waits in the spool for the next start");
    let begun = Instant::now();
    let status = agent.stop(Duration::from_secs(15));
    println!("  ended with {status} after {:.1} s", begun.elapsed().as_secs_f64());
    check(status, &agent)?;
    println!("  `tapfleetd spool upload` sends it now");
    agent.upload_rest();
    show_results(&Bucket { s3: &s3, namespace: Some(&pair.tap) }, folder.path())
}

/// The same packets from a capture file, for those who are not root.
fn from_a_file() -> Outcome {
    println!();
    println!("Network namespaces cannot be made here (that takes root), so there is no wire: the packets come from a capture file that");
    println!("is made now. As root you see real ones.");
    let s3 = start_s3(None);
    step("A capture file, as an interface behind a Gateway Load Balancer would give it");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mirrored.pcap");
    let frames = file_traffic();
    fs::write(&file, pcap::file(frames.iter().map(|(time_ns, frame)| (*time_ns, frame.as_slice()))))?;
    println!("  {} frames over {} s, GENEVE(VXLAN) and plain VXLAN in turn", frames.len(), TRAFFIC.as_secs());

    step("tapfleetd reads it, with a capture object every five seconds (900 by default)");
    let health = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let settings = settings(&s3, folder.path()).set("health.listen", health.to_string());
    let settings = settings.set("capture.engine", "file").set("capture.files", vec![file.to_str().unwrap()]);
    show_settings(&settings);
    let mut agent = Agent::start(None, &settings, folder.path());
    let status = agent.ended(Duration::from_secs(30));
    check(status, &agent)?;
    println!("  the file is read, everything is in S3; ended with {status}");
    show_results(&Bucket { s3: &s3, namespace: None }, folder.path())
}

fn check(status: ExitStatus, agent: &Agent) -> Outcome {
    if status.success() { Ok(()) } else { Err(format!("the agent ended with {status}; its log:\n{}", agent.log()).into()) }
}

fn start_s3(namespace: Option<&Namespace>) -> LocalStack {
    step("An S3 endpoint on loopback");
    let s3 = LocalStack::start(namespace.map(Namespace::name));
    Bucket { s3: &s3, namespace }.ask(async |_| drop(s3.bucket(BUCKET).await));
    println!("  {}, bucket '{BUCKET}'", s3.endpoint());
    s3
}

fn settings(s3: &LocalStack, folder: &Path) -> Settings {
    Settings::new(&s3.endpoint(), &folder.join("spool")).set("record.rotate_seconds", ROTATE_SECONDS)
}

fn show_settings(settings: &Settings) {
    for line in settings.toml().lines() {
        println!("  | {line}");
    }
}

/// Says once a second what the agent counts, while packets flow.
fn watch(agent: &Agent) -> Outcome {
    let begun = Instant::now();
    println!("  {:>8} {:>16} {:>16} {:>18}", "second", "frames written", "segments closed", "confirmed by S3");
    for second in 1..=TRAFFIC.as_secs() {
        pause(Duration::from_secs(second).saturating_sub(begun.elapsed()))?;
        let counters = agent.counters().ok_or_else(|| format!("the agent does not answer; its log:\n{}", agent.log()))?;
        if second % 3 == 0 {
            let [written, closed, verified] = ["frames_written", "segments_closed", "segments_verified"].map(|name| counters.get(name));
            println!("  {second:>8} {written:>16} {closed:>16} {verified:>18}");
        }
    }
    Ok(())
}

/// What is in the bucket: the list, a manifest, packets.
fn show_results(bucket: &Bucket<'_>, folder: &Path) -> Outcome {
    step("What is in the bucket");
    let objects = bucket.list();
    for (key, size) in &objects {
        println!("  {size:>9}  {key}");
    }
    let captures: Vec<_> = objects.iter().filter(|(key, _)| key.starts_with(INSTANCE) && !key.contains("quarantine")).collect();
    let (key, _) = captures.get(1).or(captures.first()).ok_or("there is no capture in the bucket")?;

    step("The manifest of one of them: what it holds, what was lost, what S3 confirmed");
    let manifests = objects.iter().filter(|(key, _)| key.starts_with("manifest/"));
    let manifests = manifests.map(|(key, _)| serde_json::from_slice::<Value>(&bucket.get(key)));
    let manifest = manifests.filter_map(Result::ok).find(|manifest| manifest["key"] == key.as_str());
    let manifest = manifest.ok_or_else(|| format!("no manifest names {key}"))?;
    for line in serde_json::to_string_pretty(&manifest)?.lines() {
        println!("  {line}");
    }

    step("The first packets of it, as tcpdump reads them: both tunnels are gone");
    let file = folder.join("capture.pcap");
    fs::write(&file, bucket.get(key))?;
    println!("  aws s3 cp s3://{BUCKET}/{key} - | tcpdump -n -c 16 -r -");
    let output = Command::new("tcpdump").args(["-n", "-c", "16", "-r"]).arg(&file).stderr(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        println!("  {}", line.chars().take(150).collect::<String>());
    }
    if !output.status.success() || text.is_empty() {
        return Err(format!("tcpdump could not read {key}").into());
    }
    println!();
    println!("{} capture objects. Done; namespaces, processes and files of the demo are removed.", captures.len());
    Ok(())
}

/// The bucket, asked from where its endpoint is reached.
struct Bucket<'a> {
    s3: &'a LocalStack,
    namespace: Option<&'a Namespace>,
}

impl Bucket<'_> {
    fn list(&self) -> Vec<(String, i64)> {
        let answer = self.ask(async |s3| s3.list_objects_v2().bucket(BUCKET).send().await.unwrap());
        answer.contents().iter().map(|object| (object.key().unwrap().to_owned(), object.size().unwrap())).collect()
    }

    fn get(&self, key: &str) -> Vec<u8> {
        self.ask(async |s3| {
            let object = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
            object.body.collect().await.unwrap().to_vec()
        })
    }

    fn ask<T: Send>(&self, work: impl AsyncFnOnce(Client) -> T + Send) -> T {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(self.s3.client()).await })
        };
        match self.namespace {
            Some(namespace) => namespace.run(ask),
            None => ask(),
        }
    }
}

/// A tunnel between the namespaces: kernel devices, whose packets the agent sees as those of a mirror session. Made before the
/// agent comes, which else holds the port.
fn tunnel(pair: &Pair) {
    let vni = VNI.to_string();
    for (namespace, remote, device, address) in
        [(&pair.source, "10.77.0.2", SOURCE, "10.99.0.1/24"), (&pair.tap, "10.77.0.1", TAP, "10.99.0.2/24")]
    {
        namespace.ip(&["link", "add", "vx0", "type", "vxlan", "id", &vni, "remote", remote, "dstport", "4789", "dev", device]);
        namespace.ip(&["address", "add", address, "dev", "vx0"]);
        namespace.ip(&["link", "set", "vx0", "up"]);
    }
}

/// Everything that sends; ends with the value.
struct Traffic {
    children: Vec<Child>,
    threads: Vec<JoinHandle<()>>,
    enough: Arc<AtomicBool>,
}

impl Traffic {
    fn start(pair: &Pair, folder: &Path) -> Outcome<Self> {
        let site = folder.join("site");
        fs::create_dir(&site)?;
        fs::write(site.join("index.html"), "a page behind a tunnel\n")?;
        let mut traffic = Self { children: Vec::new(), threads: Vec::new(), enough: Arc::default() };
        let site = site.to_str().unwrap();
        traffic.child(in_netns(Some(pair.tap.name()), "python3").args([
            "-m",
            "http.server",
            "80",
            "--bind",
            "10.99.0.2",
            "--directory",
            site,
        ]))?;
        traffic.child(in_netns(Some(pair.source.name()), "ping").args(["-n", "-i", "0.5", "10.99.0.2"]))?;
        let mut request = in_netns(Some(pair.source.name()), "curl");
        request.args(["--silent", "--noproxy", "*", "--max-time", "1", "http://10.99.0.2/"]).stdout(Stdio::null());
        traffic.thread(Duration::from_secs(1), move |_| drop(request.status()));
        // Twenty mirrored packets a second, as a Gateway Load Balancer sends them. The socket stays where it was made.
        let socket = pair.source.run(|| UdpSocket::bind("10.77.0.1:0"))?;
        let aws = Aws::default();
        traffic.thread(Duration::from_millis(50), move |number| {
            let _ = socket.send_to(&aws.gwlb_datagram(mirrored(number)).build(), "10.77.0.2:6081");
        });
        Ok(traffic)
    }

    fn child(&mut self, command: &mut Command) -> Outcome {
        self.children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        Ok(())
    }

    fn thread(&mut self, pause: Duration, mut send: impl FnMut(u64) + Send + 'static) {
        let enough = Arc::clone(&self.enough);
        self.threads.push(std::thread::spawn(move || {
            for number in 0.. {
                if enough.load(Ordering::Relaxed) {
                    return;
                }
                send(number);
                std::thread::sleep(pause);
            }
        }));
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A packet as a mirrored machine might send it: now a ping, now a request.
fn mirrored(number: u64) -> Vec<u8> {
    let ip = Ipv4::new([192, 0, 2, 10], [198, 51, 100, 20]);
    if number.is_multiple_of(2) {
        (Ethernet::default() / ip / Icmp::echo(7, number as u16) / number.to_be_bytes()).build()
    } else {
        (Ethernet::default() / ip / Tcp::new(40_000, 80) / b"GET / HTTP/1.1\r\n\r\n").build()
    }
}

/// Frames of both tunnels, fifty a second, the last one now.
fn file_traffic() -> Vec<(u64, Vec<u8>)> {
    let aws = Aws::default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let first_ns = (now - TRAFFIC).as_nanos() as u64;
    let frame = |number| if number % 2 == 0 { aws.gwlb(mirrored(number / 2)) } else { aws.direct(mirrored(number / 2)) };
    (0..TRAFFIC.as_secs() * 50).map(|number| (first_ns + number * 20_000_000, frame(number).build())).collect()
}

/// Whether namespaces can be made here: root alone does not say, a container may forbid it.
fn may_make_namespaces() -> bool {
    let tried = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    rustix::process::geteuid().is_root() && tried.is_ok_and(|status| status.success())
}

fn step(what: &str) {
    println!("\n== {what}");
}

/// Waits, unless Ctrl-C was pressed.
fn pause(time: Duration) -> Outcome {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err("interrupted; everything is removed".into());
        }
        std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
