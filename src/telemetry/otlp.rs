//! Spans of calls, sent to a collector by OTLP over gRPC.

use std::io;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Trace;

const SERVICE: &str = "pixeld";
/// What sending the last spans may take.
const FLUSH: Duration = Duration::from_secs(2);

/// Sends what waits when it is dropped.
#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// What gathers spans and what sends them; `None` if nobody shall have them.
///
/// # Errors
/// The endpoint is no URL.
pub(super) fn start<S>(trace: &Trace) -> io::Result<Option<(impl Layer<S> + use<S>, Exporter)>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let Some(endpoint) = &trace.endpoint else { return Ok(None) };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(io::Error::other)?;
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        // Who calls decides for a call that belongs to a trace.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(trace.ratio))))
        .with_resource(Resource::builder().with_service_name(SERVICE).with_attribute(version).build())
        .with_batch_exporter(exporter)
        .build();
    // A call is one span, whatever the log leaves out; events stay in the log.
    let calls = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with(SERVICE);
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(calls));
    Ok(Some((layer, Exporter(provider))))
}
