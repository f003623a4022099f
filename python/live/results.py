"""Held-out bits/dim of the packages of models/: what the Score RPC answers, beside what training measured in PyTorch.

    PIXELD=target/release/pixeld python python/live/results.py [NAME ..]

Prints the rows of docs/RESULTS.md, and fails if the two differ by 1e-3 or more. Each image goes with its class and its
low-resolution image, as the package takes them. `make results` runs it.
"""

import re
import sys
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "python"))

from datasets import DATA_SETS  # noqa: E402
from harness import SHIPPED, Daemon  # noqa: E402
from pixeld.client import Client  # noqa: E402
from pixeld.train import shrunk  # noqa: E402
from train import RECIPES  # noqa: E402

TOLERANCE = 1e-3


def held_out(name: str) -> Iterator[tuple[Any, Any, Any]]:
    """The held-out part for package `name`: one batch of images, classes and low-resolution images."""
    recipe = RECIPES[name]
    judge = DATA_SETS[recipe.data].load(recipe.side, False)[1]
    low = shrunk(judge.values, recipe.config["low_height"]) if "low_height" in recipe.config else None
    yield judge.values, judge.classes if recipe.by_class else None, low


def main() -> None:
    """Scores and prints."""
    worst = 0.0
    with Daemon(SHIPPED) as daemon, Client(daemon.address) as client:
        for name in sys.argv[1:] or list(RECIPES):
            scores = client.score(held_out(name), model=name)
            manifest = (SHIPPED / name / "model.toml").read_text()
            pytorch = float(re.search(r"held_out_bits_per_dim = (\S+)", manifest)[1])
            parameters = int(re.search(r"parameters = (\S+)", manifest)[1])
            served = float(scores.bits_per_dim.mean())
            worst = max(worst, abs(served - pytorch))
            error = scores.standard_error
            print(f"| {name} | {parameters:,} | {pytorch:.4f} | {served:.4f} | {error:.3f} |", flush=True)
    print(f"largest difference {worst:.1e} bits/dim")
    if worst >= TOLERANCE:
        sys.exit(f"results: served and PyTorch differ by {worst}")


if __name__ == "__main__":
    main()
