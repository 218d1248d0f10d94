"""Training by several processes, through ``torch.distributed``."""

from fuxictr_tf4ctr.distributed.joining import joined_ranks
from fuxictr_tf4ctr.distributed.ranks import (
    ALONE,
    JoinedRanks,
    Ranks,
    check_agreement,
    synchronise_batch_norm,
)

__all__ = [
    "ALONE",
    "JoinedRanks",
    "Ranks",
    "check_agreement",
    "joined_ranks",
    "synchronise_batch_norm",
]
