from collections.abc import Mapping
from typing import Any

from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_xDeepFM(TwinModel):
    """TF4CTR-xDeepFM: a compressed interaction network as the simple encoder beside an MLP.

    The network (CIN) models explicit interactions of bounded degree. The logistic regression of
    xDeepFM is added to the final logit only.
    """

    base_model = "xDeepFM"
    baseline = {"fusion": "sum", "simple_head": False, "simple_output_dim": 1}
    paper = "xDeepFM, arXiv 1803.05170"
    defaults = TwinModel.defaults | {
        "simple_encoder": "cin",
        "simple_hidden_units": [16, 16],
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
        "linear_logit": True,
    }

    @classmethod
    def complete(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        params = super().complete(params)
        if params["simple_encoder"] == "cin" and params["complex_encoder"] == "mlp":
            params.setdefault("simple_output_dim", params["complex_hidden_units"][-1])
        return params
