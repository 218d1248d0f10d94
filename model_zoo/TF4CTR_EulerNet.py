from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_EulerNet(TwinModel):
    """TF4CTR-EulerNet: an MLP as the simple encoder beside Euler interactions.

    EulerNet reads embeddings as phases of complex numbers: products of powers of fields become
    linear maps of log-modulus and phase, so that the orders of interactions are learned like any
    weights. It has one stream, which is the complex encoder. The base model is EulerNet but for one
    bias: EulerNet applies its last Linear to real and imaginary parts and adds both, so that its
    bias counts twice; here it counts once.
    """

    base_model = "EulerNet"
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "EulerNet, arXiv 2304.10711"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "euler",
        "complex_num_orders": [7],
    }
