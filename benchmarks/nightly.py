"""Ten days of training on from the day before, against training from scratch on all days so far.

    python benchmarks/nightly.py                                  # made-up days of Avazu's kind
    python benchmarks/nightly.py --frappe data/frappe_x1/train.csv    # a file cut by its order

Every night trains one twin with `--continue-from` on the day's rows alone and one anew on all rows
so far, each for the same epochs, and tests both on the next day's rows. Seconds are whole runs,
encoding and evaluation included. ``benchmarks/results/nightly.json`` has all nights.
"""

import argparse
import json
import logging
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_tf4ctr import load_settings, run_experiment
from fuxictr_tf4ctr.datasets.guessing import guess_columns
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.settings.writing import sized_to

RESULT = Path(__file__).resolve().parent / "results" / "nightly.json"
DAYS, EPOCHS, SEED = 10, 2, 2023


def main() -> None:
    """Measure all nights of one data set and put them beside those of the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frappe", type=Path, help="Frappe's training file")
    parser.add_argument("--rows", type=int, default=10_000, help="made-up rows of a day")
    parser.add_argument("--days", type=int, default=DAYS)
    arguments = parser.parse_args()
    logging.disable()
    if arguments.frappe:
        name, label, rows = "frappe", "label", pl.read_csv(arguments.frappe, infer_schema=False)
        size = len(rows) // arguments.days
        days = [rows[size * day : size * (day + 1)] for day in range(arguments.days)]
    else:
        name, label = "avazu_like", "click"
        days = [avazu_like(day, arguments.rows) for day in range(arguments.days)]
    with tempfile.TemporaryDirectory() as folder:
        nights = measured(days, label, Path(folder))
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    content[name] = {
        "rows_of_a_day": len(days[0]), "epochs": EPOCHS, "nights": nights,
        "load": os.getloadavg()[0], "machine": machine(), "versions": versions(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


def avazu_like(day: int, rows: int) -> pl.DataFrame:
    """Make up a day: a tenth of the ads and devices is new, tastes drift, ids have long tails."""
    always, today = np.random.default_rng(SEED), np.random.default_rng([SEED, day])
    sizes = {"site_id": 300, "app_id": 400, "device_id": 3000, "device_model": 800, "C14": 500}
    logit = np.full(rows, -1.6)
    columns = {}
    for field, (name, size) in enumerate(sizes.items()):
        ids = np.minimum(today.zipf(1.3, rows) - 1, size - 1) + day * size // 10
        effect, drift = always.normal(size=(2, 3 * size))
        logit += (effect + 0.15 * day * drift)[ids] * (0.9 if field % 2 else 0.6)
        columns[name] = [f"{name}{value}" for value in ids]
    for name, values in (("hour", 24), ("banner_pos", 7), ("device_type", 5), ("C15", 8)):
        columns[name] = today.integers(0, values, rows).astype(str)
    pairs = always.normal(size=(24, 7))
    logit += pairs[columns["hour"].astype(int), columns["banner_pos"].astype(int)]
    columns["click"] = (today.random(rows) < 1 / (1 + np.exp(-logit))).astype(int).astype(str)
    return pl.DataFrame(columns)


def measured(days: list[pl.DataFrame], label: str, folder: Path) -> list[dict[str, Any]]:
    """Train both ways every night but the last, whose rows test the night before."""
    files = []
    for number, rows in enumerate(days):
        for name, part in (("day", rows), ("until", pl.concat(days[: number + 1]))):
            part.write_csv(folder / f"{name}{number}.csv")
        files.append(folder / f"day{number}.csv")
    columns = [guess.entry for guess in guess_columns(days[0].drop(label)) if not guess.useless]
    dataset = {
        "data_root": str(folder / "data"), "data_format": "csv", "min_categr_count": 2,
        "train_data": "", "feature_cols": columns, "label_col": {"name": label, "dtype": "float"},
    }  # fmt: skip
    model = {"model": "TF4CTR", "complex_hidden_units": [128, 64], "simple_hidden_units": [64]}
    model |= {"embedding_dim": 16, "batch_size": sized_to(len(days[0]))["batch_size"] * 4}
    model |= {"epochs": EPOCHS, "seed": SEED, "verbose": 0, "learning_rate": 2e-3}
    config = folder / "config"
    config.mkdir()
    for name in ("continued", "scratch"):
        sections = {"dataset": {name: dataset}, "model": {name: {**model, "dataset_id": name}}}
        (config / f"{name}").mkdir()
        for kind, section in sections.items():
            file = config / name / f"{kind}_config.yaml"
            file.write_text(json.dumps(section))
    nights, last = [], None
    for night, (day, tomorrow) in enumerate(pairwise(files)):
        ways = {
            "continued": {"train_data": str(day)} | ({"continue_from": last} if last else {}),
            "scratch": {"train_data": str(folder / f"until{night}.csv")},
        }
        found: dict[str, Any] = {"night": night + 1}
        for name, changes in ways.items():
            changes |= {"test_data": str(tomorrow), "model_root": str(folder / "runs")}
            record = run_experiment(load_settings(name, config / name, changes))
            found[name] = {"seconds": record.seconds["total"], **record.test}
            if name == "continued":
                last = str(record.folder)
                found[name]["new_values"] = sum(record.ancestor.get("new_values", {}).values())
        nights.append(found)
        print(json.dumps(found), flush=True)
    return nights


def table(content: dict[str, Any]) -> str:
    """Return the result as Markdown: every night but the first, where both ways are one."""
    lines = ["| data, test of night | continued: AUC | logloss | s | scratch: AUC | logloss | s |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, result in content.items():
        nights = result["nights"][1:]
        for title, chosen in [(nights[-1]["night"], nights[-1:]), ("2 to last, mean", nights)]:
            cells = [
                f"{np.mean([night[way][key] for night in chosen]):.{digits}f}"
                for way in ("continued", "scratch")
                for key, digits in (("AUC", 4), ("logloss", 4), ("seconds", 1))
            ]
            lines.append(f"| {name}, {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
