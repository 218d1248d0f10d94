"""Models as FuxiCTR's users write them, with what is awkward to export."""

from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class Foreign(BaseModel):
    """A model on fields that are embedded alike; subclasses say what happens to them."""

    def __init__(self, feature_map, embedding_dim=4, **kwargs):
        given = {"task": "binary_classification", "metrics": ["AUC"], "verbose": 0}
        given["model_root"] = "unused"
        super().__init__(feature_map, **(given | kwargs))
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.build(feature_map.num_fields, embedding_dim)

    def forward(self, inputs):
        fields = self.embedding_layer(self.get_inputs(inputs))
        return {"y_pred": self.output_activation(self.logits(fields))}


class Triangle(Foreign):
    """Selects the upper triangle of inner products by a mask, as DLRM, FwFM and PNN do."""

    def build(self, num_fields, dim):
        self.products = InnerProductInteraction(num_fields, output="inner_product")
        self.mlp = MLP_Block(num_fields * (num_fields - 1) // 2, hidden_units=[5], output_dim=1)

    def logits(self, fields):
        return self.mlp(self.products(fields))


class Packed(Foreign):
    """Packs sequences by their lengths, as DIEN does."""

    def build(self, num_fields, dim):
        self.gru, self.fc = nn.GRU(dim, dim, batch_first=True), nn.Linear(dim, 1)

    def logits(self, fields):
        lengths = (fields.abs().sum(-1) > 0).sum(1).cpu()
        packed = pack_padded_sequence(fields, lengths, batch_first=True, enforce_sorted=False)
        return self.fc(self.gru(packed)[1][0])


class OwnBatches(Triangle):
    """Reads batches of its own loader, as LongCTR's models do."""

    def get_inputs(self, inputs, feature_source=None):
        fields, _mask = inputs
        return super().get_inputs(fields, feature_source)


class TwoTasks(Triangle):
    """Predicts two tasks, as MMoE does."""

    def forward(self, inputs):
        y_pred = super().forward(inputs)["y_pred"]
        return {"click_pred": y_pred, "buy_pred": y_pred}
