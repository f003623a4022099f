"""Parts that several families share: class vectors, and the masked convolutions and conditions of the PixelCNN kin.

Masks and colour groups (PixelRNN, arXiv 1601.06759, 3.4): features are split into C groups, one per channel of the
image. A masked convolution opens all taps above the centre and left of it; at the centre a feature sees groups below
its own (mask A, the first convolution) or up to its own (mask B, all others); taps right of the centre and below are
closed. A weights file holds whole kernels, and whatever stands under a mask counts as zero."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional


class ClassVectors(nn.Embedding):
    """One vector per class, and zeros for the class -1, which stands for none."""

    def __init__(self, classes: int, width: int, std: float) -> None:
        super().__init__(classes, width)
        nn.init.normal_(self.weight, std=std)

    def forward(self, classes: Tensor) -> Tensor:
        """int64 [B] -> [B, width]."""
        rows = functional.embedding(classes.clamp(min=0), self.weight)
        return rows * (classes >= 0).to(rows.dtype)[:, None]


def groups(features: int, channels: int, scheme: str) -> Tensor:
    """Which channel each feature belongs to: int64 [features]; f mod C, or floor(C * f / features)."""
    feature = torch.arange(features)
    if scheme == "mod":
        return feature % channels
    return torch.div(feature * channels, features, rounding_mode="floor")


class MaskedConv2d(nn.Conv2d):
    """A convolution under mask A or B; the input is padded so that its centre tap lies at (top, left) of the kernel.

    `gates` output blocks stand one behind another, and each carries the groups of its own features: dealing groups out
    over all of them at once would leak. The features of one channel each, whether channels themselves or logits channel
    by channel, are in the same group under both schemes if they are dealt out contiguously.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], channels: int, scheme: str,
                 output_scheme: Optional[str] = None, gates: int = 1, mask: str = "B", left: Optional[int] = None
                 ) -> None:
        super().__init__(inputs, outputs * gates, kernel)
        self.top = kernel[0] // 2
        self.left = kernel[1] // 2 if left is None else left
        self.pads = [self.left, kernel[1] - 1 - self.left, self.top, kernel[0] - 1 - self.top]
        self.channels = channels
        self.scheme = scheme
        self.output_scheme = output_scheme or scheme
        self.gates = gates
        self.strict = mask == "A"

    def masked_weight(self) -> Tensor:
        """The kernel with zeros under the mask."""
        source = groups(self.in_channels, self.channels, self.scheme)
        target = groups(self.out_channels // self.gates, self.channels, self.output_scheme).repeat(self.gates)
        seen = source[None, :] < target[:, None] if self.strict else source[None, :] <= target[:, None]
        mask = torch.ones_like(self.weight)
        mask[:, :, self.top, self.left] = seen.to(self.weight.device, self.weight.dtype)
        mask[:, :, self.top, self.left + 1:] = 0.0
        mask[:, :, self.top + 1:] = 0.0
        return self.weight * mask

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, gates * outputs, H, W]."""
        return functional.conv2d(functional.pad(x, self.pads), self.masked_weight(), self.bias)


class Upsample(nn.ConvTranspose2d):
    """Low-resolution image to maps of the full size (PixelRNN 3.6): a place sees 3 x 3 low-resolution pixels about it.

    One transposed convolution of stride (fh, fw), kernel (3 fh, 3 fw) and padding (fh, fw), then ReLU, with the factors
    fh = height / low_height and fw = width / low_width.
    """

    def __init__(self, channels: int, maps: int, factors: tuple[int, int]) -> None:
        kernel = (3 * factors[0], 3 * factors[1])
        super().__init__(channels, maps, kernel, stride=factors, padding=factors)
        self.factors = [factors[0], factors[1]]

    def forward(self, low: Tensor) -> Tensor:
        """[B, C, low_height, low_width] -> [B, maps, H, W]."""
        return functional.conv_transpose2d(low, self.weight, self.bias, self.factors, self.factors).relu()


class Condition(nn.Module):
    """What a layer adds to its pre-activations: a vector for the class, and a 1x1 map of the upsampled image.

    Neither is masked: all that conditions is known before the first value.
    """

    def __init__(self, features: int, classes: int, maps: int) -> None:
        super().__init__()
        self.classes = ClassVectors(classes, features, std=0.1) if classes else None
        self.low = nn.Conv2d(maps, features, 1, bias=False) if maps else None

    def forward(self, x: Tensor, classes: Optional[Tensor], maps: Optional[Tensor]) -> Tensor:
        """x [B, features, H, W], classes int64 [B], maps [B, maps, H, W] -> like x."""
        if self.classes is not None and classes is not None:
            x = x + self.classes(classes)[:, :, None, None]
        if self.low is not None and maps is not None:
            x = x + self.low(maps)
        return x
