"""One package ``model_zoo``, FuxiCTR's with our twins in it, whichever Python finds first.

A FuxiCTR checkout has a package of that name, whose scripts put it on ``sys.path``; FuxiCTR's wheel
puts ``model_zoo.LongCTR`` beside ours. Where there is another ``model_zoo`` with an ``__init__``,
that runs in place of ours and twins are added under names it does not have: FuxiCTR's scripts do
the same with and without this package.

An installation imports this file at every start of Python (``fuxictr_tf4ctr.pth``), so that twins
are in ``model_zoo`` also where a checkout is first on the path. It imports next to nothing.
"""

import sys
from os.path import abspath, dirname, isfile, join
from types import ModuleType

_NAME = "model_zoo"
_OWN = join(dirname(abspath(__file__)), _NAME)


class _Finder:
    """Finds our ``model_zoo`` first; it steps aside for another one itself."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if name != _NAME or not isfile(join(_OWN, "__init__.py")):
            return None
        from importlib.util import spec_from_file_location

        init = join(_OWN, "__init__.py")
        return spec_from_file_location(name, init, submodule_search_locations=[_OWN])


class _Zoo(ModuleType):
    """A package in which a model's name is its class, never the module that defines it."""

    def __getattr__(self, name: str) -> object:
        if self._is_ours() and self._step_aside() and name in vars(self):
            return vars(self)[name]  # scripts append their zoo to sys.path after our import
        if name == "__all__" and self._is_ours():
            return _twins()
        if name in _twins():
            from importlib import import_module

            found = getattr(import_module(f"{_NAME}.{name}"), name)
        elif self._is_ours() and not name.startswith("__"):
            found = vars(self)["_find"](name)
        else:
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        # Importing a submodule binds it to its name here, which may be that of a model.
        submodule = isinstance(value, ModuleType) and value.__name__ == f"{_NAME}.{name}"
        if not submodule or not (self._is_ours() or name in _twins()):
            super().__setattr__(name, value)

    def _is_ours(self) -> bool:
        return dirname(abspath(vars(self)["__file__"])) == _OWN

    def _step_aside(self) -> bool:
        """Become the package of this name that is on the path beside ours, if there is one."""
        from importlib.machinery import PathFinder

        specs = [PathFinder.find_spec(_NAME, [entry]) for entry in sys.path]
        others = [
            (spec, folder)
            for spec in filter(None, specs)
            for folder in spec.submodule_search_locations
            if abspath(folder) != _OWN
        ]
        for spec, folder in others:
            if spec.origin and not _is_a_copy(folder):
                self.__spec__, self.__file__, self.__doc__ = spec, spec.origin, None
                self.__path__ = [folder, _OWN]
                spec.loader.exec_module(self)
                return True
        self.__path__ = list(dict.fromkeys([*self.__path__, *(folder for _, folder in others)]))
        return False


def open_zoo(name: str = _NAME) -> ModuleType:
    """Return the package ``model_zoo`` with the twins in it, importing it where it is not yet."""
    from importlib import import_module

    module = sys.modules.get(name) or import_module(name)
    if not isinstance(module, _Zoo):
        module.__class__ = _Zoo
        if module._is_ours():
            module._step_aside()
        elif _OWN not in module.__path__:
            module.__path__.append(_OWN)
    return module


def _is_a_copy(folder: str) -> bool:
    """Whether it is ours in another place: a clone beside an installation, or an older version."""
    return isfile(join(folder, "TF4CTR.py")) or isfile(join(folder, "TF4CTR", "__init__.py"))


def _twins() -> list[str]:
    from os import listdir

    return sorted(
        file[:-3] for file in listdir(_OWN) if file[:6] == "TF4CTR" and file[-3:] == ".py"
    )


if _Finder not in sys.meta_path:
    sys.meta_path.insert(0, _Finder)
