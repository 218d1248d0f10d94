"""A run's folder is all it takes to have its model again."""

import json
import shutil

import pytest
import torch

import fuxictr_tf4ctr
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.runs.loading import load_run, merge_run
from fuxictr_tf4ctr.runs.records import metrics_line
from fuxictr_tf4ctr.training import evaluate
from fuxictr_tf4ctr.training.checkpoints import write_whole
from fuxictr_tf4ctr.training.shards import Piece, begin_save, write_shard


@pytest.fixture
def copied(demo_run, tmp_path):
    """A copy of the demo's run to break."""
    return shutil.copytree(demo_run.folder, tmp_path / "run")


@pytest.mark.parametrize("name", ["demo_run", "mixed_run"])
def test_a_loaded_run_evaluates_as_the_run_did(name, request):
    run = request.getfixturevalue(name)
    for split, recorded in (("valid", run.record.valid), ("test", run.record.test)):
        found = evaluate(run.model, run.loader(split, batch_size=37))
        assert found == pytest.approx(recorded, abs=1e-6)


def test_the_schema_stays_when_the_encoded_data_go(mixed_run, tmp_path):
    folder = shutil.copytree(mixed_run.folder, tmp_path / "run")
    content = json.loads((folder / "run.json").read_text())
    content["data"]["folder"] = str(tmp_path / "gone")
    (folder / "run.json").write_text(json.dumps(content))
    run = fuxictr_tf4ctr.load(folder)
    names = {path.name for path in (folder / "schema").iterdir()}
    expected = {"feature_map.json", "feature_vocab.json", "encoder.json"}
    assert names == expected | {"pretrained_user_again.h5", "rare_tokens.parquet"}
    assert all(
        torch.equal(value, mixed_run.model.state_dict()[key])
        for key, value in run.model.state_dict().items()
    )
    with pytest.raises(DataError, match="gone: holds no encoded data set"):
        run.loader("test")


def test_loading_draws_no_random_numbers(demo_run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_run(demo_run.folder)
    assert torch.equal(torch.rand(3), expected)


def test_other_data_are_refused(copied):
    content = json.loads((copied / "run.json").read_text())
    content["data"]["fingerprint"] = "another"
    (copied / "run.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="holds other data"):
        load_run(copied).loader("test")


def test_an_unknown_split_is_refused(demo_run):
    with pytest.raises(SettingsError, match="no dev split; there: train, valid, test"):
        demo_run.loader("dev")


def divide(folder):
    """Keep the tables of a run as two ranks would have."""
    path = folder / "TF4CTR_DCNv2_demo.model"
    weights = torch.load(path)
    tables = {name: weights.pop(name) for name in list(weights) if "embedding_layers" in name}
    save = begin_save(path, 1)
    for rank in range(2):
        part = slice(2, None) if rank else slice(0, 2)
        write_shard(save, rank, [Piece(name, 2 * rank, tables[name][part]) for name in tables])
    kept = {"save": save.name, "ranks": 2, "tables": {name: name for name in tables}}
    write_whole({"weights": weights, "shards": kept}, path)
    change("table_sharding", "row_wise")(folder)


def test_a_run_of_divided_tables_scores_the_same_when_it_is_merged_and_before(
    copied, demo_run, capsys
):
    divide(copied)
    for said in ("merged", "whole already"):
        for name, each in load_run(copied).model.state_dict().items():
            assert torch.equal(each, demo_run.model.state_dict()[name]), name
        assert main(["evaluate", "--run", str(copied)]) == 0
        assert capsys.readouterr().out.strip() == metrics_line(demo_run.record.test)
        assert main(["merge", str(copied)]) == 0
        assert f"TF4CTR_DCNv2_demo.model: {said}" in capsys.readouterr().out
    assert not list(copied.glob("*.shards"))


def test_a_run_that_is_not_finished_is_not_merged(copied):
    divide(copied)
    change("status", "interrupted")(copied)
    with pytest.raises(SettingsError, match=r"the run is interrupted.*--resume"):
        merge_run(copied)


def change(key, value):
    def apply(folder):
        content = json.loads((folder / "run.json").read_text())
        (content if key in content else content["settings"])[key] = value
        (folder / "run.json").write_text(json.dumps(content))

    return apply


BROKEN = {
    "no run": (lambda folder: (folder / "run.json").unlink(), "name the folder of a run"),
    "no checkpoint": (
        lambda folder: (folder / "TF4CTR_DCNv2_demo.model").unlink(),
        "no checkpoint .* --resume",
    ),
    "cut checkpoint": (
        lambda folder: (folder / "TF4CTR_DCNv2_demo.model").write_bytes(b"PK"),
        "cannot be read",
    ),
    "no schema": (lambda folder: shutil.rmtree(folder / "schema"), "keeps no feature map"),
    "other version": (change("format", 99), "another version.s, or damaged"),
    "other model": (change("embedding_dim", 8), "does not belong to this model"),
    "code in settings": (change("loss", "__import__('os').getcwd()"), "settings.loss=.* must be"),
}


@pytest.mark.parametrize(("break_it", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_runs_are_refused(copied, break_it, message):
    break_it(copied)
    with pytest.raises(DataError, match=message):
        load_run(copied)


def test_what_does_not_exist_is_refused(demo_run, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_run(tmp_path / "nowhere")
    for device in ("cuda:99", "tape"):
        with pytest.raises(SettingsError, match="device"):
            load_run(demo_run.folder, device)


def test_weights_that_are_not_finite_are_refused(copied):
    (file,) = copied.glob("*.model")
    weights = torch.load(file, weights_only=True)
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan")
    torch.save(weights, file)
    with pytest.raises(DataError, match="numbers that are not finite"):
        load_run(copied)
