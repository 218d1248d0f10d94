from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin.pair import PairModel


@register_model
class TF4CTR_Pair(PairModel):
    """TF4CTR-Pair: any two complete FuxiCTR models, ``simple_model`` and ``complex_model``."""

    base_model = "the sum of both models"
    baseline = {"fusion": "sum"}
    paper = "TF4CTR, arXiv 2405.03167"
