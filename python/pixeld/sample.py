"""Slow and obvious sampling: for each value the whole image goes through the model again, in float64."""

import copy
from typing import NamedTuple

import torch

from pixeld.draw import draw
from pixeld.models.image_transformer import ImageTransformer
from pixeld.noise import uniform


class Sample(NamedTuple):
    """One drawn image."""

    values: list[int]  # raster order, N of them
    log_likelihood: float  # nats, under the model itself (temperature 1, nothing truncated)
    margin: float  # the smallest of the margins of its draws


@torch.no_grad()
def sample(module: ImageTransformer, seed: int, image: int, label: int | None = None, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None) -> Sample:
    """Draws the image numbered `image` of the stream of `seed`, of class `label` where the model has classes."""
    module = copy.deepcopy(module).double().eval()
    shape = (1, module.height, module.width, module.channels)
    classes = None if label is None else torch.tensor([label])
    values = torch.zeros(shape, dtype=torch.int64)
    log_likelihood, margin = 0.0, float("inf")
    for rank, u in enumerate(uniform(seed, image, range(values.numel()))):
        logits = module(values, classes).flatten(0, 3)[rank]
        drawn = draw(logits.numpy(), float(u), temperature, top_k, top_p)
        values.view(-1)[rank] = drawn.value
        log_likelihood += drawn.log_prob
        margin = min(margin, drawn.margin)
    return Sample(values.flatten().tolist(), log_likelihood, margin)
