"""Interaction aggregation: fusion by the products of both encoders' outputs."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.fusion.base import FUSIONS, Fusion


@FUSIONS.register("IA")
class InteractionAggregation(Fusion):
    """z = z_s + z_c + sum over heads of h_s W h_c, each head with its share of both outputs.

    Args:
        simple_dim: Width d_s of the simple encoder's output.
        complex_dim: Width d_c of the complex encoder's output.
        num_heads: Number of heads; must divide both widths.

    Raises:
        SettingsError: The widths cannot be divided among the heads.

    Source:
        FinalMLP, arXiv 2304.00902, interaction aggregation layer.
    """

    options: ClassVar[Mapping[str, int]] = {"num_heads": 1}

    def __init__(
        self, simple_dim: int, complex_dim: int, *args, num_heads: int = 1, **kwargs
    ) -> None:
        super().__init__(simple_dim, complex_dim, *args, **kwargs)
        if simple_dim % num_heads or complex_dim % num_heads:
            raise SettingsError(
                f"fusion_num_heads={num_heads} must divide the widths of both encoders' outputs, "
                f"{simple_dim} and {complex_dim}"
            )
        self.head_shape = (num_heads, simple_dim // num_heads, complex_dim // num_heads)
        # A column, as in FinalMLP: the scale of its Xavier initialisation follows from the shape.
        num_products = simple_dim * complex_dim // num_heads
        self.bilinear = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_products, 1)))

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        heads_s, heads_c = (h.unflatten(1, (self.head_shape[0], -1)) for h in (h_s, h_c))
        weight = self.bilinear.view(self.head_shape)
        products = torch.einsum("bhs,hsc,bhc->b", heads_s, weight, heads_c)
        return z_s + z_c + products.unsqueeze(1)
