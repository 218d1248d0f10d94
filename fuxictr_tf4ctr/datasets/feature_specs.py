"""What a feature column may say in a dataset config, checked before FuxiCTR evaluates it."""

import ast
import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fuxictr.pytorch import layers
from torch import nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import shown
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    FLAG,
    PATH,
    TEXT,
    AnyOf,
    Key,
    Kind,
    ListOf,
    Record,
    name_of,
    one_of,
    whole,
)

# "list" is how FuxiCTR declares the list column behind a feature of type embedding.
DTYPES = ("str", "int", "float", "list")
TYPES = ("categorical", "sequence", "numeric", "embedding", "meta")
NORMALIZERS = ("StandardScaler", "MinMaxScaler")
CATEGORY_PROCESSORS = ("quantile_bucket", "hash_bucket")
PRETRAINED_SUFFIXES = (".h5", ".npz", ".parquet")

# What earlier versions of FuxiCTR called a key of a column.
_OLD_KEYS = {"na_value": "fill_na", "encoder": "feature_encoder"}
# Absurd sizes, found before memory is asked for them.
_WIDEST, _LONGEST = 2**16, 2**20

_ENCODER_MODULES = {"layers": layers, "nn": nn}
# How FuxiCTR spells "no encoder" for a sequence, besides YAML's null.
_NO_ENCODER = ("null", "None", "none")


def check_dtype(value: Any, where: str = "dtype") -> None:
    """Refuse a ``dtype`` that is not one of FuxiCTR's names; FuxiCTR would evaluate it.

    Raises:
        SettingsError: It is something else.
    """
    name = value.__name__ if isinstance(value, type) else value
    if not isinstance(name, str) or name not in DTYPES:
        raise SettingsError(f"{where}: dtype {shown(value)} must be one of {', '.join(DTYPES)}")


def check_feature_encoder(value: Any, where: str = "feature_encoder") -> None:
    """Refuse a ``feature_encoder`` that is more than one layer called with plain values.

    FuxiCTR evaluates the text as Python. Allowed are ``layers.<Name>(...)`` and ``nn.<Name>(...)``
    with literal arguments, where Name is a module of fuxictr.pytorch.layers or torch.nn.

    Args:
        value: One such call, a list of them, or None.

    Raises:
        SettingsError: It is something else.
    """
    if value is None:
        return
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, str) or not _is_layer_call(call):
            raise SettingsError(
                f"{where}: {shown(call)} must read layers.<Name>(...) or nn.<Name>(...), with a "
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


def _is_encoder(value: Any) -> bool:
    check_feature_encoder(value, shown(value))
    return True


ENCODER = Kind("a layer", _is_encoder, (str, list))
_TEXT_OR_NONE = Kind("a text", lambda value: isinstance(value, str))
_SHARED = {
    "name": TEXT,
    "active": Key(FLAG, default=True),
    "dtype": name_of("dtype", DTYPES),
    "preprocess": Key(TEXT),
    "fill_na": Key(Kind("a text or a number", lambda value: isinstance(value, str | int | float))),
    "remap": Key(FLAG, default=True),
}
# The type of weight_col's entry among the labels
WEIGHT = "weight_col"
_LABEL = Record(_SHARED | {"type": Key(TEXT), "source": Key(ANYTHING), "positive": Key(TEXT)})
_FEATURE = _SHARED | {
    "type": name_of("type", TYPES),
    "source": Key(AnyOf(_TEXT_OR_NONE, ListOf(_TEXT_OR_NONE))),
    "min_categr_count": Key(whole(1), default=1),
    "normalizer": Key(name_of("normalizer", NORMALIZERS)),
    "category_processor": Key(name_of("category_processor", CATEGORY_PROCESSORS)),
    "num_buckets": Key(whole(2, _LONGEST), default=10),
    "splitter": Key(TEXT, default="^"),
    "max_len": Key(whole(0, _LONGEST), default=0),
    "padding": Key(one_of("pre", "post"), default="post"),
    "feature_encoder": Key(AnyOf(one_of(*_NO_ENCODER), ENCODER)),
    "embedding_dim": Key(whole(1, _WIDEST)),
    "emb_output_dim": Key(whole(1, _WIDEST)),
    "share_embedding": Key(TEXT),
    "pretrained_emb": Key(PATH),
    "pretrain_dim": Key(whole(1, _WIDEST)),
    "pretrain_usage": Key(one_of("init", "sum", "concat"), default="init"),
    "freeze_emb": Key(FLAG, default=True),
    "vocab_size": Key(whole(1)),
}
COLUMN_KEYS = tuple(_FEATURE)
_NULLS = ("normalizer", "embedding_dim", "emb_output_dim", "share_embedding", "pretrained_emb")


def complete_columns(
    feature_cols: Any, label_col: Any, feature_processor: str | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Check the column entries of a dataset config and complete them, one per column.

    Args:
        feature_cols: FuxiCTR's ``feature_cols``; an entry may name several columns.
        label_col: FuxiCTR's ``label_col``, one entry or a list.
        feature_processor: The data set's processor; one of the user's may read further keys.

    Returns:
        Feature columns and label columns, new dictionaries with one ``name``, ``active`` and
        ``dtype`` each. What FuxiCTR does to them does not reach the caller's.

    Raises:
        SettingsError: Entries are such as FuxiCTR cannot encode; the message has a line for each.
    """
    problems: list[str] = []
    features = _one_entry_per_name(feature_cols, "feature_cols", problems)
    labels = label_col if isinstance(label_col, list) else [label_col]
    labels = _one_entry_per_name(labels, "label_col", problems)
    for column in features:
        for key in _NULLS:
            if column.get(key, "") is None:  # which FuxiCTR would take for a name, a number, a file
                del column[key]
    times = Counter(column["name"] for column in features + labels)
    problems += [
        f"column {name!r} is listed twice in feature_cols, label_col and weight_col"
        for name, count in times.items()
        if count > 1
    ]
    told: dict[str, list[str]] = {}  # problem -> its columns: an entry may name many
    for label in labels:
        _tell(label, _LABEL.problems(label, _where(label)) or _label_problems(label), told)
    own = feature_processor and not feature_processor.startswith("fuxictr.")
    kind = Record(_FEATURE, others=ANYTHING if own else None)
    earlier: list[str] = []
    for column in features:
        column.setdefault("active", True)
        found = kind.problems(column, _where(column)) or _feature_problems(column, earlier)
        _tell(column, found, told)
        if column["active"] is False:
            # FuxiCTR looks for the feature of every pretrained embedding, active or not.
            column.pop("pretrained_emb", None)
        elif column.get("type") in ("categorical", "sequence") and (
            "category_processor" not in column
        ):
            earlier.append(column["name"])
    problems += [f"{_listed(names)}: {problem}" for problem, names in told.items()]
    if problems:
        raise SettingsError("\n".join(problems))
    return features, labels


def label_entries(params: Mapping[str, Any]) -> Any:
    """Return the entries of ``label_col``, and one of ``weight_col``, kept as labels are."""
    labels, weight = params.get("label_col"), params.get("weight_col")
    if weight is None or labels is None:
        return labels
    # A missing weight is read as one that is refused.
    entry = {"name": weight, "dtype": "float", "type": WEIGHT, "fill_na": -1}
    return [*(labels if isinstance(labels, list) else [labels]), entry]


def _where(column: Mapping[str, Any]) -> str:
    return f"column {shown(column['name'])}: "


def _tell(column: Mapping[str, Any], problems: list[str], told: dict[str, list[str]]) -> None:
    for problem in problems:
        told.setdefault(problem.removeprefix(_where(column)), []).append(shown(column["name"]))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"column{'s' if names[1:] else ''} {', '.join(names[:3])}{more}"


def _one_entry_per_name(entries: Any, where: str, problems: list[str]) -> list[dict[str, Any]]:
    """Return the entries, one per column, in FuxiCTR's present spelling; note what is none."""
    if not isinstance(entries, list | tuple) or not entries:
        problems.append(f"{where}: must be a list of columns, not {shown(entries)}")
        return []
    columns = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "name" not in entry:
            problems.append(f"{where}: {shown(entry)} must be a mapping with a name")
            continue
        for name in entry["name"] if isinstance(entry["name"], list | tuple) else [entry["name"]]:
            if isinstance(name, str) and name:
                columns.append(_understood(entry) | {"name": name})
            else:
                problems.append(f"{where}: {shown(name)} is no column name; quote it")
    return columns


def _understood(entry: Mapping[str, Any]) -> dict[str, Any]:
    column = {_OLD_KEYS.get(key, key): copy.deepcopy(value) for key, value in entry.items()}
    if isinstance(column.get("dtype"), type):
        column["dtype"] = column["dtype"].__name__
    if column.get("category_processor", "") is None:
        del column["category_processor"]
    encoder = entry.get("encoder")
    if isinstance(encoder, str) and encoder.isidentifier() and encoder not in _NO_ENCODER:
        column["feature_encoder"] = f"layers.{encoder}()"  # FuxiCTR 1 wrote the bare name
    return column


def _number_problems(column: Mapping[str, Any]) -> list[str]:
    if column["dtype"] in ("int", "float"):
        return []
    return [f"{_where(column)}its dtype must be int or float, not {column['dtype']}"]


def _label_problems(label: Mapping[str, Any]) -> list[str]:
    if label.get("positive") and label.get("preprocess"):
        return [f"{_where(label)}preprocess makes the label: leave positive out"]
    return _number_problems(label)


def _feature_problems(column: Mapping[str, Any], earlier: list[str]) -> list[str]:
    """List what does not go together in a column whose keys are right one by one."""
    where, kind = _where(column), column["type"]
    if kind == "numeric":
        return _number_problems(column)
    problems = []
    if kind == "embedding" and column.get("pretrain_dim") is None:
        problems.append(f"{where}type embedding needs pretrain_dim, its width")
    if kind != "sequence" and column.get("feature_encoder") in _NO_ENCODER:
        problems.append(f"{where}feature_encoder: only type sequence can go without one")
    if kind not in ("categorical", "sequence"):
        return problems
    if kind == "sequence" and column["dtype"] in ("int", "float") and not column.get("preprocess"):
        problems.append(f"{where}type sequence needs dtype str or list, not {column['dtype']}")
    if "category_processor" in column:
        problems += _bucket_problems(column)
    if column.get("remap", True) is False:
        problems.append(f"{where}FuxiCTR 2.3 knows remap: False for type meta only")
    shared = column.get("share_embedding")
    if shared is not None and shared not in earlier:
        problems.append(
            f"{where}share_embedding {shared!r} must name an active categorical or "
            "sequence column listed before it"
        )
    pretrained = column.get("pretrained_emb")
    if pretrained is not None and not pretrained.endswith(PRETRAINED_SUFFIXES):
        expected = ", ".join(PRETRAINED_SUFFIXES)
        problems.append(f"{where}pretrained_emb {shown(pretrained)} must be one of {expected}")
    return problems


def _bucket_problems(column: Mapping[str, Any]) -> list[str]:
    where = _where(column)
    if column["type"] != "categorical":
        return [f"{where}category_processor is for type categorical"]
    problems = _number_problems(column) if column["category_processor"] == "quantile_bucket" else []
    return problems + [
        f"{where}buckets have no vocabulary, so no {key}"
        for key in ("share_embedding", "pretrained_emb")
        if key in column
    ]
