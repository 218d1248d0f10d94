"""From YAML to one validated, frozen :class:`Settings`; every problem is found here, at once.

Files and sections are FuxiCTR's: ``model_config.yaml`` or ``model_config/*.yaml`` with a section
for each expid and one named ``Base`` that holds for all, ``dataset_config`` alike. Beyond FuxiCTR,
a model section may name others in ``inherits``; they are merged in order, its own keys win.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel, MultiTaskModel

from fuxictr_tf4ctr.datasets.feature_specs import complete_columns, label_entries
from fuxictr_tf4ctr.datasets.job import (
    check_preprocess,
    find_processor_class,
    splitting_problems,
)
from fuxictr_tf4ctr.datasets.loader import NO_GPU_STORAGE
from fuxictr_tf4ctr.distributed.cost import sharding_problems
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.metrics.definitions import (
    less_is_better,
    needs_group,
    no_weights,
    split_stream,
)
from fuxictr_tf4ctr.names import nearest, shown, unknown
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.schema import ANYTHING, FILE_NAME, REQUIRED, Key, Record, is_whole
from fuxictr_tf4ctr.settings.keys import (
    DATASET_KEYS,
    DEFAULTS,
    KEYS,
    TASKS,
    normalized,
    wanted_trackers,
)
from fuxictr_tf4ctr.settings.model_keys import (
    OLD_MODELS,
    activation_problems,
    batch_norms,
    contract_problems,
    key_problems,
    size_problems,
    understood,
)
from fuxictr_tf4ctr.settings.resolver import Experiments, active_columns
from fuxictr_tf4ctr.settings.sections import located, read_sections, resource_root
from fuxictr_tf4ctr.training.averaging import averaging_problems
from fuxictr_tf4ctr.training.fast import fast_problems
from fuxictr_tf4ctr.training.losses import weighs_rows
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel


@dataclass(frozen=True)
class Settings:
    """Everything a run needs to know, checked.

    Attributes:
        expid: Name of the experiment.
        model_class: Class of its model.
        params: All parameters with their defaults, FuxiCTR's flat names; read-only.
        config_dir: Folder they were read from.
        warnings: What to tell the user once: keys without effect, or read as others.
        found: Where relative paths of data were found.
    """

    expid: str
    model_class: type[BaseModel]
    params: Mapping[str, Any]
    config_dir: Path
    warnings: tuple[str, ...] = ()
    found: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.params[key]


@dataclass(frozen=True)
class Needs:
    """What an experiment must find on this machine.

    Attributes:
        to_train: Whether the GPU, and TorchRec and trackers where they are asked for.
        data: Whether the files of the data set.
    """

    to_train: bool = True
    data: bool = True


RUNS_HERE, RUNS_ELSEWHERE, SHOWN = Needs(), Needs(to_train=False), Needs(False, False)

# Keys of a model's section that name columns, which a data set's section may hold as well.
_NAMING_COLUMNS = ("group_id", "use_features", "feature_specs")

ConfigDir = str | os.PathLike[str] | None
"""Folder of the YAML files; None looks in ``./config``, then in what comes with the package."""


def load_settings(
    expid: str,
    config_dir: ConfigDir = None,
    overrides: Mapping[str, Any] | None = None,
    checkout: str | os.PathLike[str] | None = None,
    needs: Needs = RUNS_HERE,
) -> Settings:
    """Read and check the settings of one experiment.

    Args:
        expid: Name of the experiment.
        config_dir: Folder of the YAML files. None looks in ``./config``, then in the
            configuration that comes with the package.
        overrides: Parameters that replace those of the files.
        checkout: Root of a FuxiCTR checkout whose models may be named.
        needs: What must be on this machine.

    Raises:
        SettingsError: Nothing was found under that expid, or its settings are not valid; the
            message lists all problems.
    """
    if problems := FILE_NAME.problems(expid, "expid"):
        raise SettingsError(problems[0])
    folder, experiments = _find_config(expid, config_dir)
    overrides = dict(overrides or {})
    params = experiments.merged(expid) | overrides
    dataset_id = params.get("dataset_id")
    if not isinstance(dataset_id, str) or dataset_id == "TBD":
        raise SettingsError(
            f"expid {expid!r} in {folder} is a template: its dataset_id is {dataset_id!r}; "
            "name a data set with --set dataset_id=…"
        )
    datasets = read_sections(folder, "dataset_config")
    if dataset_id not in datasets:
        raise SettingsError(f"{folder}: {unknown('dataset_id', dataset_id, datasets)}")
    # As in FuxiCTR the data set's section wins over the model's; what the user sets wins over both.
    params |= datasets[dataset_id] | overrides | {"dataset_id": dataset_id, "model_id": expid}
    return validated(expid, params, folder, checkout, needs)


def validated(
    expid: str,
    params: Mapping[str, Any],
    config_dir: Path,
    checkout: str | os.PathLike[str] | None = None,
    needs: Needs = RUNS_HERE,
) -> Settings:
    """Check flat parameters and freeze them; as :func:`load_settings`.

    Args:
        config_dir: Folder that relative data paths may be beside.

    Raises:
        SettingsError: Listing every problem.
    """
    params, model_class, warnings, problems = _read_for_model(normalized(params), checkout)
    problems += FILE_NAME.problems(expid, "expid") + _key_problems(params)
    # What follows sees values of the right kind alone.
    params = DEFAULTS | {
        key: value
        for key, value in params.items()
        if key not in KEYS or not KEYS[key].value.problems(value)
    }
    columns = _column_problems(params)
    problems += columns + _metric_problems(params, model_class)
    if model_class is not None:
        wrong, foreign = key_problems(params, model_class)
        norms = batch_norms(params, model_class) if params["batch_size"] == 1 else []
        problems += wrong + [
            f"batch_size=1 leaves {key} one row to take a variance of: set batch_size >= 2"
            for key in norms[:1]
        ]
        problems += contract_problems(model_class)
        unlike, told = ([], []) if columns else _label_problems(params, model_class)
        problems += unlike
        warnings += foreign + told
        if issubclass(model_class, TwoStreamModel):
            twins = model_class.problems(params)
            if not twins and not columns:
                twins = model_class.column_problems(active_columns(params), params)
            problems += twins
    problems += activation_problems(params) + size_problems(params)
    if needs.to_train:
        problems += _device_problems(params) + _tracker_problems(params)
    problems += [*sharding_problems(params, needs.to_train), *averaging_problems(params)]
    if params.get("refit_normalizers") and not params.get("continue_from"):
        problems.append("refit_normalizers is for continue_from: set that too, or leave it out")
    problems += fast_problems(params, model_class)
    params, absent, found = located(params, config_dir)
    problems += absent if needs.data else []
    if problems:
        listed = "\n".join(f"- {problem}" for problem in dict.fromkeys(problems))
        raise SettingsError(f"the settings of expid {shown(expid)} are not valid:\n{listed}")
    return Settings(
        expid, model_class, MappingProxyType(params), config_dir, tuple(warnings), found
    )


def list_expids(config_dir: ConfigDir = None) -> dict[str, dict[str, Any]]:
    """Return every experiment that can be run, by expid, with its merged model section."""
    found: dict[str, dict[str, Any]] = {}
    for folder in _config_dirs(config_dir):
        for expid, section in _experiments(folder).expids().items():
            found.setdefault(expid, section)
    return found


def model_section(expid: str, config_dir: ConfigDir = None) -> tuple[Path, dict[str, Any]]:
    """Return the folder an experiment or template is in, and its merged model section.

    Raises:
        SettingsError: There is no such section.
    """
    folder, experiments = _find_config(expid, config_dir)
    return folder, experiments.merged(expid)


def list_datasets(config_dir: ConfigDir = None) -> list[tuple[str, str]]:
    """Return id and training file of every data set."""
    found: dict[str, str] = {}
    for folder in _config_dirs(config_dir):
        for dataset_id, section in read_sections(folder, "dataset_config").items():
            found.setdefault(dataset_id, str(section.get("train_data", "")))
    return list(found.items())


def load_dataset_params(
    dataset_id: str,
    config_dir: ConfigDir = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read and check the settings of one data set, for work on the data alone.

    Raises:
        SettingsError: There is no such data set, or its settings are not valid.
    """
    known: set[str] = set()
    for folder in _config_dirs(config_dir):
        sections = read_sections(folder, "dataset_config")
        known |= sections.keys()
        if dataset_id in sections:
            params = sections[dataset_id] | dict(overrides or {}) | {"dataset_id": dataset_id}
            params = normalized(params)
            keys = DATASET_KEYS | {key: KEYS[key] for key in _NAMING_COLUMNS}
            problems = _key_problems(params, keys) or _column_problems(params)
            defaults = {key: KEYS[key].default for key in ("data_root", "sep", "num_buckets")}
            if not problems:
                params, problems, _ = located(defaults | params, folder)
            if problems:
                raise SettingsError("\n".join(problems))
            return params
    raise SettingsError(unknown("dataset_id", dataset_id, known))


def _config_dirs(config_dir: ConfigDir) -> list[Path]:
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if folder.is_file():
            holds = folder.parents[folder.parent.name in ("model_config", "dataset_config")]
            raise SettingsError(
                f"{folder} is a file: give the folder of the configuration, {holds}"
            )
        if not folder.is_dir():
            raise SettingsError(f"config folder {folder} does not exist")
        return [folder]
    local, packaged = Path("config").resolve(), resource_root() / "config"
    holds_models = (local / "model_config.yaml").is_file() or (local / "model_config").is_dir()
    return list(dict.fromkeys([local, packaged] if holds_models else [packaged]))


def _experiments(folder: Path) -> Experiments:
    # The names of experiments can be told without data sets.
    data = (folder / "dataset_config.yaml").is_file() or (folder / "dataset_config").is_dir()
    datasets = read_sections(folder, "dataset_config") if data else {}
    return Experiments(read_sections(folder, "model_config"), datasets, folder)


def _find_config(expid: str, config_dir: ConfigDir) -> tuple[Path, Experiments]:
    folders = _config_dirs(config_dir)
    for folder in folders:
        experiments = _experiments(folder)
        if expid in experiments:
            if lost := experiments.lost_keys(expid):
                raise SettingsError(
                    f"{folder}: the defaults of the twin replace {', '.join(lost)} in {expid!r}: "
                    "write it in encoder_options of the data set's section in model_config, for "
                    f"the twins whose encoders have it, or in a section {expid!r}"
                )
            return folder, experiments
    known = list_expids(config_dir)
    close = nearest(expid, known, limit=5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    searched = " and ".join(map(str, folders))
    raise SettingsError(
        f"expid {expid!r} is not in {searched}{hint} (fuxictr list expids shows all {len(known)})"
    )


def _read_for_model(
    params: dict[str, Any], checkout: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], type[BaseModel] | None, list[str], list[str]]:
    """Read settings in their model's words; return them, the model, warnings and problems."""
    name = params.get("model")
    if not isinstance(name, str):
        return params, None, [], []
    try:
        model_class = find_model(OLD_MODELS.get(name, name), checkout)
    except SettingsError as error:
        return params, None, [], [str(error)]
    problems = [
        f"model {used} is a LongCTR model, whose batches only FuxiCTR's LongCTR loader makes: "
        "train it with FuxiCTR's model_zoo/LongCTR/run_expid.py"
        for used in (name, params.get("simple_model"), params.get("complex_model"))
        if isinstance(used, str) and used.removeprefix("model_zoo.").startswith("LongCTR.")
    ]
    params, warnings = understood(params | {"model": OLD_MODELS.get(name, name)}, model_class)
    if issubclass(model_class, MultiTaskModel):
        task, tasks = params.get("task", TASKS[0]), params.get("num_tasks", 1)
        if isinstance(task, str) and is_whole(tasks) and 0 < tasks < 2**10:
            params["task"] = [task] * tasks  # so that it tells how many labels there are
    return params, model_class, warnings, problems


def _label_problems(
    params: Mapping[str, Any], model_class: type[BaseModel]
) -> tuple[list[str], list[str]]:
    """Compare the labels that there are with those a model predicts; return also warnings."""
    labels = params.get("label_col")
    count = len(labels) if isinstance(labels, list) else 1
    lists = {key: params[key] for key in ("task", "loss") if not isinstance(params[key], str)}
    name = model_class.__name__
    if not issubclass(model_class, MultiTaskModel):
        problems = [f"{key} is a list, but {name} predicts one label: name one" for key in lists]
        if count == 1:
            return problems, []
        if issubclass(model_class, TwoStreamModel):
            problems.append(f"label_col has {count} labels, but a twin predicts one: keep that one")
            return problems, []
        return problems, [f"{name} predicts {labels[0]['name']}, the first of {count} labels"]
    tasks = params.get("num_tasks", 1)
    problems = [
        f"{key} has {len(value)} entries for num_tasks={shown(tasks)}: one for each is needed"
        for key, value in lists.items()
        if len(value) != tasks
    ]
    if labels and count != tasks:
        problems.append(f"label_col has {count} labels for num_tasks={shown(tasks)}: set that")
    return problems, []


def _key_problems(params: Mapping[str, Any], keys: Mapping[str, Key] = KEYS) -> list[str]:
    """Judge each key by its own kind; a required key that is null is missing."""
    given = {
        key: value
        for key, value in params.items()
        if value is not None or key not in keys or keys[key].default is not REQUIRED
    }
    return Record(keys, others=ANYTHING).problems(given)


def _metric_problems(params: Mapping[str, Any], model_class: type[BaseModel] | None) -> list[str]:
    """Find metrics that lack what they are computed from: groups, or scores of the streams."""
    monitor = params["monitor"]
    names = [*params["metrics"], *([monitor] if isinstance(monitor, str) else monitor)]
    problems = _cost_problems(params, model_class) + _direction_problems(params)
    grouped = [name for name in names if needs_group(name)]
    if grouped and params.get("weight_col"):
        problems.append(no_weights(grouped[0]))
    if grouped and not params.get("group_id"):
        problems.append(f"metric {grouped[0]} needs group_id, the column that groups the rows")
    of_streams = [name for name in names if split_stream(name)[1]]
    if of_streams and model_class is not None:
        twin = issubclass(model_class, TwoStreamModel)
        if not twin or model_class.with_defaults(params)["twin_focus"] is not True:
            problems.append(
                f"metric {of_streams[0]} needs a model that scores its streams: a twin with "
                "twin_focus"
            )
    return problems


def _direction_problems(params: Mapping[str, Any]) -> list[str]:
    """Find monitored metrics of which the worst would be kept."""
    monitor, mode = params["monitor"], params["monitor_mode"]
    weights = {monitor: 1} if isinstance(monitor, str) else monitor
    weights = {name: weight for name, weight in weights.items() if weight}
    wrong = {}  # metric -> whether less of it is better
    for name, weight in weights.items():
        less = less_is_better(name)
        if less is not None and (weight < 0) != (less == (mode == "max")):
            wrong[name] = less
    problems = []
    for name, less in wrong.items():
        better, kept = ("less", "most") if less else ("more", "least")
        if len(wrong) == len(weights):
            remedy = f"set monitor_mode: {'min' if mode == 'max' else 'max'}"
        else:
            remedy = f"give it a {'positive' if weights[name] < 0 else 'negative'} weight"
        problems.append(
            f"monitor: {better} {name} is better, but with weight {weights[name]:g} and "
            f"monitor_mode: {mode} the {kept} is kept: {remedy}"
        )
    return problems


def _cost_problems(params: Mapping[str, Any], model_class: type[BaseModel] | None) -> list[str]:
    """Find weights, samples and corrections that the task or the model cannot heed."""
    problems = [
        f"{key} is for one label of task binary_classification: set that, or leave it out"
        for key in ("calibration", "pos_weight", "negative_sampling")
        if params.get(key) and params["task"] != "binary_classification"
    ]
    weights = [key for key in ("weight_col", "pos_weight") if params.get(key)]
    if not weights or model_class is None:
        return problems
    has_base_loss = getattr(model_class, "has_base_loss", False)
    uses_it = params.get("base_loss") or params.get("twin_focus") is False
    if not weighs_rows(model_class) or (has_base_loss and uses_it):
        problems.append(
            f"{weights[0]} weighs rows in FuxiCTR's loss and in the Twin Focus Loss, and model "
            f"{params['model']} has a loss of its own: leave it out, or take another model"
        )
    return problems


def _column_problems(params: Mapping[str, Any]) -> list[str]:
    """Judge the columns of raw files, and of encoded ones where they are given."""
    features, labels = params.get("feature_cols"), params.get("label_col")
    problems = splitting_problems(params)
    data_format = params.get("data_format")
    # Parquet files without columns are encoded ones, told by FuxiCTR's feature_map.json.
    if data_format == "csv" or (data_format == "parquet" and features is not None):
        given = {"feature_cols": features, "label_col": labels}
        absent = [key for key, value in given.items() if value is None]
        if absent:
            return problems + [f"{key} is missing: {KEYS[key].help}" for key in absent]
    elif not features or not labels:
        return problems
    try:
        entries = label_entries(params)
        features, labels = complete_columns(features, entries, params.get("feature_processor"))
        processor = find_processor_class(params.get("feature_processor"))
        for column in features + labels:
            check_preprocess(column, processor)
    except SettingsError as error:
        return problems + str(error).splitlines()
    group, names = params.get("group_id"), [column["name"] for column in features]
    if group and group not in names:
        problems.append(f"group_id: {unknown('column', group, names)}")
    used = params.get("use_features") or []
    specs = [entry["name"] for entry in params.get("feature_specs") or []]
    of_specs = [name for each in specs for name in (each if isinstance(each, list) else [each])]
    for key, found, known in (
        ("use_features", used, names),
        ("feature_specs", of_specs, used or names),
    ):
        wrong = (name for name in found if name not in known)
        problems += [f"{key}: {unknown('feature', name, known)}" for name in wrong]
    return problems


def _tracker_problems(params: Mapping[str, Any]) -> list[str]:
    """Say which trackers are wanted and not installed."""
    return [
        f"tracker {name} needs its package: pip install 'fuxictr-tf4ctr[{name}]'"
        for name in wanted_trackers(params)
        if importlib.util.find_spec(name) is None
    ]


def _device_problems(params: Mapping[str, Any]) -> list[str]:
    gpu, count = params["gpu"], torch.cuda.device_count()
    if gpu >= count:
        there = f"GPUs 0 to {count - 1}" if count else "no GPU that torch can use"
        return [f"gpu={gpu} does not exist: this machine has {there}; --gpu -1 is the CPU"]
    return [NO_GPU_STORAGE] if params["storage"] == "gpu" and gpu == -1 else []
