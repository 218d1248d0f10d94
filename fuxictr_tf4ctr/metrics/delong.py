"""DeLong's test of two AUCs on the same rows."""

import math
from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.metrics.definitions import Ranking, middles, steps


@dataclass(frozen=True)
class DeLong:
    """Outcome of the test.

    Attributes:
        aucs: AUC of the first and of the second model.
        standard_error: Standard error of their difference.
        z: Difference, second minus first, over its standard error.
        p_value: Two-sided probability of a difference at least as large if the AUCs are equal.
    """

    aucs: tuple[float, float]
    standard_error: float
    z: float
    p_value: float


def delong_test(y_true: np.ndarray, first: np.ndarray, second: np.ndarray) -> DeLong:
    """Test whether two models' AUCs on the same rows differ.

    Args:
        y_true: [N] labels, 0 or 1, at least two of each.
        first: [N] scores of the first model.
        second: [N] scores of the second model.

    Raises:
        ValueError: A class has fewer than two rows.

    Source:
        DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837; the placements from mid-ranks, in
        O(N log N), as Sun, Xu, IEEE Signal Processing Letters 21 (2014) 1389.
    """
    positive = y_true == 1
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    if min(num_positives, num_negatives) < 2:
        raise ValueError(
            f"DeLong's test needs two rows of each class, not {num_positives} positive and "
            f"{num_negatives} negative"
        )
    pairs = zip(*(_placements(positive, scores) for scores in (first, second)), strict=True)
    of_positives, of_negatives = map(np.array, pairs)
    covariance = np.cov(of_positives) / num_positives + np.cov(of_negatives) / num_negatives
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    aucs = of_positives.mean(axis=1)
    difference, error = float(aucs[1] - aucs[0]), math.sqrt(max(float(variance), 0.0))
    # Two models that rank alike differ by nothing, with no error: 0 / 0.
    z = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    return DeLong((float(aucs[0]), float(aucs[1])), error, z, math.erfc(abs(z) / math.sqrt(2)))


def _placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place every row in the other class, ties counting one half.

    Returns:
        For each positive, the share of negatives below it; for each negative, the share of
        positives above it. The mean of either is the AUC.
    """
    ranking = Ranking.of(positive.astype(np.float64), scores)
    below = np.empty((2, len(scores)))  # positives and negatives below each row
    for class_, corners in enumerate(ranking.corners()):
        below[class_, ranking.order] = np.repeat(middles(corners), steps(ranking.ties + 1))
    positives, negatives = below / [[positive.sum()], [(~positive).sum()]]
    return negatives[positive], 1 - positives[~positive]
