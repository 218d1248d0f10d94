from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_FiBiNET(TwinModel):
    """TF4CTR-FiBiNET: logistic regression as the simple encoder beside bilinear interactions."""

    base_model = "FiBiNET"
    baseline = {"fusion": "sum", "simple_head": False}
    paper = "FiBiNET, arXiv 1905.09433"
    defaults = TwinModel.defaults | {
        "simple_encoder": "lr",
        "complex_encoder": "bilinear",
        "complex_bilinear_type": "field_interaction",
        "complex_hidden_units": [400, 400, 400],
    }
