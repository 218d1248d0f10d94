"""FuxiCTR's tuner files and their space, read and checked before anything runs."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import misspelt, unknown
from fuxictr_tf4ctr.registry import CHECKOUT_VARIABLE, find_model, find_twins
from fuxictr_tf4ctr.schema import ANYTHING, FILE_NAME, PATH, Key, Record, is_number
from fuxictr_tf4ctr.settings.keys import IGNORED, KEYS
from fuxictr_tf4ctr.settings.model_keys import OLD_MODELS, present_name, taken_keys
from fuxictr_tf4ctr.settings.published import (
    PUBLISHED_KEYS,
    is_published,
    our_expid,
    our_keys,
    twin_params,
)
from fuxictr_tf4ctr.settings.reading import list_expids, model_section
from fuxictr_tf4ctr.settings.sections import read_sections, read_yaml, resource_root
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

_RANGE_KEYS = {"low", "high", "step", "log"}


@dataclass(frozen=True)
class Range:
    """Numbers to search between, both ends included.

    Attributes:
        low: The least.
        high: The greatest.
        step: Only ``low``, ``low + step``, … are tried; None for all.
        log: Search by orders of magnitude.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


Space = dict[str, list[Any] | Range]
"""Key -> its choices, or the range it is searched in."""


def read_space(section: Any, where: str) -> Space:
    """Read a ``tuner_space``: a list is choices, ``{low, high}`` a range, all else one choice.

    Args:
        section: The section as YAML has it.
        where: The file, for messages.

    Raises:
        SettingsError: Listing every key that has no choice or no proper range.
    """
    if not isinstance(section, Mapping) or not section:
        raise SettingsError(f"{where}: tuner_space must map keys to lists of values")
    space: Space = {}
    problems = []
    for key, value in section.items():
        if isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= _RANGE_KEYS:
            problem = _range_problem(value)
            if problem:
                problems.append(f"{key}: {problem}")
            else:
                space[key] = Range(**value)
        elif value == []:
            problems.append(f"{key} is an empty list: give it at least one value")
        else:
            space[key] = list(value) if isinstance(value, list) else [value]
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise SettingsError(f"{where}: the tuner_space is not valid:\n{listed}")
    return space


def ranges(space: Space) -> list[str]:
    """Return the keys that have a range in place of choices."""
    return [key for key, values in space.items() if isinstance(values, Range)]


def _range_problem(value: Mapping[str, Any]) -> str | None:
    low, high, step = value["low"], value["high"], value.get("step")
    numbers = [low, high] if step is None else [low, high, step]
    if not all(map(is_number, numbers)):
        return (
            f"low, high and step must be numbers, not {numbers} (YAML reads 1e-3 as text: 1.0e-3)"
        )
    if low >= high:
        return f"low ({low}) must be below high ({high})"
    if step is not None and step <= 0:
        return f"step ({step}) must be above 0"
    if value.get("log") and (low <= 0 or step is not None):
        return "log needs low above 0 and no step"
    return None


_SECTION = Key(Record({}, others=ANYTHING))
_SECTIONS = Key(Record({}, others=_SECTION.kind))
_KEYS = {
    "base_config": Key(PATH),
    "base_expid": Key(FILE_NAME),
    "dataset_id": Key(FILE_NAME),
    "dataset_config": _SECTIONS,
    "model_config": _SECTIONS,
    "tuner_space": Record({}, others=ANYTHING),
}


@dataclass(frozen=True)
class Tuner:
    """A tuner file with the experiment it varies.

    Attributes:
        file: The YAML file.
        base_expid: Name its expids begin with.
        dataset_id: Name its data set ids begin with.
        config_dir: Folder of the base experiment; relative data paths may be beside it.
        model: Merged model section of the base experiment.
        dataset: Section of the data set.
        space: Choices or range of each key that is varied.
        text: The file's content, which the sweep keeps.
        listed: Expid -> sections of model and data set, where a folder lists the experiments, as
            FuxiCTR's tuner writes them; there is no space then.
        checkout: Root of a FuxiCTR checkout whose models may be named.
    """

    file: Path
    base_expid: str
    dataset_id: str
    config_dir: Path
    model: dict[str, Any]
    dataset: dict[str, Any]
    space: Space
    text: str
    checkout: str | os.PathLike[str] | None = None
    listed: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the sweep: the file's, without ``.yaml``, or the folder's."""
        return self.file.name if self.listed else self.file.stem

    @property
    def shared(self) -> dict[str, Any]:
        """What all points have in common, as far as it is not the data set's: all are judged by it.

        The base experiment's settings, with those for which the space has one value.
        """
        lists = {key: each for key, each in self.space.items() if isinstance(each, list)}
        return self.model | {key: each[0] for key, each in lists.items() if len(each) == 1}


def read_tuner(
    file: str | os.PathLike[str],
    checkout: str | os.PathLike[str] | None = None,
    expid: str | None = None,
) -> Tuner:
    """Read a tuner file of FuxiCTR's form, its own model and data set sections included.

    Args:
        file: The YAML file; looked for in the working directory, then where the package's
            configuration lies. Or a folder of experiments, which are taken as they are.
        checkout: Root of a FuxiCTR checkout whose models may be named.
        expid: The experiment to vary, on its own data set, in place of the file's.

    Raises:
        SettingsError: The file, its base experiment or its data set is not there, or the space
            names unknown keys, empty lists or ranges that are none.
    """
    if Path(file).expanduser().is_dir():
        return _listed(Path(file).expanduser().resolve(), checkout)
    path = _find_file(Path(file).expanduser())
    content = _read(path)
    if expid is not None:
        content = {key: content[key] for key in content if key != "dataset_id"}
        content["base_expid"] = expid
    if content.get("base_expid") is None:
        raise SettingsError(f"{path} names no base_expid: say by --expid which experiment to vary")
    space = read_space(content["tuner_space"], str(path))
    folder = _base_folder(path, content, checkout)
    base_expid, folder, model, space = _base(path, content, folder, space)
    dataset_id = content.get("dataset_id", model.get("dataset_id"))
    if not isinstance(dataset_id, str) or dataset_id == "TBD":
        raise SettingsError(f"{path}: dataset_id is missing: name the data set of the sweep")
    if model.get("dataset_id") == "TBD":  # a template, which FuxiCTR names after model and data set
        base_expid = f"{model['model']}_{dataset_id}"
    model = {key: value for key, value in model.items() if key != "model_id"}
    model["dataset_id"] = dataset_id
    dataset = _dataset(path, content, folder, dataset_id)
    text = path.read_text(encoding="utf-8") if expid is None else yaml.safe_dump(content)
    tuner = Tuner(path, base_expid, dataset_id, folder, model, dataset, space, text, checkout)
    return replace(tuner, space=_known_space(tuner))


def _find_file(file: Path) -> Path:
    candidates = [file] if file.is_absolute() else [file, resource_root() / file]
    for path in candidates:
        if path.is_file():
            return path.resolve()
    if file.parent.name == "tuner" and file.stem in find_twins():
        raise SettingsError(
            f"there is no tuner file {file}: one grid serves all twins, "
            f"--config {file.with_stem('authors')} --expid {file.stem}_frappe"
        )
    looked_for = ", ".join(str(path.absolute()) for path in candidates)
    raise SettingsError(f"there is no tuner file {file} (looked for {looked_for})")


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    # FuxiCTR's own file has the section of its data set beside the other keys.
    dataset_id = content.get("dataset_id")
    inline = {dataset_id: _SECTION} if isinstance(dataset_id, str) else {}
    problems = Record(_KEYS | inline).problems(content)
    if problems:
        raise SettingsError(f"{path} is no tuner file: {'; '.join(problems)}")
    return content


def _listed(folder: Path, checkout: str | os.PathLike[str] | None) -> Tuner:
    """Read a folder of experiments, such as FuxiCTR's tuner and BARS keep of a tuner file."""
    written, datasets = (read_sections(folder, kind) for kind in ("model_config", "dataset_config"))
    listed = {}
    for expid, section in list_expids(folder).items():
        if expid in written:
            listed[expid] = section, datasets.get(section["dataset_id"], {})
    if not listed:
        raise SettingsError(f"{folder} lists no experiment: none has a model and a dataset_id")
    model, dataset = next(iter(listed.values()))
    text = f"# The experiments of {folder}, all of them.\n"
    dataset_id = model["dataset_id"]
    return Tuner(
        folder, folder.name, dataset_id, folder, model, dataset, {}, text, checkout, listed
    )


def _base_folder(
    path: Path, content: Mapping[str, Any], checkout: str | os.PathLike[str] | None
) -> Path | None:
    """Find ``base_config`` from the working directory, the file's folders, or the package's.

    A file without one is beside its experiments, or holds them, or means those that every command
    finds, for which None stands.
    """
    base_config = content.get("base_config")
    if base_config is None:
        beside = _holds_models(path.parent) or content.get("model_config")
        return path.parent if beside else None
    checkout = checkout or os.environ.get(CHECKOUT_VARIABLE)
    # FuxiCTR's tuner runs in a checkout's folder experiment.
    zoo = (Path(checkout).expanduser() / "experiment",) if checkout else ()
    for root in (Path.cwd(), *path.parents, resource_root(), *zoo):
        for folder in _layouts(Path(os.path.normpath(root / base_config))):
            if _holds_models(folder):
                return folder.resolve()
    raise SettingsError(
        f"{path}: base_config {base_config} is no folder with a model_config, neither in "
        f"{Path.cwd()} nor in {path.parent} and the folders above it"
        + ("" if zoo else f"; for one of FuxiCTR's zoo set {CHECKOUT_VARIABLE} to a checkout")
    )


def _holds_models(folder: Path) -> bool:
    return (folder / "model_config.yaml").is_file() or (folder / "model_config").is_dir()


def _layouts(folder: Path) -> Iterator[Path]:
    """Tell where a model's ``config`` may lie: zoos have renamed models, and moved PyTorch's."""
    zoo, model = folder.parent.parent, folder.parent.name
    model = OLD_MODELS.get(model, model)
    yield from (folder, zoo / model / folder.name, zoo / model / f"{model}_torch" / folder.name)


def _base(
    path: Path, content: Mapping[str, Any], folder: Path | None, space: Space
) -> tuple[str, Path, dict[str, Any], Space]:
    """Return name, folder and section of the base experiment, and the space in its spelling."""
    expid = content["base_expid"]
    sections = content.get("model_config")
    if sections is not None:
        if expid not in sections:
            raise SettingsError(f"{path}: {unknown('base_expid', expid, sections)}")
        return expid, folder, dict(sections[expid]), space
    name, underscore, rest = expid.partition("_")
    try:
        folder, section = model_section(OLD_MODELS.get(name, name) + underscore + rest, folder)
    except SettingsError:
        ours = our_expid(expid)
        if ours is None:
            raise
        # The authors published their tuner files without the experiments these vary.
        folder, section = model_section(ours)
        space = our_keys(expid, space)
    return expid, folder, section, space


def _dataset(
    path: Path, content: Mapping[str, Any], folder: Path, dataset_id: str
) -> dict[str, Any]:
    inline = content.get("dataset_config")
    sections = read_sections(folder, "dataset_config") if inline is None else inline
    if inline is None and dataset_id not in sections and content.get(dataset_id):
        sections = {dataset_id: content[dataset_id]}
    if dataset_id not in sections:
        raise SettingsError(f"{path}: {unknown('dataset_id', dataset_id, sections)}")
    # FuxiCTR's hash of a data set covers its id only where the section was read from a file.
    head = {"dataset_id": dataset_id} if inline is None else {}
    return head | dict(sections[dataset_id])


def _known_space(tuner: Tuner) -> Space:
    """Return the space in the words of the models it is for; refuse what none of them uses."""
    if "dataset_id" in tuner.space:
        raise SettingsError(
            f"{tuner.file}: one sweep is on one dataset_id; give it above the space"
        )
    known = {*tuner.model, *tuner.dataset, *KEYS, *IGNORED}
    strict, open_prefixes, space = False, (), tuner.space
    varied = [key for key, each in space.items() if isinstance(each, Range) or len(each) > 1]
    idle = [key for key in ("c", "gamma", "alpha") if key in varied]
    for name in tuner.space.get("model", [tuner.model.get("model")]):
        section = tuner.model | {"model": name}
        if is_published(section):
            known |= PUBLISHED_KEYS
            section = twin_params(section)
        model = str(section["model"])
        model_class = find_model(OLD_MODELS.get(model, model), tuner.checkout)
        if issubclass(model_class, TwoStreamModel):
            strict = True
            known |= model_class.parameter_names(section)
            own = model_class.with_defaults(section)["twin_focus"]
            idle = idle if tuner.space.get("twin_focus", [own]) == [False] else []
            # Options of an encoder are the model's to judge: it knows which encoder takes them.
            open_prefixes = ("simple_", "complex_", "fusion_")
        else:
            known |= taken_keys(model_class).keys()
            idle = []
            space = {present_name(key, model_class): values for key, values in space.items()}
    foreign = [key for key in space if key not in known and not key.startswith(open_prefixes)]
    problems = [unknown("key", key, known) for key in foreign if strict or misspelt(key, known)]
    if idle:
        problems.append(
            f"{', '.join(idle)} without effect: {tuner.base_expid} has no Twin Focus Loss; for a "
            "base model leave out sample_selection, fusion, c, gamma and alpha"
        )
    if problems:
        raise SettingsError(f"{tuner.file}: tuner_space: " + "; ".join(problems))
    return space
