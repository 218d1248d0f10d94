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
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.datasets.feature_specs import check_dtype, check_feature_encoder
from fuxictr_tf4ctr.datasets.loader import NO_GPU_STORAGE
from fuxictr_tf4ctr.distributed.sharding import sharding_problems
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.metrics.names import needs_group, split_stream
from fuxictr_tf4ctr.names import nearest, unknown
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.schema import REQUIRED
from fuxictr_tf4ctr.settings.keys import FAST_KEYS, KEYS, normalized
from fuxictr_tf4ctr.settings.resolver import Experiments, active_columns
from fuxictr_tf4ctr.settings.resources import resource_root
from fuxictr_tf4ctr.settings.sections import read_sections
from fuxictr_tf4ctr.training.averaging import averaging_problems
from fuxictr_tf4ctr.training.fast.options import fast_problems
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

DATA_VARIABLE = "FUXICTR_DATA"
FEATURE_TYPES = ("categorical", "numeric", "sequence", "embedding", "meta")


@dataclass(frozen=True)
class Settings:
    """Everything a run needs to know, checked.

    Attributes:
        expid: Name of the experiment.
        model_class: Class of its model.
        params: All parameters with their defaults, FuxiCTR's flat names; read-only.
        config_dir: Folder they were read from.
    """

    expid: str
    model_class: type[BaseModel]
    params: Mapping[str, Any]
    config_dir: Path

    def __getitem__(self, key: str) -> Any:
        return self.params[key]


def load_settings(
    expid: str,
    config_dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    checkout: str | os.PathLike[str] | None = None,
    *,
    runs_here: bool = True,
) -> Settings:
    """Read and check the settings of one experiment.

    Args:
        expid: Name of the experiment.
        config_dir: Folder of the YAML files. None looks in ``./config``, then in the
            configuration that comes with the package.
        overrides: Parameters that replace those of the files.
        checkout: Root of a FuxiCTR checkout whose models may be named.
        runs_here: Whether it is this machine that must have the GPU, and TorchRec if it is needed.

    Raises:
        SettingsError: Nothing was found under that expid, or its settings are not valid; the
            message lists all problems.
    """
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
    return validated(expid, params, folder, checkout, runs_here=runs_here)


def validated(
    expid: str,
    params: Mapping[str, Any],
    config_dir: Path,
    checkout: str | os.PathLike[str] | None = None,
    *,
    runs_here: bool = True,
) -> Settings:
    """Check flat parameters and freeze them.

    Args:
        expid: Name of the experiment.
        params: Merged parameters of model and data set.
        config_dir: Folder that relative data paths may be beside.
        checkout: Root of a FuxiCTR checkout whose models may be named.
        runs_here: Whether it is this machine that must have the GPU, and TorchRec if it is needed.

    Raises:
        SettingsError: Listing every problem.
    """
    params = normalized(params)
    problems = _missing(params)
    model_class = None
    if isinstance(params.get("model"), str):
        try:
            model_class = find_model(params["model"], checkout)
        except SettingsError as error:
            problems.append(str(error))
    warnings: list[str] = []
    if model_class is not None:
        if model_class.__module__.startswith("model_zoo.LongCTR."):
            problems.append(
                f"model {params['model']} is a LongCTR model, whose batches only FuxiCTR's LongCTR "
                "loader makes: train it with FuxiCTR's model_zoo/LongCTR/run_expid.py"
            )
        strict = issubclass(model_class, TwoStreamModel)
        (problems if strict else warnings).extend(_unknown_keys(params, model_class))
        if strict:
            own_problems = model_class.problems(params)
            problems += own_problems or model_class.column_problems(active_columns(params), params)
    for key, value in params.items():
        if key in KEYS and not (value is None and KEYS[key].default is REQUIRED):
            problems += KEYS[key].value.problems(value, key)
    defaults = {
        key: entry.default
        for key, entry in KEYS.items()
        if entry.default is not REQUIRED and entry.default is not None
    }
    params = defaults | params
    problems += (
        _metric_problems(params, model_class)
        + _column_problems(params)
        + (_device_problems(params) if runs_here else [])
        + _tensorboard_problems(params["tensorboard"])
        + list(sharding_problems(params, runs_here))
        + list(averaging_problems(params))
    )
    needed = (*FAST_KEYS, "gpu", "batch_size", "optimizer")
    if not any(KEYS[key].value.problems(params[key]) for key in needed if key in params):
        problems += fast_problems(params, model_class)
    params, missing_files = _with_paths(params, config_dir)
    problems += missing_files
    if problems:
        listed = "\n".join(f"- {problem}" for problem in dict.fromkeys(problems))
        raise SettingsError(f"the settings of expid {expid!r} are not valid:\n{listed}")
    return Settings(expid, model_class, MappingProxyType(params), config_dir)


def list_expids(config_dir: str | os.PathLike[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return every experiment that can be run, by expid, with its merged model section.

    Args:
        config_dir: Folder of the YAML files; None for ``./config`` and the package's own.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in _config_dirs(config_dir):
        for expid, section in _experiments(folder).expids().items():
            found.setdefault(expid, section)
    return found


def model_section(
    expid: str, config_dir: str | os.PathLike[str] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Return the folder an experiment or template is in, and its merged model section.

    Args:
        expid: Name of the experiment.
        config_dir: Folder of the YAML files; None for ``./config`` and the package's own.

    Raises:
        SettingsError: There is no such section.
    """
    folder, experiments = _find_config(expid, config_dir)
    return folder, experiments.merged(expid)


def list_datasets(config_dir: str | os.PathLike[str] | None = None) -> list[tuple[str, str]]:
    """Return id and training file of every data set.

    Args:
        config_dir: Folder of the YAML files; None for ``./config`` and the package's own.
    """
    found: dict[str, str] = {}
    for folder in _config_dirs(config_dir):
        for dataset_id, section in read_sections(folder, "dataset_config").items():
            found.setdefault(dataset_id, str(section.get("train_data", "")))
    return list(found.items())


def load_dataset_params(
    dataset_id: str,
    config_dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read and check the settings of one data set, for work on the data alone.

    Args:
        dataset_id: Name of the data set.
        config_dir: Folder of the YAML files; None for ``./config`` and the package's own.
        overrides: Parameters that replace those of the files.

    Raises:
        SettingsError: There is no such data set, or its settings are not valid.
    """
    known: set[str] = set()
    for folder in _config_dirs(config_dir):
        sections = read_sections(folder, "dataset_config")
        known |= sections.keys()
        if dataset_id in sections:
            params = sections[dataset_id] | dict(overrides or {}) | {"dataset_id": dataset_id}
            defaults = {key: KEYS[key].default for key in ("data_root", "sep", "num_buckets")}
            params, absent = _with_paths(defaults | params, folder)
            problems = _column_problems(params) + absent
            if problems:
                raise SettingsError("\n".join(problems))
            return params
    raise SettingsError(unknown("dataset_id", dataset_id, known))


def _config_dirs(config_dir: str | os.PathLike[str] | None) -> list[Path]:
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
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


def _find_config(expid: str, config_dir: str | os.PathLike[str] | None) -> tuple[Path, Experiments]:
    folders = _config_dirs(config_dir)
    for folder in folders:
        experiments = _experiments(folder)
        if expid in experiments:
            return folder, experiments
    known = list_expids(config_dir)
    close = nearest(expid, known, limit=5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    searched = " and ".join(map(str, folders))
    raise SettingsError(
        f"expid {expid!r} is not in {searched}{hint} (fuxictr list expids shows all {len(known)})"
    )


def _missing(params: Mapping[str, Any]) -> list[str]:
    required = [key for key, entry in KEYS.items() if entry.default is REQUIRED]
    if params.get("data_format") == "csv" or params.get("feature_cols"):
        required += ["feature_cols", "label_col"]
    return [f"{key} is missing: {KEYS[key].help}" for key in required if params.get(key) is None]


def _unknown_keys(params: Mapping[str, Any], model_class: type[BaseModel]) -> list[str]:
    if not issubclass(model_class, TwoStreamModel):
        return []
    known = KEYS.keys() | model_class.parameter_names(params)
    # Options of an encoder are the model's to judge: it knows which encoder takes them.
    return [
        unknown("key", key, known)
        for key in params
        if key not in known and not key.startswith(("simple_", "complex_"))
    ]


def _metric_problems(params: Mapping[str, Any], model_class: type[BaseModel] | None) -> list[str]:
    """Find metrics that lack what they are computed from: groups, or scores of the streams."""
    # Ill-formed metrics and monitors are reported by their keys' own checks.
    if any(KEYS[key].value.problems(params[key]) for key in ("metrics", "monitor")):
        return []
    monitor = params["monitor"]
    names = [*params["metrics"], *([monitor] if isinstance(monitor, str) else monitor)]
    problems = []
    grouped = [name for name in names if needs_group(name)]
    if grouped and not params.get("group_id"):
        problems.append(f"metric {grouped[0]} needs group_id, the column that groups the rows")
    of_streams = [name for name in names if split_stream(name)[1]]
    if of_streams and model_class is not None and not _scores_streams(params, model_class):
        problems.append(
            f"metric {of_streams[0]} needs a model that scores its streams: a twin with twin_focus"
        )
    return problems


def _scores_streams(params: Mapping[str, Any], model_class: type[BaseModel]) -> bool:
    """Whether the model returns y_simple and y_complex, as far as settings can tell."""
    twin = issubclass(model_class, TwoStreamModel)
    return twin and model_class.with_defaults(params)["twin_focus"] is True


def _column_problems(params: Mapping[str, Any]) -> list[str]:
    """Check every feature column; FuxiCTR would evaluate some of these texts as code."""
    problems: list[str] = []
    names: list[str] = []
    for column in params.get("feature_cols") or ():
        if not isinstance(column, Mapping) or "name" not in column:
            continue  # reported by the key's own check
        own = column["name"] if isinstance(column["name"], list) else [column["name"]]
        label = f"feature_cols: {own[0] if len(own) == 1 else own}"
        problems += [f"{label}: {name!r} is there twice" for name in own if name in names]
        names += own
        if column.get("type") not in FEATURE_TYPES:
            problems.append(f"{label}: {unknown('type', column.get('type'), FEATURE_TYPES)}")
        for key, check in (("dtype", check_dtype), ("feature_encoder", check_feature_encoder)):
            try:
                if key == "dtype" or column.get(key) is not None:
                    check(column.get(key))
            except SettingsError as error:
                problems.append(f"{label}: {error}")
        shared = column.get("share_embedding")
        if shared is not None and shared not in names:
            problems.append(f"{label}: share_embedding {shared!r} is no column before it")
    group = params.get("group_id")
    if group and names and group not in names:
        problems.append(f"group_id: {unknown('column', group, names)}")
    for split in ("valid", "test"):
        if params.get(f"{split}_size") and params.get(f"{split}_data"):
            problems.append(f"{split}_size and {split}_data are both given; give one")
    return problems


def _tensorboard_problems(wanted: Any) -> list[str]:
    """Say if TensorBoard is wanted and not installed."""
    if wanted is not True or importlib.util.find_spec("tensorboard") is not None:
        return []
    return ["tensorboard: true needs the package: pip install 'fuxictr-tf4ctr[tensorboard]'"]


def _device_problems(params: Mapping[str, Any]) -> list[str]:
    gpu, count = params["gpu"], torch.cuda.device_count()
    if isinstance(gpu, int) and gpu >= count:
        there = f"GPUs 0 to {count - 1}" if count else "no GPU that torch can use"
        return [f"gpu={gpu} does not exist: this machine has {there}; --gpu -1 is the CPU"]
    return [NO_GPU_STORAGE] if params.get("storage") == "gpu" and gpu == -1 else []


def _with_paths(params: Mapping[str, Any], config_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """Make data paths absolute and list those that do not exist."""
    params, absent = dict(params), []
    for key in ("train_data", "valid_data", "test_data"):
        value = params.get(key)
        if not isinstance(value, str) or not value:
            params[key] = None
            continue
        candidates = _candidates(Path(value).expanduser(), config_dir)
        suffix = "." + str(params.get("data_format"))
        found = (
            option
            for path in candidates
            for option in (path, path.with_name(path.name + suffix))
            if option.exists()
        )
        existing = next(found, None)
        if existing is None:
            absent.append((key, value, candidates))
        params[key] = str(existing or candidates[0])
    for column in params.get("feature_cols") or ():
        pretrained = column.get("pretrained_emb") if isinstance(column, Mapping) else None
        if pretrained and not Path(pretrained).exists():
            absent.append((f"pretrained_emb of {column['name']}", pretrained, [Path(pretrained)]))
    if not absent:
        return params, []
    listed = "; ".join(
        f"{key} {value} (looked for {', '.join(map(str, paths))})" for key, value, paths in absent
    )
    return params, [
        f"data set {params.get('dataset_id')!r} is not there: {listed}. "
        f"{resource_root() / 'data/README.md'} says where to get the known ones and where to put "
        f"them; ${DATA_VARIABLE} may name a folder of data sets"
    ]


def _candidates(path: Path, config_dir: Path) -> list[Path]:
    if path.is_absolute():
        return [path]
    folders = [Path.cwd() / path, config_dir.parent / path]
    data = os.environ.get(DATA_VARIABLE)
    if data:
        inside = path.relative_to("data") if path.parts[0] == "data" else path
        folders.append(Path(data).expanduser().resolve() / inside)
    return list(dict.fromkeys(folders))
