"""What a training run keeps on disk: a model's weights, and the full state to go on from.

Both are tensors and plain Python containers: ``torch.load(weights_only=True)`` reads them, FuxiCTR
reads the weights. A file appears whole or not at all, and the one before it stays until then. Where
tables are divided, it names the shards that hold them.
"""

import errno
import logging
import os
import random
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.distributed.cost import machine_memory
from fuxictr_tf4ctr.errors import DataError, DeviceError, MemoryShortage, UserError
from fuxictr_tf4ctr.registry import overrides
from fuxictr_tf4ctr.schema import ANYTHING, FLAG, TEXT, AnyOf, Key, Kind, ListOf, Record, whole
from fuxictr_tf4ctr.training.shards import (
    KEPT,
    Shards,
    UnmadeTable,
    end_save,
    read_mapped,
    write_merged,
)

LOG = logging.getLogger(__name__)

# PyTorch before 2.8 has but a RuntimeError for it, which ``files.system_error`` knows.
AcceleratorError = getattr(torch, "AcceleratorError", DeviceError)

FORMAT = 2
_COUNT = whole(0)
# Other than in JSON, infinite and no numbers count: nothing is better than the best metric yet.
_NUMBER = Kind("a number", lambda value: isinstance(value, int | float), (int, float))
_TENSORS = Record({}, others=Kind("a tensor", lambda value: isinstance(value, torch.Tensor)))
_NUMBERS = ListOf(_NUMBER)
# Optimizer -> weight -> what is known of it.
_OPTIMIZERS = Record({}, others=Record({}, others=Record({}, others=ANYTHING)))
# Where FuxiCTR keeps what its loop knows, beside weights and optimizer.
_LOOP = {
    "_best_metric": _NUMBER,
    "_stopping_steps": _COUNT,
    "_stop_training": FLAG,
    "_total_steps": _COUNT,
    "_batch_index": _COUNT,
    "_epoch_index": _COUNT,
}


def _can_be_drawn_from(value: Any) -> bool:
    try:
        random.Random().setstate(value["python"])
        name, keys, *rest = value["numpy"]
        np.random.RandomState().set_state((name, np.array(keys, np.uint32), *rest))
        torch.Generator().set_state(value["torch"])
        return value["cuda"] is None or isinstance(value["cuda"], torch.Tensor)
    except Exception:  # what generators raise depends on where the state is wrong
        return False


_RANDOM = Kind("states of random number generators", _can_be_drawn_from)
_DIVIDED = Record({"weights": _TENSORS, "shards": KEPT})
_STATE = Record(
    {
        "format": whole(FORMAT, FORMAT),
        "weights": _TENSORS,
        "shards": Key(AnyOf(KEPT, Record({})), default={}),
        "optimizers": Record({}, others=ANYTHING),
        "gradients": _TENSORS,
        "loop": Record(_LOOP),
        "rng": ListOf(_RANDOM),
        "epoch_start": Record({"loader_epoch": Key(_COUNT), "rng": _RANDOM}),
        "batches_done": _COUNT,
        "losses": Record({"seen": _NUMBERS, "sums": Record({}, others=_NUMBER)}),
        "twin": Key(Record({}, others=_NUMBER), default={}),
        "result": Record(
            {
                "epochs": ListOf(Record({"step": _COUNT}, others=ANYTHING)),
                "best_metric": Key(_NUMBER),
                "best_step": Key(_COUNT),
                "stopped": TEXT,
                "steps": _COUNT,
                "train_seconds": _NUMBER,
            }
        ),
        "seconds": _NUMBER,
    },
    others=Record({}, others=ANYTHING),
)


class Checkpoints:
    """The last two full states of a run, and when the next one is due.

    Args:
        folder: Folder of the states, of this run alone; it is created if missing.
        minutes: Save after so many minutes since the last state. None: never for the time.
        steps: Save every so many training steps. None: never for the steps.
    """

    kept = 2

    def __init__(
        self,
        folder: str | os.PathLike[str],
        minutes: float | None = None,
        steps: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.minutes = minutes
        self.steps = steps
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the state after training step ``step`` (from 1) should be saved."""
        if self.steps is not None and step % self.steps == 0:
            return True
        if self.minutes is None:
            return False
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    def save(self, state: dict[str, Any], step: int) -> None:
        """Write the state after training step ``step``, then let go of the oldest.

        Args:
            state: Tensors and plain Python containers.
            step: Training steps done.
        """
        path = self.file(step)
        write_whole({"format": FORMAT, **state}, path)
        end_save(path, state.get("shards", {}))
        for old in self._files()[: -self.kept]:
            self._remove(old)
        for left in self.folder.glob("step-*.shards"):  # of a save that was cut off
            if not left.with_suffix(".state").exists():
                shutil.rmtree(left, ignore_errors=True)
        self._saved_at = time.monotonic()

    def file(self, step: int) -> Path:
        """Return where the state after a training step lies."""
        return self.folder / f"step-{step:012d}.state"

    def latest(self) -> dict[str, Any] | None:
        """Read the newest state that is whole, None where there is none.

        A corrupt one is reported and removed: the next states count as newer than all there are.

        Raises:
            DataError: It is of another version of this package.
            StorageError, MemoryShortage: It cannot be read, and stays.
        """
        for partial in self.folder.glob("*.tmp"):  # left by a process killed while it wrote
            partial.unlink()
        for path in reversed(self._files()):
            try:
                return _read(path)
            except UserError:
                raise
            except Exception as error:  # what a damaged file raises depends on where it is damaged
                # A seek to a place that a damaged file names is an invalid argument.
                refused = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
                if refused or isinstance(error, MemoryError):
                    raise files.system_error(error) from error
                LOG.warning(
                    "checkpoint %s is corrupt (%s): go on from the one before it, if any",
                    path,
                    error,
                )
                path.unlink()
        return None

    def remove(self) -> None:
        """Remove all states: the run is done."""
        for path in self._files():
            self._remove(path)
        for left in self.folder.glob("step-*.shards"):
            shutil.rmtree(left, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _remove(self, path: Path) -> None:
        path.unlink()
        end_save(path, {})

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.state"))


def _read(path: Path) -> dict[str, Any]:
    # torch does not compare checksums when it reads: a flipped bit would become a wrong weight.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    kind = state.get("format") if isinstance(state, dict) else None
    if isinstance(kind, int) and kind != FORMAT:
        raise DataError(
            f"{path}: is of another version of this package (format {kind}, this one's is "
            f"{FORMAT}): go on with that version, or start a new run"
        )
    if problems := _STATE.problems(state):
        raise ValueError(problems[0])
    return state


def model_state(model: BaseModel) -> dict[str, Any]:
    """Return weights, optimizers, gradients and the loop's state of a FuxiCTR model."""
    return {
        "weights": model.state_dict(),
        "optimizers": {name: _plain(each) for name, each in optimizers_of(model).items()},
        # A model may add up the gradients of several batches before it makes a step.
        "gradients": {
            name: weights.grad
            for name, weights in model.named_parameters()
            if weights.grad is not None and overrides(model, "train_step")
        },
        "loop": {name: getattr(model, name) for name in _LOOP},
    }


def _plain(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state, numpy's numbers among its options as Python's."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group |= {k: v.item() for k, v in group.items() if isinstance(v, np.generic)}
    return state


def restore_model(model: BaseModel, state: dict[str, Any]) -> None:
    """Give a model the state that :func:`model_state` returned.

    Raises:
        DataError: The state is one of another model.
    """
    with state_of_this_model():
        model.load_state_dict(state["weights"])
        for name, optimizer in optimizers_of(model).items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, weights in model.named_parameters():
            gradient = state["gradients"].get(name)
            # Copied: of a tensor that was expanded, kernels would read beyond the end.
            weights.grad = None if gradient is None else gradient.to(weights.device, copy=True)
        _refuse_misshapen(model)
    for name in _LOOP:
        setattr(model, name, state["loop"][name])


@contextmanager
def state_of_this_model() -> Iterator[None]:
    """Say so where a state cannot be gone on from, while in context.

    Raises:
        DataError: The state is one of another model.
    """
    try:
        yield
    except (UserError, AcceleratorError):
        raise
    except Exception as error:  # what optimizers and generators meet that are another model's
        raise DataError(
            f"the checkpoint, or the optimizer's state that is taken over, does not belong to this "
            f"model, start a new run: {error}"
        ) from error


def _refuse_misshapen(model: BaseModel) -> None:
    """Refuse a state that a fused kernel would read or write beyond: it trusts what it is given.

    Raises:
        DataError: What an optimizer knows of a weight is not of the weight's shape and type.
    """
    for optimizer in optimizers_of(model).values():
        for weight, state in optimizer.state.items() if "fused" in optimizer.defaults else ():
            for key, value in state.items():
                if not isinstance(value, torch.Tensor):
                    continue
                forms = [(t.shape, t.stride(), t.dtype) for t in (value, weight)]
                if not (value.numel() == 1 if key == "step" else forms[0] == forms[1]):
                    raise DataError(
                        f"the optimizer's {key} of {tuple(value.shape)} does not belong to this "
                        f"model's weight of {tuple(weight.shape)}: start a new run"
                    )


def optimizers_of(model: BaseModel) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of a FuxiCTR model by the names it has them under."""
    found = vars(model).items()
    return {name: each for name, each in found if isinstance(each, torch.optim.Optimizer)}


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all random number generators a step may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    on_gpu = device.type == "cuda"
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if on_gpu else None,
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Set the random number generators to what :func:`rng_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def save_weights(
    model: BaseModel, path: str | os.PathLike[str], divided: Mapping[str, Any] | None = None
) -> None:
    """Write the model's ``state_dict``; an interrupted write leaves the previous file as it was.

    Args:
        model: Model whose weights to write.
        path: File to write; its folder is created if missing.
        divided: What ``Tables.save`` returned, where tables are divided: they are in shards, and
            FuxiCTR reads the file after :func:`merge_weights`.
    """
    weights = model.state_dict()
    write_whole({"weights": weights, "shards": dict(divided)} if divided else weights, path)
    end_save(Path(path), divided or {})


def write_whole(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a file by ``torch.save``; until it is whole, on the disk, the previous one stays.

    Args:
        content: Tensors and plain Python containers.
        path: File to write; its folder is created if missing.

    Raises:
        StorageError: The disk is too full for it, or it cannot be written there.
    """
    path = Path(path)
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path, needs=_bytes(content)) as output:
        torch.save(content, output)


def _bytes(content: Any) -> int:
    """Return about how many bytes ``torch.save`` makes of it."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_bytes, content.values()))
    return 0


def load_weights(model: BaseModel, path: str | os.PathLike[str]) -> None:
    """Read a ``state_dict`` into the model, on the model's own device.

    Divided tables are put together in the place of the model's own. Where those were not made, they
    are memory then, or of a merged file on the CPU pages that are read when their rows are needed.

    Args:
        model: Model that receives the weights.
        path: File written by :func:`save_weights` or by FuxiCTR.

    Raises:
        DataError: The file is missing, not a checkpoint, or not one of this model.
    """
    model.to(model.device)
    own = model.state_dict()
    unmade = {name for name, each in own.items() if isinstance(each, UnmadeTable)}
    weights, divided = _read_weights(path, mapped=bool(unmade))
    if unmade and isinstance(weights, dict):
        for name in weights.keys() - unmade:
            if isinstance(weights[name], torch.Tensor):
                weights[name] = weights[name].clone()  # mapped, it could not be written to
    if divided:
        weights |= _whole_tables(Shards(Path(path), divided), own, path)
    _fill(model, weights, path, assign=bool(unmade))
    model.to(model.device)


def _whole_tables(
    shards: Shards, own: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """Put tables together in the place of a model's own, or where those were not made."""
    needs = sum(shape.numel() * dtype.itemsize for shape, dtype in shards.tables.values())
    if needs > machine_memory():
        raise MemoryShortage(
            f"{path}: its tables take {needs / 2**30:,.0f} GiB, this machine has "
            f"{machine_memory() / 2**30:,.0f}: fuxictr merge makes one file of them, whose rows "
            "are read when they are needed"
        )
    found: dict[str, torch.Tensor] = {}
    for name, table in shards.names.items():
        shape, dtype = shards.tables[table]
        if name not in own or own[name].shape != shape:
            raise DataError(
                f"checkpoint {path} does not belong to this model: it has {name} of "
                f"{shape[0]} rows, {tuple(shape[1:])} each"
            )
        if table not in found:
            made = not isinstance(own[name], UnmadeTable)
            found[table] = own[name] if made else torch.empty(shape, dtype=dtype)
            shards.read(table, 0, found[table])
    return {name: found[table] for name, table in shards.names.items()}


def load_undivided(model: BaseModel, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read all but the divided tables, and return what the file says of them.

    Args:
        model: Model that receives the weights, its tables divided if they were when it was saved.
        path: File written by :func:`save_weights`.

    Raises:
        DataError: As for :func:`load_weights`.
    """
    weights, divided = _read_weights(path)
    model.to(model.device)
    _fill(model, weights, path)
    return divided


def merge_weights(path: str | os.PathLike[str]) -> bool:
    """Put divided tables into the file of the other weights, which FuxiCTR reads then.

    It takes memory for the other weights and a few megabytes, and twice the disk for a while.

    Args:
        path: File written by :func:`save_weights`.

    Returns:
        Whether tables were divided.

    Raises:
        DataError: The file is missing or damaged, or a shard is.
        StorageError: The disk is too full.
    """
    weights, divided = _read_weights(path)
    if divided:
        write_merged(Path(path), weights, Shards(Path(path), divided))
    end_save(Path(path), {})
    return bool(divided)


def _read_weights(
    path: str | os.PathLike[str], mapped: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read weights, at first use where they are ``mapped``, and what is said of divided tables."""
    try:
        if mapped:
            content = read_mapped(Path(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise DataError(f"checkpoint {path} does not exist: train the model first") from None
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"checkpoint {path} cannot be read, train again: {error}") from error
    if not _DIVIDED.problems(content):
        return content["weights"], content["shards"]
    return content, {}


def _fill(
    model: BaseModel, weights: dict[str, Any], path: str | os.PathLike[str], assign: bool = False
) -> None:
    try:
        model.load_state_dict(weights, assign=assign)
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"checkpoint {path} does not belong to this model: its data set, vocabulary or "
            f"settings differ. {error}"
        ) from error


def optimizer_file(checkpoint: str | os.PathLike[str]) -> Path:
    """Return where the optimizers' state lies that goes with some weights."""
    return Path(checkpoint).with_suffix(".optimizer")


def save_optimizers(model: BaseModel) -> None:
    """Write what the model's optimizers know of each weight, by its name, beside the checkpoint."""
    content = {
        name: {
            weight: optimizer.state[parameter]
            for weight, parameter in model.named_parameters()
            if parameter in optimizer.state
        }
        for name, optimizer in optimizers_of(model).items()
    }
    write_whole(content, optimizer_file(model.checkpoint))


def read_optimizers(path: Path) -> dict[str, Any]:
    """Read what :func:`save_optimizers` wrote.

    Raises:
        DataError: It is damaged.
    """
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path}: cannot be read, leave keep_optimizer out: {error}") from error
    if problems := _OPTIMIZERS.problems(states, f"{path}: "):
        raise DataError("\n".join([*problems, "leave keep_optimizer out"]))
    return states


@torch.no_grad()
def take_over(model: BaseModel, ancestor: BaseModel, optimizers: Mapping[str, Any] | None) -> None:
    """Give a model the weights of another on smaller vocabularies; the rows beyond stay as drawn.

    Args:
        model: The model, its tables as long as the other's or longer.
        ancestor: The other, of the same class and settings.
        optimizers: Its optimizers' state, as :func:`read_optimizers` returned it; rows beyond get
            zeros, as before a first step. None lets the optimizers begin anew.

    Raises:
        DataError: Another weight than a table differs in its shape, or the optimizers differ.
    """
    weights, own = ancestor.state_dict(), model.state_dict()
    for name, new in own.items():
        if new.is_floating_point():  # whole numbers are places, which follow from the vocabularies
            _first_rows(new, weights[name], name)
    parameters = dict(model.named_parameters())
    for name, states in (optimizers or {}).items():
        optimizer = optimizers_of(model).get(name)
        for weight, state in states.items():
            if optimizer is None or weight not in parameters:
                raise DataError(f"the ancestor's optimizer knows {weight}, which is not there")
            parameter, old = parameters[weight], weights[weight]
            optimizer.state[parameter] = {
                key: _grown(value, old, parameter) for key, value in state.items()
            }
    _refuse_misshapen(model)


def _grown(value: Any, old: torch.Tensor, parameter: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.to(parameter.device)
    if value.shape != old.shape:  # a count of steps
        return value
    return _first_rows(torch.zeros_like(parameter, dtype=value.dtype), value, "state")


def _first_rows(new: torch.Tensor, old: torch.Tensor, name: str) -> torch.Tensor:
    if new.shape[1:] != old.shape[1:] or new.shape[:1] < old.shape[:1]:
        raise DataError(f"{name}: {tuple(old.shape)} cannot be grown to {tuple(new.shape)}")
    (new[: len(old)] if new.dim() else new).copy_(old)
    return new
