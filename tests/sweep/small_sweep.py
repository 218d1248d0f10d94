"""A data set of eighty rows with its configuration, for sweeps that take no time."""

from pathlib import Path

import yaml

DATASET = {
    "data_root": "encoded/",
    "data_format": "csv",
    "train_data": "raw/train.csv",
    "valid_data": "raw/valid.csv",
    "test_data": "raw/test.csv",
    "min_categr_count": 1,
    "feature_cols": [
        {"name": ["user", "item"], "active": True, "dtype": "str", "type": "categorical"}
    ],
    "label_col": {"name": "label", "dtype": "float"},
}
MODEL = {
    "model": "TF4CTR",
    "dataset_id": "mine",
    "metrics": ["AUC", "logloss"],
    "batch_size": 20,
    "epochs": 1,
    "embedding_dim": 4,
    "simple_hidden_units": [4],
    "complex_hidden_units": [4],
    "c": 0.8,
}
BASE = {"debug_mode": False, "seed": 7, "verbose": 0}


def write_project(folder: Path, model=None, dataset=None) -> Path:
    """Write raw files and ``config/`` into a folder and return the folder."""
    (folder / "raw").mkdir(exist_ok=True)
    rows = [f"{int((i * 7) % 11 < 5)},u{i % 9},i{i % 5}" for i in range(80)]
    for split, part in (("train", rows), ("valid", rows[::2]), ("test", rows[1::2])):
        (folder / "raw" / f"{split}.csv").write_text("\n".join(["label,user,item", *part]) + "\n")
    config = folder / "config"
    config.mkdir(exist_ok=True)
    sections = {"Base": BASE, "mine_exp": MODEL | (model or {})}
    (config / "model_config.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    datasets = {"mine": DATASET | (dataset or {})}
    (config / "dataset_config.yaml").write_text(yaml.safe_dump(datasets, sort_keys=False))
    return folder


def write_tuner(folder: Path, space, name="grid", **more) -> Path:
    """Write a tuner file on the experiment of :func:`write_project` and return its path."""
    content = {"base_config": "./config/", "base_expid": "mine_exp", "dataset_id": "mine"}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content | {"tuner_space": space} | more, sort_keys=False))
    return file
