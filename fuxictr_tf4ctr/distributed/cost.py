"""What training by several ranks costs, computed: bytes over the network, bytes of memory.

Bytes are those a rank sends per step: in a ring, an all-reduce of G bytes among N ranks sends
2 (N - 1) / N times G from each (Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", 2009).
"""

import os
from dataclasses import dataclass

from fuxictr_tf4ctr.errors import SettingsError

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


@dataclass(frozen=True)
class Cost:
    """What a rank needs.

    Attributes:
        bytes_per_step: Bytes it sends per step.
        tables: Bytes of the embedding tables it holds, with gradients and optimizer state.
        others: Bytes of the other weights, with gradients and optimizer state.
    """

    bytes_per_step: float
    tables: float
    others: float

    @property
    def memory(self) -> float:
        """Bytes of weights, gradients and optimizer state."""
        return self.tables + self.others


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
    held = FLOAT * (2 + work.moments)
    return Cost(
        all_reduce_bytes(FLOAT * parameters, ranks),
        held * work.table_parameters,
        held * work.other_parameters,
    )


def divided_tables(work: Workload, ranks: int, table_optimizer: str = "row_wise_adagrad") -> Cost:
    """Each rank holds some rows of every table; ids, embeddings and gradients travel.

    The tables' optimizer updates rows in the backward pass: no gradient of a table is kept.
    """
    kept = {"sgd": 0, "adagrad": work.table_parameters, "row_wise_adagrad": work.table_rows}
    rows = work.batch_size / ranks
    elsewhere = (ranks - 1) / ranks
    there_and_back = elsewhere * rows * (ID * work.lookups + 2 * FLOAT * work.looked_up)
    lengths = (ranks - 1) * rows * work.lookups * LENGTH  # every rank is told of every row
    return Cost(
        there_and_back + lengths + all_reduce_bytes(FLOAT * work.other_parameters, ranks),
        FLOAT * (work.table_parameters + kept[table_optimizer]) / ranks,
        FLOAT * (2 + work.moments) * work.other_parameters,
    )


def evaluation_bytes(rows: int, ranks: int, columns: int = 2) -> float:
    """Bytes a rank sends for the metrics of so many rows in all: labels and scores for others."""
    return rows / ranks * (ranks - 1) / ranks * columns * FLOAT
