"""No encoder: leaves a model's other stream alone."""

from torch import Tensor

from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


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
