"""Disentangled self-attention: what a pair of fields says, apart from what each says alone."""

from typing import Literal

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder
from fuxictr_tf4ctr.twin.encoders.self_attention import check_heads


@register_encoder("disentangled_attention")
class DisentangledAttention(Encoder):
    """DESTINE's stack of disentangled self-attention layers.

    Args:
        spec: Shapes of the view.
        num_layers: Number of layers.
        attention_dim: Width of a field after each layer, all heads together.
        num_heads: Number of heads; divides ``attention_dim``.
        residual_mode: Where the projected input is added: after each layer to its own input,
            after the last to the embeddings, or nowhere.
        use_scale: Whether scores are divided by the square root of a head's width.
        relu_before_att: Whether queries, keys and values pass a ReLU.
        att_dropout: Dropout rate of the attention weights.

    Raises:
        SettingsError: ``num_heads`` does not divide ``attention_dim``.

    Source:
        DESTINE, arXiv 2108.08574.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        num_layers: int = 2,
        attention_dim: int = 64,
        num_heads: int = 2,
        residual_mode: Literal["each_layer", "last_layer"] | None = "each_layer",
        use_scale: bool = False,
        relu_before_att: bool = False,
        att_dropout: float = 0.0,
    ) -> None:
        super().__init__(spec)
        check_heads(attention_dim, num_heads)
        self.spec = spec
        input_dims = [spec.embedding_dim] + [attention_dim] * (num_layers - 1)
        self.layers = nn.Sequential(
            *(
                DisentangledLayer(
                    input_dim,
                    attention_dim,
                    num_heads,
                    use_residual=residual_mode == "each_layer",
                    use_scale=use_scale,
                    relu=relu_before_att,
                    dropout=att_dropout,
                )
                for input_dim in input_dims
            )
        )
        last = residual_mode == "last_layer"
        self.residual = nn.Linear(spec.embedding_dim, attention_dim) if last else None
        self.output_dim = spec.num_fields * attention_dim

    def forward(self, view: View) -> Tensor:
        fields = self.spec.stack(view.embeddings)
        output = self.layers(fields)
        if self.residual is not None:
            output = output + self.residual(fields)
        return output.flatten(start_dim=1)


class DisentangledLayer(nn.Module):
    """Attention whose weights are a whitened pairwise softmax plus a unary softmax.

    weight_ij = softmax_j((q_i - mean q) . (k_j - mean k)) + softmax_j(u_j), where u_j is a linear
    function of field j alone.

    The original splits [F, heads * d] into heads by reshaping alone, so that with more than one
    head, "head" h is not slice h of every field but all slices of the h-th part of the fields.
    Its published results stand on that, so it is kept.

    Args:
        input_dim: Width of a field.
        attention_dim: Width of a field after the layer, all heads together.
        num_heads: Number of heads.
        use_residual: Whether the projected input is added.
        use_scale: Whether scores are divided by the square root of a head's width.
        relu: Whether queries, keys and values pass a ReLU.
        dropout: Dropout rate of the attention weights.
    """

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        num_heads: int,
        use_residual: bool,
        use_scale: bool,
        relu: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (attention_dim // num_heads) ** -0.5 if use_scale else 1.0
        self.query = nn.Linear(input_dim, attention_dim)
        self.key = nn.Linear(input_dim, attention_dim)
        self.value = nn.Linear(input_dim, attention_dim)
        self.unary = nn.Linear(input_dim, num_heads)
        self.residual = nn.Linear(input_dim, attention_dim) if use_residual else None
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, F, input_dim] to [B, F, attention_dim]."""
        query, key, value = (
            self._split(self.activation(project(fields)))
            for project in (self.query, self.key, self.value)
        )
        unary = self._split(self.unary(fields).softmax(dim=1))
        weights = self.dropout(self._pairwise(query, key) + unary.transpose(-1, -2))
        output = (weights @ value).reshape(*fields.shape[:2], -1)
        return output if self.residual is None else output + self.residual(fields)

    def _pairwise(self, query: Tensor, key: Tensor) -> Tensor:
        """Softmax over the scores of whitened queries and keys, [B, heads, F, F]."""
        query = query - query.mean(dim=2, keepdim=True)
        key = key - key.mean(dim=2, keepdim=True)
        return torch.softmax(self.scale * query @ key.transpose(-1, -2), dim=-1)

    def _split(self, projected: Tensor) -> Tensor:
        """View [B, F, heads * width] as [B, heads, F, width], as the original does."""
        batch_size, num_fields, _ = projected.shape
        return projected.reshape(batch_size, self.num_heads, num_fields, -1)
