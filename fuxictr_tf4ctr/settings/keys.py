"""The configuration's keys: what each means, what it may hold, what it is by default.

FuxiCTR's keys keep FuxiCTR's names. Model classes add keys of their own; those are checked by
``settings`` against the class.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuxictr_tf4ctr.distributed.sharding import SHARDINGS, TABLE_OPTIMIZERS
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.metrics.whole import check_metric
from fuxictr_tf4ctr.names import nearest
from fuxictr_tf4ctr.training.fast.options import PRECISIONS

LOSSES = (
    "binary_crossentropy",
    "binary_cross_entropy",
    "bce",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
)
TASKS = ("binary_classification", "regression")
DATA_FORMATS = ("csv", "parquet", "h5")
# Needs a closure or sparse gradients, which FuxiCTR's training step does not give.
_UNUSABLE_OPTIMIZERS = {"Optimizer", "LBFGS", "SparseAdam"}
OPTIMIZERS = tuple(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in _UNUSABLE_OPTIMIZERS
)

Check = Callable[[Any], str | None]
"""Says what a value must be, or None where the value is right."""


@dataclass(frozen=True)
class Key:
    """One configuration key.

    Attributes:
        check: Says what a value must be, or None where it is right.
        help: One line on what the key means.
        default: Value where the configuration has none; ``REQUIRED`` if there must be one.
    """

    check: Check
    help: str
    default: Any = None


REQUIRED = object()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> Check:
    def check(value: Any) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if ok else f"a whole number >= {least}"

    return check


def _positive(value: Any) -> str | None:
    return None if _number(value) and value > 0 else "a number > 0"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _anything(value: Any) -> str | None:
    return None


def _one_of(*choices: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in choices else f"one of {', '.join(choices)}"

    return check


def _or_null(check: Check) -> Check:
    def checked(value: Any) -> str | None:
        expected = None if value is None else check(value)
        return f"{expected}, or null" if expected else None

    return checked


def _optimizer(value: Any) -> str | None:
    if value in OPTIMIZERS or str(value).lower() == "adam":
        return None
    close = nearest(str(value), OPTIMIZERS)
    return f"an optimizer of torch.optim, such as {', '.join(close or ('adam', 'SGD'))}"


def _regularizer(value: Any) -> str | None:
    if _number(value) and value >= 0:
        return None
    written = rf"l[12]\({_NUMBER}\)|l1_l2\({_NUMBER}, *{_NUMBER}\)"
    if isinstance(value, str) and re.fullmatch(written, value):
        return None
    return "a number >= 0, 'l1(x)', 'l2(x)' or 'l1_l2(x,y)'"


def _metric_problem(name: Any) -> str | None:
    try:
        check_metric(name)
    except SettingsError as error:
        return str(error)
    return None


def _metrics(value: Any) -> str | None:
    if not isinstance(value, list | tuple) or not value:
        return "a non-empty list of metrics"
    return next((f"known metrics ({p})" for name in value if (p := _metric_problem(name))), None)


def _monitor(value: Any) -> str | None:
    weights = {value: 1} if isinstance(value, str) else value
    if not isinstance(weights, Mapping) or not weights:
        return "a metric, or a mapping of metrics to weights"
    for name, weight in weights.items():
        problem = _metric_problem(name)
        if problem:
            return f"known metrics ({problem})"
        if not _number(weight):
            return f"a mapping of metrics to numbers, but {name} has {weight!r}"
    return None


def _eval_steps(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    fraction = isinstance(value, float) and 0 < value < 1
    return None if whole or fraction else "a number of steps >= 1, or a fraction of an epoch < 1"


def _share(value: Any) -> str | None:
    return None if _number(value) and value >= 0 else "a number >= 0"


def _columns(value: Any) -> str | None:
    entries = value if isinstance(value, list) else [value]
    if entries and all(isinstance(entry, Mapping) and "name" in entry for entry in entries):
        return None
    return "a list of columns, each a mapping with a name"


DATASET_KEYS: dict[str, Key] = {
    "dataset_id": Key(_text, "Name of the data set, and of its folder of encoded files", REQUIRED),
    "data_root": Key(_text, "Folder of the encoded data sets", "./data/"),
    "data_format": Key(_one_of(*DATA_FORMATS), "Format of the data files", REQUIRED),
    "train_data": Key(_text, "Training data: a file or a folder", REQUIRED),
    "valid_data": Key(_or_null(_text), "Validation data"),
    "test_data": Key(_or_null(_text), "Test data"),
    "feature_cols": Key(_columns, "Feature columns: name, type, dtype and options of each"),
    "label_col": Key(_columns, "Label column: name and dtype"),
    "feature_processor": Key(
        _or_null(_text), "Module of a FuxiCTR dataset class, or module:Class, for preprocess"
    ),
    "min_categr_count": Key(_whole(1), "Rarer values of a categorical column become OOV", 1),
    "num_buckets": Key(_whole(2), "Buckets of quantile and hash bucketing", 10),
    "sep": Key(_text, "Separator of csv files", ","),
    "n_rows": Key(_or_null(_whole(1)), "Rows read of each file, null for all"),
    "rebuild_dataset": Key(_flag, "False uses the encoded files that are there", True),
    "data_block_size": Key(_whole(0), "FuxiCTR's rows per part; not used here", 0),
    "valid_size": Key(_share, "Validation share split off the training data", 0),
    "test_size": Key(_share, "Test share split off the training data", 0),
    "split_type": Key(_one_of("sequential", "random"), "How shares are split off", "sequential"),
}

TRAINING_KEYS: dict[str, Key] = {
    "model": Key(_text, "Name of the model, or package.module:Class", REQUIRED),
    "model_id": Key(_text, "Name of the experiment; set to the expid"),
    "model_root": Key(_text, "Folder of the runs", "./checkpoints/"),
    "task": Key(_one_of(*TASKS), "What is predicted", "binary_classification"),
    "loss": Key(_one_of(*LOSSES), "Loss of the final prediction", "binary_crossentropy"),
    "optimizer": Key(_optimizer, "Name of a torch optimizer", "adam"),
    "learning_rate": Key(_positive, "Learning rate at the start", 1e-3),
    "reduce_lr_on_plateau": Key(_flag, "Divide it by 10 when the monitor gets no better", True),
    "batch_size": Key(_whole(1), "Rows per step", 4096),
    "epochs": Key(_whole(1), "Epochs at most", 100),
    "shuffle": Key(_flag, "Shuffle the training rows each epoch", True),
    "seed": Key(_whole(0), "Seed of initialisation, dropout and shuffling", 2023),
    "gpu": Key(_whole(-1), "Index of the GPU, -1 for the CPU", -1),
    "metrics": Key(_metrics, "Metrics of the final evaluation", ["AUC", "logloss"]),
    "monitor": Key(_monitor, "Metric, or weighted sum of metrics, that is monitored", "AUC"),
    "monitor_mode": Key(_one_of("max", "min"), "Whether more or less of it is better", "max"),
    "early_stop_patience": Key(_whole(1), "Evaluations without progress before stopping", 2),
    "eval_steps": Key(_or_null(_eval_steps), "Steps between evaluations, null for an epoch"),
    "checkpoint_minutes": Key(
        _or_null(_positive), "Minutes between checkpoints of the full state, null for none", 10
    ),
    "checkpoint_steps": Key(
        _or_null(_whole(1)), "Steps between checkpoints of the full state, null for none"
    ),
    "save_best_only": Key(_flag, "Keep the best weights, not the last", True),
    "embedding_regularizer": Key(_or_null(_regularizer), "L1/L2 of embedding tables"),
    "net_regularizer": Key(_or_null(_regularizer), "L1/L2 of all other weights"),
    "max_gradient_norm": Key(_positive, "Gradients are clipped to this norm", 10.0),
    "group_id": Key(_or_null(_text), "Column that groups rows for gAUC and the like"),
    "use_features": Key(_anything, "Features to use, null for all"),
    "feature_specs": Key(_anything, "Overrides of the feature map's specifications"),
    "feature_config": Key(_anything, "FuxiCTR's older name of feature_specs"),
    "sync_batch_norm": Key(_flag, "With several workers: batch norm over the rows of all", True),
    "table_sharding": Key(
        _or_null(_one_of(*SHARDINGS)),
        "Divide embedding tables among workers by TorchRec: row_wise, table_wise, auto (its plan)",
    ),
    "table_optimizer": Key(
        _or_null(_one_of(*TABLE_OPTIMIZERS)),
        "Rule of divided tables: sgd, adagrad or row_wise_adagrad (null: row_wise_adagrad)",
    ),
    "table_learning_rate": Key(
        _or_null(_positive), "Learning rate of divided tables, null for learning_rate"
    ),
    "tensorboard": Key(_flag, "Write losses, metrics and fusion weights for TensorBoard", False),
    "verbose": Key(_whole(0), "1 shows progress bars on a terminal", 1),
    "num_workers": Key(_whole(0), "FuxiCTR's loader processes; not used here", 0),
    "buffer_size": Key(_whole(1), "FuxiCTR's shuffle buffer; not used here", 1_000_000),
    "pickle_feature_encoder": Key(_flag, "FuxiCTR's pickle of the encoder; not written here", True),
    "debug_mode": Key(_flag, "FuxiCTR's tuner flag; no effect on a run", False),
}

FAST_KEYS: dict[str, Key] = {
    "fast": Key(_flag, "Fast mode: on a CPU fast_dropout, on a GPU bf16 and cuda_graphs", False),
    "precision": Key(
        _or_null(_one_of(*PRECISIONS)), "Matrix products in fp32, tf32 (GPU) or bf16 (autocast)"
    ),
    "fast_dropout": Key(_or_null(_flag), "Dropout masks on a CPU from a faster generator"),
    "sparse_embeddings": Key(
        _or_null(_flag), "Update and regularise only the embeddings a batch has, by lazy Adam"
    ),
    "compile": Key(_or_null(_flag), "Compile the forward pass with torch.compile"),
    "cuda_graphs": Key(_or_null(_flag), "Record a step on a GPU once, and replay it"),
    "cowclip": Key(_or_null(_flag), "Clip embedding gradients row by row, for large batches"),
    "cowclip_batch_size": Key(
        _or_null(_whole(1)),
        "Batch size that learning rate and regularizers are given for: CowClip scales them from it",
    ),
}

KEYS: dict[str, Key] = DATASET_KEYS | TRAINING_KEYS | FAST_KEYS

_NUMBER = r"[0-9]*\.?[0-9]+(e[-+]?[0-9]+)?"
_FLOATS = (
    "learning_rate",
    "table_learning_rate",
    "embedding_regularizer",
    "net_regularizer",
    "max_gradient_norm",
)


def normalized(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn whole and YAML 1.1's text numbers (``1e-3``) of float keys into floats.

    FuxiCTR ignores a regularizer that is not a float.
    """
    result = dict(params)
    for key in _FLOATS:
        value = result.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole or (isinstance(value, str) and re.fullmatch(_NUMBER, value)):
            result[key] = float(value)
    return result
