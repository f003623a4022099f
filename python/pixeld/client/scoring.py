"""Scoring a data set as a value: what to send next, what is still to be answered. Knows nothing of channels and time.

Items that were sent and not answered are kept, so that they can be sent again after a cut.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixeld.client.model import Model, expect_stack, raw
from pixeld.v1 import image_pb2
from pixeld.v1 import scoring_service_pb2 as wire

SLICE = 64  # images of an array that become messages at a time


@dataclass(frozen=True)
class Score:
    """The likelihood of one image."""

    nll_nats: float  # negative natural-log likelihood of the whole image
    bits_per_dim: float  # the same in bits for each value
    value_nll_nats: NDArray[np.float32] | None  # [H, W, C], of each value given those of lower rank, if asked for


@dataclass(frozen=True)
class Scores:
    """The likelihoods of a set of images, in their order."""

    nll_nats: NDArray[np.float64]  # [n]
    bits_per_dim: NDArray[np.float64]  # [n]
    value_nll_nats: NDArray[np.float32] | None  # [n, H, W, C], if asked for

    @classmethod
    def of(cls, scores: Sequence[Score]) -> "Scores":
        """All in one."""
        values = [score.value_nll_nats for score in scores if score.value_nll_nats is not None]
        return cls(np.array([score.nll_nats for score in scores]), np.array([score.bits_per_dim for score in scores]),
                   np.stack(values) if values else None)

    @property
    def standard_error(self) -> float:
        """Of the mean of `bits_per_dim`; not a number below two images."""
        count = len(self.bits_per_dim)
        return float(self.bits_per_dim.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def batches(model: Model, data: Any, classes: ArrayLike | None, low: ArrayLike | None) -> Any:
    """`data` as an iterable of batches: itself if it is one, such as a DataLoader; otherwise the array in slices."""
    if not hasattr(data, "__array__"):
        if classes is not None or low is not None:
            raise ValueError("batches bring their classes and low-resolution images along: (images, classes, low)")
        return data
    images = np.asarray(data)
    expect_stack(images, "images", model.shape)  # here, since a slice has another shape than the caller knows
    images = images[None] if images.ndim == 3 else images

    def slices(of: ArrayLike | None, name: str, dimensions: int) -> list[Any]:
        """Of what there is one of for each image; one for all goes with each slice."""
        array = None if of is None else np.asarray(of)
        if array is None or array.ndim < dimensions or len(array) == 1:
            return [array] * len(begins)
        if len(array) != len(images):
            raise ValueError(f"{name} must be one for all or one for each of {len(images)} images, got {len(array)}")
        return [array[begin:begin + SLICE] for begin in begins]

    begins = range(0, len(images), SLICE)
    return zip(slices(images, "images", 4), slices(classes, "classes", 1), slices(low, "low", 4))


class Scoring:
    """See the module. `take` is called by one thread, all else by any, one at a time."""

    def __init__(self, model: Model, per_value: bool, batch: bool) -> None:
        self.model = model
        detail = wire.SCORE_DETAIL_PER_VALUE if per_value else wire.SCORE_DETAIL_TOTAL
        priority = image_pb2.PRIORITY_BATCH if batch else image_pb2.PRIORITY_INTERACTIVE
        self.begin = wire.StreamScoreImagesRequest(spec=wire.ScoringSpec(
            model=model.name, detail=detail, scheduling=image_pb2.SchedulingParams(priority=priority)))
        self.lock = threading.Lock()
        self.unanswered: deque[wire.ScoreItem] = deque()
        self.scored = 0
        self.done = False
        self.fault: Exception | None = None  # of the caller's data

    def extend(self, batch: Any) -> None:
        """Adds a batch: images [n, H, W, C], or a tuple or list of those, their classes, and low-resolution images."""
        images, classes, low = (*batch, None, None)[:3] if isinstance(batch, (tuple, list)) else (batch, None, None)
        images = self.model.images(images, "images")
        labels = None if classes is None else self.model.labels(classes)
        lows = None if low is None else self.model.low_images(low)
        for name, each in (("classes", labels), ("low", lows)):
            if each is not None and len(each) not in (1, len(images)):
                raise ValueError(f"{name} must be one for all or one for each of {len(images)} images, got {len(each)}")
        items = [wire.ScoreItem(image=raw(image.tobytes())) for image in images]
        for index, item in enumerate(items):
            if labels is not None:
                item.conditioning.class_label = labels[index if len(labels) > 1 else 0]
            if lows is not None:
                item.conditioning.low_resolution.CopyFrom(raw(lows[index if len(lows) > 1 else 0].tobytes()))
        with self.lock:
            self.unanswered.extend(items)

    def message(self, number: int) -> wire.StreamScoreImagesRequest | None:
        """The message for item `number` of all, counted from 0; None if it has not been added yet."""
        with self.lock:
            place = number - self.scored
            return wire.StreamScoreImagesRequest(item=self.unanswered[place]) if place < len(self.unanswered) else None

    def take(self, response: wire.StreamScoreImagesResponse) -> Score | None:
        """Takes in one message; gives the score in it. Raises what is wrong with the caller's data, behind the last."""
        if response.WhichOneof("event") == "completed":
            if self.fault is not None:
                raise self.fault
            self.done = True
            return None
        with self.lock:
            self.unanswered.popleft()
            self.scored += 1
        score = response.score
        values = np.array(score.value_nll_nats, np.float32).reshape(self.model.shape) if score.value_nll_nats else None
        return Score(score.nll_nats, score.bits_per_dim, values)
