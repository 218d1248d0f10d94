"""An experiment written out whole, in FuxiCTR's form: a section of each of its two YAML files."""

import inspect
import json
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS
from fuxictr_tf4ctr.settings.reading import Settings
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

Section = dict[str, dict[str, Any]]


def as_sections(settings: Settings) -> tuple[Section, Section]:
    """Return what ``dataset_config.yaml`` and ``model_config.yaml`` hold of an experiment.

    Nothing is left to be inherited or to be a default: keys of this package, of the model's class
    and of FuxiCTR are all there. Paths of data that was found are absolute.

    Args:
        settings: The experiment.
    """
    params = _with_defaults_of_the_class(settings)
    params.pop("model_id", None)  # FuxiCTR sets it to the expid
    dataset_id = params["dataset_id"]
    of_data = {key: params.pop(key) for key in DATASET_KEYS if key in params}
    del of_data["dataset_id"]
    for key in ("train_data", "valid_data", "test_data"):
        path = Path(of_data.get(key) or "")
        for base in (settings.config_dir.parent, Path.cwd()):
            if path.is_relative_to(base) and not path.exists():
                of_data[key] = str(path.relative_to(base))  # as it was written
    model = {"model": params.pop("model"), "dataset_id": dataset_id} | params
    return {dataset_id: _plain(of_data)}, {settings.expid: _plain(model)}


def as_yaml(section: Section) -> str:
    """Write sections as FuxiCTR's files do."""
    return yaml.safe_dump(
        section, sort_keys=False, default_flow_style=None, indent=2, allow_unicode=True
    )


def write_folder(settings: Settings, folder: Path) -> None:
    """Write a configuration folder with this experiment alone, to run here or under FuxiCTR.

    Args:
        settings: The experiment.
        folder: A folder that is not there yet.

    Raises:
        SettingsError: There is something of that name.
    """
    if folder.exists():
        raise SettingsError(f"--output {folder} is there already: name a folder that is not")
    dataset, model = as_sections(settings)
    with files.whole_folder(folder) as path:
        (path / "dataset_config.yaml").write_text(as_yaml(dataset), encoding="utf-8")
        (path / "model_config.yaml").write_text(as_yaml(model), encoding="utf-8")


def _with_defaults_of_the_class(settings: Settings) -> dict[str, Any]:
    params = dict(settings.params)
    if issubclass(settings.model_class, TwoStreamModel):
        return settings.model_class.complete(params)
    takes = inspect.signature(settings.model_class.__init__).parameters.values()
    known = (str, int, float, list, tuple, dict)
    return {p.name: p.default for p in takes if isinstance(p.default, known)} | params


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Turn tuples into the lists that YAML has."""
    return json.loads(json.dumps(section))
