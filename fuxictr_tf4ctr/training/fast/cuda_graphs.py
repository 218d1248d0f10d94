"""A whole training step as one CUDA graph: the GPU replays it, Python launches no kernel."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.training.losses import NO_TERMS

# Steps done one by one first, in which optimizer, libraries and allocator settle.
_WARM_UP = 3


class CudaGraphs:
    """Records what a function has the GPU do; the recordings share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Compute on a stream of its own, as recording demands of all steps before."""
        here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            yield
        here.wait_stream(stream)

    def record(self, make: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Return what a function returns, and what fills it again as the function would."""
        graph = torch.cuda.CUDAGraph()
        # Of this thread: the one that pins the rows to come goes on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = make()
        return result, graph.replay


class GraphedStep:
    """Records a step for each form of batch that comes again, and replays it.

    The learning rate is read from the device where the optimizer is fused, and may change;
    otherwise it is part of the record, and the step is recorded anew.

    Args:
        model: Model on a GPU.
        step: Its training step; what it leaves in ``terms`` is given on.
        graphs: What records.
    """

    def __init__(
        self,
        model: BaseModel,
        step: Callable[[Mapping[str, Tensor]], Tensor],
        graphs: CudaGraphs | None = None,
    ) -> None:
        self.model = model
        self.step = step
        self.terms = NO_TERMS
        self._graphs = graphs or CudaGraphs()
        self._warmed_up = 0
        self._seen: set[tuple] = set()
        self._records: dict[tuple, _Record] = {}
        self._rates: list[Tensor] = []

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train on a batch and return its loss, regularization included."""
        for group in self.model.optimizer.param_groups:
            group["capturable"] = True  # again: a state taken up, a CPU's say, brings its own
        rates = self._rates_on_device()
        form = (*_form(batch), *rates)
        if self._warmed_up < _WARM_UP or form not in self._seen:
            self._warmed_up += 1
            self._seen.add(form)
            with self._graphs.aside():
                loss = self.step(batch)
            self.terms = self.step.terms
            return loss
        if form not in self._records:
            if rates:  # those recorded before are of other rates
                self._records.clear()
            self._records[form] = _Record(batch, self.model.device, self._make, self._graphs)
        loss, terms = self._records[form](batch)
        # The next replay writes over what this one leaves.
        self.terms = terms._replace(values=terms.values.clone())
        return loss.clone()

    def _make(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        return self.step(batch), self.step.terms

    def _rates_on_device(self) -> tuple[float, ...]:
        """Keep rates as tensors of the device; return those that must be part of a record."""
        groups = self.model.optimizer.param_groups
        if not all(group.get("fused") for group in groups):
            return tuple(float(group["lr"]) for group in groups)
        if not self._rates:
            self._rates = [torch.zeros((), device=self.model.device) for _ in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            if group["lr"] is not rate:  # set anew: read once, not at every step
                rate.fill_(float(group["lr"]))
                group["lr"] = rate
        return ()


class _Record:
    """One recording: where its inputs lie, what it leaves, and how it is done again."""

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        device: torch.device,
        make: Callable[[Mapping[str, Tensor]], Any],
        graphs: CudaGraphs,
    ) -> None:
        self._matrices = [torch.empty_like(each, device=device) for each in _matrices(batch)]
        inputs = copy.copy(batch)
        for name, (at, *place) in zip(batch, _places(batch), strict=True):
            inputs[name] = self._matrices[at].as_strided(*place)
        self._fill(batch)
        self._result, self._replay = graphs.record(lambda: make(inputs))

    def _fill(self, batch: Mapping[str, Tensor]) -> None:
        for target, matrix in zip(self._matrices, _matrices(batch), strict=True):
            target.copy_(matrix, non_blocking=True)

    def __call__(self, batch: Mapping[str, Tensor]) -> Any:
        """Do the step again on another batch of the same form."""
        self._fill(batch)
        self._replay()
        return self._result


def _whole(column: Tensor, total: int) -> Tensor:
    """Return the matrix a column is a view of, itself where that holds more than a batch."""
    base = column._base
    if base is None or base.numel() > total or not base.is_contiguous():
        return column
    return base


def _matrices(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the matrices that the columns are views of, each once."""
    total = sum(column.numel() for column in batch.values())
    return list({id(each): each for each in (_whole(c, total) for c in batch.values())}.values())


def _places(batch: Mapping[str, Tensor]) -> list[tuple]:
    """Say of each column in which matrix it is, and how it lies there."""
    total = sum(column.numel() for column in batch.values())
    order = {id(matrix): at for at, matrix in enumerate(_matrices(batch))}
    places = []
    for column in batch.values():
        whole = _whole(column, total)
        offset = column.storage_offset() - whole.storage_offset()
        # A column copied for itself lies there in one piece.
        stride = column.stride() if whole is not column else _in_one_piece(column)
        places.append((order[id(whole)], column.shape, stride, offset))
    return places


def _in_one_piece(column: Tensor) -> tuple[int, ...]:
    return torch.empty_like(column, device="meta").stride()


def _form(batch: Mapping[str, Tensor]) -> tuple:
    """What two batches must have alike to share a recording."""
    kinds = [(name, column.dtype) for name, column in batch.items()]
    return type(batch), *zip(kinds, _places(batch), strict=True)
