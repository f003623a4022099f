//! What the operator decides. Checked once, at the start: a `Config` that exists cannot be wrong.

mod check;
mod layers;
mod print;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use layers::{Flag, Layers, load};

use crate::engine::EngineConfig;
use crate::job::Limits;
use crate::machine;
use crate::spec::{Backend, Precision};

/// The effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The listener.
    pub server: Server,
    /// Where models come from.
    pub models: Models,
    /// How they are run.
    pub engine: Engine,
    /// What a request may ask for.
    pub limits: Limits,
    /// Where metrics are.
    pub metrics: Metrics,
    /// What is logged.
    pub log: Log,
    /// Where spans go.
    pub trace: Trace,
}

/// The gRPC listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request message, in bytes.
    pub max_request_bytes: usize,
    /// Memory for request messages on their way in, over all connections, in bytes.
    pub max_upload_bytes: usize,
    /// Connections there may be at once.
    pub max_connections: u32,
    /// Streams one connection may have open at once.
    pub max_streams_per_connection: u32,
    /// How long running requests may go on after the signal to stop.
    pub drain_timeout: Duration,
}

/// Where models come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    /// Directory with one package in each subdirectory.
    pub root: Option<PathBuf>,
    /// Whether the package inside the binary is served too, unless `root` holds one of that name.
    pub embedded: bool,
    /// Largest weights file, in bytes.
    pub max_weight_bytes: u64,
}

/// How models are run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Engine {
    /// Shards of one model, each on a thread; `None` for one a core.
    pub shards: Option<u32>,
    /// Images of one shard that can be in the making at once; `None` for as many as have their state in the cache.
    pub slots: Option<u32>,
    /// What computes the steps.
    pub backend: Backend,
    /// How matrices and remembered numbers are held.
    pub precision: Precision,
    /// Threads libtorch uses inside one operation; `None` for a shard's share of the cores.
    pub threads: Option<u32>,
    /// The rest.
    pub engine: EngineConfig,
}

/// Shards there are at most unless the configuration says so. Each takes memory for its slots and its scoring pass, and one
/// model that keeps more cores than this busy is rare.
const MOST_SHARDS: u32 = 16;

impl Engine {
    /// Shards of one model on this machine.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.shards.unwrap_or_else(|| machine::cores().min(MOST_SHARDS))
    }

    /// Threads that libtorch uses inside one operation, on this machine: the shards are to keep all cores busy, not more.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads.unwrap_or_else(|| (machine::cores() / self.shards()).max(1))
    }
}

/// The listener of Prometheus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Address and port; `None`: no metrics are collected.
    pub listen: Option<SocketAddr>,
}

/// What is logged, to standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A `tracing` filter, for example `info,pixeld=debug`.
    pub filter: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// Spans of calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// An OpenTelemetry collector (OTLP over gRPC); `None`: nobody has them.
    pub endpoint: Option<String>,
    /// Share of the calls that become spans, of those that belong to no trace yet.
    pub ratio: f64,
}
