"""Feature-interaction encoders, registered by name; importing the package registers them all."""

import importlib
import pkgutil

from fuxictr_tf4ctr.twin.encoders.base import ENCODERS, Encoder, register_encoder

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ENCODERS", "Encoder", "register_encoder"]
