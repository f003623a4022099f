"""When to make a call again."""

import random
import time
from dataclasses import dataclass

import grpc

from pixeld.client.errors import DeadlineExceeded, PixeldError


@dataclass(frozen=True)
class Retry:
    """How often, and after how long, a call that may succeed later is made again.

    The k-th wait, from 0, is `first` * 2^k seconds, at most `longest`, times a random number of 0.5..1; never shorter
    than the daemon asks for. A stream that brought something begins to count anew.
    """

    attempts: int = 7  # calls in a row that bring nothing; 1 never tries again
    first: float = 0.2
    longest: float = 5.0


class Backoff:
    """The waits of one operation, which has one deadline however many calls it takes."""

    def __init__(self, retry: Retry, timeout: float | None) -> None:
        self.retry = retry
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.failures = 0

    def left(self) -> float | None:
        """Seconds until the deadline; None without one."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "the timeout passed between two calls")
        return left

    def progress(self) -> None:
        """Something came: what fails from now on is a new fault."""
        self.failures = 0

    def after(self, error: PixeldError) -> float:
        """Seconds to wait after `error`; raises it if it will not pass, or not in time."""
        self.failures += 1
        wait = min(self.retry.first * 2.0 ** (self.failures - 1), self.retry.longest) * random.uniform(0.5, 1.0)
        wait = max(wait, error.retry_after or 0.0)
        late = self.deadline is not None and time.monotonic() + wait >= self.deadline
        if not error.passes or self.failures >= self.retry.attempts or late:
            raise error
        return wait
