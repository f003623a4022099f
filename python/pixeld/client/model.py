"""What a daemon tells of a model, and how images of it travel: numpy arrays to raw bytes and back."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixeld.client.errors import PixeldError
from pixeld.v1 import image_pb2, model_service_pb2

Array = NDArray[Any]
MAX_UINT32 = (1 << 32) - 1  # classes, top_k and numbers of images travel as such


@dataclass(frozen=True)
class Model:
    """One model of a daemon. One whose package was refused has a name, a state and a message, and nothing else."""

    name: str
    revision: str  # digest of weights and manifest
    state: str  # "loading", "warming", "ready", "draining" or "failed"
    state_message: str
    architecture: str  # the family, for example "image_transformer"
    description: str
    shape: tuple[int, int, int]  # height, width, channels
    levels: int  # values run 0..levels-1
    classes: int  # 0 if it takes no label
    class_required: bool
    low_shape: tuple[int, int, int] | None  # of the low-resolution image that an image is made from
    low_model: str  # name of the model that draws one for a request without
    block: tuple[int, int] | None  # rows and values of a block of block-raster order; None in raster order
    max_running_images: int
    held_out_bits_per_dim: float | None
    backend: str  # "native" or "torch"
    precision: str  # "f32" or "bf16"
    recomputes: bool  # whether every step is a pass over the image so far
    palette: bytes = b""  # red, green and blue of each level; empty if levels are brightness

    @classmethod
    def of(cls, told: model_service_pb2.Model) -> "Model":
        """From the wire."""
        def shape(of: image_pb2.ImageShape) -> tuple[int, int, int]:
            return of.height, of.width, of.channels

        def word(enum: Any, value: int) -> str:
            return str(enum.Name(value)).rpartition("_")[2].lower()

        return cls(
            name=told.name.removeprefix("models/"), revision=told.revision,
            state=word(model_service_pb2.ModelState, told.state), state_message=told.state_message,
            architecture=told.architecture, description=told.description, shape=shape(told.shape),
            levels=told.shape.levels, classes=told.class_count, class_required=told.class_required,
            low_shape=shape(told.low_resolution_shape) if told.HasField("low_resolution_shape") else None,
            low_model=told.low_resolution_model.removeprefix("models/"),
            block=(told.blocks.height, told.blocks.width) if told.HasField("blocks") else None,
            max_running_images=told.max_running_images,
            held_out_bits_per_dim=told.held_out_bits_per_dim if told.HasField("held_out_bits_per_dim") else None,
            backend=word(model_service_pb2.Backend, told.backend),
            precision=word(model_service_pb2.Precision, told.precision), recomputes=told.recomputes,
            palette=told.palette)

    def expect_ready(self) -> "Model":
        """Itself, if it serves."""
        if self.state in ("loading", "warming"):
            raise PixeldError(grpc.StatusCode.UNAVAILABLE, f"model {self.name} is {self.state}")
        if self.state == "failed":
            raise PixeldError(grpc.StatusCode.FAILED_PRECONDITION, f"model {self.name}: {self.state_message}")
        return self

    @property
    def values(self) -> int:
        """Values of an image."""
        height, width, channels = self.shape
        return height * width * channels

    def coloured(self, images: ArrayLike) -> NDArray[np.uint8]:
        """Images [n, H, W, 1] of levels in the colours of the palette: [n, H, W, 3], 0..255."""
        if not self.palette:
            raise ValueError(f"model {self.name} has no palette: its levels are brightness")
        coloured: NDArray[np.uint8] = np.frombuffer(self.palette, np.uint8).reshape(-1, 3)[np.asarray(images)[..., 0]]
        return coloured

    @property
    def law(self) -> tuple[str, str, str]:
        """What the bytes of a seed belong to."""
        return self.revision, self.backend, self.precision

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of images, and of raw values."""
        return np.dtype("u1" if self.levels <= 256 else "<u2")

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Raster offset of the value of each rank: [values]."""
        height, width, channels = self.shape
        cells = np.arange(self.values)
        if self.block is None:
            return cells
        rows, columns = self.block
        grid = cells.reshape(height // rows, rows, width * channels // columns, columns)
        return grid.transpose(0, 2, 1, 3).ravel()

    def images(self, given: ArrayLike, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """`given`, which the caller calls `name`, as [n, *shape] of integers in range; without a shape, the model's."""
        shape = shape or self.shape
        array = np.asarray(given)
        expect_stack(array, name, shape)
        if array.ndim == len(shape):
            array = array[None]
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers in 0..{self.levels - 1}, got {array.dtype}")
        if array.size and not 0 <= array.min() <= array.max() < self.levels:
            raise ValueError(f"{name} must lie in 0..{self.levels - 1}, got {array.min()}..{array.max()}")
        return array.astype(self.dtype)

    def labels(self, given: ArrayLike) -> list[int]:
        """`given`, one class or several, as a list. Which of those there are is for the daemon to say."""
        labels: list[int] = np.asarray(given).ravel().tolist()
        for label in labels:
            if type(label) is not int or not 0 <= label <= MAX_UINT32:  # not a number with a fraction, nor a bool
                rule = f"integers in 0..{self.classes - 1}" if self.classes else f"left out: model {self.name} has none"
                raise ValueError(f"classes must be {rule}, got {label!r}")
        return labels

    def low_images(self, given: ArrayLike) -> Array:
        """`given` as low-resolution images [n, h, w, C]."""
        if self.low_shape is None:
            raise ValueError(f"model {self.name} takes no low-resolution image")
        return self.images(given, "low", self.low_shape)


def expect_stack(array: Array, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError if `array`, which the caller calls `name`, is neither an image of `shape` nor a stack of those."""
    if array.shape != shape and array.shape[1:] != shape:
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be [{sizes}] or a stack of those, [n, {sizes}], got {list(array.shape)}")


def only(models: list[Model]) -> Model:
    """The only one there is, for a request that names none."""
    if len(models) != 1:
        raise ValueError(f"model: must name one of {', '.join(model.name for model in models) or 'none'}, got nothing")
    return models[0]


def raw(data: bytes) -> image_pb2.Image:
    """An image as it travels, of its values in raster order."""
    return image_pb2.Image(data=data, encoding=image_pb2.IMAGE_ENCODING_RAW)
