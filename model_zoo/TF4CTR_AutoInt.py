from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_AutoInt(TwinModel):
    """TF4CTR-AutoInt: self-attention between fields as the simple encoder beside an MLP.

    AutoInt lets the fields of a sample attend to each other, AutoInt+ adds an MLP on the same
    embeddings. Attention is the simple encoder, since its interactions are explicit and its layers
    few and narrow; the MLP finds implicit ones. The base model is FuxiCTR's AutoInt with
    ``dnn_hidden_units`` (AutoInt+).
    """

    base_model = "AutoInt"
    baseline = {"fusion": "sum"}
    paper = "AutoInt, arXiv 1810.11921"
    defaults = TwinModel.defaults | {
        "simple_encoder": "self_attention",
        "simple_num_layers": 3,
        "simple_attention_dim": 64,
        "simple_num_heads": 2,
        "complex_encoder": "mlp",
        "complex_hidden_units": [400, 400, 400],
    }
