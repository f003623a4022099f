"""Trains a reference model on your images: ``python -m pixeld.train --images images.npy --out out/run``.

The run's folder gets checkpoint.pt, from which ``--resume`` goes on and ``python -m pixeld.export`` makes a package;
samples.png, images drawn by the model; and log.jsonl, a line for each validation.
"""

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch

from pixeld.models import FAMILIES, configure
from pixeld.sheet import expect_channels
from pixeld.train.data import load_images, split
from pixeld.train.fit import CHECKPOINT, SAMPLES, fit
from pixeld.train.trainer import Settings, Trainer

DEFAULT = "gated_pixel_cnn"


def quick_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are worth it: on CUDA, and on processors that have instructions for them."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    return device.type == "cuda"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pixeld.train", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--images", type=Path, required=True,
                      help="a .npy file of integers [n, H, W, C], or a folder of PNG files, or of folders of them")
    data.add_argument("--classes", type=Path, help="a .npy file of integers [n]; of PNG files, folders are the classes")
    data.add_argument("--levels", type=int, default=256, help="values run 0..LEVELS-1; PNG files are rounded to that")
    data.add_argument("--validation", type=float, default=0.1, metavar="SHARE", help="part of the images to judge by")
    model = parser.add_argument_group("model")
    model.add_argument("--family", choices=FAMILIES, default=DEFAULT, help="architecture")
    model.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sizes",
                       help="a field of its configuration, for example layers=12; several are allowed")
    model.add_argument("--low", type=int, metavar="ROWS", help="condition on the image shrunk to so many rows")
    how = parser.add_argument_group("training")
    for field, text in (("epochs", "times through the images"), ("batch", "images in a step"),
                        ("rate", "learning rate at its highest"), ("weight_decay", "of matrices and kernels"),
                        ("average", "share that the average of the weights keeps in a step"),
                        ("class_dropout", "share of images that go without their class"),
                        ("shift", "share of images that are moved by one pixel"), ("seed", "of all random numbers")):
        default = 40 if field == "epochs" else getattr(Settings, field)
        how.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default, help=text)
    how.add_argument("--bfloat16", action=argparse.BooleanOptionalAction,
                     help="mixed precision; without a word, where the hardware is made for it")
    how.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    how.add_argument("--threads", type=int, default=1, help="of the CPU; more are far slower where others use it too, "
                                                            "and pay for large models only")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, help="folder of the run")
    run.add_argument("--resume", action="store_true", help="go on from its checkpoint; all else must be as it was")
    run.add_argument("--report", type=int, metavar="STEPS", help="validate and write a checkpoint so often; each epoch")
    run.add_argument("--samples", type=int, metavar="STEPS", help="draw samples.png so often, and at the end")
    return parser.parse_args(arguments)


def sizes(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is one of TOML, or a word."""
    found: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: must be KEY=VALUE")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def device_of(name: str) -> torch.device:
    """The device `name`, if it is there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: must be cpu or cuda, or cuda:1 and so on") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if (device.index or 0) >= there:
        found = f"PyTorch sees {there} such devices here" if device.type == "cuda" else "must be cpu or cuda"
        raise ValueError(f"--device {name}: {found}")
    return device


def run(asked: argparse.Namespace) -> None:
    """Trains."""
    device = device_of(asked.device)
    torch.manual_seed(asked.seed)
    torch.set_num_threads(asked.threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # Nothing reads such memory, and filling it takes time.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    images = load_images(asked.images, asked.classes, asked.levels)
    count, height, width, channels = images.values.shape
    expect_channels(channels)  # before a model is made of what may be [n, C, H, W]
    train, judge = split(images, asked.validation, asked.seed)
    classes = 0 if images.classes is None else int(images.classes.max()) + 1
    low = {}
    if asked.low is not None:
        if height % asked.low or width % (height // asked.low) or (height // asked.low).bit_count() != 1:
            raise ValueError(f"--low must halve {height} x {width} some times, got {asked.low} rows")
        low = {"low_height": asked.low, "low_width": width * asked.low // height}
        low |= {"encoder_layers": 2} if asked.family == "image_transformer" else {"condition_maps": 16}
    config = configure(asked.family, **{"height": height, "width": width, "channels": channels, "levels": asked.levels,
                                        "classes": classes, **low, **sizes(asked.sizes)})
    bfloat16 = quick_bfloat16(device) if asked.bfloat16 is None else asked.bfloat16
    settings = Settings(**{name: getattr(asked, name) for name in ("epochs", "batch", "rate", "weight_decay", "average",
                                                                   "class_dropout", "shift", "seed")},
                        bfloat16=bfloat16, weight_norm=asked.family == "pixel_cnn_pp")
    module = FAMILIES[asked.family][1](config).to(device)
    trainer = Trainer(module, train, settings)
    print(f"{asked.family} of {sum(p.numel() for p in module.parameters()):,} parameters, {count} images of {height} x "
          f"{width} x {channels} with {asked.levels} levels" + f" and {classes} classes" * bool(classes)
          + f", on {device}" + " in bfloat16" * bfloat16, flush=True)
    fit(trainer, judge, asked.out, asked.report, asked.samples, asked.resume)
    print(f"wrote {asked.out / CHECKPOINT} and {asked.out / SAMPLES}")


def main() -> None:
    """Trains, or says what is wrong in one line."""
    try:
        run(parse())
    except (ValueError, OSError) as error:
        sys.exit(f"pixeld.train: {error}")


if __name__ == "__main__":
    main()
