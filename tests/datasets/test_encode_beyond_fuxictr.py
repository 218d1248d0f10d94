"""What FuxiCTR declares and leaves out, and raw files it does not read."""

import errno
import gc
import gzip
import json
import os
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from fuxictr.preprocess.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import small_disk

from fuxictr_tf4ctr.datasets import (
    decode_rows,
    describe_dataset,
    encode_dataset,
    manifest,
    read_columns,
)
from fuxictr_tf4ctr.datasets.csv_files import CsvFile
from fuxictr_tf4ctr.datasets.fitted import SequenceIds, TokenIds, bucket_ids, hash_ids
from fuxictr_tf4ctr.datasets.fitting import Moments, TokenCounts, quantiles
from fuxictr_tf4ctr.datasets.raw import RawFiles
from fuxictr_tf4ctr.datasets.splits import HERE
from fuxictr_tf4ctr.errors import DataError, SettingsError, StorageError, UserError

SEQUENCE_TEXT = st.lists(st.sampled_from(["", "a", "b", "ü", "zz", "__PAD__"]), max_size=6)


def with_column(params, **entries):
    return params | {"feature_cols": [params["feature_cols"][0] | entries]}


@given(
    train=st.lists(st.text("ab,é \x00", max_size=3), min_size=1),
    seen=st.lists(st.text("ab,éx ", max_size=3)),
    least=st.integers(1, 3),
)
def test_token_ids_are_the_tokenizers(train, seen, least):
    tokenizer = Tokenizer(min_freq=least)
    counts = {token: train.count(token) for token in train}
    if not any(token and count >= least for token, count in counts.items()):
        return
    tokenizer.build_vocab(counts)
    ids = TokenIds(tokenizer.vocab, np.dtype(np.int32))
    tokens = [*train, *seen, "__PAD__", "__OOV__"]
    assert ids(pl.Series(tokens, dtype=pl.String)).tolist() == tokenizer.encode_category(tokens)
    assert ids(pl.Series([None], dtype=pl.String)).tolist() == [tokenizer.vocab["__OOV__"]]


@given(
    st.sets(st.integers(-(2**62), 2**62), min_size=1),
    st.lists(st.integers(-(2**62), 2**62) | st.integers(-3, 3)),
)
def test_number_ids_are_the_tokenizers(train, seen):
    tokenizer = Tokenizer(na_value=0)
    tokenizer.build_vocab(dict.fromkeys(train, 1) | {1: 1})
    ids = TokenIds(tokenizer.vocab, np.dtype(np.int32))
    values = [*train, *seen]
    assert ids(pl.Series(values, dtype=pl.Int64)).tolist() == tokenizer.encode_category(values)
    floats = [1.0, 1.5, float("nan"), None]
    expected = tokenizer.encode_category(floats)
    assert ids(pl.Series(floats, dtype=pl.Float64)).tolist() == expected


NEAR = st.sampled_from([-(2**60), 0, 2**53, 2**60, 2**63, 2**64 - 9])
LARGE = st.tuples(NEAR, st.integers(0, 8)).map(sum)


@given(st.sets(LARGE, min_size=1), st.lists(LARGE))
def test_ids_of_large_numbers_are_the_tokenizers(train, seen):
    tokenizer = Tokenizer()
    tokenizer.build_vocab(dict.fromkeys(train, 1))
    ids = TokenIds(tokenizer.vocab, np.dtype(np.int32))
    for dtype, least, most in ((pl.Int64, -(2**63), 2**63), (pl.UInt64, 0, 2**64)):
        values = [value for value in (*train, *seen) if least <= value < most]
        found = ids(pl.Series(values, dtype=dtype)).tolist()
        assert found == tokenizer.encode_category(values)


@given(
    rows=st.lists(SEQUENCE_TEXT.map("^".join), min_size=1),
    width=st.integers(1, 4),
    padding=st.sampled_from(["pre", "post"]),
    missing=st.sampled_from(["", "a", 0]),
)
def test_sequences_are_the_tokenizers(rows, width, padding, missing):
    tokenizer = Tokenizer(splitter="^", max_len=width, padding=padding, na_value=missing)
    tokenizer.build_vocab({"a": 5, "b": 4, "zz": 1})
    encoder = SequenceIds(tokenizer, TokenIds(tokenizer.vocab, np.dtype(np.int16)))
    np.testing.assert_array_equal(encoder(pl.Series(rows)), tokenizer.encode_sequence(rows))


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh") | st.none(), max_size=30), max_size=8),
    st.integers(0, 20),
    st.integers(1, 3),
)
def test_counts_are_right_in_memory_and_on_disk(tmp_path_factory, batches, memory, least):
    counts = TokenCounts(["x", "y"], tmp_path_factory.mktemp("counts"), memory)
    for batch in batches:
        tokens = pl.DataFrame({"token": batch}, {"token": pl.String}).drop_nulls()
        table = tokens.group_by("token").len("count")
        counts.add({"x": table, "y": table})
    everything = [token for batch in batches for token in batch if token is not None]
    expected = {t: everything.count(t) for t in everything if everything.count(t) >= least}
    for name in ("x", "y"):
        assert dict(counts.frequent(name, least).iter_rows()) == expected


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=9), max_size=9))
def test_moments_are_numpys(batches):
    moments = Moments()
    for batch in batches:
        moments.add(pl.Series(batch, dtype=pl.Float64))
    values = np.concatenate([np.array(batch) for batch in batches] or [np.zeros(0)])
    found = moments.as_fuxictr()
    assert found["count"] == len(values)
    if len(values):
        assert (found["min"], found["max"]) == (values.min(), values.max())
        np.testing.assert_allclose(found["mean"], values.mean(), rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(found["std"], values.std(), rtol=1e-6, atol=1e-3)


@given(st.lists(st.integers(-9, 9), min_size=1), st.integers(2, 12))
def test_quantiles_are_numpys(values, buckets):
    counts = pl.DataFrame({"token": values}).group_by("token").len("count")
    shares = np.arange(1, buckets) / buckets
    np.testing.assert_allclose(quantiles(counts, shares), np.quantile(values, shares), atol=1e-12)


def test_quantile_buckets(tmp_path):
    values = np.random.default_rng(1).exponential(size=500).round(2)
    frame = pl.DataFrame({"price": values, "click": np.arange(500) % 2})
    frame.write_csv(tmp_path / "raw.csv")
    params = {
        "dataset_id": "buckets",
        "data_root": str(tmp_path),
        "train_data": str(tmp_path / "raw.csv"),
        "num_buckets": 4,
        "feature_cols": [
            {"name": "price", "dtype": "float", "type": "categorical"}
            | {"category_processor": "quantile_bucket"}
        ],
        "label_col": {"name": "click", "dtype": "float"},
    }
    dataset = encode_dataset(params)
    spec = json.loads(dataset.feature_map_path.read_text())["features"][0]["price"]
    np.testing.assert_allclose(spec["boundaries"], np.quantile(values, [0.25, 0.5, 0.75]))
    ids = read_columns(dataset.train, ["price"])["price"]
    np.testing.assert_array_equal(ids, np.digitize(values, spec["boundaries"]))
    assert np.bincount(ids).min() > 100 and spec["vocab_size"] == 4
    text = decode_rows(dataset, count=500)["price"]
    low, high = zip(*(t.strip("[)").split(", ") for t in text), strict=True)
    slack = 1e-4  # intervals are shown with six digits
    assert (np.array(low, float) - slack <= values).all()
    assert (values < np.array(high, float) + slack).all()
    assert bucket_ids(pl.Series([-1.0, 9.9]), np.array([0.0, 1.0])).tolist() == [0, 2]


def test_hash_buckets(plain_params):
    column = {"category_processor": "hash_bucket", "num_buckets": 7}
    dataset = encode_dataset(with_column(plain_params, **column))
    ids = read_columns(dataset.train, ["color"])["color"].tolist()
    assert ids == [zlib.crc32(color) % 7 for color in (b"red", b"blue", b"red")]
    values = pl.Series(["__OOV__", "", None, "ü"])
    assert hash_ids(values, 9).tolist() == [
        zlib.crc32(text.encode()) % 9 for text in ("__OOV__", "", "", "ü")
    ]
    feature_map = json.loads(dataset.feature_map_path.read_text())
    assert feature_map["features"][0]["color"]["vocab_size"] == 7
    assert "bucket" in describe_dataset(dataset, plain_params)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"valid_size": 0.2, "test_size": 0.1}, {"train": 70, "valid": 20, "test": 10}),
        ({"test_size": 33}, {"train": 67, "test": 33}),
        ({"valid_size": 0.999}, {"train": 1, "valid": 99}),
    ],
)
@pytest.mark.parametrize("split_type", ["sequential", "random"])
def test_rows_are_split_off(tmp_path, sizes, expected, split_type):
    raw = tmp_path / "raw.csv"
    pl.DataFrame({"n": range(100), "s": range(100), "click": [0, 1] * 50}).write_csv(raw)
    params = {
        "dataset_id": "parts",
        "data_root": str(tmp_path / split_type),
        "train_data": str(raw),
        "split_type": split_type,
        "feature_cols": [
            {"name": "n", "dtype": "float", "type": "numeric"},
            {"name": "s", "dtype": "int", "type": "categorical"},
        ],
        "label_col": {"name": "click", "dtype": "float"},
        **sizes,
    }
    dataset = encode_dataset(params)
    assert dataset.rows == expected
    rows = {s: read_columns(getattr(dataset, s), ["n"])["n"].tolist() for s in expected}
    together = [n for part in rows.values() for n in part]
    assert sorted(together) == list(range(100))
    assert all(part == sorted(part) for part in rows.values())
    assert (together == sorted(together)) == (split_type == "sequential")
    # The vocabulary is the training rows' alone.
    vocab = json.loads((dataset.data_dir / "feature_vocab.json").read_text())["s"]
    assert len(vocab) == expected["train"] + 2
    assert encode_dataset(params | {"seed": 5}) == dataset


@pytest.mark.parametrize("splitting", [{}, {"split_type": "group", "split_by": "color"}])
def test_rows_are_split_off_where_preprocess_makes_the_label(plain_params, splitting):
    label = {"name": "made", "dtype": "float", "preprocess": "copy_from(size)"}
    Path(plain_params["train_data"]).write_text("color,size\nred,1\nblue,0\ngreen,0\n")
    plain_params["feature_cols"].append({"name": "size", "dtype": "float", "type": "numeric"})
    params = plain_params | splitting | {"label_col": label, "valid_size": 1}
    assert encode_dataset(params).rows == {"train": 2, "valid": 1}


@pytest.mark.parametrize(
    ("split_type", "times"),
    [
        ("time", [f"2024-01-{day:02d}" for day in range(1, 11)]),
        ("time", list(range(9, 19))),
        ("group", [f"u{user}" for user in range(10)]),
    ],
)
def test_rows_of_one_time_or_group_stay_together(tmp_path, split_type, times):
    raw = tmp_path / "raw.csv"
    clicks = [0, 1] * 50
    pl.DataFrame({"n": range(100), "when": times * 10, "click": clicks}).write_csv(raw)
    params = {
        "dataset_id": "parts",
        "data_root": str(tmp_path),
        "train_data": str(raw),
        "split_type": split_type,
        "split_by": "when",
        "valid_size": 0.22,
        "test_size": 0.1,
        "feature_cols": [{"name": "n", "dtype": "float", "type": "numeric"}],
        "label_col": {"name": "click", "dtype": "float"},
    }
    dataset = encode_dataset(params)
    assert dataset.rows == {"train": 70, "valid": 20, "test": 10}
    parts = [
        {int(n) % 10 for n in read_columns(getattr(dataset, split), ["n"])["n"]}
        for split in ("train", "valid", "test")
    ]
    assert set.union(*parts) == set(range(10)) and sum(map(len, parts)) == 10
    if split_type == "time":
        assert parts[2] == {9}
    for change, message in [
        ({"split_by": "wen"}, "did you mean 'when'"),
        ({"split_by": None}, "need the column"),
        ({"test_size": 0.9}, "left for train"),
    ]:
        with pytest.raises(UserError, match=message):
            encode_dataset(params | change)


def test_what_is_no_time_is_named(tmp_path):
    raw = tmp_path / "raw.csv"
    raw.write_text("n,when,click\n1,2024-01-01,0\n2,soon,1\n3,2024-01-03,1\n")
    params = {
        "dataset_id": "parts", "data_root": str(tmp_path), "train_data": str(raw),
        "split_type": "time", "split_by": "when", "test_size": 1,
        "feature_cols": [{"name": "n", "dtype": "float", "type": "numeric"}],
        "label_col": {"name": "click", "dtype": "float"},
    }  # fmt: skip
    with pytest.raises(DataError, match="'soon' in row 2 is no time"):
        encode_dataset(params)
    with pytest.raises(DataError, match="cannot be split off"):
        encode_dataset(params | {"test_size": 200})


def test_gzip_tsv_folders_and_patterns_encode_alike(params, tmp_path):
    whole = encode_dataset(params)
    expected = read_columns(whole.train, ["user", "history", "price"])
    frame = pl.read_csv(params["train_data"], infer_schema=False)
    text = Path(params["train_data"]).read_bytes()
    with gzip.open(tmp_path / "all.csv.gz", "wb") as file:
        file.write(text)
    (tmp_path / "crlf.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    frame.write_csv(tmp_path / "all.tsv", separator="\t")
    frame.write_csv(tmp_path / "quoted.csv", quote_style="always")
    for part, rows in (("part_a.csv", frame[:70]), ("part_b.csv", frame[70:])):
        rows.write_csv(tmp_path / part)
    names = ("all.csv.gz", "crlf.csv", "all.tsv", "quoted.csv", "part_*.csv")
    for number, name in enumerate(names):
        changed = {"train_data": str(tmp_path / name), "data_root": str(tmp_path / str(number))}
        found = read_columns(encode_dataset(params | changed).train, list(expected))
        for column, values in expected.items():
            np.testing.assert_array_equal(found[column], values, err_msg=f"{name} {column}")


def test_small_blocks_do_not_show(params, tmp_path, monkeypatch):
    whole = encode_dataset(params)
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.csv_files._BLOCK_BYTES", 100)
    cut = encode_dataset(params | {"data_root": str(tmp_path / "cut")})
    for name in ("feature_map.json", "feature_vocab.json"):
        assert (whole.data_dir / name).read_bytes() == (cut.data_dir / name).read_bytes()
    for split in ("train", "valid", "test"):
        names = ["session", "user", "history", "tags", "click"]
        expected = read_columns(getattr(whole, split), names)
        for name, values in read_columns(getattr(cut, split), names).items():
            np.testing.assert_array_equal(values, expected[name])


def test_files_are_parsed_once_where_there_is_room_to_keep_their_rows(
    params, tmp_path, monkeypatch
):
    parsed, written = [], []
    parse, new_file = CsvFile._parse, pa.ipc.new_file

    def parsing(file, *arguments):
        parsed.append(file.path.name)
        return parse(file, *arguments)

    def writing(*arguments):
        written.append(arguments)
        if len(written) == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return new_file(*arguments)

    monkeypatch.setattr(CsvFile, "_parse", parsing)
    monkeypatch.setattr(pa.ipc, "new_file", writing)
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.splits._CHUNK_ROWS", 50)
    encoded = []
    for full, times in ((0, 1), (3, 2)):  # the third of the five blocks of train does not fit
        parsed.clear(), written.clear()
        dataset = encode_dataset(params | {"data_root": str(tmp_path / str(full))})
        assert sorted(parsed) == ["test.csv", *["train.csv"] * times, "valid.csv"]
        files = sorted(dataset.data_dir.iterdir())
        encoded.append({f.name: f.read_bytes() for f in files if f.name != "encoding.json"})
        assert not list(dataset.data_dir.glob(".*"))
    assert encoded[0] == encoded[1]


def test_preprocessing_sees_all_rows(plain_params, tmp_path, monkeypatch):
    (tmp_path / "mine_lazy.py").write_text(
        "import polars as pl\n"
        "from fuxictr.preprocess import FeatureProcessor\n"
        "class Mine(FeatureProcessor):\n"
        "    def above_mean(self, name):\n"
        "        return (pl.col(name) > pl.col(name).mean()).cast(pl.Int64)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.csv_files._BLOCK_BYTES", 64)
    numbers = range(200)
    Path(plain_params["train_data"]).write_text(
        "color,click\n" + "".join(f"{n},{n % 2}\n" for n in numbers)
    )
    column = {"dtype": "float", "type": "numeric", "preprocess": "above_mean"}
    params = with_column(plain_params, **column) | {"feature_processor": "mine_lazy:Mine"}
    found = read_columns(encode_dataset(params).train, ["color"])["color"]
    assert found.tolist() == [float(n > 99.5) for n in numbers]


def test_a_processor_that_overrides_the_encoding_is_refused(plain_params, tmp_path, monkeypatch):
    (tmp_path / "mine_transform.py").write_text(
        "from fuxictr.preprocess import FeatureProcessor\n"
        "class Mine(FeatureProcessor):\n"
        "    def transform(self, batch):\n"
        "        return batch\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="overrides transform"):
        encode_dataset(plain_params | {"feature_processor": "mine_transform:Mine"})


BAD_BYTES = {
    "latin 1": (b"color,click\nred,1\nr\xf6t,0\n", "line 3: byte 0xf6 is not UTF-8"),
    "short line": (b"color,click\n" + b"red,1\n" * 9 + b"blue", "line 11 has 1 fields"),
}


@pytest.mark.parametrize(("content", "message"), BAD_BYTES.values(), ids=BAD_BYTES)
@pytest.mark.parametrize("block", [8, 1 << 20])
def test_bad_lines_are_named_in_any_block(plain_params, monkeypatch, content, message, block):
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.csv_files._BLOCK_BYTES", block)
    Path(plain_params["train_data"]).write_bytes(content)
    with pytest.raises(DataError, match=rf"plain\.csv: {message}"):
        encode_dataset(plain_params)
    assert not (Path(plain_params["data_root"]) / "plain").exists()


def test_a_cut_gzip_file_is_named(plain_params, tmp_path):
    whole = gzip.compress(b"color,click\n" + os.urandom(9000).hex().encode() + b",1\n")
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"cut\.csv\.gz: is no whole gzip file"):
        encode_dataset(plain_params | {"train_data": str(path)})


def test_rows_are_not_counted_twice(plain_params, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.csv").write_text("color,click\nred,1\n")
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"color,click\nred,1\n"))
    with pytest.raises(DataError, match=r"a\.csv: is there gzipped as well"):
        encode_dataset(plain_params | {"train_data": str(folder)})
    (folder / "a.csv.gz").unlink()
    (folder / "b.csv").write_text("colour,click\nred,1\n")
    with pytest.raises(DataError, match=r"b\.csv: column 'color' is missing, in .*a\.csv"):
        encode_dataset(plain_params | {"train_data": str(folder)})


@pytest.mark.parametrize(
    ("color", "message"),
    [
        ([1, 2], "holds Int64, its dtype says str$"),
        ([["red"], []], r"holds List\(String\), its dtype says str; set dtype: list$"),
    ],
)
def test_types_of_parquet_columns_must_agree(plain_params, tmp_path, color, message):
    path = tmp_path / "raw.parquet"
    pl.DataFrame({"color": color, "click": [0, 1]}).write_parquet(path)
    params = plain_params | {"data_format": "parquet", "train_data": str(path)}
    with pytest.raises(DataError, match=f"column 'color' {message}"):
        encode_dataset(params)


def test_sources_that_change_meanwhile_are_noticed(params, monkeypatch):
    from fuxictr_tf4ctr.datasets import encode

    inner = encode._write_split

    def write(job, processor, split, encoders):
        rows = inner(job, processor, split, encoders)
        with open(params["train_data"], "a") as file:
            file.write("\n")
        return rows

    monkeypatch.setattr(encode, "_write_split", write)
    with pytest.raises(DataError, match=r"train\.csv: changed while it was being encoded"):
        encode_dataset(params)
    assert not (Path(params["data_root"]) / "small").exists()


@pytest.mark.parametrize("kilobytes", [0, 8, 30, 45, 60])
def test_a_full_disk_leaves_what_was_there(params, tmp_path, kilobytes):
    raw = pl.read_csv(params["train_data"])
    pl.concat([raw] * 100).write_csv(params["train_data"])  # encodes to 0.9 MB
    with small_disk(tmp_path) as disk:
        params["data_root"] = str(disk)
        first = encode_dataset(params | {"train_data": params["test_data"]})
        before = {path.name: path.read_bytes() for path in first.data_dir.iterdir()}
        free = shutil.disk_usage(disk).free - kilobytes * 1024
        (disk / "filler").write_bytes(bytes(free))
        with pytest.raises(StorageError, match="no space left"):
            encode_dataset(params)
        gc.collect()
        assert {path.name: path.read_bytes() for path in first.data_dir.iterdir()} == before
        assert encode_dataset(params | {"train_data": params["test_data"]}) == first
        (disk / "filler").unlink()
        assert encode_dataset(params | {"n_rows": 300}).rows["train"] == 300


def test_room_for_the_rows_is_looked_for_before_they_are_encoded(params, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5000))
    passes = SimpleNamespace(count=HERE.count, encoded=lambda *_: pytest.fail("began to encode"))
    with pytest.raises(StorageError, match=r"needs about 0\.0 MB, 0\.0 MB are free"):
        encode_dataset(params, passes)


def test_a_vocabulary_without_tokens_is_refused(plain_params, monkeypatch):
    def build_vocab(self, counts):
        self.vocab = {"__PAD__": 0, "__OOV__": 1}

    monkeypatch.setattr(Tokenizer, "build_vocab", build_vocab)
    with pytest.raises(DataError, match="hold nothing but padding and OOV"):
        encode_dataset(plain_params)


def test_checksums_find_a_changed_byte(params):
    dataset = encode_dataset(params)
    manifest.verify(dataset.data_dir)
    content = bytearray(dataset.valid.read_bytes())
    content[-1] ^= 1
    dataset.valid.write_bytes(content)
    with pytest.raises(DataError, match=r"valid\.h5 is not as it was written"):
        manifest.verify(dataset.data_dir)


def test_decoding_gives_back_the_raw_values(params):
    dataset = encode_dataset(params)
    raw = pl.read_csv(params["valid_data"], infer_schema=False)
    rows = decode_rows(dataset, "valid", first=3, count=20)
    vocab = json.loads((dataset.data_dir / "feature_vocab.json").read_text())
    for got, expected in zip(
        rows.iter_rows(named=True), raw[3:23].iter_rows(named=True), strict=True
    ):
        user = expected["user"] or ""
        assert got["user"] == (user if user in vocab["user"] else "__OOV__")
        items = expected["history"].split("^")[:4]
        assert got["history"] == [i if i in vocab["history"] else "__OOV__" for i in items]
        assert got["score"] == np.float32(expected["score"])
        assert got["click"] == float(expected["click"])
    with pytest.raises(SettingsError, match="valid has rows 0 to 59, not 60"):
        decode_rows(dataset, "valid", first=60)


def test_the_description_counts_what_is_there(plain_params, tmp_path):
    (tmp_path / "test.csv").write_text("color,click\nred,1\ngreen,1\nred,1\nblue,0\n")
    params = plain_params | {"test_data": str(tmp_path / "test.csv")}
    text = describe_dataset(encode_dataset(params), params)
    assert "train            3 rows   mean of click 0.3333" in text
    assert "test             4 rows   mean of click 0.7500" in text
    line = next(line for line in text.splitlines() if line.startswith("color"))
    assert line.split()[:5] == ["color", "categorical", "4", "0.00%", "25.00%"]
    assert line.endswith("'red' 66.7%, 'blue' 33.3%")
    assert "test in train: 3 (75.00%)" in text


def test_only_used_columns_need_to_parse(tmp_path):
    path = tmp_path / "raw.csv"
    rows = "".join(f"{n},{n}\n" for n in range(300))
    path.write_text("used,unused\n" + rows + "1,text\n")
    frame = RawFiles([path]).frame()
    assert frame.select("used").collect(engine="streaming").height == 301
