"""The models that `peers.py` measures: published sizes, random weights, which steps are timed and beside what."""

from typing import Any, NamedTuple

import torch
from torch import nn

from pixeld.config import ModelConfig
from pixeld.models import FAMILIES

LEVELS = 256
BACKENDS = ("native", "torch")  # of pixeld


class Side(NamedTuple):
    """One way to take steps."""

    name: str
    kind: str  # one of `worker.KINDS`, or one of BACKENDS
    threads: int

    def ours(self) -> bool:
        return self.kind in BACKENDS


class Stretch(NamedTuple):
    """The steps of an image that are timed, those before them that are not, and those from 0 on that are checked."""

    start: int
    steps: int
    checked: int
    warm_up: int = 32


class Size(NamedTuple):
    """One model, how it is measured, and beside what."""

    title: str
    family: str
    choices: dict[str, Any]  # of the configuration, beside the image
    stretch: Stretch
    images: tuple[int, ...]
    sides: tuple[Side, ...]
    little: dict[str, Any]  # choices that an image of 8x8 needs instead
    gain: float | None = None  # of the random weights; None for those that the module comes with

    def build(self, side: int = 32) -> tuple[ModelConfig, nn.Module]:
        """A model of an image of so many pixels either way, with random weights."""
        torch.manual_seed(0)
        make_config, make_module = FAMILIES[self.family]
        config = make_config(side, side, 3, LEVELS, **self.choices | (self.little if side < 32 else {}))
        module = make_module(config)
        if self.gain is not None:
            with torch.no_grad():
                for parameter in module.parameters():
                    # A feature keeps its size from layer to layer, so that rounding does not grow on the way either.
                    parameter.normal_(std=self.gain / parameter[0].numel()**0.5 if parameter.dim() > 1 else 0.1)
        return config, module

    def takes(self, side: Side, images: int) -> bool:
        """Whether so many images of a step can be measured, and say something that fewer do not."""
        if side.ours():
            return images % side.threads == 0
        # The Image Transformer's reference holds attention of all values to all; so one image is enough, and multiplied.
        return side.kind != "recompute" or images == 1 or self.family != "image_transformer"


OURS = (Side("pixeld, native", "native", 1), Side("pixeld, libtorch", "torch", 1))
RECOMPUTE = Side("P0 full recompute", "recompute", 1)
TRANSFORMER_SIDES = (
    OURS[0],
    Side("pixeld, native", "native", 2),
    OURS[1],
    RECOMPUTE,
    Side("P1 eager", "eager", 1),
    Side("P1 eager", "eager", 2),
    Side("P2 compiled", "compiled", 1),
    Side("P2 compiled", "compiled", 2),
    Side("P2 compiled, tuned", "tuned", 1),
    Side("P2 compiled, tuned", "tuned", 2),
)
# Two query blocks, the third and the fourth; the ring of two blocks comes round within what is checked.
VALUE_BLOCKS, PIXEL_BLOCKS = Stretch(1024, 512, 640), Stretch(256, 512, 640)
# Four whole rows in the middle: as many as the coarsest scale of PixelCNN++ takes to come round.
VALUE_ROWS, PIXEL_ROWS = Stretch(16 * 96, 4 * 96, 640), Stretch(16 * 32, 4 * 32, 320)
TRANSFORMER = dict(heads=8, query_block=256)
RNN = dict(hidden_width=128, input_kernel=7, head_widths=(1024, 1024), group_scheme="contiguous",
           input_scaling="symmetric", residual=True, skip=False)


def transformer(title: str, layers: int, width: int, feed_forward_width: int, stretch: Stretch = VALUE_BLOCKS,
                images: tuple[int, ...] = (1, 8), sides: tuple[Side, ...] = TRANSFORMER_SIDES, **more: Any) -> Size:
    """An Image Transformer with 1-D local attention in blocks of 256 cells."""
    widths = dict(layers=layers, model_width=width, key_width=width, value_width=width,
                  feed_forward_width=feed_forward_width)
    return Size(title, "image_transformer", TRANSFORMER | widths | more, stretch, images, sides, dict(query_block=8))


def raster(title: str, family: str, stretch: Stretch, gain: float, sides: tuple[Side, ...] = (), **choices: Any) -> Size:
    """A model that goes through an image row by row."""
    return Size(title, family, choices, stretch, (1, 8), (*OURS, RECOMPUTE, *sides), {}, gain)


# The published sizes for CIFAR-10, of Gated PixelCNN those for ImageNet at 32x32; IT-small is ours.
SIZES = {
    "small": transformer("IT-small", 4, 128, 512, images=(1, 4, 16)),
    "base": transformer("IT-base", 12, 512, 2048, images=(1, 4, 16)),
    "transformer_cifar": transformer(
        "Image Transformer, 12 layers of 512, categorical", 12, 512, 2048, heads=4,
        sides=tuple(side for side in TRANSFORMER_SIDES if side.threads == 1 and side.kind != "compiled")),
    "transformer_cifar_mixture": transformer(
        "Image Transformer, 14 layers of 256, mixture", 14, 256, 512, PIXEL_BLOCKS, sides=(*OURS, RECOMPUTE),
        key_width=512, value_width=512, positions="learned", input="ordinal_relu", components=10),
    "row_lstm": raster("Row LSTM, 12 layers of 128", "row_lstm", VALUE_ROWS, 2.0, **RNN, layers=12, kernel_width=3,
                       initial_state="learned"),
    "diagonal_bilstm": raster("Diagonal BiLSTM, 12 layers of 128", "diagonal_bilstm", VALUE_ROWS, 2.0, **RNN, layers=12,
                              pad_state="learned"),
    "pixel_cnn": raster("PixelCNN, 15 layers of 128", "pixel_cnn", VALUE_ROWS, 1.5, **RNN, layers=15, kernel_size=3),
    "gated_pixel_cnn": raster(
        "Gated PixelCNN, 20 layers of 384", "gated_pixel_cnn", VALUE_ROWS, 1.5, layers=20, stack_width=384,
        input_kernel=7, kernel_size=5, head_widths=(1024, 1024), group_scheme="contiguous", input_scaling="symmetric"),
    "pixel_cnn_pp": raster(
        "PixelCNN++, 5 blocks of 160", "pixel_cnn_pp", PIXEL_ROWS, 0.9, (Side("P3 cached", "cached", 1),),
        stream_width=160, blocks=5, components=10),
}
