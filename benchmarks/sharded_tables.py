"""Steps with tables divided by TorchRec against steps with whole tables, on ranks of this machine.

    python benchmarks/sharded_tables.py

A twin over made-up rows with large tables; needs TorchRec (docs/scaling.md), and root for a network
namespace whose loopback device counts what a step sends, beside the cost model's bytes. Ranks
take turns with the ways of training; ``benchmarks/results/sharded_tables.json`` has the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from fuxictr.features import FeatureMap

import model_zoo
from fuxictr_tf4ctr.distributed import joined_ranks
from fuxictr_tf4ctr.distributed.cost import (
    ShardingOptions,
    Workload,
    data_parallel,
    divided_tables,
    table_engine,
)
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.training.step import training_step

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS, ROWS_OF_A_TABLE, WIDTH, BATCH_SIZE = 8, 50_000, 16, 4096
WAYS = ("whole", "row_wise", "table_wise")
STEPS = (5, 25)


def main() -> None:
    """Measure all ways, three rounds of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        way, steps, file = arguments.job
        train(way, int(steps), Path(file))
        return
    cases = [measured(ranks, arguments.rounds) for ranks in arguments.ranks]
    content = {
        "tables": {"fields": FIELDS, "rows": ROWS_OF_A_TABLE, "width": WIDTH},
        "batch_size": BATCH_SIZE,
        "cases": cases,
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(["torchrec", "fbgemm-gpu-cpu"]),
    }
    (RESULTS / "sharded_tables.json").write_text(json.dumps(content, indent=1) + "\n")


def measured(ranks: int, rounds: int) -> dict:
    """Run every way ``rounds`` times in turns, and return medians."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: dict[str, list[int]] = {way: [] for way in WAYS}
    memory: dict[str, int] = {}
    others = 0
    for _ in range(rounds):
        for way in WAYS:
            (_, before), (long, after) = (counted(ranks, way, steps) for steps in STEPS)
            seconds[way].append(long["seconds"])
            sent[way].append(round((after - before) / (STEPS[1] - STEPS[0])))
            memory[way], others = long["memory"], long["others"]
    rows = FIELDS * ROWS_OF_A_TABLE
    work = Workload(BATCH_SIZE, rows, rows * WIDTH, FIELDS, FIELDS * WIDTH, others)
    result = {"ranks": ranks}
    for way in WAYS:
        cost = {"whole": data_parallel}.get(way, divided_tables)(work, ranks)
        median = statistics.median(seconds[way])
        bytes_of_all = statistics.median(sent[way])
        result[way] = {
            "seconds_per_step": round(median, 4),
            "times_as_fast_as_whole": round(statistics.median(seconds["whole"]) / median, 2),
            "bytes_per_step_of_all_ranks": bytes_of_all,
            "counted_over_predicted": round(bytes_of_all / (ranks * cost.bytes_per_step), 3),
            "memory_over_predicted": round(memory[way] / cost.memory, 3),
        }
    print(json.dumps(result), flush=True)
    return result


def counted(ranks: int, way: str, steps: int) -> tuple[dict, int]:
    """Train so many steps, and return what rank 0 says of them and the bytes on the network."""
    script = 'ip link set lo up && "$@" >/dev/null 2>&1; cat /proc/self/net/dev'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rank0.json"
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        job = [__file__, "--job", way, str(steps), str(file)]
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *launch, *job],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if not file.exists():
            sys.exit(f"no result of {' '.join(job)}: run it by torchrun to see why")
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("lo:")]
        return json.loads(file.read_text()), int(line.split()[1])


def train(way: str, steps: int, file: Path) -> None:
    """Be one rank: make steps on rows of its own, and say how long they took."""
    with joined_ranks(on_gpu=False, seconds=60) as ranks, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with nullcontext() if way == "whole" else table_engine().unmade():
            model = model_zoo.TF4CTR_DCN(
                feature_map(), model_root=folder, model_id="model", embedding_dim=WIDTH, verbose=0,
                sample_selection="GM", optimizer="adam", learning_rate=1e-3, metrics=["AUC"],
            )  # fmt: skip
        model._max_gradient_norm = 10.0
        everything = sum(weights.numel() for weights in model.parameters())
        tables = None
        if way == "whole":
            ranks.broadcast_model(model)
        else:
            options = ShardingOptions(way, "row_wise_adagrad", 1e-3)
            tables = table_engine()(model, ranks, options)
        torch.manual_seed(ranks.rank)
        rows = BATCH_SIZE // ranks.size
        durations = []
        with training_step(model, ranks=ranks) as step:
            for _ in range(steps):
                batch = {
                    f"field{at}": torch.randint(1, ROWS_OF_A_TABLE, (rows,)) for at in range(FIELDS)
                }
                batch["label"] = torch.randint(2, (rows,)).float()
                start = time.perf_counter()
                step(batch)
                durations.append(time.perf_counter() - start)
        held = [*model.parameters(), *(weights.grad for weights in model.parameters())]
        held += [value for state in model.optimizer.state.values() for value in state.values()]
        if tables is not None:
            held += [piece.rows for piece in tables.pieces()]
        if ranks.leads:
            table_parameters = FIELDS * ROWS_OF_A_TABLE * WIDTH
            content = {
                "seconds": statistics.median(durations[2:]),
                "memory": sum(each.numel() * 4 for each in held if each is not None),
                "others": everything - table_parameters,
            }
            file.write_text(json.dumps(content))


def feature_map() -> FeatureMap:
    """Describe the fields."""
    made = FeatureMap("made_up", "unused")
    for at in range(FIELDS):
        made.features[f"field{at}"] = {
            "source": "",
            "type": "categorical",
            "padding_idx": 0,
            "vocab_size": ROWS_OF_A_TABLE,
        }
    made.labels = ["label"]
    made.num_fields = made.get_num_fields()
    made.set_column_index()
    return made


if __name__ == "__main__":
    main()
