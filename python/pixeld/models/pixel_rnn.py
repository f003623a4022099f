"""What Row LSTM, Diagonal BiLSTM and PixelCNN share (van den Oord et al. 2016, PixelRNN, arXiv 1601.06759).

Notation: an image has H rows, W columns and C channels of V levels, in raster order with the channels of a pixel in
turn. h is the width of a layer, 2h that of the residual stream between layers, B the batch. Masks, groups and what a
file holds under a mask: ``pixeld.layers``.

    z = input(scaled image)                                            7x7, mask A
    each layer:  f = layer(z);  z = [z +] up(f);  [s = s + skip(f)]    h features f; 1x1 maps of mask B
    y = z [+ s];  each head width: y = hidden(ReLU(y));  logits = head(ReLU(y))

Section 3.3 and 4 and Table 1 of the paper: residual and skip are there or not; two hidden maps of 1024 features for
colour images. Conditioning (section 3.6): an upsampled low-resolution image, and a class vector, are added to the
pre-activations of each layer's own cells.

Manifest: ``[head] kind = "categorical"``, and in ``[architecture]``, beside the keys of the family:

    layers
    hidden_width         h, features
    input_kernel         side of the first convolution in pixels, odd
    head_widths          features of each hidden map of the head; may be empty
    group_scheme         "mod" (feature f of n is in group f mod C) or "contiguous" (floor(C * f / n))
    input_scaling        "symmetric" (2v / (V - 1) - 1) or "unit" (v / (V - 1))
    residual, skip       booleans
    condition_maps       features of the upsampled image, where ``[condition]`` has low_height and low_width

Tensors, "<cell>" being one of the family's cells with n pre-activations:

    input.weight [2h, C, k, k], input.bias [2h]                         mask A
    layers.{l}.up.weight [2h, h, 1, 1], .bias [2h]                      mask B
    layers.{l}.skip.weight [2h, h, 1, 1], .bias [2h]                    mask B; with skip
    hidden.{i}.weight [w_i, w_(i-1) or 2h, 1, 1], .bias [w_i]           mask B
    head.weight [C * V, w_last or 2h, 1, 1], .bias [C * V]              mask B; row c * V + v, in group c
    upsample.weight [C, maps, 3 fh, 3 fw], upsample.bias [maps]         with a low-resolution image, as is the last one
    <cell>.condition.classes.weight [classes, n]                        if conditional on classes
    <cell>.condition.low.weight [n, maps, 1, 1]                         no mask
"""

from dataclasses import dataclass
from typing import Iterable, Optional

import torch
from torch import Tensor, nn

from pixeld.config import ModelConfig, keyword
from pixeld.layers import Condition, MaskedConv2d, Upsample


@dataclass(frozen=True)
class ColourConfig(ModelConfig):
    """What models of colour groups have in common."""

    layers: int
    input_kernel: int
    head_widths: tuple[int, ...]
    group_scheme: str
    input_scaling: str
    condition_maps: Optional[int] = keyword(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "head_widths", tuple(self.head_widths))
        if self.group_scheme not in ("mod", "contiguous") or self.input_scaling not in ("symmetric", "unit"):
            raise ValueError(f"unknown group_scheme {self.group_scheme!r} or input_scaling {self.input_scaling!r}")
        if self.input_kernel % 2 == 0:
            raise ValueError("input_kernel must be odd")
        if self.block_height is not None or self.components is not None:
            raise ValueError("this family goes in raster order and has a categorical head")
        if (self.condition_maps is None) != (self.low_height is None):
            raise ValueError("condition_maps and a low-resolution image come together")
        if self.low_height is not None and (self.height % self.low_height or self.width % self.low_width):
            raise ValueError("the low-resolution image must divide the image")

    def condition(self, features: int) -> Condition:
        """Condition of `features` pre-activations."""
        return Condition(features, self.classes, self.condition_maps or 0)


class ColourModel(nn.Module):
    """Beginning and end of a model of colour groups: scaled input, upsampled condition, 1x1 head."""

    def __init__(self, config: ColourConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.levels = config.levels
        self.symmetric = config.input_scaling == "symmetric"
        self.takes_class = config.classes > 0
        self.upsample: Optional[Upsample] = None
        if config.low_height is not None:
            factors = (config.height // config.low_height, config.width // config.low_width)
            self.upsample = Upsample(config.channels, config.condition_maps, factors)
        common = (config.channels, config.group_scheme)
        widths = [width, *config.head_widths]
        self.hidden = nn.ModuleList([MaskedConv2d(a, b, (1, 1), *common) for a, b in zip(widths, config.head_widths)])
        self.head = MaskedConv2d(widths[-1], config.channels * config.levels, (1, 1), *common, "contiguous")

    def scaled(self, values: Tensor) -> Tensor:
        """int64 [B, H, W, C] -> [B, C, H, W] in -1..1 or 0..1."""
        unit = values.to(self.head.weight.dtype).permute(0, 3, 1, 2) / (self.levels - 1)
        return 2.0 * unit - 1.0 if self.symmetric else unit

    def maps(self, classes: Optional[Tensor], low: Optional[Tensor]) -> Optional[Tensor]:
        """The upsampled low-resolution image [B, maps, H, W], if this model takes one."""
        assert classes is None or self.takes_class, "this model takes no class"
        if self.upsample is not None:
            assert low is not None, "this model needs a low-resolution image"
            return self.upsample(self.scaled(low))
        assert low is None, "this model takes no low-resolution image"
        return None

    def logits(self, y: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, H, W, C, levels]."""
        for hidden in self.hidden:
            y = hidden(y.relu())
        return self.head(y.relu()).permute(0, 2, 3, 1).unflatten(3, [self.channels, self.levels])


@dataclass(frozen=True)
class PixelRnnConfig(ColourConfig):
    """Sizes and choices common to the three families."""

    hidden_width: int
    residual: bool
    skip: bool


class Layer(nn.Module):
    """A layer's way out: to the stream, and with skip to the head. The families say how its h features come about."""

    def __init__(self, config: PixelRnnConfig) -> None:
        super().__init__()
        sizes = (config.hidden_width, 2 * config.hidden_width, (1, 1), config.channels, config.group_scheme)
        self.up = MaskedConv2d(*sizes)
        self.skip = MaskedConv2d(*sizes) if config.skip else None


class PixelRnn(ColourModel):
    """The skeleton around the layers of one family."""

    def __init__(self, config: PixelRnnConfig, layers: Iterable[Layer]) -> None:
        super().__init__(config, 2 * config.hidden_width)
        self.residual = config.residual
        self.input = MaskedConv2d(config.channels, 2 * config.hidden_width, (config.input_kernel, config.input_kernel),
                                  config.channels, config.group_scheme, mask="A")
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None) -> Tensor:
        """Logits [B, H, W, C, levels] of every value given all values before it.

        values: int64 [B, H, W, C] in [0, levels). classes: int64 [B], -1 where an image goes without a class; None when
        all do. low: int64 [B, low_height, low_width, C] where the model takes one.
        """
        maps = self.maps(classes, low)
        z = self.input(self.scaled(values))
        skipped = torch.zeros_like(z)
        for layer in self.layers:
            features = self.dropout(layer(z, classes, maps))
            z = z + layer.up(features) if self.residual else layer.up(features)
            if layer.skip is not None:
                skipped = skipped + layer.skip(features)
        return self.logits(z + skipped)


def lstm_cell(pre_activations: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell state [B, h, ...] from pre-activations [B, 4h, ...] of gates o, f, i, g and the earlier cell."""
    o, f, i, g = pre_activations.chunk(4, dim=1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell
