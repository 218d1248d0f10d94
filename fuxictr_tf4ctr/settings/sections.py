"""YAML files to named sections, read within bounds.

A file may come from anyone. Nothing in it is run: of YAML's Python tags ``!!python/tuple`` alone is
understood, as plain data, for FuxiCTR's published configurations use it. Nesting, and what aliases
unfold to, are bounded while the file is read, before anything is made of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import shown

try:  # libyaml reads several times as fast, where PyYAML was built with it
    from yaml.cyaml import CParser as _Parser
except ImportError:  # pragma: no cover

    class _Parser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
        def __init__(self, text: str) -> None:
            yaml.reader.Reader.__init__(self, text)
            yaml.scanner.Scanner.__init__(self)
            yaml.parser.Parser.__init__(self)


_LARGEST_FILE = 16 * 2**20
_DEEPEST = 40
_MOST_VALUES = 2_000_000

Sections = dict[str, dict[str, Any]]


class _Loader(Composer, _Parser, SafeConstructor, Resolver):
    """A safe loader with a composer of its own: libyaml's own crashes on deep nesting."""

    def __init__(self, text: str) -> None:
        _Parser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = 0
        self._values = 0
        self._sizes: dict[int, int] = {}  # node -> values it unfolds to

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Compose a node and count what it unfolds to, aliases included."""
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._values, self._depth + 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {_DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._sizes:
                raise yaml.MarkedYAMLError(None, None, "an alias inside of what it names", mark)
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > _MOST_VALUES:
            raise yaml.MarkedYAMLError(None, None, f"more than {_MOST_VALUES:,} values", mark)
        self._depth -= 1
        return node


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


def parse_yaml(text: str) -> Any:
    """Read a YAML text, nothing of it run.

    Raises:
        yaml.YAMLError: It is no YAML, has other tags than YAML's own, or unfolds to too much.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, OverflowError) as error:  # a date of month 13, a huge number
        raise yaml.YAMLError(str(error)) from error


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
            sections[name] = sections.get(name, {}) | checked_section(section, file, name)
            origin[name] = file
    return sections


def checked_section(section: Any, file: Path, name: str) -> dict[str, Any]:
    """Return a section of a file as a dict.

    Raises:
        SettingsError: It is no mapping of keys.
    """
    if not isinstance(section, Mapping):
        raise SettingsError(f"{file}: section {shown(name)} must be a mapping of keys to values")
    _check_names(section, f"{file}: section {shown(name)}")
    return dict(section)
