"""The method: Twin Focus Loss, sample selection, encoders, fusion, and the model of them all."""

from fuxictr_tf4ctr.twin.encoders import ENCODERS, Encoder, register_encoder
from fuxictr_tf4ctr.twin.fusion import FUSIONS, Fusion
from fuxictr_tf4ctr.twin.loss import TwinFocusLoss, focus_weights, twin_focus_loss
from fuxictr_tf4ctr.twin.model import TwinModel
from fuxictr_tf4ctr.twin.sample_selection import SAMPLE_SELECTIONS, SampleSelection

__all__ = [
    "ENCODERS",
    "FUSIONS",
    "SAMPLE_SELECTIONS",
    "Encoder",
    "Fusion",
    "SampleSelection",
    "TwinFocusLoss",
    "TwinModel",
    "focus_weights",
    "register_encoder",
    "twin_focus_loss",
]
