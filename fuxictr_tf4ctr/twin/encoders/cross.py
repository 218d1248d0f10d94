"""Interactions of growing order: cross networks, logarithmic neurons, phases of complex numbers.

Shapes: [B, F, D] fields, [B, input_dim] the same, flat.
"""

import itertools
from typing import Any, ClassVar

import torch
from fuxictr.pytorch.layers import CrossNet as CrossNetLayers
from fuxictr.pytorch.layers import CrossNetMix as CrossNetMixLayers
from fuxictr.pytorch.layers import CrossNetV2 as CrossNetV2Layers
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, MLPEncoder, register_encoder


@register_encoder("cross_net")
class CrossNet(Encoder):
    """Cross network with one weight vector per layer.

    Args:
        num_layers: Number of cross layers; the degree is one more.

    Example:
        >>> CrossNet(spec, num_layers=2)(view).shape
        torch.Size([5, 32])

    Source:
        DCN, arXiv 1708.05123, equation 3.
    """

    made_of: ClassVar[type[nn.Module]] = CrossNetLayers

    def __init__(self, spec: ViewSpec, num_layers: int = 3) -> None:
        super().__init__(spec)
        self.cross_net = self.made_of(spec.input_dim, num_layers)
        self.output_dim = spec.input_dim

    def forward(self, view: View) -> Tensor:
        return self.cross_net(view.embeddings)


@register_encoder("cross_net_v2")
class CrossNetV2(CrossNet):
    """Cross network with a full weight matrix per layer.

    Example:
        >>> CrossNetV2(spec, num_layers=2)(view).shape
        torch.Size([5, 32])

    Source:
        DCN V2, arXiv 2008.13535, equation 1.
    """

    made_of = CrossNetV2Layers


@register_encoder("cross_net_mix")
class CrossNetMix(Encoder):
    """Cross network whose matrices are a gated mixture of low-rank experts.

    Args:
        num_layers: Number of cross layers; the degree is one more.
        low_rank: Rank of each expert.
        num_experts: Number of experts per layer.

    Example:
        >>> CrossNetMix(spec, low_rank=4)(view).shape
        torch.Size([5, 32])

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
        num_layers: Number of gated cross layers; the degree is one more.

    Example:
        >>> GatedCrossNet(spec, num_layers=2)(view).shape
        torch.Size([5, 32])

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
    """LCN: crosses with the input, so that each layer raises the degree by one.

    Example:
        >>> LinearCrossNet(spec, num_heads=2)(view).shape
        torch.Size([5, 16])
    """

    def cross(self, x: Tensor) -> Tensor:
        anchor = x
        for layer in self.layers:
            x = layer(x, anchor)
        return x


@register_encoder("exponential_cross_net")
class ExponentialCrossNet(MaskedCrossNet):
    """ECN: crosses with itself, so that each layer doubles the degree.

    Example:
        >>> ExponentialCrossNet(spec, num_layers=2)(view).shape
        torch.Size([5, 32])
    """

    def cross(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, x)
        return x


@register_encoder("afn")
class AFN(MLPEncoder):
    """MLP over logarithmic neurons: products of fields, each raised to a learned power.

    Neuron j is exp(sum_i w_ij ln|e_i|) = prod_i |e_i|^w_ij, elementwise over the embedding dim.
    Both the logarithms and the products are batch-normalized, by field and by neuron.

    Args:
        logarithmic_neurons: Number of learned products.
        own_embedding: Whether the encoder reads embedding tables of its own in place of its view,
            as in AFN+. The sample selection SER gives it such tables anyway.

    Example:
        >>> AFN(spec, logarithmic_neurons=3, hidden_units=[6])(view).shape
        torch.Size([5, 6])

    Source:
        AFN, arXiv 1909.03276.
    """

    needs_equal_dims = True
    # Nearer to 0 a logarithm would drown the others; the bound is FuxiCTR's, not the paper's 1e-7.
    smallest = 1e-5

    def __init__(
        self,
        spec: ViewSpec,
        logarithmic_neurons: int = 600,
        own_embedding: bool = False,
        **mlp: Any,
    ) -> None:
        super().__init__(spec, **mlp)
        self.embedding = (
            FieldEmbedding(spec.feature_map, spec.embedding_dim) if own_embedding else None
        )
        self.log_norm = nn.BatchNorm1d(spec.num_fields)
        self.powers = nn.Linear(spec.num_fields, logarithmic_neurons, bias=False)
        self.exp_norm = nn.BatchNorm1d(logarithmic_neurons)
        self.mlp = self.make_mlp(logarithmic_neurons * spec.embedding_dim)

    def forward(self, view: View) -> Tensor:
        embeddings = view.embeddings if self.embedding is None else self.embedding(view.inputs)
        fields = self.spec.stack(embeddings)
        logs = self.log_norm(fields.abs().clamp_min(self.smallest).log())
        products = self.powers(logs.transpose(1, 2)).transpose(1, 2).exp()
        return self.mlp(self.exp_norm(products).flatten(start_dim=1))


class EulerInteraction(nn.Module):
    """One layer: products of powers of the complex fields, plus a rectified linear map of them.

    A product of powers is, by Euler's formula, a linear map of log-modulus and phase; its
    coefficients, the order vectors, are learned.

    Args:
        num_fields: Number of complex fields n that come in.
        num_orders: Number of order vectors m, the complex fields that go out.
        dim: Embedding dim D.
        explicit_dropout: Dropout rate of log-moduli and phases.
        implicit_dropout: Dropout rate of the linear map's input.
        layer_norm: Whether the output is layer-normalized.
    """

    def __init__(
        self,
        num_fields: int,
        num_orders: int,
        dim: int,
        explicit_dropout: float,
        implicit_dropout: float,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        if num_fields == num_orders:
            orders = torch.eye(num_fields)
        else:
            # So sharp a softmax makes each order vector pick one field to begin with.
            orders = torch.softmax(torch.randn(num_orders, num_fields) / 0.01, dim=1)
        self.orders = nn.Parameter(orders)
        self.modulus_bias = nn.Parameter(0.01 * torch.randn(num_orders, dim))
        self.phase_bias = nn.Parameter(0.01 * torch.randn(num_orders, dim))
        self.linear = nn.Linear(num_fields * dim, num_orders * dim)
        self.explicit_dropout = nn.Dropout(explicit_dropout)
        self.implicit_dropout = nn.Dropout(implicit_dropout)
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if layer_norm else nn.Identity() for _ in ("real", "imaginary")
        )

    def init_weights(self) -> None:
        """Initialise as EulerNet does: FuxiCTR calls this after its own initialisation."""
        self.linear.reset_parameters()
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Map real and imaginary parts [B, n, D] to [B, m, D] each."""
        real, imaginary = parts
        modulus, phase = self._powers(real, imaginary)
        products = modulus * phase.cos(), modulus * phase.sin()
        first, second = (
            norm(product + self._implicit(part))
            for norm, product, part in zip(self.norms, products, parts, strict=True)
        )
        return first, second

    def _powers(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """Return modulus and phase, [B, m, D] each, of the products of powers."""
        log_modulus = 0.5 * torch.log(real.square() + imaginary.square() + 1e-8)
        phase = torch.atan2(imaginary, real)
        log_modulus = self.orders @ self.explicit_dropout(log_modulus) + self.modulus_bias
        phase = self.orders @ self.explicit_dropout(phase) + self.phase_bias
        return log_modulus.exp(), phase

    def _implicit(self, part: Tensor) -> Tensor:
        mapped = torch.relu(self.linear(self.implicit_dropout(part.flatten(start_dim=1))))
        return mapped.view(-1, *self.modulus_bias.shape)


@register_encoder("euler")
class Euler(Encoder):
    """Embeddings as phases of complex numbers, taken through layers of Euler interactions.

    The output is the sum of real and imaginary parts: EulerNet applies one Linear to both and adds
    the results.

    Args:
        num_orders: Number of order vectors of each layer.
        explicit_dropout: Dropout rate in front of the order vectors.
        implicit_dropout: Dropout rate in front of the linear maps.
        layer_norm: Whether each layer is layer-normalized.

    Example:
        >>> Euler(spec, num_orders=[3, 2])(view).shape
        torch.Size([5, 16])

    Source:
        EulerNet, SIGIR 2023, arXiv 2304.10711.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        num_orders: list[int] = (3,),
        explicit_dropout: float = 0.0,
        implicit_dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self.modulus = nn.Parameter(torch.ones(spec.num_fields, 1))
        widths = [spec.num_fields, *num_orders]
        self.layers = nn.Sequential(
            *(
                EulerInteraction(
                    n, m, spec.embedding_dim, explicit_dropout, implicit_dropout, layer_norm
                )
                for n, m in itertools.pairwise(widths)
            )
        )
        self.output_dim = widths[-1] * spec.embedding_dim

    def forward(self, view: View) -> Tensor:
        phase = self.spec.stack(view.embeddings)
        real, imaginary = self.layers((self.modulus * phase.cos(), self.modulus * phase.sin()))
        return (real + imaginary).flatten(start_dim=1)
