"""Embedding tables side by side: one lookup and one gradient for all tables of one width.

FuxiCTR keeps an ``nn.Embedding`` per field. Here the weights of the tables that have the same width
and regularization lie in one buffer, each weight a view of its rows, so that names, ``state_dict``
and optimizer state stay what they are.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_tf4ctr.datasets.loader import CheckedBatch
from fuxictr_tf4ctr.training.regularization import Penalty, Terms, penalties, slope


class TableGroup:
    """Tables of one width, dtype, device and regularization in one buffer.

    Args:
        members: Weights of the tables; they become views of the buffer.

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

    def look_up(self, rows: Tensor, learning: Tensor) -> Tensor:
        """Return embeddings of rows of the buffer.

        Args:
            rows: Rows, any shape.
            learning: The same, with the row of zeros in place of those that learn nothing.

        Returns:
            [*rows.shape, width] embeddings.
        """
        return _LookUp.apply(self.anchor, rows, learning, self)

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
    def forward(ctx, anchor: Tensor, rows: Tensor, learning: Tensor, group: TableGroup) -> Tensor:
        ctx.rows, ctx.group = learning, group
        return F.embedding(rows, group.weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, None, None]:
        width = gradient.shape[-1]
        ctx.group.pending.append((ctx.rows.flatten(), gradient.reshape(-1, width)))
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


class _Place(NamedTuple):
    """Where the rows of a table are: in which group, from where, how many, which of them pads."""

    group: TableGroup
    start: int
    size: int
    padding: int


class _Layout:
    """The ids of some fields side by side, as rows of a group's buffer.

    Groups whose tables lie alike, as those of both encoders under SER do, share one.

    Args:
        fields: Name of each field and its place.
        lengths: Ids per sample of each; 0 for a column [B].
    """

    def __init__(self, fields: Sequence[tuple[str, _Place]], lengths: Sequence[int]) -> None:
        self.names = [name for name, _ in fields]
        self.lengths = lengths
        group = fields[0][1].group
        self._spare = group.rows
        repeated = zip(fields, lengths, strict=True)
        numbers = [place[1:] for (_, place), length in repeated for _ in range(length or 1)]
        self._pads = any(padding >= 0 for _, _, padding in numbers)
        columns = torch.tensor(numbers, device=group.weights.device).unbind(1)
        self._starts, self._sizes, self._paddings = columns
        self.forget()

    def forget(self) -> None:
        """Let go of the last batch."""
        self._seen: list[tuple[Tensor, int]] = []
        self._rows: Tensor | None = None
        self._learning: Tensor | None = None

    def look_up(self, group: TableGroup, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return embeddings [B, ids per sample, width] of a batch.

        Args:
            group: One whose tables lie as the layout says.
            inputs: Columns by name, [B] or [B, L] ids each.

        Raises:
            IndexError: An id is outside its table, on a CPU; other devices fail later.
        """
        columns = [inputs[name] for name in self.names]
        seen = [(column, column._version) for column in columns]
        known = len(seen) == len(self._seen) and all(
            now is before and version == then
            for (now, version), (before, then) in zip(seen, self._seen, strict=True)
        )
        if not known:
            ids = _side_by_side(columns)
            if not isinstance(inputs, CheckedBatch):
                check_range(ids, self._sizes)
            self._seen, self._rows, self._learning = seen, ids + self._starts, None
        if not torch.is_grad_enabled():
            return F.embedding(self._rows, group.weights)
        if self._learning is None:
            self._learning = self._rows
            if self._pads:  # the gradient of padding goes to the row that is no table's
                padding = self._rows == self._paddings
                self._learning = self._rows.masked_fill(padding, self._spare)
        return group.look_up(self._rows, self._learning)


class FusedLookups:
    """The lookups of all FuxiCTR embedding layers of a model, fused, and those of single tables.

    Layers are called as before and return what they returned before. One with other features
    beside plain tables (numbers, pretrained embeddings) fuses the plain ones.

    Args:
        model: Model whose tables are in ``groups``.
        compiled: Whether the model's forward pass is compiled; the lookups stay outside of that.
    """

    def __init__(
        self, model: nn.Module, groups: Iterable[TableGroup], compiled: bool = False
    ) -> None:
        self._compiled = compiled
        self._places = {
            weight: _Place(group, start, len(weight), -1)
            for group in groups
            for weight, start in zip(group.members, group.starts, strict=True)
        }
        self._layouts: dict[tuple, _Layout] = {}
        self._patched: list[tuple[nn.Module, str]] = []
        for module in model.modules():
            if type(module) is FeatureEmbeddingDict:
                self._patch(module, self._dict_forward)
            elif type(module) is FeatureEmbedding:
                self._patch(module, self._flat_forward)
            elif self._place_of(module) is not None:
                self._patch(module, self._table_forward)
            elif isinstance(module, BaseModel) and not compiled:
                self._pass_mark_on(module)

    def release(self) -> None:
        """Give the layers their own lookups back."""
        for module, name in self._patched:
            delattr(module, name)
        self._patched.clear()

    def forget(self) -> None:
        """Let go of the last batch; a step that is recorded must compute all it needs."""
        for layout in self._layouts.values():
            layout.forget()

    def _patch(self, module: nn.Module, fused: Callable) -> None:
        plain = module.forward

        def forward(inputs: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys() <= {"feature_source", "feature_type", "flatten_emb"}:
                return plain(inputs, *args, **kwargs)  # a model's own mistake, in FuxiCTR's words
            return fused(module, plain, inputs, *args, **kwargs)

        # Not as a decorator: that would import the compiler, for seconds, with this module.
        module.forward = torch.compiler.disable(forward) if self._compiled else forward
        self._patched.append((module, "forward"))

    def _pass_mark_on(self, model: BaseModel) -> None:
        """Let what a model extracts of a checked batch be known as checked."""
        plain = model.get_inputs

        def get_inputs(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            columns = plain(inputs, *args, **kwargs)
            by_its_map = isinstance(inputs, CheckedBatch) and (
                inputs.feature_map is model.feature_map
            )
            return CheckedBatch(columns, model.feature_map) if by_its_map else columns

        model.get_inputs = get_inputs
        self._patched.append((model, "get_inputs"))

    def _flat_forward(
        self,
        layer: FeatureEmbedding,
        plain: Callable,
        inputs: Mapping[str, Tensor],
        feature_source: Any = (),
        feature_type: Any = (),
        flatten_emb: bool = False,
    ) -> Tensor:
        """Embed all features side by side, fields that follow each other as one block."""
        tables = layer.embedding_layer
        specs = tables._feature_map.features
        places = {name: self._place(tables, name) for name in specs if name in inputs}
        fields = [
            name
            for name, place in places.items()
            if place is not None and inputs[name].ndim == 1 and name not in tables.feature_encoders
        ]
        others = _part(inputs, [name for name in inputs if name not in fields])
        embedded = tables(others) if others else {}
        if feature_source or feature_type or any(each.ndim != 2 for each in embedded.values()):
            return plain(inputs, feature_source, feature_type, flatten_emb)
        ordered = [name for name in specs if name in embedded or name in fields]
        blocks = []
        for group, run in groupby(ordered, key=lambda name: name in fields and places[name].group):
            names = list(run)
            if group:
                layout = self._layout([(name, places[name]) for name in names], inputs)
                blocks.append(layout.look_up(group, inputs))
            else:
                blocks += [embedded[name].unsqueeze(1) for name in names]
        if flatten_emb:
            blocks = [block.flatten(start_dim=1) for block in blocks]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _dict_forward(
        self,
        tables: FeatureEmbeddingDict,
        plain: Callable,
        inputs: Mapping[str, Tensor],
        feature_source: Any = (),
        feature_type: Any = (),
    ) -> Mapping[str, Tensor]:
        """Embed each field by name, those of one group and of one or more ids a sample at once."""
        if feature_source or feature_type:
            return plain(inputs, feature_source, feature_type)
        alike: dict[tuple, list[tuple[str, _Place]]] = {}
        for name in inputs:
            place = self._place(tables, name)
            if place is not None:
                kind = (id(place.group), inputs[name].ndim)
                alike.setdefault(kind, []).append((name, place))
        embedded: dict[str, Tensor] = {}
        for fields in alike.values():
            layout = self._layout(fields, inputs)
            found = layout.look_up(fields[0][1].group, inputs)
            scalars = not any(layout.lengths)
            parts = found.unbind(1) if scalars else found.split(layout.lengths, dim=1)
            embedded |= zip(layout.names, parts, strict=True)
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        for name in inputs:
            if name not in embedded:
                outputs |= plain({name: inputs[name]})
            elif name in tables.feature_encoders:
                outputs[name] = tables.feature_encoders[name](embedded[name])
            else:
                outputs[name] = embedded[name]
        return outputs

    def _table_forward(self, table: nn.Embedding, plain: Callable, ids: Tensor) -> Tensor:
        """Look up ids [B] or [B, L] for a model that asks a table itself.

        The table's own gradient would be dense, and of many ids no CUDA graph can hold it
        (pytorch#82886).
        """
        place = self._place_of(table)
        if place is None or ids.ndim not in (1, 2):
            return plain(ids)
        found = self._layout([("ids", place)], {"ids": ids}).look_up(place.group, {"ids": ids})
        return found.squeeze(1) if ids.ndim == 1 else found

    def _layout(
        self, fields: Sequence[tuple[str, _Place]], inputs: Mapping[str, Tensor]
    ) -> _Layout:
        lengths = [inputs[name].shape[1] if inputs[name].ndim > 1 else 0 for name, _ in fields]
        rows = fields[0][1].group.rows
        key = (rows, *lengths, *((name, place[1:]) for name, place in fields))
        if key not in self._layouts:
            self._layouts[key] = _Layout(fields, lengths)
        return self._layouts[key]

    def _place(self, tables: FeatureEmbeddingDict, name: str) -> _Place | None:
        """Find the table of a field of ids; None where it has none of a group."""
        if name not in tables.embedding_layers:
            return None
        return self._place_of(tables.embedding_layers[name])

    def _place_of(self, table: nn.Module) -> _Place | None:
        place = self._places.get(table.weight) if is_plain(table) else None
        if place is None or table.padding_idx is None:
            return place
        return place._replace(padding=place.start + table.padding_idx)


def _part(inputs: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """Select columns; what was checked stays so."""
    columns = {name: inputs[name] for name in names}
    checked = isinstance(inputs, CheckedBatch)
    return CheckedBatch(columns, inputs.feature_map) if checked else columns


def _side_by_side(columns: Sequence[Tensor]) -> Tensor:
    """Join columns of ids, all [B] or all [B, L], into [B, ids per sample]."""
    columns = [column.long() for column in columns]
    return torch.stack(columns, dim=1) if columns[0].ndim == 1 else torch.cat(columns, dim=1)


def check_range(ids: Tensor, size: Tensor | int) -> None:
    """Refuse ids outside their table: fused, they would be rows of another one."""
    inside = ((ids >= 0) & (ids < size)).all()
    if ids.device.type != "cpu":
        torch._assert_async(inside)  # found later, but without waiting for the device
    elif not inside:
        raise IndexError("index out of range in self")  # as nn.Embedding says it


class DenseGradients:
    """The gradient of a group in one buffer, each weight's ``grad`` a view of it."""

    def __init__(self, group: TableGroup) -> None:
        self.group = group
        self.buffer = torch.zeros_like(group.weights)
        self.views = group.views(self.buffer)

    @torch.no_grad()
    def finish(self, portion: float = 1.0) -> list[Penalty]:
        """Gather the gradient after a backward pass, this portion of the regularization's included.

        Returns:
            Penalties of the whole regularization.
        """
        group = self.group
        looked_up = self.looked_up()
        # Where a model uses a weight beside its lookups, autograd left a gradient there.
        outside = [weight.grad for weight in group.members]
        if looked_up is None and not group.terms and all(each is None for each in outside):
            return []
        slope(group.weights, group.terms, self.buffer, portion)
        if looked_up is not None:
            self.buffer.index_add_(0, *looked_up)
        for weight, more, view in zip(group.members, outside, self.views, strict=True):
            if more is not None:
                view.add_(more)
            weight.grad = view
        return penalties(group.weights, group.terms)

    def looked_up(self) -> tuple[Tensor, Tensor] | None:
        """Take the rows looked up, [N], and the gradients to add to them, [N, width]."""
        return self.group.take()

    def tensors(self) -> list[Tensor]:
        """Return what the norm of all gradients is taken over: all rows that are a table's."""
        return [self.buffer[:-1]] if self.group.members[0].grad is not None else []

    def update(self) -> None:
        """Do nothing: the model's optimizer updates weights that have a ``grad``."""
