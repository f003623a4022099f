"""Tests of the reference models and laws: `python python/tests/test_reference.py`."""

import itertools
import math
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixeld.draw import draw  # noqa: E402
from pixeld.export import read_package, write_package  # noqa: E402
from pixeld.likelihood import log_probs  # noqa: E402
from pixeld.models.image_transformer import (ImageTransformer, ImageTransformerConfig,  # noqa: E402
                                             visible_pairs)
from pixeld.noise import philox4x32, uniform  # noqa: E402
from pixeld.sample import sample  # noqa: E402


def tiny(query_block: int, norm: str = "post", positions: str = "sinusoidal", height: int = 2, width: int = 2,
         channels: int = 1, levels: int = 2, classes: int = 0) -> tuple[ImageTransformerConfig, ImageTransformer]:
    """A small module in float64 with weights wide enough that it is far from uniform."""
    torch.manual_seed(1)
    config = ImageTransformerConfig(height, width, channels, levels, 2, 8, 2, 12, 6, 10, query_block, positions, norm,
                                    classes=classes)
    module = ImageTransformer(config).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return config, module


class ModelTest(unittest.TestCase):
    """The Image Transformer."""

    def test_visible_pairs_equal_the_blocks_counted_one_by_one(self) -> None:
        for length, block in [(7, 3), (8, 4), (5, 1), (4, 9), (12, 2)]:
            want = [[key <= query and key // block in (query // block, query // block - 1) for key in range(length)]
                    for query in range(length)]
            self.assertEqual(visible_pairs(length, block, torch.device("cpu")).tolist(), want)

    @torch.no_grad()
    def test_a_value_changes_only_what_comes_after_it(self) -> None:
        for norm, positions in itertools.product(("post", "pre"), ("sinusoidal", "learned")):
            _, module = tiny(4, norm, positions, height=2, width=3, channels=3, levels=5)
            values = torch.randint(5, (1, 2, 3, 3))
            before = module(values).flatten(0, 3)
            for rank in range(18):
                changed = values.clone()
                changed.view(-1)[rank] = (changed.view(-1)[rank] + 1) % 5
                same = (module(changed).flatten(0, 3) == before).all(dim=1)
                self.assertTrue(same[: rank + 1].all())
                if rank < 17:
                    self.assertFalse(same[rank + 1])

    @torch.no_grad()
    def test_probabilities_of_all_images_sum_to_one(self) -> None:
        images = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(-1, 2, 2, 1)
        for block, norm in itertools.product((1, 2, 3, 4, 8), ("post", "pre")):
            _, module = tiny(block, norm)
            total = log_probs(module, images).flatten(1).sum(1).exp().sum().item()
            self.assertAlmostEqual(total, 1.0, places=12)

    @torch.no_grad()
    def test_zero_weights_give_the_uniform_distribution(self) -> None:
        for levels in (2, 17, 300):
            _, module = tiny(2, levels=levels)
            for parameter in module.parameters():
                parameter.zero_()
            bits = -log_probs(module, torch.randint(levels, (3, 2, 2, 1))).mean().item() / math.log(2)
            self.assertAlmostEqual(bits, math.log2(levels), places=12)

    @torch.no_grad()
    def test_no_class_is_the_zero_vector(self) -> None:
        _, module = tiny(2, classes=3)
        values = torch.randint(2, (2, 2, 2, 1))
        mixed = module(values, torch.tensor([-1, 1]))
        self.assertTrue(torch.equal(mixed[:1], module(values[:1])))
        self.assertFalse(torch.equal(mixed[1:], module(values[1:])))
        module.classes.weight.zero_()
        self.assertTrue(torch.equal(module(values, torch.tensor([0, 2])), module(values)))

    @torch.no_grad()
    def test_sinusoids_at_known_places(self) -> None:
        config = ImageTransformerConfig(3, 2, 2, 2, 1, 8, 1, 8, 8, 8, 4)
        code = ImageTransformer(config).positions(torch.zeros(1, dtype=torch.float64))
        row, column = 2, 3  # of 3 rows and 2 * 2 columns
        want = [math.sin(row), math.sin(row * 1e-4), math.cos(row), math.cos(row * 1e-4),
                math.sin(column), math.sin(column * 1e-4), math.cos(column), math.cos(column * 1e-4)]
        np.testing.assert_allclose(code[row * 4 + column].numpy(), want, rtol=1e-12)

    @torch.no_grad()
    def test_packages_come_back_as_written(self) -> None:
        for weights in ("weights.pt", "weights.safetensors"):
            for norm, positions, classes in (("pre", "learned", 3), ("post", "sinusoidal", 0)):
                config, module = tiny(3, norm, positions, classes=classes)
                with tempfile.TemporaryDirectory() as directory:
                    write_package(Path(directory), module, config, "tiny", 'a "test"', weights)
                    module.float()  # as the weights are written
                    read_config, read = read_package(Path(directory))
                    values = torch.randint(2, (2, 2, 2, 1))
                    self.assertEqual(read_config, config)
                    self.assertTrue(torch.equal(read(values), module(values)))
                    if weights.endswith(".pt"):
                        archive = (Path(directory) / weights)
                        self.assertTrue(torch.equal(torch.jit.load(str(archive))(values), module(values)))
                        self.assertNotIn(str(Path(__file__).parent.parent).encode(), archive.read_bytes())

    @torch.no_grad()
    def test_sampling_follows_the_model(self) -> None:
        _, module = tiny(3, levels=3)
        drawn = sample(module, seed=5, image=2)
        values = torch.tensor(drawn.values).view(1, 2, 2, 1)
        self.assertAlmostEqual(drawn.log_likelihood, log_probs(module, values).sum().item(), places=12)
        counts = np.zeros(16)
        _, module = tiny(3)
        for image in range(400):
            counts[int("".join(map(str, sample(module, 0, image).values)), 2)] += 1
        images = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(-1, 2, 2, 1)
        want = log_probs(module, images).flatten(1).sum(1).exp().numpy() * 400
        self.assertLess(((counts - want) ** 2 / want).sum(), 37.7)  # chi-squared, 15 degrees of freedom, p = 0.001


class LawTest(unittest.TestCase):
    """Noise, drawing, checksum."""

    def test_philox_gives_the_published_vectors(self) -> None:
        ones = 0xFFFFFFFF
        pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
        for counter, key, want in [
                ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
                ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
                (pi[:4], pi[4:], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])]:
            self.assertEqual(philox4x32(counter, key).tolist(), want)

    def test_uniform_takes_its_words_from_the_stated_places(self) -> None:
        seed, image, rank = 0x0123456789ABCDEF, 6, 9
        first, second = philox4x32([rank, image, 0, 1], [0x89ABCDEF, 0x01234567]).tolist()[:2]
        want = (((first << 32 | second) >> 12) + 0.5) / 2**52
        self.assertEqual(float(uniform(seed, image, rank)), want)
        many = uniform(seed, [[6], [7]], range(10))
        self.assertEqual(many.shape, (2, 10))
        self.assertEqual(many[0, 9], want)
        numbers = uniform(1, 0, range(20000))
        self.assertAlmostEqual(float(numbers.mean()), 0.5, delta=0.01)
        self.assertTrue((numbers > 0).all() and (numbers < 1).all())

    def test_draw_inverts_the_cumulative_distribution(self) -> None:
        logits = np.log([0.1, 0.2, 0.3, 0.4])
        for u, want in [(0.05, 0), (0.15, 1), (0.29, 1), (0.31, 2), (0.61, 3), (0.999, 3)]:
            drawn = draw(logits + 50.0, u)
            self.assertEqual(drawn.value, want)
            self.assertAlmostEqual(drawn.log_prob, logits[want], places=12)
        self.assertAlmostEqual(draw(logits, 0.15).margin, 0.05, places=12)
        # Half the temperature squares the weights: 1, 4, 9, 16 of 30; the log-probability stays the model's own.
        drawn = draw(logits, 0.4, temperature=0.5)
        self.assertEqual(drawn.value, 2)
        self.assertAlmostEqual(drawn.log_prob, math.log(0.3), places=12)

    def test_truncation_and_its_ties(self) -> None:
        logits = [1.0, 2.0, 2.0, 0.0, 2.0]
        self.assertEqual({draw(logits, u, top_k=2).value for u in np.linspace(0.01, 0.99, 50)}, {1, 2})
        self.assertEqual(draw(logits, 0.99, top_k=1).value, 1)
        self.assertEqual(draw(logits, 0.3, temperature=0).value, 1)
        flat = [0.0] * 4
        self.assertEqual({draw(flat, u, top_p=0.5).value for u in np.linspace(0.01, 0.99, 50)}, {0, 1})
        self.assertEqual({draw(flat, u, top_p=0.51).value for u in np.linspace(0.01, 0.99, 50)}, {0, 1, 2})
        # top_p counts the mass that top_k has left: three equal values, two of which reach 0.6.
        self.assertEqual({draw(flat, u, top_k=3, top_p=0.6).value for u in np.linspace(0.01, 0.99, 50)}, {0, 1})
        self.assertEqual({draw(flat, u, top_p=1.0).value for u in np.linspace(0.01, 0.99, 50)}, {0, 1, 2, 3})


if __name__ == "__main__":
    unittest.main()
