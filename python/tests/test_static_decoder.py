"""Tests of the peer that pixeld is measured beside: `python python/tests/test_static_decoder.py`."""

import itertools
import sys
import unittest
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "bench")]

from pixeld.draw import draw  # noqa: E402
from pixeld.export import SAFE_MARGIN  # noqa: E402
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig  # noqa: E402
from static_decoder import StaticDecoder  # noqa: E402


class StaticDecoderTest(unittest.TestCase):
    def test_every_step_gives_the_logits_of_the_reference_and_the_draw_of_the_law(self) -> None:
        torch.manual_seed(0)
        layouts = (("sinusoidal", 5), ("learned", 7), ("sinusoidal", 1), ("learned", 100))
        for norm, (positions, query_block) in itertools.product(("post", "pre"), layouts):
            with self.subTest(norm=norm, positions=positions, query_block=query_block), torch.no_grad():
                config = ImageTransformerConfig(4, 3, 3, 6, 3, 16, 2, 24, 8, 20, query_block, positions, norm, classes=4)
                module = ImageTransformer(config).eval()
                for parameter in module.parameters():
                    parameter.mul_(2.0)
                values, classes = torch.randint(6, (5, 4, 3, 3)), torch.randint(4, (5,))
                expected = module(values, classes).flatten(1, 3)
                decoder = StaticDecoder(module, config, len(values))
                condition = module.classes(classes) * module.scale
                rows, uniforms = decoder.start, torch.rand(36, 5, 1)
                for rank, (place, value, uniform) in enumerate(zip(decoder.places, values.flatten(1).T, uniforms)):
                    logits, drawn = decoder.step(rows, place, uniform, condition)
                    self.assertLess((logits - expected[:, rank]).abs().max(), 1e-4)
                    for got, row, u in zip((drawn - place.offset).tolist(), logits.numpy(), uniform.flatten().tolist()):
                        law = draw(row, u)
                        if law.margin > SAFE_MARGIN:
                            self.assertEqual(got, law.value)
                    rows = value + place.offset


if __name__ == "__main__":
    unittest.main()
