"""Embedding tables side by side: one lookup and one gradient for all tables of one width.

FuxiCTR keeps an ``nn.Embedding`` per field. Here the weights of the tables that have the same width
and regularization lie in one buffer, each weight a view of its rows, so that names, ``state_dict``
and optimizer state stay what they are.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Order of the norm and strength of each regularization of a weight.
Terms = tuple[tuple[int, float], ...]


class TableGroup:
    """Tables of one width, dtype, device and regularization in one buffer.

    Args:
        members: Weights of the tables; they become views of the buffer.
        terms: Regularization of their weights.

    Attributes:
        starts: Row of the buffer each begins at.
        rows: Rows of all tables.
        weights: [rows + 1, width] all tables, and a row of zeros that is no table's.
        pending: Rows looked up since the last :meth:`take`, with the gradients they got.
    """

    def __init__(self, members: Sequence[nn.Parameter], terms: Terms = ()) -> None:
        first = members[0]
        self.terms = terms
        self.members = list(members)
        self.rows = sum(len(weight) for weight in self.members)
        self.weights = first.new_zeros(self.rows + 1, first.shape[1])
        self.starts = [0, *accumulate(map(len, self.members[:-1]))]
        for weight, view in zip(self.members, self.views(self.weights), strict=True):
            weight.data = view.copy_(weight.detach())
        self.pending: list[tuple[Tensor, Tensor]] = []
        # What ties a lookup into the graph: the weights themselves would get dense gradients.
        self.anchor = first.new_zeros((), requires_grad=True)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Cut a buffer of the shape of ``weights`` into the tables' parts."""
        return list(buffer[: self.rows].split([len(weight) for weight in self.members]))

    def look_up(self, rows: Tensor, padding: Tensor) -> Tensor:
        """Return embeddings of rows of the buffer.

        Args:
            rows: Rows, any shape.
            padding: Row that learns nothing, -1 for none; broadcast to the shape of ``rows``.

        Returns:
            [*rows.shape, width] embeddings.
        """
        if not torch.is_grad_enabled():
            return F.embedding(rows, self.weights)
        return _LookUp.apply(self.anchor, rows, padding, self)

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Return the rows looked up and their gradients, [N] and [N, width], and forget them."""
        pending, self.pending = self.pending, []
        if not pending:
            return None
        if len(pending) == 1:
            return pending[0]
        rows, gradients = zip(*pending, strict=True)
        return torch.cat(rows), torch.cat(gradients)


class _LookUp(torch.autograd.Function):
    """Rows of a buffer; their gradients are noted, not spread over the buffer."""

    @staticmethod
    def forward(ctx, anchor: Tensor, rows: Tensor, padding: Tensor, group: TableGroup) -> Tensor:
        ctx.group = group
        # The gradient of padding goes to the row that is no table's.
        ctx.rows = torch.where(rows == padding, group.rows, rows).flatten()
        return F.embedding(rows, group.weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, None, None]:
        width = gradient.shape[-1]
        ctx.group.pending.append((ctx.rows, gradient.reshape(-1, width)))
        return None, None, None, None


def group_tables(model: nn.Module, terms: Mapping[nn.Parameter, Terms]) -> list[TableGroup]:
    """Lay the plain embedding tables of a model side by side.

    Args:
        model: Model on its device; left alone are tables that renormalise, scale or fix weights.
        terms: Regularization of each weight; those without any may be missing.

    Returns:
        The groups.
    """
    alike: dict[tuple, list[nn.Parameter]] = {}
    for weight in table_weights(model):
        kind = (weight.shape[1], weight.dtype, weight.device, terms.get(weight, ()))
        alike.setdefault(kind, []).append(weight)
    return [TableGroup(weights, kind[-1]) for kind, weights in alike.items()]


def table_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a model's plain tables, each once."""
    weights = (module.weight for module in model.modules() if is_plain(module))
    return list(dict.fromkeys(weights))


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a table that looks rows up and does nothing else."""
    return (
        type(module) is nn.Embedding
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
        and module.weight.requires_grad
    )
