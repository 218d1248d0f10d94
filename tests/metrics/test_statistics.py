"""Statistics, DeLong's test and the bootstrap against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuxictr_tf4ctr.metrics.definitions import Ranking, auc, group_aucs, middles
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics
from fuxictr_tf4ctr.metrics.significance import (
    delong_test,
    paired_bootstrap,
    resampled_mean,
    statistics,
)

# Few distinct scores make many ties.
ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=4).filter(
    lambda rows: 2 <= sum(row[0] for row in rows) <= len(rows) - 2
)


def columns(rows):
    y_true, first, second = (np.array(column, float) for column in zip(*rows, strict=True))
    return y_true, first / 6, second / 4


def kernel(positive, negative):
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def brute_force_auc(y_true, y_pred):
    pairs = itertools.product(y_pred[y_true == 1], y_pred[y_true == 0])
    return np.mean([kernel(positive, negative) for positive, negative in pairs])


def brute_force_delong(y_true, first, second):
    """AUCs and the variance of their difference by the paper's sums over all pairs."""
    tables = [
        np.array([[kernel(p, n) for n in y[y_true == 0]] for p in y[y_true == 1]])
        for y in (first, second)
    ]
    m, n = tables[0].shape
    aucs = [table.sum() / (m * n) for table in tables]
    by_positive = [table.sum(axis=1) / n for table in tables]
    by_negative = [table.sum(axis=0) / m for table in tables]

    def covariance(parts, size, r, s):
        return sum((parts[r][i] - aucs[r]) * (parts[s][i] - aucs[s]) for i in range(size)) / (
            size - 1
        )

    total = {
        (r, s): covariance(by_positive, m, r, s) / m + covariance(by_negative, n, r, s) / n
        for r in (0, 1)
        for s in (0, 1)
    }
    return aucs, total[0, 0] + total[1, 1] - total[0, 1] - total[1, 0]


@given(ROWS)
def test_delong_is_the_sum_over_all_pairs(rows):
    y_true, first, second = columns(rows)
    test = delong_test(y_true, first, second)
    aucs, variance = brute_force_delong(y_true, first, second)
    assert test.aucs == pytest.approx(aucs)
    assert test.standard_error**2 == pytest.approx(variance, abs=1e-12)
    if variance > 1e-9:
        z = (aucs[1] - aucs[0]) / math.sqrt(variance)
        assert test.z == pytest.approx(z, rel=1e-6, abs=1e-9)
        tail = 0.5 * (1 + math.erf(-abs(z) / math.sqrt(2)))
        assert test.p_value == pytest.approx(2 * tail, abs=1e-9)


def test_delong_of_equal_and_of_opposite_models():
    y_true = np.array([0, 0, 0, 1, 1, 1.0])
    scores = np.array([0.1, 0.4, 0.2, 0.3, 0.8, 0.9])
    assert delong_test(y_true, scores, scores * 2).p_value == 1  # the same ranks
    assert delong_test(y_true, y_true, 1 - y_true).z == -math.inf
    with pytest.raises(ValueError, match="two rows of each class"):
        delong_test(y_true[:4], scores[:4], scores[:4])


def test_delongs_p_values_are_uniform_where_models_are_equally_good():
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(400):
        y_true = (np.arange(80) % 2).astype(float)
        signal = y_true + rng.normal(size=80)
        noise = rng.normal(size=(2, 80))
        p_values.append(delong_test(y_true, signal + noise[0], signal + noise[1]).p_value)
    rejected = np.mean(np.array(p_values) < 0.05)
    assert 0.02 < rejected < 0.09


@given(ROWS, st.integers(0, 2**32))
def test_a_resampled_auc_is_that_of_the_rows_drawn(rows, seed):
    y_true, y_pred, _ = columns(rows)
    drawn = np.random.default_rng(seed).integers(len(y_true), size=len(y_true))
    counts = np.bincount(drawn, minlength=len(y_true)).astype(float)
    found = Ranking.of(y_true, y_pred).auc(counts)
    if 0 < y_true[drawn].sum() < len(drawn):
        assert found == pytest.approx(brute_force_auc(y_true[drawn], y_pred[drawn]))
    else:
        assert math.isnan(found)


@given(ROWS)
def test_statistics_of_all_rows_are_the_metrics(rows):
    y_true, y_pred, other = columns(rows)
    group_id = (other * 4).astype(int) - 2
    names = ["AUC", "logloss", "ece"]
    two_classes = [len(set(y_true[group_id == g])) == 2 for g in set(group_id)]
    if any(two_classes):
        names += ["gAUC", "avgAUC"]
    expected = evaluate_metrics(y_true, y_pred, names, group_id)
    prepared = statistics(y_true, y_pred, [*names, "MRR"], group_id)
    assert list(prepared) == names
    for name, statistic in prepared.items():
        assert statistic.of(np.ones(statistic.units)) == pytest.approx(expected[name]), name


@given(ROWS)
def test_group_aucs_and_ranks(rows):
    y_true, y_pred, group = columns(rows)
    expected = [
        (brute_force_auc(y_true[group == g], y_pred[group == g]), (group == g).sum())
        for g in np.unique(group)
        if len(set(y_true[group == g])) == 2
    ]
    found = list(zip(*group_aucs(Ranking.of(y_true, y_pred, group)), strict=True))
    assert np.allclose(found, expected)
    # Negatives below each distinct score, half of the tied ones.
    below = [
        (y_pred[y_true == 0] < value).sum() + (y_pred[y_true == 0] == value).sum() / 2
        for value in np.unique(y_pred)
    ]
    assert np.array_equal(middles(Ranking.of(y_true, y_pred).corners()[1]), below)
    assert auc(y_true, y_pred) == pytest.approx(brute_force_auc(y_true, y_pred))


def test_the_bootstrap_of_a_mean_has_the_width_theory_gives():
    values = np.random.default_rng(2).normal(size=(2, 400))
    found = paired_bootstrap(
        {"mean": resampled_mean(values[0])},
        {"mean": resampled_mean(values[0] + 0.5 + 0.1 * values[1])},
        2000,
        seed=3,
    )["mean"]
    half_width = 1.96 * values[0].std() / 20
    assert found.first.high - found.first.low == pytest.approx(2 * half_width, rel=0.1)
    # Paired: what both have in common is not in the difference.
    assert found.difference.high - found.difference.low == pytest.approx(0.4 * 0.049, rel=0.15)
    assert found.difference.value == pytest.approx(0.5 + 0.1 * values[1].mean())
    assert found.difference.low < found.difference.value < found.difference.high


def test_the_bootstrap_is_seeded_and_draws_rows_and_groups_apart():
    values = np.arange(30.0)
    pair = {"rows": resampled_mean(values), "groups": resampled_mean(values[:7])}
    first, again, other = (paired_bootstrap(pair, pair, 50, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first["groups"].difference.high == 0  # the same draws for both models
