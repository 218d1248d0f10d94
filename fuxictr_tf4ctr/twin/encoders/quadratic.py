"""Quadratic neural network: layers that multiply their input by rectified linear maps of it."""

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


class QuadraticLayer(nn.Module):
    """x + sum over R rows of x * ReLU(W_r x + b_r), head by head: a Khatri-Rao product, summed.

    Args:
        num_fields: Number of fields F.
        input_dim: Width of the input, F * D with several heads.
        num_heads: Number of heads H; each takes its share of every field's embedding.
        num_rows: Number of rows R.
        net_dropout: Dropout rate of the rectified maps and of the output.
        batch_norm: Whether the linear maps are batch-normalized.
    """

    def __init__(
        self,
        num_fields: int,
        input_dim: int,
        num_heads: int,
        num_rows: int,
        net_dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.num_fields, self.num_heads, self.num_rows = num_fields, num_heads, num_rows
        self.linear = nn.Linear(input_dim, input_dim * num_rows)
        self.norm = nn.BatchNorm1d(input_dim * num_rows) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(net_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, input_dim] to the same shape."""
        rows = self.dropout(torch.relu(self.norm(self.linear(x))))
        rows = rows.unflatten(1, (self.num_heads, self.num_rows, -1))
        products = self._heads(x) * rows.sum(dim=2)
        return self.dropout(x + products.flatten(start_dim=1))

    def _heads(self, x: Tensor) -> Tensor:
        """View [B, F * D] as heads [B, H, F * D / H]."""
        if self.num_heads == 1:
            return x.unsqueeze(1)
        fields = x.unflatten(1, (self.num_fields, self.num_heads, -1))
        return fields.transpose(1, 2).flatten(start_dim=2)


@register_encoder("quadratic")
class Quadratic(Encoder):
    """QNN-alpha: each layer doubles the degree of the interactions and adds its input.

    Args:
        spec: Shapes of the view.
        num_layers: Number of quadratic layers.
        num_heads: Number of heads; several must divide the embedding dim.
        num_rows: Number of rectified maps that each element is multiplied by.
        net_dropout: Dropout rate inside and after each layer.
        batch_norm: Whether the linear maps are batch-normalized.

    Raises:
        SettingsError: The embedding dim cannot be divided among the heads.

    Source:
        QNN, arXiv 2505.17999, QNN-alpha (neuron type 26).
    """

    def __init__(
        self,
        spec: ViewSpec,
        num_layers: int = 3,
        num_heads: int = 1,
        num_rows: int = 2,
        net_dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        if num_heads > 1 and spec.embedding_dim % num_heads:
            raise SettingsError(
                f"the encoder quadratic divides embeddings among {num_heads} heads: dim "
                f"{spec.embedding_dim} must be divisible by {num_heads}"
            )
        self.layers = nn.Sequential(
            *(
                QuadraticLayer(
                    spec.num_fields, spec.input_dim, num_heads, num_rows, net_dropout, batch_norm
                )
                for _ in range(num_layers)
            )
        )
        self.output_dim = spec.input_dim

    def forward(self, view: View) -> Tensor:
        return self.layers(view.embeddings)
