from collections.abc import Mapping

from torch import Tensor

from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_FCN(TwinModel):
    """TF4CTR-FCN: a linear cross network as the simple encoder beside an exponential one.

    FCN, first named DCNv3, has two cross networks and no MLP; both mask half of each crossing by
    itself (Self-Mask). The degree of the linear one grows by one per layer, that of the exponential
    one doubles. The mask is ReLU(LayerNorm(h)), times h, as in FuxiCTR's DCNv3; the authors' later
    repository takes LayerNorm(h) itself in place of the product. FuxiCTR multiplies the embedding
    dim by the number of heads, here ``embedding_dim`` is the dim that the heads share.

    The base model's loss (Tri-BCE) adds each stream's, weighted by how far it lags behind the final
    prediction; the Twin Focus Loss takes its place, or with ``base_loss: true`` stands beside it.
    """

    base_model = "FCN"
    has_base_loss = True
    baseline = {"fusion": "mean"}
    paper = "DCNv3 / FCN, arXiv 2407.13349"
    defaults = TwinModel.defaults | {
        "simple_encoder": "linear_cross_net",
        "simple_num_layers": 3,
        "complex_encoder": "exponential_cross_net",
        "complex_num_layers": 3,
    }

    def prediction_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the final prediction, FCN's Tri-BCE included if used.

        There each stream's loss is weighted by how much it exceeds that of the final prediction.
        """
        loss = super().prediction_loss(return_dict, y_true)
        if not self.uses_base_loss or "y_simple" not in return_dict:
            return loss
        streams = [
            self.loss_fn(return_dict[name], y_true, reduction="mean")
            for name in ("y_simple", "y_complex")
        ]
        return loss + sum(stream * (stream - loss).relu() for stream in streams)
