"""The authors' configurations and checkpoints, read into our twins.

The one place that understands the spelling of the authors' code (``TF4CTRv2``, ``SSM``, ``DFM``,
``easy_hidden_units``, …). What comes out is a twin like any other.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.twin import TwinModel

LOG = logging.getLogger(__name__)

TWIN_OF = {
    "TF4CTR": "TF4CTR",
    "TF4CTRv2": "TF4CTR",
    "TF4CTRv2_WideDeep": "TF4CTR_WideDeep",
    "TF4CTRv2_DeepFM": "TF4CTR_DeepFM",
    "TF4CTRv2_xDeepFM": "TF4CTR_xDeepFM",
}

# Parameters that only rename; the rest of a configuration carries FuxiCTR's own names.
_RENAMED = {
    "SSM": "sample_selection",
    "DFM": "fusion",
    "easy_hidden_units": "simple_hidden_units",
    "hard_hidden_units": "complex_hidden_units",
    "cin_hidden_units": "simple_hidden_units",
}
# What a parameter that is null, "none" or absent means in the authors' code.
_UNSET = {"sample_selection": "none", "fusion": "sum"}

PUBLISHED_KEYS = frozenset(_RENAMED)
"""Keys of the authors' configurations that have another name here."""

# The data sets in the authors' expids, by ours; spelling and case vary in their files.
_DATA = {
    "criteo_10": "criteo",
    "criteo": "criteo",
    "avazu": "avazu",
    "frappe": "frappe_published",
    "movielens": "movielens",
    "movielenslatest": "movielens",
    "kkbox": "kkbox",
    "ml-1m": "ml1m",
}

_WITH_SIMPLE_UNITS = ("TF4CTR", "TF4CTRv2", "TF4CTRv2_xDeepFM")

_TABLES = "embedding_layer.embedding_layers."
_EMBEDDING = f"sample_selection.embedding.layer.{_TABLES}"
_COMMON_NAMES = (
    (r"SSM\.easy_sample_embedding\.", "sample_selection.simple_embedding.layer."),
    (r"SSM\.hard_sample_embedding\.", "sample_selection.complex_embedding.layer."),
    (rf"SSM\.(embedding_layer|feature_embedding)\.{_TABLES}", _EMBEDDING),
    (rf"embedding_layer\.{_TABLES}", _EMBEDDING),
    (r"SSM\.gate\.", "sample_selection.gate."),
    (r"SSM\.mmoe_layer\.experts\.", "sample_selection.experts."),
    (r"SSM\.mmoe_layer\.gate\.", "sample_selection.gates."),
    (r"DFM\.fc1\.", "fusion.fc_simple."),
    (r"DFM\.fc2\.", "fusion.fc_complex."),
    (r"DFM\.fc\.", "fusion.fc."),
    (r"DFM\.w$", "fusion.weight"),
    (r"DFM\.pi1\.", "fusion.vote_simple."),
    (r"DFM\.pi2\.", "fusion.vote_complex."),
    (r"DFM\.gate\.0\.", "fusion.gate."),
    (r"DFM\.MOE\.", "fusion.experts."),
    (r"hard_encoder\.mlp\.", "complex_encoder.mlp.mlp."),
    (r"lr_layer\.", "linear_logit."),
)
_SIMPLE_ENCODER_NAMES = {
    "TF4CTRv2": ((r"easy_encoder\.mlp\.", "simple_encoder.mlp.mlp."),),
    "TF4CTRv2_WideDeep": ((r"easy_encoder\.", "simple_encoder.linear."),),
    "TF4CTRv2_DeepFM": ((r"easy_encoder\.lr_layer\.", "simple_encoder.linear."),),
    "TF4CTRv2_xDeepFM": ((r"easy_encoder\.", "simple_encoder.cin."),),
}


def from_published(
    config: Mapping[str, Any],
    feature_map: FeatureMap,
    state_dict: Mapping[str, torch.Tensor | np.ndarray] | None = None,
    **runtime: Any,
) -> TwinModel:
    """Build the twin that a published configuration describes, with published weights if given.

    Args:
        config: Model configuration in the authors' spelling; ``model`` is one of ``TF4CTR`` (the
            loss alone: shared bottom, WSF), ``TF4CTRv2``, ``TF4CTRv2_WideDeep``,
            ``TF4CTRv2_DeepFM``, ``TF4CTRv2_xDeepFM``.
        state_dict: Weights by the authors' names, tensors or arrays.
        **runtime: Further parameters of the twin in our spelling (gpu, model_root, …); they
            override the configuration.

    Raises:
        SettingsError: An unknown model, or parameters that do not fit.
        DataError: Weights are missing, left over, or of another shape; the message names them.
    """
    params = twin_params(config)
    params.update(runtime)
    model_class = find_model(params.pop("model"))
    published_c = params.get("c", TwinModel.defaults["c"])
    outside = isinstance(published_c, int | float) and 1 < published_c <= 2
    if outside:
        # Some published KKBox runs have c = 1.2, where the loss turns negative for easy samples.
        LOG.warning("c=%s is outside [0, 1]: kept as published", published_c)
        params["c"] = 1
    model = model_class(feature_map, **params)
    if outside and model.twin_focus is not None:
        model.twin_focus.c = published_c
    if state_dict is not None:
        if config["model"] == "TF4CTRv2_DeepFM":
            LOG.warning(
                "these weights were trained with an FM whose second-order term was one number for "
                "the whole batch (a defect of the published code); here it is computed per sample, "
                "so that predictions differ from the published model's"
            )
        _load(model, state_dict, config)
    return model


def twin_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a model configuration from the authors' spelling to ours.

    Raises:
        SettingsError: The model is none of the authors'.
    """
    name = config.get("model")
    if name not in TWIN_OF:
        raise SettingsError(unknown("published model", name, TWIN_OF))
    params = {_RENAMED.get(key, key): value for key, value in config.items()}
    params["model"] = TWIN_OF[name]
    if name == "TF4CTR":
        params.update(sample_selection="none", fusion="WSF")
    for key, value in _UNSET.items():
        params[key] = value if params.get(key) in (None, "none") else params[key]
    if name not in _WITH_SIMPLE_UNITS:
        params.pop("simple_hidden_units", None)
    elif name == "TF4CTRv2_xDeepFM":
        params["simple_hidden_units"] = config["cin_hidden_units"]
    return params


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a model configuration is in the authors' spelling.

    ``TF4CTR`` is a model of theirs and of ours; their keys tell which is meant.
    """
    name = config.get("model")
    known = isinstance(name, str) and name in TWIN_OF
    return known and (name != "TF4CTR" or not PUBLISHED_KEYS.isdisjoint(config))


def our_expid(expid: str) -> str | None:
    """Return our experiment of the model and data set in an expid of the authors', if any."""
    model, data = _parts(expid)
    return f"{TWIN_OF[model]}_{_DATA[data]}" if model in TWIN_OF and data in _DATA else None


def our_keys(expid: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys and choices of a tuner space from the authors' spelling to ours.

    Args:
        expid: The authors' expid that the space varies.
        space: Key -> list of choices, or anything that needs no translation.
    """
    model, _ = _parts(expid)
    renamed = {}
    for key, choices in space.items():
        ours = _RENAMED.get(key, key)
        if ours == "simple_hidden_units" and model not in _WITH_SIMPLE_UNITS:
            continue  # read by the authors' tuner, used by none of these models
        if ours in _UNSET and isinstance(choices, list):
            choices = [_UNSET[ours] if value in (None, "none") else value for value in choices]
        renamed[ours] = choices
    return renamed


def _parts(expid: str) -> tuple[str, str]:
    """Split an expid of the authors' into its model and its data set, in lower case."""
    model = max((name for name in TWIN_OF if expid.startswith(f"{name}_")), key=len, default="")
    return model, expid.removeprefix(f"{model}_").lower()


def twin_names(config: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    """Map the authors' parameter names to ours.

    Returns:
        Our name for each of theirs; a name that nothing is known about is mapped to itself.
    """
    if config["model"] == "TF4CTR":
        rules = _loss_only_rules(names)
    else:
        rules = _SIMPLE_ENCODER_NAMES[config["model"]] + _COMMON_NAMES
    found = {
        name: [re.sub(f"^{old}", new, name) for old, new in rules if re.match(old, name)]
        for name in names
    }
    return {name: ours[0] if ours else name for name, ours in found.items()}


def _loss_only_rules(names: list[str]) -> tuple[tuple[str, str], ...]:
    """Rules for ``TF4CTR``, whose MLPs end in the Linear that is our fusion's head."""
    rules: list[tuple[str, str]] = [
        (r"fc$", "fusion.weight"),
        (rf"embedding_layer\.{_TABLES}", _EMBEDDING),
    ]
    for net, role in (("easy_net", "simple"), ("hard_net", "complex")):
        layers = [int(m[1]) for n in names if (m := re.match(rf"{net}\.mlp\.(\d+)\.", n))]
        rules.append((rf"{net}\.mlp\.{max(layers, default=0)}\.", f"fusion.fc_{role}."))
        rules.append((rf"{net}\.mlp\.", f"{role}_encoder.mlp.mlp."))
    return tuple(rules)


def _load(
    model: TwinModel,
    state_dict: Mapping[str, torch.Tensor | np.ndarray],
    config: Mapping[str, Any],
) -> None:
    names = twin_names(config, list(state_dict))
    ours = {names[name]: torch.as_tensor(value) for name, value in state_dict.items()}
    expected = model.state_dict()
    problems = [f"missing: {name}" for name in expected if name not in ours]
    problems += [f"left over: {t}" for t, name in names.items() if name not in expected]
    problems += [
        f"{name}: shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in ours.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        raise DataError(
            f"the weights do not fit the published model {config['model']}:\n" + "\n".join(problems)
        )
    model.load_state_dict(ours)
