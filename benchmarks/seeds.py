"""Run experiments under several seeds and tabulate mean ± std: resumable, one result at a time.

    FUXICTR_DATA=../shared/data python benchmarks/seeds.py --name frappe_seeds \
        --expids TF4CTR_frappe TF4CTR_DeepFM_frappe TF4CTR_DCNv2_frappe --seeds 2023 2024 2025

Each finished run is added to ``benchmarks/results/<name>.json`` at once; started again, the script
goes on with what is missing. The table beside it (``<name>.md``) is written anew from the results.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.experiment import run_experiment
from fuxictr_tf4ctr.settings import load_settings

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="name of the results file")
    parser.add_argument("--expids", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[2023, 2024, 2025])
    parser.add_argument("--output", default="checkpoints/seeds", help="folder of the runs")
    arguments = parser.parse_args()
    file = RESULTS / f"{arguments.name}.json"
    results = json.loads(file.read_text()) if file.exists() else []
    done = {(result["expid"], result["seed"]) for result in results}
    for seed in arguments.seeds:
        for expid in arguments.expids:
            if (expid, seed) not in done:
                results.append(run(expid, seed, arguments.output))
                write(file, json.dumps(results, indent=1) + "\n")
                write(file.with_suffix(".md"), table(results))
    print(table(results))


def run(expid: str, seed: int, output: str) -> dict[str, Any]:
    """Train one experiment under one seed and return what the table needs."""
    overrides = {"seed": seed, "model_root": output, "verbose": 0}
    record = run_experiment(load_settings(expid, overrides=overrides))
    return {
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


def table(results: list[dict[str, Any]]) -> str:
    """Format mean ± standard deviation per experiment as a Markdown table."""
    names = list(dict.fromkeys(result["expid"] for result in results))
    metrics = list(results[0]["test"])
    head = ["expid", "parameters", "seeds", "epochs", "train s", "valid AUC"]
    head += [f"test {metric}" for metric in metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names:
        runs = [result for result in results if result["expid"] == name]
        cells = [
            name,
            f"{runs[0]['parameters']:,}",
            str(len(runs)),
            spread([r["epochs"] for r in runs], 1),
            spread([r["train_seconds"] for r in runs], 0),
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


def write(file: Path, text: str) -> None:
    """Replace a file in one step, so that an interrupted study keeps its results."""
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
