"""Small runs that tests of comparison and report share."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.runs.experiment import run_experiment
from fuxictr_tf4ctr.settings.reading import load_settings

_TWIN = {"simple_hidden_units": [4], "complex_hidden_units": [8], "embedding_dim": 4}
_EXPIDS = {
    "twin": {"model": "TF4CTR", **_TWIN},
    "gated": {"model": "TF4CTR", "sample_selection": "GM", "fusion": "VF", **_TWIN},
    "base": {
        "model": "TF4CTR", "twin_focus": False, "sample_selection": "none", "fusion": "sum",
        **_TWIN,
    },
    "plain": {"model": "trained_runs:OneStream", "embedding_dim": 4},
}  # fmt: skip


class OneStream(BaseModel):
    """A model of FuxiCTR's kind that is no twin."""

    def __init__(self, feature_map, embedding_dim=4, **params):
        super().__init__(feature_map, **params)
        self.embedding = FeatureEmbedding(feature_map, embedding_dim)
        width = feature_map.sum_emb_out_dim()
        self.mlp = MLP_Block(width, hidden_units=[4], output_dim=1)
        self.compile(params["optimizer"], params["loss"], params["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        """Predict a batch."""
        e = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.output_activation(self.mlp(e))}


def train_runs(folder: Path) -> dict[str, Path]:
    """Train one small run of each kind on data of their own; the result names their folders."""
    rng = np.random.default_rng(0)
    for split, rows in (("train", 900), ("valid", 200), ("test", 300)):
        _write_csv(folder / f"{split}.csv", rows, rng)
    config = folder / "config"
    config.mkdir()
    dataset = {
        "data_format": "csv",
        "data_root": str(folder / "data"),
        **{f"{split}_data": str(folder / f"{split}.csv") for split in ("train", "valid", "test")},
        "group_id": "user",
        "feature_cols": [
            {"name": ["user", "<i>tem&"], "dtype": "str", "type": "categorical"},
            {"name": "price", "dtype": "float", "type": "numeric"},
        ],
        "label_col": {"name": "click", "dtype": "float"},
    }
    (config / "dataset_config.yaml").write_text(yaml.safe_dump({"shop": dataset}))
    common = {
        "dataset_id": "shop", "batch_size": 100, "learning_rate": 0.01, "epochs": 3,
        "early_stop_patience": 9, "metrics": ["AUC", "logloss", "gAUC"], "verbose": 0,
        "model_root": str(folder / "runs"),
    }  # fmt: skip
    sections = {"Base": common, **_EXPIDS}
    (config / "model_config.yaml").write_text(yaml.safe_dump(sections))
    return {name: run_experiment(load_settings(name, config)).folder.resolve() for name in _EXPIDS}


def changed_copy(run: Path, target: Path, **changes: object) -> Path:
    """Copy a run with entries of its run.json replaced."""
    shutil.copytree(run, target)
    file = target / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return target


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of finished runs: "twin", "gated" (another twin), "base" and "plain"."""
    return train_runs(tmp_path_factory.mktemp("runs"))


def _write_csv(path: Path, rows: int, rng: np.random.Generator) -> None:
    user, item = rng.integers(0, 12, rows), rng.integers(0, 9, rows)
    price = rng.normal(size=rows)
    score = np.sin(user * 1.7) + np.cos(user * item) + price
    click = (score + rng.normal(size=rows) > 0.3).astype(int)
    lines = [f"{c},u{u},i{i},{p:.4f}" for c, u, i, p in zip(click, user, item, price, strict=True)]
    path.write_text("\n".join(["click,user,<i>tem&,price", *lines]) + "\n")
