"""TwinClassifier among scikit-learn's own tools."""

import doctest
import logging
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fuxictr_tf4ctr
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs import estimator as estimator_module
from fuxictr_tf4ctr.runs.estimator import TwinClassifier

QUICK = {"epochs": 2, "embedding_dim": 4, "settings": {"complex_hidden_units": [8]}}


@pytest.fixture(scope="module")
def rows():
    """Clicks that follow from an id and a number."""
    rng = np.random.default_rng(0)
    item, price = rng.integers(0, 6, 400), rng.normal(size=400)
    click = np.where((item % 2 == 0) ^ (price > 1), "yes", "no")
    return pl.DataFrame({"item": [f"i{n}" for n in item], "price": price, "click": click})


@pytest.mark.slow
@parametrize_with_checks([TwinClassifier()])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_examples_are_true():
    assert doctest.testmod(estimator_module).failed == 0


def test_one_line_fits_a_frame_and_what_is_fitted_can_be_pickled(rows):
    fitted = fuxictr_tf4ctr.train("TF4CTR_DCNv2", rows, label="click", learning_rate=0.01)
    X = rows.drop("click")
    assert fitted.classes_.tolist() == ["no", "yes"]
    assert fitted.score(X, rows["click"].to_numpy()) > 0.9
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(again.predict_proba(X.to_pandas()), fitted.predict_proba(X))


def test_objects_of_an_array_or_a_frame_are_numbers_or_texts(rows):
    typed, y = rows.drop("click").to_pandas(), rows["click"].to_numpy()
    expected = TwinClassifier(**QUICK).fit(typed, y).predict_proba(typed)
    for X in (typed.to_numpy(), typed.astype(object)):
        np.testing.assert_array_equal(TwinClassifier(**QUICK).fit(X, y).predict_proba(X), expected)
    mixed = typed.astype(object)
    mixed.iloc[:4, 0] = [7, None, np.nan, pd.NA]
    assert TwinClassifier(**QUICK).fit(mixed, y).predict(mixed).shape == y.shape


def test_truth_values_are_the_same_ids_beside_missing_ones_and_alone():
    member = np.random.default_rng(0).random(100) < 0.5
    some = pd.DataFrame({"member": [None, *member[1:]]})
    alone = pd.DataFrame({"member": member[1:]})
    assert (some["member"].dtype, alone["member"].dtype) == (object, bool)
    for X, y, other in ((some, member, alone), (alone, member[1:], some)):
        fitted = TwinClassifier(**QUICK).fit(X, y)
        found = [fitted.predict_proba(each)[-99:] for each in (X, other, alone.astype(object))]
        np.testing.assert_array_equal(found[1], found[0])
        np.testing.assert_array_equal(found[2], found[0])


def test_decimals_are_numbers_and_batch_norm_takes_any_number_of_rows():
    price = pl.DataFrame({"price": pl.Series(range(107)).cast(pl.Decimal(10, 2))})
    y = np.arange(107) % 3 == 0  # 97 rows train: 6 batches of 16 and one row
    fitted = TwinClassifier("TF4CTR_FinalNet", epochs=1, embedding_dim=4).fit(price, y)
    assert fitted.predict_proba(price).shape == (107, 2)


def test_a_fit_prints_nothing_and_leaves_no_handler_of_logs(rows, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        for _ in range(2):
            TwinClassifier(**QUICK).fit(rows.drop("click"), rows["click"].to_numpy())
        assert not logging.getLogger().handlers
    assert capsys.readouterr() == ("", "")


def test_ids_may_be_numbers_of_an_array(rows):
    X = np.stack([rows["item"].str.slice(1).cast(pl.Float64), rows["price"]], axis=1)
    y = (rows["click"] == "yes").to_numpy()
    fitted = TwinClassifier(learning_rate=0.01, categorical=[0]).fit(X, y)
    assert fitted.score(X, y) > 0.9


def test_searches_pipelines_and_cross_validation_take_it(rows):
    X, y = rows.drop("click").to_pandas(), (rows["click"] == "yes").to_numpy()
    search = GridSearchCV(TwinClassifier(**QUICK), {"learning_rate": [1e-5, 1e-2]}, cv=2)
    assert search.fit(X, y).best_params_ == {"learning_rate": 1e-2}
    steps = make_pipeline(StandardScaler(), TwinClassifier(**QUICK))
    scores = cross_val_score(steps, X[["price"]], y, cv=2, scoring="roc_auc")
    assert scores.shape == (2,) and np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("options", "column", "error", "message"),
    [
        ({"model": "TF4CTR_DCNv3"}, "click", SettingsError, "TF4CTR_DCNv2"),
        ({"settings": {"fusion": "WS"}}, "click", SettingsError, "'WSF'"),
        ({"categorical": ["itm"]}, "click", SettingsError, "'item'"),
        ({"categorical": [2]}, "click", SettingsError, "categorical column 2: X has 2 columns"),
        ({"validation_fraction": 20}, "click", SettingsError, "between 0 and 1"),
        ({}, "item", ValueError, "Only binary classification"),
        ({}, "clik", SettingsError, "'click'"),
    ],
)
def test_what_cannot_be_fitted_is_said(rows, options, column, error, message):
    with pytest.raises(error, match=message):
        fuxictr_tf4ctr.train(**{"model": "TF4CTR_DCNv2", "frame": rows, "label": column} | options)
