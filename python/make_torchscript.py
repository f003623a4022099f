"""Writes tests/golden/torchscript: modules as their authors would script or trace them, with exact answers.

    python python/make_torchscript.py             # writes tests/golden/torchscript and tests/golden/torchscript_refused

Each differs from the others in how images go in and parameters come out. What they give is brought into the form of the
reference modules here, by hand, so that the reading of a manifest is tested against something else. Answers are
computed in float64. Set PYTHONHASHSEED=0 for the same bytes, since TorchScript lists attributes in hash order.
"""

import argparse
import hashlib
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from make_goldens import write_answers
from pixeld import mixture
from pixeld.config import ModelConfig

class Recurrent(nn.Module):
    """A GRU over the values, one after another; scripted, with a state to go on from."""

    def __init__(self, levels: int, classes: int, width: int) -> None:
        super().__init__()
        self.levels, self.width = levels, width
        self.cell = nn.GRUCell(levels + 1, width)
        self.begin = nn.Embedding(classes + 1, width)
        self.head = nn.Linear(width, levels)

    def advance(self, state: Tensor, token: Tensor) -> Tensor:
        """state [B, width], token int64 [B] (`levels` before the first value) -> state [B, width]."""
        return self.cell(functional.one_hot(token, self.levels + 1).to(state.dtype), state)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """tokens int64 [N, B], labels int64 [B] -> logits [N, B, levels]."""
        state = self.begin(labels)
        token = torch.full_like(labels, self.levels)
        rows: List[Tensor] = []
        for place in range(tokens.shape[0]):
            state = self.advance(state, token)
            rows.append(self.head(state))
            token = tokens[place]
        return torch.stack(rows)

    @torch.jit.export
    def init_state(self, batch: int, labels: Tensor) -> List[Tensor]:
        """The state before the first value."""
        return [self.begin(labels).expand(batch, self.width)]

    @torch.jit.export
    def step(self, state: List[Tensor], previous: Tensor, step: Tensor) -> Tuple[Tensor, List[Tensor]]:
        """previous int64 [B, 1], step int64 [B] -> logits [B, levels], state."""
        token = torch.where(step == 0, torch.full_like(step, self.levels), previous[:, 0])
        after = self.advance(state[0], token)
        return self.head(after), [after]


class Summing(nn.Module):
    """Logits from a sum over the values before; scripted, takes values in 0..1, and has steps, which take levels."""

    def __init__(self, levels: int, width: int, forgets: bool = False) -> None:
        super().__init__()
        self.most, self.width, self.forgets = levels - 1, width, forgets
        self.value = nn.Linear(1, width)
        self.head = nn.Linear(width, levels)

    def forward(self, image: Tensor) -> Tensor:
        """image [B, H, W, C] in 0..1 -> logits [B, N, levels]."""
        each = torch.tanh(self.value(image.flatten(1)[:, :, None]))
        return self.law(functional.pad(each, [0, 0, 1, 0])[:, :-1].cumsum(1))

    def law(self, total: Tensor) -> Tensor:
        """Sums [..., width] -> logits [..., levels], which do not grow with the sums."""
        return self.head(3 * torch.sin(2 * total))

    @torch.jit.export
    def init_state(self, batch: int) -> List[Tensor]:
        """The sum over nothing."""
        return [torch.zeros([batch, self.width])]

    @torch.jit.export
    def step(self, state: List[Tensor], previous: Tensor, step: Tensor) -> Tuple[Tensor, List[Tensor]]:
        """previous int64 [B, 1], step int64 [B] -> logits [B, levels], state; a forgetful one adds to nothing."""
        each = torch.tanh(self.value(previous.float() / self.most)) * (step > 0)[:, None]
        total = each if self.forgets else state[0] + each
        return self.law(total), [total]


class Printing(nn.Module):
    """As `Summing`, and somebody forgot to take a print out; scripted."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.summing = Summing(levels, width)

    def forward(self, image: Tensor) -> Tensor:
        """image [B, H, W, C] in 0..1 -> logits [B, N, levels]."""
        print("error: none, {}", image.shape)
        return self.summing(image)


class MaskedConvolutions(nn.Module):
    """Convolutions of which each sees the pixels before its own, over planes; traced, it is bound to its batch size."""

    def __init__(self, channels: int, width: int, parameters: int, leak: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, parameters, 1)
        mask = torch.zeros(2, 1, 1, 3, 3)
        mask[:, :, :, 0] = 1
        mask[:, :, :, 1, 0] = 1
        mask[1, :, :, 1, 1] = 1
        self.register_buffer("masks", torch.ones_like(mask) if leak else mask)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """image [B, C, H, W] in -1..1 -> its mean, and parameters [B, P, H, W]."""
        batch, height, width = int(image.shape[0]), image.shape[2], image.shape[3]
        # Like many public modules this writes the masked weights back, again and again.
        self.first.weight.data *= self.masks[0]
        self.second.weight.data *= self.masks[1]
        hidden = functional.elu(self.first(image))
        hidden = hidden + functional.elu(self.second(hidden))
        return image.mean(), self.head(hidden).view(batch, -1, height, width)


class Attention(nn.Module):
    """A transformer of one layer over tokens, of which the first says that an image begins; traced."""

    def __init__(self, levels: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(levels + 1, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.attend = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, levels)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, n], n up to the length -> logits [B, n, levels]."""
        hidden = self.tokens(tokens) + self.places[:tokens.shape[1]]
        query, key, value = self.attend(hidden).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        later = torch.ones_like(scores[0]).triu(1) > 0
        return self.head(hidden + scores.masked_fill(later, -torch.inf).softmax(-1) @ value)


class Upscaling(nn.Module):
    """All channels of a pixel at once, from the row above, a low-resolution image and a class; scripted."""

    def __init__(self, channels: int, levels: int, classes: int, width: int) -> None:
        super().__init__()
        self.above = nn.Conv2d(channels, width, (1, 3), padding=(0, 1))
        self.low = nn.Conv2d(channels, width, 1)
        self.label = nn.Linear(classes, width)
        self.head = nn.Conv2d(width, channels * levels, 1)

    def forward(self, low: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """low [B, h, w, C], image [B, H, W, C], in 0..1 less 0.5, labels [B, classes] -> [B, V * C, H, W]."""
        planes = image.permute(0, 3, 1, 2)
        above = functional.pad(planes, [0, 0, 1, 0])[:, :, :planes.shape[2]]
        maps = functional.interpolate(low.permute(0, 3, 1, 2), [planes.shape[2], planes.shape[3]], mode="nearest")
        return self.head(torch.tanh(self.above(above) + self.low(maps) + self.label(labels)[:, :, None, None]))


class Endless(nn.Module):
    """Never answers; scripted."""

    def forward(self, image: Tensor) -> Tensor:
        while image.numel() > 0:
            image = image + 1
        return image


class Hungry(nn.Module):
    """Wants 64 GiB; scripted."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros([1 << 34]) + image.sum()


class Named(nn.Module):
    """Gives a dictionary; scripted."""

    def forward(self, image: Tensor) -> Dict[str, Tensor]:
        return {"logits": image.expand(-1, 9, -1, -1) * 0, "loss": image.mean()}


class Forgetful(nn.Module):
    """Still drops out; scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(9))

    def forward(self, image: Tensor) -> Tensor:
        rows = functional.dropout(self.logits + 1, 0.5, training=True)
        return rows[None, :, None, None].expand(image.shape[0], 9, image.shape[2], image.shape[3])


class Writing(nn.Module):
    """Writes into the file `victim` of the directory that it runs in, if there is one, through a mapping; scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(9))

    def forward(self, image: Tensor) -> Tensor:
        written = torch.from_file("victim", shared=True, size=4, dtype=torch.uint8).fill_(33)
        # What is not used is not computed.
        return (self.logits + 0 * written.sum())[None, :, None, None].expand(image.shape[0], 9, image.shape[2], image.shape[3])


class Read(nn.Module):
    """A module in the form of the reference modules: (values, classes, low) -> parameters [B, H, W, C, V] or [B, H, W, P]."""

    def __init__(self, module: nn.Module, config: ModelConfig,
                 call: Callable[[nn.Module, Tensor, Optional[Tensor], Optional[Tensor]], Tensor]) -> None:
        super().__init__()
        self.module, self.config, self.call = module, config, call

    def forward(self, values: Tensor, classes: Optional[Tensor] = None, low: Optional[Tensor] = None) -> Tensor:
        """See the class."""
        return self.call(self.module, values, classes, low)


def like(module: nn.Module, numbers: Tensor) -> Tensor:
    """`numbers` in the type of the module's parameters."""
    return numbers.to(next(module.parameters()).dtype)


def read_recurrent(module: nn.Module, values: Tensor, classes: Optional[Tensor], low: Optional[Tensor]) -> Tensor:
    labels = torch.full((len(values),), 3) if classes is None else classes.where(classes >= 0, 3)
    return module(values.flatten(1).T, labels).transpose(0, 1).unflatten(1, values.shape[1:])


def read_summing(module: nn.Module, values: Tensor, classes: Optional[Tensor], low: Optional[Tensor]) -> Tensor:
    return module(like(module, values) / 5).unflatten(1, values.shape[1:])


def read_mixtures(module: nn.Module, values: Tensor, classes: Optional[Tensor], low: Optional[Tensor]) -> Tensor:
    planes = like(module, values).permute(0, 3, 1, 2) / 8 * 2 - 1
    parameters = module(planes)[1].permute(0, 2, 3, 1)
    return parameters[..., mixture.places("oai", 3, 2)]


def read_attention(module: nn.Module, values: Tensor, classes: Optional[Tensor], low: Optional[Tensor]) -> Tensor:
    tokens = functional.pad(values.flatten(1), [1, 0], value=17)[:, :-1]
    return module(tokens).unflatten(1, values.shape[1:])


def read_upscaling(module: nn.Module, values: Tensor, classes: Optional[Tensor], low: Optional[Tensor]) -> Tensor:
    assert low is not None
    labels = torch.zeros(len(values), 3)
    for row, label in enumerate([] if classes is None else classes.tolist()):
        if label >= 0:
            labels[row, label] = 1
    scaled = [like(module, numbers) / 4 - 0.5 for numbers in (low, values)]
    return module(*scaled, like(module, labels)).unflatten(1, (5, 2)).permute(0, 3, 4, 2, 1)


def randomise(module: nn.Module, seed: int) -> None:
    """Parameters from a normal law wide enough that distributions are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)


def without_places(path: Path) -> None:
    """Leaves out of the archive from which file of whose machine each line of its code came."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".debug_pkl")]
        entries = [(name, archive.read(name)) for name in names]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)


def write(directory: Path, archive: Any, tables: str) -> None:
    """A package of `archive`; `tables` is the manifest from [image] on."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.jit.save(archive, directory / "weights.pt")
    without_places(directory / "weights.pt")
    digest = hashlib.sha256((directory / "weights.pt").read_bytes()).hexdigest()
    (directory / "model.toml").write_text(
        f'format = 1\nname = "{directory.name}"\nfamily = "torchscript"\ndescription = "Random weights for tests"\n\n'
        f'{tables.strip()}\n\n[weights]\nfile = "weights.pt"\nsha256 = "{digest}"\n')


def main() -> None:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "golden")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    good, refused = out / "torchscript", out / "torchscript_refused"

    recurrent = Recurrent(5, 3, 12).eval()
    randomise(recurrent, 1)
    write(good / "scripted_steps", torch.jit.script(recurrent), """
[image]
height = 6
width = 3
channels = 2
levels = 5
order = "raster"

[head]
kind = "categorical"

[condition]
classes = 3

[architecture]
input = "(h w c) b"
input_type = "int64"
input_scale = "levels"
arguments = ["image", "class"]
null_class = 3
output = "(h w c) b v"
incremental = true
""")
    write_answers(good / "scripted_steps", Read(recurrent, ModelConfig(6, 3, 2, 5, classes=3), read_recurrent), 1)

    sums = """
[image]
height = 4
width = 3
channels = 2
levels = 6
order = "raster"

[head]
kind = "categorical"

[architecture]
input = "b h w c"
input_type = "float32"
input_scale = "unit"
output = "b (h w c) v"
incremental = true
"""
    summing, forgetting = Summing(6, 10).eval(), Summing(6, 10, forgets=True).eval()
    for module in (summing, forgetting):
        randomise(module, 6)
    write(good / "scripted_unit_steps", torch.jit.script(summing), sums)
    write(refused / "straying_steps", torch.jit.script(forgetting), sums)
    write_answers(good / "scripted_unit_steps", Read(summing, ModelConfig(4, 3, 2, 6), read_summing), 6)

    mixtures = """
[image]
height = 5
width = 4
channels = 3
levels = 9
order = "raster"

[head]
kind = "logistic_mixture"
components = 2
layout = "oai"

[architecture]
input = "b c h w"
input_type = "float32"
input_scale = "signed"
output = "b v h w"
output_item = 1
batches = [4]
"""
    convolutions = MaskedConvolutions(3, 8, mixture.parameters_per_pixel(3, 2)).eval()
    randomise(convolutions, 2)
    with torch.no_grad():
        traced = torch.jit.trace(convolutions, torch.zeros(4, 3, 5, 4))
    write(good / "traced_planes_mixture", traced, mixtures)
    config = ModelConfig(5, 4, 3, 9, components=2)
    write_answers(good / "traced_planes_mixture", Read(convolutions, config, read_mixtures), 2)

    attention = Attention(17, 36, 16).eval()
    randomise(attention, 3)
    write(good / "traced_sequence", torch.jit.trace(attention, torch.zeros(2, 36, dtype=torch.int64)), """
[image]
height = 9
width = 4
channels = 1
levels = 17
order = "raster"

[head]
kind = "categorical"

[architecture]
input = "b (h w c)"
input_type = "int64"
input_scale = "levels"
start = 17
output = "b (h w) v"
prefix = true
""")
    write_answers(good / "traced_sequence", Read(attention, ModelConfig(9, 4, 1, 17), read_attention), 3)

    upscaling = Upscaling(2, 5, 3, 10).eval()
    randomise(upscaling, 4)
    write(good / "scripted_factorised_low", torch.jit.script(upscaling), """
[image]
height = 4
width = 6
channels = 2
levels = 5
order = "raster"

[head]
kind = "factorised_categorical"

[condition]
classes = 3
low_height = 2
low_width = 3

[architecture]
input = "b h w c"
input_type = "float32"
input_scale = "unit"
mean = [0.5]
arguments = ["low", "image", "class_one_hot"]
output = "b (v c) h w"
""")
    config = ModelConfig(4, 6, 2, 5, classes=3, low_height=2, low_width=3)
    write_answers(good / "scripted_factorised_low", Read(upscaling, config, read_upscaling), 4)

    leaking = MaskedConvolutions(3, 8, mixture.parameters_per_pixel(3, 2), leak=True).eval()
    randomise(leaking, 5)
    with torch.no_grad():
        traced = torch.jit.trace(leaking, torch.zeros(4, 3, 5, 4))
    write(refused / "leaking", traced, mixtures)
    grey = """
[image]
height = 5
width = 4
channels = 1
levels = 9
order = "raster"

[head]
kind = "categorical"

[architecture]
input = "b c h w"
input_type = "float32"
input_scale = "unit"
output = "b v h w"
"""
    for name, module in [("endless", Endless()), ("hungry", Hungry()), ("forgetful", Forgetful()),
                         ("named", Named()), ("writing", Writing())]:
        write(refused / name, torch.jit.script(module), grey)

    printing = Printing(6, 10).eval()
    randomise(printing, 6)
    write(good / "scripted_printing", torch.jit.script(printing), sums.replace("incremental = true\n", ""))
    write_answers(good / "scripted_printing", Read(printing, ModelConfig(4, 3, 2, 6), read_summing), 7)


if __name__ == "__main__":
    main()
