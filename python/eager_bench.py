"""Step time of an eager PyTorch incremental decoder: the peer that the daemon's own step time is compared with.

    python python/eager_bench.py --write-random small DIR
    python python/eager_bench.py --package DIR --batch 1 4 16 --steps 256 --warmup 32 --threads 1 --json
    python python/eager_bench.py --check

A step is all that one more value of each of B images takes: embedding, every layer with its cached keys and values,
the head, and the draw by inversion of the cumulative distribution.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pixeld.export import read_package, write_package
from pixeld.models.image_transformer import (LAYER_NORM_EPSILON, ImageTransformer, ImageTransformerConfig, log_probs,
                                             visible_pairs)

RANDOM = {"small": (4, 128, 512), "base": (12, 512, 2048)}  # layers, width, feed-forward width


class EagerDecoder:
    """Incremental decoder over static shapes: a ring of two query blocks per layer, read whole under an additive mask.

    Rank t = b * l_q + o writes its key and value to slot (b mod 2) * l_q + o, so a new block overwrites the one that
    has just gone out of sight and nothing is ever moved. All B images stand at the same rank.
    """

    def __init__(self, module: ImageTransformer, config: ImageTransformerConfig, batch: int) -> None:
        self.batch, self.heads, self.window = batch, config.heads, 2 * config.query_block
        self.width = config.model_width
        self.pre_norm = config.norm == "pre"
        self.key_head, self.value_head = config.key_width // config.heads, config.value_width // config.heads
        self.splits = [config.key_width, config.key_width, config.value_width]
        self.embedding = module.values.weight.detach() * module.scale  # [C * levels, d]
        self.positions = module.positions(self.embedding).detach()  # [N, d]
        self.head = (module.head.weight.detach(), module.head.bias.detach())
        self.final_norm = (module.norm.weight.detach(), module.norm.bias.detach()) if self.pre_norm else None
        self.layers = []
        for layer in module.layers:
            a, f = layer.attention, layer.feed_forward
            joined = torch.cat([a.query.weight * a.scale, a.key.weight, a.value.weight]).detach()  # scale folded in
            rest = (a.output.weight, layer.attention_norm.weight, layer.attention_norm.bias, f.expand.weight,
                    f.expand.bias, f.contract.weight, f.contract.bias, layer.feed_forward_norm.weight,
                    layer.feed_forward_norm.bias)
            keys = torch.zeros(batch * self.heads, self.window, self.key_head)
            values = torch.zeros(batch * self.heads, self.window, self.value_head)
            self.layers.append((joined, *(p.detach() for p in rest), keys, values))
        length = len(self.positions)
        rank = torch.arange(length)
        self.slots = rank % self.window
        # Row t of the mask says which slots hold a rank visible from t.
        self.masks = torch.full((length, self.window), float("-inf"))
        query, key = visible_pairs(length, config.query_block, rank.device).nonzero(as_tuple=True)
        self.masks[query, self.slots[key]] = 0.0

    def step(self, previous: Tensor | None, rank: int, condition: Tensor | None = None) -> Tensor:
        """Logits [B, levels] of the value at `rank`.

        previous: rows int64 [B] of the embedding table for the value before, None at rank 0. condition: class vectors
        [B, d], already scaled, None without.
        """
        x = self.positions[rank].expand(self.batch, self.width)
        if previous is not None:
            x = x + self.embedding[previous]
        if condition is not None:
            x = x + condition
        slot, mask = self.slots[rank : rank + 1], self.masks[rank]
        shape, wide = (self.width,), self.batch * self.heads
        for joined, output, n1, b1, expand, expand_bias, contract, contract_bias, n2, b2, keys, values in self.layers:
            y = functional.layer_norm(x, shape, n1, b1, LAYER_NORM_EPSILON) if self.pre_norm else x
            query, key, value = functional.linear(y, joined).split(self.splits, dim=1)
            keys.index_copy_(1, slot, key.reshape(wide, 1, self.key_head))
            values.index_copy_(1, slot, value.reshape(wide, 1, self.value_head))
            scores = torch.baddbmm(mask, query.reshape(wide, 1, self.key_head), keys.transpose(1, 2))
            mixed = torch.bmm(scores.softmax(dim=2), values).view(self.batch, -1)
            x = x + functional.linear(mixed, output)
            if self.pre_norm:
                y = functional.layer_norm(x, shape, n2, b2, LAYER_NORM_EPSILON)
            else:
                y = x = functional.layer_norm(x, shape, n1, b1, LAYER_NORM_EPSILON)
            y = functional.linear(functional.linear(y, expand, expand_bias).relu_(), contract, contract_bias)
            x = x + y if self.pre_norm else functional.layer_norm(x + y, shape, n2, b2, LAYER_NORM_EPSILON)
        if self.final_norm is not None:
            x = functional.layer_norm(x, shape, *self.final_norm, LAYER_NORM_EPSILON)
        return functional.linear(x, *self.head)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Values int64 [B] drawn from logits [B, levels] with uniform numbers [B, 1], by inversion."""
    cumulative = (logits - logits.amax(dim=1, keepdim=True)).exp_().cumsum(dim=1)
    return (cumulative <= uniform * cumulative[:, -1:]).sum(dim=1)


@torch.inference_mode()
def bench(module: ImageTransformer, config: ImageTransformerConfig, batch: int, steps: int, warmup: int
          ) -> dict[str, float]:
    """Median, minimum and maximum time of `steps` steps at this batch, in microseconds."""
    decoder = EagerDecoder(module, config, batch)
    uniforms = torch.rand(len(decoder.positions), batch, 1)
    times, previous = [], None
    for count in range(warmup + steps):
        rank = count % len(decoder.positions)
        started = time.perf_counter()
        drawn = draw(decoder.step(previous if rank else None, rank), uniforms[rank])
        previous = drawn + rank % config.channels * config.levels
        times.append((time.perf_counter() - started) * 1e6)
    times = times[warmup:]
    return {"batch": batch, "median_us": statistics.median(times), "min_us": min(times), "max_us": max(times)}


@torch.inference_mode()
def check() -> None:
    """Asserts that teacher-forced incremental log-probabilities equal the reference module's within 1e-4."""
    torch.manual_seed(0)
    for norm in ("post", "pre"):
        for positions, query_block in (("sinusoidal", 5), ("learned", 7), ("sinusoidal", 1), ("learned", 100)):
            config = ImageTransformerConfig(4, 3, 3, 6, 3, 16, 2, 24, 8, 20, query_block, positions, norm, classes=4)
            module = ImageTransformer(config).eval()
            for parameter in module.parameters():
                parameter.mul_(2.0)
            values, classes = torch.randint(6, (5, 4, 3, 3)), torch.randint(4, (5,))
            want = log_probs(module, values, classes).flatten(1)
            flat = values.flatten(1)
            rows = flat + torch.arange(flat.shape[1]) % config.channels * config.levels
            condition = module.classes(classes) * module.scale
            decoder = EagerDecoder(module, config, len(values))
            logits = [decoder.step(rows[:, t - 1] if t else None, t, condition) for t in range(flat.shape[1])]
            got = torch.stack(logits, dim=1).log_softmax(2).gather(2, flat[:, :, None])[:, :, 0]
            worst = (got - want).abs().max().item()
            print(f"{norm} {positions} query_block {query_block}: largest difference {worst:.1e}")
            assert worst < 1e-4


def write_random(size: str, directory: Path) -> None:
    """Writes a package with freshly initialised weights: 32x32x3, 256 levels, unconditional, blocks of 256."""
    torch.manual_seed(0)
    layers, d, wide = RANDOM[size]
    config = ImageTransformerConfig(32, 32, 3, 256, layers, d, 8, d, d, wide, 256)
    write_package(directory, ImageTransformer(config), config, directory.name, "Random weights for benchmarks")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-random", nargs=2, metavar=("small|base", "DIR"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.write_random:
        write_random(arguments.write_random[0], Path(arguments.write_random[1]))
    if arguments.check:
        check()
    if arguments.package:
        config, module = read_package(arguments.package)
        rows = [bench(module, config, batch, arguments.steps, arguments.warmup) for batch in arguments.batch]
        if arguments.json:
            print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "steps": arguments.steps,
                              "results": rows}))
        else:
            for row in rows:
                print("batch {batch}: median {median_us:.0f} us, min {min_us:.0f}, max {max_us:.0f}".format(**row))


if __name__ == "__main__":
    main()
