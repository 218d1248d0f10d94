"""Cross networks: explicit interactions, plain, gated and with a Self-Mask.

Shapes: [B, F, D] fields, [B, input_dim] the same, flat.
"""

import torch
from fuxictr.pytorch.layers import CrossNet as CrossNetLayers
from fuxictr.pytorch.layers import CrossNetMix as CrossNetMixLayers
from fuxictr.pytorch.layers import CrossNetV2 as CrossNetV2Layers
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("cross_net")
class CrossNet(Encoder):
    """Cross network with one weight vector per layer.

    Args:
        spec: Shapes of the view.
        num_layers: Number of cross layers; the degree is one more.

    Source:
        DCN, arXiv 1708.05123, equation 3.
    """

    def __init__(self, spec: ViewSpec, num_layers: int = 3) -> None:
        super().__init__(spec)
        self.cross_net = CrossNetLayers(spec.input_dim, num_layers)
        self.output_dim = spec.input_dim

    def forward(self, view: View) -> Tensor:
        return self.cross_net(view.embeddings)


@register_encoder("cross_net_v2")
class CrossNetV2(Encoder):
    """Cross network with a full weight matrix per layer.

    Args:
        spec: Shapes of the view.
        num_layers: Number of cross layers; the degree is one more.

    Source:
        DCN V2, arXiv 2008.13535, equation 1.
    """

    def __init__(self, spec: ViewSpec, num_layers: int = 3) -> None:
        super().__init__(spec)
        self.cross_net = CrossNetV2Layers(spec.input_dim, num_layers)
        self.output_dim = spec.input_dim

    def forward(self, view: View) -> Tensor:
        return self.cross_net(view.embeddings)


@register_encoder("cross_net_mix")
class CrossNetMix(Encoder):
    """Cross network whose matrices are a gated mixture of low-rank experts.

    Args:
        spec: Shapes of the view.
        num_layers: Number of cross layers; the degree is one more.
        low_rank: Rank of each expert.
        num_experts: Number of experts per layer.

    Source:
        DCN V2, arXiv 2008.13535, equations 3 and 4.
    """

    def __init__(
        self, spec: ViewSpec, num_layers: int = 3, low_rank: int = 32, num_experts: int = 4
    ) -> None:
        super().__init__(spec)
        self.cross_net = CrossNetMixLayers(spec.input_dim, num_layers, low_rank, num_experts)
        self.output_dim = spec.input_dim

    def forward(self, view: View) -> Tensor:
        # FuxiCTR's layer squeezes the batch axis of a single sample away.
        return self.cross_net(view.embeddings).view(-1, self.output_dim)


@register_encoder("gated_cross_net")
class GatedCrossNet(Encoder):
    """Cross network v2 with a gate on every bit of each layer's interactions.

    Args:
        spec: Shapes of the view.
        num_layers: Number of gated cross layers; the degree is one more.

    Source:
        GDCN, arXiv 2311.04635, gated cross layer.
    """

    def __init__(self, spec: ViewSpec, num_layers: int = 3) -> None:
        super().__init__(spec)
        self.layers = nn.ModuleList(GatedCrossLayer(spec.input_dim) for _ in range(num_layers))
        self.output_dim = spec.input_dim

    def forward(self, view: View) -> Tensor:
        x = view.embeddings
        for layer in self.layers:
            x = layer(view.embeddings, x)
        return x


class GatedCrossLayer(nn.Module):
    """x_0 * (W x + b) * sigmoid(W_g x) + x.

    Args:
        dim: Width of x_0 and x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cross = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False)
        # Not the Linear's own bias: FuxiCTR would start that at 0, the original starts in U(0, 1).
        self.bias = nn.Parameter(torch.rand(dim))

    def forward(self, x_0: Tensor, x: Tensor) -> Tensor:
        """Cross the layer's input [B, dim] with the network's input [B, dim]."""
        return x_0 * (self.cross(x) + self.bias) * torch.sigmoid(self.gate(x)) + x


class MaskedCrossLayer(nn.Module):
    """One crossing: x + anchor * ([h ; h * mask(h)] + b), with h = W x half as wide as x.

    Self-Mask: mask(h) = ReLU(LayerNorm(h)) silences about half of the elements.

    Args:
        dim: Width of the input, even.
        num_heads: Number of heads; they share all weights.
        net_dropout: Dropout rate of the output.
        batch_norm: Whether h is batch-normalized, head by head.
        layer_norm: Whether the mask normalizes h.
    """

    def __init__(
        self, dim: int, num_heads: int, net_dropout: float, batch_norm: bool, layer_norm: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2, bias=False)
        self.batch_norm = nn.BatchNorm1d(num_heads) if batch_norm else nn.Identity()
        self.layer_norm = nn.LayerNorm(dim // 2) if layer_norm else nn.Identity()
        self.bias = nn.Parameter(torch.rand(dim))
        self.dropout = nn.Dropout(net_dropout)

    def forward(self, x: Tensor, anchor: Tensor) -> Tensor:
        """Cross x with anchor, both [B, H, dim]."""
        h = self.batch_norm(self.linear(x))
        mask = torch.relu(self.layer_norm(h))
        return self.dropout(x + anchor * (torch.cat([h, h * mask], dim=-1) + self.bias))


class MaskedCrossNet(Encoder):
    """Base of both networks; they differ in what a layer's input is crossed with.

    Each head sees its share of every field's embedding, the first halves of all fields before the
    second halves. The output is the mean over heads.

    Args:
        spec: Shapes of the view.
        num_layers: Number of crossings.
        num_heads: Number of heads; twice as many must divide the embedding dim.
        net_dropout: Dropout rate after each layer.
        batch_norm: Whether each layer is batch-normalized.
        layer_norm: Whether the masks normalize.

    Raises:
        SettingsError: The embedding dim cannot be divided among the heads.

    Source:
        DCNv3 / FCN, arXiv 2407.13349.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        num_layers: int = 3,
        num_heads: int = 1,
        net_dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(spec)
        if spec.embedding_dim % (2 * num_heads):
            raise SettingsError(
                f"this encoder divides embeddings into {num_heads} heads of two halves: dim "
                f"{spec.embedding_dim} must be divisible by {2 * num_heads}"
            )
        self.split = (spec.num_fields, num_heads, 2, spec.embedding_dim // (2 * num_heads))
        self.output_dim = spec.input_dim // num_heads
        self.layers = nn.ModuleList(
            MaskedCrossLayer(self.output_dim, num_heads, net_dropout, batch_norm, layer_norm)
            for _ in range(num_layers)
        )

    def forward(self, view: View) -> Tensor:
        x = view.embeddings.unflatten(1, self.split).permute(0, 2, 3, 1, 4).flatten(start_dim=2)
        return self.cross(x).mean(dim=1)

    def cross(self, x: Tensor) -> Tensor:
        """Run all layers on heads [B, H, dim]."""
        raise NotImplementedError


@register_encoder("linear_cross_net")
class LinearCrossNet(MaskedCrossNet):
    """LCN: crosses with the input, so that each layer raises the degree by one."""

    def cross(self, x: Tensor) -> Tensor:
        anchor = x
        for layer in self.layers:
            x = layer(x, anchor)
        return x


@register_encoder("exponential_cross_net")
class ExponentialCrossNet(MaskedCrossNet):
    """ECN: crosses with itself, so that each layer doubles the degree."""

    def cross(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, x)
        return x
