"""Attention: between the fields of a sample, and of a target over a behaviour sequence."""

import itertools
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import DIN_Attention
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, MLPEncoder, register_encoder


@register_encoder("self_attention")
class SelfAttention(Encoder):
    """AutoInt's stack of interacting layers: fields attend to each other.

    Args:
        num_layers: Number of interacting layers; each raises the order of the interactions.
        attention_dim: Width of a field after each layer, all heads together.
        num_heads: Number of heads; divides ``attention_dim``.
        use_residual: Whether each layer adds its (projected) input.
        use_scale: Whether scores are divided by the square root of a head's width.
        layer_norm: Whether each layer is layer-normalized before its ReLU.
        net_dropout: Dropout rate of the attention weights.

    Raises:
        SettingsError: ``num_heads`` does not divide ``attention_dim``.

    Example:
        >>> SelfAttention(spec, attention_dim=6)(view).shape
        torch.Size([5, 24])

    Source:
        AutoInt, arXiv 1810.11921, interacting layer.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        num_layers: int = 3,
        attention_dim: int = 64,
        num_heads: int = 2,
        use_residual: bool = True,
        use_scale: bool = False,
        layer_norm: bool = False,
        net_dropout: float = 0.0,
    ) -> None:
        super().__init__(spec)
        dims = _layer_dims(spec, num_layers, attention_dim, num_heads)
        self.layers = nn.Sequential(
            *(
                InteractingLayer(
                    *each,
                    num_heads,
                    use_residual=use_residual,
                    use_scale=use_scale,
                    layer_norm=layer_norm,
                    dropout=net_dropout,
                )
                for each in dims
            )
        )
        self.output_dim = spec.num_fields * attention_dim

    def forward(self, view: View) -> Tensor:
        return self.layers(self.spec.stack(view.embeddings)).flatten(start_dim=1)


class InteractingLayer(nn.Module):
    """ReLU(heads + residual), the heads being dot-product attention over the fields.

    Args:
        input_dim: Width of a field.
        attention_dim: Width of a field after the layer, all heads together.
        num_heads: Number of heads.
        use_residual: Whether the input is added, projected where the widths differ.
        use_scale, layer_norm, dropout: As of :class:`SelfAttention`.
    """

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        num_heads: int,
        use_residual: bool,
        use_scale: bool,
        layer_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_residual = use_residual
        self.scale = (attention_dim // num_heads) ** -0.5 if use_scale else 1.0
        self.dropout = dropout
        self.query = nn.Linear(input_dim, attention_dim, bias=False)
        self.key = nn.Linear(input_dim, attention_dim, bias=False)
        self.value = nn.Linear(input_dim, attention_dim, bias=False)
        if use_residual and input_dim != attention_dim:
            self.residual = nn.Linear(input_dim, attention_dim, bias=False)
        else:
            self.residual = nn.Identity()
        self.norm = nn.LayerNorm(attention_dim) if layer_norm else nn.Identity()

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, F, input_dim] to [B, F, attention_dim]."""
        output = F.scaled_dot_product_attention(
            self._split(self.query(fields)),
            self._split(self.key(fields)),
            self._split(self.value(fields)),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        output = output.transpose(1, 2).flatten(start_dim=2)
        if self.use_residual:
            output = output + self.residual(fields)
        return self.norm(output).relu()

    def _split(self, projected: Tensor) -> Tensor:
        """View [B, F, attention_dim] as [B, heads, F, head width]."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _layer_dims(
    spec: ViewSpec, num_layers: int, attention_dim: int, num_heads: int
) -> list[tuple[int, int]]:
    """Return the width of a field before and after each layer, all heads together."""
    if attention_dim % num_heads:
        raise SettingsError(
            f"attention_dim={attention_dim} must be a multiple of num_heads={num_heads}"
        )
    return list(itertools.pairwise([spec.embedding_dim, *[attention_dim] * num_layers]))


@register_encoder("disentangled_attention")
class DisentangledAttention(Encoder):
    """DESTINE's stack of disentangled self-attention layers.

    Args:
        num_layers: Number of layers.
        attention_dim: Width of a field after each layer, all heads together.
        num_heads: Number of heads; divides ``attention_dim``.
        residual_mode: Where the projected input is added: after each layer to its own input,
            after the last to the embeddings, or nowhere.
        use_scale: Whether scores are divided by the square root of a head's width.
        relu_before_att: Whether queries, keys and values pass a ReLU.
        att_dropout: Dropout rate of the attention weights.

    Raises:
        SettingsError: ``num_heads`` does not divide ``attention_dim``.

    Example:
        >>> DisentangledAttention(spec, attention_dim=6)(view).shape
        torch.Size([5, 24])

    Source:
        DESTINE, arXiv 2108.08574.
    """

    needs_equal_dims = True

    def __init__(
        self,
        spec: ViewSpec,
        num_layers: int = 2,
        attention_dim: int = 64,
        num_heads: int = 2,
        residual_mode: Literal["each_layer", "last_layer"] | None = "each_layer",
        use_scale: bool = False,
        relu_before_att: bool = False,
        att_dropout: float = 0.0,
    ) -> None:
        super().__init__(spec)
        dims = _layer_dims(spec, num_layers, attention_dim, num_heads)
        self.layers = nn.Sequential(
            *(
                DisentangledLayer(
                    *each,
                    num_heads,
                    use_residual=residual_mode == "each_layer",
                    use_scale=use_scale,
                    relu=relu_before_att,
                    dropout=att_dropout,
                )
                for each in dims
            )
        )
        last = residual_mode == "last_layer"
        self.residual = nn.Linear(spec.embedding_dim, attention_dim) if last else None
        self.output_dim = spec.num_fields * attention_dim

    def forward(self, view: View) -> Tensor:
        fields = self.spec.stack(view.embeddings)
        output = self.layers(fields)
        if self.residual is not None:
            output = output + self.residual(fields)
        return output.flatten(start_dim=1)


class DisentangledLayer(nn.Module):
    """Attention whose weights are a whitened pairwise softmax plus a unary softmax.

    weight_ij = softmax_j((q_i - mean q) . (k_j - mean k)) + softmax_j(u_j), where u_j is a linear
    function of field j alone.

    The original splits [F, heads * d] into heads by reshaping alone, so that with more than one
    head, "head" h is not slice h of every field but all slices of the h-th part of the fields.
    Its published results stand on that, so it is kept.

    Args:
        input_dim: Width of a field.
        attention_dim: Width of a field after the layer, all heads together.
        num_heads: Number of heads.
        use_residual: Whether the projected input is added.
        use_scale, relu, dropout: As of :class:`DisentangledAttention`.
    """

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        num_heads: int,
        use_residual: bool,
        use_scale: bool,
        relu: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (attention_dim // num_heads) ** -0.5 if use_scale else 1.0
        self.query = nn.Linear(input_dim, attention_dim)
        self.key = nn.Linear(input_dim, attention_dim)
        self.value = nn.Linear(input_dim, attention_dim)
        self.unary = nn.Linear(input_dim, num_heads)
        self.residual = nn.Linear(input_dim, attention_dim) if use_residual else None
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields [B, F, input_dim] to [B, F, attention_dim]."""
        query, key, value = (
            self._split(self.activation(project(fields)))
            for project in (self.query, self.key, self.value)
        )
        unary = self._split(self.unary(fields).softmax(dim=1))
        weights = self.dropout(self._pairwise(query, key) + unary.transpose(-1, -2))
        output = (weights @ value).reshape(*fields.shape[:2], -1)
        return output if self.residual is None else output + self.residual(fields)

    def _pairwise(self, query: Tensor, key: Tensor) -> Tensor:
        """Softmax over the scores of whitened queries and keys, [B, heads, F, F]."""
        query = query - query.mean(dim=2, keepdim=True)
        key = key - key.mean(dim=2, keepdim=True)
        return torch.softmax(self.scale * query @ key.transpose(-1, -2), dim=-1)

    def _split(self, projected: Tensor) -> Tensor:
        """View [B, F, heads * width] as [B, heads, F, width], as the original does."""
        batch_size, num_fields, _ = projected.shape
        return projected.reshape(batch_size, self.num_heads, num_fields, -1)


@register_encoder("target_attention")
class TargetAttention(MLPEncoder):
    """Deep interest network: an MLP that sees sequences as the target field looks at them.

    Where the view holds the pooled embedding of a sequence, the attention's output takes its
    place. Attention reads the tables themselves, before the sample selection: gates and experts
    (``GM``, ``MoE``) decide by the pooled sequence and act on the other fields.

    Args:
        target: Field that is looked for, or one for each sequence. None for those whose embedding
            the sequences share.
        sequence: Behaviour sequence, or several, each with an attention of its own. None for all
            that share the embedding of a target.
        hidden_units: Width of each hidden layer of the MLP; the last one is the output's.
        attention_hidden_units: Width of each hidden layer of the attention.
        attention_activation: Activation of the attention's hidden layers.
        attention_dropout: Dropout rate of the attention's hidden layers.
        use_softmax: Whether the weights of a sequence sum to one.

    Raises:
        SettingsError: The data set has no such fields, or their embeddings differ in width.

    Example:
        >>> TargetAttention(spec, target="item", sequence="bought", hidden_units=[6])(view).shape
        torch.Size([5, 6])

    Source:
        Deep Interest Network, arXiv 1706.06978.
    """

    def __init__(
        self,
        spec: ViewSpec,
        target: str | list[str] | None = None,
        sequence: str | list[str] | None = None,
        hidden_units: list[int] = (512, 128, 64),
        attention_hidden_units: list[int] = (64,),
        attention_activation: str = "Dice",
        attention_dropout: float = 0.0,
        use_softmax: bool = False,
        **mlp: Any,
    ) -> None:
        super().__init__(spec, hidden_units, **mlp)
        self.target_of = _pair(spec, _listed(target), _listed(sequence))
        dims = dict(zip(spec.field_names, spec.field_dims, strict=True))
        self.attention = nn.ModuleDict(
            {
                sequence: DIN_Attention(
                    dims[target],
                    attention_units=list(attention_hidden_units),
                    hidden_activations=attention_activation,
                    dropout_rate=attention_dropout,
                    use_softmax=use_softmax,
                )
                for sequence, target in self.target_of.items()
            }
        )
        self.mlp = self.make_mlp(spec.input_dim)

    @classmethod
    def column_problems(
        cls, role: str, columns: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]
    ) -> list[str]:
        kinds = {name: column.get("type") for name, column in columns.items()}
        problems = []
        if "sequence" not in kinds.values():
            problems.append(
                f"{role}_encoder 'target_attention' needs a feature column of type sequence; this "
                "data set has none: take another twin"
            )
        for option, kind in (("target", "categorical"), ("sequence", "sequence")):
            fields = [name for name, k in kinds.items() if k == kind]
            problems += [
                f"{role}_{option}: {unknown(f'{kind} column', name, fields)}"
                for name in _listed(params.get(f"{role}_{option}"))
                if name not in fields
            ]
        return problems

    def forward(self, view: View) -> Tensor:
        fields = list(view.embeddings.split(self.spec.field_dims, dim=1))
        for sequence in self.target_of:
            fields[self.spec.field_names.index(sequence)] = self._attend(sequence, view)
        return self.mlp(torch.cat(fields, dim=1))

    def _attend(self, sequence: str, view: View) -> Tensor:
        """Pool a sequence [B, L] of ids to [B, D]."""
        target = view.tables.unpooled(view.inputs, self.target_of[sequence])
        steps = view.tables.unpooled(view.inputs, sequence)
        padding = self.spec.feature_map.features[sequence].get("padding_idx") or 0
        return self.attention[sequence](target, steps, view.inputs[sequence] != padding)


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _pair(spec: ViewSpec, targets: list[str], sequences: list[str]) -> dict[str, str]:
    """Return the target of each sequence; what is not named is found by shared embeddings."""
    all_targets = _check(spec, "categorical", targets)
    all_sequences = _check(spec, "sequence", sequences)
    if targets and sequences:
        each = targets * len(sequences) if len(targets) == 1 else targets
        if len(each) != len(sequences):
            raise SettingsError(
                f"{len(targets)} targets for {len(sequences)} sequences: name one for all or one "
                "each"
            )
        pairs = dict(zip(sequences, each, strict=True))
    else:
        features = spec.feature_map.features
        owners = {name: features[name].get("share_embedding") for name in all_sequences}
        pairs = {
            name: owners[name]
            for name in sequences or all_sequences
            if owners[name] in (targets or all_targets)
        }
    if not pairs or not pairs.keys() >= set(sequences):
        raise SettingsError(
            "the encoder target_attention cannot tell which field a sequence is about: name "
            "target and sequence, or let the sequence share the target's embedding "
            f"(share_embedding); sequences: {', '.join(all_sequences)}"
        )
    dims = dict(zip(spec.field_names, spec.field_dims, strict=True))
    for name, target in pairs.items():
        if dims[name] != dims[target]:
            raise SettingsError(
                f"target {target!r} and sequence {name!r} need embeddings of one width, not "
                f"{dims[target]} and {dims[name]}"
            )
    return pairs


def _check(spec: ViewSpec, kind: str, names: list[str]) -> list[str]:
    """Return all fields of a type, after checking that ``names`` are among them."""
    features = spec.feature_map.features
    known = [name for name in spec.field_names if features[name]["type"] == kind]
    if not known:
        raise SettingsError(
            f"the encoder target_attention needs a {kind} feature, but the data set has none: add "
            "one or take another encoder"
        )
    for name in names:
        if name not in known:
            raise SettingsError(unknown(f"{kind} feature", name, known))
    return known
