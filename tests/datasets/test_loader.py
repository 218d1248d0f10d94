"""H5DataLoader: FuxiCTR's contract, row order, and what it refuses."""

import gc
import json
import threading
from itertools import chain

import numpy as np
import pytest
import torch
from small_data import FEATURES, encoded_columns, store

from fuxictr_tf4ctr.datasets import H5DataLoader, load_feature_map
from fuxictr_tf4ctr.datasets import loader as loader_module
from fuxictr_tf4ctr.datasets.blocks import STRIPES, BlockReader
from fuxictr_tf4ctr.datasets.loader import prefetched
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


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_may_start_at_any_batch(encoded, shuffle):
    path = encoded(20)
    for first in range(5):
        whole, rest = (loader(path, shuffle=shuffle, seed=3) for _ in range(2))
        expected = [list(whole), list(whole)]
        rest.first_batch = first
        for epoch_batches, skipped in zip(expected, (first, 0), strict=True):
            served = list(rest)
            assert len(served) == 4 - skipped
            for batch, other in zip(served, epoch_batches[skipped:], strict=True):
                assert all(torch.equal(batch[name], other[name]) for name in other)


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


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.blocks.CHUNK_ROWS", 7)


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("batch_size", [1, 6, 7, 50, 200])
def test_streamed_batches_lose_and_repeat_no_row(encoded, small_blocks, split, batch_size):
    path = encoded(100, session=np.arange(100), price=np.arange(100.0))
    options = {"split": split, "shuffle": True, "batch_size": batch_size, "seed": 4}
    held, streamed = loader(path, **options), loader(path, storage="stream", **options)
    assert (held.storage, streamed.storage) == ("memory", "stream")
    assert len(held) == len(streamed)
    sizes = [[len(batch["click"]) for batch in batches] for batches in (held, streamed)]
    assert sizes[0] == sizes[1]
    first, second = epoch(streamed), epoch(streamed)
    for served in (first, second):
        assert sorted(served["session"].tolist()) == list(range(100))
        np.testing.assert_array_equal(served["session"].float(), served["price"])
    in_order = first["session"].tolist() == list(range(100))
    assert in_order == (split == "valid")
    assert (first["session"].tolist() == second["session"].tolist()) == in_order
    again = loader(path, storage="stream", **options)
    again.epoch = 2
    assert epoch(again)["session"].tolist() == second["session"].tolist()


def test_a_stream_ends_where_its_file_is_encoded_anew(encoded, small_blocks):
    path = encoded(100)
    streamed = loader(path, storage="stream", split="train")
    epoch(streamed)
    path.rename(path.with_name("older.h5"))
    encoded(100)
    with pytest.raises(DataError, match=r"train\.h5: was encoded anew while .*another dataset_id"):
        epoch(streamed)


def test_the_budget_chooses_the_storage(encoded):
    path = encoded(20)
    # A row: an int64 for session, four float32 for price, image and click, a byte for each of
    # color and the three of words; padded to whole int64s.
    assert loader(path, memory_budget=20 * 32).storage == "memory"
    assert loader(path, memory_budget=20 * 32 - 1).storage == "stream"
    with pytest.raises(SettingsError, match="unknown storage 'steam'; did you mean 'stream'"):
        loader(path, storage="steam")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that computes shapes and no values, with memory to be set."""
    memory = {"free": 10_000}
    monkeypatch.setattr(loader_module, "device_of", lambda gpu: torch.device("meta"))
    monkeypatch.setattr(loader_module, "free_bytes", lambda device: memory["free"])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda rows: rows)
    return memory


def test_a_gpu_keeps_what_fits_beside_the_model(encoded, gpu):
    path, on_gpu = encoded(20), {"gpu": 0, "gpu_reserve": 9_200}
    assert loader(path, **on_gpu).storage == "gpu"  # 20 rows of 32 bytes and their order, of 8
    assert loader(path, **on_gpu, memory_budget=639).storage == "stream"
    gpu["free"] = 9_999
    assert loader(path, **on_gpu).storage == "memory"
    with pytest.raises(SettingsError, match=r"takes 800 bytes .* 9,200, and 9,999 .*: 1 are miss"):
        loader(path, **on_gpu, storage="gpu")


def test_rows_cannot_be_kept_on_a_gpu_that_is_not_there(encoded):
    assert loader(encoded(20), gpu=0).storage == "memory"  # as FuxiCTR trains on the CPU then
    with pytest.raises(SettingsError, match="set gpu, or take memory or stream"):
        loader(encoded(20), storage="gpu")


@pytest.mark.parametrize("storage", ["gpu", "memory", "stream"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_come_to_the_gpu_as_views_of_a_matrix_of_each_type(encoded, gpu, storage, shuffle):
    path = encoded(20)
    batches = loader(path, gpu=0, storage=storage, shuffle=shuffle, gpu_reserve=0)
    for batch, expected in zip(batches, loader(path, shuffle=shuffle), strict=True):
        assert list(batch) == list(expected)
        for name, column in batch.items():
            assert column.device.type == "meta"
            assert (column.shape, column.dtype) == (expected[name].shape, expected[name].dtype)
        scalars = [batch[name] for name in ("color", "price", "session", "click")]
        assert len({id(column._base) for column in scalars}) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["gpu", "memory", "stream"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_gpu_gets_the_batches_a_cpu_gets(encoded, storage, shuffle):
    path = encoded(50)
    plain = {"storage": "stream" if storage == "stream" else "memory", "shuffle": shuffle}
    options = {**plain, "storage": storage, "gpu": 0, "gpu_reserve": 0}
    for batch, expected in zip(loader(path, **options), loader(path, **plain), strict=True):
        for name, column in batch.items():
            assert column.is_cuda and torch.equal(column.cpu(), expected[name])


def test_a_streamed_epoch_may_start_at_any_batch(encoded, small_blocks):
    path = encoded(40)
    whole, rest = (loader(path, storage="stream", shuffle=True, seed=3) for _ in range(2))
    rest.first_batch = 4
    for batch, other in zip(list(rest), list(whole)[4:], strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in other)
    assert len(list(rest)) == 7


def sessions(path, ranks, **options):
    """The values of a column that each rank serves, batch by batch."""
    options = {"storage": "stream", "shuffle": True, "seed": 3, "world_size": ranks} | options
    served = [loader(path, rank=rank, **options) for rank in range(ranks)]
    for batches in served:
        batches.epoch, batches.first_batch = 2, options.get("first", 0)
    return [[batch["session"].tolist() for batch in batches] for batches in served]


@pytest.mark.parametrize("ranks", [2, 3, 32])
def test_any_number_of_ranks_streams_the_batches_of_one(encoded, small_blocks, ranks):
    rows, size = 5 * 384 + 130, 384
    path = encoded(rows, session=np.arange(rows))
    ((*alone, last),) = sessions(path, 1, batch_size=size)
    for batch in alone:  # of each stripe it has 384 / 64 rows
        stripes = np.searchsorted(np.linspace(0, rows, STRIPES + 1), batch, side="right")
        assert abs(np.bincount(stripes, minlength=STRIPES + 1)[1:] - 6).max() <= 1
    for first in (0, 3):
        spread = sessions(path, ranks, batch_size=size // ranks, first=first)
        for at, batch in enumerate([*alone, last][first:]):
            shares = [served[at] for served in spread]
            assert sorted(chain(*shares)) == sorted(batch)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    served = list(chain(*alone, last))
    assert sorted(served) == list(range(rows)) != served


@pytest.mark.parametrize(("ranks", "share"), [(4, 4), (64, 64), (3, 1), (6, 2), (128, 64)])
@pytest.mark.parametrize("negative_sampling", [None, 0.5])
def test_a_rank_reads_its_stripes_alone(
    encoded, small_blocks, monkeypatch, caplog, ranks, share, negative_sampling
):
    rows = 2050
    path = encoded(rows, session=np.arange(rows))
    options = {"batch_size": 6, "rank": 1, "world_size": ranks, "shuffle": True}
    options |= {"storage": "stream", "negative_sampling": negative_sampling}
    batches, read = loader(path, **options), []
    plain = BlockReader.read
    monkeypatch.setattr(
        BlockReader,
        "read",
        lambda self, parts: read.extend(parts := list(parts)) or plain(self, parts),
    )
    served = epoch(batches)["session"].tolist()
    mine = sum(part.rows for part in read)
    assert len(set(read)) == len(read)
    assert len(set(served)) == len(served) == batches.num_samples
    assert abs(mine - batches._all_rows / share) <= STRIPES / share
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if ranks == share:
        assert not said
        assert max(served) - min(served) < 1.5 * rows / share  # they lie side by side
    else:
        (message,) = said
        assert (
            f"{ranks} ranks do not divide the 64 stripes of streamed rows: each reads 1/{share} "
            in (message)
        )


def test_ranks_evaluate_parts_in_one_piece(encoded, small_blocks):
    path = encoded(40, session=np.arange(40))
    for storage in ("memory", "stream"):
        served = sessions(path, 3, split="valid", storage=storage, batch_size=5)
        assert list(chain(*chain(*served))) == list(range(40))


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("rows", [36, 37, 40])
def test_ranks_share_the_rows_in_as_many_steps(encoded, small_blocks, storage, shuffle, rows):
    path = encoded(rows, session=np.arange(rows))
    ranks = [
        loader(path, storage=storage, shuffle=shuffle, seed=1, batch_size=6, rank=r, world_size=3)
        for r in range(3)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(served) for served in batches} == {len(rank) for rank in ranks}
    assert len({len(rank) for rank in ranks}) == 1
    served = [batch["session"] for rank in batches for batch in rank]
    fewest = min(map(len, served))
    assert fewest > 0 and {rank.fewest_rows for rank in ranks} == {fewest}
    assert sorted(torch.cat(served).tolist()) == list(range(rows))
    assert sum(rank.num_samples for rank in ranks) == rows
    for number, shares in enumerate(zip(*batches, strict=True)):
        sizes = [len(batch["click"]) for batch in shares]
        portions = [size / sum(sizes) for size in sizes]
        assert [batch.portion for batch in shares] == portions, number


def test_ranks_that_cannot_be_served_are_refused(encoded):
    path = encoded(20)
    with pytest.raises(DataError, match="20 rows are too few for 21 ranks"):
        loader(path, world_size=21)
    with pytest.raises(SettingsError, match="rank=3 must be below world_size=3"):
        loader(path, rank=3, world_size=3)
    with pytest.raises(SettingsError, match="set batch_size to 2"):
        loader(path, batch_size=1, rank=2, world_size=3)


def test_bad_rows_of_a_stream_are_named_by_their_place_in_the_file(encoded, small_blocks):
    color = encoded_columns(20)["color"].copy()
    color[16] = 5
    batches = loader(encoded(20, color=color), storage="stream")
    with pytest.raises(DataError, match=r"column 'color', row 16 \(counted from 0\): 5 is outside"):
        list(batches)


def test_large_meta_ids_keep_all_their_digits(encoded):
    session = np.arange(20) + 2**40
    served = epoch(loader(encoded(20, session=session)))
    assert served["session"].tolist() == session.tolist()


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_prefetching_changes_nothing_but_the_thread(ahead):
    def items():
        yield from range(7)
        raise ValueError("the end")

    served = []
    with pytest.raises(ValueError, match="the end"):
        for item in prefetched(items(), ahead):
            served.append(item)
    assert served == list(range(7))


def test_a_consumer_that_stops_early_stops_the_thread(encoded):
    before = threading.active_count()
    for _ in range(3):
        for _batch in loader(encoded(200), batch_size=2, storage="stream", prefetch=2):
            break
    gc.collect()
    assert threading.active_count() == before
