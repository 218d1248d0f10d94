"""``--engine ray``: the same encoding, runs and sweeps as on one machine, on a cluster of one."""

import json
import os
import signal
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from lost_ranks import check_that_it_went_on, experiment, record_of, wait_for_a_checkpoint
from programs import FUXICTR, run_program

from fuxictr_tf4ctr.cli import main

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("ray.train", reason="needs the extra ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "data" / "demo"
TUNER = """
base_config: {config}
base_expid: TF4CTR_demo
dataset_id: demo
tuner_space:
    learning_rate: {space}
    embedding_dim: [4]
    epochs: [2]
"""


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests; what finds one already there uses it."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_workers() -> list[int]:
    """Process ids of Ray's training workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::RayTrainWorker"):
            found.append(int(process.name))
    return found


def kill_a_worker(runs: Path) -> None:
    wait_for_a_checkpoint(runs, lambda: True)
    os.kill(train_workers()[-1], signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds ranks through /proc")
def test_a_run_whose_worker_is_killed_ends_as_that_of_one_process(folder):
    killer = threading.Thread(target=kill_a_worker, args=(folder / "together",))
    killer.start()
    options = ("--engine", "ray", "--workers", "2", "--max-restarts", "1")
    assert main(experiment("--output", "together", *options)) == 0
    killer.join()
    check_that_it_went_on(folder)
    assert record_of(folder)["machine"]["workers"] == 2
    assert not (folder / "together" / ".ray").exists()


def sweep(folder: Path, space: str, *options: str) -> tuple[dict, dict[str, dict]]:
    """Run a sweep of two workers; return its sweep.json and its records."""
    text = TUNER.format(config=ROOT / "config", space=space)
    (folder / "tuner.yaml").write_text(text)
    command = ["tune", "--config", "tuner.yaml", "--output", "sweep", "--workers", "2"]
    assert main([*command, "--engine", "ray", *options]) == 0
    records = [json.loads(file.read_text()) for file in folder.glob("sweep/runs/*/*/*/run.json")]
    content = json.loads((folder / "sweep" / "sweep.json").read_text())
    return content, {record["expid"]: record for record in records}


def test_a_grid_is_run_and_ranked(folder):
    content, records = sweep(folder, "[0.01, 0.001]")
    assert {point["expid"] for point in content["points"]} == set(records)
    assert {record["status"] for record in records.values()} == {"finished"}
    ranking = (folder / "sweep" / "ranking.csv").read_text().splitlines()
    best = max(records, key=lambda expid: records[expid]["valid"]["AUC"])
    assert len(ranking) == 3 and best in ranking[1]
    started = {expid: record["started"] for expid, record in records.items()}
    _, again = sweep(folder, "[0.01, 0.001]", "--resume")
    assert {expid: record["started"] for expid, record in again.items()} == started


def test_a_search_is_pruned_as_on_one_machine(folder):
    space = "{low: 1.0e-5, high: 1.0e-2, log: true}\n    eval_steps: [0.25]"
    content, records = sweep(folder, space, "--search", "random", "--trials", "6")
    assert len(content["points"]) == len(records) == 6 and not content["failures"]
    finished = {expid for expid, record in records.items() if record["status"] == "finished"}
    assert finished | set(content["pruned"]) == set(records) and len(finished) < 6
    # None is before its fourth evaluation, and the best of those never.
    fourth = {expid: each["evaluations"][3]["metrics"]["AUC"] for expid, each in records.items()}
    assert max(fourth, key=fourth.get) in finished


def test_files_encode_to_what_one_machine_makes_of_them(folder):
    header, *rows = (DEMO / "train.csv").read_text().splitlines()
    (folder / "parts").mkdir()
    for number, first in enumerate(range(0, len(rows), 1 + len(rows) // 3)):
        lines = [header, *rows[first : first + 1 + len(rows) // 3]]
        (folder / "parts" / f"{number}.csv").write_text("\n".join(lines) + "\n")
    command = ["encode", "--dataset", "demo", "--set", "train_data=./parts"]
    assert main([*command, "--set", "data_root=here"]) == 0
    assert main([*command, "--set", "data_root=there", "--engine", "ray"]) == 0
    here, there = folder / "here" / "demo", folder / "there" / "demo"
    assert sorted(file.name for file in here.iterdir()) == sorted(
        file.name for file in there.iterdir()
    )
    assert (here / "feature_vocab.json").read_bytes() == (there / "feature_vocab.json").read_bytes()
    for split in ("train", "valid", "test"):
        with h5py.File(here / f"{split}.h5") as ours, h5py.File(there / f"{split}.h5") as theirs:
            assert list(ours) == list(theirs)
            for name in ours:
                assert ours[name].dtype == theirs[name].dtype
                np.testing.assert_allclose(ours[name][:], theirs[name][:], rtol=1e-6)
    # What the cluster has made is found again without it.
    stamp = (there / "train.h5").stat().st_mtime_ns
    assert main([*command, "--set", "data_root=there"]) == 0
    assert (there / "train.h5").stat().st_mtime_ns == stamp


def test_rows_that_must_be_split_are_refused(folder, capsys):
    command = ["encode", "--dataset", "demo", "--engine", "ray", "--set", "data_root=here"]
    assert main([*command, "--set", "valid_data=null", "--set", "valid_size=0.1"]) == 2
    assert "give every split its own files" in capsys.readouterr().err
    assert not list((folder / "here").glob("demo/*"))


def test_gpus_are_looked_for_in_the_cluster(folder, capsys):
    assert main(experiment("--engine", "ray", "--workers", "2", "--gpu", "0")) == 2
    assert "the Ray cluster has 0 GPUs, 2 are needed" in capsys.readouterr().err


def test_more_workers_than_the_cluster_has_cores_are_refused(folder, capsys):
    options = ("--engine", "ray", "--workers", "8", "--set", "batch_size=1000")
    assert main(experiment(*options)) == 2
    assert "the Ray cluster has 3 CPUs, 8 are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "ray", "--address", "127.0.0.1:1"), "no Ray cluster at 127.0.0.1:1"),
        (("--address", "127.0.0.1:1"), "--address is for --engine ray"),
        (("--engine", "ray", "--workers", "3", "--set", "batch_size=1000"), "set it to 999"),
    ],
)
def test_what_cannot_work_is_said(tmp_path, words, message):
    done = run_program(*FUXICTR, "run", "--expid", "TF4CTR_demo", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_ray_is_said(tmp_path):
    script = (
        "import sys; sys.modules['ray.train'] = None\n"
        "from fuxictr_tf4ctr.cli import main\n"
        "sys.exit(main(['run', '--expid', 'TF4CTR_demo', '--engine', 'ray']))"
    )
    done = run_program("-c", script, cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'fuxictr-tf4ctr[ray]'" in done.stderr
