"""Regularization without detours: L1 and L2 in closed form, and dropout on a CPU.

The loss of a term is ``strength * sum(|w|)`` for order 1 and ``strength / 2 * sum(w^2)`` for order
2. Which weight has which terms is FuxiCTR's rule.

Exact dropout: PyTorch's numbers come from a Mersenne Twister, which NumPy has too; its raw numbers,
compared in whole blocks, give the same masks bit by bit and leave the generator where it would be.
Fast dropout: other masks of the same distribution, from a generator that takes a fifth of the time.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_regularizer
from torch import Tensor, nn

# Order of the norm and strength of each regularization of a weight.
Term = tuple[int, float]
Terms = tuple[Term, ...]
# A term and the norm of weights it holds for, a scalar.
Penalty = tuple[Term, Tensor]


class Regularization:
    """Regularization of weights that keep gradients of their own."""

    def __init__(self, terms: Mapping[nn.Parameter, Terms]) -> None:
        weights: dict[Term, list[nn.Parameter]] = {}
        for weight, own in terms.items():
            for term in own:
                weights.setdefault(term, []).append(weight)
        self.groups = list(weights.items())

    @torch.no_grad()
    def penalties(self) -> list[Penalty]:
        """Return the penalties of the weights as they are."""
        return [
            (term, norm)
            for term, weights in self.groups
            for norm in torch._foreach_norm(weights, term[0])
        ]

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradient to that of each weight."""
        for (order, strength), weights in self.groups:
            for weight in weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            slopes = weights if order == 2 else torch._foreach_sign(weights)
            torch._foreach_add_(gradients, slopes, alpha=strength)


def penalties(weights: Tensor, terms: Terms) -> list[Penalty]:
    """Return the penalties of one tensor of weights."""
    return [
        (term, norm_of(weights) if term[0] == 2 else torch.linalg.vector_norm(weights, term[0]))
        for term in terms
    ]


def added_up(found: Iterable[Penalty]) -> Tensor:
    """Return the loss of all penalties, at least one; a scalar."""
    norms: dict[Term, list[Tensor]] = {}
    for term, norm in found:
        norms.setdefault(term, []).append(norm)
    losses = [
        strength / order * torch.stack(each).pow(order).sum()
        for (order, strength), each in norms.items()
    ]
    return sum(losses[1:], losses[0])


def slope(weights: Tensor, terms: Terms, out: Tensor, portion: float = 1.0) -> None:
    """Fill ``out`` with this portion of the gradient of the terms of one tensor of weights."""
    strength = {order: 0.0 for order in (1, 2)}
    for order, more in terms:
        strength[order] += more * portion
    if strength[2]:
        torch.mul(weights, strength[2], out=out)
    else:
        out.zero_()
    if strength[1]:
        out.add_(weights.sign(), alpha=strength[1])


def norm_of(values: Tensor) -> Tensor:
    """Norm of all values together; the sum of products uses all cores of a CPU."""
    if values.device.type == "cpu" and values.is_contiguous():
        return torch.dot(values.view(-1), values.view(-1)).sqrt()
    return torch.linalg.vector_norm(values)


def regularized(model: BaseModel) -> dict[nn.Parameter, Terms]:
    """Return the regularization terms of each weight of a model, by FuxiCTR's rule."""
    terms: dict[nn.Parameter, Terms] = {}
    for weight, own in _rules(model):
        terms[weight] = terms.get(weight, ()) + own
    return {weight: own for weight, own in terms.items() if own}


def _rules(model: BaseModel) -> Iterator[tuple[nn.Parameter, Terms]]:
    embedding_terms = _positive(get_regularizer(model._embedding_regularizer))
    net_terms = _positive(get_regularizer(model._net_regularizer))
    embedding_names = set()
    for prefix, module in model.named_modules():
        # As in FuxiCTR: subclasses of FeatureEmbeddingDict count as net.
        if type(module) is FeatureEmbeddingDict:
            for name, weight in module.named_parameters():
                if weight.requires_grad:
                    embedding_names.add(f"{prefix}.{name}")
                    yield weight, embedding_terms
    for name, weight in model.named_parameters():
        if weight.requires_grad and name not in embedding_names:
            yield weight, net_terms


def _positive(terms: Iterable[tuple[int, float]]) -> Terms:
    return tuple((order, strength) for order, strength in terms if strength)


# Draws at a time: few enough to stay in a core's cache.
_BLOCK = 1 << 16
# PyTorch makes a number in [0, 1) of the last 53 of 64 bits.
_BITS = 53
# Where a generator's state, seen as 64-bit words, has its counters and its 624 numbers.
_LEFT, _NEXT, _NUMBERS = 1, 2, slice(3, 627)

Noise = Callable[[Tensor, float], None]


@contextmanager
def faster_dropout(model: nn.Module, fill: Noise) -> Iterator[None]:
    """Let a model's ``nn.Dropout`` layers draw their masks another way.

    Args:
        model: Model on a CPU.
        fill: Fills a flat tensor with 1 / p at the probability p given, with 0 elsewhere.
    """
    layers = [module for module in model.modules() if type(module) is nn.Dropout]
    for layer in layers:
        layer.forward = partial(_dropout, layer, fill)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _dropout(layer: nn.Dropout, fill: Noise, inputs: Tensor) -> Tensor:
    plain = not layer.training or layer.inplace or not 0 < layer.p < 1
    if plain or not inputs.is_contiguous() or inputs.device.type != "cpu":
        return F.dropout(inputs, layer.p, layer.training, layer.inplace)
    noise = torch.empty_like(inputs)
    fill(noise.view(-1), 1 - layer.p)
    return inputs * noise


def torch_noise(noise: Tensor, probability: float) -> None:
    """Fill as ``noise.bernoulli_(probability).div_(probability)`` does, bit by bit."""
    state = torch.get_rng_state()
    words = state.numpy().view(np.uint64)
    bits = np.random.MT19937(0)
    own = bits.state
    # PyTorch counts the numbers that are left, one more than NumPy has still to give.
    own["state"]["pos"] = 625 - int(words[_LEFT] & 0xFFFFFFFF)
    own["state"]["key"] = words[_NUMBERS].astype(np.uint32)
    bits.state = own
    _fill(noise, probability, np.random.Generator(bits))
    own = bits.state["state"]
    seeded = words[_LEFT] & 0xFFFFFFFF00000000
    words[_LEFT], words[_NEXT] = seeded | np.uint64(625 - own["pos"]), own["pos"]
    words[_NUMBERS] = own["key"]
    torch.set_rng_state(state)


def fast_noise(noise: Tensor, probability: float) -> None:
    """Fill from a generator that PyTorch's seeds; probabilities are whole multiples of 2^-16."""
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    limit = np.int16(max(round(probability * 2**16), 1) - 2**15 - 1)  # read as signed, inclusive
    scale = 1 / probability
    for part in noise.split(_BLOCK):
        draws = generator.integers(0, 2**64, len(part) // 4 + 1, np.uint64).view(np.int16)
        kept = torch.from_numpy(draws[: len(part)] <= limit)
        torch.mul(kept, scale, out=part)


def _fill(noise: Tensor, probability: float, generator: np.random.Generator) -> None:
    limit = math.ceil(probability * 2**_BITS)
    for part in noise.split(_BLOCK):
        draws = generator.integers(0, 2**64, len(part), np.uint64).view(np.int64)
        part.copy_(torch.from_numpy(draws).bitwise_and_(2**_BITS - 1) < limit).div_(probability)


def _plain_noise(noise: Tensor, probability: float) -> None:
    noise.bernoulli_(probability).div_(probability)


@cache
def masks_agree() -> bool:
    """Whether this build of PyTorch draws as :func:`torch_noise` does; some use MKL's generator."""
    state = torch.get_rng_state()
    results = []
    for fill in (_plain_noise, torch_noise):
        torch.set_rng_state(state)
        noise = torch.empty(1000)
        fill(noise, 0.7)
        results.append((noise, torch.get_rng_state()))
    torch.set_rng_state(state)
    return all(torch.equal(*pair) for pair in zip(*results, strict=True))
