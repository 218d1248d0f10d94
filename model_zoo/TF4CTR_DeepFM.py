from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_DeepFM(TwinModel):
    """TF4CTR-DeepFM: a factorization machine as the simple encoder beside an MLP.

    The machine models first-order effects and pairs of fields. In the authors' code its
    second-order term collapses to one number per batch; here it is computed for each sample.
    """

    base_model = "DeepFM"
    baseline = {"fusion": "sum", "simple_head": False}
    paper = "DeepFM, arXiv 1703.04247"
    defaults = TwinModel.defaults | {
        "simple_encoder": "fm",
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }
