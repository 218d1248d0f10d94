"""Model name to class: our twins, FuxiCTR's models, and the classes of other packages.

A name is looked up, in this order, among the classes registered with :func:`register_model` (our
twins among them), the entry points of other packages (group ``fuxictr_tf4ctr.models``), the model
zoo of a FuxiCTR checkout (``$FUXICTR_HOME`` or the argument ``checkout``) and the model zoo that
FuxiCTR's wheel installs. ``package.module:Class`` names a class directly.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import NameTable, unknown

ENTRY_POINT_GROUP = "fuxictr_tf4ctr.models"
CHECKOUT_VARIABLE = "FUXICTR_HOME"

MODELS: NameTable[type[BaseModel]] = NameTable("model")

M = TypeVar("M", bound=type[BaseModel])


def register_model(cls: M) -> M:
    """Make a FuxiCTR model available as ``model: <class name>`` (a class decorator)."""
    return MODELS.register(cls.__name__)(cls)


@dataclass(frozen=True)
class ModelEntry:
    """Where a model comes from.

    Attributes:
        name: The name it is asked for by.
        source: "twin", "registered", "entry point", "checkout" or "wheel".
        target: What is imported: "module:class".
        path: The file that defines it, where that is known without importing it.
    """

    name: str
    source: str
    target: str
    path: Path | None = field(default=None, repr=False)


def find_model(name: str, checkout: str | os.PathLike[str] | None = None) -> type[BaseModel]:
    """Return the model class of a name.

    Args:
        name: Name of the model, or "package.module:Class".
        checkout: Root of a FuxiCTR checkout; ``$FUXICTR_HOME`` where None.

    Raises:
        SettingsError: There is no such model (the nearest names are listed), its module cannot be
            imported, or it is no FuxiCTR model.
    """
    if ":" in name:
        return _load(ModelEntry(name, "module", name))
    entries = list_models(checkout)
    if name in MODELS:
        return MODELS[name]
    if name not in entries:
        raise SettingsError(
            f"{unknown('model', name, entries)} "
            f"(FuxiCTR's git models: set {CHECKOUT_VARIABLE} to a checkout)"
        )
    return _load(entries[name])


def list_models(checkout: str | os.PathLike[str] | None = None) -> dict[str, ModelEntry]:
    """Return every model there is, by name, without importing those of others.

    Args:
        checkout: Root of a FuxiCTR checkout; ``$FUXICTR_HOME`` where None.

    Raises:
        SettingsError: The checkout has no model zoo.
    """
    _model_zoo()
    entries: dict[str, ModelEntry] = {}
    for entry in (
        *_registered(),
        *_from_entry_points(),
        *_from_checkout(checkout or os.environ.get(CHECKOUT_VARIABLE)),
        *_from_wheel(),
    ):
        entries.setdefault(entry.name, entry)
    return entries


def find_twins() -> dict[str, type[BaseModel]]:
    """Return the twins by name: those of the zoo and all registered since."""
    _model_zoo()
    return dict(MODELS)


def describe_models(checkout: str | os.PathLike[str] | None = None) -> list[tuple[str, str]]:
    """Return name and one line of description of every model, for a listing.

    Args:
        checkout: Root of a FuxiCTR checkout; ``$FUXICTR_HOME`` where None.
    """
    described = []
    for name, entry in list_models(checkout).items():
        if name in MODELS:
            described.append((name, (MODELS[name].__doc__ or "").split("\n")[0]))
        else:
            described.append((name, f"FuxiCTR's, from the {entry.source} ({entry.target})"))
    return described


def _registered() -> Iterator[ModelEntry]:
    for name, cls in MODELS.items():
        source = "twin" if cls.__module__.startswith("model_zoo.") else "registered"
        yield ModelEntry(name, source, f"{cls.__module__}:{cls.__name__}")


def _from_entry_points() -> Iterator[ModelEntry]:
    points: tuple[EntryPoint, ...] = tuple(entry_points(group=ENTRY_POINT_GROUP))
    for point in sorted(points, key=lambda p: p.name):
        yield ModelEntry(point.name, "entry point", point.value)


def _from_checkout(checkout: str | os.PathLike[str] | None) -> Iterator[ModelEntry]:
    if not checkout:
        return
    zoo = Path(checkout).expanduser().resolve() / "model_zoo"
    if not zoo.is_dir():
        raise SettingsError(f"{checkout} is no FuxiCTR checkout: it has no folder model_zoo")
    package = _model_zoo()
    if str(zoo) not in package.__path__:
        package.__path__.append(str(zoo))
    yield from _scan(zoo, "checkout", "*/src/*.py", "*/*_torch/src/*.py", "LongCTR/*/*.py")


def _from_wheel() -> Iterator[ModelEntry]:
    for folder in _model_zoo().__path__:
        yield from _scan(Path(folder), "wheel", "LongCTR/*/*.py")


def _scan(zoo: Path, source: str, *patterns: str) -> Iterator[ModelEntry]:
    for path in sorted(path for pattern in patterns for path in zoo.glob(pattern)):
        defined = re.search(rf"^class {re.escape(path.stem)}\(", path.read_text("utf-8"), re.M)
        if defined:
            module = ".".join(("model_zoo", *path.relative_to(zoo).with_suffix("").parts))
            yield ModelEntry(path.stem, source, f"{module}:{path.stem}", path)


def _load(entry: ModelEntry) -> type[BaseModel]:
    module, _, attribute = entry.target.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"model {entry.name!r} ({entry.source}: {entry.target}) cannot be imported: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise SettingsError(f"model {entry.name!r} ({entry.target}) is no FuxiCTR BaseModel")
    return cls


def _own_zoo() -> Path:
    return Path(__file__).resolve().parents[1] / "model_zoo"


def _model_zoo() -> ModuleType:
    """Import the package ``model_zoo`` and make sure that our twins are in it.

    A FuxiCTR checkout earlier on ``sys.path`` has a package of that name too; ours then joins it.
    """
    package = sys.modules.get("model_zoo") or importlib.import_module("model_zoo")
    own = _own_zoo()
    if str(own) not in map(str, package.__path__):
        package.__path__.append(str(own))
    for folder in sorted(own.glob("TF4CTR*/__init__.py")):
        importlib.import_module(f"model_zoo.{folder.parent.name}")
    return package
