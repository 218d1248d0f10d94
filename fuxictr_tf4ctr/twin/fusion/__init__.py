"""Fusions, from the two encoders' outputs to one logit; importing the package registers them."""

from fuxictr_tf4ctr.twin.fusion import dynamic, interaction_aggregation, of_base_models
from fuxictr_tf4ctr.twin.fusion.base import FUSIONS, Fusion, Logits

__all__ = ["FUSIONS", "Fusion", "Logits", "dynamic", "interaction_aggregation", "of_base_models"]
