"""Whether embedding tables are divided among ranks, and how; the tables of those that are not."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor

from fuxictr_tf4ctr.errors import SettingsError

ENGINES = "fuxictr_tf4ctr.engines"
SHARDINGS = ("row_wise", "table_wise", "auto")
TABLE_OPTIMIZERS = ("sgd", "adagrad", "row_wise_adagrad")
# They work on whole tables, or on the lookups that sharding replaces.
_EXCLUDED = (
    *("compile", "cuda_graphs", "sparse_embeddings", "cowclip"),
    *("continue_from", "keep_optimizer"),
)


@dataclass(frozen=True)
class ShardingOptions:
    """How tables are divided.

    Attributes:
        sharding: "row_wise" (each rank has some rows of every table), "table_wise" (each rank has
            some tables), or "auto" (the planner chooses one of these for each table).
        optimizer: Rule by which a rank updates the rows it has: "sgd", "adagrad" or
            "row_wise_adagrad", which keeps one number per row.
        learning_rate: Its rate at the start; later it changes as the model's does.
    """

    sharding: str
    optimizer: str
    learning_rate: float

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "ShardingOptions | None":
        """Read them from settings; None where tables are not to be divided."""
        if params.get("table_sharding") is None:
            return None
        return cls(
            params["table_sharding"],
            params.get("table_optimizer") or "row_wise_adagrad",
            params.get("table_learning_rate") or params["learning_rate"],
        )


def sharding_problems(params: Mapping[str, Any], runs_here: bool = True) -> Iterator[str]:
    """List what keeps tables from being divided, one sentence each.

    Args:
        params: Settings, complete.
        runs_here: Whether it is this machine that must have TorchRec.
    """
    if params.get("table_sharding") is None:
        for key in ("table_optimizer", "table_learning_rate"):
            if params.get(key) is not None:
                yield f"{key} is for table_sharding: set that too, or leave it out"
        return
    if params.get("embedding_regularizer"):
        yield (
            "embedding_regularizer changes every row in every step, but with table_sharding only "
            "the rows of a batch are updated: set it to 0"
        )
    for key in _EXCLUDED:
        if params.get(key):
            yield f"{key} does not go with table_sharding: leave one of them out"
    if runs_here and not all(map(importlib.util.find_spec, ("torchrec", "fbgemm_gpu"))):
        yield (
            "table_sharding needs TorchRec: pip install 'fuxictr-tf4ctr[torchrec]', or without a "
            "GPU as docs/scaling.md says"
        )


class Tables:
    """Embedding tables that every rank has whole: nothing to gather or scatter."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While in context, rank 0's ``state_dict`` has whole tables; all ranks enter it."""
        yield

    def scatter(self) -> None:
        """Give every rank its part of the tables that rank 0 has loaded; all ranks call this."""

    def state(self) -> dict[str, Any]:
        """Return weights and optimizer state of divided tables on rank 0; all ranks call this."""
        return {}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give every rank its part of a :meth:`state` that rank 0 has; all ranks call this."""


WHOLE = Tables()


def table_engine() -> Any:
    """Return what divides tables: the installed entry point "tables" of ``ENGINES``.

    It is called with a model that was compiled while in its context ``unmade()``, all ranks and
    :class:`ShardingOptions`.

    Raises:
        SettingsError: No package offers one, or what it needs cannot be loaded.
    """
    found = entry_points(group=ENGINES, name="tables")
    if not found:
        raise SettingsError("table_sharding needs this package installed, not only on sys.path")
    return next(iter(found)).load()
