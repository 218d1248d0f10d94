"""TF4CTR_Pair: any two FuxiCTR models, wherever they come from and whatever they read."""

import copy

import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from helpers import FEATURES, make_feature_map, random_batch
from torch import nn

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin import FUSIONS
from fuxictr_tf4ctr.twin.pair import LogitModel, logit_of


class Plain(BaseModel):
    """A model as FuxiCTR's users write them; ``ending`` is how it comes to its probability."""

    def __init__(
        self,
        feature_map,
        learning_rate=1e-3,
        embedding_dim=4,
        ending="called",
        units=(5,),
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self.ending, self.learning_rate = ending, learning_rate
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(
            embedding_dim * feature_map.num_fields,
            hidden_units=list(units),
            output_dim=1,
            output_activation=self.output_activation if ending == "in the MLP" else None,
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        nn.init.constant_(self.mlp.mlp[-1 if ending != "in the MLP" else -2].bias, 0.25)
        self.model_to_device()

    def forward(self, inputs):
        y = self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))
        if self.ending == "called":
            y = self.output_activation(y)
        elif self.ending == "by hand":
            y = torch.sigmoid(y)
        return {"y_pred": y}


class OwnLabels(Plain):
    """A model that reads its labels elsewhere, as those with a loader of their own do."""

    def get_labels(self, inputs):
        return super().get_labels(inputs)


PLAIN = f"{__name__}:Plain"


def build(features=FEATURES, **params):
    torch.manual_seed(0)
    params = {"simple_model": PLAIN, "complex_model": PLAIN, "embedding_dim": 4} | params
    return model_zoo.TF4CTR_Pair(make_feature_map(features), **params)


def train(model, batch, steps=1):
    model._max_gradient_norm = 10.0
    model.train()
    return [model.train_step(batch).item() for _ in range(steps)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_trains_and_saves(fusion, tmp_path):
    model = build(fusion=fusion, learning_rate=0.05)
    batch = random_batch(model.feature_map)
    losses = train(model, batch, steps=30)
    assert losses[-1] < losses[0]
    outputs = model.eval()(batch)
    assert set(outputs) >= {"y_pred", "logit", "logit_simple", "logit_complex"}
    model.save_weights(tmp_path / "pair.model")
    again = build(fusion=fusion)
    again.load_weights(tmp_path / "pair.model")
    assert torch.equal(again.eval()(batch)["y_pred"], outputs["y_pred"])


@pytest.mark.parametrize("ending", ["called", "in the MLP", "by hand"])
def test_logits_are_those_behind_the_models_predictions(ending):
    model = build(complex_ending=ending).eval()
    batch = random_batch(model.feature_map)
    outputs = model(batch)
    y_pred = model.complex_model.model(batch)["y_pred"]
    torch.testing.assert_close(outputs["y_complex"], y_pred)
    assert isinstance(model.fusion.fc_simple, nn.Identity)
    # Saturated: only a model that ends by hand loses what lies beyond its probability's resolution.
    with torch.no_grad():
        last = model.complex_model.model.mlp.mlp
        next(m for m in reversed(last) if isinstance(m, nn.Linear)).bias.fill_(50.0)
    logit = model(batch)["logit_complex"]
    assert (logit > 49).all() if ending != "by hand" else (logit < 17).all()
    assert torch.isfinite(logit).all()


def test_logit_of_inverts_the_sigmoid():
    z = torch.linspace(-80, 8, 23)
    torch.testing.assert_close(logit_of(z.sigmoid()), z, rtol=1e-4, atol=1e-3)
    p = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    logits = logit_of(p)
    logits.sum().backward()
    assert torch.isfinite(logits).all() and torch.isfinite(p.grad).all()


def test_a_models_own_logit_is_preferred():
    twin = model_zoo.TF4CTR_DCNv2(make_feature_map(), embedding_dim=4).eval()
    batch = random_batch(twin.feature_map)
    torch.testing.assert_close(LogitModel(twin)(batch), twin(batch)["logit"])


def test_parameters_go_to_both_models_or_to_one():
    model = build(simple_units=[3], complex_embedding_dim=6, learning_rate=0.5, net_regularizer=0.1)
    simple, complex_ = model.simple_model.model, model.complex_model.model
    assert [m.mlp.mlp[0].out_features for m in (simple, complex_)] == [3, 5]
    assert [m.mlp.mlp[0].in_features for m in (simple, complex_)] == [12, 18]
    assert simple.learning_rate == complex_.learning_rate == 0.5
    assert {"units", "simple_units", "embedding_dim"} <= {
        *model.parameter_names({"simple_model": PLAIN}),
        "simple_units",
    }


def test_regularization_covers_both_models_once():
    model = build(embedding_regularizer=0.1, net_regularizer=0.05)
    named = dict(model.named_parameters())
    tables = [p for name, p in named.items() if "embedding_layers" in name]
    others = [p for name, p in named.items() if "embedding_layers" not in name]
    assert len(tables) == 2 * len(FEATURES)
    expected = 0.05 * sum(p.square().sum() for p in tables)
    expected = expected + 0.025 * sum(p.square().sum() for p in others)
    torch.testing.assert_close(model.regularization_loss(), expected)


def test_models_keep_their_own_initialisation():
    model = build()
    for stream in (model.simple_model, model.complex_model):
        assert stream.model.mlp.mlp[-1].bias.item() == 0.25


def test_a_pair_can_be_copied():
    model = build().eval()
    twin = copy.deepcopy(model)
    batch = random_batch(model.feature_map)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
    outputs = twin(batch)
    torch.testing.assert_close(outputs["y_complex"], twin.complex_model.model(batch)["y_pred"])
    assert not torch.equal(outputs["y_pred"], model(batch)["y_pred"])


def test_twins_can_be_paired():
    model = build(
        complex_model="TF4CTR_DCNv2",
        complex_sample_selection="none",
        complex_complex_hidden_units=[6],
        complex_fusion="CF",
    )
    twin = model.complex_model.model
    assert twin.twin_focus is None and twin.complex_encoder.output_dim == 6
    assert train(model, random_batch(model.feature_map))


def test_regression_without_twin_focus():
    model = build(task="regression", loss="mse_loss", twin_focus=False, complex_ending="by hand")
    batch = random_batch(model.feature_map)
    outputs = model.eval()(batch)
    assert torch.equal(outputs["y_complex"], model.complex_model.model(batch)["y_pred"])
    assert train(model, batch)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"simple_model": None}, "simple_model is missing"),
        ({"simple_model": "TF4CTR_DCNv3"}, "simple_model: unknown model .* 'TF4CTR_DCNv2'"),
        ({"complex_ebmedding_dim": 4}, "did you mean 'complex_embedding_dim'"),
        ({"complex_model": "TF4CTR", "complex_fusion": "WFS"}, "complex_model: unknown fusion"),
        ({"complex_model": "TF4CTR", "complex_simple_unit": 1}, "complex_model: unknown option"),
        ({"c": 2}, "c=2 must be"),
        ({"complex_model": f"{__name__}:OwnLabels"}, "cannot be paired: OwnLabels reads batches"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(SettingsError, match=message):
        build(**params)


ITEM = {"type": "categorical", "source": "item", "padding_idx": 0, "vocab_size": 9}
LONG_SEQUENCE = {
    "user_index": {"type": "meta"},
    "seq_len": {"type": "meta"},
    "age": FEATURES["user"],
    "item": ITEM,
    "cate": ITEM | {"vocab_size": 5},
}


def long_batch(rows=6, length=4):
    """Draw a batch as the loader of FuxiCTR's long-sequence models gives it."""
    generator = torch.Generator().manual_seed(0)
    items = rows * (length + 1)
    mask = torch.arange(length).expand(rows, -1) <= torch.arange(rows).unsqueeze(1)
    batch = {"age": torch.randint(0, 7, (rows,), generator=generator)}
    batch |= {"user_index": torch.arange(rows), "seq_len": mask.sum(1)}
    batch["label"] = (torch.arange(rows) % 2).float()
    item = {
        name: torch.randint(0, LONG_SEQUENCE[name]["vocab_size"], (items,), generator=generator)
        for name in ("item", "cate")
    }
    return batch, item, mask.float()


def test_long_sequence_models_train_on_their_own_batches():
    names = {"simple_model": "LongCTR.DCNv2", "complex_model": "LongCTR.DIN"}
    model = build(
        LONG_SEQUENCE,
        **names,
        embedding_dim=8,  # the feature map's, by which these models size their input
        simple_parallel_dnn_hidden_units=[4],
        complex_dnn_hidden_units=[4],
        learning_rate=0.02,
    )
    losses = train(model, long_batch(), steps=20)
    assert losses[-1] < losses[0]
    model.feature_map.group_id = "user_index"
    assert model.get_group_id(long_batch()).tolist() == list(range(6))
    assert model.get_labels(long_batch()).shape == (6, 1)
    assert len(model.get_inputs(long_batch())) == 3
    logs = model.evaluate([long_batch()], metrics=["AUC", "logloss"])
    assert set(logs) == {"AUC", "logloss"}
