//! The one table from what can go wrong to what a client is told: code, reason, details, when to come back.
//!
//! Every status carries exactly one `ErrorInfo`. Statuses travel in HTTP/2 trailers, for which common clients reserve
//! eight kilobytes, so texts are cut and violations beyond a budget are counted instead of listed.

use std::collections::HashMap;
use std::error::Error as _;
use std::time::Duration;

use http::header::WWW_AUTHENTICATE;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{DeadlineStage, Error, Violations};

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "pixeld.dev";
/// Trailer that tells gRPC's own retry logic when to come back (gRFC A6).
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Longest message, in characters: some of it may be the client's own text.
const MAX_MESSAGE: usize = 320;
/// The same of what is told beside it: the ranks of 256 images of 12288 values each, and more.
const MAX_OFFSETS: usize = 3000;
/// Bytes that the violations of one status may take; base64 and the message come on top.
const MAX_VIOLATION_BYTES: usize = 3 << 10;
/// When to come back to a server that is going away: by then the client's balancer should know another one.
const DRAINING_RETRY: Duration = Duration::from_secs(1);
/// When to send again what found no memory: most messages are whole, and gone from it, long before.
const UPLOADS_RETRY: Duration = Duration::from_secs(1);
/// When to ask again for a model that is being loaded.
const LOADING_RETRY: Duration = Duration::from_secs(2);

/// One row of the table.
struct Row {
    code: Code,
    reason: &'static str,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
}

/// The table.
fn row(error: &Error) -> Row {
    let row = |code, reason| Row { code, reason, metadata: Vec::new(), retry_after: None };
    let with = |code, reason, metadata| Row { metadata, ..row(code, reason) };
    match error {
        Error::Invalid(_) => row(Code::InvalidArgument, "INVALID_REQUEST"),
        Error::ModelNotFound { name, .. } => with(Code::NotFound, "MODEL_NOT_FOUND", vec![("model", name.clone())]),
        Error::ModelLoading { name } => Row {
            retry_after: Some(LOADING_RETRY),
            ..with(Code::Unavailable, "MODEL_NOT_READY", vec![("model", name.clone())])
        },
        Error::ModelFailed { name, .. } => {
            with(Code::FailedPrecondition, "MODEL_FAILED", vec![("model", name.clone())])
        }
        Error::ModelDraining { name } => Row {
            retry_after: Some(DRAINING_RETRY),
            ..with(Code::Unavailable, "MODEL_DRAINING", vec![("model", name.clone())])
        },
        Error::ModelBusy { name, .. } => with(Code::Aborted, "MODEL_BUSY", vec![("model", name.clone())]),
        Error::ModelInUse { name, by } => {
            with(Code::FailedPrecondition, "MODEL_IN_USE", vec![("model", name.clone()), ("by", by.clone())])
        }
        Error::ReloadFailed { name, revision, .. } => with(
            Code::FailedPrecondition,
            "RELOAD_FAILED",
            vec![("model", name.clone()), ("revision", revision.clone())],
        ),
        Error::ModelMemoryFull { name, wanted, free, limit } => with(
            Code::ResourceExhausted,
            "MODEL_MEMORY_FULL",
            vec![
                ("model", name.clone()),
                ("wanted", wanted.to_string()),
                ("free", free.to_string()),
                ("limit", limit.to_string()),
            ],
        ),
        Error::Unsupported(_) => row(Code::FailedPrecondition, "UNSUPPORTED"),
        Error::QueueFull { name, requested, free, limit, retry_after } => Row {
            retry_after: Some(*retry_after),
            ..with(
                Code::ResourceExhausted,
                "QUEUE_FULL",
                vec![
                    ("model", name.clone()),
                    ("requested", requested.to_string()),
                    ("free", free.to_string()),
                    ("limit", limit.to_string()),
                ],
            )
        },
        Error::UploadsFull { requested, free, limit } => Row {
            retry_after: Some(UPLOADS_RETRY),
            ..with(
                Code::ResourceExhausted,
                "UPLOADS_FULL",
                vec![("requested", requested.to_string()), ("free", free.to_string()), ("limit", limit.to_string())],
            )
        },
        Error::RequestStalled => row(Code::Aborted, "REQUEST_STALLED"),
        Error::DeadlineExceeded { stage: DeadlineStage::Queue, .. } => row(Code::DeadlineExceeded, "QUEUE_TIMEOUT"),
        Error::DeadlineExceeded { stage: DeadlineStage::MidStream, values } => {
            with(Code::DeadlineExceeded, "DEADLINE_MID_STREAM", vec![("values", values.to_string())])
        }
        Error::ClientTooSlow { values, ranks } => {
            let offsets = ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let mut metadata = vec![("values", values.to_string())];
            // Those of very many images find no room; they follow from what was received.
            if !ranks.is_empty() && offsets.len() <= MAX_OFFSETS {
                metadata.push(("offset", offsets));
            }
            with(Code::Aborted, "CLIENT_TOO_SLOW", metadata)
        }
        Error::DeadlineInfeasible { estimate } => with(
            Code::DeadlineExceeded,
            "DEADLINE_INFEASIBLE",
            vec![("estimated_wait_ms", estimate.as_millis().to_string())],
        ),
        Error::AlreadyRunning { request_id } => {
            with(Code::AlreadyExists, "ALREADY_RUNNING", vec![("request_id", request_id.clone())])
        }
        Error::OutOfMemory => row(Code::ResourceExhausted, "DEVICE_MEMORY_EXHAUSTED"),
        Error::Cancelled => row(Code::Cancelled, "CANCELLED"),
        Error::Draining => Row { retry_after: Some(DRAINING_RETRY), ..row(Code::Unavailable, "SERVER_DRAINING") },
        Error::Unauthenticated => row(Code::Unauthenticated, "UNAUTHENTICATED"),
        Error::EngineFault(_) => row(Code::Internal, "ENGINE_FAULT"),
    }
}

/// What the client is told about `error`.
pub(super) fn status(error: &Error) -> Status {
    let Row { code, reason, metadata, retry_after } = row(error);
    let mut info: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), cut(&value, MAX_OFFSETS))).collect();
    let mut details = ErrorDetails::new();
    if let Error::Invalid(violations) = error {
        let unlisted = list(violations, &mut details);
        if unlisted > 0 {
            info.insert("unlisted_violations".to_owned(), unlisted.to_string());
        }
    }
    details.set_error_info(reason, DOMAIN, info);
    let mut trailers = MetadataMap::new();
    if let Some(delay) = retry_after {
        details.set_retry_info(Some(delay));
        if let Ok(value) = delay.as_millis().to_string().parse() {
            trailers.insert(PUSHBACK, value);
        }
    }
    if code == Code::Unauthenticated {
        trailers.insert(WWW_AUTHENTICATE.as_str(), MetadataValue::from_static("Bearer"));
    }
    Status::with_error_details_and_metadata(code, cut(&error.to_string(), MAX_MESSAGE), details, trailers)
}

/// The error that `status` was made of, where one of ours came back through the framework, which wraps it.
pub(super) fn cause(status: &Status) -> Option<&Error> {
    std::iter::successors(status.source(), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// Puts violations into `details` as far as the budget goes; returns how many are left.
fn list(violations: &Violations, details: &mut ErrorDetails) -> usize {
    let mut budget = MAX_VIOLATION_BYTES;
    let mut unlisted = violations.dropped();
    for violation in violations.iter() {
        let (field, description) = (cut(&violation.field, MAX_MESSAGE), cut(&violation.description, MAX_MESSAGE));
        // The first is always listed: two cut texts are below the budget.
        match budget.checked_sub(field.len() + description.len()) {
            Some(rest) => {
                budget = rest;
                details.add_bad_request_violation(field, description);
            }
            None => unlisted += 1,
        }
    }
    unlisted
}

/// `text`, or its first `most` characters if it is longer.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(count: usize) -> Violations {
        let mut violations = Violations::new();
        (0..count).for_each(|index| violations.add(format!("items[{index}].image.data"), "must be 64 bytes, got 3"));
        violations
    }

    /// One of every variant; a new one does not compile until `row` has it, and does not pass until it stands here.
    fn every_error() -> Vec<(Error, Code, &'static str, bool)> {
        let (name, why) = (String::from("m"), String::from("w"));
        let full = Error::QueueFull {
            name: name.clone(),
            requested: 3,
            free: 1,
            limit: 2,
            retry_after: Duration::from_millis(1500),
        };
        let deadline = |stage| Error::DeadlineExceeded { stage, values: 7 };
        vec![
            (Error::Invalid(violations(2)), Code::InvalidArgument, "INVALID_REQUEST", false),
            (Error::ModelNotFound { name: name.clone(), known: why.clone() }, Code::NotFound, "MODEL_NOT_FOUND", false),
            (Error::ModelLoading { name: name.clone() }, Code::Unavailable, "MODEL_NOT_READY", true),
            (
                Error::ModelFailed { name: name.clone(), why: why.clone() },
                Code::FailedPrecondition,
                "MODEL_FAILED",
                false,
            ),
            (Error::ModelDraining { name: name.clone() }, Code::Unavailable, "MODEL_DRAINING", true),
            (Error::ModelBusy { name: name.clone(), doing: "loaded" }, Code::Aborted, "MODEL_BUSY", false),
            (
                Error::ModelInUse { name: name.clone(), by: why.clone() },
                Code::FailedPrecondition,
                "MODEL_IN_USE",
                false,
            ),
            (
                Error::ReloadFailed { name: name.clone(), revision: why.clone(), why: why.clone() },
                Code::FailedPrecondition,
                "RELOAD_FAILED",
                false,
            ),
            (
                Error::ModelMemoryFull { name, wanted: 3, free: 1, limit: 2 },
                Code::ResourceExhausted,
                "MODEL_MEMORY_FULL",
                false,
            ),
            (Error::Unsupported(why.clone()), Code::FailedPrecondition, "UNSUPPORTED", false),
            (full, Code::ResourceExhausted, "QUEUE_FULL", true),
            (Error::UploadsFull { requested: 3, free: 1, limit: 2 }, Code::ResourceExhausted, "UPLOADS_FULL", true),
            (Error::RequestStalled, Code::Aborted, "REQUEST_STALLED", false),
            (deadline(DeadlineStage::Queue), Code::DeadlineExceeded, "QUEUE_TIMEOUT", false),
            (deadline(DeadlineStage::MidStream), Code::DeadlineExceeded, "DEADLINE_MID_STREAM", false),
            (Error::ClientTooSlow { values: 3, ranks: vec![2, 1] }, Code::Aborted, "CLIENT_TOO_SLOW", false),
            (
                Error::DeadlineInfeasible { estimate: Duration::from_millis(1500) },
                Code::DeadlineExceeded,
                "DEADLINE_INFEASIBLE",
                false,
            ),
            (Error::AlreadyRunning { request_id: String::from("r") }, Code::AlreadyExists, "ALREADY_RUNNING", false),
            (Error::OutOfMemory, Code::ResourceExhausted, "DEVICE_MEMORY_EXHAUSTED", false),
            (Error::Cancelled, Code::Cancelled, "CANCELLED", false),
            (Error::Draining, Code::Unavailable, "SERVER_DRAINING", true),
            (Error::Unauthenticated, Code::Unauthenticated, "UNAUTHENTICATED", false),
            (Error::EngineFault(why), Code::Internal, "ENGINE_FAULT", false),
        ]
    }

    #[test]
    fn every_error_has_one_reason_and_says_when_to_retry_if_it_helps() {
        let mut reasons = std::collections::HashSet::new();
        for (error, code, reason, retry) in every_error() {
            let status = status(&error);
            assert_eq!(status.code(), code, "{error}");
            assert_eq!(status.message(), error.to_string());
            let details = status.get_error_details();
            let info = details.error_info().expect("one ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN));
            assert!(reasons.insert(reason), "{reason} stands for two errors");
            assert_eq!(details.retry_info().is_some(), retry, "{reason}");
            assert_eq!(status.metadata().contains_key(PUSHBACK), retry, "{reason}");
        }
    }

    #[test]
    fn a_full_queue_tells_the_estimate_twice() {
        let (error, ..) =
            every_error().into_iter().find(|(error, ..)| matches!(error, Error::QueueFull { .. })).unwrap();
        let status = status(&error);
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "1500");
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1500)));
        assert_eq!(details.error_info().unwrap().metadata["free"], "1");
    }

    #[test]
    fn a_reader_that_was_too_slow_hears_where_each_image_goes_on() {
        let offset = |ranks: Vec<u32>| {
            let status = status(&Error::ClientTooSlow { values: 7, ranks });
            status.get_error_details().error_info().unwrap().metadata.get("offset").cloned()
        };
        assert_eq!(offset(vec![12]).as_deref(), Some("12"));
        assert_eq!(offset(vec![12, 3]).as_deref(), Some("12,3"));
        assert!(offset(vec![12288; 256]).is_some(), "as many images as a request has by default");
        assert_eq!(offset(vec![12288; 1000]), None, "no half of a list");
    }

    #[test]
    fn a_status_fits_the_trailers_of_common_clients_whatever_was_wrong() {
        let mut hostile = violations(4);
        (0..60).for_each(|_| hostile.add("x".repeat(100_000), "y".repeat(100_000)));
        let long = Error::ModelNotFound { name: "n".repeat(1 << 20), known: String::new() };
        for error in [Error::Invalid(hostile), long] {
            let status = status(&error);
            assert!(status.details().len() < 5 << 10, "{} bytes of details", status.details().len());
            assert!(status.message().len() < 1 << 10);
        }
        let status = status(&Error::Invalid(violations(1000)));
        let details = status.get_error_details();
        let listed = details.bad_request().unwrap().field_violations.len();
        let unlisted: usize = details.error_info().unwrap().metadata["unlisted_violations"].parse().unwrap();
        assert_eq!(listed + unlisted, 1000);
    }
}
