"""The CRIS network, written to be read beside the paper, and CandidateNet, the one for photos."""

from training.model.architecture import Architecture
from training.model.candidatenet import CandidateArchitecture, CandidateNet
from training.model.cris import CRIS
from training.model.loss import text_to_pixel_loss

__all__ = ["CRIS", "Architecture", "CandidateArchitecture", "CandidateNet", "text_to_pixel_loss"]
