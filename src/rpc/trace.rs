//! The span of a call, and the trace that it belongs to: W3C Trace Context, `traceparent`.

use http::HeaderMap;
use tracing::Span;
use tracing::field::Empty;

/// Who called, as a trace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "only a collector needs all of it"))]
struct Parent {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl Parent {
    /// What `traceparent` says (W3C Trace Context, section 3.2). One that breaks the rules is as if it were not there,
    /// as the standard demands.
    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all("traceparent").iter();
        let (Some(given), None) = (all.next(), all.next()) else { return None };
        let mut parts = given.to_str().ok()?.split('-');
        let version = hexadecimal(parts.next()?, 2)?;
        let trace = hexadecimal(parts.next()?, 32).filter(|&trace| trace != 0)?;
        let span = hexadecimal(parts.next()?, 16).filter(|&span| span != 0)?;
        let flags = hexadecimal(parts.next()?, 2)?;
        // Later versions may add parts.
        let whole = version < 0xff && (version > 0 || parts.next().is_none());
        whole.then_some(Self { trace, span: span as u64, sampled: flags & 1 == 1 })
    }
}

/// `text` of `digits` lower-case hexadecimal digits.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let proper = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    proper.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// The span of a call to `method`. What lines of the log say of a call stands in its fields.
pub(super) fn span(method: &str, headers: &HeaderMap) -> Span {
    // A collector wants to know the kind; the log shows every field, so only builds that can send spans have it.
    #[cfg(not(feature = "otlp"))]
    let span = tracing::info_span!("call", method, trace_id = Empty, request_id = Empty, model = Empty);
    #[cfg(feature = "otlp")]
    let span = tracing::info_span!(
        "call",
        method,
        trace_id = Empty,
        request_id = Empty,
        model = Empty,
        otel.name = method,
        otel.kind = "server",
    );
    if let Some(parent) = Parent::read(headers) {
        span.record("trace_id", format!("{:032x}", parent.trace));
        #[cfg(feature = "otlp")]
        adopt(&span, parent);
    }
    span
}

#[cfg(feature = "otlp")]
fn adopt(span: &Span, parent: Parent) {
    use opentelemetry::Context;
    use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState};
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let caller = SpanContext::new(parent.trace.into(), parent.span.into(), flags, true, TraceState::NONE);
    // Refused only by a span that has begun, or that nobody gathers.
    _ = span.set_parent(Context::new().with_remote_span_context(caller));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        lines.iter().for_each(|line| _ = headers.append("traceparent", line.parse().unwrap()));
        Parent::read(&headers)
    }

    #[test]
    fn the_caller_of_a_trace_is_read_as_the_standard_says() {
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent =
            Parent { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7, sampled: true };
        assert_eq!(read(&[example]), Some(parent));
        assert_eq!(read(&[&example.replace("-01", "-02")]), Some(Parent { sampled: false, ..parent }));
        // A later version, with more behind what this one knows.
        assert_eq!(read(&[&format!("{}-more", example.replacen("00", "cc", 1))]), Some(parent));
        for broken in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-+0f067aa0ba902b7-01",
        ] {
            assert_eq!(read(&[broken]), None, "{broken}");
        }
        assert_eq!(read(&[example, example]), None);
    }
}
