"""The model zoo: ``getattr(model_zoo, "TF4CTR_DCNv2")`` is the class, as in FuxiCTR.

One file per twin: its class, its defaults, and a docstring that is its page. FuxiCTR has a package
of this name too; ``fuxictr_tf4ctr_zoo`` says how both are one.
"""

import fuxictr_tf4ctr_zoo as _zoo


def _find(name: str) -> object:
    """Return a model that the registry knows (a checkout's, by FUXICTR_HOME), else a submodule."""
    import sys

    from fuxictr_tf4ctr.errors import SettingsError
    from fuxictr_tf4ctr.registry import find_model

    try:
        return find_model(name)
    except SettingsError as error:
        if f"{__name__}.{name}" in sys.modules:
            return sys.modules[f"{__name__}.{name}"]
        raise AttributeError(str(error)) from None


_zoo.open_zoo(__name__)
