"""Steps with tables divided by TorchRec against steps with whole tables, on ranks of this machine.

    python benchmarks/sharded_tables.py

A twin over made-up rows with large tables; needs TorchRec (docs/scaling.md), and root for a network
namespace whose loopback device counts what a step sends, beside the cost model's bytes. Ranks
take turns with the ways of training; ``benchmarks/results/sharded_tables.json`` has the medians,
and what memory ranks and commands took at most with tables that none of them may hold, by its
ulimit: of ten times that at the end, for which the machine needs 13 GB of memory and 20 GB of disk.
It also says how long a rank takes to draw its rows of tables as large as MLPerf's DLRM-DCNv2 has.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding

import model_zoo
from fuxictr_tf4ctr.distributed import Ranks, joined_ranks
from fuxictr_tf4ctr.distributed.cost import (
    ShardingOptions,
    Workload,
    data_parallel,
    divided_tables,
    table_engine,
)
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.training.checkpoints import load_weights, merge_weights, save_weights
from fuxictr_tf4ctr.training.shards import tables_unmade
from fuxictr_tf4ctr.training.step import training_step

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS, ROWS_OF_A_TABLE, WIDTH, BATCH_SIZE = 8, 50_000, 16, 4096
# Ranks -> rows of a table whose memory is measured, and what share of all tables a rank may take.
LARGE = {2: (1_000_000, 0.9), 4: (1_000_000, 0.6), 16: (10_000_000, 0.1)}
WAYS = ("whole", "row_wise", "table_wise")
STEPS = (5, 25)
# Of a row of every table.
ROW_BYTES = FIELDS * WIDTH * 4


def main() -> None:
    """Measure all ways, three rounds of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", choices=LARGE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("speed", "memory", "drawing"), help="default: all")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        way, steps, file = arguments.job
        JOBS.get(way, train)(way, int(steps), Path(file))
        return
    results = RESULTS / "sharded_tables.json"
    content = json.loads(results.read_text()) if results.exists() else {}
    here = {"machine": machine(), "versions": versions(["torchrec", "fbgemm-gpu-cpu"])}
    if arguments.only in (None, "speed"):
        content |= {
            "tables": {"fields": FIELDS, "rows": ROWS_OF_A_TABLE, "width": WIDTH},
            "batch_size": BATCH_SIZE,
            "cases": [measured(ranks, arguments.rounds) for ranks in arguments.ranks or (2, 4)],
            "load": os.getloadavg()[0],
            **here,
        }
    if arguments.only in (None, "drawing"):
        content["drawing"] = drawing(arguments.rounds) | here
    if arguments.only in (None, "memory"):
        content["memory"] = {
            "tables": {"fields": FIELDS, "width": WIDTH},
            "cases": [peaks(ranks) for ranks in arguments.ranks or LARGE],
            **here,
        }
    results.write_text(json.dumps(content, indent=1) + "\n")


def drawing(rounds: int) -> dict:
    """Return how long the last of 64 ranks takes to draw its rows, and a billion weights, alone."""
    torch.set_num_threads(1)
    ranks, rows, width = 64, 204_800_000 // FIELDS, 128
    own, all_of_them = [], []
    for _ in range(rounds):
        start = time.process_time()
        with tables_unmade():
            layer = FeatureEmbedding(feature_map(rows), width)
        for table in layer.parameters():
            table.make_rows(rows // ranks * (ranks - 1), torch.empty(rows // ranks, width))
        own.append(time.process_time() - start)
        start, part = time.process_time(), torch.empty(1 << 20)
        for _ in range(50):
            part.normal_()
        all_of_them.append((time.process_time() - start) / 50 / len(part) * 1e9)
    result = {
        "ranks": ranks,
        "weights": FIELDS * rows * width,
        "seconds_for_the_rows_of_a_rank": round(statistics.median(own), 1),
        "seconds_for_a_billion_weights": round(statistics.median(all_of_them), 1),
    }
    print(json.dumps(result), flush=True)
    return result


def peaks(ranks: int) -> dict:
    """Return by how many bytes memory peaked in each phase, of the rank that took most."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peaks.json"
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), __file__]
        for command in ([*launch, "--job", "hold"], [__file__, "--job", "merge"]):
            done = subprocess.run(
                [sys.executable, *command, "3", str(file)],
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            if done.returncode:
                sys.exit(done.stderr)
        result = {"ranks": ranks, **json.loads(file.read_text())}
    print(json.dumps(result), flush=True)
    return result


def memory_peak(since: int = 0) -> int:
    """Begin to watch this process's memory anew, and return by how much it peaked before."""
    peak = memory_of("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return peak - since


def memory_of(kind: str) -> int:
    """Return bytes of this process, of a kind that Linux counts."""
    status = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in status if line.startswith(f"{kind}:"))
    return int(kilobytes) << 10


def limit_memory(room: int) -> None:
    """Refuse this process more bytes than it has now and so many beside."""
    now = memory_of("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (now + room, now + room))


def hold(way: str, steps: int, file: Path) -> None:
    """Be one rank: build, train, save and load tables that its limit does not let it hold."""
    with joined_ranks(on_gpu=False, seconds=600) as ranks:
        divided(file.parent / "small", 1024, ranks, 1)  # imports what a first step needs
        rows, share = LARGE[ranks.size]
        limit = int(share * rows * ROW_BYTES)
        limit_memory(limit)
        memory_peak()
        before, own, seconds = memory_peak(), {}, {}

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            start = time.perf_counter()
            yield
            own[name], seconds[name] = memory_peak(before), round(time.perf_counter() - start, 1)

        with phase("building"):
            model, tables = divided(file.parent, rows, ranks, 0)
        with phase("training"), training_step(model, ranks=ranks) as step:
            for _ in range(steps):
                step(batch(BATCH_SIZE // ranks.size, rows))
        path = Path(model.checkpoint)
        state = path.with_suffix(".state")
        with phase("saving"):
            kept = tables.save(state, steps, optimizer=True)
            best = tables.save(path, steps, optimizer=False)
        with phase("resuming"):
            tables.load(state, kept, optimizer=True)
        everybody = ranks.all_gather(own)
        if ranks.leads:
            save_weights(model, path, best)
            result = {"rows": rows, "bytes": rows * ROW_BYTES, "limit": limit}
            result |= {name: max(each[name] for each in everybody) for name in own}
            file.write_text(json.dumps(result | {"seconds": seconds}))


def divided(folder: Path, rows_of_a_table: int, ranks: Ranks, steps: int) -> tuple:
    """Build a model with divided tables, and make steps."""
    model = twin(folder, rows_of_a_table, unmade=True)
    options = ShardingOptions("row_wise", "row_wise_adagrad", 1e-3)
    tables = table_engine()(model, ranks, options)
    with training_step(model, ranks=ranks) as step:
        for _ in range(steps):
            step(batch(BATCH_SIZE // ranks.size, rows_of_a_table))
    return model, tables


def merge(way: str, steps: int, file: Path) -> None:
    """Merge what ranks left, and score a batch, within the limit of a rank."""
    found = json.loads(file.read_text())
    model = twin(file.parent, found["rows"], unmade=True)
    limit_memory(found["limit"])
    memory_peak()
    before, anonymous = memory_peak(), memory_of("RssAnon")
    start = time.perf_counter()
    merge_weights(model.checkpoint)
    found["seconds"]["merging"] = round(time.perf_counter() - start, 1)
    found["merging"] = memory_peak(before)
    load_weights(model, model.checkpoint)
    with torch.no_grad():
        model.eval()(batch(BATCH_SIZE, found["rows"]))
    # Pages of the file are the system's, which drops them where memory is short.
    found["scoring"] = memory_of("RssAnon") - anonymous
    file.write_text(json.dumps(found))


JOBS = {"hold": hold, "merge": merge}


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
        model = twin(Path(folder), ROWS_OF_A_TABLE, unmade=way != "whole")
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
                columns = batch(rows, ROWS_OF_A_TABLE)
                start = time.perf_counter()
                step(columns)
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


def twin(folder: Path, rows_of_a_table: int, unmade: bool) -> torch.nn.Module:
    """Build the model."""
    torch.manual_seed(0)
    with tables_unmade() if unmade else nullcontext():
        model = model_zoo.TF4CTR_DCN(
            feature_map(rows_of_a_table), model_root=str(folder), model_id="model", verbose=0,
            embedding_dim=WIDTH, sample_selection="GM", optimizer="adam", learning_rate=1e-3,
            metrics=["AUC"],
        )  # fmt: skip
    model._max_gradient_norm = 10.0
    return model


def batch(rows: int, rows_of_a_table: int) -> dict[str, torch.Tensor]:
    """Draw rows of data."""
    columns = {f"field{at}": torch.randint(1, rows_of_a_table, (rows,)) for at in range(FIELDS)}
    return columns | {"label": torch.randint(2, (rows,)).float()}


def feature_map(rows_of_a_table: int) -> FeatureMap:
    """Describe the fields."""
    made = FeatureMap("made_up", "unused")
    for at in range(FIELDS):
        made.features[f"field{at}"] = {
            "source": "",
            "type": "categorical",
            "padding_idx": 0,
            "vocab_size": rows_of_a_table,
        }
    made.labels = ["label"]
    made.num_fields = made.get_num_fields()
    made.set_column_index()
    return made


if __name__ == "__main__":
    main()
