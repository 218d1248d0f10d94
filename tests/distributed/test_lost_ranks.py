"""Ranks killed and hosts cut off while they train; two hosts are two network namespaces.

That of Ray's workers is with Ray's other tests, which share a cluster.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from lost_ranks import check_that_it_went_on, experiment, record_of, wait_for_a_checkpoint
from programs import FUXICTR, Program

import fuxictr_tf4ctr
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.distributed import cost
from fuxictr_tf4ctr.training import evaluate

ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29511"
DEVICE = "link0"
SHARDED = ("table_sharding=row_wise", "table_optimizer=sgd")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the ranks through /proc"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace at one end of a cable."""

    def __init__(self, number: int, name: str) -> None:
        self.name = name
        self.address = ADDRESSES[number]

    def start(self, folder: Path, *command: str) -> subprocess.Popen:
        """Start a Python program on the host, which knows itself by its own name."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *named, sys.executable, *command],
            cwd=folder,
            env=os.environ | {"GLOO_SOCKET_IFNAME": DEVICE},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cut_off(self) -> None:
        ip("-n", self.name, "link", "set", DEVICE, "down")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts joined by a cable."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2's ip")
    mark = uuid.uuid4().hex[:6]
    pair = [Host(number, f"host{number}-{mark}") for number in range(2)]
    made = []
    try:
        try:
            for host in pair:
                ip("netns", "add", host.name)
                made.append(host)
            first, second = (host.name for host in pair)
            ends = ("type", "veth", "peer", "name", DEVICE, "netns", second)
            ip("link", "add", DEVICE, "netns", first, *ends)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for host in pair:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", DEVICE)
            ip("-n", host.name, "link", "set", DEVICE, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield pair
    finally:
        for host in made:
            ip("netns", "delete", host.name)


def processes_where(test: Callable[[dict[str, str], int], bool]) -> list[int]:
    """Ids of the processes whose environment and parent pass a test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_text().split("\0")
            parent = int((process / "stat").read_text().rsplit(")")[1].split()[1])
        except (OSError, UnicodeDecodeError):
            continue
        if test(dict(word.split("=", 1) for word in words if "=" in word), parent):
            found.append(int(process.name))
    return found


class Loss(NamedTuple):
    """Programs under way, how a rank is lost, and how many programs that leaves."""

    programs: list
    lose: Callable[[], None]
    programs_left: int


def of_a_worker(folder: Path, request) -> Loss:
    """Two ranks of one host, each with half of every table where TorchRec loads; one is killed."""
    try:
        import torchrec  # noqa: F401
    except (ImportError, OSError):
        tables = ()
    else:
        tables = SHARDED
    words = (word for setting in tables for word in ("--set", setting))
    options = ("--workers", "2", "--max-restarts", "1")
    launcher = Program(*FUXICTR, *experiment(*options, *words), cwd=folder)

    def lose():
        def second(variables, parent):
            return parent == launcher.pid and variables.get("RANK") == "1"

        os.kill(processes_where(second)[0], signal.SIGKILL)

    return Loss([launcher], lose, 1)


def torchrun(hosts: list[Host], folder: Path, nodes: str, timeout: str) -> list[subprocess.Popen]:
    """Start a rank on each host, as torchrun does."""
    return [
        host.start(
            folder,
            *("-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"),
            *("--rdzv-id", folder.name, "--max-restarts", "2", "--local-addr", host.address),
            # A store that another host reaches, and a short wait for hosts that may yet come.
            *("--rdzv-conf", f"is_host={int(host is hosts[0])},last_call_timeout=2"),
            *(*FUXICTR, *experiment("--timeout", timeout)),
        )
        for host in hosts
    ]


def kill_second_rank(folder: Path) -> None:
    own = {"RANK": "1", "TORCHELASTIC_RUN_ID": folder.name}.items()
    for process in processes_where(lambda variables, parent: own <= variables.items()):
        os.kill(process, signal.SIGKILL)


def of_a_rank_on_another_host(folder: Path, request) -> Loss:
    programs = torchrun(request.getfixturevalue("hosts"), folder, nodes="2", timeout="60")
    return Loss(programs, lambda: kill_second_rank(folder), 2)


def of_another_host(folder: Path, request) -> Loss:
    hosts = request.getfixturevalue("hosts")
    programs = torchrun(hosts, folder, nodes="1:2", timeout="15")
    return Loss(programs, hosts[1].cut_off, 1)


SLOW = (of_a_rank_on_another_host, of_another_host)


@pytest.mark.parametrize(
    "kind", [of_a_worker, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_the_loss_does_not_show_in_the_result(kind, tmp_path, request):
    loss = kind(tmp_path, request)
    try:
        wait_for_a_checkpoint(tmp_path, lambda: all(p.poll() is None for p in loss.programs))
        loss.lose()
        survivors = loss.programs[: loss.programs_left]
        outputs = [program.communicate(timeout=240) for program in survivors]
    finally:
        for program in loss.programs:
            if program.poll() is None:
                program.kill()
        kill_second_rank(tmp_path)
    for program, (_, errors) in zip(survivors, outputs, strict=True):
        assert program.returncode == 0, errors[-3000:]
    assert sum(output.count("test  AUC") for output, _ in outputs) == 1
    check_that_it_went_on(tmp_path)
    record = record_of(tmp_path)
    assert record["machine"]["workers"] == 2
    results = (tmp_path / "checkpoints" / "results.csv").read_text()
    assert results.count("[exp_id] TF4CTR_demo") == 1
    (run,) = tmp_path.glob("checkpoints/demo/*/*/")
    loaded = fuxictr_tf4ctr.load(run)  # by one process, whatever held the tables
    assert evaluate(loaded.model, loaded.loader("test")) == pytest.approx(record["test"], rel=1e-5)


def test_a_rank_that_never_comes_is_named(tmp_path):
    here = socket.gethostname()
    meeting = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    processes = [
        Program(
            *(*FUXICTR, *experiment("--timeout", "6")),
            **{"cwd": tmp_path, "RANK": str(rank), "LOCAL_RANK": str(rank), **meeting},
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors[-3000:]
        named = f"2 of 3 ranks joined within 6 s, from {here}; rank 2 did not" in errors
        # The one that calls the others may give up first, and take what it knows with it.
        assert named or (process is processes[1] and "rank 0 has ended before" in errors)
    assert not list(tmp_path.glob("checkpoints/*/*"))


def test_what_cannot_work_is_said_before_a_process_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(experiment("--workers", "3", "--set", "batch_size=1000")) == 2
    errors = capsys.readouterr().err
    assert "set it to 999" in errors and "rank" not in errors
    monkeypatch.setattr(cost, "PROCESS", 1 << 50)
    assert main(experiment("--workers", "1000", "--set", "batch_size=1000")) == 2
    errors = capsys.readouterr().err
    assert "--workers 1000: so many processes take 1,048,576,000 GiB" in errors
    assert not list(tmp_path.iterdir())
