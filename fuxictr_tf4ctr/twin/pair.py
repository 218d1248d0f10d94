"""PairModel: any two complete FuxiCTR models as the two streams of a twin."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.registry import find_model, overrides
from fuxictr_tf4ctr.twin.fusion import Fusion
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

ROLES = ("simple", "complex")
# Parameters of the pair itself; a model that has one of the same name gets it as <role>_<name>.
_OWN = ("fusion", "twin_focus", "c", "gamma", "alpha")


class PairModel(TwoStreamModel):
    """Two complete models under one loss: their logits are fused, both get the Twin Focus Loss.

    Neither model is edited. Each embeds for itself and initialises itself; losses and training
    steps of their own are not used. FuxiCTR's regularization covers both.

    Args:
        feature_map, model_id, gpu: As of :class:`TwoStreamModel`.
        **params: Its own too, and:

            * simple_model, complex_model: Names of models, as the registry knows them.
            * simple_<parameter>, complex_<parameter>: Parameters of one model.
            * Any other parameter goes to both models.

    Raises:
        SettingsError: Parameters that do not fit, or two models that read different batches.

    Source:
        TF4CTR, arXiv 2405.03167: the loss is model-agnostic.
    """

    def build_streams(self, params: Mapping[str, Any]) -> tuple[int, int]:
        models = (self._build_model(role, params) for role in ROLES)
        self.simple_model, self.complex_model = map(LogitModel, models)
        return 1, 1

    def _build_model(self, role: str, params: Mapping[str, Any]) -> BaseModel:
        model_class, own = find_model(params[f"{role}_model"]), _model_params(role, params)
        feature_map = _own_feature_map(self.feature_map, model_class, own)
        gpu = -1 if self.device.type == "cpu" else self.device.index or 0
        return model_class(feature_map, **own | {"model_id": f"{self.model_id}_{role}", "gpu": gpu})

    def build_fusion(self, simple_dim: int, complex_dim: int, params: Mapping[str, Any]) -> Fusion:
        fusion = super().build_fusion(simple_dim, complex_dim, {**params, "simple_head": False})
        if fusion.has_heads:
            fusion.fc_complex = nn.Identity()  # a logit, like the simple model's
        return fusion

    def reset_parameters(self) -> None:
        """Initialise the fusion alone: the models have done so, each in its own way."""
        BaseModel.reset_parameters(self.fusion)

    @classmethod
    def parameter_names(cls, params: Mapping[str, Any] | None = None) -> set[str]:
        names = super().parameter_names(params)
        for role in ROLES:
            names.add(f"{role}_model")
            model_class, _ = _look_up(role, params or {})
            if model_class is not None:
                names |= _parameter_names(model_class, _model_params(role, params))
        return names

    @classmethod
    def problems(cls, params: Mapping[str, Any]) -> list[str]:
        problems = super().problems(params)
        found = {role: _look_up(role, params) for role in ROLES}
        problems += [problem for model_class, problem in found.values() if model_class is None]
        classes = {role: model_class for role, (model_class, _) in found.items() if model_class}
        problems += _batch_problems(classes, params)
        for role, model_class in classes.items():
            options = _model_params(role, params)
            known = {f"{role}_{name}" for name in _parameter_names(model_class, options)}
            known.add(f"{role}_model")
            is_twin = issubclass(model_class, TwoStreamModel)
            nested = tuple(f"{role}_{inner}_" for inner in ROLES) if is_twin else ()
            problems += [
                unknown(f"parameter of {role}_model {params[f'{role}_model']!r}:", key, known)
                for key in params
                if key.startswith(f"{role}_") and key not in known and not key.startswith(nested)
            ]
            if is_twin:
                problems += [f"{role}_model: {text}" for text in model_class.problems(options)]
        return problems

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Predict a batch.

        Args:
            inputs: A batch as both models take it.

        Returns:
            As :meth:`outputs`.
        """
        return self.outputs(self.fusion(self.simple_model(inputs), self.complex_model(inputs)))

    def get_inputs(self, inputs: Any, feature_source: Any = None) -> Any:
        """Extract the input columns of a batch, as the complex model does."""
        return self.complex_model.model.get_inputs(inputs, feature_source)

    def get_labels(self, inputs: Any) -> Tensor:
        """Extract the labels [B, 1] of a batch, as the complex model does."""
        return self.complex_model.model.get_labels(inputs)

    def get_group_id(self, inputs: Any) -> Tensor:
        """Extract the group ids [B] of a batch, as the complex model does."""
        return self.complex_model.model.get_group_id(inputs)


class LogitModel(nn.Module):
    """A complete FuxiCTR model that returns its logit.

    The logit is the model's own ``logit`` if it returns one, or what its output activation made
    ``y_pred`` of. Where a model comes to a probability in another way, that is inverted.

    Args:
        model: The model; it is called as ever, its parameters and outputs stay what they are.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model
        self._activations: list[tuple[Tensor, Tensor]] = []
        model.output_activation.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._activations.append((args[0], output))

    def forward(self, inputs: Any) -> Tensor:
        """Return the logit [B, 1] of a batch."""
        outputs = self.model(inputs)
        activations = self._activations.copy()
        self._activations.clear()
        if "logit" in outputs:
            return outputs["logit"]
        y_pred = outputs["y_pred"]
        for logit, activated in activations:
            if activated is y_pred:
                return logit
        is_probability = isinstance(self.model.output_activation, nn.Sigmoid)
        return logit_of(y_pred) if is_probability else y_pred


def logit_of(probability: Tensor) -> Tensor:
    """Invert the sigmoid, finite at 0 and 1 and as exact as the dtype allows near them.

    Example:
        >>> logit_of(torch.tensor([0.5, 1.0]))
        tensor([ 0.0000, 15.9424])
    """
    limits = torch.finfo(probability.dtype)
    p = probability.clamp(limits.tiny, 1 - limits.eps)
    return p.log() - torch.log1p(-p)


def _batch_problems(
    classes: Mapping[str, type[BaseModel]], params: Mapping[str, Any]
) -> Iterator[str]:
    """Say if a model has several labels, or both read batches of different forms."""
    for role, each in classes.items():
        if issubclass(each, MultiTaskModel):
            yield f"{role}_model: {params[f'{role}_model']} predicts several labels, a twin one"
    special = [role for role, each in classes.items() if overrides(each, "get_labels")]
    if len(special) == 1 and len(classes) == len(ROLES):
        yield (
            f"simple_model {params['simple_model']!r} and complex_model "
            f"{params['complex_model']!r} cannot be paired: {classes[special[0]].__name__} reads "
            f"batches of a form of its own; give {special[0]}_model another model, or both one "
            "that reads that form"
        )


def _own_feature_map(
    feature_map: FeatureMap, model_class: type[BaseModel], params: Mapping[str, Any]
) -> FeatureMap:
    """Return the feature map as one model reads it: its sequences whole, all others pooled.

    FuxiCTR's models of behaviour (DIN, DIEN, BST, …) look at the steps of the sequences that their
    parameters name; a model beside them takes one vector for each field.
    """
    sequences = [name for name, spec in feature_map.features.items() if spec["type"] == "sequence"]
    if not sequences or overrides(model_class, "get_inputs"):
        return feature_map
    own = copy.deepcopy(feature_map)
    whole: set[str] = set()
    for parameter in inspect.signature(model_class.__init__).parameters.values():
        whole |= {*_flat(params.get(parameter.name, parameter.default))} & {*sequences}
    for name in sequences:
        if name in whole:
            own.features[name].pop("feature_encoder", None)
        elif not whole:
            own.features[name].setdefault("feature_encoder", "layers.MaskedAveragePooling()")
    return own


def _flat(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    elif isinstance(names, list | tuple):
        for each in names:
            yield from _flat(each)


def _look_up(role: str, params: Mapping[str, Any]) -> tuple[type[BaseModel] | None, str]:
    """Return a role's model class, or None and what is wrong."""
    name = params.get(f"{role}_model")
    if not isinstance(name, str):
        return None, f"{role}_model is missing: name a model that fuxictr list models shows"
    try:
        return find_model(name), ""
    except SettingsError as error:
        return None, f"{role}_model: {error}"


def _model_params(role: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Select the parameters of one model: those for both, and its own without their prefix."""
    prefixes = tuple(f"{name}_" for name in (*ROLES, "fusion"))
    selected = {
        key: value
        for key, value in params.items()
        if key not in _OWN and not key.startswith(prefixes)
    }
    own = f"{role}_"
    selected |= {key.removeprefix(own): params[key] for key in params if key.startswith(own)}
    del selected["model"]
    model_class, _ = _look_up(role, params)
    if model_class is not None and issubclass(model_class, TwoStreamModel):
        selected["twin_focus"] = False  # its loss is not used, nor are heads for it
    return selected


def _parameter_names(model_class: type[BaseModel], params: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters that a model, or FuxiCTR for every model, takes."""
    names = set(TwoStreamModel.defaults) - set(_OWN)
    for cls in (model_class, BaseModel):
        names |= inspect.signature(cls.__init__).parameters.keys()
    if issubclass(model_class, TwoStreamModel):
        names |= model_class.parameter_names(params)
    return names - {"self", "feature_map", "params", "kwargs"}
