"""The tables of docs/scaling.md: what training by several ranks costs, by ``distributed/cost.py``.

    python benchmarks/cost_model.py

``scaling.py`` and ``sharded_tables.py`` hold small cases against what a run really sends.
"""

import math
from collections.abc import Sequence

from fuxictr_tf4ctr.distributed.cost import Workload, data_parallel, divided_tables

# The authors' best run of TF4CTR on Criteo_x4: 22,719,132 parameters, nearly all in tables.
CRITEO_X4 = 36_672_493, Workload(4096, 1_367_000, 1_367_000 * 16, 39, 39 * 16, 847_132)
# Criteo 1TB with the table sizes of MLPerf's DLRM-DCNv2, one id per field.
CRITEO_1TB = (
    4_195_197_692,
    Workload(65_536, 204_184_588, 204_184_588 * 128, 26, 26 * 128, 16_000_000),
)
NVLINK, ETHERNET_100, ETHERNET_10 = 300e9, 12.5e9, 1.25e9


def table(data: tuple[int, Workload], ranks: Sequence[int], cost=data_parallel) -> str:
    """Tabulate the cost of rows and workload for several numbers of ranks, in Markdown."""
    rows, work = data
    lines = [
        "| ranks | steps per epoch | MB per step and rank | ms at 300 GB/s | at 12.5 GB/s | "
        "at 1.25 GB/s | GB of memory per rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for number in ranks:
        found = cost(work, number)
        speeds = NVLINK, ETHERNET_100, ETHERNET_10
        times = (1e3 * found.bytes_per_step / speed for speed in speeds)
        lines.append(
            f"| {number} | {math.ceil(rows / work.batch_size):,} | "
            f"{found.bytes_per_step / 1e6:,.1f} | "
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
