"""Products of field embeddings under an MLP: PNN, NFM."""

import torch
from fuxictr.pytorch.layers import InnerProductInteraction, MLP_Block
from torch import Tensor

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("inner_product")
class InnerProduct(Encoder):
    """MLP over the embeddings and the inner products of all pairs of fields.

    Args:
        spec: Shapes of the view.
        hidden_units: Width of each hidden layer; the last one is the output's.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Source:
        PNN, arXiv 1611.00144, inner product layer (IPNN).
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self.spec = spec
        pairs = torch.triu_indices(spec.num_fields, spec.num_fields, offset=1)
        self.register_buffer("pairs", pairs, persistent=False)
        self.mlp = MLP_Block(
            spec.num_fields * spec.embedding_dim + pairs.shape[1],
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

    def forward(self, view: View) -> Tensor:
        # FuxiCTR's layer selects the pairs by a mask, for which a GPU must wait.
        fields = self.spec.stack(view.embeddings)
        first, second = self.pairs
        products = (fields @ fields.transpose(1, 2))[:, first, second]
        return self.mlp(torch.cat([view.embeddings, products], dim=-1))


@register_encoder("bi_interaction")
class BiInteraction(Encoder):
    """MLP over the sum of the elementwise products of all pairs of fields.

    Args:
        spec: Shapes of the view.
        hidden_units: Width of each hidden layer; the last one is the output's.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Source:
        NFM, arXiv 1708.05027, bi-interaction pooling.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self.spec = spec
        self.pooling = InnerProductInteraction(spec.num_fields, output="bi_interaction")
        self.mlp = MLP_Block(
            spec.embedding_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

    def forward(self, view: View) -> Tensor:
        return self.mlp(self.pooling(self.spec.stack(view.embeddings)))
