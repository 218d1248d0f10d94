"""A twin trains, unchanged, under FuxiCTR's own loop and npz loader."""

import json
import textwrap

import numpy as np
import pytest
from programs import run_program

TWINS = ("TF4CTR_DCNv2", "TF4CTR_DeepFM")
# One process of its own: FuxiCTR's loaders import Ray and start worker processes.
SCRIPT = """
import json, logging, sys
import fuxictr_tf4ctr
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
import model_zoo

def main(folder, name):
    params = {
        "model_id": name, "model_root": folder + "/models/", "optimizer": "adam",
        "loss": "binary_crossentropy", "task": "binary_classification", "learning_rate": 0.05,
        "metrics": ["AUC", "logloss"], "monitor": "AUC", "monitor_mode": "max", "epochs": 4,
        "batch_size": 64, "shuffle": True, "num_workers": 1, "verbose": 0, "seed": 1, "gpu": -1,
        "embedding_dim": 4, "embedding_regularizer": 1e-6, "net_regularizer": 0,
        "complex_hidden_units": [8], "early_stop_patience": 2, "data_format": "npz",
        "train_data": folder + "/train.npz", "valid_data": folder + "/valid.npz",
    }
    seed_everything(1)
    feature_map = FeatureMap("tiny", folder)
    feature_map.load(folder + "/feature_map.json", params)
    train_gen, valid_gen = RankDataLoader(feature_map, stage="train", **params)
    model = getattr(model_zoo, name)(feature_map, **params)
    import os; os.makedirs(model.model_dir, exist_ok=True)
    model.count_parameters()
    model.fit(train_gen, validation_data=valid_gen, **params)
    print(json.dumps(model.evaluate(valid_gen)))

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for name in sys.argv[2:]:
        main(sys.argv[1], name)
"""


@pytest.fixture()
def npz_data(tmp_path):
    """400 rows whose label is whether two ids agree in parity: learnable, but not by one field."""
    rng = np.random.default_rng(0)
    for split, rows in (("train", 400), ("valid", 200)):
        a, b = rng.integers(1, 7, rows), rng.integers(1, 9, rows)
        tags = rng.integers(0, 5, (rows, 3))
        np.savez(tmp_path / f"{split}.npz", a=a, b=b, tags=tags, label=((a + b) % 2).astype(float))
    features = [
        {"a": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 8}},
        {"b": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 10}},
        {
            "tags": {
                "type": "sequence",
                "source": "",
                "padding_idx": 0,
                "vocab_size": 5,
                "max_len": 3,
                "feature_encoder": "layers.MaskedAveragePooling()",
            }
        },
    ]
    content = {"dataset_id": "tiny", "labels": ["label"], "features": features}
    (tmp_path / "feature_map.json").write_text(json.dumps(content))
    return tmp_path


def test_fuxictrs_own_loop_and_loader_train_a_twin(npz_data):
    script = npz_data / "train_twin.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = run_program(script, npz_data, *TWINS, cwd=npz_data)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(metrics) == len(TWINS)
    assert min(each["AUC"] for each in metrics) > 0.7, done.stderr[-3000:]
