"""Tables divided by TorchRec among two gloo processes, against the whole tables of one."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from job import TinyMLP, build, train_model, write_data
from programs import Program
from test_ranks import environment, free_port

from fuxictr_tf4ctr.datasets import H5DataLoader
from fuxictr_tf4ctr.distributed import ALONE, Ranks
from fuxictr_tf4ctr.distributed.cost import WHOLE, sharding_problems
from fuxictr_tf4ctr.engines import torchrec as torchrec_engine
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.experiment import check_workers, run_experiment
from fuxictr_tf4ctr.settings.reading import load_settings
from fuxictr_tf4ctr.training import evaluate, load_weights
from fuxictr_tf4ctr.training.checkpoints import merge_weights
from fuxictr_tf4ctr.training.shards import tables_unmade

JOB = Path(__file__).with_name("sharded_job.py")


def needs_torchrec():
    """TorchRec is installed beside few versions of PyTorch: docs/scaling.md."""
    return pytest.importorskip("torchrec", exc_type=(ImportError, OSError))


def results_of(job: str, size: int, folder: Path, killed: bool = False) -> list[dict]:
    """Let so many ranks do a job, and return what each returned."""
    port = free_port()
    processes = [
        Program(JOB, folder, job, cwd=folder, **environment(rank, size, port))
        for rank in range(size)
    ]
    errors = [process.communicate()[1] for process in processes]
    ends = [0] * (size - 1) + [-signal.SIGKILL if killed else 0]
    assert [process.returncode for process in processes] == ends, errors
    return [torch.load(folder / f"{job}{rank}.pt") for rank in range(size)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder of the data, and what each of two ranks returned."""
    needs_torchrec()
    from sharded_job import BIG

    base = tmp_path_factory.mktemp("sharded")
    for name, apart in (("two", 1), ("big", BIG // 12)):
        (base / name).mkdir()
        write_data(base / name, apart)
    return base / "two", results_of("work_of_two", 2, base / "two", killed=True)


@pytest.fixture(scope="module")
def three(ranks):
    """The folder, and what each of three ranks returned that went on with what two began."""
    folder = ranks[0].with_name("three")
    return folder, results_of("work_of_three", 3, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_losses_metrics_and_weights_are_those_of_whole_tables(ranks, number):
    needs_torchrec()
    from sharded_job import CASES, UNCLIPPED, make

    folder, results = ranks
    case = list(CASES)[number]
    model = make(case[0], folder, **CASES[case])
    expected = train_model(model, WHOLE, folder, ALONE, 2, None, UNCLIPPED)
    check_alike([result[case] for result in results], (expected, model.state_dict()))


def check_alike(results, expected):
    for evaluations, _ in results:
        for ours, theirs in zip(evaluations, expected[0], strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
            assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=2e-4)
            assert ours["best"] == theirs["best"]
    assert results[0][1].keys() == expected[1].keys()
    for name, whole in expected[1].items():
        torch.testing.assert_close(results[0][1][name], whole, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_training_ends_as_one_that_was_not_cut_off(ranks):
    first = ranks[1][0]  # the others show gate weights of their own last rows
    evaluations, weights = first["resumed"]
    assert evaluations == first["whole run"][0]
    for name, whole in first["whole run"][1].items():
        assert torch.equal(weights[name], whole)


@pytest.mark.slow
def test_more_ranks_go_on_with_what_two_began(ranks, three):
    folder, results = three
    check_alike([result["moved"] for result in results], ranks[1][0]["whole run"])
    for result in results:
        assert result["steps"] == {(12,)}  # Adam's bias depends on them
        assert "rank-00001.safetensors: is missing" in result["lost"]
        assert f"remove {folder / 'lost' / 'step-'}" in result["lost"]


def memory_peak(since: int | None = None) -> int:
    """Bytes of memory that this process has, or by how many more it had at most since then."""
    if since is None:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return peak - (since or 0)


@pytest.mark.slow
def test_a_table_that_no_rank_can_hold_is_trained_saved_resumed_merged_and_predicted_from(three):
    from sharded_job import BIG_BYTES, WITHOUT, big_map

    folder = three[0].with_name("big")
    # Ranks refused the memory of a whole table; rank 1 was killed while it saved step 8.
    left = three[1][0]["big"]["found"]
    assert [name for name in left if name.endswith("state")] == [
        f"step-{step:012d}.state" for step in (4, 6)
    ]
    assert f"step-{8:012d}.shards" in left
    best = max(record["metrics"]["AUC"] for record in three[1][0]["big"]["evaluations"])
    before = memory_peak()
    path = folder / "tiny" / "model.model"
    assert merge_weights(path)
    with tables_unmade(noted=False):
        model = build(TinyMLP, folder, big_map(), **WITHOUT)
    load_weights(model, path)
    rows = H5DataLoader(model.feature_map, folder / "valid.h5", split="valid", batch_size=50)
    assert evaluate(model, rows, ["AUC"]) == pytest.approx({"AUC": best}, rel=1e-6)
    assert memory_peak(before) < 0.75 * BIG_BYTES
    assert path.stat().st_size > BIG_BYTES


def plain_step(folder: Path, width: int):
    from sharded_job import Lookups, lookup_batch, lookup_map, step

    model = build(Lookups, folder, lookup_map(), width=width)
    return model, step(model, lookup_batch())


@pytest.mark.slow
def test_lookups_of_shared_tables_sequences_and_padding(ranks):
    needs_torchrec()
    folder, results = ranks
    model, outputs = plain_step(folder, width=6)
    model.optimizer.step()
    assert torch.equal(torch.cat([result["sgd"]["outputs"] for result in results]), outputs)
    assert results[0]["sgd"]["weights"].keys() == model.state_dict().keys()
    for name, whole in model.state_dict().items():
        torch.testing.assert_close(results[0]["sgd"]["weights"][name], whole)
    for result in results:
        assert "OwnFiles writes its weights its own way" in result["own files"]
        assert "model.shards: not seen on" in result["not seen"]
        assert "has 0.0 GB (for each of its 2 ranks)" in result["no room"]
        assert "rank 1 of 2 would get no row of" in result["no row"]
        assert result["sgd"]["parameters"] == 0  # all are divided, none is left beside
        assert result["sgd"]["outside"]
        assert "beside FuxiCTR's embedding layers" in result["sgd"]["beside"]
        assert "uses a table of an embedding layer in another place too" in result["tied"]
    assert not results[1]["sgd"]["weights"]


@pytest.mark.slow
def test_row_wise_adagrad_keeps_the_mean_square_of_a_row(ranks):
    needs_torchrec()
    folder, results = ranks
    model, _ = plain_step(folder, width=4)
    for name, weights in model.named_parameters():
        scale = weights.grad.square().mean(dim=1, keepdim=True).sqrt() + 1e-8
        expected = weights.detach() - 0.5 * weights.grad / scale
        torch.testing.assert_close(results[0]["row_wise_adagrad"]["weights"][name], expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"table_sharding": None, "table_optimizer": "sgd"}, "table_optimizer is for table_shard"),
        ({"table_learning_rate": 0.1}, "table_learning_rate is for table_sharding"),
        ({"table_sharding": "auto", "embedding_regularizer": 0.1}, "set it to 0"),
        ({"table_sharding": "auto", "cowclip": True}, "cowclip does not go with table_sharding"),
        ({"table_sharding": "auto", "table_optimizer": "adam"}, "take row_wise_adagrad or adagrad"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(params, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (problem,) = sharding_problems(params)
    assert message in problem
    assert "adam" not in problem or not list(sharding_problems(params | {"gpu": 0}))


def test_a_missing_torchrec_is_said_with_the_settings(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'fuxictr-tf4ctr\[torchrec\]'"):
        load_settings("TF4CTR_demo", overrides={"table_sharding": "auto"})


def test_a_torchrec_that_cannot_be_loaded_is_said_before_anything_is_written(monkeypatch, tmp_path):
    class Two(Ranks):
        size = 2

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    overrides = {"table_sharding": "auto", "embedding_regularizer": 0, "model_root": str(tmp_path)}
    settings = load_settings("TF4CTR_demo", overrides=overrides)
    module = "fuxictr_tf4ctr.engines.torchrec.sharded_tables"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr(torchrec_engine, "sharded_tables", raising=False)
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(SettingsError, match="TorchRec cannot be loaded"):
        run_experiment(settings, ranks=Two())
    assert not list(tmp_path.iterdir())


def test_one_worker_has_nobody_to_divide_tables_with(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    overrides = {"table_sharding": "auto", "embedding_regularizer": 0}
    settings = load_settings("TF4CTR_demo", overrides=overrides)
    with pytest.raises(SettingsError, match="give --workers 2 or more"):
        check_workers(settings, 1)
