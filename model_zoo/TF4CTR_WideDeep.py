from collections.abc import Mapping
from typing import Any

from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_WideDeep(TwinModel):
    """TF4CTR-WideDeep: logistic regression as the simple encoder beside an MLP.

    The regression on raw ids memorizes first-order effects, the MLP generalizes. Under the fusion
    WSF the authors take the output of the regression as the simple encoder's logit, under the
    others they apply a Linear to it; ``simple_head`` overrides this.
    """

    base_model = "WideDeep"
    baseline = {"fusion": "sum", "simple_head": False}
    paper = "Wide & Deep, arXiv 1606.07792"
    defaults = {key: value for key, value in TwinModel.defaults.items() if key != "simple_head"} | {
        "simple_encoder": "lr",
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }

    @classmethod
    def complete(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        params = super().complete(params)
        params.setdefault("simple_head", params["fusion"] != "WSF")
        return params
