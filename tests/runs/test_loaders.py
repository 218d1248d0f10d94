"""The loaders of a run: built with what the settings say of the GPU and of memory."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fuxictr_tf4ctr import load_settings, run_experiment
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.runs import experiment, loading


class Built(Exception):
    """Raised in place of building a loader, with what it was to be built with."""


def built_with(tmp_path, monkeypatch, **settings):
    class Loader:
        def __init__(self, feature_map, path, **options):
            raise Built(options)

    monkeypatch.setattr(experiment, "H5DataLoader", Loader)
    roots = {"data_root": str(tmp_path / "data"), "model_root": str(tmp_path / "runs")}
    with pytest.raises(Built) as built:
        run_experiment(load_settings("TF4CTR_DCNv2_demo", overrides=roots | settings))
    return built.value.args[0]


def test_a_runs_loaders_get_gpu_storage_and_budget_as_set(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "stand-in")
    settings = {"gpu": 2, "storage": "stream", "memory_budget": 12_345}
    options = built_with(tmp_path, monkeypatch, **settings)
    assert settings.items() <= options.items()
    more = built_with(tmp_path, monkeypatch, **settings, average_weights=0.9)
    assert options["gpu_reserve"] < more["gpu_reserve"]  # averages take memory as well


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"storage": "disk"}, "storage='disk' must be one of auto, memory, stream, gpu"),
        ({"storage": "gpu"}, "storage: gpu keeps rows in a GPU's memory: set gpu"),
        ({"memory_budget": 0}, "memory_budget=0 must be a whole number >= 1"),
        ({"gpu": 0}, "gpu=0 does not exist: this machine has no GPU"),
    ],
)
def test_what_cannot_be_is_found_before_data_are_read(monkeypatch, settings, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError) as raised:
        load_settings("TF4CTR_DCNv2_demo", overrides=settings)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("ranks", "changes", "advice"),
    [
        (1, {}, "2001 rows in batches of 1000 .* set batch_size to 1001"),
        (2, {"sync_batch_norm": False}, "set sync_batch_norm to true"),
        (2, {"sync_batch_norm": True}, None),
    ],
)
def test_batch_norm_is_given_no_batch_of_one_row(monkeypatch, ranks, changes, advice):
    class Served:
        num_samples, batch_size, fewest_rows = 2001, 1000, 1

        def __init__(self, *args, **options):
            pass

        def refuse_one_class(self):
            pass

    monkeypatch.setattr(experiment, "H5DataLoader", Served)
    settings = load_settings("TF4CTR_demo", overrides={"batch_norm": True, **changes})
    dataset = SimpleNamespace(train="train.h5", valid=None, test=None)
    group = SimpleNamespace(size=ranks, rank=0, once_a_host=None)
    with nullcontext() if advice is None else pytest.raises(DataError, match=advice):
        experiment._loaders(dataset, None, settings, group, 0)


@pytest.mark.parametrize(
    "size", [{"embedding_dim": 10**8}, {"complex_hidden_units": [2 * 10**6, 2 * 10**6]}], ids=str
)
def test_a_model_beyond_the_machines_memory_is_refused_before_it_is_made(
    tmp_path, monkeypatch, size
):
    monkeypatch.setattr(loading.os, "sysconf", lambda name: 2**15)  # 1 GiB
    roots = {"data_root": str(tmp_path / "data"), "model_root": str(tmp_path / "runs")}
    settings = load_settings("TF4CTR_DCNv2_demo", overrides=roots | size)
    with pytest.raises(
        SettingsError, match="weights and their training, this machine has 1: lower"
    ):
        run_experiment(settings)
