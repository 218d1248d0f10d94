"""What a run shows of its evaluations."""

import importlib.util
import logging
from types import SimpleNamespace
from typing import ClassVar

import pytest

from fuxictr_tf4ctr import run_experiment
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs import observers
from fuxictr_tf4ctr.runs.observers import TRACKERS, TensorBoard, evaluation_row
from fuxictr_tf4ctr.settings.reading import load_settings

EVALUATION = {
    "epoch": 2, "step": 42, "train_loss": 0.5, "metrics": {"AUC": 0.75, "logloss": 0.25},
    "learning_rate": 1e-3, "seconds": 3.21, "best": True, "losses": {"bce": 0.4, "simple": 0.1},
    "twin": {"fusion_weight_simple": 0.6},
}  # fmt: skip


def test_rows_of_a_run_stand_below_each_other():
    rows = [
        evaluation_row(EVALUATION),
        evaluation_row({**EVALUATION, "epoch": 10, "step": 210, "seconds": 12.5}),
    ]
    assert len({tuple(i for i, c in enumerate(row) if c == "|") for row in rows}) == 1
    assert rows[0].endswith("| best")
    assert "AUC 0.750000" in rows[0] and "rate 1.0e-03" in rows[0]
    last = evaluation_row({**EVALUATION, "best": False, "learning_rate": None, "metrics": {}})
    assert "best" not in last and "rate" not in last


def finished(folder, expid="DeepFM_tiny"):
    """What a tracker reads of a run's record, at its beginning and its end."""
    folder.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        folder=folder,
        expid=expid,
        settings={"dataset_id": "tiny", "model": "DeepFM", "long": "x" * 9000},
        status="finished",
        evaluations=[EVALUATION],
        valid={"AUC": 0.75},
        test={"NDCG(k=1)": 0.5},
    )


def followed(tracker, record, steps=(42, 84)):
    tracker.begin(record)
    for step in steps:
        tracker.write({**EVALUATION, "step": step})
    tracker.end(record)


def test_event_files_hold_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (42, 84):  # a run that is resumed opens a second file
        followed(TensorBoard(), finished(tmp_path), [step])
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {
        *("train/loss", "train/learning_rate", "metrics/AUC", "metrics/logloss"),
        *("loss/bce", "loss/simple", "twin/fusion_weight_simple"),
    }
    events = found.Scalars("metrics/AUC")
    assert [event.step for event in events] == [42, 84]
    assert events[0].value == pytest.approx(0.75)


def test_mlflow_has_a_run_of_each(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    pytest.importorskip("alembic", reason="the extra 'mlflow' is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("it's 1", "2", "2"):  # the last one is taken up again
        followed(observers.MLflow(), finished(tmp_path / name))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.data.tags["folder"][-1] for run in runs] == ["1", "2"]
    run = runs[0]
    assert run.info.status == "FINISHED" and run.info.run_name == "DeepFM_tiny"
    assert run.data.params["model"] == "DeepFM" and run.data.metrics["test/NDCG_k_1_"] == 0.5
    history = client.get_metric_history(run.info.run_id, "metrics/AUC")
    assert [each.step for each in history] == [42, 84]


def test_wandb_writes_a_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    followed(observers.WandB(), finished(tmp_path))
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"metrics/AUC" in content and b"test/NDCG" in content


class StandIn:
    """A tracker that notes what it is told."""

    told: ClassVar[list] = []

    def begin(self, record):
        self.told.append(("begin", record.status))

    def write(self, evaluation):
        self.told.append(("write", evaluation["step"]))

    def end(self, record):
        self.told.append(("end", record.status, sorted(record.test)))


class Away(StandIn):
    """A tracker whose service is gone after the beginning."""

    def write(self, evaluation):
        raise ConnectionError("no route\nto the host")


def test_a_run_tells_its_trackers_and_outlives_them(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "mlflow", Away)
    monkeypatch.setitem(TRACKERS, "wandb", StandIn)
    monkeypatch.setattr(StandIn, "told", [])
    overrides = {
        "epochs": 2, "trackers": ["mlflow", "wandb"], "embedding_dim": 4, "verbose": 0,
        "data_root": str(tmp_path), "model_root": str(tmp_path),
    }  # fmt: skip
    with monkeypatch.context() as installed:
        installed.setattr(importlib.util, "find_spec", lambda name: name)
        settings = load_settings("DeepFM_demo", overrides=overrides)
    with caplog.at_level(logging.WARNING):
        record = run_experiment(settings)
    assert record.status == "finished"
    steps = [("write", evaluation["step"]) for evaluation in record.evaluations]
    begun = [("begin", "running")] * 2
    assert StandIn.told == [*begun, *steps, ("end", "finished", ["AUC", "logloss"])]
    (warning,) = [each.message for each in caplog.records if "tracker" in each.message]
    assert "tracker mlflow failed and is left out" in warning and warning.endswith("no route")


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"tracker tensorboard needs .*pip install"):
        load_settings("DeepFM_demo", overrides={"tensorboard": True})
    with pytest.raises(SettingsError, match=r"tracker wandb needs .*\[wandb\]"):
        load_settings("DeepFM_demo", overrides={"trackers": ["wandb"]})
    with pytest.raises(SettingsError, match=r"trackers\[0\]='comet' must be one of tensorboard"):
        load_settings("DeepFM_demo", overrides={"trackers": ["comet"]})
    load_settings("DeepFM_demo", overrides={"tensorboard": False, "trackers": None})
