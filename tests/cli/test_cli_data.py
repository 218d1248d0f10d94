"""The commands on data alone: encode, describe, decode."""

import json
from pathlib import Path

import pytest
import yaml

from fuxictr_tf4ctr.cli import main


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> list[str]:
    """A data set of one csv file, split by share, and the arguments that name it."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{color},{n % 2}\n" for n, color in enumerate(["red", "blue"] * 10))
    (tmp_path / "raw.csv").write_text("color,click\n" + rows)
    dataset = {
        "data_format": "csv",
        "data_root": str(tmp_path / "data"),
        "train_data": "raw.csv",
        "test_size": 0.25,
        "feature_cols": [{"name": "color", "dtype": "str", "type": "categorical"}],
        "label_col": {"name": "click", "dtype": "float"},
    }
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "dataset_config.yaml").write_text(yaml.safe_dump({"colors": dataset}))
    (folder / "model_config.yaml").write_text("Base: {}\n")
    return ["--dataset", "colors", "--config", str(folder)]


def test_encode_says_what_there_is(config, capsys, tmp_path):
    for _ in range(2):
        assert main(["encode", *config]) == 0
        assert capsys.readouterr().out.split() == [
            *("train", "15", "rows", "test", "5", "rows", "in", str(tmp_path / "data" / "colors"))
        ]


def test_encode_verifies_checksums(config, capsys, tmp_path):
    main(["encode", *config])
    path = tmp_path / "data" / "colors" / "test.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["encode", *config]) == 2
    assert "test.h5 is not as it was written" in capsys.readouterr().err


def test_describe_and_decode(config, capsys):
    assert main(["describe", *config]) == 0
    text = capsys.readouterr().out
    assert "15 rows" in text and "'red' 53.3%" in text and "test in train: 5 (100.00%)" in text
    assert main(["decode", *config, "--split", "test", "--first", "1", "--rows", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"color": "red", "click": 0.0}, {"color": "blue", "click": 1.0}]


def test_mistakes_are_named(config, capsys):
    assert main(["encode", "--dataset", "colours", *config[2:]]) == 2
    assert "did you mean 'colors'" in capsys.readouterr().err
    assert main(["encode", *config, "--set", "train_data=nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
    assert main(["decode", *config, "--split", "valid"]) == 2
    assert "has no valid split" in capsys.readouterr().err
