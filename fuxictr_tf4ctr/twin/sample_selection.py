"""Sample Selection Embedding Modules (SSEM): the view of a sample that each encoder gets."""

from collections.abc import Mapping

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from fuxictr_tf4ctr.names import NameTable
from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, ViewSpec, halved

SAMPLE_SELECTIONS: NameTable[type["SampleSelection"]] = NameTable("sample_selection")


class SampleSelection(nn.Module):
    """Base of the modules that embed a batch twice, once for each encoder.

    Args:
        net_dropout: Dropout rate of gates and experts.
        batch_norm: Whether gates and experts use batch norm.
        embeds: Whether the simple and the complex encoder read embeddings at all (LR does not).

    Attributes:
        simple: Shapes of the simple encoder's view.
        complex: Shapes of the complex encoder's view.

    Example:
        >>> feature_map = FeatureMap("shop", "")
        >>> ids = {"type": "categorical", "source": "", "vocab_size": 9, "padding_idx": 0}
        >>> feature_map.features.update(user=ids, item=ids)
        >>> selection = SAMPLE_SELECTIONS["SER"](feature_map, embedding_dim=8)
        >>> batch = {"user": torch.tensor([1, 2, 3]), "item": torch.tensor([4, 5, 6])}
        >>> v_s, v_c = selection(batch)
        >>> v_s.shape, v_c.shape  # two fields of dim 4, and of dim 8
        (torch.Size([3, 8]), torch.Size([3, 16]))

    Source:
        TF4CTR, arXiv 2405.03167, Sample Selection Embedding Module.
    """

    simple: ViewSpec
    complex: ViewSpec

    def __init__(
        self,
        feature_map: FeatureMap,
        embedding_dim: int,
        net_dropout: float = 0.0,
        batch_norm: bool = False,
        embeds: tuple[bool, bool] = (True, True),
    ) -> None:
        super().__init__()
        self.mlp_options = {"dropout_rates": net_dropout, "batch_norm": batch_norm}
        self.embeds = embeds

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed raw columns.

        Args:
            inputs: Raw feature columns by name, [B] or [B, L] each.

        Returns:
            v_s and v_c, flat embeddings [B, input_dim] for the simple and the complex encoder.
        """
        raise NotImplementedError

    def tables(self) -> tuple[FieldEmbedding, FieldEmbedding]:
        """Return the embedding tables behind v_s and v_c."""
        raise NotImplementedError

    def monitored_values(self) -> dict[str, Tensor]:
        """Return scalars of the last batch by name, such as the mean of a gate."""
        return {}


@SAMPLE_SELECTIONS.register("SER")
class SeparateRepresentation(SampleSelection):
    """SER: each encoder has embedding tables of its own, dim D//2 the simple one, D the complex.

    No table is built for an encoder that reads none: it is handed the other's view.
    """

    def __init__(self, feature_map: FeatureMap, embedding_dim: int, *args, **kwargs) -> None:
        super().__init__(feature_map, embedding_dim, *args, **kwargs)
        simple_embeds, complex_embeds = self.embeds
        self.simple_embedding = self.complex_embedding = None
        if simple_embeds:
            self.simple_embedding = FieldEmbedding(halved(feature_map), embedding_dim // 2)
        if complex_embeds or not simple_embeds:
            self.complex_embedding = FieldEmbedding(feature_map, embedding_dim)
        self.simple, self.complex = (tables.spec for tables in self.tables())

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.simple_embedding is None:
            v_s = v_c = self.complex_embedding(inputs)
        elif self.complex_embedding is None:
            v_s = v_c = self.simple_embedding(inputs)
        else:
            v_s, v_c = self.simple_embedding(inputs), self.complex_embedding(inputs)
        return v_s, v_c

    def tables(self) -> tuple[FieldEmbedding, FieldEmbedding]:
        simple, complex_ = self.simple_embedding, self.complex_embedding
        return simple or complex_, complex_ or simple


class SharedEmbedding(SampleSelection):
    """Base of the modules that start from one embedding e for both encoders."""

    def __init__(self, feature_map: FeatureMap, embedding_dim: int, *args, **kwargs) -> None:
        super().__init__(feature_map, embedding_dim, *args, **kwargs)
        self.embedding = FieldEmbedding(feature_map, embedding_dim)
        self.simple = self.complex = self.embedding.spec

    def make_gate(self, output_dim: int, activation: str) -> MLP_Block:
        """Make an MLP from e to [B, output_dim], its hidden layer a quarter as wide as e."""
        return MLP_Block(
            self.embedding.spec.input_dim,
            hidden_units=[max(self.embedding.spec.input_dim // 4, 1)],
            output_dim=output_dim,
            output_activation=activation,
            **self.mlp_options,
        )

    def tables(self) -> tuple[FieldEmbedding, FieldEmbedding]:
        return self.embedding, self.embedding


@SAMPLE_SELECTIONS.register("none")
class NoSelection(SharedEmbedding):
    """Both encoders see the same embedding: the shared bottom of plain parallel models."""

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        e = self.embedding(inputs)
        return e, e


@SAMPLE_SELECTIONS.register("GM")
class GatingMechanism(SharedEmbedding):
    """GM: one scalar gate per sample divides the embedding, g * e and (1 - g) * e."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gate = self.make_gate(1, "sigmoid")

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        e = self.embedding(inputs)
        g = self.gate(e)
        self.last_gate = g.detach()
        return g * e, (1 - g) * e

    def monitored_values(self) -> dict[str, Tensor]:
        return {
            "gate_mean": self.last_gate.mean(),
            "gate_std": self.last_gate.std(correction=0),
        }


@SAMPLE_SELECTIONS.register("MoE")
class MixtureOfExperts(SharedEmbedding):
    """MoE: two experts transform the embedding, each encoder has its own softmax gate over them."""

    num_experts = 2

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        input_dim = self.embedding.spec.input_dim
        self.experts = nn.ModuleList(
            MLP_Block(input_dim, [max(input_dim // 2, 1), input_dim], **self.mlp_options)
            for _ in range(self.num_experts)
        )
        self.gates = nn.ModuleList(
            self.make_gate(self.num_experts, "softmax") for _ in ("simple", "complex")
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        e = self.embedding(inputs)
        experts = torch.stack([expert(e) for expert in self.experts], dim=1)
        gates = [gate(e) for gate in self.gates]
        self.last_gates = [g.detach() for g in gates]
        v_s, v_c = ((g.unsqueeze(-1) * experts).sum(dim=1) for g in gates)
        return v_s, v_c

    def monitored_values(self) -> dict[str, Tensor]:
        gates = zip(("simple", "complex"), self.last_gates, strict=True)
        return {
            f"gate_{stream}_expert_{number}": mean
            for stream, gate in gates
            for number, mean in enumerate(gate.mean(dim=0), 1)
        }
