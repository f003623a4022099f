"""Slow, obvious sampling in float64: for each value the whole image goes through the model again. And quick ways."""

import copy
from typing import NamedTuple, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pixeld import mixture
from pixeld.config import ModelConfig
from pixeld.draw import draw
from pixeld.likelihood import config_of
from pixeld.noise import uniform
from pixeld.order import cells_by_rank


class Sample(NamedTuple):
    """One drawn image."""

    values: list[int]  # raster order, N of them
    log_likelihood: float  # nats, under the model itself (temperature 1, nothing truncated)
    margin: float  # the smallest of the margins of its draws


AHEAD = 256  # values that `sample_ahead` guesses in each pass


def logits_at(config: ModelConfig, parameters: Tensor, flat: Tensor, place: int) -> NDArray[np.float64]:
    """Logits of the value at `place` of an image, from a module's output for it and the values [N] before."""
    if config.components is None:
        return parameters.flatten(0, 3)[place].numpy()
    pixel = place // config.channels
    earlier = flat[pixel * config.channels:place]
    return mixture.table(parameters.flatten(0, 2)[pixel], earlier, config.channels, config.levels).numpy()


def begin(module: nn.Module, label: int | None) -> tuple[nn.Module, Optional[Tensor], Tensor, list[int]]:
    """The module in float64, its class argument, an image [1, H, W, C] of zeros, and the place of every rank in it."""
    config = config_of(module)
    classes = None if label is None else torch.tensor([label])
    values = torch.zeros(1, config.height, config.width, config.channels, dtype=torch.int64)
    places = cells_by_rank(config.height, config.width * config.channels, *config.value_block).tolist()
    return copy.deepcopy(module).double().eval(), classes, values, places


@torch.no_grad()
def sample(module: nn.Module, seed: int, image: int, label: int | None = None, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None, low: Optional[Tensor] = None, first_rank: int = 0
           ) -> Sample:
    """Draws the image numbered `image` of the stream of `seed`, of class `label` where the model has classes.

    low: int64 [h, w, C], the low-resolution image of a model that takes one. The noise begins at `first_rank`, which is
    the length of the final image when this one is the lower stage of a pair: so the stages share no uniform number.
    """
    module, classes, values, places = begin(module, label)
    config, flat, count = config_of(module), values.view(-1), values.numel()
    log_likelihood, margin = 0.0, float("inf")
    for place, u in zip(places, uniform(seed, image, range(first_rank, first_rank + count))):
        parameters = module(values, classes, None if low is None else low[None])
        drawn = draw(logits_at(config, parameters, flat, place), float(u), temperature, top_k, top_p)
        flat[place] = drawn.value
        log_likelihood += drawn.log_prob
        margin = min(margin, drawn.margin)
    return Sample(flat.tolist(), log_likelihood, margin)


@torch.no_grad()
def sample_ahead(module: nn.Module, seed: int, image: int, label: int | None = None, low: Optional[Tensor] = None
                 ) -> Sample:
    """What `sample` draws, in fewer passes: each draws many values at once, as if those before were guessed right.

    A draw is the true one if all values before it were; the first that differs from its guess corrects it. So every
    pass settles one value at least, and many where a model is sure of itself.
    """
    module, classes, values, places = begin(module, label)
    config, flat, count = config_of(module), values.view(-1), values.numel()
    noise = uniform(seed, image, range(count))
    settled, log_likelihood, margin = 0, 0.0, float("inf")
    while settled < count:
        parameters = module(values, classes, None if low is None else low[None])
        right = True
        for rank in range(settled, min(settled + AHEAD, count)):
            place = places[rank]
            drawn = draw(logits_at(config, parameters, flat, place), float(noise[rank]))
            if right:
                settled += 1
                log_likelihood += drawn.log_prob
                margin = min(margin, drawn.margin)
                right = drawn.value == flat[place]
            flat[place] = drawn.value
    return Sample(flat.tolist(), log_likelihood, margin)


def drawn_everywhere(config: ModelConfig, parameters: Tensor, values: Tensor, noise: Tensor) -> Tensor:
    """The value that the noise [H, W, C] draws at each place of one image, were all values before it those of `values`.

    parameters: a module's output for `values` [H, W, C], without the dimension of the batch.
    """
    if config.components is None:
        probabilities = parameters.float().softmax(dim=-1)
    else:
        tables = []
        for channel in range(config.channels):
            candidates = values[:, :, None, :].repeat(1, 1, config.levels, 1)
            candidates[..., channel] = torch.arange(config.levels, device=values.device)
            rows = parameters.float()[:, :, None, :].expand(-1, -1, config.levels, -1)
            tables.append(mixture.conditional_log_probs(rows, candidates, config.levels)[..., channel].exp())
        probabilities = torch.stack(tables, dim=2)
    cumulative = probabilities.cumsum(dim=-1)
    below = cumulative <= noise[..., None] * cumulative[..., -1:]
    return below.sum(dim=-1).clamp(max=config.levels - 1)


@torch.no_grad()
def sample_many(module: nn.Module, seed: int, count: int, classes: Optional[Tensor] = None, low: Optional[Tensor] = None
                ) -> Tensor:
    """The first `count` images of the stream of `seed`, together and in the module's own precision: int64 [n, H, W, C].

    classes: int64 [n], -1 for none. low: int64 [n, h, w, C]. Every pass draws all values as if those before them were
    right, until a pass changes none: each settles one more rank at least, most many. But for rounding these are the
    images of `sample`.
    """
    module.eval()
    config, device = config_of(module), next(module.parameters()).device
    shape = (config.height, config.width, config.channels)
    places = cells_by_rank(config.height, config.width * config.channels, *config.value_block)
    length = len(places)
    noise = torch.empty(count, length)
    noise[:, places] = torch.from_numpy(uniform(seed, np.arange(count)[:, None], np.arange(length))).float()
    noise = noise.view(count, *shape).to(device)
    values = torch.zeros(count, *shape, dtype=torch.int64, device=device)
    for _ in range(length + 1):
        parameters = module(values, classes, low)
        drawn = torch.stack([drawn_everywhere(config, *each) for each in zip(parameters, values, noise)])
        if torch.equal(drawn, values):
            break
        values = drawn
    return values
