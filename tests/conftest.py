"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch
from helpers import SHARED
from hypothesis import settings

import fuxictr_tf4ctr  # noqa: F401  before fuxictr: keeps Ray out of tests that do not need it

# No test judges by time: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project."""
    if not SHARED.is_dir():
        pytest.skip("no reference material: the folder 'shared' is not beside the project")
    return SHARED
