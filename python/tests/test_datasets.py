"""Tests of what packages are trained on, and with: `python python/tests/test_datasets.py`."""

import math
import sys
import unittest
import unittest.mock
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import glyphs  # noqa: E402
from baselines import independent_bits  # noqa: E402
from datasets import DATA_SETS  # noqa: E402
from pixeld.train import Images, shrunk  # noqa: E402


class LettersTest(unittest.TestCase):
    """The images of letters."""

    def test_an_image_depends_on_its_number_and_side_alone(self) -> None:
        for side in (16, 32):
            first = glyphs.image(77, side)
            glyphs.draw(range(3), 48 - side)
            self.assertEqual((first.shape, first.dtype), ((side, side, 3), np.uint8))
            self.assertLess(first.max(), glyphs.LEVELS)
            self.assertTrue((first == glyphs.image(77, side)).all())
            self.assertFalse((first == glyphs.image(77 + 26, side)).all(), "the same letter, but drawn otherwise")

    def test_sizes_show_the_same_scene(self) -> None:
        small, large = (torch.from_numpy(glyphs.draw(range(26), side)[0]) for side in (16, 32))
        difference = (shrunk(large, 16) - small.long()).abs().float() / glyphs.LEVELS
        self.assertLess(difference.mean().item(), 0.01)

    def test_a_class_is_its_letter(self) -> None:
        with unittest.mock.patch.object(glyphs, "outline", wraps=glyphs.outline) as outline:
            _, classes = glyphs.draw(range(5, 57), 16)
        drawn = "".join(call.args[0] for call in outline.call_args_list)
        self.assertEqual(drawn, "".join(glyphs.LETTERS[label] for label in classes))
        self.assertEqual(drawn, glyphs.LETTERS[5:] + glyphs.LETTERS + glyphs.LETTERS[:5])
        # And an outline is that of its letter: an I covers less than an M by far.
        narrow, wide = (glyphs.outline(letter, glyphs.FONTS[0], 16, 0.7, 0.0, np.zeros(2)).sum() for letter in "IM")
        self.assertLess(narrow, 0.7 * wide)

    def test_what_is_held_out_is_in_no_training_part(self) -> None:
        train, held_out = glyphs.parts(validate=False)
        self.assertEqual(sorted(train + held_out), list(range(glyphs.COUNT)))
        less, validation = glyphs.parts(validate=True)
        self.assertEqual(sorted(less + validation), train)
        for part in (train, held_out, validation):
            per_letter = np.bincount([number % 26 for number in part], minlength=26)
            self.assertEqual(len(set(per_letter.tolist())), 1, "every letter as often as the others")
        # Other numbers are other images, not the same one again.
        seen = {image.tobytes() for image in glyphs.draw(train[:500], 16)[0]}
        self.assertEqual(len(seen), 500)
        self.assertFalse(seen & {image.tobytes() for image in glyphs.draw(held_out[:50], 16)[0]})

    def test_data_sets_tell_their_geometry(self) -> None:
        for name, data in DATA_SETS.items():
            with unittest.mock.patch.object(glyphs, "COUNT", 390):
                train, judge = data.load(16 if name == "letters" else 8, False)
            for part in (train, judge):
                self.assertEqual(part.values.shape[3], data.channels)
                self.assertLess(part.values.max().item(), data.levels)
                self.assertEqual(part.classes.unique().tolist(), list(range(data.classes)))


class BaselinesTest(unittest.TestCase):
    """Models that know no neighbours."""

    def test_independent_pixels_are_counted_with_one_more(self) -> None:
        # Two values an image, of two levels; the second class has seen nothing but ones at the first value.
        train = Images(torch.tensor([[0, 1], [0, 0], [1, 1]]).view(3, 1, 2, 1), torch.tensor([0, 0, 1]))
        judge = Images(torch.tensor([[1, 1], [1, 0]]).view(2, 1, 2, 1), torch.tensor([0, 1]))
        want = -sum(map(math.log2, (2 / 5, 3 / 5, 2 / 5, 2 / 5))) / 4
        self.assertAlmostEqual(independent_bits(train, judge, 2, 1), want)
        want = -sum(map(math.log2, (1 / 4, 2 / 4, 2 / 3, 1 / 3))) / 4
        self.assertAlmostEqual(independent_bits(train, judge, 2, 2), want)


if __name__ == "__main__":
    unittest.main()
