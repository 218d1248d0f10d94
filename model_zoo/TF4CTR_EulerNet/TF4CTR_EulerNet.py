from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_EulerNet(TwinModel):
    """TF4CTR-EulerNet: an MLP as the simple encoder beside Euler interactions."""

    base_model = "EulerNet"
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "EulerNet, arXiv 2304.10711"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "euler",
        "complex_num_orders": [7],
    }
