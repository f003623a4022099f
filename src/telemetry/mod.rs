//! What the process says about itself while it runs: a log on standard error, and metrics.

pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

use crate::config::Log;

/// Starts logging for the whole process, filtered by `log` alone: no other variable of the environment is read.
///
/// # Errors
/// If something has already started it.
pub fn init(log: &Log) -> Result<(), TryInitError> {
    use tracing_subscriber::util::SubscriberInitExt;

    // The configuration has parsed the filter before, so nothing is lost here.
    let filter = EnvFilter::builder().parse_lossy(&log.filter);
    // A log that cannot be written, because the disk is full or the reader has gone, must not end what it tells of; it would,
    // by the panic of telling of its own failure.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    if log.json {
        builder.json().finish().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init()
    }
}
