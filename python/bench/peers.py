"""Step times of pixeld beside PyTorch's: the same weights, in one run, in turns.

    python python/bench/peers.py --out TABLE.md [--quick] [--sizes ..] [--images ..] [--kinds ..]
        [--rounds N] [--force]

`make bench-peers` runs it. `PIXELD` names the binary. Every side has to agree with the reference before it is timed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import machine
from pixeld import mixture
from pixeld.draw import draw
from pixeld.export import SAFE_MARGIN, write_package
from pixeld.likelihood import value_log_probs
from pixeld.noise import uniform
from sizes import BACKENDS, LEVELS, SIZES, Side, Size
from worker import FORWARDS, TOLERANCE, Verdict, Worker, values_per_step

PIXELD = os.environ.get("PIXELD", "target/release/pixeld")
ROUNDS = 5
LITTLE = 8  # pixels along either side of the images that pixeld samples before it is timed
NOTES = f"""
A step is all that one more value of each image takes, or with a mixture one more pixel, its draw included, one after the
other, all images at the same one. Image Transformers: two query blocks, the third and the fourth of categorical ones (384
cells in sight on average, 363 over a whole image), the second and the third of mixtures. All others: four whole rows in the
middle, with all that is due at their ends. Step times are the least, the middle and the greatest of the rounds' means.
Images/s follow from the middle. Sides took turns, forwards in one round and backwards in the next. The factor is the ratio
of the middle images/s of pixeld's native backend on as many cores (on one where it has no row for two) to those of the row;
in brackets, the least and the greatest ratio within a round.

- Eta: the step that memory and multipliers allow, as `pixeld bench step` counts and probes it, over the one measured.
- P0 sends the whole image through the reference module for every value, or pixel, with its masks folded into the weights.
  {FORWARDS} of them are timed in each round. "×8" was timed with one image and multiplied.
- P1 keeps keys and values in a static ring of two query blocks, read whole under a mask (`static_decoder.py`).
- P2 is P1 under `torch.compile`, Inductor for the processor, step and draw in one graph. "Tuned" adds
  `max-autotune-no-cudagraphs`, frozen weights, the C++ wrapper, and no guards. Compilation is not timed.
- P3 keeps the latest two rows of every map (`cached_pixel_cnn_pp.py`).
- Two cores are two threads of one PyTorch process, and two shards of pixeld with half of the images each.
- Multiply-adds: of a step of one image, in the mean over the image, as pixeld counts its matrices and what attention reads;
  of a full pass, as PyTorch counts those of the module, with what lies under a mask.
- Bits: whether an image has the same bits whatever else is in its batch, as far as this run saw.
- Gate: largest difference from the reference's log-probabilities (float64; at most {TOLERANCE:.0e}), and how many of the
  draws compared are those of the law. Peers: the first steps of every image, with the very function that is timed, whole
  pixels of a mixture. pixeld: all values of two images scored, and images of {LITTLE}x{LITTLE} sampled with the same widths.
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
    def __init__(self, root: Path, size: Size) -> None:
        # Each below a root of its own: a daemon loads all that it finds.
        self.root, self.little, self.name, self.size = root / "large", root / "little", "random", size
        module = self.write(self.root, 32)
        images = np.random.default_rng(0).integers(0, LEVELS, (2, 32, 32, 3)).astype(np.uint8)
        np.save(self.root / "images.npy", images)
        values = torch.tensor(images.astype(np.int64))
        with FlopCounterMode(display=False) as counter:
            parameters = [module(values[:1])]
        self.full_pass = counter.get_total_flops() // 2
        parameters = torch.cat([*parameters, module(values[1:])])
        self.log_probs = value_log_probs(module.config, parameters, values).flatten(1)
        steps = parameters.flatten(1, -2)[:, :size.stretch.checked].clone()
        torch.save({"values": values.flatten(1), "parameters": steps}, self.root / "reference.pt")
        self.module = self.write(self.little, LITTLE)

    def write(self, root: Path, side: int) -> nn.Module:
        """A package, and its module in float64."""
        config, module = self.size.build(side)
        write_package(root / self.name, module, config, self.name, "Random weights for benchmarks")
        return module.double().eval()

    def check(self, backend: str) -> Verdict | str:
        """Has pixeld score two images, and sample little ones alone and among four."""
        drawn = []
        try:
            *lines, _ = self.pixeld("score", self.root, backend, "--per-value", "--npy", str(self.root / "images.npy"))
            for count in ("1", "4"):
                file = str(self.root / f"sampled-{count}.npy")
                self.pixeld("sample", self.little, backend, "--count", count, "--seed", "0", "--npy", file)
                drawn.append(torch.tensor(np.load(file).astype(np.int64)))
        except subprocess.CalledProcessError as error:
            return f"pixeld ended with code {error.returncode}"
        scores = torch.tensor([line["value_nll_nats"] for line in lines], dtype=torch.float64)
        wrong, draws = self.wrong(drawn[1])
        bits = str(drawn[0].tolist()) if torch.equal(drawn[0][0], drawn[1][0]) else "differ"
        return Verdict((scores + self.log_probs).abs().max().item(), wrong, draws, bits)

    @torch.no_grad()
    def wrong(self, images: Tensor) -> tuple[int, int]:
        """Of little images drawn with seed 0, how many values are not those of the law, and how many were compared."""
        config, wrong, draws = self.module.config, 0, 0
        parameters = self.module(images).flatten(1, -2)
        for number, image in enumerate(images.flatten(1)):
            for rank, u in enumerate(uniform(0, number, range(len(image)))):
                step, channel = divmod(rank, values_per_step(config))
                row = parameters[number, step]
                if config.components:
                    row = mixture.table(row, image[rank - channel:rank], config.channels, LEVELS)
                right = draw(row.numpy(), float(u))
                if right.margin > SAFE_MARGIN:  # closer to a boundary either side is right
                    draws += 1
                    wrong += right.value != image[rank]
        return int(wrong), draws

    def time(self, side: Side, images: int) -> dict[str, Any]:
        """One turn of pixeld. Each core is a shard with its share of the images."""
        start, steps, *_ = self.size.stretch
        (turn,) = pixeld("bench", "step", *settings(self.root), "--model", self.name, "--backend", side.kind,
                         "--batch", str(images // side.threads), "--threads", str(side.threads),
                         "--steps", str(steps), "--from-rank", str(start * values_per_step(self.module.config)))
        return turn

    def pixeld(self, command: str, root: Path, backend: str, *arguments: str) -> list[dict[str, Any]]:
        return pixeld(command, *settings(root), "--set", f"engine.backend={backend}", "--model", self.name, *arguments)


def settings(root: Path) -> tuple[str, ...]:
    return "--models", str(root), "--set", "engine.precision=f32"


class Record:
    """Everything measured: in a file, one JSON object a line, and gathered for the table."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")
        self.verdicts: dict[tuple[str, int, Side], Verdict | str] = {}
        self.turns: dict[tuple[str, int, Side], list[dict[str, Any]]] = defaultdict(list)
        self.full_passes: dict[str, int] = {}  # multiply-adds

    def write(self, kind: str, **fields: Any) -> None:
        print(json.dumps({"kind": kind} | fields), file=self.file, flush=True)

    def verdict(self, size: str, images: int, side: Side, verdict: Verdict | str) -> bool:
        """Whether the side may be timed. Text says why there is no verdict."""
        passed = isinstance(verdict, Verdict) and verdict.passes()
        self.verdicts[size, images, side] = verdict if passed else f"FAILED: {verdict}"
        say(f"{size}, {images} images, {side.name}, {side.threads} threads: {self.verdicts[size, images, side]}")
        self.write("gate", model=size, images=images, side=side.name, threads=side.threads, passed=passed,
                   says=str(verdict))
        return passed

    def turn(self, size: str, images: int, side: Side, repeat: int, turn: dict[str, Any] | str, others: float) -> None:
        if isinstance(turn, str):
            raise RuntimeError(f"{side.name}, {side.threads} threads: {turn}")
        turn |= {"kind": "step", "model": size, "side": side.name, "threads": side.threads, "images": images,
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


def measure(record: Record, package: Package, name: str, sides: list[Side], images: int, rounds: int,
            ours: dict[str, Verdict | str]) -> None:
    """Gates every side at this number of images, then gives those that pass their turns.

    `ours`: the verdicts on the backends of pixeld.
    """
    workers: dict[Side, Worker] = {}
    try:
        fit = []
        for side in sides:  # one at a time: compilers take all cores
            if not side.ours():
                workers[side] = Worker(side.threads, side.kind, package.root, package.name, package.size.stretch, images)
            verdict = ours[side.kind] if side.ours() else workers[side].ask("check")
            if record.verdict(name, images, side, verdict):
                fit.append(side)
        for repeat in range(rounds):
            for side in fit if repeat % 2 == 0 else reversed(fit):
                with machine.Watch() as watch:
                    turn = package.time(side, images) if side.ours() else workers[side].ask("time")
                    watch.own = turn.pop("cpu_s", 0.0) if isinstance(turn, dict) else 0.0
                record.turn(name, images, side, repeat, turn, round(watch.others, 4))
            say(f"{name}, {images} images: round {repeat + 1} of {rounds}")
    finally:
        for worker in workers.values():
            worker.stop()


def rates(turns: list[dict[str, Any]]) -> list[float]:
    return [turn["images_per_s"] for turn in turns]


def factor(native: list[float], theirs: list[float]) -> str:
    """How many times as many images, with the range over the rounds."""
    each = [ours / other for ours, other in zip(native, theirs)]
    return f"{statistics.median(native) / statistics.median(theirs):.2f} ({min(each):.2f} to {max(each):.2f})"


def table(record: Record, name: str) -> Iterator[str]:
    """Markdown."""
    size = SIZES[name]
    yield f"\n### {size.title}\n"
    own = [turn for (of, _, side), turns in record.turns.items() if of == name and side.ours() for turn in turns]
    if own:
        full, step = record.full_passes[name], own[0]["multiply_adds"]
        yield (f"Multiply-adds: {step / 1e6:,.2f} million a step, {full / 1e6:,.0f} million a full pass, "
               f"{full / step:,.0f} times as many.\n")
    yield "| images | side | cores | precision | µs a step | eta | images/s | pixeld's factor | bits | gate |"
    yield "| --: | :-- | --: | :-- | --: | --: | --: | --: | :-- | :-- |"
    for images in size.images:
        for side in size.sides:
            multiple = 1 if size.takes(side, images) else images
            key = (name, images // multiple, side)
            if key not in record.verdicts:
                continue
            cells = [""] * 5
            if turns := record.turns.get(key):
                steps = [turn["step_us"]["mean"] * multiple for turn in turns]
                # Twice as many images take a recompute twice as long, so its images/s stay.
                native = next((found for threads in (side.threads, 1) if (
                    found := record.turns.get((name, images, Side("pixeld, native", "native", threads))))), [])
                cells = [turns[0]["precision"],
                         " / ".join(f"{act(steps):,.0f}" for act in (min, statistics.median, max)),
                         f"{eta:.2f}" if (eta := statistics.median(turn.get("eta") or 0 for turn in turns)) else "",
                         f"{statistics.median(rates(turns)):.4g}",
                         factor(rates(native), rates(turns)) if native and not side.ours() else ""]
            label = side.name + (f", ×{multiple}" if multiple > 1 else "")
            cells = [str(images), label, str(side.threads), *cells, record.same_bits(name, side), str(record.verdicts[key])]
            yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="Markdown file; a .jsonl file beside it")
    parser.add_argument("--quick", action="store_true",
                        help="a smoke run: two rounds of the small model, without the largest batch")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "base"], help="models to measure")
    parser.add_argument("--images", nargs="+", type=int, default=[], help="images of a step, of those that a model has")
    kinds = list(dict.fromkeys(side.kind for size in SIZES.values() for side in size.sides))
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="sides to measure")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of every side, {ROUNDS} for what is published")
    parser.add_argument("--force", action="store_true", help="measure on a machine that is not quiet")
    arguments = parser.parse_args()
    names, wanted, rounds = arguments.sizes, arguments.images, arguments.rounds
    if arguments.quick:
        names, wanted, rounds = ["small"], [1, 4], 2
    if not machine.wait_until_quiet() and not arguments.force:
        say(f"the 1-minute load must be {machine.HIGHEST_LOAD} at most, got {machine.load():.2f}; --force measures anyway")
        return 69
    ours = [kind for kind in arguments.kinds if kind in BACKENDS]
    version = "pixeld left out"
    if ours:
        version = subprocess.run([PIXELD, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = Record(arguments.out.with_suffix(".jsonl"))
    began, load, (_, stolen) = time.monotonic(), machine.load(), machine.used()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/inductor"
        for name in names:
            size = SIZES[name]
            package = Package(Path(scratch) / name, size)
            record.full_passes[name] = package.full_pass
            verdicts = {backend: package.check(backend) for backend in ours}
            for images in size.images:
                sides = [side for side in size.sides if side.kind in arguments.kinds and size.takes(side, images)]
                if images in (wanted or size.images):
                    measure(record, package, name, sides, images, rounds, verdicts)
            shutil.rmtree(Path(scratch) / name)
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
    lines = [*(f"- {name}: {fact}." for name, fact in facts.items()),
             *(line for name in names for line in table(record, name))]
    arguments.out.write_text("\n".join(lines) + "\n" + NOTES)
    print(arguments.out.read_text(), end="")
    return 70 if record.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
