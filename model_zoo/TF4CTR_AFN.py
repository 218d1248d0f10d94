from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_AFN(TwinModel):
    """TF4CTR-AFN: logarithmic neurons as the simple encoder beside an MLP.

    AFN learns the order of each interaction: a logarithmic neuron is a product of fields, each
    raised to a learned power. AFN+ adds an MLP with embedding tables of its own. The neurons under
    a shallow MLP are the simple encoder, since their interactions are explicit. As in AFN+ each
    encoder has its own tables, here those of the sample selection SER.

    The base model is FuxiCTR's AFN with ``ensemble_dnn`` (AFN+); the fusion ``affine`` is its
    ensemble layer.
    """

    base_model = "AFN"
    baseline = {"fusion": "affine", "simple_own_embedding": True}
    paper = "AFN, arXiv 1909.03276"
    defaults = TwinModel.defaults | {
        "simple_encoder": "afn",
        "simple_logarithmic_neurons": 600,
        "simple_hidden_units": [400],
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
        "batch_norm": True,
    }
