"""Trains the packages of models/: on handwritten digits, and on letters in colour.

    python python/train.py NAME                 # trains on the whole training part, writes models/NAME/
    python python/train.py NAME --validate      # holds a validation part out of the training part, writes nothing

What is held out (``datasets``) is read after training, for the number in the manifest; two packages, digits_pixel_cnn
and digits_transformer_2d, were trained for longer after a first look at theirs. Sizes and lengths of digits were chosen
with --validate, which trains without the images of index % 5 == 1 and reports their bits/dim along the way; those of
the others are first guesses, letters by a look at samples. The same seed, machine and PyTorch give the same weights;
for the same bytes of weights.pt, whose TorchScript code lists attributes in hash order, set PYTHONHASHSEED=0.
"""

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import glyphs
from datasets import DATA_SETS, Images, shrunk
from pixeld.config import ModelConfig
from pixeld.export import SAFE_MARGIN, golden_sample, golden_score, write_package
from pixeld.layers import ClassVectors
from pixeld.likelihood import log_probs, value_log_probs
from pixeld.models import FAMILIES

CLASS_DROPOUT = 0.1
EMA_DECAY = 0.998


@dataclass(frozen=True)
class Recipe:
    """One package: what it is, its configuration, and how it is trained."""

    family: str
    description: str
    config: dict[str, Any]
    epochs: int
    data: str = "digits"  # of DATA_SETS
    side: int = 8  # of the images
    by_class: bool = True
    batch: int = 32
    rate: float = 3e-3
    weight_decay: float = 0.05
    shift: float = 0.0  # probability of moving an image by one pixel
    bfloat16: bool = True  # matrix products, faster by a third on CPUs that have them; weights stay float32
    weight_norm: bool = False  # folded before export
    class_scale: float = 1.0  # of the class vectors that training begins with
    stop: Optional[int] = None  # steps taken of the schedule that the epochs make, if not all
    report: int = 5  # epochs between lines of progress
    weights: str = "weights.safetensors"
    low_model: Optional[str] = None
    goldens: int = 3  # known answers of each kind; a daemon draws them all when it loads the package
    margin: float = SAFE_MARGIN  # of their draws: the more there are in an image, the fewer images keep it


def transformer(layers: int, d: int, dropout: float, **rest: Any) -> dict[str, Any]:
    """Configuration of an Image Transformer with four heads."""
    return dict(layers=layers, model_width=d, heads=4, key_width=d, value_width=d, feed_forward_width=2 * d,
                dropout=dropout, **rest)


def masked(layers: int, dropout: float, **rest: Any) -> dict[str, Any]:
    """Configuration of a model of colour groups."""
    return dict(layers=layers, input_kernel=7, head_widths=[64], group_scheme="contiguous", input_scaling="symmetric",
                dropout=dropout, **rest)


RECIPES = {
    "digits": Recipe(
        "image_transformer", "Handwritten digits, 8x8 pixels of 17 grey levels, by class",
        transformer(5, 96, 0.15, query_block=16), epochs=35, weights="weights.pt"),
    "digits_transformer_2d": Recipe(
        "image_transformer", "Handwritten digits, 8x8, by class: quarter by quarter, with 2-D local attention",
        transformer(5, 88, 0.15, attention="local_2d", block_height=4, block_width=4, block_unit="pixels",
                    memory_height=4, memory_width=4, shift="block_raster"), epochs=40),
    "digits_transformer_mixture": Recipe(
        "image_transformer", "Handwritten digits, 8x8, by class: ordinal input and a mixture of logistics",
        transformer(5, 88, 0.15, query_block=16, positions="learned", input="ordinal_relu", components=5),
        epochs=28),
    "digits_upscale": Recipe(
        "image_transformer", "Handwritten digits, from 4x4 to 8x8, by class: an encoder and a decoder",
        transformer(4, 72, 0.15, query_block=16, encoder_layers=2, low_height=4, low_width=4), epochs=28),
    "digits_row_lstm": Recipe(
        "row_lstm", "Handwritten digits, 8x8, by class: Row LSTM",
        masked(4, 0.3, hidden_width=40, residual=True, skip=True, kernel_width=3, initial_state="learned"), epochs=28),
    "digits_diagonal_bilstm": Recipe(
        "diagonal_bilstm", "Handwritten digits, 8x8, by class: Diagonal BiLSTM",
        masked(3, 0.3, hidden_width=40, residual=True, skip=True, pad_state="learned"), epochs=22),
    "digits_pixel_cnn": Recipe(
        "pixel_cnn", "Handwritten digits, 8x8, by class: PixelCNN",
        masked(10, 0.3, hidden_width=40, residual=True, skip=True, kernel_size=3), epochs=40),
    "digits_gated_pixel_cnn": Recipe(
        "gated_pixel_cnn", "Handwritten digits, 8x8, by class: Gated PixelCNN",
        masked(8, 0.3, stack_width=40, kernel_size=3), epochs=40),
    "digits_pixel_cnn_pp": Recipe(
        "pixel_cnn_pp", "Handwritten digits, 8x8, by class: PixelCNN++",
        dict(stream_width=24, blocks=1, components=5, dropout=0.3), epochs=40, bfloat16=False, weight_norm=True),
    "digits_multi_scale": Recipe(
        "pixel_cnn", "Handwritten digits, 8x8, by class: the upper of two stages, from 4x4",
        masked(8, 0.3, hidden_width=40, residual=True, skip=True, kernel_size=3, low_height=4, low_width=4,
               condition_maps=16), epochs=28, low_model="digits_multi_scale_low"),
    "digits_multi_scale_low": Recipe(
        "pixel_cnn", "Handwritten digits, 4x4, by class: the lower of two stages",
        masked(4, 0.3, hidden_width=32, residual=True, skip=True, kernel_size=3), epochs=40, side=4),
    "letters": Recipe(
        "gated_pixel_cnn", "Letters A to Z in colour, 16x16, by class: Gated PixelCNN",
        masked(8, 0.0, stack_width=48, kernel_size=3) | {"head_widths": [96]}, epochs=8, data="letters", side=16,
        batch=16, weight_decay=0.01, class_scale=5.0, stop=5800, report=1),
    "letters_upscale": Recipe(
        "gated_pixel_cnn", "Letters in colour, from 8x8 to 32x32: Gated PixelCNN over maps of the small image",
        masked(8, 0.0, stack_width=48, kernel_size=3, low_height=8, low_width=8, condition_maps=24)
        | {"head_widths": [96]}, epochs=1, data="letters", side=32, by_class=False, batch=8, rate=2e-3,
        weight_decay=0.01, report=1, goldens=1, margin=1e-5),
}


def augment(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Moves each image [n, s, s, C], with the given probability, by one pixel in a random direction; zeros come in."""
    count, side = len(images), images.shape[1]
    moves = torch.tensor([[0, 1], [2, 1], [1, 0], [1, 2]])  # corner of the window cut out of the padded image
    corner = moves[torch.randint(4, (count,), generator=generator)]
    corner[torch.rand(count, generator=generator) >= probability] = 1
    padded = functional.pad(images, (0, 0, 1, 1, 1, 1))
    steps = torch.arange(side)
    rows, columns = corner[:, 0, None] + steps, corner[:, 1, None] + steps
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def low_of(config: ModelConfig, values: Tensor) -> Optional[Tensor]:
    """The low-resolution images that go with `values`, if the model takes them."""
    return None if config.low_height is None else shrunk(values, config.low_height)


@torch.no_grad()
def bits_per_dim(module: nn.Module, images: Images) -> float:
    """Mean negative log2-likelihood per value, class and low-resolution image given, float32."""
    module.eval()
    config = module.config
    batch = min(128, 8192 // (config.height * config.width))  # a bound on memory
    total = 0.0
    for values, classes in zip(images.values.long().split(batch), images.classes.split(batch)):
        given = classes if config.classes else None
        total += log_probs(module, values, given, low_of(config, values)).double().sum().item()
    return -total / images.values.numel() / math.log(2)


def convolutions(module: nn.Module) -> list[nn.Module]:
    """The layers that weight norm is for."""
    return [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]


def train(recipe: Recipe, config: ModelConfig, arguments: argparse.Namespace, images: Images, judge: Optional[Images]
          ) -> nn.Module:
    """Trains for `arguments.epochs` and returns the model with the averaged weights; prints progress."""
    generator = torch.Generator().manual_seed(arguments.seed)
    model = FAMILIES[recipe.family][1](config)
    if recipe.weight_norm:
        for part in convolutions(model):
            parametrizations.weight_norm(part, dim=1 if isinstance(part, nn.ConvTranspose2d) else 0)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, ClassVectors):
                part.weight *= recipe.class_scale
    average = copy.deepcopy(model)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": recipe.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], lr=recipe.rate, betas=(0.9, 0.98))
    per_epoch = len(images.values) // recipe.batch
    steps = arguments.epochs * per_epoch
    warmup = min(200, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(s / steps, 1.0))))
    step, started = 0, time.process_time()
    last = min(recipe.stop or steps, steps)
    for epoch in range(math.ceil(last / per_epoch)):
        model.train()
        total = 0.0
        order = torch.randperm(len(images.values), generator=generator)[: per_epoch * recipe.batch]
        batches = order.split(recipe.batch)[: last - step]
        for rows in batches:
            batch = augment(images.values[rows].long(), recipe.shift, generator)
            given = torch.rand(recipe.batch, generator=generator) >= CLASS_DROPOUT
            classes = torch.where(given, images.classes[rows], -1) if config.classes else None
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                parameters = model(batch, classes, low_of(config, batch))
            loss = -value_log_probs(config, parameters.float(), batch).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            keep = min(EMA_DECAY, step / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
            total += loss.item()
        if (epoch + 1) % recipe.report == 0 or step == last:
            seen = f" validation {bits_per_dim(average, judge):.4f}" if judge else ""
            print(f"epoch {epoch + 1} train {total / len(batches) / math.log(2):.4f}{seen} bits/dim, "
                  f"{time.process_time() - started:.0f} s", flush=True)
    if recipe.weight_norm:
        for part in convolutions(average):
            parametrize.remove_parametrizations(part, "weight")
    return average.eval()


def goldens(recipe: Recipe, model: nn.Module, judge: Images) -> dict[str, list[dict[str, Any]]]:
    """The known answers of the package."""
    exact, values = copy.deepcopy(model).double(), judge.values[:recipe.goldens].long()
    low = low_of(model.config, values)
    lows = [None] * len(values) if low is None else list(low)
    labels = judge.classes.tolist() if model.config.classes else [None] * len(values)
    asked = (3, 8, None) if model.config.classes else (None, None, None)
    return {"score": [golden_score(exact, image, label, small) for image, label, small in zip(values, labels, lows)],
            "sample": [golden_sample(model, seed, image, label, small, recipe.margin)
                       for image, (seed, label, small) in enumerate(zip((7, 100, 1000), asked, lows))]}


def parse() -> argparse.Namespace:
    """Command line; the defaults are what the shipped packages were trained with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or RECIPES[arguments.name].epochs
    return arguments


def main() -> None:
    """Trains, judges, exports."""
    arguments = parse()
    recipe = RECIPES[arguments.name]
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, and filling it takes time
    data = DATA_SETS[recipe.data]
    config = FAMILIES[recipe.family][0](
        height=recipe.side, width=recipe.side, channels=data.channels, levels=data.levels,
        classes=data.classes if recipe.by_class else 0, **recipe.config)
    images, judge = data.load(recipe.side, arguments.validate)
    started = time.process_time()  # one thread: a busy machine does not count
    model = train(recipe, config, arguments, images, judge if arguments.validate else None)
    seconds = time.process_time() - started
    parameters = sum(p.numel() for p in model.parameters())
    if arguments.validate:
        print(f"{parameters} parameters")
        return
    held_out_bits = bits_per_dim(model, judge)
    print(f"held out {held_out_bits:.4f} bits/dim, {seconds:.0f} s, {parameters} parameters")
    out = arguments.out / arguments.name
    write_package(
        out, model, config, arguments.name, recipe.description, recipe.weights, low_model=recipe.low_model,
        data=data.manifest,
        training={"script": f"python/train.py {arguments.name}", "seed": arguments.seed, "seconds": round(seconds),
                  "parameters": parameters},
        results={"held_out_images": len(judge.values), "held_out_bits_per_dim": round(held_out_bits, 5)},
        golden=goldens(recipe, model, judge))
    if arguments.name == "digits":  # for the examples of the documentation
        np.save(out / "held_out_images.npy", judge.values.numpy().astype(np.uint8))
        np.save(out / "held_out_classes.npy", judge.classes.numpy().astype(np.uint8))
    if arguments.name == "letters_upscale":  # for the examples of the documentation, and the sheet
        (out / "examples").mkdir(exist_ok=True)
        for small, label in zip(low_of(config, judge.values[:8].long()), judge.classes.tolist()):
            glyphs.png(out / "examples" / f"{glyphs.LETTERS[label]}.png", small.numpy())


if __name__ == "__main__":
    main()
