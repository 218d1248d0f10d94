"""Small things many tests build: feature maps and batches."""

import json
from pathlib import Path

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel

SHARED = Path(__file__).resolve().parents[2] / "shared"

FEATURES = {
    "user": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 7},
    "item": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 11},
    "city": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 5},
}
# One feature of every kind that FuxiCTR knows, but for pretrained tables, which need a file.
ALL_KINDS = FEATURES | {
    "price": {"type": "numeric", "source": ""},
    "bought": {
        "type": "sequence",
        "source": "",
        "padding_idx": 0,
        "vocab_size": 11,
        "max_len": 4,
        "share_embedding": "item",
        "feature_encoder": "layers.MaskedAveragePooling()",
    },
    "tags": {
        "type": "sequence",
        "source": "",
        "padding_idx": 0,
        "vocab_size": 6,
        "max_len": 3,
        "feature_encoder": "layers.MaskedSumPooling()",
    },
    "image": {"type": "embedding", "source": "", "pretrain_dim": 3},
    "group": {"type": "meta"},
}


def make_feature_map(features=FEATURES, labels=("label",), dataset_id="tiny", data_dir=""):
    """Build a FuxiCTR FeatureMap from feature specifications."""
    feature_map = FeatureMap(dataset_id, str(data_dir))
    feature_map.features.update({name: dict(spec) for name, spec in features.items()})
    feature_map.labels = list(labels)
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = 8
    feature_map.set_column_index()
    return feature_map


def load_feature_map(path: Path) -> FeatureMap:
    """Read a feature_map.json without FuxiCTR's logging."""
    stored = json.loads(path.read_text())
    features = {name: spec for entry in stored["features"] for name, spec in entry.items()}
    return make_feature_map(features, stored["labels"], stored["dataset_id"])


def on_device(model, device):
    """Move a model that was built on the CPU, and with it where it takes its batches."""
    for module in model.modules():  # the models of a pair
        if isinstance(module, BaseModel):
            module.device = device
    return model.to(device)


def random_batch(feature_map, rows=6, seed=0):
    """Draw a batch that fits a feature map, labels included."""
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for name, spec in feature_map.features.items():
        kind = spec["type"]
        if kind == "numeric":
            batch[name] = torch.randn(rows, generator=generator)
        elif kind == "embedding":
            batch[name] = torch.randn(rows, spec["pretrain_dim"], generator=generator)
        elif kind == "meta":
            batch[name] = torch.arange(rows) % 2
        else:
            shape = (rows, spec["max_len"]) if kind == "sequence" else (rows,)
            batch[name] = torch.randint(0, spec["vocab_size"], shape, generator=generator)
    for label in feature_map.labels:
        batch[label] = (torch.arange(rows) % 2).float()
    return batch
