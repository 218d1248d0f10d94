"""Multi-layer perceptrons: plain, behind gates and masks, and of factorized layers."""

from typing import Any, Literal

import torch
from fuxictr.pytorch.layers import MLP_Block
from fuxictr.pytorch.torch_utils import get_activation
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, MLPEncoder, register_encoder


@register_encoder("mlp")
class MLP(MLPEncoder):
    """FuxiCTR's MLP over the flat embeddings.

    Example:
        >>> MLP(spec, hidden_units=[6, 4])(view).shape
        torch.Size([5, 4])
    """

    def __init__(self, spec: ViewSpec, **mlp: Any) -> None:
        super().__init__(spec, **mlp)
        self.mlp = self.make_mlp(spec.input_dim)

    def forward(self, view: View) -> Tensor:
        return self.mlp(view.embeddings)


@register_encoder("feature_gated_mlp")
class FeatureGatedMLP(MLPEncoder):
    """MLP over embeddings that a gate has weighted, element by element, with factors in (0, 2).

    The gate is an MLP of context fields, embedded in tables of their own; without context it is
    one learned weighting for all samples.

    Args:
        hidden_units: Width of each hidden layer; the last one is the output's.
        gate_hidden_units: Width of each hidden layer of the gate.
        context: Fields the gate depends on.

    Raises:
        SettingsError: A field of ``context`` is not there.

    Example:
        >>> FeatureGatedMLP(spec, hidden_units=[6], context=["user"])(view).shape
        torch.Size([5, 6])

    Source:
        FinalMLP, arXiv 2304.00902, stream-specific feature selection.
    """

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (64, 64, 64),
        gate_hidden_units: list[int] = (64,),
        context: list[str] | None = None,
        **mlp: Any,
    ) -> None:
        super().__init__(spec, hidden_units, **mlp)
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
        self.mlp = self.make_mlp(spec.input_dim)

    def forward(self, view: View) -> Tensor:
        if self.context_embedding is None:
            context = self.context_bias
        else:
            context = self.context_embedding(view.inputs)
        return self.mlp(2 * self.gate(context) * view.embeddings)


@register_encoder("mask_net")
class MaskNet(Encoder):
    """Parallel mask blocks over the layer-normalized embeddings, then an MLP.

    Args:
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

    Example:
        >>> MaskNet(spec, num_blocks=2, hidden_units=[6])(view).shape
        torch.Size([5, 6])

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


Residual = Literal["concat", "sum"]


class FactorizedInteraction(nn.Module):
    """Two linear maps a, b of the input, joined to [a ; a * b] or a + a * b.

    Args:
        input_dim: Width of the input.
        output_dim: Width of the output, even for ``concat``.
        residual: "concat" or "sum".

    Source:
        FinalNet, SIGIR 2023, factorized interaction layer.
    """

    def __init__(self, input_dim: int, output_dim: int, residual: Residual) -> None:
        super().__init__()
        self.residual = residual
        self.linear = nn.Linear(input_dim, output_dim if residual == "concat" else 2 * output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, input_dim] to [B, output_dim]."""
        a, b = self.linear(x).chunk(2, dim=-1)
        return torch.cat([a, a * b], dim=-1) if self.residual == "concat" else a + a * b


class FeatureGating(nn.Module):
    """Fields scaled by a linear map across fields, beside the fields themselves.

    Args:
        num_fields: Number of fields F.

    Source:
        FinalNet, SIGIR 2023, feature gating.
    """

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_fields, num_fields)

    def init_weights(self) -> None:
        """Start with every gate open: FuxiCTR calls this after its own initialisation."""
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, F, D] to [B, 2F, D]."""
        gates = self.linear(fields.transpose(1, 2)).transpose(1, 2)
        return torch.cat([fields, fields * gates], dim=1)


@register_encoder("final_block")
class FinalBlock(Encoder):
    """Stack of factorized interactions; each layer doubles the degree of the interactions.

    Args:
        hidden_units: Width of each layer; the last one is the output's.
        residual: Whether a layer's linear part stands beside its products or is added to them.
        feature_gating: Whether the gated fields are appended to the input.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Raises:
        SettingsError: A width is odd where ``residual`` is "concat".

    Example:
        >>> FinalBlock(spec, hidden_units=[6, 4])(view).shape
        torch.Size([5, 4])

    Source:
        FinalNet: Factorized Interaction Layer for CTR Prediction, SIGIR 2023.
    """

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (64, 64, 64),
        residual: Residual = "concat",
        feature_gating: bool = False,
        hidden_activations: str | list[str] | None = None,
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = True,
    ) -> None:
        super().__init__(spec)
        if residual == "concat" and any(units % 2 for units in hidden_units):
            raise SettingsError(
                f"the encoder final_block halves every layer: hidden_units {list(hidden_units)} "
                "must be even, or residual 'sum'"
            )
        self.gating = FeatureGating(spec.num_fields) if feature_gating else None
        self.layers = nn.Sequential()
        width = 2 * spec.num_fields * spec.embedding_dim if feature_gating else spec.input_dim
        activations = _per_layer(hidden_activations, hidden_units)
        dropouts = _per_layer(net_dropout, hidden_units)
        for units, activation, dropout in zip(hidden_units, activations, dropouts, strict=True):
            layer = nn.Sequential(FactorizedInteraction(width, units, residual))
            if batch_norm:
                layer.append(nn.BatchNorm1d(units))
            if activation is not None:
                layer.append(get_activation(activation, units))
            if dropout > 0:
                layer.append(nn.Dropout(dropout))
            self.layers.append(layer)
            width = units
        self.output_dim = width

    def forward(self, view: View) -> Tensor:
        x = view.embeddings
        if self.gating is not None:
            x = self.gating(self.spec.stack(x)).flatten(start_dim=1)
        return self.layers(x)


def _per_layer(option: object, hidden_units: list[int]) -> list:
    """Repeat an option given once for all layers."""
    if not isinstance(option, list):
        return [option] * len(hidden_units)
    if len(option) != len(hidden_units):
        raise SettingsError(f"{option} must have one entry per layer, {len(hidden_units)} in all")
    return option
