"""FuxiCTR's training loop, without its stalls and silent failures.

The mathematics, the log lines and the attributes a model may rely on are those of
``fuxictr.pytorch.models.BaseModel.fit``, and every step goes through the model's own methods, so
that any FuxiCTR model trains here. What differs: a loss or metric that is not a number stops the
run instead of becoming its best result, the train loss is the mean over the steps it covers, and
on a GPU no step waits for the device.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.errors import DataError, DeviceError, DivergenceError, SettingsError, Terminated
from fuxictr_tf4ctr.metrics.definitions import check_metric, needs_group
from fuxictr_tf4ctr.registry import overrides
from fuxictr_tf4ctr.stopping import sigterm_noted
from fuxictr_tf4ctr.training import checkpoints
from fuxictr_tf4ctr.training.allocation import freed_memory_kept
from fuxictr_tf4ctr.training.averaging import WeightAverages
from fuxictr_tf4ctr.training.checkpoints import (
    AcceleratorError,
    model_state,
    optimizers_of,
    restore_model,
    restore_rng,
    rng_state,
    state_of_this_model,
)
from fuxictr_tf4ctr.training.evaluation import evaluate, progress_bar
from fuxictr_tf4ctr.training.losses import (
    NO_TERMS,
    UNWEIGHTED,
    Losses,
    monitored_values,
    weighs_rows,
)
from fuxictr_tf4ctr.training.schedule import SOLO, UNWATCHED, Data, Schedule, Team, Watch
from fuxictr_tf4ctr.training.step import Step, training_step

LOG = logging.getLogger(__name__)

# FuxiCTR's threshold below which a change of the monitored metric is no improvement.
_MIN_DELTA = 1e-6
# A model whose AUC is this close to a coin's in two evaluations running has learned nothing.
_STUCK = 1e-6
# The parts of FuxiCTR's loop that fit() replaces: a model with its own would be trained wrongly.
_REPLACED_METHODS = ("fit", "train_epoch", "eval_step", "checkpoint_and_earlystop")


@dataclass
class FitResult:
    """What a training run did; ``dataclasses.asdict`` of it is ready for JSON.

    Attributes:
        epochs: One record per evaluation (per epoch where there is no validation data): epoch and
            step (both from 1), train_loss (mean over the steps since the last record), metrics,
            learning_rate (of those steps), seconds (spent training since the last record), best;
            losses (means of the loss's terms over the same steps) and twin (what the model's
            ``monitored_values`` say of its last batch), where a model has any.
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
    data: Data,
    schedule: Schedule,
    team: Team = SOLO,
    watch: Watch = UNWATCHED,
) -> FitResult:
    """Train a model, keep its best weights in ``model.checkpoint`` and load them at the end.

    With checkpoints the full state is saved at each evaluation and whenever one is due, and a run
    whose folder holds a state goes on from there; on a CPU it ends with bitwise the weights and
    metrics of a run that was never cut off.

    Args:
        model: Compiled FuxiCTR model; its monitor, patience and learning-rate decay apply.
        data: Training batches, and validation batches if there are any.
        schedule: How long and how to train.
        team: The processes that train the model together.
        watch: Who is shown what, and where the state is kept.

    Returns:
        The record of the run.

    Raises:
        SettingsError: The settings do not fit the model or each other.
        DataError: A data set is empty, or leaves the monitored metric undefined.
        DivergenceError: A training loss, prediction or monitored metric is not a finite number, or
            the AUC stays at 0.5.
        Terminated: SIGTERM came; the state is saved (only with checkpoints).
    """
    _check_model(model, schedule)
    if data.valid is not None:
        _check_monitor(model)
    steps_per_epoch = len(data.train)
    if steps_per_epoch == 0:
        raise DataError("the training data hold no batch")
    schedule.evaluation_interval(model._eval_steps, steps_per_epoch)
    _set_fuxictr_attributes(model, data.valid, schedule.max_gradient_norm, steps_per_epoch)
    keeps_state = team.ranks.broadcast(lambda: watch.checkpoints is not None)
    signals = sigterm_noted() if keeps_state else nullcontext(_never)
    memory = freed_memory_kept() if model.device.type == "cpu" else nullcontext()
    team.ranks.broadcast_model(model)
    stepping = training_step(model, schedule.fast, team.ranks, schedule.weights)
    with stepping as step, signals as check_signals, memory:
        return _Loop(model, data, schedule, team, watch, step, check_signals).run()


class _Loop:
    """One training run. Its state is the model's, where FuxiCTR keeps it and models look for it."""

    def __init__(
        self,
        model: BaseModel,
        data: Data,
        schedule: Schedule,
        team: Team,
        watch: Watch,
        step: Step,
        check_signals: Callable[[], None],
    ) -> None:
        self.model = model
        self.train_gen = data.train
        self.epochs = schedule.epochs
        self.interval = schedule.evaluation_interval(model._eval_steps, len(data.train))
        self.ranks, self.tables = team.ranks, team.tables
        # Known to all: the ranks that keep no state tell none when it is due.
        self.save_every = team.ranks.broadcast(lambda: getattr(watch.checkpoints, "steps", None))
        self.watch = watch
        self.step = step
        self.check_signals = check_signals
        self.losses = Losses(model.device)
        self.averages = WeightAverages(model, schedule.averaging)
        self.result = FitResult()
        self.batches_done = 0
        self.epoch_start: dict[str, Any] = {}
        self.resumed: dict[str, Any] | None = None
        self.twin: dict[str, float] | None = {}  # of the last step; None where not looked at
        # Optimizers that were given a state look at it when they make a step.
        given = any(each.state for each in optimizers_of(model).values())
        self.first_step = state_of_this_model() if given else nullcontext()
        self.training_since = time.perf_counter()

    def run(self) -> FitResult:
        """Train until the epochs are done or the model stops early."""
        model = self.model
        LOG.info(f"Start training: {model._steps_per_epoch} batches/epoch")
        LOG.info("************ Epoch=1 start ************")
        self._resume()
        try:
            self._train()
            self._finish()
        except Terminated:
            self._save_state()
            raise
        except torch.OutOfMemoryError as error:  # moving or evaluating rows
            message = f"out of GPU memory after {_where(model)}: lower batch_size, or set storage"
            raise SettingsError(f"{message}: memory{self._saved()}") from error
        except AcceleratorError as error:
            said = str(error).splitlines()[0]
            cause = "look at nvidia-smi"
            if "device-side assert" in said:  # where a CPU's kernels raise
                cause = (
                    "a prediction may be no number (lower the learning rate), or an id outside its "
                    "table (CUDA_LAUNCH_BLOCKING=1 in the environment shows where)"
                )
            raise DeviceError(
                f"the GPU failed at {_where(model)}: {said}; its memory is lost: {cause}, and go "
                "on from the last saved state with --resume"
            ) from error
        return self.result

    def _train(self) -> None:
        model = self.model
        if self.resumed is not None:
            self._evaluate_if_due()
        for epoch in range(model._epoch_index, self.epochs):
            if not model._stop_training:
                model._epoch_index = epoch
                self._train_epoch()
            if model._stop_training:
                self.result.stopped = "early stop"
                break
            LOG.info(f"************ Epoch={epoch + 1} end ************")

    def _train_epoch(self) -> None:
        model = self.model
        label = f"epoch {model._epoch_index + 1}"
        batches = self._start_epoch()
        with progress_bar(
            batches, label, self.watch.progress, model._steps_per_epoch, self.batches_done
        ) as bar:
            for batch in bar:
                model._batch_index = self.batches_done
                model._total_steps += 1
                self.ranks.raise_flags(*self._wanted())
                with self.first_step:
                    loss = self._train_step(batch)
                self.first_step = nullcontext()
                self.twin = None
                self.batches_done += 1
                self.averages.after_step(model._total_steps)
                self.losses.add(loss, getattr(self.step, "terms", NO_TERMS), _where(model))
                bar.set_postfix(loss=self.losses.latest, refresh=False)
                self._evaluate_if_due()
                if model._stop_training:
                    break
                self._save_or_stop()
        if model.valid_gen is None and not self._recorded():
            self._save_epoch()

    def _save_or_stop(self) -> None:
        """Save the state if it is due, and stop if SIGTERM came, to any rank."""
        due, terminated = self.ranks.raised(*self._wanted())
        if due or (self.save_every and self.model._total_steps % self.save_every == 0):
            self._save_state()
        if terminated:
            raise Terminated

    def _wanted(self) -> tuple[bool, bool]:
        """Say whether a state is due after this step, and whether SIGTERM came."""
        checkpoints = self.watch.checkpoints
        due = checkpoints is not None and checkpoints.due(self.model._total_steps)
        try:
            self.check_signals()
        except Terminated:
            return due, True
        return due, False

    def _train_step(self, batch: Any) -> Tensor:
        model = self.model
        try:
            return self.step(batch)
        except torch.OutOfMemoryError as error:
            labels = model.get_labels(batch)  # of several tasks, a list
            rows = len(labels[0] if isinstance(labels, list) else labels)
            message = (
                f"out of GPU memory at {_where(model)}: a step of {rows} rows does not fit; lower "
                f"batch_size to {max(rows // 2, 1)}, or embedding_dim, or set storage: memory"
            )
            raise SettingsError(message + self._saved_before_step()) from error
        except AcceleratorError:
            raise
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise SettingsError(
                f"a batch of one row at {_where(model)}, on which batch norm, as in Dice, cannot "
                "train: choose a batch_size that leaves no such batch"
            ) from error
        except RuntimeError as error:
            # Weights ruined by the step before show here first: cross-entropy refuses NaN.
            if all(torch.isfinite(weights).all() for weights in model.parameters()):
                raise
            raise DivergenceError(
                f"the weights are not finite at {_where(model)}: lower the learning rate"
            ) from error

    def _saved_before_step(self) -> str:
        """Save the state of before a step that ran out of memory, and say so, if fused.

        A fused optimizer changes no weight before it has all the memory it needs.
        """
        groups = getattr(getattr(self.model, "optimizer", None), "param_groups", [])
        if not groups or not all(group.get("fused") for group in groups):
            return ""
        self.model._total_steps -= 1
        return self._saved()

    def _saved(self) -> str:
        """Save the state where memory ran out, and say so; several ranks cannot, one being lost."""
        if self.watch.checkpoints is None or self.ranks.size > 1:
            return ""
        self._save_state()
        return "; or free memory of the GPU and go on with --resume: the state is saved"

    def _start_epoch(self) -> Iterator:
        """Return the batches of the epoch that are still to come."""
        model = self.model
        model.train()
        if self.resumed is None:
            self.batches_done = model._batch_index = 0
            self.epoch_start = {
                "loader_epoch": getattr(self.train_gen, "epoch", None),
                "rng": rng_state(model.device),
            }
            return iter(self.train_gen)
        state, self.resumed = self.resumed, None
        # The loader draws its order again, as it did when the epoch began.
        restore_rng(self.epoch_start["rng"], model.device)
        if self.epoch_start["loader_epoch"] is not None:
            self.train_gen.epoch = self.epoch_start["loader_epoch"]
        batches = _batches_from(self.train_gen, self.batches_done)
        if self.ranks.rank < len(state["rng"]):  # a rank that was not there before keeps its own
            restore_rng(state["rng"][self.ranks.rank], model.device)
        return batches

    def _finish(self) -> None:
        model = self.model
        if not self.result.epochs:  # eval_steps exceeds the steps there were
            self._evaluate()
        self.losses.look()
        self.result.steps = model._total_steps
        self.result.train_seconds += time.perf_counter() - self.training_since
        LOG.info("Training finished.")
        if model.valid_gen is not None:
            LOG.info(f"Load best model: {model.checkpoint}")
        if model.valid_gen is not None or self.averages.begun:
            divided = _load(model) if self.ranks.leads else {}
            self.ranks.broadcast_model(model)
            self.tables.load(Path(model.checkpoint), divided, optimizer=False)

    def _recorded(self) -> bool:
        """Whether the last step has been evaluated."""
        return bool(self.result.epochs) and (
            self.result.epochs[-1]["step"] == self.model._total_steps
        )

    def _evaluate_if_due(self) -> None:
        model = self.model
        due = model.valid_gen is not None and model._total_steps % self.interval == 0
        if due and not self._recorded():
            self._evaluate()

    def _evaluate(self) -> None:
        model = self.model
        record = self._start_record()
        LOG.info(f"Train loss: {record['train_loss']:.6f}")
        LOG.info(f"Evaluation @epoch {model._epoch_index + 1} - batch {model._batch_index + 1}: ")
        if self.averages.begun:
            record["plain_metrics"] = self._metrics()
        with self.averages.in_model():
            record["metrics"] = self._metrics()
            value = _monitored_value(model, record["metrics"])
            self._check_learning(record["metrics"])
            record["best"] = _improves(model, value, model._best_metric)
            if record["best"]:
                self._keep_best(value)
            if not model._save_best_only:
                self._save_weights()
        if self._plain_improves(record) or record["best"]:
            model._stopping_steps = 0
        else:
            self._note_no_improvement(value)
        if model._stopping_steps >= model._early_stop_patience:
            model._stop_training = True
            LOG.info(f"********* Epoch={model._epoch_index + 1} early stop *********")
        self._end_record(record)
        model.train()

    def _metrics(self) -> dict[str, float]:
        model = self.model
        alone = self.ranks.size == 1  # several ranks stop together, after a step
        batches = _Watched(model.valid_gen, self.check_signals if alone else _never)
        names = model._monitor.get_metrics()
        return evaluate(model, batches, names, self.watch.progress, self.ranks)

    def _plain_improves(self, record: dict[str, Any]) -> bool:
        """Whether the weights that are not averaged, if others are, are better than ever."""
        if "plain_metrics" not in record:
            return False
        value = _monitored_value(self.model, record["plain_metrics"])
        improves = _improves(self.model, value, self.averages.best_plain)
        if improves:
            self.averages.best_plain = value
        return improves

    def _note_no_improvement(self, value: float) -> None:
        """Count the evaluation towards early stopping and decay the learning rate."""
        model = self.model
        model._stopping_steps += 1
        LOG.info(f"Monitor({model._monitor_mode})={value:.6f} STOP!")
        if model._reduce_lr_on_plateau:
            LOG.info(f"Reduce learning rate on plateau: {model.lr_decay():.6f}")
            if self.averages.after_drop():
                model._stopping_steps = 0  # patience is the averages' from here on

    def _check_learning(self, metrics: dict[str, float]) -> None:
        """Stop a model that ranks as a coin does, now and at the evaluation before."""
        before = self.result.epochs[-1]["metrics"] if self.result.epochs else {}
        if all(abs(each.get("AUC", 1.0) - 0.5) < _STUCK for each in (before, metrics)):
            raise DivergenceError(
                f"AUC is 0.5 at {_where(self.model)}, as at the evaluation before: the model gives "
                "every row the same score; lower the learning rate, or change the seed"
            )

    def _keep_best(self, value: float) -> None:
        model = self.model
        model._best_metric = value
        self.result.best_metric = value
        self.result.best_step = model._total_steps
        if model._save_best_only:
            LOG.info(f"Save best model: monitor({model._monitor_mode})={value:.6f}")
            self._save_weights()

    def _save_weights(self) -> None:
        model = self.model
        divided = self.tables.save(Path(model.checkpoint), model._total_steps, optimizer=False)
        if self.ranks.leads:
            _save(model, divided)
            if self.watch.keep_optimizer:
                checkpoints.save_optimizers(model)

    def _save_epoch(self) -> None:
        """End an epoch without validation data."""
        record = self._start_record()
        LOG.info(f"Train loss: {record['train_loss']:.6f}")
        with self.averages.in_model():
            self._save_weights()
        self._end_record(record)

    def _start_record(self) -> dict[str, Any]:
        model = self.model
        record = {
            "epoch": model._epoch_index + 1,
            "step": model._total_steps,
            "train_loss": self.losses.mean(),
            "metrics": {},
            "learning_rate": _learning_rate(model),
            "seconds": time.perf_counter() - self.training_since,
            "best": False,
        }
        shown = {"losses": self.losses.means_of_terms(), "twin": self._twin()}
        return record | {name: values for name, values in shown.items() if values}

    def _twin(self) -> dict[str, float]:
        """Return what the model shows of the last step, which an evaluation must not replace."""
        if self.twin is None:
            self.twin = monitored_values(self.step) or monitored_values(self.model)
        return self.twin

    def _end_record(self, record: dict[str, Any]) -> None:
        self.losses.clear()
        self.result.epochs.append(record)
        self.result.train_seconds += record["seconds"]
        self.watch.on_evaluation(record)
        self.training_since = time.perf_counter()
        (keeps_state,) = self.ranks.agree(self.watch.checkpoints is not None)
        if keeps_state:
            self._save_state()

    def _save_state(self) -> None:
        """Save all that decides how the run goes on, with the generators of every rank."""
        model = self.model
        generators = self.ranks.all_gather(rng_state(model.device))
        kept = self.watch.checkpoints
        path = None if kept is None else kept.file(model._total_steps)
        divided = self.tables.save(path, model._total_steps, optimizer=True)
        if kept is None:
            return
        state = {
            **model_state(model),
            "shards": divided,
            "rng": generators,
            "epoch_start": self.epoch_start,
            "batches_done": self.batches_done,
            "losses": self.losses.state(),
            "twin": self._twin(),
            "averages": self.averages.state(),
            "result": asdict(self.result),
            "seconds": time.perf_counter() - self.training_since,
        }
        kept.save(state, model._total_steps)

    def _resume(self) -> None:
        """Go on from the last state there is, if any."""
        kept = self.watch.checkpoints
        state = self.ranks.broadcast(lambda: None if kept is None else kept.latest())
        if state is None:
            return
        restore_model(self.model, state)
        path = None if kept is None else kept.file(self.model._total_steps)
        self.tables.load(path, state.get("shards", {}), optimizer=True)
        with state_of_this_model():
            self.averages.restore(state.get("averages", {}))
        self.result = FitResult(**state["result"])
        self.losses.restore(state["losses"])
        self.twin = state.get("twin", {})
        self.batches_done, self.epoch_start = state["batches_done"], state["epoch_start"]
        self.training_since = time.perf_counter() - state["seconds"]
        self.resumed = state
        self.first_step = state_of_this_model()
        LOG.info(f"Resume after {_where(self.model)}")


class _Watched:
    """Batches, with a look for signals before each."""

    def __init__(self, batches: Iterable, check: Callable[[], None]) -> None:
        self.batches = batches
        self.check = check

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        for batch in self.batches:
            self.check()
            yield batch


def _never() -> None:
    """Look for no signals."""


def _batches_from(batches: Iterable, first: int) -> Iterator:
    """Iterate from a batch on; a loader that can start there need not make the ones before."""
    if hasattr(batches, "first_batch"):
        batches.first_batch = first
        return iter(batches)
    iterator = iter(batches)
    for _ in islice(iterator, first):
        pass
    return iterator


def _check_model(model: BaseModel, schedule: Schedule) -> None:
    if schedule.weights != UNWEIGHTED and not weighs_rows(model):
        raise SettingsError(
            f"{type(model).__name__} has a loss of its own, which weight_col and pos_weight do not "
            "reach"
        )
    for method in _REPLACED_METHODS:
        if overrides(model, method):
            raise SettingsError(
                f"{type(model).__name__} has its own {method}, which this loop would bypass: "
                "train it by FuxiCTR's loop, model.fit(...)"
            )


def _check_monitor(model: BaseModel) -> None:
    """Find a monitor that cannot be computed before training rather than an epoch later."""
    if model._monitor_mode not in ("max", "min"):
        raise SettingsError(f"monitor_mode is {model._monitor_mode!r}: give max or min")
    if overrides(model, "evaluate", "evaluate_metrics"):
        return
    for name in model._monitor.get_metrics():
        check_metric(name)
        if needs_group(name) and model.feature_map.group_id is None:
            raise SettingsError(f"monitor {name} ranks rows within groups: set group_id")


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


def _improves(model: BaseModel, value: float, best: float | None) -> bool:
    if best is None:
        return True
    if model._monitor_mode == "min":
        return value <= best - _MIN_DELTA
    return value >= best + _MIN_DELTA


def _save(model: BaseModel, divided: Mapping[str, Any]) -> None:
    Path(model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
    if overrides(model, "save_weights"):
        model.save_weights(model.checkpoint)
    else:
        checkpoints.save_weights(model, model.checkpoint, divided)


def _load(model: BaseModel) -> dict[str, Any]:
    """Load the best weights, and return what their file says of divided tables."""
    if overrides(model, "load_weights"):
        model.load_weights(model.checkpoint)
        return {}
    return checkpoints.load_undivided(model, model.checkpoint)
