"""The numbers behind the charts against brute force."""

import itertools

import numpy as np
import pytest
import torch
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.analysis.report.inside import field_norms, watched_gates
from fuxictr_tf4ctr.analysis.report.quality import (
    agreement,
    calibration_curve,
    decile_gain,
    difficulty_deciles,
    roc_curve,
    shares,
)
from fuxictr_tf4ctr.metrics.definitions import auc, cross_entropy, truth_probability


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    y_true = (rng.random(1000) < 0.3).astype(float)
    y_pred = np.round(np.clip(0.3 * y_true + 0.6 * rng.random(1000), 0, 1), 2)
    return y_true, y_pred


def test_every_point_of_the_roc_curve_is_a_threshold(scored):
    y_true, y_pred = scored
    curve = roc_curve(y_true, y_pred, points=50)
    rates = {
        (np.mean(y_pred[y_true == 0] >= t), np.mean(y_pred[y_true == 1] >= t))
        for t in np.append(np.unique(y_pred), 2.0)
    }
    for point in curve:
        assert min(abs(point[0] - x) + abs(point[1] - y) for x, y in rates) < 1e-12
    assert len(curve) <= 52 and (np.diff(curve, axis=0) >= 0).all()
    area = np.trapezoid(curve[:, 1], curve[:, 0])
    assert area == pytest.approx(auc(y_true, y_pred), abs=5e-3)


def test_a_perfect_ranking_goes_through_the_corner():
    curve = roc_curve(np.array([0, 0, 1, 1.0]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert [0, 1] in curve.tolist()


def test_calibration_bins_hold_all_rows_and_their_means(scored):
    y_true, y_pred = scored
    found = calibration_curve(y_true, y_pred, bins=7)
    assert found.rows.sum() == 1000 and found.rows.max() - found.rows.min() <= 1
    assert found.observed @ found.rows == pytest.approx(y_true.sum())
    assert found.predicted @ found.rows == pytest.approx(y_pred.sum())
    assert (found.low <= found.observed).all() and (found.observed <= found.high).all()
    assert len(calibration_curve(y_true[:3], y_pred[:3]).rows) == 3


def test_wilsons_interval_solves_its_equation():
    y_true = np.array([1.0] * 9 + [0.0] * 41)
    found = calibration_curve(y_true, np.full(50, 0.5), bins=1)
    for bound in (found.low[0], found.high[0]):
        z = (0.18 - bound) / np.sqrt(bound * (1 - bound) / 50)
        assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def test_deciles_go_from_hard_to_easy(scored):
    y_true, y_pred = scored
    p_t = truth_probability(y_true, y_pred)
    deciles = difficulty_deciles(p_t)
    assert sorted(np.concatenate(deciles)) == list(range(1000))
    for harder, easier in itertools.pairwise(deciles):
        assert p_t[harder].max() <= p_t[easier].min()
    assert len(difficulty_deciles(p_t[:4])) == 4


def test_the_gain_is_the_logloss_saved(scored):
    y_true, y_pred = scored
    base = np.full(1000, 0.3)
    rows = np.arange(100)
    (gain,) = decile_gain(y_true, y_pred, base, [rows])
    saved = cross_entropy(y_true[rows], base[rows]) - cross_entropy(y_true[rows], y_pred[rows])
    assert gain.value == pytest.approx(saved.mean())
    width = 2 * 1.959964 * saved.std(ddof=1) / 10
    assert gain.high - gain.low == pytest.approx(width)


def test_agreement_counts_each_row_where_it_belongs():
    y_true = np.array([1, 1, 0, 0.0])
    simple, complex_ = np.array([0.1, 0.1, 0.1, 0.9]), np.array([0.9, 0.9, 0.9, 0.9])
    rows, complex_right = agreement(y_true, simple, complex_, bins=2)
    assert rows.tolist() == [[0, 3], [0, 1]]
    assert complex_right[0, 1] == pytest.approx(2 / 3)
    assert complex_right[1, 1] == 0.5  # both equally near
    assert np.isnan(complex_right[0, 0])


def test_shares_sum_to_one_and_heed_weights():
    values, edges = np.array([0.1, 0.2, 0.9]), np.array([0, 0.5, 1])
    assert shares(values, edges).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert shares(values, edges, np.array([1, 1, 6])).tolist() == pytest.approx([0.25, 0.75])
    assert shares(values[:0], edges).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "gates"),
    [
        ({"sample_selection": "GM", "fusion": "VF"}, 2),
        ({"sample_selection": "MoE", "fusion": "MoEF"}, 3),
        ({"sample_selection": "SER", "fusion": "WSF"}, 0),
    ],
)
def test_gates_are_watched_batch_by_batch(options, gates):
    feature_map = make_feature_map()
    torch.manual_seed(0)
    model = model_zoo.TF4CTR(feature_map, embedding_dim=4, **options).eval()
    batches = [random_batch(feature_map, 5, seed) for seed in (0, 1)]
    with watched_gates(model) as gates_of, torch.no_grad():
        outputs = [model(batch) for batch in batches]
    model(batches[0])  # no longer watched
    found = gates_of()
    assert len(found) == gates
    for gate in found:
        assert gate.values.shape == (10,)
        assert (gate.values >= 0).all() and (gate.values <= 1).all()
    if options["fusion"] == "VF":
        # The vote is what divides the final logit among the encoders' logits.
        joined = {name: torch.cat([o[name] for o in outputs])[:, 0] for name in outputs[0]}
        share = torch.from_numpy(found[-1].values).float()
        logit = share * joined["logit_simple"] + (1 - share) * joined["logit_complex"]
        torch.testing.assert_close(logit, joined["logit"])
    if options["sample_selection"] == "GM":
        inputs = model.get_inputs(batches[0])
        e = model.sample_selection.embedding(inputs)
        v_s, _ = model.sample_selection(inputs)
        gate = torch.from_numpy(found[0].values[:5]).float().unsqueeze(1)
        torch.testing.assert_close(gate * e, v_s)


def test_field_norms_are_of_each_encoders_own_tables():
    feature_map = make_feature_map()
    model = model_zoo.TF4CTR(feature_map, embedding_dim=4)
    tables = model.sample_selection.tables()
    for table, value in zip(tables, (3.0, 5.0), strict=True):
        for layer in table.layer.embedding_layer.embedding_layers.values():
            torch.nn.init.constant_(layer.weight, value)
    found = field_norms(model)
    fields = dict.fromkeys(feature_map.features)
    assert found["simple"] == dict.fromkeys(fields, 3.0)
    assert found["complex"] == dict.fromkeys(fields, 5.0)
