"""Averaged weights: an exponential moving average over the steps, evaluated, kept and exported.

The average is smoother than the weights of any step, and often better calibrated. It lags behind
them, so an evaluation counts towards early stopping only where neither has got better.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

LEARNING_RATE_DROP = "learning_rate_drop"


@dataclass(frozen=True)
class Averaging:
    """Which average of the weights to keep.

    Attributes:
        decay: What is left of the average after a step, in (0, 1); the step's weights are the rest.
            After the first n steps it is at most (1 + n) / (10 + n).
        start: Steps before the first that counts, or "learning_rate_drop": those until the learning
            rate is reduced for the first time.
    """

    decay: float
    start: int | str = 0

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "Averaging | None":
        """Read it from settings; None where weights are not averaged."""
        decay = params.get("average_weights")
        return None if decay is None else cls(decay, params.get("average_start") or 0)


def averaging_problems(params: Mapping[str, Any]) -> Iterator[str]:
    """List what keeps weights from being averaged, one sentence each."""
    averaging = Averaging.from_params(params)
    if averaging is None:
        if params.get("average_start") is not None:
            yield "average_start is for average_weights: set that too, or leave it out"
        return
    validates = params.get("valid_data") or params.get("valid_size")
    drops = params.get("reduce_lr_on_plateau") and validates
    if averaging.start == LEARNING_RATE_DROP and not drops:
        yield (
            f"average_start: {LEARNING_RATE_DROP} needs reduce_lr_on_plateau and validation data: "
            "set both, or give a number of steps"
        )
    if params.get("table_sharding"):
        yield "average_weights does not go with table_sharding: leave one of them out"


class WeightAverages:
    """The averages of a model's weights and of its statistics, such as batch norm's.

    Args:
        model: The model, its weights in the place where they stay.
        averaging: Which average. None: none, and nothing here does anything.

    Attributes:
        best_plain: Best monitored value of the weights that are not averaged; None before any.
    """

    def __init__(self, model: nn.Module, averaging: Averaging | None) -> None:
        state = model.state_dict()  # shares its memory with the model
        self._weights = {name: each for name, each in state.items() if each.is_floating_point()}
        self._start = math.inf if averaging is None else averaging.start
        self._decay = 0.0 if averaging is None else averaging.decay
        self._taken = 0
        self._averages: dict[str, Tensor] = {}
        self.best_plain: float | None = None

    @property
    def begun(self) -> bool:
        """Whether there is an average."""
        return bool(self._averages)

    def after_step(self, step: int) -> None:
        """Take in the weights after training step ``step`` (from 1)."""
        if self.begun:
            self._taken += 1
            # The first weights are soon let go of: batch norm's variances begin at 1, and those of
            # young embeddings are so small that a trace of that spoils hundreds of steps.
            decay = min(self._decay, (1 + self._taken) / (10 + self._taken))
            add = get_ema_multi_avg_fn(decay)
            add(list(self._averages.values()), list(self._weights.values()), None)
        elif self._start != LEARNING_RATE_DROP and step > self._start:
            self._begin()

    def after_drop(self) -> bool:
        """Note that the learning rate was reduced, and return whether averaging begins with it."""
        begins = self._start == LEARNING_RATE_DROP and not self.begun
        if begins:
            self._begin()
        return begins

    def _begin(self) -> None:
        self._averages = {name: each.clone() for name, each in self._weights.items()}

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """While in context, the model has the averages, if there are any, as its weights."""
        plain = {name: self._weights[name].clone() for name in self._averages}
        self._fill(self._averages)
        try:
            yield
        finally:
            self._fill(plain)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._weights[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs to go on from here."""
        return {
            "averages": self._averages,
            "taken": self._taken,
            "best_plain": self.best_plain,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.best_plain = state.get("best_plain")
        self._taken = state.get("taken", 0)
        self._averages = {
            name: each.to(self._weights[name].device)
            for name, each in state.get("averages", {}).items()
        }
