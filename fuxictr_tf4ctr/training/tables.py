"""Embedding tables side by side: one lookup and one gradient for all tables of one width.

FuxiCTR keeps an ``nn.Embedding`` per field. Here the weights of the tables that have the same width
and regularization lie in one buffer, each weight a view of its rows, so that names, ``state_dict``
and optimizer state stay what they are.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from torch import Tensor, nn

from fuxictr_tf4ctr.training.regularization import Terms, penalty, slope


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


class _Place(NamedTuple):
    """Where the rows of a table are: in which group, from where, how many, which of them pads."""

    group: TableGroup
    start: int
    size: int
    padding: int


class _Plan(NamedTuple):
    """One lookup for F fields: their names and group; start, size and row of padding, [F] each."""

    names: list[str]
    group: TableGroup
    starts: Tensor
    sizes: Tensor
    paddings: Tensor


class FusedLookups:
    """The lookups of all FuxiCTR embedding layers of a model, fused.

    Layers are called as before and return what they returned before. One with other features
    beside plain tables (numbers, pretrained embeddings) fuses the plain ones.

    Args:
        model: Model whose tables are in ``groups``.
        groups: Its tables.
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
        self._plans: dict[tuple, _Plan | None] = {}
        self._patched: list[nn.Module] = []
        for module in model.modules():
            if type(module) is FeatureEmbeddingDict:
                self._patch(module, self._dict_forward)
            elif type(module) is FeatureEmbedding:
                self._patch(module, self._flat_forward)

    def release(self) -> None:
        """Give the layers their own lookups back."""
        for module in self._patched:
            del module.forward
        self._patched.clear()

    def _patch(self, module: nn.Module, fused: Callable) -> None:
        plain = module.forward

        def forward(inputs: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys() <= {"feature_source", "feature_type", "flatten_emb"}:
                return plain(inputs, *args, **kwargs)  # a model's own mistake, in FuxiCTR's words
            return fused(module, plain, inputs, *args, **kwargs)

        # Not as a decorator: that would import the compiler, for seconds, with this module.
        module.forward = torch.compiler.disable(forward) if self._compiled else forward
        self._patched.append(module)

    def _flat_forward(
        self,
        layer: FeatureEmbedding,
        plain: Callable,
        inputs: Mapping[str, Tensor],
        feature_source: Any = (),
        feature_type: Any = (),
        flatten_emb: bool = False,
    ) -> Tensor:
        """Embed [B, F] ids at once, if all fields have a table of one group."""
        key = (id(layer), *inputs)
        if key not in self._plans:
            self._plans[key] = self._plan(layer.embedding_layer, inputs)
        plan = self._plans[key]
        if plan is None or feature_source or feature_type:
            return plain(inputs, feature_source, feature_type, flatten_emb)
        ids = torch.stack([inputs[name] for name in plan.names], dim=1).long()
        check_range(ids, plan.sizes)
        embeddings = plan.group.look_up(ids + plan.starts, plan.paddings)
        return embeddings.flatten(start_dim=1) if flatten_emb else embeddings

    def _plan(self, tables: FeatureEmbeddingDict, inputs: Mapping[str, Tensor]) -> _Plan | None:
        """Plan one lookup for all fields of a layer; None where some need more than that."""
        specs = tables._feature_map.features
        names = [name for name in specs if name in inputs and name in tables.embedding_layers]
        places = [self._place(tables, name) for name in names]
        if (
            not names
            or None in places
            or len({place.group for place in places}) > 1
            or any(specs[name]["type"] != "categorical" for name in names)
            or any(name in tables.feature_encoders for name in names)
        ):
            return None
        group = places[0].group
        numbers = [(place.start, place.size, place.padding) for place in places]
        columns = torch.tensor(numbers, device=group.weights.device).unbind(1)
        return _Plan(names, group, *columns)

    def _dict_forward(
        self,
        tables: FeatureEmbeddingDict,
        plain: Callable,
        inputs: Mapping[str, Tensor],
        feature_source: Any = (),
        feature_type: Any = (),
    ) -> Mapping[str, Tensor]:
        """Embed each field by name, those of one group at once."""
        if feature_source or feature_type:
            return plain(inputs, feature_source, feature_type)
        fields: dict[int, list[tuple[str, _Place]]] = {}
        for name in inputs:
            place = self._place(tables, name)
            if place is not None:
                fields.setdefault(id(place.group), []).append((name, place))
        embedded: dict[str, Tensor] = {}
        for members in fields.values():
            embedded |= _embed_by_name(members, inputs)
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        for name in inputs:
            if name not in embedded:
                outputs |= plain({name: inputs[name]})
            elif name in tables.feature_encoders:
                outputs[name] = tables.feature_encoders[name](embedded[name])
            else:
                outputs[name] = embedded[name]
        return outputs

    def _place(self, tables: FeatureEmbeddingDict, name: str) -> _Place | None:
        """Find the table of a field of ids; None where it has none of a group."""
        if name not in tables.embedding_layers:
            return None
        table = tables.embedding_layers[name]
        place = self._places.get(table.weight) if is_plain(table) else None
        if place is None or table.padding_idx is None:
            return place
        return place._replace(padding=place.start + table.padding_idx)


def _embed_by_name(
    fields: list[tuple[str, _Place]], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Look up fields of one group, [B] or [B, L] ids each, in one go."""
    rows, paddings, shapes = [], [], {}
    for name, place in fields:
        ids = inputs[name].long()
        check_range(ids, place.size)
        rows.append(ids.flatten() + place.start)
        paddings.append(torch.full_like(rows[-1], place.padding))
        shapes[name] = ids.shape
    embeddings = fields[0][1].group.look_up(torch.cat(rows), torch.cat(paddings))
    parts = embeddings.split([shape.numel() for shape in shapes.values()])
    return {
        name: part.view(*shape, -1)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def check_range(ids: Tensor, size: Tensor | int) -> None:
    """Refuse ids outside their table: fused, they would be rows of another one."""
    inside = ((ids >= 0) & (ids < size)).all()
    if ids.device.type == "cuda":
        torch._assert_async(inside)  # found later, but without waiting for the device
    elif not inside:
        raise IndexError("index out of range in self")  # as nn.Embedding says it


class DenseGradients:
    """The gradient of a group in one buffer, each weight's ``grad`` a view of it.

    Args:
        group: The tables.
    """

    def __init__(self, group: TableGroup) -> None:
        self.group = group
        self.buffer = torch.zeros_like(group.weights)
        self.views = group.views(self.buffer)

    @torch.no_grad()
    def finish(self, portion: float = 1.0) -> Tensor | float:
        """Gather the gradient after a backward pass, this portion of the regularization's included.

        Returns:
            Loss of the whole regularization.
        """
        group = self.group
        looked_up = self.looked_up()
        # Where a model uses a weight beside its lookups, autograd left a gradient there.
        outside = [weight.grad for weight in group.members]
        if looked_up is None and not group.terms and all(each is None for each in outside):
            return 0.0
        slope(group.weights, group.terms, self.buffer, portion)
        if looked_up is not None:
            self.buffer.index_add_(0, *looked_up)
            self.buffer[-1].zero_()
        for weight, more, view in zip(group.members, outside, self.views, strict=True):
            if more is not None:
                view.add_(more)
            weight.grad = view
        return penalty(group.weights, group.terms)

    def looked_up(self) -> tuple[Tensor, Tensor] | None:
        """Take the rows looked up, [N], and the gradients to add to them, [N, width]."""
        return self.group.take()

    def tensors(self) -> list[Tensor]:
        """Return what the norm of all gradients is taken over, and clipping scales."""
        return [self.buffer] if self.group.members[0].grad is not None else []

    def update(self) -> None:
        """Do nothing: the model's optimizer updates weights that have a ``grad``."""
