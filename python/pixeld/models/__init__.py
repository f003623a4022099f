"""Reference models, written to be read: no caches, no blocking tricks, every formula in full; and the table of them."""

from pixeld.models.diagonal_bilstm import DiagonalBiLstm, DiagonalBiLstmConfig
from pixeld.models.gated_pixel_cnn import GatedPixelCnn, GatedPixelCnnConfig
from pixeld.models.image_gpt import ImageGpt, ImageGptConfig
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig
from pixeld.models.pixel_cnn import PixelCnn, PixelCnnConfig
from pixeld.models.pixel_cnn_pp import PixelCnnPp, PixelCnnPpConfig
from pixeld.models.row_lstm import RowLstm, RowLstmConfig

FAMILIES = {
    "image_transformer": (ImageTransformerConfig, ImageTransformer),
    "image_gpt": (ImageGptConfig, ImageGpt),
    "row_lstm": (RowLstmConfig, RowLstm),
    "diagonal_bilstm": (DiagonalBiLstmConfig, DiagonalBiLstm),
    "pixel_cnn": (PixelCnnConfig, PixelCnn),
    "gated_pixel_cnn": (GatedPixelCnnConfig, GatedPixelCnn),
    "pixel_cnn_pp": (PixelCnnPpConfig, PixelCnnPp),
}
