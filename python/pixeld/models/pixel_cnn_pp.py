"""PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517): whole pixels, two streams, three scales, a mixture of logistics.

Notation: an image has H rows, W columns (multiples of 4) and C channels of V levels, in raster order of its pixels. F
is the width of both streams, R the residual blocks of a stage, B the batch. The stream u sees the rows above a pixel,
the stream ul all that is above it or left of it in its row; convolutions are shifted instead of masked. The input is
u(x) = 2v / (V - 1) - 1 and one more channel of ones, which tells the image from the zeros around it. phi(t) = ELU(t, -t
joined).

    u_0 = input.u moved down;  ul_0 = input.above moved down + input.left moved right      zeros come in, no bias there
    block(x, a):  c = first(phi(x)) [+ skip(phi(a))];  c = second(phi(c)) [+ class];  x + c[:F] * sigmoid(c[F:])

Up (section 2.4): at the scales 1, 1/2, 1/4, R times u = block(u), ul = block(ul, u), and between scales a step of
stride 2. The first u and ul, and every one that follows, goes on a list. Down: u and ul are taken off the lists; at the
scales 1/4, 1/2, 1, R, R + 1 and R + 1 times u = block(u, u off the list), ul = block(ul, (u, ul off the list joined)),
and between scales a transposed convolution of stride 2. Last, head(ELU(ul)).

Example, all else as in ``pixeld.models.DEFAULTS``; a batch of 2 gives [2, 8, 8, P]:

    model = build("pixel_cnn_pp", height=8, width=8, channels=3, levels=32, stream_width=64, blocks=3)
    parameters = model(torch.zeros(2, 8, 8, 3, dtype=torch.int64))

Manifest: ``family = "pixel_cnn_pp"``, ``[head] kind = "logistic_mixture"``, and in ``[architecture]``

    stream_width         F, features
    blocks               R, of a stage on the way up

Tensors. Weight norm is folded: these are plain kernels. S = u has kernels of 2 x 3 (the row above and the own one, one
column on either side), S = ul of 2 x 2 (above and own, left and own):

    input.u.weight [F, C + 1, 2, 3], input.u.bias [F]
    input.above.weight [F, C + 1, 1, 3], input.left.weight [F, C + 1, 2, 1]; .bias [F] each
    up.{s}.{r}.S.first.weight [F, 2F, kh, kw], .bias [F]                s = 0 .. 2, r = 0 .. R - 1
    up.{s}.{r}.S.second.weight [2F, 2F, kh, kw], .bias [2F]
    up.{s}.{r}.ul.skip.weight [F, 2F, 1, 1], .bias [F]
    up.{s}.{r}.S.classes.weight [classes, 2F]                           if conditional, like "class" in all blocks
    shrink.{s}.u.weight [F, F, 2, 3], shrink.{s}.ul.weight [F, F, 2, 2]; .bias [F] each        s = 0, 1
    down.{s}.{r}.S.*                                                    as up; s = 0 at scale 1/4, 1 at 1/2, 2 at 1
    down.{s}.{r}.u.skip.weight [F, 2F, 1, 1], down.{s}.{r}.ul.skip.weight [F, 4F, 1, 1]; .bias [F] each
    grow.{s}.u.weight [F, F, 2, 3], grow.{s}.ul.weight [F, F, 2, 2]; .bias [F] each; [in, out, kh, kw]     s = 0, 1
    head.weight [P, F, 1, 1], head.bias [P]                             P as in ``pixeld.mixture``
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixeld.config import ModelConfig
from pixeld.layers import ClassVectors
from pixeld.mixture import parameters_per_pixel, symmetric


@dataclass(frozen=True)
class PixelCnnPpConfig(ModelConfig):
    """Sizes of one PixelCNN++."""

    stream_width: int
    blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components is None or self.block_height is not None or self.low_height is not None:
            raise ValueError("this family has a mixture head, raster order and no low-resolution image")
        if self.height % 4 or self.width % 4:
            raise ValueError("height and width must be multiples of 4")


def phi(x: Tensor) -> Tensor:
    """[B, n, H, W] -> [B, 2n, H, W]."""
    return functional.elu(torch.cat([x, -x], dim=1))


def moved_down(x: Tensor) -> Tensor:
    """One row down, zeros in the first."""
    return functional.pad(x, [0, 0, 1, -1])


def moved_right(x: Tensor) -> Tensor:
    """One column to the right, zeros in the first."""
    return functional.pad(x, [1, -1, 0, 0])


class ShiftedConv(nn.Conv2d):
    """A convolution whose last row of taps is the own row, and whose columns are centred or end at the own one."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], centred: bool, step: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=step)
        side = kernel[1] // 2 if centred else 0
        self.pads = [kernel[1] - 1 - side, side, kernel[0] - 1, 0]

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / step, W / step]."""
        return functional.conv2d(functional.pad(x, self.pads), self.weight, self.bias, self.stride)


def stream_conv(stream: str, inputs: int, outputs: int, step: int = 1) -> ShiftedConv:
    """The convolution of stream "u" or "ul"."""
    return ShiftedConv(inputs, outputs, (2, 3) if stream == "u" else (2, 2), stream == "u", step)


class Block(nn.Module):
    """Gated residual block of one stream; `skips` is how many F-wide maps come in from elsewhere."""

    def __init__(self, config: PixelCnnPpConfig, stream: str, skips: int) -> None:
        super().__init__()
        f = config.stream_width
        self.first = stream_conv(stream, 2 * f, f)
        self.second = stream_conv(stream, 2 * f, 2 * f)
        self.skip = nn.Conv2d(2 * f * skips, f, 1) if skips else None
        self.classes = ClassVectors(config.classes, 2 * f, std=0.1) if config.classes else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, aside: Optional[Tensor], classes: Optional[Tensor]) -> Tensor:
        """x [B, F, H, W], aside [B, skips * F, H, W] -> [B, F, H, W]."""
        c = self.first(phi(x))
        if self.skip is not None:
            assert aside is not None
            c = c + self.skip(phi(aside))
        c = self.second(self.dropout(phi(c)))
        if self.classes is not None and classes is not None:
            c = c + self.classes(classes)[:, :, None, None]
        content, gates = c.chunk(2, dim=1)
        return x + content * gates.sigmoid()


def streams(u: nn.Module, ul: nn.Module) -> nn.ModuleDict:
    """One module for each stream."""
    return nn.ModuleDict({"u": u, "ul": ul})


class PixelCnnPp(nn.Module):
    """The whole model."""

    def __init__(self, config: PixelCnnPpConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = config.levels
        self.takes_class = config.classes > 0
        f, inputs = config.stream_width, config.channels + 1
        self.input = nn.ModuleDict({"u": ShiftedConv(inputs, f, (2, 3), True),
                                    "above": ShiftedConv(inputs, f, (1, 3), True),
                                    "left": ShiftedConv(inputs, f, (2, 1), False)})
        self.up = nn.ModuleList([nn.ModuleList([streams(Block(config, "u", 0), Block(config, "ul", 1))
                                                for _ in range(config.blocks)]) for _ in range(3)])
        self.shrink = nn.ModuleList([streams(stream_conv("u", f, f, 2), stream_conv("ul", f, f, 2)) for _ in range(2)])
        self.down = nn.ModuleList([nn.ModuleList([streams(Block(config, "u", 1), Block(config, "ul", 2))
                                                  for _ in range(config.blocks + (stage > 0))]) for stage in range(3)])
        self.grow = nn.ModuleList([streams(nn.ConvTranspose2d(f, f, (2, 3), stride=2),
                                           nn.ConvTranspose2d(f, f, (2, 2), stride=2)) for _ in range(2)])
        self.head = nn.Conv2d(f, parameters_per_pixel(config.channels, config.components), 1)

    def forward(self, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None) -> Tensor:
        """Parameters [B, H, W, P] of the law of every pixel given all pixels before it.

        values: int64 [B, H, W, C] in [0, levels). classes: int64 [B], -1 where an image goes without a class; None when
        all do. low: None.
        """
        assert classes is None or self.takes_class, "this model takes no class"
        assert low is None, "this model takes no low-resolution image"
        x = symmetric(values, self.levels, self.head.weight).permute(0, 3, 1, 2)
        x = functional.pad(x, [0, 0, 0, 0, 0, 1], value=1.0)
        u = moved_down(self.input["u"](x))
        ul = moved_down(self.input["above"](x)) + moved_right(self.input["left"](x))
        us, uls = [u], [ul]
        for stage, blocks in enumerate(self.up):
            for block in blocks:
                u = block["u"](u, None, classes)
                ul = block["ul"](ul, u, classes)
                us.append(u)
                uls.append(ul)
            for index, shrink in enumerate(self.shrink):
                if index == stage:
                    u, ul = shrink["u"](u), shrink["ul"](ul)
                    us.append(u)
                    uls.append(ul)
        u, ul = us.pop(), uls.pop()
        for stage, blocks in enumerate(self.down):
            for block in blocks:
                u = block["u"](u, us.pop(), classes)
                ul = block["ul"](ul, torch.cat([u, uls.pop()], dim=1), classes)
            for index, grow in enumerate(self.grow):
                if index == stage:
                    u, ul = grow["u"](u)[:, :, :, 1:], grow["ul"](ul)
        return self.head(functional.elu(ul)).permute(0, 2, 3, 1)
