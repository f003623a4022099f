//! The daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    pixeld::cli::run(std::env::args_os())
}
