"""docs/reference_twin.py, the page a reader begins with, is the product's twin."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from helpers import FEATURES, make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.twin import SAMPLE_SELECTIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference_twin.py"
UNITS = {"simple": [6], "complex": [8, 5]}
FOCUS = {"c": 0.7, "gamma": 2.0, "alpha": 0.3}


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference_twin", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both(reference, selection, fusion):
    """The product's twin and the page's, with its weights: both hold them in one order."""
    torch.manual_seed(0)
    ours = model_zoo.TF4CTR(
        make_feature_map(), sample_selection=selection, fusion=fusion, embedding_dim=4, **FOCUS,
        simple_hidden_units=UNITS["simple"], complex_hidden_units=UNITS["complex"],
    )  # fmt: skip
    sizes = [spec["vocab_size"] for spec in FEATURES.values()]
    page = reference.Twin(sizes, 4, selection, fusion, UNITS["simple"], UNITS["complex"])
    with torch.no_grad():
        for mine, theirs in zip(page.parameters(), ours.parameters(), strict=True):
            mine.copy_(theirs.normal_(std=0.5))
    return ours, page


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("selection", "fusion"),
    list(itertools.product(SAMPLE_SELECTIONS, ("sum", "WSF", "VF", "CF", "MoEF"))),
)
def test_outputs_losses_and_gradients_are_the_products(reference, selection, fusion, training):
    ours, page = both(reference, selection, fusion)
    batch = random_batch(ours.feature_map, rows=30)
    ids = torch.stack([batch[name] for name in FEATURES], dim=1)
    y = batch["label"].unsqueeze(1)
    torch.manual_seed(1)  # the voting draws noise in training
    outputs = ours.train(training)(batch)
    loss = ours.add_loss(outputs, y)
    torch.manual_seed(1)
    logits = page.train(training)(ids)
    torch.manual_seed(1)
    page_loss = page.loss(ids, y, **FOCUS)
    for logit, name in zip(logits, ("logit", "logit_simple", "logit_complex"), strict=True):
        torch.testing.assert_close(logit, outputs[name])
    torch.testing.assert_close(page_loss, loss)
    expected = torch.autograd.grad(loss, list(ours.parameters()), allow_unused=True)
    found = torch.autograd.grad(page_loss, list(page.parameters()), allow_unused=True)
    assert any(gradient is not None for gradient in expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_page_is_short_and_needs_nothing_but_pytorch():
    lines = PAGE.read_text().splitlines()
    assert len(lines) <= 150
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert all("torch" in line for line in imports)
