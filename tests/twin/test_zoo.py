"""Every twin of the zoo with every sample selection and fusion, and what belongs to a twin."""

import re

import pytest
import torch
from helpers import ALL_KINDS, make_feature_map, random_batch
from tiny_twins import build

import model_zoo
from fuxictr_tf4ctr.settings.reading import list_expids
from fuxictr_tf4ctr.settings.resources import resource_root
from fuxictr_tf4ctr.twin import FUSIONS, SAMPLE_SELECTIONS

TWINS = [name for name in model_zoo.__all__ if name != "TF4CTR_Pair"]
OFF = {"twin_focus": False, "sample_selection": "none"}


@pytest.fixture(scope="module")
def expids():
    return list_expids(resource_root() / "config")


@pytest.mark.parametrize("selection", SAMPLE_SELECTIONS)
@pytest.mark.parametrize("name", TWINS)
def test_every_fusion_trains_saves_loads_and_predicts_alike(name, selection, tmp_path):
    batch = random_batch(make_feature_map(ALL_KINDS))
    for fusion in FUSIONS:
        options = {"sample_selection": selection, "fusion": fusion}
        options |= {"batch_norm": True, "net_dropout": 0.2}
        model = build(name, **options).train()
        model._max_gradient_norm = 10.0
        before = {key: value.clone() for key, value in model.state_dict().items()}
        for _ in range(2):
            assert torch.isfinite(model.train_step(batch)), fusion
        assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
        outputs = model.eval()(batch)
        for key in ("y_pred", "logit", "y_simple", "y_complex", "logit_simple", "logit_complex"):
            assert outputs[key].shape == (6, 1), (fusion, key)
        model.save_weights(tmp_path / "twin.model")
        again = build(name, **options)
        again.load_weights(tmp_path / "twin.model")
        assert torch.equal(again.eval()(batch)["y_pred"], outputs["y_pred"]), fusion


@pytest.mark.parametrize("name", TWINS)
def test_every_baseline_trains_and_has_no_unused_parameter(name):
    model = build(name, **OFF, **getattr(model_zoo, name).baseline).train()
    model._max_gradient_norm = 10.0
    batch = random_batch(model.feature_map)
    assert torch.isfinite(model.train_step(batch))
    # Padding rows, or a ReLU that no sample of six wakes, leave zeros; no gradient at all is a bug.
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.parametrize("name", TWINS)
def test_what_belongs_to_a_twin(name, expids):
    model_class = getattr(model_zoo, name)
    assert re.search(r"\d{4}\.\d{5}|SIGIR 2023", model_class.paper)
    assert model_class.__doc__.startswith(f"{name.replace('_', '-')}: ")
    data = "kkbox" if name == "TF4CTR_DIN" else "demo"  # DIN needs a sequence
    baseline = expids[f"{model_class.base_model}_{data}"]
    expected = OFF | dict(model_class.baseline)
    assert {key: baseline[key] for key in expected} == expected
    assert baseline["dataset_id"] == expids[f"{name}_{data}"]["dataset_id"]


def test_the_zoo_is_complete():
    bases = "WideDeep DeepFM xDeepFM DCN DCNv2 AutoInt AFN GDCN MaskNet PNN FiBiNET NFM DESTINE"
    bases += " FinalMLP FinalNet FCN QNN EulerNet DIN Pair"
    expected = ["TF4CTR", *(f"TF4CTR_{base}" for base in bases.split())]
    assert sorted(expected) == sorted(model_zoo.__all__)
