"""Training and evaluation of FuxiCTR models."""

from fuxictr_tf4ctr.metrics.definitions import check_metric, needs_group
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics
from fuxictr_tf4ctr.training.averaging import Averaging
from fuxictr_tf4ctr.training.checkpoints import Checkpoints, load_weights, save_weights
from fuxictr_tf4ctr.training.evaluation import evaluate, predict
from fuxictr_tf4ctr.training.fast import FastOptions
from fuxictr_tf4ctr.training.loop import FitResult, fit
from fuxictr_tf4ctr.training.schedule import Data, Schedule, Team, Watch, training_bytes

__all__ = [
    "Averaging",
    "Checkpoints",
    "Data",
    "FastOptions",
    "FitResult",
    "Schedule",
    "Team",
    "Watch",
    "check_metric",
    "evaluate",
    "evaluate_metrics",
    "fit",
    "load_weights",
    "needs_group",
    "predict",
    "save_weights",
    "training_bytes",
]
