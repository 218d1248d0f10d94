from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_NFM(TwinModel):
    """TF4CTR-NFM: logistic regression as the simple encoder beside an MLP over pooled products.

    NFM sums the elementwise products of all pairs of fields and feeds the sum to an MLP. The
    regression has no interactions at all: it is the simple encoder.
    """

    base_model = "NFM"
    baseline = {"fusion": "sum", "simple_head": False}
    paper = "NFM, arXiv 1708.05027"
    defaults = TwinModel.defaults | {
        "simple_encoder": "lr",
        "complex_encoder": "bi_interaction",
        "complex_hidden_units": [400, 400, 400],
    }
