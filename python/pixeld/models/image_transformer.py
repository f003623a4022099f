"""Image Transformer with 1-D local attention and a categorical head (Parmar et al. 2018, arXiv 1802.05751).

This is the reference of the daemon's own implementation: it recomputes everything, keeps no cache, and builds the full
N x N set of visible pairs straight from its formula. One class holds the whole model, and it compiles with
``torch.jit.script``.

Notation: an image has H rows, W columns and C channels of integers in [0, levels). Its N = H * W * C values are taken
in raster order, t = (row * W + column) * C + channel, and the model gives p(x) = prod_t p(x_t | x_0 .. x_{t-1}). B is
the batch, d the model width.
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class ImageTransformerConfig:
    """Sizes and choices of one Image Transformer; widths count features, `query_block` counts values."""

    height: int
    width: int
    channels: int
    levels: int
    layers: int
    model_width: int
    heads: int
    key_width: int
    value_width: int
    feed_forward_width: int
    query_block: int
    positions: str = "sinusoidal"  # or "learned"
    norm: str = "post"  # or "pre"
    classes: int = 0  # 0 = unconditional
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.positions not in ("sinusoidal", "learned") or self.norm not in ("post", "pre"):
            raise ValueError(f"unknown positions {self.positions!r} or norm {self.norm!r}")
        if self.key_width % self.heads or self.value_width % self.heads:
            raise ValueError("key_width and value_width must be multiples of heads")
        if self.positions == "sinusoidal" and self.model_width % 4:
            raise ValueError("sinusoidal positions need a model_width that is a multiple of 4")
        if not 2 <= self.levels <= 65536:
            raise ValueError("levels must lie in 2..65536")


def visible_pairs(length: int, query_block: int, device: torch.device) -> Tensor:
    """Which keys each query may see (section 3.3, 1-D local attention): bool [length, length], row = query.

    Query i sees key j when max(0, (floor(i / l_q) - 1) * l_q) <= j <= i: its own block up to itself, and the whole
    block before. Self is included because the inputs are already shifted by one.
    """
    position = torch.arange(length, device=device)
    first = ((torch.div(position, query_block, rounding_mode="floor") - 1) * query_block).clamp(min=0)
    return (position[None, :] >= first[:, None]) & (position[None, :] <= position[:, None])


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the row in the first half of the features, of the column in the second (section 3.1).

    "Column" runs over the W * C axis, in which the channels of a pixel are neighbours. There are d / 4 time scales,
    from 1 to 10^4 in a geometric series.
    """

    def __init__(self, height: int, columns: int, model_width: int) -> None:
        super().__init__()
        self.height = height
        self.columns = columns
        self.scales = model_width // 4

    def forward(self, like: Tensor) -> Tensor:
        """Position codes [N, d], computed in float64 and given in the type and on the device of `like`."""
        scale = torch.arange(self.scales, dtype=torch.float64, device=like.device)
        inverse = torch.exp(-scale * (math.log(10000.0) / max(self.scales - 1, 1)))
        position = torch.arange(self.height * self.columns, device=like.device)
        row = torch.div(position, self.columns, rounding_mode="floor").double()[:, None] * inverse
        column = (position % self.columns).double()[:, None] * inverse
        return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1).to(like.dtype)


class LearnedPositions(nn.Module):
    """One learned d-vector per row plus one per column of the W * C axis, multiplied by sqrt(d) (section 3.1)."""

    def __init__(self, height: int, columns: int, model_width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(model_width)
        self.rows = nn.Parameter(torch.randn(height, model_width) / self.scale)
        self.columns = nn.Parameter(torch.randn(columns, model_width) / self.scale)

    def forward(self, like: Tensor) -> Tensor:
        """Position codes [N, d]; `like` is there only for the common signature."""
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

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x [B, N, d] and visible bool [N, N] (row = query) -> [B, N, d]."""
        query = self.query(x).unflatten(2, [self.heads, -1]).transpose(1, 2)  # [B, heads, N, key_width / heads]
        key = self.key(x).unflatten(2, [self.heads, -1]).transpose(1, 2)
        value = self.value(x).unflatten(2, [self.heads, -1]).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)) * self.scale  # [B, heads, N, N]
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=3)
        return self.output((weights @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two affine maps with a ReLU between them, applied to every position alone (section 3.2)."""

    def __init__(self, model_width: int, feed_forward_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(model_width, feed_forward_width)
        self.contract = nn.Linear(feed_forward_width, model_width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, d] -> [B, N, d]."""
        return self.contract(torch.relu(self.expand(x)))


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, a residual connection and a LayerNorm (section 3.2, eq. 1-2).

    Post-norm is the published form, norm(x + f(x)); pre-norm is x + f(norm(x)).
    """

    def __init__(self, config: ImageTransformerConfig) -> None:
        super().__init__()
        d = config.model_width
        self.pre_norm = config.norm == "pre"
        self.attention = Attention(d, config.heads, config.key_width, config.value_width)
        self.attention_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)
        self.feed_forward = FeedForward(d, config.feed_forward_width)
        self.feed_forward_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x [B, N, d] and visible bool [N, N] -> [B, N, d]."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), visible))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, visible)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class ImageTransformer(nn.Module):
    """The whole model: embedded and shifted values, plus positions, plus class; layers; a shared categorical head."""

    def __init__(self, config: ImageTransformerConfig) -> None:
        super().__init__()
        self.height = config.height
        self.width = config.width
        self.channels = config.channels
        self.levels = config.levels
        self.query_block = config.query_block
        self.scale = math.sqrt(config.model_width)
        d, columns = config.model_width, config.width * config.channels
        # Row c * levels + v stands for value v in channel c (section 3.1: one table per channel).
        self.values = nn.Embedding(config.channels * config.levels, d)
        self.classes = nn.Embedding(config.classes, d) if config.classes else None
        positions = SinusoidalPositions if config.positions == "sinusoidal" else LearnedPositions
        self.positions = positions(config.height, columns, d)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON) if config.norm == "pre" else nn.Identity()
        self.head = nn.Linear(d, config.levels)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.values.weight, std=d**-0.5)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=d**-0.5)

    def forward(self, values: Tensor, classes: Optional[Tensor] = None) -> Tensor:
        """Logits of every value given all values before it.

        values: int64 [B, H, W, C] in [0, levels). classes: int64 [B], -1 where an image goes without a class; None when
        all do. Returns [B, H, W, C, levels]; the entry at t does not depend on the value at t or on any later one.
        """
        length = self.height * self.width * self.channels
        channel = torch.arange(length, device=values.device) % self.channels
        embedded = self.values(values.flatten(1) + channel * self.levels) * self.scale  # [B, N, d]
        # Shift right by one: the input at t is the value at t - 1, and zeros at t = 0. Positions come after the shift.
        x = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, :-1]], dim=1)
        x = x + self.positions(x)
        if self.classes is not None:
            if classes is not None:
                row = self.classes(classes.clamp(min=0)) * self.scale
                x = x + (row * (classes >= 0).to(row.dtype)[:, None])[:, None, :]
        else:
            assert classes is None, "this model takes no class"
        x = self.dropout(x)
        visible = visible_pairs(length, self.query_block, values.device)
        for layer in self.layers:
            x = layer(x, visible)
        logits = self.head(self.norm(x))
        return logits.unflatten(1, [self.height, self.width, self.channels])


def log_probs(module: nn.Module, values: Tensor, classes: Optional[Tensor] = None) -> Tensor:
    """Natural log-probability of every value of `values` (int64 [B, H, W, C]) under `module`: [B, H, W, C]."""
    return module(values, classes).log_softmax(dim=-1).gather(-1, values[..., None])[..., 0]
