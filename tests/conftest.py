"""Fixtures shared by all tests."""

import json
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project."""
    if not SHARED.is_dir():
        pytest.skip("no reference material: the folder 'shared' is not beside the project")
    return SHARED


def make_feature_map(features: dict[str, dict], labels=("label",), dataset_id="tiny", data_dir=""):
    """Build a FuxiCTR FeatureMap from feature specifications."""
    from fuxictr.features import FeatureMap

    feature_map = FeatureMap(dataset_id, str(data_dir))
    feature_map.features.update(features)
    feature_map.labels = list(labels)
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = 8
    feature_map.set_column_index()
    return feature_map


def load_feature_map(path: Path):
    """Read a feature_map.json without FuxiCTR's logging."""
    stored = json.loads(path.read_text())
    features = {name: spec for entry in stored["features"] for name, spec in entry.items()}
    return make_feature_map(features, stored["labels"], stored["dataset_id"])
