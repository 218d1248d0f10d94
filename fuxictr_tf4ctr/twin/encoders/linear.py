"""Encoders whose output is a logit already, LR and FM; and no encoder at all."""

from collections.abc import Mapping

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


class LinearLogit(nn.Module):
    """FuxiCTR's logistic regression, extended to every feature type.

    One weight per id, summed over the fields. FuxiCTR's own layer fails on ``embedding`` features
    (their values have no ids) and leaves the weights of features that share another's embedding
    at torch's N(0, 1); here the former are left out and the latter start like all others.

    Args:
        spec: Shapes of the view; its feature map names the columns.
        use_bias: Whether a bias is added.

    Source:
        ``fuxictr.pytorch.layers.LogisticRegression``.
    """

    def __init__(self, spec: ViewSpec, use_bias: bool = True) -> None:
        super().__init__()
        features = spec.feature_map.features
        without_ids = [name for name, s in features.items() if s["type"] == "embedding"]
        self.bias = nn.Parameter(torch.zeros(1)) if use_bias else None
        self.embedding_layer = FeatureEmbedding(
            spec.feature_map,
            1,
            not_required_feature_columns=without_ids,
            use_pretrain=False,
            use_sharing=False,
        )
        self._sharing = [name for name, s in features.items() if "share_embedding" in s]

    def init_weights(self) -> None:
        """Initialise the weights that FuxiCTR's embedding leaves out (called after its own)."""
        tables = self.embedding_layer.embedding_layer
        for name in self._sharing:
            weight = tables.embedding_layers[name].weight
            with torch.no_grad():
                weight.zero_()
            tables.embedding_initializer(weight[1:])

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Sum the weights of a batch of raw columns to [B, 1]."""
        logit = self.embedding_layer(inputs).sum(dim=1)
        return logit if self.bias is None else logit + self.bias


@register_encoder("lr")
class LR(Encoder):
    """Logistic regression on the raw ids: first-order effects, no interaction.

    Args:
        spec: Shapes of the view.
        use_bias: Whether a bias is added.

    Source:
        The wide part of Wide & Deep, arXiv 1606.07792.
    """

    reads_embeddings = False

    def __init__(self, spec: ViewSpec, use_bias: bool = False) -> None:
        super().__init__(spec)
        self.linear = LinearLogit(spec, use_bias)
        self.output_dim = 1

    def forward(self, view: View) -> Tensor:
        return self.linear(view.inputs)


@register_encoder("fm")
class FM(Encoder):
    """Factorization machine: LR plus the inner products of all pairs of fields, summed.

    Args:
        spec: Shapes of the view.

    Source:
        Rendle, Factorization Machines, ICDM 2010; the wide part of DeepFM, arXiv 1703.04247.
    """

    needs_equal_dims = True

    def __init__(self, spec: ViewSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.linear = LinearLogit(spec, use_bias=True)
        self.product_sum = InnerProductInteraction(spec.num_fields, output="product_sum")
        self.output_dim = 1

    def forward(self, view: View) -> Tensor:
        return self.product_sum(self.spec.stack(view.embeddings)) + self.linear(view.inputs)


@register_encoder("none")
class NoEncoder(Encoder):
    """An encoder of width 0: under the fusion CF, the model is its other encoder and a Linear.

    Args:
        spec: Shapes of the view.
    """

    reads_embeddings = False
    output_dim = 0

    def __init__(self, spec: ViewSpec) -> None:
        super().__init__(spec)

    def forward(self, view: View) -> Tensor:
        return view.embeddings[:, :0]
