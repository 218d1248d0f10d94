"""The loop against FuxiCTR's own: same weights, log lines and decisions, fewer silent failures."""

import json
import logging
import math
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import fuxictr.metrics
import numpy as np
import pytest
import torch
from fuxictr.pytorch.models import MultiTaskModel
from sklearn.metrics import log_loss
from tiny_model import EmbeddingMLP, build_batches, build_feature_map, build_model
from tqdm import tqdm

import model_zoo
from fuxictr_tf4ctr.errors import DataError, DivergenceError, SettingsError
from fuxictr_tf4ctr.training import Data, Schedule, Watch, evaluate, fit, predict
from fuxictr_tf4ctr.training import evaluation as evaluation_module
from fuxictr_tf4ctr.training import loop as loop_module
from fuxictr_tf4ctr.training.losses import Losses


@pytest.fixture(autouse=True)
def info_log(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def make_model(tmp_path):
    """Build a model, its checkpoint below a folder of its own."""

    def make(model_class=EmbeddingMLP, root="run", **kwargs):
        return build_model(tmp_path / root, model_class, **kwargs)

    return make


@pytest.fixture
def train_gen():
    return build_batches(seed=1)


@pytest.fixture
def valid_gen():
    return build_batches(seed=2, rows=90)


def log_lines(caplog, root):
    """Messages of a run, the folder of its checkpoint left out; empties the log."""
    lines = [record.getMessage().replace(f"/{root}/", "/") for record in caplog.records]
    caplog.clear()
    return lines


class TwoLearners(EmbeddingMLP):
    """Overrides what FuxiCTR's models override; batches come as tuples, as in LongCTR."""

    saves = 0

    def get_inputs(self, inputs, feature_source=None):
        return super().get_inputs(inputs[0], feature_source)

    def get_labels(self, inputs):
        return inputs[0]["label"].float().view(-1, 1)

    def get_group_id(self, inputs):
        return inputs[0]["query"]

    def train_step(self, batch_data):
        """Accumulate the gradients of two batches."""
        loss = self.compute_loss(self.forward(batch_data), self.get_labels(batch_data)) / 2
        loss.backward()
        if (self._batch_index + 1) % 2 == 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self._max_gradient_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    def lr_decay(self, factor=0.1, min_lr=1e-6):
        return super().lr_decay(factor=0.5)

    def save_weights(self, checkpoint):
        self.saves += 1
        super().save_weights(checkpoint)


SETTINGS = {
    "epochs": {"monitor": "AUC"},
    "early stop": {"monitor": {"AUC": 1, "logloss": -1}, "learning_rate": 0.1},
    "min": {"monitor": "logloss", "monitor_mode": "min", "learning_rate": 0.2},
    "eval_steps": {"monitor": "AUC", "eval_steps": 7},
    "no decay": {"monitor": "AUC", "learning_rate": 0.1, "reduce_lr_on_plateau": False},
    "save last": {"monitor": "AUC", "learning_rate": 0.1, "save_best_only": False},
    "regularised": {"embedding_regularizer": 1e-3, "net_regularizer": "l1(0.001)"},
    "patience": {"monitor": "AUC", "learning_rate": 0.1, "early_stop_patience": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("model_class", [EmbeddingMLP, TwoLearners])
def test_training_equals_fuxictr_loop(
    make_model, train_gen, valid_gen, caplog, monkeypatch, name, model_class
):
    # With FuxiCTR's step bitwise; how our step compares with it is test_step's to say.
    monkeypatch.setattr(
        loop_module, "training_step", lambda model, *_: nullcontext(model.train_step)
    )
    if model_class is TwoLearners:
        for batches in (train_gen, valid_gen):
            batches.batches = [(batch, "mask") for batch in batches]
    theirs = make_model(model_class, root="theirs", **SETTINGS[name])
    caplog.clear()
    theirs.fit(train_gen, epochs=6, validation_data=valid_gen, max_gradient_norm=1.0)
    their_log = log_lines(caplog, "theirs")
    ours = make_model(model_class, root="ours", **SETTINGS[name])
    caplog.clear()
    result = fit(ours, Data(train_gen, valid_gen), Schedule(epochs=6, max_gradient_norm=1.0))
    our_log = log_lines(caplog, "ours")

    if name == "eval_steps":  # FuxiCTR divides by eval_steps what it summed within one epoch
        their_log, our_log = (
            [line for line in log if "Train loss" not in line] for log in (their_log, our_log)
        )
    assert our_log == their_log
    for key, weights in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], weights), key
    saved, expected = (torch.load(model.checkpoint, weights_only=True) for model in (ours, theirs))
    assert all(torch.equal(saved[key], expected[key]) for key in expected)
    assert result.best_metric == pytest.approx(theirs._best_metric, rel=0, abs=1e-12)
    assert result.steps == theirs._total_steps
    assert result.stopped == ("early stop" if theirs._stop_training else "epochs")
    assert [group["lr"] for group in ours.optimizer.param_groups] == [
        group["lr"] for group in theirs.optimizer.param_groups
    ]
    assert getattr(ours, "saves", 0) == getattr(theirs, "saves", 0)


def test_some_parity_settings_stop_early_and_some_do_not(make_model, train_gen, valid_gen):
    stopped = {
        name: fit(make_model(**kwargs), Data(train_gen, valid_gen), Schedule(epochs=6)).stopped
        for name, kwargs in SETTINGS.items()
    }
    assert set(stopped.values()) == {"early stop", "epochs"}


def test_result_records_every_evaluation(make_model, train_gen, valid_gen):
    seen = []
    model = make_model(learning_rate=0.1, monitor="AUC")
    result = fit(
        model,
        Data(train_gen, valid_gen),
        Schedule(epochs=6),
        watch=Watch(on_evaluation=seen.append),
    )
    assert seen == result.epochs
    assert json.loads(json.dumps(asdict(result))) == asdict(result)
    assert [record["epoch"] for record in seen] == list(range(1, len(seen) + 1))
    assert [record["step"] for record in seen] == [10 * r["epoch"] for r in seen]
    best = [record for record in seen if record["best"]][-1]
    assert (result.best_step, result.best_metric) == (best["step"], best["metrics"]["AUC"])
    assert result.best_metric == max(record["metrics"]["AUC"] for record in seen)
    rate = 0.1
    for record in seen:  # the rate of the steps before the evaluation, decayed after it
        assert record["learning_rate"] == pytest.approx(rate)
        rate *= 1 if record["best"] else 0.1
    assert rate < 0.1
    assert result.train_seconds == pytest.approx(sum(r["seconds"] for r in seen), abs=0.5)


def test_records_hold_the_terms_of_the_loss_and_what_the_twin_shows(tmp_path):
    torch.manual_seed(1)
    model = model_zoo.TF4CTR(
        build_feature_map(), embedding_dim=4, simple_hidden_units=[4], complex_hidden_units=[4],
        embedding_regularizer=0.1, alpha=0.25, model_root=str(tmp_path), verbose=0, fusion="VF",
        sample_selection="GM", learning_rate=0.01,
    )  # fmt: skip
    result = fit(model, Data(build_batches(1), build_batches(2)), Schedule(epochs=2))
    for record in result.epochs:
        terms = record["losses"]
        twin_focus = 0.25 * terms["simple"] + 0.75 * terms["complex"]
        total = terms["bce"] + twin_focus + terms["regularization"]
        assert total == pytest.approx(record["train_loss"], rel=1e-6)
        assert min(terms.values()) > 0
        shown = record["twin"]
        weights = shown["fusion_weight_simple"] + shown["fusion_weight_complex"]
        assert weights == pytest.approx(1)
        assert 0 < shown["gate_mean"] < 1 and shown["gate_std"] > 0


def test_models_that_show_nothing_have_one_term(make_model, train_gen, valid_gen):
    (record,) = fit(make_model(), Data(train_gen, valid_gen), Schedule(epochs=1)).epochs
    assert record["losses"] == pytest.approx({"bce": record["train_loss"], "regularization": 0})
    assert "twin" not in record


def test_best_weights_are_loaded(make_model, train_gen, valid_gen):
    model = make_model(learning_rate=0.1)
    result = fit(model, Data(train_gen, valid_gen), Schedule(epochs=6))
    assert not result.epochs[-1]["best"]
    assert evaluate(model, valid_gen, ["AUC"])["AUC"] == result.best_metric


def test_train_loss_is_the_mean_over_the_steps_since_the_last_evaluation(
    make_model, train_gen, valid_gen
):
    losses = []

    class Recorded(EmbeddingMLP):
        def train_step(self, batch_data):
            loss = super().train_step(batch_data)
            losses.append(loss.item())
            return loss

    result = fit(make_model(Recorded), Data(train_gen, valid_gen), Schedule(epochs=2, eval_steps=7))
    assert [record["step"] for record in result.epochs] == [7, 14]
    assert [record["epoch"] for record in result.epochs] == [1, 2]
    for record in result.epochs:
        steps = losses[record["step"] - 7 : record["step"]]
        assert record["train_loss"] == pytest.approx(np.mean(steps), rel=1e-12)


@pytest.mark.parametrize(
    ("eval_steps", "steps"),
    [
        (None, [10, 20]),
        (4, [4, 8, 12, 16, 20]),
        (0.5, [5, 10, 15, 20]),
        (0.01, [*range(1, 21)]),
        (20, [20]),
        (21, [20]),
        (1000, [20]),
    ],
)
def test_evaluations_come_every_eval_steps(make_model, train_gen, valid_gen, eval_steps, steps):
    model = make_model(early_stop_patience=100)
    result = fit(model, Data(train_gen, valid_gen), Schedule(epochs=2, eval_steps=eval_steps))
    assert [record["step"] for record in result.epochs] == steps
    assert result.epochs[0]["best"]


def test_eval_steps_of_the_model_apply_and_do_not_leak(make_model, valid_gen):
    model = make_model(early_stop_patience=100)
    for rows, steps in ((200, [10, 20]), (100, [5, 10])):
        result = fit(model, Data(build_batches(1, rows=rows), valid_gen), Schedule(epochs=2))
        assert [record["step"] for record in result.epochs] == steps
    model = make_model(eval_steps=0.2, early_stop_patience=100)
    result = fit(model, Data(build_batches(1), valid_gen), Schedule(epochs=1))
    assert [record["step"] for record in result.epochs] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("eval_steps", [0, -1, 1.0, 2.5])
def test_meaningless_eval_steps_are_refused(make_model, train_gen, valid_gen, eval_steps):
    with pytest.raises(SettingsError, match="eval_steps"):
        fit(make_model(), Data(train_gen, valid_gen), Schedule(epochs=1, eval_steps=eval_steps))


def test_without_validation_data_the_last_weights_are_kept(make_model, train_gen, caplog):
    model = make_model(monitor="AUC", eval_steps=3)
    result = fit(model, Data(train_gen), Schedule(epochs=3))
    assert [(r["epoch"], r["step"], r["metrics"]) for r in result.epochs] == [
        (1, 10, {}),
        (2, 20, {}),
        (3, 30, {}),
    ]
    assert (result.best_metric, result.best_step, result.stopped) == (None, None, "epochs")
    assert "Load best model" not in caplog.text
    saved = torch.load(model.checkpoint, weights_only=True)
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())


class DivergesAt(EmbeddingMLP):
    """Returns a loss that is not finite from a given step on."""

    def __init__(self, *args, step, value=math.nan, **kwargs):
        super().__init__(*args, **kwargs)
        self.bad_step, self.bad_value = step, value
        self.steps_run = 0

    def train_step(self, batch_data):
        self.steps_run += 1
        loss = super().train_step(batch_data)
        return loss * self.bad_value if self.steps_run >= self.bad_step else loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_once(make_model, train_gen, valid_gen, value):
    model = make_model(DivergesAt, step=13, value=value)
    with pytest.raises(DivergenceError, match=r"(nan|inf) at epoch 2, step 13 \(batch 3 of"):
        fit(model, Data(train_gen, valid_gen), Schedule(epochs=3))
    assert model.steps_run == 13


def test_on_a_gpu_losses_are_looked_at_seldom_but_always_before_an_evaluation(
    make_model, valid_gen, monkeypatch
):
    looks = []
    look = Losses.look

    def noted_look(self):
        if self._unseen:
            looks.append(len(self._unseen))
        look(self)

    monkeypatch.setattr(Losses, "look", noted_look)
    monkeypatch.setattr(loop_module, "Losses", lambda device: Losses(torch.device("cuda")))
    train_gen = build_batches(1, rows=500, batch_size=2)
    fit(make_model(), Data(train_gen, valid_gen), Schedule(epochs=1))
    assert looks == [100, 100, 50]

    # Step 113 is found out at the look of step 200, and named.
    model = make_model(DivergesAt, step=113)
    with pytest.raises(DivergenceError, match="step 113 "):
        fit(model, Data(train_gen, valid_gen), Schedule(epochs=1))
    assert model.steps_run == 200
    # A NaN in the steps after the last evaluation is not lost either.
    with pytest.raises(DivergenceError, match="step 245 "):
        fit(
            make_model(DivergesAt, step=245),
            Data(train_gen, valid_gen),
            Schedule(epochs=1, eval_steps=240),
        )


def test_ruined_weights_are_a_divergence_not_a_torch_error(make_model, train_gen, valid_gen):
    class Ruined(EmbeddingMLP):
        def train_step(self, batch_data):
            loss = super().train_step(batch_data)
            if self._total_steps == 4:
                torch.nn.init.constant_(self.mlp.mlp[0].weight, math.nan)
            return loss

    with pytest.raises(DivergenceError, match="weights are not finite at epoch 1, step 5"):
        fit(make_model(Ruined), Data(train_gen, valid_gen), Schedule(epochs=1))


def test_a_batch_of_one_row_is_no_batch_for_batch_norm(make_model, valid_gen):
    last_of_one = build_batches(seed=1, rows=41)
    with pytest.raises(SettingsError, match="a batch of one row at epoch 1"):
        fit(make_model(), Data(last_of_one, valid_gen), Schedule(epochs=1))


def test_errors_of_a_step_with_sound_weights_pass(make_model, train_gen, valid_gen):
    class Broken(EmbeddingMLP):
        def train_step(self, batch_data):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(make_model(Broken), Data(train_gen, valid_gen), Schedule(epochs=1))


class OwnMetric(EmbeddingMLP):
    """Evaluates to a given sequence of values of its own metric."""

    values = ()

    def evaluate(self, data_generator, metrics=None):
        return {"own": np.float64(self.values[self._epoch_index])}


def test_a_metric_that_is_not_a_number_never_becomes_the_best(make_model, train_gen, valid_gen):
    model = make_model(OwnMetric, monitor="own")
    model.values = [0.7, math.nan]
    seen = []
    with pytest.raises(DivergenceError, match="nan at epoch 2, step 20"):
        fit(
            model,
            Data(train_gen, valid_gen),
            Schedule(epochs=3),
            watch=Watch(on_evaluation=seen.append),
        )
    assert [record["metrics"] for record in seen] == [{"own": 0.7}]
    assert model._best_metric == 0.7


def test_predictions_that_are_not_numbers_stop_the_evaluation(make_model, valid_gen):
    model = make_model()
    torch.nn.init.constant_(model.mlp.mlp[0].weight, math.nan)
    with pytest.raises(DivergenceError, match="90 of 90 predictions"):
        evaluate(model, valid_gen)


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_a_model_own_evaluation_and_improvement_threshold_apply(
    make_model, train_gen, valid_gen, mode, sign
):
    model = make_model(OwnMetric, monitor="own", monitor_mode=mode, early_stop_patience=2)
    model.values = [sign * value for value in (0.7, 0.7 + 5e-7, 0.71, 0.7, 0.71)]
    result = fit(model, Data(train_gen, valid_gen), Schedule(epochs=9))
    assert [record["best"] for record in result.epochs] == [True, False, True, False, False]
    assert result.stopped == "early stop"


def test_a_monitor_the_model_does_not_evaluate_is_refused(make_model, train_gen, valid_gen):
    model = make_model(OwnMetric, monitor="AUC")
    model.values = [0.7]
    with pytest.raises(SettingsError, match=r"monitor AUC is not among .* own"):
        fit(model, Data(train_gen, valid_gen), Schedule(epochs=1))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"monitor": "AUK"}, "did you mean AUC"),
        ({"monitor": {"AUC": 1, "gAUC": 1}}, "gAUC .* group_id"),
        ({"monitor_mode": "maximum"}, "monitor_mode"),
    ],
)
def test_a_wrong_monitor_is_found_before_training(make_model, train_gen, valid_gen, kwargs, words):
    class Untrained(EmbeddingMLP):
        def train_step(self, batch_data):
            pytest.fail("trained")

    with pytest.raises(SettingsError, match=words):
        fit(make_model(Untrained, **kwargs), Data(train_gen, valid_gen), Schedule(epochs=1))


@pytest.mark.parametrize("method", ["fit", "train_epoch", "eval_step", "checkpoint_and_earlystop"])
def test_models_with_a_loop_of_their_own_are_refused(make_model, train_gen, valid_gen, method):
    model_class = type("OwnLoop", (EmbeddingMLP,), {method: lambda self, *args: None})
    with pytest.raises(SettingsError, match=f"OwnLoop has its own {method}"):
        fit(make_model(model_class), Data(train_gen, valid_gen), Schedule(epochs=1))


def test_no_epochs_and_no_batches_are_refused(make_model, train_gen, valid_gen):
    with pytest.raises(SettingsError, match="epochs is 0"):
        fit(make_model(), Data(train_gen, valid_gen), Schedule(epochs=0))
    train_gen.batches = []
    with pytest.raises(DataError, match="no batch"):
        fit(make_model(), Data(train_gen, valid_gen), Schedule(epochs=1))
    with pytest.raises(DataError, match="no batch"):
        predict(make_model(), train_gen)


def test_an_interrupt_passes_and_reported_records_remain(make_model, train_gen, valid_gen):
    class Interrupted(EmbeddingMLP):
        def train_step(self, batch_data):
            if self._total_steps == 15:
                raise KeyboardInterrupt
            return super().train_step(batch_data)

    seen = []
    with pytest.raises(KeyboardInterrupt):
        fit(
            make_model(Interrupted),
            Data(train_gen, valid_gen),
            Schedule(epochs=3),
            watch=Watch(on_evaluation=seen.append),
        )
    assert [record["step"] for record in seen] == [10]


def test_evaluate_and_predict_equal_fuxictr(make_model, valid_gen, caplog):
    model = make_model()
    caplog.clear()
    expected = model.evaluate(valid_gen)
    expected_log = log_lines(caplog, "run")
    model.train()
    values = evaluate(model, valid_gen)
    assert log_lines(caplog, "run") == expected_log
    assert values == pytest.approx(expected, rel=0, abs=1e-12)
    assert list(values) == ["AUC", "logloss"]
    assert not model.training
    scores = predict(model, valid_gen)
    assert scores.dtype == np.float64
    assert np.array_equal(scores, model.predict(valid_gen))


def test_metrics_within_groups_use_the_group_column(make_model, valid_gen):
    model = make_model(group_id="query")
    query = torch.cat([batch["query"] for batch in valid_gen]).numpy()
    label = torch.cat([batch["label"] for batch in valid_gen]).double().numpy()
    scores = predict(model, valid_gen)
    groups = [query == group for group in np.unique(query)]
    aucs, weights = zip(
        *(fuxictr.metrics.gAUC(label[group], scores[group]) for group in groups), strict=True
    )
    value = evaluate(model, valid_gen, ["gAUC"])["gAUC"]
    assert value == pytest.approx(sum(aucs) / sum(weights), rel=0, abs=1e-9)


class TwoStreams(EmbeddingMLP):
    """Scores two streams beside its prediction, as a twin does."""

    def forward(self, inputs):
        y_pred = super().forward(inputs)["y_pred"]
        return {"y_pred": y_pred, "y_simple": 1 - y_pred, "y_complex": y_pred**2}


def test_metrics_of_streams_are_those_of_their_scores(make_model, valid_gen):
    model = make_model(TwoStreams, group_id="query")
    label = torch.cat([batch["label"] for batch in valid_gen]).double().numpy()
    scores = predict(model, valid_gen)
    names = ["AUC_simple", "logloss", "AUC", "logloss_complex", "AUC_complex", "gAUC_simple"]
    values = evaluate(model, valid_gen, names)
    assert list(values) == names
    assert values["AUC_simple"] == pytest.approx(1 - values["AUC"], abs=1e-12)
    assert values["AUC_complex"] == pytest.approx(values["AUC"], abs=1e-12)
    assert values["logloss_complex"] == pytest.approx(log_loss(label, scores**2), abs=1e-6)
    gauc = evaluate(model, valid_gen, ["gAUC"])["gAUC"]
    assert values["gAUC_simple"] == pytest.approx(1 - gauc, abs=1e-12)


def test_metrics_of_streams_need_a_model_that_scores_them(make_model, valid_gen):
    with pytest.raises(SettingsError, match=r"returns y_simple.*EmbeddingMLP returns y_pred"):
        evaluate(make_model(), valid_gen, ["AUC_simple"])


def test_a_stream_may_be_monitored(make_model, train_gen, valid_gen):
    result = fit(
        make_model(TwoStreams, monitor="AUC_complex"),
        Data(train_gen, valid_gen),
        Schedule(epochs=1),
    )
    assert result.epochs[0]["metrics"].keys() == {"AUC_complex"}


def test_a_model_own_metrics_apply(make_model, train_gen, valid_gen):
    class Counting(EmbeddingMLP):
        def evaluate_metrics(self, y_true, y_pred, metrics, group_id=None):
            return {"rows": float(len(y_true))}

    model = make_model(Counting, monitor="rows")
    assert fit(model, Data(train_gen, valid_gen), Schedule(epochs=1)).best_metric == 90


def test_multitask_models_train_and_predict(make_model, valid_gen):
    class TwoTasks(MultiTaskModel):
        def __init__(self, feature_map, **kwargs):
            feature_map.labels = ["label", "buy"]
            super().__init__(feature_map, task=["binary_classification"] * 2, num_tasks=2, **kwargs)
            self.tower = torch.nn.Linear(2, 2)
            self.compile("adam", "binary_crossentropy", 0.01)

        def forward(self, inputs):
            ids = torch.stack([inputs["user"], inputs["item"]], dim=1).float()
            click, buy = torch.sigmoid(self.tower(ids)).split(1, dim=1)
            return {"label_pred": click, "buy_pred": buy}

    train_gen = build_batches(1)
    for batch in [*train_gen, *valid_gen]:
        batch["buy"] = 1 - batch["label"]
    model = make_model(TwoTasks)
    result = fit(model, Data(train_gen, valid_gen), Schedule(epochs=2))
    assert set(result.epochs[0]["metrics"]) == {"AUC", "label_AUC", "buy_AUC"}
    assert {len(scores) for scores in predict(model, valid_gen).values()} == {90}


def test_evaluation_does_not_keep_the_batches(make_model, monkeypatch):
    """Labels that are views of wide batches (as FuxiCTR's loaders give) must be copied."""
    wide = torch.zeros(6, 1000)
    wide[::2, 0] = 1
    batch = {"user": torch.ones(6).long(), "item": torch.ones(6).long(), "label": wide[:, 0]}
    kept = []
    monkeypatch.setattr(torch, "cat", lambda parts: kept.extend(parts) or torch.hstack(list(parts)))
    evaluation_module._collect(
        make_model(), [batch], lambda outputs, batch: [batch["label"]], progress=False
    )
    assert kept[0].untyped_storage().nbytes() == 6 * 4


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_progress_goes_to_stderr_only(make_model, valid_gen, capsys, progress, shown):
    predict(make_model(), valid_gen, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("evaluate" in err) == shown


def test_the_training_bar_shows_the_loss(make_model, train_gen, valid_gen, capsys, monkeypatch):
    monkeypatch.setattr(evaluation_module, "tqdm", partial(tqdm, mininterval=0))
    fit(make_model(), Data(train_gen, valid_gen), Schedule(epochs=1), watch=Watch(progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "loss=" in err
