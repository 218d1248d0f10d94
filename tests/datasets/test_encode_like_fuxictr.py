"""Our encoding against FuxiCTR's own build_dataset, column by column."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from programs import run_program
from small_data import small_params

from fuxictr_tf4ctr.datasets import (
    H5DataLoader,
    describe_dataset,
    encode_dataset,
    find_encoded,
    load_feature_map,
    read_columns,
)
from fuxictr_tf4ctr.datasets.feature_map import id_dtype

SPLITS = ("train", "valid", "test")
NO_RAY = 42

BUILD_DATASET = """
import json, sys
from fuxictr.preprocess import FeatureProcessor, build_dataset
params = json.loads(sys.stdin.read())
build_dataset(FeatureProcessor(**params), **params)
"""
THROUGH_RAY = f"""
import ray, sys
try:
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
except Exception as error:
    print(error)
    sys.exit({NO_RAY})
"""
# Ray's part is to call FuxiCTR's transform block by block: here it is called once, for all rows.
WITHOUT_RAY = """
import os
from fuxictr.preprocess import build_dataset as module

def transform(encoder, rows, split="train", block_size=0):
    columns = {column.name: column.to_numpy() for column in rows.collect()}
    columns = {name: list(values) for name, values in encoder.transform(columns).items()}
    os.makedirs(encoder.data_dir, exist_ok=True)
    pl.DataFrame(columns).write_parquet(os.path.join(encoder.data_dir, split + ".parquet"))

sys.modules[module.__module__].transform = transform
"""


def encoded_by_fuxictr(folder: Path, way: str) -> Path:
    """The folder FuxiCTR encodes the small data set into."""
    params = small_params(folder)
    for column in params["feature_cols"]:
        column.setdefault("active", True)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; import polars as pl\n" + way + BUILD_DATASET],
        input=json.dumps(params),
        text=True,
        capture_output=True,
        timeout=300,
    )
    if done.returncode == NO_RAY:
        pytest.skip(f"Ray does not start here: {done.stdout}")
    assert done.returncode == 0, done.stderr
    return Path(params["data_root"]) / "small"


@pytest.fixture(scope="module")
def fuxictr_dir(tmp_path_factory) -> Path:
    return encoded_by_fuxictr(tmp_path_factory.mktemp("fuxictr"), WITHOUT_RAY)


@pytest.mark.slow
def test_ray_changes_nothing_in_what_fuxictr_encodes(tmp_path, fuxictr_dir):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("FuxiCTR's build_dataset needs two CPUs: it makes cpu_count // 2 blocks")
    through_ray = encoded_by_fuxictr(tmp_path, THROUGH_RAY)
    assert {path.name for path in through_ray.iterdir()} == {
        path.name for path in fuxictr_dir.iterdir()
    }
    for split in SPLITS:
        one, other = (
            pl.read_parquet(folder / f"{split}.parquet") for folder in (through_ray, fuxictr_dir)
        )
        assert sorted(one.columns) == sorted(other.columns)
        for name in one.columns:
            np.testing.assert_array_equal(
                np.stack(one[name].to_numpy()), np.stack(other[name].to_numpy()), err_msg=name
            )


def our_columns(path):
    names = json.loads((path.parent / "encoding.json").read_text())["columns"]
    return read_columns(path, list(names))


def test_every_column_is_fuxictrs(params, fuxictr_dir):
    dataset = encode_dataset(params)
    assert dataset.rows == {"train": 230, "valid": 60, "test": 45}
    for split in SPLITS:
        ours = our_columns(getattr(dataset, split))
        theirs = pl.read_parquet(fuxictr_dir / f"{split}.parquet")
        assert sorted(ours) == sorted(theirs.columns)
        for name, values in ours.items():
            expected = np.stack(theirs[name].to_numpy())
            if values.dtype == np.float32:
                expected = expected.astype(np.float32)
            np.testing.assert_array_equal(values, expected, err_msg=f"{split} {name}")


def test_every_other_file_is_fuxictrs(params, fuxictr_dir):
    data_dir = encode_dataset(params).data_dir
    for name in ("feature_map.json", "feature_vocab.json", "pretrained_user_again.h5"):
        assert (data_dir / name).read_bytes() == (fuxictr_dir / name).read_bytes(), name
    theirs = {path.name for path in fuxictr_dir.iterdir()}
    ours = {path.name for path in data_dir.iterdir()}
    assert theirs - ours == {f"{split}.parquet" for split in SPLITS} | {"feature_processor.pkl"}
    beside = {"encoding.json", "encoder.json", "rare_tokens.parquet"}
    assert ours - theirs == {f"{split}.h5" for split in SPLITS} | beside


def test_a_folder_fuxictr_encoded_into_is_taken_as_it_is(params, fuxictr_dir):
    theirs = params | {"data_root": str(fuxictr_dir.parent), "rebuild_dataset": False}
    before = sorted(fuxictr_dir.iterdir())
    batches = []
    for dataset in (encode_dataset(theirs), encode_dataset(params)):
        feature_map = load_feature_map(dataset, params)
        loader = H5DataLoader(feature_map, str(dataset.train), batch_size=100, seed=1, shuffle=True)
        batches.append(list(loader))
    assert sorted(fuxictr_dir.iterdir()) == before
    for one, other in zip(*batches, strict=True):
        for name in other:
            assert torch.equal(one[name], other[name]), name


def test_a_folder_fuxictr_encoded_into_gets_our_encoding_beside_theirs(
    params, fuxictr_dir, tmp_path
):
    shutil.copytree(fuxictr_dir, Path(params["data_root"]) / "small")
    dataset = encode_dataset(params)
    assert dataset.data_dir == Path(params["data_root"]) / "small" / "h5"
    assert encode_dataset(params) == find_encoded(params) == dataset
    ours, theirs = (folder / "feature_map.json" for folder in (dataset.data_dir, fuxictr_dir))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_encoded_parquet_and_npz_need_no_columns(params, fuxictr_dir, tmp_path, suffix):
    folder = tmp_path / "left" / "small"
    folder.mkdir(parents=True)
    shutil.copy(fuxictr_dir / "feature_map.json", folder)
    for split in SPLITS:
        frame = pl.read_parquet(fuxictr_dir / f"{split}.parquet")
        if suffix == "npz":
            columns = {name: np.stack(frame[name].to_numpy()) for name in frame.columns}
            np.savez(folder / f"{split}.npz", **columns)
        else:
            shutil.copy(fuxictr_dir / f"{split}.parquet", folder)
    left = {key: params[key] for key in ("dataset_id", "embedding_dim", "group_id")}
    left |= {"data_root": str(folder.parent), "data_format": suffix}
    left |= {f"{split}_data": str(folder / f"{split}.{suffix}") for split in SPLITS}
    dataset = encode_dataset(left)
    assert dataset.rows == {"train": 230, "valid": 60, "test": 45} and find_encoded(left) == dataset
    loader = H5DataLoader(load_feature_map(dataset, left), str(dataset.test), split="test")
    ours = encode_dataset(params)
    batch, expected = next(iter(loader)), our_columns(ours.test)
    for name in expected:
        np.testing.assert_array_equal(batch[name].numpy(), expected[name][:32], err_msg=name)
    assert "rows" in describe_dataset(dataset, left)


def test_ids_take_the_smallest_type(params):
    dataset = encode_dataset(params)
    columns = our_columns(dataset.train)
    features = load_feature_map(dataset, params).features
    for name, spec in features.items():
        if spec["type"] in ("categorical", "sequence"):
            assert columns[name].dtype == id_dtype(spec["vocab_size"])
            assert columns[name].max() < spec["vocab_size"]
    sizes = (1, 256, 257, 2**15, 2**15 + 1, 2**31, 2**31 + 1)
    types = ("uint8", "uint8", "int16", "int16", "int32", "int32", "int64")
    assert tuple(str(id_dtype(size)) for size in sizes) == types


def test_parquet_encodes_like_csv(params, tmp_path):
    from_csv = encode_dataset(params)
    as_parquet = params | {"data_format": "parquet", "data_root": str(tmp_path / "parquet")}
    for split in SPLITS:
        # Parquet holds sequences as lists: FuxiCTR joins them with its separator.
        frame = pl.read_csv(params[f"{split}_data"], schema_overrides={"age": pl.Float64})
        path = tmp_path / f"{split}.parquet"
        frame.with_columns(pl.col("history").str.split("^")).write_parquet(path)
        as_parquet[f"{split}_data"] = str(path)
    for column in as_parquet["feature_cols"]:
        if column["name"] == "history":
            column["dtype"] = "list"
    from_parquet = encode_dataset(as_parquet)
    for split in SPLITS:
        expected = our_columns(getattr(from_csv, split))
        for name, values in our_columns(getattr(from_parquet, split)).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_embedding_features_are_kept(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    frame = pl.DataFrame({"image": vectors.tolist(), "click": [0.0, 1, 0, 1, 0, 1, 0]})
    frame.write_parquet(tmp_path / "raw.parquet")
    params = {
        "dataset_id": "images",
        "data_root": str(tmp_path),
        "data_format": "parquet",
        "train_data": str(tmp_path / "raw.parquet"),
        "feature_cols": [
            {"name": "image", "dtype": "list", "type": "embedding", "pretrain_dim": 3}
        ],
        "label_col": {"name": "click", "dtype": "float"},
    }
    dataset = encode_dataset(params)
    batch = next(iter(H5DataLoader(load_feature_map(dataset, params), dataset.train)))
    np.testing.assert_array_equal(batch["image"], vectors.astype(np.float32))
    assert dataset.valid is None and dataset.test is None


def test_chunks_do_not_show(params, tmp_path, monkeypatch):
    whole = encode_dataset(params)
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.splits._CHUNK_ROWS", 7)
    chunked = encode_dataset(params | {"data_root": str(tmp_path / "chunked")})
    for split in SPLITS:
        expected = our_columns(getattr(whole, split))
        for name, values in our_columns(getattr(chunked, split)).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_a_folder_is_read_in_fuxictrs_order(params, tmp_path):
    whole = encode_dataset(params)
    folder = tmp_path / "parts"
    folder.mkdir()
    frame = pl.read_csv(params["train_data"], infer_schema=False)
    frame[:100].write_csv(folder / "a.csv")
    frame[100:].write_csv(folder / "b.csv")
    parts = encode_dataset(
        params | {"train_data": str(folder), "data_root": str(tmp_path / "data2")}
    )
    for name, values in our_columns(parts.train).items():
        np.testing.assert_array_equal(values, our_columns(whole.train)[name], err_msg=name)


def test_fuxictrs_own_processors_serve(tmp_path):
    (tmp_path / "raw.csv").write_text("Label,I1\n1,\n0,2\n1,100\n0,100\n")
    params = {
        "dataset_id": "criteo",
        "data_root": str(tmp_path),
        "train_data": str(tmp_path / "raw.csv"),
        "feature_processor": "fuxictr.datasets.criteo",
        "feature_cols": [
            {"name": "I1", "dtype": "float", "type": "categorical", "fill_na": 0}
            | {"preprocess": "convert_to_bucket"}
        ],
        "label_col": {"name": "Label", "dtype": "float"},
    }
    dataset = encode_dataset(params)
    vocab = json.loads((dataset.data_dir / "feature_vocab.json").read_text())["I1"]
    # 100 falls into bucket floor(log(100)^2) = 21; fill_na 0 is FuxiCTR's padding, not a token.
    assert vocab == {"__PAD__": 0, "2": 1, "21": 2, "__OOV__": 3}
    assert our_columns(dataset.train)["I1"].tolist() == [3, 1, 2, 2]


def test_the_whole_way_to_a_prediction(params):
    from fuxictr.pytorch.layers import FeatureEmbedding

    dataset = encode_dataset(params)
    feature_map = load_feature_map(dataset, params)
    batch = next(iter(H5DataLoader(feature_map, dataset.train, batch_size=9, shuffle=True)))
    inputs = {name: batch[name] for name in feature_map.features if name != "session"}
    embedding = FeatureEmbedding(feature_map, embedding_dim=4)
    assert embedding(inputs).shape == (9, feature_map.num_fields, 4)
    assert feature_map.num_fields == 9
    assert batch[feature_map.group_id].shape == (9,)


def test_ray_is_never_imported(params, tmp_path):
    code = (
        "import json, sys\n"
        "from fuxictr_tf4ctr.datasets import H5DataLoader, encode_dataset, load_feature_map\n"
        "params = json.loads(sys.argv[1])\n"
        "dataset = encode_dataset(params)\n"
        "next(iter(H5DataLoader(load_feature_map(dataset, params), dataset.train)))\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = run_program("-c", code, json.dumps(params), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
