//! In: the command line and the environment. Out: one call into the library, its answer on stdout, its error as one line on stderr.
//! Never: work of its own. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 75 try again later (sysexits.h EX_TEMPFAIL).

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tapfleet::config::{self, Errors, Settings, Written};
use tapfleet::run;
use tracing_subscriber::EnvFilter;

mod alert;
mod check;
mod spool;
mod status;

/// Takes mirrored packets off their tunnels and gets each capture file whole into S3.
#[derive(Parser)]
#[command(name = "tapfleetd", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Capture, record and upload until told to stop
    Run {
        #[command(flatten)]
        file: SettingsFile,
    },
    /// Print the settings that hold, where each came from and what to change on this machine, or everything that is wrong with them
    Check {
        #[command(flatten)]
        file: SettingsFile,
        /// Print an annotated settings file with every key instead
        #[arg(long, conflicts_with = "config")]
        example: bool,
    },
    /// What is not in S3 yet
    #[command(subcommand)]
    Spool(Spool),
    /// Send a mail through the topic of the settings; it waits in the outbox when it cannot leave
    Alert {
        #[command(flatten)]
        file: SettingsFile,
        /// Its subject
        #[arg(long, requires = "message", required_unless_present_any = ["test", "service_result", "send_after"])]
        subject: Option<String>,
        /// Its text
        #[arg(long, requires = "subject")]
        message: Option<String>,
        /// Send a mail that says that it is a test, and find out whether anybody gets it
        #[arg(long, conflicts_with_all = ["subject", "message"])]
        test: bool,
        /// For ExecStopPost= and OnFailure= of systemd: file how the agent's service ended, and send nothing
        #[arg(long, conflicts_with_all = ["subject", "message", "test"])]
        service_result: bool,
        /// Send what has waited in the outbox for so many seconds (0 to 3600), unless an agent does
        #[arg(long, value_name = "SECONDS", conflicts_with_all = ["subject", "message", "test", "service_result"])]
        #[arg(value_parser = clap::value_parser!(u64).range(..=3600))]
        send_after: Option<u64>,
    },
    /// Ask the running agent how it is
    Status {
        #[command(flatten)]
        file: SettingsFile,
        /// Ask here, not where the settings say
        #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "config")]
        listen: Option<SocketAddr>,
        /// Print what the agent answered, as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Spool {
    /// List the segments that S3 has not confirmed; also while an agent runs
    List {
        #[command(flatten)]
        file: SettingsFile,
        #[command(flatten)]
        folder: SpoolFolder,
        /// Print them as a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Send them from here: a rescued disk, a stopped agent
    Upload {
        #[command(flatten)]
        file: SettingsFile,
        #[command(flatten)]
        folder: SpoolFolder,
    },
}

#[derive(clap::Args)]
struct SettingsFile {
    /// Settings file [default: /etc/tapfleet/tapfleet.toml, which may be missing]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl SettingsFile {
    fn read(&self, folder: Option<&SpoolFolder>) -> Result<Written, Failure> {
        let dir = folder.and_then(|folder| folder.spool.as_ref()).map(|dir| absolute(dir)).transpose()?;
        // A spool that is only emptied cannot fill the root device.
        let arguments = dir.into_iter().flat_map(|dir| [("spool.dir", dir), ("spool.allow_root_device", "true".into())]);
        Ok(Written::read(self.config.as_deref(), std::env::vars_os(), arguments.map(|(key, value)| (key, value, "--spool"))))
    }
}

#[derive(clap::Args)]
struct SpoolFolder {
    /// The spool, instead of the settings' spool.dir
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
}

/// Why a command did not do what was asked.
enum Failure {
    /// In one line.
    Failed(String),
    /// The settings are wrong.
    Settings(Errors),
    /// It may work later.
    Busy(String),
}

impl Failure {
    fn of(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Errors> for Failure {
    fn from(errors: Errors) -> Self {
        Self::Settings(errors)
    }
}

impl From<tapfleet::spool::Error> for Failure {
    fn from(error: tapfleet::spool::Error) -> Self {
        match error {
            tapfleet::spool::Error::InUse { .. } => Self::Busy(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<run::Error> for Failure {
    fn from(error: run::Error) -> Self {
        match error {
            run::Error::Spool(error) => error.into(),
            other => Self::of(other),
        }
    }
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let failure = match command(Arguments::parse().command) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    let (code, text) = match failure {
        Failure::Failed(text) => (1, text),
        Failure::Settings(errors) => (2, errors.to_string()),
        Failure::Busy(text) => (75, text),
    };
    for line in text.lines() {
        // Nobody is left to be told when stderr is closed.
        let _ = writeln!(io::stderr(), "tapfleetd: {line}");
    }
    ExitCode::from(code)
}

fn command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { file } => {
            let settings = file.read(None)?.meant()?;
            log();
            Ok(run::run(settings)?)
        }
        Command::Check { example: true, .. } => print(&config::example()),
        Command::Check { file, .. } => {
            let written = file.read(None)?;
            let settings = written.meant()?;
            print(&written.effective())?;
            print(&check::advice(&settings))
        }
        Command::Spool(Spool::List { file, folder, json }) => {
            let dir = file.read(Some(&folder))?.spool_dir()?;
            spool::list(&dir, json)
        }
        Command::Spool(Spool::Upload { file, folder }) => {
            let settings: Settings = file.read(Some(&folder))?.meant()?;
            log();
            spool::upload(settings)
        }
        Command::Alert { file, service_result: true, .. } => {
            log();
            alert::file_ending(&file.read(None)?)
        }
        Command::Alert { file, send_after: Some(seconds), .. } => {
            log();
            alert::relieve(&file.read(None)?, Duration::from_secs(seconds))
        }
        Command::Alert { file, subject, message, .. } => {
            let (settings, instance) = file.read(None)?.alert()?;
            log();
            alert::send(&settings, instance, subject.zip(message))
        }
        Command::Status { file, listen, json } => {
            let listen = match listen {
                Some(listen) => listen,
                None => file.read(None)?.listen()?,
            };
            status::ask(listen, json)
        }
    }
}

fn absolute(dir: &Path) -> Result<String, Failure> {
    let dir = std::path::absolute(dir).map_err(|cause| Failure::Failed(format!("cannot use --spool '{}': {cause}", dir.display())))?;
    dir.into_os_string().into_string().map_err(|dir| Failure::Failed(format!("cannot use --spool {dir:?}: it is not UTF-8")))
}

/// Prints to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() != ErrorKind::BrokenPipe => Err(Failure::Failed(format!("cannot write to stdout: {cause}"))),
        _ => Ok(()),
    }
}

/// Logs go to stderr: text for a person, JSON for the journal or a file. `TAPFLEET_LOG`, else `RUST_LOG`, says how much.
fn log() {
    let variable =
        ["TAPFLEET_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, std::env::var(name).ok().filter(|v| !v.is_empty())?)));
    let (filter, wrong) = match &variable {
        None => (EnvFilter::new("info"), None),
        Some((name, text)) => match EnvFilter::try_new(text) {
            Ok(filter) => (filter, None),
            Err(cause) => (EnvFilter::new("info"), Some(format!("{name}='{text}' is not a log filter, 'info' is used: {cause}"))),
        },
    };
    let person = io::stderr().is_terminal() && std::env::var_os("JOURNAL_STREAM").is_none();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Only a second subscriber could be refused, and there is none.
    let _ = if person { builder.try_init() } else { builder.json().flatten_event(true).with_ansi(false).try_init() };
    if let Some(wrong) = wrong {
        tracing::warn!("{wrong}");
    }
}

/// Text of a file or of a peer for a terminal: what could steer it is replaced.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
