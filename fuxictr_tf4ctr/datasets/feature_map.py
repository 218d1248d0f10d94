"""FuxiCTR's feature map, read with its errors found first, and what its columns hold."""

import json
import logging
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.datasets.feature_specs import (
    CATEGORY_PROCESSORS,
    ENCODER,
    TYPES,
    check_feature_encoder,
)
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.fuxictr_imports import no_handler_left
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    FLAG,
    NUMBER,
    TEXT,
    TEXTS,
    AnyOf,
    Key,
    Kind,
    ListOf,
    Record,
    name_of,
    one_of,
    read_json,
    whole,
)

if TYPE_CHECKING:
    from fuxictr_tf4ctr.datasets.encode import EncodedDataset

LOG = logging.getLogger(__name__)


@no_handler_left()
def load_feature_map(
    dataset: "EncodedDataset | str | Path", params: Mapping[str, Any]
) -> FeatureMap:
    """Load the feature map of an encoded data set.

    Args:
        dataset: What :func:`~fuxictr_tf4ctr.datasets.encode_dataset` returned, or the folder
            that holds ``feature_map.json``.
        params: FuxiCTR's parameters; dataset_id, embedding_dim, group_id, use_features,
            feature_specs and, for a FuxiCTR 1.x map, label_col are heeded, and ours weight_col:
            its name is the map's ``weight_col``, and the last of its ``labels``.

    Raises:
        DataError: The file is missing or is no feature map, or belongs to another data set.
        SettingsError: ``params`` names a feature it does not have, or a ``feature_encoder`` that
            FuxiCTR must not evaluate.
    """
    data_dir = Path(getattr(dataset, "data_dir", dataset))
    path = data_dir / "feature_map.json"
    content = read_feature_map(path)
    if content.get("dataset_id") != params["dataset_id"]:
        raise DataError(
            f"{path}: made for dataset_id {content.get('dataset_id')!r}, "
            f"the settings say {params['dataset_id']!r}"
        )
    feature_map = FeatureMap(params["dataset_id"], str(data_dir))
    earlier = "feature_specs" in content
    if earlier:
        content = _from_version_1(path, content, params)
    _check_names(path, content, params)
    if earlier:
        with tempfile.TemporaryDirectory() as folder:  # FuxiCTR loads from a file alone
            converted = Path(folder) / "feature_map.json"
            converted.write_text(json.dumps(content), encoding="utf-8")
            feature_map.load(str(converted), dict(params))
    else:
        feature_map.load(str(path), dict(params))
    for name, spec in feature_map.features.items():
        problems = _SPEC.problems(spec, f"{path}, feature_specs: {name}")
        if problems:
            raise SettingsError("\n".join(problems))
        check_feature_encoder(spec.get("feature_encoder"), f"{path}: {name}: feature_encoder")
    weight_col = feature_map.weight_col = params.get("weight_col")
    if weight_col in feature_map.features or weight_col in feature_map.labels[:1]:
        raise SettingsError(
            f"weight_col {weight_col!r} is a feature or the label: name another column"
        )
    if weight_col is not None and weight_col not in feature_map.labels:
        feature_map.labels = [*feature_map.labels, weight_col]
    # FuxiCTR counts the fields before it leaves out those that use_features does not name.
    feature_map.num_fields = feature_map.get_num_fields()
    return feature_map


class _Spec(Record):
    """A feature's entry, which needs more keys the more its type holds."""

    def problems(self, value: Any, where: str = "") -> list[str]:
        found = super().problems(value, where)
        if found:
            return found
        needed = _NEEDED.get(value.get("category_processor") or value["type"], [])
        return [f"{where}.{key} is missing" for key in needed if value.get(key) is None]


_NEEDED = {
    "categorical": ["vocab_size"],
    "sequence": ["vocab_size", "max_len"],
    "embedding": ["pretrain_dim"],
    "quantile_bucket": ["vocab_size", "boundaries"],
    "hash_bucket": ["vocab_size"],
}
_SPEC = _Spec(
    {
        "type": one_of(*TYPES),
        "vocab_size": Key(whole(1, 2**31 - 1)),
        "max_len": Key(whole(1, 2**16)),
        "pretrain_dim": Key(whole(1, 2**16)),
        "embedding_dim": Key(whole(1, 2**16)),
        "emb_output_dim": Key(whole(1, 2**24)),
        "padding_idx": Key(whole(0)),
        "oov_idx": Key(whole(0)),
        "index": Key(AnyOf(whole(-(2**31)), ListOf(whole(-(2**31))))),
        "share_embedding": Key(TEXT),
        "pretrained_emb": Key(TEXT),
        "pretrain_usage": Key(one_of("init", "sum", "concat")),
        "freeze_emb": Key(FLAG),
        "category_processor": Key(name_of("category_processor", CATEGORY_PROCESSORS)),
        "boundaries": Key(ListOf(NUMBER, least=1)),
    },
    others=ANYTHING,
)
OVERRIDE = Record(
    {
        **_SPEC.keys,
        "name": AnyOf(TEXT, TEXTS),
        "type": Key(one_of(*TYPES)),
        "source": Key(Kind("a text", lambda value: isinstance(value, str))),
        "feature_encoder": Key(ENCODER),
    }
)
"""An entry of the setting ``feature_specs``: the features it names, and keys that models read."""

_SPECS = Record({}, others=_SPEC)
_FEATURE_MAP = Record(
    {"dataset_id": TEXT, "labels": TEXTS, "features": ListOf(_SPECS, least=1)}, others=ANYTHING
)
_FEATURE_MAP_1 = Record({"dataset_id": TEXT, "feature_specs": _SPECS}, others=ANYTHING)
VOCABULARIES = Record(
    {},
    others=Kind(
        "a mapping of tokens to ids, whole numbers from 0",
        lambda value: (
            isinstance(value, Mapping)
            and all(type(i) is int and 0 <= i < 2**31 for i in value.values())
        ),
    ),
)
"""What feature_vocab.json holds: column -> token -> id."""


def read_feature_map(path: Path) -> dict[str, Any]:
    """Read a ``feature_map.json`` of FuxiCTR 2, or of 1.x where it has ``feature_specs``.

    Raises:
        DataError: It is missing, or is no feature map; the message names the key.
    """
    remedy = "encode the data again"
    try:
        content = read_json(path, Record({}, others=ANYTHING), remedy)
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; an encoded data set has its feature_map.json there"
        ) from None
    kind = _FEATURE_MAP_1 if "feature_specs" in content else _FEATURE_MAP
    problems = kind.problems(content, f"{path}: ")
    if not problems and kind is _FEATURE_MAP:
        names = [name for entry in content["features"] for name in entry] + content["labels"]
        twice = [name for name in names if names.count(name) > 1]
        problems = [f"{path}: {name!r} is there twice" for name in twice[:1]]
    if problems:
        raise DataError("\n".join([*problems, remedy]))
    return content


def _from_version_1(
    path: Path, content: dict[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert the map of FuxiCTR 1.x: ``feature_specs`` by name, label not mentioned."""
    LOG.info("Convert the FuxiCTR 1.x feature map %s in memory", path)
    features = []
    for name, spec in content["feature_specs"].items():
        if spec["type"] not in ("categorical", "numeric") or "pretrained_emb" in spec:
            # 1.x pads with the last id, 2.x with id 0; pretrained files differ in layout too.
            raise DataError(
                f"{path}: FuxiCTR 2 cannot use feature {name!r} of a FuxiCTR 1.x data set, only "
                "plain categorical and numeric features; encode the raw data again"
            )
        # The last id, which pads sequences alone: a padding_idx would freeze a row for nothing.
        features.append({name: {k: v for k, v in spec.items() if k != "padding_idx"}})
    label_col = params.get("label_col") or []
    labels = label_col if isinstance(label_col, list) else [label_col]
    if not labels:
        raise SettingsError("label_col is missing; a FuxiCTR 1.x feature map names no label")
    return {
        "dataset_id": content["dataset_id"],
        "total_features": content.get("num_features", 0),
        "labels": [label["name"] for label in labels],
        "features": features,
    }


def _check_names(path: Path, content: dict[str, Any], params: Mapping[str, Any]) -> None:
    known = [name for entry in content["features"] for name in entry]
    used = params.get("use_features") or []
    for name in used:
        if name not in known:
            raise SettingsError(f"use_features: {unknown('feature', name, known)} ({path})")
    served = used or known
    for entry in params.get("feature_specs") or []:
        for name in entry["name"] if isinstance(entry["name"], list) else [entry["name"]]:
            if name not in served:
                raise SettingsError(f"feature_specs: {unknown('feature', name, served)} ({path})")
    group_id = params.get("group_id")
    if group_id is not None and group_id not in served:
        raise SettingsError(f"group_id: {unknown('feature', group_id, served)} ({path})")


LABEL_DTYPE = np.dtype(np.float32)


@cache
def id_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest integer type for ids below ``vocab_size``.

    Only types torch computes with: of the unsigned ones that is uint8 alone.
    """
    for dtype in (np.uint8, np.int16, np.int32):
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def column_dtype(spec: Mapping[str, Any]) -> np.dtype:
    """Return the type a feature's column is kept in, by its entry in the feature map."""
    if spec["type"] in ("categorical", "sequence"):
        return id_dtype(spec["vocab_size"])
    return np.dtype(np.int64 if spec["type"] == "meta" else np.float32)


def row_shape(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of one row of a feature's column: () for a scalar."""
    if spec["type"] == "sequence":
        return (spec["max_len"],)
    if spec["type"] == "embedding":
        return (spec["pretrain_dim"],)
    return ()


def typed_columns(
    path: Path,
    stored: Mapping[str, np.ndarray],
    feature_map: FeatureMap,
    *,
    binary: bool,
    first_row: int = 0,
) -> dict[str, np.ndarray]:
    """Check rows of one file against the feature map and give them their types.

    Args:
        stored: Column -> array as stored, for all features and labels.
        binary: Whether labels must be 0 or 1; weights must be at least 0.

    Returns:
        Column -> array [rows] or [rows, width]: ids in :func:`id_dtype`, the rest float32.

    Raises:
        DataError: Columns differ in shape, an id is outside its
            vocabulary, a number is not finite, a label is not 0 or 1, or a weight is negative.
            Rows count from 0.
    """
    columns = {}
    for name, spec in feature_map.features.items():
        values = _shaped(path, name, stored[name], row_shape(spec))
        if spec["type"] in ("numeric", "embedding"):
            columns[name] = _finite(path, name, values, first_row)
        else:
            _check_ids(path, name, values, spec.get("vocab_size"), first_row)
            columns[name] = values.astype(column_dtype(spec), copy=False)
    for name in feature_map.labels:
        values = _shaped(path, name, stored[name], ())
        if name == getattr(feature_map, "weight_col", None):
            problem = "is no weight, they are 0 or more; a missing one is read as -1"
            _refuse(path, name, values, ~(values >= 0), problem, first_row)
        elif binary:
            no_label = (values != 0) & (values != 1)
            _refuse(path, name, values, no_label, "is no label, they are 0 or 1", first_row)
        columns[name] = _finite(path, name, values, first_row)
    return columns


def check_lengths(path: Path, lengths: Mapping[str, int]) -> int:
    """Return the number of rows of a file.

    Raises:
        DataError: There is no row, or columns differ in length.
    """
    (first, rows), *others = lengths.items()
    for name, other in others:
        if other != rows:
            raise DataError(
                f"{path}: columns differ in length: {first!r} has {rows} rows, "
                f"{name!r} has {other}; write the file again"
            )
    if rows == 0:
        raise DataError(f"{path}: the split is empty, it has columns but no rows")
    return rows


def _shaped(path: Path, name: str, values: np.ndarray, row: tuple[int, ...]) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise DataError(f"{path}: column {name!r} holds {values.dtype}, not numbers")
    shape = (len(values), *row)
    # [rows] and [rows, 1] are the same column: FuxiCTR 2.0 wrote scalars either way.
    if values.size != np.prod(shape):
        raise DataError(
            f"{path}: column {name!r} has shape {values.shape}, the feature map says {shape}"
        )
    return values.reshape(shape)


def _check_ids(
    path: Path, name: str, values: np.ndarray, vocab_size: int | None, first_row: int
) -> None:
    if values.dtype.kind == "f":
        fraction = values != np.floor(values)
        _refuse(path, name, values, fraction, "is no id, ids are whole numbers", first_row)
    if vocab_size is None:  # a meta column: any number identifies a group
        return
    # Two passes say that nothing is wrong; only then is it worth finding what is.
    if values.size == 0 or (values.min() >= 0 and values.max() < vocab_size):
        return
    _refuse(path, name, values, values < 0, "is negative, ids start at 0", first_row)
    _refuse(
        path,
        name,
        values,
        values >= vocab_size,
        f"is outside the vocabulary of {vocab_size} ids; the file and feature_map.json disagree",
        first_row,
    )


def _finite(path: Path, name: str, values: np.ndarray, first_row: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    _refuse(path, name, values, ~np.isfinite(single), "is not a finite float32 number", first_row)
    return single


def _refuse(
    path: Path, name: str, values: np.ndarray, bad: np.ndarray, problem: str, first_row: int
) -> None:
    if bad.any():
        at = np.unravel_index(np.argmax(bad), bad.shape)
        row = first_row + at[0]
        raise DataError(
            f"{path}: column {name!r}, row {row} (counted from 0): {values[at]} {problem}"
        )
