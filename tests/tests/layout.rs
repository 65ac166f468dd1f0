//! The shape of the project as tests: who may import whom, where `unsafe` and the AWS SDK may stand, what the daemon is linked with.
//! In: the source files and `cargo tree`. Never: runs the code. Spec: README.md "Invariants".
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each stage of the library may name besides itself: a stage, or one module of it.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("capture", &["wire", "host", "observe::counters"]),
    ("record", &["wire", "capture", "observe::counters", "host::clock", "host::nic::LossCounters"]),
    ("spool", &["record", "observe::counters", "host::clock"]),
    ("upload", &["spool", "record", "observe::counters", "aws"]),
    ("alert", &["observe::counters", "host::clock", "aws"]),
    ("aws", &[]),
    ("host", &["observe::counters"]),
    ("observe", &["wire", "host::clock"]),
    ("config", &["wire", "capture", "record", "spool", "upload", "alert", "host", "observe"]),
    ("run", &["wire", "capture", "record", "spool", "upload", "alert", "host", "observe", "config"]),
    ("cli", &["wire", "capture", "record", "spool", "upload", "alert", "host", "observe", "config", "run"]),
    ("main", &["cli", "config", "run"]),
    ("lib", &[]),
];

/// What the command for people may use of the library.
const OPERATOR_MAY_IMPORT: &[&str] = &["wire", "capture", "record", "upload::manifest", "upload::s3", "observe::counters", "host::clock"];

/// Where `unsafe` may stand; a folder ends in `/`.
const UNSAFE: &[&str] = &["agent/src/capture/ring/", "agent/src/host/ethtool.rs"];

/// File names that say nothing.
const DRAWERS: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc", "types", "manager", "handler"];

/// Crates that have no place in the daemon, by how their names begin, and why.
const NOT_IN_THE_DAEMON: &[(&str, &str)] = &[
    ("aws-sdk-sso", "the instance role gives the credentials"),
    ("aws-sdk-athena", "questions are asked by people, not by the agent"),
    ("comfy-table", "tables are for people"),
    ("tabled", "tables are for people"),
    ("prettytable", "tables are for people"),
    ("indicatif", "progress bars are for people"),
    ("pbr", "progress bars are for people"),
    ("openssl-sys", "one TLS stack"),
    ("native-tls", "one TLS stack"),
];

/// Crates of which two major versions would be two stacks. `http` is not among them: the CloudWatch SDK brings the types of 0.2, and no
/// stack that speaks with them.
const ONE_VERSION: &[&str] = &["rustls", "hyper", "tokio", "h2", "aws-smithy-runtime"];

#[test]
fn a_stage_names_only_the_stages_that_the_table_allows() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources(&["agent/src"]) {
        let stage = source.stage();
        let (_, allowed) =
            MAY_IMPORT.iter().find(|(name, _)| *name == stage).unwrap_or_else(|| panic!("no row for '{stage}' in MAY_IMPORT"));
        for path in source.crate_paths() {
            seen += 1;
            // A constant of the crate itself (`crate::VERSION`) belongs to nobody.
            if path[0].starts_with(char::is_uppercase) {
                continue;
            }
            if path[0] != stage && !is_allowed(&path, allowed) {
                wrong.push(format!("{}: '{stage}' names crate::{}", source.name, path.join("::")));
            }
        }
    }
    assert!(seen > 20, "only {seen} paths were found: the reader is broken");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_wire_stage_needs_nothing_but_std() {
    let mut wrong = Vec::new();
    for source in sources(&["agent/src/wire"]) {
        for line in source.code.lines().map(str::trim).filter(|line| line.starts_with("use ") || line.starts_with("pub use ")) {
            let root = line.trim_start_matches("pub ").trim_start_matches("use ").split([':', ';', ' ']).next().unwrap_or_default();
            let local = source.code.contains(&format!("mod {root};"));
            if !local && !["std", "core", "crate", "super", "self"].contains(&root) {
                wrong.push(format!("{}: {line}", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_operator_uses_the_library_by_its_doors() {
    let mut wrong = Vec::new();
    for source in sources(&["operator/src"]) {
        for path in paths_after(&source.code, "tapfleet::") {
            if !is_allowed(&path, OPERATOR_MAY_IMPORT) {
                wrong.push(format!("{}: names tapfleet::{}", source.name, path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_where_the_kernel_is_spoken_to() {
    for source in sources(&["agent", "operator", "tests"]) {
        if !has_word(&without_comments_and_strings(&source.text), "unsafe") {
            continue;
        }
        let allowed = UNSAFE.iter().any(|place| source.name == *place || (place.ends_with('/') && source.name.starts_with(place)));
        assert!(allowed, "{} has unsafe code", source.name);
    }
}

#[test]
fn no_lock_is_taken_for_a_packet() {
    let mut sources = sources(&["agent/src/wire", "agent/src/capture", "agent/src/record"]);
    sources
        .extend(["observe/counters.rs", "host/clock.rs", "spool/budget.rs"].map(|file| Source::read(&root().join("agent/src").join(file))));
    assert!(sources.len() > 20, "only {} files were found", sources.len());
    let locks = ["Mutex", "RwLock", "Condvar", "Barrier", "OnceLock", "LazyLock"];
    let has_one = |source: &&Source| !source.name.ends_with("/tests.rs") && locks.iter().any(|lock| has_word(&source.code, lock));
    let with: Vec<_> = sources.iter().filter(has_one).map(|source| source.name.as_str()).collect();
    // Once a block, and when rings are opened and closed.
    assert_eq!(with, ["agent/src/capture/ring/group.rs"]);
}

#[test]
fn no_file_is_named_like_a_drawer() {
    for source in sources(&["agent", "operator", "tests"]) {
        let path = Path::new(&source.name);
        for name in path.components().filter_map(|part| Path::new(part.as_os_str()).file_stem()?.to_str()) {
            assert!(!DRAWERS.contains(&name), "{}: '{name}' says nothing; name the thing", source.name);
        }
    }
}

#[test]
fn every_module_opens_by_saying_what_it_is() {
    for source in sources(&["agent", "operator", "tests"]) {
        assert!(source.text.starts_with("//!"), "{} does not open with //!", source.name);
        // The drawing of a header does not count.
        let head = source.text.lines().take_while(|line| line.starts_with("//!"));
        let (prose, _) = head.fold((0, false), |(prose, drawing), line| match line.starts_with("//! ```") {
            true => (prose, !drawing),
            false => (prose + usize::from(!drawing), drawing),
        });
        assert!(prose <= 8, "{} opens with {prose} lines of //!; say it in at most 8", source.name);
        assert!(!source.text.starts_with("//! Stub"), "{} is a stub", source.name);
    }
}

#[test]
fn no_test_is_ignored() {
    let mark = ["#[ign", "ore"].concat();
    for source in sources(&["agent", "operator", "tests"]) {
        assert!(!source.text.contains(&mark), "{} ignores a test: let it fail and say what is missing", source.name);
    }
}

#[test]
fn one_file_names_the_s3_sdk() {
    let places: Vec<_> =
        sources(&["agent/src", "operator/src"]).into_iter().filter(|s| has_word(&s.code, "aws_sdk_s3")).map(|s| s.name).collect();
    assert_eq!(places, ["agent/src/upload/s3.rs"]);
}

#[test]
fn one_file_names_the_sns_sdk() {
    let places: Vec<_> =
        sources(&["agent/src", "operator/src"]).into_iter().filter(|s| has_word(&s.code, "aws_sdk_sns")).map(|s| s.name).collect();
    assert_eq!(places, ["agent/src/alert/sns.rs"]);
}

#[test]
fn one_file_names_the_cloudwatch_sdk() {
    let places: Vec<_> =
        sources(&["agent/src", "operator/src"]).into_iter().filter(|s| has_word(&s.code, "aws_sdk_cloudwatch")).map(|s| s.name).collect();
    assert_eq!(places, ["agent/src/observe/cloudwatch.rs"]);
}

#[test]
fn one_file_names_the_auto_scaling_sdk() {
    let places: Vec<_> =
        sources(&["agent/src", "operator/src"]).into_iter().filter(|s| has_word(&s.code, "aws_sdk_autoscaling")).map(|s| s.name).collect();
    assert_eq!(places, ["agent/src/host/autoscaling.rs"]);
}

#[test]
fn a_suite_says_what_it_needs() {
    // tests/run.sh reads it: who may run the suite, and what `make test-quick` leaves out.
    for source in sources(&["tests/tests"]) {
        let head: Vec<_> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let needs = head.iter().find(|line| line.starts_with("//! Needs:")).copied().unwrap_or_default();
        for (harness, need) in [
            ("netns::", "root"),
            ("machine::", "systemd-nspawn"),
            ("localstack::", "S3"),
            ("moto::", "moto"),
            ("emulator::", "moto, S3"),
            ("terraform::", "terraform"),
        ] {
            let uses = source.name != "tests/tests/layout.rs" && source.text.contains(harness);
            assert!(!uses || needs.contains(need), "{} uses {harness} and does not say '//! Needs: {need}'", source.name);
        }
    }
}

#[test]
fn the_daemon_is_linked_with_one_stack_and_nothing_for_people() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-p", "tapfleet", "-e", "normal", "--prefix", "none", "-f", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let mut majors: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8(tree.stdout).unwrap().lines() {
        let mut words = line.split(' ');
        let (name, version) = (words.next().unwrap(), words.next().unwrap_or_default().trim_start_matches('v'));
        majors.entry(name.into()).or_default().insert(major(version));
    }
    assert!(majors.contains_key("aws-sdk-s3"), "the tree does not look like the daemon's: {majors:?}");
    for (start, why) in NOT_IN_THE_DAEMON {
        let found: Vec<_> = majors.keys().filter(|name| name.starts_with(start)).collect();
        assert!(found.is_empty(), "{found:?} is linked into the daemon: {why}");
    }
    for name in ONE_VERSION {
        let versions = majors.get(*name).cloned().unwrap_or_default();
        assert!(versions.len() <= 1, "{name} is linked in versions {versions:?}");
    }
}

#[test]
fn the_readme_is_short_and_names_only_tests_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() < 200, "README.md has {} lines", readme.lines().count());
    let all: String = sources(&["agent", "operator", "tests"]).into_iter().map(|source| source.text).collect();
    let mut named = 0;
    for line in readme.lines().filter(|line| line.starts_with('|')) {
        for name in line.split('`').skip(1).step_by(2).filter(|name| is_test_name(name)) {
            named += 1;
            assert!(all.contains(&format!("fn {name}(")), "README.md names the test '{name}', which does not exist");
        }
    }
    assert!(named > 0, "the promises table names no test");
}

/// One source file.
struct Source {
    /// Path from the project's root.
    name: String,
    text: String,
    /// The text before the test module, without comments and string literals; nothing of a file that is one.
    code: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let code = if path.ends_with("tests.rs") { String::new() } else { without_comments_and_strings(before_tests(&text)) };
        Self { name: path.strip_prefix(root()).unwrap().to_str().unwrap().into(), text, code }
    }

    /// Module path from the crate's root: `capture::ring::socket`.
    fn module(&self) -> Vec<&str> {
        let inside = self.name.split_once("/src/").unwrap().1.trim_end_matches(".rs").trim_end_matches("/mod");
        inside.split('/').collect()
    }

    fn stage(&self) -> &str {
        self.module()[0]
    }

    /// Every path that leads through the crate's root: `crate::…`, and `super::…` that climbs as far. In the programs beside the
    /// library (`main.rs`, `cli.rs`) the library's name leads there, too.
    fn crate_paths(&self) -> Vec<Vec<String>> {
        let mut paths = paths_after(&self.code, "crate::");
        paths.extend(paths_after(&self.code, "tapfleet::"));
        let climb = "super::".repeat(self.module().len());
        paths.extend(paths_after(&self.code, &climb));
        paths
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources(folders: &[&str]) -> Vec<Source> {
    fn walk(folder: &Path, into: &mut Vec<Source>) {
        let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(Source::read(&path));
            }
        }
    }
    let mut all = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut all);
    }
    assert!(!all.is_empty(), "no sources under {folders:?}");
    all
}

fn before_tests(text: &str) -> &str {
    // A file's test module stands at its end; a lone `#[cfg(test)]` function before it does not end the code.
    let modules = text.match_indices("#[cfg(test)]").filter(|(at, _)| {
        text[*at..]
            .lines()
            .skip(1)
            .find(|line| !line.trim_start().starts_with("#["))
            .is_some_and(|line| line.trim_start().starts_with("mod "))
    });
    modules.map(|(at, _)| at).next().map_or(text, |at| &text[..at])
}

/// The code alone. Knows line comments and plain string literals; that is enough for sources that rustfmt has been over.
fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut rest = line.chars().peekable();
        let mut in_string = false;
        while let Some(c) = rest.next() {
            match c {
                '\\' if in_string => drop(rest.next()),
                '"' => in_string = !in_string,
                '/' if !in_string && rest.peek() == Some(&'/') => break,
                '\'' if !in_string => {
                    // A character literal may be a quote or a slash: '"', '/', '\''.
                    let ahead: String = rest.clone().take(3).collect();
                    let skip = if ahead.starts_with('\\') {
                        ahead.find('\'').map(|_| 3)
                    } else {
                        (ahead.chars().nth(1) == Some('\'')).then_some(2)
                    };
                    for _ in 0..skip.unwrap_or(0) {
                        rest.next();
                    }
                }
                c if !in_string => out.push(c),
                _ => {}
            }
        }
        out.push('\n');
    }
    out
}

/// The paths that follow `lead` in the code, braces multiplied out: `crate::a::{b, c::{d, e}}` gives a::b, a::c::d, a::c::e.
fn paths_after(code: &str, lead: &str) -> Vec<Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = Vec::new();
    for (at, _) in code.match_indices(lead) {
        // `super::super::` is not the lead `super::`, and `my_crate::` is not `crate::`.
        let whole = !code[..at].ends_with(|c| is_name(c) || c == ':');
        let rest = &code[at + lead.len()..];
        if whole && !rest.starts_with("super::") {
            multiply_out(rest, &mut Vec::new(), &mut paths);
        }
    }
    paths
}

/// Reads one path or brace group at the start of `text` and returns how much of it.
fn multiply_out(text: &str, before: &mut Vec<String>, into: &mut Vec<Vec<String>>) -> usize {
    let depth = before.len();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            while !text[at..].starts_with('}') {
                let gap = text[at..].find(|c: char| !c.is_whitespace() && c != ',').unwrap_or(text.len() - at);
                at += gap;
                if at >= text.len() || text[at..].starts_with('}') {
                    break;
                }
                at += multiply_out(&text[at..], before, into).max(1);
            }
            before.truncate(depth);
            return (at + 1).min(text.len());
        }
        let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        before.push(if name == 0 { "*".into() } else { rest[..name].into() });
        at += name.max(usize::from(rest.starts_with('*')));
        if !text[at..].starts_with("::") {
            break;
        }
        at += 2;
    }
    into.push(before.clone());
    before.truncate(depth);
    // ` as name` belongs to the path.
    at + text[at..].find([',', '}', ';', '\n']).filter(|end| text[at..at + end].starts_with(" as ")).unwrap_or(0)
}

fn is_allowed(path: &[String], allowed: &[&str]) -> bool {
    allowed.iter().any(|row| row.split("::").zip(path).filter(|(a, b)| a == b).count() == row.split("::").count())
}

fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

/// A version's part that decides about compatibility: 1.2.3 → 1, 0.14.2 → 0.14.
fn major(version: &str) -> String {
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some("0"), Some(minor)) => format!("0.{minor}"),
        (major, _) => major.unwrap_or_default().into(),
    }
}

fn is_test_name(name: &str) -> bool {
    name.len() > 15 && name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn the_reader_of_imports_sees_braces_renames_and_what_climbs_out() {
    let paths = |code: &str, lead| -> Vec<String> { paths_after(code, lead).iter().map(|path| path.join("::")).collect() };
    assert_eq!(
        paths("use crate::a::{b, c::{d as x, *},\n e::F};\nlet y = crate::g::h(crate::i::J);", "crate::"),
        ["a::b", "a::c::d", "a::c::*", "a::e::F", "g::h", "i::J"]
    );
    assert_eq!(paths("use super::super::x::Y; use super::z;", "super::super::"), ["x::Y"]);
    assert_eq!(paths("use super::super::x::Y; use super::z;", "super::"), ["z"]);
    assert_eq!(without_comments_and_strings("a('\"', \"crate::x // y\", b) // crate::z"), "a(, , b) \n");
    let stage = |text: &str| is_allowed(&text.split("::").map(String::from).collect::<Vec<_>>(), &["wire", "observe::counters"]);
    assert!(stage("wire::Drop") && stage("observe::counters::Count") && !stage("observe::metrics::x") && !stage("run"));
}
