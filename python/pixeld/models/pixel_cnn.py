"""PixelCNN (PixelRNN, arXiv 1601.06759, section 3.5): masked convolutions in residual blocks, no pooling.

Everything but the block itself is in ``pixeld.models.pixel_rnn``. A block:

    f = ReLU(spatial(ReLU(down(ReLU(z)))) + condition)                  the layer's h features

Part of the past to the upper right of a pixel is never visible to it, however many the layers: the blind spot.

Example, all else as in ``pixeld.models.DEFAULTS``; a batch of 2 gives logits [2, 8, 8, 3, 32]:

    model = build("pixel_cnn", height=8, width=8, channels=3, levels=32, layers=15, hidden_width=64)
    parameters = model(torch.zeros(2, 8, 8, 3, dtype=torch.int64))

Manifest: ``family = "pixel_cnn"``; ``[architecture]`` has, beside the common keys:

    kernel_size          k, side of the spatial convolution in pixels, odd

Tensors beside the common ones, with <cell> = layers.{l} and n = h:

    layers.{l}.down.weight [h, 2h, 1, 1], .bias [h]                     mask B
    layers.{l}.spatial.weight [h, h, k, k], .bias [h]                   mask B
"""

from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from pixeld.layers import MaskedConv2d
from pixeld.models.pixel_rnn import Layer, PixelRnn, PixelRnnConfig


@dataclass(frozen=True)
class PixelCnnConfig(PixelRnnConfig):
    """Sizes and choices of one PixelCNN."""

    kernel_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd")


class PixelCnnLayer(Layer):
    """One block; see above."""

    def __init__(self, config: PixelCnnConfig) -> None:
        super().__init__(config)
        h, common = config.hidden_width, (config.channels, config.group_scheme)
        self.down = MaskedConv2d(2 * h, h, (1, 1), *common)
        self.spatial = MaskedConv2d(h, h, (config.kernel_size, config.kernel_size), *common)
        self.condition = config.condition(h)

    def forward(self, z: Tensor, classes: Optional[Tensor], maps: Optional[Tensor]) -> Tensor:
        """z [B, 2h, H, W] -> [B, h, H, W]."""
        return self.condition(self.spatial(self.down(z.relu()).relu()), classes, maps).relu()


class PixelCnn(PixelRnn):
    """The whole model."""

    def __init__(self, config: PixelCnnConfig) -> None:
        super().__init__(config, (PixelCnnLayer(config) for _ in range(config.layers)))
