"""FuxiCTR's golden vectors: is a twin without its method the base model it claims to be?"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from fuxictr.features import FeatureMap
from helpers import SHARED, load_feature_map, on_device
from torch import Tensor

from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.twin import TwinModel

CPU = torch.device("cpu")
FOLDER = SHARED / "reference" / "golden_fuxictr"

Rules = Sequence[tuple[str, str]]
SHARED_EMBEDDING = (r"embedding_layer\.", "sample_selection.embedding.layer.")
# What a recorded configuration shares with a twin's parameters, by the same names.
COMMON = (
    "embedding_dim",
    "embedding_regularizer",
    "net_regularizer",
    "net_dropout",
    "batch_norm",
)


@dataclass(frozen=True)
class GoldenCase:
    """One recorded base model.

    Attributes:
        feature_map: The columns of the recorded batch.
        config: FuxiCTR's parameters of the model.
        batch: The batch by column name, label included.
        arrays: What was recorded: eval/y_pred, train/y_pred, loss/task, loss/total.
        state: Weights by FuxiCTR's parameter names.
        grads: Gradients of the total loss by the same names.
    """

    feature_map: FeatureMap
    config: Mapping[str, Any]
    batch: Mapping[str, Tensor]
    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Tensor]
    grads: Mapping[str, np.ndarray]


def read_case(name: str) -> GoldenCase:
    """Read a recorded case by its file name without suffix; skip the test where it is absent."""
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no golden vectors: {path.name} is not in the reference folder")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    feature_map = load_feature_map(FOLDER / "feature_map.json")
    X = torch.from_numpy(arrays["X"])
    batch = {column: X[:, i] for i, column in enumerate(feature_map.features)}
    batch["label"] = torch.from_numpy(arrays["y"]).float()
    return GoldenCase(
        feature_map,
        json.loads(str(arrays["config"])),
        batch,
        arrays,
        {key: torch.from_numpy(value) for key, value in section(arrays, "state/").items()},
        section(arrays, "grad/"),
    )


def section(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Select the arrays under a prefix and drop it from their names."""
    return {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}


def rename(names: Iterable[str], rules: Rules) -> dict[str, str]:
    """Map each name by the first (regex, replacement) whose regex matches its beginning."""
    mapped = {}
    for name in names:
        rule = next((rule for rule in rules if re.match(rule[0], name)), None)
        assert rule, f"no rule renames {name}"
        mapped[name] = re.sub(f"^(?:{rule[0]})", rule[1], name)
    return mapped


def build_base_model(twin: str, case: GoldenCase, **options: Any) -> TwinModel:
    """Build a twin as its base model: ``baseline``, the case's common parameters, ``options``."""
    model_class = find_model(twin)
    common = {key: case.config[key] for key in COMMON if key in case.config}
    params = {"twin_focus": False, "sample_selection": "none", **model_class.baseline, **common}
    return model_class(case.feature_map, **(params | options))


def assert_base_model(
    name: str,
    twin: str,
    options: Mapping[str, Any],
    rules: Rules,
    device: torch.device = CPU,
) -> None:
    """Assert that a twin, as its base model, computes what FuxiCTR's model of a case computed.

    Compared are the sets of parameters, the predictions in eval and in train mode, the loss
    without and with regularization, and every gradient.

    Args:
        name: File name of the case, without suffix.
        twin: Name of the twin.
        options: The twin's parameters that stand for those of the recorded configuration.
        rules: From FuxiCTR's parameter names to ours, as :func:`rename` takes them; the rule for
            the shared embedding is added.
        device: Where it computes; a GPU's sums, in another order, may be off ten times as far.
    """
    case = read_case(name)
    model = on_device(build_base_model(twin, case, **options), device)
    ours = rename(case.state, (*rules, SHARED_EMBEDDING))
    model.load_state_dict({ours[key]: value for key, value in case.state.items()})
    parameters = dict(model.named_parameters())
    assert {ours[key] for key in case.grads} == set(parameters)

    with torch.no_grad():
        assert_close(model.eval()(case.batch)["y_pred"], case.arrays["eval/y_pred"])
    outputs = model.train()(case.batch)
    assert_close(outputs["y_pred"].detach(), case.arrays["train/y_pred"])
    y_true = model.get_labels(case.batch)
    assert_close(model.add_loss(outputs, y_true).detach(), case.arrays["loss/task"])
    total_loss = model.compute_loss(outputs, y_true)
    assert_close(total_loss.detach(), case.arrays["loss/total"])

    total_loss.backward()
    for key, grad in case.grads.items():
        parameter = parameters[ours[key]]
        if parameter.requires_grad:
            scale = np.abs(grad).max()
            assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-4 * scale + 1e-9, what=key)


def assert_close(
    ours: Tensor, recorded: np.ndarray, rtol: float = 1e-5, atol: float = 0, what: str = ""
) -> None:
    """Assert that a tensor agrees with what was recorded; on a GPU to ten times the tolerance."""
    off = 1 if ours.device == CPU else 10
    np.testing.assert_allclose(
        ours.cpu().numpy(), recorded, rtol=off * rtol, atol=off * atol, err_msg=what
    )
