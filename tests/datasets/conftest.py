"""Raw data sets to encode, and encoded ones to load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import FEATURES, encoded_columns, small_params, store


@pytest.fixture
def params(tmp_path: Path) -> dict[str, Any]:
    """FuxiCTR's parameters for the small raw data set."""
    return small_params(tmp_path)


@pytest.fixture
def plain_params(tmp_path: Path) -> dict[str, Any]:
    """One tiny csv file, one categorical column, no other splits: for what goes wrong."""
    path = tmp_path / "plain.csv"
    path.write_text("color,click\nred,1\nblue,0\nred,0\n")
    return {
        "dataset_id": "plain",
        "data_root": str(tmp_path / "data"),
        "data_format": "csv",
        "train_data": str(path),
        "feature_cols": [{"name": "color", "dtype": "str", "type": "categorical"}],
        "label_col": {"name": "click", "dtype": "float"},
    }


@pytest.fixture
def encoded(tmp_path: Path) -> Callable[..., Path]:
    """Write ``feature_map.json`` and ``train.h5`` into a folder; columns given replace some."""

    def write(rows: int = 20, drop: str | None = None, **replaced: np.ndarray) -> Path:
        content = {"dataset_id": "made", "labels": ["click"], "features": [FEATURES]}
        (tmp_path / "feature_map.json").write_text(json.dumps(content))
        columns = encoded_columns(rows) | replaced
        columns.pop(drop, None)
        return store(tmp_path / "train.h5", columns)

    return write
