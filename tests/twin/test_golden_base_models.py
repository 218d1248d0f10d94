"""Twins without their method against FuxiCTR's recorded base models."""

import pytest
from golden import assert_base_model

UNITS = [24, 16, 8]


def deep(net: str, head: int = 6) -> tuple[tuple[str, str], ...]:
    """Rules for FuxiCTR's MLP ``net`` as the complex encoder; Linear ``head`` gives its logit."""
    return (
        (rf"{net}\.mlp\.{head}\.", "fusion.fc_complex."),
        (rf"{net}\.", "complex_encoder.mlp."),
    )


def projections(stack: str, **theirs: str) -> tuple[tuple[str, str], ...]:
    """Rules for the projections in each layer of an attention stack: our names, then theirs."""
    return tuple(
        (rf"{stack}\.(\d)\.{their}\.", rf"simple_encoder.layers.\1.{our}.")
        for our, their in theirs.items()
    )


CONCAT = ((r"fc\.", "fusion.fc."),)

CASES = {
    "DualMLP": (
        "TF4CTR",
        {"simple_hidden_units": UNITS, "complex_hidden_units": [16, 8]},
        (
            (r"mlp1\.mlp\.6\.", "fusion.fc_simple."),
            (r"mlp1\.", "simple_encoder.mlp."),
            *deep("mlp2", head=4),
        ),
    ),
    "WideDeep": (
        "TF4CTR_WideDeep",
        {"complex_hidden_units": UNITS},
        ((r"lr_layer\.", "simple_encoder.linear."), *deep("dnn")),
    ),
    "DeepFM": (
        "TF4CTR_DeepFM",
        {"complex_hidden_units": UNITS},
        ((r"fm\.lr_layer\.", "simple_encoder.linear."), *deep("mlp")),
    ),
    "xDeepFM": (
        "TF4CTR_xDeepFM",
        {"simple_hidden_units": [6, 5], "complex_hidden_units": UNITS},
        ((r"cin\.", "simple_encoder.cin."), (r"lr_layer\.", "linear_logit."), *deep("dnn")),
    ),
    "DCN": (
        "TF4CTR_DCN",
        {"complex_hidden_units": UNITS},
        ((r"crossnet\.", "simple_encoder.cross_net."), *deep("dnn"), *CONCAT),
    ),
    "DCNv2_parallel": (
        "TF4CTR_DCNv2",
        {"complex_hidden_units": UNITS},
        ((r"crossnet\.", "simple_encoder.cross_net."), *deep("parallel_dnn"), *CONCAT),
    ),
    "DCNv2_mix_parallel": (
        "TF4CTR_DCNv2",
        {
            "simple_encoder": "cross_net_mix",
            "simple_low_rank": 4,
            "simple_num_experts": 2,
            "complex_hidden_units": UNITS,
        },
        ((r"crossnet\.", "simple_encoder.cross_net."), *deep("parallel_dnn"), *CONCAT),
    ),
    "AutoIntPlus": (
        "TF4CTR_AutoInt",
        {
            "simple_num_layers": 2,
            "simple_attention_dim": 8,
            "simple_num_heads": 2,
            "complex_hidden_units": UNITS,
        },
        (
            *projections("self_attention", query="W_q", key="W_k", value="W_v"),
            (r"fc\.", "fusion.fc_simple."),
            *deep("dnn"),
        ),
    ),
    "AFNPlus": (
        "TF4CTR_AFN",
        {
            "simple_logarithmic_neurons": 7,
            "simple_hidden_units": [12, 8],
            "complex_hidden_units": UNITS,
        },
        (
            (r"embedding_layer\.", "simple_encoder.embedding.layer."),
            (r"embedding_layer2\.", "sample_selection.embedding.layer."),
            (r"log_batch_norm\.", "simple_encoder.log_norm."),
            (r"coefficient_W\.", "simple_encoder.powers."),
            (r"exp_batch_norm\.", "simple_encoder.exp_norm."),
            (r"dense_layer\.mlp\.6\.", "fusion.fc_simple."),
            (r"dense_layer\.", "simple_encoder.mlp."),
            *deep("dnn", head=9),
            *CONCAT,
        ),
    ),
    "GDCNP": (
        "TF4CTR_GDCN",
        {"complex_hidden_units": UNITS},
        (
            (r"cross_net\.w\.(\d)\.", r"simple_encoder.layers.\1.cross."),
            (r"cross_net\.wg\.(\d)\.", r"simple_encoder.layers.\1.gate."),
            (r"cross_net\.b\.(\d)", r"simple_encoder.layers.\1.bias"),
            *deep("dnn"),
            *CONCAT,
        ),
    ),
    "MaskNet_parallel": (
        "TF4CTR_MaskNet",
        {"complex_num_blocks": 2, "complex_block_dim": 6, "complex_hidden_units": UNITS},
        (
            (r"emb_norm\.", "complex_encoder.norms."),
            (r"mask_net\.mask_blocks\.(\d)\.mask_layer\.", r"complex_encoder.blocks.\1.mask."),
            (r"mask_net\.mask_blocks\.(\d)\.hidden_layer\.", r"complex_encoder.blocks.\1.output."),
            (r"mask_net\.dnn\.mlp\.6\.", "fusion.fc."),
            *deep(r"mask_net\.dnn"),
        ),
    ),
    "FiBiNET": (
        "TF4CTR_FiBiNET",
        {"complex_bilinear_type": "field_all", "complex_hidden_units": UNITS},
        (
            (r"lr_layer\.", "simple_encoder.linear."),
            (r"senet_layer\.", "complex_encoder.senet."),
            (r"bilinear_interaction1\.", "complex_encoder.bilinear."),
            (r"bilinear_interaction2\.", "complex_encoder.senet_bilinear."),
            *deep("dnn"),
        ),
    ),
    "NFM": (
        "TF4CTR_NFM",
        {"complex_hidden_units": UNITS},
        ((r"lr_layer\.", "simple_encoder.linear."), *deep("dnn")),
    ),
    "DESTINE": (
        "TF4CTR_DESTINE",
        {"simple_attention_dim": 8, "complex_hidden_units": UNITS},
        (
            *projections(
                "self_attns", query="W_q", key="W_k", value="W_v", unary="W_unary", residual="W_res"
            ),
            (r"attn_fc\.", "fusion.fc_simple."),
            (r"lr\.bias", "fusion.bias"),
            (r"lr\.", "linear_logit."),
            *deep("dnn"),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_twin_without_its_method_is_the_base_model(name, device):
    assert_base_model(name, *CASES[name], device)
