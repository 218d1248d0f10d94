"""Metrics against scikit-learn, FuxiCTR's functions group by group, and brute force."""

from itertools import pairwise

import fuxictr.metrics as fuxictr_metrics
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from fuxictr_tf4ctr.errors import DataError, DivergenceError, SettingsError
from fuxictr_tf4ctr.metrics.definitions import Columns
from fuxictr_tf4ctr.metrics.evaluate import evaluate_on_device
from fuxictr_tf4ctr.training import check_metric, evaluate_metrics, needs_group

EXACT = {"rel": 0, "abs": 1e-9}
GROUP_METRICS = {
    "gAUC": fuxictr_metrics.gAUC,
    "avgAUC": fuxictr_metrics.avgAUC,
    "MRR": fuxictr_metrics.MRR,
    "NDCG(k=5)": fuxictr_metrics.NDCG(k=5),
    "NDCG(3)": fuxictr_metrics.NDCG(3),
    "NDCG@10": fuxictr_metrics.NDCG(10),
    "NDCG": fuxictr_metrics.NDCG(),
}


def by_fuxictr(function, y_true, y_pred, group_id):
    """A group metric as FuxiCTR adds it up, without its process pool."""
    values = []
    for group in np.unique(group_id):
        rows = group_id == group
        value = function(y_true[rows], y_pred[rows])
        values.append(value if isinstance(value, tuple) else (value, 1))
    total, weight = np.sum(values, axis=0)
    return total / weight


@pytest.fixture
def columns():
    """Labels, scores without ties and group ids, with groups of one class and of one row."""
    rng = np.random.default_rng(0)
    group_id = rng.integers(0, 40, 400)
    y_true = (rng.random(400) < 0.3).astype(float)
    y_true[group_id == 3] = 0
    y_true[group_id == 5] = 1
    group_id[0] = 99
    return y_true, rng.permutation(400) / 400, group_id


@pytest.mark.parametrize("decimals", [1, 2, 17])
def test_plain_metrics_equal_scikit_learn(columns, decimals):
    y_true, y_pred, _ = columns
    y_pred = np.round(y_pred, decimals)
    values = evaluate_metrics(y_true, y_pred, ["logloss", "AUC", "binary_crossentropy"])
    assert list(values) == ["logloss", "AUC", "binary_crossentropy"]
    assert values["AUC"] == pytest.approx(roc_auc_score(y_true, y_pred), **EXACT)
    assert values["logloss"] == pytest.approx(log_loss(y_true, y_pred), **EXACT)
    assert values["binary_crossentropy"] == values["logloss"]


def test_logloss_clips_certain_and_wrong_predictions_as_scikit_learn_does():
    y_true, y_pred = [0, 1, 1, 0], [1.0, 0.0, 1.0, 0.0]
    value = evaluate_metrics(y_true, y_pred, ["logloss"])["logloss"]
    assert value == pytest.approx(log_loss(y_true, y_pred), **EXACT)


@pytest.mark.parametrize("name", GROUP_METRICS)
def test_group_metrics_equal_fuxictr(columns, name):
    expected = by_fuxictr(GROUP_METRICS[name], *columns)
    y_true, y_pred, group_id = columns
    values = evaluate_metrics(y_true, y_pred, [name], group_id)
    assert values == {name: pytest.approx(expected, **EXACT)}


@pytest.mark.parametrize("name", ["gAUC", "avgAUC"])
def test_group_aucs_equal_fuxictr_with_ties(columns, name):
    y_true, y_pred, group_id = columns
    y_pred = np.round(y_pred, 1)
    expected = by_fuxictr(GROUP_METRICS[name], y_true, y_pred, group_id)
    values = evaluate_metrics(y_true, y_pred, [name], group_id)
    assert values[name] == pytest.approx(expected, **EXACT)


def test_all_metrics_equal_fuxictr_own_evaluate_metrics(columns, monkeypatch):
    class SameProcessPool:
        """FuxiCTR's pool, without processes."""

        def apply_async(self, function, args):
            return type("Result", (), {"get": staticmethod(lambda: function(*args))})

        def close(self): ...

        def join(self): ...

    monkeypatch.setattr(fuxictr_metrics.mp, "Pool", lambda processes: SameProcessPool())
    y_true, y_pred, group_id = columns
    names = ["gAUC", "logloss", "NDCG(k=5)", "AUC", "MRR", "avgAUC"]
    expected = fuxictr_metrics.evaluate_metrics(y_true, y_pred, names, group_id)
    values = evaluate_metrics(y_true, y_pred, names, group_id)
    assert list(values) == names
    assert values == pytest.approx(dict(expected), **EXACT)
    assert {type(value) for value in values.values()} == {float}


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=25
)


@settings(max_examples=60)
@given(rows)
def test_auc_counts_pairs(rows):
    y_true, score, group_id = map(np.array, zip(*rows, strict=True))
    weighted, sizes = [], []
    for group in np.unique(group_id):
        inside = group_id == group
        pairs = [
            1.0 if high > low else 0.5 if high == low else 0.0
            for high in score[inside & (y_true == 1)]
            for low in score[inside & (y_true == 0)]
        ]
        if pairs:
            weighted.append(np.mean(pairs) * inside.sum())
            sizes.append(inside.sum())
    if not sizes:
        with pytest.raises(DataError, match="one class"):
            evaluate_metrics(y_true, score, ["gAUC"], group_id)
        return
    value = evaluate_metrics(y_true, score, ["gAUC"], group_id)["gAUC"]
    assert value == pytest.approx(sum(weighted) / sum(sizes), **EXACT)


@settings(max_examples=60)
@given(rows)
def test_of_tied_rows_the_later_ranks_first(rows):
    y_true, score, group_id = map(np.array, zip(*rows, strict=True))
    reciprocal, gain = [], []
    for group in np.unique(group_id):
        ranked = sorted(np.flatnonzero(group_id == group), key=lambda row: (-score[row], -row))
        labels = [int(y_true[row]) for row in ranked]
        best = sorted(labels, reverse=True)
        gains = [
            sum((2**y - 1) / np.log2(place + 2) for place, y in enumerate(order[:2]))
            for order in (labels, best)
        ]
        places = [1 / (place + 1) for place, y in enumerate(labels) if y]
        reciprocal.append(np.mean(places) if places else 0)
        gain.append(gains[0] / gains[1] if gains[1] else 0)
    values = evaluate_metrics(y_true, score, ["MRR", "NDCG@2"], group_id)
    assert values["MRR"] == pytest.approx(np.mean(reciprocal), **EXACT)
    assert values["NDCG@2"] == pytest.approx(np.mean(gain), **EXACT)


@settings(max_examples=40)
@given(rows, st.randoms(use_true_random=False))
def test_aucs_do_not_depend_on_the_order_of_rows(rows, random):
    def values(rows):
        y_true, score, group_id = zip(*rows, strict=True)
        try:
            return evaluate_metrics(y_true, score, ["AUC", "gAUC", "avgAUC"], group_id)
        except DataError:
            return None

    shuffled = random.sample(rows, len(rows))
    assert values(shuffled) == (pytest.approx(values(rows), **EXACT) if values(rows) else None)


def test_graded_relevance_and_text_groups_equal_fuxictr():
    rng = np.random.default_rng(1)
    y_true, y_pred = rng.integers(0, 4, 60).astype(float), rng.permutation(60) / 60
    group_id = rng.choice(["ann", "bob", "cy"], 60)
    expected = by_fuxictr(fuxictr_metrics.NDCG(5), y_true, y_pred, group_id)
    value = evaluate_metrics(y_true, y_pred, ["NDCG@5"], group_id)["NDCG@5"]
    assert value == pytest.approx(expected, **EXACT)


def test_calibration_error_counts_bin_by_bin(columns):
    y_true, y_pred, _ = columns
    y_pred = y_pred**3
    expected, bounds = 0, np.linspace(0, 1, 16)
    for low, high in pairwise(bounds):
        inside = (y_pred >= low) & ((y_pred < high) | (high == 1))
        if inside.any():
            gap = abs(y_pred[inside].mean() - y_true[inside].mean())
            expected += inside.mean() * gap
    value = evaluate_metrics(y_true, y_pred, ["ece"])["ece"]
    assert value == pytest.approx(expected, **EXACT) and value > 0.1


def test_calibration_of_right_and_of_doubled_predictions():
    y_true = np.arange(100) % 4 == 0
    values = evaluate_metrics(y_true, np.full(100, 0.25), ["ece", "pcoc"])
    assert values == {"ece": pytest.approx(0, abs=1e-12), "pcoc": 1}
    values = evaluate_metrics(y_true, np.full(100, 0.5), ["ece", "pcoc"])
    assert values == {"ece": 0.25, "pcoc": 2}
    # The outermost predictions are in the outermost bins.
    assert evaluate_metrics([1, 0], [0.0, 1.0], ["ece"])["ece"] == 1


@pytest.mark.parametrize("on_device", [False, True])
def test_weighted_metrics_equal_those_of_repeated_rows(columns, on_device):
    y_true, y_pred, _ = columns
    y_pred, names = np.round(y_pred, 2), ["AUC", "logloss", "ece", "pcoc"]
    times = np.random.default_rng(1).integers(0, 4, 400)
    names = names[: 2 if on_device else 4]

    def evaluated(weights):
        tensors = map(torch.from_numpy, (y_true, y_pred, weights))
        label, score, weight = tensors
        if on_device:
            return evaluate_on_device(Columns(label, score, None, weight), names)
        return evaluate_metrics(y_true, y_pred, names, weights=weights)

    repeated = evaluate_metrics(np.repeat(y_true, times), np.repeat(y_pred, times), names)
    assert evaluated(times) == pytest.approx(repeated, **EXACT)
    assert evaluated(times / 7) == pytest.approx(repeated, **EXACT)
    random = np.random.default_rng(2).random(400)
    found = evaluated(random)
    assert found["AUC"] == pytest.approx(roc_auc_score(y_true, y_pred, sample_weight=random))
    assert found["logloss"] == pytest.approx(log_loss(y_true, y_pred, sample_weight=random))


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([1, -1, 1, 1], "weights must be 0 or more, found -1.0 in row 1"),
        ([1, 1, np.nan, 1], "found nan in row 2"),
        ([0, 0, 0, 0], "all weights are 0"),
        ([1, 1], "4 labels but 2 weights"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights, problem):
    with pytest.raises(DataError, match=problem):
        evaluate_metrics([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], ["logloss"], weights=weights)
    with pytest.raises(SettingsError, match="gAUC ranks rows within groups and knows no weights"):
        evaluate_metrics([0, 1], [0.1, 0.2], ["gAUC"], [1, 1], weights=[1, 2])


@settings(max_examples=60)
@given(rows)
def test_metrics_on_the_device_equal_those_on_the_host(rows):
    y_true, score, group_id = map(np.array, zip(*rows, strict=True))
    y_pred = (score / 4).astype(np.float32)
    names = ["AUC", "logloss", "gAUC"]
    try:
        expected = evaluate_metrics(y_true, y_pred, names, group_id)
    except DataError:
        expected = None
    label, scores, groups = map(torch.from_numpy, (y_true.astype(np.float32), y_pred, group_id))
    tensors = Columns(label, scores, groups), names
    if expected is None:
        with pytest.raises(DataError, match="undefined"):
            evaluate_on_device(*tensors)
        return
    assert evaluate_on_device(*tensors) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "names"),
    [
        ([0.0, 1.0], [0.2, float("nan")], ["AUC"]),
        ([0.0, 2.0], [0.2, 0.3], ["AUC"]),
        ([0.0, 1.0], [-0.5, 0.3], ["logloss"]),
        ([0.0, 1.0], [0.2, 0.3], ["AUC", "ece"]),
        ([0.0, 1.0], [0.2, 0.3], ["gAUC"]),
        ([], [], ["AUC"]),
    ],
)
def test_what_the_device_cannot_tell_is_left_to_the_host(y_true, y_pred, names):
    assert evaluate_on_device(Columns(torch.tensor(y_true), torch.tensor(y_pred)), names) is None


@pytest.mark.parametrize(
    ("y_true", "y_pred", "names", "group_id", "error", "words"),
    [
        ([0, 0], [0.2, 0.3], ["pcoc"], None, DataError, "all 2 labels are 0"),
        ([0, 1], [0.2, 1.3], ["ece"], None, DataError, "ece needs probabilities"),
        ([1, 1], [0.2, 0.3], ["AUC"], None, DataError, "all labels are 1"),
        ([0, 0, 0], [0.2, 0.3, 0.4], ["AUC"], None, DataError, "all labels are 0"),
        ([0, 1], [0.2, 0.3], ["gAUC"], [1, 2], DataError, "2 groups"),
        ([0, 1], [0.2, 0.3], ["logloss", "gAUC"], None, SettingsError, "group_id"),
        ([0, 1], [0.2, np.nan], ["AUC"], None, DivergenceError, "row 1"),
        ([0, 1], [np.inf, 0.1], ["AUC"], None, DivergenceError, "inf in row 0"),
        ([0, 2], [0.2, 0.3], ["AUC"], None, DataError, "2.0 in row 1"),
        ([0, 2], [0.2, 0.3], ["avgAUC"], [1, 1], DataError, "0 or 1"),
        ([0, np.nan], [0.2, 0.3], ["logloss"], None, DataError, "nan in row 1"),
        ([0, 1], [-0.5, 0.3], ["logloss"], None, DataError, "probabilities"),
        ([0, 1], [0.5], ["AUC"], None, DataError, "2 labels but 1 predictions"),
        ([0, 1], [0.5, 0.6], ["MRR"], [1], DataError, "2 labels but 1 group ids"),
        ([], [], ["AUC"], None, DataError, "empty"),
        ([0, 1], [0.5, 0.6], ["AUC", "auk"], None, SettingsError, "AUC"),
    ],
)
def test_bad_input_is_named(y_true, y_pred, names, group_id, error, words):
    with pytest.raises(error, match=words):
        evaluate_metrics(y_true, y_pred, names, group_id)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("auc", "did you mean AUC"),
        ("AUC_easy", "AUC_simple"),
        ("auk_complex", "AUC_complex"),
        ("_simple", "unknown"),
        ("log_loss", "did you mean logloss"),
        ("NDCG@0", "NDCG"),
    ]
    + [(name, "Known metrics") for name in ("", "NDCG(k=)", "NDCG(5", "zzz", "print(1)")],
)
def test_unknown_names_list_the_nearest(name, hint):
    with pytest.raises(SettingsError, match=hint):
        check_metric(name)


@pytest.mark.parametrize("name", [*GROUP_METRICS, "NDCG()", "NDCG( k = 7 )"])
def test_group_metrics_need_a_group(name):
    check_metric(name)
    assert needs_group(name)


@pytest.mark.parametrize(
    "name", ["AUC", "logloss", "binary_crossentropy", "ece", "pcoc", "AUC_simple", "ece_complex"]
)
def test_plain_metrics_need_no_group(name):
    assert not needs_group(name)


def test_a_metric_of_a_stream_needs_what_the_metric_needs():
    assert needs_group("gAUC_simple") and needs_group("NDCG@3_complex")
