from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_DIN(TwinModel):
    """TF4CTR-DIN: an MLP on pooled sequences beside one with target attention.

    ``complex_target`` and ``complex_sequence`` name the fields where shared embeddings do not tell.
    """

    base_model = "DIN"
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "DIN, arXiv 1706.06978"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "target_attention",
        "complex_hidden_units": [512, 128, 64],
    }
