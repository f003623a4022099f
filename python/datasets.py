"""What the packages of models/ are trained on: the parts to train on and to judge by, and what a manifest says of them.

Digits are held out by index % 5 == 0, letters by n % 15 == 0 (``glyphs``). With `validate`, the part to judge by comes
out of the training part instead, and what is held out is not read at all.
"""

from typing import Callable, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

import glyphs
from pixeld.train import Images, shrunk


class DataSet(NamedTuple):
    """One source of images."""

    channels: int
    levels: int
    classes: int
    load: Callable[[int, bool], tuple[Images, Images]]  # side and `validate` -> to train on, to judge by
    manifest: dict[str, str]


def digits(side: int, validate: bool) -> tuple[Images, Images]:
    """Handwritten digits, int64."""
    data = load_digits()
    values = shrunk(torch.from_numpy(data.images).long()[..., None], side)
    classes = torch.from_numpy(data.target).long()
    part = torch.arange(len(values)) % 5
    train, judge = ((part > 1), (part == 1)) if validate else ((part > 0), (part == 0))
    return Images(values[train], classes[train]), Images(values[judge], classes[judge])


def letters(side: int, validate: bool) -> tuple[Images, Images]:
    """Drawn letters, uint8."""
    def drawn(numbers: list[int]) -> Images:
        values, classes = glyphs.draw(numbers, side)
        return Images(torch.from_numpy(values), torch.from_numpy(classes.astype(np.int64)))

    train, judge = glyphs.parts(validate)
    return drawn(train), drawn(judge)


DATA_SETS = {
    "digits": DataSet(1, 17, 10, digits, {
        "source": "scikit-learn load_digits: the test part of the UCI data set Optical Recognition of Handwritten "
                  "Digits (E. Alpaydin, C. Kaynak, 1998)",
        "licence": "CC BY 4.0", "split": "1797 images; held out: index % 5 == 0"}),
    "letters": DataSet(3, glyphs.LEVELS, len(glyphs.LETTERS), letters, glyphs.MANIFEST),
}
