"""Random and TPE search by Optuna, with pruning, on a tuner file's space.

The study lies in the sweep's ``study.db`` and can be opened with Optuna's own tools.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.runs.records import plain
from fuxictr_tf4ctr.schema import is_number
from fuxictr_tf4ctr.settings.keys import KEYS
from fuxictr_tf4ctr.settings.published import is_published
from fuxictr_tf4ctr.sweep.folder import SweepFolder, monitored, more_is_better
from fuxictr_tf4ctr.sweep.plan import Outcome, Plan
from fuxictr_tf4ctr.sweep.points import Job, Point, PointMaker
from fuxictr_tf4ctr.sweep.tuner_file import Range, Space, Tuner

if TYPE_CHECKING:
    from fuxictr_tf4ctr.sweep import SweepOptions

try:
    import optuna
    from optuna.trial import TrialState
except ImportError as error:
    raise SettingsError(
        "--search tpe and --search random need Optuna: pip install 'fuxictr-tf4ctr[tune]'"
    ) from error

# Runs that must have ended before one is judged hopeless, and evaluations that each is granted:
# averaged weights, small rates and strong regularization are behind at first.
FULL_RUNS_FIRST = 4
_EVALUATIONS_FIRST = 3
# Where the study keeps the rows that the first run was trained on when first evaluated.
_ROWS_BETWEEN = "rows between evaluations"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search(Plan):
    """A plan that asks Optuna what to run next and tells it how that went.

    Args:
        tuner: The tuner file.
        folder: The sweep's folder.
        options: Whether by "tpe" or at "random", how many trials in all, those before a resume
            included, and whether to prune: to stop a run whose monitored value is worse than the
            median of earlier runs after as many rows.
        on_point: Called with each new point before it runs; says whether it can.

    Raises:
        SettingsError: The folder's study was made with another space.
    """

    def __init__(
        self,
        tuner: Tuner,
        folder: SweepFolder,
        options: "SweepOptions",
        on_point: Callable[[Point], bool],
    ) -> None:
        self.points: dict[str, Point] = {}
        self._tuner = tuner
        self._folder = folder
        self._maker = PointMaker(tuner)
        self._options = options
        self._on_point = on_point
        self._asked: dict[str, optuna.Trial] = {}
        self._reported: dict[str, int] = {}
        self._known: dict[str, str] = {}  # key of a point -> the expid it was first tried under
        self._study = self._open()
        self._rows_between: int | None = self._study.user_attrs.get(_ROWS_BETWEEN)
        self._take_up()

    def next_job(self) -> Job | None:
        """Ask for the next point that can run and was not tried before."""
        while self._counted() < self._options.trials:
            trial = self._study.ask()
            index = trial.user_attrs.get("index", trial.number + 1)
            trial.set_user_attr("index", index)
            point = self._maker.point(index, self._values(trial))
            earlier = self._known.setdefault(point.key, point.expid)
            if earlier != point.expid and self._tell_again(trial, self.points[earlier]):
                continue
            trial.set_user_attr("expid", point.expid)
            self.points[point.expid] = point
            if not self._on_point(point):
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            self._asked[point.expid] = trial
            return point.job
        return None

    def hopeless(self, job: Job, evaluations: list[dict[str, Any]]) -> bool:
        """Report new evaluations; ask whether they are worse than the median of earlier runs.

        Runs are compared after as many rows, however many steps of a batch these took: in units of
        what the first run saw between its evaluations.
        """
        trial = self._asked[job.expid]
        before = reported = self._reported.get(job.expid, 0)
        for evaluation in evaluations:
            rows = evaluation["step"] * self.points[job.expid].settings["batch_size"]
            if self._rows_between is None:
                self._rows_between = rows
                self._study.set_user_attr(_ROWS_BETWEEN, rows)
            units = int(rows / self._rows_between + 0.1)  # the last batch may not have been full
            value = monitored(self._tuner.shared, evaluation["metrics"])
            if units > reported and value is not None:
                trial.report(value, units)
                reported = units
        self._reported[job.expid] = reported
        return self._options.prune and reported > before and trial.should_prune()

    def ended(self, outcome: Outcome) -> None:
        """Tell what the run reached."""
        trial = self._asked.pop(outcome.job.expid)
        value = None
        if outcome.failure is None and not outcome.pruned:
            value = monitored(self._tuner.shared, outcome.record.valid)
        if value is not None:
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED if outcome.pruned else TrialState.FAIL)

    def pruned(self) -> list[str]:
        """Return the expids of all pruned trials; those told again have none."""
        trials = self._study.get_trials(states=(TrialState.PRUNED,))
        return [trial.user_attrs["expid"] for trial in trials if "expid" in trial.user_attrs]

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            study_name=self._folder.name,
            storage=f"sqlite:///{self._folder.path.resolve() / 'study.db'}",
            pruner=median_pruner(),
            direction="maximize" if more_is_better(self._tuner.shared) else "minimize",
            load_if_exists=True,
        )
        # A search that goes on must not draw again what it drew at its start.
        seed = int(self._tuner.model.get("seed", KEYS["seed"].default)) + len(study.get_trials())
        if self._options.search == "tpe":
            study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        space = json.dumps(self._tuner.space, default=vars)
        if study.user_attrs.get("space", space) != space:
            raise SettingsError(
                f"{self._folder.path} holds a study of another tuner_space: give it the space it "
                "began with, or choose another --output"
            )
        study.set_user_attr("space", space)
        return study

    def _take_up(self) -> None:
        """Know the points tried before; try again those that were cut off or failed."""
        trials = self._study.get_trials()
        if not trials:
            self._try_base_first()
        again = set(self._study.user_attrs.get("tried_again", []))
        for trial in trials:
            if "index" not in trial.user_attrs or trial.number in again:
                continue
            point = self._maker.point(trial.user_attrs["index"], self._decoded(trial.params))
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                if "expid" in trial.user_attrs:
                    self.points[point.expid] = point
                    self._known[point.key] = point.expid
                continue
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
            index = {"index": trial.user_attrs["index"]}
            self._study.enqueue_trial(trial.params, user_attrs=index)
            again.add(trial.number)
        self._study.set_user_attr("tried_again", sorted(again))

    def _try_base_first(self) -> None:
        """Let the first trial be the base experiment, if it lies in the space."""
        base = {**self._tuner.dataset, **self._tuner.model}
        if is_published(base):
            return  # its space is in the authors' spelling, our defaults are not
        model_class = find_model(str(base["model"]), self._tuner.checkout)
        if hasattr(model_class, "with_defaults"):
            base = model_class.with_defaults(base)
        defaults = {key: entry.default for key, entry in KEYS.items()} | base
        space = self._tuner.space
        if all(key in defaults and _within(defaults[key], space[key]) for key in space):
            self._study.enqueue_trial(
                {
                    key: as_choice(defaults[key]) if isinstance(choices, list) else defaults[key]
                    for key, choices in space.items()
                }
            )

    def _counted(self) -> int:
        """Return how many points were tried, each once."""
        tried = [trial for trial in self._study.get_trials() if trial.state != TrialState.WAITING]
        return len(tried) - len(self._study.user_attrs["tried_again"])

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        suggested = {key: suggest(trial, key, each) for key, each in self._tuner.space.items()}
        return self._decoded(suggested)

    def _decoded(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        space: Space = self._tuner.space
        return {
            key: json.loads(value) if isinstance(space[key], list) else value
            for key, value in suggested.items()
        }

    def _tell_again(self, trial: optuna.Trial, point: Point) -> bool:
        """Tell a repeated trial what its settings reached before; False if that is not known."""
        if point.settings is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return True
        if point.expid in self.pruned():
            self._study.tell(trial, state=TrialState.PRUNED)
            return True
        record = self._folder.latest(point.job)
        if record is None or record.status != "finished":
            return False
        self._study.tell(trial, monitored(self._tuner.shared, record.valid))
        return True


def median_pruner() -> optuna.pruners.MedianPruner:
    """Return what stops a trial; its evaluations are reported under numbers from 1."""
    return optuna.pruners.MedianPruner(FULL_RUNS_FIRST, _EVALUATIONS_FIRST + 1)


def suggest(trial: optuna.Trial, key: str, choices: list[Any] | Range) -> Any:
    if isinstance(choices, list):  # as JSON: Optuna stores no lists
        return trial.suggest_categorical(key, [as_choice(choice) for choice in choices])
    suggest = trial.suggest_int if choices.whole else trial.suggest_float
    step = choices.step or (1 if choices.whole else None)
    return suggest(key, choices.low, choices.high, step=step, log=choices.log)


def _within(value: Any, choices: list[Any] | Range) -> bool:
    if isinstance(choices, list):
        return value in choices
    if not is_number(value) or not choices.low <= value <= choices.high:
        return False
    steps = (value - choices.low) / choices.step if choices.step else 0
    return abs(steps - round(steps)) < 1e-9


def as_choice(value: Any) -> str:
    return json.dumps(value, default=plain)
