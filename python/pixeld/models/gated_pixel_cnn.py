"""Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): a vertical and a horizontal stack without a blind spot.

Notation as in ``pixeld.models.pixel_rnn``; p is the width of both stacks. gate(t) = tanh(first half) * sigmoid(second
half).

    V = vertical(v);  v = gate(V + vertical_condition)                          rows up to and including the own one
    g = gate(horizontal(h) + link(V one row down) + horizontal_condition)       own row, up to the own pixel
    h = output(g) [+ h, except in layer 0]

Both stacks begin with the scaled image. The vertical stack sees its own row, so V moves down one row, zeros coming in
at the top, before it joins the horizontal one: row i of V is final as soon as row i of the image is. The link takes V
before condition and gate (section 2.2). Conditions (section 2.3) are added in both gates of both stacks, once each. The
head is that of PixelRNN: each hidden map and the last one after a ReLU.

Example, all else as in ``pixeld.models.DEFAULTS``; a batch of 2 gives logits [2, 8, 8, 3, 32]:

    model = build("gated_pixel_cnn", height=8, width=8, channels=3, levels=32, layers=12, stack_width=64)
    parameters = model(torch.zeros(2, 8, 8, 3, dtype=torch.int64))

Manifest: ``family = "gated_pixel_cnn"``, ``[head] kind = "categorical"``, and in ``[architecture]`` layers,
input_kernel, head_widths, group_scheme, input_scaling and condition_maps as for the PixelRNN family, and

    stack_width          p, features
    kernel_size          side of the convolutions after the first, pixels, odd

Tensors, with k = input_kernel and n = C in layer 0, k = kernel_size and n = p in the others, and r = k // 2:

    layers.{l}.vertical.weight [2p, n, r + 1, k], .bias [2p]            rows i-r .. i, columns j-r .. j+r; no mask
    layers.{l}.link.weight [2p, 2p, 1, 1]                               no mask, no bias
    layers.{l}.horizontal.weight [2p, n, 1, r + 1], .bias [2p]          columns j-r .. j; the last tap under mask A in
                                                                        layer 0, B in the others, per gate half
    layers.{l}.output.weight [p, p, 1, 1], .bias [p]                    mask B
    layers.{l}.vertical_condition.classes.weight [classes, 2p]          if conditional on classes
    layers.{l}.vertical_condition.low.weight [2p, maps, 1, 1]           with a low-resolution image; no mask, no bias
    layers.{l}.horizontal_condition.*                                   like the two above
    hidden.{i}.*, head.*, upsample.*                                    as in the PixelRNN family, of p features
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixeld.layers import MaskedConv2d
from pixeld.models.pixel_rnn import ColourConfig, ColourModel


@dataclass(frozen=True)
class GatedPixelCnnConfig(ColourConfig):
    """Sizes and choices of one Gated PixelCNN."""

    stack_width: int
    kernel_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd")


def gate(x: Tensor) -> Tensor:
    """[B, 2p, H, W] -> [B, p, H, W]."""
    content, gates = x.chunk(2, dim=1)
    return content.tanh() * gates.sigmoid()


class GatedLayer(nn.Module):
    """Both stacks of one layer; see above."""

    def __init__(self, config: GatedPixelCnnConfig, first: bool) -> None:
        super().__init__()
        p, common = config.stack_width, (config.channels, config.group_scheme)
        kernel, inputs = (config.input_kernel, config.channels) if first else (config.kernel_size, p)
        reach = kernel // 2
        self.residual = not first
        self.pads = [reach, reach, reach, 0]
        self.vertical = nn.Conv2d(inputs, 2 * p, (reach + 1, kernel))
        self.link = nn.Conv2d(2 * p, 2 * p, 1, bias=False)
        self.horizontal = MaskedConv2d(inputs, p, (1, reach + 1), *common, gates=2, mask="A" if first else "B",
                                       left=reach)
        self.output = MaskedConv2d(p, p, (1, 1), *common)
        self.vertical_condition = config.condition(2 * p)
        self.horizontal_condition = config.condition(2 * p)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, v: Tensor, h: Tensor, classes: Optional[Tensor], maps: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        """Vertical and horizontal stack, [B, n, H, W] each -> the same of this layer, [B, p, H, W] each."""
        above = self.vertical(functional.pad(v, self.pads))
        shifted = torch.cat([torch.zeros_like(above[:, :, :1]), above[:, :, :-1]], dim=2)
        gated = gate(self.horizontal_condition(self.horizontal(h) + self.link(shifted), classes, maps))
        out = self.output(self.dropout(gated))
        return gate(self.vertical_condition(above, classes, maps)), out + h if self.residual else out


class GatedPixelCnn(ColourModel):
    """The whole model."""

    def __init__(self, config: GatedPixelCnnConfig) -> None:
        super().__init__(config, config.stack_width)
        self.layers = nn.ModuleList([GatedLayer(config, layer == 0) for layer in range(config.layers)])

    def forward(self, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None) -> Tensor:
        """Logits [B, H, W, C, levels] of every value given all values before it.

        values: int64 [B, H, W, C] in [0, levels). classes: int64 [B], -1 where an image goes without a class; None when
        all do. low: int64 [B, low_height, low_width, C] where the model takes one.
        """
        maps = self.maps(classes, low)
        v = self.scaled(values)
        h = v
        for layer in self.layers:
            v, h = layer(v, h, classes, maps)
        return self.logits(h)
