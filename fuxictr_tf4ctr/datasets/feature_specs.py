"""What a feature column may say in a dataset config, checked before FuxiCTR evaluates it."""

import ast
import copy
from collections.abc import Iterable, Mapping
from typing import Any

from fuxictr.pytorch import layers
from torch import nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown

# "list" is how FuxiCTR declares the list column behind a feature of type embedding.
DTYPES = ("str", "int", "float", "list")
TYPES = ("categorical", "sequence", "numeric", "embedding", "meta")
NORMALIZERS = ("StandardScaler", "MinMaxScaler")
CATEGORY_PROCESSORS = ("quantile_bucket", "hash_bucket")
PRETRAINED_SUFFIXES = (".h5", ".npz", ".parquet")

_ENCODER_MODULES = {"layers": layers, "nn": nn}
# How FuxiCTR spells "no encoder" for a sequence, besides YAML's null.
_NO_ENCODER = ("null", "None", "none")


def check_dtype(value: Any, where: str = "dtype") -> None:
    """Refuse a ``dtype`` that is not one of FuxiCTR's names; FuxiCTR would evaluate it.

    Args:
        value: The name, or the Python type itself.
        where: Where it stands, for the message.

    Raises:
        SettingsError: It is something else.
    """
    name = value.__name__ if isinstance(value, type) else value
    if name not in DTYPES:
        raise SettingsError(f"{where}: dtype {value!r} must be one of {', '.join(DTYPES)}")


def check_feature_encoder(value: Any, where: str = "feature_encoder") -> None:
    """Refuse a ``feature_encoder`` that is more than one layer called with plain values.

    FuxiCTR evaluates the text as Python. Allowed are ``layers.<Name>(...)`` and ``nn.<Name>(...)``
    with literal arguments, where Name is a module of fuxictr.pytorch.layers or torch.nn.

    Args:
        value: One such call, a list of them, or None.
        where: Where it stands, for the message.

    Raises:
        SettingsError: It is something else.
    """
    if value is None:
        return
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, str) or not _is_layer_call(call):
            raise SettingsError(
                f"{where}: {call!r} must read layers.<Name>(...) or nn.<Name>(...), with a "
                "layer of fuxictr.pytorch.layers or torch.nn and plain values as arguments"
            )


def _is_layer_call(text: str) -> bool:
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    match expression:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
            layer = getattr(_ENCODER_MODULES.get(module), name, None)
            is_layer = isinstance(layer, type) and issubclass(layer, nn.Module)
            return is_layer and _has_literal_arguments(expression)
    return False


def _has_literal_arguments(call: ast.Call) -> bool:
    if any(keyword.arg is None for keyword in call.keywords):  # **mapping
        return False
    try:
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(argument)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def complete_columns(
    feature_cols: Any, label_col: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Check the column entries of a dataset config and complete them, one per column.

    Args:
        feature_cols: FuxiCTR's ``feature_cols``; an entry may name several columns.
        label_col: FuxiCTR's ``label_col``, one entry or a list.

    Returns:
        Feature columns and label columns, new dictionaries with one ``name``, ``active`` and
        ``dtype`` each. What FuxiCTR does to them does not reach the caller's.

    Raises:
        SettingsError: An entry is one FuxiCTR cannot encode; the message names the column.
    """
    features = _one_entry_per_name(feature_cols, "feature_cols")
    labels = _one_entry_per_name(
        label_col if isinstance(label_col, list) else [label_col], "label_col"
    )
    _check_unique([column["name"] for column in features + labels])
    for label in labels:
        _check_number(label)
    earlier: list[str] = []
    for column in features:
        column.setdefault("active", True)
        if column.get("category_processor", "") is None:
            del column["category_processor"]
        _check_feature(column, earlier)
        if column["active"] is False:
            # FuxiCTR looks for the feature of every pretrained embedding, active or not.
            column.pop("pretrained_emb", None)
        elif column["type"] in ("categorical", "sequence") and "category_processor" not in column:
            earlier.append(column["name"])
    return features, labels


def _one_entry_per_name(entries: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not entries:
        raise SettingsError(f"{where}: must be a list of columns, not {entries!r}")
    columns = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise SettingsError(f"{where}: {entry!r} must be a mapping with a name")
        names = entry["name"] if isinstance(entry["name"], list) else [entry["name"]]
        for name in names:
            if not isinstance(name, str) or not name:
                raise SettingsError(f"{where}: {name!r} is no column name; quote it")
            columns.append(_one_column(entry, name))
    return columns


def _one_column(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    column = copy.deepcopy(dict(entry)) | {"name": name}
    if "dtype" not in column:
        raise SettingsError(f"column {name!r}: dtype is missing; one of {', '.join(DTYPES)}")
    check_dtype(column["dtype"], f"column {name!r}")
    if isinstance(column["dtype"], type):
        column["dtype"] = column["dtype"].__name__
    return column


def _check_unique(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SettingsError(f"column {name!r} is listed twice in feature_cols and label_col")
        seen.add(name)


def _check_number(column: Mapping[str, Any]) -> None:
    if column["dtype"] not in ("int", "float"):
        raise SettingsError(
            f"column {column['name']!r}: its dtype must be int or float, not {column['dtype']}"
        )


def _check_feature(column: Mapping[str, Any], earlier: list[str]) -> None:
    name = column["name"]
    kind = column.get("type")
    if kind is None:
        raise SettingsError(f"column {name!r}: type is missing; one of {', '.join(TYPES)}")
    if kind not in TYPES:
        raise SettingsError(f"column {name!r}: {unknown('type', kind, TYPES)}")
    if kind == "numeric":
        _check_number(column)
        _check_normalizer(column)
    if kind == "embedding" and not _is_count(column.get("pretrain_dim"), 1):
        raise SettingsError(f"column {name!r}: type embedding needs pretrain_dim, its width")
    if kind in ("categorical", "sequence"):
        _check_vocabulary(column, earlier)
    if not (kind == "sequence" and column.get("feature_encoder") in _NO_ENCODER):
        check_feature_encoder(column.get("feature_encoder"), f"column {name!r}: feature_encoder")


def _check_normalizer(column: Mapping[str, Any]) -> None:
    if "normalizer" in column and column["normalizer"] not in NORMALIZERS:
        problem = unknown("normalizer", column["normalizer"], NORMALIZERS)
        raise SettingsError(f"column {column['name']!r}: {problem}")


def _check_vocabulary(column: Mapping[str, Any], earlier: list[str]) -> None:
    name = column["name"]
    if column.get("category_processor") is not None:
        _check_buckets(column)
    if column.get("remap", True) is False:
        raise SettingsError(f"column {name!r}: FuxiCTR 2.3 knows remap: False for type meta only")
    if not _is_count(column.get("min_categr_count", 1), 1):
        raise SettingsError(f"column {name!r}: min_categr_count must be an integer >= 1")
    if not _is_count(column.get("max_len", 0), 0):
        raise SettingsError(f"column {name!r}: max_len must be an integer >= 0")
    if column.get("padding", "post") not in ("pre", "post"):
        raise SettingsError(f"column {name!r}: padding must be pre or post")
    splitter = column.get("splitter", "^")
    if not isinstance(splitter, str) or not splitter:
        raise SettingsError(f"column {name!r}: splitter {splitter!r} must be a text")
    shared = column.get("share_embedding")
    if "share_embedding" in column and shared not in earlier:
        raise SettingsError(
            f"column {name!r}: share_embedding {shared!r} must name an active categorical or "
            "sequence column listed before it"
        )
    pretrained = column.get("pretrained_emb", ".h5")
    if not str(pretrained).endswith(PRETRAINED_SUFFIXES):
        raise SettingsError(
            f"column {name!r}: pretrained_emb {pretrained!r} must be one of "
            f"{', '.join(PRETRAINED_SUFFIXES)}"
        )


def _check_buckets(column: Mapping[str, Any]) -> None:
    name, kind = column["name"], column["category_processor"]
    if kind not in CATEGORY_PROCESSORS:
        problem = unknown("category_processor", kind, CATEGORY_PROCESSORS)
        raise SettingsError(f"column {name!r}: {problem}")
    if column["type"] != "categorical":
        raise SettingsError(f"column {name!r}: category_processor is for type categorical")
    if kind == "quantile_bucket":
        _check_number(column)
    if not _is_count(column.get("num_buckets", 2), 2):
        raise SettingsError(f"column {name!r}: num_buckets must be an integer >= 2")
    for key in ("share_embedding", "pretrained_emb"):
        if key in column:
            raise SettingsError(f"column {name!r}: buckets have no vocabulary, so no {key}")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
