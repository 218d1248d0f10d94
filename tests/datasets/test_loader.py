"""H5DataLoader: FuxiCTR's contract, row order, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from small_data import FEATURES, encoded_columns, store

from fuxictr_tf4ctr.datasets import H5DataLoader, load_feature_map
from fuxictr_tf4ctr.errors import DataError, SettingsError

PARAMS = {"dataset_id": "made", "embedding_dim": 4}


def loader(path, **options):
    feature_map = load_feature_map(path.parent, PARAMS)
    return H5DataLoader(feature_map, str(path), **{"batch_size": 6, **options})


def epoch(batches):
    """Concatenate the batches of one epoch."""
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_batches_hold_all_columns_in_order(encoded):
    batches = loader(encoded(20))
    assert (batches.num_samples, batches.num_blocks, batches.num_batches) == (20, 1, 4)
    assert len(batches) == len(list(batches)) == 4
    served = epoch(batches)
    assert list(served) == [*FEATURES, "click"]
    for name, stored in encoded_columns(20).items():
        floating = name in ("price", "image", "click")
        assert served[name].dtype == (torch.float32 if floating else torch.int64)
        np.testing.assert_array_equal(
            served[name].numpy(), stored.astype(np.float32 if floating else np.int64)
        )


@pytest.mark.parametrize(("rows", "batch_size", "count"), [(1, 6, 1), (6, 6, 1), (7, 6, 2)])
def test_number_of_batches(encoded, rows, batch_size, count):
    batches = loader(encoded(rows), batch_size=batch_size)
    assert len(batches) == count
    assert [len(batch["click"]) for batch in batches] == [6] * (rows // 6) + [rows % 6] * (
        rows % 6 > 0
    )


def test_each_epoch_has_its_own_order_of_all_rows(encoded):
    columns = {"price": np.arange(50.0), "session": np.arange(50)}
    batches = loader(encoded(50, **columns), shuffle=True, seed=3)
    first, second = epoch(batches), epoch(batches)
    assert batches.epoch == 2
    assert first["session"].tolist() != second["session"].tolist()
    for served in (first, second):
        assert sorted(served["session"].tolist()) == list(range(50))
        np.testing.assert_array_equal(served["session"].float(), served["price"])  # rows stay whole


def test_the_seed_alone_sets_the_order(encoded):
    path = encoded(50, session=np.arange(50))

    def order(seed, at=0):
        torch.manual_seed(at)
        np.random.seed(at)
        batches = loader(path, shuffle=True, seed=seed)
        batches.epoch = at
        return epoch(batches)["session"].tolist()

    assert order(1) == order(1) != order(2)
    resumed = loader(path, shuffle=True, seed=1)
    assert [epoch(resumed)["session"].tolist() for _ in range(3)][2] == order(1, at=2)


def test_the_order_is_the_same_on_every_platform(encoded):
    batches = loader(encoded(10, session=np.arange(10)), shuffle=True, seed=2019)
    assert epoch(batches)["session"].tolist() == [9, 7, 8, 2, 3, 5, 0, 4, 1, 6]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_keeps_the_order_of_the_file(encoded, split):
    batches = loader(encoded(20, session=np.arange(20)), split=split, shuffle=True)
    assert epoch(batches)["session"].tolist() == list(range(20))


def test_parts_are_one_split(encoded, tmp_path):
    path = encoded(22)
    folder = tmp_path / "train"
    folder.mkdir()
    columns = encoded_columns(22)
    for part in range(11):
        rows = slice(2 * part, 2 * part + 2)
        store(folder / f"part_{part}.h5", {name: c[rows] for name, c in columns.items()})
    feature_map = load_feature_map(tmp_path, PARAMS)
    parts = H5DataLoader(feature_map, folder, batch_size=5)
    assert (parts.num_blocks, parts.num_samples) == (11, 22)
    whole, joined = epoch(loader(path)), epoch(parts)
    assert all(torch.equal(whole[name], joined[name]) for name in whole)


def test_scalars_may_be_stored_as_one_wide_columns(encoded):
    stored = encoded_columns(20)["color"]
    served = epoch(loader(encoded(20, color=stored.reshape(-1, 1).astype(np.float64))))
    assert served["color"].shape == (20,) and served["color"].tolist() == stored.tolist()


def test_fuxictr_trains_and_evaluates_through_the_hook(encoded):
    from fuxictr.pytorch.dataloaders import RankDataLoader
    from fuxictr.pytorch.layers import FeatureEmbedding

    path = encoded(20)
    feature_map = load_feature_map(path.parent, PARAMS)
    params = {"data_loader": H5DataLoader, "seed": 1, "num_workers": 3, "verbose": 0}
    params |= {"task": "binary_classification", "model": "DeepFM", "gpu": -1}
    train, valid, test = RankDataLoader(
        feature_map,
        stage="both",
        train_data=str(path),
        valid_data=str(path.with_suffix("")),
        test_data=str(path),
        batch_size=8,
        shuffle=True,
        data_format="h5",
        **params,
    )
    assert (train.shuffle, valid.shuffle, test.shuffle) == (True, False, False)
    embedding = FeatureEmbedding(feature_map, embedding_dim=4)
    batch = next(iter(test))
    inputs = {name: batch[name] for name in ("color", "price")}
    assert embedding(inputs).shape == (8, 2, 4)


NO_LABEL = r"train\.h5: column 'click', row 4 \(counted from 0\): {} is no label"
BAD = {
    "negative id": ("color", -1, r"column 'color', row 4 \(counted from 0\): -1 is negative"),
    "id too large": ("color", 5, r"column 'color', row 4 .*: 5 is outside the vocabulary of 5 ids"),
    "number": ("price", np.nan, r"column 'price', row 4 .*: nan is not a finite"),
    "overflow": ("price", 1e39, r"column 'price', row 4 .*: 1e\+39 is not a finite float32"),
    "label": ("click", 2, NO_LABEL.format(r"2\.0")),
    "no label": ("click", np.nan, NO_LABEL.format("nan")),
}


@pytest.mark.parametrize(("name", "value", "message"), BAD.values(), ids=BAD)
def test_bad_values_are_named(encoded, name, value, message):
    values = encoded_columns(20)[name].copy()
    values[4] = value
    with pytest.raises(DataError, match=message):
        loader(encoded(20, **{name: values}))


def test_bad_sequence_ids_are_named(encoded):
    words = encoded_columns(20)["words"].copy()
    words[11, 1] = 400
    with pytest.raises(DataError, match=r"column 'words', row 11 .*: 400 is outside"):
        loader(encoded(20, words=words))


def test_fractions_are_no_ids(encoded):
    color = encoded_columns(20)["color"].astype(np.float64)
    color[3] = 1.5
    with pytest.raises(DataError, match=r"column 'color', row 3 .*: 1\.5 is no id"):
        loader(encoded(20, color=color))


def test_other_tasks_have_other_labels(encoded):
    path = encoded(20, click=np.linspace(0, 5, 20))
    served = epoch(loader(path, task="regression"))
    np.testing.assert_array_equal(served["click"], np.linspace(0, 5, 20).astype(np.float32))
    with pytest.raises(DataError, match="is no label"):
        loader(path)


def test_damaged_files_are_named(encoded):
    with pytest.raises(DataError, match=r"train\.h5: no column 'click'"):
        loader(encoded(20, drop="click"))
    with pytest.raises(DataError, match=r"'color' has 20 rows, 'price' has 19"):
        loader(encoded(20, price=np.zeros(19)))
    with pytest.raises(DataError, match=r"train\.h5: the split is empty"):
        loader(encoded(0))
    with pytest.raises(DataError, match=r"'words' has shape \(20, 4\), .* says \(20, 3\)"):
        loader(encoded(20, words=np.zeros((20, 4), dtype=np.int64)))
    with pytest.raises(DataError, match=r"column 'color' holds .*, not numbers"):
        loader(encoded(20, color=np.array([b"red"] * 20)))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_batch_size_is_checked(encoded, batch_size):
    with pytest.raises(SettingsError, match="batch_size"):
        loader(encoded(20), batch_size=batch_size)


def test_a_fuxictr_1_data_set_is_read(tmp_path):
    specs = {
        "user": {"source": "", "type": "categorical", "vocab_size": 300, "index": 0},
        "price": {"source": "", "type": "numeric", "index": 1},
        "item": {"type": "categorical", "padding_idx": 9, "vocab_size": 10, "index": 2},
    }
    content = {"dataset_id": "old", "num_fields": 3, "num_features": 311, "feature_specs": specs}
    (tmp_path / "feature_map.json").write_text(json.dumps(content))
    matrix = np.array([[299, 0.5, 9, 1], [0, -2, 3, 0]])
    path = store(tmp_path / "train.h5", {"data": matrix})
    params = {"dataset_id": "old", "label_col": {"name": "clk", "dtype": "float"}}
    feature_map = load_feature_map(tmp_path, params | {"use_features": ["item", "user"]})
    served = epoch(H5DataLoader(feature_map, path))
    assert {name: values.tolist() for name, values in served.items()} == {
        "item": [9, 3],
        "user": [299, 0],
        "clk": [1.0, 0.0],
    }
