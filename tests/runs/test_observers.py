"""What a run shows of its evaluations."""

import importlib.util

import pytest

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.observers import EventFiles, evaluation_row
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


def test_event_files_hold_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (42, 84):  # a run that is resumed opens a second file
        EventFiles(tmp_path).write({**EVALUATION, "step": step})
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == {
        *("train/loss", "train/learning_rate", "metrics/AUC", "metrics/logloss"),
        *("loss/bce", "loss/simple", "twin/fusion_weight_simple"),
    }
    events = found.Scalars("metrics/AUC")
    assert [event.step for event in events] == [42, 84]
    assert events[0].value == pytest.approx(0.75)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"tensorboard: true needs .*pip install"):
        load_settings("DeepFM_demo", overrides={"tensorboard": True})
    load_settings("DeepFM_demo", overrides={"tensorboard": False})
