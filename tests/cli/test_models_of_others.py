"""A model that others wrote stops in its own code: a message says where, the log has it all."""

import pytest
import yaml

from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.fuxictr_imports import error_of_others

MODEL = """
from trained_runs import OneStream

def checked(found):
    return found["price"]

class Stops(OneStream):
    def forward(self, inputs):
        return super().forward(checked(inputs))
"""


def test_its_error_is_shown_as_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stopping_model.py").write_text(MODEL)
    (tmp_path / "rows.csv").write_text("label,user\n" + "1,a\n0,b\n" * 8)
    dataset = {
        "data_format": "csv", "data_root": "data", "train_data": "rows.csv",
        "valid_data": "rows.csv", "label_col": {"name": "label", "dtype": "float"},
        "feature_cols": [{"name": "user", "dtype": "str", "type": "categorical"}],
    }  # fmt: skip
    section = {
        "model": "stopping_model:Stops",
        "dataset_id": "rows",
        "embedding_dim": 4,
        "epochs": 1,
        "verbose": 0,
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "model_config.yaml").write_text(yaml.safe_dump({"mine": section}))
    (tmp_path / "config" / "dataset_config.yaml").write_text(yaml.safe_dump({"rows": dataset}))
    assert main(["run", "--expid", "mine"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    where = f"{tmp_path / 'stopping_model.py'}, line 5"
    assert said == f"fuxictr: model Stops stopped in {where}: KeyError: 'price'"
    (log,) = tmp_path.glob("checkpoints/**/*.log")
    assert "Traceback" in log.read_text() and "checked(inputs)" in log.read_text()


def test_what_gits_fuxictr_lacks_is_named():
    with pytest.raises(ModuleNotFoundError) as error:
        exec("import no_such_package", {"__name__": "fuxictr.preprocess.tokenizer"})
    assert "needs no_such_package, which is not installed: pip install no_such_package" in str(
        error_of_others(error.value)
    )
    assert error_of_others(ModuleNotFoundError("ours")) is None
