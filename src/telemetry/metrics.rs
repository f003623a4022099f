//! Metrics for Prometheus, on a listener of their own: whoever stands there in silence must not keep file descriptors that
//! calls need.

use std::convert::Infallible;
use std::error::Error;
use std::iter::successors;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval, sleep_until, timeout};

use crate::metric::{self, Kind, Metric};

/// Buckets of a histogram, and how much wider each is than the one before: from microseconds, which a step takes, to minutes.
const BUCKETS: usize = 32;
const GROWTH: f64 = 1.7;

/// Connections at once; one more is closed as it comes.
const MOST_READERS: usize = 16;
/// How long one may take for its request and the answer, after which it is closed.
const READING: Duration = Duration::from_secs(10);
/// How often what was recorded is gathered while nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);
/// Breath between two tries of `accept` after it failed, for want of file descriptors as a rule; each failure is a line of the log.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The text format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4";

/// Starts to collect metrics for the whole process, and to answer on `listen`. Must be called within a tokio runtime, before
/// anything is recorded.
///
/// # Errors
/// The address cannot be listened on, or something collects already.
pub fn serve(listen: SocketAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let mut builder = PrometheusBuilder::new();
    for metric in metric::ALL {
        if let Kind::Seconds { first } = metric.kind {
            let ends: Vec<f64> = successors(Some(first), |end| Some(end * GROWTH)).take(BUCKETS).collect();
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), &ends)?;
        }
    }
    tokio::spawn(answer(tokio::net::TcpListener::from_std(listener)?, builder.install_recorder()?));
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

/// Answers whoever asks, for ever.
async fn answer(listener: tokio::net::TcpListener, metrics: PrometheusHandle) {
    let (readers, mut upkeep) = (Arc::new(Semaphore::new(MOST_READERS)), interval(UPKEEP));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = upkeep.tick() => {
                metrics.run_upkeep();
                continue;
            }
        };
        match (accepted, Arc::clone(&readers).try_acquire_owned()) {
            (Ok((io, _)), Ok(place)) => {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    _ = timeout(READING, read(io, metrics)).await;
                    drop(place);
                });
            }
            (Ok(_), Err(_)) => tracing::debug!(most = MOST_READERS, "a reader of metrics too many was closed"),
            (Err(error), _) => {
                tracing::warn!(%error, "cannot accept readers of metrics");
                sleep_until(Instant::now() + ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One question, whatever its path, and the answer.
async fn read(io: TcpStream, metrics: PrometheusHandle) -> hyper::Result<()> {
    let service = service_fn(|request: Request<_>| {
        let (status, text) = match *request.method() {
            Method::GET => (StatusCode::OK, metrics.render()),
            _ => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        };
        let mut response = Response::new(text);
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(TEXT));
        async { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(READING).keep_alive(false);
    http.serve_connection(TokioIo::new(io), service).await
}

/// Reads what the operating system says of this process.
pub fn observe_process() {
    metrics_process::Collector::default().collect();
}
