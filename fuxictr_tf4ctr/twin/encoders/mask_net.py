"""Instance-guided masks: each sample decides which bits of its embedding count."""

import torch
from fuxictr.pytorch.layers import MLP_Block
from fuxictr.pytorch.torch_utils import get_activation
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("mask_net")
class MaskNet(Encoder):
    """Parallel mask blocks over the layer-normalized embeddings, then an MLP.

    Args:
        spec: Shapes of the view.
        num_blocks: Number of parallel mask blocks.
        block_dim: Width of each block's output.
        reduction_ratio: Width of a mask's hidden layer, relative to the flat embeddings.
        embedding_norm: Whether each field's embedding is layer-normalized before it is masked.
        layer_norm: Whether each block is layer-normalized before its activation.
        hidden_units: Width of each hidden layer of the MLP; the last one is the output's.
        hidden_activations: Activation of blocks and MLP.
        net_dropout: Dropout rate of blocks and MLP.

    Raises:
        SettingsError: ``reduction_ratio`` leaves a mask no hidden layer.

    Source:
        MaskNet, arXiv 2102.07619, parallel model.
    """

    def __init__(
        self,
        spec: ViewSpec,
        num_blocks: int = 3,
        block_dim: int = 64,
        reduction_ratio: float = 1.0,
        embedding_norm: bool = True,
        layer_norm: bool = True,
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str = "relu",
        net_dropout: float = 0.0,
    ) -> None:
        super().__init__(spec)
        mask_dim = int(spec.input_dim * reduction_ratio)
        if mask_dim < 1:
            raise SettingsError(
                f"reduction_ratio={reduction_ratio!r} must be at least 1/{spec.input_dim}, "
                "1 over the width of the embeddings"
            )
        self.field_dims = spec.field_dims
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if embedding_norm else nn.Identity() for dim in spec.field_dims
        )
        self.blocks = nn.ModuleList(
            MaskBlock(
                spec.input_dim, mask_dim, block_dim, layer_norm, hidden_activations, net_dropout
            )
            for _ in range(num_blocks)
        )
        self.mlp = MLP_Block(
            num_blocks * block_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
        )
        self.output_dim = hidden_units[-1]

    def forward(self, view: View) -> Tensor:
        fields = view.embeddings.split(self.field_dims, dim=-1)
        normed = torch.cat(
            [norm(field) for norm, field in zip(self.norms, fields, strict=True)], dim=-1
        )
        blocks = [block(view.embeddings, normed) for block in self.blocks]
        return self.mlp(torch.cat(blocks, dim=-1))


class MaskBlock(nn.Module):
    """activation(LayerNorm(W (mask * hidden))), the mask being a function of the embeddings.

    Args:
        input_dim: Width of the flat embeddings and of what is masked.
        mask_dim: Width of the mask's hidden layer.
        output_dim: Width of the block's output.
        layer_norm: Whether the block is layer-normalized.
        activation: Activation of the block.
        dropout: Dropout rate of the output.
    """

    def __init__(
        self,
        input_dim: int,
        mask_dim: int,
        output_dim: int,
        layer_norm: bool,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Linear(input_dim, mask_dim), nn.ReLU(), nn.Linear(mask_dim, input_dim)
        )
        self.output = nn.Sequential(
            nn.Linear(input_dim, output_dim, bias=False),
            nn.LayerNorm(output_dim) if layer_norm else nn.Identity(),
            get_activation(activation, output_dim),
            nn.Dropout(dropout),
        )

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Mask ``hidden`` [B, input_dim] as ``embeddings`` [B, input_dim] say; [B, output_dim]."""
        return self.output(self.mask(embeddings) * hidden)
