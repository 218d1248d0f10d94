"""Batch norm over the rows of all ranks, on CPUs as on GPUs.

``torch.nn.SyncBatchNorm`` is for GPUs alone, and takes as many rows from every rank.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        total = inputs.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose mean and variance in training are those of all ranks' rows."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise [B, C] or [B, C, L]; ranks may have batches of different sizes."""
        if not self.training:
            return super().forward(inputs)
        self._check_input_dim(inputs)
        dims = [0] if inputs.ndim == 2 else [0, 2]
        count = inputs.new_tensor([inputs.numel() / inputs.shape[1]])
        summed = _Sum.apply(torch.cat([inputs.sum(dims), count]))
        total, count = summed.split([self.num_features, 1])
        mean = total / count
        shape = (1, -1) if inputs.ndim == 2 else (1, -1, 1)
        centered = inputs - mean.view(shape)
        # Not the mean of squares less the square of the mean: that loses digits.
        variance = _Sum.apply(centered.square().sum(dims)) / count
        self._note(mean.detach(), variance.detach(), count.detach())
        outputs = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            outputs = outputs * self.weight.view(shape) + self.bias.view(shape)
        return outputs

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let all batch norms of a model work over the rows of all ranks.

    Args:
        model: Its parameters and buffers, and their names, stay what they are.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SynchronisedBatchNorm1d
