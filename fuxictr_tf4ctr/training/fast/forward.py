"""Forward passes other than the plain one: in TF32 or bfloat16, and through ``torch.compile``.

Weights, optimizer, loss and evaluation stay in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

Forward = Callable[[Any], dict[str, Tensor]]


@contextmanager
def arithmetic(model: BaseModel, precision: str, forward: Forward) -> Iterator[Forward]:
    """Give a model's forward pass in another arithmetic.

    Args:
        model: The model.
        precision: "fp32", "tf32" or "bf16".
        forward: Its forward pass.

    Yields:
        The forward pass; its outputs are float32.
    """
    if precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield forward
        finally:
            torch.set_float32_matmul_precision(before)
    elif precision == "bf16":
        # A probability in bfloat16 would round to 1, whose cross-entropy has no gradient.
        hook = model.output_activation.register_forward_pre_hook(_in_float32)
        try:
            yield lambda batch: _autocast(model.device, forward, batch)
        finally:
            hook.remove()
    else:
        yield forward


def _autocast(device: torch.device, forward: Forward, batch: Any) -> dict[str, Tensor]:
    with torch.autocast(device.type, torch.bfloat16):
        outputs = forward(batch)
    return {
        name: output.float() if output.dtype is torch.bfloat16 else output
        for name, output in outputs.items()
    }


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs)


def compiled_forward(model: BaseModel) -> Callable[[Any], dict[str, Tensor]]:
    """Return a model's forward pass, compiled for batches of the size that comes first.

    Others, such as the last of an epoch, run as they are: compiling for each size takes longer
    than it saves.

    Args:
        model: The model; lookups stay outside what is compiled.
    """
    compiled = torch.compile(model.forward, dynamic=False)
    sizes: list[int] = []

    def forward(batch: Any) -> dict[str, Tensor]:
        size = len(model.get_labels(batch))
        if not sizes:
            sizes.append(size)
        return compiled(batch) if size == sizes[0] else model.forward(batch)

    return forward
