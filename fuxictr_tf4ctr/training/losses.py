"""What training shows of itself: its losses, without making a GPU wait for each, and the model's.

A model may keep the terms of its last loss, detached scalars by name, in ``loss_terms``, and may
have a method ``monitored_values`` that returns scalars of its last batch by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from torch.nn import functional as F

from fuxictr_tf4ctr.errors import DataError, DivergenceError
from fuxictr_tf4ctr.registry import overrides

# Steps between two looks at the losses on a GPU, each of which waits for the device.
_STEPS_PER_LOOK = 100


class Terms(NamedTuple):
    """The terms of a step's loss: their names, and their values [terms] on the model's device."""

    names: tuple[str, ...]
    values: Tensor


NO_TERMS = Terms((), torch.zeros(0))


class Losses:
    """The training losses since the last evaluation, and the sums of their terms.

    Looking at a loss waits for the device that computes it, so a GPU's are left there for a while.

    Attributes:
        seen: The losses looked at.
    """

    def __init__(self, device: torch.device) -> None:
        self._steps_per_look = 1 if device.type == "cpu" else _STEPS_PER_LOOK
        self._unseen: list[tuple[Tensor, Tensor, str]] = []
        self._sums: dict[str, float] = {}
        self.seen: list[float] = []

    def add(self, loss: Tensor, terms: Terms, where: str) -> None:
        """Take in one step.

        Raises:
            DivergenceError: A loss is not finite; found at the next look, a GPU's some steps late.
        """
        self._sums = self._sums or dict.fromkeys(terms.names, 0.0)
        self._unseen.append((loss.detach(), terms.values, where))
        if len(self._unseen) >= self._steps_per_look:
            self.look()

    def look(self) -> None:
        """Wait for the device and check the losses not seen yet."""
        if not self._unseen:
            return
        losses, terms, places = zip(*self._unseen, strict=True)
        values = torch.stack(losses).tolist()
        for value, where in zip(values, places, strict=True):
            if not math.isfinite(value):
                raise DivergenceError(
                    f"training loss is {value} at {where}: lower the learning rate or "
                    "max_gradient_norm, or look for values that are not finite in the data"
                )
        self.seen.extend(values)
        for values_of_terms in torch.stack(terms).tolist():
            for name, value in zip(self._sums, values_of_terms, strict=True):
                self._sums[name] += value
        self._unseen.clear()

    @property
    def latest(self) -> float:
        """The last loss seen, NaN before the first."""
        return self.seen[-1] if self.seen else math.nan

    def mean(self) -> float:
        """Mean loss of all steps since the last :meth:`clear`."""
        self.look()
        if not self.seen:
            raise DataError("the training data gave no batch: they must start anew each epoch")
        return sum(self.seen) / len(self.seen)

    def means_of_terms(self) -> dict[str, float]:
        """Mean of each term over the same steps."""
        self.look()
        return {name: total / len(self.seen) for name, total in self._sums.items()}

    def clear(self) -> None:
        """Begin anew."""
        self.seen.clear()
        self._sums.clear()

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs to go on from here."""
        self.look()
        return {"seen": self.seen, "sums": self._sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.seen, self._sums = state["seen"], dict(state["sums"])


@dataclass(frozen=True)
class RowWeights:
    """How much each row counts in the loss.

    Attributes:
        column: Column of the batches with the weight of each row. None: 1 for all.
        positive: Factor of the weights of positive rows.
    """

    column: str | None = None
    positive: float | None = None

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "RowWeights":
        """Read them from complete settings."""
        return cls(params.get("weight_col"), params.get("pos_weight"))

    def of(self, batch: Mapping[str, Tensor], y_true: Tensor) -> Tensor | None:
        """Return the weights [B, 1] of a batch with these labels, None where all are 1."""
        weight = None
        if self.column is not None:
            weight = batch[self.column].to(y_true.device).view(-1, 1)
        if self.positive is not None:
            factor = torch.where(y_true == 1, self.positive, 1.0)
            weight = factor if weight is None else weight * factor
        return weight


UNWEIGHTED = RowWeights()


def weighs_rows(model: BaseModel | type[BaseModel]) -> bool:
    """Whether the loss of a model can be weighted: FuxiCTR's own is, and one that says so."""
    replaced = ("add_loss", "compute_loss", "regularization_loss", "train_step")
    return getattr(model, "weighs_rows", not overrides(model, *replaced))


def weighted_loss(
    model: BaseModel, outputs: Mapping[str, Tensor], y_true: Tensor, weight: Tensor | None
) -> Tensor:
    """Return a model's loss without regularization, the mean of its rows' times their weights.

    Args:
        y_true: Labels [B, 1].
        weight: Weights [B, 1]; None for the model's loss as it is.
    """
    if weight is None:
        return model.add_loss(outputs, y_true)
    if overrides(model, "add_loss"):
        return model.add_loss({**outputs, "row_weight": weight}, y_true)
    return (weight * model.loss_fn(outputs["y_pred"], y_true, reduction="none")).mean()


def loss_terms(model: BaseModel, loss: Tensor) -> dict[str, Tensor]:
    """Return the terms of a model's last loss, without regularization; the loss if it has none."""
    terms = getattr(model, "loss_terms", None)
    if terms is not None:
        return dict(terms)
    binary = getattr(model, "loss_fn", None) is F.binary_cross_entropy
    return {"bce" if binary else "loss": loss}


@torch.no_grad()
def monitored_values(model: Any) -> dict[str, float]:
    """Return what a model, or a step of it, shows of its last batch; empty where it does not."""
    show = getattr(model, "monitored_values", None)
    return {} if show is None else {name: float(value) for name, value in show().items()}
