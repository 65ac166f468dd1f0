//! `tapfleet`: the command for people who read captures.
//! In: arguments. Out: files, tables, JSON. Never: part of the daemon.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod decap;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Decap(arguments) => match decap::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tapfleet: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
