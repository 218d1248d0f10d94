from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_DIN(TwinModel):
    """TF4CTR-DIN: an MLP on pooled sequences beside one with target attention.

    DIN pools a user's behaviour sequence by how much each step has to do with the item at hand. The
    simple encoder is a small MLP on sequences pooled evenly; the complex one sees them through
    target attention. The data set needs a feature of type ``sequence``. Where ``complex_target``
    and ``complex_sequence`` do not name the fields, those are taken that share an embedding:

    ```yaml
    feature_cols:
      - {name: item_id, active: true, dtype: str, type: categorical}
      - {name: clicks, active: true, dtype: str, type: sequence, splitter: ^, max_len: 50,
         share_embedding: item_id, feature_encoder: layers.MaskedAveragePooling()}
    ```

    The ``feature_encoder`` pools the sequence for the simple encoder, and for the gates of ``GM``
    and ``MoE``. Attention reads the embedding tables themselves, and its output takes the place of
    the pooled sequence behind gate or experts, under every sample selection. FuxiCTR's DIN can also
    join several fields into one target (item and category, say); here each sequence has its own.
    """

    base_model = "DIN"
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "DIN, arXiv 1706.06978"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [64, 64],
        "complex_encoder": "target_attention",
        "complex_hidden_units": [512, 128, 64],
    }
