"""TF4CTR for FuxiCTR: twin-focus training of parallel CTR models."""

import importlib
from typing import Any

from fuxictr_tf4ctr.fuxictr_imports import defer_ray

defer_ray()

__version__ = "0.1.0"

# Imported on first use: torch takes seconds, which `fuxictr --help` should not.
_PUBLIC = {
    "Encoder": "twin",
    "H5DataLoader": "datasets",
    "Settings": "settings.reading",
    "TwinClassifier": "runs.estimator",
    "TwinFocusLoss": "twin",
    "TwinModel": "twin",
    "find_model": "registry",
    "from_published": "settings.published",
    "load": "runs.loading",
    "load_settings": "settings.reading",
    "register_encoder": "twin",
    "register_model": "registry",
    "run_experiment": "runs.experiment",
    "train": "runs.estimator",
    "twin_focus_loss": "twin",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
