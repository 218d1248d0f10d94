"""The page about a sweep: its runs in their order, the keys that mattered, the best settings."""

import json
import re

import numpy as np
import pytest
from run_records import write_run

from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.sweep.pictures import Trial, key_importances, sweep_page


def write_sweep(folder, runs=12, keys=("learning_rate", "c", "fusion")):
    """A sweep whose AUC follows the learning rate; its last run was pruned."""
    rng = np.random.default_rng(0)
    points = []
    for at in range(runs):
        values = {
            "learning_rate": float(10 ** rng.uniform(-4, -1)),
            "c": float(rng.random()),
            "fusion": str(rng.choice(["WSF", "<VF>"])),
            "same": [1],
        }
        values = {key: values[key] for key in (*keys, "same")}
        auc = 0.8 + 0.02 * np.log10(values.get("learning_rate", 1)) + 0.001 * values.get("c", 0)
        evaluation = {
            "epoch": 1, "step": 9, "train_loss": 0.5, "metrics": {"AUC": auc},
            "learning_rate": 0.1, "seconds": 1.0, "best": True,
        }  # fmt: skip
        expid = f"grid_{at:03}"
        record = write_run(
            folder / "runs", expid, at, auc, settings=values, evaluations=[evaluation]
        )
        if at == runs - 1:
            record.status = "interrupted"
            record.save()
        points.append({"expid": expid, "dataset_id": "tiny", "values": values})
    content = {"format": 1, "name": "grid", "points": points, "base": None}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def test_the_page_shows_history_importance_and_values(tmp_path, capsys):
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    output = tmp_path / "page.html"
    assert main(["report", str(write_sweep(tmp_path / "grid")), "--output", str(output)]) == 0
    page = output.read_text()
    for title in ("How the sweep went", "Which keys mattered", "What the best runs share"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 3 and "12</dd>" in page and "11 trained to the end" in page
    assert "&lt;VF&gt;" in page and "<VF>" not in page and ">same<" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    # The key that the AUC follows is the first of the axes, the pruned run is no trial of theirs.
    shares = [float(share) for share in re.findall(r'data-tip="[^"]*: ([\d.]+)%"', page)]
    assert len(shares) == 3 and max(shares) > 80 and sum(shares) == pytest.approx(100, abs=0.2)
    axes = page[page.index('id="parallel"') :]
    others = [axes.index(f">{key}</text>") for key in ("c", "fusion")]
    assert axes.index(">learning_rate</text>") < min(others)


def test_runs_of_several_monitors_are_drawn_by_the_bases(tmp_path):
    folder = write_sweep(tmp_path / "grid", keys=("c",))
    content = json.loads((folder / "sweep.json").read_text())
    judge = {"monitor": {"AUC": 2}, "monitor_mode": "max"}
    (folder / "sweep.json").write_text(json.dumps(content | {"judged_by": judge}))
    page = sweep_page(folder)
    assert "Best 2 AUC" in page and "The 2 AUC of each run" in page


def test_a_sweep_of_one_run_and_one_without_optuna_have_a_page(tmp_path, monkeypatch, caplog):
    page = sweep_page(write_sweep(tmp_path / "one", runs=1))
    assert "How the sweep went" in page and "Which keys mattered" not in page
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    page = sweep_page(write_sweep(tmp_path / "many", keys=("c",)))
    assert "Which keys mattered" not in page and "What the best runs share" in page
    assert "pip install 'fuxictr-tf4ctr[tune]'" in caplog.text


def test_a_key_that_changes_nothing_has_no_importance():
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    rng, trials = np.random.default_rng(1), []
    for at in range(40):
        values = {"idle": float(rng.random()), "units": [[64], [64, 64]][at % 2]}
        record = type("Finished", (), {"status": "finished"})()
        trials.append(Trial(record, values, float(at % 2)))
    found = key_importances(trials)
    assert list(found) == ["units", "idle"] and found["units"] > 0.9
    assert key_importances(trials[:3]) == {}


def test_what_has_no_page_is_told(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text('{"format": 1, "name": "grid", "points": []}')
    output = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--output", str(output)]) == 2
    assert "no run of this sweep has been evaluated yet" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(tmp_path)]) == 2
    assert not output.exists()
