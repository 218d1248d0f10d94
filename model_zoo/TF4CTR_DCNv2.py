from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_DCNv2(TwinModel):
    """TF4CTR-DCNv2: a full-rank cross network as the simple encoder beside an MLP.

    The cross network's interactions are explicit and of bounded degree, so that it is the simple
    encoder. ``simple_encoder: cross_net_mix`` takes the mixture of low-rank experts instead. The
    base model is FuxiCTR's DCNv2 with ``model_structure: parallel``.
    """

    base_model = "DCNv2"
    baseline = {"fusion": "CF"}
    paper = "DCN V2, arXiv 2008.13535"
    defaults = TwinModel.defaults | {
        "simple_encoder": "cross_net_v2",
        "simple_num_layers": 3,
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }
