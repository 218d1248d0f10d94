from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_FiBiNET(TwinModel):
    """TF4CTR-FiBiNET: logistic regression as the simple encoder beside bilinear interactions.

    FiBiNET weights the fields by SENET and feeds the bilinear interactions of both the weighted and
    the unweighted fields to an MLP. The regression has no interactions at all: it is the simple
    encoder.
    """

    base_model = "FiBiNET"
    baseline = {"fusion": "sum", "simple_head": False}
    paper = "FiBiNET, arXiv 1905.09433"
    defaults = TwinModel.defaults | {
        "simple_encoder": "lr",
        "complex_encoder": "bilinear",
        "complex_bilinear_type": "field_interaction",
        "complex_hidden_units": [400, 400, 400],
    }
