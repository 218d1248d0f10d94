"""What a fusion is, and the table of fusions by name."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

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
