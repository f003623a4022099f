"""Contact sheets: many images as one PNG file."""

from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

SIDE = 64  # pixels of a side that a small image is enlarged to, about
KINDS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def shades(images: ArrayLike, levels: int) -> NDArray[np.uint8]:
    """Levels as the daemon puts them into a PNG file: as their share of 255, rounded."""
    return np.round(np.asarray(images) * (255.0 / (levels - 1))).astype(np.uint8)


def expect_channels(channels: int) -> None:
    """Raises ValueError if images of so many channels are none for a PNG file."""
    if channels not in KINDS:
        raise ValueError(f"channels must be 1 to 4, as a PNG file has, got {channels}: images are [n, height, width, "
                         "channels]")


def write_sheet(path: str | Path, images: ArrayLike, levels: int, columns: Optional[int] = None) -> None:
    """Writes images [n, H, W, C] with values 0..levels-1 line by line, `columns` on each; as a square without.

    Small images are enlarged by a whole factor, pixel by pixel. Raises ValueError for more than four channels.
    """
    array = np.asarray(images)
    count, height, width, channels = array.shape
    expect_channels(channels)
    columns = columns or int(np.ceil(np.sqrt(count)))
    lines = -(-count // columns)
    factor = max(SIDE // max(height, width), 1)
    tile = array.repeat(factor, axis=1).repeat(factor, axis=2)
    gap = max(factor // 2, 1)
    size = lines * (height * factor + gap) + gap, columns * (width * factor + gap) + gap
    sheet: NDArray[Any] = np.full((*size, channels), 255, np.uint8)
    for index, image in enumerate(shades(tile, levels)):
        top = gap + index // columns * (height * factor + gap)
        left = gap + index % columns * (width * factor + gap)
        sheet[top:top + height * factor, left:left + width * factor] = image
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet, KINDS[channels]).save(path, optimize=True)
