"""Cross networks: explicit interactions of bounded degree."""

from fuxictr.pytorch.layers import CrossNet as CrossNetLayers
from fuxictr.pytorch.layers import CrossNetMix as CrossNetMixLayers
from fuxictr.pytorch.layers import CrossNetV2 as CrossNetV2Layers
from torch import Tensor

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
