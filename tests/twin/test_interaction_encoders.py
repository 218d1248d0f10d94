"""The encoders of the zoo against their papers' formulas, in plain loops over fields and bits."""

import itertools
import math

import pytest
import torch
from helpers import FEATURES, make_feature_map, random_batch
from torch import nn

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin import ENCODERS, TwinModel
from fuxictr_tf4ctr.twin.embedding import View, ViewSpec

ROWS, DIM = 5, 4
SPEC = ViewSpec(make_feature_map(), tuple(FEATURES), (DIM,) * len(FEATURES))
UNEQUAL = ViewSpec(make_feature_map(), tuple(FEATURES), (2, 3, 4))
DEEP = {"hidden_units": [6, 3]}
SMALL = {
    "self_attention": {"num_layers": 2, "attention_dim": 6, "layer_norm": True},
    "disentangled_attention": {"attention_dim": 6, "residual_mode": "last_layer"},
    "afn": DEEP | {"logarithmic_neurons": 5},
    "gated_cross_net": {"num_layers": 2},
    "mask_net": DEEP | {"num_blocks": 2, "block_dim": 3},
    "inner_product": DEEP,
    "bi_interaction": DEEP,
    "bilinear": DEEP,
}


def build(name, spec=SPEC, **options):
    """Build an encoder with random parameters (norms and biases too), in eval mode."""
    torch.manual_seed(0)
    encoder = ENCODERS[name](spec, **options).eval()
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return encoder


def make_view(spec=SPEC, rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    return View(torch.randn(rows, spec.input_dim, generator=generator), {})


def below_mlp(encoder):
    """Take an encoder's MLP away: what it outputs now is what the MLP was given."""
    encoder.mlp = nn.Identity()
    return encoder


def softmax(scores):
    exps = [math.exp(score.item()) for score in scores]
    return [e / sum(exps) for e in exps]


def assert_rows(output, expected):
    torch.testing.assert_close(output, torch.stack(list(expected)), rtol=1e-4, atol=1e-5)


def fields_of(view):
    return view.embeddings.view(-1, len(FEATURES), DIM)


@pytest.mark.parametrize("use_scale", [True, False])
def test_self_attention(use_scale):
    heads, width = 2, 3
    encoder = build(
        "self_attention",
        num_layers=1,
        attention_dim=heads * width,
        num_heads=heads,
        use_scale=use_scale,
    )
    layer, view = encoder.layers[0], make_view()

    def row(fields):
        output = []
        for field in fields:
            attended = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                query = layer.query.weight[part] @ field
                keys = [layer.key.weight[part] @ other for other in fields]
                values = [layer.value.weight[part] @ other for other in fields]
                scale = math.sqrt(width) if use_scale else 1
                weights = softmax([query @ key / scale for key in keys])
                attended.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            output.append(torch.relu(torch.cat(attended) + layer.residual.weight @ field))
        return torch.cat(output)

    assert_rows(encoder(view), map(row, fields_of(view)))


def test_self_attention_adds_its_input_as_it_is_where_the_widths_agree():
    encoder = build("self_attention", num_layers=1, attention_dim=DIM)
    with torch.no_grad():
        encoder.layers[0].value.weight.zero_()
    view = make_view()
    assert torch.equal(encoder(view), view.embeddings.relu())


def disentangled(layer, rows, unary):
    """One head over ``rows``, (query, key, value) each; ``unary`` weights are given."""
    queries, keys, values = zip(*rows, strict=True)
    mean_query, mean_key = sum(queries) / len(rows), sum(keys) / len(rows)
    output = []
    for query in queries:
        pairwise = softmax([(query - mean_query) @ (key - mean_key) for key in keys])
        weights = [p + u for p, u in zip(pairwise, unary, strict=True)]
        output.append(sum(w * v for w, v in zip(weights, values, strict=True)))
    return output


def test_disentangled_attention_of_one_head():
    encoder = build("disentangled_attention", num_layers=1, attention_dim=6, num_heads=1)
    layer, view = encoder.layers[0], make_view()

    def row(fields):
        rows = [(layer.query(e), layer.key(e), layer.value(e)) for e in fields]
        unary = softmax([layer.unary(e) for e in fields])
        attended = disentangled(layer, rows, unary)
        return torch.cat([a + layer.residual(e) for a, e in zip(attended, fields, strict=True)])

    assert_rows(encoder(view), map(row, fields_of(view)))


def test_disentangled_attention_of_two_heads_mixes_fields_as_the_original():
    heads, width = 2, 3
    encoder = build(
        "disentangled_attention",
        num_layers=1,
        attention_dim=heads * width,
        num_heads=heads,
        residual_mode=None,
    )
    layer, view = encoder.layers[0], make_view()

    def row(fields):
        per_head = [softmax([layer.unary(e)[h] for e in fields]) for h in range(heads)]
        slices, unary = [], []
        for i, field in enumerate(fields):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                projected = (layer.query(field), layer.key(field), layer.value(field))
                slices.append(tuple(p[part] for p in projected))
                unary.append(per_head[h][i])
        groups = [range(h * len(fields), (h + 1) * len(fields)) for h in range(heads)]
        attended = [
            disentangled(layer, [slices[i] for i in group], [unary[i] for i in group])
            for group in groups
        ]
        return torch.cat([output for group in attended for output in group])

    assert_rows(encoder(view), map(row, fields_of(view)))


def test_disentangled_attention_residual_after_the_last_layer():
    encoder = build("disentangled_attention", **SMALL["disentangled_attention"])
    with torch.no_grad():
        for parameter in encoder.layers[-1].value.parameters():
            parameter.zero_()
    view = make_view()
    expected = encoder.residual(fields_of(view)).flatten(start_dim=1)
    assert torch.equal(encoder(view), expected)


def test_afn_raises_fields_to_learned_powers():
    encoder = below_mlp(build("afn", **SMALL["afn"]))
    encoder.log_norm = encoder.exp_norm = nn.Identity()
    view = make_view()

    def row(fields):
        neurons = []
        for powers in encoder.powers.weight:
            product = torch.ones(DIM)
            for field, power in zip(fields, powers, strict=True):
                product = product * field.abs() ** power
            neurons.append(product)
        return torch.cat(neurons)

    assert_rows(encoder(view), map(row, fields_of(view)))


def test_afn_keeps_clear_of_the_logarithm_of_zero():
    encoder = build("afn", **SMALL["afn"])
    zeros = torch.zeros(ROWS, SPEC.input_dim, requires_grad=True)
    output = encoder(View(zeros, {}))
    output.sum().backward()
    assert torch.isfinite(output).all()
    assert torch.isfinite(zeros.grad).all()


def test_afn_with_tables_of_its_own_ignores_its_view():
    encoder = build("afn", own_embedding=True, **SMALL["afn"])
    ids = {name: torch.arange(ROWS) for name in FEATURES}
    others = {name: torch.zeros_like(column) for name, column in ids.items()}
    embeddings = make_view().embeddings
    output = encoder(View(embeddings, ids))
    assert torch.equal(output, encoder(View(embeddings + 1, ids)))
    assert not torch.equal(output, encoder(View(embeddings, others)))


def test_gated_cross_net():
    encoder = build("gated_cross_net", num_layers=2)
    view = make_view()

    def row(x_0):
        x = x_0
        for layer in encoder.layers:
            bits = []
            for bit in range(SPEC.input_dim):
                crossed = x_0[bit] * (layer.cross.weight[bit] @ x + layer.bias[bit])
                gate = 1 / (1 + torch.exp(-(layer.gate.weight[bit] @ x)))
                bits.append(crossed * gate + x[bit])
            x = torch.stack(bits)
        return x

    assert_rows(encoder(view), map(row, view.embeddings))


def test_gated_cross_biases_start_uniform_in_0_1():
    biases = ENCODERS["gated_cross_net"](SPEC).layers[0].bias
    assert 0 <= biases.min() < biases.max() < 1


def layer_normed(vector, norm):
    mean = vector.mean()
    variance = ((vector - mean) ** 2).mean()
    return (vector - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


@pytest.mark.parametrize("spec", [SPEC, UNEQUAL], ids=["equal dims", "unequal dims"])
def test_mask_net(spec):
    encoder = below_mlp(build("mask_net", spec, reduction_ratio=0.5, **SMALL["mask_net"]))
    view = make_view(spec)

    def row(e):
        fields = e.split(spec.field_dims)
        normed = torch.cat(list(map(layer_normed, fields, encoder.norms)))
        blocks = []
        for block in encoder.blocks:
            first, _, second = block.mask
            hidden = torch.relu(first.weight @ e + first.bias)
            mask = second.weight @ hidden + second.bias
            linear, norm = block.output[:2]
            blocks.append(torch.relu(layer_normed(linear.weight @ (mask * normed), norm)))
        return torch.cat(blocks)

    assert encoder.blocks[0].mask[0].out_features == spec.input_dim // 2
    assert_rows(encoder(view), map(row, view.embeddings))


def test_mask_net_without_norms():
    options = SMALL["mask_net"] | {"embedding_norm": False, "layer_norm": False}
    encoder = below_mlp(build("mask_net", **options))
    view = make_view()
    block = encoder.blocks[0]
    expected = torch.relu(
        (block.mask(view.embeddings) * view.embeddings) @ block.output[0].weight.T
    )
    torch.testing.assert_close(encoder(view)[:, :3], expected)


def test_inner_product():
    encoder = below_mlp(build("inner_product", **DEEP))
    view = make_view()

    def row(fields):
        products = [a @ b for a, b in itertools.combinations(fields, 2)]
        return torch.cat([fields.flatten(), torch.stack(products)])

    assert_rows(encoder(view), map(row, fields_of(view)))


def test_bi_interaction():
    encoder = below_mlp(build("bi_interaction", **DEEP))
    view = make_view()

    def row(fields):
        return sum(a * b for a, b in itertools.combinations(fields, 2))

    assert_rows(encoder(view), map(row, fields_of(view)))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("bilinear_type", ["field_all", "field_each", "field_interaction"])
def test_bilinear(bilinear_type, activation):
    encoder = below_mlp(
        build(
            "bilinear",
            bilinear_type=bilinear_type,
            reduction_ratio=1,
            excitation_activation=activation,
            **DEEP,
        )
    )
    view = make_view()
    squeeze, excite = (encoder.senet.excitation[i].weight for i in (0, 2))
    pairs = list(itertools.combinations(range(len(FEATURES)), 2))

    def interactions(fields, weight):
        for number, (i, j) in enumerate(pairs):
            which = {"field_each": i, "field_interaction": number}.get(bilinear_type)
            matrix = weight if which is None else weight[which]
            yield (fields[i] @ matrix) * fields[j]

    def row(fields):
        means = torch.stack([field.mean() for field in fields])
        importance = getattr(torch, activation)(excite @ torch.relu(squeeze @ means))
        weighted = [a * field for a, field in zip(importance, fields, strict=True)]
        return torch.cat(
            [
                *interactions(fields, encoder.bilinear.bilinear_W),
                *interactions(weighted, encoder.senet_bilinear.bilinear_W),
            ]
        )

    assert_rows(encoder(view), map(row, fields_of(view)))


def test_none_has_no_output():
    encoder = ENCODERS["none"](SPEC)
    assert encoder(make_view()).shape == (ROWS, encoder.output_dim) == (ROWS, 0)


@pytest.mark.parametrize("name", SMALL)
def test_output_is_as_wide_as_announced_and_free_of_the_batch(name):
    encoder = build(name, **SMALL[name])
    view = make_view()
    output = encoder(view)
    assert output.shape == (ROWS, encoder.output_dim)
    alone = torch.cat([encoder(View(row[None], {})) for row in view.embeddings])
    torch.testing.assert_close(alone, output)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter_and_the_view(name):
    # Smooth where it can be: a ReLU may be dead for all of a few samples.
    smooth = {"hidden_activations": "tanh"} if "hidden_units" in SMALL[name] else {}
    encoder = build(name, **SMALL[name], **smooth).train()
    embeddings = make_view().embeddings.requires_grad_()
    (encoder(View(embeddings, {})) ** 2).sum().backward()
    assert embeddings.grad.abs().sum() > 0
    for parameter_name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            if parameter.dim() > 1:
                assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("selection", ["SER", "GM"])
@pytest.mark.parametrize("role", ["simple", "complex"])
@pytest.mark.parametrize("name", SMALL)
def test_serves_as_either_encoder(name, role, selection):
    torch.manual_seed(0)
    options = {f"{role}_{option}": value for option, value in SMALL[name].items()}
    model = TwinModel(
        make_feature_map(),
        embedding_dim=8,
        sample_selection=selection,
        **{f"{role}_encoder": name},
        **options,
    ).train()
    model._max_gradient_norm = 10.0
    batch = random_batch(model.feature_map)
    encoder = getattr(model, f"{role}_encoder")
    before = [p.clone() for p in encoder.parameters() if p.requires_grad]
    assert torch.isfinite(model.train_step(batch))
    after = [p for p in encoder.parameters() if p.requires_grad]
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [name for name in SMALL if ENCODERS[name].needs_equal_dims])
def test_unequal_dims_are_refused(name):
    with pytest.raises(SettingsError, match="one embedding_dim for all fields"):
        build(name, UNEQUAL, **SMALL[name])


@pytest.mark.parametrize("name", ["self_attention", "disentangled_attention"])
def test_heads_must_share_the_attention_dim(name):
    with pytest.raises(SettingsError, match="attention_dim=6 must be a multiple of num_heads=4"):
        build(name, attention_dim=6, num_heads=4)


@pytest.mark.parametrize("ratio", [0.0, 0.05, -1])
def test_a_mask_needs_a_hidden_layer(ratio):
    with pytest.raises(SettingsError, match="must be at least 1/12"):
        build("mask_net", reduction_ratio=ratio)


@pytest.mark.parametrize(
    ("encoder", "option", "value"),
    [
        ("bilinear", "bilinear_type", "field_some"),
        ("bilinear", "excitation_activation", "tanh"),
        ("disentangled_attention", "residual_mode", "first_layer"),
        ("afn", "logarithmic_neurons", 0),
        ("afn", "own_embedding", "yes"),
        ("self_attention", "num_layers", 1.5),
        ("mask_net", "hidden_activations", ["relu", "relu"]),
    ],
)
def test_wrong_options_are_named(encoder, option, value):
    (problem,) = TwinModel.problems({"complex_encoder": encoder, f"complex_{option}": value})
    assert problem.startswith(f"complex_{option}={value!r} must be")


def test_pnn_without_its_twin_is_an_mlp_over_embeddings_and_products():
    torch.manual_seed(0)
    model = model_zoo.TF4CTR_PNN(
        make_feature_map(),
        twin_focus=False,
        sample_selection="none",
        complex_hidden_units=[6, 3],
        **model_zoo.TF4CTR_PNN.baseline,
    ).eval()
    batch = random_batch(model.feature_map)
    embeddings = model.sample_selection.embedding(model.get_inputs(batch))
    fields = embeddings.view(6, 3, -1)
    pairs = itertools.combinations(range(3), 2)
    products = [(fields[:, i] * fields[:, j]).sum(dim=1) for i, j in pairs]
    hidden = model.complex_encoder.mlp(torch.cat([embeddings, torch.stack(products, 1)], dim=1))
    expected = torch.sigmoid(model.fusion.fc(hidden))
    torch.testing.assert_close(model(batch)["y_pred"], expected)
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert parts == {"sample_selection", "complex_encoder", "fusion"}
    assert {name for name, _ in model.fusion.named_parameters()} == {"fc.weight", "fc.bias"}
