"""What every encoder's tests need: one encoder on a view, and the contract all encoders keep."""

import torch
from helpers import FEATURES, make_feature_map, random_batch
from torch import Tensor

from fuxictr_tf4ctr.twin import ENCODERS, Encoder, TwinModel
from fuxictr_tf4ctr.twin.embedding import FieldEmbedding, View


def build_encoder(name, features=FEATURES, dim=8, **options) -> tuple[Encoder, View]:
    """Build an encoder with random weights, and the view of a random batch for it."""
    torch.manual_seed(0)
    feature_map = make_feature_map(features)
    tables = FieldEmbedding(feature_map, dim)
    encoder = ENCODERS[name](tables.spec, **options)
    randomize(tables)
    randomize(encoder)
    inputs = random_batch(feature_map)
    for column in [*feature_map.labels, "group"]:
        inputs.pop(column, None)
    return encoder.eval(), View(tables(inputs), inputs, tables)


def randomize(module: torch.nn.Module) -> None:
    """Draw all weights, with padding ids left at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        for table in module.modules():
            if isinstance(table, torch.nn.Embedding):
                table.weight[0] = 0


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    """Apply a Linear by hand."""
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def mlp(block: torch.nn.Module, x: Tensor) -> Tensor:
    """Apply FuxiCTR's MLP_Block of ReLU layers by hand."""
    for layer in block.mlp:
        if isinstance(layer, torch.nn.Linear):
            x = linear(layer, x)
        elif isinstance(layer, torch.nn.ReLU):
            x = x.clamp_min(0)
    return x


def assert_contract(name, features=FEATURES, **options) -> None:
    """Assert that an encoder has the announced width, does a batch of one and trains in both roles.

    Every parameter must get a gradient from the Twin Focus Loss, as simple and as complex encoder.
    """
    encoder, view = build_encoder(name, features, **options)
    together = encoder(view)
    assert together.shape == (6, encoder.output_dim)
    for i in range(6):
        inputs = {column: values[i : i + 1] for column, values in view.inputs.items()}
        alone = encoder(View(view.embeddings[i : i + 1], inputs, view.tables))
        torch.testing.assert_close(alone, together[i : i + 1])
    for role in ("simple", "complex"):
        params = {f"{role}_{option}": value for option, value in options.items()}
        model = TwinModel(
            make_feature_map(features),
            embedding_dim=16,
            fusion="CF",
            **{f"{role}_encoder": name},
            **params,
        )
        randomize(model)
        batch = random_batch(model.feature_map)
        model.add_loss(model(batch), model.get_labels(batch)).backward()
        stream = getattr(model, f"{role}_encoder")
        for key, parameter in stream.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (role, key)
