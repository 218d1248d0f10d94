"""FuxiCTR's git main gives what its wheel gives; a FuxiCTR that fits neither is refused by name."""

import json
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from fuxictr.preprocess.feature_processor import FeatureProcessor
from helpers import SHARED
from programs import fresh, run_program

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.fuxictr_imports import MODEL_HOOKS, PROCESSOR_HOOKS, require

CHECKOUT = SHARED / "peers" / "FuxiCTR"
ROOT = Path(__file__).resolve().parents[2]
ENCODE = """
import sys
from fuxictr_tf4ctr.cli import main
import fuxictr
print(fuxictr.__path__[0])
sys.exit(main(["encode", "--config", "config", "--dataset", "mine", *sys.argv[1:]]))
"""
DATASET = """
mine:
    data_format: csv
    train_data: train.csv
    valid_data: train.csv
    min_categr_count: 2
    feature_cols:
        - {name: [user, shop], active: true, dtype: str, type: categorical}
        - {name: size, active: true, dtype: int, type: categorical, fill_na: 0}
        - {name: price, active: true, dtype: float, type: numeric, normalizer: StandardScaler}
        - {name: age, active: true, dtype: float, type: numeric, normalizer: MinMaxScaler}
        - {name: tags, active: true, dtype: str, type: sequence, splitter: " ", max_len: 3}
        - {name: seen, active: true, dtype: str, type: sequence, splitter: " ",
           share_embedding: shop}
        - {name: query, active: true, dtype: str, type: meta}
    label_col: {name: label, dtype: float}
"""


def encoded(folder: Path, data_root: str, site: Path, *paths: Path) -> tuple[str, dict, dict]:
    """Encode by the FuxiCTR first on the path: where it lies, the text files, the arrays."""
    code = fresh(site, *paths, ROOT) + ENCODE
    done = run_program("-c", code, "--set", f"data_root={data_root}", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = folder / data_root / "mine"
    texts = {file.name: json.loads(file.read_text()) for file in found.glob("feature_*.json")}
    with h5py.File(found / "train.h5") as file:
        arrays = {name: np.asarray(file[name]) for name in file}
    return done.stdout.splitlines()[0], texts, arrays


def test_gits_main_gives_the_wheels_vocabularies_and_rows(tmp_path, site_without_us):
    """Ties of counts too: git leaves them in the order of the data, the wheel sorts by token."""
    if not CHECKOUT.is_dir():
        pytest.skip(f"no FuxiCTR checkout at {CHECKOUT}")
    rng = np.random.default_rng(3)
    words = np.array(["b", "a", "d", "c", "e"])
    rows = 60
    columns = {
        "label": rng.integers(0, 2, rows),
        "user": [f"u{i}" for i in rng.permutation(rows) // 3],
        "shop": [f"s{i}" for i in rng.permutation(rows) // 4],
        "size": rng.integers(1, 12, rows),
        "price": rng.normal(5, 2, rows).round(2),
        "age": rng.integers(18, 80, rows),
        "tags": [" ".join(rng.choice(words, 2)) for _ in range(rows)],
        "seen": [" ".join(f"s{i}" for i in rng.integers(0, 20, 2)) for _ in range(rows)],
        "query": [f"q{i}" for i in rng.permutation(rows) // 2],
    }
    pl.DataFrame(columns).write_csv(tmp_path / "train.csv")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dataset_config.yaml").write_text(DATASET)
    (tmp_path / "config" / "model_config.yaml").write_text("Base: {}")
    git = tmp_path / "git"
    (git / "keras_preprocessing").mkdir(parents=True)  # git's requirement for what we do not call
    (git / "keras_preprocessing" / "__init__.py").write_text("")
    (git / "keras_preprocessing" / "sequence.py").write_text("pad_sequences = None\n")
    (git / "fuxictr").symlink_to(CHECKOUT / "fuxictr")
    at_git, texts, arrays = encoded(tmp_path, "of_git", site_without_us, git)
    at_wheel, wheel_texts, wheel_arrays = encoded(tmp_path, "of_wheel", site_without_us)
    assert Path(at_git) == git / "fuxictr" != Path(at_wheel)
    assert texts == wheel_texts and len(texts) >= 2
    assert arrays.keys() == wheel_arrays.keys()
    for name, values in wheel_arrays.items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-6, err_msg=name)


def test_a_fuxictr_that_does_not_fit_is_refused_by_name(monkeypatch):
    assert (require(PROCESSOR_HOOKS), require(MODEL_HOOKS)) == ("wheel", "wheel")

    def fit_meta_col(self, column):
        pass

    monkeypatch.setattr(FeatureProcessor, "fit_meta_col", fit_meta_col)
    monkeypatch.delattr(FeatureProcessor, "_collect_statistics")
    with pytest.raises(SettingsError) as error:
        require(PROCESSOR_HOOKS)
    message = str(error.value)
    assert "FeatureProcessor has no _collect_statistics" in message
    assert "FeatureProcessor.fit_meta_col takes self, column, not col, stats_dict" in message
    assert "2.3.10" in message and "pip install" in message
