"""One training step: FuxiCTR's mathematics without its detours.

``BaseModel.train_step`` builds the norm of every weight into the graph to get the gradient
``lambda * w``, and runs one small kernel per weight where one for all would do. Here that gradient
is added to the one of the loss directly, and clipping and optimizer go over all weights at once.
What a model overrides is left to the model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_regularizer
from torch import Tensor, nn

# What PyTorch's clip_grad_norm_ adds to a norm before it divides by it.
_CLIP_EPS = 1e-6
# Those with a fused kernel on a CPU as well as on a GPU.
_FUSED_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def training_step(model: BaseModel) -> Callable[[Any], Tensor]:
    """Return the fastest step that trains a model as its own ``train_step`` does.

    Args:
        model: Compiled FuxiCTR model, ``_max_gradient_norm`` set as ``fit`` sets it.

    Returns:
        Batch to total loss, a scalar; one with its own ``train_step`` or optimizers keeps those.
    """
    own = type(model).train_step is not BaseModel.train_step
    if own or not isinstance(getattr(model, "optimizer", None), torch.optim.Optimizer):
        return model.train_step
    return TrainingStep(model)


class TrainingStep:
    """A step of a model that trains as ``BaseModel`` does.

    Args:
        model: Compiled FuxiCTR model.
    """

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        standard = all(
            getattr(type(model), method) is getattr(BaseModel, method)
            for method in ("compute_loss", "regularization_loss")
        )
        self.regularization = Regularization(model) if standard else None
        self.parameters = list(model.parameters())
        use_fast_kernels(model.optimizer)

    def __call__(self, batch: Any) -> Tensor:
        """Train on a batch and return its loss, regularization included."""
        model = self.model
        model.optimizer.zero_grad()
        outputs = model.forward(batch)
        y_true = model.get_labels(batch)
        if self.regularization is None:
            loss = model.compute_loss(outputs, y_true)
            loss.backward()
        else:
            loss = model.add_loss(outputs, y_true)
            loss.backward()
            loss = loss.detach() + self.regularization.add_gradients()
        clip_gradients(self.parameters, model._max_gradient_norm)
        model.optimizer.step()
        return loss


class Regularization:
    """L1 and L2 of a model's weights, by FuxiCTR's rule of which regularizer goes where.

    The loss is ``lambda * sum(|w|)`` for L1, ``lambda / 2 * sum(w^2)`` for L2.

    Args:
        model: FuxiCTR model with the standard ``regularization_loss``.
    """

    def __init__(self, model: BaseModel) -> None:
        weights: dict[tuple[int, float], list[nn.Parameter]] = {}
        for parameter, order, strength in _terms(model):
            weights.setdefault((order, strength), []).append(parameter)
        self.groups = list(weights.items())

    @torch.no_grad()
    def add_gradients(self) -> Tensor | float:
        """Add the gradient to that of each weight, and return the loss."""
        loss = 0.0
        for (order, strength), weights in self.groups:
            for weight in weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            slopes = weights if order == 2 else torch._foreach_sign(weights)
            torch._foreach_add_(gradients, slopes, alpha=strength)
            norms = torch.stack(torch._foreach_norm(weights, order))
            loss = loss + strength / order * norms.pow(order).sum()
        return loss


def _terms(model: BaseModel) -> Iterator[tuple[nn.Parameter, int, float]]:
    """Yield weight, order of the norm and strength of every term of the regularization."""
    embedding_terms = _positive(model._embedding_regularizer)
    net_terms = _positive(model._net_regularizer)
    embedding_names = set()
    for prefix, module in model.named_modules():
        # As in FuxiCTR: subclasses of FeatureEmbeddingDict count as net.
        if type(module) is FeatureEmbeddingDict:
            for name, weight in module.named_parameters():
                if weight.requires_grad:
                    embedding_names.add(f"{prefix}.{name}")
                    yield from ((weight, *term) for term in embedding_terms)
    for name, weight in model.named_parameters():
        if weight.requires_grad and name not in embedding_names:
            yield from ((weight, *term) for term in net_terms)


def _positive(regularizer: float | str | None) -> list[tuple[int, float]]:
    """Order and strength of each term of a regularizer, terms of strength 0 left out."""
    return [(order, strength) for order, strength in get_regularizer(regularizer) if strength]


@torch.no_grad()
def clip_gradients(weights: list[nn.Parameter], max_norm: float) -> None:
    """Scale all gradients so that their norm together is at most ``max_norm``.

    Args:
        weights: Weights; those without a gradient have no say.
        max_norm: The norm.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    scale = (max_norm / (norm + _CLIP_EPS)).clamp(max=1.0)
    # On a CPU the scale is known at no cost; a GPU would have to be waited for.
    if scale.device.type != "cpu" or scale != 1:
        torch._foreach_mul_(gradients, scale)


def use_fast_kernels(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer update all weights in one kernel, where PyTorch has one for it.

    Args:
        optimizer: Any optimizer; its rule stays the same.
    """
    kernel = "fused" if isinstance(optimizer, _FUSED_OPTIMIZERS) else "foreach"
    for group in optimizer.param_groups:
        if group.get(kernel, False) is None:
            group[kernel] = True
