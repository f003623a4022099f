"""What every family's configuration holds besides its own sizes, and every manifest besides ``[architecture]``.

    [image]      height, width, channels, levels
                 palette             with one channel, if levels are not brightness: a colour for each, red, green, blue,
                                     real numbers of 0..=255
                 order               "raster"; or "block_raster", with
                 block_height        rows of a block,
                 block_width         its width, counted in
                 block_unit          "values" or "pixels"
    [head]       kind                "categorical"; or "logistic_mixture", with
                 components          K, and
                 layout              of a pixel's parameters: "saha" in packages written here (``pixeld.mixture``)
    [condition]  classes, required   if it is conditional on a class
                 low_height,         if it is conditional on an image of that size, with the same channels and levels;
                 low_width           each request then needs one
                 low_model           name of the package that draws that image for a request that brings none

Two packages linked by low_model are a multi-scale model (PixelRNN, arXiv 1601.06759, section 3.6). Both stages get the
class, and the noise of the lower one begins where that of the upper one ends: its rank r takes u(seed, image, N + r), N
being the number of values of the upper image.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence


def keyword(default: object) -> object:
    """A field given by keyword alone, so that a family's own fields may follow those of the image."""
    return field(default=default, kw_only=True)


@dataclass(frozen=True)
class ModelConfig:
    """Geometry, conditioning and head; None says that a key is absent."""

    height: int
    width: int
    channels: int
    levels: int
    palette: Optional[Sequence[Sequence[float]]] = keyword(None)  # [levels][3], in 0..=255; None = brightness
    block_height: Optional[int] = keyword(None)  # of the block-raster order; None = raster
    block_width: Optional[int] = keyword(None)
    block_unit: Optional[str] = keyword(None)  # "values" or "pixels", of widths
    components: Optional[int] = keyword(None)  # of the mixture of logistics; None = categorical
    classes: int = keyword(0)  # 0 = unconditional
    low_height: Optional[int] = keyword(None)  # of the low-resolution image that conditions; None = none does
    low_width: Optional[int] = keyword(None)
    dropout: float = keyword(0.0)  # in training only

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 65536:
            raise ValueError("levels must lie in 2..65536")
        if (self.low_height is None) != (self.low_width is None):
            raise ValueError("low_height and low_width come together")
        if self.palette is not None and (self.channels != 1 or len(self.palette) != self.levels):
            raise ValueError("a palette has a colour for each level of one channel")
        block = (self.block_height, self.block_width, self.block_unit)
        if block != (None, None, None):
            if None in block or self.block_unit not in ("values", "pixels"):
                raise ValueError("block_height, block_width and block_unit come together")
            if self.height % block[0] or self.width * self.channels % self.block_columns:
                raise ValueError("the blocks must tile the image")

    @property
    def block_columns(self) -> int:
        """Width of a block in values."""
        return self.block_width * (self.channels if self.block_unit == "pixels" else 1)

    @property
    def value_block(self) -> tuple[int, int]:
        """Height and width of a block in values; without blocks, of the whole image."""
        if self.block_height is None:
            return self.height, self.width * self.channels
        return self.block_height, self.block_columns
