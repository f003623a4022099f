//! The command line: one file, or one folder, for each command. Whatever asks something of a server speaks gRPC, to one that
//! `--endpoint` names or to the same server inside this process, so that there is one way for anything to happen.

mod access;
mod admin;
mod assembly;
mod bench;
mod check;
mod client;
mod complete;
mod connect;
mod draw;
mod failure;
mod from_images;
mod health;
mod images;
mod import;
mod input;
mod models;
mod npy;
mod output;
mod packages;
mod progress;
mod report;
mod sample;
mod score;
mod serve;
mod source;
mod upscale;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 64 wrong arguments, configuration or input, 69 server not there or busy, 70 something broke.

Settings come from built-in defaults, the file of --config, the environment (PIXELD__SERVER__LISTEN=...) and flags, each
above the one before it. `pixeld check` prints what they amount to.";

/// Serves autoregressive image models over gRPC, samples them one channel value at a time and scores images exactly
#[derive(Debug, Parser)]
#[command(name = "pixeld", version = VERSION, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PIXELD_GIT_REVISION"), ")");

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT
    Serve(serve::Serve),
    /// Sample images
    Sample(sample::Sample),
    /// Keep the upper part of images and draw the rest
    Complete(complete::Complete),
    /// Draw larger versions of small images
    Upscale(upscale::Upscale),
    /// Score images: exact likelihood in bits per dimension
    Score(score::Score),
    /// Ask whether a server serves
    Health(health::Health),
    /// List models
    Models(models::Models),
    /// Operate a server: load, reload and unload models, move aliases, end it
    Admin(admin::Admin),
    /// Check the configuration and every model package, without serving
    Check(check::Check),
    /// Make a package of what other code trained
    Import(import::Import),
    /// Measure a daemon under load, and compare measurements
    Bench(bench::Bench),
}

/// Runs the command that `arguments` name, the first being the program itself.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version count as errors to the parser; a reader who went away is none to us.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    match output::keep().and_then(|()| execute(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                output::complain(message);
            }
            ExitCode::from(failure.code())
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Internal(format!("cannot start the runtime: {error}")))?;
    let done = runtime.block_on(async {
        match command {
            Command::Serve(serve) => Box::pin(serve.run()).await,
            Command::Sample(sample) => Box::pin(sample.run()).await,
            Command::Complete(complete) => Box::pin(complete.run()).await,
            Command::Upscale(upscale) => Box::pin(upscale.run()).await,
            Command::Score(score) => Box::pin(score.run()).await,
            Command::Health(health) => Box::pin(health.run()).await,
            Command::Models(models) => Box::pin(models.run()).await,
            Command::Admin(admin) => Box::pin(admin.run()).await,
            Command::Check(check) => Box::pin(check.run()).await,
            Command::Import(import) => Box::pin(import.run()).await,
            Command::Bench(bench) => Box::pin(bench.run()).await,
        }
    });
    // What may still run now is a package being read when the user stopped it: nothing to wait for.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
