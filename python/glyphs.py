"""Draws the images of the packages letters and letters_upscale: the letters A to Z, in colour, from free fonts.

    python python/glyphs.py --side 16 --out out/letters     # held-out images and classes, for `pixeld score`
    python python/glyphs.py --side 32 --out out/letters     # with the 8x8 versions that letters_upscale is given

Image n is a function of n and its side: whatever varies comes from a generator of its own, seeded by n, in units of the
side. So it is the same scene at every size, and a part of the images is a set of numbers. Its letter is n % 26, and it
is held out if n % 15 == 0, which falls on all letters alike, 15 and 26 having no divisor in common. The fonts and the
laws of position and colour are those of the training part: held out means images never trained on, not new fonts.

The fonts come in packages of requirements.txt, each with its licence, the SIL Open Font License 1.1.
"""

import argparse
import colorsys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixeld.sheet import shades

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNT = 15600
HELD_OUT = 15  # every so many
LEVELS = 32
OVERSAMPLING = 4  # of the letter's outline, in both directions
# (package, file in it): bold faces, since a thin stroke is less than a pixel wide at 16 pixels a side.
FONTS = (
    ("font_fredoka_one", "files/FredokaOne-Regular.ttf"),
    ("font_lato", "files/Lato-Black.ttf"),
    ("font_manrope", "files/Manrope-ExtraBold.ttf"),
    ("font_source_sans_pro", "files/SourceSansPro-Black.ttf"),
)
MANIFEST = {
    "source": "python/glyphs.py, which draws them from the fonts Fredoka One (M. B. Brandao), Lato (L. Dziedzic), "
              "Manrope (The Manrope Project Authors) and Source Sans Pro (Adobe Systems Incorporated)",
    "licence": "SIL Open Font License 1.1 (the fonts; it puts no condition on images drawn with them)",
    "split": f"{COUNT} images; held out: number % {HELD_OUT} == 0",
}


@cache
def font(name: tuple[str, str], size: int) -> ImageFont.FreeTypeFont:
    """A face at `size` pixels an em."""
    package, file = name
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is missing: see requirements.txt"
    # The basic layout, which does not depend on libraries that may be there or not.
    return ImageFont.truetype(str(Path(spec.origin).parent / file), size, layout_engine=ImageFont.Layout.BASIC)


def outline(letter: str, face: tuple[str, str], side: int, height: float, turn: float, move: np.ndarray) -> np.ndarray:
    """How much of each pixel the letter covers, 0..1 [side, side].

    height: of a capital, as a part of the side. turn: degrees. move: of the letter's middle from that of the image,
    right and down, as a part of the side.
    """
    large = side * OVERSAMPLING
    _, top, _, bottom = font(face, 1000).getbbox("H")
    drawn = font(face, round(height * large * 1000 / (bottom - top)))
    left, top, right, bottom = drawn.getbbox(letter)
    canvas = Image.new("L", (large, large))
    middle = large / 2 - np.array([left + right, top + bottom]) / 2
    ImageDraw.Draw(canvas).text(tuple(np.round(middle + move * large)), letter, fill=255, font=drawn)
    turned = canvas.rotate(turn, Image.Resampling.BILINEAR)
    return np.asarray(turned.reduce(OVERSAMPLING), dtype=np.float64) / 255


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Red, green and blue in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def image(number: int, side: int) -> np.ndarray:
    """Image `number`: levels as uint8 [side, side, 3].

    A letter, its shadow to the right and below, and a background that grows darker downwards. The hues of letter and
    background are about opposite, and one of them is dark.
    """
    random = np.random.default_rng(number)
    covered = outline(LETTERS[number % len(LETTERS)], FONTS[random.integers(len(FONTS))], side,
                      random.uniform(0.64, 0.7), random.uniform(-4, 4), random.uniform(-0.04, 0.04, 2))[..., None]
    hue = random.random()
    opposite = hue + 0.5 + random.uniform(-0.1, 0.1)
    dark, light = (0.75, 0.45), (0.35, 1.0)  # saturation and value
    behind, before = (dark, light) if random.random() < 0.6 else (light, dark)
    down = np.linspace(1.0, 0.8, side)[:, None, None]
    background = colour(hue, *behind) * down
    step = side // 16
    shadow = np.pad(covered, ((step, 0), (step, 0), (0, 0)))[:side, :side]
    background = background * (1 - 0.4 * shadow)
    picture = background * (1 - covered) + colour(opposite, *before) * covered
    return np.round(picture * (LEVELS - 1)).astype(np.uint8)


def parts(validate: bool) -> tuple[list[int], list[int]]:
    """Numbers to train on, and to judge by: those held out, or with `validate` others out of the training part."""
    judged = int(validate)
    return ([n for n in range(COUNT) if n % HELD_OUT > judged], [n for n in range(COUNT) if n % HELD_OUT == judged])


def draw(numbers: Sequence[int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of these numbers, uint8 [n, side, side, 3], and their classes, uint8 [n]."""
    images = np.stack([image(number, side) for number in numbers])
    return images, np.array([number % len(LETTERS) for number in numbers], dtype=np.uint8)


def png(path: Path, levels: np.ndarray) -> None:
    """Writes one image [h, w, 3] as the daemon writes and reads it."""
    Image.fromarray(shades(levels, LEVELS)).save(path, optimize=True)


def main() -> None:
    """Writes the held-out part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, choices=(16, 32), default=16)
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images, classes = draw(parts(validate=False)[1], arguments.side)
    np.save(arguments.out / "held_out_images.npy", images)
    np.save(arguments.out / "held_out_classes.npy", classes)
    if arguments.side == 32:
        import torch  # only here: drawing does without
        from pixeld.train import shrunk

        np.save(arguments.out / "held_out_low.npy", shrunk(torch.from_numpy(images).long(), 8).numpy().astype(np.uint8))


if __name__ == "__main__":
    main()
