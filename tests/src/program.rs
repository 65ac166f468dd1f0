//! Runs programs of the host.
//! In: a program and its arguments. Out: what it printed. Never: input for it; silence about one that fails or is missing.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::{Command, Output, Stdio};

/// Runs a program and gives what it printed.
///
/// # Panics
/// When it fails or is missing; shows what it said.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{program} {}`: {}\n{said}", args.join(" "), output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program, whatever it answers.
///
/// # Panics
/// When it is missing.
#[must_use]
pub fn try_run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|cause| panic!("cannot run {program}: {cause}; see tests/setup/system.sh"))
}
