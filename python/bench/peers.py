"""Step times of pixeld beside PyTorch's: the same weights, in one run, in turns.

    python python/bench/peers.py --out TABLE.md [--quick] [--sizes ..] [--images ..] [--kinds ..]
        [--rounds N] [--force]

`make bench-peers` runs it. `PIXELD` names the binary. Every side has to agree with the reference before it is timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
import torch

import machine
from pixeld.export import safe_sample, write_package
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig
from worker import CHECKED, FORWARDS, FROM_RANK, KINDS, STEPS, TOLERANCE, Verdict, Worker

PIXELD = os.environ.get("PIXELD", "target/release/pixeld")
SIZES = {"small": (4, 128, 512), "base": (12, 512, 2048)}  # layers, width, feed-forward width
IMAGES, ROUNDS, LEVELS = (1, 4, 16), 5, 256
DRAW_MARGIN = 1e-5  # far beyond what float32 does to a cumulative distribution, and most seeds keep it for 48 draws


class Side(NamedTuple):
    """One way to take steps."""

    name: str
    kind: str  # one of `worker.KINDS`, or a backend of pixeld
    threads: int

    def ours(self) -> bool:
        return self.kind not in KINDS

    def takes(self, images: int) -> bool:
        """Whether so many images of a step can be measured, and say something that fewer do not."""
        return images % self.threads == 0 if self.ours() else self.kind != "recompute" or images == 1


SIDES = (
    Side("pixeld, native", "native", 1),
    Side("pixeld, native", "native", 2),
    Side("pixeld, libtorch", "torch", 1),
    Side("P0 full recompute", "recompute", 1),
    Side("P1 eager", "eager", 1),
    Side("P1 eager", "eager", 2),
    Side("P2 compiled", "compiled", 1),
    Side("P2 compiled", "compiled", 2),
    Side("P2 compiled, tuned", "tuned", 1),
    Side("P2 compiled, tuned", "tuned", 2),
)
NOTES = f"""
A step is all that one more value of each image takes, its draw included: ranks {FROM_RANK} to {FROM_RANK + STEPS - 1}
(two query blocks; 384 ranks in sight on average, 363 over a whole image), one rank after the other, all images at the
same one. Step times are the least, the middle and the greatest of the rounds' medians. Images/s follow from the middle.
Sides took turns, forwards in one round and backwards in the next. The factor is the ratio of the middle images/s of
pixeld's native backend on as many cores (on one where it has no row for two) to those of the row; in brackets, the
least and the greatest ratio within a round.

- Eta: the step that memory and multipliers allow, as `pixeld bench step` counts and probes it, over the one measured.
- P0 sends the whole image through the reference module for every value. {FORWARDS} values of one image are timed in
  each round; a whole image, and more images, are that multiplied.
- P1 keeps keys and values in a static ring of two query blocks, read whole under a mask (`static_decoder.py`).
- P2 is P1 under `torch.compile`, Inductor for the processor, step and draw in one graph. "Tuned" adds
  `max-autotune-no-cudagraphs`, frozen weights, the C++ wrapper, and no guards. Compilation is not timed.
- Two cores are two threads of one PyTorch process, and two shards of pixeld with half of the images each.
- Bits: whether an image has the same bits whatever else is in its batch, as far as this run saw.
- Gate: largest difference from the reference's log-probabilities (float64; at most {TOLERANCE:.0e}), and how many of the
  draws compared are those of the law. Peers: the first {CHECKED} values of every image, with the very function that is
  timed. pixeld: all values of two images scored, and a 4x4 image sampled with the same widths.
"""


def say(text: str) -> None:
    print(f"bench-peers: {text}", file=sys.stderr, flush=True)


def pixeld(*arguments: str) -> list[dict[str, Any]]:
    """The JSON lines that a command of the binary prints."""
    done = subprocess.run([PIXELD, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


class Package:
    """Random weights of one size, on disk, and what the reference says of them."""

    @torch.no_grad()
    def __init__(self, root: Path, size: str) -> None:
        # `pixeld bench step` has weights of its own for the name it-small.
        self.root, self.name, self.little = root, f"random-{size}", f"random-{size}-4x4"
        module = self.write(self.name, SIZES[size], 32, 256)
        images = np.random.default_rng(0).integers(0, LEVELS, (2, 32, 32, 3)).astype(np.uint8)
        np.save(root / "images.npy", images)
        values = torch.tensor(images.astype(np.int64))
        logits = torch.cat([module(image[None]).flatten(1, 3) for image in values])
        values = values.flatten(1)
        self.log_probs = logits.log_softmax(2).gather(2, values[:, :, None])[:, :, 0]
        torch.save({"values": values, "logits": logits[:, :CHECKED].clone()}, root / "reference.pt")
        self.seed, self.drawn = safe_sample(self.write(self.little, SIZES[size], 4, 8), 0, margin=DRAW_MARGIN)

    def write(self, name: str, size: tuple[int, int, int], side: int, query_block: int) -> ImageTransformer:
        """A package, and its module in float64."""
        torch.manual_seed(0)
        layers, d, wide = size
        config = ImageTransformerConfig(side, side, 3, LEVELS, layers, d, 8, d, d, wide, query_block)
        module = ImageTransformer(config)
        write_package(self.root / name, module, config, name, "Random weights for benchmarks")
        return module.double().eval()

    def check(self, backend: str) -> Verdict | str:
        """Has pixeld score two images, and sample a little one alone and among four."""
        common = (*self.settings(), "--set", f"engine.backend={backend}", "--model")
        drawn = []
        try:
            *lines, _ = pixeld("score", *common, self.name, "--per-value", "--npy", str(self.root / "images.npy"))
            for count in ("1", "4"):
                file = str(self.root / f"sampled-{count}.npy")
                pixeld("sample", *common, self.little, "--count", count, "--seed", str(self.seed), "--npy", file)
                drawn.append(np.load(file)[0].flatten().tolist())
        except subprocess.CalledProcessError as error:
            return f"pixeld ended with code {error.returncode}"
        scores = torch.tensor([line["value_nll_nats"] for line in lines], dtype=torch.float64)
        wrong = sum(got != value for got, value in zip(drawn[1], self.drawn.values, strict=True))
        bits = str(drawn[0]) if drawn[0] == drawn[1] else "differ"
        return Verdict((scores + self.log_probs).abs().max().item(), wrong, len(self.drawn.values), bits)

    def time(self, side: Side, images: int) -> dict[str, Any]:
        """One turn of pixeld. Each core is a shard with its share of the images."""
        (turn,) = pixeld("bench", "step", *self.settings(), "--model", self.name, "--backend", side.kind,
                         "--batch", str(images // side.threads), "--threads", str(side.threads),
                         "--steps", str(STEPS), "--from-rank", str(FROM_RANK))
        return turn

    def settings(self) -> tuple[str, ...]:
        return "--models", str(self.root), "--set", "engine.precision=f32"


class Record:
    """Everything measured: in a file, one JSON object a line, and gathered for the table."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")
        self.verdicts: dict[tuple[str, int, Side], Verdict | str] = {}
        self.turns: dict[tuple[str, int, Side], list[dict[str, Any]]] = defaultdict(list)

    def write(self, kind: str, **fields: Any) -> None:
        print(json.dumps({"kind": kind} | fields), file=self.file, flush=True)

    def verdict(self, size: str, images: int, side: Side, verdict: Verdict | str) -> bool:
        """Whether the side may be timed. Text says why there is no verdict."""
        passed = isinstance(verdict, Verdict) and verdict.passes()
        self.verdicts[size, images, side] = verdict if passed else f"FAILED: {verdict}"
        say(f"it-{size}, {images} images, {side.name}, {side.threads} threads: {self.verdicts[size, images, side]}")
        self.write("gate", model=f"it-{size}", images=images, side=side.name, threads=side.threads, passed=passed,
                   says=str(verdict))
        return passed

    def turn(self, size: str, images: int, side: Side, repeat: int, turn: dict[str, Any] | str, others: float) -> None:
        if isinstance(turn, str):
            raise RuntimeError(f"{side.name}, {side.threads} threads: {turn}")
        turn |= {"kind": "step", "model": f"it-{size}", "side": side.name, "threads": side.threads, "images": images,
                 "repeat": repeat, "others_cpu_share": others}
        self.write(**turn)
        self.turns[size, images, side].append(turn)

    def failed(self) -> bool:
        return any(isinstance(verdict, str) for verdict in self.verdicts.values())

    def same_bits(self, size: str, side: Side) -> str:
        """Whether an image had the same bits at every number of images."""
        bits = [verdict.bits for (of, _, whose), verdict in self.verdicts.items()
                if (of, whose) == (size, side) and isinstance(verdict, Verdict)]
        return "" if len(bits) < 2 else "differ" if len(set(bits)) > 1 or "differ" in bits else "same"


def measure(record: Record, package: Package, size: str, sides: list[Side], images: int, rounds: int,
            ours: dict[str, Verdict | str]) -> None:
    """Gates every side at this number of images, then gives those that pass their turns.

    `ours`: the verdicts on the backends of pixeld.
    """
    workers: dict[Side, Worker] = {}
    try:
        fit = []
        for side in sides:  # one at a time: compilers take all cores
            if not side.ours():
                workers[side] = Worker(side.threads, side.kind, package.root, package.name, images)
            verdict = ours[side.kind] if side.ours() else workers[side].ask("check")
            if record.verdict(size, images, side, verdict):
                fit.append(side)
        for repeat in range(rounds):
            for side in fit if repeat % 2 == 0 else reversed(fit):
                with machine.Watch() as watch:
                    turn = package.time(side, images) if side.ours() else workers[side].ask("time")
                    watch.own = turn.pop("cpu_s", 0.0) if isinstance(turn, dict) else 0.0
                record.turn(size, images, side, repeat, turn, round(watch.others, 4))
            say(f"it-{size}, {images} images: round {repeat + 1} of {rounds}")
    finally:
        for worker in workers.values():
            worker.stop()


def rates(turns: list[dict[str, Any]]) -> list[float]:
    return [turn["images_per_s"] for turn in turns]


def factor(native: list[float], theirs: list[float]) -> str:
    """How many times as many images, with the range over the rounds."""
    each = [ours / other for ours, other in zip(native, theirs)]
    return f"{statistics.median(native) / statistics.median(theirs):.2f} ({min(each):.2f} to {max(each):.2f})"


def table(record: Record, size: str) -> Iterator[str]:
    """Markdown."""
    yield f"\n### IT-{size}\n"
    yield "| images | side | cores | precision | µs a step | eta | images/s | pixeld's factor | bits | gate |"
    yield "| --: | :-- | --: | :-- | --: | --: | --: | --: | :-- | :-- |"
    for images in IMAGES:
        for side in SIDES:
            multiple = images if side.kind == "recompute" else 1
            key = (size, images // multiple, side)
            if key not in record.verdicts:
                continue
            cells = [""] * 5
            if turns := record.turns.get(key):
                steps = [turn["step_us"]["median"] * multiple for turn in turns]
                # Twice as many images take a recompute twice as long, so its images/s stay.
                native = next((found for threads in (side.threads, 1) if (
                    found := record.turns.get((size, images, Side("pixeld, native", "native", threads))))), [])
                cells = [turns[0]["precision"],
                         " / ".join(f"{act(steps):,.0f}" for act in (min, statistics.median, max)),
                         f"{eta:.2f}" if (eta := statistics.median(turn.get("eta") or 0 for turn in turns)) else "",
                         f"{statistics.median(rates(turns)):.4g}",
                         factor(rates(native), rates(turns)) if native and not side.ours() else ""]
            name = side.name + (f", ×{multiple}" if multiple > 1 else "")
            cells = [str(images), name, str(side.threads), *cells, record.same_bits(size, side), str(record.verdicts[key])]
            yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="Markdown file; a .jsonl file beside it")
    parser.add_argument("--quick", action="store_true",
                        help="a smoke run: two rounds of the small model, without the largest batch")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models to measure")
    parser.add_argument("--images", nargs="+", type=int, choices=IMAGES, default=list(IMAGES), help="images of a step")
    kinds = list(dict.fromkeys(side.kind for side in SIDES))
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="sides to measure")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of every side, {ROUNDS} for what is published")
    parser.add_argument("--force", action="store_true", help="measure on a machine that is not quiet")
    arguments = parser.parse_args()
    sizes, counts, rounds = arguments.sizes, arguments.images, arguments.rounds
    if arguments.quick:
        sizes, counts, rounds = ["small"], IMAGES[:2], 2
    if not machine.wait_until_quiet() and not arguments.force:
        say(f"the 1-minute load must be {machine.HIGHEST_LOAD} at most, got {machine.load():.2f}; --force measures anyway")
        return 69
    sides = [side for side in SIDES if side.kind in arguments.kinds]
    ours = {side.kind for side in sides if side.ours()}
    version = "pixeld left out"
    if ours:
        version = subprocess.run([PIXELD, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = Record(arguments.out.with_suffix(".jsonl"))
    began, load, (_, stolen) = time.monotonic(), machine.load(), machine.used()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/inductor"
        for size in sizes:
            package = Package(Path(scratch) / size, size)
            verdicts = {backend: package.check(backend) for backend in ours}
            for images in counts:
                measure(record, package, size, [side for side in sides if side.takes(images)], images, rounds, verdicts)
    seconds = time.monotonic() - began
    others = [turn["others_cpu_share"] for turns in record.turns.values() for turn in turns]
    facts = {
        "Date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + f", {seconds / 60:.0f} minutes, {rounds} rounds",
        "Machine": machine.description(),
        "Load": f"{load:.2f} at the start, {machine.load():.2f} at the end (our own), "
                f"{(machine.used()[1] - stolen) / seconds / (os.cpu_count() or 1):.1%} stolen; processor time that others "
                f"took during turns: {statistics.median(others):.1%} in the middle, {max(others):.1%} at most",
        "Versions": f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {version}",
    }
    record.write("run", **{name.lower(): fact for name, fact in facts.items()})
    lines = [*(f"- {name}: {fact}." for name, fact in facts.items()), *(line for size in sizes for line in table(record, size))]
    arguments.out.write_text("\n".join(lines) + "\n" + NOTES)
    print(arguments.out.read_text(), end="")
    return 70 if record.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
