"""Held-out bits/dim of the packages of models/: what the Score RPC answers, beside what training measured in PyTorch.

    PIXELD=target/release/pixeld python python/live/results.py [NAME ..]

Prints the rows of docs/RESULTS.md, and fails if the two differ by 1e-3 or more. Each image goes with its class and its
low-resolution image, as the package takes them. `make results` runs it.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

import grpc
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "interop")]

import pixeld  # noqa: E402
from datasets import DATA_SETS, shrunk  # noqa: E402
from pixeld.export import value_bytes  # noqa: E402
from stubs import generate  # noqa: E402
from train import RECIPES  # noqa: E402

TOLERANCE = 1e-3


def items(name: str, scoring: Any, image: Any) -> Iterator[Any]:
    """The requests of one stream that scores the held-out part for package `name`."""
    recipe = RECIPES[name]
    data = DATA_SETS[recipe.data]
    judge = data.load(recipe.side, False)[1]

    def raw(values: torch.Tensor) -> Any:
        return image.Image(data=value_bytes(values.flatten().tolist(), data.levels), encoding=image.IMAGE_ENCODING_RAW)

    yield scoring.StreamScoreImagesRequest(spec=scoring.ScoringSpec(model=name))
    for values, label in zip(judge.values, judge.classes.tolist()):
        condition = image.Conditioning(class_label=label if recipe.by_class else None)
        if "low_height" in recipe.config:
            condition.low_resolution.CopyFrom(raw(shrunk(values[None], recipe.config["low_height"])))
        yield scoring.StreamScoreImagesRequest(item=scoring.ScoreItem(image=raw(values), conditioning=condition))


def main() -> None:
    """Scores and prints."""
    names = sys.argv[1:] or list(RECIPES)
    command = [os.environ["PIXELD"], "serve", "--listen", "127.0.0.1:0", "--models", str(ROOT / "models")]
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
        try:
            generate(str(ROOT / "proto"), scratch)
            pixeld.__path__.append(f"{scratch}/pixeld")  # the wire's package has the name of ours
            from pixeld.v1 import image_pb2 as image
            from pixeld.v1 import scoring_service_pb2 as scoring
            from pixeld.v1 import scoring_service_pb2_grpc as services
            listening = re.fullmatch(r"listening on (\S+)\n", daemon.stdout.readline())
            assert listening is not None and daemon.stdout.readline() == "ready\n", "the daemon did not start"
            with grpc.insecure_channel(listening[1]) as channel:
                for name in names:
                    *_, last = services.ScoringServiceStub(channel).StreamScoreImages(items(name, scoring, image))
                    manifest = (ROOT / "models" / name / "model.toml").read_text()
                    pytorch = float(re.search(r"held_out_bits_per_dim = (\S+)", manifest)[1])
                    parameters = int(re.search(r"parameters = (\S+)", manifest)[1])
                    served = last.completed.mean_bits_per_dim
                    error = last.completed.bits_per_dim_standard_error
                    worst = max(worst, abs(served - pytorch))
                    print(f"| {name} | {parameters:,} | {pytorch:.4f} | {served:.4f} | {error:.3f} |", flush=True)
        finally:
            daemon.terminate()
    print(f"largest difference {worst:.1e} bits/dim")
    if worst >= TOLERANCE:
        sys.exit(f"results: served and PyTorch differ by {worst}")


if __name__ == "__main__":
    main()
