"""The twins of the interaction models train as they come; without its method, PNN's is PNN."""

import itertools

import pytest
import torch
from helpers import ALL_KINDS, make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.twin import SAMPLE_SELECTIONS

TWINS = ("AutoInt", "AFN", "GDCN", "MaskNet", "PNN", "FiBiNET", "NFM", "DESTINE")


@pytest.mark.parametrize("selection", SAMPLE_SELECTIONS)
@pytest.mark.parametrize("name", TWINS)
def test_twin_trains_with_every_feature_type_and_sample_selection(name, selection):
    torch.manual_seed(0)
    twin = getattr(model_zoo, f"TF4CTR_{name}")
    model = twin(make_feature_map(ALL_KINDS), embedding_dim=4, sample_selection=selection)
    model._max_gradient_norm = 10.0
    batch = random_batch(model.feature_map)
    before = model.eval()(batch)["y_pred"].detach()
    assert torch.isfinite(model.train().train_step(batch))
    after = model.eval()(batch)["y_pred"].detach()
    assert before.shape == (6, 1)
    assert not torch.equal(before, after)


def test_pnn_without_its_twin_is_an_mlp_over_embeddings_and_products():
    torch.manual_seed(0)
    model = model_zoo.TF4CTR_PNN(
        make_feature_map(),
        twin_focus=False,
        sample_selection="none",
        complex_hidden_units=[6, 3],
        **model_zoo.TF4CTR_PNN.baseline,
    ).eval()
    batch = random_batch(model.feature_map)
    embeddings = model.sample_selection.embedding(model.get_inputs(batch))
    fields = embeddings.view(6, 3, -1)
    pairs = itertools.combinations(range(3), 2)
    products = [(fields[:, i] * fields[:, j]).sum(dim=1) for i, j in pairs]
    hidden = model.complex_encoder.mlp(torch.cat([embeddings, torch.stack(products, 1)], dim=1))
    expected = torch.sigmoid(model.fusion.fc(hidden))
    torch.testing.assert_close(model(batch)["y_pred"], expected)
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert parts == {"sample_selection", "complex_encoder", "fusion"}
    assert {name for name, _ in model.fusion.named_parameters()} == {"fc.weight", "fc.bias"}
