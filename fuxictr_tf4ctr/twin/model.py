"""TwinModel: two encoders with their own view of each sample, fused, under the Twin Focus Loss."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.schema import FLAG, whole
from fuxictr_tf4ctr.twin.embedding import View
from fuxictr_tf4ctr.twin.encoders import ENCODERS, Encoder
from fuxictr_tf4ctr.twin.encoders.base import (
    LinearLogit,
    encoder_options,
    option_problems,
    pick_options,
)
from fuxictr_tf4ctr.twin.sample_selection import SAMPLE_SELECTIONS
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel


class TwinModel(TwoStreamModel):
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
            * fusion, fusion_<option>: Name of a registered fusion and its options.
            * simple_encoder, complex_encoder: Names of registered encoders.
            * simple_<option>, complex_<option>: Options of the encoders.
            * net_dropout, batch_norm, hidden_activations: The same options for both encoders;
              the first two also for gates and experts of the sample selection.
            * embedding_dim: Dim D of the embeddings.
            * twin_focus: Whether the Twin Focus Loss is added.
            * c, gamma, alpha: Parameters of the Twin Focus Loss.
            * simple_head: False takes a simple encoder of width 1 as a logit, without Linear.
            * linear_logit: Whether a bias-free logistic regression is added to the final logit.
            * base_loss: Whether a base model's loss of its own stands beside the Twin Focus Loss;
              of the twins whose ``has_base_loss`` says so. Without ``twin_focus`` it always does;
              a loss of both streams' predictions, as FCN's, asks for a fusion that has these.

    Raises:
        SettingsError: Parameters that do not fit; the message lists them all.

    Example:
        >>> import torch
        >>> from fuxictr.features import FeatureMap
        >>> feature_map = FeatureMap("shop", "")
        >>> ids = {"type": "categorical", "source": "", "vocab_size": 9, "padding_idx": 0}
        >>> feature_map.features.update(user=ids, item=ids)
        >>> feature_map.labels = ["click"]
        >>> model = TwinModel(feature_map, sample_selection="GM", fusion="VF", embedding_dim=4)
        >>> outputs = model({"user": torch.tensor([1, 2]), "item": torch.tensor([3, 4])})
        >>> sorted(outputs)
        ['logit', 'logit_complex', 'logit_simple', 'y_complex', 'y_pred', 'y_simple']
        >>> outputs["y_pred"].shape
        torch.Size([2, 1])

    Source:
        TF4CTR, arXiv 2405.03167.
    """

    base_model: ClassVar[str] = "DualMLP"
    has_base_loss: ClassVar[bool] = False
    paper: ClassVar[str] = "arXiv 2405.03167"
    defaults: ClassVar[Mapping[str, Any]] = TwoStreamModel.defaults | {
        "sample_selection": "SER",
        "simple_encoder": "mlp",
        "complex_encoder": "mlp",
        "embedding_dim": 16,
        "simple_head": True,
        "linear_logit": False,
        "net_dropout": 0.0,
        "batch_norm": False,
    }

    def build_streams(self, params: Mapping[str, Any]) -> tuple[int, int]:
        self.uses_base_loss = params.get("base_loss", False) or not params["twin_focus"]
        self.weighs_rows = not (self.has_base_loss and self.uses_base_loss)
        simple_class = ENCODERS[params["simple_encoder"]]
        complex_class = ENCODERS[params["complex_encoder"]]
        self.sample_selection = SAMPLE_SELECTIONS[params["sample_selection"]](
            self.feature_map,
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
        for encoder in (self.simple_encoder, self.complex_encoder):
            if encoder.needs_equal_dims:
                _ = self.sample_selection.complex.embedding_dim  # raises where the dims differ
        if not params["simple_head"] and self.simple_encoder.output_dim != 1:
            raise SettingsError(
                f"simple_head: false needs a simple encoder of width 1, but "
                f"{params['simple_encoder']!r} has width {self.simple_encoder.output_dim}"
            )
        self.linear_logit = (
            LinearLogit(self.sample_selection.complex, use_bias=False)
            if params["linear_logit"]
            else None
        )
        return self.simple_encoder.output_dim, self.complex_encoder.output_dim

    @classmethod
    def with_defaults(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Add the twin's defaults, less options of default encoders that ``params`` replaces."""
        merged = super().with_defaults(params)
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
    def parameter_names(cls, params: Mapping[str, Any] | None = None) -> set[str]:
        """Return the parameters this twin takes beside FuxiCTR's, for the encoders it names."""
        completed = cls.with_defaults(params or {})
        names = super().parameter_names(params) | TwinModel.defaults.keys()
        names |= Encoder.shared_options | ({"base_loss"} if cls.has_base_loss else set())
        for role in ("simple", "complex"):
            if completed[f"{role}_encoder"] in ENCODERS:
                encoder = ENCODERS[completed[f"{role}_encoder"]]
                names |= {f"{role}_{option}" for option in encoder_options(encoder)}
        return names

    @classmethod
    def problems(cls, params: Mapping[str, Any]) -> list[str]:
        problems = super().problems(params)
        params = cls.with_defaults(params)
        if params["sample_selection"] not in SAMPLE_SELECTIONS:
            problems.append(
                unknown("sample_selection", params["sample_selection"], SAMPLE_SELECTIONS)
            )
        for role in ("simple", "complex"):
            encoder = params[f"{role}_encoder"]
            if encoder in ENCODERS:
                problems += option_problems(role, encoder, params)
            else:
                problems.append(unknown(f"{role}_encoder", encoder, ENCODERS))
        for flag in ("simple_head", "linear_logit", "batch_norm", "base_loss"):
            problems += FLAG.problems(params.get(flag, False), flag)
        dim = params["embedding_dim"]
        if wrong := whole(1).problems(dim, "embedding_dim"):
            problems += wrong
        elif params["sample_selection"] == "SER" and dim % 2:
            problems.append(
                f"embedding_dim={dim} must be even with sample_selection SER: "
                "the simple encoder's tables take half of it"
            )
        return problems

    @classmethod
    def column_problems(
        cls, columns: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]
    ) -> list[str]:
        params = cls.with_defaults(params)
        return [
            problem
            for role in ("simple", "complex")
            for problem in ENCODERS[params[f"{role}_encoder"]].column_problems(
                role, columns, params
            )
        ]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict a batch.

        Args:
            inputs: Columns by name, as FuxiCTR's loaders give them, [B] or [B, L] each.

        Returns:
            As :meth:`outputs`.
        """
        columns = self.get_inputs(inputs)
        v_s, v_c = self.sample_selection(columns)
        tables_s, tables_c = self.sample_selection.tables()
        logits = self.fusion(
            self.simple_encoder(View(v_s, columns, tables_s)),
            self.complex_encoder(View(v_c, columns, tables_c)),
        )
        if self.linear_logit is not None:
            logits = logits._replace(final=logits.final + self.linear_logit(columns))
        return self.outputs(logits)

    def monitored_values(self) -> dict[str, Tensor]:
        """Return scalars of the last batch by name: fusion weights, gates of the selection."""
        return super().monitored_values() | self.sample_selection.monitored_values()
