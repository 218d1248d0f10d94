"""TwinModel: two encoders with their own view of each sample, fused, under the Twin Focus Loss."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.twin.embedding import View
from fuxictr_tf4ctr.twin.encoders import ENCODERS
from fuxictr_tf4ctr.twin.encoders.base import encoder_options, option_problems, pick_options
from fuxictr_tf4ctr.twin.encoders.linear import LinearLogit
from fuxictr_tf4ctr.twin.fusion import FUSIONS
from fuxictr_tf4ctr.twin.loss import TwinFocusLoss, focus_problems
from fuxictr_tf4ctr.twin.sample_selection import SAMPLE_SELECTIONS


class TwinModel(BaseModel):
    """SSEM, two encoders, DFM and Twin Focus Loss in one FuxiCTR model.

    A twin of a known model is a subclass that sets ``defaults``; everything can be overridden by
    parameters of the same names, in Python or in YAML. With ``twin_focus`` off, sample selection
    ``none`` and the parameters of ``baseline``, the twin is its base model.

    Args:
        feature_map: FuxiCTR's description of the columns.
        model_id: Name of the experiment, used for the checkpoint's file name.
        gpu: Index of the GPU, -1 for the CPU.
        **params: FuxiCTR's model parameters (learning_rate, optimizer, embedding_regularizer, …)
            and the twin's own:

            * sample_selection: "SER", "GM", "MoE" or "none".
            * fusion: "WSF", "VF", "CF", "MoEF" or "sum".
            * simple_encoder, complex_encoder: Names of registered encoders.
            * simple_<option>, complex_<option>: Options of the encoders.
            * net_dropout, batch_norm, hidden_activations: The same options for both encoders;
              the first two also for gates and experts of the sample selection.
            * embedding_dim: Dim D of the embeddings.
            * twin_focus: Whether the Twin Focus Loss is added.
            * c, gamma, alpha: Parameters of the Twin Focus Loss.
            * simple_head: False takes a simple encoder of width 1 as a logit, without Linear.
            * linear_logit: Whether a bias-free logistic regression is added to the final logit.

    Raises:
        SettingsError: Parameters that do not fit; the message lists them all.

    Source:
        TF4CTR, arXiv 2405.03167.
    """

    base_model: ClassVar[str] = "DualMLP"
    base_fusion: ClassVar[str] = "sum"
    baseline: ClassVar[Mapping[str, Any]] = {}
    paper: ClassVar[str] = "arXiv 2405.03167"
    defaults: ClassVar[Mapping[str, Any]] = {
        "sample_selection": "SER",
        "fusion": "WSF",
        "simple_encoder": "mlp",
        "complex_encoder": "mlp",
        "twin_focus": True,
        "c": 0.8,
        "gamma": 1,
        "alpha": 0.25,
        "embedding_dim": 16,
        "simple_head": True,
        "linear_logit": False,
        "net_dropout": 0.0,
        "batch_norm": False,
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
        simple_class = ENCODERS[params["simple_encoder"]]
        complex_class = ENCODERS[params["complex_encoder"]]
        self.sample_selection = SAMPLE_SELECTIONS[params["sample_selection"]](
            feature_map,
            params["embedding_dim"],
            net_dropout=params["net_dropout"],
            batch_norm=params["batch_norm"],
            embeds=(simple_class.reads_embeddings, complex_class.reads_embeddings),
        )
        self.simple_encoder = simple_class(
            self.sample_selection.simple, **pick_options("simple", simple_class, params)
        )
        self.complex_encoder = complex_class(
            self.sample_selection.complex, **pick_options("complex", complex_class, params)
        )
        if not params["simple_head"] and self.simple_encoder.output_dim != 1:
            raise SettingsError(
                f"simple_head: false needs a simple encoder of width 1, but "
                f"{params['simple_encoder']!r} has width {self.simple_encoder.output_dim}"
            )
        self.fusion = FUSIONS[params["fusion"]](
            self.simple_encoder.output_dim,
            self.complex_encoder.output_dim,
            simple_head=params["simple_head"],
            heads=params["twin_focus"],
        )
        self.linear_logit = (
            LinearLogit(self.sample_selection.complex, use_bias=False)
            if params["linear_logit"]
            else None
        )
        self.twin_focus = (
            TwinFocusLoss(params["c"], params["gamma"], params["alpha"])
            if params["twin_focus"]
            else None
        )
        self.compile(params["optimizer"], params["loss"], params["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    @classmethod
    def with_defaults(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Add the twin's defaults, less options of default encoders that ``params`` replaces."""
        merged = {**cls.defaults, **params}
        for role in ("simple", "complex"):
            encoder = merged[f"{role}_encoder"]
            if encoder in ENCODERS and encoder != cls.defaults[f"{role}_encoder"]:
                takes = {f"{role}_{option}" for option in encoder_options(ENCODERS[encoder])}
                takes |= {f"{role}_encoder", f"{role}_head", *params}
                merged = {
                    key: value
                    for key, value in merged.items()
                    if not key.startswith(f"{role}_") or key in takes
                }
        return merged

    @classmethod
    def complete(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Make valid parameters complete; a subclass adds those that depend on other parameters."""
        return cls.with_defaults(params)

    @classmethod
    def parameter_names(cls, params: Mapping[str, Any] | None = None) -> set[str]:
        """Return the parameters this twin takes beside FuxiCTR's, for the encoders it names."""
        completed = cls.with_defaults(params or {})
        names = set(TwinModel.defaults)
        for role in ("simple", "complex"):
            encoder = ENCODERS.get(completed[f"{role}_encoder"])
            if encoder is not None:
                options = encoder_options(encoder)
                names |= {f"{role}_{option}" for option in options}
                names |= encoder.shared_options & options.keys()
        return names

    @classmethod
    def problems(cls, params: Mapping[str, Any]) -> list[str]:
        """List what is wrong with a twin's parameters, one sentence each; empty if all is well.

        Needs no data: settings call it before any file is opened.
        """
        params = cls.with_defaults(params)
        problems = []
        for kind, table in (("sample_selection", SAMPLE_SELECTIONS), ("fusion", FUSIONS)):
            if params[kind] not in table:
                problems.append(unknown(kind, params[kind], table))
        for role in ("simple", "complex"):
            encoder = params[f"{role}_encoder"]
            if encoder in ENCODERS:
                problems += option_problems(role, encoder, params)
            else:
                problems.append(unknown(f"{role}_encoder", encoder, ENCODERS))
        for flag in ("twin_focus", "simple_head", "linear_logit", "batch_norm"):
            if not isinstance(params.get(flag, False), bool):
                problems.append(f"{flag}={params[flag]!r} must be true or false")
        dim = params["embedding_dim"]
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            problems.append(f"embedding_dim={dim!r} must be a positive whole number")
        elif params["sample_selection"] == "SER" and dim % 2:
            problems.append(
                f"embedding_dim={dim} must be even with sample_selection SER: "
                "the simple encoder's tables take half of it"
            )
        if params["twin_focus"]:
            problems += focus_problems(params["c"], params["gamma"], params["alpha"])
            if params["task"] != "binary_classification":
                problems.append(
                    f"task={params['task']!r}: the Twin Focus Loss is defined for "
                    "binary_classification; set twin_focus: false"
                )
        return problems

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict a batch.

        Args:
            inputs: Columns by name, as FuxiCTR's loaders give them, [B] or [B, L] each.

        Returns:
            ``y_pred``, the prediction, and ``logit``, the same before the output activation; with
            the encoders' own heads also ``y_simple``, ``y_complex``, ``logit_simple`` and
            ``logit_complex``. [B, 1] each.
        """
        columns = self.get_inputs(inputs)
        v_s, v_c = self.sample_selection(columns)
        logits = self.fusion(
            self.simple_encoder(View(v_s, columns)), self.complex_encoder(View(v_c, columns))
        )
        logit = logits.final
        if self.linear_logit is not None:
            logit = logit + self.linear_logit(columns)
        outputs = {"y_pred": self.output_activation(logit), "logit": logit}
        if logits.simple is not None:
            outputs["y_simple"] = self.output_activation(logits.simple)
            outputs["y_complex"] = self.output_activation(logits.complex)
            outputs["logit_simple"] = logits.simple
            outputs["logit_complex"] = logits.complex
        return outputs

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the final prediction plus the Twin Focus Loss, without regularization.

        Args:
            return_dict: What :meth:`forward` returned.
            y_true: Labels, [B, 1].
        """
        if self.loss_fn is F.binary_cross_entropy:
            loss = F.binary_cross_entropy_with_logits(return_dict["logit"], y_true)
        else:
            loss = self.loss_fn(return_dict["y_pred"], y_true, reduction="mean")
        if self.twin_focus is not None:
            loss = loss + self.twin_focus(
                return_dict["logit_simple"], return_dict["logit_complex"], y_true
            )
        return loss
