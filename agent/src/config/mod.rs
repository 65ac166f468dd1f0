//! In: the settings file and the environment. Out: settings as meant, one struct per stage, or every error at once.
//! Never: a default that does not stand in [`table`], a guess at a misspelt key, a look at the machine or the network.
//!
//! Settings exist twice: as written ([`Written`]: what stood where) and as meant ([`Settings`]: checked values of the stages' own
//! types). `tapfleetd check` prints the first, `tapfleetd run` takes the second.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::capture::{self, EngineKind};
use crate::host::lifecycle;
use crate::record::schedule::Schedule;
use crate::{alert, record, spool, upload, wire};

mod rule;
mod show;
mod source;
mod table;

pub use show::example;
use source::Reader;
use table::Values;

/// Read when no file is named; may be missing.
pub const DEFAULT_FILE: &str = "/etc/tapfleet/tapfleet.toml";

/// What environment variables with settings begin with; `__` stands between section and key.
pub const VARIABLE_PREFIX: &str = "TAPFLEET__";

/// The largest captured length of one mirrored frame, bytes: libpcap's own bound, and what the file headers announce.
pub const SNAPLEN_MAX: u32 = 262_144;

/// For how long an agent must have seen a segment fail that is poison for its age.
const POISON_STILL: Duration = Duration::from_secs(3600);

/// How often the uploader looks at the spool.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Within which time of a window's beginning the uploads of a fleet begin: at most this, and at most this share of the window.
const CREATE_SPREAD_MAX: Duration = Duration::from_secs(20);
const CREATE_SPREAD_SHARE: u32 = 10;

/// Settings as meant.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For the capture threads.
    pub capture: capture::Settings,
    /// For the recorder; `record.instance` is empty when [`Instance::id`] is `None`: whoever asks the instance metadata fills it in.
    pub record: record::Settings,
    /// For the spool.
    pub spool: spool::Settings,
    /// For the uploader.
    pub upload: upload::Settings,
    /// For the alerts.
    pub alert: alert::Settings,
    /// For the load balancer's check.
    pub health: Health,
    /// The interface that mirrored frames are also sent out of; `None`: none.
    pub tee: Option<String>,
    /// For CloudWatch.
    pub metrics: Metrics,
    /// For what the machine is held to.
    pub host: Host,
    /// For what happens before the instance goes.
    pub lifecycle: lifecycle::Settings,
    /// What is known of the instance without asking it.
    pub instance: Instance,
}

/// Where `/healthz`, `/metrics` and `/status` are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Address and port.
    pub listen: SocketAddr,
}

/// What goes to CloudWatch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// Where; `None`: nothing goes there.
    pub cloudwatch_namespace: Option<String>,
}

/// What the machine is held to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host {
    /// Whom the clock is compared with; `None`: nobody.
    pub time_server: Option<SocketAddr>,
}

/// What the settings say of the instance; what is `None` comes from instance metadata at run time.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Instance {
    /// First part of every capture key.
    pub id: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Its availability zone.
    pub az: Option<String>,
    /// Its Auto Scaling group.
    pub group: Option<String>,
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody wrote it.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Variable(String),
    /// This argument of the command line.
    Argument(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Argument(name) => write!(f, "argument {name}"),
        }
    }
}

/// One thing that is wrong with the settings. Each prints as one line.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// The file cannot be read, or is not TOML.
    #[error("cannot read the settings file '{}': {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not, with the line where there is one.
        cause: String,
    },
    /// A value that is not allowed.
    #[error("{key} = {value} (from {origin}) is not allowed: set it to {allowed}")]
    Value {
        /// Which key.
        key: String,
        /// What stood there, shortened.
        value: String,
        /// Where it stood.
        origin: Origin,
        /// What could stand there.
        allowed: String,
    },
    /// A key without a default was left out.
    #[error("{key} is missing: set it in the settings file or as {variable} to {allowed}")]
    Missing {
        /// Which key.
        key: &'static str,
        /// Its environment variable.
        variable: String,
        /// What could stand there.
        allowed: String,
    },
    /// A key that there is not.
    #[error("{key} = {value} (from {origin}) is not a known key: the nearest is {nearest}")]
    Unknown {
        /// As written.
        key: String,
        /// What stood there, shortened.
        value: String,
        /// Where it stood.
        origin: Origin,
        /// The known key most like it.
        nearest: String,
    },
}

impl Wrong {
    /// The key that it is about; `None` when it is about a whole file.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::File { .. } => None,
            Self::Value { key, .. } | Self::Unknown { key, .. } => Some(key),
            Self::Missing { key, .. } => Some(key),
        }
    }
}

/// Everything that is wrong with the settings, one line each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Errors(pub Vec<Wrong>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, wrong) in self.0.iter().enumerate() {
            write!(f, "{}{wrong}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Settings as written: what stood where, and what is wrong with it.
#[derive(Debug)]
pub struct Written {
    values: Values,
    rows: Vec<source::Row>,
    wrong: Vec<Wrong>,
}

impl Written {
    /// Reads `file` ([`DEFAULT_FILE`] when `None`, which may be missing), then `variables` (the process's environment), then
    /// `arguments` (key, value, the argument's name); later ones win. What is wrong comes out of [`Written::meant`].
    #[must_use]
    pub fn read(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        arguments: impl IntoIterator<Item = (&'static str, String, &'static str)>,
    ) -> Self {
        let mut reader = Reader::new();
        reader.file(file);
        reader.variables(variables);
        for (key, value, argument) in arguments {
            reader.argument(key, value, argument);
        }
        let values = Values::read(&mut reader);
        combine(&values, &mut reader);
        let (rows, wrong) = reader.finish();
        Self { values, rows, wrong }
    }

    /// The settings as meant.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn meant(&self) -> Result<Settings, Errors> {
        build(&self.values).filter(|_| self.wrong.is_empty()).ok_or_else(|| Errors(self.wrong.clone()))
    }

    /// `spool.dir` alone, for a look at a spool that needs nothing else of the settings.
    ///
    /// # Errors
    /// What is wrong with this key, or with the file as a whole.
    pub fn spool_dir(&self) -> Result<PathBuf, Errors> {
        self.one("spool.dir", self.values.spool_dir.as_ref().map(PathBuf::from))
    }

    /// The settings of alerts alone, which must work when others are wrong.
    ///
    /// # Errors
    /// What is wrong with these keys, or with the file as a whole.
    pub fn alert(&self) -> Result<(alert::Settings, Instance), Errors> {
        let ours = |key: &str| key.starts_with("alert.") || key.starts_with("instance.");
        let wrong: Vec<Wrong> = self.wrong.iter().filter(|wrong| wrong.key().is_none_or(ours)).cloned().collect();
        alerts(&self.values).zip(instance(&self.values)).filter(|_| wrong.is_empty()).ok_or(Errors(wrong))
    }

    /// The settings of alerts although settings are wrong: as written as long as each of theirs is allowed, else all at their defaults.
    /// For who must file and send also then.
    ///
    /// # Errors
    /// What [`Written::alert`] says, when not even the defaults can be had.
    pub fn alert_as_far_as_it_holds(&self) -> Result<(alert::Settings, Instance), Errors> {
        let written = alerts(&self.values).zip(instance(&self.values));
        written.map_or_else(|| Self::defaults().alert(), Ok)
    }

    fn defaults() -> Self {
        let mut reader = Reader::new();
        let values = Values::read(&mut reader);
        let (rows, wrong) = reader.finish();
        Self { values, rows, wrong }
    }

    /// `health.listen` alone, for a question to the running agent.
    ///
    /// # Errors
    /// What is wrong with this key, or with the file as a whole.
    pub fn listen(&self) -> Result<SocketAddr, Errors> {
        self.one("health.listen", self.values.listen)
    }

    fn one<T>(&self, key: &str, value: Option<T>) -> Result<T, Errors> {
        let wrong: Vec<Wrong> = self.wrong.iter().filter(|wrong| wrong.key().is_none_or(|k| k == key)).cloned().collect();
        value.filter(|_| wrong.is_empty()).ok_or(Errors(wrong))
    }
}

/// What no key can say alone.
fn combine(values: &Values, reader: &mut Reader) {
    if values.geneve_port.is_some() && values.geneve_port == values.vxlan_port {
        reader.refuse("capture.ports.vxlan", "another port than capture.ports.geneve");
    }
    let files = values.files.as_ref().map(Vec::is_empty);
    match (values.engine, files) {
        (Some(EngineKind::File), Some(true)) => {
            reader.refuse("capture.files", "at least one capture file, as capture.engine is \"file\"");
        }
        (Some(EngineKind::Ring | EngineKind::Libpcap), Some(false)) => {
            reader.refuse("capture.files", "[], or capture.engine to \"file\"");
        }
        _ => {}
    }
    if values.tee.as_ref().is_some_and(|tee| tee.is_some() && *tee == values.interface) {
        reader.refuse("tee.interface", "another interface than capture.interface");
    }
    if let (Some(spool), Some(outbox)) = (&values.spool_dir, &values.alert_dir)
        && Path::new(outbox).starts_with(spool)
    {
        reader.refuse("alert.dir", "a folder that is not spool.dir and not within it: what fills the spool must not stop the alerts");
    }
    if let Some(Err(cause)) = values.filter.as_deref().and_then(meant_filter).map(compiles) {
        reader.refuse("capture.filter", &format!("a filter that libpcap understands, see pcap-filter(7); {cause}"));
    }
    if let Some(Err(causes)) = values.schedule.as_deref().map(Schedule::parse) {
        for cause in causes {
            reader.refuse("record.schedule", &format!("times like \"Mon-Fri 08:00-18:00 Europe/Berlin\"; {cause}"));
        }
    }
    if let (Some(max), Some(per_second)) = (values.spool_max_bytes, values.quarantine_bytes_per_s)
        && per_second > max
    {
        reader.refuse("record.quarantine_bytes_per_s", "at most spool.max_bytes");
    }
}

fn meant_filter(written: &str) -> Option<&str> {
    Some(written.trim()).filter(|expression| !expression.is_empty())
}

fn compiles(expression: &str) -> Result<(), String> {
    match capture::filter::compile(expression) {
        Ok(_) => Ok(()),
        // The other words of that error stand around this one already.
        Err(capture::Error::Filter { cause, .. }) => Err(cause),
        Err(other) => Err(other.to_string()),
    }
}

fn instance(v: &Values) -> Option<Instance> {
    Some(Instance {
        id: v.instance_id.clone()?,
        region: v.instance_region.clone()?,
        az: v.instance_az.clone()?,
        group: v.instance_group.clone()?,
    })
}

fn alerts(v: &Values) -> Option<alert::Settings> {
    Some(alert::Settings {
        topic_arn: v.topic_arn.clone()?,
        silence: v.silence.map(|time| Some(time).filter(|time| !time.is_zero()))?,
        drop_ratio: v.drop_ratio?,
        repeat: v.repeat?,
        on_start: v.on_start?,
        dir: v.alert_dir.as_ref()?.into(),
        // Of no use to who only sends a mail.
        spool_max_bytes: v.spool_max_bytes.unwrap_or(0),
        window: Duration::from_secs(v.rotate_seconds.unwrap_or(0)),
    })
}

/// `None` only when a value is missing because it was wrong.
fn build(v: &Values) -> Option<Settings> {
    let filter = meant_filter(v.filter.as_deref()?).map(str::to_owned);
    let bucket = v.bucket.clone()?;
    let key_prefix = v.key_prefix.clone()?;
    let instance = instance(v)?;
    let engine = v.engine?;
    Some(Settings {
        capture: capture::Settings {
            engine,
            interface: v.interface.clone()?,
            files: v.files.as_ref()?.iter().map(PathBuf::from).collect(),
            rules: wire::Rules { geneve_port: v.geneve_port?, vxlan_port: v.vxlan_port?, inline: v.inline? },
            filter: filter.clone(),
            snaplen: v.snaplen?,
            threads: v.threads?,
            fanout: v.fanout?,
            ring_bytes: v.ring_bytes?,
            outer_sources: v.outer_sources.clone()?,
            mirror_sources: v.mirror_sources.clone()?,
        },
        record: record::Settings {
            rotate_seconds: v.rotate_seconds?,
            max_bytes: v.record_max_bytes?,
            format: v.format?,
            precision: v.precision?,
            compression: v.compression?,
            schedule: Schedule::parse(v.schedule.as_deref()?).ok()?,
            quarantine_bytes_per_s: v.quarantine_bytes_per_s?,
            snaplen: SNAPLEN_MAX,
            filter,
            instance: instance.id.clone().unwrap_or_default(),
            bucket: bucket.clone(),
            flush_ms: v.flush_ms?,
            retirement_ms: capture::ring::RETIREMENT.as_millis() as u64,
            replay: engine == EngineKind::File,
        },
        spool: spool::Settings {
            dir: v.spool_dir.as_ref()?.into(),
            max_bytes: v.spool_max_bytes?,
            on_full: v.on_full?,
            flush_ms: v.flush_ms?,
            sync_ms: v.sync_ms?,
            allow_root_device: v.allow_root_device?,
        },
        upload: upload::Settings {
            bucket,
            key_prefix,
            region: v.region.clone()?,
            endpoint_url: v.endpoint_url.clone()?,
            storage_class: v.storage_class?.map(str::to_owned),
            kms_key: v.kms_key.clone()?,
            expected_bucket_owner: v.expected_bucket_owner.clone()?,
            // Known when the agent runs; a spool that is sent from elsewhere is another instance's.
            instance: None,
            look_every: LOOK_EVERY,
            poison_still: POISON_STILL,
            create_spread: CREATE_SPREAD_MAX.min(Duration::from_secs(v.rotate_seconds?) / CREATE_SPREAD_SHARE),
        },
        alert: alerts(v)?,
        health: Health { listen: v.listen? },
        tee: v.tee.clone()?,
        metrics: Metrics { cloudwatch_namespace: v.cloudwatch_namespace.clone()? },
        host: Host { time_server: v.time_server? },
        lifecycle: lifecycle::Settings {
            hook: v.hook.clone()?,
            rotate_seconds: v.leaving_seconds?,
            linger: v.linger?,
            shutdown: v.shutdown?,
            window_seconds: v.rotate_seconds?,
            // Beside the segments: it is of use for as long as they are. A name without a dot is no segment's.
            memory: Path::new(v.spool_dir.as_ref()?).join("lifecycle"),
        },
        instance,
    })
}
