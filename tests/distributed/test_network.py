"""Two hosts, as network namespaces on this one: lost ranks, a lost host, one that never comes."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import FUXICTR, run_program
from test_workers import experiment, runs

pytestmark = pytest.mark.skipif(
    shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="network namespaces need root and iproute2's ip",
)
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29511"
DEVICE = "link0"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace at one end of a cable."""

    def __init__(self, number: int, name: str) -> None:
        self.name = name
        self.address = ADDRESSES[number]

    def start(self, folder: Path, *command: str, **variables: str) -> subprocess.Popen:
        """Start a Python program on the host, which knows itself by its own name."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *named, sys.executable, *command],
            cwd=folder,
            env=os.environ | {"GLOO_SOCKET_IFNAME": DEVICE} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cut_off(self) -> None:
        ip("-n", self.name, "link", "set", DEVICE, "down")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts joined by a cable."""
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
            *FUXICTR,
            *experiment("--timeout", timeout),
        )
        for host in hosts
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict:
    """The record of one process on one host."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_program(*FUXICTR, *experiment(), cwd=folder).returncode == 0
    (record,) = runs(folder)
    return record


def wait_for_a_checkpoint(folder: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/demo/*/*/state/*.state")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def kill_rank(rank: str, run_id: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if {f"RANK={rank}", f"TORCHELASTIC_RUN_ID={run_id}"} <= set(variables):
            os.kill(int(process.name), signal.SIGKILL)


def check(folder: Path, expected: dict) -> None:
    (found,) = runs(folder)
    assert found["status"] == "finished" and len(found["resumed"]) == 1
    for ours, theirs in zip(found["evaluations"], expected["evaluations"], strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
    assert found["test"] == pytest.approx(expected["test"], rel=2e-3)


def test_a_rank_killed_on_the_other_host(hosts, tmp_path, expected):
    processes = torchrun(hosts, tmp_path, nodes="2", timeout="60")
    wait_for_a_checkpoint(tmp_path, processes)
    kill_rank("1", tmp_path.name)
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]
    check(tmp_path, expected)


def test_a_host_cut_off_is_done_without(hosts, tmp_path, expected):
    processes = torchrun(hosts, tmp_path, nodes="1:2", timeout="15")
    wait_for_a_checkpoint(tmp_path, processes)
    hosts[1].cut_off()
    _, errors = processes[0].communicate(timeout=200)
    processes[1].kill()
    processes[1].communicate()
    kill_rank("1", tmp_path.name)
    assert processes[0].returncode == 0, errors[-3000:]
    check(tmp_path, expected)


def test_a_rank_that_never_comes_is_named(hosts, tmp_path):
    processes = [
        host.start(
            tmp_path,
            *FUXICTR,
            *experiment("--timeout", "10"),
            **{"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": "0"},
            **{"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT},
        )
        for rank, host in enumerate(hosts)
    ]
    there = ", ".join(sorted(host.name for host in hosts))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors[-3000:]
        named = f"2 of 3 ranks joined within 10 s, from {there}; rank 2 did not" in errors
        # The one that calls the others may give up first, and take what it knows with it.
        assert named or (process is processes[1] and "rank 0 has ended before" in errors)
    assert not list(tmp_path.glob("checkpoints/*/*"))
