"""What a run shows of its evaluations while it trains: rows of a table, and trackers.

A tracker has three methods: ``begin``, ``write``, ``end``. Each run, and so each trial of a
sweep, is a run of its own there.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fuxictr_tf4ctr.runs.records import RunRecord

LOG = logging.getLogger(__name__)


def evaluation_row(evaluation: Mapping[str, Any]) -> str:
    """Format an evaluation as a row; rows of one run have their columns below each other.

    Args:
        evaluation: An entry of :attr:`FitResult.epochs`.
    """
    cells = [
        f"epoch {evaluation['epoch']:>3}",
        f"step {evaluation['step']:>7}",
        f"loss {evaluation['train_loss']:.6f}",
        *(f"{name} {value:.6f}" for name, value in evaluation["metrics"].items()),
    ]
    if evaluation["learning_rate"] is not None:
        cells.append(f"rate {evaluation['learning_rate']:.1e}")
    cells.append(f"{evaluation['seconds']:7.1f} s")
    return " | ".join(cells) + (" | best" if evaluation["best"] else "")


class Tracker(Protocol):
    """Where the numbers of a run are looked at. What it raises ends it, not the run."""

    def begin(self, record: RunRecord) -> None:
        """Open a run, or the one that was begun before for the same folder."""

    def write(self, evaluation: Mapping[str, Any]) -> None:
        """Take in an entry of :attr:`FitResult.epochs`."""

    def end(self, record: RunRecord) -> None:
        """Close the run, however it ended."""


class TensorBoard(Tracker):
    """Event files in the run's folder ``tensorboard``."""

    def begin(self, record: RunRecord) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(record.folder / "tensorboard"))

    def write(self, evaluation: Mapping[str, Any]) -> None:
        for name, value in _scalars(evaluation):
            self._writer.add_scalar(name, value, evaluation["step"])
        self._writer.flush()

    def end(self, record: RunRecord) -> None:
        self._writer.close()


class MLflow(Tracker):
    """A run in the experiment named for the data set, or by ``$MLFLOW_EXPERIMENT_NAME``.

    MLflow's own variables say where: ``$MLFLOW_TRACKING_URI``.
    """

    def begin(self, record: RunRecord) -> None:
        # Of its own, MLflow tries for minutes to reach a server that is gone.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", record.settings["dataset_id"])
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        folder = str(record.folder.resolve())
        quoted = folder.replace("'", "\\'")
        runs = self._client.search_runs([experiment], f"tags.folder = '{quoted}'")
        if runs:  # the run is taken up again
            self._run = runs[0].info.run_id
            return
        tags = {"folder": folder, "model": record.settings["model"]}
        run = self._client.create_run(experiment, tags=tags, run_name=record.expid)
        self._run = run.info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in record.settings.items()]
        for first in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(self._run, params=params[first : first + 100])

    def write(self, evaluation: Mapping[str, Any]) -> None:
        self._log(_scalars(evaluation), evaluation["step"])

    def end(self, record: RunRecord) -> None:
        self._log(_results(record), record.evaluations[-1]["step"] if record.evaluations else 0)
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(record.status, "KILLED")
        self._client.set_terminated(self._run, status)

    def _log(self, scalars: Iterator[tuple[str, float]], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_plain(name), value, now, step) for name, value in scalars]
        self._client.log_batch(self._run, metrics=metrics)


class WandB(Tracker):
    """A run in the project named for the data set, or by ``$WANDB_PROJECT``.

    Offline, in the run's folder, for ``wandb sync``, unless ``$WANDB_MODE`` says otherwise.
    """

    def begin(self, record: RunRecord) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", record.settings["dataset_id"]),
            name=record.expid,
            id=f"{record.expid}-{record.folder.name}",
            resume="allow",
            dir=str(record.folder),
            config=record.settings,
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=20),
        )

    def write(self, evaluation: Mapping[str, Any]) -> None:
        self._run.log(dict(_scalars(evaluation)), step=evaluation["step"])

    def end(self, record: RunRecord) -> None:
        self._run.summary.update(dict(_results(record)))
        self._run.finish(exit_code=0 if record.status == "finished" else 1)


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


class Trackers:
    """The trackers of one run; one that fails is warned of once and left out from then on."""

    def __init__(self, names: Sequence[str]) -> None:
        self._trackers = {name: TRACKERS[name]() for name in names}

    @contextmanager
    def of(self, record: RunRecord) -> Iterator[None]:
        """Follow a run while in context; its status at the end is what they tell."""
        self._tell("begin", record)
        try:
            yield
        finally:
            self._tell("end", record)

    def write(self, evaluation: Mapping[str, Any]) -> None:
        """Hand an evaluation to all."""
        self._tell("write", evaluation)

    def _tell(self, method: str, what: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, method)(what)
            except Exception as error:  # a service that is away, or whatever its client meets
                del self._trackers[name]
                reason = str(error).strip().split("\n")[0]
                LOG.warning(
                    "tracker %s failed and is left out of this run, which goes on: %s: %s",
                    *(name, type(error).__name__, reason),
                )


def _results(record: RunRecord) -> Iterator[tuple[str, float]]:
    for split in ("valid", "test"):
        for name, value in getattr(record, split).items():
            yield f"{split}/{name}", value


def _plain(name: str) -> str:
    """Spell a metric, such as NDCG(k=5), with the characters that MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _scalars(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield "train/loss", evaluation["train_loss"]
    if evaluation["learning_rate"] is not None:
        yield "train/learning_rate", evaluation["learning_rate"]
    entries = {"metrics": "metrics", "plain": "plain_metrics", "loss": "losses", "twin": "twin"}
    for group, entry in entries.items():
        for name, value in evaluation.get(entry, {}).items():
            yield f"{group}/{name}", value
