"""Fusions: from the two encoders' outputs to one logit, and the table of them by name."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
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

    Example:
        >>> import torch
        >>> from fuxictr_tf4ctr.twin import FUSIONS
        >>> fusion = FUSIONS["WSF"](simple_dim=4, complex_dim=6)
        >>> z, z_s, z_c = fusion(torch.ones(3, 4), torch.ones(3, 6))
        >>> bool((z == 0.5 * z_s + 0.5 * z_c).all())  # its weights before any training
        True

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

    def monitored_values(self) -> dict[str, Tensor]:
        """Return scalars of the last batch by name, such as the weights of the streams."""
        return {}


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


@FUSIONS.register("IA")
class InteractionAggregation(Fusion):
    """z = z_s + z_c + sum over heads of h_s W h_c, each head with its share of both outputs.

    Args:
        num_heads: Number of heads; must divide both widths.

    Raises:
        SettingsError: The widths cannot be divided among the heads.

    Source:
        FinalMLP, arXiv 2304.00902, interaction aggregation layer.
    """

    options: ClassVar[Mapping[str, int]] = {"num_heads": 1}

    def __init__(
        self, simple_dim: int, complex_dim: int, *args, num_heads: int = 1, **kwargs
    ) -> None:
        super().__init__(simple_dim, complex_dim, *args, **kwargs)
        if simple_dim % num_heads or complex_dim % num_heads:
            raise SettingsError(
                f"fusion_num_heads={num_heads} must divide the widths of both encoders' outputs, "
                f"{simple_dim} and {complex_dim}"
            )
        self.head_shape = (num_heads, simple_dim // num_heads, complex_dim // num_heads)
        # A column, as in FinalMLP: the scale of its Xavier initialisation follows from the shape.
        num_products = simple_dim * complex_dim // num_heads
        self.bilinear = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_products, 1)))

    def fuse(self, h_s: Tensor, h_c: Tensor, z_s: Tensor, z_c: Tensor) -> Tensor:
        heads_s, heads_c = (h.unflatten(1, (self.head_shape[0], -1)) for h in (h_s, h_c))
        weight = self.bilinear.view(self.head_shape)
        products = torch.einsum("bhs,hsc,bhc->b", heads_s, weight, heads_c)
        return z_s + z_c + products.unsqueeze(1)


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
