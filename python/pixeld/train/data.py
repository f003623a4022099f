"""Images to train on: from NumPy files, or from a folder of PNG files."""

from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
GREY = 0  # colour type of a PNG file


class Images(NamedTuple):
    """Levels [n, H, W, C] of any integer type, and classes int64 [n], or None."""

    values: Tensor
    classes: Optional[Tensor]

    def part(self, rows: Tensor) -> "Images":
        """The images of these numbers."""
        return Images(self.values[rows], None if self.classes is None else self.classes[rows])


def load_images(path: str | Path, classes: str | Path | None = None, levels: int = 256) -> Images:
    """Images with values 0..levels-1, and their classes.

    path: a .npy file of integers [n, H, W, C] or [n, H, W], taken as they are, with `classes`, a .npy file of integers
    [n], or without; or a folder of PNG files of one size and kind, whose eight bits are rounded to `levels` (files of
    sixteen bits, or of one, are refused). In a folder of folders, each of those is a class, in the order of their names.
    """
    path = Path(path)
    if path.is_dir():
        if classes is not None:
            raise ValueError("classes: of PNG files the folders are the classes")
        return from_folder(path, levels)
    values = load_array(path)
    values = values[..., None] if values.ndim == 3 else values
    if values.ndim != 4 or values.dtype.kind not in "iu" or not values.size:
        raise ValueError(f"{path} must hold integers [n, H, W, C], got {values.dtype} {list(values.shape)}")
    if values.min() < 0 or values.max() >= levels:
        raise ValueError(f"{path} must hold values of 0..{levels - 1}, got {values.min()}..{values.max()}")
    tensor = torch.from_numpy(values if values.dtype == np.uint8 else values.astype(np.int64))
    if classes is None:
        return Images(tensor, None)
    labels = load_array(classes)
    if labels.shape != values.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"{classes} must hold a class of 0 and above for each of {len(values)} images, got "
                         f"{labels.dtype} {list(labels.shape)}")
    return Images(tensor, torch.from_numpy(labels.astype(np.int64)))


def load_array(path: str | Path) -> NDArray[Any]:
    """The array of a .npy file. Nothing in it is run."""
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no .npy file of numbers ({error}); a list of images of one size becomes one with "
                         "np.save(path, np.stack(images).astype(np.uint8))") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays; write the one of the images with np.save")
    return array


def expect_eight_bits(file: Path) -> None:
    """Refuses PNG files that are not read without loss, by the depth and the colour type in their header."""
    with file.open("rb") as opened:
        header = opened.read(26)
    if len(header) < 26 or header[12:16] != b"IHDR":
        return  # Pillow will say what it is
    depth, kind = header[24:]
    if depth == 16 or (depth == 1 and kind == GREY):
        raise ValueError(f"{file} has {depth} bit{'s' * (depth > 1)} a channel; make a file of eight of it, or a .npy "
                         "file of integers, which may have any number of levels")


def from_folder(root: Path, levels: int) -> Images:
    """See `load_images`."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    files = [(file, label) for label, folder in enumerate(folders or [root]) for file in sorted(folder.glob("*.png"))]
    if not files:
        raise ValueError(f"{root} holds no PNG files, neither itself nor in folders")
    images = []
    for file, _ in files:
        expect_eight_bits(file)
        with Image.open(file) as opened:
            picture = opened if opened.mode in CHANNELS else opened.convert("RGB")
            images.append(np.asarray(picture).reshape(picture.height, picture.width, CHANNELS[picture.mode]))
        if images[-1].shape != images[0].shape:
            raise ValueError(f"{file} is {images[-1].shape}, and {files[0][0]} is {images[0].shape} (rows, columns, "
                             "channels)")
    values = np.round(np.stack(images) * ((levels - 1) / 255.0)).astype(np.uint8 if levels <= 256 else np.int64)
    return Images(torch.from_numpy(values), torch.tensor([label for _, label in files]) if folders else None)


def split(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """To train on, and to judge by: `fraction` of the images, drawn by `seed`, at least one."""
    count = len(images.values)
    held = max(round(count * fraction), 1)
    if held >= count:
        raise ValueError(f"a part of {fraction} leaves none of {count} images to train on")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return images.part(order[held:].sort().values), images.part(order[:held].sort().values)


def halved(values: Tensor) -> Tensor:
    """Rounded means of squares of 2 x 2: [n, 2h, 2w, C] -> [n, h, w, C]."""
    sums: Tensor = values.unflatten(2, [-1, 2]).unflatten(1, [-1, 2]).sum(dim=(2, 4))
    return (sums + 2) // 4


def shrunk(values: Tensor, side: int) -> Tensor:
    """`values` halved until `side` rows are left."""
    while values.shape[1] > side:
        values = halved(values)
    return values
