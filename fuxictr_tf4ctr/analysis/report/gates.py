"""What a twin's gates say of each row, noted while it is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.twin.fusion.dynamic import MixtureOfExpertsFusion, VotingFusion
from fuxictr_tf4ctr.twin.sample_selection import GatingMechanism, MixtureOfExperts


@dataclass(frozen=True)
class Gate:
    """One number in [0, 1] per row.

    Attributes:
        title: Which gate it is.
        meaning: What 1 means; 0 means the contrary.
        values: [N] values.
    """

    title: str
    meaning: str
    values: np.ndarray


@dataclass(frozen=True)
class _Source:
    """Where a gate's values come from: the outputs of modules, and what is made of them."""

    title: str
    meaning: str
    modules: tuple[nn.Module, ...]
    value: Callable[..., Tensor]


class GateWatch:
    """Note the gates of a model while in context, for every batch it scores.

    Args:
        model: Any model; one without gates is watched in vain.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sources = [source for module in model.modules() for source in _sources(module)]
        self._outputs: list[list[list[Tensor]]] = [
            [[] for _ in source.modules] for source in self._sources
        ]

    def __enter__(self) -> "GateWatch":
        def keep(outputs: list[Tensor]) -> Callable[..., None]:
            return lambda module, inputs, output: outputs.append(output.detach().cpu())

        self._hooks = [
            module.register_forward_hook(keep(outputs))
            for source, kept in zip(self._sources, self._outputs, strict=True)
            for module, outputs in zip(source.modules, kept, strict=True)
        ]
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def gates(self) -> list[Gate]:
        """Return the gates' values, in the order of the rows scored."""
        return [
            Gate(
                source.title,
                source.meaning,
                source.value(*(torch.cat(outputs) for outputs in kept)).double().numpy(),
            )
            for source, kept in zip(self._sources, self._outputs, strict=True)
        ]


def _sources(module: nn.Module) -> list[_Source]:
    return next((find(module) for kind, find in _FINDERS.items() if isinstance(module, kind)), [])


def _of_gating(module: GatingMechanism) -> list[_Source]:
    meaning = "the embedding goes to the simple encoder whole"
    return [_Source("Gate g of GM", meaning, (module.gate,), lambda g: g[:, 0])]


def _of_experts(module: MixtureOfExperts) -> list[_Source]:
    return [
        _Source(
            f"MoE gate of the {role} encoder",
            f"the {role} encoder sees the first expert alone",
            (gate,),
            lambda weights: weights[:, 0],
        )
        for role, gate in zip(("simple", "complex"), module.gates, strict=True)
    ]


def _of_voting(module: VotingFusion) -> list[_Source]:
    def share(simple: Tensor, complex_: Tensor) -> Tensor:
        return torch.sigmoid((simple - complex_) / module.tau)[:, 0]

    votes = (module.vote_simple, module.vote_complex)
    meaning = "the simple encoder decides alone"
    return [_Source("Vote p for the simple encoder", meaning, votes, share)]


def _of_expert_fusion(module: MixtureOfExpertsFusion) -> list[_Source]:
    meaning = "the first expert of the fusion decides alone"
    share = _Source(
        "Gate of MoEF", meaning, (module.gate,), lambda logits: logits.softmax(dim=-1)[:, 0]
    )
    return [share]


_FINDERS: dict[type[nn.Module], Callable[..., list[_Source]]] = {
    GatingMechanism: _of_gating,
    MixtureOfExperts: _of_experts,
    VotingFusion: _of_voting,
    MixtureOfExpertsFusion: _of_expert_fusion,
}
