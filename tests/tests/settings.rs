//! Promises about settings: every error at once, each with key, value, place and what is allowed; nothing hostile does harm.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tapfleet::capture::EngineKind;
use tapfleet::config::{Origin, Settings, Written, Wrong, example};
use tapfleet::record::{Compression, Format, Precision};
use tapfleet::wire::Inline;

/// One wrong value for each kind of mistake that a key can have, as TOML.
const WRONG: [(&str, &[&str]); 51] = [
    ("capture.interface", &["\"\"", "\"any\"", "\"sixteen-bytes-xx\"", "\"a b\"", "\"..\"", "\"eth0\\u0000\"", "3"]),
    ("capture.engine", &["\"Ring\"", "\"\"", "true"]),
    ("capture.files", &["\"a.pcap\"", "[1]", "[\"\"]", "{}"]),
    ("capture.ports.geneve", &["0", "65536", "-1", "\"6081\"", "6081.0"]),
    ("capture.ports.vxlan", &["0", "9223372036854775807", "[4789]"]),
    ("capture.filter", &["\"tcp prt 80\"", "\"tcp\\n\"", "1", "[]"]),
    ("capture.snaplen", &["0", "262145", "-9223372036854775808", "\"96\"", "1e3"]),
    ("capture.threads", &["0", "65"]),
    ("capture.fanout", &["\"cpu\"", "\"\""]),
    ("capture.ring_bytes", &["4194303", "\"17GiB\"", "\"256MB\"", "\"99999999999TiB\"", "\"-1\"", "\"\"", "false"]),
    ("capture.outer_sources", &["[\"10.0.0.1/8\"]", "[\"10.0.0.0/33\"]", "[\"x\"]", "\"10.0.0.0/8\""]),
    ("capture.mirror_sources", &["[\"10.0.0.0\"]", "[\"\"]"]),
    ("record.rotate_seconds", &["0", "7", "86401", "\"900\""]),
    ("record.max_bytes", &["1048575", "\"2TiB\""]),
    ("record.format", &["\"PCAP\"", "\"pcap.zst\""]),
    ("record.precision", &["\"ms\"", "6"]),
    ("record.compression", &["\"gzip\"", "false"]),
    ("record.schedule", &["\"Mon-Fri 08:00-18:00 UTC\"", "[\"Mon-Fri 08:00-18:00 Mars/Base\"]", "[\"\"]"]),
    ("record.quarantine_bytes_per_s", &["-1", "\"2GiB\""]),
    ("record.inline", &["\"drop\"", "true"]),
    ("spool.dir", &["\"\"", "\"spool\"", "\"/a\\u0000b\""]),
    ("spool.max_bytes", &["0", "\"2000TiB\"", "1.5"]),
    ("spool.on_full", &["\"drop\"", "true"]),
    ("spool.flush_ms", &["0", "801"]),
    ("spool.sync_ms", &["0", "1001"]),
    ("spool.allow_root_device", &["\"true\"", "1"]),
    ("s3.bucket", &["\"\"", "\"ab\"", "\"Captures\"", "\"192.168.1.1\"", "\"a..b\"", "\"-ab\"", "\"a/b\"", "7"]),
    ("s3.key_prefix", &["\"x\"", "\"/x/\"", "\"x//\"", "\"../\"", "\"status/\"", "\"manifest/x/\"", "\"/\""]),
    ("s3.region", &["\"\"", "\"EU\"", "5"]),
    (
        "s3.endpoint_url",
        &["\"\"", "\"localhost:1\"", "\"http://\"", "\"http://u:p@h\"", "\"http://h:0\"", "\"http://h:99999\"", "\"http://:1\""],
    ),
    ("s3.storage_class", &["\"standard\"", "\"\""]),
    ("s3.kms_key", &["\"\"", "\"a key\""]),
    ("s3.expected_bucket_owner", &["123456789012", "\"12345678901\"", "\"12345678901x\"", "\"\""]),
    (
        "alert.topic_arn",
        &[
            "\"alerts\"",
            "\"arn:aws:sqs:eu-north-1:123456789012:alerts\"",
            "\"arn:aws:sns:eu-north-1:12345:alerts\"",
            "\"arn:aws:sns:eu-north-1:123456789012:alerts.fifo\"",
            "\"arn:aws:sns:eu-north-1:123456789012:alerts:sub\"",
            "5",
        ],
    ),
    ("alert.silence", &["\"8d\"", "\"5 minutes\"", "\"-1s\"", "-1", "1.5", "\"\"", "\"99999999999999999999d\""]),
    ("alert.drop_ratio", &["1.1", "-0.1", "2", "nan", "inf", "\"0.1\"", "true"]),
    ("alert.repeat", &["0", "\"0s\"", "\"8d\"", "[]"]),
    ("alert.on_start", &["\"true\"", "1"]),
    ("alert.dir", &["\"\"", "\"outbox\""]),
    ("health.listen", &["\"8080\"", "\"localhost:8080\"", "8080", "\"0.0.0.0:65536\""]),
    ("metrics.cloudwatch_namespace", &["\"AWS/EC2\"", "\":x\"", "\"a b\"", "1", "[]"]),
    ("tee.interface", &["\"auto\"", "\"lo\"", "\"any\"", "\"a/b\"", "4"]),
    ("host.time_server", &["\"time.example.net\"", "\"10.0.0.1:0\"", "\"10.0.0.1/8\"", "123", "\"169.254.169.123:99999\""]),
    ("lifecycle.hook", &["\"\"", "\"a b\"", "4"]),
    ("lifecycle.rotate_seconds", &["0", "7", "86401", "\"15s\""]),
    ("lifecycle.linger", &["\"2d\"", "-1", "[]"]),
    ("lifecycle.shutdown", &["\"2h\"", "\"x\""]),
    ("instance.id", &["\"\"", "\"a/b\"", "\"..\"", "\"status\""]),
    ("instance.region", &["\"\"", "\"x y\""]),
    ("instance.az", &["\"\"", "\"A\""]),
    ("instance.group", &["\"\"", "\"a:b\"", "4"]),
];

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn read(toml: &str, pairs: &[(&str, &str)]) -> Written {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), toml).unwrap();
    Written::read(Some(file.path()), variables(pairs), [])
}

fn meant(toml: &str, pairs: &[(&str, &str)]) -> Settings {
    read(toml, pairs).meant().unwrap_or_else(|errors| panic!("{errors}"))
}

fn wrong(toml: &str, pairs: &[(&str, &str)]) -> Vec<Wrong> {
    read(toml, pairs).meant().unwrap_err().0
}

const BUCKET: &str = "s3.bucket = \"my-captures\"\n";

/// Every key of the example file, section and name, with the value that stands there.
fn keys() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in example().lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((name, value)) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")
            && !name.contains(' ')
        {
            keys.push((format!("{section}.{name}"), value.to_owned()));
        }
    }
    keys
}

#[test]
fn the_example_file_is_the_one_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/tapfleet.example.toml");
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == example(), "{} is not what the table says: tapfleetd check --example > agent/tapfleet.example.toml", path.display());
}

#[test]
fn the_example_file_is_read_without_an_error_also_with_every_line_in_force() {
    let settings = meant(&example(), &[]);
    assert_eq!(settings.upload.bucket, "my-captures");
    assert_eq!(settings.upload.region, None);
    let in_force: String = keys().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let all = meant(&in_force, &[]);
    assert_eq!(all.instance.id.as_deref(), Some("i-0123456789abcdef0"));
    assert_eq!(all.upload.storage_class.as_deref(), Some("STANDARD_IA"));
    // What has a default has the same with and without its line.
    assert_eq!(format!("{:?}", all.spool), format!("{:?}", settings.spool));
    assert_eq!(format!("{:?}", all.capture), format!("{:?}", settings.capture));
}

#[test]
fn the_defaults_are_those_of_the_design() {
    let settings = meant(BUCKET, &[]);
    let capture = &settings.capture;
    assert_eq!((capture.engine, capture.interface.as_str(), capture.threads), (EngineKind::Ring, "auto", 1));
    assert_eq!((capture.rules.geneve_port, capture.rules.vxlan_port, capture.rules.inline), (6081, 4789, Inline::Ignore));
    assert_eq!((capture.snaplen, capture.ring_bytes, capture.filter.as_deref()), (262_144, 256 << 20, None));
    let record = &settings.record;
    assert_eq!((record.rotate_seconds, record.max_bytes, record.quarantine_bytes_per_s), (900, 1 << 40, 64 << 10));
    assert_eq!((record.format, record.precision, record.compression), (Format::Pcap, Precision::Micro, Compression::None));
    assert!(record.schedule.is_none() && record.instance.is_empty());
    assert_eq!((settings.spool.flush_ms, settings.spool.sync_ms, settings.spool.allow_root_device), (500, 500, false));
    assert_eq!(settings.spool.dir, PathBuf::from("/var/lib/tapfleet/spool"));
    assert_eq!(settings.health.listen, "0.0.0.0:8080".parse().unwrap());
    assert_eq!((settings.metrics.cloudwatch_namespace, settings.host.time_server), (None, "169.254.169.123:123".parse().ok()));
    let lifecycle = &settings.lifecycle;
    assert_eq!((lifecycle.hook.as_deref(), lifecycle.rotate_seconds, lifecycle.window_seconds), (None, 15, 900));
    assert_eq!((lifecycle.linger, lifecycle.shutdown), (Duration::from_secs(300), Duration::from_secs(300)));
    let alert = &settings.alert;
    assert_eq!((alert.topic_arn.as_deref(), alert.drop_ratio, alert.on_start), (None, 0.001, false));
    assert_eq!((alert.silence, alert.repeat), (Some(Duration::from_secs(300)), Duration::from_secs(3600)));
    assert_eq!(alert.dir, PathBuf::from("/var/lib/tapfleet/outbox"));
    assert_eq!(alert.spool_max_bytes, settings.spool.max_bytes);
}

#[test]
fn times_and_ratios_are_read_in_each_way_of_writing_them() {
    for (written, seconds) in [("90", 90), ("\"90s\"", 90), ("\"2min\"", 120), ("\" 3 h\"", 10_800), ("\"7d\"", 604_800)] {
        let settings = meant(&format!("{BUCKET}alert.silence = {written}\n"), &[]);
        assert_eq!(settings.alert.silence, Some(Duration::from_secs(seconds)), "{written}");
    }
    for (written, ratio) in [("0", 0.0), ("1", 1.0), ("0.25", 0.25), ("1e-3", 0.001)] {
        assert_eq!(meant(&format!("{BUCKET}alert.drop_ratio = {written}\n"), &[]).alert.drop_ratio, ratio);
        assert_eq!(meant(BUCKET, &[("TAPFLEET__ALERT__DROP_RATIO", written)]).alert.drop_ratio, ratio);
    }
    assert_eq!(meant(BUCKET, &[("TAPFLEET__ALERT__SILENCE", "0")]).alert.silence, None, "0: silence is no trouble");
}

#[test]
fn an_outbox_within_the_spool_is_refused() {
    for dir in ["/data/spool", "/data/spool/outbox", "/data/spool/./x"] {
        let found = wrong(&format!("{BUCKET}spool.dir = \"/data/spool\"\nalert.dir = \"{dir}\"\n"), &[]);
        assert_eq!(found.iter().map(Wrong::key).collect::<Vec<_>>(), [Some("alert.dir")], "{dir}");
    }
    meant(&format!("{BUCKET}spool.dir = \"/data/spool\"\nalert.dir = \"/data/spool-2\"\n"), &[]);
}

#[test]
fn alerts_work_when_other_settings_are_wrong() {
    let topic = "arn:aws:sns:eu-north-1:123456789012:alerts";
    let (alert, _) = read(&format!("capture.threads = 0\nalert.topic_arn = \"{topic}\"\n"), &[]).alert().unwrap();
    assert_eq!(alert.topic_arn.as_deref(), Some(topic));
    let errors = read("capture.threads = 0\nalert.repeat = 0\n", &[]).alert().unwrap_err();
    assert_eq!(errors.0.iter().map(Wrong::key).collect::<Vec<_>>(), [Some("alert.repeat")]);
}

#[test]
fn a_wrong_value_of_every_key_is_named_with_key_value_place_and_what_is_allowed_all_at_once() {
    let tested: BTreeSet<&str> = WRONG.iter().map(|(key, _)| *key).collect();
    let known: BTreeSet<String> = keys().into_iter().map(|(key, _)| key).collect();
    assert_eq!(tested.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), known, "the table here and the keys there are");

    let rounds = WRONG.iter().map(|(_, values)| values.len()).max().unwrap();
    for round in 0..rounds {
        let mut toml = String::new();
        for (key, values) in WRONG {
            toml += &format!("{key} = {}\n", values[round % values.len()]);
        }
        let found = wrong(&toml, &[]);
        for (key, values) in WRONG {
            let about: Vec<&Wrong> = found.iter().filter(|wrong| wrong.key() == Some(key)).collect();
            let [Wrong::Value { value, origin: Origin::File(_), allowed, .. }] = about[..] else {
                panic!("{key} = {}: {about:?}", values[round % values.len()]);
            };
            assert!(!allowed.is_empty() && !value.is_empty(), "{key}");
            let line = about[0].to_string();
            assert!(!line.contains('\n') && line.contains(key) && line.contains(allowed.as_str()), "{line}");
        }
        assert_eq!(found.len(), WRONG.len(), "{found:#?}");
    }
}

#[test]
fn the_environment_wins_over_the_file_and_reads_numbers_flags_sizes_and_lists() {
    let toml = format!("{BUCKET}capture.snaplen = 96\ncapture.ports.vxlan = 1\n");
    let settings = meant(
        &toml,
        &[
            ("TAPFLEET__CAPTURE__PORTS__VXLAN", "4790"),
            ("TAPFLEET__CAPTURE__RING_BYTES", "8MiB"),
            ("TAPFLEET__CAPTURE__THREADS", " 2 "),
            ("TAPFLEET__CAPTURE__OUTER_SOURCES", "10.0.0.0/8, fd00::/8,"),
            ("TAPFLEET__RECORD__SCHEDULE", "Mon,Tue 08:00-18:00 Europe/Berlin; Sun 10:00-11:00 UTC"),
            ("TAPFLEET__SPOOL__ALLOW_ROOT_DEVICE", "true"),
            ("TAPFLEET__S3__BUCKET", "other-bucket"),
            ("TAPFLEET__S3__EXPECTED_BUCKET_OWNER", "012345678901"),
            ("TAPFLEET_LOG", "debug"),
            ("TAPFLEETX__CAPTURE", "not ours"),
        ],
    );
    assert_eq!((settings.capture.snaplen, settings.capture.rules.vxlan_port, settings.capture.threads), (96, 4790, 2));
    assert_eq!(settings.capture.ring_bytes, 8 << 20);
    assert_eq!(settings.capture.outer_sources, ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    assert!(settings.record.schedule.is_some() && settings.spool.allow_root_device);
    assert_eq!((settings.upload.bucket.as_str(), settings.record.bucket.as_str()), ("other-bucket", "other-bucket"));
    assert_eq!(settings.upload.expected_bucket_owner.as_deref(), Some("012345678901"));
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    assert_eq!(meant(BUCKET, &[("TAPFLEET__S3__BUCKET", ""), ("TAPFLEET__SPOOL__DIR", "")]).upload.bucket, "my-captures");
}

#[test]
fn wrong_variables_are_named_as_variables() {
    let mut all =
        variables(&[("TAPFLEET__CAPTURE__SNAPLEN", "many"), ("TAPFLEET__RECORD__MAXBYTES", "1"), ("TAPFLEET__S3__BUCKET", "ok-bucket")]);
    all.push(("TAPFLEET__SPOOL__DIR".into(), OsString::from_vec(vec![b'/', 0xff])));
    all.push((OsString::from_vec(b"TAPFLEET__\xff".to_vec()), "1".into()));
    let errors = Written::read(Some(Path::new("/dev/null")), all, []).meant().unwrap_err().0;
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let has = |words: &[&str]| text.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["capture.snaplen = \"many\"", "TAPFLEET__CAPTURE__SNAPLEN", "1 to 262144"]), "{text:#?}");
    assert!(has(&["TAPFLEET__RECORD__MAXBYTES", "nearest is TAPFLEET__RECORD__MAX_BYTES"]), "{text:#?}");
    assert!(has(&["TAPFLEET__SPOOL__DIR", "UTF-8"]), "{text:#?}");
    assert_eq!(errors.len(), 4, "{text:#?}");
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let toml = format!(
        "{BUCKET}capture.interfaces = 1\nrecord.rotate_second = 60\n\"spool.dir\" = \"/x\"\nalerts.topic_arn = \"x\"\nbucket = 1\n"
    );
    let found = wrong(&toml, &[]);
    let nearest = |key: &str| {
        found.iter().find_map(|w| match w {
            Wrong::Unknown { key: k, nearest, .. } if k == key => Some(nearest.as_str()),
            _ => None,
        })
    };
    assert_eq!(nearest("capture.interfaces"), Some("capture.interface"));
    assert_eq!(nearest("record.rotate_second"), Some("record.rotate_seconds"));
    assert_eq!(nearest("spool.dir"), Some("spool.dir"), "a quoted key is no path, but what was meant is plain");
    assert!(nearest("alerts").is_some() && nearest("bucket").is_some());
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn credentials_in_the_wrong_place_are_refused_without_repeating_them() {
    let found = wrong("s3.aws_secret_access_key = \"hunter2\"\n", &[("TAPFLEET__S3__SESSION_TOKEN", "hunter2")]);
    assert_eq!(found.iter().filter(|w| matches!(w, Wrong::Unknown { .. })).count(), 2);
    assert!(!format!("{found:?}").contains("hunter2"));
}

#[test]
fn what_does_not_fit_together_is_named_beside_what_is_wrong_alone() {
    let found = wrong("capture = { ports = { geneve = 7, vxlan = 7 }, engine = \"file\", threads = 0 }\n", &[]);
    let keys: BTreeSet<&str> = found.iter().filter_map(Wrong::key).collect();
    assert_eq!(keys, BTreeSet::from(["capture.ports.vxlan", "capture.files", "capture.threads", "s3.bucket"]));
    let found = wrong(&format!("{BUCKET}capture.files = [\"a.pcap\"]\n"), &[]);
    assert_eq!(found.iter().filter_map(Wrong::key).collect::<Vec<_>>(), ["capture.files"]);
    let found = wrong(&format!("{BUCKET}spool.max_bytes = \"4MiB\"\nrecord.quarantine_bytes_per_s = \"5MiB\"\n"), &[]);
    assert_eq!(found.iter().filter_map(Wrong::key).collect::<Vec<_>>(), ["record.quarantine_bytes_per_s"]);
}

#[test]
fn the_filter_is_judged_by_libpcap_in_its_own_words() {
    let found = wrong(&format!("{BUCKET}capture.filter = \"tcp prt 80\"\n"), &[]);
    assert!(found.len() == 1 && found[0].to_string().contains("syntax error"), "{found:?}");
    assert_eq!(meant(&format!("{BUCKET}capture.filter = \" tcp port 80 \"\n"), &[]).capture.filter.as_deref(), Some("tcp port 80"));
}

#[test]
fn a_file_that_is_named_must_be_there_and_readable() {
    for path in ["/nonexistent/x.toml", "/"] {
        let errors = Written::read(Some(Path::new(path)), variables(&[("TAPFLEET__CAPTURE__THREADS", "0")]), []).meant().unwrap_err().0;
        assert!(matches!(&errors[0], Wrong::File { path: p, .. } if p == Path::new(path)), "{errors:?}");
        assert_eq!(
            errors[1..].iter().filter_map(Wrong::key).collect::<Vec<_>>(),
            ["capture.threads"],
            "the environment is judged all the same"
        );
    }
}

#[test]
fn a_syntax_error_names_the_line() {
    for (toml, line) in [("\n[capture]\nsnaplen = \n", "line 3"), ("a=1\n\na=2\n", "line 3"), ("x=1\ny = 99999999999999999999\n", "line 2")]
    {
        let found = wrong(toml, &[]);
        let text = found[0].to_string();
        assert!(found.len() == 1 && text.contains(line) && !text.contains('\n'), "{text}");
    }
}

#[test]
fn hostile_files_are_refused_without_harm() {
    let endless = Written::read(Some(Path::new("/dev/zero")), [], []).meant().unwrap_err();
    assert!(endless.to_string().contains("larger than"), "{endless}");
    let index = wrong(&format!("{BUCKET}\"capture[9223372036854775807]\" = 1\n"), &[("TAPFLEET__A[99999999999]", "1")]);
    assert_eq!(index.len(), 2, "a key that looks like an index is a key: {index:?}");
    for toml in ["[".repeat(100_000), format!("a = {}", "[".repeat(100_000)), format!("{}=1", "a.".repeat(50_000) + "a")] {
        assert!(!wrong(&toml, &[]).is_empty());
    }
    let many: String = (0..20_000).map(|n| format!("k{n} = 1\n")).collect();
    assert_eq!(wrong(&many, &[]).len(), 20_001);
}

#[test]
fn the_effective_settings_say_where_each_came_from_and_read_back_the_same() {
    let pairs =
        [("TAPFLEET__CAPTURE__SNAPLEN", "96"), ("TAPFLEET__CAPTURE__OUTER_SOURCES", "10.0.0.0/8"), ("TAPFLEET__INSTANCE__ID", "i-1")];
    let written = read(&format!("{BUCKET}spool.max_bytes = 8589934592\ncapture.filter = 'tcp or ip[0] = \"x\"'\n"), &pairs);
    assert!(written.meant().is_err());
    let written = read(&format!("{BUCKET}spool.max_bytes = 8589934592\nspool.dir = '/a \"b\"\\c'\n"), &pairs);
    let text = written.effective();
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start} in\n{text}"));
    assert!(line("snaplen = 96 ").ends_with("# environment variable TAPFLEET__CAPTURE__SNAPLEN"));
    assert!(line("max_bytes = \"8GiB\"").contains("# file /"));
    assert!(line("threads = 1 ").ends_with("# default"));
    assert!(line("# az is not set").ends_with("from instance metadata"));
    assert_eq!(format!("{:?}", meant(&text, &[])), format!("{:?}", written.meant().unwrap()));
}

proptest! {
    #[test]
    fn any_text_in_a_file_or_a_variable_is_settings_or_errors(toml in ".{0,200}", value in ".{0,60}", at in 0..WRONG.len()) {
        let name = format!("TAPFLEET__{}", WRONG[at].0.replace('.', "__").to_uppercase());
        // The filter goes to libpcap, which would ask the resolver for what looks like a name.
        if WRONG[at].0 == "capture.filter" {
            return Ok(());
        }
        let _ = read(&toml, &[(&name, &value)]).meant();
        let quoted = format!("{BUCKET}{} = {value:?}\n", WRONG[at].0);
        let _ = read(&quoted, &[]).meant();
    }
}
