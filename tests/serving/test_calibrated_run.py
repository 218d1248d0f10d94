"""A run with calibration: metrics beside the others, scores by predict, evaluate and export."""

import json

import numpy as np
import polars as pl
import pytest

from fuxictr_tf4ctr import load, load_settings, run_experiment
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.serving.export import export_run
from fuxictr_tf4ctr.serving.score import Scorer

TINY = {"epochs": 1, "embedding_dim": 4, "complex_hidden_units": [6], "verbose": 0}


@pytest.fixture(scope="module", params=["temperature", "isotonic"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    places = {"data_root": str(folder / "data"), "model_root": str(folder / "runs")}
    overrides = TINY | places | {"calibration": request.param}
    return load(run_experiment(load_settings("TF4CTR_DCNv2_demo", overrides=overrides)).folder)


def test_metrics_stand_beside_the_others(run):
    valid, test = run.record.valid, run.record.test
    assert valid["logloss_calibrated"] < valid["logloss"]
    assert set(test) == {"AUC", "logloss", "ece", "logloss_calibrated", "ece_calibrated"}
    assert json.loads(run.record.calibration_file.read_text())["method"] in str(run.settings.params)


def test_predict_and_evaluate_use_it(run, demo_csv, tmp_path, capsys):
    output = tmp_path / "scores.parquet"
    named = ["--run", str(run.folder), "--input", str(demo_csv)]
    assert main(["predict", *named, "--output", str(output)]) == 0
    found = pl.read_parquet(output)
    assert found.columns == ["y_pred", "y_calibrated"]
    assert (found["y_pred"] - found["y_calibrated"]).abs().max() > 1e-4
    capsys.readouterr()
    assert main(["evaluate", *named]) == 0
    assert (
        f"logloss_calibrated: {run.record.test['logloss_calibrated']:.6f}"
        in capsys.readouterr().out
    )


def test_an_export_scores_it(run, demo_csv, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    done = export_run(run, tmp_path / "export")
    frame = pl.read_csv(demo_csv)
    scores = Scorer(done.folder).score(frame.head(50).to_dicts())
    expected = run.predict_frame(frame.head(50), streams=True)
    for name in ("y_pred", "y_calibrated", "y_simple"):
        np.testing.assert_allclose(scores[name], expected[name], atol=1e-5)


def test_what_it_cannot_be_fitted_for_is_refused(run):
    with pytest.raises(SettingsError, match="calibration is for one label of task binary"):
        overrides = {"task": "regression", "loss": "mse", "calibration": "temperature"}
        load_settings("DeepFM_demo", overrides=overrides)
    with pytest.raises(SettingsError, match="isotonic"):
        load_settings("DeepFM_demo", overrides={"calibration": "isotonik"})
    kept = run.record.calibration_file.read_text()
    try:
        for content, said in (
            ({"method": "temperature", "temperature": -1}, "temperature=-1 must be"),
            ({"method": "temperature", "x": [0.1], "y": [0.1]}, "temperature needs a temperature"),
            ({"method": "isotonic", "x": [0.2, 0.1], "y": [0, 1]}, "x in ascending order"),
            ({"method": "isotonic", "x": [0.1, 0.2], "y": [0]}, "as many y"),
        ):
            run.record.calibration_file.write_text(json.dumps(content))
            with pytest.raises(DataError, match=rf"calibration.json: .*{said}"):
                load(run.folder)
    finally:
        run.record.calibration_file.write_text(kept)
