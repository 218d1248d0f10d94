"""Model weights on disk: whole or not at all, and readable by FuxiCTR."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.errors import DataError


def save_weights(model: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write the model's ``state_dict``; an interrupted write leaves the previous file as it was.

    Args:
        model: Model whose weights to write.
        path: File to write; its folder is created if missing.
    """
    write_whole(model.state_dict(), path)


def write_whole(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a file by ``torch.save``; until it is whole, on the disk, the previous one stays.

    Args:
        content: Tensors and plain Python containers.
        path: File to write; its folder is created if missing.

    Raises:
        StorageError: The disk is too full for it, or it cannot be written there.
    """
    path = Path(path)
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path, needs=_bytes(content)) as output:
        torch.save(content, output)


def _bytes(content: Any) -> int:
    """Return about how many bytes ``torch.save`` makes of it."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_bytes, content.values()))
    return 0


def load_weights(model: BaseModel, path: str | os.PathLike[str]) -> None:
    """Read a ``state_dict`` into the model, on the model's own device.

    Args:
        model: Model that receives the weights.
        path: File written by :func:`save_weights` or by FuxiCTR.

    Raises:
        DataError: The file is missing, not a checkpoint, or not one of this model.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"checkpoint {path} does not exist: train the model first") from None
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"checkpoint {path} cannot be read, train again: {error}") from error
    model.to(model.device)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"checkpoint {path} does not belong to this model: its data set, vocabulary or "
            f"settings differ. {error}"
        ) from error
