"""FuxiCTR's feature embedding with one lookup for all fields, in place of one for each."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from torch import Tensor, nn

from fuxictr_tf4ctr.training.tables import TableGroup, is_plain


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
