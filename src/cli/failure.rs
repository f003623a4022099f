//! How a command ends badly: one message for people and one exit code for scripts.

use std::fmt::Write;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::connect::innermost;
use crate::error::Violations;

/// Where a request's fields come from on the command line.
const FLAGS: [(&str, &str); 8] = [
    ("image_count", "--count"),
    ("first_image_index", "--first-index"),
    ("conditioning.class_label", "--class"),
    ("sampling.temperature", "--temperature"),
    ("sampling.top_k", "--top-k"),
    ("sampling.top_p", "--top-p"),
    ("sampling.seed", "--seed"),
    ("spec.model", "--model"),
];

/// Why a command could not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The arguments, the configuration or an input is wrong.
    Usage(String),
    /// The server is not there, or cannot take the work now.
    Unavailable(String),
    /// The server is there, the model is not: its package was refused, or it broke down.
    NotServing(String),
    /// Something broke.
    Internal(String),
    /// The user stopped it.
    Interrupted,
    /// Whoever read the output has read enough. No error at all.
    OutputClosed,
}

impl Failure {
    /// Exit code, after `sysexits.h`.
    pub(super) fn code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::Usage(_) => 64,
            Failure::Unavailable(_) | Failure::NotServing(_) => 69,
            Failure::Internal(_) => 70,
            Failure::Interrupted => 130,
        }
    }

    /// What the user is told, if anything.
    pub(super) fn message(&self) -> Option<&str> {
        match self {
            Failure::Usage(message)
            | Failure::Unavailable(message)
            | Failure::NotServing(message)
            | Failure::Internal(message) => Some(message),
            Failure::Interrupted => Some("interrupted"),
            Failure::OutputClosed => None,
        }
    }
}

impl Failure {
    /// Wrong input: every violation on a line of its own below `title`.
    pub(super) fn listed(title: &str, violations: &Violations) -> Self {
        let mut text = String::from(title);
        for violation in violations.iter() {
            let _ = write!(text, "\n  {}: {}", violation.field, violation.description);
        }
        if violations.dropped() > 0 {
            let _ = write!(text, "\n  and {} more", violations.dropped());
        }
        Failure::Usage(text)
    }

    /// The same with `from` called `to` in its message.
    pub(super) fn renaming(mut self, from: &str, to: &str) -> Self {
        if let Failure::Usage(message) | Failure::Unavailable(message) | Failure::Internal(message) = &mut self {
            *message = message.replace(from, to);
        }
        self
    }
}

impl From<Violations> for Failure {
    fn from(violations: Violations) -> Self {
        Failure::listed("the configuration is wrong:", &violations)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status without a source was sent by the server; one with a source tells that the connection broke, or that
        // something else than gRPC is spoken at its other end.
        if let Some(cause) = std::error::Error::source(&status) {
            return Failure::Unavailable(format!("the connection broke: {}", innermost(cause)));
        }
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
        let mut text = status.message().to_owned();
        if text.is_empty() {
            text = format!("the server answered {:?} without a word", status.code());
        }
        if let Some(request) = details.bad_request().filter(|request| !request.field_violations.is_empty()) {
            text = String::from("the request was refused:");
            for violation in &request.field_violations {
                let _ = write!(text, "\n  {}: {}", flag(&violation.field), violation.description);
            }
        }
        if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
            let _ = write!(text, "; try again in {:.1} s", delay.as_secs_f64());
        }
        match status.code() {
            Code::InvalidArgument | Code::NotFound => Failure::Usage(text),
            Code::Unauthenticated => Failure::Usage(format!("{text}; --token-file or PIXELD_TOKEN gives one")),
            Code::FailedPrecondition if reason == "UNSUPPORTED" => Failure::Usage(text),
            Code::FailedPrecondition if reason == "MODEL_IN_USE" => Failure::Usage(text),
            Code::FailedPrecondition if reason == "MODEL_FAILED" => Failure::NotServing(text),
            Code::Internal | Code::DataLoss | Code::Unknown => Failure::Internal(text),
            _ => Failure::Unavailable(text),
        }
    }
}

/// The flag that set `field`, or the field itself.
fn flag(field: &str) -> &str {
    FLAGS.iter().find(|(path, _)| field.ends_with(path)).map_or(field, |(_, flag)| flag)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn every_violation_is_told_under_the_flag_that_caused_it() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("spec.sampling.top_p", "must be above 0 and at most 1, got 3");
        details.add_bad_request_violation("spec.other", "is odd");
        let failure = Failure::from(Status::with_error_details(Code::InvalidArgument, "invalid request", details));
        let text = "the request was refused:\n  --top-p: must be above 0 and at most 1, got 3\n  spec.other: is odd";
        assert_eq!(failure, Failure::Usage(text.to_owned()));
        assert_eq!(failure.code(), 64);
    }

    #[test]
    fn codes_follow_who_can_do_something_about_it() {
        let code = |code| Failure::from(Status::new(code, "so it is")).code();
        assert_eq!([Code::InvalidArgument, Code::NotFound, Code::Unauthenticated].map(code), [64; 3]);
        assert_eq!([Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded].map(code), [69; 3]);
        assert_eq!([Code::Internal, Code::Unknown].map(code), [70; 2]);
        let mut details = ErrorDetails::new();
        details.set_error_info("UNSUPPORTED", "pixeld.dev", std::collections::HashMap::new());
        assert_eq!(Failure::from(Status::with_error_details(Code::FailedPrecondition, "no", details)).code(), 64);
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_millis(1500)));
        let failure = Failure::from(Status::with_error_details(Code::ResourceExhausted, "the queue is full", details));
        assert_eq!(failure.message(), Some("the queue is full; try again in 1.5 s"));
    }

    #[test]
    fn a_wrong_configuration_is_told_line_by_line() {
        let mut violations = Violations::new();
        violations.add("engine.slots", "must be 1");
        violations.add("log.filter", "must be 2");
        let text = "the configuration is wrong:\n  engine.slots: must be 1\n  log.filter: must be 2";
        assert_eq!(Failure::from(violations).message(), Some(text));
    }
}
