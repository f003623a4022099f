"""What can go wrong with a call, as exceptions; and whether it helps to try again."""

from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One broken rule of a request."""

    field: str  # path in the message, for example "spec.sampling.top_p"
    description: str  # the rule, and the value given


class PixeldError(Exception):
    """A call failed. Its text is the daemon's message and every broken rule."""

    def __init__(self, code: grpc.StatusCode, message: str, reason: str = "", violations: tuple[Violation, ...] = (),
                 metadata: dict[str, str] | None = None, retry_after: float | None = None) -> None:
        super().__init__("; ".join([message, *(f"{field}: {description}" for field, description in violations
                                               if f"{field}: {description}" not in message)]))
        self.code = code
        self.reason = reason  # the daemon's own word, for example "QUEUE_FULL"; empty if the daemon was not reached
        self.violations = violations
        self.metadata = metadata or {}  # what the daemon tells of the reason, for example the limit
        self.retry_after = retry_after  # seconds after which it makes sense to try again, if the daemon said so

    @property
    def passes(self) -> bool:
        """Whether this may pass by itself, so that the same call can succeed later.

        UNAVAILABLE and RESOURCE_EXHAUSTED do. So does a stream that ended because it was read too slowly, or was
        cancelled by another than us; and what broke on the way, of which a code of the transport is all that is known.
        """
        if self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return True
        if self.reason:
            return self.reason in ("CLIENT_TOO_SLOW", "REQUEST_STALLED", "CANCELLED")
        return self.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)


class InvalidRequest(PixeldError, ValueError):
    """The request breaks rules, which `violations` lists."""


class ModelNotFound(PixeldError, LookupError):
    """There is no such model."""


class Unauthenticated(PixeldError, PermissionError):
    """The daemon wants a token, and the one given, if any, does not let in."""


class DeadlineExceeded(PixeldError, TimeoutError):
    """The `timeout` or the `queue_timeout` passed."""


class ResumeError(PixeldError):
    """A stream that was cut cannot be taken up: the daemon would go on otherwise than it began."""


KINDS: dict[grpc.StatusCode, type[PixeldError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def cut() -> PixeldError:
    """What is wrong with a stream that ends without its last message."""
    return PixeldError(grpc.StatusCode.UNAVAILABLE, "the stream was cut")


def of(error: grpc.RpcError) -> PixeldError:
    """The exception for a failed call of gRPC, of either kind."""
    code: grpc.StatusCode = error.code()
    details = status_pb2.Status()
    try:
        trailers: Any = error.trailing_metadata()
        for key, value in trailers or ():
            if key == DETAILS:
                details.ParseFromString(value)
    except DecodeError:  # of somebody between us and the daemon; code and message are enough
        pass
    bad, info, retry = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in details.details:
        for kind in (bad, info, retry):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    violations = tuple(Violation(one.field, one.description) for one in bad.field_violations)
    after = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    kind = KINDS.get(code, PixeldError)
    return kind(code, error.details() or code.name, info.reason, violations, dict(info.metadata), after)
