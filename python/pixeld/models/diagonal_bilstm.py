"""Diagonal BiLSTM (PixelRNN, arXiv 1601.06759, section 3.2): two LSTMs that take the image diagonal by diagonal.

Everything but the layer itself is in ``pixeld.models.pixel_rnn``. The left-to-right direction:

    gates(i, j) = input_to_state(z(i, j)) + condition(i, j) + K_0 hidden(i-1, j) + K_1 hidden(i, j-1)         o, f, i, g
    cell(i, j) = f * cell(i, j-1) + i * g;  hidden(i, j) = o * tanh(cell(i, j))

The cell state comes from the left neighbour alone. The right-to-left direction is the same on the mirrored image, with
the neighbours (i-1, j) and (i, j+1). The layer's h features at (i, j) are hidden_left(i, j) + hidden_right(i-1, j): the
output of the right direction moves down one row, zeros come in at the top. A value sees all before it but one: as mask
A hides the last channel of a pixel from the pixel's own place in the stream, the last value of a row is seen in the row
below only as far left as the first convolution reaches.

Skewed so that pixel (i, j) stands in column i + j, a diagonal is a column and the neighbours are (i-1, t-1) and (i,
t-1). The skewed image has cells before column 0 of the image; ``pad_state`` says what state they are in:

    "zero"       zeros, and zeros above the image
    "learned"    initial_hidden and initial_cell of the direction, and initial_hidden above the image
    "evolve"     they run like all others on pre-activations that are just the bias of input_to_state, from zeros before
                 the first skewed column; zeros above the image. So the state at (i, -1) is that after i such steps

Example, all else as in ``pixeld.models.DEFAULTS``; a batch of 2 gives logits [2, 8, 8, 3, 32]:

    model = build("diagonal_bilstm", height=8, width=8, channels=3, levels=32, layers=2, hidden_width=32)
    parameters = model(torch.zeros(2, 8, 8, 3, dtype=torch.int64))

Manifest: ``family = "diagonal_bilstm"``; ``[architecture]`` has pad_state beside the common keys.

Tensors beside the common ones, for D = left and D = right, with <cell> = layers.{l}.D and n = 4h:

    layers.{l}.D.input_to_state.weight [4h, 2h, 1, 1], .bias [4h]       mask B, the same in each of the four gates
    layers.{l}.D.state_to_state.weight [4h, h, 2, 1]                    K_0 (above), K_1 (beside); no mask, no bias
    layers.{l}.D.initial_hidden [h], layers.{l}.D.initial_cell [h]      pad_state "learned"
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from pixeld.layers import MaskedConv2d
from pixeld.models.pixel_rnn import Layer, PixelRnn, PixelRnnConfig, lstm_cell


@dataclass(frozen=True)
class DiagonalBiLstmConfig(PixelRnnConfig):
    """Sizes and choices of one Diagonal BiLSTM."""

    pad_state: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad_state not in ("zero", "learned", "evolve"):
            raise ValueError(f"unknown pad_state {self.pad_state!r}")


class Direction(nn.Module):
    """The left-to-right LSTM over a whole image."""

    def __init__(self, config: DiagonalBiLstmConfig) -> None:
        super().__init__()
        h = config.hidden_width
        self.width = h
        self.evolve = config.pad_state == "evolve"
        self.input_to_state = MaskedConv2d(2 * h, h, (1, 1), config.channels, config.group_scheme, gates=4)
        self.state_to_state = nn.Conv2d(h, 4 * h, (2, 1), bias=False)
        self.condition = config.condition(4 * h)
        learned = config.pad_state == "learned"
        self.initial_hidden = nn.Parameter(torch.zeros(h)) if learned else None
        self.initial_cell = nn.Parameter(torch.zeros(h)) if learned else None

    def skewed(self, gates: Tensor) -> Tensor:
        """Moves row i right by i: [B, 4h, H, W] -> [B, 4h, H, H + W - 1], the bias in all other cells."""
        batch, features, height, width = gates.shape
        bias = self.input_to_state.bias
        assert bias is not None
        skewed = bias[None, :, None, None].repeat(batch, 1, height, height + width - 1)
        for row in range(height):
            skewed[:, :, row, row:row + width] = gates[:, :, row]
        return skewed

    def forward(self, z: Tensor, classes: Optional[Tensor], maps: Optional[Tensor]) -> Tensor:
        """z [B, 2h, H, W] -> [B, h, H, W]."""
        height, width = z.shape[2], z.shape[3]
        gates = self.skewed(self.condition(self.input_to_state(z), classes, maps))
        before = torch.zeros_like(gates[:, :self.width, :, :1])  # states before the image: [B, h, H, 1]
        cell_before = before
        if self.initial_hidden is not None and self.initial_cell is not None:
            before = before + self.initial_hidden[:, None, None]
            cell_before = cell_before + self.initial_cell[:, None, None]
        hidden, cell, above = before, cell_before, before[:, :, :1]
        row = torch.arange(height, device=z.device)[:, None]
        columns = []
        for column in range(height + width - 1):
            state = self.state_to_state(torch.cat([above, hidden], dim=2))
            hidden, cell = lstm_cell(gates[:, :, :, column:column + 1] + state, cell)
            if not self.evolve:
                hidden = torch.where(row > column, before, hidden)
                cell = torch.where(row > column, cell_before, cell)
            columns.append(hidden)
        skewed = torch.cat(columns, dim=3)
        return torch.stack([skewed[:, :, i, i:i + width] for i in range(height)], dim=2)


class DiagonalBiLstmLayer(Layer):
    """Both directions; see above."""

    def __init__(self, config: DiagonalBiLstmConfig) -> None:
        super().__init__(config)
        self.left = Direction(config)
        self.right = Direction(config)

    def forward(self, z: Tensor, classes: Optional[Tensor], maps: Optional[Tensor]) -> Tensor:
        """z [B, 2h, H, W] -> [B, h, H, W]."""
        left = self.left(z, classes, maps)
        right = self.right(z.flip(3), classes, None if maps is None else maps.flip(3)).flip(3)
        return left + torch.cat([torch.zeros_like(right[:, :, :1]), right[:, :, :-1]], dim=2)


class DiagonalBiLstm(PixelRnn):
    """The whole model."""

    def __init__(self, config: DiagonalBiLstmConfig) -> None:
        super().__init__(config, (DiagonalBiLstmLayer(config) for _ in range(config.layers)))
