"""The command line as a user meets it: a process, its output, its exit status, its files."""

import json
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from programs import FUXICTR, Program, run_program

from fuxictr_tf4ctr.cli import main

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--set", "epochs=1", "--set", "embedding_dim=4", "--set", "complex_hidden_units=[4]"]


def python(*words, cwd):
    """Run Python as a shell does, with nothing imported yet."""
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)


def fuxictr(*arguments, cwd):
    return run_program(*FUXICTR, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which the demo was run twice, and both processes."""
    folder = tmp_path_factory.mktemp("demo")
    command = [*FUXICTR, "run", "--expid", "TF4CTR_DCNv2_demo", *QUICK]
    return folder, [start(*command, cwd=folder) for start in (python, run_program)]


def test_the_demo_runs_from_any_directory(demo):
    folder, (first, _) = demo
    assert first.returncode == 0, first.stderr[-3000:]
    assert re.search(r"test  AUC: 0\.\d{6} - logloss: 0\.\d{6}", first.stdout)
    encoded = {path.name for path in (folder / "data" / "demo").iterdir()}
    assert {"train.h5", "valid.h5", "test.h5", "feature_map.json", "feature_vocab.json"} <= encoded


def test_a_run_leaves_log_checkpoint_record_and_csv_line(demo):
    folder, _ = demo
    runs = sorted((folder / "checkpoints" / "demo" / "TF4CTR_DCNv2_demo").iterdir())
    assert len(runs) == 2  # the second run kept the first one's files
    for run in runs:
        log = (run / "TF4CTR_DCNv2_demo.log").read_text()
        for line in ("Params: {", "****** Validation evaluation ******",
                     "******** Test evaluation ********", "[Metrics] AUC: "):  # fmt: skip
            assert line in log
        weights = torch.load(run / "TF4CTR_DCNv2_demo.model", weights_only=True)
        assert "fusion.weight" in weights
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["settings"]["epochs"] == 1
        assert record["data"]["rows"] == {"train": 24000, "valid": 3000, "test": 3000}
        assert record["versions"]["torch"] == version("torch")
        assert record["evaluations"][0]["epoch"] == 1
        assert 0.5 < record["test"]["AUC"] < 1
        assert {"encode", "load", "train", "evaluate", "total"} <= set(record["seconds"])
    lines = (folder / "checkpoints" / "results.csv").read_text().splitlines()
    assert len(lines) == 2
    # The fields as BARS' tools split them.
    fields = [part.split("]", 1) for part in lines[0].split(",[")[1:]]
    names = [name for name, _ in fields]
    assert names == ["command", "exp_id", "dataset_id", "train", "val", "test"]
    metrics = dict(pair.split(": ") for pair in fields[-1][1].strip().split(" - "))
    assert set(metrics) == {"AUC", "logloss"}


def test_the_same_seed_gives_the_same_result(demo):
    _, (first, second) = demo
    metrics = [re.search(r"test  (.*)", run.stdout)[1] for run in (first, second)]
    assert metrics[0] == metrics[1]
    assert "encod" in first.stderr.lower()


def test_output_seed_and_zoo_options(demo):
    folder, _ = demo
    done = fuxictr(
        "run", "--expid", "DeepFM_demo", *QUICK, "--set", "seed=7", "--output", "elsewhere",
        "--gpu", "-1", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = (folder / "elsewhere").glob("demo/DeepFM_demo/*/run.json")
    assert json.loads(record.read_text())["settings"]["seed"] == 7


def test_training_from_h5_never_imports_ray_and_a_foreign_config_folder_works(demo, tmp_path):
    folder, _ = demo
    config = tmp_path / "config"
    config.mkdir()
    encoded = str(folder / "data" / "demo")
    dataset = {
        "data_root": str(folder / "data"),
        "data_format": "h5",
        **{f"{split}_data": f"{encoded}/{split}.h5" for split in ("train", "valid", "test")},
    }
    model = {
        "model": "TF4CTR", "dataset_id": "demo", "loss": "binary_crossentropy", "batch_size": 5000,
        "metrics": ["AUC"], "task": "binary_classification", "optimizer": "adam", "epochs": 1,
        "simple_hidden_units": [4], "complex_hidden_units": [4], "embedding_dim": 4,
    }  # fmt: skip
    (config / "dataset_config.yaml").write_text(yaml.safe_dump({"demo": dataset}))
    (config / "model_config.yaml").write_text(
        yaml.safe_dump({"Base": {"num_workers": 3, "verbose": 1}, "mine": model})
    )
    code = (
        "import sys; from fuxictr_tf4ctr.cli import main; "
        f"status = main(['run', '--expid', 'mine', '--config', {str(config)!r}]); "
        "print('ray' in sys.modules); sys.exit(status)"
    )
    done = run_program("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "False"


def test_listing(capsys):
    def listed(*arguments):
        assert main(["list", *arguments]) == 0
        return capsys.readouterr().out

    names = [line.split()[0] for line in listed("expids", "*_frappe").splitlines()]
    assert {"TF4CTR_frappe", "TF4CTR_DCNv2_frappe", "DCNv2_frappe"} <= set(names)
    assert all(name.endswith("_frappe") for name in names)
    models = listed("models")
    assert "TF4CTR_xDeepFM" in models and "LongCTR.TransAct" in models
    assert "cross_net_v2" in listed("encoders")
    assert main(["list", "models", "nothing*"]) == 2


def test_help_is_quick_to_import(tmp_path):
    done = python(*FUXICTR, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "run" in done.stdout
    code = (
        "import sys; from fuxictr_tf4ctr.cli import build_parser; build_parser(); "
        "print(*sys.modules)"
    )
    modules = python("-c", code, cwd=tmp_path).stdout.split()
    assert "fuxictr_tf4ctr" in modules and not {"torch", "ray"} & set(modules)


USER_ERRORS = {
    "no expid": (["run"], "--expid"),
    "unknown expid": (["run", "--expid", "TF4CTR_DCNv2_fappe"], "TF4CTR_DCNv2_frappe"),
    "missing data": (["run", "--expid", "TF4CTR_DCNv2_criteo"], "data/README.md"),
    "all mistakes": (
        ["run", "--expid", "TF4CTR_demo", "--set", "c=3", "--set", "fusion=WS"],
        "c=3 must be a number in [0, 1]",
    ),
    "assignment": (["run", "--expid", "TF4CTR_demo", "--set", "epochs"], "KEY=VALUE"),
    "gpu": (["run", "--expid", "TF4CTR_demo", "--gpu", "77"], "gpu=77 does not exist"),
    "config": (["run", "--expid", "x", "--config", "nowhere"], "does not exist"),
    "zoo": (["list", "models", "--zoo", "."], "no FuxiCTR checkout"),
}


@pytest.mark.parametrize(("arguments", "message"), USER_ERRORS.values(), ids=USER_ERRORS)
def test_user_errors_exit_with_2_and_leave_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUXICTR_DATA", "")
    try:
        status = main(arguments)
    except SystemExit as stop:  # the parser's own way
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_data_fails_before_training_and_is_recorded(demo, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    demo_csv = (ROOT / "data" / "demo" / "valid.csv").read_text().splitlines()
    (raw / "train.csv").write_text("\n".join([demo_csv[0], "2" + demo_csv[1][1:], *demo_csv[2:]]))
    done = fuxictr(
        "run", "--expid", "TF4CTR_demo", "--set", f"train_data={raw / 'train.csv'}", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "label" in done.stderr and "Traceback" not in done.stderr
    (record,) = tmp_path.glob("checkpoints/demo/TF4CTR_demo/*/run.json")
    assert json.loads(record.read_text())["status"] == "failed"


def test_a_diverging_run_stops_and_says_where(demo):
    folder, _ = demo
    done = fuxictr(
        "run", "--expid", "TF4CTR_DCNv2_demo", *QUICK, "--set", "learning_rate=1e38",
        "--set", "optimizer=SGD", "--output", "diverged", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "step" in done.stderr and "Traceback" not in done.stderr
    (record,) = (folder / "diverged").glob("demo/*/*/run.json")
    assert json.loads(record.read_text())["status"] == "failed"


def test_interrupting_ends_cleanly_and_keeps_what_was_reached(demo):
    folder, _ = demo
    process = Program(
        *FUXICTR, "run", "--expid", "TF4CTR_DCNv2_demo", "--output", "stopped",
        "--set", "epochs=1000", "--set", "early_stop_patience=1000", "--set", "embedding_dim=4",
        cwd=folder,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    reached = False
    while not reached and time.monotonic() < deadline:
        time.sleep(0.2)
        reached = any(
            json.loads(path.read_text())["evaluations"]
            for path in (folder / "stopped").glob("demo/*/*/run.json")
        )
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr[-2000:]
    assert "Traceback" not in stderr
    (record,) = (folder / "stopped").glob("demo/*/*/run.json")
    content = json.loads(record.read_text())
    assert content["status"] == "interrupted" and content["evaluations"]


def test_quiet_when_not_a_terminal(demo):
    _, (first, _) = demo
    assert "\r" not in first.stderr and "it/s" not in first.stderr
