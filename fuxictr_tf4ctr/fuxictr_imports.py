"""FuxiCTR without Ray, until Ray is wanted.

``import fuxictr.pytorch.layers`` runs ``fuxictr/preprocess/__init__.py``, which imports Ray only
for ``build_dataset``: seconds of start-up and a heavy dependency for code that never encodes
through it. :func:`defer_ray` puts a lazy ``fuxictr.preprocess`` package in place: the same names,
each imported from FuxiCTR's own submodule on first use. Where FuxiCTR's package was imported
before, nothing changes.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_PACKAGE = "fuxictr.preprocess"


class _LazyPreprocess(ModuleType):
    """``fuxictr.preprocess`` whose public names are imported from its submodules on first use."""

    # In FuxiCTR's order, so that a name defined by both comes from the same place. Ray is imported
    # by the first alone, which is therefore tried last unless it is asked for by name.
    _ray_names = frozenset(
        {"build_dataset", "transform", "split_train_test", "merge_meta_ddf", "init_ray"}
    )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        submodule = "build_dataset" if name in self._ray_names else "feature_processor"
        value = getattr(importlib.import_module(f"{_PACKAGE}.{submodule}"), name)
        # Importing the submodule ``build_dataset`` binds the module to this very name; FuxiCTR's
        # own ``__init__`` binds the function of that name, so the function must win here too.
        setattr(self, name, value)
        return value


def defer_ray() -> None:
    """Make ``fuxictr.pytorch`` importable without importing Ray. Safe to call repeatedly."""
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:  # pragma: no cover - FuxiCTR is a declared dependency
        raise ImportError("fuxictr is not installed: pip install 'fuxictr>=2.3.10,<2.4'")
    package = _LazyPreprocess(_PACKAGE)
    package.__spec__ = spec
    package.__file__ = spec.origin
    package.__path__ = spec.submodule_search_locations
    sys.modules[_PACKAGE] = package
    importlib.import_module("fuxictr").preprocess = package
