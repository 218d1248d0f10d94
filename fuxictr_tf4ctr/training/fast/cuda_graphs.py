"""A whole training step as one CUDA graph: the GPU replays it, Python launches no kernel."""

from collections.abc import Callable, Mapping

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.training.losses import NO_TERMS

# Steps done one by one first, in which optimizer, libraries and allocator settle.
_WARM_UP = 3


class GraphedStep:
    """Records a step and replays it for batches of the same shapes; others run one by one.

    The learning rate is part of the record: when it changes, the step is recorded anew.

    Args:
        model: Model on a GPU.
        step: Its training step; what it leaves in ``terms`` is given on.
    """

    def __init__(self, model: BaseModel, step: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        self.model = model
        self.step = step
        self.terms = NO_TERMS
        self._warmed_up = 0
        self._shapes: dict[str, torch.Size] = {}
        self._rates: list[float] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._terms = NO_TERMS
        for group in model.optimizer.param_groups:
            group["capturable"] = True

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train on a batch and return its loss, regularization included."""
        shapes = {name: column.shape for name, column in batch.items()}
        if self._warmed_up < _WARM_UP:
            self._shapes, self._warmed_up = shapes, self._warmed_up + 1
            return self._one_by_one(batch)
        if shapes != self._shapes:
            return self._one_by_one(batch)
        rates = [float(group["lr"]) for group in self.model.optimizer.param_groups]
        if self._graph is None or rates != self._rates:
            self._record(batch, rates)
        for name, column in batch.items():
            self._inputs[name].copy_(column, non_blocking=True)
        self._graph.replay()
        # The next replay writes over what this one leaves.
        self.terms = self._terms._replace(values=self._terms.values.clone())
        return self._loss.clone()

    def _one_by_one(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Make the step on a stream of its own, as recording demands of all steps before."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            loss = self.step(batch)
        here.wait_stream(aside)
        self.terms = self.step.terms
        return loss

    def _record(self, batch: Mapping[str, Tensor], rates: list[float]) -> None:
        self._inputs = {name: column.clone() for name, column in batch.items()}
        self._rates = rates
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self.step(self._inputs)
        self._terms = self.step.terms
