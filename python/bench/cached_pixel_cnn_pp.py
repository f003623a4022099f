"""Cached sampling of PixelCNN++ in plain PyTorch: the peer that pixeld's own step is measured beside.

After Ramachandran et al. 2017 (arXiv 1704.06001): the stream u is computed a row at a time, when the row begins, and ul
a pixel at a time; either only where a coordinate is a multiple of the scale, and of every map the latest two rows are
kept. What a row or a pixel sees is gathered by index, so that each convolution is one product of matrices.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixeld.mixture import SMALLEST_LOG_SCALE, parameters_per_pixel, symmetric
from pixeld.models.pixel_cnn_pp import Block, PixelCnnPp, PixelCnnPpConfig

SCALES = 3  # 1, 1/2 and 1/4, which are the levels 0, 1 and 2 below
OFFSETS = {"u": [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1)], "ul": [(-1, -1), (-1, 0), (0, -1), (0, 0)]}
PIXELS = {"u": [(-2, -1), (-2, 0), (-2, 1), (-1, -1), (-1, 0), (-1, 1)], "ul": [(-1, -1), (-1, 0), (-1, 1), (0, -1)]}


class Place(NamedTuple):
    """Where N nodes of one row write and read, as places of a map; all int64."""

    own: Tensor  # [N]
    around: Tensor  # [N * taps], what a convolution sees from each of them
    before: Tensor  # likewise where they come from: in the map of the next finer scale, or among the pixels
    finer: Tensor  # [N * 4], the nodes of the next finer scale that each one grows into, column by column


class CachedBlock(NamedTuple):
    """A gated residual block whose first convolution and skip are one matrix."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    middle: Tensor  # [B, places, 2F], phi of what the first one gives


class Leg(NamedTuple):
    """The blocks of a stream on its way up or down at one scale."""

    blocks: list[CachedBlock]
    maps: list[Optional[Tensor]]  # [B, places, 2F], phi of what enters the first block and of what each of them gives


class CachedPixelCnnPp:
    """Sampler over static buffers; all B images stand at the same pixel."""

    def __init__(self, module: PixelCnnPp, config: PixelCnnPpConfig, batch: int) -> None:
        assert config.classes == 0
        self.config, self.batch, self.f = config, batch, config.stream_width
        self.outside = config.height * config.width  # the place of all pixels that there are not
        self.pixels = torch.zeros(batch, self.outside + 1, config.channels + 1)
        self.places = {(stream, level): self.all_places(stream, level) for stream in OFFSETS for level in range(SCALES)}
        self.input = {stream: input_matrix(module, stream) for stream in OFFSETS}
        self.up, self.down = ({(stream, level): self.leg(module, stream, level, way)
                               for stream in OFFSETS for level in range(SCALES)} for way in ("up", "down"))
        steps = [(stream, level) for stream in OFFSETS for level in range(SCALES - 1)]
        self.shrink = {(stream, level): matrix(module.shrink[level][stream]) for stream, level in steps}
        self.shrunk = {(stream, level): self.map(level, self.f) for stream, level in steps}
        self.grow = {(stream, level): grow_matrices(module.grow[1 - level][stream], stream) for stream, level in steps}
        self.grown = {(stream, level): self.map(level, self.f) for stream, level in steps}
        self.head = (module.head.weight.flatten(1).contiguous(), module.head.bias)

    def map(self, level: int, width: int) -> Tensor:
        """The latest two rows at one scale, and behind them the zeros around the image: [B, places, width]."""
        return torch.zeros(self.batch, 2 * (self.config.width >> level) + 1, width)

    def leg(self, module: PixelCnnPp, stream: str, level: int, way: str) -> Leg:
        """The blocks at one scale, with what they keep."""
        blocks = [blocks[stream] for blocks in (module.up[level] if way == "up" else module.down[SCALES - 1 - level])]
        maps: list[Optional[Tensor]] = [self.map(level, 2 * self.f) for _ in range(len(blocks) + 1)]
        if (stream, way) == ("ul", "down"):
            maps[-1] = None  # neither a block nor a skip reads it
        return Leg([folded(block, self.map(level, 2 * self.f)) for block in blocks], maps)

    def all_places(self, stream: str, level: int) -> list[list[Place]]:
        """By row and column of the scale; the stream u has all columns of a row in one."""
        height, width = self.config.height >> level, self.config.width >> level
        columns = [range(width)] if stream == "u" else [range(column, column + 1) for column in range(width)]
        return [[self.place(stream, level, row, nodes) for nodes in columns] for row in range(height)]

    def place(self, stream: str, level: int, row: int, columns: range) -> Place:
        """Where the nodes at these columns of a row write and read."""
        def at(row: int, column: int, level: int) -> int:
            width = self.config.width >> level
            return row % 2 * width + column if row >= 0 and 0 <= column < width else 2 * width

        def pixel(row: int, column: int) -> int:
            inside = row >= 0 and 0 <= column < self.config.width
            return row * self.config.width + column if inside else self.outside

        if level == 0:
            before = [pixel(row + down, column + right) for column in columns for down, right in PIXELS[stream]]
            finer = []
        else:
            before = [at(2 * row + down, 2 * column + right, level - 1) for column in columns
                      for down, right in OFFSETS[stream]]
            finer = [at(2 * row + down, 2 * column + right, level - 1) for column in columns
                     for right in (0, 1) for down in (0, 1)]
        around = [at(row + down, column + right, level) for column in columns for down, right in OFFSETS[stream]]
        return Place(*map(torch.tensor, ([at(row, column, level) for column in columns], around, before, finer)))

    def step(self, previous: Optional[Tensor], pixel: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters [B, P] of a pixel, and the values int64 [B, C] drawn from them with `uniforms` [B, 1 + C].

        previous: the values of the pixel before, None at the first. Pixels come in raster order, from the first on.
        """
        if previous is not None:
            self.pixels[:, pixel - 1, :-1] = symmetric(previous, self.config.levels, self.pixels)
            self.pixels[:, pixel - 1, -1] = 1.0
        row, column = divmod(pixel, self.config.width)
        if column == 0:
            self.visit("u", 0, row, 0)
        x = self.visit("ul", 0, row, column)
        parameters = functional.linear(functional.elu(x), *self.head)
        return parameters, draw_mixture(parameters, uniforms, self.config.channels, self.config.levels)

    def visit(self, stream: str, level: int, row: int, column: int) -> Tensor:
        """Goes up, through coarser scales where they are due, and down; row and column are of this scale."""
        place = self.places[stream, level][row][column]
        up, down = self.up[stream, level], self.down[stream, level]
        if level == 0:
            x = functional.linear(recall(self.pixels, place.before, place), self.input[stream])
        else:
            x = functional.linear(recall(self.shrunk[stream, level - 1], place.before, place),
                                  *self.shrink[stream, level - 1])
        x, phis = self.climb(up, x, place, self.asides(stream, self.up["u", level], place))
        if level + 1 < SCALES:
            self.remember(self.shrunk[stream, level], x, place.own)
            if row % 2 == 0 and column % 2 == 0:
                self.visit(stream, level + 1, row // 2, column // 2)
            x = recall(self.grown[stream, level], place.own, place)
        else:
            phis.pop()
        asides = self.asides(stream, self.down["u", level], place)
        x, _ = self.climb(down, x, place, [[*aside, phi] for aside, phi in zip(asides, reversed(phis), strict=True)])
        if level > 0:
            self.spread(stream, level - 1, x, place)
        return x

    def asides(self, stream: str, u: Leg, place: Place) -> list[list[Tensor]]:
        """What the blocks of a leg see of the same leg of u."""
        return [[recall(known, place.own, place)] if stream == "ul" else [] for known in u.maps[1:]]

    def climb(self, leg: Leg, x: Tensor, place: Place, asides: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """x [B * N, F] through the blocks of a leg; and phi of what enters the first and of what each of them gives."""
        phis = [self.remember_phi(leg.maps[0], x, place)]
        for block, before, after, aside in zip(leg.blocks, leg.maps[:-1], leg.maps[1:], asides, strict=True):
            seen = torch.cat([recall(before, place.around, place), *aside], dim=1)
            self.remember_phi(block.middle, functional.linear(seen, block.first, block.first_bias), place)
            c = functional.linear(recall(block.middle, place.around, place), block.second, block.second_bias)
            content, gates = c.chunk(2, dim=1)
            x = torch.addcmul(x, content, gates.sigmoid())
            if after is not None:
                phis.append(self.remember_phi(after, x, place))
        return x, phis

    def spread(self, stream: str, level: int, x: Tensor, place: Place) -> None:
        """The transposed convolution to the scale `level`: four nodes for each, those of its even column first."""
        if stream == "ul":
            grown = functional.linear(x, *self.grow[stream, level][0])
        else:
            row = x.view(self.batch, -1, self.f)
            right = functional.pad(row[:, 1:], [0, 0, 0, 1]).view_as(x)
            even, odd = self.grow[stream, level]
            grown = torch.cat([functional.linear(x, *even),
                               functional.linear(torch.cat([x, right], dim=1), *odd)], dim=1)
        self.remember(self.grown[stream, level], grown, place.finer)

    def remember(self, known: Tensor, x: Tensor, places: Tensor) -> None:
        """Writes [B * N, width * places of each]."""
        known.index_copy_(1, places, x.view(self.batch, len(places), -1))

    def remember_phi(self, known: Tensor, x: Tensor, place: Place) -> Tensor:
        """Writes phi of x [B * N, F], and returns it."""
        phi = functional.elu_(torch.cat([x, -x], dim=1))
        self.remember(known, phi, place.own)
        return phi


def recall(known: Tensor, places: Tensor, place: Place) -> Tensor:
    """What a map [B, .., width] holds at as many `places` for each of the nodes at `place`: [B * N, width of all]."""
    return known.index_select(1, places).view(len(known) * len(place.own), -1)


def matrix(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """[outputs, taps * inputs], the taps in the order of OFFSETS, and the bias."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), convolution.bias


def input_matrix(module: PixelCnnPp, stream: str) -> Tensor:
    """The first convolutions, in the order of PIXELS.

    Where they are shifted from outside the image they give zero instead of their bias, so that it goes with the channel
    of ones of the pixel they are shifted from.
    """
    u, above, left = (module.input[name].weight.permute(0, 2, 3, 1).clone() for name in ("u", "above", "left"))
    u[:, 1, 1, -1] += module.input["u"].bias
    above[:, 0, 1, -1] += module.input["above"].bias
    left[:, 1, 0, -1] += module.input["left"].bias
    above[:, 0, 0] += left[:, 0, 0]
    return u.flatten(1) if stream == "u" else torch.cat([above[:, 0], left[:, 1]], dim=1).flatten(1)


def folded(block: Block, middle: Tensor) -> CachedBlock:
    """The block, with the columns of its skip map by map: the module has them sign by sign."""
    (first, first_bias), second = matrix(block.first), matrix(block.second)
    if block.skip is not None:
        f = len(first)
        skip = block.skip.weight.view(f, 2, -1, f).transpose(1, 2).flatten(1)
        first, first_bias = torch.cat([first, skip], dim=1), first_bias + block.skip.bias
    return CachedBlock(first, first_bias, *second, middle)


def grow_matrices(convolution: nn.ConvTranspose2d, stream: str) -> list[tuple[Tensor, Tensor]]:
    """Of ul one matrix for all four finer nodes; of u one for those of even columns, from the node itself, and one for
    those of odd columns, which also see the node to the right."""
    taps = convolution.weight.permute(3, 2, 1, 0)  # [columns, rows, outputs, inputs]
    parts = [taps.flatten(0, 2)]
    if stream == "u":
        parts = [taps[1].flatten(0, 1), torch.cat([taps[2], taps[0]], dim=2).flatten(0, 1)]
    return [(part.contiguous(), convolution.bias.repeat(len(part) // len(convolution.bias))) for part in parts]


def draw_mixture(parameters: Tensor, uniforms: Tensor, channels: int, levels: int) -> Tensor:
    """Values int64 [B, C] of pixels with these parameters [B, P], drawn with uniform numbers [B, 1 + C]: the component,
    then channel by channel its logistic, as the published samplers do. The law is that of `pixeld.mixture`."""
    components = parameters.shape[1] // parameters_per_pixel(channels, 1)
    kinds = parameters.view(len(parameters), -1, components)
    cumulative = kinds[:, 0].softmax(dim=1).cumsum(dim=1)
    component = (cumulative[:, :-1] <= uniforms[:, :1]).sum(dim=1)
    own = kinds[:, 1:].gather(2, component[:, None, None].expand(-1, kinds.shape[1] - 1, 1))[:, :, 0]
    means, log_scales, coefficients = own.split([channels, channels, own.shape[1] - 2 * channels], dim=1)
    free = means + log_scales.clamp(min=SMALLEST_LOG_SCALE).exp() * uniforms[:, 1:].logit()
    coefficients = coefficients.tanh()
    values: list[Tensor] = []
    for channel in range(channels):
        centre = free[:, channel]
        for earlier, value in enumerate(values):
            centre = torch.addcmul(centre, coefficients[:, channel * (channel - 1) // 2 + earlier],
                                   symmetric(value, levels, centre))
        values.append(((centre + 1.0) * (0.5 * (levels - 1))).round().clamp(0, levels - 1))
    return torch.stack(values, dim=1).long()
