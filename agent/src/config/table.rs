//! The one table of settings: key, default, what is allowed, one line of doc. Reading, defaults, `tapfleetd check`, the search for
//! the nearest key and `agent/tapfleet.example.toml` are all made from it.
//! Never: a default or a bound that stands a second time elsewhere.
//!
//! To add a setting: a row here, a line in `build` of the parent module, and the example file anew (its test says how).

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::SNAPLEN_MAX;
use super::rule::{Choice, Divisor, Flag, Integer, List, Maybe, Ratio, Raw, Rule, Size, Text, Time, quoted};
use super::source::{Reader, variable_of};
use crate::capture::{EngineKind, Fanout};
use crate::record::{Compression, Format, Precision};
use crate::spool::OnFull;
use crate::wire::Inline;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// What holds when a key is not set.
#[derive(Clone, Copy)]
pub enum Fallback {
    /// This.
    Default(Literal),
    /// Nothing: it must be set.
    Required {
        /// For the example file, as TOML.
        example: &'static str,
    },
    /// It stays unset.
    Absent {
        /// What happens then.
        means: &'static str,
        /// For the example file, as TOML.
        example: &'static str,
    },
}

/// A default.
#[derive(Clone, Copy)]
pub enum Literal {
    /// A TOML string.
    Text(&'static str),
    /// A TOML integer.
    Number(i64),
    /// A TOML float.
    Decimal(f64),
    /// A TOML boolean.
    Flag(bool),
    /// An empty list.
    Nothing,
}

impl From<Literal> for Raw {
    fn from(literal: Literal) -> Self {
        match literal {
            Literal::Text(text) => Self::Text(text.into()),
            Literal::Number(number) => Self::Integer(number),
            Literal::Decimal(number) => Self::Decimal(number),
            Literal::Flag(flag) => Self::Flag(flag),
            Literal::Nothing => Self::List(Vec::new()),
        }
    }
}

const fn text(text: &'static str) -> Fallback {
    Fallback::Default(Literal::Text(text))
}

const fn number(number: i64) -> Fallback {
    Fallback::Default(Literal::Number(number))
}

const NO: Fallback = Fallback::Default(Literal::Flag(false));
const NONE: Fallback = Fallback::Default(Literal::Nothing);

/// One row of the table.
#[derive(Clone)]
pub struct Key {
    /// Section and name, with a dot between.
    pub name: &'static str,
    /// What holds when it is not set.
    pub fallback: Fallback,
    /// What may be set, in words that fit after "set it to".
    pub allowed: String,
    /// What it is.
    pub doc: &'static str,
}

impl Key {
    /// Its environment variable.
    pub fn variable(&self) -> String {
        variable_of(self.name)
    }

    /// Section and the name in it.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }
}

/// The sections in the order of the example file, with what they are about.
pub const SECTIONS: [(&str, &str); 11] = [
    ("capture", "Where mirrored packets come from, and which are taken."),
    ("record", "How they are written."),
    ("spool", "Where capture files stay until S3 has confirmed them."),
    ("s3", "Where they go. Credentials come from the environment or the instance's role, as with the AWS tools."),
    ("alert", "Who hears of it when captures fail to be taken or to arrive, and when that is over."),
    ("health", "What the load balancer and Prometheus ask."),
    ("metrics", "What goes to CloudWatch, once a minute."),
    ("tee", "Mirrored frames for a live sensor on this machine, beside the capture files."),
    ("host", "What the machine is held to."),
    ("lifecycle", "What happens before the instance goes: scale-in, an interruption of spot, a shutdown."),
    ("instance", "Who records. Instance metadata (IMDSv2) says it; set it only outside EC2."),
];

/// Declares a field per key, the table, and the reading of all fields.
macro_rules! keys {
    ($($field:ident: $type:ty = $name:literal, $fallback:expr, $rule:expr, $doc:literal;)+) => {
        /// The value of each key; `None` where what was written is wrong.
        #[derive(Debug)]
        pub struct Values { $(pub $field: Option<$type>,)+ }

        /// The table.
        pub fn keys() -> Vec<Key> {
            vec![$(Key { name: $name, fallback: $fallback, allowed: $rule.allowed(), doc: $doc },)+]
        }

        impl Values {
            /// Reads each key.
            pub fn read(reader: &mut Reader) -> Self {
                Self { $($field: {
                    let rule = $rule;
                    reader.read(&Key { name: $name, fallback: $fallback, allowed: rule.allowed(), doc: $doc }, &rule)
                },)+ }
            }
        }
    };
}

keys! {
    interface: String = "capture.interface", text("auto"), INTERFACE,
        "Interface to capture on; \"auto\" is the default route's.";
    engine: EngineKind = "capture.engine", text("ring"), ENGINE,
        "How frames are taken: the kernel's packet ring, libpcap, or capture files.";
    files: Vec<String> = "capture.files", NONE, List { item: PATH, separator: ',' },
        "Capture files to read, in this order, when engine is \"file\".";
    geneve_port: u16 = "capture.ports.geneve", number(6081), Integer { min: 1, max: u16::MAX },
        "UDP port of GENEVE, which the Gateway Load Balancer speaks.";
    vxlan_port: u16 = "capture.ports.vxlan", number(4789), Integer { min: 1, max: u16::MAX },
        "UDP port of VXLAN, which Traffic Mirroring speaks; another one than GENEVE's.";
    filter: String = "capture.filter", text(""), FILTER,
        "BPF filter on the mirrored frame (not on the tunnel around it); empty takes all. Written to every manifest.";
    snaplen: u32 = "capture.snaplen", number(SNAPLEN_MAX as i64), Integer { min: 1, max: SNAPLEN_MAX },
        "Bytes kept of each mirrored frame.";
    threads: usize = "capture.threads", number(1), Integer { min: 1, max: 64 },
        "Capture threads, each with a ring of its own and, where there are enough, on a processor of its own.";
    fanout: Fanout = "capture.fanout", text("hash"), FANOUT,
        "How threads share the frames: by flow, by the card's queue, or by the processor that takes them in. A full ring's go to another.";
    ring_bytes: usize = "capture.ring_bytes", text("256MiB"), Size { min: 4 * MIB as usize, max: 16 * GIB as usize },
        "Memory of each thread's ring: what bridges a stall of the disk.";
    outer_sources: Vec<IpNet> = "capture.outer_sources", NONE, List { item: NETWORK, separator: ',' },
        "Who may send tunnel packets to us (outer source address); empty: anyone.";
    mirror_sources: Vec<IpNet> = "capture.mirror_sources", NONE, List { item: NETWORK, separator: ',' },
        "Which mirrored interfaces are taken (source address of the VXLAN packet); empty: any.";

    rotate_seconds: u64 = "record.rotate_seconds", number(900), Divisor { of: 86_400 },
        "Length of a window: one capture file each, aligned to the clock, UTC.";
    record_max_bytes: u64 = "record.max_bytes", text("1TiB"), Size { min: MIB, max: TIB },
        "A capture file of this size is closed and a further one of the same window opened.";
    format: Format = "record.format", text("pcap"), FORMAT,
        "pcapng also tells the origin of each packet (endpoint and VNI); take it where the networks of spokes overlap.";
    precision: Precision = "record.precision", text("us"), PRECISION,
        "Resolution of stamps in pcap; pcapng always has nanoseconds.";
    compression: Compression = "record.compression", text("none"), COMPRESSION,
        "Compression of capture files.";
    schedule: Vec<String> = "record.schedule", NONE, List { item: TIMES, separator: ';' },
        "When to record, e.g. [\"Mon-Fri 08:00-18:00 Europe/Berlin\"]; empty: always. In the environment with semicolons between.";
    quarantine_bytes_per_s: u64 = "record.quarantine_bytes_per_s", text("64KiB"), Size { min: 0, max: GIB },
        "How much of malformed tunnel packets is kept in files of their own; 0: none.";
    inline: Inline = "record.inline", text("ignore"), INLINE,
        "Packets that the load balancer carries inline, not as mirrored frames: count them, or store them behind a made-up Ethernet header.";

    spool_dir: String = "spool.dir", text("/var/lib/tapfleet/spool"), DIR,
        "The folder; on a volume of its own that outlives the instance.";
    spool_max_bytes: u64 = "spool.max_bytes", text("64GiB"), Size { min: 4 * MIB, max: 1024 * TIB },
        "The most it holds of what S3 has not confirmed; less when its file system has less left.";
    on_full: OnFull = "spool.on_full", text("drop-newest"), ON_FULL,
        "When it is full: drop the frames that come, or the oldest whole captures; or stop until a tenth is free. Drops are counted.";
    flush_ms: u64 = "spool.flush_ms", number(500), Integer { min: 1, max: 800 },
        "A packet is in its file at most this many milliseconds after the kernel gave it.";
    sync_ms: u64 = "spool.sync_ms", number(500), Integer { min: 1, max: 1000 },
        "And durable at most this many milliseconds later.";
    allow_root_device: bool = "spool.allow_root_device", NO, Flag,
        "Accept a spool on the root file system, which a full spool would fill.";

    bucket: String = "s3.bucket", Fallback::Required { example: "\"my-captures\"" }, BUCKET,
        "The bucket of the hub account.";
    key_prefix: String = "s3.key_prefix", text(""), PREFIX,
        "What stands before <instance-id>/ in capture keys; manifests and status objects have fixed places.";
    region: Option<String> = "s3.region",
        Fallback::Absent { means: "from AWS_REGION or instance metadata", example: "\"eu-central-1\"" }, Maybe(REGION),
        "Region of the bucket.";
    endpoint_url: Option<String> = "s3.endpoint_url",
        Fallback::Absent { means: "AWS_ENDPOINT_URL or AWS's own", example: "\"https://s3.example.net\"" }, Maybe(URL),
        "Another S3 endpoint than AWS's.";
    storage_class: Option<&'static str> = "s3.storage_class",
        Fallback::Absent { means: "STANDARD", example: "\"STANDARD_IA\"" }, Maybe(STORAGE_CLASS),
        "Storage class of captures.";
    kms_key: Option<String> = "s3.kms_key",
        Fallback::Absent { means: "the bucket's default encryption", example: "\"alias/packet-capture\"" }, Maybe(KMS_KEY),
        "KMS key of captures and manifests.";
    expected_bucket_owner: Option<String> = "s3.expected_bucket_owner",
        Fallback::Absent { means: "not checked", example: "\"123456789012\"" }, Maybe(ACCOUNT),
        "Refuse to write to a bucket of another account.";

    topic_arn: Option<String> = "alert.topic_arn", text(""), TOPIC,
        "The SNS topic that mails go to; empty: alerts are off.";
    silence: Duration = "alert.silence", text("5min"), Time { min: Duration::ZERO, max: DAYS_7 },
        "No mirrored packet for this long, while record.schedule is on, is a trouble; 0: it is none.";
    drop_ratio: f64 = "alert.drop_ratio", Fallback::Default(Literal::Decimal(0.001)), Ratio,
        "A trouble when the kernel drops more than this part of a minute's packets.";
    repeat: Duration = "alert.repeat", text("1h"), Time { min: Duration::from_secs(1), max: DAYS_7 },
        "At most one mail in this time says that a trouble is still there.";
    on_start: bool = "alert.on_start", NO, Flag,
        "Whether a mail says that the agent has started.";
    alert_dir: String = "alert.dir", text("/var/lib/tapfleet/outbox"), DIR,
        "Where mails wait while SNS does not take them; not within the spool, and best on another volume.";

    listen: SocketAddr = "health.listen", text("0.0.0.0:8080"), LISTEN,
        "Where /healthz, /metrics and /status are served.";

    cloudwatch_namespace: Option<String> = "metrics.cloudwatch_namespace", text(""), NAMESPACE,
        "The namespace of the metrics, which bear the Auto Scaling group's name; empty: off.";

    tee: Option<String> = "tee.interface", text(""), TEE,
        "The interface that they are sent out of: a TAP that the sensor holds, or one end of a veth pair whose other end is in its network namespace. Empty: off.";

    time_server: Option<SocketAddr> = "host.time_server", text("169.254.169.123"), TIME_SERVER,
        "Whom the clock is compared with, by NTP; a clock that is off is a trouble, and stands in each manifest. Empty: off.";
    hook: Option<String> = "lifecycle.hook",
        Fallback::Absent { means: "the group's one hook for terminating instances", example: "\"tapfleet-drain\"" }, Maybe(HOOK),
        "The lifecycle hook that holds an instance until everything is in S3.";
    leaving_seconds: u64 = "lifecycle.rotate_seconds", number(15), Divisor { of: 86_400 },
        "Seconds of a window while the instance is to leave.";
    linger: Duration = "lifecycle.linger", text("5min"), Time { min: Duration::ZERO, max: Duration::from_secs(86_400) },
        "Packets that come although the load balancer should send none any more are waited out for so long at most.";
    shutdown: Duration = "lifecycle.shutdown", text("5min"), Time { min: Duration::ZERO, max: Duration::from_secs(3600) },
        "A machine that shuts down is held up until the spool is empty, for so long at most.";

    instance_id: Option<String> = "instance.id",
        Fallback::Absent { means: FROM_METADATA, example: "\"i-0123456789abcdef0\"" }, Maybe(INSTANCE_ID),
        "First part of every capture key.";
    instance_region: Option<String> = "instance.region",
        Fallback::Absent { means: FROM_METADATA, example: "\"eu-central-1\"" }, Maybe(REGION),
        "Its region.";
    instance_az: Option<String> = "instance.az",
        Fallback::Absent { means: FROM_METADATA, example: "\"eu-central-1a\"" }, Maybe(REGION),
        "Its availability zone.";
    instance_group: Option<String> = "instance.group",
        Fallback::Absent { means: FROM_METADATA, example: "\"traffic-mirror-agents\"" }, Maybe(GROUP),
        "Its Auto Scaling group.";
}

const DAYS_7: Duration = Duration::from_secs(7 * 86_400);

const FROM_METADATA: &str = "from instance metadata";

const ENGINE: Choice<EngineKind> = Choice(&[("ring", EngineKind::Ring), ("libpcap", EngineKind::Libpcap), ("file", EngineKind::File)]);
const FANOUT: Choice<Fanout> = Choice(&[("hash", Fanout::Hash), ("queue", Fanout::Queue), ("processor", Fanout::Processor)]);
const FORMAT: Choice<Format> = Choice(&[("pcap", Format::Pcap), ("pcapng", Format::Pcapng)]);
const PRECISION: Choice<Precision> = Choice(&[("us", Precision::Micro), ("ns", Precision::Nano)]);
const COMPRESSION: Choice<Compression> = Choice(&[("none", Compression::None), ("zstd", Compression::Zstd)]);
const ON_FULL: Choice<OnFull> = Choice(&[("drop-newest", OnFull::DropNewest), ("drop-oldest", OnFull::DropOldest), ("stop", OnFull::Stop)]);
const INLINE: Choice<Inline> = Choice(&[("ignore", Inline::Ignore), ("store", Inline::Store)]);

/// Amazon S3 API Reference, CreateMultipartUpload, x-amz-storage-class; those of general purpose buckets.
const STORAGE_CLASS: Choice<&str> = Choice(&[
    ("STANDARD", "STANDARD"),
    ("STANDARD_IA", "STANDARD_IA"),
    ("ONEZONE_IA", "ONEZONE_IA"),
    ("INTELLIGENT_TIERING", "INTELLIGENT_TIERING"),
    ("GLACIER_IR", "GLACIER_IR"),
    ("GLACIER", "GLACIER"),
    ("DEEP_ARCHIVE", "DEEP_ARCHIVE"),
    ("REDUCED_REDUNDANCY", "REDUCED_REDUNDANCY"),
]);

/// Linux `dev_valid_name`: 1 to 15 bytes, no slash, colon or space, not a path's own names.
const INTERFACE: Text<String> = Text {
    allowed: "the exact name of one interface (at most 15 bytes) or \"auto\"; \"any\" is refused, as it would record a packet once per \
              interface it crosses and with a cooked link header",
    parse: |t| {
        let name = (1..16).contains(&t.len()) && !t.contains(['/', ':', ' ']) && !["any", ".", ".."].contains(&t);
        name.then(|| t.to_owned())
    },
};

const TEE: OrEmpty<String> = OrEmpty(Text {
    allowed: "the exact name of another interface than the captured one (at most 15 bytes)",
    parse: |t| (INTERFACE.parse)(t).filter(|name| name != "auto" && name != "lo"),
});

const PATH: Text<String> = Text { allowed: "paths of capture files", parse: |t| (!t.trim().is_empty()).then(|| t.to_owned()) };

/// Its words are libpcap's; see `combine`.
const FILTER: Text<String> = Text { allowed: "a filter of at most 4096 bytes, see pcap-filter(7)", parse: |t| Some(t.to_owned()) };

const NETWORK: Text<IpNet> = Text {
    allowed: "networks in CIDR form like \"10.0.0.0/8\", with no address bits beyond the prefix",
    parse: |t| t.parse::<IpNet>().ok().filter(|net| net.trunc() == *net),
};

/// Its words are the schedule's; see `combine`.
const TIMES: Text<String> =
    Text { allowed: "times like \"Mon-Fri 08:00-18:00 Europe/Berlin\"", parse: |t| (!t.trim().is_empty()).then(|| t.to_owned()) };

const DIR: Text<String> = Text { allowed: "an absolute path", parse: |t| t.starts_with('/').then(|| t.to_owned()) };

/// Amazon S3 User Guide, "General purpose bucket naming rules".
const BUCKET: Text<String> = Text {
    allowed: "a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens, a letter or digit at both ends, not like an IP address",
    parse: |t| {
        let ends = t.starts_with(alphanumeric) && t.ends_with(alphanumeric);
        let inside = t.chars().all(|c| alphanumeric(c) || c == '.' || c == '-') && !t.contains("..");
        ((3..64).contains(&t.len()) && ends && inside && t.parse::<IpAddr>().is_err()).then(|| t.to_owned())
    },
};

fn alphanumeric(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// First parts of keys that other objects have; instances are not called so either.
const TAKEN: [&str; 3] = ["manifest", "status", "sessions"];

/// S3 keys have at most 1024 bytes; the rest is for instance, time and ending.
const PREFIX: Text<String> = Text {
    allowed: "\"\" or a prefix that ends in / like \"packet-captures/\": at most 512 bytes, no empty, . or .. part, the first part none of \
              manifest, status, sessions",
    parse: |t| {
        let parts = t.strip_suffix('/').map(|parts| parts.split('/'));
        let fits = parts.is_some_and(|mut parts| parts.all(|part| !["", ".", ".."].contains(&part)));
        let free = t.split('/').next().is_some_and(|first| !TAKEN.contains(&first));
        (t.is_empty() || (t.len() <= 512 && fits && free)).then(|| t.to_owned())
    },
};

const REGION: Text<String> = Text {
    allowed: "a name like \"eu-central-1\" (lower-case letters, digits and hyphens)",
    parse: |t| ((1..64).contains(&t.len()) && t.chars().all(|c| alphanumeric(c) || c == '-')).then(|| t.to_owned()),
};

const URL: Text<String> = Text {
    allowed: "a URL like \"https://host:port\", without user, query or fragment",
    parse: |t| {
        let rest = t.strip_prefix("http://").or_else(|| t.strip_prefix("https://"))?;
        let authority = rest.split('/').next().unwrap_or_default();
        let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map(|(_, port)| port);
        let host = authority.len() - port.map_or(0, |port| port.len() + 1);
        let fits = host > 0 && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        (fits && !t.contains(['@', '?', '#', ' ', '\\'])).then(|| t.to_owned())
    },
};

const KMS_KEY: Text<String> = Text {
    allowed: "the id, ARN or alias/... of a KMS key",
    parse: |t| {
        let fits = (1..=2048).contains(&t.len()) && t.chars().all(|c| c.is_ascii_alphanumeric() || ":/_-".contains(c));
        fits.then(|| t.to_owned())
    },
};

const ACCOUNT: Text<String> = Text {
    allowed: "an account id: 12 digits, as a string",
    parse: |t| (t.len() == 12 && t.chars().all(|c| c.is_ascii_digit())).then(|| t.to_owned()),
};

const LISTEN: Text<SocketAddr> = Text { allowed: "address and port like \"0.0.0.0:8080\"", parse: |t| t.parse().ok() };

/// Amazon CloudWatch API Reference, PutMetricData, Namespace.
const NAMESPACE: OrEmpty<String> = OrEmpty(Text {
    allowed: "a name of at most 255 letters, digits and any of .-_/#: that does not begin with AWS/ or a colon",
    parse: |t| {
        let inside = t.chars().all(|c| c.is_ascii_alphanumeric() || ".-_/#:".contains(c));
        ((1..256).contains(&t.len()) && inside && !t.starts_with("AWS/") && !t.starts_with(':')).then(|| t.to_owned())
    },
});

const NTP_PORT: u16 = 123;

/// No name: looking one up may take as long as it likes.
const TIME_SERVER: OrEmpty<SocketAddr> = OrEmpty(Text {
    allowed: "an address like \"169.254.169.123\", with or without a port",
    parse: |t| t.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, NTP_PORT)).or_else(|_| t.parse()).ok().filter(|at| at.port() > 0),
});

/// What a text rule allows, or the empty text.
struct OrEmpty<T>(Text<T>);

impl<T: Display> Rule for OrEmpty<T> {
    type Value = Option<T>;

    fn allowed(&self) -> String {
        format!("\"\" or {}", self.0.allowed)
    }

    fn read(&self, raw: &Raw) -> Option<Self::Value> {
        let text = Text { allowed: "", parse: |t| Some(t.to_owned()) }.read(raw)?;
        if text.is_empty() { Some(None) } else { (self.0.parse)(&text).map(Some) }
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        Some(quoted(&value.as_ref().map(ToString::to_string).unwrap_or_default()))
    }
}

const INSTANCE_ID: Text<String> = Text {
    allowed: "1 to 64 letters, digits, dots, hyphens and underscores; none of manifest, status, sessions",
    parse: |t| {
        let inside = t.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        ((1..65).contains(&t.len()) && inside && ![".", ".."].contains(&t) && !TAKEN.contains(&t)).then(|| t.to_owned())
    },
};

/// Amazon EC2 Auto Scaling API Reference, PutLifecycleHook, LifecycleHookName.
const HOOK: Text<String> = Text {
    allowed: "1 to 255 letters, digits, hyphens, underscores and slashes",
    parse: |t| ((1..256).contains(&t.len()) && t.chars().all(|c| c.is_ascii_alphanumeric() || "-_/".contains(c))).then(|| t.to_owned()),
};

/// Amazon EC2 Auto Scaling API Reference, CreateAutoScalingGroup, AutoScalingGroupName.
const GROUP: Text<String> = Text {
    allowed: "1 to 255 characters without a colon",
    parse: |t| ((1..256).contains(&t.len()) && !t.contains(':')).then(|| t.to_owned()),
};

/// Amazon SNS Developer Guide, "Creating a topic". A FIFO topic has no mail subscriptions.
struct Topic;
const TOPIC: Topic = Topic;

impl Rule for Topic {
    type Value = Option<String>;

    fn allowed(&self) -> String {
        "\"\" or the ARN of a standard topic like \"arn:aws:sns:eu-central-1:123456789012:capture-alerts\"".into()
    }

    fn read(&self, raw: &Raw) -> Option<Self::Value> {
        let text = Text { allowed: "", parse: |t| Some(t.to_owned()) }.read(raw)?;
        if text.is_empty() {
            return Some(None);
        }
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "sns", region, account, name] = parts.as_slice() else { return None };
        let fits = (partition.starts_with("aws") && partition.chars().all(|c| alphanumeric(c) || c == '-'))
            && (REGION.parse)(region).is_some()
            && (ACCOUNT.parse)(account).is_some()
            && (1..=256).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        fits.then_some(Some(text))
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        Some(quoted(value.as_deref().unwrap_or_default()))
    }
}
