"""How a process that ``torchrun``, Slurm or ``fuxictr run --workers`` started finds the others.

Nothing but the standard environment says who is who: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT.
"""

import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from fuxictr_tf4ctr.distributed.cost import check_processes
from fuxictr_tf4ctr.distributed.ranks import ALONE, JoinedRanks, Memory, Ranks
from fuxictr_tf4ctr.errors import SettingsError, Terminated
from fuxictr_tf4ctr.stopping import as_parent

JOIN_SECONDS = 300
# One rank may compute metrics while the others wait for it.
WAIT_SECONDS = 1800
# Between looks at whether all are there.
_LOOK_SECONDS = 0.1
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def local_rank() -> int:
    """Return which of the processes of this host this one is."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def joined_ranks(
    on_gpu: bool, seconds: float | None = None, memory: Memory | None = None
) -> Iterator[Ranks]:
    """Join the processes that the environment names; leave them at the end.

    Args:
        on_gpu: Whether gradients lie on GPUs: then they go through NCCL, otherwise gloo.
        seconds: How long to wait for the others, to join and at any later point. None:
            ``JOIN_SECONDS`` and ``WAIT_SECONDS``.
        memory: That of an engine which has started this process; a launcher's is found.

    Yields:
        The ranks; ``ALONE`` where the environment names none or one.

    Raises:
        SettingsError: The environment is incomplete, the backend missing, or not all came in time.
    """
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    patience = JOIN_SECONDS if seconds is None else seconds
    if size == 1:
        if by_agent:  # which may start it again with others, or has done so before
            memory = _Kept(_store(rank, size, patience, by_agent))
        yield ALONE if memory is None else Ranks(memory)
        return
    wait = timedelta(seconds=WAIT_SECONDS if seconds is None else seconds)
    if dist.is_initialized():  # by an engine that started this process, and ends the group too
        yield _ranks(on_gpu, wait, memory)
        return
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE is set and {', '.join(missing)} not: start all ranks by torchrun, by "
            "srun with these variables, or by fuxictr run --workers"
        )
    backend = "nccl" if on_gpu else "gloo"
    if not dist.is_backend_available(backend):
        raise SettingsError(
            f"this PyTorch was built without {backend}: install one that has it"
            + (", or train on the CPU with --gpu -1" if on_gpu else "")
        )
    store = _store(rank, size, patience, by_agent)
    meeting = _meet(store, rank, size, patience)
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=wait)
    try:
        yield _ranks(on_gpu, wait, _Kept(store))
    finally:
        dist.destroy_process_group()


class _Kept:
    """What is noted in a launcher's store, which is there as long as the launcher."""

    def __init__(self, store: dist.Store) -> None:
        self._store = dist.PrefixStore("memory", store)

    def set(self, name: str, value: str) -> None:
        self._store.set(name, value)

    def get(self, name: str) -> str | None:
        return self._store.get(name).decode() if self._store.check([name]) else None


def _ranks(on_gpu: bool, wait: timedelta, memory: Memory | None) -> JoinedRanks:
    if not on_gpu:
        return JoinedRanks(memory=memory)
    torch.cuda.set_device(local_rank())
    return JoinedRanks(dist.new_group(backend="gloo", timeout=wait), memory)


def _store(rank: int, size: int, seconds: float, by_agent: bool) -> dist.Store:
    """Connect to the store of rank 0, or of the agent that starts ranks again."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and not by_agent
    try:
        tcp = dist.TCPStore(
            address, port, size, hosts, timedelta(seconds=seconds), wait_for_workers=False
        )
    except (dist.DistError, OSError) as error:
        said = str(error).splitlines()[0]
        raise SettingsError(
            f"rank {rank} on {socket.gethostname()} does not reach rank 0 at {address}:{port} "
            f"within {seconds:g} s: is it running, and is the port open? ({said})"
        ) from error
    return dist.PrefixStore("fuxictr_tf4ctr", tcp)


def _meet(store: dist.Store, rank: int, size: int, seconds: float) -> dist.Store:
    """Wait until all ranks are there, and return a store for them alone.

    An agent's store outlives the ranks, and its count of restarts differs from host to host: rank 0
    calls a meeting, and the others look for one that no earlier rank of their number came to.
    """
    deadline = time.monotonic() + seconds
    try:
        meeting = _call(store, size, seconds) if rank == 0 else _join(store, rank, deadline)
    except dist.DistNetworkError as error:
        raise SettingsError(
            f"rank {rank} on {socket.gethostname()}: rank 0 has ended before all ranks joined; its "
            "message says which did not"
        ) from error
    except dist.DistStoreError as error:
        raise SettingsError(_absent(store, size, seconds)) from error
    return dist.PrefixStore(meeting, store)


def _call(store: dist.Store, size: int, seconds: float) -> str:
    """Call a meeting, wait until all have come, and return it."""
    meeting = uuid.uuid4().hex
    store.set(f"{meeting}/0", socket.gethostname())
    store.set("meeting", meeting)
    store.wait([f"{meeting}/{other}" for other in range(size)], timedelta(seconds=seconds))
    store.set(f"{meeting}/complete", "")
    return meeting


def _join(store: dist.Store, rank: int, deadline: float) -> str:
    """Come to the latest meeting until one is complete, and return it."""
    came_to, first = "", False
    while True:
        left = deadline - time.monotonic()
        store.wait(["meeting"], timedelta(seconds=max(left, 0.001)))
        meeting = store.get("meeting").decode()
        if meeting != came_to:
            came_to = meeting
            first = store.add(f"{meeting}/{rank}/times", 1) == 1
            if first:
                store.set(f"{meeting}/{rank}", socket.gethostname())
        if first and store.check([f"{meeting}/complete"]):
            return meeting
        if left <= 0:
            raise dist.DistStoreError("not all ranks came")
        time.sleep(_LOOK_SECONDS)


def _absent(store: dist.Store, size: int, seconds: float) -> str:
    """Say who did not come to the latest meeting; where all came, rank 0 has called no next."""
    meeting = store.get("meeting").decode() if store.check(["meeting"]) else ""
    there = [other for other in range(size) if store.check([f"{meeting}/{other}"])]
    if len(there) in (0, size):
        return (
            f"rank 0 did not join within {seconds:g} s: look at the log of the host that should "
            "have started it"
        )
    hosts = sorted({store.get(f"{meeting}/{other}").decode() for other in there})
    absent = ", ".join(str(other) for other in range(size) if other not in there)
    return (
        f"{len(there)} of {size} ranks joined within {seconds:g} s, from {', '.join(hosts)}; "
        f"rank {absent} did not: look at the logs of the hosts that should have started it"
    )


# How long ranks may take to save their state once they are asked to end.
_PATIENCE_SECONDS = 60


def started_by_launcher() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], workers: int, max_restarts: int) -> int:
    """Run the program once per rank, and wait for all; when one fails, all start again.

    Returns:
        Exit status: that of the rank that failed first, or 0.

    Raises:
        SettingsError: They do not fit into this machine's memory.
        KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; all ranks have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_processes(workers)
    before = dict(os.environ)
    # The ranks share the cores; torchrun would give each one thread, however many cores there are.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.update(as_parent())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.5,
        shutdown_timeout=_PATIENCE_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fuxictr_tf4ctr", *arguments)
    except SignalException as stop:
        raise (KeyboardInterrupt if stop.sigval == signal.SIGINT else Terminated) from stop
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode
        print(f"rank {rank} ended with status {status}", file=sys.stderr)
        return status if status > 0 else 128 - status
    finally:  # what this process starts later is no rank
        os.environ.clear()
        os.environ.update(before)
    return 0
