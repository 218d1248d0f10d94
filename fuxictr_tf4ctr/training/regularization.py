"""L1 and L2 regularization without autograd: loss and gradient in closed form.

The loss of a term is ``strength * sum(|w|)`` for order 1 and ``strength / 2 * sum(w^2)`` for order
2. Which weight has which terms is FuxiCTR's rule.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_regularizer
from torch import Tensor, nn

# Order of the norm and strength of each regularization of a weight.
Terms = tuple[tuple[int, float], ...]


class Regularization:
    """Regularization of weights that keep gradients of their own.

    Args:
        terms: Terms of each weight.
    """

    def __init__(self, terms: Mapping[nn.Parameter, Terms]) -> None:
        weights: dict[tuple[int, float], list[nn.Parameter]] = {}
        for weight, own in terms.items():
            for term in own:
                weights.setdefault(term, []).append(weight)
        self.groups = list(weights.items())

    @torch.no_grad()
    def add_gradients(self, portion: float = 1.0) -> Tensor | float:
        """Add this portion of the gradient to that of each weight, and return the whole loss."""
        loss = 0.0
        for (order, strength), weights in self.groups:
            for weight in weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            slopes = weights if order == 2 else torch._foreach_sign(weights)
            torch._foreach_add_(gradients, slopes, alpha=strength * portion)
            norms = torch.stack(torch._foreach_norm(weights, order))
            loss = loss + strength / order * norms.pow(order).sum()
        return loss


def penalty(weights: Tensor, terms: Terms) -> Tensor | float:
    """Return the loss of the terms of one tensor of weights."""
    return sum(
        strength / order * (squared_norm(weights) if order == 2 else weights.abs().sum())
        for order, strength in terms
    )


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


def squared_norm(values: Tensor) -> Tensor:
    """Sum of the squares of all values; the sum of products uses all cores of a CPU."""
    if values.device.type == "cpu" and values.is_contiguous():
        return torch.dot(values.view(-1), values.view(-1))
    return torch.linalg.vector_norm(values).square()


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
