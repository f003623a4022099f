"""Tests of the peer that pixeld's PixelCNN++ is measured beside: `python python/tests/test_cached_pixel_cnn_pp.py`."""

import sys
import unittest
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "bench")]

from cached_pixel_cnn_pp import CachedPixelCnnPp, draw_mixture  # noqa: E402
from pixeld.mixture import conditional_log_probs, parameters_per_pixel  # noqa: E402
from pixeld.models.pixel_cnn_pp import PixelCnnPp, PixelCnnPpConfig  # noqa: E402


class CachedPixelCnnPpTest(unittest.TestCase):
    def test_every_step_gives_the_parameters_of_the_reference(self) -> None:
        for height, width, channels, blocks in ((8, 12, 3, 1), (12, 8, 1, 2), (4, 4, 2, 1)):
            with self.subTest(height=height, width=width, channels=channels, blocks=blocks), torch.no_grad():
                torch.manual_seed(0)
                config = PixelCnnPpConfig(height, width, channels, 9, 6, blocks, components=2)
                module = PixelCnnPp(config).eval()
                for parameter in module.parameters():
                    parameter.normal_(std=0.2)
                decoder = CachedPixelCnnPp(module, config, batch=3)
                for _ in range(2):  # the second images over what the first ones left
                    values = torch.randint(9, (3, height, width, channels))
                    expected, pixels = module(values).flatten(1, 2), values.flatten(1, 2)
                    previous = None
                    for pixel in range(height * width):
                        parameters, _ = decoder.step(previous, pixel, torch.rand(3, 1 + channels))
                        self.assertLess((parameters - expected[:, pixel]).abs().max(), 1e-4)
                        previous = pixels[:, pixel]

    def test_draws_follow_the_law(self) -> None:
        torch.manual_seed(0)
        channels, levels, components, cells = 2, 3, 2, 100
        parameters = torch.randn(1, parameters_per_pixel(channels, components)).double()
        grid = (torch.arange(cells).double() + 0.5) / cells
        uniforms = torch.cartesian_prod(grid, grid, grid)
        drawn = draw_mixture(parameters.expand(len(uniforms), -1), uniforms, channels, levels)
        share = torch.bincount(drawn[:, 0] * levels + drawn[:, 1], minlength=levels**2) / len(uniforms)
        every = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
        law = conditional_log_probs(parameters.expand(len(every), -1), every, levels).sum(1).exp()
        self.assertLess((share - law).abs().max(), 2 / cells)


if __name__ == "__main__":
    unittest.main()
