"""ImageGPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a decoder-only transformer with full causal attention.

The reference of the daemon's own implementation: it recomputes everything and keeps no cache. The law is that of the
class ImageGPTForCausalImageModeling of Hugging Face transformers. One class holds the whole model, and it compiles with
``torch.jit.script``.

Notation: an image has H rows, W columns and C channels of V levels, taken as a sequence of N = H * W * C values in raster
order; ImageGPT itself has C = 1, its levels being colours of a palette. B is the batch, d the model width.

Manifest: ``family = "image_gpt"``. In ``[architecture]``:

    layers, model_width, heads, feed_forward_width
    activation           "gelu", x Phi(x); "gelu_tanh", x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2;
                         "gelu_sigmoid", x sigmoid(1.702 x); or "relu"
    epsilon              added to the mean square in the norms
    score_divisor        what attention divides its scores by; absent, sqrt(d / heads)
    scale_by_layer       whether it divides them by the number of the layer, too, counted from 1

Tensors:

    tokens.weight [V + 1, d]                              row v for value v, row V for the start of the sequence
    positions.weight [N, d]
    layers.{l}.attention_norm.weight [d]
    layers.{l}.attention.{query,key,value,output}.weight [d, d], .bias [d]
    layers.{l}.feed_forward_norm.weight [d]
    layers.{l}.feed_forward.expand.weight [feed_forward_width, d], .bias [feed_forward_width]
    layers.{l}.feed_forward.contract.weight [d, feed_forward_width], .bias [d]
    norm.weight [d]
    head.weight [V, d]
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from pixeld.config import ModelConfig

ACTIVATIONS = ("gelu", "gelu_tanh", "gelu_sigmoid", "relu")


@dataclass(frozen=True)
class ImageGptConfig(ModelConfig):
    """Sizes and choices of one ImageGPT; widths count features."""

    layers: int
    model_width: int
    heads: int
    feed_forward_width: int
    activation: str = "gelu_sigmoid"  # one of ACTIVATIONS
    epsilon: float = 1e-5
    score_divisor: Optional[float] = None  # None = sqrt(model_width / heads)
    scale_by_layer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}")
        if self.model_width % self.heads:
            raise ValueError("model_width must be a multiple of heads")
        if self.classes or self.low_height is not None or self.components is not None or self.block_height is not None:
            raise ValueError("this family has no classes, low-resolution images, mixtures or blocks")


class RootMeanSquareNorm(nn.Module):
    """x / sqrt(mean of x^2 + epsilon) * weight, over the features."""

    def __init__(self, model_width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(model_width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return x / (x.square().mean(dim=-1, keepdim=True) + self.epsilon).sqrt() * self.weight


class CausalAttention(nn.Module):
    """Multi-head attention, all maps with biases, in which every position sees itself and all before it."""

    def __init__(self, model_width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.query = nn.Linear(model_width, model_width)
        self.key = nn.Linear(model_width, model_width)
        self.value = nn.Linear(model_width, model_width)
        self.output = nn.Linear(model_width, model_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        query = self.query(x).unflatten(2, [self.heads, -1]).transpose(1, 2)  # [B, heads, N, d / heads]
        key = self.key(x).unflatten(2, [self.heads, -1]).transpose(1, 2)
        value = self.value(x).unflatten(2, [self.heads, -1]).transpose(1, 2)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = ((query @ key.transpose(2, 3)) * self.scale).masked_fill(later, float("-inf"))
        return self.output((scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two affine maps with an activation between them, applied to every position alone."""

    def __init__(self, model_width: int, feed_forward_width: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Linear(model_width, feed_forward_width)
        self.contract = nn.Linear(feed_forward_width, model_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        x = self.expand(x)
        if self.activation == "gelu":
            x = 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
        elif self.activation == "gelu_tanh":
            x = 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
        elif self.activation == "gelu_sigmoid":
            x = x * torch.sigmoid(1.702 * x)
        else:
            x = x.relu()
        return self.contract(x)


class Layer(nn.Module):
    """x + attention(norm(x)), and then x + feed-forward(norm(x)), each with dropout."""

    def __init__(self, config: ImageGptConfig, number: int) -> None:
        super().__init__()
        d = config.model_width
        scale = 1.0 / (config.score_divisor or math.sqrt(d // config.heads))
        self.attention_norm = RootMeanSquareNorm(d, config.epsilon)
        self.attention = CausalAttention(d, config.heads, scale / number if config.scale_by_layer else scale)
        self.feed_forward_norm = RootMeanSquareNorm(d, config.epsilon)
        self.feed_forward = FeedForward(d, config.feed_forward_width, config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class ImageGpt(nn.Module):
    """The model; ``config`` says everything else about it."""

    def __init__(self, config: ImageGptConfig) -> None:
        super().__init__()
        self.config = config
        self.size = [config.height, config.width, config.channels]
        self.levels = config.levels
        d = config.model_width
        self.tokens = nn.Embedding(config.levels + 1, d)
        self.positions = nn.Embedding(config.height * config.width * config.channels, d)
        self.layers = nn.ModuleList([Layer(config, number) for number in range(1, config.layers + 1)])
        self.norm = RootMeanSquareNorm(d, config.epsilon)
        self.head = nn.Linear(d, config.levels, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None) -> Tensor:
        """Logits [B, H, W, C, V] of every value of `values` (int64 [B, H, W, C]) given those before it."""
        assert classes is None and low is None, "this model takes neither classes nor low-resolution images"
        sequence = values.flatten(1)
        start = torch.full_like(sequence[:, :1], self.levels)
        x = self.tokens(torch.cat([start, sequence[:, :-1]], dim=1)) + self.positions.weight
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).unflatten(1, self.size)
