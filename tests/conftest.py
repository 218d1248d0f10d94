"""What all tests share; torch is left to them: the process that starts them does without."""

import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings

import fuxictr_tf4ctr  # noqa: F401  before fuxictr: keeps Ray out of tests that do not need it

# Processes that tests start run this clone's code, on one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# No test judges by time: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU; benchmarks/gpu.py runs these")


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest):
    """The CPU, and a GPU where there is one."""
    import torch

    return torch.device(request.param)


# These files first, the longest before the others: no core waits for another's last file.
LONG_FILES = (
    "test_docs_commands.py",
    "test_export.py",
    "test_lost_ranks.py",
    "test_fuzz.py",
    "test_ray.py",
    "test_checkout.py",
    "test_estimator.py",
    "test_tune.py",
    "test_state.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project."""
    from helpers import SHARED

    if not SHARED.is_dir():
        pytest.skip("no reference material: the folder 'shared' is not beside the project")
    return SHARED


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FuxiCTR checkout: ``$FUXICTR_HOME``, or that of the reference material; only to be read."""
    from helpers import SHARED

    home = Path(os.environ.get("FUXICTR_HOME") or SHARED / "peers" / "FuxiCTR")
    if not (home / "model_zoo").is_dir():
        pytest.skip("no FuxiCTR checkout: set FUXICTR_HOME to one")
    monkeypatch.setenv("FUXICTR_HOME", str(home))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return home


@pytest.fixture(scope="session")
def site_without_us(tmp_path_factory):
    """What is installed here as if we were not: links, so that it is FuxiCTR's own code."""
    folder = tmp_path_factory.mktemp("site")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != "model_zoo" and not path.name.startswith("fuxictr_tf4ctr"):
            (folder / path.name).symlink_to(path)
        elif path.name == "model_zoo":  # FuxiCTR's wheel has a part of it
            (folder / "model_zoo").mkdir()
            (folder / "model_zoo" / "LongCTR").symlink_to(path / "LongCTR")
    return folder
