"""Writes model packages: a directory with `model.toml` and one weights file, which the daemon serves.

    from pixeld.export import goldens, write_package

    write_package(Path("models/mine"), module, module.config, "mine", "What it draws",
                  golden=goldens(module, images, classes))

or, of a checkpoint of ``pixeld.train``,

    python -m pixeld.export out/run/checkpoint.pt models/mine

The goldens are known answers: likelihoods of some images and checksums of some samples, computed here in float64. The
daemon serves a package only if they come out.
"""

import argparse
import copy
import dataclasses
import hashlib
import io
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import google_crc32c
import torch
from torch import Tensor, nn

from pixeld import mixture
from pixeld.config import ModelConfig
from pixeld.likelihood import config_of, log_probs
from pixeld.models import FAMILIES, family_of
from pixeld.sample import Sample, sample, sample_ahead

FORMAT = 1
NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,63}")  # what the daemon takes as the name of a model
SAFE_MARGIN = 1e-4  # a golden sample this far from every boundary of its draws is the same on every device


def value_bytes(values: Sequence[int], levels: int) -> bytes:
    """Raw bytes of an image: one byte per value up to 256 levels, two (little-endian) above, raster order."""
    return b"".join(value.to_bytes(1 if levels <= 256 else 2, "little") for value in values)


def safe_sample(module: nn.Module, first_seed: int, image: int = 0, margin: float = SAFE_MARGIN,
                sampler: Callable[..., Sample] = sample, **request: Any) -> tuple[int, Sample]:
    """The first seed from `first_seed` on whose sample keeps `margin` everywhere, and that sample."""
    for seed in range(first_seed, first_seed + 1000):
        drawn = sampler(module, seed, image, **request)
        if drawn.margin > margin:
            return seed, drawn
    raise RuntimeError("no seed of 1000 keeps the margin")


def golden_sample(module: nn.Module, first_seed: int, image: int, label: Optional[int], low: Optional[Tensor] = None,
                  margin: float = SAFE_MARGIN) -> dict[str, Any]:
    """One [[golden.sample]] entry."""
    seed, drawn = safe_sample(module, first_seed, image, margin, sample_ahead, label=label, low=low)
    return golden_entry({"seed": seed, "image": image}, label, low) | {
        "crc32c": google_crc32c.value(value_bytes(drawn.values, config_of(module).levels))}


@torch.no_grad()
def golden_score(module: nn.Module, values: Tensor, label: Optional[int], low: Optional[Tensor] = None
                 ) -> dict[str, Any]:
    """One [[golden.score]] entry of an image [H, W, C], computed in the type of the module, in eval mode."""
    classes = None if label is None else torch.tensor([label])
    # A copy, as for samples: nothing of the caller's module changes, whatever the modes of its parts.
    nats = -log_probs(copy.deepcopy(module).eval(), values[None], classes, None if low is None else low[None]).sum().item()
    return golden_entry({"values": values.flatten().tolist()}, label, low) | {"nats": nats}


def goldens(module: nn.Module, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None,
            count: int = 3, margin: float = SAFE_MARGIN, class_required: bool = False
            ) -> dict[str, list[dict[str, Any]]]:
    """Known answers for a package: `count` scores and as many samples.

    values: images [n, H, W, C] that are scored, with their classes [n] and low-resolution images [n, h, w, C], which
    the samples are made from too. margin: how far every draw of a sample keeps from what rounding could change.
    class_required: whether a request must name a class; otherwise the last sample goes without one.
    The module may be in training mode, and stays in it.
    """
    exact, config, values = copy.deepcopy(module).double(), config_of(module), values[:count].long()
    lows = [None] * len(values) if low is None else list(low[:count])
    labels: list[Optional[int]] = [None] * len(values)
    asked: list[Optional[int]] = [None] * len(values)
    if config.classes and classes is not None:
        labels = classes[:count].tolist()
        asked = [3 % config.classes, 8 % config.classes, 5 % config.classes if class_required else None]
    return {"score": [golden_score(exact, image, label, small) for image, label, small in zip(values, labels, lows)],
            "sample": [golden_sample(module, seed, image, label, small, margin)
                       for image, (seed, label, small) in enumerate(zip((7, 100, 1000), asked, lows))]}


def golden_entry(entry: dict[str, Any], label: Optional[int], low: Optional[Tensor]) -> dict[str, Any]:
    """`entry` with its conditions."""
    entry |= {} if label is None else {"class": label}
    return entry | ({} if low is None else {"low": low.flatten().tolist()})


def toml_value(value: Any) -> str:
    """A string, boolean, integer, float or list of those, as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)


def toml(table: dict[str, Any], path: str = "") -> str:
    """A nested dictionary as TOML; a list of dictionaries becomes an array of tables."""
    lines, tables = [], []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            nested = bool(value) and all(isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values())
            tables.append(("" if nested else f"\n[{name}]\n") + toml(value, name))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables.extend(f"\n[[{name}]]\n" + toml(row, name) for row in value)
        else:
            lines.append(f"{key} = {toml_value(value)}\n")
    return "".join(lines + tables)


def write_weights(path: Path, module: nn.Module) -> None:
    """Weights in float32: a TorchScript archive for `.pt`, otherwise safetensors. The module stays as it is."""
    module = copy.deepcopy(module).float().eval()
    if path.suffix == ".pt":
        archive = io.BytesIO()
        torch.jit.save(torch.jit.script(module), archive)
        archive.seek(0)
        # Copied record by record without the debug records, which name source files on the machine that wrote them.
        reader, writer = torch._C.PyTorchFileReader(archive), torch._C.PyTorchFileWriter(str(path))
        writer.set_min_version(int(reader.get_record("version")))
        for record in reader.get_all_records():
            if not record.endswith(".debug_pkl") and not record.startswith((".data/", "version", "byteorder")):
                data = reader.get_record(record)
                writer.write_record(record, data, len(data))
        writer.write_end_of_file()
    else:
        from safetensors.torch import save
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))


def manifest_of(config: ModelConfig) -> dict[str, Any]:
    """The tables of the manifest that describe the model; a key whose value is None is left out."""
    every = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    common = {field.name for field in dataclasses.fields(ModelConfig)}
    present = {name: value for name, value in every.items() if value is not None}

    def pick(*names: str) -> dict[str, Any]:
        return {name: present[name] for name in names if name in present}

    head: dict[str, Any] = {"kind": "categorical"}
    if config.components is not None:
        head = {"kind": "logistic_mixture", "components": config.components, "layout": "saha"}
    return {
        "image": {**pick("height", "width", "channels", "levels", "palette"),
                  "order": "raster" if config.block_height is None else "block_raster",
                  **pick("block_height", "block_width", "block_unit")},
        "head": head,
        "condition": (pick("classes") if config.classes else {}) | pick("low_height", "low_width"),
        "architecture": {name: value for name, value in present.items() if name not in common},
    }


def write_package(directory: Path, module: nn.Module, config: ModelConfig, name: str, description: str,
                  weights: str = "weights.safetensors", class_required: bool = False, low_model: Optional[str] = None,
                  replace: bool = False, **tables: dict[str, Any]) -> None:
    """Writes `directory`/model.toml and the weights file beside it.

    The daemon finds the model by `name`, which is also what the directory must be called where it is served. `weights`
    is the file name, and its ending picks the form: .safetensors, or .pt for a TorchScript archive. `class_required`:
    whether a request must name a class. `low_model` names the package that draws the low-resolution image of a request
    that brings none. `replace`: write over a package that is there. `tables` are the optional tables of the manifest:
    data, training, results, golden (of `goldens`).

    Raises ValueError for a name that the daemon would refuse, and FileExistsError for a directory that is there and not
    empty.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"name must be 1 to 64 of a-z 0-9 . _ - and not begin with a dot, got {name!r}")
    if Path(weights).name != weights or Path(weights).suffix not in (".pt", ".safetensors"):
        raise ValueError(f"weights must be a plain file name ending in .pt or .safetensors, got {weights!r}")
    if not replace and directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is there already, and not empty")
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(directory / weights, module)
    described = manifest_of(config)
    condition = described["condition"]
    if config.classes:
        condition["required"] = class_required
    if low_model is not None:
        condition["low_model"] = low_model
    manifest = {
        "format": FORMAT, "name": name,
        "family": family_of(config),
        "description": description, "image": described["image"], "head": described["head"],
        **({"condition": condition} if condition else {}),
        "architecture": described["architecture"],
        "weights": {"file": weights, "sha256": hashlib.sha256((directory / weights).read_bytes()).hexdigest()},
        **tables,
    }
    (directory / "model.toml").write_text(toml(manifest))


def read_package(directory: Path) -> tuple[ModelConfig, nn.Module]:
    """Configuration and float32 module of a package, in eval mode."""
    manifest = tomllib.loads((directory / "model.toml").read_text())
    make_config, make_module = FAMILIES[manifest["family"]]
    described = manifest["image"] | manifest.get("condition", {}) | manifest["architecture"]
    if manifest["head"]["kind"] == "logistic_mixture":
        described["components"] = manifest["head"]["components"]
    for key in ("order", "required", "low_model"):
        described.pop(key, None)
    config = make_config(**described)
    path = directory / manifest["weights"]["file"]
    if path.suffix == ".pt":
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    else:
        from safetensors.torch import load_file
        state = load_file(str(path))
    if config.components is not None:
        places = mixture.places(manifest["head"]["layout"], config.channels, config.components)
        state |= {name: state[name][places] for name in ("head.weight", "head.bias") if name in state}
    module = make_module(config)
    module.load_state_dict(state)
    return config, module.eval()


def export_checkpoint(checkpoint: Path, directory: Path, description: Optional[str] = None,
                      weights: str = "weights.safetensors", low_model: Optional[str] = None) -> None:
    """Writes the averaged weights of a checkpoint of ``pixeld.train`` as the package `directory`, named like it."""
    from pixeld.train.trainer import load, low_of, trained  # which needs more than the rest of this module

    state = load(checkpoint)
    module, settings, more = trained(state), state["settings"], state["more"]
    config = config_of(module)
    examples = state["examples"]
    if examples is None:
        raise ValueError(f"{checkpoint} holds no images to compute known answers of: train with some to judge by")
    values = examples["values"].long()
    large = values[0].numel() > 1024
    required = bool(config.classes) and settings["class_dropout"] == 0.0
    golden = goldens(module, values, examples["classes"], low_of(config, values), 1 if large else 3,
                     SAFE_MARGIN / 10 if large else SAFE_MARGIN, required)
    results = {"held_out_images": more["judged"], "held_out_bits_per_dim": round(more["validation"], 5)}
    write_package(
        directory, module, config, directory.name, description or f"{state['family']} trained with pixeld.train",
        weights, required, low_model,
        training={"script": "python -m pixeld.train", "steps": state["taken"], "seconds": round(more["seconds"]),
                  "parameters": sum(p.numel() for p in module.parameters()), "seed": settings["seed"]},
        results=results, golden=golden)


def main() -> None:
    """Makes a package of a checkpoint, or says what is wrong in one line."""
    parser = argparse.ArgumentParser(prog="python -m pixeld.export", description="Makes a package of a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a run of pixeld.train")
    parser.add_argument("directory", type=Path, help="of the package: models/NAME")
    parser.add_argument("--description", help="one line about the model")
    parser.add_argument("--weights", default="weights.safetensors", help="file name; .pt for a TorchScript archive")
    parser.add_argument("--low-model", metavar="NAME", help="package that draws the low-resolution images")
    asked = parser.parse_args()
    try:
        export_checkpoint(asked.checkpoint, asked.directory, asked.description, asked.weights, asked.low_model)
    except (ValueError, OSError) as error:
        sys.exit(f"pixeld.export: {error}")
    print(f"wrote {asked.directory}")


if __name__ == "__main__":
    main()
