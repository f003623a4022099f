"""Writes model packages: a directory with `model.toml` and one weights file."""

import dataclasses
import hashlib
import io
import sys
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch
from torch import Tensor, nn

from pixeld import mixture
from pixeld.config import ModelConfig
from pixeld.likelihood import log_probs
from pixeld.models import FAMILIES
from pixeld.sample import Sample, sample, sample_ahead

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = 1
SAFE_MARGIN = 1e-4  # a golden sample this far from every boundary of its draws is the same on every device


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli polynomial, bit-reflected form 0x82F63B78)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


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
        "crc32c": crc32c(value_bytes(drawn.values, module.config.levels))}


@torch.no_grad()
def golden_score(module: nn.Module, values: Tensor, label: Optional[int], low: Optional[Tensor] = None
                 ) -> dict[str, Any]:
    """One [[golden.score]] entry of an image [H, W, C], computed in the type of the module."""
    classes = None if label is None else torch.tensor([label])
    nats = -log_probs(module, values[None], classes, None if low is None else low[None]).sum().item()
    return golden_entry({"values": values.flatten().tolist()}, label, low) | {"nats": nats}


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
    """Weights in float32: a TorchScript archive for `.pt`, otherwise safetensors."""
    module = module.float().eval()
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
                  **tables: dict[str, Any]) -> None:
    """Writes `directory`/model.toml and the weights file beside it.

    `weights` is the file name, and its ending picks the form. `low_model` names the package that draws the
    low-resolution image of a request that brings none. `tables` are the optional tables of the manifest: data,
    training, results, golden (the last with lists `score` and `sample`).
    """
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
        "family": next(family for family, (kind, _) in FAMILIES.items() if type(config) is kind),
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
