"""The Dynamic Fusion Modules of TF4CTR."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.fusion.base import FUSIONS, Fusion


@FUSIONS.register("sum")
class SumFusion(Fusion):
    """z = z_s + z_c, as in DeepFM and Wide & Deep."""

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        return z_s + z_c


@FUSIONS.register("WSF")
class WeightedSumFusion(Fusion):
    """z = w_1 z_s + w_2 z_c with learned weights that start at 0.5."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.weight = nn.Parameter(torch.full((2, 1), 0.5))

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        return torch.cat([z_s, z_c], dim=-1) @ self.weight

    def monitored_values(self) -> dict[str, Tensor]:
        return _named_weights(self.weight.flatten())


@FUSIONS.register("VF")
class VotingFusion(Fusion):
    """Voting: z = sum p_i z_i, p a Gumbel softmax over the encoders' votes, without noise at test.

    The authors' code samples noise at inference too, so that two predictions of one input differ;
    here the noise belongs to training alone.
    """

    tau = 0.8

    def __init__(self, simple_dim: int, complex_dim: int, *args, **kwargs) -> None:
        super().__init__(simple_dim, complex_dim, *args, **kwargs)
        self.vote_simple = nn.Linear(simple_dim, 1)
        self.vote_complex = nn.Linear(complex_dim, 1)

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        votes = torch.cat([self.vote_simple(h_s), self.vote_complex(h_c)], dim=-1)
        if self.training:
            p = F.gumbel_softmax(votes, tau=self.tau, dim=-1)
        else:
            p = F.softmax(votes / self.tau, dim=-1)
        self.last_weights = p.detach()
        return (p * torch.cat([z_s, z_c], dim=-1)).sum(dim=-1, keepdim=True)

    def monitored_values(self) -> dict[str, Tensor]:
        return _named_weights(self.last_weights.mean(dim=0))


@FUSIONS.register("CF")
class ConcatFusion(Fusion):
    """z = fc([h_s ; h_c]), as in DCN and DCNv2."""

    needs_heads = False

    def __init__(self, simple_dim: int, complex_dim: int, *args, **kwargs) -> None:
        super().__init__(simple_dim, complex_dim, *args, **kwargs)
        self.fc = nn.Linear(simple_dim + complex_dim, 1)

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor | None, z_c: Tensor | None) -> Tensor:
        return self.fc(torch.cat([h_s, h_c], dim=-1))


@FUSIONS.register("MoEF")
class MixtureOfExpertsFusion(Fusion):
    """z = sum over 2 experts of softmax(gate([h_s ; h_c])) * expert([h_s ; h_c])."""

    needs_heads = False

    def __init__(self, simple_dim: int, complex_dim: int, *args, **kwargs) -> None:
        super().__init__(simple_dim, complex_dim, *args, **kwargs)
        self.gate = nn.Linear(simple_dim + complex_dim, 2)
        self.experts = nn.Linear(simple_dim + complex_dim, 2)

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor | None, z_c: Tensor | None) -> Tensor:
        h = torch.cat([h_s, h_c], dim=-1)
        p = F.softmax(self.gate(h), dim=-1)
        self.last_weights = p.detach()
        return (p * self.experts(h)).sum(dim=-1, keepdim=True)

    def monitored_values(self) -> dict[str, Tensor]:
        first, second = self.last_weights.mean(dim=0)
        return {"weight_expert_1": first, "weight_expert_2": second}


def _named_weights(weights: Tensor) -> dict[str, Tensor]:
    """Name the weights [2] of the simple and the complex stream."""
    return {"weight_simple": weights[0], "weight_complex": weights[1]}
