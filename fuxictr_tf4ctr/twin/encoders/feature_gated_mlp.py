"""MLP behind a feature selection gate: a stream that chooses what it looks at."""

import torch
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("feature_gated_mlp")
class FeatureGatedMLP(Encoder):
    """MLP over embeddings that a gate has weighted, element by element, with factors in (0, 2).

    The gate is an MLP of context fields, embedded in tables of their own; without context it is
    one learned weighting for all samples.

    Args:
        spec: Shapes of the view.
        hidden_units: Width of each hidden layer; the last one is the output's.
        gate_hidden_units: Width of each hidden layer of the gate.
        context: Fields the gate depends on.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Raises:
        SettingsError: A field of ``context`` is not there.

    Source:
        FinalMLP, arXiv 2304.00902, stream-specific feature selection.
    """

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (64, 64, 64),
        gate_hidden_units: list[int] = (64,),
        context: list[str] | None = None,
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        # The context's tables are as wide as the view's.
        dim = max(spec.field_dims)
        if context:
            absent = [name for name in context if name not in spec.field_names]
            if absent:
                raise SettingsError(unknown("context field", absent[0], spec.field_names))
            self.context_embedding = FieldEmbedding(spec.feature_map, dim, fields=context)
            context_dim = self.context_embedding.spec.input_dim
        else:
            self.context_embedding = None
            self.context_bias = nn.Parameter(torch.zeros(1, dim))
            context_dim = dim
        self.gate = MLP_Block(
            context_dim,
            hidden_units=list(gate_hidden_units),
            output_dim=spec.input_dim,
            output_activation="sigmoid",
        )
        self.mlp = MLP_Block(
            spec.input_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

    def forward(self, view: View) -> Tensor:
        if self.context_embedding is None:
            context = self.context_bias
        else:
            context = self.context_embedding(view.inputs)
        return self.mlp(2 * self.gate(context) * view.embeddings)
