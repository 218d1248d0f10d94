"""What an encoder is, the table of encoders by name, and the simplest: LR, FM and none at all."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction, MLP_Block
from torch import Tensor, nn

from fuxictr_tf4ctr.names import NameTable, unknown
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    FLAG,
    NULL,
    NUMBER,
    TEXT,
    AnyOf,
    Kind,
    ListOf,
    is_number,
    whole,
)
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

    Args:
        spec: Shapes of the view.

    Attributes:
        spec: Shapes of the view.
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
        self.spec = spec

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

    Those are among them that its bases take, where it hands them ``**options``.

    Example:
        >>> encoder_options(ENCODERS["cross_net_v2"])["num_layers"].default
        3
    """
    options: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__[: cls.__mro__.index(Encoder)]:
        if "__init__" in vars(base):
            hints = typing.get_type_hints(base.__init__)
            taken = inspect.signature(base.__init__).parameters
            for name, option in taken.items():
                if name not in ("self", "spec") and option.kind is not option.VAR_KEYWORD:
                    options.setdefault(name, option.replace(annotation=hints.get(name, Any)))
            if all(each.kind is not each.VAR_KEYWORD for each in taken.values()):
                break
    return options


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
        ['simple_num_layers=0 must be a whole number >= 1']
    """
    cls = ENCODERS[name]
    known = encoder_options(cls)
    prefixed = {f"{role}_{option}" for option in (*known, "encoder", "head")}
    problems = [
        unknown(f"option of the {role} encoder {name!r}:", key, prefixed)
        for key in params
        if key.startswith(f"{role}_") and key not in prefixed
    ]
    for option, value in pick_options(role, cls, params).items():
        key = option if f"{role}_{option}" not in params else f"{role}_{option}"
        problems += _kind(known[option].annotation, option).problems(value, key)
    return problems


_PLAIN = {Any: ANYTHING, type(None): NULL, bool: FLAG, int: whole(1), float: NUMBER, str: TEXT}
_RATE = Kind("a rate in [0, 1)", lambda value: is_number(value) and 0 <= value < 1)


def _kind(hint: Any, option: str) -> Kind:
    """Return what an option may be, by its type hint."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return AnyOf(*(_kind(each, option) for each in inner))
    if origin is Literal:
        return Kind(f"one of {', '.join(map(repr, inner))}", lambda value: value in inner)
    if origin is list:
        return ListOf(_kind(inner[0], option), least=1)
    if hint in _PLAIN:
        return _RATE if hint is float and "dropout" in option else _PLAIN[hint]
    cls = origin or hint
    return Kind(f"a {cls.__name__}", lambda value: isinstance(value, cls))


class MLPEncoder(Encoder):
    """Base of the encoders that end in FuxiCTR's MLP.

    Args:
        hidden_units: Width of each hidden layer; the last one is the output's.
        hidden_activations: Activation after each layer, one name for all or one per layer.
        net_dropout: Dropout rate after each layer, one for all or one per layer.
        batch_norm: Whether each layer is batch-normalized before its activation.
    """

    def __init__(
        self,
        spec: ViewSpec,
        hidden_units: list[int] = (400, 400, 400),
        hidden_activations: str | list[str] = "relu",
        net_dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(spec)
        self._mlp_options = {
            "hidden_units": list(hidden_units),
            "hidden_activations": hidden_activations,
            "dropout_rates": net_dropout,
            "batch_norm": batch_norm,
        }
        self.output_dim = hidden_units[-1]

    def make_mlp(self, input_dim: int) -> MLP_Block:
        """Make the MLP from [B, input_dim] to [B, output_dim]."""
        return MLP_Block(input_dim, **self._mlp_options)


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

    Example:
        >>> FM(spec)(view).shape
        torch.Size([5, 1])

    Source:
        Rendle, Factorization Machines, ICDM 2010; the wide part of DeepFM, arXiv 1703.04247.
    """

    needs_equal_dims = True

    def __init__(self, spec: ViewSpec) -> None:
        super().__init__(spec)
        self.linear = LinearLogit(spec, use_bias=True)
        self.product_sum = InnerProductInteraction(spec.num_fields, output="product_sum")
        self.output_dim = 1

    def forward(self, view: View) -> Tensor:
        return self.product_sum(self.spec.stack(view.embeddings)) + self.linear(view.inputs)


@register_encoder("none")
class NoEncoder(Encoder):
    """An encoder of width 0: under the fusion CF, the model is its other encoder and a Linear.

    Example:
        >>> NoEncoder(spec)(view).shape
        torch.Size([5, 0])
    """

    reads_embeddings = False
    output_dim = 0

    def forward(self, view: View) -> Tensor:
        return view.embeddings[:, :0]
