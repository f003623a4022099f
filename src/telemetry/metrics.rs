//! Metrics for Prometheus, on a listener of their own.

use std::iter::successors;
use std::net::SocketAddr;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use crate::metric::{self, Kind, Metric};

/// Buckets of a histogram, and how much wider each is than the one before: from microseconds, which a step takes, to minutes.
const BUCKETS: usize = 32;
const GROWTH: f64 = 1.7;

/// Starts to collect metrics for the whole process, and to answer on `listen`. Must be called within a tokio runtime, before
/// anything is recorded.
///
/// # Errors
/// The address cannot be listened on, or something collects already.
pub fn serve(listen: SocketAddr) -> Result<(), BuildError> {
    let mut builder = PrometheusBuilder::new().with_http_listener(listen);
    for metric in metric::ALL {
        if let Kind::Seconds { first } = metric.kind {
            let ends: Vec<f64> = successors(Some(first), |end| Some(end * GROWTH)).take(BUCKETS).collect();
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), &ends)?;
        }
    }
    builder.install()?;
    for &Metric { name, kind, help, .. } in metric::ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, help),
            Kind::Gauge => metrics::describe_gauge!(name, help),
            Kind::Seconds { .. } => metrics::describe_histogram!(name, metrics::Unit::Seconds, help),
        }
    }
    metrics::gauge!(metric::BUILD.name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics_process::Collector::default().describe();
    Ok(())
}

/// Reads what the operating system says of this process.
pub fn observe_process() {
    metrics_process::Collector::default().collect();
}
