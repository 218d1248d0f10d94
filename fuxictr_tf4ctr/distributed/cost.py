"""What training by several ranks costs, computed, and whether embedding tables are divided.

Bytes are those a rank sends per step: in a ring, an all-reduce of G bytes among N ranks sends
2 (N - 1) / N times G from each (Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", 2009).
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from fuxictr_tf4ctr.errors import SettingsError

ENGINES = "fuxictr_tf4ctr.engines"
SHARDINGS = ("row_wise", "table_wise", "auto")
TABLE_OPTIMIZERS = ("sgd", "adagrad", "row_wise_adagrad", "adam")
# They work on whole tables, or on the lookups that sharding replaces.
_EXCLUDED = (
    *("compile", "cuda_graphs", "sparse_embeddings", "cowclip"),
    *("continue_from", "keep_optimizer"),
)


@dataclass(frozen=True)
class ShardingOptions:
    """How tables are divided.

    Attributes:
        sharding: "row_wise" (each rank has some rows of every table), "table_wise" (each rank has
            some tables), or "auto" (the planner chooses one of these for each table).
        optimizer: Rule by which a rank updates the rows it has: "sgd", "adagrad",
            "row_wise_adagrad", which keeps one number per row, or "adam", on GPUs alone.
        learning_rate: Its rate at the start; later it changes as the model's does.
    """

    sharding: str
    optimizer: str
    learning_rate: float

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "ShardingOptions | None":
        """Read them from settings; None where tables are not to be divided."""
        if params.get("table_sharding") is None:
            return None
        return cls(
            params["table_sharding"],
            params.get("table_optimizer") or "row_wise_adagrad",
            params.get("table_learning_rate") or params["learning_rate"],
        )


def sharding_problems(params: Mapping[str, Any], runs_here: bool = True) -> Iterator[str]:
    """List what keeps tables from being divided, one sentence each.

    Args:
        runs_here: Whether it is this machine that must have TorchRec, and the GPU.
    """
    if params.get("table_sharding") is None:
        for key in ("table_optimizer", "table_learning_rate"):
            if params.get(key) is not None:
                yield f"{key} is for table_sharding: set that too, or leave it out"
        return
    if params.get("embedding_regularizer"):
        yield (
            "embedding_regularizer changes every row in every step, but with table_sharding only "
            "the rows of a batch are updated: set it to 0"
        )
    for key in _EXCLUDED:
        if params.get(key):
            yield f"{key} does not go with table_sharding: leave one of them out"
    if runs_here and params.get("table_optimizer") == "adam" and params.get("gpu", -1) < 0:
        yield (
            "table_optimizer: TorchRec has adam for GPUs alone: give --gpu, or take "
            "row_wise_adagrad or adagrad"
        )
    if runs_here and not all(map(importlib.util.find_spec, ("torchrec", "fbgemm_gpu"))):
        yield (
            "table_sharding needs TorchRec: pip install 'fuxictr-tf4ctr[torchrec]', or without a "
            "GPU as docs/scaling.md says"
        )


class Tables:
    """Embedding tables that every rank has whole: they are among a model's weights."""

    def save(self, path: Path | None, step: int, optimizer: bool) -> dict[str, Any]:
        """Write the rows of divided tables that this rank has; all ranks call this.

        Args:
            path: File beside which they go, which is written after; that of rank 0 counts.
            step: Training steps done.
            optimizer: Whether what the optimizer knows of them is written too.

        Returns:
            What the file has to say of them; nothing where tables are whole.
        """
        return {}

    def load(self, path: Path | None, kept: Mapping[str, Any], optimizer: bool) -> None:
        """Read the rows of divided tables that this rank has; all ranks call this.

        Args:
            path: The file; that of rank 0 counts, as does what it says.
            kept: What it says of them.
            optimizer: As it was in :meth:`save`, or less.
        """


WHOLE = Tables()


def table_engine() -> Any:
    """Return what divides tables: the installed entry point "tables" of ``ENGINES``.

    It is called with a model that was compiled while in its context ``unmade()``, all ranks and
    :class:`ShardingOptions`.

    Raises:
        SettingsError: No package offers one, or what it needs cannot be loaded.
    """
    found = entry_points(group=ENGINES, name="tables")
    if not found:
        raise SettingsError("table_sharding needs this package installed, not only on sys.path")
    return next(iter(found)).load()


# What a process takes that has imported torch and FuxiCTR, and has no data or model yet: measured.
PROCESS = 400 << 20
FLOAT = 4
ID = 8
# How many ids of a row and field a rank is sent.
LENGTH = 4


@dataclass(frozen=True)
class Workload:
    """A model and the batches it is trained on; sizes in numbers, not bytes.

    Attributes:
        batch_size: Rows of a step, of all ranks.
        table_rows: Rows of all embedding tables.
        table_parameters: Numbers in these rows.
        lookups: Ids looked up for a row of data.
        looked_up: Numbers found by these ids.
        other_parameters: Parameters that are in no table.
        moments: Numbers the optimizer keeps for a parameter: 2 for Adam.
    """

    batch_size: int
    table_rows: int
    table_parameters: int
    lookups: float
    looked_up: float
    other_parameters: int
    moments: float = 2


class Held(NamedTuple):
    """Bytes of weights that a rank holds, and of what belongs to them."""

    weights: float
    gradients: float
    optimizer: float


@dataclass(frozen=True)
class Cost:
    """What a rank needs.

    Attributes:
        bytes_per_step: Bytes it sends per step.
        tables: What it holds of the embedding tables.
        others: What it holds of the other weights.
    """

    bytes_per_step: float
    tables: Held
    others: Held

    @property
    def memory(self) -> float:
        """Bytes of weights, gradients and optimizer state."""
        return sum(self.tables) + sum(self.others)


def machine_memory() -> float:
    """Bytes of this machine's memory, inf where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no such thing outside POSIX
        return float("inf")


def check_processes(count: int) -> None:
    """Raise SettingsError unless so many processes fit into this machine's memory."""
    most = machine_memory() // PROCESS
    if count > most:
        raise SettingsError(
            f"--workers {count}: so many processes take {count * PROCESS / 2**30:,.0f} GiB before "
            f"they have any data, this machine has {machine_memory() / 2**30:,.0f}: give at most "
            f"{most:.0f}"
        )


def all_reduce_bytes(size: float, ranks: int) -> float:
    """Bytes each of so many ranks sends to add up ``size`` bytes in a ring."""
    return 2 * (ranks - 1) / ranks * size


def data_parallel(work: Workload, ranks: int) -> Cost:
    """Every rank holds the whole model, and sends the gradient of all of it."""
    parameters = work.table_parameters + work.other_parameters
    return Cost(
        all_reduce_bytes(FLOAT * parameters, ranks),
        _whole(work.table_parameters, work.moments),
        _whole(work.other_parameters, work.moments),
    )


def divided_tables(work: Workload, ranks: int, table_optimizer: str = "row_wise_adagrad") -> Cost:
    """Each rank holds some rows of every table; ids, embeddings and gradients travel.

    The tables' optimizer updates rows in the backward pass: no gradient of a table is kept.
    """
    kept = {
        "sgd": 0,
        "row_wise_adagrad": work.table_rows,
        "adagrad": work.table_parameters,
        "adam": 2 * work.table_parameters,
    }
    rows = work.batch_size / ranks
    elsewhere = (ranks - 1) / ranks
    there_and_back = elsewhere * rows * (ID * work.lookups + 2 * FLOAT * work.looked_up)
    lengths = (ranks - 1) * rows * work.lookups * LENGTH  # every rank is told of every row
    return Cost(
        there_and_back + lengths + all_reduce_bytes(FLOAT * work.other_parameters, ranks),
        Held(FLOAT * work.table_parameters / ranks, 0, FLOAT * kept[table_optimizer] / ranks),
        _whole(work.other_parameters, work.moments),
    )


def _whole(parameters: int, moments: float) -> Held:
    return Held(FLOAT * parameters, FLOAT * parameters, FLOAT * moments * parameters)
