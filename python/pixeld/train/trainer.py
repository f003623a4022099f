"""One training run as a value that takes steps, and that can be written down and taken up."""

import copy
import dataclasses
import math
import os
import warnings
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from pixeld.config import ModelConfig
from pixeld.layers import ClassVectors
from pixeld.likelihood import config_of, log_probs, value_log_probs
from pixeld.models import build, family_of
from pixeld.train.data import Images, shrunk

FORMAT = 1  # of checkpoints
KEPT = 4  # images to judge by that a checkpoint keeps, for the known answers of a package


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train. The defaults suit small models of small images."""

    epochs: int
    batch: int = 32
    rate: float = 3e-3  # learning rate at its highest
    warmup: int = 200  # steps in which it rises to that, at most a tenth of all; then a cosine to zero
    weight_decay: float = 0.05  # of matrices and kernels; biases and gains have none
    clip: float = 1.0  # norm of the gradient at most
    average: float = 0.998  # share that the average of the weights keeps in a step, less in the beginning
    class_dropout: float = 0.1  # share of images that go without their class, so that the model can draw without one
    shift: float = 0.0  # share of images that are moved by one pixel
    bfloat16: bool = False  # products in bfloat16; weights and everything else stay float32
    weight_norm: bool = False  # folded in `averaged`
    class_scale: float = 1.0  # of the class vectors that training begins with
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def augment(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Moves each image [n, H, W, C], with the given probability, by one pixel in a random direction; zeros come in."""
    count, height, width = images.shape[:3]
    moves = torch.tensor([[0, 1], [2, 1], [1, 0], [1, 2]])  # corner of the window cut out of the padded image
    corner = moves[torch.randint(4, (count,), generator=generator)]
    corner[torch.rand(count, generator=generator) >= probability] = 1
    padded = functional.pad(images, (0, 0, 1, 1, 1, 1))
    rows, columns = corner[:, 0, None] + torch.arange(height), corner[:, 1, None] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def low_of(config: ModelConfig, values: Tensor) -> Optional[Tensor]:
    """The low-resolution images that go with `values`, if the model takes them."""
    return None if config.low_height is None else shrunk(values, config.low_height)


@torch.no_grad()
def bits_per_dim(module: nn.Module, images: Images) -> float:
    """Mean negative log2-likelihood per value, class and low-resolution image given, in float32."""
    module.eval()
    config, device = config_of(module), next(module.parameters()).device
    batch = min(128, max(8192 // (config.height * config.width), 1))  # a bound on memory
    total = 0.0
    for rows in torch.arange(len(images.values)).split(batch):
        part = images.part(rows)
        values = part.values.long().to(device)
        classes = part.classes.to(device) if config.classes and part.classes is not None else None
        total += log_probs(module, values, classes, low_of(config, values)).double().sum().item()
    return -total / images.values.numel() / math.log(2)


def convolutions(module: nn.Module) -> list[nn.Module]:
    """The layers that weight norm is for."""
    return [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]


def plain_modules(module: nn.Module) -> list[nn.Module]:
    """All modules but those that parametrizations have added."""
    return [part for name, part in module.named_modules() if "parametrizations" not in name]


class Trainer:
    """A model in training.

    module: one of ``pixeld.models``, which is trained in place, on the device where it is. images: to train on, in any
    place. After `step` has been called until `done`, `averaged` is what was trained.
    """

    def __init__(self, module: nn.Module, images: Images, settings: Settings) -> None:
        self.module = module
        self.images = images
        self.settings = settings
        self.config = config_of(module)
        count = len(images.values)
        if images.values.shape[1:] != (self.config.height, self.config.width, self.config.channels):
            raise ValueError(f"images are {list(images.values.shape[1:])}, and the model's are [{self.config.height}, "
                             f"{self.config.width}, {self.config.channels}] (rows, columns, channels)")
        if settings.batch > count:
            raise ValueError(f"batch must be at most the number of images, {count}, got {settings.batch}")
        if self.config.classes and images.classes is None:
            raise ValueError("the model takes classes, and the images have none")
        self.plain = copy.deepcopy(module)  # for `averaged`
        if settings.weight_norm:
            for part in convolutions(module):
                parametrizations.weight_norm(part, dim=1 if isinstance(part, nn.ConvTranspose2d) else 0)
        with torch.no_grad():
            for part in module.modules():
                if isinstance(part, ClassVectors):
                    part.weight *= settings.class_scale
        self.device = next(module.parameters()).device
        self.average = copy.deepcopy(module)
        decay = [p for p in module.parameters() if p.dim() > 1]
        plain = [p for p in module.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": settings.weight_decay},
                                            {"params": plain, "weight_decay": 0.0}],
                                           lr=settings.rate, betas=(0.9, 0.98))
        self.generator = torch.Generator().manual_seed(settings.seed)  # of order, augmentation and class dropout
        self.per_epoch = count // settings.batch
        self.steps = settings.epochs * self.per_epoch
        self.taken = 0
        self.order = torch.empty(0, dtype=torch.int64)  # of the images in this epoch

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.taken >= self.steps

    def factor(self, step: int) -> float:
        """Learning rate of a step, counted from 0, as a share of the highest."""
        warmup = max(min(self.settings.warmup, self.steps // 10), 1)
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(step / self.steps, 1.0)))

    def step(self) -> Tensor:
        """Trains on the next batch; gives its loss in bits/dim, a tensor without dimensions."""
        settings, config = self.settings, self.config
        place = self.taken % self.per_epoch * settings.batch
        if place == 0:
            self.order = torch.randperm(len(self.images.values), generator=self.generator)
        rows = self.order[place:place + settings.batch]
        values = augment(self.images.values[rows].long(), settings.shift, self.generator).to(self.device)
        given = torch.rand(settings.batch, generator=self.generator) >= settings.class_dropout
        classes = None
        if config.classes and self.images.classes is not None:
            classes = torch.where(given, self.images.classes[rows], -1).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * self.factor(self.taken)
        self.module.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
            parameters = self.module(values, classes, low_of(config, values))
        loss = -value_log_probs(config, parameters.float(), values).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.optimizer.step()
        self.taken += 1
        keep = min(settings.average, self.taken / (self.taken + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - keep)
        return loss.detach() / math.log(2)

    def averaged(self) -> nn.Module:
        """A model with the averaged weights, in eval mode; weight norm folded."""
        module = copy.deepcopy(self.plain)
        with torch.no_grad():
            for mine, theirs in zip(module.modules(), plain_modules(self.average)):
                for name, parameter in mine.named_parameters(recurse=False):
                    parameter.copy_(getattr(theirs, name))
        return module.eval()

    def save(self, path: Path, judge: Optional[Images] = None, **more: Any) -> None:
        """Writes a checkpoint: all that `restore` needs, what `pixeld.export` makes a package of, and `more` beside it.

        The file is there as a whole or not at all, whatever happens meanwhile.
        """
        examples = None if judge is None else judge.part(torch.arange(min(KEPT, len(judge.values))))
        state = {
            "format": FORMAT, "family": family_of(self.config), "config": dataclasses.asdict(self.config),
            "settings": dataclasses.asdict(self.settings), "taken": self.taken, "order": self.order,
            "module": self.module.state_dict(), "average": self.average.state_dict(),
            "trained": {name: tensor.cpu() for name, tensor in self.averaged().state_dict().items()},
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "examples": None if examples is None else examples._asdict(), "more": more,
        }
        scratch = path.with_name(path.name + ".part")
        torch.save(state, scratch)
        os.replace(scratch, path)

    def restore(self, path: Path) -> dict[str, Any]:
        """Takes up the run whose checkpoint is at `path`, which must have begun alike; gives what lay beside it."""
        state = load(path)
        for name, own in (("config", self.config), ("settings", self.settings)):
            mine = dataclasses.asdict(own)
            for key in mine:
                if state[name].get(key) != mine[key]:
                    raise ValueError(f"{path} was begun with {key} = {state[name].get(key)!r}, not {mine[key]!r}")
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.taken, self.order = state["taken"], state["order"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        more: dict[str, Any] = state["more"]
        return more


def load(path: Path) -> dict[str, Any]:
    """A checkpoint; nothing in it is run. Raises ValueError for a file that is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a TorchScript archive
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # each kind of file fails in its own way, and what torch advises would run what is in it
        state = {}
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path} is no checkpoint of pixeld.train")
    if state["format"] != FORMAT:
        raise ValueError(f"{path} is a checkpoint of format {state['format']}, not {FORMAT}")
    return state


def trained(state: dict[str, Any]) -> nn.Module:
    """The model with averaged weights that a checkpoint holds, in eval mode."""
    module = build(state["family"], **state["config"])
    module.load_state_dict(state["trained"])
    return module.eval()
