"""Mean fusion: the average of both encoders' logits."""

from torch import Tensor

from fuxictr_tf4ctr.twin.fusion import FUSIONS, Fusion


@FUSIONS.register("mean")
class MeanFusion(Fusion):
    """z = (z_s + z_c) / 2, as in FinalNet and FCN."""

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        return 0.5 * (z_s + z_c)
