"""The forward pass through ``torch.compile``, which fuses norms, activations and dropout."""

from collections.abc import Callable
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


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
