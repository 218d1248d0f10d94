from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR(TwinModel):
    """TF4CTR: a shallow MLP as the simple encoder beside a deep MLP as the complex one.

    The paper's own model. Its base model is FuxiCTR's DualMLP.
    """

    base_model = "DualMLP"
    baseline = {"fusion": "sum"}
    paper = "TF4CTR, arXiv 2405.03167"
    defaults = TwinModel.defaults | {
        "simple_hidden_units": [400, 400],
        "complex_hidden_units": [400, 400, 400],
    }
