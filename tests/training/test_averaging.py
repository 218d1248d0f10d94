"""Averaged weights: the formula, what is evaluated and kept, patience, and a run taken up again."""

import logging
from itertools import pairwise

import pytest
import torch
from tiny_model import build_batches, build_model

from fuxictr_tf4ctr.training import (
    Averaging,
    Checkpoints,
    Data,
    Schedule,
    Watch,
    evaluate,
    fit,
    loop,
)
from fuxictr_tf4ctr.training.averaging import LEARNING_RATE_DROP, averaging_problems

DATA = Data(build_batches(1), build_batches(2, rows=90))


def trained(folder, averaging, data=DATA, epochs=3, checkpoints=None, **kwargs):
    """Train a tiny model; its dropout is the same each time."""
    model = build_model(folder, **{"learning_rate": 0.05, "early_stop_patience": 9, **kwargs})
    torch.manual_seed(3)
    schedule = Schedule(epochs, averaging=averaging)
    return model, fit(model, data, schedule, watch=Watch(checkpoints=checkpoints))


@pytest.mark.parametrize("start", [0, 4])
def test_the_weights_kept_are_the_exponential_moving_average_of_the_steps(tmp_path, start):
    def after(steps):
        batches = build_batches(1)
        batches.batches = batches.batches[:steps]
        return trained(tmp_path, None, Data(batches), epochs=1)[0].state_dict()

    expected = after(start + 1)
    for taken, steps in enumerate(range(start + 2, 11), start=1):
        decay = min(0.35, (1 + taken) / (10 + taken))  # the first steps are let go of sooner
        for name, weight in after(steps).items():
            if weight.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * weight
    model, _ = trained(tmp_path, Averaging(0.35, start), Data(DATA.train), epochs=1)
    saved = torch.load(model.checkpoint, weights_only=True)
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7)
        assert torch.equal(saved[name], weight)


def test_averages_are_evaluated_and_kept_beside_the_plain_weights(tmp_path):
    _, plain = trained(tmp_path / "plain", None)
    model, result = trained(tmp_path / "averaged", Averaging(0.9))
    for before, record in zip(plain.epochs, result.epochs, strict=True):
        assert record["train_loss"] == before["train_loss"]  # training itself is as it was
        assert record["plain_metrics"] == before["metrics"]
        assert record["metrics"] != before["metrics"]
    assert evaluate(model, DATA.valid, ["AUC"])["AUC"] == result.best_metric


def test_patience_counts_only_where_neither_is_better(tmp_path, monkeypatch):
    plain = [0.60, 0.70, 0.65, 0.75, 0.70, 0.74, 0.75, 0.75]
    averaged = [0.50, 0.55, 0.60, 0.60, 0.59, 0.61, 0.61, 0.60]
    scores = iter([score for pair in zip(plain, averaged, strict=True) for score in pair])
    monkeypatch.setattr(loop, "evaluate", lambda *arguments: {"AUC": next(scores)})
    kwargs = {"learning_rate": 0.02, "early_stop_patience": 2, "monitor": "AUC"}
    _, result = trained(tmp_path, Averaging(0.97), epochs=20, **kwargs)
    assert result.stopped == "early stop" and len(result.epochs) == len(plain)
    best = [number for number, record in enumerate(result.epochs, start=1) if record["best"]]
    assert best == [1, 2, 3, 6]
    rates = [record["learning_rate"] for record in result.epochs]
    drops = [after for after, (rate, later) in enumerate(pairwise(rates), start=1) if later < rate]
    # The fourth is spared by the plain weights, third and sixth by the average.
    assert drops == [5, 7]


def test_averaging_may_begin_with_the_first_drop_of_the_learning_rate(tmp_path):
    kwargs = {"learning_rate": 0.1, "early_stop_patience": 1, "monitor": "AUC"}
    _, plain = trained(tmp_path, None, epochs=20, **kwargs)
    _, result = trained(tmp_path, Averaging(0.9, LEARNING_RATE_DROP), epochs=20, **kwargs)
    before = [record for record in result.epochs if "plain_metrics" not in record]
    assert [record["metrics"] for record in before] == [r["metrics"] for r in plain.epochs]
    assert len(result.epochs) > len(before)  # patience 1 is counted anew for the averages
    assert all("plain_metrics" in record for record in result.epochs[len(before) :])


@pytest.mark.parametrize("start", [0, 14, LEARNING_RATE_DROP])
def test_a_run_taken_up_ends_bitwise_as_one_that_was_not_cut_off(tmp_path, start, caplog):
    caplog.set_level(logging.INFO)
    ends = []
    for root, parts in (("whole", [6]), ("parts", [1, 3, 6])):
        for epochs in parts:
            states = Checkpoints(tmp_path / root / "state", steps=4)
            model, result = trained(
                tmp_path / root, Averaging(0.9, start), epochs=epochs, checkpoints=states,
                learning_rate=0.1,
            )  # fmt: skip
        records = [(r["metrics"], r.get("plain_metrics"), r["best"]) for r in result.epochs]
        ends.append((model.state_dict(), records))
    assert "Resume after" in caplog.text
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert any(plain is not None for _, plain, _ in ends[0][1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"average_start": 5}, "is for average_weights"),
        ({"average_weights": 0.9, "average_start": LEARNING_RATE_DROP}, "reduce_lr_on_plateau"),
        ({"average_weights": 0.9, "table_sharding": "auto"}, "does not go with table_sharding"),
    ],
)
def test_settings_that_cannot_work_are_named(given, words):
    (problem,) = averaging_problems(given)
    assert words in problem
    fine = {"average_weights": 0.9, "average_start": LEARNING_RATE_DROP}
    for validation in ({"valid_data": "valid.csv"}, {"valid_size": 0.1}):
        assert not list(averaging_problems(fine | validation | {"reduce_lr_on_plateau": True}))
