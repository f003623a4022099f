"""The order of generation: which cell of a grid has which rank."""

import torch
from torch import Tensor


def cells_by_rank(height: int, columns: int, block_height: int, block_width: int) -> Tensor:
    """Raster index of the cell of each rank: int64 [height * columns].

    Blocks of `block_height` x `block_width` cells tile the grid and follow one another in raster order; inside a block
    the cells do (Image Transformer 3.3). One block as wide as the grid gives plain raster order.
    """
    cells = torch.arange(height * columns)
    blocks = cells.view(height // block_height, block_height, columns // block_width, block_width)
    return blocks.permute(0, 2, 1, 3).flatten()
