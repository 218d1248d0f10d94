"""fuxictr show: an experiment whole, to run by itself here and to load under FuxiCTR."""

import pytest
import torch
import yaml
from fuxictr.utils import load_config
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.settings.reading import SHOWN, load_settings

EXPIDS = ("TF4CTR_WideDeep_demo", "EulerNet_demo", "TF4CTR_DIN_kkbox", "xDeepFM_frappe_x1")

FILES = ("train_data", "valid_data", "test_data")


def settings_of(expid, config=None, **overrides):
    return load_settings(expid, config, overrides, needs=SHOWN)


@pytest.mark.parametrize("expid", EXPIDS)
def test_a_folder_written_out_holds_the_same_experiment(expid, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["show", expid, "--set", "epochs=3", "--output", str(folder)]) == 0
    before, after = settings_of(expid, epochs=3), settings_of(expid, folder)
    # Files that are not there are looked for beside the folder that names them.
    same = {} if expid.endswith("_demo") else {key: after[key] for key in FILES}
    expected = before.model_class.complete(before.params) | same
    assert dict(after.model_class.complete(after.params)) == expected
    theirs = load_config(str(folder), expid)  # FuxiCTR's
    assert theirs.items() >= {"epochs": 3, "model": before["model"], "model_id": expid}.items()
    assert {key: after[key] for key in theirs} | {
        key: theirs[key] for key in (*FILES, "data_root")
    } == theirs
    assert main(["show", expid, "--output", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_is_printed_are_the_sections(capsys):
    assert main(["show", "TF4CTR_DCNv2_demo", "--set", "c=0.5", "--set", "min_categr_count=3"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert list(printed) == ["demo", "TF4CTR_DCNv2_demo"]
    assert printed["demo"]["min_categr_count"] == 3 and printed["demo"]["feature_cols"]
    model = printed["TF4CTR_DCNv2_demo"]
    assert (model["c"], model["complex_hidden_units"], model["fusion"]) == (0.5, [128, 64], "WSF")
    assert main(["show", "TF4CTR_DCNv2_demo", "--set", "c=5"]) == 2


def test_the_folder_runs_here_and_builds_the_model_under_fuxictr(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{int((i * 7) % 11 < 5)},u{i % 9},i{i % 5}" for i in range(80)]
    (tmp_path / "train.csv").write_text("\n".join(["label,user,item", *rows]) + "\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "model_config.yaml").write_text("Base: {batch_size: 20, epochs: 1}")
    (tmp_path / "config" / "dataset_config.yaml").write_text(
        "mine: {data_root: encoded, data_format: csv, train_data: train.csv, valid_data: train.csv,"
        " feature_cols: [{name: [user, item], active: true, dtype: str, type: categorical}],"
        " label_col: {name: label, dtype: float}}"
    )
    assert main(["show", "TF4CTR_DCN_mine", "--set", "embedding_dim=4", "--output", "alone"]) == 0
    assert main(["run", "--config", "alone", "--expid", "TF4CTR_DCN_mine", "--output", "runs"]) == 0
    params = load_config("alone", "TF4CTR_DCN_mine")
    model = getattr(model_zoo, params["model"])(make_feature_map(), **params)
    model._max_gradient_norm = 10.0
    assert torch.isfinite(model.train_step(random_batch(model.feature_map)))
