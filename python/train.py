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
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

import glyphs
from datasets import DATA_SETS
from pixeld.export import SAFE_MARGIN, goldens, write_package
from pixeld.models import FAMILIES
from pixeld.train import Settings, Trainer, bits_per_dim, fit, shrunk
from pixeld.train.trainer import low_of


@dataclass(frozen=True)
class Recipe:
    """One package: what it is, its configuration, and how it is trained."""

    family: str
    description: str
    config: dict[str, Any]
    settings: Settings
    data: str = "digits"  # of DATA_SETS
    side: int = 8  # of the images
    by_class: bool = True
    report: int = 5  # epochs between lines of progress
    weights: str = "weights.safetensors"
    low_model: Optional[str] = None
    goldens: int = 3  # known answers of each kind; a daemon draws them all when it loads the package
    margin: float = SAFE_MARGIN  # of their draws: the more there are in an image, the fewer images keep it


def settings(epochs: int, **rest: Any) -> Settings:
    """How all of them are trained, but for what is said. bfloat16 is faster by a third on CPUs that have it."""
    return Settings(epochs, **{"bfloat16": True, **rest})


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
        transformer(5, 96, 0.15, query_block=16), settings(35), weights="weights.pt"),
    "digits_transformer_2d": Recipe(
        "image_transformer", "Handwritten digits, 8x8, by class: quarter by quarter, with 2-D local attention",
        transformer(5, 88, 0.15, attention="local_2d", block_height=4, block_width=4, block_unit="pixels",
                    memory_height=4, memory_width=4, shift="block_raster"), settings(40)),
    "digits_transformer_mixture": Recipe(
        "image_transformer", "Handwritten digits, 8x8, by class: ordinal input and a mixture of logistics",
        transformer(5, 88, 0.15, query_block=16, positions="learned", input="ordinal_relu", components=5),
        settings(28)),
    "digits_upscale": Recipe(
        "image_transformer", "Handwritten digits, from 4x4 to 8x8, by class: an encoder and a decoder",
        transformer(4, 72, 0.15, query_block=16, encoder_layers=2, low_height=4, low_width=4), settings(28)),
    "digits_row_lstm": Recipe(
        "row_lstm", "Handwritten digits, 8x8, by class: Row LSTM",
        masked(4, 0.3, hidden_width=40, residual=True, skip=True, kernel_width=3, initial_state="learned"),
        settings(28)),
    "digits_diagonal_bilstm": Recipe(
        "diagonal_bilstm", "Handwritten digits, 8x8, by class: Diagonal BiLSTM",
        masked(3, 0.3, hidden_width=40, residual=True, skip=True, pad_state="learned"), settings(22)),
    "digits_pixel_cnn": Recipe(
        "pixel_cnn", "Handwritten digits, 8x8, by class: PixelCNN",
        masked(10, 0.3, hidden_width=40, residual=True, skip=True, kernel_size=3), settings(40)),
    "digits_gated_pixel_cnn": Recipe(
        "gated_pixel_cnn", "Handwritten digits, 8x8, by class: Gated PixelCNN",
        masked(8, 0.3, stack_width=40, kernel_size=3), settings(40)),
    "digits_pixel_cnn_pp": Recipe(
        "pixel_cnn_pp", "Handwritten digits, 8x8, by class: PixelCNN++",
        dict(stream_width=24, blocks=1, components=5, dropout=0.3), settings(40, bfloat16=False, weight_norm=True)),
    "digits_multi_scale": Recipe(
        "pixel_cnn", "Handwritten digits, 8x8, by class: the upper of two stages, from 4x4",
        masked(8, 0.3, hidden_width=40, residual=True, skip=True, kernel_size=3, low_height=4, low_width=4,
               condition_maps=16), settings(28), low_model="digits_multi_scale_low"),
    "digits_multi_scale_low": Recipe(
        "pixel_cnn", "Handwritten digits, 4x4, by class: the lower of two stages",
        masked(4, 0.3, hidden_width=32, residual=True, skip=True, kernel_size=3), settings(40), side=4),
    "letters": Recipe(
        "gated_pixel_cnn", "Letters A to Z in colour, 16x16, by class: Gated PixelCNN",
        masked(8, 0.05, stack_width=64, kernel_size=3) | {"head_widths": [96]},
        settings(24, batch=16, weight_decay=0.01, class_scale=5.0), data="letters", side=16, report=1),
    "letters_upscale": Recipe(
        "gated_pixel_cnn", "Letters in colour, from 8x8 to 32x32: Gated PixelCNN over maps of the small image",
        masked(8, 0.0, stack_width=48, kernel_size=3, low_height=8, low_width=8, condition_maps=24)
        | {"head_widths": [96]}, settings(3, batch=8, rate=2e-3, weight_decay=0.01), data="letters", side=32,
        by_class=False, report=1, goldens=1, margin=1e-5),
}


def parse() -> argparse.Namespace:
    """Command line; the defaults are what the shipped packages were trained with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    return parser.parse_args()


def main() -> None:
    """Trains, judges, exports."""
    arguments = parse()
    recipe = RECIPES[arguments.name]
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, and filling it takes time
    data = DATA_SETS[recipe.data]
    make_config, make_module = FAMILIES[recipe.family]
    config = make_config(height=recipe.side, width=recipe.side, channels=data.channels, levels=data.levels,
                         classes=data.classes if recipe.by_class else 0, **recipe.config)
    images, judge = data.load(recipe.side, arguments.validate)
    started = time.process_time()  # one thread: a busy machine does not count
    asked = dataclasses.replace(recipe.settings, seed=arguments.seed, epochs=arguments.epochs or recipe.settings.epochs)
    trainer = Trainer(make_module(config), images, asked)
    fit(trainer, judge if arguments.validate else None, report=recipe.report * trainer.per_epoch)
    model = trainer.averaged()
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
        golden=goldens(model, judge.values, judge.classes, low_of(config, judge.values[:recipe.goldens].long()),
                       recipe.goldens, recipe.margin), replace=True)
    if arguments.name == "digits":  # for the examples of the documentation
        np.save(out / "held_out_images.npy", judge.values.numpy().astype(np.uint8))
        np.save(out / "held_out_classes.npy", judge.classes.numpy().astype(np.uint8))
        np.save(out / "held_out_low.npy", shrunk(judge.values, 4).numpy().astype(np.uint8))  # of those that enlarge
    if arguments.name == "letters_upscale":  # for the examples of the documentation, and the sheet
        (out / "examples").mkdir(exist_ok=True)
        for small, label in zip(low_of(config, judge.values[:8].long()), judge.classes.tolist()):
            glyphs.png(out / "examples" / f"{glyphs.LETTERS[label]}.png", small.numpy())


if __name__ == "__main__":
    main()
