"""Several gloo processes against one: the same losses, metrics and decisions."""

import shutil
import socket
from pathlib import Path

import pytest
import torch
from job import (
    METRICS,
    ROWS,
    fuxictr_model,
    row_weights,
    scored_rows,
    sent_early,
    train,
    twin,
    write_data,
)
from programs import Program

from fuxictr_tf4ctr.distributed import ALONE, joined_ranks, synchronise_batch_norm
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics

JOB = Path(__file__).with_name("job.py")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Data, what one process makes of them, and the state it leaves after half the epochs."""
    folder = tmp_path_factory.mktemp("alone")
    write_data(folder)
    expected = {
        "twin": train(twin, folder, ALONE),
        "fuxictr": train(fuxictr_model, folder, ALONE),
        "resumed": train(twin, folder, ALONE, 4),
    }
    train(twin, folder, ALONE, 2, folder / "state")
    return folder, expected


@pytest.fixture(scope="module", params=[2, 4])
def together(request, alone, tmp_path_factory):
    """What each of several ranks returned."""
    size, port = request.param, free_port()
    folder = tmp_path_factory.mktemp(f"ranks{size}")
    shutil.copytree(alone[0], folder, dirs_exist_ok=True)
    processes = [
        Program(JOB, folder, cwd=folder, **environment(rank, size, port)) for rank in range(size)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize("model", ["twin", "fuxictr", "resumed"])
def test_losses_metrics_and_decisions_are_those_of_one_process(alone, together, model):
    for rank in together:
        for ours, expected in zip(rank[model], alone[1][model], strict=True):
            assert ours["best"] == expected["best"]
            assert ours["learning_rate"] == expected["learning_rate"]
            for part in ("metrics", "losses"):
                assert ours[part] == pytest.approx(expected[part], rel=2e-4)
            assert ours["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
        assert rank[model] and [r["metrics"] for r in rank[model]] == [
            r["metrics"] for r in together[0][model]
        ]


def test_weighted_metrics_are_those_of_one_process(together):
    y_true, y_pred, _ = scored_rows("plain")
    expected = evaluate_metrics(y_true, y_pred, METRICS[:4], weights=row_weights())
    for rank in together:
        of_rows, of_groups = rank["weighted"]
        assert of_rows == pytest.approx(expected, rel=1e-12) and of_groups is None
        assert of_rows["AUC"] == expected["AUC"]


def test_what_ranks_do_together(together):
    size = len(together)
    for number, rank in enumerate(together):
        assert rank["portion"] == pytest.approx((number + 1) / sum(range(1, size + 1)))
        assert rank["sums"] == [sum(range(1, size + 1)), [2.0 * size]]
        assert rank["bytes"] == 4 * (1 + (1 << 19))
        assert rank["agreed"] == [True, False]
        assert rank["raised"] == [[False, True], [False, False]]
        assert rank["shared"] == "of 0"
        assert rank["shared error"] == "AUC is not defined"
        if Path("/dev/shm").is_dir():
            assert rank["host"] == [[0, 0, 0], [5, 5, 5]]  # rank 0 filled it, rank 1 changed it
        assert rank["host error"] == "AUC is not defined"
        assert rank["agree"] == ""
        assert "rank 1 has lr=1, rank 0 0" in rank["differ"] and "data" not in rank["differ"][60:]
        own_step, switch = rank["refused"]
        assert "OwnStep has a training step or optimizers of its own" in own_step
        assert "sparse_embeddings sees the batch of one process" in switch
    assert together[0]["rows"] == list(range(11))


def test_gradients_go_out_during_the_backward_pass(together):
    expected = sent_early(ALONE)
    for rank in (found["sent early"] for found in together):
        assert expected["early"] == 0 and rank["early"] >= 4 * 600 * 600
        assert rank["idle"] is None
        torch.testing.assert_close(rank["gradients"], expected["gradients"])


@pytest.mark.parametrize("case", ["plain", "ties", "one score", "few"])
def test_metrics_of_spread_rows_are_those_of_all_rows(together, case):
    if case == "few" and len(together) > 3:
        pytest.skip("a loader refuses fewer rows than ranks")
    y_true, y_pred, group_id = scored_rows(case)
    expected = evaluate_metrics(y_true, y_pred, METRICS, group_id)
    for rank in together:
        assert rank["metrics"][case] == pytest.approx(expected, rel=1e-12)
        assert rank["metrics"][case]["AUC"] == expected["AUC"]


def test_rows_without_metrics_are_left_to_a_look_at_all_or_explained(together):
    for rank in together:
        assert rank["metrics"]["not finite"] is None
        assert rank["metrics"]["no label"] is None
        assert "all labels are 1" in rank["metrics"]["one class"]
        assert "each of the 40 groups holds one class" in rank["metrics"]["groups of one class"]
        assert "1 of 11 predictions are not finite numbers" in rank["diverged"]
        assert "in row 5" in rank["diverged"]


def test_exchanged_rows_arrive_where_they_are_sent(together):
    size = len(together)
    everything = [number + 100 * rank for rank in range(size) for number in range(9)]
    for number, rank in enumerate(together):
        goes_here = [n for n in everything if (n % size if n % size != 1 else 0) == number]
        assert rank["exchanged"] == sorted(goes_here)


def test_the_rows_leave_batches_that_differ_in_size_between_ranks():
    assert all(ROWS % size for size in (2, 4, 24))


def test_ranks_that_do_not_come_are_named(monkeypatch):
    for name, value in environment(0, 3, free_port()).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(SettingsError, match=r"1 of 3 ranks joined within 0.5 s.* rank 1, 2 did not"),
        joined_ranks(on_gpu=False, seconds=0.5),
    ):
        pass


@pytest.fixture
def agents_store(monkeypatch):
    """A launcher's store, there before the ranks and after them; rank 1 of 3 looks at it."""
    port = free_port()
    variables = environment(1, 3, port) | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tcp = torch.distributed.TCPStore("127.0.0.1", port, 3, True, wait_for_workers=False)
    return torch.distributed.PrefixStore("fuxictr_tf4ctr", tcp)


@pytest.mark.parametrize(
    ("came_before", "message"),
    [
        ([], "rank 0 did not join within 0.5 s"),
        ([0], "2 of 3 ranks joined within 0.5 s, from .*; rank 2 did not"),
        ([0, 1, 2], "rank 0 did not join within 0.5 s"),  # to a meeting before a restart
    ],
)
def test_a_later_rank_names_who_is_missing(agents_store, came_before, message):
    for rank in came_before:
        agents_store.set("meeting", "earlier")
        agents_store.set(f"earlier/{rank}", "some host")
        agents_store.add(f"earlier/{rank}/times", 1)
    with pytest.raises(SettingsError, match=message), joined_ranks(on_gpu=False, seconds=0.5):
        pass


def test_what_ranks_note_is_known_to_those_after_them(agents_store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_ranks(on_gpu=False) as first:
        assert first.recall("run") is None
        first.remember("run", "folder")
    with joined_ranks(on_gpu=False) as second:
        assert second.recall("run") == "folder"


def test_a_first_rank_that_cannot_be_reached_is_named(monkeypatch):
    for name, value in environment(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(SettingsError, match=r"rank 1 on .* does not reach rank 0 at 127.0.0.1"),
        joined_ranks(on_gpu=False, seconds=0.5),
    ):
        pass


def test_an_incomplete_environment_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(SettingsError, match="RANK, MASTER_ADDR, MASTER_PORT not"),
        joined_ranks(on_gpu=False),
    ):
        pass


def test_without_an_environment_a_process_is_alone():
    with joined_ranks(on_gpu=False) as ranks:
        assert ranks is ALONE
    assert ALONE.gather([torch.arange(3)])[0].tolist() == [0, 1, 2]


@pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this PyTorch was built without gloo"
)
@pytest.mark.parametrize("shape", [(9, 4), (5, 4, 3)])
def test_synchronised_batch_norm_of_one_rank_is_pytorchs(monkeypatch, shape):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    plain, ours = (torch.nn.Sequential(torch.nn.BatchNorm1d(4)).double() for _ in range(2))
    synchronise_batch_norm(ours)
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gradients = []
    for model in (plain, ours):
        for _ in range(2):
            outputs = model(inputs)
        gradients.append(torch.autograd.grad((outputs**3).sum(), [inputs, *model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(plain.state_dict(), ours.state_dict())
    torch.testing.assert_close(plain.eval()(inputs), ours.eval()(inputs))
