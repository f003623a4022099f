"""Held-out bits/dim of models that know no neighbours: what the packages of models/ stand beside in docs/RESULTS.md.

    python python/baselines.py

Uniform: every level is as likely as any other. Independent pixels: every value has a categorical law of its own,
counted in the training part, each level once more than it was seen (add-one smoothing); for all images alike, or class
by class.
"""

import math

import numpy as np

from datasets import DATA_SETS
from pixeld.train import Images

SIDES = {"digits": (8, 4), "letters": (16, 32)}


def independent_bits(train: Images, judge: Images, levels: int, classes: int) -> float:
    """Bits/dim of `judge` under laws counted in `train`: one for each value of an image, in each of the classes."""
    # With one class only, every image is of it.
    of_train, of_judge = (np.minimum(part.classes.numpy(), classes - 1) for part in (train, judge))
    bits = 0.0
    for seen, asked in zip(train.values.flatten(1).numpy().T, judge.values.flatten(1).numpy().T):
        counts = np.bincount(of_train * levels + seen, minlength=classes * levels).reshape(classes, levels) + 1
        bits -= np.log2(counts / counts.sum(axis=1, keepdims=True))[of_judge, asked].sum()
    return float(bits / judge.values.numel())


def main() -> None:
    """Prints a line for each data set and size."""
    for name, sides in SIDES.items():
        data = DATA_SETS[name]
        for side in sides:
            train, judge = data.load(side, False)
            alike, by_class = (independent_bits(train, judge, data.levels, n) for n in (1, data.classes))
            print(f"{name} {side}x{side}: uniform {math.log2(data.levels):.4f}, independent pixels {alike:.4f}, "
                  f"by class {by_class:.4f} bits/dim")


if __name__ == "__main__":
    main()
