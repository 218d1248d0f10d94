"""Raw rows are scored as the run's own encoded rows, in their order, whatever comes in."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fuxictr_tf4ctr import load
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics
from fuxictr_tf4ctr.runs.scoring import evaluate_files, predict_files
from fuxictr_tf4ctr.training import predict


@pytest.fixture(params=["demo", "mixed", "frappe"])
def run_and_csv(request):
    return request.getfixturevalue(f"{request.param}_run"), request.getfixturevalue(
        f"{request.param}_csv"
    )


def test_the_raw_test_rows_give_the_runs_own_metrics(run_and_csv):
    run, csv = run_and_csv
    assert evaluate_files(run, csv).metrics == pytest.approx(run.record.test, abs=1e-6)


def test_every_way_in_and_out_gives_the_same_scores(run_and_csv, tmp_path):
    run, csv = run_and_csv
    expected = predict(run.model, run.loader("test"))
    frame = pl.read_csv(csv)
    frame.write_parquet(tmp_path / "rows.parquet")
    parts = tmp_path / "parts"
    parts.mkdir()
    cut = frame.height // 3
    for name, rows in (("a.csv", frame[:cut]), ("b.csv", frame[cut:])):
        rows.write_csv(parts / name)
    for number, source in enumerate((csv, tmp_path / "rows.parquet", parts, parts / "*.csv")):
        for suffix, read in (("csv", pl.read_csv), ("parquet", pl.read_parquet)):
            output = tmp_path / f"scores{number}.{suffix}"
            assert predict_files(run, source, output).rows == frame.height
            np.testing.assert_allclose(read(output)["y_pred"], expected, atol=1e-6)
    for rows in (frame, frame.to_pandas()):
        np.testing.assert_allclose(run.predict_frame(rows), expected, atol=1e-6)


def test_small_blocks_do_not_show(mixed_run, mixed_csv, tmp_path, monkeypatch):
    predict_files(mixed_run, mixed_csv, tmp_path / "whole.csv", keep=["user"])
    monkeypatch.setattr("fuxictr_tf4ctr.datasets.csv_files._BLOCK_BYTES", 300)
    predict_files(mixed_run, mixed_csv, tmp_path / "cut.csv", keep=["user"])
    whole, cut = (pl.read_csv(tmp_path / name) for name in ("whole.csv", "cut.csv"))
    assert whole["user"].equals(cut["user"])
    np.testing.assert_allclose(whole["y_pred"], cut["y_pred"], atol=1e-6)


def test_no_label_is_needed_keys_and_streams_are_carried(demo_run, demo_csv, tmp_path):
    frame = pl.read_csv(demo_csv).drop("label").with_row_index("key")
    frame = frame.with_columns(pl.format("00{}", "key").alias("key"))
    frame.write_csv(tmp_path / "rows.csv")
    predict_files(demo_run, tmp_path / "rows.csv", tmp_path / "s.parquet", ["key", "job"], True)
    found = pl.read_parquet(tmp_path / "s.parquet")
    assert found.columns == ["key", "job", "y_pred", "y_simple", "y_complex"]
    assert found["key"].to_list() == frame["key"].to_list()
    assert found["job"].to_list() == frame["job"].to_list()
    scores = demo_run.predict_frame(frame, streams=True)
    labels = pl.read_csv(demo_csv)["label"]
    for name in ("y_pred", "y_simple", "y_complex"):
        np.testing.assert_allclose(found[name], scores[name], atol=1e-6)
    auc = evaluate_metrics(labels, scores["y_pred"], ["AUC"])["AUC"]
    assert auc == pytest.approx(demo_run.record.test["AUC"], abs=1e-6)


def test_unknown_values_share_an_id_and_are_counted(mixed_run, mixed_csv, tmp_path):
    frame = pl.read_csv(mixed_csv).head(4)
    strange = frame.with_columns(
        user=pl.Series(["new", "newer", None, "u1"]),
        history=pl.Series(["new^new", "", "new", "i1"]),
        session=pl.lit("unheard of"),
    )
    strange.write_csv(tmp_path / "rows.csv")
    scored = predict_files(mixed_run, tmp_path / "rows.csv", tmp_path / "s.csv")
    assert (scored.unknown["user"], scored.seen["user"]) == (3, 4)
    assert (scored.unknown["history"], scored.seen["history"]) == (3, 4)
    assert any(line.startswith("user: 3 of 4 values unknown") for line in scored.lines())
    same = strange.with_columns(user=pl.Series(["other", "newest", None, "u1"]))
    first, second = mixed_run.predict_frame(strange), mixed_run.predict_frame(same)
    # A pretrained column copies user, so that only its rows may differ by more.
    np.testing.assert_array_equal(first, second)


def test_new_groups_are_told_apart(mixed_run, mixed_csv, tmp_path):
    frame = pl.read_csv(mixed_csv)
    renamed = frame.with_columns(session="new " + pl.col("session"))
    renamed.write_csv(tmp_path / "rows.csv")
    found = evaluate_files(mixed_run, tmp_path / "rows.csv").metrics
    assert found == pytest.approx(mixed_run.record.test, abs=1e-6)


def test_groups_that_the_file_does_not_hold_are_refused(mixed_run, mixed_csv, tmp_path):
    folder = shutil.copytree(mixed_run.folder, tmp_path / "run")
    path = folder / "schema" / "encoder.json"
    content = json.loads(path.read_text())
    content["features"][0] |= {"preprocess": "copy_from(user)"}
    path.unlink()  # a hard link: the run's own stays as it is
    path.write_text(json.dumps(content))
    pl.read_csv(mixed_csv).drop("session").write_csv(tmp_path / "rows.csv")
    with pytest.raises(SettingsError, match="unknown column 'session'"):
        evaluate_files(load(folder), tmp_path / "rows.csv")


HEADER = "label,age,job,marital,education,default,balance,housing,loan,contact,day,month,campaign,pdays,previous,poutcome"  # noqa: E501
GOOD = "0,34,blue-collar,married,secondary,no,291,yes,no,cellular,15,jul,4,-1,0,unknown"
BAD = {
    "too few fields": ("0,34", "line 3 has 2 fields, the header 16"),
    "a lone return": (GOOD.replace("yes", "y\r0") + ",1", "line 3 has 17 fields, the header 16"),
    "text for a number": (GOOD.replace("34", "old"), "line 3, column 'age': 'old' is no Float64"),
    "not finite": (GOOD.replace("34", "inf"), "column 'age'"),
    "not UTF-8": (GOOD.replace("jul", "\udcff"), "line 3"),
}


def write(path: Path, *lines: str) -> Path:
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_bad_rows_are_named_or_skipped_and_counted(demo_run, tmp_path, bad, message):
    rows = write(tmp_path / "rows.csv", HEADER, GOOD, bad, GOOD.replace("jul", "aug"))
    output = tmp_path / "scores.csv"
    with pytest.raises(DataError, match=message):
        predict_files(demo_run, rows, output)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    scored = predict_files(demo_run, rows, output, ["month"], skip_bad_rows=True)
    assert (scored.rows, scored.skipped.count) == (2, 1)
    assert message.split("3")[0] in scored.skipped.named[0]
    assert pl.read_csv(output)["month"].to_list() == ["jul", "aug"]


@pytest.mark.parametrize("label", ["2", ""])
def test_bad_labels_are_named_or_skipped(demo_run, tmp_path, label):
    good = [GOOD, "1" + GOOD[1:]]
    rows = write(tmp_path / "rows.csv", HEADER, *good, label + GOOD[1:])
    with pytest.raises(DataError, match="'label', row 2"):
        evaluate_files(demo_run, rows)
    scored = evaluate_files(demo_run, rows, skip_bad_rows=True)
    assert (scored.rows, scored.skipped.count) == (2, 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER], "no row"),
        ([], "is empty"),
        ([HEADER, "0,x"], "no row is left|no row that can be used"),
        ([HEADER.replace("job", "work"), GOOD], "no column 'job'"),
    ],
)
def test_input_that_cannot_be_used(demo_run, tmp_path, lines, message):
    rows = tmp_path / "rows.csv"
    rows.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        predict_files(demo_run, rows, tmp_path / "s.csv", skip_bad_rows=True)
    assert not (tmp_path / "s.csv").exists()


def test_what_cannot_be_done_is_refused(demo_run, demo_csv, tmp_path):
    output = tmp_path / "s.csv"
    for error, arguments, message in (
        (SettingsError, (demo_csv, tmp_path / "s.txt"), r"\.csv or \.parquet"),
        (SettingsError, (demo_csv, tmp_path / "no" / "s.csv"), "folder does not exist"),
        (SettingsError, (demo_csv, output, ["jobb"]), "'job'"),
        (SettingsError, (demo_csv, output, ["y_pred"]), "cannot be kept"),
        (DataError, (tmp_path / "gone.csv", output), "no such file"),
    ):
        with pytest.raises(error, match=message):
            predict_files(demo_run, *arguments)
    write(tmp_path / "a.csv", HEADER, GOOD)
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="both csv and parquet"):
        predict_files(demo_run, tmp_path, output)
    frame = pl.read_csv(demo_csv)
    with pytest.raises(DataError, match="'age' holds String"):
        demo_run.predict_frame(frame.with_columns(pl.col("age").cast(pl.String)))
    with pytest.raises(DataError, match="'day' holds Float64"):
        demo_run.predict_frame(frame.with_columns(pl.col("day").cast(pl.Float64)))
    with pytest.raises(DataError, match="no polars or pandas frame"):
        demo_run.predict_frame([1, 2])
    assert demo_run.predict_frame(frame.head(0)).shape == (0,)


def test_a_changed_encoder_file_runs_no_code(mixed_run, mixed_csv, tmp_path, monkeypatch):
    folder = shutil.copytree(mixed_run.folder, tmp_path / "run")
    path = folder / "schema" / "encoder.json"
    content = json.loads(path.read_text())
    path.unlink()  # a hard link: the run's own stays as it is
    for change, message in (
        ({"dtype": "__import__('os')"}, "dtype"),
        ({"preprocess": "load_pickle(x)"}, "unknown preprocess"),
    ):
        changed = json.loads(json.dumps(content))
        changed["features"][1] |= change
        path.write_text(json.dumps(changed))
        with pytest.raises(SettingsError, match=message):
            load(folder).predict_frame(pl.read_csv(mixed_csv))
    path.write_text(json.dumps(content | {"format": "another"}))
    with pytest.raises(DataError, match="not written by this version"):
        load(folder).predict_frame(pl.read_csv(mixed_csv))
    path.unlink()
    with pytest.raises(DataError, match="new rows cannot be encoded"):
        load(folder).predict_frame(pl.read_csv(mixed_csv))


def test_the_command_line(demo_run, demo_csv, tmp_path, capsys):
    run = str(demo_run.folder)
    assert main(["evaluate", "--run", run]) == 0
    own = capsys.readouterr().out.splitlines()[0]
    assert main(["evaluate", "--run", run, "--input", str(demo_csv)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [own, "3,000 rows"]
    output = tmp_path / "scores.csv"
    arguments = ["--input", str(demo_csv), "--output", str(output), "--keep", "age", "job"]
    assert main(["predict", "--run", run, *arguments, "--streams"]) == 0
    assert pl.read_csv(output).columns == ["age", "job", "y_pred", "y_simple", "y_complex"]
    assert main(["predict", "--run", run, "--input", "gone.csv", "--output", str(output)]) == 2
    assert "gone.csv" in capsys.readouterr().err
    assert torch.is_grad_enabled()
