"""Models of several labels, as FuxiCTR's MMoE, from raw rows to scores for each label."""

from types import MappingProxyType

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from sklearn.metrics import roc_auc_score

from fuxictr_tf4ctr import load
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.experiment import check_workers, run_experiment
from fuxictr_tf4ctr.settings.reading import load_settings

LABELS = ("click", "buy")


class SharedBottom(MultiTaskModel):
    """One layer for all labels, a tower for each."""

    def __init__(self, feature_map, num_tasks, embedding_dim, **params):
        super().__init__(feature_map, num_tasks=num_tasks, **params)
        self.embedding = FeatureEmbedding(feature_map, embedding_dim)
        self.bottom = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units=[8])
        self.towers = torch.nn.ModuleList([torch.nn.Linear(8, 1) for _ in range(num_tasks)])
        self.compile(params["optimizer"], params["loss"], params["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        shared = self.bottom(self.embedding(self.get_inputs(inputs), flatten_emb=True))
        heads = zip(self.feature_map.labels, self.towers, self.output_activation, strict=True)
        return {f"{label}_pred": activation(tower(shared)) for label, tower, activation in heads}


EXPERIMENT = {
    "model": f"{__name__}:SharedBottom", "dataset_id": "shop", "num_tasks": 2, "epochs": 3,
    "loss": ["binary_crossentropy"] * 2, "task": "binary_classification", "batch_size": 50,
    "learning_rate": 0.01, "embedding_dim": 4, "checkpoint_steps": 7, "early_stop_patience": 9,
    "verbose": 0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A configuration of raw rows with two labels."""
    rng = np.random.default_rng(0)
    for split, rows in (("train", 400), ("test", 200)):
        user, item = rng.integers(0, 9, (2, rows))
        likes = rng.random((2, rows)) < np.stack([user, item]) / 9
        columns = {"user": user, "item": item, "click": likes[0], "buy": likes[1]}
        pl.DataFrame(columns).cast(pl.Int64).write_csv(tmp_path / f"{split}.csv")
    dataset = {
        "data_format": "csv",
        "data_root": str(tmp_path / "data"),
        "feature_cols": [{"name": ["user", "item"], "dtype": "str", "type": "categorical"}],
        "label_col": [{"name": name, "dtype": "float"} for name in LABELS],
    }
    files = {"train": "train", "valid": "test", "test": "test"}
    dataset |= {f"{key}_data": str(tmp_path / f"{file}.csv") for key, file in files.items()}
    (tmp_path / "dataset_config.yaml").write_text(yaml.safe_dump({"shop": dataset}))
    section = EXPERIMENT | {"model_root": str(tmp_path / "runs")}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump({"both": section}))
    return tmp_path


def settings_of(folder, **changes):
    return load_settings("both", folder, changes)


def test_each_label_is_trained_resumed_evaluated_and_predicted(folder, capsys):
    whole = run_experiment(settings_of(folder))
    names = {f"{label}_{metric}" for label in LABELS for metric in ("AUC", "logloss")}
    assert whole.test.keys() == names | {"AUC", "logloss"}
    assert min(whole.test["click_AUC"], whole.test["buy_AUC"]) > 0.6
    assert whole.test["AUC"] == (whole.test["click_AUC"] + whole.test["buy_AUC"]) / 2

    def stop(evaluation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings_of(folder), on_evaluation=stop)
    again = run_experiment(settings_of(folder), resume=True)
    assert again.resumed and (again.valid, again.test) == (whole.valid, whole.test)

    raw, scores = folder / "test.csv", folder / "scores.csv"
    run = ["--run", str(whole.folder), "--input", str(raw)]
    assert main(["predict", *run, "--output", str(scores), "--keep", *LABELS]) == 0
    scored = pl.read_csv(scores)
    for label in LABELS:
        found = roc_auc_score(scored[label], scored[f"{label}_pred"])
        assert found == pytest.approx(whole.test[f"{label}_AUC"], abs=1e-6)
    assert load(whole.folder).predict_frame(pl.read_csv(raw)).keys() == {"click_pred", "buy_pred"}
    capsys.readouterr()
    assert main(["evaluate", *run]) == 0
    assert f"buy_AUC: {whole.test['buy_AUC']:.6f}" in capsys.readouterr().out
    assert main(["compare", str(whole.folder), str(whole.folder)]) == 2
    assert "only runs of binary_classification can be compared" in capsys.readouterr().err


REFUSED = {
    "fewer labels": ({"num_tasks": 3}, "label_col has 2 labels for num_tasks=3"),
    "fewer losses": ({"loss": ["mse_loss"]}, "loss has 1 entries for num_tasks=2"),
    "calibration": ({"calibration": "isotonic"}, "calibration is for one label"),
    "pos_weight": ({"pos_weight": 2}, "pos_weight is for one label"),
    "precision": ({"precision": "bf16"}, "predicts several labels, and precision"),
    "no list": ({"model": "test_several_labels:OneLabel"}, "loss is a list, but OneLabel predicts"),
}


class OneLabel(SharedBottom.__mro__[2]):
    """Of FuxiCTR's BaseModel."""


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_for_one_label_is_refused(changes, message, folder):
    with pytest.raises(SettingsError, match=message):
        settings_of(folder, **changes)


def test_a_model_of_one_label_says_which_of_two(folder):
    model = {"model": f"{__name__}:OneLabel", "loss": "mse_loss"}
    assert "OneLabel predicts click, the first of 2 labels" in settings_of(folder, **model).warnings


def test_several_labels_are_for_one_process(folder):
    with pytest.raises(SettingsError, match="SharedBottom has its own evaluate"):
        check_workers(settings_of(folder), 2)


def test_encoded_data_with_another_number_of_labels_are_told(folder):
    settings = settings_of(folder)
    params = MappingProxyType(dict(settings.params) | {"task": ["regression"] * 3, "num_tasks": 3})
    with pytest.raises(
        SettingsError, match=r"the data have 2 labels \(click, buy\) for num_tasks=3"
    ):
        run_experiment(type(settings)("both", SharedBottom, params, folder))
