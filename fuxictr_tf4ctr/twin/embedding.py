"""From raw columns to field embeddings: what the encoders see of a sample."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError


class View(NamedTuple):
    """What one encoder sees of a batch.

    Attributes:
        embeddings: Embeddings of all fields side by side, [B, sum of field dims].
        inputs: Raw feature columns by name, as FuxiCTR's ``get_inputs`` gives them.
        tables: Where the embeddings come from, for an encoder that needs a field as it was before
            pooling and sample selection.
    """

    embeddings: Tensor
    inputs: Mapping[str, Tensor]
    tables: "FieldEmbedding | None" = None


@dataclass(frozen=True)
class ViewSpec:
    """Shapes of a :class:`View`, known when an encoder is built.

    Attributes:
        feature_map: FuxiCTR's description of the columns.
        field_names: Embedded fields, in the order of their embeddings.
        field_dims: Width of each field's embedding.
    """

    feature_map: FeatureMap = field(repr=False)
    field_names: tuple[str, ...]
    field_dims: tuple[int, ...]

    @property
    def num_fields(self) -> int:
        """Number of embedded fields F."""
        return len(self.field_dims)

    @property
    def input_dim(self) -> int:
        """Width of the flat embeddings, F * D where all fields have one dim."""
        return sum(self.field_dims)

    @cached_property
    def embedding_dim(self) -> int:
        """Embedding dim D shared by all fields.

        Raises:
            SettingsError: The fields' dims differ.
        """
        dims = set(self.field_dims)
        if len(dims) != 1:
            fields = zip(self.field_names, self.field_dims, strict=True)
            described = ", ".join(f"{name}: {dim}" for name, dim in fields)
            raise SettingsError(
                "this encoder needs one embedding_dim for all fields, but they differ "
                f"({described}); remove the features' own embedding_dim or take another encoder"
            )
        return dims.pop()

    def stack(self, embeddings: Tensor) -> Tensor:
        """View flat embeddings [B, F * D] as [B, F, D]."""
        return embeddings.view(-1, self.num_fields, self.embedding_dim)


class FieldEmbedding(nn.Module):
    """FuxiCTR's feature embedding, flattened, with the width of every field known.

    Args:
        embedding_dim: Embedding dim D of fields that do not name their own.
        fields: The fields to embed; None for all.

    Raises:
        SettingsError: A sequence feature has no pooling ``feature_encoder``.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        embedding_dim: int,
        fields: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.layer = FeatureEmbedding(feature_map, embedding_dim, required_feature_columns=fields)
        self.spec = self._measure(feature_map)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed raw columns: a dict of [B] or [B, L] tensors to [B, sum of field dims]."""
        return self.layer(inputs, flatten_emb=True)

    def unpooled(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        """Look up one field as its table has it: [B, D], or [B, L, D] of a sequence."""
        return self.layer.embedding_layer.embedding_layers[name](inputs[name].long())

    @torch.no_grad()
    def _measure(self, feature_map: FeatureMap) -> ViewSpec:
        # A feature encoder may change the width in ways no specification states: embed one empty
        # sample and look.
        lookup = self.layer.embedding_layer
        training = lookup.training
        embedded = lookup.eval()(empty_inputs(feature_map))
        lookup.train(training)
        for name, embedding in embedded.items():
            if embedding.dim() != 2:
                raise SettingsError(
                    f"sequence feature {name!r} is not pooled: give it a feature_encoder such as "
                    "layers.MaskedAveragePooling()"
                )
        names = tuple(name for name in feature_map.features if name in embedded)
        return ViewSpec(feature_map, names, tuple(embedded[name].shape[1] for name in names))


def empty_inputs(feature_map: FeatureMap, rows: int = 1) -> dict[str, Tensor]:
    """Make a batch of padding for every feature that is not ``meta``: ids and values all 0.

    Example:
        >>> feature_map = FeatureMap("shop", "")
        >>> ids = {"type": "categorical", "source": "", "vocab_size": 9, "padding_idx": 0}
        >>> feature_map.features.update(user=ids, item=ids)
        >>> empty_inputs(feature_map, rows=2)
        {'user': tensor([0, 0]), 'item': tensor([0, 0])}
    """
    widths = {"sequence": "max_len", "embedding": "pretrain_dim"}
    inputs = {}
    for name, spec in feature_map.features.items():
        if spec["type"] == "meta":
            continue
        width = widths.get(spec["type"])
        shape = (rows,) if width is None else (rows, spec[width])
        kind = torch.long if spec["type"] in ("categorical", "sequence") else torch.float
        inputs[name] = torch.zeros(shape, dtype=kind)
    return inputs


def halved(feature_map: FeatureMap) -> FeatureMap:
    """Copy a feature map with every embedding dim that a feature names for itself halved.

    Raises:
        SettingsError: Such a dim is odd.

    Example:
        >>> feature_map = FeatureMap("shop", "")
        >>> feature_map.features["user"] = {"type": "categorical", "embedding_dim": 6}
        >>> halved(feature_map).features["user"]["embedding_dim"]
        3
    """
    half = copy.copy(feature_map)
    half.features = copy.deepcopy(feature_map.features)
    for name, spec in half.features.items():
        for key in ("embedding_dim", "emb_output_dim"):
            if key in spec:
                if spec[key] % 2:
                    raise SettingsError(
                        f"sample_selection SER halves every embedding dim, but feature {name!r} "
                        f"has the odd {key} {spec[key]}"
                    )
                spec[key] //= 2
    return half
