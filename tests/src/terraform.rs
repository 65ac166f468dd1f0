//! Terraform's engine, and the project's modules and examples in a copy that may be written to.
//! In: terraform/, variables. Out: what the engine says, outputs. Never: asks AWS; writes beside the sources; uses the user's settings.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

use crate::emulator::Emulator;
use crate::localstack::in_netns;

/// How long one command may take: an apply waits about 90 s for the provider, however little it does.
const COMMAND_SECONDS: &str = "600";

/// What the provider says when a connection to the emulator ended under it (seen once in thousands of calls), and how often a command is
/// then tried.
const LOST_CONNECTION: &str = "use of closed network connection";
const TRIES: u32 = 3;

/// Variables by name.
pub type Variables = BTreeMap<String, Value>;

/// Where the sources are.
#[must_use]
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("terraform")
}

/// Installs a tool if need be (`tests/setup/<tool>.sh`), and gives its path.
///
/// # Panics
/// When it cannot be installed; the message says what is missing.
#[must_use]
pub fn setup(tool: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("setup/{tool}.sh"));
    let output = Command::new(&script).output().unwrap();
    assert!(output.status.success(), "{} says what is missing:\n{}", script.display(), said(&output));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A command of the engine in a folder, run in the named network namespace or on this host.
#[must_use]
pub fn command(netns: Option<&str>, folder: &Path, arguments: &[&str]) -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    // A second SIGTERM would lose the state; an interrupt lets it be written.
    let mut command = in_netns(netns, "timeout");
    command.args(["--signal=INT", "--kill-after=60", COMMAND_SECONDS]).arg(PROGRAM.get_or_init(|| setup("terraform")));
    command.arg(format!("-chdir={}", folder.display())).args(arguments);
    command
}

/// Makes a root ready.
///
/// # Panics
/// When the provider is missing.
pub fn init(root: &Path) {
    let output = command(None, root, &["init", "-input=false", "-no-color"]).output().unwrap();
    assert!(
        output.status.success(),
        "{}: the provider hashicorp/aws cannot be had, neither from a mirror (TERRAFORM_MIRROR, ~/.terraform.d/plugins) nor from the registry:\n{}",
        root.display(),
        said(&output)
    );
}

/// Copies terraform/ to where it may be written to.
///
/// # Panics
/// When it cannot be written.
pub fn copy_to(folder: &Path) {
    copy_folder(&sources(), folder);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if entry.path().is_dir() {
            if name != ".terraform" {
                copy_folder(&entry.path(), &to.join(name));
            }
        } else if !name.to_str().unwrap().contains(".tfstate") && name != ".terraform.lock.hcl" {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// What a program said, on either channel.
#[must_use]
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An example in a folder of its own, with variables and state.
#[derive(Debug)]
pub struct Example {
    name: String,
    folder: tempfile::TempDir,
    /// What is applied next.
    pub variables: Variables,
    endpoint: String,
    netns: Option<String>,
    account: String,
}

impl Example {
    /// One that is ready, with the AWS that it asks (from the same network namespace) and the account whose credentials it has.
    ///
    /// # Panics
    /// When engine or provider is missing.
    #[must_use]
    pub fn new(name: &str, aws: &Emulator, account: &str, variables: Variables) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_to(folder.path());
        let (endpoint, netns) = (aws.endpoint(), aws.netns().map(Into::into));
        let example = Self { name: name.into(), folder, variables, endpoint, netns, account: account.into() };
        init(&example.root());
        example
    }

    /// Sets a variable for what is applied next.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.variables.insert(name.into(), value.into());
    }

    /// Makes what the variables say.
    ///
    /// # Panics
    /// When it fails.
    pub fn apply(&self) {
        let output = self.run(&["apply", "-auto-approve", "-input=false"]);
        assert!(output.status.success(), "{}: apply:\n{}", self.name, said(&output));
    }

    /// Plans again: nothing must be left to do.
    ///
    /// # Panics
    /// When something is.
    pub fn is_settled(&self) {
        let output = self.run(&["plan", "-detailed-exitcode", "-input=false"]);
        assert!(output.status.success(), "{}: a plan after an apply wants changes:\n{}", self.name, said(&output));
    }

    /// Takes away what was made.
    ///
    /// # Panics
    /// When it fails.
    pub fn destroy(&self) {
        let output = self.run(&["destroy", "-auto-approve", "-input=false"]);
        assert!(output.status.success(), "{}: destroy:\n{}", self.name, said(&output));
    }

    /// The outputs, by name.
    ///
    /// # Panics
    /// When the engine gives none.
    #[must_use]
    pub fn outputs(&self) -> BTreeMap<String, Value> {
        let output = command(None, &self.root(), &["output", "-json"]).output().unwrap();
        assert!(output.status.success(), "{}: output:\n{}", self.name, said(&output));
        let outputs: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
        outputs.into_iter().map(|(name, mut output)| (name, output.pointer_mut("/value").unwrap().take())).collect()
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("examples").join(&self.name)
    }

    /// Runs the engine; again when the provider lost a connection to the emulator, which it takes for final where it assumes a role.
    fn run(&self, arguments: &[&str]) -> Output {
        let root = self.root();
        fs::write(root.join("terraform.tfvars.json"), serde_json::to_vec_pretty(&self.variables).unwrap()).unwrap();
        let mut tries = 0;
        loop {
            let mut command = command(self.netns.as_deref(), &root, arguments);
            // A home of its own: what a person's has is out of it.
            command.arg("-no-color").env("HOME", self.folder.path());
            let output = command.env("EMULATOR_URL", &self.endpoint).env("EMULATOR_ACCOUNT", &self.account).output().unwrap();
            tries += 1;
            if output.status.success() || tries == TRIES || !said(&output).contains(LOST_CONNECTION) {
                return output;
            }
            println!("{}: {}: {LOST_CONNECTION}; once more", self.name, arguments.join(" "));
        }
    }
}
