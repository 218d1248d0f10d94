from collections.abc import Mapping

from torch import Tensor

from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_QNN(TwinModel):
    """TF4CTR-QNN: an MLP as the simple encoder beside a quadratic neural network.

    QNN-alpha multiplies its input, layer by layer, by rectified linear maps of itself (a Khatri-Rao
    product) and adds the input. It has one stream, of degree 2^layers: the complex encoder.

    The base model trains on two predictions of each batch under different dropout masks
    (self-ensemble loss), at twice the time per step; the Twin Focus Loss takes its place, or with
    ``base_loss: true`` stands beside it.
    """

    base_model = "QNN"
    has_base_loss = True
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "QNN-alpha, arXiv 2505.17999"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "quadratic",
        "complex_num_layers": 3,
    }

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict a batch; as QNN in training a second time, under another dropout mask."""
        outputs = super().forward(inputs)
        if self.training and self.uses_base_loss:
            outputs["y_again"] = super().forward(inputs)["y_pred"]
        return outputs

    def prediction_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the final prediction, as QNN's self-ensemble loss if that is used.

        By it the mean of two predictions learns the labels, and each of them learns the mean.
        """
        if "y_again" not in return_dict:
            return super().prediction_loss(return_dict, y_true)
        predictions = return_dict["y_pred"], return_dict["y_again"]
        mean = 0.5 * sum(predictions)
        return self.loss_fn(mean, y_true, reduction="mean") + sum(
            self.loss_fn(y_pred, mean.detach(), reduction="mean") for y_pred in predictions
        )
