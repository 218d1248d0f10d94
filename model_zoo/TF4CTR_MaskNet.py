from fuxictr_tf4ctr.twin import TwinModel


class TF4CTR_MaskNet(TwinModel):
    """TF4CTR-MaskNet: a shallow MLP as the simple encoder beside parallel mask blocks.

    MaskNet multiplies the layer-normalized embeddings with masks computed from the sample itself;
    its parallel form, the base model, feeds several such blocks to one MLP. It has one stream,
    which is the complex encoder.
    """

    base_model = "MaskNet"
    baseline = {"simple_encoder": "none", "fusion": "CF"}
    paper = "MaskNet, arXiv 2102.07619"
    defaults = TwinModel.defaults | {
        "simple_encoder": "mlp",
        "simple_hidden_units": [400, 400],
        "complex_encoder": "mask_net",
        "complex_num_blocks": 3,
        "complex_block_dim": 64,
        "complex_hidden_units": [400, 400, 400],
    }
