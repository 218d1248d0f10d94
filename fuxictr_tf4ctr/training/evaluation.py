"""Scores and metrics of a FuxiCTR model on a data set, held in whole columns."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from tqdm import tqdm

from fuxictr_tf4ctr.distributed.ranks import ALONE, Ranks
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.metrics.definitions import Columns, split_stream
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics, evaluate_on_device, evaluate_spread
from fuxictr_tf4ctr.registry import overrides

LOG = logging.getLogger(__name__)

Compute = Callable[[Columns, Sequence[str]], dict[str, float] | None]
"""Metrics of rows by name; None where it cannot."""


def evaluate(
    model: BaseModel,
    data_gen: Iterable,
    metrics: Sequence[str] | None = None,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Compute metrics of a model on a data set; the model is left in evaluation mode.

    Args:
        model: FuxiCTR model; one with its own ``evaluate`` or ``evaluate_metrics`` uses that.
        data_gen: Batches to evaluate.
        metrics: Metric names. None: the model's ``validation_metrics``.
        progress: Show a progress bar on stderr. None: if stderr is a terminal.
        ranks: Each has its share of the rows; the metrics are those of all rows, on every rank.

    Returns:
        Metric values by name.

    Raises:
        SettingsError, DataError, DivergenceError: As :func:`metrics.evaluate_metrics`.
    """
    if overrides(model, "evaluate"):
        if ranks.size > 1:
            raise SettingsError(
                f"{type(model).__name__} has its own evaluate, which knows of no ranks: train it "
                "with one worker"
            )
        values = model.evaluate(data_gen, metrics=metrics)
        return {name: float(value) for name, value in values.items()}

    names = list(model.validation_metrics if metrics is None else metrics)
    grouped = model.feature_map.group_id is not None
    weight_col = getattr(model.feature_map, "weight_col", None)
    streams = list(dict.fromkeys(stream for _, stream in map(split_stream, names) if stream))

    def columns(outputs: dict[str, Tensor], batch: Any) -> list[Tensor]:
        groups = [model.get_group_id(batch)] if grouped else []
        weights = [batch[weight_col]] if weight_col else []
        for stream in streams:
            if f"y_{stream}" not in outputs:
                raise SettingsError(
                    f"metrics of the {stream} stream need a model that returns y_{stream}, as "
                    f"twins with twin_focus do; {type(model).__name__} returns {', '.join(outputs)}"
                )
        scores = [outputs[f"y_{stream}"] for stream in streams]
        return [model.get_labels(batch), outputs["y_pred"], *scores, *groups, *weights]

    collected = _collect(model, data_gen, columns, progress)
    own = overrides(model, "evaluate_metrics")

    def metrics_of(rows: Sequence[Tensor], compute: Compute = _metrics_of) -> dict[str, float]:
        y_true, y_pred, *others = rows
        weights = others.pop() if weight_col else None
        group_id = others.pop() if grouped else None
        if own:
            group = _group_column(group_id)
            return model.evaluate_metrics(*_on_host(y_true, y_pred), names, group)
        scores = {None: y_pred, **dict(zip(streams, others, strict=True))}
        columns = {
            stream: Columns(y_true, each, group_id, weights) for stream, each in scores.items()
        }
        return _metrics_by_stream(columns, names, compute)

    values = None
    if ranks.size > 1 and not own:
        values = metrics_of(collected, partial(evaluate_spread, ranks=ranks))
    if values is None:
        rows = ranks.gather(collected)
        values = ranks.broadcast(lambda: metrics_of(rows))
    LOG.info("[Metrics] " + " - ".join(f"{name}: {v:.6f}" for name, v in values.items()))
    return values


def labels_and_scores(
    model: BaseModel, data_gen: Iterable, progress: bool | None = None, ranks: Ranks = ALONE
) -> list[np.ndarray]:
    """Return [rows] labels, probabilities and, if there are any, weights of a data set.

    Those of all ranks are on rank 0.
    """
    weight_col = getattr(model.feature_map, "weight_col", None)
    found = _collect(
        model,
        data_gen,
        lambda outputs, batch: [
            model.get_labels(batch),
            outputs["y_pred"],
            *([batch[weight_col]] if weight_col else []),
        ],
        progress,
    )
    return _on_host(*ranks.gather(found))


def _metrics_by_stream(
    columns: dict[str | None, Columns], names: Sequence[str], compute: Compute
) -> dict[str, float] | None:
    values = {}
    for stream, rows in columns.items():
        wanted = {name: base for name in names for base, of in [split_stream(name)] if of == stream}
        computed = compute(rows, list(wanted.values()))
        if computed is None:
            return None
        values |= {name: computed[base] for name, base in wanted.items()}
    return {name: values[name] for name in names}


def _metrics_of(rows: Columns, names: Sequence[str]) -> dict[str, float]:
    """Compute metrics on the device the scores are on, or else on the host."""
    values = None
    if rows.y_pred.device.type != "cpu":
        values = evaluate_on_device(rows, names)
    if values is None:
        weights = None if rows.weights is None else rows.weights.cpu().numpy()
        columns = _on_host(rows.y_true, rows.y_pred)
        values = evaluate_metrics(*columns, names, _group_column(rows.group_id), weights)
    return values


def _on_host(*columns: Tensor) -> list[np.ndarray]:
    return [column.cpu().double().numpy() for column in columns]


def _group_column(group_id: Tensor | None) -> np.ndarray | None:
    return None if group_id is None else group_id.cpu().numpy()


def predict(model: BaseModel, data_gen: Iterable, progress: bool | None = None) -> np.ndarray:
    """Score a data set; the model is left in evaluation mode.

    Args:
        model: FuxiCTR model; one with its own ``predict`` uses that, and its return type.
        data_gen: Batches to score.
        progress: Show a progress bar on stderr. None: if stderr is a terminal.

    Returns:
        [rows] float64 ``y_pred``, in the order of the batches.
    """
    if overrides(model, "predict"):
        return model.predict(data_gen)
    (y_pred,) = _collect(model, data_gen, lambda outputs, _: [outputs["y_pred"]], progress)
    return _on_host(y_pred)[0]


def _collect(
    model: BaseModel,
    data_gen: Iterable,
    columns: Callable[[dict[str, Tensor], Any], list[Tensor]],
    progress: bool | None,
) -> list[Tensor]:
    """Run the model over all batches and return whole columns.

    Columns stay on their device until all batches are done: copying each would wait for it.
    """
    model.eval()
    parts = []
    with torch.no_grad(), progress_bar(data_gen, "evaluate", progress) as batches:
        for batch in batches:
            # A column may be a view of its batch: a clone lets go of the batch.
            parts.append([column.reshape(-1).clone() for column in columns(model(batch), batch)])
    if not parts:
        raise DataError("no rows to evaluate: the data hold no batch")
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def progress_bar(
    batches: Iterable, label: str, progress: bool | None, total: int | None = None, done: int = 0
) -> tqdm:
    """Iterate with a progress bar on stderr: rows done, time left, rows a second.

    Args:
        progress: Show it. None: if stderr is a terminal.
        total: Batches in all. None: the length of ``batches``.
        done: Batches done before.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    rows = getattr(batches, "batch_size", None)
    return tqdm(
        batches,
        label,
        total,
        initial=done,
        unit=" rows" if rows else " batches",
        unit_scale=rows or False,
        file=sys.stderr,
        disable=not shown,
        leave=False,
    )
