"""Gated cross network: explicit interactions, each filtered by an information gate."""

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


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
