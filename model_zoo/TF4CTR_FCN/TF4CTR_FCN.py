from collections.abc import Mapping

from torch import Tensor

from fuxictr_tf4ctr.registry import register_model
from fuxictr_tf4ctr.twin import TwinModel


@register_model
class TF4CTR_FCN(TwinModel):
    """TF4CTR-FCN: a linear cross network as the simple encoder beside an exponential one."""

    base_model = "FCN"
    baseline = {"fusion": "mean"}
    paper = "DCNv3 / FCN, arXiv 2407.13349"
    defaults = TwinModel.defaults | {
        "simple_encoder": "linear_cross_net",
        "simple_num_layers": 3,
        "complex_encoder": "exponential_cross_net",
        "complex_num_layers": 3,
    }

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the twin's loss; without the Twin Focus Loss, FCN's Tri-BCE.

        There each stream's loss is weighted by how much it exceeds that of the final prediction.
        """
        loss = super().add_loss(return_dict, y_true)
        if self.twin_focus is not None or "y_simple" not in return_dict:
            return loss
        streams = [
            self.loss_fn(return_dict[name], y_true, reduction="mean")
            for name in ("y_simple", "y_complex")
        ]
        return loss + sum(stream * (stream - loss).relu() for stream in streams)
