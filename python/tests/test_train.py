"""Tests of training, sample grids and export: `python python/tests/test_train.py`."""

import math
import pickle
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import pixeld.models  # noqa: E402
from pixeld.export import export_checkpoint, goldens, read_package, write_package  # noqa: E402
from pixeld.likelihood import log_probs  # noqa: E402
from pixeld.models import DEFAULTS, FAMILIES, build, configure  # noqa: E402
from pixeld.sample import sample, sample_many  # noqa: E402
from pixeld.sheet import write_sheet  # noqa: E402
from pixeld.train import Images, Settings, Trainer, fit, load_images, split  # noqa: E402
from pixeld.train.__main__ import device_of, parse, run  # noqa: E402

SIZES: dict[str, Any] = dict(height=4, width=4, channels=1, levels=5, classes=3)
TINY: dict[str, dict[str, Any]] = {
    "gated_pixel_cnn": dict(layers=2, stack_width=8, head_widths=(), **SIZES),
    "pixel_cnn_pp": dict(stream_width=4, components=2, **SIZES),
    "image_transformer": dict(layers=1, model_width=8, heads=2, key_width=8, value_width=8, feed_forward_width=8,
                              **SIZES),
}


def images(count: int = 50) -> Images:
    """Stripes, whose class says how wide, with some noise."""
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, count)
    stripes = (np.arange(16).reshape(4, 4, 1) // (classes + 1)[:, None, None, None]) % 2 * 3
    return Images(torch.from_numpy((stripes + random.integers(0, 2, stripes.shape)).astype(np.uint8)),
                  torch.from_numpy(classes))


class TrainerTest(unittest.TestCase):
    """Steps, and taking them up."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name)
        torch.set_num_threads(1)

    def trainer(self, family: str = "gated_pixel_cnn", seed: int = 0, **rest: Any) -> Trainer:
        torch.manual_seed(seed)
        settings = Settings(**{"epochs": 3, "batch": 8, "shift": 0.5, "weight_norm": family == "pixel_cnn_pp", **rest})
        return Trainer(build(family, dropout=0.2, **TINY[family]), images(), settings)

    def test_a_run_that_was_cut_ends_with_the_same_weights(self) -> None:
        for family in TINY:
            whole = self.trainer(family)
            fit(whole, images(9), say=str)
            for cut in (1, 6, 10, 17):  # at the end of an epoch and within one
                first = self.trainer(family)
                while first.taken < cut:
                    first.step()
                folder = self.root / f"{family}{cut}"
                folder.mkdir()
                first.save(folder / "checkpoint.pt", images(9), seconds=1.0, validation=None, judged=9)
                second = self.trainer(family, seed=5)  # nothing of how it begins may stay
                validation = fit(second, images(9), folder, report=4, resume=True, say=str)
                self.assertEqual(second.taken, 18)
                for kind in ("module", "average"):
                    expected = getattr(whole, kind).state_dict()
                    for name, tensor in getattr(second, kind).state_dict().items():
                        self.assertTrue(torch.equal(tensor, expected[name]), f"{family} cut at {cut}: {kind} {name}")
                self.assertIsNotNone(validation)

    def test_a_checkpoint_is_of_one_run(self) -> None:
        fit(self.trainer(), images(9), self.root, say=str)
        with self.assertRaisesRegex(ValueError, "is there already"):
            fit(self.trainer(), images(9), self.root, say=str)
        with self.assertRaisesRegex(ValueError, "begun with rate = 0.003, not 0.1"):
            fit(self.trainer(rate=0.1), images(9), self.root, resume=True, say=str)
        with self.assertRaisesRegex(ValueError, "begun with layers = "):
            fit(self.trainer("image_transformer"), images(9), self.root, resume=True, say=str)

    def test_training_learns_and_its_average_follows(self) -> None:
        trainer = self.trainer(epochs=20, shift=0.0, class_dropout=0.0)
        first, last = fit_losses(trainer)
        self.assertLess(last, 0.7 * first)
        self.assertLess(bits(trainer.averaged()), 0.7 * math.log2(5))
        # The average of weights w_1 .. w_k, each keeping min(0.998, k / (k + 10)) of what was there.
        trainer = self.trainer(average=0.5)
        name, weight = next(iter(trainer.module.named_parameters()))
        expected = weight.detach().clone()
        for step in range(1, 16):
            trainer.step()
            keep = min(0.5, step / (step + 10))
            expected = keep * expected + (1 - keep) * weight.detach()
        torch.testing.assert_close(dict(trainer.average.named_parameters())[name], expected)

    def test_the_rate_rises_and_falls_and_gradients_are_clipped(self) -> None:
        trainer = self.trainer(epochs=50, rate=0.5)  # of 300 steps, 30 to warm up
        self.assertAlmostEqual(trainer.factor(0), 1 / 30)
        self.assertAlmostEqual(trainer.factor(150), 0.5)
        self.assertLess(trainer.factor(299), 1e-4)
        trainer.step()
        self.assertAlmostEqual(trainer.optimizer.param_groups[0]["lr"], 0.5 / 30)
        trainer = self.trainer(clip=1e-3)
        trainer.step()
        norm = torch.stack([p.grad.norm() for p in trainer.module.parameters() if p.grad is not None]).norm()
        self.assertAlmostEqual(norm.item(), 1e-3, delta=1e-5)

    def test_what_does_not_fit_is_refused(self) -> None:
        module = build("gated_pixel_cnn", **TINY["gated_pixel_cnn"])
        for given, asked, words in ((images(), dict(batch=51), "at most the number of images, 50"),
                                    (Images(images().values[:, :3], None), {}, r"\[3, 4, 1\].*\[4, 4, 1\]"),
                                    (Images(images().values, None), {}, "takes classes")):
            with self.assertRaisesRegex(ValueError, words):
                Trainer(module, given, Settings(epochs=1, **asked))
        with self.assertRaisesRegex(ValueError, "epochs must be at least 1, got 0"):
            Settings(epochs=0)
        with self.assertRaisesRegex(ValueError, "family must be one of"):
            configure("perceptron", **SIZES)
        with self.assertRaisesRegex(ValueError, "gated_pixel_cnn has no heads; it has .*layers"):
            configure("gated_pixel_cnn", heads=3, **SIZES)
        with self.assertRaisesRegex(ValueError, "gated_pixel_cnn needs height, levels, width"):
            configure("gated_pixel_cnn", channels=1)

    def test_every_family_is_built_by_name_and_goes_with_its_defaults(self) -> None:
        for family in DEFAULTS:
            module = build(family, **SIZES)
            self.assertIs(type(module), FAMILIES[family][1])
            with torch.no_grad():
                nats = log_probs(module.eval(), images(2).values.long(), torch.tensor([0, -1]))
            self.assertEqual(nats.shape, (2, 4, 4, 1))

    def test_the_examples_of_the_modules_hold(self) -> None:
        for family, (_, kind) in FAMILIES.items():
            text = sys.modules[kind.__module__].__doc__
            if family not in DEFAULTS:
                continue
            example = text[text.index("    model = build("):text.index("Manifest:")]
            names: dict[str, Any] = {"build": build, "torch": torch}
            exec("\n".join(line.strip() for line in example.splitlines()), names)
            pixel = 5 * (1 + 6 + 3) if family == "pixel_cnn_pp" else None  # of five components
            self.assertEqual(names["parameters"].shape, (2, 8, 8, pixel) if pixel else (2, 8, 8, 3, 32), family)

    def test_the_command_trains_exports_and_goes_on(self) -> None:
        given = images()
        np.save(self.root / "images.npy", given.values.numpy())
        np.save(self.root / "classes.npy", given.classes.numpy())
        command = ["--images", str(self.root / "images.npy"), "--classes", str(self.root / "classes.npy"),
                   "--levels", "5", "--family", "image_transformer", "--batch", "8", "--epochs", "2",
                   "--out", str(self.root / "run"), "--device", "cpu"]
        for size in ("layers=1", "model_width=8", "heads=2", "key_width=8", "value_width=8", 'norm="pre"'):
            command += ["--set", size]
        run(parse(command))
        run(parse([*command, "--resume"]))
        with Image.open(self.root / "run" / "samples.png") as sheet:
            self.assertEqual(sheet.size, (8 * 72 + 8, 3 * 72 + 8))
        export_checkpoint(self.root / "run" / "checkpoint.pt", self.root / "mine", "Stripes")
        config, module = read_package(self.root / "mine")
        self.assertEqual((config.norm, config.layers, config.classes), ("pre", 1, 3))
        saved = torch.load(self.root / "run" / "checkpoint.pt", weights_only=True)["average"]
        for name, tensor in module.state_dict().items():
            self.assertTrue(torch.equal(tensor, saved[name]), name)
        self.assertIn("held_out_images = 5", (self.root / "mine" / "model.toml").read_text())
        with self.assertRaisesRegex(FileExistsError, "mine is there already"):
            export_checkpoint(self.root / "run" / "checkpoint.pt", self.root / "mine")
        for name, weights, words in (("Mine", "weights.pt", "name must be"), ("mine", "weights.bin", "weights must be"),
                                     ("mine", "../weights.pt", "weights must be")):
            with self.assertRaisesRegex(ValueError, words):
                write_package(self.root / "other", module, config, name, "", weights)
        self.assertFalse((self.root / "other").exists())


    def test_export_neither_draws_with_dropout_nor_changes_the_module(self) -> None:
        module = build("gated_pixel_cnn", dropout=0.5, **TINY["gated_pixel_cnn"])
        module.get_submodule("layers.0").eval()  # a part that somebody has frozen
        given, modes = images(3), [part.training for part in module.modules()]
        found = goldens(module, *given, count=2)
        self.assertEqual(found, goldens(module.double(), *given, count=2), "the same every time")
        for name in ("weights.pt", "weights.safetensors"):
            write_package(self.root / name, module, module.config, "mine", "", name, golden=found)
        self.assertEqual([part.training for part in module.modules()], modes)
        self.assertFalse(torch.jit.load(str(self.root / "weights.pt" / "weights.pt")).training)
        self.assertEqual(next(module.parameters()).dtype, torch.float64)
        module.eval()
        self.assertEqual(found, goldens(module, *given, count=2), "those of the module in eval mode")

    def test_images_of_more_channels_than_samples_can_show_are_refused_before_training(self) -> None:
        np.save(self.root / "nchw.npy", np.zeros((9, 3, 4, 16), np.uint8))
        words = r"channels must be 1 to 4.*, got 16: images are \[n, height, width, channels\]"
        with self.assertRaisesRegex(ValueError, words):
            run(parse(["--images", str(self.root / "nchw.npy"), "--out", str(self.root / "run"), "--batch", "2"]))
        given = Images(torch.zeros(9, 3, 4, 5, dtype=torch.uint8), None)
        sizes = TINY["gated_pixel_cnn"] | dict(height=3, width=4, channels=5, classes=0, stack_width=10)
        trainer = Trainer(build("gated_pixel_cnn", **sizes), given, Settings(epochs=1, batch=2))
        with self.assertRaisesRegex(ValueError, "got 5"):
            fit(trainer, out=self.root / "run", say=str)
        self.assertEqual(trainer.taken, 0)
        self.assertFalse((self.root / "run").exists())
        fit(trainer, say=str)  # nothing is drawn, and nothing stands in the way

    def test_what_is_no_checkpoint_is_refused_in_one_line(self) -> None:
        module = build("gated_pixel_cnn", **TINY["gated_pixel_cnn"])
        torch.jit.save(torch.jit.script(module), str(self.root / "script.pt"))
        torch.save(module.state_dict(), self.root / "state.pt")
        torch.save([1, 2], self.root / "list.pt")
        (self.root / "text.pt").write_text("no checkpoint at all")
        (self.root / "empty.pt").write_bytes(b"")
        (self.root / "pickle.pt").write_bytes(pickle.dumps(Path("/")))
        (self.root / "cut.pt").write_bytes((self.root / "state.pt").read_bytes()[:1000])
        for name in ("script", "state", "list", "text", "empty", "pickle", "cut"):
            with self.assertRaisesRegex(ValueError, f"{name}.pt is no checkpoint of pixeld.train"):
                export_checkpoint(self.root / f"{name}.pt", self.root / "mine")
        for name in ("text", "script"):
            command = [sys.executable, "-m", "pixeld.export", str(self.root / f"{name}.pt"), str(self.root / "mine")]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn("is no checkpoint of pixeld.train", done.stderr)

    def test_the_families_are_exported_by_name(self) -> None:
        for name in pixeld.models.__all__:
            self.assertTrue(hasattr(pixeld.models, name), name)
        for kinds in FAMILIES.values():
            for kind in kinds:
                self.assertIn(kind.__name__, pixeld.models.__all__)


def bits(module: torch.nn.Module) -> float:
    """Bits/dim of the images trained on."""
    with torch.no_grad():
        nats = log_probs(module, images().values.long(), images().classes)
    return -nats.mean().item() / math.log(2)


def fit_losses(trainer: Trainer) -> tuple[float, float]:
    """The loss of the first step and of the last."""
    losses = []
    while not trainer.done:
        losses.append(trainer.step().item())
    return losses[0], losses[-1]


class SampleTest(unittest.TestCase):
    """Many samples at once."""

    def setUp(self) -> None:
        torch.set_num_threads(1)

    def test_they_are_those_drawn_one_by_one(self) -> None:
        blocks = dict(attention="local_2d", query_block=None, block_height=2, block_width=2, block_unit="pixels",
                      memory_height=2, memory_width=2, shift="block_raster")
        cases: dict[str, tuple[str, dict[str, Any]]] = {
            **{family: (family, sizes) for family, sizes in TINY.items()},
            "blocks": ("image_transformer", TINY["image_transformer"] | blocks),
            "colours": ("pixel_cnn_pp", TINY["pixel_cnn_pp"] | dict(channels=3)),
            "low": ("gated_pixel_cnn", TINY["gated_pixel_cnn"] | dict(low_height=2, low_width=2, condition_maps=4)),
        }
        for name, (family, sizes) in cases.items():
            torch.manual_seed(1)
            module = build(family, **sizes).eval()
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.4)
            low = torch.randint(5, (2, 2, 2, 1)) if "low_height" in sizes else None
            labels = torch.tensor([2, -1])
            many = sample_many(module, 9, 2, labels, low)
            for index, label in enumerate(labels.tolist()):
                alone = sample(module, 9, index, label, low=None if low is None else low[index])
                self.assertGreater(alone.margin, 1e-6, "another seed is needed")
                self.assertEqual(many[index].flatten().tolist(), alone.values, f"{name} {index}")

    def test_a_sheet_shows_every_image_where_it_belongs(self) -> None:
        levels = np.arange(6 * 32 * 32 * 3).reshape(6, 32, 32, 3) % 32
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "sheet.png"
            write_sheet(path, levels, 32, columns=4)
            shown = np.asarray(Image.open(path))
        self.assertEqual(shown.shape, (2 * 65 + 1, 4 * 65 + 1, 3))
        np.testing.assert_array_equal(shown[66:130:2, 66:130:2], np.round(levels[5] * 255 / 31))
        self.assertTrue((shown[66:130, 131:195] == 255).all(), "nothing behind the last")


class DataTest(unittest.TestCase):
    """Reading images."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name)

    def test_numpy_files_are_taken_as_they_are(self) -> None:
        np.save(self.root / "i.npy", np.arange(24, dtype=np.uint16).reshape(2, 3, 4))
        np.save(self.root / "c.npy", np.array([1, 0]))
        read = load_images(self.root / "i.npy", self.root / "c.npy", levels=24)
        self.assertEqual((read.values.shape, read.values.max().item()), ((2, 3, 4, 1), 23))
        self.assertEqual(read.classes.tolist(), [1, 0])
        np.save(self.root / "bad.npy", np.zeros(3, np.int64))
        np.save(self.root / "float.npy", np.zeros((2, 3, 4)))
        for arguments, words in (((self.root / "i.npy", None, 23), "values of 0..22, got 0..23"),
                                 ((self.root / "i.npy", self.root / "bad.npy", 24), "each of 2 images"),
                                 ((self.root / "float.npy", None, 24), r"integers \[n, H, W, C\], got float64")):
            with self.assertRaisesRegex(ValueError, words):
                load_images(*arguments)

    def test_what_holds_no_plain_numbers_is_refused_with_a_way_out(self) -> None:
        np.save(self.root / "list.npy", np.array([np.zeros((2, 2)), np.zeros((3, 2))], dtype=object))
        (self.root / "text.npy").write_text("no array at all")
        np.savez(self.root / "several.npz", a=np.zeros(3))
        for name, words in (("list.npy", r"no .npy file of numbers .*np\.stack\(images\)"),
                            ("text.npy", "no .npy file of numbers"), ("several.npz", "holds several arrays")):
            with self.assertRaisesRegex(ValueError, words):
                load_images(self.root / name)

    def test_png_files_that_would_lose_levels_are_refused(self) -> None:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        def png(depth: int, kind: int, line: bytes) -> bytes:
            header = struct.pack(">IIBBBBB", 2, 2, depth, kind, 0, 0, 0)
            return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                    + chunk(b"IDAT", zlib.compress(2 * (b"\0" + line))) + chunk(b"IEND", b""))

        folder = self.root / "deep"
        folder.mkdir()
        for depth, kind, line in ((16, 0, bytes(4)), (16, 2, bytes(12)), (1, 0, b"\x40")):
            (folder / "i.png").write_bytes(png(depth, kind, line))
            with Image.open(folder / "i.png") as opened:
                opened.load()  # it is a file that Pillow reads
            with self.assertRaisesRegex(ValueError, f"i.png has {depth} bits? a channel"):
                load_images(folder)
        (folder / "i.png").write_bytes(png(8, 0, b"\x40\x80"))
        self.assertEqual(load_images(folder).values.flatten().tolist(), [64, 128, 64, 128])

    def test_a_device_that_is_not_there_is_named(self) -> None:
        absent = f"cuda:{torch.cuda.device_count()}"
        for name, words in ((absent, f"--device {absent}: PyTorch sees"), ("cdua", "must be cpu or cuda"),
                            ("meta", "must be cpu or cuda")):
            with self.assertRaisesRegex(ValueError, words):
                device_of(name)
        self.assertEqual(device_of("cpu"), torch.device("cpu"))

    def test_folders_of_png_files_are_classes(self) -> None:
        for folder, shade in (("cats", 255), ("ants", 0), ("bees", 130)):
            (self.root / folder).mkdir()
            for index in range(2):
                Image.new("RGB", (5, 4), (shade, 0, 16 * index)).save(self.root / folder / f"{index}.png")
        read = load_images(self.root, levels=16)
        self.assertEqual(read.values.shape, (6, 4, 5, 3))
        self.assertEqual(read.classes.tolist(), [0, 0, 1, 1, 2, 2])
        self.assertEqual(read.values[:, 0, 0].tolist(),
                         [[0, 0, 0], [0, 0, 1], [8, 0, 0], [8, 0, 1], [15, 0, 0], [15, 0, 1]])
        flat = load_images(self.root / "cats")
        self.assertEqual((len(flat.values), flat.classes, flat.values[0, 0, 0].tolist()), (2, None, [255, 0, 0]))
        Image.new("L", (5, 4)).save(self.root / "cats" / "2.png")
        with self.assertRaisesRegex(ValueError, "2.png is .4, 5, 1., and .*0.png is .4, 5, 3."):
            load_images(self.root)
        with self.assertRaisesRegex(ValueError, "holds no PNG"):
            (self.root / "none").mkdir()
            load_images(self.root / "none")

    def test_a_split_holds_out_a_share_and_loses_nothing(self) -> None:
        given = Images(torch.arange(40).view(40, 1, 1, 1), torch.arange(40))
        train, judge = split(given, 0.1, 3)
        self.assertEqual((len(train.values), len(judge.values)), (36, 4))
        self.assertEqual(sorted(torch.cat([train.classes, judge.classes]).tolist()), list(range(40)))
        self.assertEqual(split(given, 0.1, 3)[1].classes.tolist(), judge.classes.tolist())
        with self.assertRaisesRegex(ValueError, "leaves none"):
            split(given, 1.0, 3)


if __name__ == "__main__":
    unittest.main()
