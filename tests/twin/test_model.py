"""TwinModel: FuxiCTR's contracts, its loss, what its parts see, and bad parameters."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ALL_KINDS, FEATURES, make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin import SAMPLE_SELECTIONS, twin_focus_loss

FIRST_TWINS = (
    "TF4CTR",
    "TF4CTR_WideDeep",
    "TF4CTR_DeepFM",
    "TF4CTR_xDeepFM",
    "TF4CTR_DCN",
    "TF4CTR_DCNv2",
)
SMALL = {"embedding_dim": 8, "complex_hidden_units": [6, 4]}


def build(name, features=FEATURES, **params):
    torch.manual_seed(0)
    return getattr(model_zoo, name)(make_feature_map(features), **(SMALL | params))


@pytest.mark.parametrize("selection", SAMPLE_SELECTIONS)
@pytest.mark.parametrize("name", FIRST_TWINS)
def test_a_sample_is_predicted_alike_in_any_batch(name, selection):
    """The published DeepFM twin's predictions depended on their batch; batches of one work too."""
    model = build(name, sample_selection=selection).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    batch = random_batch(model.feature_map)
    together = model(batch)["y_pred"]
    alone = [model({k: v[i : i + 1] for k, v in batch.items()})["y_pred"] for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_loss_is_bce_plus_twin_focus_plus_fuxictrs_regularization():
    model = build("TF4CTR_DCNv2", c=0.7, gamma=2, alpha=0.3, embedding_regularizer=0.1).eval()
    model._net_regularizer = 0.05
    batch = random_batch(model.feature_map)
    outputs, y = model(batch), model.get_labels(batch)
    expected = F.binary_cross_entropy(outputs["y_pred"], y) + twin_focus_loss(
        outputs["logit_simple"], outputs["logit_complex"], y, c=0.7, gamma=2, alpha=0.3
    )
    torch.testing.assert_close(model.add_loss(outputs, y), expected)
    tables = [p for n, p in model.named_parameters() if "embedding_layers" in n]
    others = [p for n, p in model.named_parameters() if "embedding_layers" not in n]
    assert len(tables) == 2 * len(FEATURES)
    norm = 0.05 * sum(p.square().sum() for p in tables)
    norm = norm + 0.025 * sum(p.square().sum() for p in others)
    torch.testing.assert_close(model.compute_loss(outputs, y), expected + norm)


def test_switched_off_the_twin_is_its_base_model():
    off = {"twin_focus": False, "sample_selection": "none"}
    model = build("TF4CTR_DCNv2", fusion="CF", **off).eval()
    outputs = model(random_batch(model.feature_map))
    assert set(outputs) == {"y_pred", "logit"}
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"sample_selection", "simple_encoder", "complex_encoder", "fusion"}
    assert not any(n.startswith("fusion.fc_") for n, _ in model.named_parameters())
    y = torch.ones(6, 1)
    expected = F.binary_cross_entropy(outputs["y_pred"], y)
    torch.testing.assert_close(model.add_loss(outputs, y), expected)


def test_fm_adds_all_pairwise_products():
    model = build("TF4CTR_DeepFM", sample_selection="none").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    batch = random_batch(model.feature_map)
    inputs = model.get_inputs(batch)
    v_s, _ = model.sample_selection(inputs)
    fields = v_s.view(6, 3, 8)
    products = sum(
        (fields[:, i] * fields[:, j]).sum(1) for i, j in itertools.combinations(range(3), 2)
    )
    first_order = model.simple_encoder.linear(inputs).squeeze(1)
    logit = model.fusion.fc_simple(torch.stack([products + first_order], dim=1))
    torch.testing.assert_close(model(batch)["logit_simple"], logit)


def test_widedeep_takes_the_lr_output_itself_under_wsf_only():
    assert isinstance(build("TF4CTR_WideDeep", fusion="WSF").fusion.fc_simple, torch.nn.Identity)
    assert isinstance(build("TF4CTR_WideDeep", fusion="VF").fusion.fc_simple, torch.nn.Linear)
    model = build("TF4CTR_WideDeep", fusion="VF", simple_head=False)
    assert isinstance(model.fusion.fc_simple, torch.nn.Identity)


def test_lr_handles_shared_and_pretrained_features():
    model = build("TF4CTR_WideDeep", ALL_KINDS)
    weights = model.simple_encoder.linear.embedding_layer.embedding_layer.embedding_layers
    assert "image" not in weights
    assert weights["bought"].weight.abs().max() < 1e-2  # FuxiCTR leaves it at N(0, 1)
    assert weights["bought"].weight[0] == 0


def test_pretrained_tables(tmp_path):
    keys = np.array(["a", "b", "c"])
    np.savez(tmp_path / "pretrained_item.npz", key=keys, value=np.eye(3, 4, dtype=np.float32))
    vocab = {"user": {"u": 1}, "item": {"a": 1, "b": 2, "c": 3}, "city": {"x": 1}}
    (tmp_path / "feature_vocab.json").write_text(__import__("json").dumps(vocab))
    item = FEATURES["item"] | {
        "pretrained_emb": "pretrained_item.npz",
        "pretrain_dim": 4,
        "pretrain_usage": "sum",
        "freeze_emb": True,
        "oov_idx": 4,
    }
    feature_map = make_feature_map(FEATURES | {"item": item}, data_dir=tmp_path)
    model = model_zoo.TF4CTR_DCNv2(feature_map, **SMALL)
    model._max_gradient_norm = 10.0
    assert torch.isfinite(model.train_step(random_batch(feature_map)))


def test_another_encoder_drops_the_default_ones_options():
    model = build("TF4CTR_DCNv2", simple_encoder="cross_net_mix", simple_low_rank=4)
    assert type(model.simple_encoder).__name__ == "CrossNetMix"
    model = build("TF4CTR", simple_encoder="lr")
    assert type(model.simple_encoder).__name__ == "LR"
    assert model.sample_selection.simple_embedding is None


BAD = {
    "c outside": ({"c": 1.5}, "c=1.5"),
    "gamma": ({"gamma": -1}, "gamma=-1"),
    "endless gamma": ({"gamma": float("inf")}, "gamma=inf must be a number >= 0"),
    "alpha": ({"alpha": "a"}, "alpha='a'"),
    "odd dim with SER": ({"embedding_dim": 7}, "embedding_dim=7 must be even"),
    "dim": ({"embedding_dim": 0}, "embedding_dim=0"),
    "selection": ({"sample_selection": "SRE"}, "did you mean 'SER'"),
    "fusion": ({"fusion": "WFS"}, "'WSF'"),
    "encoder": ({"simple_encoder": "cros_net"}, "did you mean 'cross_net'"),
    "option": ({"simple_num_layer": 2}, "did you mean 'simple_num_layers'"),
    "option value": ({"simple_num_layers": 0}, "simple_num_layers=0 must be a whole number >= 1"),
    "empty units": ({"complex_hidden_units": []}, "complex_hidden_units=.. must be a non-empty"),
    "units": ({"complex_hidden_units": [4, -1]}, r"complex_hidden_units\[1\]=-1 must be"),
    "dropout": ({"net_dropout": 1.5}, "net_dropout=1.5 must be a rate"),
    "flag": ({"twin_focus": "no"}, "twin_focus='no' must be true or false"),
    "regression": ({"task": "regression"}, "set twin_focus: false"),
    "head": ({"simple_head": False}, "simple_head: false needs a simple encoder of width 1"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD.values(), ids=BAD)
def test_bad_parameters(wrong, message):
    with pytest.raises(SettingsError, match=message):
        build("TF4CTR_DCNv2", **wrong)


def test_all_problems_come_in_one_message():
    with pytest.raises(SettingsError) as error:
        build("TF4CTR_DCNv2", c=2, gamma=-1, fusion="none", simple_num_layers="x")
    assert len(str(error.value).splitlines()) == 4


def test_encoders_that_stack_fields_refuse_unequal_dims():
    features = FEATURES | {"user": FEATURES["user"] | {"embedding_dim": 4}}
    assert build("TF4CTR_DCNv2", features, sample_selection="none")
    with pytest.raises(SettingsError, match="user: 4, item: 8"):
        build("TF4CTR_xDeepFM", features, sample_selection="none")(
            random_batch(make_feature_map(features))
        )


def test_regression_without_twin_focus():
    model = build("TF4CTR_DCNv2", task="regression", loss="mse_loss", twin_focus=False)
    model._max_gradient_norm = 10.0
    assert torch.isfinite(model.train_step(random_batch(model.feature_map)))
