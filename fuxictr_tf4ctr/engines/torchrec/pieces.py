"""Tensors of which every rank has some rows, gathered on rank 0 and scattered again."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fuxictr_tf4ctr.distributed.ranks import JoinedRanks


class Piece(NamedTuple):
    """Rows of the tensor ``name``, from its row ``start`` on."""

    name: str
    start: int
    rows: Tensor


class _Description(NamedTuple):
    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        return self.start + self.shape[0]


@torch.no_grad()
def gather(pieces: Sequence[Piece], ranks: JoinedRanks) -> dict[str, Tensor]:
    """Put the pieces of all ranks together, in the memory of rank 0's host.

    Args:
        pieces: Those of this rank.
        ranks: All ranks; each calls this.

    Returns:
        Name -> whole tensor on rank 0, nothing on the others.
    """
    pieces = [piece for piece in pieces if len(piece.rows)]
    described = _described(pieces, ranks)
    if not ranks.leads:
        for piece in pieces:
            dist.send(piece.rows.cpu().contiguous(), 0, group=ranks.control)
        return {}
    whole = _empty(each for own in described for each in own)
    for rank, own in enumerate(described):
        for at, each in enumerate(own):
            target = whole[each.name][each.start : each.stop]
            if rank == 0:
                target.copy_(pieces[at].rows)
            else:
                dist.recv(target, rank, group=ranks.control)
    return whole


@torch.no_grad()
def scatter(whole: Mapping[str, Tensor], pieces: Sequence[Piece], ranks: JoinedRanks) -> None:
    """Fill the pieces of all ranks from whole tensors.

    Args:
        whole: Name -> tensor; that of rank 0 counts.
        pieces: Those of this rank; their ``rows`` are overwritten.
        ranks: All ranks; each calls this.
    """
    pieces = [piece for piece in pieces if len(piece.rows)]
    described = _described(pieces, ranks)
    if not ranks.leads:
        for piece in pieces:
            rows = torch.empty(piece.rows.shape, dtype=piece.rows.dtype)
            dist.recv(rows, 0, group=ranks.control)
            piece.rows.copy_(rows)
        return
    for rank, own in enumerate(described):
        for at, each in enumerate(own):
            rows = whole[each.name][each.start : each.stop]
            if rank == 0:
                pieces[at].rows.copy_(rows)
            else:
                dist.send(rows.to("cpu", each.dtype).contiguous(), rank, group=ranks.control)


def _described(pieces: Sequence[Piece], ranks: JoinedRanks) -> list[list[_Description]]:
    own = [_Description(name, start, rows.shape, rows.dtype) for name, start, rows in pieces]
    return ranks.all_gather(own)


def _empty(described: Sequence[_Description]) -> dict[str, Tensor]:
    largest: dict[str, _Description] = {}
    for each in described:
        if each.name not in largest or each.stop > largest[each.name].stop:
            largest[each.name] = each
    return {
        name: torch.empty(last.stop, *last.shape[1:], dtype=last.dtype)
        for name, last in largest.items()
    }
