"""Probabilities corrected: for a sample of the negatives, and by a fit on validation data.

A calibrated model returns ``y_calibrated`` beside ``y_pred``, which stays what it is.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

METHODS = ("temperature", "isotonic")
# What calibration is to better; it changes no ranking but for ties.
CALIBRATED_METRICS = ("logloss", "ece")
# Float32 has no number between 1 and 1 less this.
_EPS = 1e-7


def correct_sampling(model: nn.Module, share: float) -> None:
    """Let a FuxiCTR model that learns from a share of the negatives score as if it saw all.

    In evaluation the log-odds of all its scores, streams included, are shifted by log(share); in
    training they are those of the sample, for the loss.

    Source:
        He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, section 6.3.
    """

    def corrected(name: str, score: Tensor) -> Tensor:
        if name.startswith("logit"):
            return score + math.log(share)
        return score / (score + (1 - score) / share) if name.startswith("y_") else score

    model.register_forward_hook(
        lambda module, inputs, outputs: (
            None if module.training else {name: corrected(name, outputs[name]) for name in outputs}
        )
    )


def calibrated(content: Mapping[str, Any], y_pred: Tensor) -> Tensor:
    """Correct probabilities of any shape.

    Args:
        content: What :func:`fit_calibration` returns: "method" and, for "temperature", the
            "temperature" that logits are divided by; for "isotonic", the corners "x" -> "y" of a
            curve, straight between them and level beyond.
        y_pred: The probabilities.
    """
    if content["method"] == "temperature":
        return torch.sigmoid(y_pred.logit(eps=_EPS) / content["temperature"])
    x, y = (y_pred.new_tensor(content[axis]) for axis in "xy")
    if len(x) == 1:
        return torch.zeros_like(y_pred) + y[0]
    inside = y_pred.clamp(x[0], x[-1])
    # Counted, not searched: ONNX knows no binary search.
    after = (inside.unsqueeze(-1) > x[1:-1]).sum(-1) + 1
    low, high = x[after - 1], x[after]
    return torch.lerp(y[after - 1], y[after], (inside - low) / (high - low))


def add_calibration(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Let a FuxiCTR model return ``y_calibrated`` from now on; see :func:`calibrated`."""
    model.register_forward_hook(
        lambda module, inputs, outputs: {
            **outputs,
            "y_calibrated": calibrated(content, outputs["y_pred"]),
        }
    )


def fit_calibration(
    method: str, y_true: np.ndarray, y_pred: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Fit a correction.

    Args:
        method: "temperature", which keeps the order of all rows, or "isotonic", which may join rows
            that follow each other, and needs thousands of rows not to fit their noise.
        y_true: [N] labels, 0 or 1, of rows the model was not trained on.
        y_pred: [N] probabilities.
        weights: [N] how often each row counts; None for once.

    Returns:
        What :func:`calibrated` takes, in what JSON knows.

    Source:
        Guo et al., arXiv 1706.04599; Zadrozny and Elkan, KDD 2002, for isotonic regression.
    """
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression  # takes most of a second

        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        curve.fit(y_pred, y_true, weights)
        corners = {"x": curve.X_thresholds_.tolist(), "y": curve.y_thresholds_.tolist()}
        return {"method": method} | corners
    from scipy.optimize import minimize_scalar

    logits, labels = (torch.from_numpy(each) for each in (y_pred, y_true))
    logits = logits.logit(eps=_EPS)
    weight = None if weights is None else torch.from_numpy(weights)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return nn.functional.binary_cross_entropy_with_logits(scaled, labels, weight).item()

    found = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-6})
    return {"method": method, "temperature": float(np.exp(found.x))}


def calibrated_metrics() -> list[str]:
    """Return the names of metrics before and after calibration."""
    return [name for metric in CALIBRATED_METRICS for name in (metric, f"{metric}_calibrated")]
