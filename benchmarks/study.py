"""Run a study, experiments under several seeds, and tabulate mean ± std: resumable, run by run.

    FUXICTR_DATA=../shared/data python benchmarks/study.py benchmarks/studies/frappe_averaged.yaml

A study is a YAML file: one entry per row of the table, an expid and what it overrides. Each
finished run is added to ``benchmarks/results/<study>.json`` at once; started again, the script goes
on with what is missing. The table beside it, ``<study>.md``, is written anew from the results.
``--rows`` and ``--seeds`` restrict the runs, so that two processes can share a study's work.
``train_seconds`` in the results is wall-clock time, whatever else the machine did meanwhile: the
table leaves it out. ``--time`` measures seconds per epoch, on a machine that does nothing else.

A study with a ``search`` tunes its rows first (``--search``), all under one budget: TPE over one
space, runs without hope on the validation data pruned; ``--trials`` says how many trials a row gets
where it is not to be the study's number. The rows take turns, so that a search that is stopped has
spent as much on each. Every trial is added to ``<study>_trials.json``, from which
the search goes on, on another machine too. Then the rows run with what each one's best trial has,
under seeds that the search did not see.

Nothing runs before all rows, spaces and data have been checked: an unknown expid or setting, or
results that other files gave, stop the script.

    python benchmarks/study.py --table

writes the tables of all studies anew, those in README.md and docs/results.md among them: what
stands between ``<!-- study NAME -->`` and ``<!-- end -->``, or ``<!-- families NAME -->`` for one
line per twin, beside its base models.
"""

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import optuna
from filelock import FileLock
from scipy.stats import t as student

from fuxictr_tf4ctr.errors import DataError, SettingsError, UserError
from fuxictr_tf4ctr.files import write_whole
from fuxictr_tf4ctr.runs.experiment import run_experiment
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.settings.reading import Settings, load_settings
from fuxictr_tf4ctr.settings.sections import read_yaml
from fuxictr_tf4ctr.sweep.search import FULL_RUNS_FIRST, as_choice, median_pruner, suggest
from fuxictr_tf4ctr.sweep.tuner_file import Space, read_space

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
TIMED_EPOCHS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?", help="YAML file of the study")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the study, or 3")
    parser.add_argument("--rows", nargs="+", help="only these rows of the study")
    parser.add_argument("--trials", type=int, help="of each row in the search, not the study's")
    parser.add_argument("--output", default="checkpoints/studies", help="folder of the runs")
    parser.add_argument("--search", action="store_true", help="tune the rows, then run them")
    parser.add_argument("--time", action="store_true", help="measure seconds per epoch instead")
    parser.add_argument("--table", action="store_true", help="only write the tables anew")
    arguments = parser.parse_args()
    if (arguments.study is None) != arguments.table:
        parser.error("give the file of a study, or --table for all")
    if arguments.trials is not None and not (arguments.search and arguments.trials > 0):
        parser.error("--trials N is for --search, N at least 1")
    try:
        if arguments.table:
            write_tables()
        else:
            carry_out(read_study(arguments.study, arguments.output), arguments)
    except UserError as error:
        parser.error(str(error))


def carry_out(study: "Study", arguments: argparse.Namespace) -> None:
    """Make what is missing of a study, and print its table."""
    names = arguments.rows or list(study.rows)
    study.check(names)
    if arguments.search:
        study.tune(names, arguments.trials)
    if arguments.time:
        for name in names:
            study.add_time(name)
    else:
        study.run(names, arguments.seeds or study.seeds)
    study.write_table()
    print(study.table())


@dataclass(frozen=True)
class Search:
    """How the rows of a study are tuned.

    Attributes:
        trials: Trials of each row.
        cpu_seconds: Processor seconds of each row, after which no trial of it starts.
        seed: Seed of all trials; the runs that count have others.
        objective: Weights of the validation metrics whose sum is maximised.
        space: What all rows vary.
        twin_space: What rows with a Twin Focus Loss vary beside.
        first: Points that each row tries first; keys that they leave out are drawn.
    """

    trials: int
    cpu_seconds: float
    seed: int
    objective: dict[str, float]
    space: Space
    twin_space: Space = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)

    def score(self, metrics: dict[str, float]) -> float:
        """Return what metrics on the validation data are worth."""
        return sum(weight * metrics[name] for name, weight in self.objective.items())


@dataclass(frozen=True)
class Study:
    """Rows of a table, their results so far, and how to get the others.

    Attributes:
        name: Name of its files of results.
        rows: Row -> expid and what it overrides.
        output: Folder of the runs.
        seeds: Seeds under which the rows run.
        families: A twin, its base model, and this one widened to as many parameters.
        pairs: Other rows to compare seed by seed, the first minus the second.
        search: How rows are tuned before, if they are.
    """

    name: str
    rows: dict[str, dict[str, Any]]
    output: str
    seeds: list[int]
    families: list[list[str]] = field(default_factory=list)
    pairs: list[list[str]] = field(default_factory=list)
    search: Search | None = None

    @property
    def file(self) -> Path:
        """The results."""
        return RESULTS / f"{self.name}.json"

    @property
    def trials_file(self) -> Path:
        """The trials of the search."""
        return RESULTS / f"{self.name}_trials.json"

    @property
    def times_file(self) -> Path:
        """Seconds per epoch."""
        return RESULTS / f"{self.name}_seconds.json"

    def check(self, names: list[str]) -> None:
        """Raise UserError unless all rows can run, on the files of the results so far."""
        for name in names:
            if name not in self.rows:
                raise SettingsError(f"the study has no row {name!r}: {', '.join(self.rows)}")
            for values in self.edges(name):
                self.settings(name, 0, values)
            sums = md5_sums(self.settings(name, 0))
            for file in (self.file, self.trials_file):
                kept = [run["data"].get("md5") for run in read(file) if run["row"] == name]
                if None in kept:
                    raise DataError(
                        f"{file} holds runs of {name!r} without md5 sums of their data, so that "
                        "none can be added to them: make another study, a copy of this one's file "
                        "under another name"
                    )
                if any(each != sums for each in kept):
                    raise DataError(
                        f"{file} holds runs of {name!r} on other data than files of md5 "
                        f"{', '.join(sums.values())}: give the files of the results, or make "
                        "another study"
                    )

    def settings(self, name: str, seed: int, values: dict[str, Any] | None = None) -> Settings:
        """Return the checked settings of a row.

        Args:
            name: The row.
            seed: The seed.
            values: What the row overrides beside; None for what its best trial has.
        """
        values = self.best(name) if values is None else values
        overrides = {"seed": seed, "model_root": self.output, "verbose": 0}
        overrides |= self.rows[name] | values
        return load_settings(overrides.pop("expid"), overrides=overrides)

    # The search ---------------------------------------------------------------------------------

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """Row -> what the search varies."""
        if self.search is None:
            return {name: {} for name in self.rows}
        both = self.search.space | self.search.twin_space
        return {name: both if self.is_twin(name) else self.search.space for name in self.rows}

    def is_twin(self, name: str) -> bool:
        """Whether a row has a Twin Focus Loss."""
        settings = self.settings(name, 0, {})
        with_defaults = getattr(settings.model_class, "with_defaults", dict)
        return bool(with_defaults(settings.params).get("twin_focus"))

    def edges(self, name: str) -> Iterator[dict[str, Any]]:
        """Return points that show whether a row takes what its space holds."""
        space = self.spaces[name]
        lists = [values if isinstance(values, list) else [values.low] for values in space.values()]
        for i in range(max(map(len, lists), default=1)):
            yield {k: v[min(i, len(v) - 1)] for k, v in zip(space, lists, strict=True)}

    def tune(self, names: list[str], trials: int | None = None) -> None:
        """Make the trials that are missing, the rows in turns.

        Args:
            names: The rows.
            trials: Of each row; None for as many as the study has.
        """
        if self.search is None:
            raise SettingsError("the study has no section search")
        while due := [n for n in names if self.has_budget(n, trials or self.search.trials)]:
            fewest = min(due, key=lambda name: len(self.trials(name)))
            self.add_trial(fewest)

    def has_budget(self, name: str, most: int) -> bool:
        """Whether another trial of a row may start, of at most so many."""
        trials = self.trials(name)
        spent = sum(trial["cpu_seconds"] for trial in trials)
        return len(trials) < most and spent < self.search.cpu_seconds

    def trials(self, name: str) -> list[dict[str, Any]]:
        """Return the trials of a row so far under its settings of today."""
        own = self.own(name)
        trials = [trial for trial in read(self.trials_file) if trial["row"] == name]
        return [trial for trial in trials if trial.get("settings") == own]

    def best(self, name: str) -> dict[str, Any]:
        """Return what the best trial of a row overrides, nothing before any has finished."""
        if self.search is None:
            return {}
        finished = [trial for trial in self.trials(name) if trial["state"] == "finished"]
        best = max(finished, key=lambda each: self.search.score(each["valid"]), default=None)
        return best["values"] if best else {}

    def add_trial(self, name: str) -> None:
        """Ask TPE for the next trial of a row, make it, and keep what came of it."""
        trials, space = self.trials(name), self.spaces[name]
        asked = replayed(self.search, trials, space)
        trial = asked.ask()
        values = suggested(trial, space)
        scores: list[float] = []

        def on_evaluation(evaluation: dict[str, Any]) -> None:
            scores.append(self.search.score(evaluation["metrics"]))
            trial.report(scores[-1], len(scores))
            if trial.should_prune():
                raise optuna.TrialPruned

        start, cpu_start = time.perf_counter(), time.process_time()
        settings = self.settings(name, self.search.seed, values)
        entry: dict[str, Any] = {"row": name, "expid": settings.expid}
        entry |= {"settings": self.own(name), "values": values}
        try:
            record = run_experiment(settings, on_evaluation=on_evaluation)
            entry |= {"state": "finished"} | reached(record, settings)
        except optuna.TrialPruned:
            entry |= {"state": "pruned", "data": {"md5": md5_sums(settings)}}
        entry |= {
            "scores": scores,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu_start, 1),
        }
        add(self.trials_file, entry)

    # The runs that count ------------------------------------------------------------------------

    def run(self, names: list[str], seeds: list[int]) -> None:
        """Make the runs that are missing, the rows in turns."""
        for seed in seeds:
            for name in names:
                if not any(result["seed"] == seed for result in self.results(name)):
                    settings = self.settings(name, seed)
                    record = run_experiment(settings)
                    entry = {"row": name, "expid": record.expid, "settings": self.overrides(name)}
                    add(self.file, entry | {"seed": seed} | reached(record, settings))
                    self.write_table()

    def own(self, name: str) -> dict[str, Any]:
        """Return what a row overrides untuned, as its files of results have it."""
        own = {key: value for key, value in self.rows[name].items() if key != "expid"}
        return json.loads(json.dumps(own))

    def overrides(self, name: str) -> dict[str, Any]:
        """Return what a row overrides, its tuned settings included."""
        return self.own(name) | self.best(name)

    def results(self, name: str) -> list[dict[str, Any]]:
        """Return the runs of a row under its settings of today; others are kept, but not shown."""
        settings = self.overrides(name)
        return [
            result
            for result in read(self.file)
            if result["row"] == name and result["settings"] == settings
        ]

    def add_time(self, name: str) -> None:
        """Write the seconds a row trains per epoch, without its evaluations."""
        each_epoch = {"epochs": TIMED_EPOCHS, "eval_steps": None}
        settings = self.settings(name, 2023, self.best(name) | each_epoch)
        record = run_experiment(settings)
        entry = {
            "row": name,
            "seconds_per_epoch": round(median(e["seconds"] for e in record.evaluations), 2),
            "load": round(os.getloadavg()[0], 2),
            "machine": record.machine,
            "versions": record.versions,
        }
        others = [time for time in read(self.times_file) if time["row"] != name]
        write_whole(self.times_file, json.dumps([*others, entry], indent=1) + "\n")

    # The tables ---------------------------------------------------------------------------------

    def write_table(self) -> None:
        """Write the table beside the results."""
        write_whole(self.file.with_suffix(".md"), self.table())

    def table(self) -> str:
        """Format mean ± standard deviation of each row, and the differences, in Markdown."""
        parts = [markdown(self.means()), markdown(self.differences()), markdown(self.searched())]
        return "\n".join(part for part in parts if part)

    def means(self) -> list[dict[str, str]]:
        """Return one line per row of the study that has results."""
        times = {time["row"]: f"{time['seconds_per_epoch']:.1f}" for time in read(self.times_file)}
        return [
            {
                "": name,
                "parameters": f"{runs[0]['parameters']:,}",
                "seeds": str(len(runs)),
                **({"s/epoch": times.get(name, "")} if times else {}),
                "epochs": spread([run["epochs"] for run in runs], 1),
                "valid AUC": spread([run["valid"]["AUC"] for run in runs]),
                **{
                    f"test {metric}": spread([run["test"][metric] for run in runs])
                    for metric in runs[0]["test"]
                },
            }
            for name in self.rows
            if (runs := self.results(name))
        ]

    def differences(self) -> list[dict[str, str]]:
        """Return one line per pair of rows that share two seeds, with 95 % t intervals."""
        of_families = [[twin, base] for twin, *bases in self.families for base in bases]
        return [
            {"difference on test": f"{first} − {second}"} | difference
            for first, second in of_families + self.pairs
            if (difference := self.difference(first, second))
        ]

    def difference(self, first: str, second: str) -> dict[str, str]:
        """Return how many seeds two rows share and the difference by metric; {} below two."""
        one, other = self.by_seed(first), self.by_seed(second)
        seeds = sorted(one.keys() & other.keys())
        if len(seeds) < 2:
            return {}
        return {"seeds": str(len(seeds))} | {
            metric: interval([one[seed][metric] - other[seed][metric] for seed in seeds])
            for metric in one[seeds[0]]
        }

    def by_seed(self, name: str) -> dict[int, dict[str, float]]:
        """Return seed -> metrics on test of a row."""
        return {run["seed"]: run["test"] for run in self.results(name)}

    def in_families(self) -> list[dict[str, str]]:
        """Return one line per family: means on test, and what the twin is ahead of the last row.

        Means are over the seeds that twin and last row share, the base model's over those it has.
        """
        lines = []
        for twin, base, widened in self.families:
            if difference := self.difference(twin, widened):
                rows = [self.by_seed(name) for name in (twin, base, widened)]
                seeds = rows[0].keys() & rows[2].keys()
                means = [mean_of([row[seed] for seed in seeds if seed in row]) for row in rows]
                lines.append(
                    {
                        "AUC / logloss on test": twin,
                        "seeds": difference["seeds"],
                        **dict(zip(("twin", "base model", "widened"), means, strict=True)),
                        "AUC, twin − widened": difference["AUC"],
                        "logloss, twin − widened": difference["logloss"],
                    }
                )
        return lines

    def searched(self) -> list[dict[str, str]]:
        """Return one line per row that was tuned: what it cost and what it found."""
        lines = []
        for name in self.rows if self.search else ():
            if trials := self.trials(name):
                first = self.search.first[0] if self.search.first else {}
                best = self.best(name)
                other = {k: v for k, v in best.items() if first.get(k) != v}
                found = ", ".join(f"{key} {formatted(value)}" for key, value in other.items())
                pruned = sum(trial["state"] == "pruned" for trial in trials)
                seconds = sum(trial["cpu_seconds"] for trial in trials)
                line = {"search": name, "trials": str(len(trials)), "pruned": str(pruned)}
                line |= {"CPU seconds": f"{seconds:,.0f}"}
                lines.append(
                    line
                    | {
                        "best, where it differs from the first point": found
                        or ("the first point" if best else "")
                    }
                )
        return lines


def write_tables() -> None:
    """Write the tables of all studies that have results, beside them and in the pages."""
    studies = {file.stem: read_study(file) for file in (ROOT / "benchmarks/studies").glob("*.yaml")}
    for study in studies.values():
        if study.file.exists():
            study.write_table()
    for page in PAGES:
        write_whole(page, filled(page.read_text(), studies))


def filled(text: str, studies: dict[str, Study]) -> str:
    """Return a page with the tables that its comments ask for.

    Raises:
        SettingsError: A comment names no study.
    """

    def table(match: re.Match[str]) -> str:
        if match["name"] not in studies:
            known = ", ".join(studies)
            raise SettingsError(f"{match[1]}: there is no study {match['name']!r}: {known}")
        study = studies[match["name"]]
        shown = study.table() if match["what"] == "study" else markdown(study.in_families())
        return f"{match[1]}\n{shown}<!-- end -->"

    return re.sub(
        r"(<!-- (?P<what>study|families) (?P<name>\w+) -->)\n.*?<!-- end -->",
        table,
        text,
        flags=re.S,
    )


def read_study(file: Path, output: str = "checkpoints/studies") -> Study:
    """Read the YAML file of a study: its rows, or ``rows`` beside other sections.

    Raises:
        SettingsError: It cannot be read or has no rows, a section is not known, or the space is
            not valid.
    """
    content = read_yaml(file)
    if "rows" not in content:
        content = {"rows": content}
    rows = content["rows"]
    each = rows.values() if rows and isinstance(rows, dict) else [None]
    if not all(isinstance(row, dict) and "expid" in row for row in each):
        raise SettingsError(f"{file} must have rows, each with an expid and what it overrides")
    content = {"output": output, "seeds": [2023, 2024, 2025]} | content
    try:
        if search := content.get("search"):
            spaces = {
                key: read_space(search[key], f"{file}: search: {key}")
                for key in ("space", "twin_space")
                if key in search
            }
            content["search"] = Search(**{**search, **spaces})
        study = Study(file.stem, **content)
    except TypeError as error:  # names the section that is missing or not known
        raise SettingsError(f"{file}: {error}") from error
    for section, count in (("families", 3), ("pairs", 2)):
        for names in getattr(study, section):
            if len(names) != count or not study.rows.keys() >= set(names):
                raise SettingsError(f"{file}: {section}: {names} must be {count} of the rows")
    return study


def replayed(search: Search, trials: list[dict[str, Any]], space: Space) -> optuna.Study:
    """Return a study of Optuna's that knows these trials and what to try next."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        # A search that goes on must not draw again what it drew before.
        sampler=optuna.samplers.TPESampler(
            n_startup_trials=FULL_RUNS_FIRST, seed=search.seed + len(trials)
        ),
        pruner=median_pruner(),
    )
    for past in trials:
        study.enqueue_trial(encoded(past["values"], space))
        trial = study.ask()
        suggested(trial, space)
        for step, score in enumerate(past["scores"], start=1):
            trial.report(score, step)
        if past["state"] == "finished":
            study.tell(trial, search.score(past["valid"]))
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    for point in search.first[len(trials) :]:
        study.enqueue_trial(encoded({k: v for k, v in point.items() if k in space}, space))
    return study


def encoded(values: dict[str, Any], space: Space) -> dict[str, Any]:
    """Return values as Optuna has them: choices as text."""
    return {k: as_choice(v) if isinstance(space[k], list) else v for k, v in values.items()}


def suggested(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return the values of a trial, in our spelling."""
    values = {key: suggest(trial, key, each) for key, each in space.items()}
    return {k: json.loads(v) if isinstance(space[k], list) else v for k, v in values.items()}


def md5_sums(settings: Settings) -> dict[str, str]:
    """Return split -> md5 sum of its file: the same data anywhere, unlike a run's fingerprint."""
    files = {split: Path(settings[f"{split}_data"]) for split in ("train", "valid", "test")}
    return {split: hashlib.md5(file.read_bytes()).hexdigest() for split, file in files.items()}


def reached(record: RunRecord, settings: Settings) -> dict[str, Any]:
    """Return what is kept of a run, its settings apart."""
    return {
        "parameters": record.parameters,
        "epochs": record.evaluations[-1]["epoch"],
        "evaluations": [
            {key: each[key] for key in ("epoch", "metrics", "plain_metrics") if key in each}
            for each in record.evaluations
        ],
        "train_seconds": round(record.seconds["train"], 1),
        "valid": record.valid,
        "test": record.test,
        "data": {"md5": md5_sums(settings), "rows": record.data["rows"]},
        "machine": record.machine,
        "versions": record.versions,
    }


def add(file: Path, entry: dict[str, Any]) -> None:
    """Add a run to a file of results, safe against another process doing the same."""
    with FileLock(file.with_suffix(".lock")):
        _parsed.cache_clear()  # times of files are too coarse for what must not be lost
        write_whole(file, json.dumps([*read(file), entry], indent=1) + "\n")
        _parsed.cache_clear()


def read(file: Path) -> list[dict[str, Any]]:
    """Read the results so far; as they are shared, they are not to be changed."""
    return _parsed(file, file.stat().st_mtime_ns) if file.exists() else []


@lru_cache(maxsize=8)
def _parsed(file: Path, changed: int) -> list[dict[str, Any]]:
    """Return a file of results, parsed once for all the rows of its table."""
    return json.loads(file.read_text())


def markdown(lines: list[dict[str, str]]) -> str:
    """Format lines of the same columns as a Markdown table."""
    if not lines:
        return ""
    rows = [list(lines[0]), *(list(line.values()) for line in lines)]
    texts = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]]) + "\n"


def mean_of(metrics: list[dict[str, float]]) -> str:
    """Format the mean AUC and logloss of some runs, if there are any."""
    if not metrics:
        return ""
    return " / ".join(f"{mean(each[name] for each in metrics):.5f}" for name in ("AUC", "logloss"))


def formatted(value: Any) -> str:
    """Format a setting, a number to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)


def spread(values: list[float], digits: int = 5) -> str:
    """Format mean ± sample standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def interval(differences: list[float]) -> str:
    """Format the mean of paired differences with its 95 % confidence interval by Student's t."""
    count = len(differences)
    half = student.ppf(0.975, count - 1) * stdev(differences) / count**0.5
    middle = mean(differences)
    return f"{middle:+.5f} [{middle - half:+.5f}, {middle + half:+.5f}]"


if __name__ == "__main__":
    main()
