"""Folders of runs: begun whole, swept up after kills, read by a schema."""

import json
import os

import pytest
from run_records import SETTINGS, write_run

from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.files import held
from fuxictr_tf4ctr.runs.records import new_run, read_run, sweep_up


def begin(root):
    return new_run("exp", SETTINGS | {"model_root": str(root), "seed": 1})


def test_runs_of_one_second_have_folders_of_their_own_and_are_held(tmp_path):
    with begin(tmp_path) as first, begin(tmp_path) as second:
        assert first.folder != second.folder
        assert read_run(first.folder).status == "running"
        with held(first.folder / ".lock") as ours:
            assert not ours


def test_what_killed_runs_left_is_swept_up_and_nothing_else(tmp_path):
    with begin(tmp_path) as record:
        parent = record.folder.parent
        (parent / "never-begun").mkdir()
        (parent / "never-begun" / ".lock").touch()
        (parent / "the-users").mkdir()
        (parent / "the-users" / "notes.txt").touch()
        record.state_folder.mkdir()
    finished = parent / "finished"
    os.rename(record.folder, finished)
    for status, left in (("interrupted", True), ("finished", False)):
        content = json.loads((finished / "run.json").read_text()) | {"status": status}
        (finished / "run.json").write_text(json.dumps(content))
        sweep_up(parent)
        assert (finished / "state").exists() == left
    assert {path.name for path in parent.iterdir()} == {"finished", "the-users"}


def test_a_run_that_was_taken_up_has_one_line_in_results_csv(tmp_path):
    record = write_run(tmp_path, settings={"model_root": str(tmp_path)})
    path = record.append_csv_line()
    record.resumed.append("2026-01-01T00:00:00+00:00")
    record.append_csv_line()
    assert path.read_text() == record.csv_line()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "format=2 must be 1"),
        ("expid", "../x", "expid='../x' must be the name of an experiment"),
        ("status", "done", "status='done' must be one of running, finished"),
        ("started", "soon", "started='soon' must be an ISO time"),
        ("valid", {"AUC": "high"}, "valid.AUC='high' must be a number"),
        ("epochs", 3, "unknown key 'epochs'"),
    ],
)
def test_a_record_that_is_none_is_named_with_key_and_expectation(tmp_path, key, value, said):
    file = write_run(tmp_path).json_file
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(DataError, match=r"run\.json: ") as error:
        read_run(file.parent)
    assert said in str(error.value)
