"""Reference models, written to be read: no caches, no blocking tricks, every formula in full; and the table of them.

Each module begins with its source, the formulas and shapes, the keys of its manifest and the names of its tensors. All
are called alike: ``module(values, classes, low)``, where

    values      int64 [B, H, W, C] in 0..levels-1, the images themselves: every output sees the values before it alone
    classes     int64 [B], -1 where an image goes without a class; None when all do
    low         int64 [B, h, w, C], the low-resolution images, of a model that takes them; otherwise None

gives the parameters of the law of every value: logits [B, H, W, C, levels], or of a mixture [B, H, W, P] (
``pixeld.mixture``). ``pixeld.likelihood`` turns them into log-probabilities.

    from pixeld.likelihood import log_probs
    from pixeld.models import build

    model = build("pixel_cnn", height=8, width=8, channels=1, levels=17, classes=10, layers=12)
    nats = -log_probs(model, images, classes).sum(dim=(1, 2, 3))        # [B]
"""

import dataclasses
from typing import Any

from torch import nn

from pixeld.config import ModelConfig
from pixeld.models.diagonal_bilstm import DiagonalBiLstm, DiagonalBiLstmConfig
from pixeld.models.gated_pixel_cnn import GatedPixelCnn, GatedPixelCnnConfig
from pixeld.models.image_gpt import ImageGpt, ImageGptConfig
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig
from pixeld.models.pixel_cnn import PixelCnn, PixelCnnConfig
from pixeld.models.pixel_cnn_pp import PixelCnnPp, PixelCnnPpConfig
from pixeld.models.row_lstm import RowLstm, RowLstmConfig

__all__ = ["COLOURS", "DEFAULTS", "DiagonalBiLstm", "DiagonalBiLstmConfig", "FAMILIES", "GatedPixelCnn",
           "GatedPixelCnnConfig", "ImageGpt", "ImageGptConfig", "ImageTransformer", "ImageTransformerConfig",
           "ModelConfig", "PixelCnn", "PixelCnnConfig", "PixelCnnPp", "PixelCnnPpConfig", "RowLstm", "RowLstmConfig",
           "build", "configure", "family_of"]

FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "image_transformer": (ImageTransformerConfig, ImageTransformer),
    "image_gpt": (ImageGptConfig, ImageGpt),
    "row_lstm": (RowLstmConfig, RowLstm),
    "diagonal_bilstm": (DiagonalBiLstmConfig, DiagonalBiLstm),
    "pixel_cnn": (PixelCnnConfig, PixelCnn),
    "gated_pixel_cnn": (GatedPixelCnnConfig, GatedPixelCnn),
    "pixel_cnn_pp": (PixelCnnPpConfig, PixelCnnPp),
}

COLOURS = {"input_kernel": 7, "head_widths": (64,), "group_scheme": "contiguous", "input_scaling": "symmetric"}
# The architecture that `build` makes unless it is told otherwise: small, for small images.
DEFAULTS: dict[str, dict[str, Any]] = {
    "image_transformer": {"layers": 5, "model_width": 96, "heads": 4, "key_width": 96, "value_width": 96,
                          "feed_forward_width": 192, "query_block": 16, "dropout": 0.15},
    "row_lstm": {"layers": 4, "hidden_width": 40, "residual": True, "skip": True, "kernel_width": 3,
                 "initial_state": "learned", "dropout": 0.3, **COLOURS},
    "diagonal_bilstm": {"layers": 3, "hidden_width": 40, "residual": True, "skip": True, "pad_state": "learned",
                        "dropout": 0.3, **COLOURS},
    "pixel_cnn": {"layers": 10, "hidden_width": 40, "residual": True, "skip": True, "kernel_size": 3, "dropout": 0.3,
                  **COLOURS},
    "gated_pixel_cnn": {"layers": 8, "stack_width": 40, "kernel_size": 3, "dropout": 0.3, **COLOURS},
    "pixel_cnn_pp": {"stream_width": 24, "blocks": 1, "components": 5, "dropout": 0.3},
}


def configure(family: str, **config: Any) -> ModelConfig:
    """The configuration of a family: its DEFAULTS, and above them `config`, the fields of its configuration by name."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    kind = FAMILIES[family][0]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    every = {**DEFAULTS.get(family, {}), **config}
    unknown = sorted(set(every) - set(fields))
    if unknown:
        raise ValueError(f"{family} has no {', '.join(unknown)}; it has {', '.join(sorted(fields))}")
    missing = sorted(name for name, field in fields.items() if field.default is dataclasses.MISSING
                     and name not in every)
    if missing:
        raise ValueError(f"{family} needs {', '.join(missing)}")
    made: ModelConfig = kind(**every)
    return made


def build(family: str, **config: Any) -> nn.Module:
    """A model of `family` with random weights; `config` as for `configure`."""
    made: nn.Module = FAMILIES[family][1](configure(family, **config))
    return made


def family_of(config: ModelConfig) -> str:
    """The family that a configuration belongs to."""
    return next(family for family, (kind, _) in FAMILIES.items() if type(config) is kind)
