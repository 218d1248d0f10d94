"""What training by several ranks costs, computed: steps, bytes over the network, memory.

    python benchmarks/cost_model.py

prints the tables of docs/scaling.md; ``benchmarks/scaling.py`` holds small cases against what a
run really sends. Bytes are those a rank sends per step: in a ring, an all-reduce of G bytes among N
ranks sends 2 (N - 1) / N times G from each (Source: Patarasuk and Yuan, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", 2009).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOAT = 4
ID = 8
# How many ids of a row and field a rank is sent.
LENGTH = 4
# Weight, gradient and the two moments of Adam.
BYTES_PER_PARAMETER = 4 * FLOAT


@dataclass(frozen=True)
class Workload:
    """A model and the data it is trained on.

    Attributes:
        rows: Training rows.
        batch_size: Rows of a step, of all ranks.
        table_rows: Rows of all embedding tables.
        width: Floats of an embedding.
        fields: Ids of a row.
        other_parameters: Parameters that are in no table.
    """

    rows: int
    batch_size: int
    table_rows: int
    width: int
    fields: int
    other_parameters: int

    @property
    def table_parameters(self) -> int:
        """Parameters of all tables."""
        return self.table_rows * self.width


@dataclass(frozen=True)
class Cost:
    """What an epoch costs.

    Attributes:
        steps: Steps of an epoch.
        bytes_per_step: Bytes a rank sends per step.
        memory: Bytes of weights, gradients and moments that a rank holds.
    """

    steps: int
    bytes_per_step: float
    memory: float

    def network_seconds(self, bytes_per_second: float) -> float:
        """Seconds a step takes on a link of this speed, if nothing else is done meanwhile."""
        return self.bytes_per_step / bytes_per_second


def all_reduce_bytes(size: float, ranks: int) -> float:
    """Bytes each of so many ranks sends to add up ``size`` bytes in a ring."""
    return 2 * (ranks - 1) / ranks * size


def data_parallel(work: Workload, ranks: int) -> Cost:
    """Every rank holds the whole model, and sends the gradient of all of it."""
    parameters = work.table_parameters + work.other_parameters
    return Cost(
        math.ceil(work.rows / work.batch_size),
        all_reduce_bytes(FLOAT * parameters, ranks),
        BYTES_PER_PARAMETER * parameters,
    )


def divided_tables(work: Workload, ranks: int) -> Cost:
    """Each rank holds some rows of every table; ids, embeddings and gradients travel.

    The tables' optimizer, row-wise Adagrad, keeps a number per row, and no gradient is kept.
    """
    lookups = work.batch_size / ranks * work.fields
    elsewhere = (ranks - 1) / ranks
    there_and_back = elsewhere * lookups * (ID + 2 * FLOAT * work.width)
    lengths = (ranks - 1) * lookups * LENGTH  # every rank is told of every row
    return Cost(
        math.ceil(work.rows / work.batch_size),
        there_and_back + lengths + all_reduce_bytes(FLOAT * work.other_parameters, ranks),
        FLOAT * (work.table_parameters + work.table_rows) / ranks
        + BYTES_PER_PARAMETER * work.other_parameters,
    )


def evaluation_bytes(rows: int, ranks: int, columns: int = 2) -> float:
    """Bytes a rank sends for the metrics of so many rows in all: labels and scores for others."""
    return rows / ranks * (ranks - 1) / ranks * columns * FLOAT


# The authors' best run of TF4CTR on Criteo_x4: 22,719,132 parameters, nearly all in tables.
CRITEO_X4 = Workload(36_672_493, 4096, 1_367_000, 16, 39, 847_132)
# Criteo 1TB with the table sizes of MLPerf's DLRM-DCNv2, one id per field.
CRITEO_1TB = Workload(4_195_197_692, 65_536, 204_184_588, 128, 26, 16_000_000)
NVLINK, ETHERNET_100, ETHERNET_10 = 300e9, 12.5e9, 1.25e9


def table(work: Workload, ranks: Sequence[int], cost=data_parallel) -> str:
    """Tabulate the cost for several numbers of ranks, in Markdown."""
    lines = [
        "| ranks | steps per epoch | MB per step and rank | ms at 300 GB/s | at 12.5 GB/s | "
        "at 1.25 GB/s | GB of memory per rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for number in ranks:
        found = cost(work, number)
        times = (1e3 * found.network_seconds(s) for s in (NVLINK, ETHERNET_100, ETHERNET_10))
        lines.append(
            f"| {number} | {found.steps:,} | {found.bytes_per_step / 1e6:,.1f} | "
            + " | ".join(f"{milliseconds:,.1f}" for milliseconds in times)
            + f" | {found.memory / 1e9:,.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables of docs/scaling.md."""
    print(table(CRITEO_X4, (1, 2, 4, 8)))
    print(table(CRITEO_1TB, (64,)))
    print(table(CRITEO_1TB, (64,), divided_tables))


if __name__ == "__main__":
    main()
