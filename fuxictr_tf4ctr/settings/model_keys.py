"""What a model class takes: its keys, read from signatures, and what FuxiCTR called them earlier.

FuxiCTR hands every key of a configuration to every model, whose ``**kwargs`` swallow what it does
not know. Here such keys are told.
"""

import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from fuxictr.pytorch.models import BaseModel
from torch import nn

from fuxictr_tf4ctr.names import misspelt, shown, unknown
from fuxictr_tf4ctr.schema import AnyOf, Kind, ListOf, name_of
from fuxictr_tf4ctr.settings.keys import IGNORED, KEYS
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

OLD_MODELS = {"FINAL": "FinalNet"}
"""Models that FuxiCTR has renamed."""

# What FuxiCTR's models called a key earlier, or another model calls it; read where the model has no
# such key of its own.
_OLD_KEYS = {
    "patience": "early_stop_patience",
    "feature_config": "feature_specs",
    "crossing_layers": "num_cross_layers",
    "cin_layer_units": "cin_hidden_units",
    "use_field_gate": "use_feature_gating",
    "hidden_units": "dnn_hidden_units",
    "dnn_hidden_units": "hidden_units",
    "hidden_activations": "dnn_activations",
    "dnn_activations": "hidden_activations",
}
_LOWER = ("relu", "sigmoid", "tanh", "softmax", "prelu", "dice")  # in any case
_ACTIVATIONS = {*nn.modules.activation.__all__, *_LOWER, "Identity"}
_ACTIVATIONS -= {"MultiheadAttention", "Threshold"}  # cannot be made without arguments
_ACTIVATION = AnyOf(
    Kind("null", lambda value: value is None or str(value).lower() in _LOWER),
    name_of("activation", _ACTIVATIONS),
)
_ACTIVATION_KEY = AnyOf(_ACTIVATION, ListOf(_ACTIVATION))


@cache
def taken_keys(model_class: type[BaseModel]) -> Mapping[str, Any]:
    """Return the keys a FuxiCTR model takes, with their defaults.

    They are the parameters of its ``__init__`` and of those it hands its ``**kwargs`` to, and the
    keys that its code reads out of them.
    """
    taken: dict[str, Any] = {}
    for cls in model_class.__mro__:
        if "__init__" not in vars(cls) or cls is nn.Module:
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        taken = {p.name: p.default for p in parameters} | taken
        rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
        if not rest:
            break
        read = rf"\b{rest[0]}(?:\.get\(|\.pop\(|\[)\s*[\"'](\w+)"
        with suppress(OSError, TypeError):  # of a class made without a file
            found = re.findall(read, inspect.getsource(cls))
            taken |= {key: None for key in found if key not in taken}
    return taken


def present_name(key: str, model_class: type[BaseModel]) -> str:
    """Return what a model calls a key now, the key itself where it has no other name."""
    taken, meant = taken_keys(model_class), _OLD_KEYS.get(key)
    old = key not in taken and (meant in taken or meant in KEYS)
    return meant if old else key


def understood(
    params: Mapping[str, Any], model_class: type[BaseModel]
) -> tuple[dict[str, Any], list[str]]:
    """Read old names of keys as what they mean now, and lists as the tuples a model asks for.

    Returns:
        The settings in the model's own words, and a note on each key that was read as another.
    """
    taken = taken_keys(model_class)
    read, notes = {}, []
    for key, value in params.items():
        meant = present_name(key, model_class)
        if value is None:  # as if it were not there, where the other name is
            read.setdefault(meant, None)
        elif meant == key:
            read[key] = value
        elif params.get(meant) is not None:
            notes.append(f"{key} has no effect: {meant}, its present name, is given too")
        else:
            read[meant] = value
            notes.append(f"{key} is read as {meant}, its present name")
    return {key: _in_form_of(taken.get(key), value) for key, value in read.items()}, notes


def _in_form_of(default: Any, value: Any) -> Any:
    """Give names of columns the tuples that FuxiCTR's models tell a group of columns by.

    Neither YAML nor json has tuples of its own; a model's default shows what it asks for.
    """
    grouped = isinstance(default, list) and default and isinstance(default[0], tuple)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if grouped and isinstance(value, tuple):
        return [value]
    if grouped and isinstance(value, list):
        return [tuple(entry) if isinstance(entry, list) else entry for entry in value]
    return value


def key_problems(
    params: Mapping[str, Any], model_class: type[BaseModel]
) -> tuple[list[str], list[str]]:
    """Find keys that a model does not take.

    Returns:
        What is wrong, and what merely has no effect: keys like no other, which a twin refuses.
    """
    strict = issubclass(model_class, TwoStreamModel)
    taken = model_class.parameter_names(params) if strict else taken_keys(model_class)
    known = {*taken, *KEYS, *IGNORED}
    # Options of an encoder are the model's to judge: it knows which encoder takes them.
    open_prefixes = ("simple_", "complex_") if strict else ()
    foreign = [key for key in params if key not in known and not key.startswith(open_prefixes)]
    wrong = [key for key in foreign if strict or misspelt(key, known)]
    notes = [key for key in foreign if key not in wrong]
    ignored = [key for key in params if key in IGNORED]
    told = [f"{model_class.__name__} takes no {', '.join(notes)}: without effect"] if notes else []
    told += [f"without effect here: {', '.join(ignored)}"] if ignored else []
    return [unknown("key", key, known) for key in wrong], told


def contract_problems(model_class: type[BaseModel]) -> list[str]:
    """Say which methods of a model take other arguments than FuxiCTR hands them by now."""
    problems = []
    for method in ("get_inputs", "get_labels", "add_loss", "compute_loss"):
        parameters = inspect.signature(getattr(BaseModel, method)).parameters
        handed = [name for name, each in parameters.items() if each.default is each.empty]
        own = inspect.signature(getattr(model_class, method))
        try:
            own.bind(*handed)
        except TypeError:
            problems.append(
                f"{model_class.__name__}.{method} takes {', '.join(own.parameters)}, but FuxiCTR "
                f"hands it {', '.join(handed)}: the model is written for another FuxiCTR"
            )
    return problems


def activation_problems(params: Mapping[str, Any]) -> list[str]:
    """List the activations that torch lacks; FuxiCTR looks them up when a model is built."""
    return [
        problem
        for key, value in params.items()
        if "activation" in key
        for problem in _ACTIVATION_KEY.problems(value, key)
    ]


def size_problems(params: Mapping[str, Any]) -> list[str]:
    """List whole numbers that are no size of anything torch makes."""
    return [
        f"{key}={shown(value)} is beyond any size: stay below 2^31"
        for key, value in params.items()
        if key not in KEYS
        for number in (value if isinstance(value, list | tuple) else [value])
        if isinstance(number, int) and abs(number) >= 2**31
    ]


def batch_norms(params: Mapping[str, Any], model_class: type[BaseModel]) -> list[str]:
    """Return the keys by which a model has batch norm, which cannot train on a batch of one row."""
    of_twin = issubclass(model_class, TwoStreamModel)
    defaults = model_class.with_defaults({}) if of_twin else taken_keys(model_class)
    given = {**defaults, **params}
    return [
        key
        for key, value in given.items()
        if "batch_norm" in key and key != "sync_batch_norm" and value is True
    ]
