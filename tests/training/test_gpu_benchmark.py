"""benchmarks/gpu.py at toy size: every part of what a GPU is measured by runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu


def test_every_part_runs_on_a_cpu_and_makes_a_table(tmp_path):
    results = gpu.measured(gpu.Bench(-1, True, tmp_path))
    assert not results["skipped"]
    assert all(each["agrees"] for each in results["agreement"].values())
    for rates in results["speed"].values():
        assert {"fuxictr", "exact", "exact memory", "exact stream", "evaluation"} <= set(rates)
        assert all(rate > 0 for rate in rates.values())
    assert len(results["frappe"]["exact"]) == 2
    assert results["profile"]["microseconds_of_4_steps"]
    assert gpu.table(results).count("\n") == 3 + len(results["speed"]["batch 64"])


def test_what_is_lacking_is_named_and_the_rest_goes_on(tmp_path):
    bench = gpu.Bench(-1, False, tmp_path)

    def lacking():
        raise ImportError("no module of that name")

    assert bench.attempt("part", lacking) is None
    assert bench.attempt("other", lambda: 3) == 3
    assert bench.skipped == {"part": "ImportError: no module of that name"}
