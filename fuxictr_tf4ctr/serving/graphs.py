"""A model as a graph of its own: ONNX, or torch.export."""

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fuxictr_tf4ctr.datasets.feature_map import row_shape
from fuxictr_tf4ctr.errors import DataError, SettingsError, StorageError
from fuxictr_tf4ctr.files import storage_errors, system_error, whole_file
from fuxictr_tf4ctr.serving.score import RUNNERS

TABLES = ("fp32", "fp16", "int8")
SCORES = ("y_pred", "y_calibrated", "y_simple", "y_complex")
_ANSI = re.compile(r"\x1b\[[0-9;]*m|\[\d+m")
Scorer = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""Takes columns by name, in the order of the graph's inputs; returns scores [rows] in that of its
outputs."""

# Any number but one, which exporters may take for a constant, or that of a width of the model.
_EXAMPLE_ROWS = 3
# A protobuf message ends at 2 GiB; larger weights lie in a file beside it.
_LARGEST_MESSAGE = 1_900_000_000


class SmallTable(nn.Module):
    """An embedding table [tokens, D] in fewer bytes, looked up as float32.

    Args:
        weight: The table.
        numbers: "fp16", or "int8": each row its own scale, its largest number 127.
    """

    def __init__(self, weight: Tensor, numbers: str) -> None:
        super().__init__()
        largest = weight.abs().amax(1, keepdim=True)
        scale = torch.where(largest > 0, largest, 1) / 127
        table = weight.half() if numbers == "fp16" else (weight / scale).round().to(torch.int8)
        self.register_buffer("table", table)
        self.register_buffer("scale", None if numbers == "fp16" else scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids of any shape: [..., D]."""
        rows = nn.functional.embedding(ids, self.table).float()
        return rows if self.scale is None else rows * nn.functional.embedding(ids, self.scale)


def with_small_tables(model: BaseModel, numbers: str) -> BaseModel:
    """Return a copy of a model whose embedding tables are :class:`SmallTable`, for scoring."""
    small = copy.deepcopy(model)
    for module in list(small.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Embedding:
                setattr(module, name, SmallTable(child.weight.detach(), numbers))
    return small.eval()


class ScoringGraph(nn.Module):
    """A FuxiCTR model as a function of columns, one argument each, to its scores.

    Args:
        model: The model, on the CPU.

    Attributes:
        inputs: Names of the columns, in the order of the arguments.
        outputs: Names of the scores, in their order: y_pred, and others if any.
        example: Columns of a batch.

    Raises:
        DataError: No graph can express what the model does; the message says what that is.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model.eval()
        features = model.feature_map.features
        # Ones, not zeros: a row that is all padding has no sequence.
        self.example = {
            name: torch.ones(
                (_EXAMPLE_ROWS, *row_shape(spec)),
                dtype=torch.float32 if spec["type"] in ("numeric", "embedding") else torch.int64,
            )
            for name, spec in features.items()
            if spec["type"] != "meta"
        }
        self.inputs = list(self.example)
        self.selections: list[Tensor | None] = []
        found = self._tried()
        self.outputs = [name for name in SCORES if name in found]
        self.eval()

    def _tried(self) -> Mapping[str, Tensor]:
        """Score the example; note selections by masks, refuse what no graph can express."""
        name = type(self.model).__name__
        try:
            with torch.no_grad(), _NotedSelections(self.selections):
                found = self.model(self.example)
        except _NotExpressible as error:
            raise DataError(f"{name} cannot be exported: it {error}") from error
        except Exception as error:  # whatever a model meets
            why = "stops in its own code"
            if type(self.model).get_inputs is not BaseModel.get_inputs:
                why = (
                    "does not score a batch of plain columns, as models with a loader of their own "
                    "do not"
                )
            raise DataError(
                f"{name} cannot be exported: it {why} "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error
        if "y_pred" not in found:
            raise DataError(
                f"{name} cannot be exported: it returns {', '.join(found)} and no y_pred, as "
                "models of several tasks do"
            )
        return found

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """Score a batch: columns [B] or [B, width] to scores [B]."""
        with _FixedSelections(self.selections):
            scores = self.model(dict(zip(self.inputs, columns, strict=True)))
        return tuple(scores[name].reshape(-1) for name in self.outputs)

    def traced(self) -> torch.export.ExportedProgram:
        """Trace the graph for batches of any size."""
        batch = torch.export.Dim("batch")
        shapes = (tuple({0: batch} for _ in self.inputs),)
        with torch.no_grad():
            return torch.export.export(self, tuple(self.example.values()), dynamic_shapes=shapes)


def to_onnx(graph: ScoringGraph, folder: Path) -> Scorer:
    """Write ``model.onnx`` and return a scorer that reads it.

    Raises:
        SettingsError: The extra ``export`` is not installed.
        DataError: The model computes something ONNX cannot express.
    """
    try:
        import onnxruntime  # noqa: F401  what score.py runs it by
        import onnxscript  # noqa: F401  what torch exports by
    except ImportError as error:
        raise SettingsError(
            f"--format onnx needs {error.name}: pip install 'fuxictr-tf4ctr[export]'"
        ) from error
    path = folder / "model.onnx"
    with _export_errors("ONNX"), storage_errors(path, weight_bytes(graph)):
        torch.onnx.export(
            graph.traced(),
            (),
            str(path),
            dynamo=True,
            input_names=graph.inputs,
            output_names=graph.outputs,
            external_data=weight_bytes(graph) > _LARGEST_MESSAGE,
            verbose=False,
            # It takes FuxiCTR's 1e-12 for 0, and an empty sequence's average for 0 / 0; the runtime
            # optimizes for itself.
            optimize=False,
        )
    return RUNNERS["onnx"](folder, graph.outputs)


def to_torch(graph: ScoringGraph, folder: Path) -> Scorer:
    """Write ``model.pt2``, a torch.export program, and return a scorer that reads it.

    Raises:
        DataError: The model computes something torch.export cannot trace.
    """
    path = folder / "model.pt2"
    with whole_file(path, weight_bytes(graph)) as file, _export_errors("torch.export"):
        torch.export.save(graph.traced(), file)
    return RUNNERS["torch"](folder, graph.outputs)


GRAPHS = {"onnx": to_onnx, "torch": to_torch}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights: about the size of its export."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


class _NotExpressible(Exception):
    """What a model does that no graph can express."""


class _NotedSelections(TorchFunctionMode):
    """Note, for each ``masked_select`` in context, which entries of a row its mask selects.

    How many entries a mask selects is not known to an exporter, even where the mask is a constant
    of the model, such as the upper triangle of FuxiCTR's InnerProductInteraction.

    Args:
        selections: To be filled: [selected] places in a flattened row; None for a mask that has a
            row of its own for each row of the batch.
    """

    def __init__(self, selections: list[Tensor | None]) -> None:
        super().__init__()
        self._selections = selections

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.masked_select, Tensor.masked_select):
            values, mask = args
            of_rows = mask.ndim == values.ndim and mask.shape[0] != 1
            row = None if of_rows else mask.expand(1, *values.shape[1:]).flatten().nonzero()
            self._selections.append(row if row is None else row.flatten())
        elif getattr(function, "__name__", "") == "_pack_padded_sequence":
            raise _NotExpressible(
                "packs sequences by their lengths (pack_padded_sequence), which ONNX and "
                "torch.export cannot express"
            )
        return function(*args, **(kwargs or {}))


class _FixedSelections(TorchFunctionMode):
    """Select by fixed places, in context, what ``masked_select`` selects by a constant mask.

    Args:
        selections: Of each call in turn, as :class:`_NotedSelections` has noted them.
    """

    def __init__(self, selections: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._selections = iter(selections)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.masked_select, Tensor.masked_select):
            places = next(self._selections)
            if places is not None:
                return args[0].flatten(1)[:, places].flatten()
        return function(*args, **(kwargs or {}))


def _first_line(error: Exception) -> str:
    return _ANSI.sub("", str(error)).strip().split("\n")[0]


@contextmanager
def _export_errors(name: str) -> Iterator[None]:
    """Say what failed, and keep the exporter's remarks on its own workings to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except StorageError:
        raise
    except Exception as error:  # whatever an exporter meets
        refused = system_error(error)
        if refused is not None:
            raise refused from error
        reason = _first_line(error.__cause__ or error)
        raise DataError(f"the model cannot be exported to {name}: {reason}") from error
    finally:
        logger.setLevel(level)
