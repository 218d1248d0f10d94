"""A batch to the GPU in one transfer, where FuxiCTR makes one for each column."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """Bring a batch to a GPU without waiting for it.

    Args:
        batch: Columns by name on the host; anything else is returned as it is, for the model's own
            ``get_inputs`` to handle.
        device: The model's device.

    Returns:
        The columns, on ``device`` if it is a GPU.
    """
    if device.type != "cuda" or not _plain_columns(batch):
        return batch
    layout, size = layout_of(batch)
    host = pack(batch, layout, torch.empty(size, dtype=torch.uint8, pin_memory=True))
    return unpack(batch, layout, host.to(device, non_blocking=True))


def _plain_columns(batch: Any) -> bool:
    return isinstance(batch, Mapping) and all(
        isinstance(column, Tensor) and column.device.type == "cpu" for column in batch.values()
    )


def layout_of(batch: Mapping[str, Tensor]) -> tuple[dict[str, slice], int]:
    """Say where in a buffer each column lies, widest types first so that all are aligned."""
    layout, end = {}, 0
    for name, column in sorted(batch.items(), key=lambda item: -item[1].element_size()):
        start, end = end, end + column.numel() * column.element_size()
        layout[name] = slice(start, end)
    return layout, end


def pack(batch: Mapping[str, Tensor], layout: Mapping[str, slice], buffer: Tensor) -> Tensor:
    """Copy all columns into a buffer of bytes, and return it."""
    views = unpack(batch, layout, buffer)
    for name, column in batch.items():
        views[name].copy_(column)
    return buffer


def unpack(
    batch: Mapping[str, Tensor], layout: Mapping[str, slice], buffer: Tensor
) -> dict[str, Tensor]:
    """View a buffer of bytes as columns of the batch's types and shapes."""
    return {
        name: buffer[layout[name]].view(column.dtype).view(column.shape)
        for name, column in batch.items()
    }
