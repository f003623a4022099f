//! Open Request Cost Aggregation: every call to a model tells at its end how busy this replica is, for balancers.
//!
//! The report is an `xds.data.orca.v3.OrcaLoadReport` in the trailer `endpoint-load-metrics-bin`, where gRPC's
//! `weighted_round_robin` (gRFC A51, A58) and Envoy's `client_side_weighted_round_robin` look for it. Both weigh a replica
//! by calls a second over `application_utilization`. Nobody has to ask for it: it is 100 to 200 bytes a call, and a few
//! loads of atomics for each shard.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Bytes;
use prost::Message;
use tonic::Status;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::server::NamedService;
use tower::Service;

use super::proto::orca::OrcaLoadReport;
use crate::engine::Load;
use crate::engine::catalogue::{Catalogue, State};

/// Where balancers look for a report.
pub const LOAD_REPORT: &str = "endpoint-load-metrics-bin";
/// What makes an answer of headers alone: it has no trailers.
const STATUS: &str = "grpc-status";
/// Calls count for less the longer they are over: by e for each of these.
const MEMORY: Duration = Duration::from_secs(10);
/// A daemon that is younger has seen too little to speak of a rate.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// What reports are made of.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    catalogue: Catalogue,
    calls: Arc<Mutex<Rate>>,
}

impl Reporter {
    pub(super) fn new(catalogue: &Catalogue) -> Self {
        Self { catalogue: catalogue.clone(), calls: Arc::new(Mutex::new(Rate::new(Instant::now()))) }
    }

    /// `inner`, which tells at the end of its calls what they leave.
    pub(super) fn report_with<S>(&self, inner: S) -> Reporting<S> {
        Reporting { inner, reporter: self.clone() }
    }

    /// Counts a call that ends, and reports.
    fn add_to(&self, trailers: &mut HeaderMap) {
        let calls_per_s = self.calls.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now());
        let states = self.catalogue.list();
        let report = report(states.values().filter_map(State::handle).map(|handle| handle.load()), calls_per_s);
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(LOAD_REPORT, BinaryMetadataValue::from_bytes(&report.encode_to_vec()));
        trailers.extend(metadata.into_headers());
    }
}

/// The report of a replica whose models have these loads.
fn report(loads: impl Iterator<Item = Load>, calls_per_s: f64) -> OrcaLoadReport {
    let [mut slots, mut running, mut queued, mut scoring] = [0.0; 4];
    for load in loads {
        slots += f64::from(load.slots);
        running += f64::from(load.running);
        queued += f64::from(load.queued);
        scoring += f64::from(load.scoring);
    }
    // Without a model there is nothing that could be used.
    let of_slots = |images: f64| if slots > 0.0 { images / slots } else { 0.0 };
    let named = [("images_queued", queued), ("images_running", running), ("images_scoring", scoring), ("slots", slots)];
    OrcaLoadReport {
        rps_fractional: calls_per_s,
        utilization: [("slots".to_owned(), of_slots(running))].into(),
        named_metrics: named.map(|(name, value)| (name.to_owned(), value)).into(),
        application_utilization: of_slots(running + queued + scoring),
    }
}

/// How often something happens a second, of late.
#[derive(Debug)]
struct Rate {
    began: Instant,
    last: Instant,
    /// How often it happened, where each time counts for less the longer it is ago.
    weighed: f64,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { began: now, last: now, weighed: 0.0 }
    }

    /// It happens now; how often a second it does.
    fn count(&mut self, now: Instant) -> f64 {
        let left = |since: Duration| (-since.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.weighed = self.weighed * left(now.saturating_duration_since(self.last)) + 1.0;
        self.last = now;
        // What one a second would have come to by now.
        let age = now.saturating_duration_since(self.began).max(LEAST_AGE);
        self.weighed / (MEMORY.as_secs_f64() * (1.0 - left(age)))
    }
}

/// A service whose calls end with a report.
#[derive(Clone, Debug)]
pub(super) struct Reporting<S> {
    inner: S,
    reporter: Reporter,
}

impl<S: NamedService> NamedService for Reporting<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Response<tonic::body::Body>;

impl<S, B> Service<Request<B>> for Reporting<S>
where
    S: Service<Request<B>, Response = Answer>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (answer, reporter) = (self.inner.call(request), self.reporter.clone());
        Box::pin(async move {
            let mut answer = answer.await?;
            if answer.headers().contains_key(STATUS) {
                reporter.add_to(answer.headers_mut());
                return Ok(answer);
            }
            Ok(answer.map(|body| tonic::body::Body::new(Reported { body, reporter })))
        })
    }
}

/// A response body whose trailers have a report.
struct Reported {
    body: tonic::body::Body,
    reporter: Reporter,
}

impl Body for Reported {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            self.reporter.add_to(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_adds_up_the_models_and_tells_of_work_beyond_the_slots() {
        let loads = [
            Load { slots: 6, running: 6, queued: 9, ..Load::default() },
            Load { slots: 2, scoring: 1, ..Load::default() },
        ];
        let report = super::report(loads.into_iter(), 2.5);
        assert_eq!((report.rps_fractional, report.application_utilization), (2.5, 2.0));
        assert_eq!(report.utilization, [("slots".to_owned(), 0.75)].into());
        let named = |name: &str| report.named_metrics[name];
        assert_eq!([named("images_queued"), named("images_running")], [9.0, 6.0]);
        assert_eq!([named("images_scoring"), named("slots")], [1.0, 8.0]);
        let empty = super::report([].into_iter(), 0.0);
        assert_eq!((empty.application_utilization, empty.utilization["slots"]), (0.0, 0.0));
    }

    #[test]
    fn a_rate_is_right_from_the_first_seconds_on_and_follows_a_change() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        let seen: Vec<_> = (1..=600).map(|tenths| rate.count(at(tenths))).collect();
        assert!(seen[20..].iter().all(|seen| (seen - 10.0).abs() < 1.0), "{seen:?}");
        let slower: Vec<_> = (1..=60).map(|seconds| rate.count(at(600 + 10 * seconds))).collect();
        assert!(slower[0] > 8.0 && (slower[59] - 1.0).abs() < 0.1, "{slower:?}");
    }
}
