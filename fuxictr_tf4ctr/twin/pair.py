"""PairModel: any two complete FuxiCTR models as the two streams of a twin."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.twin.fusion import Fusion
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

ROLES = ("simple", "complex")


class PairModel(TwoStreamModel):
    """Two complete models under one loss: their logits are fused, both get the Twin Focus Loss.

    Neither model is edited. Each embeds for itself and initialises itself; losses and training
    steps of their own are not used. FuxiCTR's regularization covers both.

    Args:
        feature_map: FuxiCTR's description of the columns.
        model_id: Name of the experiment, used for the checkpoint's file name.
        gpu: Index of the GPU, -1 for the CPU.
        **params: Those of :class:`TwoStreamModel`, and:

            * simple_model, complex_model: Names of models, as the registry knows them.
            * simple_<parameter>, complex_<parameter>: Parameters of one model.
            * Any other parameter goes to both models.

    Raises:
        SettingsError: Parameters that do not fit, or two models that read different batches.

    Source:
        TF4CTR, arXiv 2405.03167: the loss is model-agnostic.
    """

    # The streams are logits already.
    defaults: ClassVar[Mapping[str, Any]] = TwoStreamModel.defaults | {"simple_head": False}

    def build_streams(self, params: Mapping[str, Any]) -> tuple[int, int]:
        self.simple_model, self.complex_model = (
            LogitModel(self._build_model(role, params)) for role in ROLES
        )
        models = [self.simple_model.model, self.complex_model.model]
        reads_columns = [type(model).get_labels is BaseModel.get_labels for model in models]
        if reads_columns[0] != reads_columns[1]:
            own, plain = sorted((type(m).__name__ for m in models), key=...)
        return 1, 1
