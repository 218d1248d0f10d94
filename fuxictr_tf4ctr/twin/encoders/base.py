"""What an encoder is, the table of encoders by name, and the simplest: LR, FM and none at all."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction
from torch import Tensor, nn

from fuxictr_tf4ctr.names import NameTable, unknown
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec

ENCODERS: NameTable[type["Encoder"]] = NameTable("encoder")


def register_encoder(name: str) -> Callable[[type["Encoder"]], type["Encoder"]]:
    """Return a class decorator that makes an encoder available as ``simple_encoder: name``.

    Example:
        >>> from fuxictr_tf4ctr.names import NameTable
        >>> table = NameTable("encoder")  # that of the package is ENCODERS
        >>> @table.register("mine")
        ... class Mine(Encoder):
        ...     output_dim = 1
        >>> table["mine"] is Mine
        True
    """
    return ENCODERS.register(name)


class Encoder(nn.Module):
    """Base of the feature-interaction encoders.

    A subclass takes the shapes of its view and its options, all with defaults and type hints
    (settings are checked against them), sets ``output_dim``, and maps a view to [B, output_dim].

    Attributes:
        output_dim: Width of the output.
        reads_embeddings: False for an encoder that uses raw ids alone (LR).
        needs_equal_dims: True for an encoder that needs one embedding dim for all fields.
        shared_options: Options that a model sets once for both encoders.

    Example:
        In the examples of encoders, ``view`` has 5 rows of the fields user, item, city and bought
        (items seen before), each of width 8; ``spec`` are its shapes.

        >>> class Scaled(Encoder):
        ...     def __init__(self, spec: ViewSpec, factor: float = 2.0) -> None:
        ...         super().__init__(spec)
        ...         self.factor, self.output_dim = factor, spec.input_dim
        ...
        ...     def forward(self, view: View) -> Tensor:
        ...         return self.factor * view.embeddings
        >>> Scaled(spec, factor=3.0)(view).shape
        torch.Size([5, 32])
    """

    output_dim: int
    reads_embeddings: ClassVar[bool] = True
    needs_equal_dims: ClassVar[bool] = False
    shared_options: ClassVar[frozenset[str]] = frozenset(
        {"net_dropout", "batch_norm", "hidden_activations"}
    )

    def __init__(self, spec: ViewSpec, **options: Any) -> None:
        super().__init__()

    @classmethod
    def column_problems(
        cls, role: str, columns: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]
    ) -> list[str]:
        """List what keeps the encoder from working on these columns; empty if all is well.

        Needs no data: settings call it before any file is opened.

        Args:
            role: "simple" or "complex".
            columns: Specifications of the active feature columns, by name.
            params: Parameters of the model.
        """
        own = {name: c["embedding_dim"] for name, c in columns.items() if "embedding_dim" in c}
        if not cls.needs_equal_dims or set(own.values()) <= {params["embedding_dim"]}:
            return []
        return [
            f"{role}_encoder {params[f'{role}_encoder']!r} needs one embedding_dim for all fields, "
            f"but {', '.join(own)} name their own: remove those, or take another encoder"
        ]

    def forward(self, view: View) -> Tensor:
        """Encode a batch: its view, embeddings [B, input_dim], to [B, output_dim]."""
        raise NotImplementedError


def encoder_options(cls: type[Encoder]) -> dict[str, inspect.Parameter]:
    """Return the options an encoder takes, with their defaults and type hints.

    Example:
        >>> encoder_options(ENCODERS["cross_net_v2"])["num_layers"].default
        3
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {
        p.name: p
        for p in parameters
        if p.name not in ("self", "spec") and p.kind is not inspect.Parameter.VAR_KEYWORD
    }


def pick_options(role: str, cls: type[Encoder], params: Mapping[str, Any]) -> dict[str, Any]:
    """Select one encoder's options from a model's flat parameters.

    Option ``o`` of the simple encoder is the parameter ``simple_o``; the shared options (dropout,
    batch norm, activations) may also be given once for both, without prefix.

    Args:
        role: "simple" or "complex".
        cls: The encoder.
        params: Parameters of the model.

    Example:
        >>> params = {"complex_hidden_units": [8], "net_dropout": 0.1, "simple_num_layers": 2}
        >>> pick_options("complex", ENCODERS["mlp"], params)
        {'hidden_units': [8], 'net_dropout': 0.1}
    """
    options = {}
    for name in encoder_options(cls):
        if f"{role}_{name}" in params:
            options[name] = params[f"{role}_{name}"]
        elif name in cls.shared_options and name in params:
            options[name] = params[name]
    return options


def option_problems(role: str, name: str, params: Mapping[str, Any]) -> list[str]:
    """List what is wrong with one encoder's options; empty if all is well.

    Args:
        role: "simple" or "complex".
        name: Name of the encoder.
        params: Parameters of the model.

    Example:
        >>> option_problems("simple", "cross_net_v2", {"simple_num_layers": 0})
        ['simple_num_layers=0 must be a positive whole number']
    """
    cls = ENCODERS[name]
    known = encoder_options(cls)
    prefixed = {f"{role}_{option}" for option in known}
    prefixed |= {f"{role}_encoder", f"{role}_head"}
    problems = [
        f"{unknown(f'option of the {role} encoder {name!r}:', key, prefixed)}"
        for key in params
        if key.startswith(f"{role}_") and key not in prefixed
    ]
    hints = typing.get_type_hints(cls.__init__)
    for option, value in pick_options(role, cls, params).items():
        expected = _expectation(hints.get(option, Any), value, option)
        if expected:
            key = option if f"{role}_{option}" not in params else f"{role}_{option}"
            problems.append(f"{key}={value!r} must be {expected}")
    return problems


def _expectation(hint: Any, value: Any, option: str) -> str | None:
    """Say what ``value`` should have been, or None where it is what the hint asks for."""
    if hint is Any:
        return None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        expected = [_expectation(h, value, option) for h in typing.get_args(hint)]
        return None if None in expected else " or ".join(expected)
    if origin is Literal:
        choices = typing.get_args(hint)
        return None if value in choices else f"one of {', '.join(map(repr, choices))}"
    if origin is list:
        (item,) = typing.get_args(hint)
        fits = isinstance(value, list) and value
        if fits and all(_expectation(item, v, option) is None for v in value):
            return None
        return f"a non-empty list, each entry {_expectation(item, None, option)}"
    if hint is type(None):
        return None if value is None else "null"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        ok = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if ok else "a positive whole number"
    if hint is float and "dropout" in option:
        return None if _is_number(value) and 0 <= value < 1 else "a rate in [0, 1)"
    if hint is float:
        return None if _is_number(value) else "a number"
    return None if isinstance(value, hint) else f"a {hint.__name__}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class LinearLogit(nn.Module):
    """FuxiCTR's logistic regression, extended to every feature type.

    One weight per id, summed over the fields. FuxiCTR's own layer fails on ``embedding`` features
    (their values have no ids) and leaves the weights of features that share another's embedding
    at torch's N(0, 1); here the former are left out and the latter start like all others.

    Args:
        spec: Shapes of the view; its feature map names the columns.
        use_bias: Whether a bias is added.

    Source:
        ``fuxictr.pytorch.layers.LogisticRegression``.
    """

    def __init__(self, spec: ViewSpec, use_bias: bool = True) -> None:
        super().__init__()
        features = spec.feature_map.features
        without_ids = [name for name, s in features.items() if s["type"] == "embedding"]
        self.bias = nn.Parameter(torch.zeros(1)) if use_bias else None
        self.embedding_layer = FeatureEmbedding(
            spec.feature_map,
            1,
            not_required_feature_columns=without_ids,
            use_pretrain=False,
            use_sharing=False,
        )
        self._sharing = [name for name, s in features.items() if "share_embedding" in s]

    def init_weights(self) -> None:
        """Initialise the weights that FuxiCTR's embedding leaves out (called after its own)."""
        tables = self.embedding_layer.embedding_layer
        for name in self._sharing:
            weight = tables.embedding_layers[name].weight
            with torch.no_grad():
                weight.zero_()
            tables.embedding_initializer(weight[1:])

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Sum the weights of a batch of raw columns to [B, 1]."""
        logit = self.embedding_layer(inputs).sum(dim=1)
        return logit if self.bias is None else logit + self.bias


@register_encoder("lr")
class LR(Encoder):
    """Logistic regression on the raw ids: first-order effects, no interaction.

    Args:
        spec: Shapes of the view.
        use_bias: Whether a bias is added.

    Example:
        >>> LR(spec)(view).shape
        torch.Size([5, 1])

    Source:
        The wide part of Wide & Deep, arXiv 1606.07792.
    """

    reads_embeddings = False

    def __init__(self, spec: ViewSpec, use_bias: bool = False) -> None:
        super().__init__(spec)
        self.linear = LinearLogit(spec, use_bias)
        self.output_dim = 1

    def forward(self, view: View) -> Tensor:
        return self.linear(view.inputs)


@register_encoder("fm")
class FM(Encoder):
    """Factorization machine: LR plus the inner products of all pairs of fields, summed.

    Args:
        spec: Shapes of the view.

    Example:
        >>> FM(spec)(view).shape
        torch.Size([5, 1])

    Source:
        Rendle, Factorization Machines, ICDM 2010; the wide part of DeepFM, arXiv 1703.04247.
    """

    needs_equal_dims = True

    def __init__(self, spec: ViewSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.linear = LinearLogit(spec, use_bias=True)
        self.product_sum = InnerProductInteraction(spec.num_fields, output="product_sum")
        self.output_dim = 1

    def forward(self, view: View) -> Tensor:
        return self.product_sum(self.spec.stack(view.embeddings)) + self.linear(view.inputs)


@register_encoder("none")
class NoEncoder(Encoder):
    """An encoder of width 0: under the fusion CF, the model is its other encoder and a Linear.

    Args:
        spec: Shapes of the view.

    Example:
        >>> NoEncoder(spec)(view).shape
        torch.Size([5, 0])
    """

    reads_embeddings = False
    output_dim = 0

    def __init__(self, spec: ViewSpec) -> None:
        super().__init__(spec)

    def forward(self, view: View) -> Tensor:
        return view.embeddings[:, :0]
