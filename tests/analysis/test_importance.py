"""``fuxictr explain``: fields that tell the label are worth something, by stream and gate too."""

import json

import pytest
from trained_runs import changed_copy

from fuxictr_tf4ctr.analysis.report import make_report
from fuxictr_tf4ctr.analysis.report.importance import explain_run
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.runs.loading import load_run


@pytest.fixture
def gated(runs, tmp_path):
    """A copy of the twin with gates, to leave an explanation in."""
    return changed_copy(runs["gated"], tmp_path / "gated")


def names(folder):
    features = load_run(folder).feature_map.features
    return [name for name, spec in features.items() if spec["type"] != "meta"]


def test_every_field_and_pair_by_stream_and_gate(gated):
    fields = names(gated)
    pair = fields[:2]
    found = explain_run(gated, pairs=[pair])
    importances = found["importances"]
    assert sorted(each["fields"] for each in importances) == sorted([*([f] for f in fields), pair])
    assert found["rows"] == 300
    lost = [each["final"]["auc"]["value"] for each in importances]
    assert lost == sorted(lost, reverse=True) and lost[0] > 0.02
    for each in importances:
        assert set(each["streams"]) == {"simple", "complex"} and len(each["gates"]) == 2
        for worth in (each["final"], each["streams"]["simple"]):
            for interval in worth.values():
                assert interval["low"] <= interval["value"] <= interval["high"]
    assert max(max(each["gates"].values()) for each in importances) > 0
    assert explain_run(gated, pairs=[pair]) == found
    assert json.loads((gated / "explanation.json").read_text()) == found


def test_the_command_and_the_report(gated, capsys):
    assert "What each field is worth" not in make_report([gated], resamples=5)
    first, second, *_ = names(gated)
    assert main(["explain", str(gated), "--pairs", f"{first},{second}"]) == 0
    printed = capsys.readouterr().out
    assert f"{first} × {second}" in printed and "AUC lost (simple)" in printed
    assert main(["explain", str(gated), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 300
    page = make_report([gated], resamples=5)
    assert "What each field is worth" in page and "AUC lost (complex)" in page
    (file := gated / "explanation.json").write_text(
        file.read_text().replace('"value"', '"valu"', 1)
    )
    with pytest.raises(DataError, match=r"explanation.json: importances\[0\].*value is missing"):
        make_report([gated], resamples=5)


def test_fields_that_are_not_there_are_refused(gated, capsys):
    first, *_ = names(gated)
    assert main(["explain", str(gated), "--pairs", f"{first},{first}s"]) == 2
    assert f"did you mean '{first}'" in capsys.readouterr().err
    assert main(["explain", str(gated), "--pairs", first]) == 2
    assert "two fields, joined by a comma" in capsys.readouterr().err
