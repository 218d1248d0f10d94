"""Every experiment of a FuxiCTR checkout's zoo, and pairs of its models, run by our command line.

Slow, and run where there is a checkout: ``$FUXICTR_HOME``, or ``../shared/peers/FuxiCTR``. It is
copied first: encoded data are written beside the raw ones.
"""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import SHARED

import model_zoo
from fuxictr_tf4ctr.cli import main

pytestmark = pytest.mark.slow
HOME = Path(os.environ.get("FUXICTR_HOME") or SHARED / "peers" / "FuxiCTR")
# Of FuxiCTR's main of June 2026: data sets that the configuration, or the checkout, lacks
ABSENT = {"APG_DCNv2_test", "DeepFM_test", "FFMv2_test"}
SEVERAL_LABELS = {"MMoE_test", "PLE_test", "ShareBottom_test"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    if not (HOME / "model_zoo").is_dir():
        pytest.skip(f"no FuxiCTR checkout at {HOME}")
    copy = tmp_path_factory.mktemp("checkout") / "FuxiCTR"
    shutil.copytree(HOME, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = list(model_zoo.__path__)
    yield copy
    model_zoo.__path__ = before


def run(checkout, config, expid, output):
    command = ["run", "--config", str(config), "--expid", expid, "--zoo", str(checkout)]
    return main([*command, "--output", str(output), "--set", "epochs=1", "--set", "verbose=0"])


def test_every_test_experiment_of_the_zoo(checkout, tmp_path, capsys):
    status, messages = {}, {}
    for file in sorted(checkout.glob("model_zoo/**/config/model_config.yaml")):
        if "_tf" not in file.parts[-3]:
            for expid in yaml.safe_load(file.read_text()):
                if expid.endswith("_test"):
                    status[expid] = run(checkout, file.parent, expid, tmp_path / expid)
                    messages[expid] = capsys.readouterr().err
    failed = {expid for expid, code in status.items() if code}
    assert failed == ABSENT | SEVERAL_LABELS, {expid: messages[expid][-500:] for expid in failed}
    assert len(status) - len(failed) >= 48
    for expid in SEVERAL_LABELS:
        assert "predicts several labels" in messages[expid] and "run_expid.py" in messages[expid]
    for expid in ABSENT:
        assert "unknown dataset_id" in messages[expid]


DIN = {"din_target_field": "adgroup_id", "din_sequence_field": "click_sequence"}
BST = {"bst_target_field": "adgroup_id", "bst_sequence_field": "click_sequence"}
PAIRS = [("DCN", {}, "DIN", DIN), ("DIN", DIN, "DeepFM", {}), ("BST", BST, "DIN", DIN)]
PAIRS += [("TF4CTR_DCN", {}, "DIN", DIN), ("FM", {}, "TF4CTR_DCNv2", {})]


@pytest.mark.parametrize(("simple", "simple_options", "complex_", "complex_options"), PAIRS)
def test_pairs_that_read_sequences_each_in_its_way(
    simple, simple_options, complex_, complex_options, checkout, tmp_path
):
    section = {"model": "TF4CTR_Pair", "simple_model": simple, "complex_model": complex_}
    section |= {f"simple_{key}": value for key, value in simple_options.items()}
    section |= {f"complex_{key}": value for key, value in complex_options.items()}
    section |= {"dataset_id": "tiny_seq", "batch_size": 128, "embedding_dim": 4}
    data = checkout / "data" / "tiny_seq"
    files = {f"{split}_data": str(data / f"{split}.npz") for split in ("train", "valid", "test")}
    dataset = {"data_root": str(data.parent), "data_format": "npz", **files}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump({"pair": section}))
    (tmp_path / "dataset_config.yaml").write_text(yaml.safe_dump({"tiny_seq": dataset}))
    assert run(checkout, tmp_path, "pair", tmp_path / "runs") == 0
