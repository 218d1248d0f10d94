"""Corrections of probabilities undo what was done to them, and keep the order of rows."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.metrics.calibration import calibrated, fit_calibration
from fuxictr_tf4ctr.metrics.definitions import check_metric
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics


@pytest.fixture(scope="module")
def too_sure():
    """Labels, and probabilities whose logits are three times too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1.2, 20_000)
    y_true = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(float)
    return y_true, 1 / (1 + np.exp(-3 * logits))


def test_a_temperature_is_found_again_and_changes_no_ranking(too_sure):
    y_true, y_pred = too_sure
    content = fit_calibration("temperature", y_true, y_pred)
    assert content["temperature"] == pytest.approx(3, rel=0.05)
    better = calibrated(content, torch.from_numpy(y_pred)).numpy()
    before, after = (
        evaluate_metrics(y_true, y, ["AUC", "logloss", "ece"]) for y in (y_pred, better)
    )
    assert after["AUC"] == before["AUC"]
    assert after["logloss"] < before["logloss"] - 0.1 and after["ece"] < 0.01 < before["ece"]


def test_a_rising_curve_is_scikit_learns(too_sure):
    y_true, y_pred = too_sure
    content = fit_calibration("isotonic", y_true, y_pred)
    curve = IsotonicRegression(out_of_bounds="clip").fit(y_pred, y_true)
    asked = np.append(np.linspace(0, 1, 999), y_pred[:50])
    found = calibrated(content, torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found, curve.predict(asked), atol=1e-9)
    level = {"method": "isotonic", "x": [0.5], "y": [0.2]}
    found = calibrated(level, torch.tensor([[0.1], [0.9]]))
    assert found.flatten().tolist() == pytest.approx([0.2, 0.2])


def test_certain_predictions_stay_probabilities():
    y_true, y_pred = np.array([0.0, 1, 1, 0]), np.array([0.0, 1, 0.4, 1])
    for method in ("temperature", "isotonic"):
        content = fit_calibration(method, y_true, y_pred)
        found = calibrated(content, torch.from_numpy(y_pred))
        assert found.isfinite().all() and 0 <= found.min() <= found.max() <= 1


def test_calibrated_metrics_are_no_setting():
    with pytest.raises(SettingsError, match="comes by itself with the setting calibration"):
        check_metric("logloss_calibrated")
