"""Every experiment of a FuxiCTR checkout's zoo, and pairs of its models, run by our command line.

Slow, and run where there is a checkout: ``$FUXICTR_HOME``, or ``../shared/peers/FuxiCTR``. It is
copied first: encoded data are written beside the raw ones.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from helpers import SHARED

import model_zoo
from fuxictr_tf4ctr.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from zoo_exports import pair_params

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


# Simple and complex model; what reads sequences as steps beside what reads them pooled, and others.
PAIRS = """
DCN DIN, DIN DCN, DIN DeepFM, BST DIN, DIEN DIN, LR DIEN, DMIN DMR, TransAct DIN, FM TransAct,
DNN BST, TF4CTR_DCN DIN, TF4CTR_DCN DIEN, FM TF4CTR_DCNv2, LR xDeepFM, AutoInt FiGNN, FwFM DLRM,
EulerNet WuKong, GDCNP PNN, FFM MaskNet, LongCTR.ETA LongCTR.SIM, LongCTR.ETA DCN, MMoE DNN, DNN QNN
"""
PAIRS = [pair.split() for pair in PAIRS.replace("\n", " ").split(", ")]
# The others train: exit status and message of those that cannot.
REFUSED = {
    "LongCTR.ETA": (
        2,
        "LongCTR.ETA is a LongCTR model, whose batches only FuxiCTR's LongCTR loader",
    ),
    "MMoE": (2, "simple_model: MMoE predicts several labels, a twin one"),
    "QNN": (1, "model QNN stopped in "),
}


@pytest.mark.parametrize(("simple", "complex_"), PAIRS)
def test_pairs_train_or_are_refused_in_a_message(
    simple, complex_, checkout, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("FUXICTR_HOME", raising=False)  # --zoo reaches the models inside a pair
    section = pair_params(checkout, (simple, complex_)) | {"batch_size": 128, "embedding_dim": 4}
    data = checkout / "data" / ("tiny_seq" if "click_sequence" in str(section) else "tiny_parquet")
    file_format = "npz" if (data / "train.npz").is_file() else "parquet"
    dataset = {"data_root": str(data.parent), "data_format": file_format}
    dataset |= {
        f"{split}_data": str(data / f"{split}.{file_format}") for split in ("train", "valid")
    }
    section["dataset_id"] = data.name
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump({"pair": section}))
    (tmp_path / "dataset_config.yaml").write_text(yaml.safe_dump({data.name: dataset}))
    expected, message = next(
        (REFUSED[name] for name in (simple, complex_) if name in REFUSED), (0, "")
    )
    assert run(checkout, tmp_path, "pair", tmp_path / "runs") == expected
    told = capsys.readouterr().err.splitlines()
    assert not message or any(message in line for line in told[-4:])
    assert expected != 2 or not (tmp_path / "runs").exists()
