//! What the operator decides. Checked once, at the start: a `Config` that exists cannot be wrong.

mod check;
mod layers;
mod print;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use check::log_filter;
pub use layers::{Flag, Layers, Variables, load};

use crate::engine::EngineConfig;
use crate::job::Limits;
use crate::machine;
use crate::rpc::ConnectionLimits;
use crate::security::{TlsFiles, TokenFiles};
use crate::spec::{Backend, Device, Precision};

/// The effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The listener.
    pub server: Server,
    /// Whose tokens are let in.
    pub auth: TokenFiles,
    /// Where models come from.
    pub models: Models,
    /// How they are run.
    pub engine: Engine,
    /// What a request may ask for.
    pub limits: Limits,
    /// Where operators are served.
    pub admin: Admin,
    /// Where probes are answered.
    pub health: Health,
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
    /// How many connections there may be, and for how long.
    pub connections: ConnectionLimits,
    /// How long calls are still taken after the signal to stop, while health says that none should come.
    pub drain_delay: Duration,
    /// How long running requests may go on after that.
    pub drain_timeout: Duration,
    /// Where certificates are; `None`: no TLS.
    pub tls: Option<TlsFiles>,
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
    /// Other names of models, and what they stand for at the start.
    pub aliases: BTreeMap<String, String>,
}

/// How models are run.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Shards of one model, each on a thread; `None` for one a core.
    pub shards: Option<u32>,
    /// Images of one shard that can be in the making at once; `None` for as many as have their state in the cache.
    pub slots: Option<u32>,
    /// What computes the steps.
    pub backend: Backend,
    /// Where models are; `None` for a GPU if there is one and libtorch computes the steps, otherwise the processor.
    pub device: Option<Device>,
    /// Directory with the libraries for GPUs; `None` for wherever the dynamic linker finds them.
    pub cuda_libraries: Option<PathBuf>,
    /// How matrices and remembered numbers are held.
    pub precision: Precision,
    /// Threads libtorch uses inside one operation; `None` for a shard's share of the cores.
    pub threads: Option<u32>,
    /// Memory that all models together may take, in bytes; `None` for no limit.
    pub max_model_bytes: Option<u64>,
    /// Whether the process ends when an engine hangs.
    pub stall_exit: bool,
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
        // A GPU computes one step after another, whoever asks for them.
        let most = if matches!(self.device, Some(Device::Cuda(_))) { 1 } else { MOST_SHARDS };
        self.shards.unwrap_or_else(|| machine::cores().min(most))
    }

    /// Threads that libtorch uses inside one operation, on this machine: the shards are to keep all cores busy, not more.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads.unwrap_or_else(|| (machine::cores() / self.shards()).max(1))
    }
}

/// The listener of operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Where; `None`: there is none.
    pub listen: Option<AdminAddress>,
}

/// Where operators are served. Whoever can connect there may do everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// A Unix socket, whose permissions say who can.
    Unix(PathBuf),
    /// A loopback address and a port: whoever is on this machine can.
    Loopback(SocketAddr),
}

/// What a Unix socket's path begins with in the configuration.
const UNIX: &str = "unix:";

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix(UNIX).map(Path::new);
        let unix = path.filter(|path| path.is_absolute()).map(|path| Self::Unix(path.to_owned()));
        let loopback =
            || text.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback()).map(Self::Loopback);
        unix.or_else(loopback).ok_or_else(|| {
            "unix: and an absolute path, or a loopback address and a port such as 127.0.0.1:50053".to_owned()
        })
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            AdminAddress::Loopback(address) => write!(f, "{address}"),
        }
    }
}

/// The listener of probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Address and port; `None`: health is asked for on the other listeners alone.
    pub listen: Option<SocketAddr>,
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
