"""TwoStreamModel: what every twin has, whatever its two streams are: fusion and Twin Focus Loss."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.schema import FLAG, whole
from fuxictr_tf4ctr.twin.fusion import FUSIONS, Fusion, Logits
from fuxictr_tf4ctr.twin.loss import TwinFocusLoss, focus_problems


class TwoStreamModel(BaseModel):
    """Base of the models with a simple and a complex stream, fused, under the Twin Focus Loss.

    A subclass builds the streams in :meth:`build_streams` and runs them in ``forward``, which ends
    in :meth:`outputs`.

    Args:
        feature_map: FuxiCTR's description of the columns.
        model_id: Name of the experiment, used for the checkpoint's file name.
        gpu: Index of the GPU, -1 for the CPU.
        **params: FuxiCTR's model parameters and the subclass's own; for every subclass:

            * fusion: Name of a registered fusion.
            * fusion_<option>: Options of the fusion.
            * twin_focus: Whether the Twin Focus Loss is added.
            * c, gamma, alpha: Parameters of the Twin Focus Loss.

    Raises:
        SettingsError: Parameters that do not fit; the message lists them all.
    """

    # Its add_loss heeds ``row_weight``.
    weighs_rows: ClassVar[bool] = True
    baseline: ClassVar[Mapping[str, Any]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {
        "fusion": "WSF",
        "twin_focus": True,
        "c": 0.8,
        "gamma": 1,
        "alpha": 0.25,
        "learning_rate": 1e-3,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "task": "binary_classification",
        "metrics": ("AUC", "logloss"),
        "model_root": "./checkpoints/",
        "verbose": 0,
    }

    def __init__(
        self, feature_map: FeatureMap, model_id: str | None = None, gpu: int = -1, **params: Any
    ) -> None:
        problems = self.problems(params)
        if problems:
            raise SettingsError("\n".join(problems))
        params = self.complete(params)
        super().__init__(feature_map, model_id=model_id or type(self).__name__, gpu=gpu, **params)
        self.fusion = self.build_fusion(*self.build_streams(params), params)
        self.twin_focus = (
            TwinFocusLoss(params["c"], params["gamma"], params["alpha"])
            if params["twin_focus"]
            else None
        )
        self.compile(params["optimizer"], params["loss"], params["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def build_streams(self, params: Mapping[str, Any]) -> tuple[int, int]:
        """Build both streams and return the widths of their outputs."""
        raise NotImplementedError

    def build_fusion(self, simple_dim: int, complex_dim: int, params: Mapping[str, Any]) -> Fusion:
        """Build the fusion of outputs of these widths d_s and d_c, from complete parameters."""
        fusion = FUSIONS[params["fusion"]]
        options = {
            name: params.get(f"fusion_{name}", value) for name, value in fusion.options.items()
        }
        options |= {"simple_head": params.get("simple_head", True), "heads": params["twin_focus"]}
        return fusion(simple_dim, complex_dim, **options)

    @classmethod
    def with_defaults(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Add the defaults of the parameters that are not given."""
        return {**cls.defaults, **params}

    @classmethod
    def complete(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Make valid parameters complete; a subclass adds those that depend on other parameters."""
        return cls.with_defaults(params)

    @classmethod
    def parameter_names(cls, params: Mapping[str, Any] | None = None) -> set[str]:
        """Return the parameters this model takes beside FuxiCTR's, given some of their values."""
        fusion = cls.with_defaults(params or {})["fusion"]
        options = FUSIONS[fusion].options if fusion in FUSIONS else ()
        return {*TwoStreamModel.defaults, *(f"fusion_{option}" for option in options)}

    @classmethod
    def problems(cls, params: Mapping[str, Any]) -> list[str]:
        """List what is wrong with a model's parameters, one sentence each; empty if all is well.

        Needs no data: settings call it before any file is opened.
        """
        params = cls.with_defaults(params)
        problems = FLAG.problems(params["twin_focus"], "twin_focus")
        if params["fusion"] in FUSIONS:
            for option in (f"fusion_{name}" for name in FUSIONS[params["fusion"]].options):
                problems += whole(1).problems(params.get(option, 1), option)
        else:
            problems.append(unknown("fusion", params["fusion"], FUSIONS))
        if params["twin_focus"]:
            problems += focus_problems(params["c"], params["gamma"], params["alpha"])
            if params["task"] != "binary_classification":
                problems.append(
                    f"task={params['task']!r}: the Twin Focus Loss is defined for "
                    "binary_classification; set twin_focus: false"
                )
        return problems

    @classmethod
    def column_problems(
        cls, columns: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]
    ) -> list[str]:
        """List what keeps the model from working on these columns; empty if all is well.

        Args:
            columns: Specifications of the active feature columns, by name.
            params: Parameters without :meth:`problems`.
        """
        return []

    def outputs(self, logits: Logits) -> dict[str, Tensor]:
        """Return what FuxiCTR expects of ``forward``.

        Args:
            logits: What the fusion made of the streams, [B, 1] each.

        Returns:
            ``y_pred``, the prediction, and ``logit``, the same before the output activation; with
            the streams' own heads also ``y_simple``, ``y_complex``, ``logit_simple`` and
            ``logit_complex``. [B, 1] each.
        """
        outputs = {"y_pred": self.output_activation(logits.final), "logit": logits.final}
        if logits.simple is not None:
            outputs["y_simple"] = self.output_activation(logits.simple)
            outputs["y_complex"] = self.output_activation(logits.complex)
            outputs["logit_simple"] = logits.simple
            outputs["logit_complex"] = logits.complex
        return outputs

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the final prediction plus the Twin Focus Loss, without regularization.

        Its terms are kept, detached, in ``loss_terms``.

        Args:
            return_dict: What ``forward`` returned; with ``row_weight``, [B, 1], a factor of each
                row's losses.
            y_true: Labels, [B, 1].
        """
        loss = self.prediction_loss(return_dict, y_true)
        is_binary = self.loss_fn is F.binary_cross_entropy
        self.loss_terms = {"bce" if is_binary else "loss": loss.detach()}
        if self.twin_focus is not None:
            simple, complex_ = self.twin_focus.streams(
                return_dict["logit_simple"],
                return_dict["logit_complex"],
                y_true,
                return_dict.get("row_weight"),
            )
            self.loss_terms |= {"simple": simple.detach(), "complex": complex_.detach()}
            loss = loss + self.twin_focus.combine(simple, complex_)
        return loss

    def prediction_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the final prediction, a scalar; arguments as :meth:`add_loss`."""
        weight = return_dict.get("row_weight")
        if self.loss_fn is F.binary_cross_entropy:
            return F.binary_cross_entropy_with_logits(return_dict["logit"], y_true, weight)
        if weight is None:
            return self.loss_fn(return_dict["y_pred"], y_true, reduction="mean")
        return (weight * self.loss_fn(return_dict["y_pred"], y_true, reduction="none")).mean()

    def monitored_values(self) -> dict[str, Tensor]:
        """Return scalars of the last batch by name: what the fusion did with the streams."""
        return {f"fusion_{name}": value for name, value in self.fusion.monitored_values().items()}
