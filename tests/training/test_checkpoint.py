"""Checkpoints: whole files, exchangeable with FuxiCTR's, with clear errors."""

from functools import partial

import pytest
import torch
from tiny_model import build_model

from fuxictr_tf4ctr.errors import DataError, StorageError
from fuxictr_tf4ctr.training import load_weights, save_weights


def same_weights(model, other):
    """Whether two models hold bitwise equal weights."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def make_model(tmp_path):
    return partial(build_model, tmp_path)


@pytest.fixture
def scrambled(make_model):
    """A model whose weights differ from those of ``make_model()``."""
    model = make_model()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(1)
    return model


def test_weights_come_back_and_fuxictr_reads_them(make_model, scrambled, tmp_path):
    path = tmp_path / "new" / "folder" / "best.model"
    save_weights(scrambled, path)
    ours, theirs = make_model(), make_model()
    assert not same_weights(ours, scrambled)
    load_weights(ours, path)
    theirs.load_weights(path)
    assert same_weights(ours, scrambled)
    assert same_weights(theirs, scrambled)
    assert [file.name for file in path.parent.iterdir()] == ["best.model"]


def test_fuxictr_checkpoints_are_read(make_model, scrambled, tmp_path):
    scrambled.save_weights(tmp_path / "theirs.model")
    model = make_model()
    load_weights(model, tmp_path / "theirs.model")
    assert same_weights(model, scrambled)


def test_a_failed_write_leaves_the_previous_checkpoint(
    make_model, scrambled, tmp_path, monkeypatch
):
    path = tmp_path / "only" / "best.model"
    save_weights(scrambled, path)

    def fail_half_way(weights, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(StorageError, match="disk full"):
        save_weights(make_model(), path)
    model = make_model()
    load_weights(model, path)
    assert same_weights(model, scrambled)
    assert [file.name for file in path.parent.iterdir()] == ["best.model"]


def test_a_missing_checkpoint_is_named(make_model, tmp_path):
    with pytest.raises(DataError, match=r"none\.model does not exist"):
        load_weights(make_model(), tmp_path / "none.model")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "pickle"])
def test_a_corrupt_checkpoint_is_named(make_model, tmp_path, damage):
    path = tmp_path / "bad.model"
    model = make_model()
    save_weights(model, path)
    whole = path.read_bytes()
    if damage == "pickle":
        torch.save(pytest.approx, path)  # a function: reading it would run foreign code
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(DataError, match=r"bad\.model cannot be read"):
        load_weights(model, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"other.weight": torch.zeros(2)}, "other.weight"),
        ({"mlp.mlp.0.bias": torch.zeros(99)}, "size mismatch"),
        (torch.zeros(3), "does not belong"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(make_model, tmp_path, content, words):
    torch.save(content, tmp_path / "other.model")
    with pytest.raises(DataError, match=words):
        load_weights(make_model(), tmp_path / "other.model")
