"""Dynamic Fusion Modules (DFM): from the two encoders' outputs to one logit."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxictr_tf4ctr.names import NameTable

FUSIONS: NameTable[type["Fusion"]] = NameTable("fusion")


class Logits(NamedTuple):
    """Logits of a batch, [B, 1] each; an encoder's is None where the fusion has no head for it."""

    final: Tensor
    simple: Tensor | None
    complex: Tensor | None


class Fusion(nn.Module):
    """Base of the fusions: the encoders' own heads, and what the fusion adds to them.

    Args:
        simple_dim: Width d_s of the simple encoder's output.
        complex_dim: Width d_c of the complex encoder's output.
        simple_head: False where the simple encoder's output is a logit already (d_s = 1) and is
            taken as it is.
        heads: Whether the encoders' own logits are wanted (the Twin Focus Loss needs them). Where
            they are not, a fusion that does without builds none.

    Attributes:
        options: Further whole-number arguments of a fusion with their defaults; a model sets them
            as ``fusion_<option>``.

    Source:
        TF4CTR, arXiv 2405.03167, Dynamic Fusion Module.
    """

    needs_heads = True
    options: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self, simple_dim: int, complex_dim: int, simple_head: bool = True, heads: bool = True
    ) -> None:
        super().__init__()
        self.has_heads = heads or self.needs_heads
        if self.has_heads:
            self.fc_simple = nn.Linear(simple_dim, 1) if simple_head else nn.Identity()
            self.fc_complex = nn.Linear(complex_dim, 1)

    def forward(self, h_s: Tensor, h_c: Tensor) -> Logits:
        """Fuse the outputs [B, d_s] and [B, d_c] of the simple and the complex encoder."""
        z_s = self.fc_simple(h_s) if self.has_heads else None
        z_c = self.fc_complex(h_c) if self.has_heads else None
        return Logits(self.fuse(h_s, h_c, z_s, z_c), z_s, z_c)

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor | None, z_c: Tensor | None) -> Tensor:
        """Return the final logit [B, 1] from the encoders' outputs and their own logits."""
        raise NotImplementedError


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
        return (p * torch.cat([z_s, z_c], dim=-1)).sum(dim=-1, keepdim=True)


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
        return (F.softmax(self.gate(h), dim=-1) * self.experts(h)).sum(dim=-1, keepdim=True)
