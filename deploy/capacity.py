#!/usr/bin/env python3
"""Holds `pixeld bench capacity` against three replicas behind a proxy, on this machine.

    capacity.py [--binary PATH] [--proxy envoy|haproxy] [--models DIR] [--model NAME] [--images N] [--loads 0.5,1.2]
                [--seconds N] [--rounds N] [--repeats N]

Each round records step times (`pixeld bench step`) of one, two and three processes that step at once, since the
replicas here share all cores but one; then it loads the replicas through the proxy with `pixeld bench load`, at each of --loads
times what the step times say three full replicas make, and simulates the same arrivals with the same seed. The proxy
and the client have the last core, if there are two: what they take from replicas is not simulated. Prints what
was measured, what was simulated, and the error, each the median over the rounds; writes everything to out/capacity/.
`make capacity` runs it.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from replicas import PROXY, REPOSITORY, Hosts, Replica, Wrong, start_proxy, until

REPLICAS = 3
SLOTS = 16
BATCHES = (1, 2, 4, 8, 16)
# Images that may wait at a replica: one more round of all slots, so that an overload settles within seconds.
QUEUE = SLOTS
# What is good, in rounds of full slots: the one that an image takes, the one that it waits, and one to spare. At an
# edge through the middle of the times, goodput would say on which side of it they are, and not by how much it is off.
ROUNDS_OF_SLO = 3
WARMUP = 5
# How a simulation calls what a proxy does.
BALANCE = {"envoy": "two-choices", "haproxy": "least"}
CORES = sorted(os.sched_getaffinity(0))
OURS, THEIRS = CORES[:-1] or CORES, CORES[-1:]
FIGURES = ("images/s", "goodput images/s", "refused %", "image p50 ms", "image p99 ms")


@contextmanager
def on(cores: list[int]) -> Iterator[None]:
    """Processes that are started meanwhile keep to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Machine:
    """Three replicas and a proxy, and the commands that ask them."""

    def __init__(self, arguments: argparse.Namespace, models: Path, out: Path) -> None:
        self.arguments, self.models, self.out, self.hosts = arguments, models, out, Hosts(None)
        settings = tuple(f"{limit}={QUEUE}" for limit in (
            "engine.queue_images", "limits.images_per_request", "limits.items_per_request"))
        self.replicas = [Replica(self.hosts, name, arguments.binary, models, out, settings) for name in "123"]
        self.proxy: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self.hosts.port('proxy', PROXY)}"

    def start(self) -> None:
        with on(OURS):
            for replica in self.replicas:
                replica.start()
        with on(THEIRS):
            self.proxy = start_proxy(self.arguments.proxy, self.hosts, self.replicas, self.out)
        until(lambda: self.run("models", "--endpoint", self.endpoint, check=False).returncode == 0, "the proxy")

    def end(self) -> None:
        for process in [self.proxy, *(replica.process for replica in self.replicas)]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([str(self.arguments.binary), *words], capture_output=True, text=True)
        if check and done.returncode:
            raise Wrong(f"pixeld {' '.join(words)}: {done.stderr}")
        return done

    def record(self, path: Path) -> None:
        """Writes what a step takes, by images, while one, two or three processes step."""
        lines = []
        for count in range(1, REPLICAS + 1):
            for batch in BATCHES:
                step = ["bench", "step", "--models", str(self.models), "--model", self.arguments.model, "--json",
                        "--backend", "native", "--batch", str(batch), "--from-rank", "0", "--steps", "1000000"]
                with on(OURS), ExitStack() as beside:
                    for number in range(1, count):
                        beside.enter_context(self.stepping(step, self.out / f"beside-{number}.json"))
                    measured = self.run(*step, "--repeats", str(self.arguments.repeats)).stdout
                for record in map(json.loads, measured.splitlines()):
                    # Processes here are threads to who reads it: what steps at once, each as fast as this one.
                    together = {"threads": count, "images_per_s": record["images_per_s"] * count}
                    lines.append(json.dumps(record | together))
        path.write_text("\n".join(lines) + "\n")

    @contextmanager
    def stepping(self, step: list[str], path: Path) -> Iterator[None]:
        """A process that steps without end."""
        with open(path, "wb") as out:
            process = subprocess.Popen([str(self.arguments.binary), *step, "--repeats", "1000000"], stdout=out)
        try:
            until(lambda: path.stat().st_size > 0, "a process to step")
            yield
        finally:
            process.kill()
            process.wait()

    def asked(self, rate: float, seed: int, slo: str) -> list[str]:
        return ["--rate", f"{rate}", "--arrivals", "poisson", "--images", str(self.arguments.images), "--seed",
                str(seed), "--slo-image", slo, "--duration", f"{self.arguments.seconds}s", "--warmup", f"{WARMUP}s",
                "--json"]

    def load(self, asked: list[str]) -> dict[str, float]:
        words = ["bench", "load", "--endpoint", self.endpoint, "--model", self.arguments.model, "--granularity", "row",
                 "--drain", "60s", *asked]
        with on(THEIRS):
            measured = json.loads(self.run(*words).stdout)
        figures, counts = measured["figures"], measured["outcomes"]["reader"]
        if counts["failed"] + counts["unsent"] + counts["unfinished"]:
            raise Wrong(f"not every request was answered: {measured['outcomes']}")
        return told(figures, counts["refused"] / counts["scheduled"])

    def simulate(self, steps: Path, asked: list[str]) -> dict[str, float]:
        words = ["bench", "capacity", str(steps), "--replicas", str(REPLICAS), "--per-machine", str(REPLICAS),
                 "--slots", str(SLOTS), "--queue-images", str(QUEUE), "--balance", BALANCE[self.arguments.proxy],
                 *asked]
        simulated = json.loads(self.run(*words).stdout)
        return told(simulated, simulated["refused_share"])


def told(figures: dict, refused: float) -> dict[str, float]:
    """What is compared, from either side."""
    image_us = figures["image_us"]
    values = (figures["images_per_s"], figures["goodput_images_per_s"], 100 * refused, image_us["p50"] / 1e3,
              image_us["p99"] / 1e3)
    return dict(zip(FIGURES, values, strict=True))


def full(steps: Path) -> tuple[float, float]:
    """Images a second of all replicas with every slot taken, and how long an image takes then, in seconds."""
    records = [json.loads(line) for line in steps.read_text().splitlines()]
    rate = statistics.mean(record["images_per_s"] for record in records
                           if record["threads"] == REPLICAS and record["batch"] == SLOTS)
    return rate, REPLICAS * SLOTS / rate


def error(figure: str, measured: float, simulated: float) -> float:
    """Percent of what was measured; of a share, points of a hundred."""
    return simulated - measured if figure.endswith("%") else 100 * (simulated / measured - 1)


def table(rows: list[dict], loads: list[float]) -> str:
    lines = ["| load | figure | measured | simulated | error | error of each round |",
             "| --: | :-- | --: | --: | --: | :-- |"]
    for load in loads:
        of_load = [row for row in rows if row["load"] == load]
        for figure in FIGURES:
            sides = [statistics.median(row[side][figure] for row in of_load) for side in ("measured", "simulated")]
            off = [error(figure, row["measured"][figure], row["simulated"][figure]) for row in of_load]
            unit = "points" if figure.endswith("%") else "%"
            each = ", ".join(f"{one:+.1f}" for one in off)
            middle = f"{sides[0]:.2f} | {sides[1]:.2f} | {statistics.median(off):+.1f} {unit}"
            lines.append(f"| {load} | {figure} | {middle} | {each} |")
    return "\n".join(lines)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
    parser.add_argument("--binary", type=Path, default=target / "release" / "pixeld")
    parser.add_argument("--proxy", choices=sorted(BALANCE), default="envoy")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models", help="directory with the package")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--images", type=int, default=8,
                        help="of each request; of small models many, or sending is what is timed")
    parser.add_argument("--loads", default="0.5,1.2", type=lambda text: [float(load) for load in text.split(",")])
    parser.add_argument("--seconds", type=int, default=30, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20, help="images of each batch whose steps are timed")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    if not arguments.binary.is_file():
        sys.exit(f"capacity: there is no {arguments.binary}: make build")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = REPOSITORY / "out" / "capacity"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="pixeld-capacity-") as scratch, ExitStack() as stack:
        models = Path(scratch) / "models"
        shutil.copytree(arguments.models / arguments.model, models / arguments.model)
        machine = Machine(arguments, models, out)
        stack.callback(machine.end)
        machine.start()
        for number in range(arguments.rounds):
            steps = out / f"steps-{number}.json"
            machine.record(steps)
            rate, image_s = full(steps)
            print(f"round {number}: all slots full, {rate:.2f} images/s, {image_s:.3f} s an image", file=sys.stderr,
                  flush=True)
            for load in arguments.loads:
                asked = machine.asked(round(load * rate, 2), number + 1, f"{round(1e3 * ROUNDS_OF_SLO * image_s)}ms")
                row = {"round": number, "load": load, "asked": asked, "measured": machine.load(asked),
                       "simulated": machine.simulate(steps, asked), "load_average": os.getloadavg()[0]}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    (out / "rows.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    print(table(rows, arguments.loads))


if __name__ == "__main__":
    main()
