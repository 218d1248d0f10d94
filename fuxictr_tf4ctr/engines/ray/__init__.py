"""Runs, sweeps and encoding on a Ray cluster: ``--engine ray``. Imported only when asked for."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fuxictr_tf4ctr.errors import EngineError, SettingsError

try:
    import ray
    import ray.train
    import ray.tune
except ImportError as error:
    raise SettingsError(
        f"--engine ray needs Ray's train and tune: pip install 'fuxictr-tf4ctr[ray]' ({error})"
    ) from error

# How long the head of a cluster may take to accept a connection.
_PATIENCE_SECONDS = 10


@contextmanager
def connected(address: str | None, needed: Mapping[str, int], echo: bool = False) -> Iterator[None]:
    """Be connected to a cluster while in context.

    Args:
        address: ``host:port`` of its head or "auto"; None for ``$RAY_ADDRESS``, and where that is
            not set, for one that lasts as long as the context.
        needed: Resource ("CPU", "GPU") -> how much of it the work takes at once.
        echo: Whether to show what the cluster's processes print.

    Raises:
        SettingsError: There is no cluster at the address, or it has less than is needed.
    """
    if ray.is_initialized():
        _check_resources(needed)
        yield
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": echo}
    given = address or os.environ.get("RAY_ADDRESS")
    if given is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ranks wait for each other, so they must all fit, if need be on shared cores.
        options["num_cpus"] = max(os.cpu_count() or 1, needed.get("CPU", 1))
        options["include_dashboard"] = False
    try:
        _knock(given)
        ray.init(address=address, **options)
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        raise SettingsError(
            f"no Ray cluster at {given}: give --address the host:port that 'ray start --head' "
            f"printed, or leave it out ({error})"
        ) from error
    try:
        _check_resources(needed)
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), _PATIENCE_SECONDS).close()


def _check_resources(needed: Mapping[str, int]) -> None:
    there = ray.cluster_resources()
    for name, amount in needed.items():
        if there.get(name, 0) < amount:
            raise SettingsError(
                f"the Ray cluster has {there.get(name, 0):g} {name}s, {amount} are needed: lower "
                "--workers, or add nodes"
            )


@contextmanager
def in_folder(folder: str) -> Iterator[None]:
    """Work in the folder of the process that sent the work, as paths are seen from there.

    Raises:
        EngineError: This host does not have the folder.
    """
    before = os.getcwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise EngineError(
            f"{socket.gethostname()} has no folder {folder}: start from one that all hosts share"
        ) from error
    try:
        yield
    finally:
        os.chdir(before)
