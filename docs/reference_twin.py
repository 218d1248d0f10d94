"""TF4CTR in plain PyTorch: the whole method on one page, to be read from top to bottom.

B samples of F id fields, embedding dim D; v is what an encoder sees, h what it makes of it, z a
logit. Left out: dropout, batch norm, regularization, features that are no ids. Outputs, losses and
gradients are those of ``model_zoo.TF4CTR``, by tests/twin/test_reference_twin.py.

Source: TF4CTR, arXiv 2405.03167.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def twin_focus_loss(z_s: Tensor, z_c: Tensor, y: Tensor, c: float, gamma: float, alpha: float):
    """The simple encoder learns what it finds easy, the complex one what it finds hard."""

    def p_t(z):  # the probability given to the true class; gradients flow through it
        return y * torch.sigmoid(z) + (1 - y) * torch.sigmoid(-z)

    def weighted(z, weight):
        return (weight**gamma * F.binary_cross_entropy_with_logits(z, y, reduction="none")).mean()

    simple, complex_ = weighted(z_s, c + p_t(z_s)), weighted(z_c, (2 - c) - p_t(z_c))
    return alpha * simple + (1 - alpha) * complex_


class Embedding(nn.Module):
    """Ids [B, F] to flat embeddings [B, F * D]; id 0 is padding."""

    def __init__(self, vocab_sizes: list[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, dim, padding_idx=0) for n in vocab_sizes)
        self.width = dim * len(vocab_sizes)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([table(ids[:, f]) for f, table in enumerate(self.tables)], dim=1)


class MLP(nn.Sequential):
    """Linear layers with a ReLU after each, and a last one without where an output is asked for."""

    def __init__(self, width: int, hidden: list[int], output: int | None = None) -> None:
        layers = []
        for before, units in zip([width, *hidden], hidden, strict=False):
            layers += [nn.Linear(before, units), nn.ReLU()]
        super().__init__(*layers, *([nn.Linear(hidden[-1], output)] if output else []))


class SampleSelection(nn.Module):
    """SSEM: ids [B, F] to the views v_s and v_c of the two encoders.

    SER:  each encoder has tables of its own, the simple one's half as wide
    GM:   a scalar g per sample deals one embedding out, g e and (1 - g) e
    MoE:  two experts transform one embedding, each encoder mixes them by a gate of its own
    none: both encoders see one embedding
    """

    def __init__(self, kind: str, vocab_sizes: list[int], dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "SER":
            self.simple = Embedding(vocab_sizes, dim // 2)
            self.complex = Embedding(vocab_sizes, dim)
            self.widths = self.simple.width, self.complex.width
            return
        self.embedding = Embedding(vocab_sizes, dim)
        width = self.embedding.width
        self.widths = width, width
        if kind == "GM":
            self.gate = MLP(width, [width // 4], 1)
        elif kind == "MoE":
            self.experts = nn.ModuleList(MLP(width, [width // 2, width]) for _ in range(2))
            self.gates = nn.ModuleList(MLP(width, [width // 4], 2) for _ in range(2))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "SER":
            return self.simple(ids), self.complex(ids)
        e = self.embedding(ids)
        if self.kind == "GM":
            g = torch.sigmoid(self.gate(e))
            return g * e, (1 - g) * e
        if self.kind == "MoE":
            experts = torch.stack([expert(e) for expert in self.experts], dim=1)  # [B, 2, F * D]
            v_s, v_c = (torch.einsum("bk,bkw->bw", g(e).softmax(1), experts) for g in self.gates)
            return v_s, v_c
        return e, e


class Fusion(nn.Module):
    """DFM: the encoders' outputs h_s, h_c and their own logits z_s, z_c to the final logit.

    sum:  z_s + z_c
    WSF:  w_1 z_s + w_2 z_c, w learned
    VF:   each encoder votes on how much its logit counts; with Gumbel noise, in training alone
    CF:   one linear layer over [h_s; h_c]
    MoEF: two linear experts over [h_s; h_c], mixed by a gate
    """

    def __init__(self, kind: str, d_s: int, d_c: int) -> None:
        super().__init__()
        self.kind = kind
        self.head_s, self.head_c = nn.Linear(d_s, 1), nn.Linear(d_c, 1)
        if kind == "WSF":
            self.weight = nn.Parameter(torch.full((2, 1), 0.5))
        elif kind == "VF":
            self.vote_s, self.vote_c = nn.Linear(d_s, 1), nn.Linear(d_c, 1)
        elif kind == "CF":
            self.fc = nn.Linear(d_s + d_c, 1)
        elif kind == "MoEF":
            self.gate, self.experts = nn.Linear(d_s + d_c, 2), nn.Linear(d_s + d_c, 2)

    def forward(self, h_s: Tensor, h_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.cat([h_s, h_c], dim=1)
        z = torch.cat([self.head_s(h_s), self.head_c(h_c)], dim=1)  # [B, 2]
        if self.kind == "sum":
            final = z.sum(1, keepdim=True)
        elif self.kind == "WSF":
            final = z @ self.weight
        elif self.kind == "VF":
            votes = torch.cat([self.vote_s(h_s), self.vote_c(h_c)], dim=1)
            p = F.gumbel_softmax(votes, tau=0.8) if self.training else (votes / 0.8).softmax(1)
            final = (p * z).sum(1, keepdim=True)
        elif self.kind == "CF":
            final = self.fc(h)
        elif self.kind == "MoEF":
            final = (self.gate(h).softmax(1) * self.experts(h)).sum(1, keepdim=True)
        return final, z[:, :1], z[:, 1:]


class Twin(nn.Module):
    """Two encoders, here MLPs, each with its own view, joined by the fusion."""

    def __init__(self, vocab_sizes, dim, selection, fusion, simple_units, complex_units) -> None:
        super().__init__()
        self.selection = SampleSelection(selection, vocab_sizes, dim)
        w_s, w_c = self.selection.widths
        self.simple, self.complex = MLP(w_s, simple_units), MLP(w_c, complex_units)
        self.fusion = Fusion(fusion, simple_units[-1], complex_units[-1])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, F] to the logits z, z_s and z_c, [B, 1] each."""
        v_s, v_c = self.selection(ids)
        return self.fusion(self.simple(v_s), self.complex(v_c))

    def loss(self, ids: Tensor, y: Tensor, c=0.8, gamma=1.0, alpha=0.25) -> Tensor:
        """Cross entropy of the final prediction plus the Twin Focus Loss; labels y [B, 1]."""
        z, *own = self(ids)
        return F.binary_cross_entropy_with_logits(z, y) + twin_focus_loss(*own, y, c, gamma, alpha)
