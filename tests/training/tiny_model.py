"""A small FuxiCTR model and its data, as a user of FuxiCTR would write them."""

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

VOCAB = 12


class EmbeddingMLP(BaseModel):
    """Embedding + MLP, the shape of every model in FuxiCTR's zoo."""

    def __init__(self, feature_map, learning_rate=0.01, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim=4)
        self.mlp = MLP_Block(
            input_dim=feature_map.num_fields * 4,
            output_dim=1,
            hidden_units=[8],
            output_activation=self.output_activation,
            dropout_rates=0.1,
            batch_norm=True,
        )
        self.compile("adam", "binary_crossentropy", learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        """Score a batch of {column: tensor}."""
        embeddings = self.embedding_layer(self.get_inputs(inputs))
        return {"y_pred": self.mlp(embeddings.flatten(start_dim=1))}


class Batches:
    """Batches in a fixed order, with a length as FuxiCTR's loaders have."""

    def __init__(self, columns, batch_size):
        rows = len(columns["label"])
        self.batches = [
            {name: column[start : start + batch_size] for name, column in columns.items()}
            for start in range(0, rows, batch_size)
        ]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def build_feature_map(group_id=None):
    """Two categorical fields and a meta column of groups."""
    feature_map = FeatureMap("tiny", "unused")
    for name in ("user", "item"):
        feature_map.features[name] = {
            "source": name,
            "type": "categorical",
            "padding_idx": 0,
            "vocab_size": VOCAB,
        }
    feature_map.features["query"] = {"type": "meta", "source": ""}
    feature_map.labels = ["label"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.group_id = group_id
    feature_map.set_column_index()
    return feature_map


def build_model(folder, model_class=EmbeddingMLP, group_id=None, **kwargs):
    """A model of fixed initial weights, its checkpoint in ``folder``, which FuxiCTR must find."""
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    settings = {"verbose": 0, "metrics": ["AUC", "logloss"], "model_id": "model"} | kwargs
    return model_class(build_feature_map(group_id), model_root=str(folder), **settings)


def build_batches(seed, rows=200, batch_size=20):
    """Rows whose label depends on user and item."""
    torch.manual_seed(seed)
    user, item = torch.randint(1, VOCAB, (2, rows))
    label = (torch.rand(rows) < torch.sigmoid((user - item) / 3)).float()
    query = torch.arange(rows) // 8
    return Batches({"user": user, "item": item, "query": query, "label": label}, batch_size)
