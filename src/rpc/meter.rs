//! What is counted of calls and finished requests, for whoever exports it.

use std::time::Duration;

use tonic::Code;

use crate::engine::Timing;
use crate::job::Class;
use crate::metric;

/// A call began.
pub(super) fn began(method: &'static str) {
    metrics::counter!(metric::GRPC_STARTED.name, "grpc_method" => method).increment(1);
}

/// It ended after `elapsed`, for `reason` if its status gave one.
pub(super) fn ended(method: &'static str, code: Code, reason: Option<String>, elapsed: Duration) {
    if let Some(reason) = reason {
        metrics::counter!(metric::REFUSALS.name, "reason" => reason).increment(1);
    }
    // Codes are spelt as gRPC spells them only where gRPC and OpenTelemetry say so.
    let (own, theirs) = (format!("{code:?}"), spelt(code));
    metrics::counter!(metric::REQUESTS.name, "method" => method, "code" => own).increment(1);
    metrics::histogram!(metric::REQUEST_SECONDS.name, "method" => method).record(elapsed);
    metrics::histogram!(metric::GRPC_SECONDS.name, "grpc_method" => method, "grpc_status" => theirs).record(elapsed);
    metrics::histogram!(
        metric::RPC_SECONDS.name,
        "rpc_system_name" => "grpc", "rpc_method" => method, "rpc_response_status_code" => theirs,
        "error_type" => if code == Code::Ok { "" } else { theirs }
    )
    .record(elapsed);
}

/// A request of `class` to `model` was finished.
pub(super) fn finished(model: &str, class: Class, timing: Timing) {
    metrics::histogram!(metric::QUEUE_SECONDS.name, "model" => model.to_owned(), "class" => class.name())
        .record(timing.queue);
    if !timing.first_value.is_zero() {
        metrics::histogram!(metric::FIRST_VALUE_SECONDS.name, "model" => model.to_owned()).record(timing.first_value);
    }
}

/// The name of `code` in the specification of gRPC.
fn spelt(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
