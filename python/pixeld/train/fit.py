"""Taking a trainer to its end: progress, validation, checkpoints and sample grids along the way."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import torch
from tqdm import tqdm

from pixeld.sample import sample_many
from pixeld.sheet import expect_channels, write_sheet
from pixeld.train.data import Images
from pixeld.train.trainer import Trainer, bits_per_dim, low_of

CHECKPOINT, SAMPLES, LOG = "checkpoint.pt", "samples.png", "log.jsonl"  # in the folder of a run
GRID = 8  # images of each class on a grid, and in each line and column without classes


def fit(trainer: Trainer, judge: Optional[Images] = None, out: Optional[str | Path] = None,
        report: Optional[int] = None, samples: Optional[int] = None, resume: bool = False,
        say: Callable[[str], object] = tqdm.write) -> float | None:
    """Trains to the end; gives the bits/dim of the averaged weights on `judge`.

    judge: images to validate on. out: folder for checkpoint.pt, samples.png and log.jsonl; nothing is written without.
    report: steps after which validation, a line of progress and a checkpoint come; an epoch without. samples: steps
    after which the sample grid is drawn, with the report that follows, besides at the end. resume: go on from the
    checkpoint in `out`. say: takes lines of progress; a bar is there besides, on a terminal.

    Raises ValueError for images of more than four channels if there is `out`, since samples.png could not show them;
    for a checkpoint that is there without `resume`, or that is of another run with it.
    """
    report = report or trainer.per_epoch
    seconds, validation = 0.0, None
    folder = None if out is None else Path(out)
    if folder is not None:
        expect_channels(trainer.config.channels)  # not at the end, when the grid is drawn
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            more = trainer.restore(folder / CHECKPOINT)
            seconds, validation = more["seconds"], more["validation"]
            say(f"step {trainer.taken} of {trainer.steps}: taken up")
        elif (folder / CHECKPOINT).exists():
            raise ValueError(f"{folder / CHECKPOINT} is there already: go on with it (resume), or name another folder")
    bar = tqdm(total=trainer.steps, initial=trainer.taken, unit="step", disable=None)
    total, count, began = torch.zeros((), device=trainer.device), 0, time.monotonic()
    while not trainer.done:
        total += trainer.step()
        count += 1
        bar.update()
        if trainer.taken % report and not trainer.done:
            continue
        line = {"step": trainer.taken, "epoch": round(trainer.taken / trainer.per_epoch, 2),
                "train": total.item() / count}
        if judge is not None:
            line["validation"] = validation = bits_per_dim(trainer.averaged(), judge)
        line["seconds"] = seconds + time.monotonic() - began
        say(f"epoch {line['epoch']:g} step {line['step']}/{trainer.steps} train {line['train']:.4f}"
            + (f" validation {validation:.4f}" if judge is not None else "") + f" bits/dim, {line['seconds']:.0f} s")
        total, count = torch.zeros_like(total), 0
        if folder is not None:
            with (folder / LOG).open("a") as log:
                log.write(json.dumps(line) + "\n")
            judged = 0 if judge is None else len(judge.values)
            trainer.save(folder / CHECKPOINT, judge, seconds=line["seconds"], validation=validation, judged=judged)
            if trainer.done or (samples and trainer.taken % samples < report and trainer.taken >= samples):
                grid(trainer, judge, folder / SAMPLES)
    bar.close()
    return validation


def grid(trainer: Trainer, judge: Optional[Images], path: Path, seed: int = 1) -> None:
    """Draws images of every class, or of none, or over the low-resolution images of `judge`, and writes them."""
    config, classes, low = trainer.config, None, None
    count = GRID * (min(config.classes, 16) or GRID)
    if config.classes:
        classes = torch.arange(min(config.classes, 16), device=trainer.device).repeat_interleave(GRID)
    if config.low_height is not None:
        some = judge or trainer.images
        count = min(count, len(some.values))
        part = some.part(torch.arange(count))
        low = low_of(config, part.values.long().to(trainer.device))
        classes = part.classes.to(trainer.device) if config.classes and part.classes is not None else None
    values = sample_many(trainer.averaged(), seed, count, classes, low)
    write_sheet(path, values.cpu().numpy(), config.levels, GRID)
