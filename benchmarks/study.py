"""Run a study, experiments under several seeds, and tabulate mean ± std: resumable, run by run.

    FUXICTR_DATA=../shared/data python benchmarks/study.py benchmarks/studies/frappe_twins.yaml

A study is a YAML file: one entry per row of the table, an expid and what it overrides. Each
finished run is added to ``benchmarks/results/<study>.json`` at once; started again, the script goes
on with what is missing. The table beside it, ``<study>.md``, is written anew from the results.
``--rows`` and ``--seeds`` restrict the runs, so that two processes can share a study's work.
``train_seconds`` in the results is wall-clock time, whatever else the machine did meanwhile: it is
no measure of speed, and the table leaves it out.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from fuxictr_tf4ctr.experiment import run_experiment
from fuxictr_tf4ctr.settings import load_settings

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2023, 2024, 2025])
    parser.add_argument("--rows", nargs="+", help="only these rows of the study")
    parser.add_argument("--output", default="checkpoints/studies", help="folder of the runs")
    arguments = parser.parse_args()
    rows = yaml.safe_load(arguments.study.read_text())
    file = RESULTS / f"{arguments.study.stem}.json"
    for seed in arguments.seeds:
        for name in arguments.rows or rows:
            if not any(r["row"] == name and r["seed"] == seed for r in read(file)):
                add(file, run(name, rows[name], seed, arguments.output), list(rows))
    print(table(read(file), list(rows)))


def run(name: str, row: dict[str, Any], seed: int, output: str) -> dict[str, Any]:
    """Train one row of a study under one seed and return what the table needs."""
    overrides = {"seed": seed, "model_root": output, "verbose": 0} | row
    expid = overrides.pop("expid")
    record = run_experiment(load_settings(expid, overrides=overrides))
    return {
        "row": name,
        "expid": expid,
        "seed": seed,
        "parameters": record.parameters,
        "epochs": len(record.evaluations),
        "train_seconds": round(record.seconds["train"], 1),
        "valid": record.valid,
        "test": record.test,
        "data": record.data,
        "machine": record.machine,
        "versions": record.versions,
    }


def add(file: Path, result: dict[str, Any], order: list[str]) -> None:
    """Add a result to the file and write its table, safe against another process doing the same."""
    file.parent.mkdir(exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        results = [*read(file), result]
        replace(file, json.dumps(results, indent=1) + "\n")
        replace(file.with_suffix(".md"), table(results, order))


def read(file: Path) -> list[dict[str, Any]]:
    """Read the results so far."""
    return json.loads(file.read_text()) if file.exists() else []


def table(results: list[dict[str, Any]], order: list[str]) -> str:
    """Format mean ± standard deviation of each row as a Markdown table."""
    metrics = list(results[0]["test"])
    head = ["", "parameters", "seeds", "epochs", "valid AUC"]
    head += [f"test {metric}" for metric in metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in order:
        runs = [result for result in results if result["row"] == name]
        if not runs:
            continue
        cells = [
            name,
            f"{runs[0]['parameters']:,}",
            str(len(runs)),
            spread([r["epochs"] for r in runs], 1),
            spread([r["valid"]["AUC"] for r in runs]),
            *(spread([r["test"][metric] for r in runs]) for metric in metrics),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int = 5) -> str:
    """Format mean ± sample standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def replace(file: Path, text: str) -> None:
    """Replace a file in one step, so that an interrupted study keeps its results."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
