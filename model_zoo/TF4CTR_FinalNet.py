from collections.abc import Mapping

from torch import Tensor

from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_FinalNet(TwinModel):
    """TF4CTR-FinalNet: a shallow and a deep stack of factorized interactions.

    FinalNet replaces the layers of an MLP by products of two linear maps, so that every layer
    doubles the degree of the interactions. Degree is depth: one layer, products of pairs, is the
    simple encoder; three layers, degree eight, the complex one.

    The base model is FuxiCTR's with ``block_type: 2B``. In its loss each block learns the mean
    prediction too (self-distillation); the Twin Focus Loss takes its place, or with
    ``base_loss: true`` stands beside it.
    """

    base_model = "FinalNet"
    has_base_loss = True
    baseline = {"fusion": "mean"}
    paper = "FinalNet, SIGIR 2023"
    defaults = TwinModel.defaults | {
        "simple_encoder": "final_block",
        "simple_hidden_units": [64],
        "simple_batch_norm": True,
        "complex_encoder": "final_block",
        "complex_hidden_units": [64, 64, 64],
        "complex_batch_norm": True,
    }

    def prediction_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the final prediction, FinalNet's self-distillation included if used.

        By it both streams learn the final prediction beside the labels.
        """
        loss = super().prediction_loss(return_dict, y_true)
        if self.uses_base_loss and "y_simple" in return_dict:
            teacher = return_dict["y_pred"].detach()
            for stream in ("y_simple", "y_complex"):
                loss = loss + self.loss_fn(return_dict[stream], teacher, reduction="mean")
        return loss
