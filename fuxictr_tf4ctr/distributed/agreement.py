"""Whether all ranks are about to train the same model on the same data."""

from collections.abc import Mapping
from typing import Any

from fuxictr_tf4ctr.distributed.ranks import Ranks
from fuxictr_tf4ctr.errors import SettingsError


def check_agreement(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Compare what must be the same on all ranks with rank 0.

    Args:
        ranks: The ranks.
        facts: Name -> value: settings, data fingerprint, versions.

    Raises:
        SettingsError: Some differ; the message names ranks, facts and values.
    """
    first, *others = ranks.all_gather(dict(facts))
    differences = [
        f"rank {rank} has {name}={theirs.get(name)!r}, rank 0 {first.get(name)!r}"
        for rank, theirs in enumerate(others, 1)
        for name in sorted(first.keys() | theirs.keys())
        if theirs.get(name) != first.get(name)
    ]
    if differences:
        raise SettingsError(
            "the ranks differ, start all with the same settings, data and packages:\n"
            + "\n".join(f"- {difference}" for difference in differences)
        )
