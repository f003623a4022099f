"""What every family's configuration holds besides its own sizes."""

from dataclasses import dataclass, field
from typing import Optional


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
