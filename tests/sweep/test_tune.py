"""``fuxictr tune`` as a user meets it: one child killed, one misconfigured, the rest ranked."""

import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from programs import FUXICTR, Program
from small_sweep import write_project, write_tuner

from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.files import held

GOOD = [0.0, 0.4, 0.8, 1.0]


# A sweep whose runs are forks of its own process.
FORKING = """
import subprocess, sys
import fuxictr_tf4ctr.sweep
from fuxictr_tf4ctr.cli import main
from fuzz.forking import ForkedPopen
subprocess.Popen = ForkedPopen
sys.exit(main(sys.argv[1:]))
"""


def process_of(expid_part: str, parent: int) -> int | None:
    """The child of a sweep that writes the log of the expid with this part, as Linux tells it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            log = os.readlink(folder / "fd" / "1")
            of = int(re.search(r"^PPid:\t(\d+)", (folder / "status").read_text(), re.M)[1])
        except OSError:
            continue
        if of == parent and expid_part in log:
            return int(folder.name)
    return None


def kill_child(sweep: Program, expid_part: str) -> None:
    while sweep.poll() is None:
        child = process_of(expid_part, sweep.pid)
        if child is not None:
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError(f"{expid_part} never ran: {sweep.communicate()[1][-2000:]}")


def records(folder):
    return [json.loads(file.read_text()) for file in folder.glob("runs/*/*/*/run.json")]


def expids(folder):
    with (folder / "ranking.csv").open() as rows:
        return [row["expid"] for row in csv.DictReader(rows)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds the child in /proc")
def test_a_sweep_survives_a_killed_and_a_misconfigured_child_and_resumes(tmp_path):
    write_project(tmp_path)
    file = write_tuner(tmp_path, {"c": [*GOOD[:3], 3]})
    command = ("tune", "--config", file, "--workers", 2)
    sweep = Program("-c", FORKING, *command, cwd=tmp_path)
    kill_child(sweep, "mine_exp_002_")
    stdout, stderr = sweep.communicate(timeout=240)
    folder = tmp_path / "sweeps" / "grid"
    assert sweep.returncode == 1, stderr[-3000:]
    assert "Traceback" not in stderr
    (reason,) = re.findall(r"mine_exp_002_\w+ did not finish: (.*)", stderr)
    assert "killed by SIGKILL" in reason
    assert "c=3 must be a number in [0, 1]" in stderr
    finished = [r for r in records(folder) if r["status"] == "finished"]
    best_first = sorted(finished, key=lambda r: -r["valid"]["AUC"])
    assert len(finished) == 2
    with (folder / "ranking.csv").open() as rows:
        ranked = list(csv.DictReader(rows))
    assert [float(row["monitor (AUC)"]) for row in ranked] == [
        record["valid"]["AUC"] for record in best_first
    ]
    results = {record["expid"]: record for record in finished}
    for row in ranked:
        assert float(row["test AUC"]) == results[row["expid"]]["test"]["AUC"]
        assert float(row["c"]) == results[row["expid"]]["settings"]["c"]
    assert ranked[0]["expid"] in stdout
    assert (folder / "ranking.md").read_text().count("\n") == 4
    # One encoded data set, made once, serves all.
    assert [path.name[:5] for path in (tmp_path / "encoded").glob("[!.]*")] == ["mine_"]
    assert len((folder / "grid.csv").read_text().splitlines()) == 2

    # The user mends the tuner file and goes on, by processes that begin as Python does: what is
    # finished is not run again.
    write_tuner(tmp_path, {"c": [*GOOD[:3], 0.95]})
    again = Program(*FUXICTR, *command, "--resume", cwd=tmp_path)
    stdout, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr[-3000:]
    assert "2 of 2 runs done" in stderr
    after = [record for record in records(folder) if record["status"] == "finished"]
    assert len(after) == len(expids(folder)) == 4
    assert {r["expid"]: r["started"] for r in finished}.items() <= {
        r["expid"]: r["started"] for r in after
    }.items()


# Settings and folders ----------------------------------------------------------------------------


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def refused(capsys, *arguments) -> str:
    assert main(["tune", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_is_written(folder, capsys):
    small = write_tuner(folder, {"c": GOOD})
    assert "--gpu 77 does not exist" in refused(capsys, "--config", small, "--gpu", "77")
    assert "no point of the grid" in refused(capsys, "--config", small, "--tag", "099")
    assert "nothing.yaml" in refused(capsys, "--config", "nothing.yaml")
    assert "holds no sweep to resume" in refused(capsys, "--config", small, "--resume")
    large = write_tuner(folder, {"c": GOOD, "gamma": list(range(275))}, name="large")
    said = refused(capsys, "--config", large)
    assert "1,100 points" in said and "--max-points 1100" in said
    bad = write_tuner(folder, {"c": [2, 3]}, name="bad")
    assert "c=2 must be a number in [0, 1]" in refused(capsys, "--config", bad)
    assert not (folder / "sweeps").exists()


def test_one_sweep_per_folder(folder, capsys):
    file = write_tuner(folder, {"c": [0.5]})
    output = folder / "mine"
    output.mkdir()
    with held(output / ".lock") as ours:
        assert ours
        assert "another process sweeps" in refused(capsys, "--config", file, "--output", output)
    (output / "kept.txt").write_text("the user's")
    assert "is not empty" in refused(capsys, "--config", file, "--output", output)
    assert [path.name for path in output.glob("[!.]*")] == ["kept.txt"]


def test_a_sweep_goes_on_only_as_what_it_began(folder, capsys):
    file = write_tuner(folder, {"c": [0.5]})
    config = folder / "config" / "model_config.yaml"
    sections = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(sections | {"mine_other": sections["mine_exp"]}))
    output = folder / "sweeps" / "grid"
    output.mkdir(parents=True)
    before = json.dumps({"search": "tpe", "base_expid": "mine_exp"})
    (output / "sweep.json").write_text(before)
    command = ("--config", file, "--output", output, "--resume")
    for more, began, now in (
        ((), "--search tpe", "--search grid"),
        (("--search", "tpe", "--expid", "mine_other"), "--expid mine_exp", "--expid mine_other"),
    ):
        said = refused(capsys, *command, *more)
        assert f"does not go on by {now}: give {began} with --resume" in said
    assert (output / "sweep.json").read_text() == before
    assert [path.name for path in output.iterdir()] == ["sweep.json"]
    (output / "sweep.json").write_text('{"search": [1]}')
    assert "search=[1] must be a text" in refused(capsys, *command)


def test_a_record_of_another_version_stops_the_sweep(folder, capsys, monkeypatch):
    from fuxictr_tf4ctr import sweep
    from fuxictr_tf4ctr.sweep.points import grid
    from fuxictr_tf4ctr.sweep.tuner_file import read_tuner

    monkeypatch.setattr(sweep, "encode_dataset", lambda params: None)
    file = write_tuner(folder, {"c": [0.5]})
    point = next(grid(read_tuner(file)))
    run = folder / "sweeps" / "grid" / "runs" / point.dataset_id / point.expid / "20200101-000000"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"format": 0}))
    (folder / "sweeps" / "grid" / "sweep.json").write_text("{}")
    said = refused(capsys, "--config", file, "--resume")
    assert f"{run.name}/run.json: format=0 must be 1" in said
    assert (run / "run.json").read_text() == '{"format": 0}'


def test_tags_and_exclusions_are_whole_parts(folder):
    from fuxictr_tf4ctr.sweep import SweepOptions, _grid_points
    from fuxictr_tf4ctr.sweep.tuner_file import read_tuner

    tuner = read_tuner(write_tuner(folder, {"c": GOOD}))

    def left(**options):
        points = _grid_points(tuner, SweepOptions("", **options))
        return [point.expid for point in points]

    every = left()
    assert left(tags=["003", "004"]) == every[2:4]
    assert left(tags=[every[3]]) == [every[3]]
    assert left(excluded=["001"]) == every[1:]
    with pytest.raises(Exception, match="no point"):
        left(tags=[every[0][-4:]])  # a piece of a hash is no name


def test_what_children_read_is_what_fuxictr_would_read(folder):
    """The enumerated experiments are a config folder of FuxiCTR's form, paths absolute."""
    from fuxictr.utils import load_config

    from fuxictr_tf4ctr.sweep.folder import SweepFolder
    from fuxictr_tf4ctr.sweep.points import grid
    from fuxictr_tf4ctr.sweep.tuner_file import read_tuner

    points = list(grid(read_tuner(write_tuner(folder, {"c": [0.5, 0.9]}))))
    sweep = SweepFolder(folder / "sweep", "grid")
    sweep.path.mkdir()
    sweep.write_config(points)
    for point in points:
        params = load_config(str(sweep.config), point.expid)
        assert params["c"] == point.values["c"]
        assert params["train_data"] == str(folder / "raw" / "train.csv")
        assert params["dataset_id"] == point.dataset_id
    assert len(yaml.safe_load((sweep.config / "dataset_config.yaml").read_text())) == 1
