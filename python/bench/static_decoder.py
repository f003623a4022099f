"""Incremental decoding in plain PyTorch, eager or compiled: the peer that pixeld's own step is measured beside."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixeld.models.image_transformer import (LAYER_NORM_EPSILON, ImageTransformer, ImageTransformerConfig,
                                             visible_pairs)


class Place(NamedTuple):
    """What a step needs to know of its rank."""

    position: Tensor  # [d]
    slot: Tensor  # int64 [1], where its key and value go
    mask: Tensor  # [window], 0 where a slot holds a visible rank and -inf elsewhere
    offset: Tensor  # int64 [1], the embedding's first row for the channel of this rank


def weight(tensor: Tensor) -> nn.Parameter:
    """As a parameter, because the compiler freezes and packs nothing else."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


class StaticDecoder:
    """Decoder over static shapes: a ring of two query blocks in each layer, read whole under an additive mask.

    Rank t = b * l_q + o writes its key and value to slot (b mod 2) * l_q + o, so a new block overwrites the one that
    has just gone out of sight and nothing is ever moved. All B images stand at the same rank. Everything that differs
    from rank to rank comes in as a tensor of fixed shape, so that one compiled graph serves all ranks.
    """

    def __init__(self, module: ImageTransformer, config: ImageTransformerConfig, batch: int) -> None:
        self.batch, self.heads, self.window = batch, config.heads, 2 * config.query_block
        self.width, self.pre_norm = config.model_width, config.norm == "pre"
        self.key_head, self.value_head = config.key_width // config.heads, config.value_width // config.heads
        self.splits = [config.key_width, config.key_width, config.value_width]
        values = module.values.weight.detach() * module.scale
        # One row more than the reference has, of zeros: the value before the first.
        self.embedding = weight(torch.cat([values, torch.zeros(1, config.model_width)]))
        self.start = torch.full((batch,), len(values))
        self.layers = []
        for layer in module.layers:
            a, f = layer.attention, layer.feed_forward
            joined = torch.cat([a.query.weight * a.scale, a.key.weight, a.value.weight])  # scale folded in
            weights = (joined, a.output.weight, layer.attention_norm.weight, layer.attention_norm.bias, f.expand.weight,
                       f.expand.bias, f.contract.weight, f.contract.bias, layer.feed_forward_norm.weight,
                       layer.feed_forward_norm.bias)
            keys = torch.zeros(batch * self.heads, self.window, self.key_head)
            self.layers.append((*map(weight, weights), keys, torch.zeros(*keys.shape[:2], self.value_head)))
        self.head = (weight(module.head.weight), weight(module.head.bias))
        self.norm = (weight(module.norm.weight), weight(module.norm.bias)) if self.pre_norm else None
        length = config.height * config.width * config.channels
        rank = torch.arange(length)
        slots = rank % self.window
        masks = torch.full((length, self.window), float("-inf"))
        query, key = visible_pairs(length, config.query_block, rank.device).nonzero(as_tuple=True)
        masks[query, slots[key]] = 0.0
        offsets = rank % config.channels * config.levels
        positions = module.positions(values).detach()
        self.places = [Place(*rows) for rows in zip(positions, slots.split(1), masks, offsets.split(1))]

    def step(self, previous: Tensor, place: Place, uniform: Tensor, condition: Tensor | None = None
                ) -> tuple[Tensor, Tensor]:
        """One value of each image: its logits [B, levels], and int64 [B] the embedding rows of the values drawn.

        previous: what the step before drew, `start` at rank 0. uniform: numbers [B, 1] in (0, 1). condition: class
        vectors [B, d], already scaled, None without.
        """
        x = place.position + self.embedding[previous]
        if condition is not None:
            x = x + condition
        shape, wide = (self.width,), self.batch * self.heads
        for joined, output, n1, b1, expand, expand_bias, contract, contract_bias, n2, b2, keys, values in self.layers:
            y = functional.layer_norm(x, shape, n1, b1, LAYER_NORM_EPSILON) if self.pre_norm else x
            query, key, value = functional.linear(y, joined).split(self.splits, dim=1)
            keys.index_copy_(1, place.slot, key.reshape(wide, 1, self.key_head))
            values.index_copy_(1, place.slot, value.reshape(wide, 1, self.value_head))
            scores = torch.baddbmm(place.mask, query.reshape(wide, 1, self.key_head), keys.transpose(1, 2))
            mixed = torch.bmm(scores.softmax(dim=2), values).view(self.batch, -1)
            x = x + functional.linear(mixed, output)
            if self.pre_norm:
                y = functional.layer_norm(x, shape, n2, b2, LAYER_NORM_EPSILON)
            else:
                y = x = functional.layer_norm(x, shape, n1, b1, LAYER_NORM_EPSILON)
            y = functional.linear(functional.linear(y, expand, expand_bias).relu_(), contract, contract_bias)
            x = x + y if self.pre_norm else functional.layer_norm(x + y, shape, n2, b2, LAYER_NORM_EPSILON)
        if self.norm is not None:
            x = functional.layer_norm(x, shape, *self.norm, LAYER_NORM_EPSILON)
        logits = functional.linear(x, *self.head)
        return logits, draw(logits, uniform) + place.offset


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Values int64 [B] drawn from logits [B, levels] with uniform numbers [B, 1], by inversion."""
    cumulative = (logits - logits.amax(dim=1, keepdim=True)).exp().cumsum(dim=1)
    return (cumulative <= uniform * cumulative[:, -1:]).sum(dim=1)
