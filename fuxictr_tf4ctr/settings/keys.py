"""The configuration's keys: what each means, what it may hold, what it is by default.

FuxiCTR's keys keep FuxiCTR's names. Model classes add keys of their own; those are checked by
``settings`` against the class.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from fuxictr_tf4ctr.datasets.feature_map import OVERRIDE
from fuxictr_tf4ctr.datasets.job import DATA_FORMAT, ENCODING_KEYS
from fuxictr_tf4ctr.datasets.loader import MEMORY_BUDGET, STORAGES
from fuxictr_tf4ctr.distributed.cost import SHARDINGS, TABLE_OPTIMIZERS
from fuxictr_tf4ctr.metrics.calibration import METHODS
from fuxictr_tf4ctr.metrics.definitions import check_metric
from fuxictr_tf4ctr.schema import (
    FILE_NAME,
    FLAG,
    NULL,
    PATH,
    POSITIVE,
    REQUIRED,
    TEXT,
    TEXTS,
    AnyOf,
    Key,
    Kind,
    ListOf,
    is_number,
    is_whole,
    name_of,
    one_of,
    whole,
)
from fuxictr_tf4ctr.training.averaging import LEARNING_RATE_DROP
from fuxictr_tf4ctr.training.fast import PRECISIONS

LOSSES = (
    "binary_crossentropy",
    "binary_cross_entropy",
    "bce",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
)
# Each named as its package is.
TRACKERS = ("tensorboard", "mlflow", "wandb")
TASKS = ("binary_classification", "regression")
# Need a closure, sparse gradients or matrices alone, which FuxiCTR does not give.
_UNUSABLE_OPTIMIZERS = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
OPTIMIZERS = tuple(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in _UNUSABLE_OPTIMIZERS
)

_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"


def _is_metric(value: Any) -> bool:
    return isinstance(value, str) and check_metric(value) is None


def _is_weighted_sum(value: Any) -> bool:
    sums = isinstance(value, Mapping) and len(value) > 0
    return sums and all(_is_metric(name) and is_number(weight) for name, weight in value.items())


def _is_regularizer(value: Any) -> bool:
    if isinstance(value, str):
        written = rf"l[12]\({_NUMBER}\)|l1_l2\({_NUMBER}, *{_NUMBER}\)"
        return re.fullmatch(written, value) is not None
    return is_number(value) and value >= 0


_TASK = AnyOf(one_of(*TASKS), ListOf(one_of(*TASKS), 1, "a list of such"))
_LOSS = AnyOf(one_of(*LOSSES), ListOf(one_of(*LOSSES), 1, "a list of such"))
_METRIC = Kind("a metric", _is_metric, str)
_METRICS = ListOf(_METRIC, least=1, expected="a non-empty list of metrics")
_MONITOR = AnyOf(_METRIC, Kind("a mapping of metrics to weights", _is_weighted_sum, Mapping))
_OPTIMIZER = AnyOf(
    Kind("adam", lambda value: isinstance(value, str) and value.lower() == "adam"),
    name_of("optimizer", OPTIMIZERS),
)
_REGULARIZER = Kind("a number >= 0, 'l1(x)', 'l2(x)' or 'l1_l2(x,y)'", _is_regularizer)
_EVAL_STEPS = AnyOf(
    whole(1), Kind("a fraction of an epoch < 1", lambda value: is_number(value) and 0 < value < 1)
)
_BETWEEN = Kind("a number between 0 and 1", lambda value: is_number(value) and 0 < value < 1)
_COLUMNS = Kind("columns, each a mapping with a name", lambda value: isinstance(value, list | dict))

DATASET_KEYS: dict[str, Key] = {
    "dataset_id": Key(
        FILE_NAME, "Name of the data set, and of its folder of encoded files", REQUIRED
    ),
    "data_root": Key(PATH, "Folder of the encoded data sets", "./data/"),
    "data_format": Key(DATA_FORMAT, "Format of the data files", REQUIRED),
    "train_data": Key(PATH, "Training data: a file or a folder", REQUIRED),
    "valid_data": Key(PATH, "Validation data"),
    "test_data": Key(PATH, "Test data"),
    "feature_cols": Key(_COLUMNS, "Feature columns: name, type, dtype and options of each"),
    "label_col": Key(_COLUMNS, "Label column: name and dtype"),
    "weight_col": Key(TEXT, "Column with the weight of each row in loss and metrics, 0 or more"),
    "feature_processor": Key(
        TEXT, "Module of a FuxiCTR dataset class, or module:Class, for preprocess"
    ),
    "rebuild_dataset": Key(FLAG, "False uses the encoded files that are there", True),
    **ENCODING_KEYS,
}

TRAINING_KEYS: dict[str, Key] = {
    "model": Key(TEXT, "Name of the model, or package.module:Class", REQUIRED),
    "model_id": Key(TEXT, "Name of the experiment; set to the expid"),
    "model_root": Key(PATH, "Folder of the runs", "./checkpoints/"),
    "task": Key(_TASK, "What is predicted, of several labels a list", "binary_classification"),
    "loss": Key(_LOSS, "Loss of the prediction, of several labels a list", "binary_crossentropy"),
    "optimizer": Key(_OPTIMIZER, "Name of a torch optimizer", "adam"),
    "learning_rate": Key(POSITIVE, "Learning rate at the start", 1e-3),
    "reduce_lr_on_plateau": Key(FLAG, "Divide it by 10 when the monitor gets no better", True),
    "batch_size": Key(whole(1, 2**31 - 1), "Rows per step", 4096),
    "epochs": Key(whole(1), "Epochs at most", 100),
    "shuffle": Key(FLAG, "Shuffle the training rows each epoch", True),
    "seed": Key(whole(0, 2**32 - 1), "Seed of initialisation, dropout and shuffling", 2023),
    "gpu": Key(whole(-1), "Index of the GPU, -1 for the CPU", -1),
    "storage": Key(
        one_of(*STORAGES),
        "Where rows wait: in memory, on the gpu, or streamed from the file; auto takes what fits",
        "auto",
    ),
    "memory_budget": Key(
        whole(1), "Bytes up to which auto holds a split, larger ones are streamed", MEMORY_BUDGET
    ),
    "metrics": Key(_METRICS, "Metrics of the final evaluation", ["AUC", "logloss"]),
    "monitor": Key(_MONITOR, "Metric, or weighted sum of metrics, that is monitored", "AUC"),
    "monitor_mode": Key(one_of("max", "min"), "Whether more or less of it is better", "max"),
    "early_stop_patience": Key(whole(1), "Evaluations without progress before stopping", 2),
    "eval_steps": Key(_EVAL_STEPS, "Steps between evaluations, null for an epoch"),
    "checkpoint_minutes": Key(
        AnyOf(POSITIVE, NULL), "Minutes between checkpoints of the full state, null for none", 10
    ),
    "checkpoint_steps": Key(whole(1), "Steps between checkpoints of the full state, null for none"),
    "average_weights": Key(
        _BETWEEN,
        "Keep weights averaged over the steps: what a step leaves of the average, less at first",
    ),
    "average_start": Key(
        AnyOf(whole(0), one_of(LEARNING_RATE_DROP)),
        f"Steps before averaging begins, or {LEARNING_RATE_DROP}, the first one (null: 0)",
    ),
    "pos_weight": Key(POSITIVE, "Factor of the loss of positive rows, as torch's; null for none"),
    "negative_sampling": Key(
        _BETWEEN, "Share of the negative rows to train on; predictions are corrected back"
    ),
    "calibration": Key(
        one_of(*METHODS), "Correct probabilities after training, on validation data: method or null"
    ),
    "continue_from": Key(
        PATH, "Finished run to train on from, its vocabularies grown by the new data's values"
    ),
    "refit_normalizers": Key(
        FLAG, "With continue_from: normalise numbers by the new data, not as the run did"
    ),
    "keep_optimizer": Key(
        FLAG, "Keep the optimizer's state with the weights; with continue_from, take over the run's"
    ),
    "save_best_only": Key(FLAG, "Keep the best weights, not the last", True),
    "embedding_regularizer": Key(_REGULARIZER, "L1/L2 of embedding tables"),
    "net_regularizer": Key(_REGULARIZER, "L1/L2 of all other weights"),
    "max_gradient_norm": Key(POSITIVE, "Gradients are clipped to this norm", 10.0),
    "group_id": Key(TEXT, "Column that groups rows for gAUC and the like"),
    "use_features": Key(TEXTS, "Features to use, null for all"),
    "feature_specs": Key(ListOf(OVERRIDE), "Overrides of the feature map's specifications"),
    "sync_batch_norm": Key(FLAG, "With several workers: batch norm over the rows of all", True),
    "table_sharding": Key(
        one_of(*SHARDINGS),
        "Divide embedding tables among workers by TorchRec: row_wise, table_wise, auto (its plan)",
    ),
    "table_optimizer": Key(
        one_of(*TABLE_OPTIMIZERS),
        "Rule of divided tables: row_wise_adagrad (if null), adagrad, sgd, or on GPUs adam",
    ),
    "table_learning_rate": Key(POSITIVE, "Learning rate of divided tables, null for learning_rate"),
    "trackers": Key(
        ListOf(one_of(*TRACKERS)), "Where losses and metrics are shown: tensorboard, mlflow, wandb"
    ),
    "tensorboard": Key(FLAG, "The same as trackers: [tensorboard]", False),
    "verbose": Key(whole(0), "1 shows progress bars on a terminal", 1),
}

FAST_KEYS: dict[str, Key] = {
    "fast": Key(FLAG, "Fast mode: on a CPU fast_dropout, on a GPU bf16 and cuda_graphs", False),
    "precision": Key(one_of(*PRECISIONS), "Matrix products in fp32, tf32 (GPU) or bf16 (autocast)"),
    "fast_dropout": Key(FLAG, "Dropout masks on a CPU from a faster generator"),
    "sparse_embeddings": Key(
        FLAG, "Update and regularise only the embeddings a batch has, by lazy Adam"
    ),
    "compile": Key(FLAG, "Compile the forward pass with torch.compile"),
    "cuda_graphs": Key(FLAG, "Record a step on a GPU once, and replay it; not measured on one yet"),
    "cowclip": Key(FLAG, "Clip embedding gradients row by row, for large batches"),
    "cowclip_batch_size": Key(
        whole(1),
        "Batch size that learning rate and regularizers are given for: CowClip scales them from it",
    ),
}

IGNORED: dict[str, str] = {
    "data_block_size": "rows per encoded part: one h5 file holds all, read in blocks",
    "partition_block_size": "its earlier name",
    "streaming": "whether parts are loaded one by one: h5 files are always read in blocks",
    "use_hdf5": "h5 files in place of npz: files are always h5",
    "num_workers": "loader processes: threads prepare the next batches",
    "workers": "its earlier name",
    "buffer_size": "rows of its shuffle buffer",
    "pickle_feature_encoder": "a pickle of the encoder: encoder.json holds it, and no code",
    "debug_mode": "a random number in a tuned experiment's name",
    "debug": "its earlier name",
    "every_x_epochs": "epochs between evaluations: there is one after each, or every eval_steps",
    "eval_interval": "its other name",
    "ordered_features": "an order of the fields: it is that of feature_cols",
}
"""Keys of FuxiCTR without effect here, and why."""

KEYS: dict[str, Key] = DATASET_KEYS | TRAINING_KEYS | FAST_KEYS
DEFAULTS = {
    key: entry.default
    for key, entry in KEYS.items()
    if entry.default is not REQUIRED and entry.default is not None
} | dict.fromkeys(("valid_data", "test_data"))
"""What keys have that are not given, but for those that are nothing then."""

_FLOATS = (
    "learning_rate",
    "table_learning_rate",
    "embedding_regularizer",
    "net_regularizer",
    "max_gradient_norm",
)


def wanted_trackers(params: Mapping[str, Any]) -> list[str]:
    """Return the trackers that settings ask for, each once."""
    also = ["tensorboard"] if params["tensorboard"] else []
    return list(dict.fromkeys([*(params.get("trackers") or []), *also]))


def normalized(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn whole and YAML 1.1's text numbers (``1e-3``) of float keys into floats.

    FuxiCTR ignores a regularizer that is not a float.
    """
    result = dict(params)
    result |= {key: None for key in ("valid_data", "test_data") if result.get(key) == ""}
    for key in _FLOATS:
        value = result.get(key)
        if (is_whole(value) and abs(value) < 2**53) or (
            isinstance(value, str) and re.fullmatch(_NUMBER, value)
        ):
            result[key] = float(value)
    return result
