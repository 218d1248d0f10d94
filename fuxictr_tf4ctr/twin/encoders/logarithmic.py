"""Logarithmic transformation: interactions whose orders are learned."""

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
