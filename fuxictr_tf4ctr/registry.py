"""Model name to class: our twins, FuxiCTR's models, and the classes of other packages.

A name is looked up, in this order, among the classes registered with :func:`register_model`, the
twins of ``model_zoo``, the entry points of other packages (group ``fuxictr_tf4ctr.models``), the
model zoo of a FuxiCTR checkout (``$FUXICTR_HOME``, the argument ``checkout``, or on ``sys.path``)
and the one that FuxiCTR's wheel installs. Long-sequence models are ``LongCTR.<name>``.
``package.module:Class`` names a class directly.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.fuxictr_imports import MODEL_HOOKS, require
from fuxictr_tf4ctr.names import NameTable, unknown
from fuxictr_tf4ctr_zoo import open_zoo

require(MODEL_HOOKS)

ENTRY_POINT_GROUP = "fuxictr_tf4ctr.models"
CHECKOUT_VARIABLE = "FUXICTR_HOME"

# Where a checkout has its PyTorch models, and what begins the definition of one.
_CHECKOUT = ("*/src/*.py", "*/*_torch/src/*.py", "multitask/*/src/*.py")
_CLASS = re.compile(r"^class (\w+)\((?:\w+\.)*(\w+)", re.M)
_BASES = frozenset({"BaseModel", "MultiTaskModel", "TwinModel", "PairModel"})

MODELS: NameTable[type[BaseModel]] = NameTable("model")

M = TypeVar("M", bound=type[BaseModel])


def register_model(cls: M) -> M:
    """Make a FuxiCTR model available as ``model: <class name>`` (a class decorator)."""
    return MODELS.register(cls.__name__)(cls)


def overrides(model: BaseModel | type[BaseModel], *methods: str) -> bool:
    """Whether a model's class replaces one of these methods of BaseModel."""
    cls = model if isinstance(model, type) else type(model)
    return any(getattr(cls, name) is not getattr(BaseModel, name) for name in methods)


@dataclass(frozen=True)
class ModelEntry:
    """Where a model comes from.

    Attributes:
        name: The name it is asked for by.
        source: "twin", "registered", "entry point", "checkout", "wheel" or "module".
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
        checkout: Root of a FuxiCTR checkout, or of any folder with a ``model_zoo``;
            ``$FUXICTR_HOME`` where None. Once named, it is found by later calls too.

    Raises:
        SettingsError: There is no such model (the nearest names are listed), its module cannot be
            imported, or it is no FuxiCTR model.
    """
    if ":" in name:
        return _load(ModelEntry(name, "module", name))
    entries = list_models(checkout)
    if name in MODELS:
        return MODELS[name]
    if name in entries:
        return _load(entries[name])
    if f"LongCTR.{name}" in entries:
        raise SettingsError(
            f"model {name!r} is FuxiCTR's, from a checkout: set {CHECKOUT_VARIABLE} to one; "
            f"the long-sequence model of FuxiCTR's wheel is 'LongCTR.{name}'"
        )
    raise SettingsError(
        f"{unknown('model', name, entries)} "
        f"(FuxiCTR's git models: set {CHECKOUT_VARIABLE} to a checkout)"
    )


def list_models(checkout: str | os.PathLike[str] | None = None) -> dict[str, ModelEntry]:
    """Return every model there is, by name, without importing those of others.

    Args:
        checkout: Root of a FuxiCTR checkout, or of any folder with a ``model_zoo``;
            ``$FUXICTR_HOME`` where None.

    Raises:
        SettingsError: The checkout has no model zoo.
    """
    folders = _zoo_folders(checkout or os.environ.get(CHECKOUT_VARIABLE))
    entries: dict[str, ModelEntry] = {}
    points: tuple[EntryPoint, ...] = tuple(entry_points(group=ENTRY_POINT_GROUP))
    for entry in (
        *(
            ModelEntry(name, "registered", f"{cls.__module__}:{cls.__name__}")
            for name, cls in MODELS.items()
        ),
        *(entry for folder in folders for entry in _scan(folder, "twin", "TF4CTR*.py")),
        *(
            ModelEntry(point.name, "entry point", point.value)
            for point in sorted(points, key=lambda point: point.name)
        ),
        *(entry for folder in folders for entry in _scan(folder, "checkout", *_CHECKOUT)),
        *(entry for folder in folders for entry in _scan(folder, "wheel", "LongCTR/*/*.py")),
    ):
        entries.setdefault(entry.name, entry)
    return entries


def find_twins() -> dict[str, type[BaseModel]]:
    """Return the twins by name: of the zoo and of other packages, and all classes registered."""
    found: dict[str, type[BaseModel]] = {}
    for entry in list_models().values():
        if entry.source == "twin":
            found[entry.name] = _load(entry)
        elif entry.source == "entry point":
            with suppress(SettingsError):  # said when that model is asked for
                found[entry.name] = _load(entry)
    return found | dict(MODELS)


def describe_models(checkout: str | os.PathLike[str] | None = None) -> list[tuple[str, str]]:
    """Return name and one line of description of every model, for a listing.

    Args:
        checkout: Root of a FuxiCTR checkout; ``$FUXICTR_HOME`` where None.
    """
    described = []
    for name, entry in list_models(checkout).items():
        if entry.source in ("twin", "registered"):
            described.append((name, (find_model(name).__doc__ or "").split("\n")[0]))
        else:
            described.append((name, f"FuxiCTR's, from the {entry.source} ({entry.target})"))
    return described


def _zoo_folders(checkout: str | None) -> list[Path]:
    """Return the folders that make up the package ``model_zoo``, ours and a checkout's included."""
    package = open_zoo()
    if checkout:
        folder = Path(checkout).expanduser().resolve() / "model_zoo"
        if not folder.is_dir():
            raise SettingsError(f"{checkout} is no FuxiCTR checkout: it has no folder model_zoo")
        if str(folder) not in package.__path__:
            # Before the wheel's, whose package multitask lacks the models that it imports.
            package.__path__.insert(0, str(folder))
    return [Path(folder) for folder in package.__path__]


def _scan(zoo: Path, source: str, *patterns: str) -> Iterator[ModelEntry]:
    """Yield the models defined in the files of a zoo, found by their base classes' names."""
    for path in sorted(path for pattern in patterns for path in zoo.glob(pattern)):
        inside = path.relative_to(zoo).with_suffix("").parts
        prefix = "LongCTR." if inside[0] == "LongCTR" else ""
        models = set(_BASES)
        for name, base in _CLASS.findall(path.read_text("utf-8", errors="replace")):
            if base in models or base.startswith("TF4CTR"):
                models.add(name)
                target = f"{'.'.join(('model_zoo', *inside))}:{name}"
                yield ModelEntry(prefix + name, source, target, path)


def _load(entry: ModelEntry) -> type[BaseModel]:
    module, _, attribute = entry.target.partition(":")
    try:
        cls = getattr(_imported(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"model {entry.name!r} ({entry.source}: {entry.target}) cannot be imported: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise SettingsError(f"model {entry.name!r} ({entry.target}) is no FuxiCTR BaseModel")
    return cls


def _imported(module: str) -> ModuleType:
    """Import a module, from the working directory too, which a console script does not look in."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name != module.partition(".")[0] or here in sys.path:
            raise
    sys.path.append(here)
    return importlib.import_module(module)
