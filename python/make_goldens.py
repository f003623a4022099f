"""Writes the golden files of the test suite: tiny random models with their exact answers, and the laws.

    python python/make_goldens.py                 # writes tests/golden/

Everything is seeded, and the answers are computed in float64. Set PYTHONHASHSEED=0 for the same bytes of weights.pt,
whose TorchScript code lists attributes in hash order.

A folder tests/golden/FAMILY/CASE holds a package and golden.json: three images with classes and low-resolution images
where the model takes them, the log-probabilities of their values, and samples; one image and no samples, which take a
pass for each value, where images are large. All values are in raster order, whatever
the order of generation; what stands under a mask in the weights is not zero. two_stages/upper names two_stages/lower as
its low_model, and two_stages.json holds images that the two draw together.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pixeld import mixture
from pixeld.config import ModelConfig
from pixeld.draw import draw
from pixeld.export import SAFE_MARGIN, safe_sample, write_package
from pixeld.likelihood import config_of, log_probs
from pixeld.models import FAMILIES
from pixeld.noise import uniform
from pixeld.sample import sample

Case = dict[str, Any]

SIZES = ("height", "width", "channels", "levels")
TRANSFORMER = (*SIZES, "layers", "model_width", "heads", "key_width", "value_width", "feed_forward_width", "positions",
               "norm")
IMAGE_GPT = (*SIZES, "layers", "model_width", "heads", "feed_forward_width", "activation")
RNN = (*SIZES, "layers", "hidden_width", "input_kernel", "head_widths", "group_scheme", "input_scaling", "residual",
       "skip")
GATED = (*SIZES, "layers", "stack_width", "input_kernel", "kernel_size", "head_widths", "group_scheme", "input_scaling")


def case(names: tuple[str, ...], *sizes: Any, **rest: Any) -> Case:
    """Keyword arguments of a configuration: `sizes` in the order of `names`, then what few have."""
    return dict(zip(names, sizes, strict=True), **rest)


def block(height: int, width: int, unit: str, memory_height: int, memory_width: int, shift: str) -> Case:
    """2-D attention."""
    return dict(attention="local_2d", block_height=height, block_width=width, block_unit=unit,
                memory_height=memory_height, memory_width=memory_width, shift=shift)


def low(height: int, width: int, maps: int) -> Case:
    """Conditioning on a low-resolution image."""
    return dict(low_height=height, low_width=width, condition_maps=maps)


# The cases of a family together cover every choice of its manifest, values of two bytes, one to three channels, groups
# that do not divide the features, and lengths that no block divides. A name that ends in "torchscript" asks for a .pt.
CASES: dict[str, dict[str, Case]] = {
    "image_transformer": {
        "post_sinusoidal_binary": case(
            TRANSFORMER, 5, 5, 1, 2, 2, 16, 2, 16, 16, 24, "sinusoidal", "post", query_block=4),
        "post_learned_two_channels": case(
            TRANSFORMER, 4, 3, 2, 5, 2, 12, 3, 12, 12, 20, "learned", "post", query_block=5),
        "pre_sinusoidal_rgb_class": case(
            TRANSFORMER, 4, 4, 3, 17, 2, 16, 4, 16, 16, 32, "sinusoidal", "pre", query_block=8, classes=3),
        "pre_learned_wide_values": case(
            TRANSFORMER, 3, 4, 1, 300, 2, 16, 2, 16, 16, 24, "learned", "pre", query_block=3),
        "post_sinusoidal_widths_class": case(
            TRANSFORMER, 4, 5, 1, 17, 3, 16, 2, 24, 8, 20, "sinusoidal", "post", query_block=6, classes=4),
        "post_learned_rgb_one_block": case(
            TRANSFORMER, 3, 3, 3, 5, 2, 12, 2, 8, 16, 16, "learned", "post", query_block=64, classes=2),
        "pre_learned_widths_torchscript": case(
            TRANSFORMER, 4, 4, 2, 5, 2, 20, 2, 12, 20, 24, "learned", "pre", query_block=7, classes=3),
        "pre_sinusoidal_block_of_one": case(
            TRANSFORMER, 4, 4, 1, 17, 3, 16, 1, 16, 16, 16, "sinusoidal", "pre", query_block=1),
        "mixture_learned_relu_class": case(
            TRANSFORMER, 4, 4, 3, 17, 2, 16, 2, 24, 16, 24, "learned", "post", query_block=5, input="ordinal_relu",
            components=3, classes=3),
        "mixture_wide_values": case(
            TRANSFORMER, 3, 5, 1, 300, 2, 16, 4, 16, 16, 20, "sinusoidal", "pre", query_block=4, input="ordinal",
            components=2),
        "ordinal_categorical": case(
            TRANSFORMER, 4, 4, 1, 9, 2, 16, 2, 16, 16, 20, "learned", "post", query_block=3, input="ordinal",
            classes=2),
        "blocks_cut_pixels": case(
            TRANSFORMER, 4, 4, 3, 5, 2, 16, 2, 16, 16, 20, "sinusoidal", "post",
            **block(2, 4, "values", 1, 3, "block_raster"), classes=3),
        "blocks_of_pixels_shifted_alone": case(
            TRANSFORMER, 4, 6, 2, 5, 2, 16, 2, 16, 16, 20, "learned", "pre",
            **block(2, 3, "pixels", 2, 1, "per_block")),
        "blocks_mixture": case(
            TRANSFORMER, 6, 4, 3, 9, 2, 16, 2, 16, 16, 20, "learned", "post",
            **block(3, 2, "pixels", 2, 2, "block_raster"), input="ordinal", components=2),
        "blocks_without_memory": case(
            TRANSFORMER, 4, 4, 1, 5, 2, 16, 2, 16, 16, 20, "sinusoidal", "pre",
            **block(2, 4, "values", 0, 0, "block_raster"), classes=2),
        "encoder_post": case(
            TRANSFORMER, 4, 4, 3, 5, 2, 16, 2, 16, 16, 20, "learned", "post", query_block=8, low_height=2, low_width=2,
            encoder_layers=2, classes=3),
        "encoder_pre_blocks_torchscript": case(
            TRANSFORMER, 4, 6, 1, 17, 2, 16, 2, 24, 8, 20, "sinusoidal", "pre",
            **block(2, 3, "values", 2, 2, "block_raster"), low_height=2, low_width=3, encoder_layers=1),
        "encoder_mixture": case(
            TRANSFORMER, 4, 4, 2, 9, 1, 12, 2, 12, 12, 16, "learned", "post", query_block=6, low_height=1, low_width=2,
            encoder_layers=1, input="ordinal_relu", components=2),
        "encoder_8x8_to_32x32": case(
            TRANSFORMER, 32, 32, 3, 32, 2, 16, 2, 16, 16, 24, "learned", "post", query_block=256, low_height=8,
            low_width=8, encoder_layers=2, classes=3),
    },
    "image_gpt": {
        "one_channel": case(IMAGE_GPT, 5, 4, 1, 9, 2, 16, 2, 24, "gelu_sigmoid"),
        "rgb_scaled_by_layer": case(IMAGE_GPT, 3, 4, 3, 5, 3, 12, 3, 20, "gelu", scale_by_layer=True),
        "wide_values": case(IMAGE_GPT, 3, 4, 1, 300, 2, 16, 4, 16, "gelu_tanh", epsilon=1e-6),
        "unscaled_torchscript": case(IMAGE_GPT, 4, 4, 2, 5, 2, 8, 1, 20, "relu", epsilon=0.1, score_divisor=1.0),
    },
    "row_lstm": {
        "mod_rgb_class": case(
            RNN, 5, 4, 3, 5, 2, 7, 7, [11, 8], "mod", "symmetric", True, True, kernel_width=3, initial_state="learned",
            classes=3),
        "contiguous_rgb_low": case(
            RNN, 4, 6, 3, 5, 2, 8, 5, [10], "contiguous", "unit", True, False, kernel_width=3, initial_state="zero",
            **low(2, 2, 5)),
        "grey_wide_kernel": case(
            RNN, 5, 5, 1, 17, 3, 6, 7, [], "mod", "symmetric", False, True, kernel_width=5, initial_state="learned"),
        "plain_wide_values": case(
            RNN, 3, 4, 1, 300, 2, 6, 3, [12], "contiguous", "unit", False, False, kernel_width=1, initial_state="zero",
            classes=2),
        "two_channels_all_torchscript": case(
            RNN, 4, 4, 2, 5, 2, 5, 3, [7, 9], "contiguous", "symmetric", True, True, kernel_width=3,
            initial_state="learned", classes=2, **low(2, 4, 4)),
    },
    "diagonal_bilstm": {
        "zero_rgb_class": case(
            RNN, 5, 4, 3, 5, 2, 7, 7, [11, 8], "mod", "symmetric", True, True, pad_state="zero", classes=3),
        "learned_rgb_low": case(
            RNN, 4, 6, 3, 5, 2, 8, 5, [10], "contiguous", "unit", True, False, pad_state="learned", **low(2, 3, 5)),
        "evolve_grey_class": case(
            RNN, 6, 4, 1, 17, 3, 6, 3, [], "mod", "symmetric", False, True, pad_state="evolve", classes=2),
        "evolve_wide_values": case(
            RNN, 4, 3, 1, 300, 2, 6, 3, [12], "contiguous", "unit", False, False, pad_state="evolve"),
        "learned_two_channels_torchscript": case(
            RNN, 4, 4, 2, 5, 2, 5, 3, [7, 9], "mod", "symmetric", True, True, pad_state="learned", classes=2),
        "evolve_two_channels_all": case(
            RNN, 3, 4, 2, 5, 1, 5, 3, [6], "contiguous", "symmetric", True, True, pad_state="evolve", classes=2,
            **low(1, 2, 4)),
    },
    "pixel_cnn": {
        "mod_rgb_class": case(
            RNN, 5, 4, 3, 5, 2, 7, 7, [11, 8], "mod", "symmetric", True, True, kernel_size=3, classes=3),
        "contiguous_rgb_low": case(
            RNN, 4, 6, 3, 5, 2, 8, 5, [10], "contiguous", "unit", True, False, kernel_size=3, **low(2, 2, 5)),
        "grey_wide_kernel": case(RNN, 6, 5, 1, 17, 3, 6, 7, [], "mod", "symmetric", False, True, kernel_size=5),
        "plain_wide_values": case(
            RNN, 3, 4, 1, 300, 2, 6, 3, [12], "contiguous", "unit", False, False, kernel_size=1, classes=2),
        "two_channels_all_torchscript": case(
            RNN, 4, 4, 2, 5, 2, 5, 3, [7, 9], "mod", "symmetric", True, True, kernel_size=3, classes=2, **low(2, 4, 4)),
    },
    "gated_pixel_cnn": {
        "mod_rgb_class": case(GATED, 5, 4, 3, 5, 3, 7, 7, 3, [11, 8], "mod", "symmetric", classes=3),
        "contiguous_rgb_low": case(GATED, 4, 6, 3, 5, 2, 8, 5, 5, [10], "contiguous", "unit", **low(2, 3, 5)),
        "grey_one_layer": case(GATED, 5, 5, 1, 17, 1, 6, 5, 3, [], "mod", "symmetric"),
        "wide_values_class": case(GATED, 4, 3, 1, 300, 3, 6, 3, 3, [12], "contiguous", "unit", classes=2),
        "two_channels_all_torchscript": case(
            GATED, 4, 4, 2, 5, 2, 5, 3, 3, [7, 9], "contiguous", "symmetric", classes=2, **low(2, 4, 4)),
    },
    "pixel_cnn_pp": {
        "rgb_class": dict(height=8, width=4, channels=3, levels=9, stream_width=6, blocks=1, components=3, classes=3),
        "grey_two_blocks": dict(height=4, width=8, channels=1, levels=17, stream_width=5, blocks=2, components=2),
        "two_channels_torchscript": dict(
            height=4, width=4, channels=2, levels=5, stream_width=6, blocks=1, components=2, classes=2),
        "wide_values": dict(height=4, width=4, channels=1, levels=300, stream_width=6, blocks=1, components=4),
    },
}
REQUESTS: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}]
LARGE = 1000  # values of an image; above, it goes alone
SPREAD = 0.3  # standard deviation of the random weights, wide enough that the distributions are far from uniform
# A deep network of wide weights gives logistics so narrow that rounding a weight moves a value by hundredths of a nat.
SPREADS = {"pixel_cnn_pp": 0.2}


def random_module(family: str, sizes: Case, seed: int) -> tuple[ModelConfig, nn.Module]:
    """A module with every parameter drawn from N(0, spread^2), the scales of the norms from N(1, spread^2)."""
    spread = SPREADS.get(family, SPREAD)
    make_config, make_module = FAMILIES[family]
    config = make_config(**sizes)
    module = make_module(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + centre)
    return config, module


def model_case(directory: Path, family: str, sizes: Case, seed: int, low_model: str | None = None) -> nn.Module:
    """One package with its answers."""
    config, module = random_module(family, sizes, seed)
    name = directory.name
    weights = "weights.pt" if name.endswith("torchscript") else "weights.safetensors"
    write_package(directory, module, config, name, "Random weights for tests", weights, low_model=low_model,
                  replace=True)
    write_answers(directory, module, seed)
    return module


def write_answers(directory: Path, module: nn.Module, seed: int) -> None:
    """golden.json: random images with their log-probabilities, and samples. Makes `module` float64."""
    config = config_of(module)
    generator = torch.Generator().manual_seed(seed)
    large = config.height * config.width * config.channels > LARGE
    count = 1 if large else 3
    shape = (count, config.height, config.width, config.channels)
    images = torch.randint(config.levels, shape, generator=generator)
    # The last image goes without a class: a conditional model must answer that too.
    classes = torch.tensor([0, config.classes - 1, -1])[:count] if config.classes else None
    small = None
    if config.low_height is not None:
        small = torch.randint(config.levels, (4, config.low_height, config.low_width, config.channels),
                              generator=generator)
    double = module.double()
    with torch.no_grad():
        scores = log_probs(double, images, classes, None if small is None else small[:count]).flatten(1).tolist()
    samples = []
    for image, request in enumerate([] if large else REQUESTS):
        label = image % config.classes if config.classes and image else None
        given = None if small is None else small[image]
        drawn_seed, drawn = safe_sample(double, 1000 * seed, image, label=label, low=given, **request)
        samples.append({"seed": drawn_seed, "image": image, "class": label,
                        **({} if given is None else {"low": given.flatten().tolist()}),
                        "temperature": request.get("temperature", 1.0), "top_k": request.get("top_k"),
                        "top_p": request.get("top_p"), "values": drawn.values,
                        "log_likelihood": drawn.log_likelihood, "margin": drawn.margin})
    golden = {"images": images.flatten(1).tolist(),
              "classes": None if classes is None else [None if c < 0 else c for c in classes.tolist()],
              **({} if small is None else {"low": small[:count].flatten(1).tolist()}),
              "log_probs": scores, "samples": samples}
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")


def two_stages(directory: Path) -> list[dict[str, Any]]:
    """Two linked packages below `directory`, and images that both draw together."""
    small = case(RNN, 2, 3, 3, 5, 2, 7, 3, [8], "mod", "symmetric", True, True, kernel_width=3, initial_state="learned",
                 classes=3)
    large = case(GATED, 4, 6, 3, 5, 2, 8, 5, 3, [10], "contiguous", "symmetric", classes=3, **low(2, 3, 5))
    lower = model_case(directory / "lower", "row_lstm", small, 1)
    upper = model_case(directory / "upper", "gated_pixel_cnn", large, 2, low_model="lower")
    images: list[dict[str, Any]] = []
    for seed in range(100):
        image, label = len(images), (None, 0, 2)[len(images)]
        first = sample(lower, seed, image, label, first_rank=4 * 6 * 3)
        second = sample(upper, seed, image, label, low=torch.tensor(first.values).view(2, 3, 3))
        if min(first.margin, second.margin) > SAFE_MARGIN:
            images.append({"seed": seed, "image": image, "class": label, "low": first.values,
                           "low_log_likelihood": first.log_likelihood, "values": second.values,
                           "log_likelihood": second.log_likelihood})
        if len(images) == 3:
            return images
    raise RuntimeError("no seeds keep the margin")


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


def mixture_cases() -> list[dict[str, Any]]:
    """Rows of mixture parameters with the conditional log-probabilities of pixels, and draws from their tables.

    `foreign` is the same row in the other layouts. The numbers of a row are exact in float32. Narrow scales (below the
    floor too), means far outside and values at both ends are among them.
    """
    random = np.random.default_rng(21)
    cases = []
    for number, (channels, levels, components) in enumerate(
            [(1, 2, 1), (3, 256, 10), (3, 17, 2), (2, 5, 3), (4, 9, 2), (1, 300, 5), (3, 256, 1), (1, 65536, 3)]):
        row = random.normal(size=mixture.parameters_per_pixel(channels, components)) * (0.5, 1.0, 3.0)[number % 3]
        scales = slice(components * (1 + channels), components * (1 + 2 * channels))
        row[scales] -= (0.0, 3.0, 6.0)[number // 3]
        parameters = torch.from_numpy(row.astype(np.float32)).double()
        values = torch.from_numpy(random.integers(levels, size=(4, channels)))
        values[0], values[1] = 0, levels - 1
        expected = mixture.conditional_log_probs(parameters.expand(4, -1), values, levels)
        draws = []
        while len(draws) < 4:
            earlier = values[3, :len(draws) % channels]
            table = mixture.table(parameters, earlier, channels, levels)
            request, u = REQUESTS[len(draws)], float(random.random())
            drawn = draw(table.numpy(), u, **request)
            if drawn.margin > 1e-6:
                draws.append({"earlier": earlier.tolist(), "u": u, "temperature": request.get("temperature", 1.0),
                              "top_k": request.get("top_k"), "top_p": request.get("top_p"), "value": drawn.value,
                              "log_prob": drawn.log_prob})
        foreign = {}
        for layout in ("oai", "t2t") if channels == 3 else ():
            other = torch.empty_like(parameters)
            other[mixture.places(layout, channels, components)] = parameters
            foreign[layout] = other.tolist()
        cases.append({"channels": channels, "levels": levels, "components": components, "foreign": foreign,
                      "parameters": parameters.tolist(), "values": values.tolist(), "log_probs": expected.tolist(),
                      "draws": draws})
    return cases


def main() -> None:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "golden")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for family, cases in CASES.items():
        for seed, (name, sizes) in enumerate(cases.items(), start=1):
            model_case(out / family / name, family, sizes, seed)
    (out / "two_stages.json").write_text(json.dumps(two_stages(out / "two_stages")) + "\n")
    (out / "noise.json").write_text(json.dumps(noise_cases(), indent=1) + "\n")
    (out / "mixture.json").write_text(json.dumps(mixture_cases(), indent=1) + "\n")
    (out / "draw.json").write_text(json.dumps(draw_cases(), indent=1) + "\n")


if __name__ == "__main__":
    main()
