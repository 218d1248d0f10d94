from fuxictr_tf4ctr.twin.pair import PairModel


class TF4CTR_Pair(PairModel):
    """TF4CTR-Pair: any two complete FuxiCTR models, ``simple_model`` and ``complex_model``.

    Their logits are fused, and the Twin Focus Loss lets the simple model learn the easy samples,
    the complex one the hard ones:

    ```yaml
    model: TF4CTR_Pair
    simple_model: FM
    complex_model: FinalNet
    complex_block1_hidden_units: [400, 400]
    embedding_dim: 16
    fusion: WSF
    ```

    Models are named as everywhere (``fuxictr list models``) and stay as they are. A parameter goes
    to both, ``simple_<parameter>`` and ``complex_<parameter>`` to one of them.

    * Each model has embedding tables of its own, of the same ``embedding_dim`` unless told
      otherwise. Some FuxiCTR models take the width of their input from the data set's
      ``embedding_dim``; those need that one.
    * A model's own loss (FinalNet's distillation, SIM's auxiliary loss) and its own training step
      (gradient accumulation) are not used; FuxiCTR's regularization covers both models.
    * The logit is what the model gives to its output activation. A model that comes to its
      probability in another way has that inverted, as exactly as float32 allows; logits beyond
      about 16 are lost.
    * Each model gets sequences as it reads them, whole or pooled. Models of several labels, and
      long-sequence models (LongCTR), whose batches another loader makes, are refused.
    """

    base_model = "the sum of both models"
    baseline = {"fusion": "sum"}
    paper = "TF4CTR, arXiv 2405.03167"
