"""A step of two ranks over a slow link, gradients sent while it computes or after.

    python benchmarks/overlap.py

Two ranks in network namespaces of their own (needs root and iproute2), joined by a cable that
``tc`` slows down to the rate of a 1 Gbit/s network. They train a twin on made-up rows, by turns

* ``overlapped``: as training does,
* ``after``: every gradient goes out when the backward pass is done,
* ``with rounds``: so, and ranks tell each other before and after that how many rows they have and
  whether one wants to stop, as two messages;

``benchmarks/results/overlap.json`` has the median seconds of a step of each, with those of a step
without the network and those the cost model gives the network. Two ranks of one machine share its
cores, so that a rank that waits for the cable leaves its core to the other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import torch
from sharded_tables import FIELDS, feature_map

import model_zoo
from fuxictr_tf4ctr.datasets.loader import CheckedBatch
from fuxictr_tf4ctr.distributed import ALONE, Ranks, joined_ranks
from fuxictr_tf4ctr.distributed.cost import FLOAT, all_reduce_bytes
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.training.step import training_step

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = ("overlapped", "after", "with rounds", "no network")
RATE = "1gbit"
BYTES_PER_SECOND = 1e9 / 8
ROWS_OF_A_TABLE, WIDTH = 200, 16
DEVICE, ADDRESSES, PORT = "link0", ("10.213.78.1", "10.213.78.2"), "29513"


def main() -> None:
    """Measure at several batch sizes: the larger, the longer a step computes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        size, rounds, file = arguments.job
        train(int(size), int(rounds), Path(file))
        return
    content = {
        "link": RATE,
        "cases": [measured(size, arguments.rounds) for size in arguments.batch_sizes],
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    (RESULTS / "overlap.json").write_text(json.dumps(content, indent=1) + "\n")


def measured(batch_size: int, rounds: int) -> dict:
    """Train on two hosts, and return medians."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as hosts:
        names = [f"host{number}-{uuid.uuid4().hex[:6]}" for number in range(2)]
        for name in names:
            ip("netns", "add", name)
            hosts.callback(ip, "netns", "delete", name)
        ends = ("type", "veth", "peer", "name", DEVICE, "netns", names[1])
        ip("link", "add", DEVICE, "netns", names[0], *ends)
        file = Path(folder) / "rank0.json"
        processes = []
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "up")
            ip("-n", name, "link", "set", "lo", "up")
            slow = ("rate", RATE, "burst", "128kb", "latency", "100ms")
            subprocess.run(
                ["tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", "tbf", *slow], check=True
            )
        for rank, name in enumerate(names):
            variables = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": PORT}
            variables |= {"MASTER_ADDR": ADDRESSES[0], "GLOO_SOCKET_IFNAME": DEVICE}
            variables |= {"OMP_NUM_THREADS": 1}
            job = [__file__, "--job", str(batch_size), str(rounds), str(file)]
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, sys.executable, *job],
                    env=os.environ | {key: str(value) for key, value in variables.items()},
                )
            )
        if any([process.wait() for process in processes]):
            sys.exit("a rank failed")
        seconds = json.loads(file.read_text())
    parameters = seconds.pop("parameters")
    result = {"batch_size": batch_size, "parameters": parameters}
    result |= {way: round(statistics.median(each), 4) for way, each in seconds.items()}
    network = all_reduce_bytes(FLOAT * parameters, 2) / BYTES_PER_SECOND
    result["network by the model"] = round(network, 4)
    result["times_as_fast_as_after"] = round(result["after"] / result["overlapped"], 3)
    result["times_as_fast_as_with_rounds"] = round(result["with rounds"] / result["overlapped"], 3)
    print(json.dumps(result), flush=True)
    return result


def ip(*words: str) -> None:
    """Change the network."""
    subprocess.run(["ip", *words], check=True)


def train(batch_size: int, rounds: int, file: Path) -> None:
    """Be one rank, and say how long its steps took."""
    with joined_ranks(on_gpu=False, seconds=300) as ranks, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        columns = feature_map()
        for spec in columns.features.values():
            spec["vocab_size"] = ROWS_OF_A_TABLE  # few: gradients of tables come last
        model = model_zoo.TF4CTR_DCN(
            columns, model_root=folder, model_id="model", embedding_dim=WIDTH, verbose=0,
            sample_selection="GM", optimizer="adam", learning_rate=1e-3, metrics=["AUC"],
            complex_hidden_units=[1024, 1024, 1024],
        )  # fmt: skip
        model._max_gradient_norm = 10.0
        ranks.broadcast_model(model)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                seconds[way] += steps(model, ranks, way, batch_size // ranks.size)
        if ranks.leads:
            parameters = sum(weights.numel() for weights in model.parameters())
            file.write_text(json.dumps(seconds | {"parameters": parameters}))


def steps(model: torch.nn.Module, ranks: Ranks, way: str, rows: int, count: int = 4) -> list[float]:
    """Make steps one way; return the seconds of all but the first."""
    told = way == "with rounds"
    found = []
    with training_step(model, ranks=ALONE if way == "no network" else ranks) as step:
        if way in ("after", "with rounds"):
            step.sums.release()
        for _ in range(count):
            columns = {
                f"field{at}": torch.randint(1, ROWS_OF_A_TABLE, (rows,)) for at in range(FIELDS)
            }
            columns["label"] = torch.randint(2, (rows,)).float()
            batch = CheckedBatch(columns, model.feature_map, None if told else 1 / ranks.size)
            ranks.all_gather(None)
            start = time.perf_counter()
            step(batch)
            if told:
                ranks.agree(False, False)
            found.append(time.perf_counter() - start)
    return found[1:]


if __name__ == "__main__":
    main()
