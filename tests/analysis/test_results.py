"""``fuxictr results``: tables, filters, comparisons and tests over records."""

import csv
import io
import json
import math

import pytest
from run_records import write_run

from fuxictr_tf4ctr.analysis import results
from fuxictr_tf4ctr.analysis.results import paired_tests, read_runs, side_by_side, table
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import DataError, SettingsError

NAMES = ("A_001_00000001", "B_002_00000002")


@pytest.fixture()
def runs(tmp_path):
    """Two experiments under three seeds; B is better by 0.01, 0.02 and 0.03."""
    for seed in (1, 2, 3):
        write_run(tmp_path, NAMES[0], seed, 0.8)
        write_run(tmp_path, NAMES[1], seed, 0.8 + 0.01 * seed, settings={"c": 0.5})
    return tmp_path


def test_one_row_per_run_in_the_order_of_time(runs):
    rows = table(read_runs(runs))
    assert [row["seed"] for row in rows] == [1, 1, 2, 2, 3, 3]
    assert {row["expid"] for row in rows} == set(NAMES)
    assert "settings" not in rows[0] and rows[0]["test.AUC"] == 0.8


def test_filters_sorting_and_settings_as_columns(runs):
    records = read_runs(runs)
    assert len(table(records, ["expid=A_*"])) == 3
    assert len(table(records, ["c=0.5", "seed>=2"])) == 2
    assert len(table(records, ["c!=0.5", "seed<2"])) == 1
    assert table(records, ["status=failed"]) == []
    rows = table(records, sort="test.AUC", descending=True, settings=["c"])
    assert [row["test.AUC"] for row in rows[:3]] == pytest.approx([0.83, 0.82, 0.81])
    assert rows[0]["c"] == 0.5


def test_a_setting_that_some_runs_lack_is_empty_for_them(runs):
    write_run(runs, "C_003_00000003", 1, 0.7, settings={"simple_num_layers": 2})
    rows = table(read_runs(runs), sort="simple_num_layers", settings=["simple_num_layers"])
    assert [row["simple_num_layers"] for row in rows] == [2] + [None] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ["tset.AUC>0.8"]}, "did you mean 'test.AUC'"),
        ({"conditions": ["AUC"]}, "is no condition"),
        ({"conditions": ["expid>3"]}, "compares numbers"),
        ({"sort": "sed"}, "did you mean 'seed'"),
        ({"settings": ["embeding_dim"]}, "did you mean 'embedding_dim'"),
    ],
)
def test_mistakes_name_what_was_meant(runs, options, message):
    with pytest.raises(SettingsError) as error:
        table(read_runs(runs), **options)
    assert message in str(error.value)


def test_an_unreadable_record_keeps_no_other_from_being_shown(runs, caplog):
    damaged = next(runs.rglob("run.json"))
    damaged.write_text("{")
    assert len(read_runs(runs)) == 5
    assert str(damaged) in caplog.text
    with pytest.raises(DataError, match="no such folder"):
        read_runs(runs / "nowhere")
    with pytest.raises(DataError, match="no run"):
        read_runs(damaged.parent)


def test_two_runs_side_by_side_show_only_what_differs(runs):
    first, second = (next(runs.rglob(f"{name}/*1")) for name in NAMES)
    rows = {row[""]: row for row in side_by_side(first, second)}
    assert set(rows) == {
        "expid", "c", "parameters", "valid AUC", "valid logloss", "test AUC", "test logloss"
    }  # fmt: skip
    assert rows["c"]["second - first"] == pytest.approx(-0.3)
    assert rows["test AUC"]["second - first"] == pytest.approx(0.01)


def test_the_paired_test_is_the_textbooks(runs):
    """t = mean / (s / sqrt(n)); with two degrees of freedom p = 1 - t / sqrt(t² + 2)."""
    auc, logloss = paired_tests(read_runs(runs), *NAMES)
    t = 0.02 / (0.01 / math.sqrt(3))
    assert auc["seeds"] == 3
    assert auc["difference"] == pytest.approx(-0.02)
    assert auc["std"] == pytest.approx(0.01)
    assert auc["p (paired t)"] == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert auc["p (Wilcoxon)"] == pytest.approx(2 / 2**3)
    assert logloss["p (paired t)"] is None and logloss["p (Wilcoxon)"] is None  # nothing varies


def test_a_paired_test_needs_common_seeds(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, NAMES[0], seed)
        write_run(tmp_path, NAMES[1], seed + 1)
    with pytest.raises(SettingsError, match="1 seed in common"):
        paired_tests(read_runs(tmp_path), *NAMES)
    with pytest.raises(SettingsError, match="A_001_00000001"):
        paired_tests(read_runs(tmp_path), "A_001_0000001", NAMES[1])


ROWS = [{"name": "a|b", "value": 0.5, "units": [4, 8]}, {"name": "c", "value": None, "units": []}]


def test_formats(runs, capsys):
    assert json.loads(results.as_json(ROWS)) == ROWS
    read = list(csv.DictReader(io.StringIO(results.as_csv(ROWS))))
    assert [row["units"] for row in read] == ["[4, 8]", "[]"]
    assert results.as_markdown(ROWS).splitlines()[2] == r"| a\|b | 0.500000 | [4, 8] |"
    assert len({line.find("[") for line in results.as_text(ROWS).splitlines()[1:]}) == 1
    assert results.cell(1e-5) == "1e-05" and results.cell(None) == ""
    for form in results.FORMATS:
        assert main(["results", str(runs), "--where", "seed=1", "--format", form]) == 0
        assert NAMES[0] in capsys.readouterr().out
    # No such day, and deeper than a parser goes: texts that nothing equals.
    for text in ("2024-13-01", "[" * 5000):
        assert main(["results", str(runs), "--where", f"seed={text}"]) == 0
    assert main(["results", str(runs), "--paired", *NAMES]) == 0
    assert "paired t" in capsys.readouterr().out


def test_a_paired_test_is_of_the_runs_that_meet_the_conditions(runs, capsys):
    def seeds(*conditions):
        where = [word for condition in conditions for word in ("--where", condition)]
        paired = ["results", str(runs), "--paired", *NAMES, "--format", "json", *where]
        assert main(paired) == 0
        return json.loads(capsys.readouterr().out)[0]["seeds"]

    assert [seeds(), seeds("seed>=2", "test.AUC<0.9"), seeds("seed!=3")] == [3, 2, 2]
    assert main(["results", str(runs), "--paired", *NAMES, "--where", "c=0.5"]) == 2
    assert f"unknown finished expid '{NAMES[0]}'" in capsys.readouterr().err
