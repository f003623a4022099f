"""The daemon beside the PyTorch reference, live: fresh random weights each run, and the trained package.

`PIXELD` names the binary; `PIXELD_LIVE_SEED` repeats the weights of an earlier run.
"""

import json
import os
import random
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import google_crc32c
import numpy as np
import torch

from harness import PIXELD, SHIPPED, Daemon
from pixeld.export import SAFE_MARGIN, read_package, value_bytes, write_package
from pixeld.likelihood import log_probs
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig
from pixeld.sample import sample

SIZES = dict(height=4, width=5, layers=2, heads=2, key_width=8, value_width=12, feed_forward_width=24)
CASES = {
    "grey": dict(channels=1, levels=17, model_width=16, query_block=6, classes=3),
    "rgb": dict(channels=3, levels=256, model_width=16, query_block=16, positions="learned"),
    "pre": dict(channels=2, levels=5, model_width=20, query_block=64, norm="pre", classes=2),
    "wide": dict(channels=1, levels=1000, model_width=16, query_block=1, norm="pre", positions="learned"),
}


def run(command: str, *arguments: str) -> list[dict]:
    """The JSON lines that a command of the binary prints."""
    done = subprocess.run([PIXELD, command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


class DaemonTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        seed = int(os.environ.get("PIXELD_LIVE_SEED") or random.randrange(2**31))
        print(f"weights and images from PIXELD_LIVE_SEED={seed}")
        torch.manual_seed(seed)
        cls.random = np.random.default_rng(seed)
        cls.scratch = tempfile.TemporaryDirectory()
        cls.root = Path(cls.scratch.name)
        cls.addClassCleanup(cls.scratch.cleanup)
        for name, case in CASES.items():
            config = ImageTransformerConfig(**SIZES, **case)
            module = ImageTransformer(config)
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            weights = "weights.pt" if name == "pre" else "weights.safetensors"
            write_package(cls.root / "models" / name, module, config, name, "random", weights)
        (cls.root / "models" / "digits").symlink_to(SHIPPED / "digits")
        cls.daemon = Daemon(cls.root / "models")
        cls.addClassCleanup(cls.daemon.stop)
        cls.endpoint = ("--endpoint", f"http://{cls.daemon.address}")

    def reference(self, name: str) -> tuple[ImageTransformerConfig, ImageTransformer]:
        config, module = read_package(self.root / "models" / name)
        return config, module.double()

    def scored(self, name: str, images: np.ndarray, classes: np.ndarray | None, *more: str) -> list[dict]:
        np.save(self.root / "images.npy", images)
        arguments = [*self.endpoint, "--model", name, "--npy", str(self.root / "images.npy"), "--json", *more]
        if classes is not None:
            np.save(self.root / "classes.npy", classes)
            arguments += ["--classes", str(self.root / "classes.npy")]
        return run("score", *arguments)

    def test_every_value_scores_what_the_reference_says(self) -> None:
        for name in (*CASES, "digits"):
            with self.subTest(name), torch.no_grad():
                config, module = self.reference(name)
                shape = (5, config.height, config.width, config.channels)
                kind = np.uint8 if config.levels <= 256 else np.uint16
                images = self.random.integers(0, config.levels, shape).astype(kind)
                classes = self.random.integers(0, config.classes, 5).astype(np.uint8) if config.classes else None
                labels = None if classes is None else torch.tensor(classes.astype(np.int64))
                expected = -log_probs(module, torch.tensor(images.astype(np.int64)), labels).flatten(1)
                *lines, _ = self.scored(name, images, classes, "--per-value")
                got = torch.tensor([line["value_nll_nats"] for line in lines], dtype=torch.float64)
                worst = (got - expected).abs().max().item()
                print(f"{name}: worst difference {worst:.1e} nats a value")
                self.assertLess(worst, 1e-4)
                for line, nats in zip(lines, expected.sum(1).tolist(), strict=True):
                    self.assertAlmostEqual(line["nll_nats"], nats, delta=1e-4 * expected.shape[1])

    def test_every_sample_is_the_one_the_reference_draws(self) -> None:
        for name in (*CASES, "digits"):
            for tuning in ({}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}):
                with self.subTest(name, **tuning):
                    config, module = self.reference(name)
                    label = 1 if config.classes else None
                    flags = [f"--{key.replace('_', '-')}={value}" for key, value in tuning.items()]
                    flags += [] if label is None else ["--class", str(label)]
                    (report,) = run("sample", *self.endpoint, "--model", name, "--count", "3", "--seed", "7", "--json",
                                    *flags)
                    for image in report["images"]:
                        drawn = sample(module, 7, image["index"], label, **tuning)
                        # Closer to a boundary than the precision of the network, either side is right.
                        if drawn.margin > SAFE_MARGIN:
                            expected = google_crc32c.value(value_bytes(drawn.values, config.levels))
                            self.assertEqual(int(image["crc32c"], 16), expected)
                            self.assertAlmostEqual(image["log_likelihood"], drawn.log_likelihood, delta=1e-3)

    def test_the_held_out_digits_score_what_the_manifest_promises(self) -> None:
        images = np.load(SHIPPED / "digits" / "held_out_images.npy")
        classes = np.load(SHIPPED / "digits" / "held_out_classes.npy")
        config, module = self.reference("digits")
        with torch.no_grad():
            nats = log_probs(module, torch.tensor(images.astype(np.int64)), torch.tensor(classes.astype(np.int64)))
        expected = -nats.mean().item() / np.log(2)
        totals = self.scored("digits", images, classes)[-1]
        print(f"digits: {totals['mean_bits_per_dim']:.6f} bits/dim served, {expected:.6f} in PyTorch")
        self.assertEqual(totals["items"], len(images))
        self.assertAlmostEqual(totals["mean_bits_per_dim"], expected, delta=1e-3)
        manifest = (SHIPPED / "digits" / "model.toml").read_text()
        promised = float(re.search(r"held_out_bits_per_dim = (\S+)", manifest)[1])
        self.assertAlmostEqual(totals["mean_bits_per_dim"], promised, delta=1e-3)


if __name__ == "__main__":
    unittest.main()
