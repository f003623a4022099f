"""What both clients know of a connection."""

from types import ModuleType
from typing import Any

import grpc

from pixeld.client.retry import Backoff, Retry
from pixeld.v1.generation_service_pb2_grpc import GenerationServiceStub
from pixeld.v1.model_service_pb2_grpc import ModelServiceStub
from pixeld.v1.scoring_service_pb2_grpc import ScoringServiceStub

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


class Connection:
    """What both clients are: a channel of their kind of gRPC, and what goes with every call."""

    _grpc: ModuleType

    def __init__(self, target: str, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None,
                 timeout: float | None = None, retry: Retry = Retry(), options: list[tuple[str, Any]] | None = None
                 ) -> None:
        every = OPTIONS + (options or [])
        self._channel = (self._grpc.insecure_channel(target, every) if credentials is None
                         else self._grpc.secure_channel(target, credentials, every))
        self._metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        self._timeout = timeout
        self._retry = retry
        self._models = ModelServiceStub(self._channel)
        self._generation = GenerationServiceStub(self._channel)
        self._scoring = ScoringServiceStub(self._channel)

    def _backoff(self, timeout: float | None) -> Backoff:
        return Backoff(self._retry, self._timeout if timeout is None else timeout)
