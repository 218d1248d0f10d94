from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_DESTINE(TwinModel):
    """TF4CTR-DESTINE: disentangled self-attention as the simple encoder beside an MLP.

    DESTINE splits self-attention between fields into a pairwise part, whose queries and keys are
    whitened, and a unary part, the importance of a field alone. A logistic regression is added to
    the final logit only, as in TF4CTR-xDeepFM; the fusion ``biased_sum`` of the base model carries
    its bias.
    """

    base_model = "DESTINE"
    baseline = {"fusion": "biased_sum"}
    paper = "DESTINE, arXiv 2108.08574"
    defaults = TwinModel.defaults | {
        "simple_encoder": "disentangled_attention",
        "simple_num_layers": 2,
        "simple_attention_dim": 64,
        "simple_num_heads": 2,
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
        "linear_logit": True,
    }
