"""Multi-head self-attention between the fields of a sample."""

import torch.nn.functional as F
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("self_attention")
class SelfAttention(Encoder):
    """AutoInt's stack of interacting layers: fields attend to each other.

    Args:
        spec: Shapes of the view.
        num_layers: Number of interacting layers; each raises the order of the interactions.
        attention_dim: Width of a field after each layer, all heads together.
        num_heads: Number of heads; divides ``attention_dim``.
        use_residual: Whether each layer adds its (projected) input.
        use_scale: Whether scores are divided by the square root of a head's width.
        layer_norm: Whether each layer is layer-normalized before its ReLU.
        net_dropout: Dropout rate of the attention weights.

    Raises:
        SettingsError: ``num_heads`` does not divide ``attention_dim``.

    Source:
        AutoInt, arXiv 1810.11921, interacting layer.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        num_layers: int = 3,
        attention_dim: int = 64,
        num_heads: int = 2,
        use_residual: bool = True,
        use_scale: bool = False,
        layer_norm: bool = False,
        net_dropout: float = 0.0,
    ) -> None:
        super().__init__(spec)
        check_heads(attention_dim, num_heads)
        self.spec = spec
        input_dims = [spec.embedding_dim] + [attention_dim] * (num_layers - 1)
        self.layers = nn.Sequential(
            *(
                InteractingLayer(
                    input_dim,
                    attention_dim,
                    num_heads,
                    use_residual=use_residual,
                    use_scale=use_scale,
                    layer_norm=layer_norm,
                    dropout=net_dropout,
                )
                for input_dim in input_dims
            )
        )
        self.output_dim = spec.num_fields * attention_dim

    def forward(self, view: View) -> Tensor:
        return self.layers(self.spec.stack(view.embeddings)).flatten(start_dim=1)


class InteractingLayer(nn.Module):
    """ReLU(heads + residual), the heads being dot-product attention over the fields.

    Args:
        input_dim: Width of a field.
        attention_dim: Width of a field after the layer, all heads together.
        num_heads: Number of heads.
        use_residual: Whether the input is added, projected where the widths differ.
        use_scale: Whether scores are divided by the square root of a head's width.
        layer_norm: Whether the sum is layer-normalized.
        dropout: Dropout rate of the attention weights.
    """

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        num_heads: int,
        use_residual: bool,
        use_scale: bool,
        layer_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_residual = use_residual
        self.scale = (attention_dim // num_heads) ** -0.5 if use_scale else 1.0
        self.dropout = dropout
        self.query = nn.Linear(input_dim, attention_dim, bias=False)
        self.key = nn.Linear(input_dim, attention_dim, bias=False)
        self.value = nn.Linear(input_dim, attention_dim, bias=False)
        if use_residual and input_dim != attention_dim:
            self.residual = nn.Linear(input_dim, attention_dim, bias=False)
        else:
            self.residual = nn.Identity()
        self.norm = nn.LayerNorm(attention_dim) if layer_norm else nn.Identity()

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, F, input_dim] to [B, F, attention_dim]."""
        output = F.scaled_dot_product_attention(
            self._split(self.query(fields)),
            self._split(self.key(fields)),
            self._split(self.value(fields)),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        output = output.transpose(1, 2).flatten(start_dim=2)
        if self.use_residual:
            output = output + self.residual(fields)
        return self.norm(output).relu()

    def _split(self, projected: Tensor) -> Tensor:
        """View [B, F, attention_dim] as [B, heads, F, head width]."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def check_heads(attention_dim: int, num_heads: int) -> None:
    """Raise SettingsError where the heads do not share the attention dim evenly.

    Example:
        >>> check_heads(attention_dim=6, num_heads=2)
    """
    if attention_dim % num_heads:
        raise SettingsError(
            f"attention_dim={attention_dim} must be a multiple of num_heads={num_heads}"
        )
