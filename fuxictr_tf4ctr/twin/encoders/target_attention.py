"""Target attention: a behaviour sequence, pooled by how much each step matters for the target."""

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.pytorch.layers import DIN_Attention, MLP_Block
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec
from fuxictr_tf4ctr.twin.encoders.base import Encoder, register_encoder


@register_encoder("target_attention")
class TargetAttention(Encoder):
    """Deep interest network: an MLP that sees sequences as the target field looks at them.

    Where the view holds the pooled embedding of a sequence, the attention's output takes its
    place. Attention reads the tables themselves, before the sample selection: gates and experts
    (``GM``, ``MoE``) decide by the pooled sequence and act on the other fields.

    Args:
        spec: Shapes of the view.
        target: Field that is looked for, or one for each sequence. None for those whose embedding
            the sequences share.
        sequence: Behaviour sequence, or several, each with an attention of its own. None for all
            that share the embedding of a target.
        hidden_units: Width of each hidden layer of the MLP; the last one is the output's.
        attention_hidden_units: Width of each hidden layer of the attention.
        attention_activation: Activation of the attention's hidden layers.
        attention_dropout: Dropout rate of the attention's hidden layers.
        use_softmax: Whether the weights of a sequence sum to one.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.

    Raises:
        SettingsError: The data set has no such fields, or their embeddings differ in width.

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
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self.spec = spec
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
        self.mlp = MLP_Block(
            spec.input_dim,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.output_dim = hidden_units[-1]

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
        pairs = _zipped(targets, sequences)
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


def _zipped(targets: list[str], sequences: list[str]) -> dict[str, str]:
    if len(targets) == 1:
        targets = targets * len(sequences)
    if len(targets) != len(sequences):
        raise SettingsError(
            f"{len(targets)} targets for {len(sequences)} sequences: name one for all or one each"
        )
    return dict(zip(sequences, targets, strict=True))
