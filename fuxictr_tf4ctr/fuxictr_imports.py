"""FuxiCTR without Ray, until Ray is wanted, and without its handler of logs; one that does not fit
is refused by name.

``import fuxictr.pytorch.layers`` runs ``fuxictr/preprocess/__init__.py``, which imports Ray only
for ``build_dataset``: seconds of start-up and a heavy dependency for code that never encodes
through it. :func:`defer_ray` puts a lazy ``fuxictr.preprocess`` package in place: the same names,
each imported from FuxiCTR's own submodule on first use. Where FuxiCTR's package was imported
before, nothing changes.
"""

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any

from fuxictr_tf4ctr.errors import ModelError, SettingsError, UserError

_PACKAGE = "fuxictr.preprocess"

# Methods that this package calls or replaces -> the arguments it counts on, for every version that
# it knows. FuxiCTR's number does not tell versions apart: its git main calls itself as its wheel.
Hooks = Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]
MODEL_HOOKS: Hooks = {
    "wheel": {
        "fuxictr.pytorch.models.BaseModel": {
            "compile": ("optimizer", "loss", "lr"),
            "add_loss": ("return_dict", "y_true"),
            "regularization_loss": (),
            "reset_parameters": (),
            "get_inputs": ("inputs", "feature_source"),
            "get_labels": ("inputs",),
            "get_group_id": ("inputs",),
            "model_to_device": (),
            "fit": ("data_generator", "epochs", "validation_data", "max_gradient_norm"),
            "train_step": ("batch_data",),
            "evaluate": ("data_generator", "metrics"),
            "predict": ("data_generator",),
            "save_weights": ("checkpoint",),
            "load_weights": ("checkpoint",),
            "get_output_activation": ("task",),
        },
        "fuxictr.features.FeatureMap": {
            "load": ("json_file", "params"),
            "save": ("json_file",),
            "get_num_fields": ("feature_source",),
            "set_column_index": (),
        },
    }
}
_TOKENIZER = {
    "__init__": ("na_value", "min_freq", "splitter", "remap", "max_len", "padding"),
    "build_vocab": ("word_counts",),
    "update_vocab": ("word_list",),
    "vocab_size": (),
}
_PROCESSOR = {
    "__init__": ("feature_cols", "label_col", "dataset_id", "data_root"),
    "read_data": ("data_path", "data_format", "sep", "n_rows"),
    "preprocess": ("ddf",),
    "fit": ("train_ddf", "min_categr_count", "num_buckets", "rebuild_dataset"),
    "fit_categorical_col": ("col", "col_series", "min_categr_count", "num_buckets"),
    "save_pickle": ("pickle_file",),
    "save_vocab": ("vocab_file",),
}
PROCESSOR_HOOKS: Hooks = {
    "wheel": {
        "fuxictr.preprocess.feature_processor.FeatureProcessor": {
            **_PROCESSOR,
            "_collect_statistics": ("train_ddf", "meta_ddf"),
            "fit_meta_col": ("col", "stats_dict"),
            "fit_numeric_col": ("col", "stats_dict"),
            "fit_sequence_col": ("col", "stats_dict", "min_categr_count"),
        },
        "fuxictr.preprocess.tokenizer.Tokenizer": _TOKENIZER,
        "fuxictr.preprocess.normalizer.Normalizer": {
            "fit_from_stats": ("min_value", "max_value", "mean", "std", "count")
        },
    },
    "git": {
        "fuxictr.preprocess.feature_processor.FeatureProcessor": {
            **_PROCESSOR,
            "fit_meta_col": ("col",),
            "fit_numeric_col": ("col", "col_series"),
            "fit_sequence_col": ("col", "col_series", "min_categr_count"),
        },
        "fuxictr.preprocess.tokenizer.Tokenizer": {**_TOKENIZER, "fit_on_texts": ("series",)},
        "fuxictr.preprocess.normalizer.Normalizer": {"fit": ("X",)},
    },
}


def require(hooks: Hooks) -> str:
    """Return which of the known versions of FuxiCTR this one is, as far as the hooks tell.

    Args:
        hooks: Version -> class -> method -> names of its arguments, others may stand between.

    Raises:
        SettingsError: It is none of them; the message says what is missing.
    """
    problems = {version: list(_unfit(classes)) for version, classes in hooks.items()}
    for version, found in problems.items():
        if not found:
            return version
    fuxictr = importlib.import_module("fuxictr")
    nearest = min(problems.values(), key=len)
    raise SettingsError(
        f"FuxiCTR {fuxictr.__version__} in {fuxictr.__path__[0]} does not fit: "
        f"{'; '.join(nearest)}. Known to fit are fuxictr 2.3.10 (pip install 'fuxictr==2.3.10') "
        "and its git main of June 2026, which has the same number"
    )


def _unfit(classes: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Iterator[str]:
    """Say which methods are missing or take other arguments."""
    for path, methods in classes.items():
        module, _, name = path.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            yield f"{path} cannot be imported: {error}"
            continue
        for method, expected in methods.items():
            found = getattr(cls, method, None)
            takes = [] if found is None else list(inspect.signature(found).parameters)
            if found is None:
                yield f"{name} has no {method}"
            elif [argument for argument in takes if argument in expected] != list(expected):
                yield f"{name}.{method} takes {', '.join(takes)}, not {', '.join(expected)}"


def error_of_others(error: BaseException) -> UserError | None:
    """Say in one message what stopped in the code of others, if an error tells so.

    Returns:
        What to show in its place: a package that FuxiCTR's git main lacks, or the place in a model
        that is neither FuxiCTR's nor ours; None for any other error.
    """
    within, found = set(), None
    for frame, line in walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        within.add(module.partition(".")[0])
        model = _model_of_others(frame, module) or (found and found[1] == module and found[0])
        if model:
            found = model, module, f"{frame.f_code.co_filename}, line {line}"
    if isinstance(error, ModuleNotFoundError) and "fuxictr" in within:
        return SettingsError(
            f"FuxiCTR in {importlib.util.find_spec('fuxictr').submodule_search_locations[0]} needs "
            f"{error.name}, which is not installed: pip install {error.name}"
        )
    if not found or not isinstance(error, Exception):
        return None
    model, _, place = found
    return ModelError(f"model {model} stopped in {place}: {type(error).__name__}: {error}")


def _model_of_others(frame: FrameType, module: str) -> str | None:
    """Return the name of the model that a frame is of, if it is neither FuxiCTR's nor ours."""
    if module.startswith(("fuxictr.", "fuxictr_tf4ctr", "model_zoo.TF4CTR")):
        return None
    cls = type(frame.f_locals.get("self"))
    bases = [f"{base.__module__}.{base.__name__}" for base in cls.__mro__]
    return cls.__name__ if "fuxictr.pytorch.models.rank_model.BaseModel" in bases else None


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


@contextmanager
def no_handler_left() -> Iterator[None]:
    """While in context, FuxiCTR's log lines go where others go, and leave no handler behind.

    FuxiCTR calls ``logging.info``, which puts a handler for standard error on the root logger where
    there is none: of later runs each line would be there twice, or in a notebook that wants none.
    """
    root = logging.getLogger()
    stand_in = None if root.handlers else logging.lastResort or logging.NullHandler()
    if stand_in is not None:
        root.addHandler(stand_in)
    try:
        yield
    finally:
        if stand_in is not None:
            root.removeHandler(stand_in)
