"""The examples in the docstrings of the method are true."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
from helpers import ALL_KINDS, FEATURES, make_feature_map, random_batch

from fuxictr_tf4ctr import twin
from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, View

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(twin.__path__, f"{twin.__name__}.")
]


@pytest.fixture(scope="module")
def given():
    """What the examples of encoders speak of."""
    feature_map = make_feature_map(FEATURES | {"bought": ALL_KINDS["bought"]}, labels=())
    tables, inputs = FieldEmbedding(feature_map, 8), random_batch(feature_map, rows=5)
    return {"spec": tables.spec, "view": View(tables(inputs), inputs, tables)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.partition(".")[2])
def test_examples_are_true(module, given):
    assert doctest.testmod(module, extraglobs=given).failed == 0


def test_everything_public_has_an_example():
    functions = {
        value
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }
    classes = {value for name in twin.__all__ if inspect.isclass(value := getattr(twin, name))}
    classes |= set(twin.ENCODERS.values())
    assert len(functions) > 8 and len(classes) > 4
    assert not [value for value in functions | classes if "Example:" not in value.__doc__]
