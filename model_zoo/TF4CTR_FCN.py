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
    prediction; the Twin Focus Loss takes its place.
    """

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
