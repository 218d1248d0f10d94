"""A few hundred cases of every kind; ``python -m tests.fuzz`` runs as many as wanted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="cases are forks of a warm process"),
]


def test_every_input_has_an_answer_and_every_stop_is_a_clean_one(tmp_path):
    counts = tmp_path / "counts.json"
    # Of its own: libraries of the process of the tests have threads that a fork would lack.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", "--cases", "200", "--output", counts),
            *("--kills", "4", "--disks", "1", "--rounds", "1", "--jobs", "2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    assert sum(json.loads(counts.read_text())["cases"].values()) > 200
