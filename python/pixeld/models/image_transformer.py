"""Image Transformer (Parmar et al. 2018, arXiv 1802.05751): 1-D and 2-D local attention, both heads, encoder-decoder.

This is the reference of the daemon's own implementation: it recomputes everything, keeps no cache, and builds the full
set of visible pairs straight from its formula. One class holds the whole model, and it compiles with
``torch.jit.script``.

Notation: an image has H rows, W columns and C channels of V levels; N = H * W * C. It is taken as a grid of H x G
cells: G = W * C cells of one value each, or, with ordinal input, G = W cells of one whole pixel. L = H * G. The rank of
a cell is its place in the order of generation: raster, or block-raster with 2-D attention; the channels of a pixel
follow one another. B is the batch, d the model width.

Example, all else as in ``pixeld.models.DEFAULTS``; a batch of 2 gives logits [2, 8, 8, 3, 32]:

    model = build("image_transformer", height=8, width=8, channels=3, levels=32, layers=6, query_block=24)
    parameters = model(torch.zeros(2, 8, 8, 3, dtype=torch.int64))

Manifest: ``family = "image_transformer"``. In ``[architecture]``:

    layers, model_width, heads, key_width, value_width, feed_forward_width
    positions            "sinusoidal" or "learned"
    norm                 "post" or "pre"
    query_block          cells of a block of 1-D attention; absent with 2-D attention
    attention            absent or "local_1d"; or "local_2d", with
      memory_height      rows seen above the query block, and
      memory_width       columns seen left and right of it, both in ``block_unit`` of ``[image]``, and
      shift              "block_raster" (zeros before the first cell) or "per_block" (zeros before each block)
    input                absent or "embedding"; "ordinal" or "ordinal_relu"
    encoder_layers       layers of the encoder, where ``[condition]`` has low_height and low_width

``[image] order = "block_raster"`` with block_height, block_width and block_unit belongs to 2-D attention: the query
blocks, which tile the grid. A block_unit "pixels" counts widths in pixels, "values" in values; heights are rows.
Ordinal input counts in pixels and goes with the head "logistic_mixture", or with "categorical" where C = 1; embedded
input goes with "categorical".

Tensors, P being the parameters of a pixel (``pixeld.mixture``):

    values.weight [C * V, d]                              embedded input; row c * V + v
    pixels.weight [d, C], pixels.bias [d]                 ordinal input
    classes.weight [classes, d]                           if conditional
    positions.rows [H, d], positions.columns [G, d]       learned positions
    layers.{l}.attention.query.weight, .key.weight [key_width, d]
    layers.{l}.attention.value.weight [value_width, d], .output.weight [d, value_width]
    layers.{l}.attention_norm.{weight,bias} [d]
    layers.{l}.cross_attention.* and .cross_attention_norm.*     like the two above, with an encoder
    layers.{l}.feed_forward.expand.weight [feed_forward_width, d], .bias [feed_forward_width]
    layers.{l}.feed_forward.contract.weight [d, feed_forward_width], .bias [d]
    layers.{l}.feed_forward_norm.{weight,bias} [d]
    norm.{weight,bias} [d]                                pre-norm
    head.weight [V, d], head.bias [V]                     categorical
    head.weight [P, d], without a bias                    logistic_mixture
    encoder.values.weight [C * V, d]                      with an encoder, as are all below
    encoder.positions.rows [low_height, d], encoder.positions.columns [low_width * C, d]      learned positions
    encoder.layers.{l}.*                                  like layers.{l}, without cross-attention
    encoder.norm.{weight,bias} [d]                        pre-norm
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from pixeld.config import ModelConfig
from pixeld.layers import ClassVectors
from pixeld.mixture import parameters_per_pixel, symmetric
from pixeld.order import cells_by_rank

LAYER_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class ImageTransformerConfig(ModelConfig):
    """Sizes and choices of one Image Transformer; widths count features, `query_block` counts cells."""

    layers: int
    model_width: int
    heads: int
    key_width: int
    value_width: int
    feed_forward_width: int
    query_block: Optional[int] = None
    positions: str = "sinusoidal"  # or "learned"
    norm: str = "post"  # or "pre"
    attention: Optional[str] = None  # "local_1d"; or "local_2d"
    memory_height: Optional[int] = None
    memory_width: Optional[int] = None
    shift: Optional[str] = None
    input: Optional[str] = None  # "embedding"; or "ordinal", "ordinal_relu"
    encoder_layers: Optional[int] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions not in ("sinusoidal", "learned") or self.norm not in ("post", "pre"):
            raise ValueError(f"unknown positions {self.positions!r} or norm {self.norm!r}")
        if self.key_width % self.heads or self.value_width % self.heads:
            raise ValueError("key_width and value_width must be multiples of heads")
        if self.positions == "sinusoidal" and self.model_width % 4:
            raise ValueError("sinusoidal positions need a model_width that is a multiple of 4")
        if self.attention == "local_2d":
            if None in (self.block_height, self.memory_height, self.memory_width) or self.query_block is not None:
                raise ValueError("local_2d needs the blocks of the order, memory_height and memory_width alone")
            if self.shift not in ("block_raster", "per_block"):
                raise ValueError(f"unknown shift {self.shift!r}")
            if self.ordinal and self.block_unit != "pixels":
                raise ValueError("ordinal input counts blocks in pixels")
        elif self.attention not in (None, "local_1d") or self.query_block is None or self.block_height is not None:
            raise ValueError("local_1d needs a query_block and raster order")
        if self.input not in (None, "embedding", "ordinal", "ordinal_relu"):
            raise ValueError(f"unknown input {self.input!r}")
        if (self.components is not None) != self.ordinal and (not self.ordinal or self.channels != 1):
            raise ValueError("this head does not go with this input")
        if (self.encoder_layers is None) != (self.low_height is None):
            raise ValueError("an encoder and a low-resolution image come together")

    @property
    def ordinal(self) -> bool:
        """Whether a cell is a pixel rather than a value."""
        return self.input in ("ordinal", "ordinal_relu")

    def cells(self, width: int) -> int:
        """Cells of a width that is counted in `block_unit`."""
        return width * self.channels if self.block_unit == "pixels" and not self.ordinal else width


def visible_pairs(length: int, query_block: int, device: torch.device) -> Tensor:
    """Which keys each query may see (section 3.3, 1-D local attention): bool [length, length], row = query.

    Query i sees key j when max(0, (floor(i / l_q) - 1) * l_q) <= j <= i: its own block up to itself, and the whole
    block before. Self is included because the inputs are already shifted by one.
    """
    position = torch.arange(length, device=device)
    first = ((torch.div(position, query_block, rounding_mode="floor") - 1) * query_block).clamp(min=0)
    return (position[None, :] >= first[:, None]) & (position[None, :] <= position[:, None])


def visible_pairs_2d(height: int, columns: int, block_height: int, block_width: int, memory_height: int,
                     memory_width: int, device: torch.device) -> Tensor:
    """Which keys each query may see (section 3.3, 2-D local attention): bool [L, L] over ranks, row = query.

    Of the query's block the cells up to itself; above the block `memory_height` rows, from `memory_width` columns left
    of it to as many right of it; beside its rows `memory_width` columns to the left.
    """
    cells = cells_by_rank(height, columns, block_height, block_width).to(device)
    row, column = torch.div(cells, columns, rounding_mode="floor"), cells % columns
    top = (row - row % block_height)[:, None]
    left = (column - column % block_width)[:, None]
    key_row, key_column, rank = row[None, :], column[None, :], torch.arange(len(cells), device=device)
    rows = (key_row >= top) & (key_row < top + block_height)
    own = rows & (key_column >= left) & (key_column < left + block_width) & (rank[None, :] <= rank[:, None])
    beside = rows & (key_column >= left - memory_width) & (key_column < left)
    above = ((key_row >= top - memory_height) & (key_row < top)
             & (key_column >= left - memory_width) & (key_column < left + block_width + memory_width))
    return own | beside | above


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the row in the first half of the features, of the column in the second (section 3.1).

    "Column" runs over the G cells of a row, in which the channels of a pixel are neighbours if they are cells of their
    own. There are d / 4 time scales, from 1 to 10^4 in a geometric series.
    """

    def __init__(self, height: int, columns: int, model_width: int) -> None:
        super().__init__()
        self.height = height
        self.columns = columns
        self.scales = model_width // 4

    def forward(self, like: Tensor) -> Tensor:
        """Position codes [L, d] in raster order, computed in float64, in the type and on the device of `like`."""
        scale = torch.arange(self.scales, dtype=torch.float64, device=like.device)
        inverse = torch.exp(-scale * (math.log(10000.0) / max(self.scales - 1, 1)))
        position = torch.arange(self.height * self.columns, device=like.device)
        row = torch.div(position, self.columns, rounding_mode="floor").double()[:, None] * inverse
        column = (position % self.columns).double()[:, None] * inverse
        return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1).to(like.dtype)


class LearnedPositions(nn.Module):
    """One learned d-vector per row plus one per column of the grid, multiplied by sqrt(d) (section 3.1)."""

    def __init__(self, height: int, columns: int, model_width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(model_width)
        self.rows = nn.Parameter(torch.randn(height, model_width) / self.scale)
        self.columns = nn.Parameter(torch.randn(columns, model_width) / self.scale)

    def forward(self, like: Tensor) -> Tensor:
        """Position codes [L, d] in raster order; `like` is there only for the common signature."""
        return (self.rows[:, None, :] + self.columns[None, :, :]).flatten(0, 1) * self.scale


class Attention(nn.Module):
    """Multi-head attention without biases (section 3.2); each head divides its scores by sqrt(key_width / heads)."""

    def __init__(self, model_width: int, heads: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1.0 / math.sqrt(key_width // heads)
        self.query = nn.Linear(model_width, key_width, bias=False)
        self.key = nn.Linear(model_width, key_width, bias=False)
        self.value = nn.Linear(model_width, value_width, bias=False)
        self.output = nn.Linear(value_width, model_width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, visible: Optional[Tensor]) -> Tensor:
        """Queries from x [B, L, d], keys and values from memory [B, M, d] -> [B, L, d].

        visible: bool [L, M], row = query; None lets every query see everything.
        """
        query = self.query(x).unflatten(2, [self.heads, -1]).transpose(1, 2)  # [B, heads, L, key_width / heads]
        key = self.key(memory).unflatten(2, [self.heads, -1]).transpose(1, 2)
        value = self.value(memory).unflatten(2, [self.heads, -1]).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)) * self.scale  # [B, heads, L, M]
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return self.output((scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two affine maps with a ReLU between them, applied to every position alone (section 3.2)."""

    def __init__(self, model_width: int, feed_forward_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(model_width, feed_forward_width)
        self.contract = nn.Linear(feed_forward_width, model_width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, d] -> [B, L, d]."""
        return self.contract(torch.relu(self.expand(x)))


class Layer(nn.Module):
    """Attention, attention to the encoder if there is one, and feed-forward (section 3.2, eq. 1-2).

    Each comes with dropout, a residual connection and a LayerNorm. Post-norm is the published form, norm(x + f(x));
    pre-norm is x + f(norm(x)), in which the encoder's output is taken as it is.
    """

    def __init__(self, config: ImageTransformerConfig, crosses: bool) -> None:
        super().__init__()
        d = config.model_width
        widths = (d, config.heads, config.key_width, config.value_width)
        self.pre_norm = config.norm == "pre"
        self.attention = Attention(*widths)
        self.attention_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)
        self.cross_attention = Attention(*widths) if crosses else None
        self.cross_attention_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON) if crosses else None
        self.feed_forward = FeedForward(d, config.feed_forward_width)
        self.feed_forward_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Optional[Tensor], memory: Optional[Tensor]) -> Tensor:
        """x [B, L, d], visible bool [L, L] (row = query) or None, memory [B, M, d] of the encoder -> [B, L, d]."""
        normed = self.attention_norm(x) if self.pre_norm else x
        x = x + self.dropout(self.attention(normed, normed, visible))
        x = x if self.pre_norm else self.attention_norm(x)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            assert memory is not None
            normed = self.cross_attention_norm(x) if self.pre_norm else x
            x = x + self.dropout(self.cross_attention(normed, memory, None))
            x = x if self.pre_norm else self.cross_attention_norm(x)
        normed = self.feed_forward_norm(x) if self.pre_norm else x
        x = x + self.dropout(self.feed_forward(normed))
        return x if self.pre_norm else self.feed_forward_norm(x)


def position_codes(config: ImageTransformerConfig, height: int, columns: int) -> nn.Module:
    """The configured kind of position codes, for a grid of `height` x `columns` cells."""
    kind = SinusoidalPositions if config.positions == "sinusoidal" else LearnedPositions
    return kind(height, columns, config.model_width)


def final_norm(config: ImageTransformerConfig) -> nn.Module:
    """The norm after the last layer, which pre-norm alone needs."""
    return nn.LayerNorm(config.model_width, eps=LAYER_NORM_EPSILON) if config.norm == "pre" else nn.Identity()


class ValueVectors(nn.Embedding):
    """One d-vector for each value of each channel, multiplied by sqrt(d) (section 3.1)."""

    def __init__(self, channels: int, levels: int, model_width: int) -> None:
        super().__init__(channels * levels, model_width)
        self.channels = channels
        self.levels = levels
        nn.init.normal_(self.weight, std=model_width**-0.5)

    def forward(self, values: Tensor) -> Tensor:
        """values int64 [B, H, W, C] -> [B, H * W * C, d], raster order."""
        channel = torch.arange(self.channels, device=values.device)
        rows = (values + channel * self.levels).flatten(1)  # row c * levels + v stands for value v in channel c
        return nn.functional.embedding(rows, self.weight) * math.sqrt(self.embedding_dim)


class PixelVectors(nn.Linear):
    """A linear map of the scaled channels of each pixel, the 1 x C convolution of section 3.1, with ReLU or without."""

    def __init__(self, channels: int, levels: int, model_width: int, relu: bool) -> None:
        super().__init__(channels, model_width)
        self.levels = levels
        self.relu = relu

    def forward(self, values: Tensor) -> Tensor:
        """values int64 [B, H, W, C] -> [B, H * W, d], raster order."""
        mapped = nn.functional.linear(symmetric(values, self.levels, self.weight), self.weight, self.bias).flatten(1, 2)
        return mapped.relu() if self.relu else mapped


class Encoder(nn.Module):
    """Embedded values of the low-resolution image, plus positions; layers that see all of it (section 3.3)."""

    def __init__(self, config: ImageTransformerConfig) -> None:
        super().__init__()
        self.values = ValueVectors(config.channels, config.levels, config.model_width)
        self.positions = position_codes(config, config.low_height, config.low_width * config.channels)
        self.layers = nn.ModuleList([Layer(config, False) for _ in range(config.encoder_layers)])
        self.norm = final_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, low: Tensor) -> Tensor:
        """low int64 [B, h, w, C] -> [B, h * w * C, d]."""
        x = self.values(low)
        x = self.dropout(x + self.positions(x))
        for layer in self.layers:
            x = layer(x, None, None)
        return self.norm(x)


class ImageTransformer(nn.Module):
    """The whole model: embedded and shifted cells, plus positions, plus class; layers; a shared head."""

    def __init__(self, config: ImageTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.height = config.height
        self.width = config.width
        self.channels = config.channels
        self.levels = config.levels
        self.scale = math.sqrt(config.model_width)
        d = config.model_width
        self.grid_columns = config.width if config.ordinal else config.width * config.channels
        self.local_2d = config.attention == "local_2d"
        self.query_block = config.query_block or 0
        self.block_height = config.block_height or config.height
        self.block_width = config.cells(config.block_width) if config.block_width else self.grid_columns
        self.memory_height = config.memory_height or 0
        self.memory_width = config.cells(config.memory_width or 0)
        self.shift_block = self.block_height * self.block_width
        if config.shift != "per_block":
            self.shift_block = self.height * self.grid_columns
        sizes = (config.channels, config.levels, d)
        self.values = None if config.ordinal else ValueVectors(*sizes)
        self.pixels = PixelVectors(*sizes, config.input == "ordinal_relu") if config.ordinal else None
        self.classes = ClassVectors(config.classes, d, std=d**-0.5) if config.classes else None
        self.positions = position_codes(config, config.height, self.grid_columns)
        self.encoder = Encoder(config) if config.encoder_layers is not None else None
        self.layers = nn.ModuleList([Layer(config, self.encoder is not None) for _ in range(config.layers)])
        self.norm = final_norm(config)
        if config.components is None:
            self.head = nn.Linear(d, config.levels)
        else:
            self.head = nn.Linear(d, parameters_per_pixel(config.channels, config.components), bias=False)
        self.categorical = config.components is None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None) -> Tensor:
        """Parameters of the law of every value, or of every pixel, given all cells of lower rank.

        values: int64 [B, H, W, C] in [0, levels). classes: int64 [B], -1 where an image goes without a class; None when
        all do. low: int64 [B, low_height, low_width, C], with an encoder. Returns logits [B, H, W, C, levels] of a
        categorical head, [B, H, W, P] of a mixture; what stands at a cell does not depend on the values of that cell
        nor on any of higher rank.
        """
        if self.pixels is not None:
            content = self.pixels(values)  # [B, L, d]
        else:
            assert self.values is not None
            content = self.values(values)
        cells = cells_by_rank(self.height, self.grid_columns, self.block_height, self.block_width).to(values.device)
        # The input at rank t is the cell of rank t - 1, and zeros at t = 0 (per_block: at the first rank of a block).
        # Positions come after the shift: they are those of the cell that is predicted.
        x = content[:, cells].unflatten(1, [-1, self.shift_block])
        x = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2).flatten(1, 2)
        x = x + self.positions(x)[cells]
        if self.classes is not None:
            if classes is not None:
                x = x + (self.classes(classes) * self.scale)[:, None, :]
        else:
            assert classes is None, "this model takes no class"
        x = self.dropout(x)
        if self.local_2d:
            visible = visible_pairs_2d(self.height, self.grid_columns, self.block_height, self.block_width,
                                       self.memory_height, self.memory_width, values.device)
        else:
            visible = visible_pairs(x.shape[1], self.query_block, values.device)
        memory: Optional[Tensor] = None
        if self.encoder is not None:
            assert low is not None, "this model needs a low-resolution image"
            memory = self.encoder(low)
        else:
            assert low is None, "this model takes no low-resolution image"
        for layer in self.layers:
            x = layer(x, visible, memory)
        parameters = self.head(self.norm(x))[:, cells.argsort()]  # back from rank to raster order
        if self.categorical:
            return parameters.unflatten(1, [self.height, self.width, self.channels])
        return parameters.unflatten(1, [self.height, self.width])
