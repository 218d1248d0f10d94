"""Search by Optuna: choices and ranges, pruning, resuming, and a plan's loop, without processes."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_sweep import write_project, write_tuner

optuna = pytest.importorskip("optuna", reason="the extra [tune] is not installed")

from fuxictr_tf4ctr.errors import SettingsError  # noqa: E402
from fuxictr_tf4ctr.runs.records import RunRecord  # noqa: E402
from fuxictr_tf4ctr.sweep import SweepOptions, run_sweep  # noqa: E402
from fuxictr_tf4ctr.sweep.folder import (  # noqa: E402
    SweepFolder,
    ranking,
)
from fuxictr_tf4ctr.sweep.plan import (  # noqa: E402
    Outcome,
    Progress,
    carry_out,
)
from fuxictr_tf4ctr.sweep.points import Job  # noqa: E402
from fuxictr_tf4ctr.sweep.search import Search  # noqa: E402
from fuxictr_tf4ctr.sweep.tuner_file import read_tuner  # noqa: E402

SPACE = {
    "c": {"low": 0.0, "high": 1.0},
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "batch_size": {"low": 16, "high": 64, "step": 16},
    "simple_hidden_units": [[4], [8, 4], [4, 8]],
}


@pytest.fixture()
def tuner(tmp_path, monkeypatch):
    monkeypatch.chdir(write_project(tmp_path, model={"batch_size": 32}))
    return read_tuner(write_tuner(tmp_path, SPACE))


@pytest.fixture()
def folder(tmp_path):
    sweep = SweepFolder(tmp_path / "sweep", "grid")
    sweep.path.mkdir()
    return sweep


def options(trials, search="tpe", prune=True):
    return SweepOptions("grid.yaml", search=search, trials=trials, prune=prune)


def can_run(point):
    return point.settings is not None


class Instant:
    """Children that end at once; what they reach follows from their settings."""

    has_room, running, rows_between = True, (), 192

    def __init__(self, search, folder, reach):
        self.search, self.folder, self.reach = search, folder, reach
        self.jobs, self._ended, self.running = [], [], []

    def start(self, job):
        self.jobs.append(job)
        self.has_room = False
        child = SimpleNamespace(job=job)
        self.running = [child]

    def record(self, job):
        settings = dict(self.search.points[job.expid].settings.params)
        record = RunRecord(job.expid, self.folder.path, settings)
        curve = self.reach(settings)
        each = self.rows_between // settings["batch_size"]
        record.evaluations = [
            {"metrics": {"AUC": value}, "step": number * each}
            for number, value in enumerate(curve, start=1)
        ]
        record.valid = record.test = {"AUC": curve[-1]}
        record.status = "finished"
        return record

    def prune(self, child):
        self._ended.append(Outcome(child.job, self.record(child.job), pruned=True))

    def ended(self):
        done = self._ended or [Outcome(c.job, self.record(c.job)) for c in self.running]
        self._ended, self.running, self.has_room = [], [], True
        return done

    def stop(self):
        self.running = []


def search_and_run(tuner, folder, reach, monkeypatch, sampler="tpe", trials=14, prune=True):
    monkeypatch.setattr("fuxictr_tf4ctr.sweep.plan._SECONDS_BETWEEN_LOOKS", 0)
    search = Search(tuner, folder, options(trials, sampler, prune), can_run)
    children = Instant(search, folder, reach)
    outcomes = carry_out(search, children, Progress(trials, tuner.shared, io.StringIO()))
    return search, outcomes


def peak(settings):
    return [0.5, 0.9 - (settings["c"] - 0.3) ** 2]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_point_is_in_the_space_and_the_base_comes_first(tuner, folder, monkeypatch, sampler):
    search, outcomes = search_and_run(tuner, folder, peak, monkeypatch, sampler, prune=False)
    points = [search.points[outcome.job.expid] for outcome in outcomes]
    assert len(points) == 14
    assert points[0].values["c"] == 0.8 and points[0].values["simple_hidden_units"] == [4]
    assert [point.expid.split("_")[2] for point in points[:2]] == ["001", "002"]
    for values in (point.values for point in points[1:]):
        assert 0 <= values["c"] <= 1
        assert 1e-4 <= values["learning_rate"] <= 1e-1
        assert values["batch_size"] in (16, 32, 48, 64)
        assert values["simple_hidden_units"] in SPACE["simple_hidden_units"]


def test_the_base_comes_first_only_if_it_lies_in_the_space(tmp_path, tuner, folder, monkeypatch):
    write_project(tmp_path, model={"batch_size": 20})
    tuner = read_tuner(tuner.file)
    search, outcomes = search_and_run(tuner, folder, peak, monkeypatch, trials=1)
    values = search.points[outcomes[0].job.expid].values
    assert values["batch_size"] % 16 == 0 and values["c"] != 0.8


def test_runs_of_several_monitors_are_judged_by_the_bases(tmp_path, tuner, folder, monkeypatch):
    tuner = read_tuner(write_tuner(tmp_path, SPACE | {"monitor": ["AUC", {"AUC": 2}]}))
    search, outcomes = search_and_run(tuner, folder, peak, monkeypatch, "random", prune=False)
    records = [outcome.record for outcome in outcomes]
    assert len({str(record.settings["monitor"]) for record in records}) == 2
    values = [trial.value for trial in search._study.get_trials()]
    assert values == [record.valid["AUC"] for record in records]
    runs = [(search.points[record.expid], record) for record in records]
    ranked = [row["monitor (AUC)"] for row in ranking(runs, tuner.shared)]
    assert ranked == sorted(values, reverse=True)
    single = read_tuner(write_tuner(tmp_path, SPACE | {"monitor": {"AUC": 2}}))
    assert ranking(runs, single.shared)[0]["monitor (2 AUC)"] == 2 * max(values)


def test_the_best_so_far_is_the_bases_monitors():
    said = io.StringIO()
    progress = Progress(2, {"monitor": "logloss", "monitor_mode": "min"}, said)
    for expid, valid in (("a", {"AUC": 0.7, "logloss": 0.4}), ("b", {"AUC": 0.8, "logloss": 0.5})):
        record = RunRecord(expid, Path(), {"monitor": "AUC", "monitor_mode": "max"})
        record.valid = valid
        progress.add(Outcome(Job(expid, "mine", 1), record))
    progress.close()
    assert "best logloss 0.400000 by a" in said.getvalue()


def test_tpe_comes_nearer_to_the_best_than_random(tuner, folder, tmp_path, monkeypatch):
    found = {}
    for sampler in ("tpe", "random"):
        sweep = SweepFolder(tmp_path / sampler, "grid")
        sweep.path.mkdir()
        search, outcomes = search_and_run(tuner, sweep, peak, monkeypatch, sampler, 24, False)
        late = [search.points[outcome.job.expid].values["c"] for outcome in outcomes[-10:]]
        found[sampler] = sum(abs(c - 0.3) for c in late)
    assert found["tpe"] < found["random"]


def test_hopeless_runs_are_pruned_and_the_best_is_not(tuner, folder, monkeypatch):
    def falls(settings):
        return [0.8, *[0.9 - (settings["c"] - 0.3) ** 2] * 4]

    search, outcomes = search_and_run(tuner, folder, falls, monkeypatch, "random")
    pruned = [outcome for outcome in outcomes if outcome.pruned]
    assert 1 < len(pruned) < 10  # the first four runs always go to their end
    assert not any(outcome.pruned for outcome in outcomes[:4])
    assert search.pruned() == [outcome.job.expid for outcome in pruned]
    best = max(outcomes, key=lambda outcome: outcome.record.valid["AUC"])
    assert not best.pruned
    folder_of_all = SweepFolder(folder.path.parent / "all", "grid")
    folder_of_all.path.mkdir()
    _, outcomes = search_and_run(tuner, folder_of_all, falls, monkeypatch, "random", prune=False)
    assert not any(outcome.pruned for outcome in outcomes)


def test_runs_of_small_batches_are_judged_after_as_many_rows(tuner, folder, monkeypatch):
    def record(self, job):
        settings = dict(self.search.points[job.expid].settings.params)
        record = RunRecord(job.expid, self.folder.path, settings)
        record.evaluations = [  # every 4 steps, better with each 128 rows
            {"metrics": {"AUC": 0.5 + step * settings["batch_size"] // 128 / 100}, "step": step}
            for step in range(4, 3072 // settings["batch_size"] + 1, 4)
        ]
        record.valid = record.test = {"AUC": 0.8}
        return record

    monkeypatch.setattr(Instant, "record", record)
    search, outcomes = search_and_run(tuner, folder, peak, monkeypatch, "random")
    assert search._study.user_attrs["rows between evaluations"] == 128
    assert {outcome.record.settings["batch_size"] for outcome in outcomes} == {16, 32, 48, 64}
    assert not any(outcome.pruned for outcome in outcomes)


def test_a_search_goes_on_where_it_was_cut_off(tuner, folder, monkeypatch):
    _, outcomes = search_and_run(tuner, folder, peak, monkeypatch, trials=6)
    # A seventh trial was running when the process was killed.
    cut_off = Search(tuner, folder, options(7), can_run).next_job()
    second, later = search_and_run(tuner, folder, peak, monkeypatch, trials=9)
    assert later[0].job == cut_off
    assert len(later) == 3
    assert {outcome.job.expid for outcome in outcomes} <= set(second.points)
    assert len({str(point.values) for point in second.points.values()}) == 9
    assert search_and_run(tuner, folder, peak, monkeypatch, trials=9)[1] == []


def test_pruned_settings_are_not_run_again(tmp_path, tuner, folder):
    tuner = read_tuner(write_tuner(tmp_path, {"c": [0.8]}))
    search = Search(tuner, folder, options(3), can_run)
    job = search.next_job()
    search.ended(Outcome(job, None, pruned=True))
    for trials in (3, 5):  # the space has one point: the search ends all the same, also later
        assert Search(tuner, folder, options(trials), can_run).next_job() is None
    assert search.next_job() is None
    assert search.pruned() == [job.expid] and len(search._study.get_trials()) == 5


def test_another_space_is_another_study(tuner, folder, tmp_path, monkeypatch):
    search_and_run(tuner, folder, peak, monkeypatch, trials=1)
    other = read_tuner(write_tuner(tmp_path, SPACE | {"c": [0.5, 0.6]}))
    with pytest.raises(SettingsError, match="another tuner_space"):
        Search(other, folder, options(2), can_run)


def test_no_run_starts_on_data_that_cannot_be_encoded(tmp_path, monkeypatch):
    monkeypatch.chdir(write_project(tmp_path))
    (tmp_path / "raw" / "train.csv").write_text("label,user\n1,a\n")
    file = write_tuner(tmp_path, {"c": SPACE["c"]})
    jobs = []

    def carrier(folder, options):
        return lambda plan, progress: jobs.extend(iter(plan.next_job, None)) or []

    result = run_sweep(SweepOptions(file, search="random", trials=3, carrier=carrier))
    assert jobs == [] and len(result.failures) == 3
    assert all("item" in reason for reason in result.failures.values())


def test_points_that_cannot_run_count_as_failed(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(write_project(tmp_path))
    tuner = read_tuner(write_tuner(tmp_path, {"fusion": ["WSF", "WS"], "c": SPACE["c"]}))
    search, outcomes = search_and_run(tuner, folder, peak, monkeypatch, "random", trials=12)
    bad = [point for point in search.points.values() if point.problem]
    assert bad and len(bad) + len(outcomes) == 12
