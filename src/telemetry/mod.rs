//! What the process says about itself while it runs: a log on standard error, metrics, and spans for a collector.

pub mod metrics;
#[cfg(feature = "otlp")]
mod otlp;

use std::io::{self, IsTerminal};

use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{self, Log, Trace};

/// What was started; spans that wait to be sent go out when it is dropped.
#[derive(Debug)]
pub struct Telemetry {
    filter: Filter,
    #[cfg(feature = "otlp")]
    _spans: Option<otlp::Exporter>,
}

impl Telemetry {
    /// What decides on the lines of the log.
    #[must_use]
    pub fn filter(&self) -> Filter {
        self.filter.clone()
    }
}

/// What decides on the lines of the log; every clone is the same one.
#[derive(Clone, Debug)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Logs by `filter` from now on; returns the one before.
    ///
    /// # Errors
    /// What it must be; the one before stays.
    pub fn set(&self, filter: &str) -> Result<String, String> {
        let filter = config::log_filter(filter)?;
        let gone = |error: reload::Error| format!("one that there is a log for ({error})");
        let previous = self.0.with_current(ToString::to_string).map_err(gone)?;
        self.0.reload(filter).map_err(gone)?;
        Ok(previous)
    }
}

/// Starts logging for the whole process, filtered by `log` alone: no other variable of the environment is read. Spans of
/// calls go where `trace` says. Must be called within a tokio runtime.
///
/// # Errors
/// If something has already started it, or spans cannot be sent where they shall go.
pub fn init(log: &Log, trace: &Trace) -> io::Result<Telemetry> {
    let (filter, handle) = reload::Layer::new(config::log_filter(&log.filter).map_err(io::Error::other)?);
    // A log that cannot be written, because the disk is full or the reader has gone, must not end what it tells of; it would,
    // by the panic of telling of its own failure.
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = match log.json {
        true => lines.json().boxed(),
        false => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    let subscriber = Registry::default().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    let (subscriber, spans) = {
        let (layer, exporter) = otlp::start(trace)?.unzip();
        (subscriber.with(layer), exporter)
    };
    // The configuration has refused every endpoint.
    #[cfg(not(feature = "otlp"))]
    let _ = trace;
    subscriber.try_init().map_err(io::Error::other)?;
    Ok(Telemetry {
        filter: Filter(handle),
        #[cfg(feature = "otlp")]
        _spans: spans,
    })
}
