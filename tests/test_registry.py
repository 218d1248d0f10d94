"""Names to classes: twins, the wheel's models, a checkout's, other packages'."""

import importlib
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest
from fuxictr.pytorch.models import BaseModel

import model_zoo
from fuxictr_tf4ctr import registry
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import find_model, list_models, register_model
from fuxictr_tf4ctr.twin import TwinModel


@pytest.fixture()
def checkout(tmp_path):
    """A folder laid out like FuxiCTR's repository, with two models."""
    for folder in ("LocalFM/src", "LocalDNN/LocalDNN_torch/src"):
        name = folder.split("/")[0]
        path = tmp_path / "model_zoo" / folder
        path.mkdir(parents=True)
        (path / "__init__.py").write_text(f"from .{name} import {name}\n")
        (path / f"{name}.py").write_text(
            "from fuxictr.pytorch.models import BaseModel\n\n\n"
            f"class {name}(BaseModel):\n    '''A model.'''\n"
        )
    yield tmp_path
    model_zoo.__path__.remove(str(tmp_path / "model_zoo"))


def test_model_zoo_gives_classes_as_fuxictr_does():
    assert getattr(model_zoo, "TF4CTR_DCNv2") is find_model("TF4CTR_DCNv2")  # noqa: B009
    assert issubclass(model_zoo.TF4CTR, TwinModel)
    importlib.import_module("model_zoo.TF4CTR")  # a submodule of that name does not hide the class
    assert isinstance(model_zoo.TF4CTR, type)
    with pytest.raises(AttributeError, match="TF4CTR_DCNv2"):
        _ = model_zoo.TF4CTR_DCNv3


def test_the_wheels_own_zoo_stays_importable():
    from model_zoo.LongCTR.DIN import DIN

    assert find_model("DIN") is DIN
    assert list_models()["DIN"].source == "wheel"


def test_checkout(checkout, monkeypatch):
    with pytest.raises(SettingsError, match="FUXICTR_HOME"):
        find_model("LocalFM")
    assert find_model("LocalFM", checkout).__name__ == "LocalFM"
    monkeypatch.setenv("FUXICTR_HOME", str(checkout))
    assert list_models()["LocalDNN"].source == "checkout"
    assert issubclass(model_zoo.LocalDNN, BaseModel)
    with pytest.raises(SettingsError, match="no folder model_zoo"):
        find_model("LocalFM", checkout / "model_zoo")


def test_a_checkout_first_on_the_path_does_not_hide_the_twins(checkout):
    """FuxiCTR's scripts put the checkout on sys.path; its model_zoo is then the one imported."""
    (checkout / "model_zoo" / "__init__.py").write_text("")
    code = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        import model_zoo, pathlib
        assert pathlib.Path(model_zoo.__file__).is_relative_to(sys.argv[1])
        from fuxictr_tf4ctr.registry import find_model
        print(find_model("TF4CTR_DCNv2").__name__, find_model("LocalFM", sys.argv[1]).__name__)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkout)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["TF4CTR_DCNv2", "LocalFM"], done.stderr
    model_zoo.__path__.append(str(checkout / "model_zoo"))  # for the fixture to remove


def test_entry_points_of_other_packages(monkeypatch):
    point = EntryPoint("Theirs", "model_zoo.LongCTR.DIN:DIN", registry.ENTRY_POINT_GROUP)
    broken = EntryPoint("Broken", "no_such_package:Model", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: (point, broken))
    assert find_model("Theirs").__name__ == "DIN"
    with pytest.raises(SettingsError, match="no_such_package"):
        find_model("Broken")


def test_registering(monkeypatch):
    monkeypatch.setattr(registry, "MODELS", type(registry.MODELS)("model"))

    @register_model
    class Mine(BaseModel):
        pass

    assert find_model("Mine") is Mine
    assert register_model(Mine) is Mine
    with pytest.raises(ValueError, match="'Mine' is registered already"):
        register_model(type("Mine", (BaseModel,), {}))


def test_module_and_class():
    assert find_model("model_zoo.LongCTR.DIN:DIN").__name__ == "DIN"
    with pytest.raises(SettingsError, match="no FuxiCTR BaseModel"):
        find_model("pathlib:Path")
    with pytest.raises(SettingsError, match="cannot be imported"):
        find_model("pathlib:Bath")


def test_unknown_names_list_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'TF4CTR_DeepFM'"):
        find_model("TF4CTR_DeepMF")
