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
}


@pytest.mark.parametrize("name", CASES)
def test_twin_without_its_method_is_the_base_model(name):
    assert_base_model(name, *CASES[name])
