"""One sampling request as a value: what has come, what to ask for next. Knows nothing of channels, threads and time.

The images of a request are asked for in groups of neighbours that have everything in common: class, low-resolution
image, and what is known of them. At first that is what the caller gave; after a cut it is what came as well. So a
request is taken up as it is begun. Image i has the noise of its own number whatever group it is asked for in, and known
values leave the state that drawing them would have left; hence the rest is what it would have been.
"""

import operator
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack

import google_crc32c
import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixeld.client.errors import PixeldError, ResumeError, cut
from pixeld.client.model import MAX_UINT32, Array, Model, raw
from pixeld.v1 import generation_service_pb2 as wire
from pixeld.v1 import image_pb2

GRANULARITIES = {"value": wire.GRANULARITY_VALUE, "pixel": wire.GRANULARITY_PIXEL, "row": wire.GRANULARITY_ROW}
MOST = 256  # images that one call asks for at first: what a daemon takes unless it is told otherwise


class Controls(TypedDict, total=False):
    """What can be asked of images; everything may be left out.

    Where one can be given for each image (classes, known, low), one for all can be given too; and without a count,
    there are as many images as of those.
    """

    classes: int | Sequence[int] | NDArray[Any] | None  # class label
    known: ArrayLike | None  # images [n, H, W, C] of which a part is kept and the rest drawn, which part:
    known_rows: int  # the uppermost rows
    known_values: int  # or the first values in the model's order
    low: ArrayLike | None  # low-resolution images [n, h, w, C] to enlarge
    seed: int | None  # of the noise, 64 bits; drawn if left out, and told in the answer
    first_image: int  # number of the first image in the noise
    temperature: float  # divides the logits; 0 takes the likeliest value
    top_k: int  # draws from the k likeliest values
    top_p: float  # draws from the fewest values that have this mass
    best_effort: bool  # allow the faster way through known values, which may change bits
    batch: bool  # wait for those who watch
    queue_timeout: float  # seconds that the first value may take at most
    timeout: float | None  # seconds that everything may take at most
    granularity: Literal["value", "pixel", "row"]  # what is given at once: all that has come of an image, at least a
    # value (as without a word); or one pixel, or one row: as many values, in the order of generation, as that has
    log_probs: bool  # send the log-probability of every value too
    progress: Callable[[int, int], object] | None  # called with the values that are there, and those in all


@dataclass(frozen=True)
class Values:
    """Values of one image as they were drawn: some, or those of one pixel or row, as `granularity` says.

    The first pixel or row of an image of which a part was known is the rest of it.
    """

    image: int  # which of the images asked for
    first_rank: int  # place of the first value in the order of generation
    values: Array  # [k]
    places: NDArray[np.int64]  # [k]: where they belong, image.flat[places] = values
    log_probs: NDArray[np.float32] | None  # [k] nats under the model itself, if asked for


@dataclass(frozen=True)
class Samples:
    """Finished images."""

    images: Array  # [n, H, W, C]: uint8, or uint16 above 256 levels
    log_likelihoods: NDArray[np.float64]  # [n] nats, of whole images under the model itself
    bits_per_dim: NDArray[np.float64]  # [n], of the same
    low_images: Array | None  # [n, h, w, C] that the daemon drew for them, if it did
    low_log_likelihoods: NDArray[np.float64] | None  # [n] nats, of those
    seed: int
    model: Model


@dataclass
class Image:
    """One image in the making."""

    label: int | None
    low: bytes | None
    known: bytes  # that the caller gave, in the order of generation
    received: bytearray = field(default_factory=bytearray)  # the same, and all that came
    told: int = 0  # values of those that the caller knows or was given: without the pixel or row that is still coming
    log_probs: list[float] = field(default_factory=list)  # of values that came and were not given
    log_likelihood: float | None = None  # once it is complete
    low_drawn: tuple[bytes, float] | None = None  # with its log-likelihood


@dataclass(frozen=True)
class Group:
    """Images that one call asks for."""

    first: int
    count: int
    request: wire.StreamGenerateImagesRequest


Answer = wire.StreamGenerateImagesResponse | PixeldError | None  # a message of a call, or how it ended


class Generation:
    """See the module."""

    def __init__(self, model: Model, count: int | None, **controls: Unpack[Controls]) -> None:
        self.model = model
        self.controls = controls
        labels = given(controls.get("classes"), model.labels)
        known = given(controls.get("known"), lambda images: prefixes(model, model.images(images, "known"), controls))
        lows = given(controls.get("low"), lambda images: [low.tobytes() for low in model.low_images(images)])
        if known is None and ("known_rows" in controls or "known_values" in controls):
            raise ValueError("known_rows and known_values are of known images, which are missing")
        kinds = {"classes": labels, "known": known, "low": lows}
        if count is None:
            count = max((len(each) for each in kinds.values() if each is not None), default=1)
        count = whole("count", count, MAX_UINT32, least=1)
        for name, each in kinds.items():
            if each is not None and len(each) not in (1, count):
                raise ValueError(f"{name} must be one for all or one for each of {count} images, got {len(each)}")

        def nth(each: list[Any] | None, index: int, default: Any) -> Any:
            return default if each is None else each[index if len(each) > 1 else 0]

        self.images = [Image(nth(labels, i, None), nth(lows, i, None), nth(known, i, b"")) for i in range(count)]
        for image in self.images:
            image.received += image.known
            image.told = len(image.known) // model.dtype.itemsize
        seed, top_k = controls.get("seed"), controls.get("top_k")
        self.seed = secrets.randbits(63) if seed is None else whole("seed", seed, (1 << 64) - 1)
        if top_k is not None:
            whole("top_k", top_k, MAX_UINT32)
        self.first_image = whole("first_image", controls.get("first_image", 0), MAX_UINT32 - (count - 1))
        _, width, channels = model.shape
        self.unit = {"value": None, "pixel": channels, "row": width * channels}[controls.get("granularity", "value")]
        self.most = MOST
        self.total = count * model.values - sum(len(image.known) for image in self.images) // model.dtype.itemsize
        self.fault: PixeldError | None = None  # of a call that has to be made again
        self.low_revision: str | None = None  # of the model that draws low-resolution images; unknown at first

    @property
    def done(self) -> int:
        """Values that were given."""
        return sum(one.told - len(one.known) // self.model.dtype.itemsize for one in self.images)

    @property
    def finished(self) -> bool:
        """Whether every image is complete, and known to be."""
        return all(image.log_likelihood is not None for image in self.images)

    def canvases(self) -> Array:
        """The images as far as they were given [n, H, W, C], zeros elsewhere."""
        flat = np.zeros((len(self.images), self.model.values), self.model.dtype)
        for canvas, image in zip(flat, self.images):
            values = np.frombuffer(bytes(image.received), self.model.dtype)[:image.told]
            canvas[self.model.places[:len(values)]] = values
        return flat.reshape(-1, *self.model.shape)

    def groups(self) -> list[Group]:
        """What is left to ask for."""
        groups: list[Group] = []
        last = None
        for index, image in enumerate(self.images):
            if image.log_likelihood is not None:
                last = None
                continue
            alike = (image.label, image.low, self.resumable(image))
            if alike == last and groups[-1].count < self.most:
                groups[-1] = Group(groups[-1].first, groups[-1].count + 1, groups[-1].request)
                groups[-1].request.spec.image_count += 1
            else:
                groups.append(Group(index, 1, self.request(index, *alike)))
            last = alike
        return groups

    def resumable(self, image: Image) -> bytes:
        """What the daemon is told of `image`: what the caller knew of it, and what came.

        Of what came, whole pixels only, since some models decide all channels of one at once; and less than all, since
        no request may leave nothing to draw. What is left out comes again, and is the same.
        """
        if len(image.received) == len(image.known):
            return image.known
        pixel = self.model.shape[2] * self.model.dtype.itemsize
        whole = min(len(image.received) // pixel, self.model.values // self.model.shape[2] - 1) * pixel
        return bytes(image.received[:max(whole, len(image.known))])

    def request(self, index: int, label: int | None, low: bytes | None, prefix: bytes
                ) -> wire.StreamGenerateImagesRequest:
        """A call for the image `index` alone."""
        asked = self.controls
        spec = wire.GenerationSpec(model=self.model.name, image_count=1, first_image_index=self.first_image + index)
        spec.conditioning.prefix = prefix
        if label is not None:
            spec.conditioning.class_label = label
        if low is not None:
            spec.conditioning.low_resolution.CopyFrom(raw(low))
        spec.sampling.seed = self.seed
        for name in ("temperature", "top_k", "top_p"):
            if asked.get(name) is not None:
                setattr(spec.sampling, name, asked[name])
        if asked.get("best_effort"):
            spec.sampling.reproducibility = image_pb2.REPRODUCIBILITY_BEST_EFFORT
        if asked.get("batch"):
            spec.scheduling.priority = image_pb2.PRIORITY_BATCH
        if "queue_timeout" in asked:
            spec.scheduling.queue_timeout.FromNanoseconds(round(asked["queue_timeout"] * 1e9))
        flush = wire.FlushPolicy(granularity=GRANULARITIES[asked.get("granularity", "value")])
        return wire.StreamGenerateImagesRequest(spec=spec, flush=flush, include_log_probs=asked.get("log_probs", False))

    def take(self, group: Group, answer: Answer) -> Iterator[Values]:
        """Takes in a message of a call or its end; gives what is new in it. Raises an error that will not pass."""
        if isinstance(answer, PixeldError):
            if group.count > 1 and [broken.field for broken in answer.violations] == ["spec.image_count"]:
                self.most = min(self.most, group.count // 2)  # the daemon takes fewer, and is asked for them at once
            elif not answer.passes:
                raise answer
            else:
                self.fault = answer
        elif answer is None:
            if any(image.log_likelihood is None for image in self.images[group.first:group.first + group.count]):
                self.fault = cut()
        elif answer.HasField("started"):
            self.check(answer.started)
        elif answer.HasField("completed"):
            self.complete(group, answer.completed)
        else:
            for run in answer.sampled.runs:
                yield from self.extend(group.first + run.image_index, run)

    def check(self, started: wire.GenerationStarted) -> None:
        """Whether a call goes on as the first one began."""
        if started.model_revision != self.model.revision:
            raise resume_error(f"model {self.model.name} is now of revision {started.model_revision}, and was of "
                               f"{self.model.revision}")
        self.low_revision = self.low_revision or started.low_resolution_model_revision
        if started.low_resolution_model_revision != self.low_revision:
            raise resume_error("the model that draws low-resolution images is another one than before")

    def check_model(self, model: Model) -> None:
        """Whether a daemon that was away has come back with the same model."""
        if model.law != self.model.law:
            was, now = " ".join(self.model.law), " ".join(model.law)
            raise resume_error(f"model {self.model.name} was {was} and is now {now}")

    def extend(self, index: int, run: wire.ValueRun) -> Iterator[Values]:
        """Adds a run to image `index`; gives what is new, pixel by pixel or row by row if that was asked for.

        A daemon sends as many of those at once as wait, and a row that is larger than a message in parts.
        """
        width, image = self.model.dtype.itemsize, self.images[index]
        begin = run.first_rank * width
        again = len(image.received) - begin  # bytes that came before, in a stream that broke
        if not 0 <= again or run.values[:again] != image.received[begin:begin + len(run.values)]:
            raise resume_error(f"image {index} went on at value {run.first_rank} otherwise than it began")
        image.received += run.values[again:]
        image.log_probs += run.log_probs[again // width:]
        there = len(image.received) // width
        while (rank := image.told) < there:
            end = there if self.unit is None else (rank // self.unit + 1) * self.unit
            if end > there:
                return  # the rest of it is still to come
            image.told = end
            values = np.frombuffer(bytes(image.received[rank * width:end * width]), self.model.dtype)
            log_probs = np.array(image.log_probs[:end - rank], np.float32) if self.controls.get("log_probs") else None
            del image.log_probs[:end - rank]
            yield Values(index, rank, values, self.model.places[rank:end], log_probs)

    def complete(self, group: Group, completed: wire.GenerationCompleted) -> None:
        """Closes the images of a group, if every byte is as it was sent."""
        drawn = list(zip(completed.low_resolution_images, completed.low_resolution_log_likelihoods))
        for i, (crc32c, log_likelihood) in enumerate(zip(completed.crc32c, completed.log_likelihoods, strict=True)):
            image = self.images[group.first + i]
            if google_crc32c.value(bytes(image.received)) != crc32c:
                raise resume_error(f"image {group.first + i} is not the one that was sent")
            image.log_likelihood = log_likelihood
            if drawn:
                image.low_drawn = (drawn[i][0].data, drawn[i][1])

    def result(self) -> Samples:
        """The finished images."""
        nats = np.array([image.log_likelihood for image in self.images], np.float64)
        lows = [image.low_drawn for image in self.images if image.low_drawn is not None]
        low_images, low_nats = None, None
        if lows and self.model.low_shape is not None:
            low_images = np.frombuffer(b"".join(low for low, _ in lows), self.model.dtype).reshape(
                -1, *self.model.low_shape)
            low_nats = np.array([log_likelihood for _, log_likelihood in lows])
        bits = -nats / (self.model.values * np.log(2.0))
        return Samples(self.canvases(), nats, bits, low_images, low_nats, self.seed, self.model)


def expect_controls(controls: Controls) -> None:
    """Refuses what there is not: TypeError for a name, ValueError for a granularity. Needs no model, so comes first."""
    for name in controls:
        if name not in Controls.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}; there are {', '.join(Controls.__annotations__)}")
    granularity: Any = controls.get("granularity", "value")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}")


def whole(name: str, value: Any, most: int, least: int = 0) -> int:
    """`value` as an integer of `least`..=`most`. Raises ValueError for another, and for what is none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name} must be an integer in {least}..{most}, got {value!r}")
    return number


def given(value: Any, read: Callable[[Any], list[Any]]) -> list[Any] | None:
    """None, or what `read` makes of it."""
    return None if value is None else read(value)


def prefixes(model: Model, images: Array, controls: Controls) -> list[bytes]:
    """The known values of each image in the order of generation, as bytes."""
    if ("known_rows" in controls) == ("known_values" in controls):
        raise ValueError("known images come with known_rows or known_values, one of the two")
    height, width, channels = model.shape
    if "known_rows" in controls:
        rows = controls["known_rows"]
        step = model.block[0] if model.block else 1
        if not 0 <= rows < height or rows % step:
            raise ValueError(f"known_rows must be below {height}, in multiples of {step}, got {rows}")
        count = rows * width * channels
    else:
        count = controls["known_values"]
        if not 0 <= count < model.values:
            raise ValueError(f"known_values must be in 0..{model.values - 1}, got {count}")
    return [image.ravel()[model.places[:count]].tobytes() for image in images]


def resume_error(message: str) -> PixeldError:
    """See `ResumeError`."""
    return ResumeError(grpc.StatusCode.ABORTED, message)
