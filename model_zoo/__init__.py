"""The model zoo: ``getattr(model_zoo, "TF4CTR_DCNv2")`` is the class, as in FuxiCTR.

FuxiCTR's wheel installs models into a package of this name (``model_zoo.LongCTR``), a checkout of
FuxiCTR holds more; both stay importable beside the twins when they are on ``sys.path``.
"""

from pathlib import Path
from pkgutil import extend_path
from typing import Any

__path__ = extend_path(__path__, __name__)

_TWINS = sorted(path.parent.name for path in Path(__file__).parent.glob("TF4CTR*/__init__.py"))


def __getattr__(name: str) -> Any:
    """Find any model the registry knows: a checkout's or another package's as well."""
    from fuxictr_tf4ctr.errors import SettingsError
    from fuxictr_tf4ctr.registry import find_model

    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return find_model(name)
    except SettingsError as error:
        raise AttributeError(str(error)) from None


def _import_twins() -> None:
    from importlib import import_module

    # A submodule binds its own name here when it is first imported; the class takes it over.
    for name in _TWINS:
        globals()[name] = getattr(import_module(f"{__name__}.{name}"), name)


_import_twins()
__all__ = list(_TWINS)
