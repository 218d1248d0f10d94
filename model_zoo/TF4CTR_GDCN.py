from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_GDCN(TwinModel):
    """TF4CTR-GDCN: a gated cross network as the simple encoder beside an MLP.

    GDCN is DCN V2 with a gate on every bit of every cross layer; the base model is FuxiCTR's GDCNP,
    which runs it in parallel with an MLP.
    """

    base_model = "GDCN"
    baseline = {"fusion": "CF"}
    paper = "GDCN, arXiv 2311.04635"
    defaults = TwinModel.defaults | {
        "simple_encoder": "gated_cross_net",
        "simple_num_layers": 3,
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }
