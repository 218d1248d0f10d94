"""Weights of rows and classes, and a sample of the negatives, from the settings to the scores."""

import json

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import make_feature_map, random_batch
from trained_runs import OneStream

from fuxictr_tf4ctr import load, run_experiment
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.datasets import H5DataLoader
from fuxictr_tf4ctr.datasets.stored import H5Writer
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.metrics.calibration import correct_sampling
from fuxictr_tf4ctr.serving.export import export_run
from fuxictr_tf4ctr.serving.score import Scorer
from fuxictr_tf4ctr.settings.reading import validated
from fuxictr_tf4ctr.training import Data, Schedule, evaluate_metrics, fit
from fuxictr_tf4ctr.training.losses import RowWeights
from fuxictr_tf4ctr.training.step import training_step
from model_zoo import TF4CTR, TF4CTR_QNN


def raw_rows(rows, seed):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 12, rows), rng.integers(0, 9, rows)
    chance = 1 / (1 + np.exp(2 - np.sin(user * 1.7) - 2 * np.cos(user * item)))
    click = (rng.random(rows) < chance).astype(int)
    columns = {"user": [f"u{u}" for u in user], "item": [f"i{i}" for i in item], "click": click}
    return pl.DataFrame(columns | {"worth": rng.integers(0, 4, rows)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    for seed, (split, rows) in enumerate({"train": 4000, "valid": 900, "test": 900}.items()):
        raw_rows(rows, seed).write_csv(folder / f"{split}.csv")
    return folder


def costly(folder, **changes):
    params = {
        "model": "TF4CTR", "dataset_id": "costs", "data_format": "csv",
        "data_root": str(folder / "data"), "model_root": str(folder / "runs"),
        **{f"{split}_data": str(folder / f"{split}.csv") for split in ("train", "valid", "test")},
        "feature_cols": [{"name": ["user", "item"], "dtype": "str", "type": "categorical"}],
        "label_col": {"name": "click", "dtype": "float"}, "batch_size": 200, "epochs": 2,
        "learning_rate": 0.01, "embedding_dim": 4, "simple_hidden_units": [4],
        "complex_hidden_units": [8], "metrics": ["AUC", "logloss"], "verbose": 0,
    }  # fmt: skip
    return validated("costs", params | changes, folder)


@pytest.fixture(scope="module")
def weighted(folder):
    settings = costly(folder, dataset_id="weighted", weight_col="worth", calibration="isotonic")
    return load(run_experiment(settings).folder)


def test_metrics_of_a_run_are_those_of_repeated_rows(weighted, folder, capsys):
    rows = pl.read_csv(folder / "test.csv")
    scores = np.repeat(weighted.predict_frame(rows.drop("worth", "click")), rows["worth"])
    expected = evaluate_metrics(
        np.repeat(rows["click"], rows["worth"]), scores, weighted.metrics[:2]
    )
    assert {name: weighted.record.test[name] for name in expected} == pytest.approx(expected, 1e-6)
    capsys.readouterr()
    named = ["--run", str(weighted.folder)]
    assert main(["evaluate", *named, "--input", str(folder / "test.csv")]) == 0
    assert f"AUC: {expected['AUC']:.6f}" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="weighs its rows by 'worth'"):
        from fuxictr_tf4ctr.analysis.compare import finished_run

        finished_run(weighted.folder)


def updated(model, batch, weights):
    """The weights of a model after a step."""
    model._max_gradient_norm = 10.0
    with training_step(model, weights=weights) as step:
        step(batch)
    return [weight.detach().clone() for weight in model.parameters()]


def twin(**changes):
    torch.manual_seed(3)
    feature_map = make_feature_map(labels=("label", "worth"))
    params = {"embedding_dim": 4, "simple_hidden_units": [4], "complex_hidden_units": [8]}
    return TF4CTR(feature_map, learning_rate=0.1, optimizer="SGD", **params | changes)


def stock():
    torch.manual_seed(3)
    params = {"optimizer": "SGD", "loss": "binary_crossentropy", "learning_rate": 0.1}
    params |= {"verbose": 0, "metrics": [], "model_root": ".", "embedding_dim": 8}
    return OneStream(make_feature_map(labels=("label", "worth")), **params)


@pytest.mark.parametrize(
    "make",
    [twin, stock, lambda: twin(twin_focus=False, loss="mse_loss")],
    ids=["twin", "stock", "mse"],
)
def test_a_weighted_step_is_that_of_repeated_rows(make):
    batch = random_batch(make_feature_map(labels=("label", "worth")), rows=40)
    times = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1))
    batch["worth"] = times / times.float().mean()  # as the loader serves them
    repeated = {name: column.repeat_interleave(times, 0) for name, column in batch.items()}
    found = updated(make(), batch, RowWeights("worth"))
    expected = updated(make(), repeated, RowWeights())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    plain = updated(make(), batch, RowWeights())
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, plain, strict=True))


def test_pos_weight_is_torchs():
    model, batch = stock(), random_batch(make_feature_map(labels=("label", "worth")), rows=40)
    weight = RowWeights(positive=3.0).of(batch, batch["label"].view(-1, 1))
    z, y = torch.randn(40, 1), batch["label"].view(-1, 1)
    expected = F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor([3.0]))
    assert F.binary_cross_entropy_with_logits(z, y, weight) == pytest.approx(expected.item())
    assert updated(model, batch, RowWeights("worth", 3.0))


def test_a_twin_under_its_base_models_own_loss_refuses_weights():
    model = TF4CTR_QNN(make_feature_map(), twin_focus=False, embedding_dim=4)
    with pytest.raises(SettingsError, match="a loss of its own"):
        fit(model, Data([], None), Schedule(weights=RowWeights(positive=3.0)))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """150,000 rows, so that a streamed file has several blocks."""
    rows, rng = 150_000, np.random.default_rng(0)
    path = tmp_path_factory.mktemp("encoded") / "train.h5"
    with H5Writer(path) as writer:
        for part in np.array_split(np.arange(rows), 3):
            writer.append({
                "user": np.zeros(len(part), np.int16), "item": np.zeros(len(part), np.int16),
                "city": (part % 5).astype(np.uint8), "worth": rng.random(len(part), np.float32),
                "label": (rng.random(len(part)) < 0.1).astype(np.float32),
            })  # fmt: skip
    return path


def epoch(path, **options):
    feature_map = make_feature_map(labels=("label", "worth"))
    feature_map.weight_col = "worth"
    loader = H5DataLoader(feature_map, path, batch_size=1000, **options)
    batches = list(loader)
    assert len(batches) == len(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in ("label", "worth")}


def test_a_share_of_the_negatives_is_served_in_any_storage_and_to_all_ranks(encoded):
    whole = epoch(encoded)
    assert whole["worth"].mean() == pytest.approx(1, rel=1e-5)
    sampled = epoch(encoded, negative_sampling=0.25, seed=4)
    positives = whole["label"].sum()
    assert sampled["label"].sum() == positives
    share = (len(sampled["label"]) - positives) / (len(whole["label"]) - positives)
    assert share == pytest.approx(0.25, abs=0.01)
    assert sampled["worth"].mean() == pytest.approx(1, rel=1e-5)
    options = {"negative_sampling": 0.25, "seed": 4}
    for storage in ("memory", "stream"):
        again = epoch(encoded, shuffle=True, storage=storage, **options)
        assert torch.equal(again["worth"].sort().values, sampled["worth"].sort().values)
    ranks = [epoch(encoded, rank=rank, world_size=2, **options)["worth"] for rank in (0, 1)]
    assert torch.equal(torch.cat(ranks).sort().values, sampled["worth"].sort().values)
    other = epoch(encoded, negative_sampling=0.25, seed=5)
    assert len(other["worth"]) != len(sampled["worth"])
    assert len(epoch(encoded, split="valid", **options)["label"]) == 150_000


def test_the_correction_undoes_the_sampling_of_a_known_chance():
    chance = torch.tensor([[0.01], [0.2], [0.999]], dtype=torch.float64)
    in_sample = chance / (chance + 0.1 * (1 - chance))  # with a tenth of the negatives
    model = torch.nn.Identity()
    correct_sampling(model, 0.1)
    outputs = {"y_pred": in_sample, "logit_simple": in_sample.logit(), "mask": in_sample}
    torch.testing.assert_close(model.train()(outputs)["y_pred"], in_sample)
    corrected = model.eval()(outputs)
    torch.testing.assert_close(corrected["y_pred"], chance)
    torch.testing.assert_close(corrected["logit_simple"], chance.logit())
    assert corrected["mask"] is in_sample


def test_a_run_on_a_sample_predicts_for_all_rows(folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    run = load(run_experiment(costly(folder, negative_sampling=0.2, epochs=6)).folder)
    rows = pl.read_csv(folder / "test.csv")
    scores = run.predict_frame(rows, streams=True)
    assert scores["y_pred"].mean() == pytest.approx(rows["click"].mean(), rel=0.15)
    expected = evaluate_metrics(rows["click"], scores["y_pred"], ["AUC", "logloss"])
    assert run.record.test == pytest.approx(expected, rel=1e-6)
    served = Scorer(export_run(run, tmp_path / "served").folder).score(rows.head(40).to_dicts())
    for name in ("y_pred", "y_simple"):
        np.testing.assert_allclose(served[name], scores[name][:40], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weight_col": "worth", "metrics": ["gAUC"], "group_id": "user"}, "gAUC .* no weights"),
        (
            {"weight_col": "user"},
            "'user' is listed twice in feature_cols, label_col and weight_col",
        ),
        ({"weight_col": "click"}, "'click' is listed twice"),
        ({"pos_weight": 0}, "pos_weight=0 must be a number > 0"),
        ({"negative_sampling": 1.5}, "negative_sampling=1.5 must be a number between 0 and 1"),
        (
            {"pos_weight": 2, "task": "regression", "loss": "mse_loss"},
            "pos_weight is for one label",
        ),
        ({"pos_weight": 2, "model": "TF4CTR_FinalNet", "base_loss": True}, "a loss of its own"),
        ({"pos_weight": 2, "model": "test_costs:OwnLoss"}, "OwnLoss has a loss of its own"),
    ],
)
def test_what_cannot_be_weighted_is_refused_with_the_settings(folder, changes, problem):
    with pytest.raises(SettingsError, match=problem):
        costly(folder, **changes)


class OwnLoss(OneStream):
    """A model with a loss of its own."""

    def add_loss(self, return_dict, y_true):
        return super().add_loss(return_dict, y_true)


@pytest.mark.parametrize(
    ("worth", "problem"),
    [
        ("-1", "column 'worth', row 2 .*: -1.0 is no weight"),
        ("NaN", "nan is no weight"),
        ("", "-1.0 is no weight, they are 0 or more; a missing one is read as -1"),
        ("0", "all weights are 0"),
        (None, "no weight_col 'worth'; there: user"),
    ],
)
def test_bad_weights_end_a_run_before_training(folder, tmp_path, worth, problem, monkeypatch):
    rows = raw_rows(50, 0).cast({"worth": pl.String})
    if worth == "0":
        rows = rows.with_columns(worth=pl.lit("0"))
    elif worth is not None:
        rows[2, "worth"] = worth
    else:
        rows = rows.drop("worth")
    rows.write_csv(tmp_path / "bad.csv")
    changes = {"train_data": str(tmp_path / "bad.csv"), "data_root": str(tmp_path)}
    monkeypatch.setattr("fuxictr_tf4ctr.runs.experiment.fit", pytest.fail)
    with pytest.raises(DataError, match=problem):
        run_experiment(costly(folder, weight_col="worth", storage="stream", **changes))


def test_data_encoded_before_may_hold_weights(weighted, tmp_path):
    """feature_map.json of FuxiCTR names the label alone; weight_col tells the other."""
    source = weighted.dataset.data_dir
    content = json.loads((source / "feature_map.json").read_text())
    target = tmp_path / "weighted"
    target.mkdir()
    (target / "feature_map.json").write_text(json.dumps(content | {"labels": ["click"]}))
    places = {f"{split}_data": str(source / f"{split}.h5") for split in ("train", "valid", "test")}
    changes = places | {"data_format": "h5", "data_root": str(tmp_path), "feature_cols": None}
    settings = costly(tmp_path, dataset_id="weighted", weight_col="worth", **changes)
    again = run_experiment(settings)
    expected = {name: weighted.record.test[name] for name in again.test}
    assert again.test == pytest.approx(expected, rel=1e-6)
