from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_NFM(TwinModel):
    """TF4CTR-NFM: logistic regression as the simple encoder beside an MLP over pooled products."""

    base_model = "NFM"
    baseline = {"fusion": "sum", "simple_head": False}
    paper = "NFM, arXiv 1708.05027"
    defaults = TwinModel.defaults | {
        "simple_encoder": "lr",
        "complex_encoder": "bi_interaction",
        "complex_hidden_units": [400, 400, 400],
    }
