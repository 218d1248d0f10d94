"""A FuxiCTR checkout: its experiments and pairs of its models by our command line, and its scripts.

Slow, and run where there is a checkout: ``$FUXICTR_HOME``, or ``../shared/peers/FuxiCTR``. It is
copied first: encoded data are written beside the raw ones. A stand-in of two models is always
there.
"""

import inspect
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from helpers import SHARED
from programs import fresh, run_program
from trained_runs import OneStream

import model_zoo
from fuxictr_tf4ctr.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from zoo_exports import pair_params

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("FUXICTR_HOME") or SHARED / "peers" / "FuxiCTR")
# Of FuxiCTR's main of June 2026: data sets that the configuration lacks
ABSENT = {"APG_DCNv2_test", "DeepFM_test", "FFMv2_test"}
# Their csv files are in git, not in every copy of it.
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


@pytest.mark.slow
def test_every_test_experiment_of_the_zoo(checkout, tmp_path, capsys):
    status, messages = {}, {}
    for file in sorted(checkout.glob("model_zoo/**/config/model_config.yaml")):
        if "_tf" not in file.parts[-3]:
            for expid in yaml.safe_load(file.read_text()):
                if expid.endswith("_test"):
                    status[expid] = run(checkout, file.parent, expid, tmp_path / expid)
                    messages[expid] = capsys.readouterr().err
    failed = {expid for expid, code in status.items() if code}
    without = set() if (checkout / "data" / "tiny_mtl").is_dir() else SEVERAL_LABELS
    assert failed == ABSENT | without, {expid: messages[expid][-500:] for expid in failed}
    assert len(status) - len(failed) >= 48
    for expid in without:
        assert "data set 'tiny_mtl' is not there" in messages[expid]
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


@pytest.mark.slow
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


# As python SCRIPT does, after what fuxictr_tf4ctr.pth of an installation does, or not.
RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
WITH_US = f"sys.path.append({str(ROOT)!r}); import fuxictr_tf4ctr_zoo; "


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 10))
def test_fuxictrs_scripts_say_the_same_with_and_without_us(
    number, checkout, tmp_path, site_without_us
):
    """Demo examples 1 to 8 and the experiment script, by the checkout's own fuxictr."""
    (tmp_path / "fuxictr").symlink_to(checkout / "fuxictr")
    if not (site_without_us / "keras_preprocessing").exists():  # required, for raw sequences
        (tmp_path / "keras_preprocessing").mkdir()
        (tmp_path / "keras_preprocessing" / "sequence.py").write_text("pad_sequences = None\n")
    script = next(checkout.glob(f"demo/example{number}_*.py"), checkout / "experiment/run_expid.py")
    shutil.copytree(checkout / "model_zoo" / "DCNv2" / "config", tmp_path / "config")
    datasets = tmp_path / "config" / "dataset_config.yaml"
    datasets.write_text(datasets.read_text().replace("../../data", str(checkout / "data")))
    given = ["--config", str(tmp_path / "config"), "--expid", "DCNv2_test"]
    options = given if script.name == "run_expid.py" else []
    start = fresh(site_without_us, tmp_path)
    found = os.pathsep.join(map(str, (tmp_path, site_without_us)))  # by processes it starts
    said = []
    for code in (RUN, WITH_US + RUN):
        done = run_program(
            *("-c", start + code, script, *options),
            cwd=script.parent,
            PYTHONPATH=found,
        )
        shown = re.findall(r"Total number .*|\[Metrics\] .*|^\w+Error: .*", done.stderr, re.M)
        said.append((done.returncode, shown))
    assert said[0] == said[1]
    # The checkout of the reference material lacks the csv files.
    assert done.returncode == 0 or "Invalid data path" in shown[-1], done.stderr


MODEL = f"""
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

{inspect.getsource(OneStream)}
"""


@pytest.mark.parametrize("file_format", ["parquet", "npz"])
def test_a_stand_in_for_a_checkout(file_format, tmp_path, monkeypatch):
    """As FuxiCTR lays them out: code and experiment of a model together, encoded data elsewhere."""
    monkeypatch.setattr(model_zoo, "__path__", list(model_zoo.__path__))
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        ids = rng.integers(1, 6, (2, 300))
        columns = {"a": ids[0], "b": ids[1], "label": (ids.sum(0) % 2).astype(float)}
        if file_format == "npz":
            np.savez(data / f"{split}.npz", **columns)
        else:
            pl.DataFrame(columns).write_parquet(data / f"{split}.parquet")
    spec = {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 7}
    content = {"dataset_id": "tiny", "labels": ["label"], "features": [{"a": spec}, {"b": spec}]}
    (data / "feature_map.json").write_text(json.dumps(content))
    files = {f"{s}_data": f"../../data/tiny/{s}.{file_format}" for s in ("train", "valid")}
    datasets = {"tiny": {"data_root": "../../data/", "data_format": file_format, **files}}
    names = [f"StandIn{file_format}{letter}" for letter in "AB"]
    for name in names:
        folder = tmp_path / "model_zoo" / name
        (folder / "config").mkdir(parents=True)
        (folder / "src").mkdir()
        (folder / "src" / "__init__.py").write_text(f"from .{name} import *\n")
        (folder / "src" / f"{name}.py").write_text(MODEL.replace("OneStream", name))
        shared = {"dataset_id": "tiny", "batch_size": 100, "embedding_dim": 4, "num_workers": 3}
        pair = {"model": "TF4CTR_Pair", "simple_model": names[0], "complex_model": names[1]}
        sections = {"alone": shared | {"model": name}, "pair": shared | pair}
        (folder / "config" / "model_config.yaml").write_text(yaml.safe_dump(sections))
        (folder / "config" / "dataset_config.yaml").write_text(yaml.safe_dump(datasets))
    for name, expid in ((names[0], "alone"), (names[1], "alone"), (names[0], "pair")):
        config = tmp_path / "model_zoo" / name / "config"
        assert run(tmp_path, config, expid, tmp_path / "runs") == 0
