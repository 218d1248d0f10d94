"""One training step: FuxiCTR's mathematics without its detours.

``BaseModel.train_step`` builds the norm of every weight into the graph to get the gradient
``lambda * w``, looks each field up in a table of its own and runs one small kernel per weight where
one for all would do. Here the tables are fused, the gradient of the norms is added to the one of
the loss directly, and clipping and optimizer go over all weights at once. What a model overrides
is left to the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.distributed.ranks import ALONE, Ranks
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import overrides
from fuxictr_tf4ctr.training.fast import (
    EXACT,
    FastOptions,
    Forward,
    arithmetic,
    check_fast,
    compiled_forward,
    matmul_precision,
)
from fuxictr_tf4ctr.training.fast.cuda_graphs import GraphedStep
from fuxictr_tf4ctr.training.fast.rows import (
    ClippedGradients,
    RowGradients,
    cow_clip,
    scale_learning_rate,
    scaled_terms,
)
from fuxictr_tf4ctr.training.losses import (
    NO_TERMS,
    UNWEIGHTED,
    RowWeights,
    Terms,
    loss_terms,
    weighted_loss,
)
from fuxictr_tf4ctr.training.regularization import (
    Noise,
    Regularization,
    added_up,
    fast_noise,
    faster_dropout,
    masks_agree,
    norm_of,
    regularized,
    torch_noise,
)
from fuxictr_tf4ctr.training.tables import (
    DenseGradients,
    FusedLookups,
    TableGroup,
    group_tables,
    table_weights,
)

# What PyTorch's clip_grad_norm_ adds to a norm before it divides by it.
_CLIP_EPS = 1e-6
# Gradients of more numbers than this are worth a product that uses all cores of a CPU each.
_LARGE = 1 << 16
# Those with a fused kernel on a CPU as well as on a GPU.
_FUSED_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)

Step = Callable[[Any], Tensor]


@contextmanager
def training_step(
    model: BaseModel,
    fast: FastOptions = EXACT,
    ranks: Ranks = ALONE,
    weights: RowWeights = UNWEIGHTED,
) -> Iterator[Step]:
    """Give the fastest step that trains a model as its own ``train_step`` does.

    Inside, lookups and dropout of the model are faster in evaluation too; the tables' weights stay
    views of common buffers afterwards.

    Args:
        model: Compiled FuxiCTR model on its device, ``_max_gradient_norm`` set as ``fit`` sets it.
        ranks: The processes among which each batch is divided.

    Yields:
        Batch to total loss, a scalar; one with its own ``train_step`` or optimizers keeps those.
        The terms of that loss are in its ``terms``, if it has any.

    Raises:
        SettingsError: A switch cannot work with the model, or its own step with several ranks.
    """
    check_fast(fast, model, ranks)
    if overrides(model, "train_step") or not isinstance(
        getattr(model, "optimizer", None), torch.optim.Optimizer
    ):
        if ranks.size > 1:
            raise SettingsError(
                f"{type(model).__name__} has a training step or optimizers of its own, which would "
                "not average gradients over ranks: train it with one worker"
            )
        yield model.train_step
        return
    with ExitStack() as stack:
        forward = compiled_forward(model) if fast.compile else model.forward
        forward = stack.enter_context(arithmetic(model, fast.precision, forward))
        noise = _noise(model, fast)
        if noise is not None:
            stack.enter_context(faster_dropout(model, noise))
        step = TrainingStep(model, forward, fast, ranks, weights)
        stack.callback(step.lookups.release)
        stack.callback(step.sums.release)
        if model.device.type == "cuda":  # streams and recordings are of the current one
            stack.enter_context(torch.cuda.device(model.device))
        yield GraphedStep(model, step) if fast.cuda_graphs else step


def _noise(model: BaseModel, fast: FastOptions) -> Noise | None:
    """Choose the generator of dropout masks; None is PyTorch's."""
    if model.device.type != "cpu" or fast.compile:  # compiled dropout draws for itself
        return None
    if fast.fast_dropout:
        return fast_noise
    return torch_noise if masks_agree() else None


class TrainingStep:
    """A step of a model that trains as ``BaseModel`` does.

    Attributes:
        terms: Terms of the last loss.
    """

    def __init__(
        self,
        model: BaseModel,
        forward: Forward,
        fast: FastOptions,
        ranks: Ranks,
        weights: RowWeights,
    ) -> None:
        self.model = model
        self.weights = weights
        self.ranks = ranks
        self.forward = forward
        self.precision = fast.precision
        self.own_regularization = overrides(model, "compute_loss", "regularization_loss")
        embeddings = set(table_weights(model))
        terms = {} if self.own_regularization else regularized(model)
        if fast.cowclip:
            terms = scaled_terms(terms, embeddings, fast.cowclip_scale)
            scale_learning_rate(model.optimizer, embeddings, fast.cowclip_scale)
        groups = group_tables(model, terms)
        self.lookups = FusedLookups(model, groups, fast.compile)
        self.tables = [_table_gradients(group, model, fast) for group in groups]
        self.others = [weight for weight in model.parameters() if weight not in embeddings]
        self.sums = ranks.sums(self.others)
        self.regularization = Regularization({w: terms[w] for w in self.others if w in terms})
        self.terms = NO_TERMS
        self._nothing = torch.zeros((), device=model.device)
        use_fast_kernels(model.optimizer)
        # On a CPU gradients below the limit are not scaled at all, which costs nothing.
        fused = all(group.get("fused") for group in model.optimizer.param_groups)
        on_cpu = model.device.type == "cpu"
        self.scales_itself = fused and not on_cpu and not fast.sparse_embeddings

    def __call__(self, batch: Any) -> Tensor:
        """Train on a batch and return its loss, regularization included."""
        with matmul_precision(self.precision):
            return self._train(batch)

    def _train(self, batch: Any) -> Tensor:
        model = self.model
        self.lookups.forget()
        model.optimizer.zero_grad()
        outputs = self.forward(batch)
        y_true = model.get_labels(batch)
        if self.own_regularization:
            loss = model.compute_loss(outputs, y_true)
        else:
            loss = weighted_loss(model, outputs, y_true, self.weights.of(batch, y_true))
        # Added up over the ranks, what each makes of its portion is what the whole batch would.
        portion = getattr(batch, "portion", None)
        if portion is None:
            portion = self.ranks.portion(len(y_true))
        loss.backward(torch.full_like(loss, portion))
        loss = loss.detach()
        penalties = [each for tables in self.tables for each in tables.finish(portion)]
        penalties += self.regularization.penalties()
        regularization = added_up(penalties) if penalties else self._nothing
        named = {"loss": loss}
        if not self.own_regularization:
            named = {**loss_terms(model, loss), "regularization": regularization}
        values = torch.stack([loss + regularization, *named.values()])
        if portion != 1:
            values *= portion
        of_tables = [each for tables in self.tables for each in tables.tensors()]
        self.sums.finish([*of_tables, values])
        self.regularization.add_gradients()
        others = [weight.grad for weight in self.others if weight.grad is not None]
        gradients = of_tables + others
        if self.scales_itself:
            step_clipped(model.optimizer, gradients, model._max_gradient_norm)
        else:
            clip_gradients(gradients, model._max_gradient_norm)
            for tables in self.tables:
                tables.update()
            model.optimizer.step()
        self.terms = Terms(tuple(named), values[1:])
        return values[0]


def _table_gradients(
    group: TableGroup, model: BaseModel, fast: FastOptions
) -> DenseGradients | RowGradients:
    if fast.sparse_embeddings:
        return RowGradients(group, model.optimizer, cow_clip if fast.cowclip else None)
    return ClippedGradients(group) if fast.cowclip else DenseGradients(group)


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale gradients so that their norm together is at most ``max_norm``."""
    if not gradients:
        return
    scale = (max_norm / (_norm(gradients) + _CLIP_EPS)).clamp(max=1.0)
    # On a CPU the scale is known at no cost; a GPU would have to be waited for.
    if scale.device.type != "cpu" or scale != 1:
        torch._foreach_mul_(gradients, scale)


@torch.no_grad()
def step_clipped(
    optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], max_norm: float
) -> None:
    """Make a step with gradients clipped as the optimizer reads them, without a pass of their own.

    It has fused kernels; the gradients, of all its weights, are clipped afterwards.
    """
    if gradients:
        # By this PyTorch's GradScaler lets them divide; float32 whatever the weights are.
        excess = (_norm(gradients).float() + _CLIP_EPS) / max_norm
        optimizer.grad_scale = excess.clamp(min=1.0)
    try:
        optimizer.step()
    finally:
        vars(optimizer).pop("grad_scale", None)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together."""
    on_cpu = gradients[0].device.type == "cpu"
    large = [each for each in gradients if on_cpu and each.numel() > _LARGE]
    small = [each for each in gradients if not on_cpu or each.numel() <= _LARGE]
    norms = list(torch._foreach_norm(small)) if small else []
    norms += [norm_of(each) for each in large]
    return torch.linalg.vector_norm(torch.stack(norms))


def use_fast_kernels(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer update all weights in one kernel, where PyTorch has one for it."""
    kernel = "fused" if isinstance(optimizer, _FUSED_OPTIMIZERS) else "foreach"
    for group in optimizer.param_groups:
        if group.get(kernel, False) is None:
            group[kernel] = True
