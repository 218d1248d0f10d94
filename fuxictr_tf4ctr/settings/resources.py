"""Where things lie: the package's own configuration, and the data a configuration names.

A relative path of a configuration is looked for beside the configuration's folder, as FuxiCTR's
scripts do, then in the working directory, then in the folder ``$FUXICTR_DATA`` names.
"""

import os
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

DATA_VARIABLE = "FUXICTR_DATA"

_HERE = Path(__file__).resolve().parents[1]


def resource_root() -> Path:
    """Return the folder that holds ``config/`` and ``data/``.

    A wheel installs both inside the package; in a clone they lie beside it.
    """
    return _HERE if (_HERE / "config").is_dir() else _HERE.parent


def located(
    params: Mapping[str, Any], config_dir: Path
) -> tuple[dict[str, Any], list[str], tuple[str, ...]]:
    """Make the paths of data absolute.

    Args:
        params: Settings whose paths are texts.
        config_dir: Folder the configuration was read from.

    Returns:
        The settings with the paths found, what is not there, and where relative ones were found.
    """
    finder = _Finder(config_dir)
    params = dict(params)
    for key in ("train_data", "valid_data", "test_data"):
        if params.get(key) is not None:
            params[key] = finder.find(key, params[key], "", f".{params.get('data_format')}")
    params["feature_cols"] = [finder.with_pretrained(c) for c in params.get("feature_cols") or ()]
    if not params["feature_cols"]:
        del params["feature_cols"]
    root = Path(params["data_root"]).expanduser()
    encoded = Path(str(params.get("dataset_id")), "feature_map.json")
    there = (folder for folder in finder.places(root) if os.path.exists(folder / encoded))
    found = next(there, root)
    # Under the working directory it stays as written, encoded yet or not: a resumed run has the
    # settings it began with.
    params["data_root"] = str(root if found == Path(os.path.abspath(root)) else found)
    return params, finder.problems(params.get("dataset_id")), finder.found()


class _Finder:
    """Looks for files and remembers what it found and what not.

    Args:
        config_dir: Folder the configuration was read from.
    """

    def __init__(self, config_dir: Path) -> None:
        self._config_dir = config_dir
        self._absent: list[str] = []
        self._found: dict[str, str] = {}

    def places(self, path: Path) -> list[Path]:
        """List where a path may lie."""
        if path.is_absolute():
            return [path]
        folders = [self._config_dir.parent / path, Path.cwd() / path]
        data = os.environ.get(DATA_VARIABLE)
        if data:
            inside = path.relative_to("data") if path.parts[:1] == ("data",) else path
            folders.append(Path(data).expanduser().resolve() / inside)
        return list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))

    def find(self, key: str, value: str, *suffixes: str) -> str:
        """Return where the file, folder or pattern is that a key names."""
        places = self.places(Path(value).expanduser())
        for place in (f"{place}{suffix}" for place in places for suffix in suffixes):
            if os.path.exists(place) or glob(place):
                self._found |= {} if os.path.isabs(value) else {value: place}
                return place
        self._absent.append(f"{key} {value} (looked for {', '.join(map(str, places))})")
        return str(places[0])

    def with_pretrained(self, column: Any) -> Any:
        """Return a column with the file of its pretrained embeddings found."""
        value = column.get("pretrained_emb") if isinstance(column, Mapping) else None
        if not isinstance(value, str) or not column.get("active", True):
            return column
        found = self.find(f"pretrained_emb of {column['name']}", value, "")
        return {**column, "pretrained_emb": found}

    def problems(self, dataset_id: Any) -> list[str]:
        """Say what was not found, and where data sets come from."""
        if not self._absent:
            return []
        return [
            f"data set {dataset_id!r} is not there: {'; '.join(self._absent)}. "
            f"{resource_root() / 'data/README.md'} says where to get the known ones and where to "
            f"put them; ${DATA_VARIABLE} may name a folder of data sets"
        ]

    def found(self) -> tuple[str, ...]:
        """Say where relative paths were found."""
        return tuple(f"{value} is {place}" for value, place in self._found.items())
