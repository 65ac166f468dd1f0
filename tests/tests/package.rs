//! The .deb and the .rpm: what is in them, what they need, what installing, upgrading and removing them does to a machine.
//! In: the packages of `make package`; a small Debian booted in a container. Out: promise 7, and what README says of packages.
//! That Amazon Linux 2023 has what the .rpm asks for is this suite's claim (`AMAZON_LINUX_2023`); no root of it is to be had here.
//! Needs: root, systemd-nspawn, mmdebstrap, rpm, dnf.
//! Threads: 3, as most tests wait.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tapfleet_tests::agent::Settings;
use tapfleet_tests::filesystem::Mount;
use tapfleet_tests::machine::{Machine, PROGRAMS, UNIT, UNITS, root_folder};
use tapfleet_tests::netns::TAP;
use tapfleet_tests::package::{Packages, root};
use tapfleet_tests::program::{run, try_run};
use tapfleet_tests::traffic::{Spooled, Traffic};

/// The newest glibc whose symbols a program may ask for: Amazon Linux 2023's.
const GLIBC: (u32, u32) = (2, 34);

/// The libraries that a program may ask for, here and there.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

/// What the base of Amazon Linux 2023 gives, of what the .rpm asks for: its glibc 2.34, libgcc, systemd 252, ethtool.
const AMAZON_LINUX_2023: [&str; 5] =
    ["libc.so.6()(64bit)", "libc.so.6(GLIBC_2.34)(64bit)", "libgcc_s.so.1()(64bit)", "systemd = 252.23", "ethtool = 5.15"];

/// What is in the packages beside the units: path, mode.
const FILES: [(&str, u32); 10] = [
    ("etc/tapfleet/tapfleet.toml", 0o640),
    ("usr/bin/tapfleet", 0o755),
    ("usr/bin/tapfleetd", 0o755),
    ("usr/lib/sysctl.d/60-tapfleet.conf", 0o644),
    ("usr/lib/sysusers.d/tapfleet.conf", 0o644),
    ("usr/lib/tapfleet/nic", 0o755),
    ("usr/lib/tapfleet/tapfleetd", 0o755),
    ("usr/lib/tmpfiles.d/tapfleet.conf", 0o644),
    ("usr/lib/udev/rules.d/60-tapfleet.rules", 0o644),
    ("usr/share/doc/tapfleet/copyright", 0o644),
];

const PROGRAM_FILES: [&str; 3] = ["usr/bin/tapfleet", PROGRAMS[0], PROGRAMS[1]];

#[test]
fn both_packages_hold_the_same_files_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let packages = Packages::of_this_source();
    let [deb, rpm] = packages.unpack(folder.path()).map(|tree| files(&tree));
    let units = UNITS.map(|unit| (format!("usr/lib/systemd/system/{unit}"), 0o644));
    let expected: BTreeMap<String, u32> = FILES.iter().map(|(path, mode)| ((*path).to_owned(), *mode)).chain(units).collect();
    for (kind, tree) in [("deb", &deb), ("rpm", &rpm)] {
        let modes: BTreeMap<String, u32> = tree.iter().map(|(path, (mode, _))| (path.clone(), *mode)).collect();
        assert_eq!(modes, expected, "{kind}");
        assert!(tree[PROGRAMS[0]].1 == tree[PROGRAMS[1]].1, "{kind}: the two names hold different programs");
    }
    assert!(deb == rpm, "the contents differ");
    let source = root().join("systemd");
    for unit in UNITS {
        assert_eq!(deb[&format!("usr/lib/systemd/system/{unit}")].1, fs::read(source.join(unit)).unwrap(), "{unit}");
    }

    // What an administrator has written there is kept.
    let [deb, rpm] = [packages.deb.to_str().unwrap(), packages.rpm.to_str().unwrap()];
    assert_eq!(run("dpkg-deb", &["--info", deb, "conffiles"]).trim(), "/etc/tapfleet/tapfleet.toml");
    let flags = run("rpm", &["--query", "--package", "--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\\n]", rpm]);
    assert!(flags.lines().any(|line| line == "/etc/tapfleet/tapfleet.toml cn"), "{flags}");
    let owned = run("rpm", &["--query", "--package", "--queryformat", "[%{FILENAMES} %{FILEMODES:perms}\\n]", rpm]);
    assert!(owned.lines().any(|line| line == "/etc/tapfleet drwxr-x---"), "{owned}");
}

#[test]
fn the_programs_ask_for_no_library_and_no_glibc_that_amazon_linux_2023_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let packages = Packages::of_this_source();
    let [tree, _] = packages.unpack(folder.path());
    let mut needed = BTreeSet::new();
    for program in PROGRAM_FILES {
        let path = tree.join(program);
        let dynamic = run("readelf", &["--dynamic", "--wide", path.to_str().unwrap()]);
        let libraries: BTreeSet<String> =
            dynamic.lines().filter(|line| line.contains("(NEEDED)")).map(|line| between(line, "[", "]").to_owned()).collect();
        let newest = newest_glibc(&run("readelf", &["--version-info", "--wide", path.to_str().unwrap()]));
        println!("{program}: needs {libraries:?}, glibc {}.{}", newest.0, newest.1);
        assert!(libraries.contains("libc.so.6"), "{dynamic}");
        assert!(libraries.iter().all(|library| LIBRARIES.contains(&library.as_str())), "{program} needs {libraries:?}");
        assert!(newest <= GLIBC, "{program} needs glibc {newest:?}");
        needed.extend(libraries);
    }
    // libpcap is in the program that captures, and says which it is.
    let said = run(tree.join(PROGRAMS[0]).to_str().unwrap(), &["--version"]);
    assert!(said.starts_with("tapfleetd "), "{said}");

    // What the packages say of it, as nothing else does: nfpm reads no program.
    let asked = run("rpm", &["--query", "--package", "--requires", packages.rpm.to_str().unwrap()]);
    assert!(asked.lines().any(|line| line == format!("libc.so.6(GLIBC_{}.{})(64bit)", GLIBC.0, GLIBC.1)), "{asked}");
    let depends = run("dpkg-deb", &["--field", packages.deb.to_str().unwrap(), "Depends"]);
    assert!(depends.contains(&format!("libc6 (>= {}.{})", GLIBC.0, GLIBC.1)), "{depends}");
    if needed.contains("libgcc_s.so.1") {
        assert!(asked.contains("libgcc_s.so.1()(64bit)") && depends.contains("libgcc-s1"), "{asked}{depends}");
    }
}

#[test]
fn dnf_refuses_the_rpm_where_its_needs_are_missing_and_installs_it_where_amazon_linux_2023_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let packages = Packages::of_this_source();
    let repository = folder.path().join("repository");
    fs::create_dir(&repository).unwrap();
    fs::copy(&packages.rpm, repository.join("tapfleet.rpm")).unwrap();
    let install = |into: &str| {
        run("createrepo_c", &["--quiet", repository.to_str().unwrap()]);
        let into = folder.path().join(into);
        let path = format!("--repofrompath=here,file://{}", repository.display());
        let output = try_run(
            "dnf",
            &[
                "--assumeyes",
                "--installroot",
                into.to_str().unwrap(),
                &path,
                "--repo=here",
                "--nogpgcheck",
                "--setopt=reposdir=/nonexistent",
                // The scriptlets want a whole system; the machine tests run them.
                "--setopt=tsflags=noscripts",
                "--releasever=2023",
                "install",
                "tapfleet",
            ],
        );
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), into)
    };
    let (installed, said, _) = install("lacking");
    assert!(!installed, "it was installed where nothing is that it needs:\n{said}");
    for missing in ["libc.so.6(GLIBC_2.34)(64bit)", "libgcc_s.so.1()(64bit)", "systemd >= 249", "ethtool"] {
        assert!(said.contains(&format!("nothing provides {missing}")), "no word of {missing}:\n{said}");
    }

    stand_in(folder.path(), &repository);
    let (installed, said, into) = install("having");
    assert!(installed, "{said}");
    for program in PROGRAM_FILES {
        assert!(into.join(program).is_file(), "{program} was not installed:\n{said}");
    }
}

/// Makes a package that gives what Amazon Linux 2023's base gives.
fn stand_in(folder: &Path, repository: &Path) {
    let nfpm = run(root().join("packaging/nfpm.sh").to_str().unwrap(), &[]);
    let provides: Vec<String> = AMAZON_LINUX_2023.iter().map(|name| format!("  - {name}\n")).collect();
    let description = folder.join("stand-in.yaml");
    fs::write(&description, format!("name: stand-in\narch: amd64\nversion: 2023.0.0\nprovides:\n{}", provides.concat())).unwrap();
    run(
        nfpm.trim(),
        &["package", "--config", description.to_str().unwrap(), "--packager", "rpm", "--target", repository.to_str().unwrap()],
    );
}

#[test]
fn the_same_programs_give_the_same_packages_to_the_byte_and_a_later_commit_a_later_version() {
    let folder = tempfile::tempdir().unwrap();
    let first = Packages::of_this_source();
    let version = run("dpkg-deb", &["--field", first.deb.to_str().unwrap(), "Version"]);
    let version = version.trim().strip_suffix("-1").unwrap_or_else(|| panic!("{version}"));
    let again = Packages::with_version(version, folder.path());
    for (one, other) in [(&first.deb, &again.deb), (&first.rpm, &again.rpm)] {
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} was made twice and differs", one.display());
    }
    // The crate's version, the commit's time, the commit.
    let (crate_version, commit) = version.split_once('+').unwrap_or_else(|| panic!("{version}"));
    assert_eq!(crate_version, env!("CARGO_PKG_VERSION"));
    let (time, _) = commit.split_once('.').unwrap_or_else(|| panic!("{version}"));
    assert!(time.len() == 14 && time.bytes().all(|byte| byte.is_ascii_digit()), "{version}");
    let older = format!("{crate_version}+20200101000000.fffffff");
    assert!(try_run("dpkg", &["--compare-versions", &older, "lt", version]).status.success(), "{older} is not older than {version}");
}

#[test]
fn installing_starts_nothing_and_removing_ends_the_agent_and_leaves_the_spool() {
    let machine = Machine::builder();
    install(&machine, Packages::of_this_source());
    for unit in UNITS {
        assert_eq!(machine.property_of(unit, "ActiveState"), "inactive", "{unit}");
        assert_ne!(machine.property_of(unit, "UnitFileState"), "enabled", "{unit}");
    }
    assert_eq!(machine.run("stat", &["--format=%U:%G %a", "/etc/tapfleet/tapfleet.toml"]).trim(), "root:tapfleet 640");
    assert_eq!(machine.run("stat", &["--format=%U:%G %a", "/etc/tapfleet"]).trim(), "root:tapfleet 750");
    assert_eq!(machine.run("stat", &["--format=%U:%G %a", "/var/lib/tapfleet"]).trim(), "tapfleet:tapfleet 750");
    // The settings that it brings are whole but for the bucket's name.
    assert!(machine.run("tapfleetd", &["check"]).contains("my-captures"));

    start(&machine);
    let sent = traffic(&machine, Duration::from_millis(500));
    // Removed while it runs, with packets that S3 has not.
    machine.run("dpkg", &["--remove", "tapfleet"]);
    assert!(!machine.path(PROGRAMS[0]).exists());
    assert_eq!(machine.run("systemctl", &["list-units", "--plain", "--no-legend", "--state=active", "tapfleet*"]), "");
    assert_eq!(enabled(&machine), [""; 0]);
    assert_eq!((Spooled::read(&machine).missing(sent), Spooled::read(&machine).doubled()), (0, 0));
    let said = machine.run("dpkg", &["--purge", "tapfleet"]);
    assert!(said.contains("/var/lib/tapfleet stays"), "{said}");
    assert!(!machine.path("etc/tapfleet/tapfleet.toml").exists());
    assert_eq!(Spooled::read(&machine).missing(sent), 0);

    // The next agent finds it, and reads it.
    install(&machine, Packages::of_this_source());
    start(&machine);
    machine.wait_for("the agent tells of the spool that it found", Duration::from_secs(10), |machine| {
        machine.property("StatusText").contains("; spool ") && !machine.property("StatusText").contains("; spool 0 segments")
    });
}

#[test]
fn installing_sets_the_kernel_and_the_cards_that_are_there_without_a_boot() {
    let machine = Machine::builder();
    // An administrator's file of the same name goes before the package's; this setting each network namespace has for itself, and only
    // such ones may be written.
    machine.run(
        "sh",
        &["-ec", "mkdir /opt/proc; mount -t proc proc /opt/proc; mount --bind /opt/proc/sys/net /proc/sys/net; umount -l /opt/proc"],
    );
    machine.write("etc/sysctl.d/60-tapfleet.conf", "net.ipv4.ip_default_ttl = 77\n");
    // No udevd runs in a container: what it would be asked is noted.
    machine.run("cp", &["/usr/bin/udevadm", "/opt/udevadm"]);
    machine.write("usr/bin/udevadm", "#!/bin/sh\necho \"$*\" >>/tmp/asked\n");
    machine.write("run/udev/control", "");
    install(&machine, Packages::of_this_source());
    assert_eq!(machine.run("cat", &["/proc/sys/net/ipv4/ip_default_ttl"]).trim(), "77");
    let asked = fs::read_to_string(machine.path("tmp/asked")).unwrap();
    let asked: Vec<Vec<_>> = asked.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(asked.iter().map(|words| words[0]).collect::<Vec<_>>(), ["control", "trigger"], "{asked:?}");
    assert_eq!(asked[0], ["control", "--reload"]);
    assert!(asked[1].contains(&"--action=add") && asked[1].contains(&"--property-match=ID_NET_DRIVER=ena"), "{asked:?}");
    // A real one knows these words; there is no such card here.
    assert_eq!(machine.run("/opt/udevadm", &[&asked[1], &["--dry-run", "--verbose"][..]].concat()), "");
}

#[test]
fn an_upgrade_goes_on_with_the_rings_of_the_agent_and_its_settings_and_loses_no_frame() {
    let machine = Machine::builder();
    install(&machine, Packages::of_this_source());
    start(&machine);
    let settings = fs::read(machine.path("etc/tapfleet/tapfleet.toml")).unwrap();
    let before = machine.property("MainPID");

    let folder = tempfile::tempdir().unwrap();
    let newer = Packages::with_version("99.0.0", folder.path());
    let traffic = Traffic::start(&machine);
    std::thread::sleep(Duration::from_millis(500));
    install(&machine, &newer);
    std::thread::sleep(Duration::from_millis(500));
    let sent = traffic.stop();

    assert_eq!((machine.property("ActiveState").as_str(), machine.property("NRestarts").as_str()), ("active", "0"));
    assert_ne!(machine.property("MainPID"), before, "the old program runs on");
    assert!(machine.journal().contains("going on with the rings of the agent before"), "{}", machine.journal());
    assert_eq!(fs::read(machine.path("etc/tapfleet/tapfleet.toml")).unwrap(), settings);
    assert!(enabled(&machine).contains(&UNIT.to_owned()));
    machine.systemctl("stop");
    let taken = Spooled::read(&machine);
    println!("{sent} frames sent over an upgrade, {} lost, {} doubled", taken.missing(sent), taken.doubled());
    assert_eq!((taken.missing(sent), taken.doubled()), (0, 0));

    // One that is stopped is not started by it.
    install(&machine, &newer);
    assert_eq!(machine.property("ActiveState"), "inactive");
}

#[test]
fn the_rpm_installs_upgrades_and_goes_by_the_same_scripts_and_leaves_the_spool() {
    // rpm itself, into a Debian's root that is not booted: the scripts run there, without a service manager.
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::over(&root_folder("builder"), &folder.path().join("root"));
    let in_root = |path: &str| mount.at().join(path);
    // The first process is one that is not in the root: by that a chroot is known.
    let script = r#"mount -t proc proc "$0/proc" && rpm --root "$0" --nodeps "$@"; exit $?"#;
    let rpm = |arguments: &[&str]| {
        let output =
            try_run("unshare", &[&["--mount", "--pid", "--fork", "sh", "-c", script, mount.at().to_str().unwrap()], arguments].concat());
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // rpm calls a script that fails a warning.
        assert!(output.status.success() && !said.contains("scriptlet failed"), "rpm {}: {said}", arguments.join(" "));
    };
    // As whoever makes an image sees it whose /run is the host's: nothing but files may be touched.
    fs::create_dir_all(in_root("run/systemd/system")).unwrap();
    for program in ["usr/lib/systemd/systemd-sysctl", "usr/bin/systemctl"] {
        fs::rename(in_root(program), in_root(&format!("{program}.real"))).unwrap();
        fs::write(in_root(program), "#!/bin/sh\necho \"$0 $*\" >>/told\n").unwrap();
        run("chmod", &["+x", in_root(program).to_str().unwrap()]);
    }
    rpm(&["--install", Packages::of_this_source().rpm.to_str().unwrap()]);
    assert!(!in_root("told").exists(), "the host was told: {}", fs::read_to_string(in_root("told")).unwrap());
    for program in ["usr/lib/systemd/systemd-sysctl", "usr/bin/systemctl"] {
        fs::rename(in_root(&format!("{program}.real")), in_root(program)).unwrap();
    }
    fs::remove_dir_all(in_root("run/systemd")).unwrap();
    let users = fs::read_to_string(in_root("etc/passwd")).unwrap();
    let line = users.lines().find(|line| line.starts_with("tapfleet:")).unwrap_or_else(|| panic!("no user in\n{users}"));
    let group: u32 = line.split(':').nth(3).unwrap().parse().unwrap();
    let settings = fs::metadata(in_root("etc/tapfleet/tapfleet.toml")).unwrap();
    assert_eq!((settings.uid(), settings.gid(), settings.mode() & 0o7777), (0, group, 0o640));
    assert_eq!(fs::metadata(in_root("var/lib/tapfleet")).unwrap().gid(), group);
    let wanted = in_root("etc/systemd/system/multi-user.target.wants/tapfleetd.service");
    assert!(wanted.symlink_metadata().is_err(), "it is enabled");

    // What an administrator made of it goes on over an upgrade.
    run("systemctl", &["--root", mount.at().to_str().unwrap(), "--quiet", "enable", UNIT]);
    fs::write(in_root("etc/tapfleet/tapfleet.toml"), "[s3]\nbucket = \"mine\"\n").unwrap();
    let spooled = in_root("var/lib/tapfleet/spool/0.pcap");
    fs::create_dir_all(spooled.parent().unwrap()).unwrap();
    fs::write(&spooled, "packets").unwrap();
    let newer = Packages::with_version("99.0.0", folder.path());
    rpm(&["--upgrade", newer.rpm.to_str().unwrap()]);
    assert!(fs::read_to_string(in_root("etc/tapfleet/tapfleet.toml")).unwrap().contains("mine"));
    assert!(wanted.symlink_metadata().is_ok(), "the upgrade has disabled it");

    rpm(&["--erase", "tapfleet"]);
    assert!(!in_root(PROGRAMS[0]).exists() && !in_root(PROGRAMS[1]).exists());
    assert!(wanted.symlink_metadata().is_err(), "what is gone is still enabled");
    assert_eq!(fs::read_to_string(spooled).unwrap(), "packets");
}

#[test]
fn a_network_card_is_set_for_capturing_and_refuses_without_harm() {
    let machine = Machine::builder();
    install(&machine, Packages::of_this_source());
    let feature = |name: &str| {
        let features = machine.run("ethtool", &["--show-features", TAP]);
        features.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: ")).map(str::to_owned)).unwrap()
    };
    machine.run("ethtool", &["--offload", TAP, "gro", "on"]);
    assert_eq!(feature("generic-receive-offload"), "on");
    machine.run("/usr/lib/tapfleet/nic", &[TAP]);
    assert_eq!(feature("generic-receive-offload"), "off");

    // One of EC2's has a ring, and the most that it can hold is taken; also of one that refuses another setting.
    machine.write("usr/local/sbin/ethtool", FAKE_CARD);
    machine.run("chmod", &["+x", "/usr/local/sbin/ethtool"]);
    for (card, done) in [("eth0", true), ("nolro0", false)] {
        let output = machine.output("env", &["PATH=/usr/local/sbin:/usr/bin:/bin", "/usr/lib/tapfleet/nic", card]);
        assert_eq!(output.status.success(), done, "{card}");
        let asked = fs::read_to_string(machine.path("tmp/asked")).unwrap();
        let expected = [
            format!("--offload {card} gro off"),
            format!("--offload {card} lro off"),
            format!("--show-ring {card}"),
            format!("--set-ring {card} rx 8192"),
        ];
        assert_eq!(asked.lines().filter(|line| line.contains(card)).collect::<Vec<_>>(), expected);
    }

    // The rule, as udev reads it: for EC2's driver and for no other.
    let rules = "usr/lib/udev/rules.d/60-tapfleet.rules";
    // The machine's own /sys was mounted before it had this network.
    let test = format!("mount -t sysfs sysfs /sys && exec udevadm test --action=add /sys/class/net/{TAP}");
    let would = || {
        let output = machine.output("unshare", &["--mount", "sh", "-c", &test]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("INTERFACE=tap"), "{said}");
        said
    };
    let call = format!("run: '/usr/lib/tapfleet/nic {TAP}'");
    let said = would();
    assert!(!said.contains(&call), "{said}");
    for complaint in said.lines().filter(|line| line.contains("60-tapfleet.rules")) {
        assert!(complaint.starts_with("Reading rules file"), "{complaint}");
    }
    let rule = fs::read_to_string(machine.path(rules)).unwrap();
    assert!(rule.contains(r#"DRIVERS=="ena""#));
    machine.write(rules, &rule.replace(r#"DRIVERS=="ena""#, &format!(r#"KERNEL=="{TAP}""#)));
    let said = would();
    assert!(said.contains(&call), "{said}");
}

/// Answers as ethtool does for a card of EC2, and notes what it is asked.
const FAKE_CARD: &str = r#"#!/bin/sh
echo "$*" >>/tmp/asked
case "$*" in
  "--offload nolro0 lro off") exit 1 ;;
  --show-ring*) printf 'Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t8192\nTX:\t\t1024\nCurrent hardware settings:\nRX:\t\t1024\nTX:\t\t1024\n' ;;
esac
"#;

#[test]
fn every_kernel_setting_is_one_that_the_kernel_has() {
    for file in ["packaging/rootfs/usr/lib/sysctl.d/60-tapfleet.conf", "packer/rootfs/etc/sysctl.d/60-tapfleet-image.conf"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let settings: Vec<_> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert!(!settings.is_empty(), "{file}:\n{text}");
        for line in settings {
            let (name, value) = line.split_once(" = ").unwrap_or_else(|| panic!("{file}: '{line}' is no setting"));
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            let now = fs::read_to_string(&path).unwrap_or_else(|cause| {
                panic!(
                    "{file}: {}: {cause}: the kernel does not have it, or this is a network namespace other than the host's, which has no \
                     net.core.netdev_budget: run the suite in the host's (docker run --network=host)",
                    path.display()
                )
            });
            assert_eq!(now.trim().parse::<u64>().is_ok(), value.parse::<u64>().is_ok(), "{file}: {name} is '{}' here", now.trim());
        }
    }
}

#[test]
fn a_source_archive_without_git_says_which_commit_it_is_of() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("source.tar.gz");
    let root = root();
    run("git", &["-C", root.to_str().unwrap(), "archive", "--prefix=tapfleet/", "--output", archive.to_str().unwrap(), "HEAD"]);
    run("tar", &["-xzf", archive.to_str().unwrap(), "-C", folder.path().to_str().unwrap()]);
    let version = run(folder.path().join("tapfleet/packaging/version.sh").to_str().unwrap(), &[]);
    // What is not committed is in no archive.
    assert_eq!(version.replace(".dirty", ""), run(root.join("packaging/version.sh").to_str().unwrap(), &[]).replace(".dirty", ""));
    assert!(!version.contains(".dirty"), "{version}");
    // All that a builder needs is there.
    for file in ["packaging/package.sh", "packaging/nfpm.yaml", "Cargo.lock", "systemd/tapfleetd.service", "LICENSE"] {
        assert!(folder.path().join("tapfleet").join(file).is_file(), "{file}");
    }
}

fn install(machine: &Machine, packages: &Packages) {
    fs::copy(&packages.deb, machine.path("var/tmp/tapfleet.deb")).unwrap();
    // As apt does it: no question is answered, what was changed is kept.
    machine.run("env", &["DEBIAN_FRONTEND=noninteractive", "dpkg", "--install", "--force-confold", "/var/tmp/tapfleet.deb"]);
}

/// Writes settings and starts the agent, as an administrator does. S3 cannot be reached.
fn start(machine: &Machine) {
    // Nobody listens on the discard port.
    let settings = Settings::new("http://127.0.0.1:9", "/var/lib/tapfleet/spool".as_ref())
        .set("capture.interface", TAP)
        .set("capture.ring_bytes", "64MiB");
    machine.write("etc/tapfleet/tapfleet.toml", &settings.toml());
    machine.run("systemctl", &["enable", "--now", "--quiet", UNIT]);
}

/// Sends packets for so long, waits until they are in the spool, and gives how many they were.
fn traffic(machine: &Machine, time: Duration) -> u64 {
    let traffic = Traffic::start(machine);
    std::thread::sleep(time);
    let sent = traffic.stop();
    std::thread::sleep(Duration::from_secs(1));
    sent
}

/// The agent's units that start at boot.
fn enabled(machine: &Machine) -> Vec<String> {
    let listed = machine.output("systemctl", &["list-unit-files", "--plain", "--no-legend", "--state=enabled", "tapfleet*"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The files of a tree: path, then mode and bytes.
fn files(tree: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let name = entry.path().strip_prefix(tree).unwrap().to_str().unwrap().to_owned();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            found.insert(name, (mode, fs::read(entry.path()).unwrap()));
        }
    }
    found
}

/// The newest version of glibc whose symbols `readelf --version-info` names.
fn newest_glibc(versions: &str) -> (u32, u32) {
    let names = versions.split("Name: GLIBC_").skip(1).map(|rest| rest.split_whitespace().next().unwrap_or_default());
    let parsed = names.filter_map(|name| {
        let mut numbers = name.split('.').map(|number| number.parse::<u32>());
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    parsed.max().unwrap_or_else(|| panic!("no symbol of glibc in:\n{versions}"))
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> &'a str {
    let rest = text.split_once(open).map_or("", |(_, rest)| rest);
    rest.split_once(close).map_or(rest, |(found, _)| found)
}
