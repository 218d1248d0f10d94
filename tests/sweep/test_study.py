"""benchmarks/study.py: what it refuses, how it goes on, and that its tables are its results'."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("optuna", reason="the search needs Optuna")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import study as studies  # noqa: E402

from fuxictr_tf4ctr.errors import DataError, SettingsError  # noqa: E402

SEARCH = {
    "trials": 12,
    "cpu_seconds": 1000,
    "seed": 1,
    "objective": {"AUC": 1, "logloss": -1},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "net_dropout": [0, 0.2]},
    "twin_space": {"c": {"low": 0.5, "high": 1.0}},
    "first": [{"learning_rate": 1e-3, "net_dropout": 0.2, "c": 0.7}],
}
ROWS = {"base": {"expid": "DeepFM_demo"}, "twin": {"expid": "TF4CTR_DeepFM_demo"}}
SHARED = {"data": {"rows": {}}, "machine": {}, "versions": {}}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Read a study of these sections whose runs take no time; ``ran`` lists them."""
    ran = []

    def fake_run(settings, on_evaluation=lambda evaluation: None):
        ran.append(settings)
        auc = 0.8 - settings["net_dropout"] - abs(settings["learning_rate"] - 5e-3)
        for epoch in range(4):
            on_evaluation({"metrics": {"AUC": auc - 0.01 / (epoch + 1), "logloss": 0.5}})
        metrics = {"AUC": auc + settings["seed"] / 1e4, "logloss": 0.5}
        return SimpleNamespace(
            expid=settings.expid, parameters=9, seconds={"train": 1.0},
            evaluations=[{"epoch": 4, "metrics": {}, "seconds": 2.0}],
            valid=metrics, test=metrics, **SHARED,
        )  # fmt: skip

    monkeypatch.setattr(studies, "run_experiment", fake_run)
    sums = {"train": "mine"}
    monkeypatch.setattr(studies, "md5_sums", lambda settings: dict(sums))
    monkeypatch.setattr(studies, "RESULTS", tmp_path)

    def read(**sections):
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump({"rows": ROWS} | sections))
        return studies.read_study(file)

    read.ran, read.sums = ran, sums
    return read


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rows": {"base": {"expid": "DeepFM_dmo"}}}, "DeepFM_demo"),
        ({"rows": {"twin": {"expid": "TF4CTR_DeepFM_demo", "gama": 1}}}, "gamma"),
        ({"search": SEARCH | {"space": {"net_droput": [0.1]}}}, "net_dropout"),
        ({"search": SEARCH | {"twin_space": {"alpha": [0.1, 7]}}}, r"alpha=7 must be"),
        ({"search": SEARCH | {"space": {"c": {"low": 2, "high": 1}}}}, "must be below"),
        ({"search": {"trial": 3}}, "trial"),
        ({"families": [["twin", "base", "wide"]]}, "families: .*'wide'.* must be 3 of the rows"),
        ({"families": [["twin", "base"]]}, "must be 3 of the rows"),
        ({"pairs": [["twin", "bse"]]}, "pairs: .*'bse'.* must be 2 of the rows"),
    ],
)
def test_what_is_not_known_stops_before_the_first_run(make, sections, message):
    with pytest.raises(SettingsError, match=message):
        study = make(**sections)
        study.check(list(study.rows))
    assert not make.ran


@pytest.mark.parametrize("text", ["", "rows:", "base: DeepFM_demo", "rows: {base: {c: 0.5}}"])
def test_a_file_without_rows_is_no_study(tmp_path, text):
    (file := tmp_path / "small.yaml").write_text(text)
    with pytest.raises(SettingsError, match="must have rows, each with an expid"):
        studies.read_study(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        studies.read_study(tmp_path / "none.yaml")


def test_results_of_other_data_are_refused(make):
    study = make()
    study.run(["base"], [1])
    make.sums["train"] = "other"
    study.check(["twin"])
    with pytest.raises(DataError, match="other data than files of md5 other"):
        study.check(["base"])


def test_results_without_md5_sums_are_told_from_those_of_other_data(make):
    study = make()
    studies.add(study.file, {"row": "base", "data": {"fingerprint": "0"}})
    study.check(["twin"])
    with pytest.raises(DataError, match=r"'base' without md5 sums .* another study"):
        study.check(["base"])


def test_only_missing_runs_are_made_and_changed_settings_are_runs_of_their_own(make):
    make().run(["base", "twin"], [1, 2])
    make().run(["base", "twin"], [1, 2, 3])
    assert [settings["seed"] for settings in make.ran] == [1, 1, 2, 2, 3, 3]
    changed = make(rows=ROWS | {"base": {"expid": "DeepFM_demo", "net_dropout": 0.4}})
    changed.run(["base"], [1])
    assert len(studies.read(changed.file)) == 7
    assert [line["seeds"] for line in changed.means()] == ["1", "3"]


def test_rows_take_turns_under_one_budget_and_a_search_goes_on_from_its_file(make):
    study = make(search=SEARCH)
    study.tune(["base", "twin"], trials=2)
    names = [trial["row"] for trial in studies.read(study.trials_file)]
    assert names == ["base", "twin", "base", "twin"]
    assert make.ran[1]["c"] == 0.7 and make.ran[0]["learning_rate"] == 1e-3
    study.tune(["base", "twin"])
    trials = study.trials("twin")
    assert len(trials) == 12 and len(studies.read(study.trials_file)) == 24
    assert len({json.dumps(trial["values"]) for trial in trials}) == 12
    assert any(trial["state"] == "pruned" for trial in trials)
    assert "c" not in study.trials("base")[0]["values"]
    best = max((t for t in trials if "valid" in t), key=lambda t: t["valid"]["AUC"])
    assert study.best("twin") == best["values"]
    study.run(["twin"], [5])
    assert make.ran[-1]["c"] == best["values"]["c"] and make.ran[-1]["seed"] == 5


def test_a_search_takes_no_trial_that_other_settings_of_its_row_made(make):
    make(search=SEARCH).tune(["base"], trials=1)
    rows = ROWS | {"base": {"expid": "DeepFM_demo", "embedding_dim": 8}}
    changed = make(rows=rows, search=SEARCH)
    assert changed.best("base") == {}
    changed.tune(["base"], trials=1)
    assert len(changed.trials("base")) == 1 and len(studies.read(changed.trials_file)) == 2


def test_no_trial_starts_when_the_seconds_are_spent(make):
    study = make(search=SEARCH)
    entry = {"row": "base", "settings": {}, "values": {}, "cpu_seconds": 1000}
    entry |= {"state": "pruned", "scores": []}
    studies.add(study.trials_file, entry)
    study.tune(["base"])
    assert not make.ran


def test_seconds_per_epoch_are_those_between_evaluations_of_an_epoch(make):
    study = make(rows={"base": {"expid": "DeepFM_demo", "eval_steps": 10}})
    study.add_time("base")
    assert make.ran[-1]["eval_steps"] is None and make.ran[-1]["epochs"] == studies.TIMED_EPOCHS
    assert studies.read(study.times_file)[0]["seconds_per_epoch"] == 2


def test_differences_are_paired_by_seed_with_their_interval(make):
    rows = ROWS | {"base": {"expid": "DeepFM_demo", "net_dropout": 0.3}}
    study = make(rows=rows, pairs=[["twin", "base"]])
    study.run(["base", "twin"], [1, 2, 3])
    (line,) = study.differences()
    assert line["AUC"] == "+0.20000 [+0.20000, +0.20000]"
    assert studies.interval([1.0, 2.0, 3.0]) == "+2.00000 [-0.48414, +4.48414]"


def test_a_family_is_one_line_of_what_all_its_rows_reach(make):
    rows = ROWS | {name: ROWS["base"] | {"net_dropout": 0.3} for name in ("plain", "wide")}
    study = make(rows=rows, families=[["twin", "plain", "wide"], ["twin", "base", "base"]])
    study.run(["twin", "wide"], [1, 2])
    study.run(["plain", "base"], [1])
    (line,) = study.in_families()  # "base" shares one seed with the twin: no interval yet
    assert line["AUC, twin − widened"] == "+0.20000 [+0.20000, +0.20000]"
    assert line["seeds"] == "2" and line["base model"].endswith(" / 0.50000")
    study.run(["twin"], [3])  # not in its line: "wide" lacks the seed
    assert study.in_families() == [line]
    assert [difference["difference on test"] for difference in study.differences()] == [
        "twin − wide"
    ]


def test_committed_tables_are_those_of_the_results():
    files = (ROOT / "benchmarks/studies").glob("*.yaml")
    found = {file.stem: studies.read_study(file) for file in files}
    for study in found.values():
        if study.file.exists():
            assert study.file.with_suffix(".md").read_text() == study.table()
    for page in studies.PAGES:
        assert studies.filled(page.read_text(), found) == page.read_text()
    with pytest.raises(SettingsError, match="there is no study 'x'"):
        studies.filled("<!-- study x -->\n<!-- end -->", found)
