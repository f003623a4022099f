"""Slow and obvious sampling: for each value the whole image goes through the model again, in float64."""

import copy
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from pixeld import mixture
from pixeld.draw import draw
from pixeld.noise import uniform
from pixeld.order import cells_by_rank


class Sample(NamedTuple):
    """One drawn image."""

    values: list[int]  # raster order, N of them
    log_likelihood: float  # nats, under the model itself (temperature 1, nothing truncated)
    margin: float  # the smallest of the margins of its draws


@torch.no_grad()
def sample(module: nn.Module, seed: int, image: int, label: int | None = None, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None, low: Optional[Tensor] = None, first_rank: int = 0
           ) -> Sample:
    """Draws the image numbered `image` of the stream of `seed`, of class `label` where the model has classes.

    low: int64 [h, w, C], the low-resolution image of a model that takes one. The noise begins at `first_rank`, which is
    the length of the final image when this one is the lower stage of a pair: so the stages share no uniform number.
    """
    module = copy.deepcopy(module).double().eval()
    config = module.config
    classes = None if label is None else torch.tensor([label])
    values = torch.zeros(1, config.height, config.width, config.channels, dtype=torch.int64)
    flat, count = values.view(-1), values.numel()
    places = cells_by_rank(config.height, config.width * config.channels, *config.value_block).tolist()
    log_likelihood, margin = 0.0, float("inf")
    for place, u in zip(places, uniform(seed, image, range(first_rank, first_rank + count))):
        # A mixture's parameters are those of the whole pixel: they do not change with its own channels.
        if config.components is None or place % config.channels == 0:
            parameters = module(values, classes, None if low is None else low[None])
        if config.components is None:
            logits = parameters.flatten(0, 3)[place]
        else:
            pixel = place // config.channels
            earlier = flat[pixel * config.channels:place]
            logits = mixture.table(parameters.flatten(0, 2)[pixel], earlier, config.channels, config.levels)
        drawn = draw(logits.numpy(), float(u), temperature, top_k, top_p)
        flat[place] = drawn.value
        log_likelihood += drawn.log_prob
        margin = min(margin, drawn.margin)
    return Sample(flat.tolist(), log_likelihood, margin)
