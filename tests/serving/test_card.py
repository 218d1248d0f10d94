"""What an export says of itself and how small its tables may be."""

import json
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.serving.export import export_run
from fuxictr_tf4ctr.serving.graphs import SmallTable, with_small_tables
from fuxictr_tf4ctr.serving.score import Scorer

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")


@pytest.fixture(scope="module")
def exported(demo_run, tmp_path_factory):
    """Exports the demo's run, every kind with every tables once."""

    @cache
    def export(kind, numbers):
        folder = tmp_path_factory.mktemp("tables") / "served"
        return export_run(demo_run, folder, kind, tables=numbers)

    return export


@pytest.mark.parametrize("numbers", ["fp16", "int8"])
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_small_tables_are_exported_and_measured(demo_run, exported, numbers, kind):
    done = exported(kind, numbers)
    assert done.difference < 1e-5
    before, after = done.metrics["fp32"], done.metrics["rounded"]
    assert before == pytest.approx(demo_run.record.test, rel=1e-6)
    assert after["AUC"] == pytest.approx(before["AUC"], abs=2e-3) and after != before
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["tables"] == {"numbers": numbers, "metrics": done.metrics}


def test_a_second_runtime_scores_an_export_alike(demo_run, exported):
    reference = pytest.importorskip("onnx.reference")
    for numbers in ("fp32", "int8"):
        folder = exported("onnx", numbers).folder
        scorer = Scorer(folder)
        columns = {c["name"]: c for c in scorer.manifest["inputs"]}
        batch = next(iter(demo_run.loader("test", batch_size=50)))
        inputs = {name: batch[name].numpy() for name in columns}
        evaluator = reference.ReferenceEvaluator(str(folder / "model.onnx"))
        for ours, theirs in zip(scorer._run(inputs), evaluator.run(None, inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_table_in_few_bytes_is_near_what_it_was():
    torch.manual_seed(0)
    table = nn.Embedding(50, 8, padding_idx=0)
    ids = torch.randint(0, 50, (4, 3))
    rows = table(ids)
    assert (SmallTable(table.weight, "fp16")(ids) - rows).abs().max() < 2e-3
    error = (SmallTable(table.weight, "int8")(ids) - rows).abs()
    assert (error <= rows.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    assert not SmallTable(table.weight, "int8")(torch.tensor([0])).any()


def test_small_tables_leave_the_run_as_it_is(demo_run):
    before = {name: each.clone() for name, each in demo_run.model.state_dict().items()}
    small = with_small_tables(demo_run.model, "int8")
    assert not any(isinstance(module, nn.Embedding) for module in small.modules())
    assert all(
        torch.equal(each, before[name]) for name, each in demo_run.model.state_dict().items()
    )
    with pytest.raises(SettingsError, match=r"int4.*int8"):
        export_run(demo_run, "nowhere", tables="int4")


def test_the_card_holds_what_the_hub_reads(demo_run, tmp_path, capsys):
    folder = tmp_path / "served"
    named = ["--run", str(demo_run.folder), "--output", str(folder)]
    assert main(["export", *named, "--tables", "fp16", "--card"]) == 0
    printed = capsys.readouterr().out
    assert "fp32    " in printed and "fp16    " in printed
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    content = yaml.safe_load(front)
    (model,) = content["model-index"]
    (result,) = model["results"]
    assert model["name"] == "TF4CTR_DCNv2_demo"
    assert result["task"]["type"] == content["pipeline_tag"] == "tabular-classification"
    assert result["dataset"] == {"name": "demo", "type": "demo", "split": "test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "roc_auc": demo_run.record.test["AUC"],
        "log_loss": demo_run.record.test["logloss"],
    }
    for said in (
        demo_run.record.data["fingerprint"],
        "`job`",
        "embedding_dim: 4",
        "score.py",
        "| fp16 tables |",
    ):
        assert said in body
    assert str(demo_run.record.data["folder"]) not in text and "data_root" not in text
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert hub.ModelCard(text).data.eval_results[0].metric_type == "roc_auc"
