"""FuxiCTR's training loop, without its stalls and silent failures.

The mathematics, the log lines and the attributes a model may rely on are those of
``fuxictr.pytorch.models.BaseModel.fit``, and every step goes through the model's own methods, so
that any FuxiCTR model trains here. What differs: a loss or metric that is not a number stops the
run instead of becoming its best result, the train loss is the mean over the steps it covers, and
on a GPU no step waits for the device.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from tqdm import tqdm

from fuxictr_tf4ctr.errors import DataError, DivergenceError, SettingsError
from fuxictr_tf4ctr.training import checkpoint
from fuxictr_tf4ctr.training.metrics import check_metric, evaluate_metrics, needs_group

logger = logging.getLogger(__name__)

# FuxiCTR's threshold below which a change of the monitored metric is no improvement.
_MIN_DELTA = 1e-6
# Steps between two looks at the losses on a GPU, each of which waits for the device.
_STEPS_PER_LOOK = 100
# The parts of FuxiCTR's loop that fit() replaces: a model with its own would be trained wrongly.
_REPLACED_METHODS = ("fit", "train_epoch", "eval_step", "checkpoint_and_earlystop")


@dataclass
class FitResult:
    """What a training run did; ``dataclasses.asdict`` of it is ready for JSON.

    Attributes:
        epochs: One record per evaluation (per epoch where there is no validation data): epoch and
            step (both from 1), train_loss (mean over the steps since the last record), metrics,
            learning_rate (of those steps), seconds (spent training since the last record), best.
        best_metric: Monitored value of the best evaluation, None without validation data.
        best_step: Step of the best evaluation, None without validation data.
        stopped: Why training ended, "early stop" or "epochs".
        steps: Training steps done.
        train_seconds: Time spent training, evaluations and checkpoints left out.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_step: int | None = None
    stopped: str = "epochs"
    steps: int = 0
    train_seconds: float = 0.0


def fit(
    model: BaseModel,
    train_gen: Iterable,
    valid_gen: Iterable | None,
    *,
    epochs: int,
    max_gradient_norm: float = 10.0,
    eval_steps: int | float | None = None,
    on_evaluation: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train a model, keep its best weights in ``model.checkpoint`` and load them at the end.

    Args:
        model: Compiled FuxiCTR model; its monitor, patience and learning-rate decay apply.
        train_gen: Batches of one epoch, with a length.
        valid_gen: Validation batches. None: train all epochs and keep the weights of the last.
        epochs: Passes over ``train_gen`` at most.
        max_gradient_norm: Norm to which the model's ``train_step`` clips the gradient.
        eval_steps: Steps between evaluations, or a fraction of an epoch (0 < x < 1, rounded to
            whole steps). None: the model's own setting, and without one every epoch.
        on_evaluation: Called with each record of :attr:`FitResult.epochs` as soon as it is known.
        progress: Show a progress bar on stderr. None: if stderr is a terminal.

    Returns:
        The record of the run.

    Raises:
        SettingsError: The settings do not fit the model or each other.
        DataError: A data set is empty, or leaves the monitored metric undefined.
        DivergenceError: A training loss, prediction or monitored metric is not a finite number.
    """
    if epochs < 1:
        raise SettingsError(f"epochs is {epochs}: train for at least 1")
    _check_model(model)
    if valid_gen is not None:
        _check_monitor(model)
    if len(train_gen) == 0:
        raise DataError("the training data hold no batch")
    interval = _evaluation_interval(
        model._eval_steps if eval_steps is None else eval_steps, len(train_gen)
    )
    _set_fuxictr_attributes(model, valid_gen, max_gradient_norm, len(train_gen))
    return _Loop(model, train_gen, interval, on_evaluation, progress).run(epochs)


def evaluate(
    model: BaseModel,
    data_gen: Iterable,
    metrics: Sequence[str] | None = None,
    progress: bool | None = None,
) -> dict[str, float]:
    """Compute metrics of a model on a data set; the model is left in evaluation mode.

    Args:
        model: FuxiCTR model; one with its own ``evaluate`` or ``evaluate_metrics`` uses that.
        data_gen: Batches to evaluate.
        metrics: Metric names. None: the model's ``validation_metrics``.
        progress: Show a progress bar on stderr. None: if stderr is a terminal.

    Returns:
        Metric values by name.

    Raises:
        SettingsError, DataError, DivergenceError: As :func:`metrics.evaluate_metrics`.
    """
    if _overrides(model, "evaluate"):
        values = model.evaluate(data_gen, metrics=metrics)
        return {name: float(value) for name, value in values.items()}

    grouped = model.feature_map.group_id is not None

    def columns(outputs: dict[str, Tensor], batch: Any) -> list[Tensor]:
        groups = [model.get_group_id(batch)] if grouped else []
        return [model.get_labels(batch), outputs["y_pred"], *groups]

    y_true, y_pred, *groups = _collect(model, data_gen, columns, progress)
    compute = model.evaluate_metrics if _overrides(model, "evaluate_metrics") else evaluate_metrics
    values = compute(
        y_true.double().numpy(),
        y_pred.double().numpy(),
        model.validation_metrics if metrics is None else metrics,
        groups[0].numpy() if grouped else None,
    )
    logger.info("[Metrics] " + " - ".join(f"{name}: {v:.6f}" for name, v in values.items()))
    return values


def predict(model: BaseModel, data_gen: Iterable, progress: bool | None = None) -> np.ndarray:
    """Score a data set; the model is left in evaluation mode.

    Args:
        model: FuxiCTR model; one with its own ``predict`` uses that, and its return type.
        data_gen: Batches to score.
        progress: Show a progress bar on stderr. None: if stderr is a terminal.

    Returns:
        [rows] float64 ``y_pred``, in the order of the batches.
    """
    if _overrides(model, "predict"):
        return model.predict(data_gen)
    (y_pred,) = _collect(model, data_gen, lambda outputs, _: [outputs["y_pred"]], progress)
    return y_pred.double().numpy()


def _collect(
    model: BaseModel,
    data_gen: Iterable,
    columns: Callable[[dict[str, Tensor], Any], list[Tensor]],
    progress: bool | None,
) -> list[Tensor]:
    """Run the model over all batches and return whole columns, on the host.

    Columns stay on their device until all batches are done: copying each would wait for it.
    """
    model.eval()
    parts = []
    with torch.no_grad(), _progress_bar(data_gen, "evaluate", progress) as batches:
        for batch in batches:
            # A column may be a view of its batch: a clone lets go of the batch.
            parts.append([column.reshape(-1).clone() for column in columns(model(batch), batch)])
    if not parts:
        raise DataError("no rows to evaluate: the data hold no batch")
    return [torch.cat(column).cpu() for column in zip(*parts, strict=True)]


class _Losses:
    """The training losses since the last evaluation.

    Looking at a loss waits for the device that computes it, so a GPU's are left there for a while.
    """

    def __init__(self, device: torch.device) -> None:
        self._steps_per_look = 1 if device.type == "cpu" else _STEPS_PER_LOOK
        self._unseen: list[tuple[Tensor, str]] = []
        self._seen: list[float] = []

    def add(self, loss: Tensor, where: str) -> None:
        """Take in the loss of one step.

        Raises:
            DivergenceError: A loss is not finite; found at the next look, a GPU's some steps late.
        """
        self._unseen.append((loss.detach().reshape(()), where))
        if len(self._unseen) >= self._steps_per_look:
            self.look()

    def look(self) -> None:
        """Wait for the device and check the losses not seen yet."""
        if not self._unseen:
            return
        losses, places = zip(*self._unseen, strict=True)
        values = torch.stack(losses).tolist()
        for value, where in zip(values, places, strict=True):
            if not math.isfinite(value):
                raise DivergenceError(
                    f"training loss is {value} at {where}: lower the learning rate or "
                    "max_gradient_norm, or look for values that are not finite in the data"
                )
        self._seen.extend(values)
        self._unseen.clear()

    @property
    def latest(self) -> float:
        """The last loss seen, NaN before the first."""
        return self._seen[-1] if self._seen else math.nan

    def take_mean(self) -> float:
        """Mean loss of all steps since the last call."""
        self.look()
        if not self._seen:
            raise DataError("the training data gave no batch: they must start anew each epoch")
        mean = sum(self._seen) / len(self._seen)
        self._seen.clear()
        return mean


class _Loop:
    """One training run. Its state is the model's, where FuxiCTR keeps it and models look for it."""

    def __init__(
        self,
        model: BaseModel,
        train_gen: Iterable,
        interval: int,
        on_evaluation: Callable[[dict[str, Any]], None] | None,
        progress: bool | None,
    ) -> None:
        self.model = model
        self.train_gen = train_gen
        self.interval = interval
        self.on_evaluation = on_evaluation
        self.progress = progress
        self.losses = _Losses(model.device)
        self.result = FitResult()
        self.training_since = time.perf_counter()

    def run(self, epochs: int) -> FitResult:
        """Train until the epochs are done or the model stops early."""
        model = self.model
        logger.info(f"Start training: {model._steps_per_epoch} batches/epoch")
        logger.info("************ Epoch=1 start ************")
        for epoch in range(epochs):
            model._epoch_index = epoch
            self._train_epoch()
            if model._stop_training:
                self.result.stopped = "early stop"
                break
            logger.info(f"************ Epoch={epoch + 1} end ************")
        self._finish()
        return self.result

    def _train_epoch(self) -> None:
        model = self.model
        model._batch_index = 0
        model.train()
        with _progress_bar(self.train_gen, f"epoch {model._epoch_index + 1}", self.progress) as bar:
            for batch_index, batch in enumerate(bar):
                model._batch_index = batch_index
                model._total_steps += 1
                self.losses.add(_train_step(model, batch), _where(model))
                bar.set_postfix(loss=self.losses.latest, refresh=False)
                if model.valid_gen is not None and model._total_steps % self.interval == 0:
                    self._evaluate()
                if model._stop_training:
                    break
        if model.valid_gen is None:
            self._save_epoch()

    def _finish(self) -> None:
        model = self.model
        if not self.result.epochs:  # eval_steps exceeds the steps there were
            self._evaluate()
        self.losses.look()
        self.result.steps = model._total_steps
        self.result.train_seconds += time.perf_counter() - self.training_since
        logger.info("Training finished.")
        if model.valid_gen is not None:
            logger.info(f"Load best model: {model.checkpoint}")
            _load(model)

    def _evaluate(self) -> None:
        model = self.model
        record = self._start_record()
        logger.info(f"Train loss: {record['train_loss']:.6f}")
        logger.info(
            f"Evaluation @epoch {model._epoch_index + 1} - batch {model._batch_index + 1}: "
        )
        record["metrics"] = evaluate(
            model, model.valid_gen, model._monitor.get_metrics(), self.progress
        )
        value = _monitored_value(model, record["metrics"])
        record["best"] = _improves(model, value)
        if record["best"]:
            self._keep_best(value)
        else:
            _note_no_improvement(model, value)
        if model._stopping_steps >= model._early_stop_patience:
            model._stop_training = True
            logger.info(f"********* Epoch={model._epoch_index + 1} early stop *********")
        if not model._save_best_only:
            _save(model)
        self._end_record(record)
        model.train()

    def _keep_best(self, value: float) -> None:
        model = self.model
        model._stopping_steps = 0
        model._best_metric = value
        self.result.best_metric = value
        self.result.best_step = model._total_steps
        if model._save_best_only:
            logger.info(f"Save best model: monitor({model._monitor_mode})={value:.6f}")
            _save(model)

    def _save_epoch(self) -> None:
        """End an epoch without validation data."""
        record = self._start_record()
        logger.info(f"Train loss: {record['train_loss']:.6f}")
        _save(self.model)
        self._end_record(record)

    def _start_record(self) -> dict[str, Any]:
        model = self.model
        train_loss = self.losses.take_mean()
        seconds = time.perf_counter() - self.training_since
        self.result.train_seconds += seconds
        return {
            "epoch": model._epoch_index + 1,
            "step": model._total_steps,
            "train_loss": train_loss,
            "metrics": {},
            "learning_rate": _learning_rate(model),
            "seconds": seconds,
            "best": False,
        }

    def _end_record(self, record: dict[str, Any]) -> None:
        self.result.epochs.append(record)
        if self.on_evaluation is not None:
            self.on_evaluation(record)
        self.training_since = time.perf_counter()


def _overrides(model: BaseModel, method: str) -> bool:
    """Whether the model's class replaces a method of BaseModel."""
    return getattr(type(model), method) is not getattr(BaseModel, method)


def _check_model(model: BaseModel) -> None:
    for method in _REPLACED_METHODS:
        if _overrides(model, method):
            raise SettingsError(
                f"{type(model).__name__} has its own {method}, which this loop would bypass: "
                "train it by FuxiCTR's loop, model.fit(...)"
            )


def _check_monitor(model: BaseModel) -> None:
    """Find a monitor that cannot be computed before training rather than an epoch later."""
    if model._monitor_mode not in ("max", "min"):
        raise SettingsError(f"monitor_mode is {model._monitor_mode!r}: give max or min")
    if _overrides(model, "evaluate") or _overrides(model, "evaluate_metrics"):
        return
    for name in model._monitor.get_metrics():
        check_metric(name)
        if needs_group(name) and model.feature_map.group_id is None:
            raise SettingsError(f"monitor {name} ranks rows within groups: set group_id")


def _evaluation_interval(eval_steps: int | float | None, steps_per_epoch: int) -> int:
    """Steps between evaluations."""
    if eval_steps is None:
        return steps_per_epoch
    if 0 < eval_steps < 1:
        return max(1, round(eval_steps * steps_per_epoch))
    if isinstance(eval_steps, int) and eval_steps >= 1:
        return eval_steps
    raise SettingsError(
        f"eval_steps is {eval_steps}: give a whole number of steps, "
        "a fraction of an epoch between 0 and 1, or null for once an epoch"
    )


def _set_fuxictr_attributes(
    model: BaseModel, valid_gen: Iterable | None, max_gradient_norm: float, steps_per_epoch: int
) -> None:
    """Set what ``BaseModel.fit`` sets, save ``_eval_steps``, which would outlive this run."""
    model.valid_gen = valid_gen
    model._max_gradient_norm = max_gradient_norm
    model._best_metric = math.inf if model._monitor_mode == "min" else -math.inf
    model._stopping_steps = 0
    model._stop_training = False
    model._steps_per_epoch = steps_per_epoch
    model._total_steps = 0
    model._batch_index = 0
    model._epoch_index = 0


def _train_step(model: BaseModel, batch: Any) -> Tensor:
    try:
        return model.train_step(batch)
    except RuntimeError as error:
        # Weights ruined by the step before show here first: cross-entropy refuses NaN predictions.
        if all(torch.isfinite(weights).all() for weights in model.parameters()):
            raise
        raise DivergenceError(
            f"the weights are not finite at {_where(model)}: lower the learning rate"
        ) from error


def _learning_rate(model: BaseModel) -> float | None:
    """Rate of the first parameter group, None where a model keeps its optimizers its own way."""
    groups = getattr(getattr(model, "optimizer", None), "param_groups", None)
    return float(groups[0]["lr"]) if groups else None


def _where(model: BaseModel) -> str:
    return (
        f"epoch {model._epoch_index + 1}, step {model._total_steps} "
        f"(batch {model._batch_index + 1} of the epoch)"
    )


def _monitored_value(model: BaseModel, metrics: dict[str, float]) -> float:
    missing = [name for name in model._monitor.get_metrics() if name not in metrics]
    if missing:
        raise SettingsError(
            f"monitor {missing[0]} is not among the metrics {type(model).__name__} evaluates: "
            + ", ".join(metrics)
        )
    value = float(model._monitor.get_value(metrics))
    if not math.isfinite(value):
        raise DivergenceError(
            f"monitored metric is {value} at {_where(model)}: the model has diverged, "
            "lower the learning rate"
        )
    return value


def _improves(model: BaseModel, value: float) -> bool:
    if model._monitor_mode == "min":
        return value <= model._best_metric - _MIN_DELTA
    return value >= model._best_metric + _MIN_DELTA


def _note_no_improvement(model: BaseModel, value: float) -> None:
    """Count the evaluation towards early stopping and decay the learning rate."""
    model._stopping_steps += 1
    logger.info(f"Monitor({model._monitor_mode})={value:.6f} STOP!")
    if model._reduce_lr_on_plateau:
        logger.info(f"Reduce learning rate on plateau: {model.lr_decay():.6f}")


def _save(model: BaseModel) -> None:
    Path(model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
    if _overrides(model, "save_weights"):
        model.save_weights(model.checkpoint)
    else:
        checkpoint.save_weights(model, model.checkpoint)


def _load(model: BaseModel) -> None:
    if _overrides(model, "load_weights"):
        model.load_weights(model.checkpoint)
    else:
        checkpoint.load_weights(model, model.checkpoint)


def _progress_bar(batches: Iterable, label: str, progress: bool | None) -> tqdm:
    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(batches, desc=label, file=sys.stderr, disable=not shown, leave=False)
