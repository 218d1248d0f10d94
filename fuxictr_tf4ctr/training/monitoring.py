"""What a model shows of itself while it trains, beside its loss.

A model may keep the terms of its last loss, detached scalars by name, in ``loss_terms``, and may
have a method ``monitored_values`` that returns scalars of its last batch by name.
"""

from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from torch.nn import functional as F


def loss_terms(model: BaseModel, loss: Tensor) -> dict[str, Tensor]:
    """Return the terms of a model's last loss, without regularization.

    Args:
        model: The model.
        loss: The loss, for a model that names no terms.
    """
    terms = getattr(model, "loss_terms", None)
    if terms is not None:
        return dict(terms)
    binary = getattr(model, "loss_fn", None) is F.binary_cross_entropy
    return {"bce" if binary else "loss": loss}


@torch.no_grad()
def monitored_values(model: BaseModel) -> dict[str, float]:
    """Return what a model shows of its last batch; empty where it shows nothing."""
    show: Any = getattr(model, "monitored_values", None)
    return {} if show is None else {name: float(value) for name, value in show().items()}
