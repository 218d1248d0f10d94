"""Encoding as a step others rely on: used again, interrupted, concurrent, or refused."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import Program

from fuxictr_tf4ctr.datasets import encode_dataset, load_feature_map, read_columns
from fuxictr_tf4ctr.datasets.fitted import read_encoder
from fuxictr_tf4ctr.errors import DataError, SettingsError

ENCODE = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from fuxictr_tf4ctr.datasets import encode, encode_dataset
"""
RUN = "encode_dataset(json.loads(sys.argv[1]))\n"


def start(code, params):
    return Program("-c", code, json.dumps(params), cwd=Path(params["train_data"]).parent)


def state(folder: Path):
    """Everything under a folder, with contents, to see whether anything was written."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_unchanged_data_set_is_used_again(params):
    first = encode_dataset(params)
    before = state(first.data_dir)
    second = encode_dataset(params | {"group_id": None, "embedding_dim": 9})
    assert second == first
    assert state(first.data_dir) == before


def test_the_settings_given_are_not_changed(params):
    before = json.dumps(params)
    encode_dataset(params)
    assert json.dumps(params) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_categr_count": 1}, "min_categr_count changed"),
        ({"n_rows": 50}, "n_rows changed"),
        ({"label_col": {"name": "click", "dtype": "int"}}, "label_col changed"),
        ({"feature_processor": "fuxictr.datasets.kkbox"}, "feature_processor changed"),
        ({"test_data": None}, "test_data changed"),
    ],
)
def test_changed_settings_encode_again(params, caplog, change, message):
    first = encode_dataset(params)
    caplog.clear()
    with caplog.at_level("INFO"):
        second = encode_dataset(params | change)
    assert message in caplog.text
    assert second.fingerprint != first.fingerprint
    assert (second.data_dir / "test.h5").exists() == (second.test is not None)


def test_a_changed_source_encodes_again(params, caplog):
    first = encode_dataset(params)
    lines = Path(params["valid_data"]).read_text().splitlines(keepends=True)
    Path(params["valid_data"]).write_text("".join(lines[:11]))
    with caplog.at_level("INFO"):
        second = encode_dataset(params)
    assert "valid_data changed" in caplog.text and "train_data changed" not in caplog.text
    assert second.fingerprint != first.fingerprint
    assert second.rows == {"train": 230, "valid": 10, "test": 45}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_encodes_again(params, damage):
    dataset = encode_dataset(params)
    expected = dataset.valid.read_bytes()
    damage(dataset.valid)
    assert encode_dataset(params) == dataset
    assert dataset.valid.read_bytes() == expected


@pytest.mark.parametrize("module", ["my_processor", "its_base"])
def test_a_changed_processor_encodes_again(plain_params, tmp_path, monkeypatch, module):
    derived = "from its_base import Mine\nclass Mine(Mine):\n    pass\n"
    (tmp_path / "my_processor.py").write_text(derived)
    module = tmp_path / f"{module}.py"
    code = (
        "import polars as pl\n"
        "from fuxictr.preprocess import FeatureProcessor\n"
        "class Mine(FeatureProcessor):\n"
        "    def shorten(self, name):\n"
        "        return pl.col(name).str.slice(0, {})\n"
    )
    module.write_text(code.format(1))
    monkeypatch.syspath_prepend(tmp_path)
    plain_params["feature_processor"] = "my_processor:Mine"
    plain_params["feature_cols"][0]["preprocess"] = "shorten"

    def tokens():
        for name in ("my_processor", "its_base"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        dataset = encode_dataset(plain_params)
        return list(json.loads((dataset.data_dir / "feature_vocab.json").read_text())["color"])

    assert tokens() == ["__PAD__", "r", "b", "__OOV__"]
    module.write_text(code.format(3))
    assert tokens() == ["__PAD__", "red", "blu", "__OOV__"]


def test_raw_files_in_the_folder_are_left_alone(params):
    data_dir = Path(params["data_root"]) / "small"
    data_dir.mkdir(parents=True)
    raw = data_dir / "train.csv"
    raw.write_bytes(Path(params["train_data"]).read_bytes())
    before = state(data_dir)
    encode_dataset(params | {"train_data": str(raw)})
    encode_dataset(params | {"train_data": str(raw), "min_categr_count": 1})
    after = state(data_dir)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("name", ["train.h5", "encoding.json"])
def test_files_of_others_are_never_overwritten(params, name):
    data_dir = Path(params["data_root"]) / "small"
    data_dir.mkdir(parents=True)
    (data_dir / name).write_text("{}")
    with pytest.raises(DataError, match=f"(?s){name}: .* (move|remove) it"):
        encode_dataset(params)
    assert [path.name for path in data_dir.iterdir()] == [name]
    assert (data_dir / name).read_text() == "{}"


def test_nothing_is_left_of_a_failed_encoding(plain_params):
    Path(plain_params["train_data"]).write_text("color,click\nred,1\nblue,no\n")
    with pytest.raises(DataError, match=r"plain\.csv: line 3, column 'click': 'no' is no Float64"):
        encode_dataset(plain_params)
    assert not (Path(plain_params["data_root"]) / "plain").exists()


def test_after_a_failed_encoding_the_next_one_goes_on(plain_params):
    encode_dataset(plain_params)
    Path(plain_params["train_data"]).write_text("color,click\n")
    with pytest.raises(DataError, match="the train split is empty"):
        encode_dataset(plain_params)
    Path(plain_params["train_data"]).write_text("color,click\nred,1\n")
    assert encode_dataset(plain_params).rows == {"train": 1}


def test_two_processes_encode_once(params):
    slow = ENCODE + (
        "import time\n"
        "inner = encode._fit\n"
        "def fit(*args):\n"
        "    time.sleep(2)\n"
        "    return inner(*args)\n"
        "encode._fit = fit\n"
    )
    runs = [start(slow + RUN, params) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sorted("not encoded yet" in output for output in outputs) == [False, True]
    assert encode_dataset(params).rows == {"train": 230, "valid": 60, "test": 45}


KILLED = {
    "while fitting": "encode._fit",
    "before anything is moved": "encode.manifest.publish",
    "between two moved files": "encode.manifest.os.replace",
}


@pytest.mark.parametrize("place", KILLED.values(), ids=KILLED)
@pytest.mark.parametrize("again", [False, True], ids=["first time", "over an old encoding"])
def test_a_killed_encoding_is_done_again(params, place, again):
    if again:
        encode_dataset(params | {"min_categr_count": 1})
    # Die by SIGKILL at the eighth os.replace: three h5 files and two manifests have been written,
    # the manifest and one file been moved then.
    calls = 8 if place.endswith("replace") else 1
    code = ENCODE + (
        "import os, signal\n"
        "def until_killed(inner, left):\n"
        "    def call(*args, **kwargs):\n"
        "        nonlocal left\n"
        "        left -= 1\n"
        "        if left == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return inner(*args, **kwargs)\n"
        "    return call\n"
        f"{place} = until_killed({place}, {calls})\n"
    )
    run = start(code + RUN, params)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == -9, output
    data_dir = Path(params["data_root"]) / "small"
    assert list(data_dir.glob(".encoding.*"))

    dataset = encode_dataset(params)
    assert not list(data_dir.glob(".encoding.*"))
    clean = encode_dataset(params | {"data_root": params["data_root"] + "_clean"})
    for name in ("train.h5", "valid.h5", "test.h5", "feature_map.json", "feature_vocab.json"):
        assert (dataset.data_dir / name).read_bytes() == (clean.data_dir / name).read_bytes()


def test_rebuild_dataset_false_uses_the_files_present(params):
    dataset = encode_dataset(params)
    os.utime(params["train_data"], (time.time(), time.time() + 9))
    kept = encode_dataset(params | {"rebuild_dataset": False, "min_categr_count": 1})
    assert (kept.train, kept.valid, kept.test) == (dataset.train, dataset.valid, dataset.test)
    assert kept.rows == dataset.rows
    with pytest.raises(DataError, match=r"feature_map\.json: missing"):
        encode_dataset(params | {"rebuild_dataset": False, "dataset_id": "other"})


def test_encoded_files_are_used_as_they_are(encoded, tmp_path):
    path = encoded(20)
    data_dir = tmp_path / "root" / "made"
    data_dir.mkdir(parents=True)
    os.replace(tmp_path / "feature_map.json", data_dir / "feature_map.json")
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "part_0.h5").write_bytes(path.read_bytes())
    (folder / "part_1.h5").write_bytes(path.read_bytes())
    params = {
        "dataset_id": "made",
        "data_root": str(tmp_path / "root"),
        "data_format": "h5",
        "train_data": str(path.with_suffix("")),
        "test_data": str(folder),
    }
    before = state(tmp_path)
    dataset = encode_dataset(params)
    assert (dataset.train, dataset.valid, dataset.test) == (path, None, folder)
    assert dataset.rows == {"train": 20, "test": 40}
    assert list(load_feature_map(dataset, params).features)
    assert state(tmp_path) == before

    os.utime(folder / "part_1.h5", (1, 1))
    assert encode_dataset(params).fingerprint != dataset.fingerprint
    with pytest.raises(DataError, match=r"nowhere: no \.h5"):
        encode_dataset(params | {"valid_data": str(tmp_path / "nowhere")})
    (data_dir / "feature_map.json").unlink()
    with pytest.raises(DataError, match=r"made/feature_map\.json: missing"):
        encode_dataset(params)


def test_missing_labels_are_filled_as_fuxictr_does_and_told(plain_params, caplog):
    Path(plain_params["train_data"]).write_text("color,click\nred,1\nblue,\nred,\n")
    dataset = encode_dataset(plain_params)
    assert "FuxiCTR fills 2 missing 'click'" in caplog.text
    np.testing.assert_array_equal(read_columns(dataset.train, ["click"])["click"], [1, 0, 0])


BAD_FILES = {
    "empty": ("", "the file is empty"),
    "only a header": ("color,click\n", "the train split is empty, it has no rows"),
    "no column": ("colour,click\nred,1\n", "no column 'color'; there: colour$"),
    "no label": ("color,clicked\nred,1\n", "no label 'click'; there: clicked$"),
    "no number": ("color,click\nred,yes\n", "line 2, column 'click': 'yes' is no Float64"),
    "too many fields": ("color,click\nred,1\nred,1,2\n", "line 3 has 3 fields, the header 2"),
    "a text of lines": ("color,click\nr\u2028d,1\nred,1,2\n", "line 3 has 3 fields, the header 2"),
    "a lone return": ("color,click\nr\re,1\nred\n", "line 3 has 1 fields, the header 2"),
    "a long text": (f"color,click\n{'r' * 2**18},1\nred\n", "line 3 has 1 fields, the header 2"),
    "too few fields": ("color,click\nred,1\nred\nblue,0\n", "line 3 has 1 fields, the header 2"),
    "an empty line": ("color,click\nred,1\n\nblue,0\n", "line 3 has 0 fields, the header 2"),
    "quoted": ('color,click\n"a,\nb",1\n"c",1,2\n', "line 4 has 3 fields, the header 2"),
    "open quote": ('color,click\nred,1\n"blue,0\nred,1\n', "line 3 has 1 fields"),
    "separator": ("color;click\nred;1\n", "no label 'click'; there: color;click; is sep right"),
    "no token": ("color,click\n,1\n,0\n", "column 'color': no value occurs min_categr_count"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(plain_params, text, message):
    Path(plain_params["train_data"]).write_text(text, newline="")
    with pytest.raises(DataError, match=rf"plain\.csv: {message}"):
        encode_dataset(plain_params)


def test_the_bad_split_is_named(plain_params, tmp_path):
    (tmp_path / "test.csv").write_text("color,click\nred,1\nred,oops\n")
    with pytest.raises(DataError, match=r"test\.csv: line 3, column 'click': 'oops' is no"):
        encode_dataset(plain_params | {"test_data": str(tmp_path / "test.csv")})
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        encode_dataset(plain_params | {"test_data": str(tmp_path / "nowhere.csv")})


def test_path_and_format_must_agree(plain_params, tmp_path):
    with pytest.raises(DataError, match=r"plain\.csv: data_format is parquet"):
        encode_dataset(plain_params | {"data_format": "parquet"})
    (tmp_path / "x.parquet").write_text("color,click\nred,1\n")
    x = {"train_data": str(tmp_path / "x.parquet")}
    with pytest.raises(DataError, match=r"x\.parquet: data_format is csv"):
        encode_dataset(plain_params | x)
    with pytest.raises(
        DataError, match=r"x\.parquet: cannot be read as parquet: .*File out of specification"
    ):
        encode_dataset(plain_params | x | {"data_format": "parquet"})
    with pytest.raises(DataError, match=r"a folder without a \*\.parquet file"):
        encode_dataset(
            plain_params | {"data_format": "parquet", "train_data": os.path.dirname(__file__)}
        )


def test_a_path_that_reads_as_a_pattern_is_refused(plain_params, tmp_path):
    path = tmp_path / "part[1].csv"
    os.replace(plain_params["train_data"], path)
    with pytest.raises(DataError, match=r"part\[1\]\.csv: .* are read as a pattern; rename"):
        encode_dataset(plain_params | {"train_data": str(path)})


def test_a_root_that_cannot_be_written_is_named(plain_params, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/plain"):
        encode_dataset(plain_params | {"data_root": str(tmp_path / "file")})


def with_column(params, **entries):
    return params | {"feature_cols": [params["feature_cols"][0] | entries]}


def test_a_broken_pretrained_file_is_named(plain_params, tmp_path):
    path = tmp_path / "emb.npz"
    column = {"pretrained_emb": str(path), "pretrain_dim": 2}
    with pytest.raises(DataError, match=r"emb\.npz: no such file \(pretrained_emb of 'color'\)"):
        encode_dataset(with_column(plain_params, **column))
    np.savez(path, keys=np.array(["red"]))
    with pytest.raises(DataError, match="pretrained_emb file must hold the arrays key and value"):
        encode_dataset(with_column(plain_params, **column))


def test_a_pretrained_file_may_have_numbers_as_keys(plain_params, tmp_path):
    Path(plain_params["train_data"]).write_text("color,click\n3,1\n1,0\n")
    path = tmp_path / "emb.npz"
    np.savez(path, key=np.array([3, 7]), value=np.zeros((2, 2)))
    column = {"dtype": "int", "pretrained_emb": str(path), "pretrain_dim": 2}
    folder = encode_dataset(with_column(plain_params, **column)).data_dir
    vocabulary = {"__PAD__": 0, "1": 1, "3": 2, "__OOV__": 3, "7": 4}
    assert json.loads((folder / "feature_vocab.json").read_text())["color"] == vocabulary
    assert read_encoder(folder)["tokenizers"]["color"]["vocab"] == {
        int(token) if token.isdecimal() else token: i for token, i in vocabulary.items()
    }


BAD_SETTINGS = {
    "format": ({"data_format": "npy"}, "data_format='npy' must be one of csv"),
    "tfrecord": ({"data_format": "tfrecord"}, "tfrecord is TensorFlow's"),
    "no root": ({"data_root": None}, "data_root is missing"),
    "no train": ({"train_data": None}, "train_data is missing"),
    "path as id": ({"dataset_id": "../x"}, "dataset_id='../x' must be a name"),
    "parent as id": ({"dataset_id": ".."}, "must be a name of at most"),
    "share": ({"valid_size": -0.1}, "valid_size=-0.1 must be a share below 1 or a whole"),
    "size": ({"test_size": 1.5}, "test_size=1.5 must be a share below 1 or a whole"),
    "split twice": ({"test_size": 1, "test_data": "x.csv"}, "test_size and test_data are both"),
    "split type": (
        {"test_size": 1, "split_type": "shuffled"},
        "split_type='shuffled' must be one of",
    ),
    "split h5": ({"test_size": 1, "data_format": "h5"}, "split raw files, not encoded ones"),
    "buckets": ({"num_buckets": 1}, "num_buckets=1 must be a whole number >= 2"),
    "compression": ({"compression": "zip"}, "compression='zip' must be one of gzip, lzf"),
    "count": ({"min_categr_count": 0}, "min_categr_count=0 must be a whole"),
    "rows": ({"n_rows": "many"}, "n_rows='many' must be a whole"),
    "separator": ({"sep": "::"}, "sep='::' must be a single character"),
    "processor": ({"feature_processor": "no.such"}, "'no.such' cannot be imported"),
    "class": ({"feature_processor": "json:dumps"}, "'json:dumps' is no subclass"),
    "columns": ({"feature_cols": None}, "feature_cols"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_are_named(plain_params, change, message):
    with pytest.raises(SettingsError, match=message):
        encode_dataset(plain_params | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("copy_form(color)", "unknown preprocess function 'copy_form'; did you mean 'copy_from'"),
        ("convert_to_bucket", ".*set feature_processor: fuxictr.datasets.criteo"),
        ("load_pickle(x.pkl)", "unknown preprocess function 'load_pickle'"),
        ("__init__", "unknown preprocess function '__init__'"),
    ],
)
def test_preprocess_names_a_preprocess_function(plain_params, call, message):
    with pytest.raises(SettingsError, match=f"column 'color': {message}"):
        encode_dataset(with_column(plain_params, preprocess=call))


def test_preprocess_of_a_missing_column_is_named(plain_params):
    with pytest.raises(DataError, match=r"plain\.csv: unable to find column \"hue\""):
        encode_dataset(with_column(plain_params, preprocess="copy_from(hue)"))
