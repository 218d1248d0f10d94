from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_PNN(TwinModel):
    """TF4CTR-PNN: a shallow MLP as the simple encoder beside an inner-product network.

    PNN feeds the inner products of all pairs of fields to its MLP, beside the embeddings (its
    inner-product form, IPNN). It has one stream, which is the complex encoder; the simple one sees
    no products.
    """

    base_model = "PNN"
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "PNN, arXiv 1611.00144"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [400, 400],
        "complex_encoder": "inner_product",
        "complex_hidden_units": [400, 400, 400],
    }
