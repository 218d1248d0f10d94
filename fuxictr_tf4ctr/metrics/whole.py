"""FuxiCTR's metrics over whole columns: no loop over groups, no process pool, no ``eval``.

The names and definitions are FuxiCTR's, with calibration (``ece``, ``pcoc``) added; a name that
ends in ``_simple`` or ``_complex`` is the metric of that stream of a two-stream model. Where
FuxiCTR leaves the order of tied scores to an unstable sort (MRR, NDCG), the order here is fixed: of
rows with equal scores, the later row of the input ranks first, which is
``np.argsort(y_pred, kind="stable")[::-1]``.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from fuxictr_tf4ctr.errors import DataError, DivergenceError, SettingsError

# Streams a two-stream model scores beside its final prediction: y_simple, y_complex.
STREAMS = ("simple", "complex")
# As in Guo et al., arXiv 1706.04599.
_CALIBRATION_BINS = 15
# NDCG and NDCG() mean FuxiCTR's default, k = 1.
_NDCG = re.compile(r"NDCG(?:@([1-9]\d*)|\(\s*(?:(?:k\s*=\s*)?([1-9]\d*))?\s*\))?")


def evaluate_metrics(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    metrics: Sequence[str],
    group_id: ArrayLike | None = None,
) -> dict[str, float]:
    """Compute metrics of scores against labels.

    Args:
        y_true: [N] labels, 0 or 1 (MRR and NDCG also take graded relevance).
        y_pred: [N] scores; probabilities for logloss.
        metrics: Names known to :func:`check_metric`, without a stream.
        group_id: [N] group of each row (a user, say), for the metrics that rank within groups.

    Returns:
        Metric values, keyed by the names as given and in their order.

    Raises:
        SettingsError: A name is unknown, or needs ``group_id`` and there is none.
        DataError: The columns disagree in length, are empty, or leave a metric undefined.
        DivergenceError: A score is not a finite number.
    """
    grouped = [name for name in metrics if needs_group(name)]
    if grouped and group_id is None:
        raise SettingsError(
            f"metric {grouped[0]} ranks rows within groups, but no group_id is set: "
            "name the group's column as group_id, or drop the metric"
        )
    y_true, y_pred = checked_columns(y_true, y_pred)
    sums = sums_over_rows(y_true, y_pred, metrics)
    if grouped:
        sums |= sums_over_groups(y_true, y_pred, group_id, grouped)
    if "AUC" in metrics:
        sums["AUC"] = auc_counts(y_true, y_pred)
    return {name: value_from(name, sums[name]) for name in metrics}


def sums_over_rows(
    y_true: np.ndarray, y_pred: np.ndarray, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what some rows add to each metric that is made of sums over rows.

    Args:
        y_true: [N] labels, float64.
        y_pred: [N] finite scores, float64.
        metrics: Names of metrics; others than those are left out.

    Raises:
        DataError: A label or score is none that the metric is defined for.
    """
    return {name: _ROW_SUMS[name](y_true, y_pred) for name in metrics if name in _ROW_SUMS}


def sums_over_groups(
    y_true: np.ndarray, y_pred: np.ndarray, group_id: ArrayLike, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what whole groups of rows add to each metric that is made of sums over groups.

    They are [3]: the groups' values by their weights, those weights, and how many groups there are.

    Args:
        y_true: [N] labels, float64.
        y_pred: [N] finite scores, float64.
        group_id: [N] group of each row.
        metrics: Names of metrics; others than those are left out.

    Raises:
        DataError: The columns disagree in length, or a label is none the metric is defined for.
    """
    ranking = _rank_within_groups(y_true, y_pred, group_id)
    return {name: group_sums(ranking) for name in metrics if (group_sums := _group_sums(name))}


def value_from(name: str, sums: np.ndarray) -> float:
    """Return a metric's value.

    Args:
        name: The metric.
        sums: What all rows, or groups, add to it; for AUC, :func:`auc_counts`.

    Raises:
        DataError: The rows leave the metric undefined.
    """
    if name == "AUC":
        positives, negatives, above = sums
        if not positives or not negatives:
            label = 1 if positives else 0
            raise DataError(f"AUC is undefined: all {positives + negatives:.0f} labels are {label}")
        return float(above / (positives * negatives))
    if name == "ece":
        return float(np.abs(sums[:-1]).sum() / sums[-1])
    if sums[1] == 0:
        if name == "pcoc":
            raise DataError(f"pcoc is undefined: all {sums[2]:.0f} labels are 0")
        raise DataError(
            f"gAUC and avgAUC are undefined: each of the {sums[2]:.0f} groups holds one class only"
        )
    return float(sums[0] / sums[1])


def check_metric(name: str) -> None:
    """Raise SettingsError, naming the nearest known metrics, unless ``name`` is a metric."""
    metric, _ = split_stream(name)
    if metric in _PLAIN or _group_sums(metric):
        return
    known = {metric.lower(): metric for metric in (*_PLAIN, *_GROUP_SUMS, "NDCG(k=5)")}
    streams = {f"auc_{stream}": f"AUC_{stream}" for stream in STREAMS}
    nearest = difflib.get_close_matches(name.lower(), known | streams, n=2, cutoff=0.5)
    named = " or ".join((known | streams)[match] for match in nearest)
    hint = f"did you mean {named}? " if nearest else ""
    raise SettingsError(
        f"unknown metric {name!r}: {hint}Known metrics: {', '.join(known.values())}, "
        f"and of a stream with {' or '.join(f'_{stream}' for stream in STREAMS)} behind"
    )


def needs_group(name: str) -> bool:
    """Whether the metric ranks rows within groups and so needs ``group_id``."""
    check_metric(name)
    return _group_sums(split_stream(name)[0]) is not None


def split_stream(name: str) -> tuple[str, str | None]:
    """Split ``AUC_simple`` into the metric and its stream, None for the final prediction's."""
    metric, _, stream = name.rpartition("_")
    return (metric, stream) if metric and stream in STREAMS else (name, None)


def checked_columns(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores as float64 columns of one length, the scores finite.

    Raises:
        DataError: The columns disagree in length or are empty.
        DivergenceError: A score is not a finite number.
    """
    y_true = np.asarray(y_true, np.float64).ravel()
    y_pred = np.asarray(y_pred, np.float64).ravel()
    if len(y_true) != len(y_pred):
        raise DataError(f"{len(y_true)} labels but {len(y_pred)} predictions")
    if len(y_true) == 0:
        raise DataError("no rows to evaluate: the data set is empty")
    finite = np.isfinite(y_pred)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DivergenceError(
            f"{np.count_nonzero(~finite)} of {len(y_pred)} predictions are not finite numbers "
            f"(first: {y_pred[row]} in row {row}): the model has diverged, lower the learning rate"
        )
    return y_true, y_pred


def check_binary(y_true: np.ndarray) -> None:
    """Raise DataError unless all [N] labels are 0 or 1."""
    binary = (y_true == 0) | (y_true == 1)
    if not binary.all():
        row = int(np.argmin(binary))
        raise DataError(f"labels must be 0 or 1, found {y_true[row]} in row {row}")


@dataclass(frozen=True)
class _Ranking:
    """Rows sorted by group and, within it, by ascending score, ties in input order.

    Attributes:
        y_true: [N] labels.
        y_pred: [N] scores.
        starts: [G] first row of each group.
    """

    y_true: np.ndarray
    y_pred: np.ndarray
    starts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[G] rows of each group."""
        return np.diff(self.starts, append=len(self.y_true))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """[G] sums over each group of [N] values."""
        return np.add.reduceat(values, self.starts)

    def places(self) -> np.ndarray:
        """[N] place of each row in its group, the highest score in place 1."""
        ends = np.repeat(self.starts + self.sizes, self.sizes)
        return ends - np.arange(len(self.y_true))

    def mean_ranks(self) -> np.ndarray:
        """[N] rank of each row in its group, the lowest score first, tied rows sharing theirs."""
        new_score = np.ones(len(self.y_pred), bool)
        np.not_equal(self.y_pred[1:], self.y_pred[:-1], out=new_score[1:])
        new_score[self.starts] = True
        firsts = np.flatnonzero(new_score)
        counts = np.diff(firsts, append=len(self.y_pred))
        ranks = np.repeat(firsts + (counts + 1) / 2, counts)
        return ranks - np.repeat(self.starts, self.sizes)


def _rank_within_groups(y_true: np.ndarray, y_pred: np.ndarray, group_id: ArrayLike) -> _Ranking:
    group_id = np.asarray(group_id).ravel()
    if len(group_id) != len(y_true):
        raise DataError(f"{len(y_true)} labels but {len(group_id)} group ids")
    order = np.lexsort((y_pred, group_id))
    group_id = group_id[order]
    starts = np.append(0, np.flatnonzero(group_id[1:] != group_id[:-1]) + 1)
    return _Ranking(y_true[order], y_pred[order], starts)


def _logloss(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Binary cross-entropy, and rows; probabilities are clipped as in scikit-learn's log_loss."""
    check_binary(y_true)
    _check_probabilities("logloss", y_pred)
    eps = np.finfo(np.float64).eps
    given_to_truth = np.where(y_true == 1, y_pred, 1 - y_pred)
    return np.array([-np.log(np.clip(given_to_truth, eps, 1 - eps)).sum(), len(y_true)])


def _check_probabilities(metric: str, y_pred: np.ndarray) -> None:
    if y_pred.min() < 0 or y_pred.max() > 1:
        raise DataError(
            f"{metric} needs probabilities, but the predictions reach from {y_pred.min():.6g} to "
            f"{y_pred.max():.6g}: use task binary_classification, or drop the metric"
        )


def _ece(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Predicted less observed clicks of each bin, and rows, for the expected calibration error.

    That is the mean distance of prediction and click rate, bin by bin. The 15 bins divide [0, 1]
    evenly, each with its lower bound; each row has the same weight.
    """
    check_binary(y_true)
    _check_probabilities("ece", y_pred)
    bins = np.minimum((y_pred * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    surplus = np.bincount(bins, y_pred - y_true, minlength=_CALIBRATION_BINS)
    return np.append(surplus, len(y_true))


def _pcoc(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Predicted clicks, observed clicks, and rows; their quotient 1 is right on average."""
    check_binary(y_true)
    return np.array([y_pred.sum(), y_true.sum(), len(y_true)])


def auc_counts(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Return positives, negatives, and pairs of a positive above a negative, ties a half each.

    Args:
        y_true: [N] labels, float64.
        y_pred: [N] finite scores, float64.

    Raises:
        DataError: A label is neither 0 nor 1.
    """
    check_binary(y_true)
    # Tied rows share their mean rank, so the faster unstable sort gives the same value.
    order = np.argsort(y_pred)
    ranking = _Ranking(y_true[order], y_pred[order], np.zeros(1, np.int64))
    return np.concatenate(_pair_counts(ranking))


def _pair_counts(ranking: _Ranking) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[G] positives, negatives, and pairs of a positive above a negative, by the rank sums."""
    positives = ranking.sum(ranking.y_true)
    rank_sums = ranking.sum(ranking.mean_ranks() * ranking.y_true)
    above = rank_sums - positives * (positives + 1) / 2
    return positives, ranking.sizes - positives, above


def _group_aucs(ranking: _Ranking) -> tuple[np.ndarray, np.ndarray]:
    """AUC and rows of the groups that hold both classes: the others have no say."""
    check_binary(ranking.y_true)
    positives, negatives, above = _pair_counts(ranking)
    pairs = positives * negatives
    defined = pairs > 0
    return above[defined] / pairs[defined], ranking.sizes[defined]


def _gauc(ranking: _Ranking) -> np.ndarray:
    """AUCs of groups times their rows, those rows, and groups.

    Source:
        DIN, arXiv 1706.06978, section 6.
    """
    aucs, sizes = _group_aucs(ranking)
    return np.array([(aucs * sizes).sum(), sizes.sum(), len(ranking.starts)])


def _avg_auc(ranking: _Ranking) -> np.ndarray:
    """AUCs of groups, how many have one, and groups."""
    aucs, _ = _group_aucs(ranking)
    return np.array([aucs.sum(), len(aucs), len(ranking.starts)])


def _mrr(ranking: _Ranking) -> np.ndarray:
    """Positives' mean reciprocal places in groups, 0 where there are none; and groups, twice."""
    reciprocal_sums = ranking.sum(ranking.y_true / ranking.places())
    means = reciprocal_sums / (ranking.sum(ranking.y_true) + 1e-12)
    return np.array([means.sum(), len(means), len(means)])


def _ndcg(ranking: _Ranking, k: int) -> np.ndarray:
    """Discounted gains of groups' first k places over the best there are; and groups, twice."""
    places = ranking.places()
    discounts = np.where(places <= k, 1 / np.log2(places + 1), 0)
    groups = np.repeat(np.arange(len(ranking.starts)), ranking.sizes)
    ideal = ranking.y_true[np.lexsort((ranking.y_true, groups))]
    gains = ranking.sum((np.exp2(ranking.y_true) - 1) * discounts)
    best_gains = ranking.sum((np.exp2(ideal) - 1) * discounts)
    ratios = gains / (best_gains + 1e-12)
    return np.array([ratios.sum(), len(ratios), len(ratios)])


_ROW_SUMS = {"logloss": _logloss, "binary_crossentropy": _logloss, "ece": _ece, "pcoc": _pcoc}
_PLAIN = ("logloss", "binary_crossentropy", "AUC", "ece", "pcoc")
_GROUP_SUMS = {"gAUC": _gauc, "avgAUC": _avg_auc, "MRR": _mrr}


def _group_sums(name: str) -> Callable[[_Ranking], np.ndarray] | None:
    """The function behind a metric within groups, None for other names."""
    if ndcg := _NDCG.fullmatch(name):
        return partial(_ndcg, k=int(ndcg[1] or ndcg[2] or 1))
    return _GROUP_SUMS.get(name)
