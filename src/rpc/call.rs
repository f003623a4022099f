//! What every call goes through before its service: token, deadline, span, one line in the access log, a count of open calls.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::{Bytes, Incoming};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::Service;
use tracing::{Instrument, Span};

use super::deadline::{self, Deadline};
use super::status::{cut, status};
use super::trace;
use super::unary::Unary;
use super::upload::Uploads;
use super::{meter, proto};
use crate::error::{Error, Violations};
use crate::security::{Group, Security};

/// Whose tokens let in to what, by the beginning of the path.
const GROUPS: [(&str, Group); 8] = [
    ("/pixeld.v1.GenerationService/", Group::Generation),
    ("/pixeld.v1.ScoringService/", Group::Scoring),
    ("/pixeld.v1.ModelService/", Group::Models),
    ("/pixeld.v1.AdminService/", Group::Admin),
    ("/inference.GRPCInferenceService/", Group::Inference),
    ("/grpc.reflection.v1.ServerReflection/", Group::Reflection),
    ("/grpc.reflection.v1alpha.ServerReflection/", Group::Reflection),
    ("/grpc.health.v1.Health/", Group::Health),
];
/// Where health is asked for.
const HEALTH: &str = "/grpc.health.";
/// Bytes that the headers of a request may take, counted as HTTP/2 does: 32 for each beside name and value.
pub(super) const MAX_METADATA_BYTES: u32 = 16 << 10;
const GRPC: &str = "application/grpc";
/// Characters of a path that are logged; it may name anything.
const MAX_LOGGED: usize = 100;
/// How long past the deadline a service has to answer in its own words before it is answered for.
const GRACE: Duration = Duration::from_millis(50);

/// Wraps the routes of one connection.
#[derive(Clone, Debug)]
pub(super) struct Calls<S> {
    inner: S,
    security: Security,
    uploads: Uploads,
    open: Open,
    /// How long an answer may lie unread.
    unread_timeout: Duration,
}

impl<S> Calls<S> {
    pub(super) fn new(inner: S, security: Security, uploads: Uploads, open: Open, unread_timeout: Duration) -> Self {
        Self { inner, security, uploads, open, unread_timeout }
    }
}

/// Counts calls, from their first header to the last byte handed to the transport.
#[derive(Clone, Debug)]
pub(super) struct Open {
    everywhere: TaskTracker,
    here: Arc<watch::Sender<usize>>,
}

impl Open {
    /// None yet on a connection, which is one of those that `everywhere` counts for.
    pub(super) fn new(everywhere: TaskTracker) -> Self {
        Self { everywhere, here: Arc::new(watch::Sender::new(0)) }
    }

    /// How many there are on this connection.
    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.here.subscribe()
    }

    /// One more, that is waited for at the end if `awaited` is.
    fn count(&self, awaited: bool) -> Counted {
        self.here.send_modify(|calls| *calls += 1);
        Counted { here: Arc::clone(&self.here), _everywhere: awaited.then(|| self.everywhere.token()) }
    }
}

/// One call that is open.
struct Counted {
    here: Arc<watch::Sender<usize>>,
    _everywhere: Option<TaskTrackerToken>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.here.send_modify(|calls| *calls -= 1);
    }
}

type Answer = Response<Logged>;

impl<S> Service<Request<Incoming>> for Calls<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>> + Send,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let method = cut(request.uri().path(), MAX_LOGGED);
        let span = trace::span(&method, request.headers());
        let (started, probe) = (Instant::now(), request.uri().path().starts_with(HEALTH));
        let _open = self.open.count(!probe);
        let method = known(request.uri().path());
        meter::began(method);
        let verdict = Verdict::default();
        request.extensions_mut().insert(verdict.clone());
        let record = Record { started, method, code: None, reason: None, verdict, probe, span: span.clone(), _open };
        if !speaks_grpc(request.headers()) {
            let mut refusal = refusal(status(&bad("content-type", format!("must be {GRPC}"))), record);
            *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(async { Ok(refusal) });
        }
        if let Err(error) = self.authenticate(&mut request) {
            return Box::pin(async move { Ok(refusal(status(&error), record)) });
        }
        let checked = check_metadata(&request).and_then(|()| deadline::read(request.headers(), record.started));
        let deadline = match checked {
            Ok(deadline) => deadline,
            Err(error) => return Box::pin(async move { Ok(refusal(status(&error), record)) }),
        };
        request.extensions_mut().insert(Deadline(deadline));
        let (mut parts, body) = request.into_parts();
        let body = self.uploads.watch(parts.uri.path(), body);
        parts.extensions.insert(body.evicted());
        let body = tonic::body::Body::new(body);
        let answer = self.inner.call(Request::from_parts(parts, body));
        let (unread_timeout, told) = (self.unread_timeout, record.verdict.clone());
        let bounded = async move {
            tokio::select! {
                biased;
                answer = answer => {
                    let mut answer = in_our_words(answer?);
                    if METHODS.get(method) == Some(&false) && !answer.body().is_end_stream() {
                        answer = answer.map(|body| Unary::lease(body, deadline, unread_timeout, told));
                    }
                    Ok(Logged::wrap(answer, record))
                }
                // The services answer by themselves at the deadline; this ends a request that never came to its end.
                () = deadline::passed(deadline.map(|deadline| deadline + GRACE)) => Ok(refusal(status(&deadline::exceeded()), record)),
            }
        };
        Box::pin(bounded.instrument(span))
    }
}

impl<S> Calls<S> {
    /// Lets a request in that may be; nobody after us sees its token.
    fn authenticate<B>(&self, request: &mut Request<B>) -> Result<(), Error> {
        // What belongs to no group is served by nobody.
        if let Some(group) = group(request.uri().path()) {
            self.security.check(group, request.headers())?;
        }
        request.headers_mut().remove(AUTHORIZATION);
        Ok(())
    }
}

fn group(path: &str) -> Option<Group> {
    GROUPS.into_iter().find(|(service, _)| path.starts_with(service)).map(|(_, group)| group)
}

fn refusal(status: Status, record: Record) -> Answer {
    Logged::wrap(status.into_http(), record)
}

/// Whether a request is of the kind that the services read; the framework takes any, a form on a web page included.
fn speaks_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim_end();
    kind == GRPC || kind.strip_prefix(GRPC) == Some("+proto")
}

fn check_metadata<B>(request: &Request<B>) -> Result<(), Error> {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    let bytes = request.uri().path().len() + headers.sum::<usize>();
    if bytes <= MAX_METADATA_BYTES as usize {
        return Ok(());
    }
    Err(bad("metadata", format!("must be at most {MAX_METADATA_BYTES} bytes, got {bytes}")))
}

fn bad(field: &str, description: impl Into<String>) -> Error {
    let mut violations = Violations::new();
    violations.add(field, description);
    violations.into()
}

/// `answer`, unless the framework could not read the request: it calls that an internal error, or one of size where the
/// message was too large once inflated, and gives no details, which all our own statuses have.
fn in_our_words(answer: Response<tonic::body::Body>) -> Response<tonic::body::Body> {
    let verdict = Status::from_header_map(answer.headers());
    let foreign = |verdict: &Status| {
        matches!(verdict.code(), Code::Internal | Code::OutOfRange | Code::ResourceExhausted)
            && verdict.details().is_empty()
    };
    match verdict {
        // The connection broke, or the client took the call back: nobody hears of this.
        Some(verdict) if verdict.code() == Code::Unknown => status(&Error::Cancelled).into_http(),
        Some(verdict) if foreign(&verdict) => status(&bad("request", verdict.message())).into_http(),
        _ => answer,
    }
}

/// Every method that is served, as a path, and whether it answers with a stream.
static METHODS: LazyLock<BTreeMap<String, bool>> = LazyLock::new(|| {
    [proto::DESCRIPTORS, proto::ADMIN_DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET]
        .into_iter()
        .filter_map(|set| FileDescriptorSet::decode(set).ok())
        .flat_map(|set| set.file)
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let service_name = format!("/{package}.{}/", service.name());
                service
                    .method
                    .into_iter()
                    .map(move |method| (format!("{service_name}{}", method.name()), method.server_streaming()))
            })
        })
        .collect()
});

/// `path` if it is a method that is served: what else clients ask for has no end, and must not become as many metrics.
fn known(path: &str) -> &'static str {
    METHODS.get_key_value(path).map_or("other", |(path, _)| path.as_str())
}

/// Request extension: what ended a call whose client may never take the end of the answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<OnceLock<Error>>);

impl Verdict {
    /// That of `request`.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// The first one counts.
    pub(super) fn set(&self, error: &Error) {
        _ = self.0.set(error.clone());
    }
}

/// One call, for the log. Written when the answer has been handed over, or was dropped on the way.
struct Record {
    started: Instant,
    method: &'static str,
    code: Option<Code>,
    /// Of the status, from our own table.
    reason: Option<String>,
    verdict: Verdict,
    /// Probes come every few seconds and say nothing new.
    probe: bool,
    span: Span,
    _open: Counted,
}

impl Record {
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = Some(status.code());
            self.reason = status.get_details_error_info().map(|info| info.reason);
        }
    }

    /// How it ended: as the client was told, or as it would have been if it had read on. If there was nothing to tell, the
    /// client is gone.
    fn outcome(&mut self) -> Code {
        if let (None, Some(error)) = (self.code, self.verdict.0.get()) {
            self.note(status(error).into_http::<()>().headers());
        }
        self.code.unwrap_or(Code::Cancelled)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let code = self.outcome();
        let elapsed = self.started.elapsed();
        meter::ended(self.method, code, self.reason.take(), elapsed);
        let elapsed_ms = elapsed.as_secs_f64() * 1e3;
        self.span.in_scope(|| match self.probe {
            false => tracing::info!(?code, elapsed_ms, "call ended"),
            true => tracing::debug!(?code, elapsed_ms, "call ended"),
        });
    }
}

/// A response body that notes how the call ended.
pub(super) struct Logged {
    body: tonic::body::Body,
    record: Record,
}

impl Logged {
    fn wrap(answer: Response<tonic::body::Body>, mut record: Record) -> Answer {
        record.note(answer.headers());
        answer.map(|body| Self { body, record })
    }
}

impl Body for Logged {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let span = this.record.span.clone();
        let polled = span.in_scope(|| Pin::new(&mut this.body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            this.record.note(trailers);
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
    fn a_call_whose_end_nobody_read_ended_as_it_would_have_been_told() {
        let ended = |told: Option<Error>, verdict: Option<Error>| {
            let open = Open::new(TaskTracker::new());
            let (given, span) = (Verdict::default(), Span::none());
            let (started, method, _open) = (Instant::now(), known(""), open.count(true));
            let mut record =
                Record { started, method, code: None, reason: None, verdict: given.clone(), probe: false, span, _open };
            verdict.iter().for_each(|error| given.set(error));
            told.iter().for_each(|error| record.note(status(error).into_http::<()>().headers()));
            (record.outcome(), record.reason.take())
        };
        let slow = || Some(Error::ClientTooSlow { values: 1, ranks: vec![1] });
        assert_eq!(ended(None, slow()), (Code::Aborted, Some("CLIENT_TOO_SLOW".to_owned())));
        assert_eq!(ended(Some(Error::Draining), slow()), (Code::Unavailable, Some("SERVER_DRAINING".to_owned())));
        assert_eq!(ended(None, None), (Code::Cancelled, None));
    }

    #[test]
    fn every_method_belongs_to_a_group_and_nothing_else_does() {
        assert!(METHODS.len() > 5);
        for path in METHODS.keys() {
            assert!(group(path).is_some(), "{path} would be open to everybody");
        }
        assert_eq!(group("/pixeld.v1.ScoringService/ScoreImages"), Some(Group::Scoring));
        assert_eq!(group("/pixeld.v1.Scoring"), None);
    }
}
