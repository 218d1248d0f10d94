"""Start several ranks on this host by PyTorch's own launcher."""

import os
import signal
import sys
import uuid
from collections.abc import Sequence

from fuxictr_tf4ctr.errors import Terminated
from fuxictr_tf4ctr.stopping import as_parent

# How long ranks may take to save their state once they are asked to end.
_PATIENCE_SECONDS = 60


def started_by_launcher() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], workers: int, max_restarts: int) -> int:
    """Run the program once per rank, and wait for all.

    Args:
        arguments: The program's arguments.
        workers: How many ranks.
        max_restarts: How often to start all again when one fails.

    Returns:
        Exit status: that of the rank that failed first, or 0.

    Raises:
        KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; all ranks have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    return 0
