"""Step times of pixeld's libtorch path beside eager PyTorch, on the same random weights, in alternating runs.

    python python/step_bench.py SCRATCH_DIRECTORY

Sizes: IT-small (4 layers, d 128, 8 heads, ffn 512, l_q 256) and IT-base (12 layers, d 512, 8 heads, ffn 2048, l_q 256)
on 32x32x3 images of 256 levels. One thread each; a step is everything one more value of each of B images takes,
its draw included. Prints the median over the rounds of each round's median, in microseconds.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = ("small", "base")
BATCHES = (1, 4, 16)
ROUNDS = 3


def eager(*arguments: str) -> str:
    command = [sys.executable, str(HERE / "eager_bench.py"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def pixeld(packages: Path, size: str) -> dict[int, float]:
    """Median step time of each batch size, in microseconds, as criterion measured it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    environment = os.environ | {"PIXELD_BENCH_PACKAGES": str(packages / size)}
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "step", "--", "--noplot"]
    subprocess.run(command, check=True, env=environment, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    medians = {}
    for batch in BATCHES:
        (estimates,) = target.glob(f"criterion/step_it-{size}/{batch}/new/estimates.json")
        medians[batch] = json.loads(estimates.read_text())["median"]["point_estimate"] / 1000
    return medians


def pytorch(packages: Path, size: str) -> dict[int, float]:
    batches = map(str, BATCHES)
    text = eager("--package", str(packages / size / f"it-{size}"), "--batch", *batches, "--threads", "1", "--json")
    return {row["batch"]: row["median_us"] for row in json.loads(text)["results"]}


def main() -> None:
    packages = Path(sys.argv[1]) / "packages"
    for size in SIZES:
        eager("--write-random", size, str(packages / size / f"it-{size}"))
    print(f"{'model':<10}{'batch':>6}{'pixeld us':>12}{'eager us':>12}{'eager/pixeld':>14}   rounds: pixeld | eager")
    for size in SIZES:
        rounds = [(pixeld(packages, size), pytorch(packages, size)) for _ in range(ROUNDS)]
        for batch in BATCHES:
            ours, theirs = ([pair[side][batch] for pair in rounds] for side in (0, 1))
            a, b = statistics.median(ours), statistics.median(theirs)
            listed = " | ".join(" ".join(f"{time:.0f}" for time in times) for times in (ours, theirs))
            print(f"it-{size:<7}{batch:>6}{a:>12.0f}{b:>12.0f}{b / a:>14.2f}   {listed}")


if __name__ == "__main__":
    main()
