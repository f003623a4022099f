"""Row LSTM (PixelRNN, arXiv 1601.06759, section 3.1): an LSTM that takes the image row by row.

Everything but the layer itself is in ``pixeld.models.pixel_rnn``. For row i, all columns at once:

    gates = input_to_state(z)_i + condition_i + state_to_state(hidden_(i-1))        1 x k each; o, f, i, g
    cell_i = f * cell_(i-1) + i * g;  hidden_i = o * tanh(cell_i)                   the layer's h features

Of the image a pixel sees a triangle above it, and in its own row only as far left as the 1 x k maps reach.

Example, all else as in ``pixeld.models.DEFAULTS``; a batch of 2 gives logits [2, 8, 8, 3, 32]:

    model = build("row_lstm", height=8, width=8, channels=3, levels=32, layers=7, hidden_width=64)
    parameters = model(torch.zeros(2, 8, 8, 3, dtype=torch.int64))

Manifest: ``family = "row_lstm"``; ``[architecture]`` has, beside the common keys:

    kernel_width         k, pixels, odd
    initial_state        of the row above the image: "zero", or "learned", one vector for all its columns

Tensors beside the common ones, with <cell> = layers.{l} and n = 4h:

    layers.{l}.input_to_state.weight [4h, 2h, 1, k], .bias [4h]         mask B, the same in each of the four gates
    layers.{l}.state_to_state.weight [4h, h, 1, k]                      no mask, no bias; zeros beyond the ends of a row
    layers.{l}.initial_hidden [h], layers.{l}.initial_cell [h]          learned initial state
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from pixeld.layers import MaskedConv2d
from pixeld.models.pixel_rnn import Layer, PixelRnn, PixelRnnConfig, lstm_cell


@dataclass(frozen=True)
class RowLstmConfig(PixelRnnConfig):
    """Sizes and choices of one Row LSTM."""

    kernel_width: int
    initial_state: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_width % 2 == 0 or self.initial_state not in ("zero", "learned"):
            raise ValueError("kernel_width must be odd, initial_state zero or learned")


class RowLstmLayer(Layer):
    """One layer; see above."""

    def __init__(self, config: RowLstmConfig) -> None:
        super().__init__(config)
        h, kernel = config.hidden_width, (1, config.kernel_width)
        self.width = h
        self.input_to_state = MaskedConv2d(2 * h, h, kernel, config.channels, config.group_scheme, gates=4)
        self.state_to_state = nn.Conv2d(h, 4 * h, kernel, padding=(0, config.kernel_width // 2), bias=False)
        self.condition = config.condition(4 * h)
        learned = config.initial_state == "learned"
        self.initial_hidden = nn.Parameter(torch.zeros(h)) if learned else None
        self.initial_cell = nn.Parameter(torch.zeros(h)) if learned else None

    def forward(self, z: Tensor, classes: Optional[Tensor], maps: Optional[Tensor]) -> Tensor:
        """z [B, 2h, H, W] -> [B, h, H, W]."""
        gates = self.condition(self.input_to_state(z), classes, maps)  # [B, 4h, H, W]
        hidden = torch.zeros_like(gates[:, :self.width, :1])
        cell = hidden
        if self.initial_hidden is not None and self.initial_cell is not None:
            hidden = hidden + self.initial_hidden[:, None, None]
            cell = cell + self.initial_cell[:, None, None]
        rows = []
        for row in range(gates.shape[2]):
            hidden, cell = lstm_cell(gates[:, :, row:row + 1] + self.state_to_state(hidden), cell)
            rows.append(hidden)
        return torch.cat(rows, dim=2)


class RowLstm(PixelRnn):
    """The whole model."""

    def __init__(self, config: RowLstmConfig) -> None:
        super().__init__(config, (RowLstmLayer(config) for _ in range(config.layers)))
