"""How a process that ``torchrun``, Slurm or ``fuxictr run --workers`` started finds the others.

Nothing but the standard environment says who is who: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from fuxictr_tf4ctr.distributed.ranks import ALONE, JoinedRanks, Ranks
from fuxictr_tf4ctr.errors import SettingsError

JOIN_SECONDS = 300
# One rank may encode the data or compute metrics while the others wait for it.
_WAIT = timedelta(hours=2)
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def local_rank() -> int:
    """Return which of the processes of this host this one is."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarts() -> int:
    """Return how often ``torchrun`` has started this run again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def joined_ranks(on_gpu: bool, seconds: float = JOIN_SECONDS) -> Iterator[Ranks]:
    """Join the processes that the environment names; leave them at the end.

    Args:
        on_gpu: Whether gradients lie on GPUs: then they go through NCCL, otherwise gloo.
        seconds: How long to wait for the others.

    Yields:
        The ranks; ``ALONE`` where the environment names none or one.

    Raises:
        SettingsError: The environment is incomplete, the backend missing, or not all came in time.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if dist.is_initialized():  # by an engine that started this process, and ends the group too
        if on_gpu:
            torch.cuda.set_device(local_rank())
        yield JoinedRanks(dist.new_group(backend="gloo", timeout=_WAIT) if on_gpu else None)
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
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _meet(rank, size, seconds)
    if on_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WAIT)
    try:
        yield JoinedRanks(dist.new_group(backend="gloo", timeout=_WAIT) if on_gpu else None)
    finally:
        dist.destroy_process_group()


def _meet(rank: int, size: int, seconds: float) -> dist.Store:
    """Wait until all ranks are there, and return the store they met at."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    wait = timedelta(seconds=seconds)
    try:
        tcp = dist.TCPStore(
            address, port, size, rank == 0 and not by_agent, wait, wait_for_workers=False
        )
    except (dist.DistError, OSError) as error:
        raise SettingsError(
            f"rank {rank} on {socket.gethostname()} does not reach rank 0 at {address}:{port} "
            f"within {seconds:g} s: is it running, and is the port open? ({_first_line(error)})"
        ) from error
    store = dist.PrefixStore(f"fuxictr_tf4ctr/{restarts()}", tcp)
    store.set(f"joined/{rank}", socket.gethostname())
    try:
        store.wait([f"joined/{other}" for other in range(size)], wait)
    except dist.DistError as error:
        there = [other for other in range(size) if store.check([f"joined/{other}"])]
        hosts = sorted({store.get(f"joined/{other}").decode() for other in there})
        absent = ", ".join(str(other) for other in range(size) if other not in there)
        raise SettingsError(
            f"{len(there)} of {size} ranks joined within {seconds:g} s, from {', '.join(hosts)}; "
            f"rank {absent} did not: look at the logs of the hosts that should have started it"
        ) from error
    return store


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
