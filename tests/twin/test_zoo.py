"""Every twin of the zoo with the sample selections and fusions, and what belongs to a twin."""

import itertools
import re

import pytest
import torch
from helpers import ALL_KINDS, make_feature_map, random_batch
from tiny_twins import build

import model_zoo
from fuxictr_tf4ctr.settings.reading import list_expids
from fuxictr_tf4ctr.settings.sections import resource_root
from fuxictr_tf4ctr.twin import FUSIONS, SAMPLE_SELECTIONS

SELECTIONS = list(SAMPLE_SELECTIONS)
TWINS = [name for name in model_zoo.__all__ if name != "TF4CTR_Pair"]
OFF = {"twin_focus": False, "sample_selection": "none"}


@pytest.fixture(scope="module")
def expids():
    return list_expids(resource_root() / "config")


# Not all 400 combinations, but each twin with each selection and each fusion, and each of these two
# with each other: every fusion once per twin, the selection moved on by one from twin to twin.
ROTATED = [
    (name, SELECTIONS[(turn + number) % len(SELECTIONS)], fusion)
    for turn, name in enumerate(TWINS)
    for number, fusion in enumerate(FUSIONS)
]


def test_every_pair_of_parts_is_among_the_rotated():
    for part, other in itertools.combinations(range(3), 2):
        pairs = {(row[part], row[other]) for row in ROTATED}
        parts = (TWINS, SELECTIONS, list(FUSIONS))
        assert pairs == set(itertools.product(parts[part], parts[other]))


@pytest.mark.parametrize(("name", "selection", "fusion"), ROTATED)
def test_a_twin_trains_saves_loads_and_predicts_alike(name, selection, fusion, tmp_path):
    batch = random_batch(make_feature_map(ALL_KINDS))
    options = {"sample_selection": selection, "fusion": fusion}
    options |= {"batch_norm": True, "net_dropout": 0.2}
    model = build(name, **options).train()
    model._max_gradient_norm = 10.0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(2):
        assert torch.isfinite(model.train_step(batch))
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    outputs = model.eval()(batch)
    for key in ("y_pred", "logit", "y_simple", "y_complex", "logit_simple", "logit_complex"):
        assert outputs[key].shape == (6, 1), key
    model.save_weights(tmp_path / "twin.model")
    again = build(name, **options)
    again.load_weights(tmp_path / "twin.model")
    assert torch.equal(again.eval()(batch)["y_pred"], outputs["y_pred"])


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
