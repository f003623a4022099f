"""One PyTorch peer in a process of its own, so that threads and compiler settings stay its own."""

import hashlib
import multiprocessing
import statistics
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixeld import draw as law
from pixeld.export import SAFE_MARGIN, read_package
from static_decoder import StaticDecoder, draw

KINDS = ("recompute", "eager", "compiled", "tuned")
FROM_RANK, STEPS, WARM_UP = 1024, 512, 32  # two query blocks of the packages; the steps before are not counted
FORWARDS = 2  # timed steps of the full recompute, each as long as thousands
CHECKED = 640  # ranks from 0 on: two and a half blocks, so that the ring comes round
TOLERANCE = 1e-4  # nats a value


class Verdict(NamedTuple):
    """How a side compares with the reference."""

    difference: float  # largest, in nats a value
    wrong: int  # draws that are not those of the law
    draws: int  # those compared
    bits: str  # the same for the same bits

    def passes(self) -> bool:
        return self.difference <= TOLERANCE and self.wrong == 0 < self.draws

    def __str__(self) -> str:
        return f"{self.difference:.0e} nats, {self.draws - self.wrong} of {self.draws} draws"


class Peer:
    """A model at one batch size, ready to step."""

    def __init__(self, kind: str, root: Path, name: str, batch: int) -> None:
        self.kind, self.batch = kind, batch
        self.config, self.module = read_package(root / name)
        self.reference = torch.load(root / "reference.pt")
        self.values = self.config.height * self.config.width * self.config.channels
        self.uniforms = torch.rand(self.values, batch, 1, generator=torch.Generator().manual_seed(0))
        if kind == "recompute":
            return
        self.decoder = StaticDecoder(self.module, self.config, batch)
        self.step = self.decoder.step
        if kind in ("compiled", "tuned"):
            self.compile()

    def compile(self) -> None:
        """As `torch.compile` comes, or with every setting that helped where it was tried."""
        from torch._inductor import config, select_algorithm
        if self.kind == "tuned":
            config.freezing = config.cpp_wrapper = True
            config.max_autotune_report_choices_stats = select_algorithm.PRINT_AUTOTUNE = False
        mode = "max-autotune-no-cudagraphs" if self.kind == "tuned" else None
        self.step = torch.compile(self.decoder.step, mode=mode, fullgraph=True, dynamic=False)
        self.run(range(2))
        if self.kind == "tuned":
            torch.compiler.set_stance(skip_guard_eval_unsafe=True)  # nothing a guard looks at changes any more

    def run(self, ranks: range) -> list[float]:
        """Microseconds of each step at these ranks."""
        times, previous = [], self.decoder.start
        for rank in ranks:
            started = time.perf_counter()
            _, previous = self.step(previous, self.decoder.places[rank], self.uniforms[rank])
            times.append((time.perf_counter() - started) * 1e6)
        return times

    def recompute(self, images: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The logits of all ranks, and the values drawn at one."""
        logits = self.module(images).flatten(1, 3)
        return logits, draw(logits[:, rank], self.uniforms[rank])

    def time(self) -> dict[str, Any]:
        """One turn."""
        cpu = time.process_time()
        if self.kind == "recompute":
            images, times = torch.zeros(self.batch, *self.shape(), dtype=torch.int64), []
            for rank in range(FROM_RANK, FROM_RANK + FORWARDS):
                started = time.perf_counter()
                _, images.flatten(1)[:, rank] = self.recompute(images, rank)
                times.append((time.perf_counter() - started) * 1e6)
        else:
            times = self.run(range(FROM_RANK - WARM_UP, FROM_RANK + STEPS))[WARM_UP:]
        step = {"median": statistics.median(times), "min": min(times), "max": max(times)}
        return {"precision": "f32", "steps": len(times), "step_us": step,
                "images_per_s": self.batch * 1e6 / (step["median"] * self.values), "cpu_s": time.process_time() - cpu}

    def shape(self) -> tuple[int, int, int]:
        return self.config.height, self.config.width, self.config.channels

    def check(self) -> Verdict:
        """Compares the first ranks of the reference's images, which take turns over the batch."""
        image = torch.arange(self.batch) % len(self.reference["values"])
        values = self.reference["values"][image]
        if self.kind == "recompute":
            logits = self.recompute(values.unflatten(1, self.shape()), 0)[0][:, :CHECKED]
            drawn = torch.stack([draw(logits[:, rank], self.uniforms[rank]) for rank in range(CHECKED)], dim=1)
        else:
            rows, found = self.decoder.start, []
            for rank, place in enumerate(self.decoder.places[:CHECKED]):
                step_logits, next_rows = self.step(rows, place, self.uniforms[rank])
                found.append((step_logits.clone(), next_rows - place.offset))
                rows = values[:, rank] + place.offset
            logits, drawn = (torch.stack(list(parts), dim=1) for parts in zip(*found))
        expected = self.reference["logits"][image]
        known = values[:, :CHECKED, None]
        difference = logits.double().log_softmax(2).gather(2, known) - expected.log_softmax(2).gather(2, known)
        wrong = draws = 0
        for row in range(self.batch):
            for rank in range(CHECKED):
                right = law.draw(expected[row, rank].numpy(), self.uniforms[rank, row].item())
                if right.margin > SAFE_MARGIN:  # closer to a boundary either side is right
                    draws += 1
                    wrong += right.value != drawn[row, rank].item()
        bits = hashlib.sha256(logits[0].contiguous().numpy().tobytes()).hexdigest()
        return Verdict(difference.abs().max().item(), wrong, draws, bits)


def serve(connection: Connection, threads: int, *peer: Any) -> None:
    """Body of the process: prepares the peer, then does what it is asked. Answers with text instead if that fails."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            ready = Peer(*peer)
            while True:
                connection.send(getattr(ready, connection.recv())())
    except EOFError:
        pass
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


class Worker:
    """Handle of such a process."""

    def __init__(self, threads: int, *peer: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, threads, *peer))
        self.process.start()
        theirs.close()

    def ask(self, task: str) -> Any:
        """The result of `Peer.check` or `Peer.time`, or text that says why there is none."""
        try:
            self.connection.send(task)
            return self.connection.recv()
        except (EOFError, BrokenPipeError):
            self.process.join()
            return f"its process ended with code {self.process.exitcode}"

    def stop(self) -> None:
        self.connection.close()
        self.process.join()
