"""The CRIS network, written to be read beside the paper."""

from training.model.architecture import Architecture
from training.model.cris import CRIS
from training.model.loss import text_to_pixel_loss

__all__ = ["CRIS", "Architecture", "text_to_pixel_loss"]
