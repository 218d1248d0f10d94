"""FuxiCTR's feature map, read with its errors found first."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.datasets.encode import EncodedDataset
from fuxictr_tf4ctr.datasets.feature_specs import check_feature_encoder
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import unknown

LOG = logging.getLogger(__name__)


def load_feature_map(dataset: EncodedDataset | str | Path, params: Mapping[str, Any]) -> FeatureMap:
    """Load the feature map of an encoded data set.

    Args:
        dataset: What :func:`~fuxictr_tf4ctr.datasets.encode_dataset` returned, or the folder
            that holds ``feature_map.json``.
        params: FuxiCTR's parameters; dataset_id, embedding_dim, group_id, use_features,
            feature_specs and, for a FuxiCTR 1.x map, label_col are heeded.

    Raises:
        DataError: The file is missing or is no feature map, or belongs to another data set.
        SettingsError: ``params`` names a feature it does not have, or a ``feature_encoder`` that
            FuxiCTR must not evaluate.
    """
    data_dir = dataset.data_dir if isinstance(dataset, EncodedDataset) else Path(dataset)
    path = data_dir / "feature_map.json"
    content = _read(path)
    if content.get("dataset_id") != params["dataset_id"]:
        raise DataError(
            f"{path}: made for dataset_id {content.get('dataset_id')!r}, "
            f"the settings say {params['dataset_id']!r}"
        )
    feature_map = FeatureMap(params["dataset_id"], str(data_dir))
    if "feature_specs" in content:
        content = _from_version_1(path, content, params)
        _check_names(path, content, params)
        _load_converted(feature_map, content, params)
    else:
        _check_names(path, content, params)
        feature_map.load(str(path), dict(params))
    for name, spec in feature_map.features.items():
        check_feature_encoder(spec.get("feature_encoder"), f"{path}: {name}: feature_encoder")
    # FuxiCTR counts the fields before it leaves out those that use_features does not name.
    feature_map.num_fields = feature_map.get_num_fields()
    return feature_map


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; an encoded data set has its feature_map.json there"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); encode again") from error
    if not isinstance(content, dict) or not ("features" in content or "feature_specs" in content):
        raise DataError(f"{path}: is no feature map, it lists no features; encode again")
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


def _load_converted(
    feature_map: FeatureMap, content: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    # FuxiCTR loads from a file alone.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feature_map.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        feature_map.load(str(path), dict(params))
