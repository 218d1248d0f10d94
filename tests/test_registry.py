"""Names to classes: twins, the wheel's models, a checkout's, other packages'."""

import importlib
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from fuxictr.pytorch.models import BaseModel
from programs import fresh, run_program

import model_zoo
from fuxictr_tf4ctr import registry
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import find_model, list_models, register_model
from fuxictr_tf4ctr.twin import TwinModel

ROOT = Path(__file__).resolve().parents[1]
LOCAL = """
from fuxictr.pytorch.models import BaseModel
from torch import nn

class Tower(nn.Module):
    pass

class {0}(BaseModel):
    pass

class {0}P({0}):
    pass
"""


@pytest.fixture()
def checkout(tmp_path, monkeypatch):
    """A folder laid out like FuxiCTR's repository, with models and a script."""
    zoo = tmp_path / "model_zoo"
    for folder in ("LocalFM/src", "LocalDNN/LocalDNN_torch/src", "TF4CTR_DCNv2/src"):
        name = folder.split("/")[0]
        path = zoo / folder
        path.mkdir(parents=True)
        (path / "__init__.py").write_text(f"from .{name} import *\n")
        (path / f"{name}.py").write_text(LOCAL.format(name))
    (zoo / "__init__.py").write_text(
        "from .LocalFM.src import LocalFM\nfrom .LocalDNN.LocalDNN_torch.src import LocalDNN\n"
    )
    monkeypatch.setattr(model_zoo, "__path__", list(model_zoo.__path__))
    return tmp_path


def test_model_zoo_gives_classes_as_fuxictr_does():
    assert getattr(model_zoo, "TF4CTR_DCNv2") is find_model("TF4CTR_DCNv2")  # noqa: B009
    assert issubclass(model_zoo.TF4CTR, TwinModel)
    importlib.import_module("model_zoo.TF4CTR")  # a submodule of that name does not hide the class
    assert isinstance(model_zoo.TF4CTR, type)
    with pytest.raises(AttributeError, match="TF4CTR_DCNv2"):
        _ = model_zoo.TF4CTR_DCNv3


def test_the_wheels_long_sequence_models_have_names_of_their_own(monkeypatch):
    from model_zoo.LongCTR.DIN import DIN

    assert find_model("LongCTR.DIN") is DIN
    assert list_models()["LongCTR.DIN"].source == "wheel"
    monkeypatch.delenv("FUXICTR_HOME", raising=False)
    with pytest.raises(SettingsError, match=r"set FUXICTR_HOME to one;.*'LongCTR\.DIN'"):
        find_model("DIN")


def test_checkout(checkout, monkeypatch):
    monkeypatch.delenv("FUXICTR_HOME", raising=False)
    with pytest.raises(SettingsError, match="FUXICTR_HOME"):
        find_model("LocalFM")
    assert find_model("LocalFM", checkout).__name__ == "LocalFM"
    assert find_model("LocalFMP").__name__ == "LocalFMP"  # once named, for models inside a pair too
    monkeypatch.setenv("FUXICTR_HOME", str(checkout))
    models = list_models()
    assert models["LocalDNN"].source == "checkout" and "Tower" not in models
    for _ in range(2):  # importing it does not make the name mean the module
        assert issubclass(model_zoo.LocalDNN, BaseModel)
    assert model_zoo.TF4CTR_DCNv2 is find_model("TF4CTR_DCNv2")
    with pytest.raises(SettingsError, match="no folder model_zoo"):
        find_model("LocalFM", checkout / "model_zoo")


# What FuxiCTR's scripts do, and what they see of it.
SCRIPT = """
import sys
where, before = sys.argv[1:]
if before == "ours":
    import fuxictr_tf4ctr.registry
    fuxictr_tf4ctr.registry.list_models()
sys.path.insert(0, where) if before == "first" else sys.path.append(where)
import model_zoo
from model_zoo import *
from model_zoo import LocalFM as imported
print(LocalFM is imported is getattr(model_zoo, "LocalFM") is model_zoo.LocalFM, LocalFM.__module__)
print(sorted(name for name in globals() if name[0] != "_"))
print(model_zoo.__file__, hasattr(model_zoo, "DIN"), hasattr(model_zoo, "LocalFMP"))
"""
TWINS = """
import model_zoo.LocalDNN.LocalDNN_torch.src
print(*(getattr(model_zoo, name).__module__ for name in ("LocalDNN", "TF4CTR_DCNv2")))
from model_zoo.TF4CTR_DCN import TF4CTR_DCN
print(TF4CTR_DCN is model_zoo.TF4CTR_DCN)
from fuxictr_tf4ctr.registry import find_model
print(find_model("TF4CTR_DCNv2") is model_zoo.TF4CTR_DCNv2, find_model("LocalFMP").__name__)
"""


@pytest.mark.parametrize("order", ["first", "last", "ours"])
def test_fuxictrs_scripts_do_the_same_with_and_without_us(
    checkout, site_without_us, order, monkeypatch
):
    """Their model_zoo is imported, whichever is found first, and has the twins besides."""
    monkeypatch.delenv("FUXICTR_HOME", raising=False)

    def run(code, *, with_us):
        # As fuxictr_tf4ctr.pth of an installation does
        with_path = f"sys.path.insert(0, {str(ROOT)!r})\nimport fuxictr_tf4ctr_zoo\n"
        code = fresh(site_without_us) + (with_path if with_us else "") + code
        done = run_program("-c", code, checkout, order, cwd=ROOT.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout.replace("'fuxictr_tf4ctr', ", "").replace("'fuxictr_tf4ctr_zoo', ", "")

    seen = run(SCRIPT + TWINS, with_us=True).splitlines()
    assert seen[0].startswith("True model_zoo.LocalFM.src.LocalFM")
    if order != "ours":
        assert seen[:3] == run(SCRIPT, with_us=False).splitlines()
    expected = ["model_zoo.LocalDNN.LocalDNN_torch.src.LocalDNN", "model_zoo.TF4CTR_DCNv2"]
    assert " ".join(seen[3:]).split() == [*expected, "True", "True", "LocalFMP"]


def test_entry_points_of_other_packages(monkeypatch):
    point = EntryPoint("Theirs", "model_zoo.LongCTR.DIN:DIN", registry.ENTRY_POINT_GROUP)
    broken = EntryPoint("Broken", "no_such_package:Model", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: (point, broken))
    assert find_model("Theirs").__name__ == "DIN"
    assert "Theirs" in registry.find_twins()  # so that expids may begin with it
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


def test_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text(LOCAL.format("Mine"))
    monkeypatch.chdir(tmp_path)  # which a console script does not look in
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert find_model("mine_here:MineP").__name__ == "MineP"
    assert find_model("model_zoo.LongCTR.DIN:DIN").__name__ == "DIN"
    with pytest.raises(SettingsError, match="no FuxiCTR BaseModel"):
        find_model("pathlib:Path")
    with pytest.raises(SettingsError, match="cannot be imported"):
        find_model("pathlib:Bath")


def test_unknown_names_list_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'TF4CTR_DeepFM'"):
        find_model("TF4CTR_DeepMF")
