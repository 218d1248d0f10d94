"""Which models of a FuxiCTR checkout can be exported: each alone, and in pairs.

    python benchmarks/zoo_exports.py CHECKOUT [--only NAME …]

Every model is built with the settings of its ``*_test`` experiment and the feature map of that
experiment's data set, as the checkout ships them, and exported to ONNX untrained: weights change
nothing about a graph. Batches of 1, 7 and 100 random rows must score alike. Models that can be
exported are then joined in pairs, each with the next. The table goes to
``benchmarks/results/zoo_exports.md``; the tests marked slow repeat it.
"""

import argparse
import inspect
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fuxictr_tf4ctr.errors import UserError
from fuxictr_tf4ctr.registry import CHECKOUT_VARIABLE, find_model, list_models
from fuxictr_tf4ctr.serving.graphs import GRAPHS, ScoringGraph

from fuxictr.features import FeatureMap  # isort: skip  after ours, which keeps Ray away
from fuxictr.pytorch.models import BaseModel  # isort: skip

RESULTS = Path(__file__).resolve().parent / "results" / "zoo_exports.md"
ROWS = (1, 7, 100)
# What experiments that name no such key are built with.
_GIVEN = {
    "loss": "binary_crossentropy",
    "task": "binary_classification",
    "metrics": ["AUC"],
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "embedding_dim": 8,
    "seed": 1,
}
# Of both models of a pair, or of none.
_SHARED = {"model_id", "gpu", "task", "learning_rate", "embedding_dim"}


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        name: The model, or two names joined by " + ".
        difference: The largest difference of two probabilities; None where it was refused.
        refusal: Why it was refused, else "".
        seconds: How long that took.
    """

    name: str
    difference: float | None
    refusal: str
    seconds: float


def experiments(checkout: Path) -> dict[str, dict[str, Any]]:
    """Return a configuration of each model of a checkout's zoo, that of its test where it has one.

    Args:
        checkout: Root of the checkout.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(checkout.glob("model_zoo/**/model_config.yaml")):
        content = yaml.safe_load(file.read_text("utf-8"))
        base = content.pop("Base", {})
        for expid, section in sorted(content.items(), key=lambda item: item[0].endswith("_test")):
            # A second implementation, in TensorFlow, lies beside some models.
            if not file.parents[1].name.endswith("_tf"):
                prefix = "LongCTR." if "LongCTR" in file.parts else ""
                found[prefix + section["model"]] = {**base, **section, "model_id": expid}
    named = {
        name: entry for name, entry in list_models(checkout).items() if entry.source == "checkout"
    }
    return {name: found.get(name, {}) for name in named}


def build(checkout: Path, name: str, params: dict[str, Any]) -> BaseModel:
    """Build a model, untrained, for the data set of its configuration."""
    folder = checkout / "data" / str(params.get("dataset_id"))
    if not (folder / "feature_map.json").is_file():  # that data set is not shipped
        folder = checkout / "data" / "tiny_parquet"
    params = _GIVEN | params
    params |= {"model": name, "dataset_id": folder.name, "gpu": -1, "verbose": 0}
    params["model_root"] = tempfile.gettempdir()
    feature_map = FeatureMap(folder.name, str(folder))
    feature_map.load(str(folder / "feature_map.json"), params)
    feature_map.labels = feature_map.labels * params.get("num_tasks", 1)
    torch.manual_seed(1)
    return find_model(name, checkout)(feature_map, **params)


def exported(name: str, model: BaseModel) -> Outcome:
    """Export a model and compare it with its graph."""
    start = time.perf_counter()
    try:
        graph = ScoringGraph(model)
        with tempfile.TemporaryDirectory() as folder:
            scorer = GRAPHS["onnx"](graph, Path(folder))
            worst = max(_difference(graph, scorer, rows) for rows in ROWS)
    except UserError as error:
        return Outcome(name, None, str(error), time.perf_counter() - start)
    return Outcome(name, worst, "", time.perf_counter() - start)


def _difference(graph: ScoringGraph, scorer, rows: int) -> float:
    rng = np.random.default_rng(rows)
    features = graph.model.feature_map.features
    batch = {
        name: torch.from_numpy(rng.random((rows, *example.shape[1:])).astype(np.float32))
        if example.is_floating_point()
        else torch.from_numpy(
            rng.integers(features[name]["vocab_size"], size=(rows, *example.shape[1:]))
        )
        for name, example in graph.example.items()
    }
    with torch.no_grad():
        expected = graph(*batch.values())
    found = scorer({name: column.numpy() for name, column in batch.items()})
    return max(float(np.abs(a.numpy() - b).max()) for a, b in zip(expected, found, strict=True))


def alone(checkout: Path, name: str, params: dict[str, Any]) -> Outcome:
    """Export one model of the checkout; one that cannot be built here is refused as well."""
    try:
        model = build(checkout, name, params)
    except Exception as error:  # whatever a model of others meets
        return Outcome(name, None, f"cannot be built: {str(error).splitlines()[0]}", 0.0)
    return exported(name, model)


def pair_params(checkout: Path, names: tuple[str, str]) -> dict[str, Any]:
    """Return the settings of two models as the streams of one twin, each as in its experiment."""
    known = experiments(checkout)
    params: dict[str, Any] = {"model": "TF4CTR_Pair"}
    for role, name in zip(("simple", "complex"), names, strict=True):
        own = known.get(name, {})
        own_names = inspect.signature(find_model(name, checkout).__init__).parameters.keys()
        params |= {"dataset_id": own.get("dataset_id")} if role == "simple" else {}
        params |= {f"{role}_model": name}
        params |= {
            f"{role}_{key}": own[key] for key in own if key in own_names and key not in _SHARED
        }
    return params


def outcomes(checkout: Path, only: list[str]) -> Iterator[Outcome]:
    """Export all models of the checkout, then pairs of those that can be exported."""
    good = []
    for name, params in experiments(checkout).items():
        if only and name not in only:
            continue
        outcome = alone(checkout, name, params)
        if not outcome.refusal:
            good.append((name, params.get("dataset_id")))
        yield outcome
    by_data: dict[str, list[str]] = {}
    for name, dataset_id in good:  # models of one data set read the same batches
        by_data.setdefault(str(dataset_id), []).append(name)
    for models in by_data.values():
        for simple, complex_ in zip(models[::2], models[1::2], strict=False):
            params = pair_params(checkout, (simple, complex_))
            yield exported(f"{simple} + {complex_}", build(checkout, "TF4CTR_Pair", params))


def table(found: list[Outcome]) -> str:
    """Write outcomes as Markdown."""
    lines = ["| model | exported | largest difference, or why not | s |", "|---|---|---|---|"]
    for each in found:
        said = each.refusal or f"{each.difference:.1e}"
        lines.append(
            f"| {each.name} | {'no' if each.refusal else 'yes'} | {said} | {each.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    arguments = parser.parse_args()
    os.environ[CHECKOUT_VARIABLE] = str(arguments.checkout.resolve())  # pairs look there
    found = []
    for outcome in outcomes(arguments.checkout.resolve(), arguments.only):
        found.append(outcome)
        print(outcome, flush=True)
    if not arguments.only:
        RESULTS.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
