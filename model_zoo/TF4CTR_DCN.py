from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_DCN(TwinModel):
    """TF4CTR-DCN: a cross network as the simple encoder beside an MLP.

    The cross network has one weight vector per layer.
    """

    base_model = "DCN"
    baseline = {"fusion": "CF"}
    paper = "DCN, arXiv 1708.05123"
    defaults = TwinModel.defaults | {
        "simple_encoder": "cross_net",
        "simple_num_layers": 3,
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }
