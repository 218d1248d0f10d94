"""Bilinear interactions of fields that are weighted by their importance."""

from typing import Literal

import torch
from fuxictr.pytorch.layers import BilinearInteractionV2, MLP_Block, SqueezeExcitation
from torch import Tensor

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder

BilinearType = Literal["field_all", "field_each", "field_interaction"]


@register_encoder("bilinear")
class Bilinear(Encoder):
    """MLP over the bilinear interactions of the embeddings, as they are and SENET-weighted.

    Args:
        spec: Shapes of the view.
        bilinear_type: What has a weight matrix of its own: "field_interaction" each pair of
            fields, "field_each" each field, "field_all" none (one matrix for all).
        reduction_ratio: Number of fields over the width of SENET's hidden layer.
        excitation_activation: Activation of SENET's weights.
        hidden_units: Width of each hidden layer; the last one is the output's.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Source:
        FiBiNET, arXiv 1905.09433.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        bilinear_type: BilinearType = "field_interaction",
        reduction_ratio: int = 3,
        excitation_activation: Literal["relu", "sigmoid"] = "relu",
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self.spec = spec
        shape = spec.num_fields, spec.embedding_dim
        self.senet = SqueezeExcitation(spec.num_fields, reduction_ratio, excitation_activation)
        self.bilinear = BilinearInteractionV2(*shape, bilinear_type)
        self.senet_bilinear = BilinearInteractionV2(*shape, bilinear_type)
        self.mlp = MLP_Block(
            spec.num_fields * (spec.num_fields - 1) * spec.embedding_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

    def forward(self, view: View) -> Tensor:
        fields = self.spec.stack(view.embeddings)
        pairs = [self.bilinear(fields), self.senet_bilinear(self.senet(fields))]
        return self.mlp(torch.cat(pairs, dim=1).flatten(start_dim=1))
