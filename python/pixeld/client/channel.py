"""What both clients know of a connection."""

from typing import Any

# The largest answers are 16 MiB of images, or of a number for each value; a little more is around them.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 17 << 20),
    # A daemon that was away is looked for often enough for the waits of `Retry` to be what counts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A connection that died without a word is found out.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
CALLS_AT_ONCE = 64  # streams that one request opens together


def metadata(token: str | None) -> list[tuple[str, str]]:
    """What goes with every call."""
    return [] if token is None else [("authorization", f"Bearer {token}")]
