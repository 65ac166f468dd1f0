//! The daemon `tapfleetd`. What it does stands in the library; how it is asked, in [`cli`].

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
