"""Tests of every family by the laws that all must obey: `python python/tests/test_families.py`."""

import itertools
import math
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import pixeld.sample  # noqa: E402
from pixeld import mixture  # noqa: E402
from pixeld.config import ModelConfig  # noqa: E402
from pixeld.export import read_package, write_package  # noqa: E402
from pixeld.layers import MaskedConv2d, groups  # noqa: E402
from pixeld.likelihood import log_probs  # noqa: E402
from pixeld.models import FAMILIES  # noqa: E402
from pixeld.models.image_transformer import visible_pairs_2d  # noqa: E402
from pixeld.models.pixel_rnn import lstm_cell  # noqa: E402
from pixeld.order import cells_by_rank  # noqa: E402
from pixeld.sample import sample, sample_ahead  # noqa: E402

TRANSFORMER = dict(layers=2, model_width=8, heads=2, key_width=12, value_width=6, feed_forward_width=10)
MASKED = dict(layers=2, input_kernel=3, head_widths=[31, 22], group_scheme="mod", input_scaling="symmetric")
RNN = dict(MASKED, hidden_width=10, residual=True, skip=True)
BLOCKS = dict(attention="local_2d", block_height=2, block_width=2, block_unit="pixels", memory_height=2,
              memory_width=2, shift="block_raster")
# Every family with the choices that change who sees whom; sizes of the image come from the tests.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("image_transformer", dict(TRANSFORMER, query_block=4)),
    "transformer ordinal": ("image_transformer", dict(TRANSFORMER, query_block=3, input="ordinal_relu", components=2)),
    "transformer 2-D": ("image_transformer", dict(TRANSFORMER, **BLOCKS, norm="pre", positions="learned")),
    "transformer 2-D per block": ("image_transformer", dict(TRANSFORMER, **BLOCKS | {"shift": "per_block"})),
    "transformer 2-D mixture": ("image_transformer", dict(TRANSFORMER, **BLOCKS, input="ordinal", components=2)),
    "image_gpt": ("image_gpt", dict(layers=2, model_width=8, heads=2, feed_forward_width=12)),
    "image_gpt by layer": ("image_gpt", dict(layers=2, model_width=6, heads=1, feed_forward_width=9, activation="relu",
                                             score_divisor=1.5, scale_by_layer=True)),
    "row_lstm": ("row_lstm", dict(RNN, kernel_width=3, initial_state="learned")),
    "row_lstm contiguous": ("row_lstm", dict(RNN, kernel_width=1, initial_state="zero", group_scheme="contiguous",
                                             residual=False)),
    "diagonal zero": ("diagonal_bilstm", dict(RNN, pad_state="zero")),
    "diagonal learned": ("diagonal_bilstm", dict(RNN, pad_state="learned", group_scheme="contiguous", skip=False)),
    "diagonal evolve": ("diagonal_bilstm", dict(RNN, pad_state="evolve", input_scaling="unit")),
    "pixel_cnn": ("pixel_cnn", dict(RNN, kernel_size=3)),
    "pixel_cnn contiguous": ("pixel_cnn", dict(RNN, kernel_size=3, group_scheme="contiguous", hidden_width=8)),
    "gated": ("gated_pixel_cnn", dict(MASKED, stack_width=16, kernel_size=3)),
    "gated contiguous": ("gated_pixel_cnn", dict(MASKED, stack_width=8, kernel_size=3, group_scheme="contiguous")),
    "pixel_cnn_pp": ("pixel_cnn_pp", dict(stream_width=5, blocks=1, components=2)),
}


def low_keys(name: str) -> dict[str, int] | None:
    """What makes one of the CASES take a low-resolution image of 2 x 2; None if its family cannot."""
    own = {"image_transformer": {"encoder_layers": 1}, "pixel_cnn_pp": None, "image_gpt": None}
    keys = own.get(CASES[name][0], {"condition_maps": 4})
    return None if keys is None else dict(keys, low_height=2, low_width=2)


def class_keys(name: str) -> dict[str, int]:
    """What makes one of the CASES take three classes; nothing if its family cannot."""
    return {} if CASES[name][0] == "image_gpt" else {"classes": 3}


def build(name: str, *sizes: int, **more: Any) -> tuple[ModelConfig, nn.Module]:
    """A module of one of the CASES in float64, with weights wide enough that it is far from uniform."""
    family, choices = CASES[name]
    make_config, make_module = FAMILIES[family]
    torch.manual_seed(1)
    config = make_config(*sizes, **choices | more)
    module = make_module(config).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return config, module


def influence(config: ModelConfig, module: nn.Module) -> Tensor:
    """Which value changes the parameters of which, by a single bit, in any of a few images: bool [N changed, N seeing].

    Both sides are ranks. The channels of a pixel share one row of parameters of a mixture.
    """
    count = config.height * config.width * config.channels
    torch.manual_seed(2)
    seen = torch.zeros(count, count, dtype=torch.bool)
    for _ in range(4):  # a ReLU may hide a change in one image
        values = torch.randint(config.levels, (1, config.height, config.width, config.channels)).repeat(count, 1, 1, 1)
        changed = (values.flatten(1) + torch.eye(count, dtype=torch.int64)) % config.levels
        differs = (module(changed.view_as(values)) != module(values)).any(dim=-1)
        if config.components is not None:
            differs = differs[..., None].repeat(1, 1, 1, config.channels)
        seen |= differs.flatten(1)
    by_rank = cells_by_rank(config.height, config.width * config.channels, *config.value_block)
    return seen[by_rank][:, by_rank]


def every_image(config: ModelConfig) -> Tensor:
    """All images of a tiny alphabet."""
    count = config.height * config.width * config.channels
    index = torch.arange(config.levels**count)
    digits = torch.stack([index // config.levels**place % config.levels for place in range(count)], dim=1)
    return digits.view(-1, config.height, config.width, config.channels)


class FamilyTest(unittest.TestCase):
    """What holds for every family."""

    @torch.no_grad()
    def test_a_value_changes_only_what_comes_after_it(self) -> None:
        for name, channels in itertools.product(CASES, (1, 2, 3)):
            with self.subTest(name, channels=channels):
                height = 4 if "pp" in name or "2-D" in name else 5
                config, module = build(name, height, 4, channels, 5)
                seen = influence(config, module)
                unit = channels if config.components is not None else 1
                rank = torch.arange(len(seen)) // unit
                self.assertFalse(seen[rank[:, None] >= rank[None, :]].any())
                # All of them look at the rank before, except across the rows and blocks that some do not link.
                linked = seen[torch.arange(len(seen) - unit), torch.arange(unit, len(seen))]
                self.assertGreater(linked.double().mean(), 0.5)

    @torch.no_grad()
    def test_probabilities_of_all_images_sum_to_one(self) -> None:
        for name in CASES:
            shapes = [(4, 4, 1, 2)] if "pp" in name else [(2, 2, 1, 3), (2, 2, 2, 2)]
            shapes += [] if "pp" in name or "2-D" in name else [(1, 2, 3, 2), (3, 2, 1, 2)]
            for shape in shapes:
                with self.subTest(name, shape=shape):
                    config, module = build(name, *shape)
                    images = every_image(config).split(8192)
                    total = sum(log_probs(module, part).flatten(1).sum(1).exp().sum().item() for part in images)
                    self.assertAlmostEqual(total, 1.0, places=10)

    @torch.no_grad()
    def test_zero_weights_give_the_uniform_distribution(self) -> None:
        for name, levels in itertools.product(CASES, (2, 17, 300)):
            config, module = build(name, 4, 4, 3, levels)
            if config.components is None:
                for parameter in module.parameters():
                    parameter.zero_()
                bits = -log_probs(module, torch.randint(levels, (2, 4, 4, 3))).mean().item() / math.log(2)
                self.assertAlmostEqual(bits, math.log2(levels), places=12)

    @torch.no_grad()
    def test_conditions_reach_every_value_and_no_class_is_zero(self) -> None:
        values = torch.randint(5, (6, 4, 4, 3))
        first, second, absent = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 2, 0, 2, 0, 1], [-1] * 6])
        for name in CASES:
            with self.subTest(name):
                if not class_keys(name):
                    continue
                config, module = build(name, 4, 4, 3, 5, classes=3)
                differs = module(values, first) != module(values, second)
                self.assertTrue(differs.any(dim=-1).any(dim=0).all())
                self.assertTrue(torch.equal(module(values, absent), module(values)))
                for part, parameter in module.named_parameters():
                    if part.endswith("classes.weight"):
                        parameter.zero_()
                self.assertTrue(torch.equal(module(values, first), module(values)))
                extra = low_keys(name)
                if extra is None:
                    continue
                # Each low-resolution value reaches the first value and the last one.
                config, module = build(name, 4, 4, 3, 5, **extra)
                low = torch.randint(5, (6, 2, 2, 3))
                for place in range(12):
                    changed = low.flatten(1).clone()
                    changed[:, place] = (changed[:, place] + 1) % 5
                    differs = (module(values, None, changed.view_as(low)) != module(values, None, low)).any(dim=-1)
                    self.assertTrue(differs[:, 0, 0].any() and differs[:, 3, 3].any())

    @torch.no_grad()
    def test_packages_come_back_as_written_and_compile(self) -> None:
        for name, weights in zip(CASES, itertools.cycle(("weights.pt", "weights.safetensors"))):
            extra = low_keys(name) or {}
            with self.subTest(name, weights=weights), tempfile.TemporaryDirectory() as directory:
                classes = class_keys(name)
                config, module = build(name, 4, 4, 2, 5, **classes, **extra)
                write_package(Path(directory), module, config, "tiny", "test", weights)
                module.float()  # as the weights are written
                read_config, read = read_package(Path(directory))
                inputs = (torch.randint(5, (2, 4, 4, 2)), torch.tensor([1, -1]) if classes else None,
                          torch.randint(5, (2, 2, 2, 2)) if extra else None)
                self.assertEqual(read_config, config)
                self.assertTrue(torch.equal(read(*inputs), module(*inputs)))
                if weights.endswith(".pt"):
                    archive = torch.jit.load(str(Path(directory) / weights))
                    self.assertTrue(torch.equal(archive(*inputs), module(*inputs)))

    def test_a_palette_is_written_and_comes_back(self) -> None:
        colours = [[0, 0.5, 255], [1, 2, 3.25]]
        config, module = build("image_gpt", 2, 2, 1, 2, palette=colours)
        with tempfile.TemporaryDirectory() as directory:
            write_package(Path(directory), module, config, "tiny", "test")
            self.assertIn("palette = [[0, 0.5, 255], [1, 2, 3.25]]", (Path(directory) / "model.toml").read_text())
            self.assertEqual(read_package(Path(directory))[0], config)
        for levels, channels in ((3, 1), (2, 3)):
            with self.assertRaises(ValueError):
                build("image_gpt", 2, 2, channels, levels, palette=colours)

    @torch.no_grad()
    def test_sampling_follows_the_model(self) -> None:
        for name in CASES:
            with self.subTest(name):
                config, module = build(name, 4, 4, 2, 3)
                drawn = sample(module, seed=5, image=2)
                values = torch.tensor(drawn.values).view(1, 4, 4, 2)
                self.assertAlmostEqual(drawn.log_likelihood, log_probs(module, values).sum().item(), places=10)

    def test_drawing_ahead_draws_the_same(self) -> None:
        for name, ahead in itertools.product(CASES, (1, 7, 256)):
            extra = low_keys(name) or {}
            with self.subTest(name, ahead=ahead), unittest.mock.patch.object(pixeld.sample, "AHEAD", ahead):
                classes = class_keys(name)
                _, module = build(name, 4, 4, 2, 3, **classes, **extra)
                request = dict(seed=5, image=2, label=1 if classes else None, low=torch.randint(3, (2, 2, 2)) if extra else None)
                slow, fast = sample(module, **request), sample_ahead(module, **request)
                self.assertEqual(fast.values, slow.values)
                self.assertAlmostEqual(fast.log_likelihood, slow.log_likelihood, places=10)
                self.assertAlmostEqual(fast.margin, slow.margin, places=10)


class VisibilityTest(unittest.TestCase):
    """What a model does and does not see of the past."""

    @torch.no_grad()
    def test_the_diagonal_lstm_sees_everything_before_but_the_corner(self) -> None:
        for pad, channels, kernel in itertools.product(("zero", "learned", "evolve"), (1, 3), (3, 7)):
            config, module = build(f"diagonal {pad}", 5, 4, channels, 5, residual=True, input_kernel=kernel)
            seen = influence(config, module)
            rank = torch.arange(len(seen))
            row, column = rank // (4 * channels), rank // channels % 4
            # Mask A hides the last value of a pixel from its own place in the stream: that of the last pixel of a row
            # comes in by the row below, at the columns that the first convolution reaches.
            last = rank % (4 * channels) == 4 * channels - 1
            hidden = last[:, None] & (row[None, :] == row[:, None] + 1) & (column < 3 - kernel // 2)[None, :]
            self.assertTrue(torch.equal(seen, torch.ones_like(seen).triu(1) & ~hidden))

    @torch.no_grad()
    def test_the_gated_model_sees_a_rectangle_without_a_blind_spot(self) -> None:
        # Three layers of 3 x 3, one row down at the link: 4 rows above, 3 columns to either side; left in the own row.
        config, module = build("gated", 7, 9, 1, 5, layers=3)
        seen = influence(config, module).view(7, 9, 7, 9)
        for row, column in itertools.product(range(7), range(9)):
            want = torch.zeros(7, 9, dtype=torch.bool)
            want[max(0, row - 4):row, max(0, column - 3):column + 4] = True
            want[row, max(0, column - 3):column] = True
            self.assertTrue(torch.equal(seen[:, :, row, column], want), (row, column))

    @torch.no_grad()
    def test_masked_convolutions_leave_a_blind_spot(self) -> None:
        config, module = build("pixel_cnn", 7, 9, 1, 5, layers=3)
        seen = influence(config, module).view(7, 9, 7, 9)[:, :, 5, 3]
        # From (5, 3) each of four 3 x 3 layers goes one row up and at most one column right.
        for row, column in itertools.product(range(5), range(9)):
            self.assertEqual(bool(seen[row, column]), 5 - row <= 4 and abs(column - 3) <= 5 - row
                             or 5 - row <= 4 and column <= 3 and 3 - column <= 4, (row, column))
        config, module = build("row_lstm", 7, 9, 1, 5, layers=1)
        seen = influence(config, module).view(7, 9, 7, 9)[:, :, 5, 3]
        self.assertFalse(seen[4, 6:].any())
        self.assertFalse(seen[5, 0])

    def test_masks_are_those_of_the_table(self) -> None:
        for scheme, width in itertools.product(("mod", "contiguous"), (3, 7, 8)):
            group = groups(width, 3, scheme)
            self.assertEqual(group.unique().tolist(), [0, 1, 2])
            for mask, gates in (("A", 1), ("B", 1), ("B", 4)):
                conv = MaskedConv2d(width, width, (3, 3), 3, scheme, gates=gates, mask=mask)
                nn.init.ones_(conv.weight)
                weight = conv.masked_weight().view(gates, width, width, 3, 3)
                self.assertTrue((weight[..., 0, :] == 1).all() and (weight[..., 1, 0] == 1).all())
                self.assertTrue((weight[..., 1, 2] == 0).all() and (weight[..., 2, :] == 0).all())
                for gate, out, feature in itertools.product(range(gates), range(width), range(width)):
                    seen = group[feature] < group[out] + (mask == "B")
                    self.assertEqual(weight[gate, out, feature, 1, 1], float(seen))
        self.assertEqual(groups(12, 3, "contiguous").tolist(), [0] * 4 + [1] * 4 + [2] * 4)

    def test_blocks_are_a_bijection_and_show_only_the_past(self) -> None:
        for height, columns, block, memory in [(4, 6, (2, 3), (1, 2)), (6, 8, (3, 4), (3, 8)), (4, 4, (2, 4), (2, 0)),
                                               (4, 4, (4, 1), (0, 2)), (8, 12, (4, 4), (4, 8))]:
            cells = cells_by_rank(height, columns, *block)
            self.assertEqual(sorted(cells.tolist()), list(range(height * columns)))
            if block[1] == columns:
                self.assertEqual(cells.tolist(), list(range(height * columns)))
            rank = {(int(c) // columns, int(c) % columns): r for r, c in enumerate(cells)}
            seen = visible_pairs_2d(height, columns, *block, *memory, torch.device("cpu"))
            self.assertFalse(seen.triu(1).any())
            for (row, column), query in rank.items():
                top, left = row - row % block[0], column - column % block[1]
                want = {(r, c) for r in range(top - memory[0], top)
                        for c in range(left - memory[1], left + block[1] + memory[1])}
                want |= {(r, c) for r in range(top, top + block[0]) for c in range(left - memory[1], left)}
                want |= {(r, c) for r in range(top, row + 1) for c in range(left, left + block[1])
                         if r < row or c <= column}
                self.assertEqual({cell for cell, key in rank.items() if seen[query, key]}, want & set(rank))

    @torch.no_grad()
    def test_a_shift_of_each_block_alone_forgets_its_last_cell(self) -> None:
        for name, forgotten in (("transformer 2-D", [15]), ("transformer 2-D per block", [3, 7, 11, 15])):
            config, module = build(name, 4, 4, 1, 5)
            never = (~influence(config, module).any(dim=1)).nonzero()[:, 0].tolist()
            self.assertEqual(never, forgotten)


class DiagonalTest(unittest.TestCase):
    """The skewed computation beside one pixel at a time."""

    @torch.no_grad()
    def test_every_pixel_has_the_neighbours_of_the_formula(self) -> None:
        for pad in ("zero", "learned", "evolve"):
            config, module = build(f"diagonal {pad}", 5, 4, 3, 5)
            layer, h = module.layers[0], config.hidden_width
            z = torch.randn(1, 2 * h, 5, 4, dtype=torch.float64)
            maps = []
            for direction, image in ((layer.left, z), (layer.right, z.flip(3))):
                above, beside = direction.state_to_state.weight[..., 0].unbind(dim=2)
                gates, zero = direction.input_to_state(image)[0], torch.zeros(h, dtype=torch.float64)
                start = (direction.initial_hidden, direction.initial_cell) if pad == "learned" else (zero, zero)
                padding, out = start, torch.zeros(h, 5, 4, dtype=torch.float64)
                for row in range(5):
                    hidden, cell = padding
                    for column in range(4):
                        top = out[:, row - 1, column] if row else start[0]
                        hidden, cell = (x[0] for x in lstm_cell(
                            (gates[:, row, column] + above @ top + beside @ hidden)[None], cell[None]))
                        out[:, row, column] = hidden
                    if pad == "evolve":
                        state = direction.input_to_state.bias + (above + beside) @ padding[0]
                        padding = tuple(x[0] for x in lstm_cell(state[None], padding[1][None]))
                maps.append(out)
            want = maps[0].clone()
            want[:, 1:] += maps[1].flip(2)[:, :-1]
            torch.testing.assert_close(layer(z, None, None)[0], want, rtol=0, atol=1e-12)


class MixtureTest(unittest.TestCase):
    """The mixture head."""

    def test_rows_are_read_in_the_stated_layout(self) -> None:
        # Two components, three channels; naive differences of logistic functions, component by component.
        random = np.random.default_rng(1)
        row = random.normal(size=20)
        logits, means, scales, pulls = row[:2], row[2:8].reshape(3, 2), row[8:14].reshape(3, 2), row[14:].reshape(3, 2)
        r, g, b = pixel = (3, 0, 8)
        x, y = 2 * r / 8 - 1, 2 * g / 8 - 1
        total = 0.0
        for k in range(2):
            centres = (means[0, k], means[1, k] + np.tanh(pulls[0, k]) * x,
                       means[2, k] + np.tanh(pulls[1, k]) * x + np.tanh(pulls[2, k]) * y)
            product = np.exp(logits[k]) / np.exp(logits).sum()
            for value, centre, scale in zip(pixel, centres, np.exp(scales[:, k])):
                below = 0.0 if value == 0 else 1 / (1 + np.exp(-((2 * value - 1) / 8 - 1 - centre) / scale))
                above = 1.0 if value == 8 else 1 / (1 + np.exp(-((2 * value + 1) / 8 - 1 - centre) / scale))
                product *= above - below
            total += product
        got = mixture.conditional_log_probs(torch.tensor(row), torch.tensor(pixel), 9).sum().item()
        self.assertAlmostEqual(got, math.log(total), places=12)

    def test_foreign_layouts_hold_the_same_numbers(self) -> None:
        components = 4
        for layout, where in (("oai", lambda kind, c, k: c * 12 + kind * 4 + k),
                              ("t2t", lambda kind, c, k: kind * 12 + k * 3 + c)):
            places = mixture.places(layout, 3, components)
            self.assertEqual(places[:4].tolist(), [0, 1, 2, 3])
            for kind, c, k in itertools.product(range(3), range(3), range(components)):
                self.assertEqual(places[4 + kind * 12 + c * 4 + k], 4 + where(kind, c, k))

    def test_tables_sum_to_one_and_conditionals_to_the_joint(self) -> None:
        torch.manual_seed(3)
        for channels, levels, components, spread in [(1, 2, 1, 1), (3, 256, 10, 1), (4, 5, 3, 2), (3, 17, 2, 20),
                                                     (2, 300, 5, 4), (3, 256, 4, 60)]:
            rows = torch.randn(20, mixture.parameters_per_pixel(channels, components), dtype=torch.float64) * spread
            values = torch.randint(levels, (20, channels))
            conditional = mixture.conditional_log_probs(rows, values, levels)
            weights, each = mixture.component_log_probs(rows, values, levels)
            joint = (weights + each.sum(dim=-2)).logsumexp(dim=-1)
            torch.testing.assert_close(conditional.sum(-1), joint, rtol=1e-12, atol=1e-10)
            for channel in range(channels):
                table = mixture.table(rows[0], values[0, :channel], channels, levels)
                self.assertAlmostEqual(table.exp().sum().item(), 1.0, places=10)
                self.assertAlmostEqual(table[values[0, channel]].item(), conditional[0, channel].item(), places=10)

    def test_the_joint_of_all_pixels_sums_to_one(self) -> None:
        torch.manual_seed(4)
        row = torch.randn(mixture.parameters_per_pixel(3, 4), dtype=torch.float64)
        pixels = torch.cartesian_prod(*[torch.arange(6)] * 3)
        total = mixture.conditional_log_probs(row.expand(216, -1), pixels, 6).sum(-1).exp().sum()
        self.assertAlmostEqual(total.item(), 1.0, places=12)

    def test_gradients_stay_finite(self) -> None:
        rows = torch.tensor([[0.0, 0.0, 5.0, -5.0, -30.0, 12.0]] * 4, requires_grad=True)
        loss = mixture.conditional_log_probs(rows, torch.tensor([[0], [255], [100], [128]]), 256).sum()
        loss.backward()
        self.assertTrue(loss.isfinite() and rows.grad.isfinite().all())


if __name__ == "__main__":
    unittest.main()
