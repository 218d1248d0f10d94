"""Run a study, experiments under several seeds, and tabulate mean ± std: resumable, run by run.

    FUXICTR_DATA=../shared/data python benchmarks/study.py benchmarks/studies/frappe_twins.yaml

A study is a YAML file: one entry per row of the table, an expid and what it overrides. Each
finished run is added to ``benchmarks/results/<study>.json`` at once; started again, the script goes
on with what is missing. The table beside it, ``<study>.md``, is written anew from the results.
``--rows`` and ``--seeds`` restrict the runs, so that two processes can share a study's work.
``train_seconds`` in the results is wall-clock time, whatever else the machine did meanwhile: the
table leaves it out. ``--time`` measures seconds per epoch, on a machine that does nothing else.
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml
from filelock import FileLock

from fuxictr_tf4ctr.runs.experiment import run_experiment
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.settings.reading import load_settings

RESULTS = Path(__file__).parent / "results"
TIMED_EPOCHS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2023, 2024, 2025])
    parser.add_argument("--rows", nargs="+", help="only these rows of the study")
    parser.add_argument("--output", default="checkpoints/studies", help="folder of the runs")
    parser.add_argument("--time", action="store_true", help="measure seconds per epoch instead")
    arguments = parser.parse_args()
    rows = yaml.safe_load(arguments.study.read_text())
    file = RESULTS / f"{arguments.study.stem}.json"
    names = arguments.rows or list(rows)
    if arguments.time:
        for name in names:
            add_time(file, name, run(rows[name], 2023, arguments.output, epochs=TIMED_EPOCHS), rows)
    else:
        for seed in arguments.seeds:
            for name in names:
                if not any(r["row"] == name and r["seed"] == seed for r in read(file)):
                    add(file, name, seed, run(rows[name], seed, arguments.output), rows)
    print(table(file, rows))


def run(row: dict[str, Any], seed: int, output: str, **overrides: Any) -> RunRecord:
    """Train one row of a study under one seed."""
    overrides = {"seed": seed, "model_root": output, "verbose": 0} | row | overrides
    return run_experiment(load_settings(overrides.pop("expid"), overrides=overrides))


def summary(name: str, seed: int, record: RunRecord) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "row": name,
        "expid": record.expid,
        "seed": seed,
        "parameters": record.parameters,
        "epochs": len(record.evaluations),
        "train_seconds": round(record.seconds["train"], 1),
        "valid": record.valid,
        "test": record.test,
        "data": {key: record.data[key] for key in ("fingerprint", "rows")},
        "machine": record.machine,
        "versions": record.versions,
    }


def add(file: Path, name: str, seed: int, record: RunRecord, order: Iterable[str]) -> None:
    """Add a run to the file and write its table, safe against another process doing the same."""
    file.parent.mkdir(exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        results = [*read(file), summary(name, seed, record)]
        replace(file, json.dumps(results, indent=1) + "\n")
        replace(file.with_suffix(".md"), table(file, order))


def add_time(file: Path, name: str, record: RunRecord, order: Iterable[str]) -> None:
    """Write the seconds a row trains per epoch, without its evaluations, and the table."""
    times = [
        *(time for time in read(times_file(file)) if time["row"] != name),
        {
            "row": name,
            "seconds_per_epoch": round(median(e["seconds"] for e in record.evaluations), 2),
            "load": round(os.getloadavg()[0], 2),
            "machine": record.machine,
            "versions": record.versions,
        },
    ]
    replace(times_file(file), json.dumps(times, indent=1) + "\n")
    replace(file.with_suffix(".md"), table(file, order))


def times_file(file: Path) -> Path:
    """Return where the times beside a file of results are."""
    return file.with_name(f"{file.stem}_seconds.json")


def read(file: Path) -> list[dict[str, Any]]:
    """Read the results so far."""
    return json.loads(file.read_text()) if file.exists() else []


def table(file: Path, order: Iterable[str]) -> str:
    """Format mean ± standard deviation of each row as a Markdown table."""
    results = read(file)
    seconds = {time["row"]: time["seconds_per_epoch"] for time in read(times_file(file))}
    metrics = list(results[0]["test"]) if results else []
    head = ["", "parameters", "seeds", "s/epoch", "epochs", "valid AUC"]
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
            f"{seconds[name]:.1f}" if name in seconds else "",
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
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def replace(file: Path, text: str) -> None:
    """Replace a file in one step, so that an interrupted study keeps its results."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
