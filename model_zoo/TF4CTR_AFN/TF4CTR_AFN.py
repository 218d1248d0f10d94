from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_AFN(TwinModel):
    """TF4CTR-AFN: logarithmic neurons as the simple encoder beside an MLP."""

    base_model = "AFN"
    baseline = {"fusion": "affine", "simple_own_embedding": True}
    paper = "AFN, arXiv 1909.03276"
    defaults = TwinModel.defaults | {
        "simple_encoder": "afn",
        "simple_logarithmic_neurons": 600,
        "simple_hidden_units": [400],
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
        "batch_norm": True,
    }
