"""Fusions of the encoders' own logits that some base models use."""

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.fusion.base import FUSIONS, Fusion


@FUSIONS.register("mean")
class MeanFusion(Fusion):
    """z = (z_s + z_c) / 2, as in FinalNet and FCN."""

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        return 0.5 * (z_s + z_c)


@FUSIONS.register("affine")
class AffineFusion(Fusion):
    """z = fc([z_s ; z_c]) = w_1 z_s + w_2 z_c + b, the ensemble of AFN+.

    Source:
        AFN, arXiv 1909.03276, "ensemble AFN with DNN".
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fc = nn.Linear(2, 1)

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        return self.fc(torch.cat([z_s, z_c], dim=-1))


@FUSIONS.register("biased_sum")
class BiasedSumFusion(Fusion):
    """z = z_s + z_c + b: ``sum`` with the bias of a third, linear term, as in DESTINE."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.bias = nn.Parameter(torch.zeros(1))

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        return z_s + z_c + self.bias
