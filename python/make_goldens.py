"""Writes the golden files of the test suite: tiny random models with their exact answers, and the noise and draw laws.

    python python/make_goldens.py                 # writes tests/golden/

Everything is seeded, and the answers are computed in float64. Set PYTHONHASHSEED=0 for the same bytes of weights.pt,
whose TorchScript code lists attributes in hash order.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixeld.draw import draw
from pixeld.export import SAFE_MARGIN, safe_sample, write_package
from pixeld.likelihood import log_probs
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig
from pixeld.noise import uniform

# height, width, channels, levels, layers, model, heads, key, value, feed-forward width, query block, positions, norm,
# classes. Together they cover every choice of the family, values of two bytes, key and value widths unlike the model's,
# lengths that are no multiple of the query block, and blocks of one value, of a few, and longer than the image.
CASES: dict[str, tuple[Any, ...]] = {
    "post_sinusoidal_binary": (5, 5, 1, 2, 2, 16, 2, 16, 16, 24, 4, "sinusoidal", "post", 0),
    "post_learned_two_channels": (4, 3, 2, 5, 2, 12, 3, 12, 12, 20, 5, "learned", "post", 0),
    "pre_sinusoidal_rgb_class": (4, 4, 3, 17, 2, 16, 4, 16, 16, 32, 8, "sinusoidal", "pre", 3),
    "pre_learned_wide_values": (3, 4, 1, 300, 2, 16, 2, 16, 16, 24, 3, "learned", "pre", 0),
    "post_sinusoidal_widths_class": (4, 5, 1, 17, 3, 16, 2, 24, 8, 20, 6, "sinusoidal", "post", 4),
    "post_learned_rgb_one_block": (3, 3, 3, 5, 2, 12, 2, 8, 16, 16, 64, "learned", "post", 2),
    "pre_learned_widths_torchscript": (4, 4, 2, 5, 2, 20, 2, 12, 20, 24, 7, "learned", "pre", 3),
    "pre_sinusoidal_block_of_one": (4, 4, 1, 17, 3, 16, 1, 16, 16, 16, 1, "sinusoidal", "pre", 0),
}
REQUESTS: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}]
SPREAD = 0.3  # standard deviation of the random weights, wide enough that the distributions are far from uniform


def random_module(config: ImageTransformerConfig, seed: int) -> ImageTransformer:
    """A module with every parameter drawn from N(0, SPREAD^2), the scales of the norms from N(1, SPREAD^2)."""
    generator = torch.Generator().manual_seed(seed)
    module = ImageTransformer(config)
    for name, parameter in module.named_parameters():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD + centre)
    return module.eval()


def model_case(directory: Path, name: str, config: ImageTransformerConfig, seed: int) -> None:
    """One package with golden.json: three random images with their log-probabilities, and four samples."""
    module = random_module(config, seed)
    weights = "weights.pt" if name.endswith("torchscript") else "weights.safetensors"
    write_package(directory, module, config, name, "Random weights for tests", weights)
    generator = torch.Generator().manual_seed(seed)
    shape = (3, config.height, config.width, config.channels)
    images = torch.randint(config.levels, shape, generator=generator)
    # The last image goes without a class: a conditional model must answer that too.
    classes = torch.tensor([0, config.classes - 1, -1]) if config.classes else None
    double = module.double()
    with torch.no_grad():
        answers = log_probs(double, images, classes).flatten(1).tolist()
    samples = []
    for image, request in enumerate(REQUESTS):
        label = image % config.classes if config.classes and image else None
        drawn_seed, drawn = safe_sample(double, 1000 * seed, image, label=label, **request)
        samples.append({"seed": drawn_seed, "image": image, "class": label,
                        "temperature": request.get("temperature", 1.0), "top_k": request.get("top_k"),
                        "top_p": request.get("top_p"), "values": drawn.values,
                        "log_likelihood": drawn.log_likelihood, "margin": drawn.margin})
    golden = {"images": images.flatten(1).tolist(),
              "classes": None if classes is None else [None if c < 0 else c for c in classes.tolist()],
              "log_probs": answers, "samples": samples}
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")


def noise_cases() -> list[dict[str, Any]]:
    """A dozen points of the noise law; `u` is a decimal string of 17 significant digits."""
    points = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (7, 0, 63), (7, 3, 5), (2**32 - 1, 2, 9), (2**32, 2, 9),
              (2**63, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (0x0123456789ABCDEF, 1000, 3071), (42, 65536, 65536)]
    return [{"seed": seed, "image": image, "rank": rank, "u": f"{float(uniform(seed, image, rank)):.17g}"}
            for seed, image, rank in points]


def draw_cases() -> list[dict[str, Any]]:
    """Twenty points of the drawing law, away from boundaries; ties and extreme logits included."""
    random = np.random.default_rng(20)
    laws: list[tuple[float, int | None, float | None]] = [
        (1.0, None, None), (0.7, None, None), (1.0, 3, None), (1.0, None, 0.8), (0.0, None, None), (1.5, 5, 0.9),
        (1.0, 1, None), (1.0, 100, None), (1.0, None, 1.0), (2.5, None, 0.3)]
    cases = []
    for number in range(20):
        temperature, top_k, top_p = laws[number % 10]
        logits = (random.normal(size=int(random.integers(2, 12))) * 3).round(3)
        if number >= 10:
            logits = logits.round(0)  # ties
        if number == 10:
            logits = np.array([-1000.0, 800.0, 799.0, -1000.0, 800.0])
        u = float(random.random())
        drawn = draw(logits, u, temperature, top_k, top_p)
        assert drawn.margin > SAFE_MARGIN
        cases.append({"logits": logits.tolist(), "u": u, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                      "value": drawn.value, "log_prob": drawn.log_prob})
    return cases


def main() -> None:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "golden")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for seed, (name, sizes) in enumerate(CASES.items(), start=1):
        model_case(out / "image_transformer" / name, name, ImageTransformerConfig(*sizes), seed)
    (out / "noise.json").write_text(json.dumps(noise_cases(), indent=1) + "\n")
    (out / "draw.json").write_text(json.dumps(draw_cases(), indent=1) + "\n")


if __name__ == "__main__":
    main()
