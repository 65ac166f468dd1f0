//! Questions to an emulated AWS, asked as AWS's own SDK for Python asks.
//! In: a port on loopback. Out: answers as JSON. Never: reaches AWS; outlives the value.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::localstack::in_netns;

/// A conversation with `emulator/questions.py`, which ends when its input does.
#[derive(Debug)]
pub struct Questions {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Questions {
    /// Begins one about what listens on a port of loopback, of the named namespace or of this host. `python` must have boto3.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(netns: Option<&str>, python: &Path, port: u16) -> Self {
        let mut command = in_netns(netns, python.to_str().unwrap());
        command.args(["-m", "emulator.questions", &format!("http://127.0.0.1:{port}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
        as_package(&mut command);
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// What is answered to a question.
    ///
    /// # Panics
    /// When it is no answer.
    pub fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.input.as_mut().unwrap(), "{question}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|cause| panic!("{question}: '{line}': {cause}"))
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Python finds the package, writes nothing beside its sources and knows nothing of the user's AWS.
pub(crate) fn as_package(command: &mut Command) {
    command.env("PYTHONPATH", env!("CARGO_MANIFEST_DIR")).env("PYTHONDONTWRITEBYTECODE", "1").env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    for variable in ["AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_REGION"] {
        command.env_remove(variable);
    }
}
