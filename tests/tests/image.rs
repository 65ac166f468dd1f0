//! The machine image: packer's template, what its scripts make of a Debian, and the instance that comes of it.
//! In: packer, moto as EC2, a Debian in a container as the builder that packer reaches by SSH, the .deb of `make package`.
//! Out: what README says of the image. Not here: Amazon Linux, arm64, building on the builder, what a packer since 1.7 alone knows.
//! Needs: root, systemd-nspawn, mmdebstrap, loop devices, packer, moto, S3, terraform.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use tapfleet_tests::agent::{BUCKET, INSTANCE, Settings};
use tapfleet_tests::captures::records;
use tapfleet_tests::filesystem::{Disk, Mount};
use tapfleet_tests::localstack::{CREDENTIALS, REGION, client, make_bucket};
use tapfleet_tests::machine::{Machine, UNIT, root_folder};
use tapfleet_tests::mailbox::Mailbox;
use tapfleet_tests::moto::Moto;
use tapfleet_tests::netns::TAP;
use tapfleet_tests::package::{Packages, root};
use tapfleet_tests::packet::numbered;
use tapfleet_tests::program::{run, try_run};
use tapfleet_tests::terraform::setup;
use tapfleet_tests::traffic::{SPOOL, Traffic};

/// What the packer of Debian 12 (1.6.6) does not know, as the template has it, one line of it each; a block to its closing brace. That a
/// newer packer takes them is pending.
const TOO_NEW: [&str; 3] = ["  imds_support = ", "  temporary_security_group_source_public_ip = ", "  metadata_options {"];

/// The file of the template that holds nothing else.
const TOO_NEW_FILE: &str = "plugins.pkr.hcl";

/// Distributions, and the image of each that the emulator has, for x86_64.
const IMAGES: [(&str, &str, &str); 3] = [
    ("amazon-linux-2023", "137112412989", "al2023-ami-2023.9.20261101.0-kernel-6.1-x86_64"),
    ("debian-12", "136693071363", "debian-12-amd64-20261101-2285"),
    ("ubuntu-24.04", "099720109477", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261101"),
];

/// What the user data looks for.
const LABEL: &str = "tapfleet-spool";

#[test]
fn packer_takes_the_template_for_every_system_and_processor_and_refuses_others_with_a_sentence() {
    let template = Template::new("");
    let validate = |name: &str, value: &str| {
        let mut variables =
            [("agent", "agent.deb"), ("agent_version", "1+2"), ("agent_commit", "abc"), ("architecture", "x86_64")].to_vec();
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
        template.packer("validate", None, &variables)
    };
    for (distribution, ..) in IMAGES {
        let output = validate("distribution", distribution);
        assert!(output.status.success(), "{distribution}: {}", said(&output));
    }
    for (name, value) in [("architecture", "arm64"), ("agent", "agent.tar.gz"), ("agent", "agent.rpm")] {
        let output = validate(name, value);
        assert!(output.status.success(), "{name} = {value}: {}", said(&output));
    }
    for (name, value, sentence) in [
        ("architecture", "riscv64", "The architecture must be x86_64 or arm64."),
        ("distribution", "debian-11", "The distribution must be amazon-linux-2023, debian-12 or ubuntu-24.04."),
        ("agent", "agent", "The agent must be the path of a .tar.gz, a .deb or an .rpm;"),
    ] {
        let output = validate(name, value);
        assert!(!output.status.success(), "{name} = {value} was taken");
        let words = said(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(sentence), "{name} = {value}: {words}");
    }
    let formatted = try_run(packer(), &["fmt", "-check", root().join("packer").to_str().unwrap()]);
    assert!(formatted.status.success(), "run 'packer fmt packer': {}", said(&formatted));
    println!("left out for {}: {TOO_NEW_FILE}, {TOO_NEW:?}", run(packer(), &["version"]).trim());
}

#[test]
fn an_image_of_each_system_is_encrypted_and_says_version_and_commit_and_nothing_is_left_of_its_making() {
    let folder = tempfile::tempdir().unwrap();
    let moto = emulator(None, folder.path());
    // No builder to reach: that is the next test's.
    let template = Template::new(&format!("{}  communicator = \"none\"\n", endpoint(&moto)));
    template.edit("tapfleet.pkr.hcl", |text| {
        let provisioners = text.find("  # /var/tmp, for").unwrap_or_else(|| panic!("where do the provisioners begin in\n{text}"));
        let without_ssh: Vec<_> = text[..provisioners].lines().filter(|line| !line.trim_start().starts_with("ssh_")).collect();
        without_ssh.join("\n") + "\n}\n"
    });
    for (distribution, ..) in IMAGES {
        let variables = [
            ("agent", "agent.deb"),
            ("agent_version", "0.1.0+20261122083113.0ac544858"),
            ("agent_commit", "0ac544858"),
            ("distribution", distribution),
            ("region", REGION),
        ];
        let output = template.packer("build", None, &variables);
        assert!(output.status.success(), "{distribution}: {}", said(&output));
        // moto does not say of an image whether it is encrypted; packer says what it did.
        assert!(said(&output).contains("Copying/Encrypting AMI"), "{}", said(&output));
    }
    let images = moto.ask("ec2", "describe_images", &json!({ "Filters": [{ "Name": "tag-key", "Values": ["tapfleet:version"] }] }));
    let images = images["Images"].as_array().unwrap();
    let names: BTreeSet<&str> = images.iter().map(|image| image["Name"].as_str().unwrap()).collect();
    let expected = IMAGES.map(|(distribution, ..)| format!("tapfleet-0.1.0-20261122083113.0ac544858-{distribution}-x86_64"));
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    for image in images {
        let tags = image["Tags"].as_array().unwrap();
        let tag = |name: &str| tags.iter().find(|tag| tag["Key"] == name).map(|tag| tag["Value"].as_str().unwrap());
        assert_eq!(tag("tapfleet:version"), Some("0.1.0+20261122083113.0ac544858"));
        assert_eq!(tag("tapfleet:commit"), Some("0ac544858"));
    }
    let reservations = moto.ask("ec2", "describe_instances", &json!({}));
    for reservation in reservations["Reservations"].as_array().unwrap() {
        for instance in reservation["Instances"].as_array().unwrap() {
            assert_eq!(instance["State"]["Name"], "terminated", "{instance}");
        }
    }
    assert_eq!(moto.ask("ec2", "describe_key_pairs", &json!({}))["KeyPairs"], json!([]));
}

#[test]
fn an_instance_of_the_image_starts_by_its_user_data_captures_and_what_s3_has_not_is_sent_from_its_volume() {
    let folder = tempfile::tempdir().unwrap();
    let image = provisioned(folder.path());
    let disk = Disk::new(folder.path(), 128 << 20, LABEL);
    stand_in_for_udev(image.at(), &disk);
    let bind = format!("--bind={}", disk.device());

    // The user data waits for what cannot be known before the machine has a network: where its S3 is.
    hold_cloud_init(image.at());
    let mut machine = Machine::of(image.at(), &[&bind]);
    let netns = machine.pair.tap.name().to_owned();
    let mailbox = Mailbox::new(&netns);
    mailbox.ask(async |config| make_bucket(&client(config.endpoint_url().unwrap()), BUCKET).await);
    seed(&machine, &user_data(folder.path(), &mailbox));
    machine.wait_for("user data has started the agent", Duration::from_secs(60), |machine| machine.property("ActiveState") == "active");

    // A machine of its own, whose spool is the volume, and that nobody can log in to.
    let source = machine.run("findmnt", &["--noheadings", "--output", "SOURCE", SPOOL]);
    assert_eq!(source.trim(), disk.device());
    assert_eq!(machine.run("systemctl", &["is-enabled", UNIT]).trim(), "enabled");
    assert_ne!(fs::read_to_string(machine.path("etc/machine-id")).unwrap().trim(), "");
    assert_eq!(machine.run("systemctl", &["list-units", "--plain", "--no-legend", "--state=active", "ssh*"]), "");
    let keys = fs::read_to_string(machine.path("root/.ssh/authorized_keys"));
    assert!(keys.as_ref().is_err() || keys.as_ref().is_ok_and(String::is_empty), "{keys:?}");

    // With S3 there, a packet is in it when its window is over.
    let traffic = Traffic::start(&machine);
    std::thread::sleep(Duration::from_millis(500));
    let first = traffic.stop();
    machine.wait_for("the packets are in S3", Duration::from_secs(60), |_| stored(&mailbox).len() as u64 >= first);

    // Stopped and started, it has its volume and its agent again by itself. Its new network has no S3: packets wait on the volume.
    machine.power_off();
    let mut again = Machine::of(image.at(), &[&bind]);
    again.wait_for("the agent is back", Duration::from_secs(60), |again| again.property("ActiveState") == "active");
    assert_eq!(again.run("findmnt", &["--noheadings", "--output", "SOURCE", SPOOL]).trim(), disk.device());
    let traffic = Traffic::start(&again);
    std::thread::sleep(Duration::from_millis(500));
    let second = traffic.stop();
    std::thread::sleep(Duration::from_secs(2));
    again.power_off();
    assert!((stored(&mailbox).len() as u64) < first + second);

    let rescued = disk.mount(&folder.path().join("rescued"));
    let settings = Settings::new(&mailbox.aws.endpoint(), rescued.at());
    let (status, said) = settings.command(Some(&netns), folder.path(), &["spool", "upload"]);
    assert_eq!(status, Some(0), "{said}");
    let numbers = stored(&mailbox);
    let missing = (0..first.max(second)).filter(|number| !numbers.contains(number)).count();
    println!("{first} packets in S3 from the instance, {second} more from its volume, {missing} missing");
    // Numbers begin anew with each traffic: each came at least once, and all came.
    assert_eq!((missing, numbers.len() as u64), (0, first + second));
    let (status, said) = settings.command(Some(&netns), folder.path(), &["spool", "list"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(!said.contains(".pcap"), "the volume still holds: {said}");
}

#[test]
fn the_proof_of_cleanliness_fails_for_each_trace_of_the_builder_and_for_what_an_instance_would_miss() {
    let machine = Machine::builder();
    let scripts = root().join("packer/provision");
    let put = |from: &Path, to: &str| {
        let copied = try_run("cp", &["-r", from.to_str().unwrap(), machine.path(to).to_str().unwrap()]);
        assert!(copied.status.success(), "{}", said(&copied));
    };
    machine.run("mkdir", &["-p", "/var/tmp/tapfleet", "/opt/provision"]);
    let packages = Packages::of_this_source();
    put(&packages.deb, "var/tmp/tapfleet/");
    put(&root().join("packer/rootfs"), "var/tmp/tapfleet/");
    put(&scripts, "opt/");
    let version = version(packages);
    let script =
        |name: &str| machine.output("env", &[&format!("TAPFLEET_VERSION={version}"), "bash", &format!("/opt/provision/{name}.sh")]);
    // The builder as it is found is anything but clean.
    let found = script("prove-clean");
    assert!(!found.status.success() && said(&found).contains("ssh_host_"), "{}", said(&found));
    for name in ["build", "install", "clean", "prove-clean"] {
        let output = script(name);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
    for (path, text) in [
        ("etc/ssh/ssh_host_ed25519_key", "key"),
        ("root/.ssh/authorized_keys", "ssh-ed25519 AAAA"),
        ("home/admin/.ssh/authorized_keys", "ssh-ed25519 AAAA"),
        ("root/.bash_history", "passwd"),
        ("root/.aws/credentials", "[default]"),
        ("var/lib/cloud/instance", "i-1"),
        ("var/lib/systemd/random-seed", "seed"),
        ("var/lib/tapfleet/spool/0.pcap", "packets"),
        ("var/lib/amazon/ssm/i-1/registration", "{}"),
        ("var/tmp/tapfleet/agent.deb", "deb"),
        ("tmp/script_1.sh", "#!/bin/sh"),
        ("var/log/auth.log", "Accepted publickey"),
        ("var/log/journal/0/system.journal", "LPKSHHRH"),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("etc/environment", "aws_secret_access_key = x\n"),
        ("opt/deploy.pem", "-----BEGIN RSA PRIVATE KEY-----\n"),
        ("usr/local/bin/cargo", "#!/bin/sh\n"),
    ] {
        let before = fs::read(machine.path(path)).ok();
        machine.write(path, text);
        machine.run("chmod", &["755", &format!("/{path}")]);
        let output = script("prove-clean");
        let word = if path == "usr/local/bin/cargo" { "cargo is installed".to_owned() } else { format!("/{}", first_parts(path)) };
        assert!(!output.status.success() && said(&output).contains(&word), "/{path} was not found: {}", said(&output));
        match before {
            Some(bytes) => fs::write(machine.path(path), bytes).unwrap(),
            None => fs::remove_file(machine.path(path)).unwrap(),
        }
        let _ = machine
            .output("rmdir", &["--ignore-fail-on-non-empty", "--parents", &format!("/{}", Path::new(path).parent().unwrap().display())]);
        let output = script("prove-clean");
        assert!(output.status.success(), "after /{path}: {}", said(&output));
    }
    // A way in: a service, or a socket that starts one.
    for unit in ["ssh.service", "ssh.socket", "sshd.service", "sshd.socket"] {
        let mask = format!("/etc/systemd/system/{unit}");
        machine.run("rm", &[&mask]);
        let output = script("prove-clean");
        assert!(!output.status.success() && said(&output).contains(unit), "{unit} was not found: {}", said(&output));
        machine.run("ln", &["--symbolic", "/dev/null", &mask]);
    }
    // One of another name, as a distribution may call it.
    machine.write("etc/systemd/system/remote.socket", "[Socket]\nListenStream=22\nAccept=yes\n[Install]\nWantedBy=sockets.target\n");
    machine.write("etc/systemd/system/remote@.service", "[Service]\nExecStart=-/usr/sbin/sshd -i\nStandardInput=socket\n");
    machine.run("systemctl", &["--quiet", "enable", "remote.socket"]);
    let output = script("prove-clean");
    assert!(!output.status.success() && said(&output).contains("remote.socket"), "{}", said(&output));
    machine.run("systemctl", &["--quiet", "disable", "remote.socket"]);
    machine.run("rm", &["/etc/systemd/system/remote.socket", "/etc/systemd/system/remote@.service"]);
    // What an instance needs.
    for (program, arguments, undo) in [
        ("systemctl", ["enable", UNIT], ["disable", UNIT]),
        ("mv", ["/usr/lib/tapfleet/tapfleetd", "/opt/"], ["/opt/tapfleetd", "/usr/lib/tapfleet/"]),
        ("mv", ["/etc/cloud/cloud.cfg.d/99-tapfleet.cfg", "/opt/"], ["/opt/99-tapfleet.cfg", "/etc/cloud/cloud.cfg.d/"]),
    ] {
        machine.run(program, &arguments);
        assert!(!script("prove-clean").status.success(), "{program} {arguments:?} was not found");
        machine.run(program, &undo);
    }
    let output = machine.output("env", &["TAPFLEET_VERSION=0.0.1", "bash", "/opt/provision/prove-clean.sh"]);
    assert!(!output.status.success() && said(&output).contains("not 0.0.1"), "{}", said(&output));
    assert!(script("prove-clean").status.success());
}

/// The path as the proof names it: of what lies in a folder that must be empty, the folder's entry.
fn first_parts(path: &str) -> &str {
    for folder in ["var/lib/tapfleet/", "var/lib/amazon/ssm/", "var/log/journal/", "root/.aws", "var/tmp/"] {
        if let Some(rest) = path.strip_prefix(folder) {
            let end = rest.find('/').unwrap_or(rest.len());
            return &path[..folder.len() + if folder.ends_with('/') { end } else { 0 }];
        }
    }
    path
}

/// Has packer provision a Debian as it does an instance: finds the source image, reaches the builder by SSH, installs, cleans, proves,
/// makes the image. Gives the builder's disk.
fn provisioned(folder: &Path) -> Mount {
    let disk = Mount::over(&root_folder("builder"), &folder.join("builder"));
    let key = folder.join("key");
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    let user = r#"useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/90-cloud-init-users
install -d -m 0700 -o admin -g admin /home/admin/.ssh && install -m 0600 -o admin -g admin /key.pub /home/admin/.ssh/authorized_keys"#;
    fs::copy(key.with_extension("pub"), disk.at().join("key.pub")).unwrap();
    run("chroot", &[disk.at().to_str().unwrap(), "bash", "-ec", user]);
    fs::remove_file(disk.at().join("key.pub")).unwrap();

    let machine = Machine::of(disk.at(), &[]);
    machine.wait_for("SSH answers", Duration::from_secs(30), |machine| machine.property_of("ssh.service", "ActiveState") == "active");
    let netns = machine.pair.source.name();
    let moto = emulator(Some(netns), folder);
    let template = Template::new(&format!(
        "{}  ssh_host = \"10.77.0.2\"\n  ssh_private_key_file = \"{}\"\n  ssh_keypair_name = \"builder\"\n",
        endpoint(&moto),
        key.display()
    ));
    moto.ask("ec2", "create_key_pair", &json!({ "KeyName": "builder" }));
    let packages = Packages::of_this_source();
    let version = version(packages);
    let variables = [
        ("agent", packages.deb.to_str().unwrap()),
        ("agent_version", version.as_str()),
        ("agent_commit", "0ac544858"),
        ("distribution", "debian-12"),
        ("region", REGION),
    ];
    let output = template.packer("build", Some(netns), &variables);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains(&format!("clean: tapfleet {version}-1")), "{}", said(&output));
    disk
}

/// The version of packages, without its revision.
fn version(packages: &Packages) -> String {
    let version = run("dpkg-deb", &["--field", packages.deb.to_str().unwrap(), "Version"]);
    version.trim().strip_suffix("-1").unwrap().to_owned()
}

/// An EC2 that has [`IMAGES`] and no others.
fn emulator(netns: Option<&str>, folder: &Path) -> Moto {
    let images: Vec<Value> = IMAGES.iter().zip(1..).map(|((_, owner, name), number)| image(owner, name, number)).collect();
    let file = folder.join("images.json");
    fs::write(&file, Value::from(images).to_string()).unwrap();
    Moto::start_in(netns, &[("MOTO_AMIS_PATH", file.to_str().unwrap())])
}

/// An image as moto reads it.
fn image(owner: &str, name: &str, number: u32) -> Value {
    json!({
        "ami_id": format!("ami-{number:017x}"), "name": name, "owner_id": owner, "architecture": "x86_64", "description": name,
        "root_device_name": "/dev/xvda", "root_device_type": "ebs", "virtualization_type": "hvm", "hypervisor": "xen",
        "image_location": name, "image_type": "machine", "owner_alias": "amazon", "public": true, "platform": null, "state": "available",
        "creation_date": "2026-11-01T00:00:00.000Z", "sriov": "simple",
    })
}

/// Lines of the template's source that send its calls there.
fn endpoint(moto: &Moto) -> String {
    format!("  custom_endpoint_ec2 = \"{}\"\n  skip_region_validation = true\n  skip_metadata_api_check = true\n", moto.endpoint())
}

/// The packer that [`TOO_NEW`] is of, whichever comes first on PATH.
fn packer() -> &'static str {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| setup("packer")).to_str().unwrap()
}

/// A copy of the template that an old packer takes.
struct Template {
    folder: tempfile::TempDir,
}

impl Template {
    /// One without what is too new, and with `lines` in its source.
    fn new(lines: &str) -> Self {
        let template = Self { folder: tempfile::tempdir().unwrap() };
        let copied = try_run("cp", &["-r", root().join("packer/.").to_str().unwrap(), template.folder.path().to_str().unwrap()]);
        assert!(copied.status.success(), "{}", said(&copied));
        fs::remove_file(template.folder.path().join(TOO_NEW_FILE)).unwrap();
        // What it would bring to the builder; it looks whether that is there.
        for agent in ["agent.deb", "agent.rpm", "agent.tar.gz"] {
            fs::write(template.folder.path().join(agent), "").unwrap();
        }
        template.edit("tapfleet.pkr.hcl", |text| {
            let text = TOO_NEW.iter().fold(text, |text, part| without(&text, part));
            let head = "source \"amazon-ebs\" \"agent\" {\n";
            assert!(text.contains(head), "{text}");
            text.replace(head, &format!("{head}{lines}"))
        });
        template
    }

    fn edit(&self, file: &str, change: impl FnOnce(String) -> String) {
        let path = self.folder.path().join(file);
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    }

    fn packer(&self, verb: &str, netns: Option<&str>, variables: &[(&str, &str)]) -> Output {
        let mut command = match netns {
            None => Command::new(packer()),
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, packer()]);
                command
            }
        };
        command.arg(verb);
        if verb == "build" {
            command.arg("-color=false");
        }
        for (name, value) in variables {
            command.args(["-var", &format!("{name}={value}")]);
        }
        command.arg(".").current_dir(self.folder.path()).stdin(Stdio::null());
        // No settings, plugins or certificates of whoever runs the test; asks nobody for updates.
        command.env("HOME", self.folder.path()).env("CHECKPOINT_DISABLE", "1").env_remove("AWS_CA_BUNDLE").env_remove("AWS_ENDPOINT_URL");
        command.env("AWS_ACCESS_KEY_ID", CREDENTIALS).env("AWS_SECRET_ACCESS_KEY", CREDENTIALS).env("NO_PROXY", "*");
        command.output().unwrap_or_else(|cause| panic!("cannot run {}: {cause}", packer()))
    }
}

/// A text without the one line that begins so once its spaces are evened, or the block that it opens.
fn without(text: &str, part: &str) -> String {
    let evened = |line: &str| {
        let indent: String = line.chars().take_while(|one| *one == ' ').collect();
        indent + &line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (mut kept, mut cut, mut within) = (String::new(), 0, false);
    for line in text.lines() {
        let begins = evened(line).starts_with(part.trim_end());
        cut += u32::from(begins);
        within |= begins;
        if !within {
            kept.push_str(line);
            kept.push('\n');
        }
        within &= part.ends_with('{') && line != "  }";
    }
    assert_eq!(cut, 1, "'{part}' stands {cut} times in the template");
    kept
}

/// What udev does on an instance: the link by the label, in a machine without udev.
fn stand_in_for_udev(image: &Path, disk: &Disk) {
    let line = format!("L /dev/disk/by-label/{LABEL} - - - - {}\n", disk.device());
    fs::write(image.join("etc/tmpfiles.d/stand-in.conf"), line).unwrap();
}

/// Keeps cloud-init of the next boot from running before [`seed`], and from setting up a network: the namespace has one. (A minimal Debian
/// has no locale but this.)
fn hold_cloud_init(image: &Path) {
    fs::write(image.join("etc/cloud/cloud-init.disabled"), "").unwrap();
    fs::write(
        image.join("etc/cloud/cloud.cfg.d/98-stand-in.cfg"),
        "network: {config: disabled}\ndatasource_list: [NoCloud]\nlocale: C.UTF-8\n",
    )
    .unwrap();
}

/// Gives an instance its user data, as EC2's metadata does, and lets cloud-init run its stages as at boot.
fn seed(machine: &Machine, user_data: &str) {
    machine.write("var/lib/cloud/seed/nocloud/meta-data", &format!("instance-id: {INSTANCE}\nlocal-hostname: sensor\n"));
    machine.write("var/lib/cloud/seed/nocloud/user-data", user_data);
    fs::remove_file(machine.path("etc/cloud/cloud-init.disabled")).unwrap();
    for stage in [["init", "--local"].as_slice(), &["init"], &["modules", "--mode=config"], &["modules", "--mode=final"]] {
        let output = machine.output("cloud-init", stage);
        assert!(output.status.success(), "cloud-init {}: {}", stage.join(" "), said(&output));
    }
}

/// What Terraform's module writes for an instance with that S3 and topic.
fn user_data(folder: &Path, mailbox: &Mailbox) -> String {
    let module = folder.join("user_data");
    let copied = try_run("cp", &["-r", root().join("terraform/modules/user_data").to_str().unwrap(), module.to_str().unwrap()]);
    assert!(copied.status.success(), "{}", said(&copied));
    let settings = json!({
        "capture": { "interface": TAP, "ring_bytes": "64MiB" },
        "record": { "rotate_seconds": 2 },
        "spool": { "dir": SPOOL, "max_bytes": "64MiB" },
        "s3": { "bucket": BUCKET, "region": REGION, "endpoint_url": mailbox.endpoint() },
        "alert": { "topic_arn": mailbox.topic },
        "lifecycle": { "shutdown": "1s" },
        "instance": { "id": INSTANCE, "region": REGION, "az": format!("{REGION}a") },
    });
    let variables = json!({
        "name": "image-test",
        "settings": settings,
        "environment": {
            "AWS_ENDPOINT_URL": mailbox.endpoint(),
            "AWS_ACCESS_KEY_ID": CREDENTIALS,
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS,
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    });
    fs::write(module.join("terraform.tfvars.json"), variables.to_string()).unwrap();
    let terraform = PathBuf::from(run(root().join("tests/setup/terraform.sh").to_str().unwrap(), &[]).trim());
    let terraform = |arguments: &[&str]| {
        let folder = format!("-chdir={}", module.display());
        run(terraform.to_str().unwrap(), &[&[folder.as_str()], arguments].concat())
    };
    terraform(&["init", "-input=false", "-no-color"]);
    terraform(&["apply", "-auto-approve", "-input=false", "-no-color"]);
    terraform(&["output", "-raw", "user_data"])
}

/// The numbers of the packets in all captures of the bucket, each as often as it came.
fn stored(mailbox: &Mailbox) -> Vec<u64> {
    let bodies = mailbox.ask(async |_| {
        let client = client(&mailbox.aws.endpoint());
        let listed = client.list_objects_v2().bucket(BUCKET).prefix(format!("{INSTANCE}/")).send().await.unwrap();
        let mut bodies = Vec::new();
        for object in listed.contents() {
            let got = client.get_object().bucket(BUCKET).key(object.key().unwrap()).send().await.unwrap();
            bodies.push(got.body.collect().await.unwrap().to_vec());
        }
        bodies
    });
    bodies.iter().flat_map(|body| records(body)).map(|record| numbered::number(&record.bytes).unwrap()).collect()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
