"""A whole training step as one CUDA graph: the GPU replays it, Python launches no kernel."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.training.losses import NO_TERMS

# Steps done one by one first, in which optimizer, libraries and allocator settle.
_WARM_UP = 3


class CudaGraphs:
    """Records what a function has the GPU do; the recordings share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # One for all steps that are not replayed: memory freed on a stream stays that stream's,
        # and PyTorch's own for recordings would stay with the first GPU that recorded.
        self._stream = torch.cuda.Stream()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Compute on a stream of its own, as recording demands of all steps before."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            yield
        here.wait_stream(self._stream)

    def record(self, make: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Return what a function returns, and what fills it again as the function would."""
        graph = torch.cuda.CUDAGraph()
        # Of this thread: the one that pins the rows to come goes on meanwhile. A recording that
        # fails leaves its stream as the current one.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, self._pool, self._stream, "thread_local"),
        ):
            result = make()
        return result, graph.replay


class GraphedStep:
    """Records a step for each form of batch that comes again, and replays it.

    The learning rate is read from the device where the optimizer is fused, and may change;
    otherwise it is part of the record, and the step is recorded anew.

    Args:
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
        self._shown: Mapping[str, Tensor] | None = None
        self._graphs = graphs or CudaGraphs()
        self._warmed_up = 0
        self._seen: set[tuple] = set()
        self._records: dict[tuple, tuple[list[Tensor], Any, Callable[[], None]]] = {}
        self._rates: list[Tensor] = []
        # PyTorch warns of steps that are not recorded; here they are the first few.
        model.optimizer._warned_capturable_if_run_uncaptured = True

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train on a batch and return its loss, regularization included.

        Raises:
            SettingsError: The step does what no recording can hold.
        """
        self._let_optimizer_be_recorded()
        rates = self._rates_on_device()
        matrices, places = _laid_out(batch)
        kinds = [(name, column.dtype) for name, column in batch.items()]
        # What two batches must have alike to share a recording.
        form = (type(batch), *zip(kinds, places, strict=True), *rates)
        if self._warmed_up < _WARM_UP or form not in self._seen:
            self._warmed_up += 1
            self._seen.add(form)
            with self._graphs.aside():
                loss = self.step(batch)
            self.terms, self._shown = self.step.terms, None
            return loss
        if form not in self._records:
            own = [each.to(self.model.device, copy=True) for each in matrices]
            inputs = copy.copy(batch)
            for name, (at, *place) in zip(batch, places, strict=True):
                inputs[name] = own[at].as_strided(*place)
            self._records[form] = own, *self._record(inputs)
        own, result, replay = self._records[form]
        for target, matrix in zip(own, matrices, strict=True):
            target.copy_(matrix, non_blocking=True)
        replay()
        loss, terms, self._shown = result
        # The next replay writes over what this one leaves.
        self.terms = terms._replace(values=terms.values.clone())
        return loss.clone()

    def monitored_values(self) -> Mapping[str, Tensor]:
        """Return what the model shows of the last batch: of one replayed it knows nothing."""
        return _shown_by(self.model) if self._shown is None else self._shown

    def _record(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Callable[[], None]]:
        """Record the step on a batch that stays where it is."""

        def make() -> tuple[Tensor, Any, Mapping[str, Tensor]]:
            return self.step(inputs), self.step.terms, _shown_by(self.model)

        try:
            return self._graphs.record(make)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # such as a value that is read, or a shape that follows
            reason = str(error.__context__ or error).splitlines()[0]
            raise SettingsError(
                f"cuda_graphs: a step of {type(self.model).__name__} cannot be recorded "
                f"({reason}): set cuda_graphs: false"
            ) from error

    def _let_optimizer_be_recorded(self) -> None:
        """Ask it for steps that can be; again after a state is taken up, which brings its own."""
        optimizer = self.model.optimizer
        for group in optimizer.param_groups:
            if not group.get("capturable"):
                group["capturable"] = True
                for weight in group["params"]:
                    if "step" in optimizer.state.get(weight, {}):
                        state = optimizer.state[weight]
                        state["step"] = state["step"].to(weight.device)

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


@torch.no_grad()
def _shown_by(model: BaseModel) -> Mapping[str, Tensor]:
    return getattr(model, "monitored_values", dict)()


def _laid_out(batch: Mapping[str, Tensor]) -> tuple[list[Tensor], list[tuple]]:
    """Return the matrices that the columns are views of, each once, and the columns' places.

    A place is the number of the matrix, and shape, strides and offset within it.
    """
    total = sum(column.numel() for column in batch.values())
    matrices: dict[int, tuple[int, Tensor]] = {}
    places = []
    for column in batch.values():
        whole = _whole(column, total)
        at, _ = matrices.setdefault(id(whole), (len(matrices), whole))
        if whole is column:  # copied for itself, it lies there in one piece
            in_one_piece = torch.empty_like(column, device="meta").stride()
            places.append((at, column.shape, in_one_piece, 0))
        else:
            offset = column.storage_offset() - whole.storage_offset()
            places.append((at, column.shape, column.stride(), offset))
    return [matrix for _, matrix in matrices.values()], places


def _whole(column: Tensor, total: int) -> Tensor:
    """Return the matrix a column is a view of, itself where that holds more than a batch."""
    base = column._base
    if base is None or base.numel() > total or not base.is_contiguous():
        return column
    return base
