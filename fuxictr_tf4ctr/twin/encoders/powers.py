"""Interactions whose orders are learned: logarithmic neurons, and phases of complex numbers."""

import itertools

import torch
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("afn")
class AFN(Encoder):
    """MLP over logarithmic neurons: products of fields, each raised to a learned power.

    Neuron j is exp(sum_i w_ij ln|e_i|) = prod_i |e_i|^w_ij, elementwise over the embedding dim.
    Both the logarithms and the products are batch-normalized, by field and by neuron.

    Args:
        spec: Shapes of the view.
        logarithmic_neurons: Number of learned products.
        hidden_units: Width of each hidden layer; the last one is the output's.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each hidden layer is batch-normalized before its activation.
        own_embedding: Whether the encoder reads embedding tables of its own in place of its view,
            as in AFN+. The sample selection SER gives it such tables anyway.

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
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
        own_embedding: bool = False,
    ) -> None:
        super().__init__(spec)
        self.spec = spec
        self.embedding = (
            FieldEmbedding(spec.feature_map, spec.embedding_dim) if own_embedding else None
        )
        self.log_norm = nn.BatchNorm1d(spec.num_fields)
        self.powers = nn.Linear(spec.num_fields, logarithmic_neurons, bias=False)
        self.exp_norm = nn.BatchNorm1d(logarithmic_neurons)
        self.mlp = MLP_Block(
            logarithmic_neurons * spec.embedding_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

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
        spec: Shapes of the view.
        num_orders: Number of order vectors of each layer.
        explicit_dropout: Dropout rate in front of the order vectors.
        implicit_dropout: Dropout rate in front of the linear maps.
        layer_norm: Whether each layer is layer-normalized.

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
        self.spec = spec
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
