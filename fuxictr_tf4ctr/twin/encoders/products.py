"""Products of fields: pairs under an MLP, compressed interactions, quadratic layers."""

from typing import Any, Literal

import torch
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    CompressedInteractionNet,
    InnerProductInteraction,
    SqueezeExcitation,
)
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, MLPEncoder, register_encoder


@register_encoder("inner_product")
class InnerProduct(MLPEncoder):
    """MLP over the embeddings and the inner products of all pairs of fields.

    Example:
        >>> InnerProduct(spec, hidden_units=[6, 4])(view).shape
        torch.Size([5, 4])

    Source:
        PNN, arXiv 1611.00144, inner product layer (IPNN).
    """

    needs_equal_dims = True

    def __init__(self, spec: ViewSpec, **mlp: Any) -> None:
        super().__init__(spec, **mlp)
        pairs = torch.triu_indices(spec.num_fields, spec.num_fields, offset=1)
        self.register_buffer("pairs", pairs, persistent=False)
        self.mlp = self.make_mlp(spec.num_fields * spec.embedding_dim + pairs.shape[1])

    def forward(self, view: View) -> Tensor:
        # FuxiCTR's layer selects the pairs by a mask, for which a GPU must wait.
        fields = self.spec.stack(view.embeddings)
        first, second = self.pairs
        products = (fields @ fields.transpose(1, 2))[:, first, second]
        return self.mlp(torch.cat([view.embeddings, products], dim=-1))


@register_encoder("bi_interaction")
class BiInteraction(MLPEncoder):
    """MLP over the sum of the elementwise products of all pairs of fields.

    Example:
        >>> BiInteraction(spec, hidden_units=[6, 4])(view).shape
        torch.Size([5, 4])

    Source:
        NFM, arXiv 1708.05027, bi-interaction pooling.
    """

    needs_equal_dims = True

    def __init__(self, spec: ViewSpec, **mlp: Any) -> None:
        super().__init__(spec, **mlp)
        self.pooling = InnerProductInteraction(spec.num_fields, output="bi_interaction")
        self.mlp = self.make_mlp(spec.embedding_dim)

    def forward(self, view: View) -> Tensor:
        return self.mlp(self.pooling(self.spec.stack(view.embeddings)))


BilinearType = Literal["field_all", "field_each", "field_interaction"]


@register_encoder("bilinear")
class Bilinear(MLPEncoder):
    """MLP over the bilinear interactions of the embeddings, as they are and SENET-weighted.

    Args:
        bilinear_type: What has a weight matrix of its own: "field_interaction" each pair of
            fields, "field_each" each field, "field_all" none (one matrix for all).
        reduction_ratio: Number of fields over the width of SENET's hidden layer.
        excitation_activation: Activation of SENET's weights.

    Example:
        >>> Bilinear(spec, reduction_ratio=2, hidden_units=[6])(view).shape
        torch.Size([5, 6])

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
        **mlp: Any,
    ) -> None:
        super().__init__(spec, **mlp)
        shape = spec.num_fields, spec.embedding_dim
        self.senet = SqueezeExcitation(spec.num_fields, reduction_ratio, excitation_activation)
        self.bilinear = BilinearInteractionV2(*shape, bilinear_type)
        self.senet_bilinear = BilinearInteractionV2(*shape, bilinear_type)
        self.mlp = self.make_mlp(spec.num_fields * (spec.num_fields - 1) * spec.embedding_dim)

    def forward(self, view: View) -> Tensor:
        fields = self.spec.stack(view.embeddings)
        pairs = [self.bilinear(fields), self.senet_bilinear(self.senet(fields))]
        return self.mlp(torch.cat(pairs, dim=1).flatten(start_dim=1))


@register_encoder("cin")
class CIN(Encoder):
    """Compressed interaction network with a linear layer on its pooled feature maps.

    Args:
        hidden_units: Number of feature maps of each layer.
        output_dim: Width of the output; 1 makes it a logit, as in xDeepFM.

    Example:
        >>> CIN(spec, hidden_units=[6], output_dim=3)(view).shape
        torch.Size([5, 3])

    Source:
        xDeepFM, arXiv 1803.05170, equations 6 to 8.
    """

    needs_equal_dims = True

    def __init__(
        self, spec: ViewSpec, hidden_units: list[int] = (16, 16), output_dim: int = 1
    ) -> None:
        super().__init__(spec)
        self.cin = CompressedInteractionNet(spec.num_fields, list(hidden_units), output_dim)
        self.output_dim = output_dim

    def forward(self, view: View) -> Tensor:
        return self.cin(self.spec.stack(view.embeddings))


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
        num_layers: Number of quadratic layers.
        num_heads: Number of heads; several must divide the embedding dim.
        num_rows: Number of rectified maps that each element is multiplied by.
        net_dropout: Dropout rate inside and after each layer.
        batch_norm: Whether the linear maps are batch-normalized.

    Raises:
        SettingsError: The embedding dim cannot be divided among the heads.

    Example:
        >>> Quadratic(spec, num_heads=2)(view).shape
        torch.Size([5, 32])

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
