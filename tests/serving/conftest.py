"""Finished runs to work with: the demo, Frappe, and one with every kind of column."""

from pathlib import Path

import pytest
from small_data import small_params

from fuxictr_tf4ctr import load, load_settings, run_experiment
from fuxictr_tf4ctr.settings.reading import validated

TINY = {"epochs": 1, "embedding_dim": 4, "complex_hidden_units": [6], "verbose": 0}


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """The demo, trained for one epoch."""
    folder = tmp_path_factory.mktemp("demo")
    places = {"data_root": str(folder / "data"), "model_root": str(folder / "runs")}
    record = run_experiment(load_settings("TF4CTR_DCNv2_demo", overrides=TINY | places))
    return load(record.folder)


@pytest.fixture(scope="session")
def mixed_run(tmp_path_factory):
    """Sequences, shared and pretrained embeddings, both normalizers, groups; AUC within groups."""
    folder = tmp_path_factory.mktemp("mixed")
    params = small_params(folder) | TINY
    params |= {
        "model": "TF4CTR_DCNv2",
        "task": "binary_classification",
        "loss": "binary_crossentropy",
        "optimizer": "adam",
        "learning_rate": 0.01,
        "batch_size": 50,
        "metrics": ["AUC", "gAUC", "AUC_simple"],
        "monitor": "AUC",
        "model_root": str(folder / "runs"),
    }
    record = run_experiment(validated("mixed", params, Path(folder)))
    return load(record.folder)


@pytest.fixture
def demo_csv():
    """The raw test rows of the demo."""
    return Path(__file__).resolve().parents[2] / "data" / "demo" / "test.csv"


@pytest.fixture
def mixed_csv(mixed_run):
    """The raw test rows of the run with every kind of column."""
    return Path(mixed_run.settings["test_data"])


@pytest.fixture(scope="session")
def frappe_run(tmp_path_factory, shared):
    """TF4CTR on Frappe's rows, trained for one epoch."""
    folder = tmp_path_factory.mktemp("frappe")
    places = {"data_root": str(folder / "data"), "model_root": str(folder / "runs")}
    rows = {
        f"{split}_data": str(shared / "data" / "frappe_x1" / f"{split}.csv")
        for split in ("train", "valid", "test")
    }
    record = run_experiment(load_settings("TF4CTR_frappe", overrides=TINY | places | rows))
    return load(record.folder)


@pytest.fixture
def frappe_csv(shared):
    """The raw test rows of Frappe."""
    return shared / "data" / "frappe_x1" / "test.csv"
