"""Configuration folders: where they and their data lie, and their YAML files as named sections.

A relative path of a configuration is looked for beside the configuration's folder, as FuxiCTR's
scripts do, then in the working directory, then in the folder ``$FUXICTR_DATA`` names.

A YAML file may come from anyone. Nothing in it is run: of YAML's Python tags ``!!python/tuple``
alone is understood, as plain data, for FuxiCTR's published configurations use it. Nesting, and what
aliases unfold to, are bounded while the file is read, before anything is made of it.
"""

import os
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import shown

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

    Returns:
        The settings with the paths found, what is not there, and where relative ones were found.
    """
    params, absent, found = dict(params), [], {}

    def find(key: str, value: str, *suffixes: str) -> str:
        """Return where the file, folder or pattern is that a key names."""
        places = _places(Path(value).expanduser(), config_dir)
        for place in (f"{place}{suffix}" for place in places for suffix in suffixes):
            if os.path.exists(place) or glob(place):
                found.update({} if os.path.isabs(value) else {value: place})
                return place
        absent.append(f"{key} {value} (looked for {', '.join(map(str, places))})")
        return str(places[0])

    for key in ("train_data", "valid_data", "test_data"):
        if params.get(key) is not None:
            params[key] = find(key, params[key], "", f".{params.get('data_format')}")
    columns = list(params.get("feature_cols") or ())
    for at, column in enumerate(columns):
        value = column.get("pretrained_emb") if isinstance(column, Mapping) else None
        if isinstance(value, str) and column.get("active", True):
            place = find(f"pretrained_emb of {column['name']}", value, "")
            columns[at] = {**column, "pretrained_emb": place}
    params["feature_cols"] = columns
    if not columns:
        del params["feature_cols"]
    root = Path(params["data_root"]).expanduser()
    encoded = Path(str(params.get("dataset_id")), "feature_map.json")
    places = _places(root, config_dir)
    place = next((folder for folder in places if os.path.exists(folder / encoded)), root)
    # Under the working directory it stays as written, encoded yet or not: a resumed run has the
    # settings it began with.
    params["data_root"] = str(root if place == Path(os.path.abspath(root)) else place)
    problems = [
        f"data set {params.get('dataset_id')!r} is not there: {'; '.join(absent)}. "
        f"{resource_root() / 'data/README.md'} says where to get the known ones and where to "
        f"put them; ${DATA_VARIABLE} may name a folder of data sets"
    ]
    told = tuple(f"{value} is {place}" for value, place in found.items())
    return params, problems if absent else [], told


def _places(path: Path, config_dir: Path) -> list[Path]:
    """List where a path may lie."""
    if path.is_absolute():
        return [path]
    folders = [config_dir.parent / path, Path.cwd() / path]
    data = os.environ.get(DATA_VARIABLE)
    if data:
        inside = path.relative_to("data") if path.parts[:1] == ("data",) else path
        folders.append(Path(data).expanduser().resolve() / inside)
    return list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))


try:  # libyaml reads several times as fast, where PyYAML was built with it
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # pragma: no cover
    from yaml import SafeLoader as _SafeLoader

_LARGEST_FILE = 16 * 2**20
_DEEPEST = 40
_MOST_VALUES = 2_000_000

Sections = dict[str, dict[str, Any]]


class _Loader(_SafeLoader):
    """A safe loader that knows one tag more, and loses no key that is given twice."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Refuse keys given twice, before merge keys (<<) are replaced by what they name."""
        _refuse_repeated(node, set())
        return super().construct_document(node)


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


def _refuse_repeated(node: yaml.Node, done: set[int]) -> None:
    """Raise YAMLError where a mapping has a key twice, unless the first holds null: no value."""
    if id(node) in done or isinstance(node, yaml.ScalarNode):
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated(item, done)
        return
    lines: dict[tuple[str, str], int] = {}  # tag and text of a key -> its line
    for key, value in node.value:
        _refuse_repeated(value, done)
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        if line := lines.get((key.tag, key.value)):
            problem = f"{shown(key.value)} is there twice, first in line {line}: keep one"
            raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
        if value.tag != "tag:yaml.org,2002:null":
            lines[key.tag, key.value] = key.start_mark.line + 1


def _refuse_unbounded(text: str) -> None:
    """Raise YAMLError where nesting, or what aliases unfold to, has no end in reason."""
    values, begun = 0, []  # of the collections that are open: their anchors, the values before
    sizes: dict[str, int] = {}  # anchor -> values it unfolds to
    for event in yaml.parse(text, _Loader):
        problem = None
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = values - before
        elif isinstance(event, yaml.NodeEvent):
            if len(begun) >= _DEEPEST:
                problem = f"nested deeper than {_DEEPEST} levels"
            if not isinstance(event, yaml.AliasEvent):
                values, sizes[event.anchor] = values + 1, 1
            elif event.anchor in [anchor for anchor, _ in begun]:
                problem = "an alias inside of what it names"
            else:
                values += sizes.get(event.anchor, 0)
            if isinstance(event, yaml.CollectionStartEvent):
                begun.append((event.anchor, values - 1))
        if values > _MOST_VALUES:
            problem = f"more than {_MOST_VALUES:,} values"
        if problem is not None:
            raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)


def parse_yaml(text: str) -> Any:
    """Read a YAML text, nothing of it run.

    Raises:
        yaml.YAMLError: It is no YAML, has other tags than YAML's own, or unfolds to too much.
    """
    try:
        _refuse_unbounded(text)
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, OverflowError) as error:  # a date of month 13, a huge number
        raise yaml.YAMLError(str(error)) from error
    except (AttributeError, LookupError) as error:  # PyYAML's way to refuse `!!bool maybe`
        tags = "!!bool, !!int, !!float or !!timestamp"
        raise yaml.YAMLError(f"a value is not what its tag says ({tags})") from error


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a file of named sections; an empty one has none.

    Raises:
        SettingsError: It cannot be read, is no YAML, or is no mapping of names.
    """
    try:
        size = file.stat().st_size
        if size > _LARGEST_FILE:
            raise SettingsError(f"{file}: {size / 2**20:.0f} MB are no configuration")
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is no valid YAML: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold sections, each a mapping of keys to values")
    _check_names(content, str(file))
    return content


def _check_names(mapping: Mapping[Any, Any], where: str) -> None:
    for name in mapping:
        if not isinstance(name, str):
            raise SettingsError(f"{where}: {shown(name)} is no name; write it in quotes")


def read_sections(folder: Path, kind: str) -> Sections:
    """Read ``<kind>.yaml``, or all of ``<kind>/*.yaml``, into one dict of sections.

    Raises:
        SettingsError: There is no such file, one is no valid YAML, or two define one section.
    """
    single = folder / f"{kind}.yaml"
    files = [single] if single.is_file() else sorted((folder / kind).glob("*.yaml"))
    if not files:
        raise SettingsError(f"{folder} holds neither {kind}.yaml nor {kind}/*.yaml")
    sections: Sections = {}
    origin: dict[str, Path] = {}
    for file in files:
        for name, section in read_yaml(file).items():
            if name in sections and name != "Base":
                raise SettingsError(f"{name!r} is defined twice: in {origin[name]} and in {file}")
            where = f"{file}: section {shown(name)}"
            if not isinstance(section, Mapping):
                raise SettingsError(f"{where} must be a mapping of keys to values")
            _check_names(section, where)
            sections[name] = sections.get(name, {}) | dict(section)
            origin[name] = file
    return sections
