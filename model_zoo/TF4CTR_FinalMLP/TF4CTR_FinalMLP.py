from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_FinalMLP(TwinModel):
    """TF4CTR-FinalMLP: two MLPs behind feature selection gates of their own."""

    base_model = "FinalMLP"
    baseline = {"fusion": "IA"}
    paper = "FinalMLP, arXiv 2304.00902"
    defaults = TwinModel.defaults | {
        "simple_encoder": "feature_gated_mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "feature_gated_mlp",
        "complex_hidden_units": [400, 400, 400],
    }
