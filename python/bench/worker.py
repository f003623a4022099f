"""One PyTorch peer in a process of its own, so that threads and compiler settings stay its own."""

import hashlib
import multiprocessing
import statistics
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor, nn

from cached_pixel_cnn_pp import CachedPixelCnnPp, draw_mixture
from pixeld import draw as law
from pixeld.config import ModelConfig
from pixeld.export import SAFE_MARGIN, read_package
from pixeld.layers import MaskedConv2d
from pixeld.likelihood import value_log_probs
from sizes import Stretch
from static_decoder import StaticDecoder, draw

STATIC = ("eager", "compiled", "tuned")  # kinds of `StaticDecoder`
KINDS = ("recompute", *STATIC, "cached")
FORWARDS = 2  # timed steps of the full recompute, each as long as thousands
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
    """A model at one batch size, ready to step: a value at a time, or with a mixture a pixel.

    A step takes what the one before gave, None at the first, and gives parameters [B, ..] and what the next one takes.
    """

    def __init__(self, kind: str, root: Path, name: str, stretch: Stretch, batch: int) -> None:
        self.kind, self.batch, self.stretch = kind, batch, stretch
        self.config, self.module = read_package(root / name)
        self.reference = torch.load(root / "reference.pt")
        self.values = values_per_step(self.config)
        self.steps = self.config.height * self.config.width * self.config.channels // self.values
        uniforms = 1 + self.values if self.config.components else 1
        self.uniforms = torch.rand(self.steps, batch, uniforms, generator=torch.Generator().manual_seed(0))
        if kind == "recompute":
            fold_masks(self.module)
            self.images = torch.zeros(batch, self.config.height, self.config.width, self.config.channels, dtype=torch.int64)
            self.step = self.recompute
        elif kind == "cached":
            self.step = CachedPixelCnnPp(self.module, self.config, batch).step
        else:
            decoder = StaticDecoder(self.module, self.config, batch)
            self.places, call = decoder.places, decoder.step
            if kind in ("compiled", "tuned"):
                call = self.compile(call)
            self.step = lambda previous, index, uniforms: call(
                decoder.start if previous is None else previous, decoder.places[index], uniforms)
            if kind == "tuned":
                self.run(range(2))
                torch.compiler.set_stance(skip_guard_eval_unsafe=True)  # nothing a guard looks at changes any more

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.compile` comes, or with every setting that helped where it was tried."""
        from torch._inductor import config, select_algorithm
        if self.kind == "tuned":
            config.freezing = config.cpp_wrapper = True
            config.max_autotune_report_choices_stats = select_algorithm.PRINT_AUTOTUNE = False
        mode = "max-autotune-no-cudagraphs" if self.kind == "tuned" else None
        return torch.compile(step, mode=mode, fullgraph=True, dynamic=False)

    def given(self, index: int, values: Tensor) -> Tensor:
        """What a step gives the next one after it has drawn `values` [B, n]."""
        return values[:, 0] + self.places[index].offset if self.kind in STATIC else values

    def drawn(self, index: int, given: Tensor) -> Tensor:
        """The other way round."""
        return (given - self.places[index].offset)[:, None] if self.kind in STATIC else given

    def recompute(self, previous: Optional[Tensor], index: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """A step that sends all images through the module."""
        by_step = self.images.view(self.batch, self.steps, self.values)
        if previous is not None:
            by_step[:, index - 1] = previous
        parameters = self.parameters(self.images)[:, index]
        return parameters, self.draw(parameters, uniforms)

    def parameters(self, images: Tensor) -> Tensor:
        """What the module gives for every step [B, steps, ..]."""
        return self.module(images).flatten(1, -2)

    def draw(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Values [B, n] drawn from parameters [B, ..]."""
        if self.config.components:
            return draw_mixture(parameters, uniforms, self.config.channels, self.config.levels)
        return draw(parameters, uniforms)[:, None]

    def run(self, steps: range) -> list[float]:
        """Microseconds of each of these steps."""
        times, previous = [], None
        for index in steps:
            started = time.perf_counter()
            _, previous = self.step(previous, index, self.uniforms[index])
            times.append((time.perf_counter() - started) * 1e6)
        return times

    def time(self) -> dict[str, Any]:
        """One turn."""
        cpu = time.process_time()
        start, steps, _, warm_up = self.stretch
        if self.kind == "recompute":
            times = self.run(range(start, start + FORWARDS))
        else:
            times = self.run(range(start - warm_up, start + steps))[warm_up:]
        step = {"mean": statistics.mean(times), "median": statistics.median(times), "min": min(times), "max": max(times)}
        return {"precision": "f32", "steps": len(times), "step_us": step,
                "images_per_s": self.batch * 1e6 / (step["mean"] * self.steps), "cpu_s": time.process_time() - cpu}

    def check(self) -> Verdict:
        """Compares the first steps with the reference, whose images take turns over the batch."""
        image = torch.arange(self.batch) % len(self.reference["values"])
        values, count = self.reference["values"][image], self.stretch.checked
        known = values.view(self.batch, self.steps, self.values)[:, :count]
        if self.kind == "recompute":
            parameters = self.parameters(values.view_as(self.images))[:, :count]
            drawn = torch.stack([self.draw(parameters[:, index], self.uniforms[index]) for index in range(count)], dim=1)
        else:
            previous, found = None, []
            for index in range(count):
                step_parameters, given = self.step(previous, index, self.uniforms[index])
                found.append((step_parameters.clone(), self.drawn(index, given)))
                previous = self.given(index, known[:, index])
            parameters, drawn = (torch.stack(list(parts), dim=1) for parts in zip(*found))
        expected = self.reference["parameters"][image]
        difference = log_probs(self.config, parameters.double(), known) - log_probs(self.config, expected, known)
        wrong = draws = 0
        for index in range(count):
            right, certain = self.law(expected[:, index], self.uniforms[index])
            draws += int(certain.sum())
            wrong += int((certain & (drawn[:, index] != right).any(dim=1)).sum())
        bits = hashlib.sha256(parameters[0].contiguous().numpy().tobytes()).hexdigest()
        return Verdict(difference.abs().max().item(), wrong, draws, bits)

    def law(self, expected: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """What has to be drawn [B, n], and whether it is far enough from every boundary to be certain [B]."""
        if self.config.components:
            near = [self.draw(expected, (uniforms.double() + shift).clamp(1e-9, 1 - 1e-9))
                    for shift in (-SAFE_MARGIN, SAFE_MARGIN)]
            return near[0], (near[0] == near[1]).all(dim=1)
        rights = [law.draw(row.numpy(), u.item()) for row, u in zip(expected, uniforms)]
        return (torch.tensor([[right.value] for right in rights]),
                torch.tensor([right.margin > SAFE_MARGIN for right in rights]))


def values_per_step(config: ModelConfig) -> int:
    """A mixture is that of a whole pixel."""
    return config.channels if config.components else 1


def log_probs(config: ModelConfig, parameters: Tensor, known: Tensor) -> Tensor:
    """Log-probabilities of the values known [B, steps, n] under the parameters [B, steps, ..] of their steps."""
    return value_log_probs(config, parameters, known if config.components else known[:, :, 0])


def fold_masks(module: nn.Module) -> None:
    """Masks the weights once and for all, as whoever only samples would."""
    for layer in module.modules():
        if isinstance(layer, MaskedConv2d):
            masked = layer.masked_weight()
            layer.masked_weight = lambda masked=masked: masked


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
