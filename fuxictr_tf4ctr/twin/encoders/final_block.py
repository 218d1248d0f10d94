"""Factorized interaction blocks: layers that square the degree of the interactions."""

from typing import Literal

import torch
from fuxictr.pytorch.torch_utils import get_activation
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder

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
        spec: Shapes of the view.
        hidden_units: Width of each layer; the last one is the output's.
        residual: Whether a layer's linear part stands beside its products or is added to them.
        feature_gating: Whether the gated fields are appended to the input.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Raises:
        SettingsError: A width is odd where ``residual`` is "concat".

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
        self.spec = spec
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
