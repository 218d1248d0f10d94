"""The authors' golden vectors: outputs, losses and gradients of every recorded case."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SHARED, load_feature_map, make_feature_map, on_device

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.settings.published import from_published, twin_names

FOLDER = SHARED / "reference" / "golden_tf4ctr"
CASES = sorted(FOLDER.glob("*.npz"))
if not CASES:
    pytestmark = pytest.mark.skip("no golden vectors beside the project")


@pytest.fixture(scope="module")
def feature_map():
    return load_feature_map(FOLDER / "feature_map.json")


def read(path: Path):
    case = np.load(path, allow_pickle=False)
    state = {k.removeprefix("state/"): case[k] for k in case.files if k.startswith("state/")}
    return case, json.loads(str(case["config"])), state


def batch_of(case, feature_map):
    X, y = torch.from_numpy(case["X"]), torch.from_numpy(case["y"]).float()
    batch = {name: X[:, i] for i, name in enumerate(feature_map.features)}
    return batch | {"label": y}


def assert_close(ours, recorded, rtol: float, atol: float = 0, what: str = ""):
    """On a GPU, whose sums have another order, to ten times the tolerance."""
    off, ours = 10 if ours.is_cuda else 1, ours.detach().cpu()
    np.testing.assert_allclose(ours, recorded, rtol=off * rtol, atol=off * atol, err_msg=what)


def assert_outputs(case, mode: str, outputs: dict):
    assert_close(outputs["y_pred"], case[f"{mode}/y_pred"], rtol=1e-5)
    for ours, theirs in (("simple", ("y_sim", "y_easy")), ("complex", ("y_com", "y_hard"))):
        recorded = next(case[f"{mode}/{name}"] for name in theirs if f"{mode}/{name}" in case)
        assert_close(outputs[f"logit_{ours}"], recorded, rtol=1e-4, atol=1e-6)
        assert_close(outputs[f"y_{ours}"], torch.from_numpy(recorded).sigmoid(), rtol=1e-5)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_case(path, feature_map, monkeypatch, device):
    case, config, state = read(path)
    # VF was recorded with the noise-free softmax in place of the Gumbel sample.
    monkeypatch.setattr(F, "gumbel_softmax", lambda v, tau, dim: F.softmax(v / tau, dim))
    model = on_device(from_published(config, feature_map, state), device)
    batch = batch_of(case, feature_map)

    assert_outputs(case, "eval", model.eval()(batch))
    outputs = model.train()(batch)
    assert_outputs(case, "train", outputs)

    y_true = model.get_labels(batch)
    task_loss = model.add_loss(outputs, y_true)
    total_loss = model.compute_loss(outputs, y_true)
    assert_close(task_loss, case["loss/task"], rtol=1e-6)
    assert_close(total_loss, case["loss/total"], rtol=1e-6)

    total_loss.backward()
    names = twin_names(config, list(state))
    parameters = dict(model.named_parameters())
    recorded = {k.removeprefix("grad/"): case[k] for k in case.files if k.startswith("grad/")}
    assert {names[name] for name in recorded} == set(parameters)
    for name, grad in recorded.items():
        scale = np.abs(grad).max()
        assert_close(parameters[names[name]].grad, grad, 1e-4, 1e-4 * scale + 1e-9, name)


def test_weights_that_do_not_fit_are_named(feature_map):
    _, config, state = read(FOLDER / "TF4CTR_SER_WSF.npz")
    del state["DFM.w"]
    state["DFM.unheard_of"] = np.zeros(1)
    state["DFM.fc1.bias"] = np.zeros(3)
    with pytest.raises(DataError) as error:
        from_published(config, feature_map, state)
    assert "missing: fusion.weight" in str(error.value)
    assert "left over: DFM.unheard_of" in str(error.value)
    assert "fusion.fc_simple.bias: shape (3,), expected (1,)" in str(error.value)


def test_unknown_published_model(feature_map):
    with pytest.raises(SettingsError, match="TF4CTRv2_DeepFM"):
        from_published({"model": "TF4CTRv2_DeepMF"}, feature_map)


def test_deepfm_weights_load_with_a_warning(feature_map, caplog):
    config = {
        "model": "TF4CTRv2_DeepFM",
        "SSM": "SER",
        "DFM": "WSF",
        "hard_hidden_units": [8],
        "embedding_dim": 8,
    }
    model = from_published(config, feature_map)
    theirs = {}
    for name, value in model.state_dict().items():
        name = name.replace("simple_encoder.linear.", "easy_encoder.lr_layer.")
        name = name.replace("complex_encoder.mlp.mlp.", "hard_encoder.mlp.")
        name = name.replace("fusion.fc_simple", "DFM.fc1").replace("fusion.fc_complex", "DFM.fc2")
        name = name.replace("fusion.weight", "DFM.w")
        name = name.replace("sample_selection.simple_embedding.layer", "SSM.easy_sample_embedding")
        name = name.replace("sample_selection.complex_embedding.layer", "SSM.hard_sample_embedding")
        theirs[name] = value
    loaded = from_published(config, feature_map, theirs)
    assert "second-order term" in caplog.text
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


# Vocabulary sizes in the authors' logs, in the order of their columns.
VOCABULARIES = {
    "Frappe_x1": [942, 4084, 9, 9, 4, 5, 4, 11, 82, 233],
    "Movielenslatest_x1": [16362, 22575, 49659],
    "ML-1M": [6042, 4, 9, 23, 3548],
    "KKBox_x1": [29506, 172297, 10, 22, 14, 23, 4, 7, 12, 483, 25369, 97, 9],
}


def mlp_gate(width: int) -> int:
    """Parameters of GM's gate as built here: width -> width // 4 with batch norm -> 1."""
    hidden = width // 4
    return width * hidden + hidden + 2 * hidden + hidden + 1


# Eight published GM runs have another number of gate parameters: earlier forms of the gate.
EARLIER_GATES = {
    "TF4CTRv2_Frappe_004_d44672f7": lambda w: 2 * mlp_gate(w),
    "TF4CTRv2_Movielens_106_785a38b9": lambda w: w * w + w,
} | dict.fromkeys(
    [
        "TF4CTRv2_ML-1M_076_24bf68df",
        "TF4CTRv2_ML-1M_061_699f1f75",
        "TF4CTRv2_ML-1M_046_3ee5c795",
        "TF4CTRv2_ML-1M_032_0aff4011",
        "TF4CTRv2_ML-1M_064_e11c5642",
        "TF4CTRv2_ML-1M_080_6c918493",
    ],
    lambda w: 2 * (w * w + w),
)


def test_parameter_counts_equal_the_published_ones(shared):
    counted = 0
    for run in csv.DictReader((shared / "reference" / "author_runs.csv").open()):
        sizes = VOCABULARIES.get(run["dataset"])
        if sizes is None:
            continue
        feature = {"type": "categorical", "source": "", "padding_idx": 0}
        columns = {f"f{i}": feature | {"vocab_size": size} for i, size in enumerate(sizes)}
        config = {
            "model": run["model"],
            "SSM": None if run["sample_selection"] in ("", "none") else run["sample_selection"],
            "DFM": None if run["fusion"] in ("", "none") else run["fusion"],
            "c": float(run["c"]),
            "easy_hidden_units": json.loads(run["simple_hidden_units"]),
            "hard_hidden_units": json.loads(run["complex_hidden_units"]),
            "embedding_dim": int(run["embedding_dim"]),
            "batch_norm": run["batch_norm"] == "True",
        }
        model = from_published(config, make_feature_map(columns))
        parameters = sum(p.numel() for p in model.parameters())
        if run["run"] in EARLIER_GATES:
            width = len(sizes) * config["embedding_dim"]
            parameters += EARLIER_GATES[run["run"]](width) - mlp_gate(width)
        assert parameters == int(run["parameters"]), run["run"]
        counted += 1
    assert counted == 71
