"""The experiments of a configuration folder, those that nobody wrote down included.

A twin's class holds its defaults, a section of ``model_config`` what a data set asks of any model.
``TF4CTR_DCNv2_demo`` stands for both, ``DCNv2_demo`` for the same with the twin's baseline: the
base model. A section of that name adds what differs; one with ``inherits`` or ``model`` stands for
itself. ``<Model>_default``, the class's part alone, may be inherited by any section.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.registry import find_twins
from fuxictr_tf4ctr.settings.sections import Sections
from fuxictr_tf4ctr.twin import ENCODERS, TwinModel
from fuxictr_tf4ctr.twin.encoders.base import encoder_options

# In a data set's section: options for the twins of that data set whose encoders have them.
_OPTIONS = "encoder_options"
_DEFAULT = "_default"
_OFF = {"sample_selection": "none", "twin_focus": False}


class Experiments:
    """The sections of ``model_config``, written and implied.

    Args:
        datasets: The sections of ``dataset_config``.
        origin: Where both are from, for messages.
    """

    def __init__(self, written: Sections, datasets: Sections, origin: object) -> None:
        self._written = written
        self._datasets = datasets
        self._origin = origin
        twins = {n: cls for n, cls in find_twins().items() if issubclass(cls, TwinModel)}
        # The names of models in expids: a twin, and whether its baseline is meant.
        self._models = {cls.base_model: (cls, True) for cls in twins.values()}
        self._models |= {name: (cls, False) for name, cls in twins.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._written or bool(self._parts(name))

    def merged(self, name: str) -> dict[str, Any]:
        """Return a section with all it inherits, ``Base`` first.

        Raises:
            SettingsError: It, or a section it inherits, is not there, or inherits itself.
        """
        merged = {**self._written.get("Base", {}), **self._inherited(name, ())}
        merged.pop(_OPTIONS, None)
        return merged

    def expids(self) -> dict[str, dict[str, Any]]:
        """Return every experiment that can be run, by expid, with its merged section.

        Those written come first; then each twin and base model on each data set that has a section
        in ``model_config`` and columns that suit it.
        """
        written = {name: self.merged(name) for name in self._written if name != "Base"}
        found = {name: section for name, section in written.items() if _runs(section)}
        data = [name for name, each in written.items() if "model" not in each and _named(each)]
        for expid in (f"{model}_{name}" for name in data for model in self._models):
            if expid not in written:
                section = self.merged(expid)
                columns = active_columns(self._datasets.get(section["dataset_id"], {}))
                twin, _ = self._models[self._parts(expid)[0]]
                if not twin.column_problems(columns, section):
                    found[expid] = section
        return found

    def lost_keys(self, name: str) -> list[str]:
        """List the streams' keys of a data set, or of ``Base``, that a twin's defaults replace."""
        own = self._written.get(name, {})
        parts = self._parts(name)
        if not parts or own.get("inherits") or "model" in own:
            return []
        given = self._written.get("Base", {}) | self._inherited(parts[1], (name,))
        defaults, kept = class_section(*self._models[parts[0]]), self.merged(name)
        return [
            key
            for key in given
            if key.startswith(("simple_", "complex_"))
            and key in defaults
            and given[key] != kept[key] == defaults[key]
            and key not in own
        ]

    def _parts(self, name: str) -> tuple[str, str] | tuple[()]:
        """Split an expid into its model and its data set, if it is of both."""
        for at in (at for at in range(len(name) - 1, 0, -1) if name[at] == "_"):
            model, data = name[:at], name[at + 1 :]
            if model in self._models and (data in self._written or data in self._datasets):
                return model, data
        return ()

    def _inherited(self, name: str, heirs: Sequence[str]) -> dict[str, Any]:
        if name in heirs:
            chain = " inherits ".join((*heirs, name))
            raise SettingsError(f"{self._origin}: {chain}: a circle")
        section = dict(self._written.get(name, {}))
        parents = section.pop("inherits", None) or []
        merged: dict[str, Any] = {}
        if not parents and "model" not in section and (parts := self._parts(name)):
            model, data = parts
            merged = self._inherited(data, (*heirs, name)) | self._inherited(model + _DEFAULT, ())
            return merged | _taken(merged.get(_OPTIONS, {}), merged | section) | section
        if name not in self._written:
            return self._implied(name, heirs)
        for parent in parents if isinstance(parents, list) else [parents]:
            if not isinstance(parent, str):
                raise SettingsError(f"{self._origin}: {name}: inherits must name sections")
            merged |= self._inherited(parent, (*heirs, name))
        return merged | section

    def _implied(self, name: str, heirs: Sequence[str]) -> dict[str, Any]:
        """Return what a section that nobody wrote holds: of a class, or of a bare data set."""
        model = name.removesuffix(_DEFAULT)
        if model != name and model in self._models:
            return class_section(*self._models[model])
        if name in self._datasets:
            return {"dataset_id": name}
        heir = f"{heirs[-1]!r} inherits an " if heirs else ""
        raise SettingsError(f"{self._origin}: {heir}{unknown('section', name, self._written)}")


def class_section(cls: type[TwinModel], baseline: bool) -> dict[str, Any]:
    """Return what a twin's class says of its streams, or of those of its base model."""
    own = dict(_OFF | cls.baseline) if baseline else {}
    params = cls.with_defaults(own)
    streams = {
        key: params[key]
        for key in cls.defaults
        if key.startswith(("simple_", "complex_")) and key != "simple_head" and key in params
    }
    return {"model": cls.__name__} | streams | own


def _taken(options: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options that the encoders of a section have, and those that no encoder has."""
    known = {option for cls in ENCODERS.values() for option in encoder_options(cls)}
    taken = {}
    for key, value in options.items():
        role, _, option = key.partition("_")
        encoder = section.get(f"{role}_encoder")
        here = encoder_options(ENCODERS[encoder]) if encoder in ENCODERS else ()
        if option in here or option not in known:
            taken[key] = value
    return taken


def _named(section: Mapping[str, Any]) -> bool:
    return section.get("dataset_id", "TBD") != "TBD"


def _runs(section: Mapping[str, Any]) -> bool:
    return "model" in section and _named(section)


def active_columns(params: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the active feature columns by name, meta columns left out."""
    columns = {}
    for column in params.get("feature_cols") or ():
        usable = isinstance(column, Mapping) and column.get("type") != "meta"
        if usable and column.get("active", True):
            names = column.get("name", [])
            names = names if isinstance(names, list) else [names]
            columns |= {name: column for name in names if isinstance(name, str)}
    return columns
