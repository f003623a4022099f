"""From what a module gives for an image to the log-probabilities of its values, whatever the head."""

from typing import Optional, cast

from torch import Tensor, nn

from pixeld import mixture
from pixeld.config import ModelConfig


def config_of(module: nn.Module) -> ModelConfig:
    """The configuration of a reference module."""
    return cast(ModelConfig, module.config)


def value_log_probs(config: ModelConfig, parameters: Tensor, values: Tensor) -> Tensor:
    """Natural log-probability of every value of `values` (int64 [B, H, W, C]) under a module's output: [B, H, W, C]."""
    if config.components is None:
        return parameters.log_softmax(dim=-1).gather(-1, values[..., None])[..., 0]
    return mixture.conditional_log_probs(parameters, values, config.levels)


def log_probs(module: nn.Module, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None
              ) -> Tensor:
    """Natural log-probability of every value of `values` (int64 [B, H, W, C]) given those of lower rank: [B, H, W, C].

    classes: int64 [B], -1 for none. low: int64 [B, h, w, C], the low-resolution images of a model that takes them.
    """
    return value_log_probs(config_of(module), module(values, classes, low), values)
