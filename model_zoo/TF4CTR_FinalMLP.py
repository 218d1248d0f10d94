from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_FinalMLP(TwinModel):
    """TF4CTR-FinalMLP: two MLPs behind feature selection gates of their own.

    The simple MLP has fewer layers; it may look at the user where the complex one looks at the
    item, or the other way round (``context``: the fields a gate depends on; null is one gate for
    all samples). The base model's ``fusion: IA``, interaction aggregation, adds the products of
    both outputs to the sum of both logits, and works with any twin; ``fusion_num_heads`` must
    divide both last widths. ``simple_encoder: mlp`` leaves the gate out (``use_fs: false``).
    """

    base_model = "FinalMLP"
    baseline = {"fusion": "IA"}
    paper = "FinalMLP, arXiv 2304.00902"
    defaults = TwinModel.defaults | {
        "simple_encoder": "feature_gated_mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "feature_gated_mlp",
        "complex_hidden_units": [400, 400, 400],
    }
