"""benchmarks/gpu.py as its users run it, at toy size: every part of what a GPU is measured by."""

import json
import sys
import time
from pathlib import Path

from programs import run_program

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu


def test_the_command_runs_every_part_on_a_cpu(tmp_path):
    run = run_program(gpu.__file__, "--device", "cpu", "--toy", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert not results["skipped"]
    assert all(each["agrees"] for each in results["agreement"].values())
    for rates in results["speed"].values():
        assert {"fuxictr", "exact", "exact memory", "exact stream", "evaluation"} <= set(rates)
        assert all(rate > 0 for rate in rates.values())
    assert len(results["frappe"]["exact"]["epoch_seconds"]) == 2
    assert results["frappe"]["curve"]["agrees"]
    assert results["profile"]["microseconds_of_4_steps"]
    lines = gpu.table(results).splitlines()
    assert len([line for line in lines if line[:1] == "|"]) == 2 + len(results["speed"]["batch 64"])
    assert [line for line in lines if line.startswith("TF4CTR_frappe_published, fast: ")]


def test_without_a_gpu_it_says_so(tmp_path):
    run = run_program(gpu.__file__, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert run.returncode == 1
    assert run.stderr.startswith("this PyTorch sees no CUDA GPU: ") and run.stderr.count("\n") == 1


def test_what_is_lacking_or_takes_too_long_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    bench = gpu.Bench(-1, False, tmp_path)

    def lacking():
        raise ImportError("no module of that name")

    def endless(bench):
        return [bench.attempt("first", lambda: time.sleep(60)), bench.attempt("second", lacking)]

    monkeypatch.setitem(gpu.SECONDS, "speed", 0.05)
    assert bench.part("speed", endless) == [None, None]
    assert bench.part("profile", lambda bench: bench.attempt("piece", lacking)) is None
    assert bench.part("frappe", lambda bench: 3) == 3
    assert bench.skipped == {
        "first": "TimeoutError: its time was up",
        "second": "no time was left",
        "piece": "ImportError: no module of that name",
    }
