"""What FuxiCTR and BARS have published loads, or is refused for a fault of its own.

``$BARS_HOME`` names a checkout of reczoo/BARS, ``$FUXICTR_HOME`` one of reczoo/FuxiCTR; without
them the test is skipped. ``benchmarks/corpus.py`` loads all; here it is every twelfth.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from corpus import CORPORA, problems_of, sources

OWN_FAULTS = ("set feature_processor: fuxictr.datasets.", "no folder with a model_config",
              "unacceptable character #x0000", "needs group_id", "has no section in dataset_config",
              "holds neither dataset_config.yaml", "none has a model and a dataset_id",
              "cannot be imported")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
def test_published_configurations_load_or_name_their_fault(tmp_path, monkeypatch, name):
    variable, pattern = CORPORA[name]
    if variable not in os.environ:
        pytest.skip(f"${variable} names no checkout")
    monkeypatch.chdir(tmp_path)
    found = sources(Path(os.environ[variable]).resolve(), pattern)
    assert any(found.values())
    for path in (path for paths in found.values() for path in paths[::12]):
        experiments, problems = problems_of(path)
        assert experiments or problems
        for problem in problems:
            assert any(fault in problem for fault in OWN_FAULTS), f"{path}: {problem}"
