"""Ranks with ties shared, and the AUC within groups that follows from them."""

import numpy as np


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Rank [N] values from 1; tied values share the mean of their ranks."""
    order = np.argsort(values)
    firsts = tie_starts(values[order])
    sizes = np.diff(firsts, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(firsts + (sizes + 1) / 2, sizes)
    return ranks


def tie_starts(ranked: np.ndarray) -> np.ndarray:
    """Return where each run of equal values begins in [N] sorted values."""
    return np.append(0, np.flatnonzero(ranked[1:] != ranked[:-1]) + 1)


def group_aucs(
    y_true: np.ndarray, y_pred: np.ndarray, group_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the AUC within each group that holds both classes.

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] scores.
        group_id: [N] group of each row.

    Returns:
        AUC and number of rows of those groups, in the order of their ids.
    """
    _, group = np.unique(group_id, return_inverse=True)
    order = np.lexsort((y_pred, group))
    group, labels = group[order], y_true[order]
    starts = tie_starts(group)
    sizes = np.diff(starts, append=len(group))
    # One number per distinct (group, score), ascending: ranks over all rows, less those before.
    changed = np.append(True, (np.diff(group) != 0) | (np.diff(y_pred[order]) != 0))
    ranks = mid_ranks(np.cumsum(changed)) - np.repeat(starts, sizes)
    positives = np.add.reduceat(labels, starts)
    pairs = positives * (sizes - positives)
    above = np.add.reduceat(ranks * labels, starts) - positives * (positives + 1) / 2
    mixed = pairs > 0
    return above[mixed] / pairs[mixed], sizes[mixed]
