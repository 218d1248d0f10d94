"""Multi-layer perceptron: implicit feature interactions."""

from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("mlp")
class MLP(Encoder):
    """FuxiCTR's MLP over the flat embeddings.

    Args:
        spec: Shapes of the view.
        hidden_units: Width of each hidden layer; the last one is the output's.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.
    """

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self.mlp = MLP_Block(
            spec.input_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

    def forward(self, view: View) -> Tensor:
        return self.mlp(view.embeddings)
