"""``fuxictr compare`` on finished runs, and what it refuses."""

import json
from pathlib import Path

import h5py
import pytest
from trained_runs import changed_copy

from fuxictr_tf4ctr.analysis.compare import compare_runs
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.runs.records import read_run


def test_metrics_are_those_the_runs_recorded(runs):
    found = compare_runs(runs["base"], runs["twin"], resamples=50)
    assert found.rows == 300
    for side, name in (("first", "base"), ("second", "twin")):
        for metric, value in read_run(runs[name]).test.items():
            interval = getattr(found.metrics[metric], side)
            assert interval.value == pytest.approx(value, abs=1e-6)
            assert interval.low < value < interval.high
    assert found.delong.aucs[1] == pytest.approx(found.metrics["AUC"].second.value)
    assert found.costs[0]["parameters"] == read_run(runs["base"]).parameters
    assert found.costs[1]["train_rows_per_second"] > 0


def test_a_run_compared_with_itself_does_not_differ(runs):
    found = compare_runs(runs["twin"], runs["twin"], resamples=20)
    assert found.delong.p_value == 1
    assert all(pair.difference.low == pair.difference.high == 0 for pair in found.metrics.values())


def test_the_command_prints_a_table_or_json(runs, capsys):
    def compare(*options):
        both = [str(runs["base"]), str(runs["twin"])]
        assert main(["compare", *both, "--resamples", "40", *options]) == 0
        return capsys.readouterr().out

    table, content = compare(), json.loads(compare("--json"))
    for word in ("AUC", "gAUC", "logloss", "DeLong", "parameters", "300 test rows"):
        assert word in table
    assert f"{content['metrics']['AUC']['difference']['value']:+.5f}" in table
    assert content["expids"] == ["base", "twin"]
    assert compare().splitlines()[:9] == table.splitlines()[:9]  # seeded


def refused(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, capsys):
    twin = runs["twin"]
    assert "no such folder" in refused(capsys, "compare", twin, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "name the folder of a run" in refused(capsys, "compare", tmp_path / "empty", twin)
    stopped = changed_copy(twin, tmp_path / "stopped", status="interrupted")
    assert "--resume" in refused(capsys, "compare", twin, stopped)
    data = json.loads((twin / "run.json").read_text())["data"]
    other = changed_copy(twin, tmp_path / "other", data=data | {"fingerprint": "0" * 64})
    assert "different encoded data" in refused(capsys, "compare", twin, other)
    untested = data | {"rows": {"train": 900, "valid": 200}}
    untested = changed_copy(twin, tmp_path / "untested", data=untested)
    assert "no test rows" in refused(capsys, "compare", twin, untested)
    weightless = changed_copy(twin, tmp_path / "weightless")
    (weightless / "twin.model").unlink()
    assert "no checkpoint" in refused(capsys, "compare", twin, weightless)
    assert "2 or more" in refused(capsys, "compare", twin, twin, "--resamples", "1")


def test_runs_whose_test_labels_differ_are_refused(runs, tmp_path, capsys):
    data = json.loads((runs["twin"] / "run.json").read_text())["data"]
    folder = tmp_path / "data"
    folder.mkdir()
    for file in Path(data["folder"]).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    with h5py.File(folder / "test.h5", "r+") as file:
        file["click"][:2] = 1 - file["click"][:2]
    moved = changed_copy(runs["twin"], tmp_path / "moved", data=data | {"folder": str(folder)})
    assert "test labels" in refused(capsys, "compare", runs["twin"], moved)
