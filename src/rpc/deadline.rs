//! The client's deadline: read from `grpc-timeout` once, carried with the request as an `Instant`.
//!
//! gRPC promises that a server ends a call whose deadline has passed. The transport does so only until the response
//! head, so every stage of ours keeps the instant itself: reading the request (`call`), queue and decoding (the engine's
//! streams), an answer nobody reads and a client that sends nothing (`lease`).

use std::time::{Duration, Instant};

use http::HeaderMap;

use crate::error::{DeadlineStage, Error, Violations};

const HEADER: &str = "grpc-timeout";
/// Longer timeouts are as good as none, and beyond what timers hold.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Request extension: when the client stops waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Option<Instant>);

/// The deadline of a request, as `call` found it.
pub(super) fn of<T>(request: &tonic::Request<T>) -> Option<Instant> {
    request.extensions().get::<Deadline>().and_then(|deadline| deadline.0)
}

/// Reads `grpc-timeout`; no header, or more than a year, is no deadline.
pub(super) fn read(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Error> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
        let mut violations = Violations::new();
        violations.add(HEADER, format!("must be 1 to 8 digits and one of H M S m u n, got {value:?}"));
        Error::Invalid(violations)
    })?;
    Ok(if timeout > LONGEST { None } else { now.checked_add(timeout) })
}

/// The wire form of a timeout: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(amount * 3600)),
        'M' => Some(Duration::from_secs(amount * 60)),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Resolves when `deadline` passes; never, if there is none.
pub(super) async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What a passed deadline means at a stage where no value has been made.
pub(super) fn exceeded() -> Error {
    Error::DeadlineExceeded { stage: DeadlineStage::Queue, values: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_wire_is_understood_and_nothing_else() {
        let good = [("2H", 7_200_000_000_000), ("3M", 180_000_000_000), ("4S", 4_000_000_000)];
        for (text, nanos) in
            good.into_iter().chain([("5m", 5_000_000), ("6u", 6_000), ("7n", 7), ("99999999n", 99_999_999)])
        {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "5", "m", "123456789m", "-1m", "+1m", "1.5S", " 1S", "1s", "1é"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_timeout_is_refused_by_name() {
        let now = Instant::now();
        let mut headers = HeaderMap::new();
        assert_eq!(read(&headers, now), Ok(None));
        headers.insert(HEADER, "250m".parse().unwrap());
        assert_eq!(read(&headers, now), Ok(Some(now + Duration::from_millis(250))));
        headers.insert(HEADER, "soon".parse().unwrap());
        assert!(read(&headers, now).unwrap_err().to_string().contains(HEADER));
    }
}
