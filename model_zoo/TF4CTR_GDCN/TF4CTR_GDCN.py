from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_GDCN(TwinModel):
    """TF4CTR-GDCN: a gated cross network as the simple encoder beside an MLP."""

    base_model = "GDCN"
    baseline = {"fusion": "CF"}
    paper = "GDCN, arXiv 2311.04635"
    defaults = TwinModel.defaults | {
        "simple_encoder": "gated_cross_net",
        "simple_num_layers": 3,
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }
