"""``fuxictr compare`` on finished runs, and what it refuses."""

import json
from pathlib import Path

import h5py
import numpy as np
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


def relabelled(run, folder, relabel):
    """Copy a run and its data, the test labels changed."""
    data = json.loads((run / "run.json").read_text())["data"]
    (folder / "data").mkdir(parents=True)
    for file in Path(data["folder"]).iterdir():
        if file.is_file():
            (folder / "data" / file.name).write_bytes(file.read_bytes())
    with h5py.File(folder / "data" / "test.h5", "r+") as file:
        file["click"][:] = relabel(file["click"][:])
    return changed_copy(run, folder / "run", data=data | {"folder": str(folder / "data")})


def test_runs_whose_test_labels_differ_are_refused(runs, tmp_path, capsys):
    moved = relabelled(runs["twin"], tmp_path, lambda click: 1 - click)
    assert "test labels" in refused(capsys, "compare", runs["twin"], moved)


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_row_of_a_class_is_too_few_to_compare_by(runs, tmp_path, capsys, label):
    def single(click):
        return np.where(np.arange(len(click)) == 3, label, 1 - label)

    run = relabelled(runs["twin"], tmp_path, single)
    for command in (("compare",), ("report", "--output", tmp_path / "page.html")):
        assert "two of each class" in refused(capsys, *command, run, run)
