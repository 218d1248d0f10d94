"""Compressed interaction network: explicit vector-wise interactions."""

from fuxictr.pytorch.layers import CompressedInteractionNet
from torch import Tensor

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("cin")
class CIN(Encoder):
    """Compressed interaction network with a linear layer on its pooled feature maps.

    Args:
        spec: Shapes of the view.
        hidden_units: Number of feature maps of each layer.
        output_dim: Width of the output; 1 makes it a logit, as in xDeepFM.

    Source:
        xDeepFM, arXiv 1803.05170, equations 6 to 8.
    """

    needs_equal_dims = True

    def __init__(
        self, spec: ViewSpec, hidden_units: list[int] = (16, 16), output_dim: int = 1
    ) -> None:
        super().__init__(spec)
        self.spec = spec
        self.cin = CompressedInteractionNet(spec.num_fields, list(hidden_units), output_dim)
        self.output_dim = output_dim

    def forward(self, view: View) -> Tensor:
        return self.cin(self.spec.stack(view.embeddings))
