"""`pixeld import torchscript` finds out how trained modules of foreign forms are called, and serves them exactly."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pixeld.export import read_package
from pixeld.likelihood import log_probs

MODELS = Path(__file__).parent.parent.parent / "models"
HELD_OUT = MODELS / "digits"


class Planes(nn.Module):
    """A reference module as others write theirs: planes in 0..1, levels before planes, a class for every image."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.most = module, module.config.levels - 1

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        values = (image * self.most).round().long().permute(0, 2, 3, 1)
        return self.module(values, label).permute(0, 4, 3, 1, 2)


class Mixtures(nn.Module):
    """Planes in -1..1, parameters of mixtures as planes, no class."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.most = module, module.config.levels - 1

    def forward(self, image: Tensor) -> Tensor:
        values = ((image + 1) / 2 * self.most).round().long().permute(0, 2, 3, 1)
        return self.module(values).permute(0, 3, 1, 2)


def pixeld(*arguments: str) -> list[dict]:
    """Runs the command line; its lines of JSON."""
    done = subprocess.run([os.environ["PIXELD"], *arguments], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


class Modules(unittest.TestCase):
    """Packages that ship, traced in another form, imported and scored."""

    def imported(self, name: str, wrapped: type[nn.Module], example: tuple[Tensor, ...], found: list[str],
                 *flags: str) -> None:
        """Imports the package `name` as a module of somebody else's and scores what it scored."""
        _, module = read_package(MODELS / name)
        images = np.load(HELD_OUT / "held_out_images.npy")[:20]
        labels = np.load(HELD_OUT / "held_out_classes.npy")[:20]
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            with torch.no_grad():
                torch.jit.save(torch.jit.trace(wrapped(module.eval()), example), root / "module.pt")
            np.save(root / "images.npy", images)
            np.save(root / "labels.npy", labels)
            pixeld("import", "torchscript", str(root / "module.pt"), "--height", "8", "--width", "8", "--levels", "17",
                   "--examples", str(root / "images.npy"), "--out", str(root / "models" / "found"), *flags)
            manifest = (root / "models" / "found" / "model.toml").read_text()
            for line in found:
                self.assertIn(line, manifest.splitlines())
            classes = ["--classes", str(root / "labels.npy")] if flags else []
            scored = pixeld("score", "--models", str(root / "models"), "--model", "found", "--npy",
                            str(root / "images.npy"), "--json", *classes)
            sampled = pixeld("sample", "--models", str(root / "models"), "--model", "found", "--count", "2", "--seed",
                             "1", "--json", *(["--class", "3"] if flags else []))
        values = torch.from_numpy(images).long().view(-1, 8, 8, 1)
        with torch.no_grad():
            expected = log_probs(module.double(), values, torch.from_numpy(labels).long() if flags else None)
        bits = -expected.sum((1, 2, 3)) / 64 / np.log(2)
        served = [line["bits_per_dim"] for line in scored if "bits_per_dim" in line][:20]
        self.assertLess(np.abs(np.array(served) - bits.numpy()).max(), 1e-4)
        self.assertTrue(sampled)

    def test_planes_with_a_class(self) -> None:
        example = (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
        self.imported("digits_gated_pixel_cnn", Planes, example, ['input_scale = "unit"', 'kind = "categorical"'],
                      "--classes", "10")

    def test_mixtures(self) -> None:
        example = (torch.zeros(2, 1, 8, 8),)
        self.imported("digits_pixel_cnn_pp", Mixtures, example, ['input_scale = "signed"', 'kind = "logistic_mixture"'])
