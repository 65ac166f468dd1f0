//! The agent under a real systemd, as its units have it: starts, dies, hangs, is restarted under load, is mailed about.
//! In: a small Debian booted in a container, packets over a veth pair, a topic. Out: promises 5 and 7, and what the units claim.
//! The captures' S3 cannot be reached; the topic is LocalStack's. Out of memory is made by a control group of this host.
//! Needs: root, systemd-nspawn, mmdebstrap, strace, S3.
//! Threads: 4, as most tests wait.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tapfleet_tests::agent::{INSTANCE, Settings};
use tapfleet_tests::localstack::{CREDENTIALS, REGION};
use tapfleet_tests::machine::{Machine, PROGRAMS, StandStill, UNIT, UNITS};
use tapfleet_tests::mailbox::{Mail, Mailbox, Passage};
use tapfleet_tests::netns::TAP;
use tapfleet_tests::traffic::{RATE, SPOOL, Spooled, Traffic};

/// One after the other: what is under load. What mostly waits runs beside.
static LOAD: Mutex<()> = Mutex::new(());

/// The most that `systemd-analyze security` may say of a service, from 0 to 10.
const EXPOSURE: f64 = 2.0;

/// What a restart may take until frames are taken again.
const BACK: Duration = Duration::from_secs(2);

fn alone() -> MutexGuard<'static, ()> {
    LOAD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn settings() -> Settings {
    // Nobody listens on the discard port.
    Settings::new("http://127.0.0.1:9", SPOOL.as_ref()).set("capture.interface", TAP).set("capture.ring_bytes", "64MiB")
}

#[test]
fn the_units_are_verified_without_a_word_and_their_sandboxes_are_tight() {
    let _alone = alone();
    let machine = Machine::boot(&settings(), "");
    for unit in UNITS {
        assert_eq!(machine.run("systemd-analyze", &["verify", "--man=no", unit]), "", "{unit}");
    }
    let services: Vec<&str> = UNITS.into_iter().filter(|unit| unit.ends_with(".service")).collect();
    assert_eq!(services.len(), 4);
    for unit in services {
        let file = format!("/usr/lib/systemd/system/{unit}");
        let report = machine.run("systemd-analyze", &["security", "--no-pager", "--offline=yes", &file]);
        let overall = report.lines().find(|line| line.contains("Overall exposure level"));
        let overall = overall.unwrap_or_else(|| panic!("no score in:\n{report}"));
        let score: f64 = overall.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        println!("{}", overall.trim());
        assert!(score <= EXPOSURE, "{report}");
    }
}

#[test]
fn the_agent_is_ready_when_it_captures_says_how_it_goes_and_may_do_nothing_but_that() {
    let _alone = alone();
    let machine = Machine::boot(&settings(), "");
    machine.systemctl("start");
    // Ready means capturing: the first packet after that is taken.
    let traffic = Traffic::start(&machine);
    std::thread::sleep(Duration::from_millis(1500));
    machine.wait_for("the status line tells the rate and the spool", Duration::from_secs(5), |machine| {
        let line = machine.property("StatusText");
        let flows = rate_in(&line).is_some_and(|rate| rate > RATE / 2);
        line.starts_with("capturing on tap; ") && flows && line.contains("; spool 1 segments, ")
    });
    let sent = traffic.stop();
    let status = fs::read_to_string(machine.path(&format!("proc/{}/status", machine.property("MainPID")))).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    const CAP_NET_RAW: &str = "0000000000002000";
    assert_eq!([field("CapEff:"), field("CapBnd:"), field("CapPrm:")], [CAP_NET_RAW; 3]);
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    assert_eq!(machine.run("id", &["--user", "tapfleet"]).trim(), field("Uid:").split('\t').next().unwrap());
    // The names that people know.
    assert!(machine.run("systemctl", &["status", "--no-pager", "trafficmirror-tcpdump"]).contains("capturing on tap"));
    // It waits for a mail, and systemctl calls that inactive.
    let alerts = machine.output("systemctl", &["status", "--no-pager", "trafficmirror-svc-alerts"]);
    let alerts = String::from_utf8_lossy(&alerts.stdout).into_owned();
    assert!(alerts.contains("tapfleet-alert.service - tapfleet: mails about an agent that is down"), "{alerts}");
    assert!(alerts.contains("tapfleet-alert.path") && alerts.contains("tapfleet-alert.timer"), "{alerts}");

    assert!(machine.systemctl("stop") < BACK);
    assert_eq!((machine.property("Result").as_str(), machine.property("NFileDescriptorStore").as_str()), ("success", "0"));
    // Whoever is not to come back holds no ring.
    let sockets = machine.pair.tap.run(|| fs::read_to_string("/proc/thread-self/net/packet")).unwrap();
    assert_eq!(sockets.lines().count(), 1, "{sockets}");
    let taken = Spooled::read(&machine);
    assert_eq!((taken.missing(sent), taken.doubled()), (0, 0));
    assert_eq!(taken.kernel_gave, taken.accounted);
}

/// The frames per second that a status line tells.
fn rate_in(line: &str) -> Option<u64> {
    line.split_once("; ")?.1.split_once(" frames/s")?.0.parse().ok()
}

#[test]
fn an_agent_that_stands_still_is_killed_by_the_watchdog_and_comes_back() {
    let _alone = alone();
    let machine = Machine::boot(&settings(), "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n");
    machine.systemctl("start");
    // Fed, it lives for longer than the watchdog's time.
    let first = machine.property("MainPID");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((machine.property("MainPID"), machine.property("NRestarts")), (first.clone(), "0".into()));
    machine.signal("STOP");
    machine.wait_for("another agent captures", Duration::from_secs(10), |machine| {
        machine.property("NRestarts") == "1" && machine.property("ActiveState") == "active"
    });
    assert_ne!(machine.property("MainPID"), first);
    assert!(machine.journal().contains("Watchdog timeout"), "{}", machine.journal());
}

#[test]
fn an_agent_of_which_one_loop_alone_stands_still_is_killed_by_the_watchdog_mailed_about_and_packets_go_on() {
    let _alone = alone();
    // By their threads' names and the agent's own: one of two capture threads, and all threads of the uploading half.
    const LOOPS: [(&str, usize, &str); 3] =
        [("capture", 1, "capture thread "), ("record", 1, "the recorder "), ("tokio-", usize::MAX, "the uploader ")];
    let drop_in = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n";
    let flush = Duration::from_millis(500);
    // The kernel closes a block of 1 MiB each 20 ms: room for more than seven seconds in which nobody takes one.
    let settings = settings().set("spool.flush_ms", flush.as_millis() as u64).set("capture.threads", 2).set("capture.ring_bytes", "384MiB");
    // Nobody takes the mails: what is filed stays.
    let machine = Machine::boot(&settings.set("alert.topic_arn", format!("arn:aws:sns:{REGION}:000000000000:nobody")), drop_in);
    machine.systemctl("start");
    let traffic = Traffic::start(&machine);
    for (restarts, (threads, at_most, name)) in (1..).zip(LOOPS) {
        // What waited while the last one stood still it takes at once: that is in its file before the next one does.
        machine.wait_for("the agent has caught up", Duration::from_secs(10), |machine| {
            rate_in(&machine.property("StatusText")).is_some_and(|rate| (RATE / 2..RATE * 3 / 2).contains(&rate))
        });
        let threads = machine.threads(threads);
        let still = StandStill::of(&threads[..threads.len().min(at_most)]);
        let struck = machine.wait_for("the watchdog strikes", Duration::from_secs(10), |machine| {
            machine.journal().matches("with signal SIGABRT").count() == restarts
        });
        // Who traces a thread holds its end up, too.
        drop(still);
        let back = machine.wait_for("another agent captures", Duration::from_secs(30), |machine| {
            machine.property("NRestarts") == restarts.to_string() && machine.property("ActiveState") == "active"
        });
        println!("{name}stood still: killed after {struck:?}, another agent captures {back:?} later");
        let journal = machine.journal();
        let named = journal.lines().filter(|line| line.contains("the watchdog is not fed any more") && line.contains(name)).count();
        assert_eq!((named, journal.matches("Watchdog timeout").count()), (1, restarts), "{name}");
    }
    let sent = traffic.stop();
    machine.systemctl("stop");
    let mails = mails_of(&machine).into_iter().map(|mail| fs::read_to_string(mail).unwrap());
    let mails: Vec<String> = mails.filter(|mail| mail.contains(DIED)).collect();
    assert!(mails.len() == 1 && mails[0].contains("it hung"), "{mails:#?}");
    let taken = Spooled::read(&machine);
    let lost = taken.missing(sent);
    println!("{sent} frames sent, {lost} lost");
    assert_eq!(taken.doubled(), 0);
    let bound = most_lost(LOOPS.len() as u64, flush);
    assert!(lost <= bound, "{lost} frames of {sent} are lost; {} kills may cost {bound}", LOOPS.len());
}

/// The frames that so many kills may cost.
fn most_lost(kills: u64, flush: Duration) -> u64 {
    // A block may be 40 ms old when it comes to the recorder, which looks each 20 ms at what is due.
    kills * RATE * (flush.as_millis() as u64 + 100) / 1000
}

/// The processors that each of the capture threads may run on, as proc(5) lists them, in order.
fn capture_processors(machine: &Machine) -> Vec<String> {
    let tasks = fs::read_dir(machine.path(&format!("proc/{}/task", machine.property("MainPID")))).unwrap();
    let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let places = statuses.filter(|status| status.starts_with("Name:\tcapture\n")).map(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    });
    let mut places: Vec<_> = places.collect();
    places.sort();
    places
}

#[test]
fn no_frame_is_lost_and_none_comes_twice_over_restarts_under_load() {
    let _alone = alone();
    const RESTARTS: u32 = 20;
    for threads in [1, 2] {
        // Windows of two seconds: some end while no agent is there.
        let machine = Machine::boot(&settings().set("capture.threads", threads).set("record.rotate_seconds", 2), "");
        machine.systemctl("start");
        // Also in the sandbox: two threads stay on a processor each, one goes where it likes.
        let mut places = capture_processors(&machine);
        places.dedup();
        let stays = |place: &String| place.parse::<u32>().is_ok();
        assert!(places.len() == threads && places.iter().all(|place| stays(place) == (threads > 1)), "{places:?}");
        let traffic = Traffic::start(&machine);
        let mut slowest = Duration::ZERO;
        for restart in 0..RESTARTS {
            std::thread::sleep(Duration::from_millis(100 + 37 * u64::from(restart % 7)));
            let took = machine.systemctl("restart");
            assert!(took < BACK, "restart {restart} took {took:?}");
            assert_eq!(machine.property("NFileDescriptorStore"), threads.to_string());
            slowest = slowest.max(took);
        }
        std::thread::sleep(Duration::from_millis(300));
        let sent = traffic.stop();
        machine.systemctl("stop");
        let taken = Spooled::read(&machine);
        println!(
            "{threads} threads: {RESTARTS} restarts, the slowest took {slowest:?}; {sent} frames sent, {} lost, {} doubled",
            taken.missing(sent),
            taken.doubled()
        );
        assert_eq!((taken.missing(sent), taken.doubled()), (0, 0), "lost and doubled of {sent}");
        assert_eq!(taken.kernel_gave, taken.accounted, "what the kernel gave all agents, and what their manifests say became of it");
        let journal = machine.journal();
        assert_eq!(journal.matches("going on with the rings of the agent before").count(), RESTARTS as usize);
    }
}

#[test]
fn a_killed_agent_is_back_in_two_seconds_nothing_comes_twice_and_at_most_the_flush_time_is_lost() {
    let _alone = alone();
    const KILLS: u64 = 5;
    const FLUSH: Duration = Duration::from_millis(500);
    let machine = Machine::boot(
        &settings().set("spool.flush_ms", FLUSH.as_millis() as u64).set("capture.threads", 2),
        "[Unit]\nStartLimitIntervalSec=0\n",
    );
    machine.systemctl("start");
    let traffic = Traffic::start(&machine);
    let mut slowest = Duration::ZERO;
    for kill in 1..=KILLS {
        std::thread::sleep(Duration::from_millis(700 + 130 * kill));
        machine.signal("KILL");
        let back = machine.wait_for("another agent captures", Duration::from_secs(10), |machine| {
            machine.property("NRestarts") == kill.to_string() && machine.property("ActiveState") == "active"
        });
        assert!(back < BACK, "after kill {kill} it took {back:?}");
        slowest = slowest.max(back);
    }
    std::thread::sleep(Duration::from_millis(300));
    let sent = traffic.stop();
    machine.systemctl("stop");
    let taken = Spooled::read(&machine);
    let (lost, doubled) = (taken.missing(sent), taken.doubled());
    println!("{KILLS} kills, back after {slowest:?} at most; {sent} frames sent, {lost} lost, {doubled} doubled");
    assert_eq!(doubled, 0);
    let bound = most_lost(KILLS, FLUSH);
    assert!(lost <= bound, "{lost} frames of {sent} are lost; {KILLS} kills may cost {bound}");
}

#[test]
fn a_ring_that_waits_for_the_next_agent_is_kept_while_its_interface_goes_down_and_loses_no_frame_that_it_had() {
    let _alone = alone();
    const HOLD: &str = "run/hold";
    let hold = format!("[Service]\nExecStartPre=/bin/sh -c 'while [ -e /{HOLD} ]; do sleep 0.02; done'\n");
    let machine = Machine::boot(&settings(), &hold);
    machine.systemctl("start");
    let traffic = Traffic::start(&machine);
    machine.wait_for("frames come", Duration::from_secs(5), |_| traffic.sent() > RATE / 2);
    machine.write(HOLD, "");
    machine.run("systemctl", &["restart", "--no-block", UNIT]);
    machine.wait_for("the next agent is held up", Duration::from_secs(5), |machine| machine.property("SubState") == "start-pre");
    let alone_from = traffic.sent();
    machine.wait_for("frames come into the ring alone", Duration::from_secs(5), |_| traffic.sent() > alone_from + RATE / 2);
    let sent = traffic.stop();
    machine.pair.set_tap_up(false);
    machine.pair.set_tap_up(true);
    // By the second answer the manager has looked at what it keeps.
    let kept = [(); 2].map(|()| machine.property("NFileDescriptorStore"));
    assert_eq!(kept, ["1", "1"], "the manager let go of the ring");
    fs::remove_file(machine.path(HOLD)).unwrap();
    machine.wait_for("another agent captures", Duration::from_secs(10), |machine| machine.property("ActiveState") == "active");
    // The agent learns that its interface was gone, and captures anew.
    machine.wait_for("capture goes on", Duration::from_secs(10), |machine| machine.journal().contains("capturing again"));
    let traffic = Traffic::start(&machine);
    machine.wait_for("frames come again", Duration::from_secs(5), |_| traffic.sent() > RATE / 10);
    let again = traffic.stop();
    machine.systemctl("stop");
    let journal = machine.journal();
    assert_eq!(journal.matches("going on with the rings of the agent before").count(), 1, "{journal}");
    let taken = Spooled::read(&machine);
    println!("{sent} frames sent, {} of them without an agent; {again} more after the interface was down", sent - alone_from);
    // The second numbers are the first ones of the first.
    assert_eq!((taken.missing(sent), taken.doubled() as u64), (0, again), "lost, and what came twice");
}

/// A machine with a topic in its network.
struct Watched {
    machine: Machine,
    mailbox: Mailbox,
}

const OUTBOX: &str = "var/lib/tapfleet/outbox";

/// The mails that wait in a machine.
fn mails_of(machine: &Machine) -> Vec<PathBuf> {
    let entries = fs::read_dir(machine.path(OUTBOX)).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|found| found == "mail")).collect()
}

/// What the hook may take.
const HOOK: Duration = Duration::from_millis(100);

impl Watched {
    /// Boots one; `drop_in` is added to the agent's unit, and the alert unit sends what has waited for `grace` seconds.
    fn boot(settings: &Settings, drop_in: &str, grace: u32) -> Self {
        let machine = Machine::boot(settings, drop_in);
        let mailbox = Mailbox::new(machine.pair.tap.name());
        mailbox.subscribe();
        let watched = Self { machine, mailbox };
        watched.set(settings);
        let mut environment = String::from("[Service]\n");
        for (name, value) in [
            ("AWS_ENDPOINT_URL_SNS", watched.mailbox.endpoint().as_str()),
            ("AWS_ACCESS_KEY_ID", CREDENTIALS),
            ("AWS_SECRET_ACCESS_KEY", CREDENTIALS),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ] {
            environment.push_str(&format!("Environment={name}={value}\n"));
        }
        watched.machine.drop_in(UNIT, "aws", &environment);
        let send = format!("{environment}ExecStart=\nExecStart=/usr/lib/tapfleet/tapfleetd alert --send-after {grace}\n");
        watched.machine.drop_in("tapfleet-alert.service", "aws", &send);
        watched.machine.run("systemctl", &["daemon-reload"]);
        watched.machine.run("systemctl", &["start", "tapfleet-alert.path", "tapfleet-alert.timer"]);
        watched
    }

    /// Writes settings, with the topic.
    fn set(&self, settings: &Settings) {
        self.machine.write("etc/tapfleet/tapfleet.toml", &settings.clone().set("alert.topic_arn", self.mailbox.topic.as_str()).toml());
    }

    /// Ends what goes on and forgets it: the next trouble is a new one.
    fn clear(&self) {
        self.machine.run("systemctl", &["stop", UNIT, "tapfleetd-revive.service"]);
        // An agent that was just dying when it was told to stop has failed for good, and its hook files that.
        self.machine.wait_for("nobody files any more", Duration::from_secs(10), |machine| {
            let state = ["Job", "ActiveState"].map(|name| machine.property_of("tapfleetd-failed.service", name));
            state[0].parse().unwrap_or(0) == 0 && ["inactive", "failed"].contains(&state[1].as_str())
        });
        let _ = self.machine.output("systemctl", &["stop", "tapfleet-alert.service"]);
        let _ = self.machine.output("systemctl", &["reset-failed"]);
        let _ = fs::remove_file(self.machine.path(&format!("{OUTBOX}/troubles.json")));
        assert_eq!(self.waiting(), 0, "mails wait that nobody has looked at");
    }

    fn start(&self) {
        let _ = self.machine.output("systemctl", &["start", "--no-block", UNIT]);
    }

    fn waiting(&self) -> usize {
        mails_of(&self.machine).len()
    }

    fn wait_active(&self, restarts: &str) -> Duration {
        self.machine.wait_for("another agent captures", Duration::from_secs(30), |machine| {
            machine.property("NRestarts") == restarts && machine.property("ActiveState") == "active"
        })
    }

    /// The one mail that comes about a trouble that begins; it says where, and `words`.
    fn one_mail(&self, what: &str, title: &str, words: &str) -> Mail {
        let mails = self.mailbox.mails(1, Duration::from_secs(30));
        let [mail] = <[Mail; 1]>::try_from(mails).unwrap_or_else(|mails| panic!("{what}: not one mail: {mails:#?}"));
        assert_eq!(mail.subject, format!("tapfleet FAILURE {INSTANCE}: {title}"), "{what}");
        for words in [words, INSTANCE, REGION, "000000000000", "At stake:", "To do:"] {
            assert!(mail.body.contains(words), "{what}: no '{words}' in {}", mail.body);
        }
        println!("{what}: {}", mail.body.lines().next().unwrap());
        mail
    }
}

const DIED: &str = "the capture agent died";

#[test]
fn each_way_to_die_is_mailed_once_in_words_that_fit_and_a_clean_stop_is_not() {
    let hold = "[Service]\nWatchdogSec=4\nTimeoutAbortSec=1\n";
    let watched = Watched::boot(&settings(), hold, 2);
    let machine = &watched.machine;
    machine.systemctl("start");

    machine.signal("KILL");
    watched.wait_active("1");
    let mail = watched.one_mail("killed", DIED, "killed by SIGKILL");
    assert!(mail.trouble().starts_with("agent_died-"), "{}", mail.trouble());
    watched.clear();

    machine.systemctl("start");
    machine.signal("STOP");
    watched.one_mail("hung", DIED, "it hung");
    watched.clear();

    machine.systemctl("start");
    let starved = Starved::new(machine.agent_pid());
    watched.one_mail("out of memory", DIED, "by the kernel for want of memory");
    assert!(starved.killed() > 0, "the kernel killed nothing");
    watched.clear();

    watched.set(&settings().set("capture.interface", "nowhere0"));
    watched.start();
    watched.one_mail("exit 1", "no packets can be captured", "nowhere0");
    watched.clear();

    watched.set(&settings().set("capture.threads", 0));
    watched.start();
    watched.one_mail("settings wrong", DIED, "its settings are wrong");
    watched.clear();

    // Neither place nor topic can be read then: the last agent has left them.
    machine.write("etc/tapfleet/tapfleet.toml", "[alert\n");
    watched.start();
    watched.one_mail("settings unreadable", DIED, "its settings are wrong");
    watched.clear();
    watched.set(&settings());

    let with_drop_in = |name: &str, text: &str, words: &str| {
        machine.drop_in(UNIT, "unfit", text);
        machine.run("systemctl", &["daemon-reload"]);
        watched.start();
        watched.one_mail(name, DIED, words);
        fs::remove_file(machine.path("etc/systemd/system/tapfleetd.service.d/unfit.conf")).unwrap();
        machine.run("systemctl", &["daemon-reload"]);
        watched.clear();
    };
    with_drop_in("sandbox refused", "[Service]\nBindPaths=/nowhere\n", "cannot build its sandbox (226/NAMESPACE)");
    // Something that never says that it is ready.
    let never = "[Service]\nTimeoutStartSec=2\nExecStart=\nExecStart=/usr/bin/sleep 60\n";
    with_drop_in("never ready", never, "not ready within");

    for verb in ["start", "restart", "stop"] {
        machine.systemctl(verb);
    }
    assert_eq!(watched.mailbox.mails(1, Duration::from_secs(4)).len(), 0, "a mail about a clean stop");
    hook_is_quick(&watched);
}

/// The hook by itself: a first death, which it files, and more of them, which it folds.
fn hook_is_quick(watched: &Watched) {
    let _alone = alone();
    watched.mailbox.door.set(Passage::Hole);
    let death = ["-u", "tapfleet", "--", "env", "SERVICE_RESULT=signal", "EXIT_CODE=killed", "EXIT_STATUS=KILL"];
    // What else runs on this host hardly takes a processor from it: the time is the hook's own, and what it waits for.
    let way = [&["-n", "-20", "runuser"], &death[..]].concat();
    let hook = [&way[..], &["/usr/lib/tapfleet/tapfleetd", "alert", "--service-result"]].concat();
    let way = [&way[..], &["true"]].concat();
    let timed = |command: &[&str]| {
        let begun = Instant::now();
        watched.machine.run("nice", command);
        begun.elapsed()
    };
    let [mut files, mut folds, mut ways] = [const { Vec::new() }; 3];
    for _ in 0..9 {
        let _ = fs::remove_file(watched.machine.path(&format!("{OUTBOX}/troubles.json")));
        for (times, mails) in [(&mut files, 1), (&mut folds, 0)] {
            let before = watched.waiting();
            times.push(timed(&hook));
            assert_eq!(watched.waiting() - before, mails);
            ways.push(timed(&way));
        }
    }
    let way = median(&mut ways);
    let took = [&mut files, &mut folds].map(|times| median(times).saturating_sub(way));
    println!("the hook files in {:?} and folds in {:?}; the way into the machine takes {way:?}", took[0], took[1]);
    assert!(took.iter().all(|took| *took < HOOK), "files in {files:?}, folds in {folds:?}, ways of {ways:?}");
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_crash_loop_with_sns_black_holed_is_back_in_two_seconds_each_time_and_mailed_once_with_its_end() {
    const KILLS: u32 = 5;
    let watched = Watched::boot(&settings(), "", 60);
    watched.mailbox.door.set(Passage::Hole);
    watched.machine.systemctl("start");
    let mut slowest = Duration::ZERO;
    for kill in 1..=KILLS {
        std::thread::sleep(Duration::from_millis(2500));
        watched.machine.signal("KILL");
        let back = watched.wait_active(&kill.to_string());
        assert!(back < BACK, "after kill {kill} it took {back:?}");
        slowest = slowest.max(back);
    }
    let looped = Instant::now();
    assert_eq!(watched.waiting(), 1, "one mail waits");
    watched.mailbox.door.set(Passage::Open);
    let begin = watched.one_mail("crash loop", DIED, "killed by SIGKILL");
    let mails = watched.mailbox.mails(1, Duration::from_secs(100));
    let [over] = <[Mail; 1]>::try_from(mails).unwrap_or_else(|mails| panic!("not one mail: {mails:#?}"));
    println!("{KILLS} kills, back after {slowest:?} at most; over said after {:?}:\n{}\n{}", looped.elapsed(), over.subject, over.body);
    assert_eq!(over.subject, format!("tapfleet OVER {INSTANCE}: {DIED}"));
    assert_eq!(over.trouble(), begin.trouble(), "both bear one id");
    assert!(looped.elapsed() > Duration::from_secs(55), "it was said to be over before it had lasted");
    for words in ["Lasted:", "Lost:", "not counted: what the dead agent held in memory"] {
        assert!(over.body.contains(words), "no '{words}' in {}", over.body);
    }
    // The minute in which it was watched does not belong to it: five kills, each after 2.5 s and what a restart takes.
    let lasted = over.body.lines().find_map(|line| line.strip_prefix("Lasted:")).unwrap().trim();
    let seconds: u32 = lasted.split_once(" s,").unwrap_or_else(|| panic!("lasted {lasted}")).0.parse().unwrap();
    assert!(seconds < 40, "lasted {lasted}");
}

#[test]
fn an_agent_whose_program_is_missing_is_mailed_about_after_a_minute_and_revived_when_it_is_back() {
    let watched = Watched::boot(&settings(), "", 60);
    let machine = &watched.machine;
    machine.systemctl("start");
    fs::remove_file(machine.path(PROGRAMS[0])).unwrap();
    machine.signal("KILL");
    let died = Instant::now();
    machine.wait_for("it has failed for good", Duration::from_secs(30), |machine| machine.property("ActiveState") == "failed");
    let failures =
        |machine: &Machine| machine.journal_of(&["tapfleetd-failed.service"]).matches("Finished tapfleetd-failed.service").count();
    machine.wait_for("OnFailure= has heard of it", Duration::from_secs(10), |machine| failures(machine) == 1);
    let again = machine.wait_for("it was tried again, has failed again, and OnFailure= has heard", Duration::from_secs(60), |machine| {
        failures(machine) == 2
    });
    watched.both_mails_after(died, Duration::from_secs(60));
    machine.link_program(PROGRAMS[0]);
    let back = machine.wait_for("it is revived", Duration::from_secs(60), |machine| machine.property("ActiveState") == "active");
    println!("failed for good, tried again after {again:?}; back {back:?} after its program was");
    // What was stopped stays stopped, also when it had failed.
    fs::remove_file(machine.path(PROGRAMS[0])).unwrap();
    machine.signal("KILL");
    machine.wait_for("it has failed for good", Duration::from_secs(30), |machine| machine.property("ActiveState") == "failed");
    let _ = machine.output("systemctl", &["stop", UNIT]);
    assert_eq!(machine.property_of("tapfleetd-revive.timer", "ActiveState"), "inactive");
}

/// A mount at the spool, as the machine image's user data has it; of memory, and with these options.
fn mount_at_the_spool(machine: &Machine, options: &str) {
    let unit = format!("[Mount]\nWhat=tmpfs\nWhere={SPOOL}\nType=tmpfs\nOptions={options}\n");
    machine.write("etc/systemd/system/var-lib-tapfleet-spool.mount", &unit);
    machine.run("systemctl", &["daemon-reload"]);
}

#[test]
fn an_agent_whose_spool_cannot_be_mounted_or_written_is_mailed_about_and_starts_when_it_can() {
    const CAPTURE: &str = "no packets can be captured";
    let watched = Watched::boot(&settings(), "", 2);
    let machine = &watched.machine;
    mount_at_the_spool(machine, "size=nonsense");
    watched.start();
    // systemd tells the hook of no process that could have failed.
    let mail = watched.one_mail("mount failed", DIED, "systemd could not begin to start it");
    assert!(mail.trouble().starts_with("agent_died-"), "{}", mail.trouble());
    assert_eq!(machine.property("ActiveState"), "inactive", "it has failed by itself, and this test shows nothing");
    mount_at_the_spool(machine, "size=64m");
    let back =
        machine.wait_for("it is started without a person", Duration::from_secs(75), |machine| machine.property("ActiveState") == "active");
    println!("back {back:?} after the mount was possible");
    watched.clear();

    machine.run("mount", &["-o", "remount,ro", SPOOL]);
    watched.start();
    watched.one_mail("spool read-only", CAPTURE, "Read-only file system");
    watched.clear();
    machine.run("mount", &["-o", "remount,rw", SPOOL]);
    machine.systemctl("start");
}

#[test]
fn a_death_is_mailed_though_the_outbox_takes_nothing_and_told_to_be_over_by_the_outbox_when_it_does() {
    let watched = Watched::boot(&settings(), "", 2);
    let machine = &watched.machine;
    machine.systemctl("start");
    let (outbox, away) = (machine.path(OUTBOX), machine.path("var/lib/tapfleet/away"));
    machine.wait_for("there is an outbox", Duration::from_secs(10), |_| {
        outbox.join("troubles.json").exists() || outbox.join("left.json").exists()
    });
    fs::rename(&outbox, &away).unwrap();
    fs::write(&outbox, "in the way").unwrap();
    machine.signal("KILL");
    watched.wait_active("1");
    let mail = watched.one_mail("killed without an outbox", DIED, "killed by SIGKILL");
    fs::remove_file(&outbox).unwrap();
    fs::rename(&away, &outbox).unwrap();
    // What the hook filed elsewhere is the outbox's now, so that its end is told under the same id.
    machine.wait_for("the outbox knows of it", Duration::from_secs(20), |_| {
        fs::read_to_string(outbox.join("troubles.json")).is_ok_and(|state| state.contains(mail.trouble()))
    });
    // And when nobody else sends, what lies there leaves too.
    watched.machine.run("systemctl", &["stop", UNIT]);
    fs::rename(&outbox, &away).unwrap();
    fs::write(&outbox, "in the way").unwrap();
    let death = [
        "-u",
        "tapfleet",
        "--",
        "env",
        "SERVICE_RESULT=watchdog",
        "EXIT_CODE=killed",
        "EXIT_STATUS=ABRT",
        "RUNTIME_DIRECTORY=/run/tapfleet",
    ];
    machine.run("runuser", &[&death[..], &["/usr/lib/tapfleet/tapfleetd", "alert", "--service-result"]].concat());
    machine.run("systemctl", &["start", "--no-block", "tapfleet-alert.service"]);
    watched.one_mail("hung without an outbox", DIED, "it hung");
}

impl Watched {
    /// That it was killed, and that it fails since, are told when the agent has had its minute.
    fn both_mails_after(&self, died: Instant, grace: Duration) {
        let mut mails = Vec::new();
        let mut waited = None;
        while mails.len() < 2 && died.elapsed() < 2 * grace {
            mails.extend(self.mailbox.mails(1, Duration::from_secs(5)));
            if !mails.is_empty() {
                waited.get_or_insert_with(|| died.elapsed());
            }
        }
        let waited = waited.unwrap_or_else(|| panic!("no mail"));
        assert!(waited >= grace - Duration::from_secs(1), "the agent had only {waited:?}");
        mails.sort_by_key(|mail| mail.subject.clone());
        let subjects: Vec<&str> = mails.iter().map(|mail| mail.subject.as_str()).collect();
        assert_eq!(subjects, ["FAILURE", "STILL"].map(|word| format!("tapfleet {word} {INSTANCE}: {DIED}")));
        assert!(mails[0].body.contains("killed by SIGKILL") && mails[1].body.contains("its program is missing"), "{mails:#?}");
        println!("program missing: mailed {waited:?} after the death: {}", mails[1].body.lines().next().unwrap());
    }
}

/// A cgroup of this host, in which a process may have so little memory that the kernel kills it. Removed with the value.
struct Starved {
    group: PathBuf,
    /// The file that counts whom the kernel has killed.
    kills: &'static str,
}

impl Starved {
    fn new(pid: u32) -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let (base, limit, kills) = if unified {
            ("/sys/fs/cgroup", "memory.max", "memory.events")
        } else {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control")
        };
        let starved = Self { group: PathBuf::from(format!("{base}/tapfleet-{}", std::process::id())), kills };
        let needs = "this test needs the host's control groups, with memory (docker run --privileged --cgroupns=host)";
        fs::create_dir(&starved.group).unwrap_or_else(|cause| panic!("cannot make {}: {cause}; {needs}", starved.group.display()));
        // A limit below what a group has already is refused (EBUSY), so it comes first. What the process has stays with its old group;
        // the next pages are too many.
        for (file, value) in [(limit, "65536".into()), ("cgroup.procs", pid.to_string())] {
            let path = starved.group.join(file);
            fs::write(&path, value).unwrap_or_else(|cause| panic!("cannot write {}: {cause}; {needs}", path.display()));
        }
        starved
    }

    /// How many the kernel has killed.
    fn killed(&self) -> u64 {
        let counts = fs::read_to_string(self.group.join(self.kills)).unwrap();
        counts.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        // It can be removed as soon as nobody is in it.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
